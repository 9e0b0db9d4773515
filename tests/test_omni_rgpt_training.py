"""Omni-RGPT goes the whole way: two stages of training, resume, several processes, evaluation, the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dynrefer
from dynrefer import cli
from dynrefer.config import load_config
from dynrefer.data.record_files import record_of, write_records
from eval.run import main as evaluate
from tests.launching import ROOT, TORCHRUN, launched
from tests.omni_rgpt import BASES, CHATS, HW, SETTINGS, new, records, scenes
from train.run import RunConfig, main

ZERO = {stage: f"loop.deepspeed={ROOT}/configs/accelerate/ds_zero{stage}.json" for stage in (2, 3)}
BASE = {"config": {"model_type": "llava", **BASES["llava"]}}
COMMON = [
    "losses={captions: 1.0, guide: 0.05}",
    "data.batch_size=5",
    "data.num_workers=0",
    "optim.lr=0.004",
    "optim.weight_decay=0",
    "loop.num_threads=1",
    "log.tensorboard=false",
    "eval.metric=loss",
]


def section(**more) -> str:
    return f"model={json.dumps({'family': 'omni_rgpt', 'base': BASE, **SETTINGS, **more})}"


@pytest.fixture
def train(tmp_path):
    """Trains for some steps -> the losses, step by step."""

    def go(name: str, *more: str) -> list[float]:
        settings = [f"name={name}", f"output={tmp_path}", f"data.train={scenes()}", section(), *COMMON, *more]
        return losses_of(main(load_config(RunConfig, None, settings)).folder)

    return go


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def changed(one: Path, other: Path) -> set[str]:
    """The kinds of weights that differ between two folders of a model or a run."""
    one, other = (load_file(next(folder.glob("**/model.safetensors"))) for folder in (one, other))
    names = {name for name in one if not torch.equal(one[name], other[name])}
    kinds = {"vision": ".vision_tower.", "projector": "multi_modal_projector", "marks": "marks.", "guide": "guide_head"}
    return {next((kind for kind, part in kinds.items() if part in name), "language") for name in names}


def test_two_stages(train, tmp_path):
    new().save_pretrained(tmp_path / "start")
    first = train("marks", "loop.steps=4", f"init={tmp_path / 'start'}")
    assert first[-1] < first[0] and changed(tmp_path / "start", tmp_path / "marks") == {"marks", "projector", "guide"}
    train("all", "loop.steps=4", f"init={tmp_path / 'marks'}", "model={base: {mode: full}}")
    assert changed(tmp_path / "marks", tmp_path / "all") == {"marks", "projector", "guide", "language"}
    config = json.loads((tmp_path / "all" / "best" / "config.json").read_text())
    assert config["base_mode"] == "full" and [run["run"] for run in config["training"]] == ["marks", "all"]
    with pytest.raises(ValueError, match="model.num_marks is 7, but the model of `init` has 12"):
        train("other", "loop.steps=1", f"init={tmp_path / 'all'}", "model={num_marks: 7}")


def kinds(folder: Path) -> str:
    """The kinds of data that the stages mix, as `data.train` names them: captions of regions of pictures and of clips,
    conversations about whole pictures, about regions of them and of clips, the choice of a region."""
    rows = [record.to_dict() for record in records()]
    places = {"image": "scene0.png", "image_hw": HW}, {"video": "clip", "num_frames": 8, "frame_hw": HW}
    tracks = [{"frames": {str(t): {"box": row["frames"][t]["box"]} for t in ("0", "4")}} for row in rows[-2:]]
    boxes = [{"box": row["box"]} for row in rows[:2]]
    which = "The regions: [0] <region0>, [1] <region1>. Which of them is it?"
    files = {
        "regions": rows[:5],
        "clips": rows[5:],
        "whole": [{"id": "w", **places[0], "turns": [{"question": "What is there?", "answer": "two squares"}]}],
        "picked": [{"id": "p", **places[0], "regions": boxes, "turns": [{"question": which, "answer": "[1]"}]}],
        "asked": [
            {
                "id": "a",
                **places[1],
                "prompt_frame": 0,
                "regions": tracks,
                "turns": [{"question": which, "answer": "[0]"}],
            }
        ],
    }
    sources = []
    for name, lines in files.items():
        path = scenes().parent / f"kind-{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources.append({"path": str(path), "weight": 1})
    return f"data.train={json.dumps(sources)}"


def test_the_published_stages_learn_of_every_kind_of_data(tmp_path):
    """As their settings stand, on a small base and small records."""
    new().save_base(tmp_path / "base")
    common = [f"output={tmp_path}", kinds(tmp_path), "loop.epochs=null", "loop.steps=10", "loop.precision=fp32"]
    common += ["loop.accumulation=1", "loop.save_every=0", "data.batch_size=4", "data.num_workers=0"]
    common += ["optim.lr=0.01", "optim.warmup_steps=0", "loop.num_threads=1", "log.tensorboard=false", "loop.cpu=true"]
    first = f"model.base.name={tmp_path / 'base'}"
    configs, folders = ROOT / "configs", {}
    for name, own in (
        ("omni_rgpt_stage1", [first]),
        ("omni_rgpt_stage2", [f"init={tmp_path / 'omni_rgpt_stage1'}"]),
        ("omni_rgpt_stage2_lora", [f"init={tmp_path / 'omni_rgpt_stage1'}"]),
    ):
        folders[name] = main(load_config(RunConfig, configs / f"{name}.yaml", [*common, *own])).folder
        rows = [json.loads(line) for line in (folders[name] / "log.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        assert len(rows) == 10 and np.isfinite([row["loss"] for row in rows]).all()
        captions = [row["loss/captions"] for row in rows]
        assert np.mean(captions[5:]) < np.mean(captions[:5])  # each half goes once through the five kinds
        assert any("loss/guide" in row for row in rows) == (name != "omni_rgpt_stage1")
    models = {name: dynrefer.load(folder, device="cpu") for name, folder in folders.items()}
    assert [model.config.base_mode for model in models.values()] == ["frozen", "full", "lora"]
    states = {name: model.state_dict() for name, model in models.items()}
    for name, value in states["omni_rgpt_stage1"].items():
        if ".vision_tower." in name:
            assert all(torch.equal(value, state[name]) for state in states.values()), name


def test_a_stop_and_more_steps_are_the_same_run(train, tmp_path):
    same = ["loop.steps=4", "loop.accumulation=2"]
    straight = train("straight", *same)
    train("stopped", *same, "loop.stop_at=2")
    assert train("stopped", *same, "loop.resume=true") == straight and len(straight) == 4
    assert not changed(tmp_path / "straight", tmp_path / "stopped")


def test_accumulation_changes_no_loss(train):
    assert train("cut", "loop.steps=4", "loop.accumulation=3") == pytest.approx(
        train("whole", "loop.steps=4"), rel=1e-5
    )


def test_conversations_are_trained_among_pictures_and_clips_with_and_without_regions(train, tmp_path):
    """Packed or not, stopped or not, in one pass or several: the same losses."""
    path = scenes().parent / "talk.jsonl"
    write_records(path.with_name("chats.jsonl"), [record_of(chat, "") for chat in CHATS])
    path.write_text(scenes().read_text() + path.with_name("chats.jsonl").read_text())
    same = [f"data.train={path}", "loop.steps=4"]
    straight = train("straight", *same)
    assert len(straight) == 4 and straight[-1] < straight[0]
    train("stopped", *same, "loop.stop_at=3")
    assert train("stopped", *same, "loop.resume=true") == straight
    assert not changed(tmp_path / "straight", tmp_path / "stopped")
    assert train("cut", *same, "loop.accumulation=3") == pytest.approx(straight, rel=1e-5)
    rows = section(packed=False)
    assert train("rows", *same, rows) == pytest.approx(straight, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["loop.accumulation=2"], [ZERO[2]], [ZERO[3]]], ids=["ddp", "accumulation", "zero2", "zero3"]
)
def test_two_processes_have_the_losses_of_one(train, tmp_path, more):
    """Also where one of them has pictures and the other a clip."""
    if more and more[0] in ZERO.values():
        pytest.importorskip("deepspeed")
    (tmp_path / "run.yaml").write_text(f"name: two\noutput: {tmp_path}\nloop: {{steps: 4, processes: 2}}\n")
    settings = ["--config", str(tmp_path / "run.yaml"), f"data.train={scenes()}", section(), *COMMON, *more]
    done = launched(*TORCHRUN, "-m", "train.run", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses_of(tmp_path / "two") == pytest.approx(train("one", "loop.steps=4"), rel=1e-5)


def test_a_base_by_name_is_taken_as_it_is(tmp_path, monkeypatch):
    """Also one whose tensors are left out of the model that is built on it."""
    made = new()
    made.save_base(tmp_path / "base")
    settings = [f"output={tmp_path}", f"data.train={scenes()}", *COMMON, "loop.steps=2"]
    named = f"model={{family: omni_rgpt, base: {{name: {tmp_path / 'base'}, projector: false}}, num_marks: 12}}"
    run = main(load_config(RunConfig, None, ["name=named", *settings, named])).folder
    model = dynrefer.load(run, device="cpu")
    for name, value in made.base.state_dict().items():
        assert torch.equal(model.base.state_dict()[name], value), name
    assert model.config.base_parts["base"]["name"] == str(tmp_path / "base")
    model.save_pretrained(tmp_path / "light", save_trainable_only=True)
    names = load_file(tmp_path / "light" / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"marks", "guide_head"}
    again = dynrefer.load(tmp_path / "light", device="cpu")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_command_line(tmp_path, capsys):
    model = new()
    model.save_pretrained(tmp_path / "model")
    image = scenes().parent / "scene0.png"
    command = ["describe", str(image), "--model", str(tmp_path / "model"), "--device", "cpu", "--json"]
    assert cli.main([*command, "--box", "4", "6", "24", "30", "question=What is <region0> doing?"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    expected = dynrefer.RegionPredictor(model)(image, boxes=[[4, 6, 24, 30]], question="What is <region0> doing?")
    assert json.loads(line)["caption"] == expected[0].caption
    assert cli.main([*command, "--box", "4", "6", "24", "30", "question=What is <region4>?"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "<region4> without a region; there is <region0>" in error
    assert cli.main(["info", str(tmp_path / "model")]) == 0
    assert "omni_rgpt" in capsys.readouterr().out
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Model family `omni_rgpt`" in card and 'question="What is <region0>?"' in card


@pytest.mark.slow
def test_evaluation_reads_pictures_and_clips(tmp_path):
    new().save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--task", "world", "--data", str(scenes()), "--device", "cpu"]
    assert evaluate([*command, "--out", str(tmp_path / "out"), "--num-workers", "0", "max_new_tokens=4"]) == 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [region.id for region in records()]
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert np.isfinite(list(content["scores"].values())).all() and "tags" in content["left_out"]
