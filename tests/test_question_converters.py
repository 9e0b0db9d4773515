"""Benchmarks that ask, each from a small file in its released layout to scores of a tiny Omni-RGPT."""

import pickle

import pytest

from data_prep import causal_vidqa, pope, vcr
from dynrefer.data import open_records
from tests import omni_rgpt
from tests.question_files import (
    HW,
    check_end_to_end,
    clip,
    evaluated,
    picture,
    predictions,
    run,
    scores_of,
    write_json,
    write_lines,
)


@pytest.fixture
def model():
    return omni_rgpt.saved()


# --- Causal-VidQA ----------------------------------------------------------------------------------------------------

FIVE = [f"[person_1] {word}" for word in ("runs", "jumps", "sits", "sings", "left [car_2]")]
TEXT = {
    key: {"question": f"What does [person_1] do, {key}?", "answer": FIVE}
    | ({"reason": ["one", "two", "three", "four", "[person_1]"]} if key in ("predictive", "counterfactual") else {})
    for key in ("descriptive", "explanatory", "predictive", "counterfactual")
}
ANSWER = {key: {part: 2 for part in entry if part != "question"} for key, entry in TEXT.items()}
REGIONS = {"v1": {"person_1": {"0": None, "2": {"box": [5, 5, 20, 20]}}, "car_2": {"2": {"box": [30, 5, 50, 30]}}}}


def causal_files(folder):
    clip(folder / "videos" / "v1")
    write_json(folder / "QA" / "v1" / "text.json", TEXT)
    write_json(folder / "QA" / "v1" / "answer.json", ANSWER)
    (folder / "val.pkl").write_bytes(pickle.dumps(["v1"]))
    write_json(folder / "regions.json", REGIONS)
    return {"split": "val", "texts": folder / "QA", "ids": folder / "val.pkl", "videos": folder / "videos"}


def test_causal_vidqa(tmp_path, model, capsys):
    files = causal_files(tmp_path)
    assert run(causal_vidqa, tmp_path, **files, regions=tmp_path / "regions.json") == 0
    records = list(open_records(tmp_path / "out" / "test.jsonl"))
    assert [q.id.rpartition("-")[2] for q in records] == ["D", "E", "PA", "PR", "CA", "CR"]
    first = records[0]
    assert first.question == "What does <region0> do, descriptive?" and first.choices[4] == "<region0> left <region1>"
    assert [r.category for r in first.regions] == ["person", "car"] and first.clip.prompt_frame == 2
    assert first.answer == 2 and first.kinds == ("description",) and first.clip.num_frames == 6
    assert records[3].question == "What does <region0> do, predictive?\nWhat is the reason for the answer?"
    assert records[2].group == records[3].group == "v1-predictive" and len(records[3].regions) == 1
    content = check_end_to_end(model, tmp_path, "causal-vidqa")
    assert "answer accuracy/counterfactual" in content["scores"] and content["regions"] == 6
    assert content["seconds"] > 0


def test_causal_vidqa_without_places_is_asked_with_names(tmp_path, capsys):
    assert run(causal_vidqa, tmp_path, **causal_files(tmp_path), gold_answers=True) == 0
    records = list(open_records(tmp_path / "out" / "test.jsonl"))
    assert records[0].question == "What does person do, descriptive?" and not records[0].regions
    assert records[3].question.endswith("\nAnswer: person sits\nWhat is the reason?")
    assert "names in brackets without a place, which stay words" in capsys.readouterr().out


def test_causal_vidqa_refuses_other_files(tmp_path, capsys):
    files = causal_files(tmp_path)
    write_json(tmp_path / "QA" / "v1" / "answer.json", ANSWER | {"predictive": {"answer": 7, "reason": 1}})
    assert run(causal_vidqa, tmp_path, **files, strict=True) == 2
    assert "expected text.json with predictive: question and answer" in capsys.readouterr().err
    (tmp_path / "val.pkl").write_bytes(pickle.dumps({"v1": 1}))
    assert run(causal_vidqa, tmp_path, **files) == 2
    assert "expected a list of video names" in capsys.readouterr().err


# --- VCR -------------------------------------------------------------------------------------------------------------

VCR = {
    "objects": ["person", "dog", "chair"],
    "question": ["Why", "does", [2], "touch", [0, 2], "?"],
    "answer_choices": [[[0], "is", "sad", "."], ["It", "is", "n't", "there", "."], [[1]], ["He", "'s", "new", "."]],
    "rationale_choices": [["a"], ["b"], [[1], "barks"], ["d"]],
    "answer_label": 0,
    "rationale_label": 3,
    "img_fn": "m/a.jpg",
    "metadata_fn": "m/a.json",
    "annot_id": "val-0",
}
OBJECTS = {
    "boxes": [[2, 2, 20, 20, 0.9], [30, 2, 50, 30, 0.9], [5, 20, 25, 38, 0.8]],
    "segms": [[[[2, 2], [20, 2], [20, 20], [2, 20]]], [], []],
    "names": VCR["objects"],
}


