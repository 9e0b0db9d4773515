import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.ovad import OVAD, main
from dynrefer.data import open_records
from dynrefer.vocabulary import attribute_texts, read_attributes, read_words
from eval.task import Task

ATTRIBUTES = Path(os.environ.get("DYNREFER_TEST_VECTORS", "../shared/vectors")) / "metrics" / "ovad_attributes.json"
NAMES = [
    ("cleanliness:clean/neat", "is", "head"),
    ("hair color:black", "has", "medium"),
    ("material:wood", "is", "tail"),
]
DOCUMENT = {
    "info": {"description": "OVAD 2022 Dataset ovad"},
    "images": [{"id": 139, "width": 200, "height": 100, "file_name": "000000000139.jpg", "set": "val"}],
    "categories": [{"id": 1, "name": "person", "ov_set": "base"}, {"id": 44, "name": "bottle", "ov_set": "novel32"}],
    "attributes": [
        {
            "id": k,
            "name": name,
            "type": name.split(":")[0],
            "parent_type": name.split(":")[0],
            "is_has_att": how,
            "freq_set": group,
        }
        for k, (name, how, group) in enumerate(NAMES)
    ],
    "licenses": [],
    "annotations": [
        {"id": 1, "image_id": 139, "bbox": [10, 20, 50, 70], "area": 3500.0, "iscrowd": 0, "category_id": 1},
        {"id": 2, "image_id": 139, "bbox": [100.5, 2, 9, 20], "area": 180.0, "iscrowd": 0, "category_id": 44},
    ],
}
for annotation, labels in zip(DOCUMENT["annotations"], ([1, 0, -1], [-1, -1, -1]), strict=True):
    annotation["att_vec"] = labels


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "val2017" / "000000000139.jpg")
    return tmp_path


def run(folder, document, *options):
    (folder / "ovad2000.json").write_text(document if isinstance(document, str) else json.dumps(document))
    where = ("--annotations", folder / "ovad2000.json", "--images", folder, "--out", folder / "out" / "test.jsonl")
    return main([*map(str, where), *options])


def test_labels_become_attributes_and_unknown_ones_stay_out(folder):
    assert run(folder, DOCUMENT, "--subset") == 0
    person, bottle = open_records(folder / "out" / "test.jsonl")
    assert person.attributes == {"cleanliness:clean/neat": 1, "hair color:black": -1}
    assert person.id == "ovad-test-1" and person.box == (10, 20, 60, 90) and person.category == "person"
    assert person.image == "../val2017/000000000139.jpg" and person.split == "test"
    assert bottle.attributes == {} and bottle.category == "bottle"
    assert not check_file(folder / "out" / "test.jsonl").problems


def test_the_attribute_list_lies_where_evaluation_looks(folder):
    assert run(folder, DOCUMENT, "--subset") == 0
    assert read_words(folder / "out" / "categories.txt") == ["person", "bottle"]
    attributes = read_attributes(folder / "out" / "attributes.json")
    assert [(a["name"], a["is_has_att"]) for a in attributes] == [(name, how) for name, how, _ in NAMES]
    assert "the black hair color" in attribute_texts(attributes)[0]
    groups = [entry["freq_set"] for entry in json.loads((folder / "out" / "attributes.json").read_text())]
    assert groups == ["head", "medium", "tail"]
    task = Task("ovad", data=str(folder / "out" / "test.jsonl"), protocol="")
    assert [(a["name"], a["freq_set"]) for a in task.word_list("attributes")] == [(n, g) for n, _, g in NAMES]


def test_another_file_is_refused(folder, capsys):
    assert run(folder, DOCUMENT) == 2
    message = capsys.readouterr().err
    assert "1 images, published 2,000" in message and "3 attributes, published 117" in message
    assert run(folder, json.dumps(DOCUMENT)[:-40], "--subset") == 2 and "download it again" in capsys.readouterr().err
    for change, rule in (
        ({"attributes": [{"id": 0}]}, "not of the form of ovad"),
        ({"attributes": DOCUMENT["attributes"][1:]}, "expected 0 to 1"),
        ({"attributes": DOCUMENT["attributes"][:2]}, "annotation 1: att_vec [1, 0, -1]: expected 2 values"),
        ({"annotations": [{**DOCUMENT["annotations"][0], "att_vec": [1, 2, 0]}]}, "1, 0 or -1"),
        ({"annotations": [{**DOCUMENT["annotations"][0], "att_vec": None}]}, "1, 0 or -1"),
    ):
        assert run(folder, {**DOCUMENT, **change}, "--subset") == 2
        assert rule in capsys.readouterr().err
    assert not (folder / "out" / "test.jsonl").exists()


@pytest.mark.skipif(not ATTRIBUTES.is_file(), reason=f"no {ATTRIBUTES}: the real list of attributes")
def test_the_real_list_of_attributes(folder):
    entries = json.loads(ATTRIBUTES.read_text())
    annotation = {**DOCUMENT["annotations"][0], "att_vec": [k % 3 - 1 for k in range(len(entries))]}
    assert len(entries) == OVAD.published["test"]["attributes"]
    assert run(folder, {**DOCUMENT, "attributes": entries, "annotations": [annotation]}, "--subset") == 0
    (region,) = open_records(folder / "out" / "test.jsonl")
    assert region.attributes == {e["name"]: 1 if k % 3 == 2 else -1 for k, e in enumerate(entries) if k % 3}
