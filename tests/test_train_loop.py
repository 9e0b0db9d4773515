"""The training loop in one process, with the tiny family of tests/tiny_squares.py."""

import dataclasses
import importlib.machinery
import json
import os
import signal
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dynrefer.config import load_config
from dynrefer.data.record_files import open_records
from tests.tiny_squares import TinyModel, TinyProcessor, load_tiny, tiny_family, write_squares
from train import checkpoint
from train.evaluate import EvalConfig, part_of
from train.log import LogConfig, drop_lines_after
from train.run import NonFiniteLoss, RunConfig, command, main, tasks_to_train
from train.settings import LoopConfig
from train.whole import NEEDED, write_loop

COMMON = [
    "data.batch_size=8",
    "data.num_workers=0",
    "losses={captions: 1.0, tags: 0.5}",
    "optim.lr=0.003",
    "optim.warmup_steps=2",
    "loop.num_threads=1",
    "log.tensorboard=false",
    "eval.limit=20",
]


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("squares")
    return {"train": write_squares(folder, 24), "val": write_squares(folder, 8, seed=9, prefix="v")}


@pytest.fixture
def settings(squares, tmp_path):
    def make(name: str, *more: str) -> RunConfig:
        places = [f"output={tmp_path}/runs", f"data.train={squares['train']}", f"data.val={squares['val']}"]
        return load_config(RunConfig, None, [f"name={name}", *places, *COMMON, *more])

    return make


@pytest.fixture
def train(settings):
    def go(name: str, *more: str, build=tiny_family):
        result = main(settings(name, *more), build, load_tiny)
        return result, rows_of(result.folder)

    return go


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


def test_learns_evaluates_and_leaves_a_whole_run_folder(train):
    result, rows = train("whole", "loop.steps=80", "loop.eval_every=40", "loop.save_every=40", "loop.keep_last=1")
    losses = losses_of(rows)
    assert len(losses) == 80 and losses[-1] < 0.5 * losses[0]
    assert set(rows[0]) == {
        *("step", "epoch", "loss", "loss/captions", "loss/tags", "lr", "grad_norm", "regions_per_second", "seconds")
    }
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/captions"] + 0.5 * rows[0]["loss/tags"])
    evaluations = [row for row in rows if "eval/CIDEr" in row]
    assert [row["step"] for row in evaluations] == [40, 80]
    assert result.best == max(row["eval/CIDEr"] for row in evaluations) > 1
    assert [path.name for path in checkpoint.complete_checkpoints(result.folder)] == ["step-00000080"]
    assert json.loads((result.folder / "last.json").read_text())["step"] == 80
    assert load_config(RunConfig, result.folder / "config.yaml").loop.steps == 80
    assert (result.folder / "best" / "processor.json").exists()
    assert not list(result.folder.rglob(".*"))  # nothing temporary is left


@pytest.mark.parametrize("every", ["loop.save_every=2", "loop.save_every=0"])
def test_three_steps_a_stop_and_three_more_are_six(train, every):
    """With dropout, accumulation and averaged weights: the random generators and all state are back."""
    same = ["model.dropout=0.3", "loop.steps=6", "loop.accumulation=2", "loop.ema=0.9", every, "loop.eval_every=2"]
    _, straight = train("straight", *same)
    first, _ = train("stopped", *same, "loop.stop_at=3")
    assert first.step == 3
    second, resumed = train("stopped", *same, "loop.resume=true")
    assert losses_of(resumed) == losses_of(straight) and len(losses_of(straight)) == 6
    scores = [[row["eval/loss"] for row in rows if "eval/loss" in row] for rows in (straight, resumed)]
    assert scores[0] == scores[1] and len(scores[0]) == 3
    for name in ("best", "checkpoints/step-00000006/model"):
        one = load_file(second.folder / name / "model.safetensors")
        other = load_file(second.folder.with_name("straight") / name / "model.safetensors")
        assert all(torch.equal(one[key], other[key]) for key in one if key != "bank")


