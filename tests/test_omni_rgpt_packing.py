"""Texts about the same frames as one sequence: the same losses and gradients as rows of their own."""

import warnings

import numpy as np
import pytest
import torch

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.example import Example
from dynrefer.data.packing import Piece
from dynrefer.data.record_files import open_records, record_of, write_records
from dynrefer.models.omni_rgpt import packing
from dynrefer.models.omni_rgpt.packing import PackedRows, pack_rows
from tests.omni_rgpt import BASES, CHATS, HW, batch, examples, new, records, scenes, shared

KINDS = list(BASES)


@pytest.fixture(scope="module")
def mixed():
    """Records of pictures and a clip, with conversations about them."""
    path = scenes().parent / "mixed.jsonl"
    write_records(path.with_name("one.jsonl"), [record_of(chat, "") for chat in CHATS])
    path.write_text(scenes().read_text() + path.with_name("one.jsonl").read_text())
    return open_records(path)


def examples_of(model, found) -> list[Example]:
    dataset = ExampleDataset(found, model.processor, train=False, seed=0)
    return [dataset.example(Piece(number, np.arange(count))) for number, count in enumerate(dataset.counts)]


def sums_and_gradients(model, made):
    model.zero_grad()
    sums = model(made)
    sum(sums.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return {task: float(value.detach()) for task, value in sums.items()}, gradients


@pytest.mark.parametrize("kind", KINDS)
def test_packed_texts_learn_what_rows_of_their_own_learn(kind, mixed):
    model = new(kind, base={"mode": "full", "vision": True})
    for parameter in model.parameters():  # random models attend to nearly nothing
        if parameter.ndim == 2:
            parameter.data *= 4
    made = batch(model, examples_of(model, mixed), train=True)
    assert [len(each.marks) for each in made.shown] == [3, 0, 2, 1, 2]  # squares that overlap; the whole; a clip
    assert isinstance(model.packed(made, model.see(made)), PackedRows)
    packed, gradients = sums_and_gradients(model, made)
    model.config.packed = False
    plain, expected = sums_and_gradients(model, made)
    assert packed == pytest.approx(plain, rel=1e-5) and plain["guide"] > 0
    for name, gradient in expected.items():
        most = max(1.0, float(gradient.abs().max()))  # some are nothing but rounding: a key's bias moves no attention
        assert torch.allclose(gradients[name], gradient, atol=2e-5 * most), name


def test_a_text_of_a_sequence_changes_nothing_of_another(mixed):
    model = shared()
    made = batch(model, examples_of(model, mixed)[:1], train=True)
    with torch.no_grad():
        seen = model.see(made)
        rows = model.packed(made, seen)
        of_row = rows.segments[0] == 2
        before = model.read(made, seen, rows)[1][0]
        other = (rows.segments[0] == 1) & (rows.rows.mentions[0] < 0)
        rows.rows.ids[0, other] = 5
        after = model.read(made, seen, rows)[1][0]
    assert torch.equal(before[of_row], after[of_row]) and not torch.equal(before[other], after[other])


def test_positions_go_on_from_the_frames(mixed):
    model = shared("qwen3_vl")
    made = batch(model, examples_of(model, mixed)[:1], train=True)
    rows = model.packed(made, model.see(made))
    assert rows.positions.shape[0] == 3
    ends = [rows.positions[:, 0, rows.segments[0] == text][:, 0] for text in (1, 2, 3)]
    frames = rows.positions[:, 0, rows.segments[0] == 0]
    assert all(end.tolist() == [int(frames.max()) + 1] * 3 for end in ends)
    plain = shared()
    rows = plain.packed(batch(plain, examples(plain)[:1]), plain.see(batch(plain, examples(plain)[:1])))
    assert rows.positions[0, rows.segments[0] == 2][0] == (rows.segments[0] == 0).sum()


def test_what_is_packed_and_what_is_not(mixed, monkeypatch):
    model = new()
    made = batch(model, examples_of(model, mixed), train=True)
    rows = model.packed(made, model.see(made))
    assert len(made.rows) == 10 and len(rows.rows) == 5 == len(made.shown)
    assert [int(segments.max()) for segments in rows.segments] == [3, 1, 2, 1, 3]
    monkeypatch.setattr(packing, "MOST_TOKENS", 1)  # a text for itself, however long
    assert pack_rows(made.rows, None, model.config.base_config.image_token_id) is None
    one = batch(model, examples(model)[2:3])  # one text
    assert model.packed(one, model.see(one)) is one.rows
    own = new(marks="own")
    made = batch(own, examples_of(own, mixed), train=True)
    assert own.packed(made, own.see(made)) is made.rows and len(made.shown) == 10
    assert [len(each.marks) for each in made.shown[:4]] == [1, 1, 3, 0]
    assert len(made.pixels["pixel_values"]) == 3 + 4  # the frames are encoded once all the same


def test_more_regions_than_marks_make_several_sequences(mixed):
    model = new(num_marks=2)
    made = batch(model, examples_of(model, mixed)[1:], train=True)
    assert [len(each.marks) for each in made.shown] == [2, 1, 2]
    with pytest.raises(ValueError, match="conversation chat: 3 regions in one text, but this model has 2 marks"):
        batch(model, examples_of(model, mixed)[:1], train=True)
    model = new(num_marks=1, marks="all")
    made = batch(model, examples_of(model, mixed)[1:], train=True)
    assert [len(each.marks) for each in made.shown] == [1, 1, 1, 1, 1]  # the conversation and the record share theirs
    assert [list(numbers) for numbers in made.frames] == [[0], [0], [1], [2, 3, 4, 5], [2, 3, 4, 5]]


def test_attention_that_takes_no_mask_reads_one_by_one_and_says_so_once():
    model = new(base={"mode": "full"})
    text = model.base.config.get_text_config()
    made = batch(model)
    expected = {task: float(value.detach()) for task, value in model(made).items()}
    text._attn_implementation = "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager = {task: float(value.detach()) for task, value in model(made).items()}
    assert eager == pytest.approx(expected, rel=1e-5)
    text._attn_implementation = "flash_attention_2"
    seen = model.see(made)
    with pytest.warns(UserWarning, match="'flash_attention_2' takes no mask that keeps them apart; sdpa and eager do"):
        assert model.packed(made, seen) is made.rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.packed(made, seen) is made.rows
    text._attn_implementation = "sdpa"
    text.sliding_window = 4
    assert packing.why_not(model.base.config) == "its attention looks through a window"


def test_the_guide_head_counts_a_clip_once(mixed):
    model = shared()
    clip = examples_of(model, mixed)[-1]
    made = batch(model, [clip], train=True)
    assert (
        len(made.rows) == 3 and made.counts()["guide"] == 4 * 16 == batch(model, [clip.part([0, 1])]).counts()["guide"]
    )


def test_turns_of_a_conversation_are_learnt_answers_alone(mixed):
    model = shared()
    made = batch(model, examples_of(model, mixed)[:1], train=True)
    tokenizer, labels = model.processor.tokenizer, made.rows.labels[2]
    assert made.ids == ["0-0", "0-1", "chat", "whole"] and made.answer_rows.tolist() == [0, 1, 2, 3]
    assert tokenizer.decode(labels[labels >= 0]).replace(" ", "") == "itis</s>itisleft</s>"
    mentions = made.rows.mentions[2]
    assert mentions[mentions >= 0].tolist() == [1, 0, 2, 0]  # the records' squares keep their marks in it
    made.leave_out(["captions"], slice(2, 3))
    assert (made.rows.labels[2] < 0).all() and (made.rows.labels[3] >= 0).any()


def test_conversations_are_answered(mixed):
    model = shared()
    results = [result for e in examples_of(model, mixed) for result in model.predict(batch(model, [e]))]
    assert [r.id for r in results] == [r.id for r in records()[:2]] + ["chat", "whole", "1-0", "1-1", "2-0"] + [
        "clip-0",
        "clip-1",
        "moving",
    ]
    assert results[2].box == [0, 0, HW[1], HW[0]]
