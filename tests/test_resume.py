"""What a start finds in a run's folder: damaged checkpoints, records that changed, other processes, another run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynrefer.config import load_config
from dynrefer.data.arrow import save_arrow
from dynrefer.data.content import content_of
from dynrefer.data.record_files import open_records
from dynrefer.data.shards import open_shards, write_shards
from tests.test_train_loop import COMMON, losses_of, rows_of
from tests.tiny_squares import load_tiny, tiny_family, write_squares
from train import lock
from train.run import RunConfig, main
from train.whole import LOOP_FILE, faults, read_loop, write_loop

ROOT = Path(__file__).resolve().parents[1]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WAYS = {
    "cut": cut,
    "a bit": turn_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "pointer": lambda path: path.write_bytes(POINTER),
    "page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>not found</html>"),
    "missing": lambda path: path.unlink(),
}
FILES = ("model/model.safetensors", "model/config.json", "state/optimizer.pt", "state/random-0.pt", LOOP_FILE)


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"), 24)


@pytest.fixture
def train(squares, tmp_path):
    def go(name: str, *more: str, records: Path = squares):
        places = [f"name={name}", f"output={tmp_path}/runs", f"data.train={records}"]
        result = main(load_config(RunConfig, None, [*places, *COMMON, *more]), tiny_family, load_tiny)
        return result.folder, rows_of(result.folder)

    return go


@pytest.fixture(scope="module")
def stopped(squares, tmp_path_factory) -> Path:
    """A run of six steps that stopped after the fourth, with checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("stopped")
    settings = [f"output={output}", f"data.train={squares}", "loop.steps=6", "loop.save_every=2", "loop.stop_at=4"]
    return main(load_config(RunConfig, None, ["name=run", *COMMON, *settings]), tiny_family, load_tiny).folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return shutil.copytree(stopped, tmp_path / "runs" / "run")


@pytest.fixture(scope="module")
def straight(squares, tmp_path_factory) -> list[float]:
    settings = [f"output={tmp_path_factory.mktemp('straight')}", f"data.train={squares}", "loop.steps=6"]
    result = main(load_config(RunConfig, None, ["name=run", *COMMON, *settings]), tiny_family, load_tiny)
    return losses_of(rows_of(result.folder))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file_is_found(run, file, way):
    newest = run / "checkpoints" / "step-00000004"
    assert faults(newest) == []
    WAYS[way](newest / file)
    (fault,) = faults(newest)
    assert fault.startswith(f"{file}: ") and "\n" not in fault


@pytest.mark.parametrize("file", ["state/optimizer.pt", LOOP_FILE])
def test_a_damaged_newest_checkpoint_falls_back_and_loses_nothing(train, run, straight, capfd, file):
    newest = run / "checkpoints" / "step-00000004"
    cut(newest / file)
    bytes_before = {path.name: path.read_bytes() for path in (newest / "state").iterdir()}
    _, rows = train("run", "loop.steps=6", "loop.resume=true", "loop.keep_last=1")
    said = capfd.readouterr().err
    assert f"checkpoint {newest} is damaged: {file}" in said
    assert f"going on from {run}/checkpoints/step-00000002" in said and "kept as aside-step-00000004" in said
    assert losses_of(rows) == straight
    aside = run / "checkpoints" / "aside-step-00000004"
    assert {path.name: path.read_bytes() for path in (aside / "state").iterdir()} == bytes_before
    assert [path.name for path in run.glob("checkpoints/step-*")] == ["step-00000006"]


def test_where_no_checkpoint_is_whole_the_files_are_named_and_nothing_changes(train, run):
    for step, file in ((2, "state/random-0.pt"), (4, "model/config.json")):
        cut(run / "checkpoints" / f"step-{step:08d}" / file)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file())
    for resume in ("true", "auto"):
        with pytest.raises(ValueError, match=r"no whole checkpoint.*4 is damaged: model/config.json.*2.*random-0.pt"):
            train("run", "loop.steps=6", f"loop.resume={resume}")
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()) == before


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(train, run):
    cut(run / "checkpoints" / "step-00000004" / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="step-00000004' is damaged .model/model.safetensors: .*newest whole"):
        train("run", "loop.steps=6", f"loop.resume={run}/checkpoints/step-00000004")


def test_going_on_from_an_earlier_checkpoint_puts_later_ones_aside(train, run, straight):
    resume = f"loop.resume={run}/checkpoints/step-00000002"
    train("run", "loop.steps=6", resume, "loop.stop_at=3")
    _, rows = train("run", "loop.steps=6", "loop.resume=true")
    assert losses_of(rows) == straight


def test_changed_records_are_refused_with_what_to_do(train, tmp_path):
    records = write_squares(tmp_path, 24)
    lines = records.read_text().splitlines()
    train("run", "loop.steps=4", "loop.stop_at=2", records=records)
    records.write_text("\n".join(lines[:-5]) + "\n")
    said = (
        rf"s.jsonl have changed since .*\({len(lines)} regions then, {len(lines) - 5} now; .*put the old ones back, or"
    )
    with pytest.raises(ValueError, match=said):
        train("run", "loop.steps=4", "loop.resume=true", records=records)
    records.write_text("\n".join(lines).replace("square", "Square", 1) + "\n")  # as many regions, another word
    with pytest.raises(ValueError, match="have changed since"):
        train("run", "loop.steps=4", "loop.resume=true", records=records)
    records.write_text("\n".join(lines) + "\n")
    assert len(train("run", "loop.steps=4", "loop.resume=true", records=records)[1]) == 4


