"""Ref-L4 from its Parquet files, and its short form, in the released layouts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.ref_l4 import NUM_REGIONS, SHA256, main
from dynrefer.data import open_records
from eval import run as eval_run
from eval.benchmarks import get_task


def entry(number, file_name, caption, bbox=(10.5, 20, 30, 25), split="val", **more):
    source = "o365" if "objects365" in file_name else "coco"
    return {
        "id": number,
        "caption": caption,
        "bbox": list(bbox),
        "bbox_area": bbox[2] * bbox[3],
        "bbox_id": f"{source}_{number}",
        "ori_category_id": f"{source}_1",
        "image_id": f"{source}_{number // 10}",
        "height": 60,
        "width": 80,
        "file_name": file_name,
        "is_rewrite": bool(number % 2),
        "split": split,
        **more,
    }


COCO, OBJECTS = "COCO_train2014_000000128974.jpg", "objects365_v2_00922765.jpg"
ROWS = [
    entry(1, OBJECTS, "Within the central picture frame of the three, an antique camera is present."),
    entry(5, COCO, "The man on the motorcycle closest to the fence wears a yellow helmet.", (0, 0, 80, 60)),
    entry(6, OBJECTS, "A tall wooden ladder leans against the wall beside the window.", (40, 10, 39.5, 49.25)),
]
SHORT = ["an antique camera", "a wooden ladder against a wall"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in (COCO, OBJECTS):
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / name)
    return tmp_path


def run(folder, *options, rows=ROWS, file="ref-l4-val.parquet", subset=True, images="images", split="val"):
    path = folder / file
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif file.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--split", split, "--annotations", path, "--images", folder / images, "--out", folder / "out.jsonl"]
    return main([*map(str, words), *(["--subset"] if subset else []), *map(str, options)])


def phrases(folder, content):
    path = folder / "refl4_gt.json"
    path.write_text(json.dumps(content))
    return "--short", path


def coco_form(texts):
    """As PixelRefer's refl4_gt.json: an "image" a region, named by its place."""
    annotations = [{"image_id": str(n), "id": str(n), "caption": text} for n, text in enumerate(texts)]
    return {"images": [{"id": str(n)} for n in range(len(texts))], "annotations": annotations}


@pytest.mark.parametrize("file", ["ref-l4-val.parquet", "ref-l4-val.json", "ref-l4-val.jsonl"])
def test_boxes_come_with_their_descriptions(folder, capsys, file):
    assert run(folder, file=file) == 0
    camera, man, ladder = open_records(folder / "out.jsonl")
    assert [r.id for r in (camera, man, ladder)] == ["ref-l4-val-1", "ref-l4-val-5", "ref-l4-val-6"]
    assert camera.box == (10.5, 20, 40.5, 45) and camera.captions == (ROWS[0]["caption"],)
    assert man.image == f"images/{COCO}" and ladder.image == f"images/{OBJECTS}" and ladder.image_hw == (60, 80)
    assert camera.split == "val" and "CC BY-NC 4.0" in camera.licence and camera.source == "ref-l4"
    assert not check_file(folder / "out.jsonl").problems
    assert "3  val regions" in capsys.readouterr().out


def test_the_short_form_takes_the_regions_of_objects365(folder):
    without_ids = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    for rows in (ROWS, without_ids):
        assert run(folder, *phrases(folder, coco_form(SHORT)), rows=rows, file="ref-l4-val.json") == 0
        camera, ladder = open_records(folder / "out.jsonl")
        assert (camera.id, ladder.id) == ("ref-l4-val-short-0", "ref-l4-val-short-1")
        assert camera.captions == (SHORT[0],) and ladder.captions == (SHORT[1],) and ladder.image.endswith(OBJECTS)
    assert run(folder, *phrases(folder, coco_form([SHORT[0], "a man with a yellow helmet", SHORT[1]]))) == 0
    assert [r.image for r in open_records(folder / "out.jsonl")] == [f"images/{n}" for n in (OBJECTS, COCO, OBJECTS)]


