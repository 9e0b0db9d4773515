"""One process and two, DDP and ZeRO: the same losses. The launched runs take about twenty seconds each;
DeepSpeed compiles a helper the first time, which takes a minute more."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import ROOT, TORCHRUN, launched
from tests.tiny_squares import write_squares
from train import launch

LAUNCHED = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
COMPARED = ("loss", "loss/captions", "loss/tags", "grad_norm", "eval/loss", "eval/CIDEr")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Starts `-m tests.tiny_squares` under a launcher, returns the run's folder; a single process run is made once."""
    folder = tmp_path_factory.mktemp("processes")
    write_squares(folder, 24)
    write_squares(folder, 8, seed=9, prefix="v")
    (folder / "run.yaml").write_text(
        f"""
name: one
output: {folder}/runs
data: {{train: {folder}/s.jsonl, val: {folder}/v.jsonl, batch_size: 8, num_workers: 0}}
losses: {{captions: 1.0, tags: 0.5}}
optim: {{lr: 3.0e-3}}
loop: {{steps: 6, num_threads: 1, eval_every: 3}}
log: {{tensorboard: false}}
"""
    )

    def start(launcher: list[str], *settings: str, module: str = "tests.tiny_squares", said: str = "") -> Path:
        done = launched(*launcher, "-m", module, "--config", str(folder / "run.yaml"), *settings)
        assert (done.returncode == 0) == (not said or "now" in said), done.stderr[-3000:]
        assert done.stderr.count(said) == 1 or not said, done.stderr[-3000:]
        return folder / "runs"

    return start


@pytest.fixture(scope="module")
def one_process(runs) -> Path:
    return runs([sys.executable]) / "one"


def assert_same_losses(one: Path, other: Path) -> None:
    expected, rows = ([json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (one, other))
    assert len(expected) == len(rows) == 8  # six steps, two evaluations
    for want, row in zip(expected, rows, strict=True):
        for name in want.keys() & set(COMPARED):
            assert row[name] == pytest.approx(want[name], rel=1e-5), (row["step"], name)
    weights, others = (load_file(f / "best" / "model.safetensors") for f in (one, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_with_accumulation_have_the_losses_of_one(runs, one_process):
    assert_same_losses(one_process, runs(TORCHRUN, "name=ddp", "loop.processes=2", "loop.accumulation=2") / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_two_processes_has_the_losses_of_one(runs, one_process, stage):
    pytest.importorskip("deepspeed")
    settings = (f"loop.deepspeed=configs/accelerate/ds_zero{stage}.json", "loop.accumulation=2", "loop.processes=2")
    assert_same_losses(one_process, runs(TORCHRUN, f"name=zero{stage}", *settings) / f"zero{stage}")


@pytest.mark.slow
def test_zero3_started_by_accelerate_stops_and_resumes_exactly(runs, one_process):
    pytest.importorskip("deepspeed")
    launcher = [*LAUNCHED, "--config_file", "configs/accelerate/zero3.yaml"]
    runs(launcher, "name=resumed", "loop.stop_at=3")
    assert_same_losses(one_process, runs(launcher, "name=resumed", "loop.resume=true") / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 2])
def test_another_number_of_processes_goes_on_with_the_losses_of_a_run_that_never_stopped(runs, one_process, then):
    launchers = {1: ([sys.executable],), 2: (TORCHRUN, "loop.processes=2")}
    name, said = f"name=then-{then}", f"was saved by {2 if then == 1 else 1} process{'es' * (then == 1)}, now {then}: "
    (launcher, *more), (other, *others) = launchers[3 - then], launchers[then]
    runs(launcher, name, "loop.stop_at=3", *more)
    assert_same_losses(one_process, runs(other, name, "loop.resume=true", *others, said=said) / f"then-{then}")


@pytest.mark.slow
def test_deepspeed_refuses_another_number_of_processes_with_the_number(runs):
    pytest.importorskip("deepspeed")
    settings = ("name=fewer", "loop.deepspeed=configs/accelerate/ds_zero2.json")
    folder = runs(TORCHRUN, *settings, "loop.processes=2", "loop.stop_at=3")
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / "fewer" / "checkpoints").rglob("*"))
    said = "was written by 2 DeepSpeed processes and this run has 1; DeepSpeed's optimizer state needs the same number"
    runs([sys.executable], *settings, "loop.resume=true", said=said)
    assert sorted((p, p.stat().st_mtime_ns) for p in (folder / "fewer" / "checkpoints").rglob("*")) == before


def test_deepspeed_gets_weights_that_it_can_send_as_bytes():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 1))
    model.scale = torch.nn.Parameter(torch.tensor(2.0))
    model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    before = [parameter.clone() for parameter in model.parameters()]
    launch.prepare_for_deepspeed(model, "bf16")
    assert all(parameter.data.view(torch.uint8).numel() for parameter in model.parameters())
    assert all(torch.equal(new, old.view(new.shape)) for new, old in zip(model.parameters(), before, strict=True))
    assert model.scale.shape == (1,)
    model.append(torch.nn.BatchNorm2d(5))
    launch.prepare_for_deepspeed(model, "fp32")
    with pytest.raises(ValueError, match="2 is a batch normalization.*set loop.precision=fp32"):
        launch.prepare_for_deepspeed(model, "bf16")


def test_a_process_group_that_accelerate_does_not_see_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")

    class Alone:
        num_processes, distributed_type = 1, "NO"

    with pytest.raises(ValueError, match="3 processes were started but Accelerate sees 1"):
        launch._check_world(Alone(), 3, None)


def test_deepspeed_settings_that_the_loop_decides_may_not_stand_in_the_json(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}')
    with pytest.raises(ValueError, match="'gradient_clipping' is set by the run's own settings"):
        launch._deepspeed_settings(str(path), "fp32", 1.0, 8, 2)
    path.write_text('{"zero_optimization": {"stage": 1}}')
    with pytest.raises(ValueError, match="stage is 1; this loop runs stages 2 and 3"):
        launch._deepspeed_settings(str(path), "fp32", 1.0, 8, 2)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_configs_divide_nothing_twice(stage):
    settings = launch._deepspeed_settings(str(ROOT / f"configs/accelerate/ds_zero{stage}.json"), "bf16", 1.0, 8, 2)
    assert settings["gradient_accumulation_steps"] == 1 and settings["zero_optimization"]["stage"] == stage
    assert settings["train_batch_size"] == 2 * settings["train_micro_batch_size_per_gpu"] == 8
    assert settings["bf16"] == {"enabled": True}
