"""Question files with their answers become conversations, asked as benchmarks ask."""

import json

import pytest

from data_prep.answered import main
from dynrefer.data.record_files import open_records
from eval.asking import Asking

PICTURE = {"image": "a.jpg", "image_hw": [40, 60], "source": "vcr", "split": "train"}
CHOICES = ["<region1> is wet", "no", "he sits"]
QUESTIONS = [
    {
        "id": "7-answer",
        **PICTURE,
        "question": "Why is <region0> here?",
        "choices": CHOICES,
        "answer": 0,
        "regions": [{"box": [4, 6, 24, 30], "category": "person"}, {"box": [18, 20, 50, 36]}],
    },
    {
        "id": "8",
        "video": "a.mp4",
        "num_frames": 9,
        "frame_hw": [40, 60],
        "prompt_frame": 2,
        "end_frame": 8,
        "question": "What does <region0> do?",
        "answers": ["it jumps", "jumping"],
        "regions": [{"frames": {"2": {"box": [4, 6, 24, 30]}, "5": None}}],
    },
    {"id": "9", **PICTURE, "question": "Is there a dog?", "choices": ["yes", "no"], "answer": 1},
    {"id": "10", **PICTURE, "question": "Is there a cat?", "choices": ["yes", "no"]},
    {"id": "11", **PICTURE, "question": "Which?", "choices": ["[0]", "[1]"], "answer": -1},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "train.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return tmp_path


def run(folder, *options):
    return main(["--questions", str(folder / "q/train.jsonl"), "--out", str(folder / "out/a.jsonl"), *options])


def test_questions_are_asked_as_evaluation_asks_them(folder, capsys):
    assert run(folder) == 0
    chosen, free, there = open_records(folder / "out/a.jsonl")
    questions = list(open_records(folder / "q/train.jsonl"))
    assert chosen.turns[0].question == Asking().text(questions[0]) and chosen.turns[0].answer == "A"
    assert [region.box for region in chosen.regions] == [(4, 6, 24, 30), (18, 20, 50, 36)]
    assert (chosen.image, chosen.source, chosen.split) == ("../q/a.jpg", "vcr", "train")
    assert (free.turns[0].question, free.turns[0].answer) == ("What does <region0> do?", "it jumps")
    assert free.is_clip and (free.num_frames, free.prompt_frame, free.end_frame) == (9, 2, 8)
    assert free.regions[0].frames[5] is None and free.image == "../q/a.mp4"
    assert there.turns[0].answer == "B" and there.regions == ()
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith("left out most: 2 questions: their answer is not public")


@pytest.mark.parametrize("form", ["words", "numbers"])
def test_a_choice_itself_answers(folder, form, capsys):
    assert run(folder, "--form", form) == 0
    free, there = open_records(folder / "out/a.jsonl")
    assert there.turns[0].question == "Is there a dog?" + "\nAnswer with its number in brackets." * (form == "numbers")
    assert there.turns[0].answer == "no"
    printed = capsys.readouterr()
    assert "1  conversations left out: not as the format has it" in printed.out  # a model cannot answer with <region1>
    assert "7-answer" in printed.err and "names <region1>" in printed.err


def test_names_stand_before_mentions(folder):
    assert run(folder, "--names") == 0
    chosen = open_records(folder / "out/a.jsonl")[0]
    assert chosen.turns[0].question.startswith("Why is person <region0> here?\nA. <region1> is wet\nB. no")


def test_other_records_and_unknown_answers_are_named(folder, capsys):
    (folder / "q/train.jsonl").write_text(json.dumps(QUESTIONS[3]) + "\n")
    assert run(folder) == 2
    assert "no conversations came out; 1 questions left out: their answer is not public" in capsys.readouterr().err
    record = {"id": "r", "image": "a.jpg", "image_hw": [40, 60], "box": [1, 2, 30, 30]}
    (folder / "q/train.jsonl").write_text(json.dumps(record) + "\n")
    assert run(folder) == 2 and "record r: not a question" in capsys.readouterr().err
