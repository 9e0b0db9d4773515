"""Folders of COCO JSON -> records -> scores of each and their average."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep import coco_folders
from dynrefer.data.record_files import open_records
from eval import folders, run
from eval.folders import SUITES, suites_of
from tests.test_eval_proposals import COLOURS, Model

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
NAMES = [*COLOURS]
BOXES = {"red": (4, 4, 24, 24), "green": (40, 10, 70, 50)}


def dataset(folder, names=NAMES, objects=2, wrong=False):
    """Two pictures, the second without an object, with Roboflow's root category. wrong: the names are exchanged."""
    folder.mkdir(parents=True)
    document = {"categories": [{"id": 0, "name": "things", "supercategory": "none"}], "images": [], "annotations": []}
    document["categories"] += [{"id": k, "name": n, "supercategory": "things"} for k, n in enumerate(names, 1)]
    for n in range(2):
        picture = np.zeros((60, 80, 3), np.uint8)
        document["images"].append({"id": n, "file_name": f"{n}.png", "height": 60, "width": 80})
        for k, (x1, y1, x2, y2) in enumerate([*BOXES.values()][: 0 if n else objects]):
            picture[y1:y2, x1:x2] = [*COLOURS.values()][k]
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            box["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            category = 2 - k if wrong else k + 1
            annotation = {"id": len(document["annotations"]), "image_id": n, "category_id": category}
            document["annotations"].append(annotation | box)
        Image.fromarray(picture).save(folder / f"{n}.png")
    (folder / "_annotations.coco.json").write_text(json.dumps(document))


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Three sets, laid out in three ways, as records."""
    dataset(tmp_path / "odinw/Aquarium/Aquarium Combined.coco/test")
    dataset(tmp_path / "odinw/Aquarium/Aquarium Combined.coco/valid", objects=1)
    dataset(tmp_path / "odinw/PascalVOC/test", wrong=True)
    dataset(tmp_path / "own/photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "load_model", lambda args: Model())
    given = ["odinw/Aquarium", "odinw/PascalVOC", "mine=own/photos", "--split", "test", "--out", "data"]
    assert coco_folders.main(given) == 0
    return tmp_path


def scored(*more, data=("Aquarium", "PascalVOC", "mine"), task="odinw"):
    files = [f"data/{name}/test.jsonl" for name in data]
    words = ["--sets", *files, "--out", "runs/o", "--model", "m", "--num-workers", "0", "--task", task, *more]
    assert folders.main([*map(str, words)]) == 0
    with open("runs/o/scores.json") as file:
        return json.load(file)


def test_folders_become_records_with_their_json(sets):
    assert sorted(p.name for p in (sets / "data").iterdir()) == ["Aquarium", "PascalVOC", "mine"]
    records = open_records("data/Aquarium/test.jsonl")
    assert [region.id for region in records] == ["Aquarium-test-0", "Aquarium-test-1"]
    assert records.image_path(0).is_file() and records[0].category == NAMES[0]
    assert (sets / "data/mine/categories.txt").read_text().splitlines() == NAMES  # without the root


def test_true_boxes_are_scored_set_by_set_and_averaged(sets, capsys):
    content = scored(task="odinw-boxes")
    ap = {name: of["COCO box AP"] for name, of in content["sets"].items()}
    assert ap["Aquarium"] == ap["mine"] == pytest.approx(1) and ap["PascalVOC"] == pytest.approx(0.5, abs=0.02)
    assert content["scores"]["COCO box AP"] == pytest.approx(np.mean([*ap.values()]))
    assert content["scores"]["category accuracy"] == pytest.approx(2 / 3)
    assert content["sets"]["Aquarium"]["COCO mask AP"] == pytest.approx(1)
    said = capsys.readouterr().out
    assert "3 sets: 2 of the 13 of ODinW-13, and 1 beside them; " in said and "\naverage" in said


def test_a_detectors_boxes_are_named_set_by_set(sets, capsys):
    for name in ("Aquarium", "PascalVOC", "mine"):
        own = {
            "0": {"boxes": [*BOXES.values()], "scores": [0.9, 0.8]},
            "1": {"boxes": [[0, 0, 80, 60]], "scores": [0.1]},
        }
        (sets / f"{name}.json").write_text(json.dumps(own))
    content = scored("--boxes", "{name}.json", data=("Aquarium", "mine"))
    assert content["scores"]["COCO box AP"] == content["scores"]["COCO mask AP"] == pytest.approx(1)
    assert json.loads((sets / "runs/o/mine/scores.json").read_text())["settings"]["boxes"]["number"] == 3
    files = ["--predictions", "runs/o/{name}/predictions.jsonl", "--boxes", "{name}.json"]
    words = ["--task", "odinw", "--sets", "data/Aquarium/test.jsonl", "data/mine/test.jsonl", "--out", "runs/again"]
    words += files
    assert folders.main(words) == 0
    assert json.loads((sets / "runs/again/scores.json").read_text())["scores"] == content["scores"]


def test_which_sets_these_are_is_said():
    assert suites_of(SUITES["ODinW-13"])[0] == "all of ODinW-13"
    assert "all of ODinW-35" in suites_of(SUITES["ODinW-35"]) and len(set(SUITES["ODinW-35"])) == 35
    five = suites_of(["aerial maritime drone (large)", "Aquarium", "PascalVOC", "ShellfishOpenImages"])
    assert five[-1] == "4 of the 5 of RegionSpot's choice without VehiclesOpenImages"
    assert suites_of(["mine"]) == ["none of ODinW's sets"]


def test_mistakes_are_one_line(sets, capsys):
    def refused(command, *words):
        assert command([*map(str, words)]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    out = ["--out", sets / "new"]
    assert "nowhere: no such folder" in refused(coco_folders.main, "nowhere", *out)
    assert "is called 'photos' too; write NAME=FOLDER" in refused(coco_folders.main, "own/photos", "photos=own", *out)
    assert "no annotations of split 'train'; it has test" in refused(
        coco_folders.main, "odinw/PascalVOC", "--split", "train", *out
    )
    assert "several sets, " in refused(coco_folders.main, "odinw", *out)
    given = ["--task", "odinw", "--model", "m", "--out", "runs/o", "--sets"]
    assert "no records at 'data/x/test.jsonl'" in refused(folders.main, *given, "data/x/test.jsonl")
    assert "sets are named by their folders" in refused(folders.main, *given, *["data/mine/test.jsonl"] * 2)
    assert "leave out --data" in refused(folders.main, *given, "data/mine/test.jsonl", "--data", "x.jsonl")
    assert "expected {name} in it" in refused(folders.main, *given, "data/mine/test.jsonl", "--boxes", "a.json")
