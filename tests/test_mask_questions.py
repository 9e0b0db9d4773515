"""Benchmarks that ask about things of pictures, each from a small file in its layout to scores of a tiny Omni-RGPT."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import gar_bench, inst_it, paradlc, selection, vip_bench, vp_bench
from data_prep.dlc_bench import QUESTIONS
from dynrefer.data import open_records
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from eval.benchmarks import get_task
from eval.metrics.judge import read_questions
from tests import omni_rgpt
from tests.question_files import (
    HW,
    check_end_to_end,
    evaluated,
    mask,
    picture,
    predictions,
    run,
    scores_of,
    write_json,
)


@pytest.fixture
def model():
    return omni_rgpt.saved()


# --- GAR-Bench -------------------------------------------------------------------------------------------------------

GAR = {
    "image": "images/vqa_0.png",
    "question": "What colour is <Prompt0> by <Prompt1>?",
    "choices": ["A. red", "B. like <Prompt1>"],
    "answer": "B",
    "type": "color",
    "mask_rles": [mask(2, 2, 20, 20), mask(30, 5, 50, 30)],
}


def gar_files(folder, entries, part="vqa"):
    picture(folder / "annotations" / "images" / "vqa_0.png")
    file = write_json(folder / "gar.json", entries)
    return {"part": part, "annotations": file, "images": folder / "annotations"}


def test_gar_vqa_is_exact(tmp_path, model, capsys):
    other = GAR | {"question": "Which is it?", "choices": ["(A) one", "(B) two"], "answer": "(A)", "type": "relation"}
    assert run(gar_bench, tmp_path, **gar_files(tmp_path, [GAR, other]), subset=True) == 0
    first, second = open_records(tmp_path / "out" / "test.jsonl")
    assert first.question == "What colour is <region0> by <region1>?" and first.choices == ("red", "like <region1>")
    assert first.answer == 1 and first.kinds == ("color",) and first.regions[1].mask == GAR["mask_rles"][1]
    assert second.question == "Regions: <region0>, <region1>. Which is it?" and second.answer == 0
    asked = get_task("gar-vqa").asks
    assert asked.text(first).startswith("Question: What colour is <region0> by <region1>?\nOptions:\nA. red\nB. like")
    check_end_to_end(model, tmp_path, "gar-vqa")
    file = predictions(tmp_path / "theirs.json", {first.id: "b", second.id: "A. one"})
    data = tmp_path / "out" / "test.jsonl"
    assert evaluated("--predictions", file, "--task", "gar-vqa", "--data", data, "--out", tmp_path / "t") == 0
    content = scores_of(tmp_path / "t")
    assert content["scores"] == {
        "answer accuracy": 0.5,
        "answer accuracy/color": 1,
        "answer accuracy/relation": 0,
    }
    assert content["deviations"] == ["2 of the benchmark's 424 questions"]
    capsys.readouterr()
    assert run(gar_bench, tmp_path, **gar_files(tmp_path, [GAR])) == 2
    assert "0 shape, published 64" in capsys.readouterr().err and sum(gar_bench.NUMBERS.values()) == 424
    assert run(gar_bench, tmp_path, **gar_files(tmp_path, [{"image": "a"}]), strict=True) == 2
    assert "is it a file of GAR-Bench?" in capsys.readouterr().err


def test_gar_captions_have_their_words_as_answers(tmp_path):
    words = {"subject_name": "man", "predicate_name": "riding", "object_name": "horse"}
    assert run(gar_bench, tmp_path, **gar_files(tmp_path, [GAR | words], "detailed"), subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "Describe <region0> in detail, including the relationship with <region1>."
    assert record.answers == ("man riding horse",) and not record.choices


# --- ViP-Bench -------------------------------------------------------------------------------------------------------

VIP = {
    "v1_0": {
        "image_source": "a.png",
        "image": "a_0.png",
        "question": "What is <obj1> of <obj>, and <obj1>?",
        "answer": "0.75<OR>3/4",
        "capability": ["ocr", "math"],
    }
}
SHAPES = [
    {"label": "obj", "points": [[20, 30], [2, 5]], "shape_type": "rectangle"},
    {"label": "obj1", "points": [[30, 5], [50, 5], [40, 30]], "shape_type": "polygon"},
]


def vip_files(folder, shapes=SHAPES):
    picture(folder / "source_image" / "a.png")
    write_json(folder / "source_image" / "a.json", {"shapes": shapes, "imageWidth": HW[1], "imageHeight": HW[0]})
    return {"annotations": write_json(folder / "meta.json", VIP), "images": folder / "source_image"}


def test_vip_bench(tmp_path, capsys):
    assert run(vip_bench, tmp_path, **vip_files(tmp_path), subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "What is <region0> of <region1>, and <region0>?" and record.kinds == ("math", "ocr")
    assert record.regions[0].mask and record.regions[1].box == (2, 5, 20, 30) and record.answers == ("0.75<OR>3/4",)
    assert run(vip_bench, tmp_path, **vip_files(tmp_path)) == 2
    assert "1 entries, published 303" in capsys.readouterr().err
    assert run(vip_bench, tmp_path, **vip_files(tmp_path, SHAPES[:1]), subset=True, strict=True) == 2
    assert "no shape with the label 'obj1'" in capsys.readouterr().err


# --- VP-Bench, stage 2 -----------------------------------------------------------------------------------------------


def test_vp_bench(tmp_path, model):
    file = picture(tmp_path / "images" / "a.png")
    encoded = base64.b64encode(file.read_bytes()).decode()
    row = {
        "meta_source": "gui",
        "image": ["a.png"],
        "meta_bbox": json.dumps({"a.png": {"default": [2, 2, 20, 20]}}),
        "meta_polygon": json.dumps({"a.png": {"default": [[2, 2], [20, 2], [20, 20]]}}),
        "question": "What does the <red> <vp> do?",
        **{"A": "opens", "B": "closes", "C": None, "D": None, "answer": "B"},
    }
    other = {"image": [encoded], "question": "What is it?", "meta_polygon": None}
    rows = [row, row | other | {"meta_bbox": '{"x": {"default": [[2, 2, 20, 20]]}}'}]
    rows += [row | {"image": ["a.png", "a.png"]}, row | {"answer": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "meta.parquet")
    assert run(vp_bench, tmp_path, annotations=tmp_path / "meta.parquet", images=tmp_path / "images") == 0
    first, second = open_records(tmp_path / "out" / "test.jsonl")
    assert first.question == "What does the <region0> do?" and first.answer == 1 and first.kinds == ("gui",)
    assert first.regions[0].mask == [[2, 2, 20, 2, 20, 20]] and first.choices == ("opens", "closes")
    assert second.question == "Regions: <region0>. What is it?" and second.image_hw == HW
    check_end_to_end(model, tmp_path, "vp-bench")
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "meta.parquet")
    assert run(vp_bench, tmp_path, annotations=tmp_path / "meta.parquet", images=tmp_path / "images") == 2


# --- Inst-It, pictures -----------------------------------------------------------------------------------------------

INST = {"image_id": 1, "question_id": "001-01", "image_path": "images_vpt/001.jpg", "question": "What does [3] carry?"}
OPTIONS = {"A": "a bag", "B": "[4]", "C": "[5]", "D": "nothing"}


def test_inst_it_image(tmp_path, model):
    picture(tmp_path / "raw" / "001.jpg")
    places = {"001.jpg": {"3": {"box": [2, 2, 20, 20]}, "4": {"box": [30, 5, 50, 30]}}}
    files = {"images": tmp_path / "raw", "regions": write_json(tmp_path / "r.json", places)}
    entries = [INST | {"answer": "B", "options": OPTIONS}]
    entries += [INST | {"question_id": "2", "answer": "A"} | {f"choice_{k.lower()}": v for k, v in OPTIONS.items()}]
    file = write_json(tmp_path / "mc.json", entries)
    assert run(inst_it, tmp_path, part="choices", annotations=file, **files) == 0
    first, second = open_records(tmp_path / "out" / "test.jsonl")
    assert first.question == "What does <region0> carry?" and first.choices == ("a bag", "<region1>", "[5]", "nothing")
    assert first.answer == 1 and second.answer == 0 and len(first.regions) == 2
    check_end_to_end(model, tmp_path, "inst-it-image")
    file = write_json(tmp_path / "oe.json", [INST | {"answer": "[3] carries [4]."}])
    assert run(inst_it, tmp_path, part="open", annotations=file, images=tmp_path / "raw") == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "What does [3] carry?" and not record.regions and record.answers == ("[3] carries [4].",)


# --- ParaDLC-Bench ---------------------------------------------------------------------------------------------------


def test_paradlc(tmp_path, capsys):
    picture(tmp_path / "images" / "a.jpg")
    colour = {"question": "Colour?", "choices": [["red", 1], ["not told", 0], ["blue", -1]], "type": "positive"}
    entry = {"image_id": 15, "file_name": "a.jpg", "height": HW[0], "width": HW[1]}
    entry["annotations"] = [{"index": n, "mask_rle": {"counts": mask(n, n, 20, 20)["counts"]}} for n in range(3)]
    write_json(tmp_path / "annotations.json", [entry])
    write_json(tmp_path / "qa.json", {"15_0": [colour], "15_2": [colour, colour]})
    write_json(tmp_path / "class_names.json", {"15_0": "cup", "15_2": "dog"})
    files = {"annotations": tmp_path / "annotations.json", "images": tmp_path / "images"}
    assert run(paradlc, tmp_path, **files, subset=True) == 0
    records = list(open_records(tmp_path / "out" / "test.jsonl"))
    assert [r.id for r in records] == ["paradlc-15_0", "paradlc-15_2"] and records[1].category == "dog"
    asked = read_questions(tmp_path / "out" / QUESTIONS)
    assert [q.kind for q in asked["paradlc-15_2"]] == ["recognition", "positive", "positive"]
    assert get_task("paradlc").judge_sees == "region" and get_task("paradlc").metrics == ("choices",)
    assert "1  masks that no question is about left out" in capsys.readouterr().out
    assert run(paradlc, tmp_path, **files) == 2
    assert "1 images, published 100; 2 regions, published 299; 3 questions, published 2,345" in capsys.readouterr().err
    write_json(tmp_path / "qa.json", {"15_7": [colour]})
    assert run(paradlc, tmp_path, **files, subset=True) == 2
    assert "'15_7' is no mask of" in capsys.readouterr().err


# --- RefCOCOg by selection -------------------------------------------------------------------------------------------


def test_selection(tmp_path, model):
    picture(tmp_path / "coco" / "COCO_train2014_000000000007.jpg")
    image = "coco/COCO_train2014_000000000007.jpg"
    said = [("a", (2, 2, 20, 20), ("the left cup",)), ("b", (0, 30, 10, 40), ("a shoe", "the shoe"))]
    write_records(tmp_path / "said.jsonl", [Region(i, image, HW, b, captions=c, split="val") for i, b, c in said])
    boxes = [(30, 5, 50, 30), (2, 2, 20, 22), (2, 2, 40, 40)]
    write_records(tmp_path / "boxes.jsonl", [Region(str(n), image, HW, box) for n, box in enumerate(boxes)])
    files = {"records": tmp_path / "said.jsonl", "proposals": tmp_path / "boxes.jsonl", "name": "refcocog"}
    assert run(selection, tmp_path, **files) == 0
    first, second, third = open_records(tmp_path / "out" / "test.jsonl")
    assert (
        first.question == 'The regions: [0] <region0>, [1] <region1>, [2] <region2>. Which of them is "the left cup"?'
    )
    assert first.choices == ("[0]", "[1]", "[2]") and first.answer == 1 and first.image == f"../{image}"
    assert (second.answer, third.id) == (-1, "refcocog-b-1")
    check_end_to_end(model, tmp_path, "refcocog-selection-val")
    theirs = predictions(tmp_path / "t.json", {first.id: "It is [1].", second.id: "[0]", third.id: "[2]"})
    data = tmp_path / "out" / "test.jsonl"
    options = ("--task", "refcocog-selection-val", "--data", data, "--out", tmp_path / "t")
    assert evaluated("--predictions", theirs, *options) == 0
    assert scores_of(tmp_path / "t")["scores"] == {"answer accuracy": pytest.approx(1 / 3)}
    assert run(selection, tmp_path, **files, with_truth=True, most=3) == 0
    records = list(open_records(tmp_path / "out" / "test.jsonl"))
    assert [q.answer for q in records] == [1, 2, 2] and records[1].regions[2].box == (0, 30, 10, 40)
    assert run(selection, tmp_path, **files, iou=0) == 2
