"""Prediction by several processes: the same results for one and two, and nothing lost or doubled after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import RegionResult
from dynrefer.predictions import _collect, predict, read_predictions
from tests import tiny_dynrefer as small
from tests.cups import Model

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
IMAGES = 7
# the command itself, with a model that takes its time
SLOW_RUN = """
import sys, time
import eval.run as run

load = run.load_model
def slow_model(args):
    model = load(args)
    answer = model.predict
    model.predict = lambda *a, **k: (time.sleep(0.3), answer(*a, **k))[1]
    return model
run.load_model = slow_model
sys.exit(run.main())
"""
# predicts into the file that is named, so slowly that there is time for a kill
SCRIPT = """
import os, sys, time
import dynrefer
from dynrefer.data.record_files import open_records
from dynrefer.processes import launched
from dynrefer.predictions import predict

folder, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
model = dynrefer.load(f"{folder}/model", device="cpu")
answer = model.predict
def slowly(*args, **options):
    results = answer(*args, **options)
    time.sleep(seconds)
    if "SPOILED" in os.environ and os.environ.get("RANK") == os.environ["SPOILED"]:
        results[0].score = float("nan")
    return results
model.predict = slowly
options = model.Options(do_sample=True if "drawn" in out else None)
with launched():
    records = open_records(f"{folder}/records.jsonl")
    results = predict(model, records, f"{folder}/{out}", options, batch_size=3, num_workers=0)
    if results:
        print("results", len(results), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a saved model, seven images of four regions each and the script."""
    folder = tmp_path_factory.mktemp("predict")
    regions = []
    for n in range(IMAGES):
        Image.fromarray(small.picture(n)).save(folder / f"{n}.png")
        regions += small.regions(f"{n}.png", start=4 * n)
    write_records(folder / "records.jsonl", regions)
    model, processor = small.model()
    model.processor = processor
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "script.py").write_text(SCRIPT)
    return folder


def start(folder: Path, out: str, processes: int, seconds: float = 0.0, **changes: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "SPOILED")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | changes
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    return subprocess.Popen(
        [*launcher, str(folder / "script.py"), str(folder), out, str(seconds)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return said


def written(folder: Path, out: str) -> list[str]:
    return [line for path in folder.glob(f"{out}*") if "meta" not in path.name for line in path.open()]


def assert_same(path: Path, other: Path) -> None:
    expected, found = ([json.loads(line) for line in p.read_text().splitlines()] for p in (path, other))
    assert [line["id"] for line in expected] == [str(n) for n in range(4 * IMAGES)]
    for one, two in zip(expected, found, strict=True):
        assert {k: one[k] for k in ("id", "caption", "box", "extra")} == {
            k: two[k] for k in ("id", "caption", "box", "extra")
        }
        assert two["score"] == pytest.approx(one["score"], abs=1e-5)
        for kind in ("tags", "attributes"):
            scores = ({word["name"]: word["score"] for word in result[kind]} for result in (one, two))
            assert next(scores) == pytest.approx(next(scores), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("out", ["greedy.jsonl", "drawn.jsonl"])
def test_two_processes_predict_what_one_does(folder, out):
    assert finish(start(folder, out, 1)) == f"results {4 * IMAGES}\n"
    assert finish(start(folder, f"two-{out}", 2)) == f"results {4 * IMAGES}\n", "the main process alone has them"
    assert_same(folder / out, folder / f"two-{out}")
    assert not list(folder.glob("*.part-*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes to kill in /proc")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_after_a_kill_any_number_of_processes_goes_on(folder, before, after):
    out = f"killed-{before}.jsonl"
    killed = start(folder, out, before, seconds=0.7)
    deadline = time.time() + 120
    while len(written(folder, out)) < 6 and killed.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    for pid in [*children(killed.pid), killed.pid]:
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    kept = written(folder, out)
    assert 6 <= len(kept) < 4 * IMAGES
    part = next(folder.glob(f"{out}.part-*"))
    part.write_text(part.read_text() + '{"id": "27", "capt')

    whole = start(folder, f"whole-{before}.jsonl", 1)
    finish(whole)
    finish(start(folder, out, after))
    assert_same(folder / f"whole-{before}.jsonl", folder / out)
    lines = (folder / out).read_text().splitlines(keepends=True)
    assert set(kept) <= set(lines), "what was there is not predicted again"


def hear_ctrl_c():
    """In a child: Ctrl-C ends it, also where the tests run in a shell's background, whose processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent to a process group")
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_in_a_line_and_what_was_predicted_stays(folder, processes):
    out = folder / f"stopped-{processes}"
    (folder / "slow_run.py").write_text(SLOW_RUN)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable] if processes == 1 else [*TORCHRUN, "2"]
    command += [folder / "slow_run.py", "--model", folder / "model", "--data", folder / "records.jsonl", "--out", out]
    command += ["--task", "world", "--device", "cpu", "--batch-size", "1", "--num-workers", "2"]
    run = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.time() + 120
    while len(written(out, "predictions.jsonl")) < 3 and run.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert said.count("eval.run: stopped; the same command goes on") == 1
    if processes == 1:  # torchrun tells of itself
        assert run.returncode == 130 and "Traceback" not in said
    assert str(ROOT / "eval") not in said and str(ROOT / "dynrefer") not in said
    assert 3 <= len(written(out, "predictions.jsonl")) < 4 * IMAGES