def test_every_kind_of_records_has_a_hash_of_its_content(squares, tmp_path):
    records = open_records(squares)
    save_arrow(tmp_path / "a", list(records))
    save_arrow(tmp_path / "b", list(records)[:-1])
    arrow, other = (content_of(open_records(tmp_path / name))[0] for name in "ab")
    assert arrow["regions"] == other["regions"] + 1 and arrow["hash"] != other["hash"]
    save_arrow(tmp_path / "c", list(records))
    assert content_of(open_records(tmp_path / "c"))[0]["hash"] == arrow["hash"]
    write_shards(tmp_path / "shards", records, max_bytes=4000)
    write_shards(tmp_path / "fewer", records.subset(range(5)), max_bytes=4000)
    shards, fewer = (content_of(open_shards(tmp_path / name))[0]["hash"] for name in ("shards", "fewer"))
    assert shards != fewer
    joined = content_of(open_records([squares, write_squares(tmp_path, 3, seed=2, prefix="t")]))
    assert [Path(one["path"]).name for one in joined] == ["s.jsonl", "t.jsonl"]


def as_written(checkpoint: Path, **changes) -> None:
    """loop.json with some entries changed or (None) removed, as a program would have written it."""
    loop = {name: value for name, value in (read_loop(checkpoint) | changes).items() if name not in ("files", "hash")}
    (checkpoint / LOOP_FILE).unlink()
    write_loop(checkpoint, {name: value for name, value in loop.items() if value is not None or name not in changes})


def test_another_number_of_processes_goes_on_with_the_same_data_and_says_what_is_not_exact(train, run, straight, capfd):
    as_written(run / "checkpoints" / "step-00000004", processes=3)
    _, rows = train("run", "loop.steps=6", "loop.resume=true")
    lines = [line for line in capfd.readouterr().err.splitlines() if "was saved by 3 processes, now 1" in line]
    assert len(lines) == 1 and "random" in lines[0]
    assert losses_of(rows) == straight  # this model draws nothing


def test_a_run_of_0_3_0_goes_on_at_the_next_epochs_beginning_and_says_so(train, run, capfd):
    newest = run / "checkpoints" / "step-00000004"
    loop = {name: value for name, value in read_loop(newest).items() if name not in ("files", "hash", "records")}
    del loop["next"], loop["evaluated"]
    (newest / LOOP_FILE).write_text(json.dumps(loop | {"epoch": 0, "batch": 3}, indent=1))
    _, rows = train("run", "loop.steps=6", "loop.resume=true")
    assert "is of version 0.3.0, whose epochs had other steps: it goes on at the beginning of epoch 1" in (
        capfd.readouterr().err
    )
    assert [row["epoch"] for row in rows if row["step"] > 4] == [1, 1]


def test_a_damaged_checkpoint_of_0_3_0_is_found_by_its_archives(run):
    newest = run / "checkpoints" / "step-00000004"
    as_written(newest)
    loop = {name: value for name, value in read_loop(newest).items() if name not in ("files", "hash")}
    (newest / LOOP_FILE).write_text(json.dumps(loop))
    assert faults(newest) == []
    cut(newest / "state" / "optimizer.pt")
    assert faults(newest) == ["state/optimizer.pt: damaged"]


def test_an_evaluation_that_a_signal_forestalled_is_made_up_for(train, squares):
    same = ["loop.steps=4", "loop.eval_every=2", f"data.val={squares}"]
    _, straight = train("straight", *same)
    folder, _ = train("stopped", "loop.steps=4", "loop.stop_at=2", f"data.val={squares}")  # not evaluated
    _, rows = train("stopped", *same, "loop.resume=true")
    evaluations = [[row for row in each if "eval/loss" in row] for each in (straight, rows)]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 2


class Alone:
    num_processes, is_main_process = 1, True


def test_a_second_run_of_a_name_is_refused_with_the_process_that_holds_it(train, run):
    before = sorted(run.rglob("*"))
    with lock.held(run, Alone()):
        for settings in (["loop.resume=true"], ["loop.overwrite=true"], ["loop.resume=auto"], []):
            with pytest.raises(ValueError, match=r"'.*runs/run' is held by process \d+ on .*choose another name"):
                train("run", "loop.steps=6", *settings)
        assert sorted(run.rglob("*")) == sorted([*before, run / lock.FILE])
    assert sorted(run.rglob("*")) == before
    assert len(train("run", "loop.steps=6", "loop.resume=true")[1]) == 6


def test_a_start_that_fails_leaves_no_folder(train, tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train("new", "loop.steps=1", "loop.resume=true")
    assert not (tmp_path / "runs" / "new").exists()


def test_a_kill_releases_the_folder_though_a_worker_lives_on(tmp_path):
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom train import lock\n"
        "class Alone: num_processes, is_main_process = 1, True\n"
        "with lock.held(Path(sys.argv[1]), Alone()):\n"
        "    if os.fork() == 0:\n        time.sleep(20)\n        os._exit(0)\n"
        "    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout.readline().strip() == str(process.pid)
        with pytest.raises(ValueError, match=f"process {process.pid} on"), lock.held(tmp_path / "run", Alone()):
            pass
        begun = time.monotonic()
        process.send_signal(signal.SIGKILL)
        while process.poll() is None:
            time.sleep(0.01)
        with lock.held(tmp_path / "run", Alone()):
            assert time.monotonic() - begun < 10
        process.stdout.close()
