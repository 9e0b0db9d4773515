"""The embedded world in motion: deterministic, exact masklets, and texts that say what the masklets show."""

import re

import numpy as np
import pytest
from PIL import Image

from data_prep import moving_world
from data_prep.moving_world import __main__ as prepare
from data_prep.moving_world.texts import STAYS
from data_prep.moving_world.tracks import CLEARLY, LEAST_WAY, draw_plan
from data_prep.world import COMBINATIONS
from dynrefer.data.chats import Chat, Turn
from dynrefer.data.clips import ClipRegion, clip_frames, read_clip
from dynrefer.data.questions import Question
from dynrefer.data.record_files import open_records
from dynrefer.masks import to_mask

SEEDS = range(40)
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.fixture(scope="module")
def clips():
    return [moving_world.clip(seed, split) for split in ("train", "test") for seed in SEEDS]


def centre(mask):
    """Of the box of visible pixels: (x, y)."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2


def asked(clips, kind):
    found = [(drawn, q) for drawn in clips for q in moving_world.questions(drawn) if q.kind == kind]
    assert len(found) > 20
    return found


def test_the_same_seed_draws_the_same_clip_and_another_seed_another():
    first, again, other = moving_world.clip(5), moving_world.clip(5), moving_world.clip(6)
    assert np.array_equal(first.frames, again.frames) and first.frames.shape == (10, 128, 128, 3)
    assert moving_world.regions(first, "a") == moving_world.regions(again, "a")
    assert moving_world.chats(first, "a") == moving_world.chats(again, "a")
    assert not np.array_equal(first.frames, other.frames)
    assert not np.array_equal(first.frames, moving_world.clip(5, "test").frames)


def test_masklets_are_the_visible_pixels(clips):
    for drawn in clips:
        assert 2 <= len(drawn.movers) <= 5
        assert np.stack([mover.masks for mover in drawn.movers]).sum(0).max() == 1
        for mover, region in zip(drawn.movers, moving_world.regions(drawn, "a"), strict=True):
            assert list(region.frames) == list(range(10)) and region.prompt_frame == 0
            for t, mask in enumerate(mover.masks):
                assert (region.frames[t] is None) == (not mask.any()) == (mover.visible[t] == 0)
                assert np.array_equal(region.to_mask(t), mask)
                if mask.any():
                    x1, y1, x2, y2 = region.frames[t].box
                    rows, columns = np.nonzero(mask)
                    assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert ClipRegion.from_dict(region.to_dict()) == region


def test_masks_cover_the_pixels_that_change_from_frame_to_frame(clips):
    """What differs between two frames belongs to an object in one of them, or is the smoothed edge beside it."""
    for drawn in clips[:10]:
        changed = (drawn.frames[1:].astype(int) != drawn.frames[:-1]).any(-1)
        objects = np.any([mover.masks for mover in drawn.movers], axis=0)
        objects = objects[1:] | objects[:-1]
        beside = np.any([np.roll(objects, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
        assert changed.any() and (changed & ~beside).sum() < 0.02 * changed.sum()


def test_a_stated_motion_is_the_masklets(clips):
    found = asked(clips, "motion")
    assert {q.answer for _, q in found} == {*STEP, STAYS}
    for drawn, q in found:
        mover = drawn.movers[q.movers[0]]
        hidden = mover.visible[-1] == 0
        if mover.visible[0] < 1 or 0 < mover.visible[-1] < 1:
            continue  # the box of its visible pixels is not its own
        moved = centre((drawn.box if hidden else mover).masks[-1]) - centre(mover.masks[0])
        if q.answer == STAYS:
            assert np.abs(moved).max() == 0
        else:
            along = np.dot(moved, STEP[q.answer])
            assert along > (CLEARLY if hidden else LEAST_WAY - 2)
            assert np.abs(moved).sum() == pytest.approx(along, abs=2)


def test_a_hidden_object_has_no_pixels(clips):
    """Who stops behind the box is gone at the end; who passes behind it is gone and comes back on the other side."""
    stops = passes = 0
    for drawn, q in asked(clips, "box"):
        mover, box = drawn.movers[q.movers[0]], centre(drawn.box.masks[0])
        assert re.search(rf"\b{drawn.box.thing.colour} box\b", q.text)
        if q.answer == "it stops behind it":
            stops += 1
            assert mover.visible[0] > 0.5 and mover.masks[-2:].sum() == 0
        elif q.answer == "it passes behind it":
            passes += 1
            assert mover.visible.min() == 0 and mover.visible[[0, -1]].min() > 0.5
            assert np.dot(centre(mover.masks[0]) - box, centre(mover.masks[-1]) - box) < 0
        else:
            assert mover.visible[-1] > 0.5
    assert stops > 5 and passes > 5


def test_who_overtakes_is_behind_first_and_ahead_at_the_end(clips):
    found = asked(clips, "pass")
    assert len({q.answer for _, q in found}) == 4
    for drawn, q in found:
        first, second = (drawn.movers[number] for number in q.movers)
        directions = [drawn.plan.direction(number) for number in q.movers]
        step = np.array(STEP[directions[0]])
        ahead = [np.dot(centre(first.masks[t]) - centre(second.masks[t]), step) for t in (0, -1)]
        assert min(np.abs(ahead)) > CLEARLY - 3
        order = {"yes": (-1, 1), "no, it is overtaken": (1, -1), "no, they cross": (-1, 1)}
        if q.answer in order:
            assert tuple(np.sign(ahead)) == order[q.answer]
        else:
            assert np.sign(ahead[0]) == np.sign(ahead[1])
        assert (directions[0] != directions[1]) == (q.answer == "no, they cross")


def mean_colour(drawn, mover, t):
    return np.median(drawn.frames[t][mover.masks[t]], axis=0)


def test_an_object_has_another_colour_at_the_end_where_the_texts_say_so(clips):
    turned = kept = 0
    for drawn, q in asked(clips, "end"):
        mover = drawn.movers[q.movers[0]]
        start = next(p.answer for p in moving_world.questions(drawn) if p.kind == "start" and p.movers == q.movers)
        moved = np.abs(mean_colour(drawn, mover, 0) - mean_colour(drawn, mover, -1)).max()
        assert (start != q.answer) == (mover.turns is not None)
        caption = moving_world.captions(drawn, q.movers[0])[0]
        assert (f"turns {q.answer}" in caption) == (start != q.answer)
        turned, kept = turned + (moved > 25), kept + (moved < 25)
        if start == q.answer and mover.visible[[0, -1]].min() == 1:
            assert moved < 12
    assert turned > 10 and kept > 10


def test_plans_are_clear_for_any_seed():
    """Objects stay in the picture, and who is ahead is ahead by much."""
    for seed in range(3000):
        plan = draw_plan(np.random.default_rng(seed))
        assert 2 <= len(plan.tracks) <= 4
        for track in plan.tracks:
            assert track.along.min() > 15 and track.along.max() < 113
        for first, second, what in plan.pairs:
            a, b = plan.tracks[first], plan.tracks[second]
            ahead = np.sign(a.way) * (a.along - b.along)[[0, -1]]
            assert min(abs(a.way), abs(b.way), *np.abs(ahead)) > CLEARLY - 1e-6
            assert tuple(np.sign(ahead)) == {"overtakes": (-1, 1), "keeps": (1, 1), "crosses": (-1, 1)}[what]


def test_nothing_in_a_clip_is_called_as_another(clips):
    for drawn in clips:
        colours = [mover.thing.colour for mover in drawn.movers]
        colours += [mover.turns[1] for mover in drawn.movers if mover.turns]
        assert len(set(colours)) == len(colours)
        owned = {(kind, *pair) for kind, pairs in COMBINATIONS[drawn.split].items() for pair in pairs}
        for mover in drawn.movers:
            thing = mover.thing
            assert thing.kind == "box" or (thing.kind, thing.colour, thing.pattern) in owned


def test_captions_of_a_clip():
    """Seed 5: a tree overtakes a lamp, a boat passes behind a box."""
    drawn = moving_world.clip(5)
    assert [moving_world.captions(drawn, number)[0] for number in range(4)] == [
        "a white tree that moves down and overtakes the purple lamp",
        "a purple lamp that moves down and is overtaken by the white tree",
        "a pink boat that moves down and passes behind the orange box",
        "an orange box that stays where it is",
    ]


def test_questions_name_their_regions():
    drawn = moving_world.clip(5)
    own = moving_world.regions(drawn, "a")
    records = moving_world.chats(drawn, "a")
    assert len(records) == len(moving_world.questions(drawn)) == 11
    (passing,) = [chat for chat in records if chat.category == "pass"]
    assert passing.turns == (Turn("Does <region1> overtake <region0>?", "no, it is overtaken"),)
    assert [region.frames for region in passing.regions] == [own[0].frames, own[1].frames]
    assert Chat.from_dict(passing.to_dict()).turns == passing.turns
    (asked,) = [question for question in moving_world.asked_of(drawn, "a") if question.kinds == ("pass",)]
    assert asked.choices[asked.answer] == "no, it is overtaken" and asked.chat.turns == (Turn(asked.question),)
    assert asked.chat.regions == passing.regions
    again = Question.from_dict(asked.to_dict())
    assert again.chat.turns == asked.chat.turns and again.regions[1].frames == passing.regions[1].frames


def test_the_command_writes_records_and_frames(tmp_path, capsys):
    command = ["--train", "3", "--test", "2"]
    assert prepare.main(["--out", str(tmp_path / "one"), *command, "--workers", "1"]) == 0
    assert "3 clips -> " in capsys.readouterr().out
    assert prepare.main(["--out", str(tmp_path / "two"), *command, "--workers", "2"]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len([path for path in files if path.suffix == ".png"]) == 50
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    records = open_records(tmp_path / "one" / "train.jsonl")
    drawn = [moving_world.clip(seed) for seed in range(3)]
    expected = [region for clip in drawn for region in moving_world.regions(clip, f"clips/{clip.name}")]
    assert list(records) == expected
    assert list(open_records(tmp_path / "one" / "train-chats.jsonl")) == [
        chat for clip in drawn for chat in moving_world.chats(clip, f"clips/{clip.name}")
    ]
    assert [question.to_dict() for question in open_records(tmp_path / "one" / "train-questions.jsonl")] == [
        question.to_dict() for clip in drawn for question in moving_world.asked_of(clip, f"clips/{clip.name}")
    ]
    frames = read_clip(records.video_path(0), records[0], clip_frames(records[0], 4))
    assert np.array_equal(frames, drawn[0].frames[[0, 3, 6, 9]])
    assert Image.open(tmp_path / "one" / "clips" / "train-0000000" / "03.png").size == (128, 128)
    assert to_mask(records[0].mask, (128, 128)).sum() == drawn[0].movers[0].masks[0].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "-1"], "--train -1: expected a number of clips, 0 for none"),
        (["--train", "0", "--test", "0"], "--train, --val and --test are all 0"),
        (["--seed", "-1"], "world seed -1: must be 0 or more"),
        (["--workers", "0"], "world workers 0: must be 1 or more"),
    ],
)
def test_a_wrong_number_is_told(tmp_path, capsys, arguments, message):
    assert prepare.main(["--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_unknown_splits_are_told(tmp_path):
    for call in (lambda: moving_world.clip(0, "dev"), lambda: moving_world.write(tmp_path, 1, "dev")):
        with pytest.raises(ValueError, match="world split 'dev': choose one of train, val, test"):
            call()
