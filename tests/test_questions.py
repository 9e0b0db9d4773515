"""Records of questions, and a tiny Omni-RGPT that answers them: once, by writing or by the likelihood of choices."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dynrefer.data import open_records
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.questions import Question, write_questions
from dynrefer.data.records import RegionRecords
from dynrefer.predictions import predict, predict_in_memory
from dynrefer.predictor import RegionPredictor
from tests import omni_rgpt

IMAGE = {"image": "scene0.png", "image_hw": [40, 60]}
CLIP = {"video": "clip", "num_frames": 8, "frame_hw": [40, 60], "prompt_frame": 1}
TWO = [{"box": [4, 6, 24, 30], "category": "cup"}, {"box": [18, 20, 50, 36]}]
ENTRIES = [
    {"id": "a", **IMAGE, "question": "Is <region0> left of <region1>?", "regions": TWO, "choices": ["yes", "no"]},
    {"id": "b", **IMAGE, "question": "What is there to see?", "answers": ["squares"], "kinds": ["all"], "group": "g"},
    {"id": "c", **CLIP, "question": "What does <region> do?", "regions": [{"frames": {"1": {"box": [6, 4, 18, 20]}}}]},
    {"id": "d", **CLIP, "question": "What moves?", "end_frame": 5},
]


@pytest.fixture(scope="module")
def records():
    path = omni_rgpt.scenes().parent / "questions.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return open_records(path)


def test_questions_are_read_and_written_back(records, tmp_path):
    assert [type(q) for q in records] == [Question] * 4 and [len(q.regions) for q in records] == [2, 0, 1, 0]
    assert records[0].regions[0].category == "cup" and records[1].box == (0, 0, 60, 40)
    assert records[2].clip.end_frame == 8 and records[3].clip.end_frame == 5 and records[2].clip.prompt_frame == 1
    assert write_questions(tmp_path / "again.jsonl", records) == 4
    assert list(open_records(tmp_path / "again.jsonl")) == list(records)
    assert records.example_groups().counts.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "answer 2: expected the place of one of the 2 choices"),
        ({"answer": "yes"}, "answer yes: expected the place"),
        ({"choices": ["a", "a "]}, "expected some that differ"),
        ({"question": " "}, "question ' ': expected text that is not empty"),
        ({"regions": [{"box": [4, 6, 2, 30]}]}, "region a:0: "),
        ({"regions": [{"frames": {}}]}, r"region a:0: unknown key \['frames'\]"),
        ({"turns": []}, r"unknown key \['turns'\]"),
        ({"image_hw": [0, 5]}, "image_hw"),
        ({"regions": "all"}, "regions all: expected a list"),
    ],
)
def test_what_is_no_question_is_told(change, message):
    with pytest.raises(ValueError, match=rf"q\.jsonl:3: .*{message}"):
        Question.from_dict(ENTRIES[0] | change, "q.jsonl:3")


def test_a_clip_needs_its_regions_in_its_prompt_frame():
    wrong = ENTRIES[2] | {"regions": [{"frames": {"2": {"box": [6, 4, 18, 20]}}}]}
    with pytest.raises(ValueError, match="region c:0: frames say nothing about prompt_frame 1"):
        Question.from_dict(wrong)
    with pytest.raises(ValueError, match="prompt_frame 9, end_frame 8"):
        Question.from_dict(ENTRIES[3] | {"prompt_frame": 9, "end_frame": 8})


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_each_question_has_one_answer_and_pictures_and_clips_mix(records, kind, tmp_path):
    model = omni_rgpt.shared(kind)
    results = predict(model, records, tmp_path / "p.jsonl", batch_size=4, num_workers=0)
    assert list(results) == ["a", "b", "c", "d"] and results["a"].caption in ("yes", "no")
    alone = {}
    for n in range(4):
        alone |= predict_in_memory(model, records.subset([n]), batch_size=1)
    assert {i: r.caption for i, r in alone.items()}.keys() == results.keys()
    assert sum(each["score"] for each in results["a"].extra["choices"]) == pytest.approx(1)
    lines = (tmp_path / "p.jsonl").read_text()
    (tmp_path / "p.jsonl").write_text("".join(lines.splitlines(keepends=True)[:2]))
    assert predict(model, records, tmp_path / "p.jsonl", batch_size=4, num_workers=0) == results  # a killed run goes on


@torch.no_grad()
def test_the_likeliest_choice_is_that_of_the_models_own_loss(records):
    """Two of three choices are as long as each other in no way: what counts is the loss of each, end included."""
    model = omni_rgpt.shared()
    choices = ["yes", "the yellow one", "no no no"]
    (question,) = records.subset([0])
    asked = RegionRecords(records.path, [replace(question, choices=tuple(choices))])
    result = predict_in_memory(model, asked)["a"]
    dataset = ExampleDataset(asked, model.processor, model.Options(), train=False, seed=0)
    (sample,) = dataset.samples(loaded(dataset), 0)
    losses = []
    (group,) = sample["groups"]
    for text in group["texts"]:
        batch = model.processor.collate([sample | {"groups": [group | {"texts": [text]}], "choices": [[]]}])
        seen = model.see(batch)
        logits, _ = model.read(batch, seen, batch.rows)
        losses.append(float(F.cross_entropy(logits[0, :-1].float(), batch.rows.labels[0, 1:], reduction="sum")))
    expected = torch.tensor(losses).neg().softmax(0).tolist()
    assert [each["name"] for each in result.extra["choices"]] == choices
    assert [each["score"] for each in result.extra["choices"]] == pytest.approx(expected, rel=1e-4)
    assert result.caption == choices[expected.index(max(expected))] and result.score == pytest.approx(
        max(expected), rel=1e-4
    )


def loaded(dataset):
    from dynrefer.data.packing import Piece

    return dataset.example(Piece(0, torch.arange(1).numpy()))


def test_a_user_gives_choices_to_a_question(records):
    predictor = RegionPredictor(omni_rgpt.shared())
    path = omni_rgpt.scenes().parent / "scene0.png"
    boxes = [[4, 6, 24, 30], [18, 20, 50, 36]]
    each = predictor(path, boxes=boxes, question="Is <region> red?", choices=["yes", "no"])
    assert len(each) == 2 and all(r.caption in ("yes", "no") and len(r.extra["choices"]) == 2 for r in each)
    once = predictor(path, boxes=boxes, question="Is <region0> left of <region1>?", choices=["yes", "no"])
    assert once[0].extra == once[1].extra and once[0].caption == once[1].caption
    with pytest.raises(ValueError, match="choices: answers to nothing; give a question too"):
        predictor(path, boxes=boxes, choices=["yes", "no"])
    with pytest.raises(ValueError, match="choices: expected list"):
        predictor(path, boxes=boxes, question="Is <region> red?", choices="yes")


def test_questions_are_not_for_training_and_not_for_families_that_describe(records):
    processor = omni_rgpt.shared().processor
    with pytest.raises(
        ValueError, match="question a: of a benchmark, without its answer in words; train on conversations"
    ):
        loaded(ExampleDataset(records, processor, train=True, seed=0))
    from tests.cups import Model

    with pytest.raises(ValueError, match="record a: a conversation, and this family describes regions"):
        predict_in_memory(Model(), records)
