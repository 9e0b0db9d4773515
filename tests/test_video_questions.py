"""Benchmarks of things in videos, each from a small file in its layout to scores of a tiny Omni-RGPT or a judge."""

import gzip
import json

import pytest

from data_prep import elysium, inst_it, motionatlas, videorefer
from data_prep.check import check_file
from data_prep.dlc_bench import QUESTIONS
from dynrefer.data import open_records
from eval.metrics.judge import read_questions
from tests import omni_rgpt
from tests.chat_server import chat_server
from tests.question_files import check_end_to_end, clip, evaluated, mask, run, scores_of, write_json, write_lines


@pytest.fixture
def model():
    return omni_rgpt.saved()


@pytest.fixture
def judge():
    with chat_server(lambda asked: "") as server:
        yield server


# --- VideoRefer-Bench ------------------------------------------------------------------------------------------------

PLACES = [{"1": {"segmentation": mask(2, 2, 20, 20)}, "4": {"segmentation": mask(8, 2, 26, 20)}}]
D = [{"id": 0, "video": "v1", "caption": "A dog runs left.", "frame_idx": "1", "annotation": PLACES}]
Q = {
    "id": 3,
    "video": "v1",
    "Question": "What is <object3><region> not doing with <object1><region>?",
    "type": "Basic Questions",
    "options": ["(A) <object3> runs", "(B) a hat", "(C) x", "(D) y"],
    "Answer": "(A) <object3> runs",
    "frame_idx": "4",
    "annotation": [*PLACES, {"1": {"segmentation": mask(30, 2, 40, 20)}}],
}