def test_a_resume_over_the_end_of_an_epoch_is_exact(train):
    same = ["loop.steps=12", "model.dropout=0.1", "data.num_workers=1"]
    _, straight = train("straight", *same)
    epochs = [row["epoch"] for row in straight]
    stop = epochs.index(1)  # the first epoch is just over
    assert 0 < stop < 12
    train("stopped", *same, f"loop.stop_at={stop}")
    _, resumed = train("stopped", *same, "loop.resume=auto")
    assert losses_of(resumed) == losses_of(straight)


def test_accumulation_changes_neither_losses_nor_gradients(train):
    _, whole = train("whole", "loop.steps=10", "model.dropout=0.0")
    _, cut = train("cut", "loop.steps=10", "loop.accumulation=4")
    for one, other in zip(whole, cut, strict=True):
        for name in ("loss", "loss/captions", "loss/tags", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-5)


def test_gradient_checkpointing_changes_no_loss(train):
    _, plain = train("plain", "loop.steps=4")
    built = []

    def build(section, records):
        built.append(TinyModel(**section))
        return built[0], TinyProcessor()

    _, checkpointed = train("checkpointed", "loop.steps=4", "loop.gradient_checkpointing=true", build=build)
    assert built[0].checkpointing and losses_of(checkpointed) == losses_of(plain)


def test_bf16_trains_with_float32_weights_near_the_float32_losses(train):
    _, exact = train("exact", "loop.steps=5")
    result, rows = train("half", "loop.steps=5", "loop.precision=bf16")
    assert losses_of(rows) == pytest.approx(losses_of(exact), rel=2e-2) and losses_of(rows) != losses_of(exact)
    weights = load_file(result.folder / "best" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("asked", "native", "taken"), [("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16")]
)
def test_auto_precision_is_what_the_device_has_instructions_for(train, monkeypatch, capsys, asked, native, taken):
    monkeypatch.setattr("train.launch.computes_bf16", lambda cpu: native)
    result, _ = train("precision", "loop.steps=1", f"loop.precision={asked}")
    assert f"  precision: {taken}\n" in (result.folder / "config.yaml").read_text(encoding="utf-8")
    assert ("only imitates bf16" in capsys.readouterr().err) == (asked == "bf16")


def test_a_clipped_gradient_still_logs_its_own_norm(train):
    _, free = train("free", "loop.steps=1", "loop.clip=0")
    _, clipped = train("clipped", "loop.steps=1", "loop.clip=0.001")
    assert clipped[0]["grad_norm"] == pytest.approx(free[0]["grad_norm"]) and free[0]["grad_norm"] > 0.001


def test_a_task_of_weight_zero_is_neither_computed_nor_reported(train):
    result, rows = train("captions", "loop.steps=2", "losses={captions: 1.0, tags: 0.0}")
    assert "loss/tags" not in rows[0] and rows[0]["loss"] == rows[0]["loss/captions"]
    new = load_file(result.folder / "best" / "model.safetensors")
    torch.manual_seed(0)
    assert torch.equal(new["tag_decoder.weight"], TinyModel().tag_decoder.weight)


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(ValueError, match="no task 'caption'. Did you mean 'captions'"):
        tasks_to_train({"caption": 1.0}, ("captions", "tags"))


def test_a_loss_that_is_not_finite_names_the_regions_and_saves_nothing_over(train, settings, squares):
    class Poisoned(TinyModel):
        def forward(self, batch):
            losses = super().forward(batch)
            if "s3-0" in batch.ids:
                losses["captions"] = losses["captions"] * float("nan")
            return losses

    def build(section, records):
        return Poisoned(**section), TinyProcessor()

    with pytest.raises(NonFiniteLoss, match="the loss is not finite.*s3-0") as error:
        train("poisoned", "loop.epochs=1", "loop.save_every=1", "loop.accumulation=2", build=build)
    step = int(str(error.value).split("step ")[1].split(":")[0])
    folder = Path(settings("poisoned", "loop.epochs=1").output) / "poisoned"
    saved = [path.name for path in checkpoint.complete_checkpoints(folder)]
    assert saved == [f"step-{n:08d}" for n in range(max(1, step - 2), step)]
    assert not (folder / "best").exists()
    assert str(error.value).count("s") < 200  # a batch of four regions, not the whole data