@pytest.mark.slow
def test_a_sweep_by_two_processes_measures_what_one_does(folder):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    tables = {}
    for processes, launcher in ((1, [sys.executable]), (2, [*TORCHRUN, "2"])):
        out = folder / f"views-{processes}"
        command = ["-m", "eval.sweep", "--model", folder / "model", "--data", folder / "records.jsonl", "--out", out]
        command += ["--task", "world", "--device", "cpu", "--batch-size", "3", "--num-workers", "0"]
        command += ["--settings", "random", "fixed:0,0.5,0.5"]
        done = subprocess.run(
            [*launcher, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("best for CIDEr") == 1, "the main process alone prints"
        tables[processes] = json.loads((out / "views.json").read_text())["scores"]
        assert (out / "views.html").stat().st_size > 1000
    assert list(tables[1]) == ["random", "fixed:0,0.5,0.5"] and len(tables[1]["random"]) > 3
    for setting, row in tables[1].items():
        assert tables[2][setting] == pytest.approx(row, abs=1e-6)


@pytest.mark.slow
def test_an_error_of_one_process_stops_all_and_what_is_there_stays(folder):
    spoiled = start(folder, "spoiled.jsonl", 2, SPOILED="1")
    _, errors = spoiled.communicate(timeout=120)
    assert spoiled.returncode != 0 and "a score of its prediction is not finite" in errors
    assert not (folder / "spoiled.jsonl").exists()
    finish(start(folder, "spoiled.jsonl", 1))
    finish(start(folder, "unspoiled.jsonl", 1))
    assert_same(folder / "unspoiled.jsonl", folder / "spoiled.jsonl")


def test_a_kill_between_putting_parts_together_and_removing_them_doubles_nothing(data):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "p.jsonl", batch_size=3, num_workers=0)
    lines = (data / "p.jsonl").read_text().splitlines(keepends=True)
    (data / "p.jsonl.part-0-0").write_text("".join(lines[4:7]))
    assert predict(Model(die_at=0), records, data / "p.jsonl", batch_size=3, num_workers=0) == whole
    assert (data / "p.jsonl").read_text() == "".join(lines)
    assert not list(data.glob("*.part-*"))


def test_parts_of_other_weights_are_refused_and_overwrite_removes_them(data):
    records = open_records(data / "test.jsonl")
    with pytest.raises(KeyboardInterrupt):
        predict(Model(die_at=2), records, data / "p.jsonl", batch_size=3, num_workers=0)
    assert not (data / "p.jsonl").exists() and len(written(data, "p.jsonl")) == 4
    trained = Model()
    trained.weight.data[3] += 1e-3
    with pytest.raises(ValueError, match="with model .*--overwrite"):
        predict(trained, records, data / "p.jsonl", num_workers=0)
    predict(trained, records, data / "p.jsonl", batch_size=10, num_workers=0, overwrite=True)
    assert [len(call["ids"]) for call in trained.calls] == [10]
    assert not list(data.glob("*.part-*"))


def test_a_file_of_more_records_keeps_those_that_a_part_of_the_records_does_not_ask_for(data):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "p.jsonl", num_workers=0)
    few = records.subset(range(2, 6))
    assert list(predict(Model(die_at=0), few, data / "p.jsonl", num_workers=0)) == [region.id for region in few]
    assert read_predictions(data / "p.jsonl") == whole


def test_only_batches_with_a_region_that_is_missing_are_predicted(data):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "p.jsonl", batch_size=2, num_workers=0)
    lines = (data / "p.jsonl").read_text().splitlines(keepends=True)
    (data / "p.jsonl").write_text("".join(lines[:3] + lines[4:]))
    model = Model()
    assert predict(model, records, data / "p.jsonl", batch_size=2, num_workers=0) == whole
    assert [call["ids"] for call in model.calls] == [[records[2].id, records[3].id]]
    assert (data / "p.jsonl").read_text() == "".join(lines)


def test_a_part_with_a_score_that_is_no_number_is_refused(data):
    records = open_records(data / "test.jsonl")
    (data / "p.jsonl.part-0-0").write_text(
        json.dumps(RegionResult(records[0].id, [], score=float("nan")).to_dict()) + "\n"
    )
    with pytest.raises(ValueError, match=f"part-0-0:1: score nan of {records[0].id}: expected a finite number"):
        _collect(data / "p.jsonl", records, [data / "p.jsonl.part-0-0"])


def children(pid: int) -> list[int]:
    """The processes that a launcher has started, which outlive it otherwise."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    return [child for child, parent in parents.items() if parent == pid]