def test_videorefer_d_by_a_judge(tmp_path, model, judge, capsys):
    clip(tmp_path / "videos" / "v1")
    files = {"annotations": write_json(tmp_path / "d.json", D), "videos": tmp_path / "videos", "bench": "D"}
    assert run(videorefer, tmp_path, **files, subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.prompt_frame == 1 and set(record.frames) == {1, 4} and record.captions == ("A dog runs left.",)
    assert not check_file(tmp_path / "out" / "test.jsonl").problems
    judge.answer = lambda asked: '{"subject": 5, "appearance": 4, "temporal": 2, "hallucination": 3}'
    theirs = write_json(tmp_path / "theirs.json", {record.id: "a dog"})
    options = ("--task", "videorefer-d", "--data", tmp_path / "out" / "test.jsonl", "--out", tmp_path / "t")
    assert evaluated("--predictions", theirs, *options, "--judge", judge.url, "--judge-model", "j") == 0
    content = scores_of(tmp_path / "t")
    assert content["scores"]["judged score"] == pytest.approx(14 / 20)
    assert content["scores"]["judged score/temporal"] == pytest.approx(2 / 5) and content["rubric"] == "description"
    assert "A dog runs left." in judge.asked[0].text and "Description: a dog" in judge.asked[0].text
    assert run(videorefer, tmp_path, **files) == 2
    assert "1 entries, published 400" in capsys.readouterr().err


def test_videorefer_q(tmp_path, model, capsys):
    clip(tmp_path / "videos" / "v1")
    files = {"annotations": write_json(tmp_path / "q.json", [Q]), "videos": tmp_path / "videos", "bench": "Q"}
    assert run(videorefer, tmp_path, **files, subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "What is <region0> not doing with <region1>?" and record.answer == 0
    assert record.choices == ("<region0> runs", "a hat", "x", "y") and record.kinds == ("Basic Questions",)
    assert record.clip.prompt_frame == 1 and len(record.regions) == 2  # in frame 4 the second has no mask
    assert "entries that show another frame than theirs" in capsys.readouterr().out
    content = check_end_to_end(model, tmp_path, "videorefer-q")
    assert "answer accuracy/Basic Questions" in content["scores"]
    write_json(tmp_path / "q.json", [Q | {"annotation": PLACES}])
    assert run(videorefer, tmp_path, **files, subset=True, strict=True) == 2
    assert "an annotation of 2 objects" in capsys.readouterr().err


def test_nl_refer_names_things_in_words(tmp_path, model):
    clip(tmp_path / "videos" / "v1")
    entry = {key: value for key, value in Q.items() if key not in ("annotation", "frame_idx")}
    entry["Question"] = "<video>\nWhat is <ins>the left dog</ins> not doing?"
    files = {"annotations": write_json(tmp_path / "q.json", [entry]), "videos": tmp_path / "videos", "by_text": True}
    assert run(videorefer, tmp_path, **files, bench="Q", subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "What is the left dog not doing?" and not record.regions and record.clip.num_frames == 6
    check_end_to_end(model, tmp_path, "nl-refer-q")
    told = [{"value": "Describe <ins>the dog</ins>."}, {"value": "It runs."}]
    write_json(tmp_path / "q.json", [{"video": "v1", "conversations": told}])
    assert run(videorefer, tmp_path, **files, bench="D", subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert (record.question, record.answers) == ("Describe the dog.", ("It runs.",))


# --- Inst-It, videos -------------------------------------------------------------------------------------------------


def test_inst_it_video(tmp_path, model):
    clip(tmp_path / "videos" / "v7")
    entry = {"video_id": 7, "video_path": "videos_vpt/v7", "question_id": "7-1", "question": "What does [2] do at <3>?"}
    entry |= {"answer": "D", "options": {"A": "a", "B": "b", "C": "c", "D": "follows [9]"}}
    places = {"7": {"2": {"0": None, "2": {"box": [2, 2, 9, 9]}}, "9": {"2": {"box": [20, 2, 29, 9]}}}}
    files = {"videos": tmp_path / "videos", "regions": write_json(tmp_path / "r.json", places)}
    assert run(inst_it, tmp_path, part="choices", annotations=write_json(tmp_path / "q.json", [entry]), **files) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.question == "What does <region0> do at <3>?" and record.choices[3] == "follows <region1>"
    assert record.clip.prompt_frame == 2 and record.answer == 3
    check_end_to_end(model, tmp_path, "inst-it-video")


# --- MotionAtlas-Bench -----------------------------------------------------------------------------------------------

MCQ = {"id": "1-a", "sample_id": 1, "event_id": 0, "video_path": "videos/v1", "video_type": "images"}
MCQ |= {"question": "Where to?", "options": ["left", "right", "The caption does not mention it"], "answer_index": 0}


def test_motionatlas_right_wrong_and_missing(tmp_path, judge, capsys):
    clip(tmp_path / "videos" / "v1")
    write_lines(tmp_path / "mcqs.jsonl", [MCQ, MCQ | {"id": "1-b", "answer_index": 2}])
    line = {"sample_id": 1, "masks": {"2": mask(2, 2, 20, 20), "3": mask(4, 2, 22, 20)}}
    with gzip.open(tmp_path / "masks.jsonl.gz", "wt") as file:
        file.write(json.dumps(line) + "\n")
    files = {"mcqs": tmp_path / "mcqs.jsonl", "masks": tmp_path / "masks.jsonl.gz", "videos": tmp_path}
    assert run(motionatlas, tmp_path, **files, subset=True) == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.prompt_frame == 2 and set(record.frames) == {2, 3}
    asked = read_questions(tmp_path / "out" / QUESTIONS)[record.id]
    assert [[points for _, points in q.choices] for q in asked] == [[1, -1, 0], [-1, -1, 1]]
    judge.answer = lambda asked: "C"  # of the first it is missing, of the second it is right
    theirs = write_json(tmp_path / "theirs.json", {record.id: "a dog"})
    options = ("--task", "motionatlas", "--data", tmp_path / "out" / "test.jsonl", "--out", tmp_path / "t")
    options += ("--annotations", tmp_path / "out" / QUESTIONS)
    assert evaluated("--predictions", theirs, *options, "--judge", judge.url, "--judge-model", "j") == 0
    scores = scores_of(tmp_path / "t")["scores"]
    assert scores == {"missing accuracy": 0.5, "missing recall": 0.5, "missing precision": 1}
    assert run(motionatlas, tmp_path, **files) == 2
    assert "2 questions, published 2,073; 1 videos, published 107" in capsys.readouterr().err
    write_lines(tmp_path / "mcqs.jsonl", [MCQ | {"sample_id": 2}])
    assert run(motionatlas, tmp_path, **files, subset=True) == 2
    assert "no masks of sample 2" in capsys.readouterr().err


# --- ElysiumTrack ----------------------------------------------------------------------------------------------------


def test_elysium(tmp_path, model, capsys):
    clip(tmp_path / "frames" / "77")
    entry = {"id": 5, "vid": "77", "frames": [f"frames/77/{n:03d}.png" for n in (1, 3)], "object_class": "dog"}
    entry |= {"box": [[0, 0, 0, 0], [0.25, 0.5, 0.75, 1]], "object_description": "brown dog", "frame_size": [60, 40]}
    file = write_lines(tmp_path / "e.jsonl", [entry])
    assert run(elysium, tmp_path, annotations=file, videos=tmp_path, split="test") == 0
    (record,) = open_records(tmp_path / "out" / "test.jsonl")
    assert record.frames[1] is None and record.frames[3].box == (15, 20, 45, 40) and record.prompt_frame == 3
    assert record.captions == ("brown dog",) and record.end_frame == 4 and record.category == "dog"
    assert not check_file(tmp_path / "out" / "test.jsonl").problems
    content = check_end_to_end(model, tmp_path, "elysium-captions", asks=False)
    assert "METEOR" in content["scores"]
    file = write_lines(tmp_path / "e.jsonl", [entry | {"box": entry["box"][:1]}])
    assert run(elysium, tmp_path, annotations=file, videos=tmp_path, split="test", strict=True) == 2
    assert "2 frames, 1 boxes" in capsys.readouterr().err
