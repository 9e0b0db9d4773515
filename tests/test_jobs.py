"""`dynrefer describe ... --out`: every kind of input, what is wrong in one line, and kills that lose nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import dynrefer
from dynrefer import cli
from dynrefer.data.record_files import open_records
from dynrefer.models import auto
from dynrefer.predictions import read_predictions
from tests.cups import COLOURS, Model
from tests.test_predictions import TORCHRUN

ROOT = Path(__file__).resolve().parent.parent
# the command itself, with a model that takes its time
SCRIPT = """
import sys, time
from types import SimpleNamespace
import dynrefer
from dynrefer import cli
from dynrefer.models import auto
from tests.cups import Model

model = Model()
answer = model.predict
model.predict = lambda *a, **k: (time.sleep(float(sys.argv[1])), answer(*a, **k))[1]
dynrefer.load = lambda *a, **k: model
auto.family_of = lambda *a: SimpleNamespace(options=Model.Options)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setitem(dynrefer.__dict__, "load", lambda *args, **options: made)
    monkeypatch.setattr(auto, "family_of", lambda *args: SimpleNamespace(options=Model.Options))
    return made


@pytest.fixture
def photos(tmp_path):
    """Six pictures in a folder and one below it, and a file that is no picture."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    names = ["a.png", "b.png", "c.PNG", "d.png", "e.png", "more/a.png"]
    for name, colour in zip(names, ["red", "green", "blue"] * 2, strict=True):
        Image.new("RGB", (16, 8), COLOURS[colour]).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def coco(folder, **changes):
    """Two boxes of one picture, the second of which says no height, and one of another."""
    annotations = [
        {"id": 70, "image_id": 9, "category_id": 5, "bbox": [0, 0, 8, 8], "iscrowd": 0},
        {"id": 12, "image_id": 4, "category_id": 5, "bbox": [8, 0, 8, 8]},
        {"id": 71, "image_id": 9, "category_id": 6, "segmentation": [[8, 0, 16, 0, 16, 8, 8, 8]]},
    ]
    content = {
        "images": [{"id": 4, "file_name": "a.png"}, {"id": 9, "file_name": "b.png", "height": 8, "width": 16}],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "lamp"}, {"id": 6, "name": "cup"}],
    }
    (folder / "coco.json").write_text(json.dumps(content | changes))
    return folder / "coco.json"


def run(capsys, *argv):
    """(status, stdout, stderr) of one command."""
    capsys.readouterr()
    try:
        status = cli.main(["describe", "--model", "m", "--num-workers", "0", *map(str, argv)])
    except SystemExit as exit:
        status = exit.code
    out, err = capsys.readouterr()
    return status, out, err


def captions(path):
    return {name: result.caption for name, result in read_predictions(path).items()}


# --- inputs and forms ------------------------------------------------------------------------------------------------


def test_a_folder_is_described_picture_by_picture_in_order(model, photos, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    status, said, err = run(capsys, photos, "--out", out)
    assert status == 0 and said == f"6 regions of 6 pictures -> {out}\n"
    assert "1 other files there are no pictures, such as" in err and "notes.txt" in err
    colours = ["red", "green", "blue"] * 2
    names = ["a.png", "b.png", "c.PNG", "d.png", "e.png", "more/a.png"]
    assert list(captions(out).items()) == [(n, f"a {c} cup") for n, c in zip(names, colours, strict=True)]
    records = open_records(tmp_path / "results.records.jsonl")
    assert [record.image for record in records] == [f"photos/{name}" for name in names]
    assert records[5].box == (0, 0, 16, 8)
    before = out.read_bytes()
    assert run(capsys, photos, "--out", out)[0] == 0 and out.read_bytes() == before
    assert len(model.calls) == 1, "what is there is not predicted again"


def test_coco_annotations_give_results_that_loadres_reads(model, photos, tmp_path, capsys):
    from pycocotools.coco import COCO

    file, out = coco(photos), tmp_path / "o" / "results.coco.json"
    assert run(capsys, "--coco", file, "--out", out)[0] == 0
    found = json.loads(out.read_text())
    assert [one["region_id"] for one in found] == ["70", "12", "71"]
    assert [one["image_id"] for one in found] == [9, 4, 9] and [one["bbox"] for one in found][1] == [8, 0, 8, 8]
    assert [one["caption"] for one in found] == ["a green cup", "a red lamp", "a green lamp"]
    assert [one["category_id"] for one in found] == [6, 5, 5]
    assert list(captions(tmp_path / "o" / "results.jsonl")) == ["70", "12", "71"]
    (truth := json.loads(file.read_text()))["images"][0] |= {"height": 8, "width": 16}
    file.write_text(json.dumps(truth))
    assert len(COCO(str(file)).loadRes([{k: v for k, v in one.items() if k != "caption"} for one in found]).anns) == 3


def test_records_keep_their_ids_and_pictures_make_a_coco_document(model, data, tmp_path, capsys):
    assert run(capsys, "--records", data / "test.jsonl", "--out", tmp_path / "r.jsonl")[0] == 0
    assert list(captions(tmp_path / "r.jsonl")) == [region.id for region in open_records(data / "test.jsonl")]
    assert not (tmp_path / "r.records.jsonl").exists()
    pictures = [data / "images/test0.png", data / "images/test2.png"]
    assert run(capsys, *pictures, "--out", tmp_path / "p.coco.json")[0] == 0
    document = json.loads((tmp_path / "p.coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["test0.png", "test2.png"]
    assert [one["caption"] for one in document["annotations"]] == ["a red cup", "a blue cup"]


def test_boxes_and_masks_of_one_picture_go_into_a_file_too(model, photos, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    boxes = ["--box", "8", "0", "16", "8", "--box", "0", "0", "8", "8"]
    assert run(capsys, photos / "a.png", *boxes, "--out", out)[0] == 0
    assert captions(out) == {"a.png:0": "a red lamp", "a.png:1": "a red cup"}


def test_several_pictures_are_printed_one_after_the_other(model, photos, capsys, monkeypatch):
    model.before_eval()
    monkeypatch.chdir(photos)
    status, said, _ = run(capsys, "a.png", "b.png")
    assert status == 0 and said.startswith("a.png:\n0: a red cup")
    assert said.index("a red cup") < said.index("b.png:") < said.index("a green cup")
    lines = [json.loads(line) for line in run(capsys, photos, "--json")[1].splitlines()]
    assert [line["id"] for line in lines][-1] == f"{photos}/more/a.png:0" and len(lines) == 6
    status, said, _ = run(capsys, "a.png", "--regions", "image")
    assert status == 0 and said.startswith("0: a red cup")


def test_drawings_are_made_once_and_never_over_another_file(model, photos, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "a.png").write_bytes(b"mine")
    command = (photos, "--out", tmp_path / "results.jsonl", "--draw", drawn)
    status, said, _ = run(capsys, *command)
    assert status == 0 and f"6 pictures drawn -> {drawn}" in said
    assert (drawn / "a.png").read_bytes() == b"mine"
    assert sorted(path.name for path in drawn.iterdir()) == sorted(
        ["a.png", "a-2.png", "b.png", "c.png", "d.png", "e.png", "more-a.png"]
    )
    (drawn / "b.png").unlink()
    changed = (drawn / "c.png").stat().st_mtime_ns
    assert run(capsys, *command)[0] == 0 and (drawn / "b.png").is_file() and len(list(drawn.iterdir())) == 7
    assert (drawn / "c.png").stat().st_mtime_ns == changed


# --- what is wrong ---------------------------------------------------------------------------------------------------


def wrong(capsys, message, *argv):
    status, said, err = run(capsys, *argv)
    err = "".join(line for line in err.splitlines(True) if "other files there" not in line)
    assert status == 2 and said == "" and err.count("\n") == 1 and err.startswith("dynrefer: error: ")
    assert message in err, err


def test_wrong_pictures_are_one_line(model, photos, tmp_path, capsys):
    out = ("--out", tmp_path / "results.jsonl")
    (tmp_path / "empty").mkdir()
    wrong(capsys, "no pictures in it", tmp_path / "empty", *out)
    wrong(capsys, "it is empty", tmp_path / "empty", *out)
    wrong(capsys, "missing.png: no such file or folder", photos / "missing.png", photos / "a.png", *out)
    wrong(capsys, "is named twice", photos / "a.png", photos, *out)
    wrong(capsys, "--box and --mask need exactly one", photos, "--box", 0, 0, 5, 5, *out)
    wrong(capsys, "a.png: box 0: wholly outside", photos / "a.png", *out, "--box", 20, 0, 30, 5)
    wrong(capsys, "notes.txt: not an image", photos / "notes.txt", *out)
    assert not list(tmp_path.glob("results*")) and not model.calls


def test_an_unreadable_picture_of_a_folder_is_told_before_anything_is_predicted(model, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "empty.jpg").write_bytes(b"")
    wrong(capsys, "broken.jpg: not an image", photos, "--out", tmp_path / "r.jsonl")
    wrong(capsys, "so are 1 more of 8; mend or remove", photos, "--out", tmp_path / "r.jsonl")
    assert not model.calls
    whole = (photos / "a.png").read_bytes()
    for name in ("broken.jpg", "empty.jpg"):
        (photos / name).unlink()
    (photos / "f.png").write_bytes(whole[:48])  # cut off behind its header
    status, _, err = run(capsys, photos, "--out", tmp_path / "r.jsonl", "--batch-size", "1")
    assert status == 2 and "f.png: cannot be decoded" in err.splitlines()[-1]
    (photos / "f.png").write_bytes(whole)
    assert run(capsys, photos, "--out", tmp_path / "r.jsonl", "--batch-size", "1")[0] == 0
    assert len(captions(tmp_path / "r.jsonl")) == 7 == len({i for call in model.calls for i in call["ids"]})
    assert len(model.calls) == 7, "what was predicted before the bad picture stays"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 4, "file_name": "x.png"}, {"id": 9, "file_name": "b.png"}]}, "image 'x.png' is not in"),
        ({"images": [{"id": 4, "file_name": "a.png"}, {"id": 9, "file_name": "A.png"}]}, "images 9 and 4 both find"),
        ({"images": [{"id": 4, "file_name": "a.png"}]}, "annotation 70: image_id 9 is no image"),
        ({"annotations": [{"id": 1, "image_id": 4, "bbox": [20, 0, 5, 5]}]}, "annotation 1: wholly outside"),
        ({"annotations": [{"id": 1, "image_id": 4, "bbox": [1, 0, 5, 5]}] * 2}, "annotation id 1 stands in it twice"),
        ({"annotations": [{"image_id": 4, "bbox": [1, 0, 5, 5]}]}, "expected an object with an id"),
        ({"annotations": []}, "annotations.item"),
        ({"images": [{"id": 4, "file_name": "a.png", "height": 9, "width": 16}]}, "is 16 x 8, the file says 16 x 9"),
    ],
)
def test_wrong_coco_files_are_one_line(model, photos, tmp_path, capsys, changes, message):
    file = coco(photos, **changes)
    if "9, the file" in message or "16 x 9" in message:
        file = coco(photos, **changes, annotations=[{"id": 1, "image_id": 4, "bbox": [1, 0, 5, 5]}])
    wrong(capsys, message, "--coco", file, "--out", tmp_path / "r.jsonl")
    assert not list(tmp_path.glob("r*")) and not model.calls


def test_names_that_look_alike_are_refused(model, photos, tmp_path, capsys):
    Image.new("RGB", (16, 8)).save(photos / "A.png")
    file = coco(photos, images=[{"id": 4, "file_name": "a.PNG"}, {"id": 9, "file_name": "b.png"}])
    wrong(capsys, "A.png and a.png are; name one of them", "--coco", file, "--out", tmp_path / "r.jsonl")


def test_what_out_holds_already_is_kept(model, photos, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert run(capsys, photos / "a.png", "--out", out)[0] == 0
    kept = out.read_bytes()
    wrong(capsys, "holds results of other regions than these; use another --out, or --overwrite", photos, "--out", out)
    wrong(capsys, "with generation", photos / "a.png", "num_beams=3", "--out", out)
    assert out.read_bytes() == kept and len(open_records(tmp_path / "results.records.jsonl")) == 1
    assert run(capsys, photos, "--out", out, "--overwrite")[0] == 0 and len(captions(out)) == 6
    (tmp_path / "mine.jsonl").write_text('{"id": "x"}\n')
    wrong(capsys, "holds results of other regions", photos, "--out", tmp_path / "mine.jsonl")
    (tmp_path / "mine.coco.json").write_text("[]")
    (tmp_path / "mine.jsonl").unlink()
    wrong(capsys, "was not made by this job", photos, "--out", tmp_path / "mine.coco.json")
    assert (tmp_path / "mine.coco.json").read_text() == "[]"
    wrong(capsys, "expected a name that ends in .jsonl", photos, "--out", tmp_path / "results.csv")
    wrong(capsys, "is a folder", photos, "--out", tmp_path)
    (tmp_path / "file").touch()
    wrong(capsys, "a file stands where a folder is needed", photos, "--out", tmp_path / "file" / "r.jsonl")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["PHOTOS", "--coco", "c.json", "--out", "r.jsonl"], "pictures and --coco: give one of them"),
        (["--coco", "c.json", "--records", "r.jsonl", "--out", "o.jsonl"], "--coco and --records: give one of them"),
        (["--coco", "c.json"], "--coco needs --out FILE"),
        (["--coco", "no.json", "--out", "r.jsonl"], "--coco no.json: no such file"),
        (["--records", "no.jsonl", "--out", "r.jsonl"], "record file no.jsonl: no such file"),
        (["PHOTOS", "--out", "r.jsonl", "--json"], "--json is how results are printed"),
        (["PHOTOS", "--images", "x"], "--images needs --out FILE"),
        (["PHOTOS", "--regions", "all"], "--regions all needs --sam MODEL"),
        (["PHOTOS", "--regions", "alpha"], "the picture has no alpha channel"),
        (["PHOTOS", "--out", "r.jsonl", "--batch-size", "0"], "--batch-size 0"),
        ([], "--box and --mask need exactly one"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(model, photos, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    wrong(capsys, message, *[photos if word == "PHOTOS" else word for word in argv])


# --- kills, processes, a full disk -----------------------------------------------------------------------------------


def start(folder, *argv, seconds=0.0, processes=1, **options):
    (folder / "script.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    command = [*launcher, folder / "script.py", seconds, "describe", "--model", "m", "--num-workers", 0, *argv]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def lines(folder):
    return [line for path in folder.glob("r.jsonl*") if "meta" not in path.name for line in path.open()]


@pytest.mark.slow
def test_a_killed_job_goes_on_with_two_processes_and_loses_or_doubles_nothing(photos, tmp_path):
    command = (photos, "--out", "r.coco.json", "--batch-size", 1)
    killed = start(tmp_path, *command, seconds=0.5)
    deadline = time.time() + 120
    while len(lines(tmp_path)) < 2 and killed.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = lines(tmp_path)
    assert 2 <= len(kept) < 6 and not (tmp_path / "r.coco.json").exists()
    said, err = (going := start(tmp_path, *command, processes=2)).communicate(timeout=240)
    assert going.returncode == 0, err[-3000:]
    assert said == "6 regions of 6 pictures -> r.coco.json\n", "the main process alone tells"
    assert set(kept) <= set(lines(tmp_path)) and len(lines(tmp_path)) == 6
    names = [record.id for record in open_records(tmp_path / "r.records.jsonl")]
    assert list(captions(tmp_path / "r.jsonl")) == names
    assert [one["region_id"] for one in json.loads((tmp_path / "r.coco.json").read_text())["annotations"]] == names
    assert not list(tmp_path.glob("*.part-*")) and not list(tmp_path.glob(".*.tmp"))
    assert "6/6" in err, "the bar has all regions"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_written_stays(photos, tmp_path):
    for number in range(40):
        Image.new("RGB", (16, 8), COLOURS["red"]).save(photos / f"x{number}.png")

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    command = (photos, "--out", "r.jsonl", "--batch-size", 1)
    _, err = (full := start(tmp_path, *command, preexec_fn=little_room)).communicate(timeout=240)
    assert full.returncode == 2 and "r.jsonl" in err and "disk full" in err and "Traceback" not in err
    kept = lines(tmp_path)
    assert len(kept) > 2
    _, err = (going := start(tmp_path, *command)).communicate(timeout=240)
    assert going.returncode == 0, err[-3000:]
    assert len(captions(tmp_path / "r.jsonl")) == 46 and set(kept[:-1]) <= set(lines(tmp_path))
