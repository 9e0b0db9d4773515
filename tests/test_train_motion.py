"""The experiment on the world in motion: rows that are done stay done."""

import json

import pytest

from data_prep import moving_world
from dynrefer.data.records import RegionResult
from eval.scoring import score
from train import motion


def answering_left(model, task, questions, out, num_workers):
    results = {question.id: RegionResult(question.id, question.box, caption="left") for question in questions}
    return score(task, questions, results), results


@pytest.fixture
def data(tmp_path):
    moving_world.write(tmp_path / "data", 12, "test")
    return tmp_path / "data"


@pytest.fixture
def runs(monkeypatch):
    """Trainings that are not done: (row, settings of the run) each. Speeds: 0.5 s a step."""
    told = []

    def run(self, row, *settings):
        told.append((row, dict(setting.split("=", 1) for setting in settings)))
        folder = self.output / dict(setting.split("=", 1) for setting in settings)["name"]
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step, "seconds": 9 + 0.5 * step if step > 5 else step}) for step in range(1, 31)]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(motion.Trainer, "run", run)
    monkeypatch.setattr(motion.dynrefer, "load", lambda folder, device: folder)
    monkeypatch.setattr(motion, "evaluate", answering_left)
    return told


def test_a_row_takes_its_time_and_is_done_once(tmp_path, data, runs, capsys):
    command = ["--data", str(data), "--output", str(tmp_path / "runs"), "--rows", "main", "one_frame"]
    assert motion.main(command) == 0
    first = capsys.readouterr().out
    assert [(row, settings["name"], settings["loop.steps"]) for row, settings in runs] == [
        ("main", "main-trial", "30"),
        ("main", "main", "3600"),  # 30 minutes
        ("one_frame", "one_frame-trial", "30"),
        ("one_frame", "one_frame", "1800"),
    ]
    assert runs[1][1]["loop.resume"] == "auto"
    assert "| marks, guide head, 4 frames; twice the time | " in first and "| 1 frame | " in first
    assert motion.main(command) == 0 and len(runs) == 4  # both rows are done
    assert capsys.readouterr().out == first


def test_other_ways_to_name_a_region_stand_beside_marks_without_the_guide_head_too(tmp_path, data, runs, capsys):
    rows = ["marks_15", "no_guide", "words"]
    assert motion.main(["--data", str(data), "--output", str(tmp_path / "runs"), "--rows", *rows]) == 0
    first = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    unguided, words = "| without guide head", "| coordinates in words"
    assert [line for line in first if line in (unguided, words)] == [unguided, words, unguided, words]
    assert len(json.loads((tmp_path / "runs" / "table.json").read_text())) == 2


def test_after_a_kill_a_row_has_the_steps_it_began_with(tmp_path, data, runs):
    command = ["--data", str(data), "--output", str(tmp_path / "runs"), "--rows", "words"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "words.steps.json").write_text('{"seconds": 0.1, "minutes": 15}')
    assert motion.main([*command, "--minutes", "10"]) == 2 and not runs
    assert motion.main(command) == 0
    assert [(settings["name"], settings["loop.steps"]) for _, settings in runs] == [("words", "9000")]


def test_a_row_is_a_command_of_its_own(tmp_path):
    args = motion.argparse.Namespace(data="d", output="o", config="c.yaml", settings=["optim.lr=1"], processes=2)
    command = motion.Trainer(args).command("own", "name=own")
    assert command[1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    assert "data.train=d/train-chats.jsonl" in command and "model.marks=own" in command and "optim.lr=1" in command
    args.processes = 1
    assert motion.Trainer(args).command("main")[1:3] == ["-m", "train.run"]


def test_a_training_that_fails_ends_the_experiment(tmp_path, data, capsys):
    command = ["--data", str(data), "--output", str(tmp_path / "runs"), "--rows", "main", "--config", "missing.yaml"]
    assert motion.main([*command, "--processes", "1"]) == 2
    assert "row main: its training ended with status 2" in capsys.readouterr().err