def test_phrases_of_ones_own_are_by_annotation_id(folder):
    assert run(folder, *phrases(folder, {"6": SHORT[1], "1": SHORT[0]})) == 0
    assert {r.id: r.captions for r in open_records(folder / "out.jsonl")} == {
        "ref-l4-val-1": (SHORT[0],),
        "ref-l4-val-6": (SHORT[1],),
    }


def test_phrases_that_do_not_fit_are_refused(folder, capsys):
    for content, message in (
        (coco_form(SHORT[::-1]), "only 0% of the phrases' words stand in the descriptions"),
        (coco_form(SHORT[:1]), "1 phrases, but 3 regions, 2 of them of Objects365"),
        ({"1": SHORT[0], "7": "a dog"}, "1 phrases are for unknown annotations, the first is '7'"),
        ({"1": ""}, "none empty"),
        ({"annotations": [{"id": 1}]}, "expected COCO's form"),
        ([], "expected COCO's form"),
    ):
        assert run(folder, *phrases(folder, content)) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


def test_another_file_is_refused(folder, capsys):
    assert sum(NUM_REGIONS.values()) == 45_341 and all(len(digest) == 64 for digest in SHA256.values())
    assert run(folder, subset=False) == 2
    assert "3 regions, published 13,420" in capsys.readouterr().err
    for change, message in (
        ({"rows": [{**ROWS[0], "split": "test"}]}, "row 0 is of split 'test', but --split says val"),
        ({"rows": [ROWS[0], ROWS[0]]}, "row 1: id 1: expected an id of its own"),
        ({"rows": [{"caption": "a cup"}]}, "no bbox, height, width, file_name"),
        ({"rows": [{**ROWS[0], "caption": 7}]}, "caption and file_name are texts"),
        ({"rows": [{**ROWS[0], "height": 61}]}, "image 'images/objects365"),
        ({"rows": b"PAR1 cut off"}, "not a whole Parquet file"),
        ({"rows": b"\xff\xfe", "file": "a.json"}, "cannot be read as JSON"),
        ({"images": "nowhere"}, "no such folder"),
    ):
        assert run(folder, **change) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


def test_missing_images(folder, capsys, monkeypatch):
    (folder / "images" / COCO).unlink()
    assert run(folder) == 0 and len(open_records(folder / "out.jsonl")) == 2
    assert "1  regions left out: their image is not in the folder" in capsys.readouterr().out
    (folder / "out.jsonl").unlink()
    monkeypatch.setitem(NUM_REGIONS, "val", 3)
    assert run(folder, subset=False) == 2
    told = capsys.readouterr()
    assert f"image '{COCO}' is not in" in told.err and "not the latest version: sha256" in told.out
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("task", "predictions"),
    [
        ("ref-l4", {"1": "an antique camera", "5": "a man", "6": "a ladder"}),  # DAM's
        ("ref-l4-short", [{"image_id": str(n), "caption": text} for n, text in enumerate(SHORT)]),  # PixelRefer's
    ],
)
def test_released_predictions_are_scored(folder, task, predictions):
    short = phrases(folder, coco_form(SHORT)) if task == "ref-l4-short" else ()
    assert run(folder, *short) == 0
    (folder / "p.json").write_text(json.dumps(predictions))
    words = ["--task", task, "--data", folder / "out.jsonl", "--predictions", folder / "p.json", "--out", folder / "s"]
    assert eval_run.main([str(word) for word in words]) == 0
    content = json.loads((folder / "s" / "scores.json").read_text())
    assert content["regions_without_prediction"] == 0
    assert content["scores"]["BLEU-1"] == pytest.approx(1) if short else content["scores"]["BLEU-1"] < 0.5


def test_the_tasks_read_what_the_converter_writes():
    assert (get_task("ref-l4").num_regions, get_task("ref-l4").split) == (NUM_REGIONS["val"], "val")
    assert get_task("ref-l4-short").split == "val" and "Objects365" in get_task("ref-l4-short").protocol