def test_a_signal_saves_at_the_next_step_and_resume_goes_on(train):
    class Signalled(TinyProcessor):
        calls = 0

        def collate(self, samples):
            Signalled.calls += 1
            if Signalled.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().collate(samples)

    def build(section, records):
        return TinyModel(**section), Signalled()

    before = signal.getsignal(signal.SIGTERM)
    result, rows = train("stopped", "loop.steps=6", build=build)
    assert (result.step, result.stopped_by) == (3, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    _, resumed = train("stopped", "loop.steps=6", "loop.resume=auto")
    _, straight = train("straight", "loop.steps=6")
    assert losses_of(resumed) == losses_of(straight)


def test_training_runs_in_a_thread_where_python_takes_no_signals(settings):
    done = []
    thread = threading.Thread(target=lambda: done.append(main(settings("t", "loop.steps=1"), tiny_family, load_tiny)))
    thread.start()
    thread.join()
    assert done[0].step == 1


def test_minutes_stop_the_run_with_best_and_checkpoint(train):
    result, rows = train("short", "loop.steps=100000", "loop.minutes=0.005")
    assert 0 < result.step < 100000 and rows[-1]["seconds"] >= 0.3
    assert (result.folder / "best").is_dir() and checkpoint.complete_checkpoints(result.folder)


def test_a_run_folder_is_never_written_over_unasked(train):
    train("twice", "loop.steps=1")
    with pytest.raises(ValueError, match="exists already; continue it with loop.resume=true"):
        train("twice", "loop.steps=1")
    _, rows = train("twice", "loop.steps=2", "loop.overwrite=true")
    assert len(rows) == 2


def test_overwrite_spares_a_folder_that_is_no_run(train, tmp_path):
    precious = tmp_path / "runs" / "photos" / "a.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_text("")
    with pytest.raises(ValueError, match="no run folder"):
        train("photos", "loop.steps=1", "loop.overwrite=true")
    assert precious.exists()


def test_resume_without_a_checkpoint_or_with_other_settings_is_an_error(train):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train("none", "loop.steps=1", "loop.resume=true")
    train("other", "loop.steps=4", "loop.stop_at=2")
    with pytest.raises(ValueError, match="optim was .*resume with the old settings, or start a new run"):
        train("other", "loop.steps=4", "loop.resume=true", "optim.lr=0.1")
    result, _ = train("other", "loop.steps=5", "loop.resume=true", "log.every=1")  # a longer run is fine
    assert result.step == 5


def test_init_starts_from_the_weights_of_a_run(train):
    first, _ = train("first", "loop.steps=40")
    _, second = train("second", "loop.steps=1", f"init={first.folder}")
    assert losses_of(second)[0] < 0.7 * losses_of(rows_of(first.folder))[0]


def test_half_written_things_of_a_killed_run_are_mended(train):
    result, _ = train("killed", "loop.steps=4", "loop.save_every=2")
    folder = result.folder
    (folder / "checkpoints" / ".step-00000006.tmp").mkdir()
    (folder / "best").rename(folder / ".best.old")  # killed between the two renames
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    resumed, rows = train("killed", "loop.steps=5", "loop.resume=true")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and resumed.step == 5
    assert (folder / "best").is_dir() and not list(folder.rglob(".*"))


def test_an_incomplete_checkpoint_is_not_resumed(tmp_path):
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    write_loop(tmp_path / "checkpoints" / "step-00000001", dict.fromkeys(NEEDED))
    found, said = checkpoint.checkpoint_to_resume(tmp_path, True, False)
    assert found.name == "step-00000001" and "step-00000002 is damaged: loop.json: missing" in said[0]


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensorboard_gets_the_run(train):
    pytest.importorskip("tensorboard")
    result, _ = train("board", "loop.steps=2", "log.tensorboard=true")
    assert list((result.folder / "tensorboard").glob("events.*"))


def test_a_run_ends_after_evaluations_without_a_better_score(train, monkeypatch, capsys):
    scores = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr("train.run.evaluate", lambda *_: {"loss": next(scores)})
    ways = ("loop.steps=20", "loop.eval_every=2", "eval.metric=loss", "eval.patience=2")
    result, rows = train("tired", *ways)
    assert result.step == 8 and result.best == 2.0  # 2.5 and an equal 2.0 are no better
    assert "2 evaluations without a better loss than 2.0000, the end after step 8 of 20" in capsys.readouterr().err
    again, _ = train("tired", *ways, "loop.resume=true")
    assert again.step == 8
    longer, _ = train("tired", *ways, "loop.resume=true", "eval.patience=3", "loop.stop_at=10")
    assert longer.step == 10 and longer.best == 1.0  # the counter went on


def test_patience_is_counted_over_a_pause(train, monkeypatch):
    scores = iter([3.0, 4.0, 5.0])
    monkeypatch.setattr("train.run.evaluate", lambda *_: {"loss": next(scores)})
    ways = ("loop.steps=20", "loop.eval_every=2", "eval.metric=loss", "eval.patience=2")
    train("paused", *ways, "loop.stop_at=4")
    assert train("paused", *ways, "loop.resume=true")[0].step == 6


def test_another_metric_chooses_best_anew(train, capsys):
    ways = ("loop.steps=4", "loop.eval_every=2")
    first, _ = train("metric", *ways, "eval.metric=CIDEr", "loop.stop_at=2")
    second, rows = train("metric", *ways, "eval.metric=loss/tags", "loop.resume=true")
    assert "eval.metric was CIDEr and is loss/tags: best/ is chosen anew" in capsys.readouterr().err
    assert second.best == [row["eval/loss/tags"] for row in rows if "eval/loss" in row][-1] != first.best


def test_samples_are_pictures_of_the_same_records_and_change_nothing(train, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = []
    tracker = types.ModuleType("wandb")
    tracker.init, tracker.finish = lambda **given: said.append(given["project"]), lambda: said.append("end")
    tracker.log, tracker.Image = lambda row, step: said.append((step, row)), lambda picture, caption: caption
    tracker.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    ways = ("loop.steps=5",)
    _, plain = train("plain", *ways, "log.tensorboard=false")
    shown = ("log.samples_every=2", "log.samples=3", "log.tensorboard=true", "log.wandb_project=p")
    result, rows = train("samples", *ways, *shown)
    assert losses_of(rows) == losses_of(plain)
    events = EventAccumulator(str(result.folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["samples/0", "samples/1", "samples/2"]
    pictures = events.Images("samples/1")
    assert [each.step for each in pictures] == [2, 4] and max(pictures[0].width, pictures[0].height) >= 800
    captions = [row for entry in said[1:-1] for row in [entry[1]] if any(name.startswith("samples") for name in row)]
    assert said[0] == "p" and said[-1] == "end" and len(captions) == 6 and captions[:3] == captions[3:]


def test_a_loss_that_the_model_does_not_learn_cannot_decide(settings):
    with pytest.raises(ValueError, match="is 'loss/tag', but this model .* learns captions, tags; choose one of CIDEr"):
        main(settings("bad", "loop.steps=1", "loop.eval_every=1", "eval.metric=loss/tag"), tiny_family, load_tiny)


def test_samples_need_records_and_something_that_shows_them(settings):
    with pytest.raises(ValueError, match="log.samples_every is set but data.val is empty"):
        settings("bad", "loop.steps=1", "log.samples_every=2", "log.tensorboard=null", "data.val=null")
    with pytest.raises(ValueError, match="eval.patience is 3 but loop.eval_every is 0"):
        settings("bad", "loop.steps=1", "eval.patience=3")
    with pytest.raises(ValueError, match="samples_every is 2, but nothing shows pictures"):
        LogConfig(samples_every=2, tensorboard=False)


def test_a_missing_tracker_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed; `pip install wandb`"):
        LogConfig(wandb_project="regions")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loop.epochs=2", "set exactly one of them"),
        ("losses={captions: 0, tags: 0}", "at least one task"),
        ("losses.caption=1", "no task 'caption'"),
        ("eval.metric=cider", "'cider' is not one of CIDEr"),
        ("name=a/b", "names a folder"),
        ("loop.processes=2", "loop.processes is 2 but 1 were started"),
        ("loop.stepss=3", "Did you mean 'steps'"),
        ("losses.captions=.nan", "losses.captions is nan; expected a finite number"),
        ("loop.minutes=.nan", "minutes is nan; expected a finite number"),
        ("loop.minutes=.inf", "minutes is inf"),
        ("optim.lr=.inf", "optim: lr is inf; expected a finite number"),
        ("optim.betas=[0.9, .nan]", "optim: betas.1 is nan"),
        ("optim.lr_scale={vision: .inf}", "optim: lr_scale.vision is inf"),
        ("model={head: {scale: -.inf}}", "model.head.scale is -inf"),
        ("seed=-1", r"seed is -1; it must lie in \[0, 4294967296\)"),
        ("eval.tokenizer=foo", "eval.tokenizer: 'foo' is not one of 'lower', 'ptb'"),
        ("eval.tokenizer=ptbb", "Did you mean 'ptb'"),
        ("losses=&a {captions: 1, tags: *a}", "losses: cannot read the value .* an alias contains itself"),
        ("model=" + "[" * 5000, "nested too deeply"),
        ("loop.deepspeed=missing.json", "cannot read 'missing.json'"),
        ("eval.patience=-1", "patience -1 must be 0 or more"),
        ("log.samples=0", "log: samples is 0; it must be 1 or more"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, setting, message):
    with pytest.raises(ValueError, match=message):
        main(settings("bad", "loop.steps=1", setting), tiny_family, load_tiny)


def test_the_command_prints_an_error_without_a_traceback(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("name: x\nloop: {steps: 1}\n")
    assert command(["--config", str(tmp_path / "c.yaml")]) == 2
    assert "data.train is empty" in capsys.readouterr().err


def test_evaluation_uses_whole_images_spread_over_the_file(squares):
    records = open_records(squares["train"])
    part = part_of(records, 10)
    assert len(part) == 10 and len({r.id for r in part}) == 10
    places = [int(region.image[1:].removesuffix(".png")) for region in part]
    assert min(places) < 8 and max(places) > 15  # not the first images only
    assert len(part_of(records, 0)) == len(records) == len(part_of(records, 10**6))


def test_lower_is_better_for_the_loss_only():
    assert EvalConfig().is_better("loss", 1.0, 2.0) and EvalConfig().is_better("CIDEr", 2.0, 1.0)


def test_random_generators_come_back(tmp_path):
    torch.save(checkpoint.random_state(), tmp_path / "r.pt")
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist()
    checkpoint.set_random_state(torch.load(tmp_path / "r.pt", weights_only=True))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == drawn


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(ValueError, match="exactly one"):
        LoopConfig(steps=1, epochs=1.0)


def test_help_lists_every_setting_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "  loop.clip: float = 1.0\n      largest global norm of the gradient; 0: not clipped\n" in text
    for section, kind in (("", RunConfig), ("loop.", LoopConfig), ("eval.", EvalConfig), ("log.", LogConfig)):
        assert all(f"  {section}{field.name}" in text for field in dataclasses.fields(kind))
    assert "in the family dynrefer" in text and "tag_threshold=0.7" in text