def vcr_files(folder, entries=(VCR,)):
    picture(folder / "images" / "m" / "a.jpg")
    write_json(folder / "images" / "m" / "a.json", OBJECTS)
    write_lines(folder / "val.jsonl", entries)
    return {"split": "val", "annotations": folder / "val.jsonl", "images": folder / "images"}


def test_vcr(tmp_path, model):
    assert run(vcr, tmp_path, **vcr_files(tmp_path)) == 0
    answer, reason = open_records(tmp_path / "out" / "test.jsonl")
    assert answer.question == "Why does <region0> touch <region1> and <region0>?"
    assert answer.choices == ("<region1> is sad.", "It isn't there.", "<region2>", "He's new.") and answer.answer == 0
    assert [r.category for r in answer.regions] == ["chair", "person", "dog"]
    assert answer.regions[1].mask is not None and answer.regions[2].mask is None
    assert reason.question == "Why does <region0> touch <region1> and <region0>?\nAnswer: <region1> is sad."
    assert reason.choices[2] == "<region2> barks" and reason.answer == 3 and reason.group == answer.group == "val-0"
    assert check_end_to_end(model, tmp_path, "vcr-names")["scores"].keys() >= {"answer accuracy/Q->AR"}


def test_vcr_of_a_test_set_has_questions_without_answers(tmp_path, capsys):
    hidden = {key: value for key, value in VCR.items() if not key.endswith("_label")}
    assert run(vcr, tmp_path, **vcr_files(tmp_path, [hidden])) == 0
    (answer,) = open_records(tmp_path / "out" / "test.jsonl")
    assert answer.answer is None and "the right answer is not public" in capsys.readouterr().out
    assert run(vcr, tmp_path, **vcr_files(tmp_path, [VCR | {"question": [[7]]}]), strict=True) == 2
    assert "val.jsonl:1: object 7 of 3" in capsys.readouterr().err
    assert run(vcr, tmp_path, **vcr_files(tmp_path, [{"question": []}]), strict=True) == 2
    assert "no objects; is it an annotation file of VCR?" in capsys.readouterr().err


# --- POPE ------------------------------------------------------------------------------------------------------------


def pope_files(folder):
    picture(folder / "val2014" / "COCO_val2014_000000000001.jpg")
    entries = [
        {"question_id": n, "image": "COCO_val2014_000000000001.jpg", "text": f"Is there a {thing}?", "label": label}
        for n, (thing, label) in enumerate([("dog", "yes"), ("cat", "no")], 1)
    ]
    files = [write_lines(folder / f"coco_pope_{kind}.json", entries) for kind in ("random", "adversarial")]
    return {"questions": files, "images": folder / "val2014"}


def test_pope(tmp_path, model, capsys):
    assert run(pope, tmp_path, **pope_files(tmp_path)) == 0
    records = list(open_records(tmp_path / "out" / "test.jsonl"))
    assert [q.id for q in records] == ["pope-random-1", "pope-random-2", "pope-adversarial-1", "pope-adversarial-2"]
    assert records[1].choices == ("yes", "no") and records[1].answer == 1 and records[1].image_hw == HW
    assert check_end_to_end(model, tmp_path, "pope")["scores"].keys() >= {"yes-no F1/adversarial"}
    file = predictions(tmp_path / "theirs.json", {q.id: "Yes" for q in records})
    data = tmp_path / "out" / "test.jsonl"
    assert evaluated("--predictions", file, "--task", "pope", "--data", data, "--out", tmp_path / "theirs") == 0
    assert scores_of(tmp_path / "theirs")["scores"]["yes-no recall"] == 1
    write_lines(tmp_path / "coco_pope_random.json", [{"question_id": 1, "image": "a.jpg", "label": "maybe"}])
    capsys.readouterr()
    assert run(pope, tmp_path, questions=tmp_path / "coco_pope_random.json", images=tmp_path / "val2014") == 2
    assert "expected question_id, image, text and label, yes or no" in capsys.readouterr().err


# --- what does not fit together --------------------------------------------------------------------------------------


def test_a_task_and_a_file_of_another_kind_are_told(tmp_path, model, capsys):
    assert run(pope, tmp_path, **pope_files(tmp_path)) == 0
    questions = tmp_path / "out" / "test.jsonl"
    for task, data, message in (
        ("world", questions, "task world is about regions"),
        ("pope", omni_rgpt.scenes(), "task pope is about questions"),
    ):
        capsys.readouterr()
        assert evaluated("--model", model, "--task", task, "--data", data, "--out", tmp_path / "x") == 2
        assert message in capsys.readouterr().err
