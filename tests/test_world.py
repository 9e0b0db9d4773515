"""The embedded world: deterministic, exact boxes, true captions, splits that share nothing."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data_prep import world
from data_prep.world import __main__ as prepare
from data_prep.world.objects import draw_object, extent
from data_prep.world.scenes import NEAR
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region
from dynrefer.masks import mask_to_box, to_mask

SEEDS = range(60)
SCENES = [(split, seed) for split in ("train", "test") for seed in SEEDS]
KIND = "|".join(world.CATEGORIES)
COLOUR = "|".join(world.COLOURS)
SIDES = r"to the left of|to the right of|left of|right of|above|below|beside|next to|near"


@pytest.fixture(scope="module")
def scenes():
    return [world.scene(seed, split) for split, seed in SCENES]


def test_the_same_seed_draws_the_same_scene_and_another_seed_another():
    first, again, other = world.scene(5, "train"), world.scene(5, "train"), world.scene(6, "train")
    assert np.array_equal(first.image, again.image) and first.image.shape == (*world.IMAGE_HW, 3)
    assert first.regions("a.png") == again.regions("a.png")
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, world.scene(5, "test").image)


def test_boxes_are_the_boxes_of_the_visible_pixels(scenes):
    for drawn in scenes:
        assert len(drawn.objects) >= 2
        overlap = np.zeros(drawn.image_hw, dtype=int)
        for thing, region in zip(drawn.objects, drawn.regions("a.png"), strict=True):
            rows, columns = np.nonzero(thing.mask)
            assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == thing.box
            assert np.array_equal(to_mask(region.mask, region.image_hw), thing.mask)
            assert np.array_equal(mask_to_box(thing.mask), region.box)
            assert thing.visible >= 0.85
            overlap += thing.mask
        assert overlap.max() == 1


def test_masks_cover_the_pixels_that_an_object_changed():
    """A drawn object differs from the ground nearly everywhere inside its mask, and the ring around it is ground."""
    drawn = world.scene(0, "train")
    free = np.ones(drawn.image_hw, dtype=bool)
    for thing in drawn.objects:
        x1, y1, x2, y2 = (int(v) for v in thing.box)
        free[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
    ground = drawn.image[free].reshape(-1, 3).astype(int)
    for thing in drawn.objects:
        inside = drawn.image[thing.mask].astype(int)
        far = np.abs(inside[::7, None] - ground[None, ::97]).sum(-1).min(1) > 20
        assert far.mean() > 0.7


def _find(things, words):
    """The objects that fit words such as "big red lamp"."""
    fit = list(things)
    for word in words.split():
        fit = [t for t in fit if word in (t.kind, t.colour, t.size) or (word in world.PATTERNS and t.pattern == word)]
    return fit


def _check_caption(drawn, thing, caption):
    """Every claim of a caption against boxes, masks and facts, by reading its words."""
    x1, y1, x2, y2 = thing.box
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    head = re.match(rf"(?:(?:a|an|the) )?((?:[a-z]+ )*?({KIND}))\b", caption)
    assert head, caption
    assert head[2] == thing.kind and thing in _find(drawn.objects, head[1]), caption
    found = re.search(r"with (\w+) (stripes|dots|checks)\b", caption)
    if found:
        assert found[1] == thing.ink and found[2][:4] in (thing.pattern[:4], "dots"), caption
        assert {"stripes": "striped", "dots": "dotted", "checks": "checked"}[found[2]] == thing.pattern
    found = re.search(r"with (?:a|the) (\w+) (\w)\b", caption)
    if found:
        assert found[1] in (thing.ink, thing.pattern) and found[2] == thing.glyph, caption
    found = re.search(r"(?:on|in) the (grass|sand|water|carpet|snow|floor|sky)", caption)
    assert not found or found[1] == thing.surface, caption
    found = re.search(r"under the (sun|moon)", caption)
    if found:
        assert found[1] == drawn.light and x1 < drawn.light_x < x2, caption
        assert sum(o.box[0] < drawn.light_x < o.box[2] for o in drawn.objects) == 1, caption
    found = re.search(rf"\b(smaller|bigger) than the ((?:{COLOUR}) (?:{KIND}))$", caption)
    if found:
        (other,) = _find(drawn.objects, found[2])
        assert (thing.side < other.side) == (found[1] == "smaller"), caption
        assert max(thing.side, other.side) > 1.4 * min(thing.side, other.side)
    found = re.search(rf"\b({SIDES}) (?:a|an|the) ((?:\w+ )*(?:{KIND}))$", caption)
    assert bool(found) == any(re.search(rf"\b{side}\b", caption) for side in SIDES.split("|")), caption
    if not found:
        return 0
    (other,) = _find(drawn.objects, found[2])  # the words fit one object only
    gaps = []
    for candidate in drawn.objects:
        if candidate is not thing:
            a, b, c, d = candidate.box
            gaps.append((np.hypot(max(a - x2, x1 - c, 0), max(b - y2, y1 - d, 0)), candidate is other))
    nearest = sorted(gaps, key=lambda pair: pair[0])
    assert nearest[0][1] and nearest[0][0] <= NEAR, caption
    assert len(nearest) == 1 or nearest[1][0] > nearest[0][0], caption
    dx, dy = cx - (other.box[0] + other.box[2]) / 2, cy - (other.box[1] + other.box[3]) / 2
    words = found[1]
    if "left" in words:
        assert dx < -abs(dy) and x2 <= other.box[0] + 6, caption
    elif "right" in words:
        assert dx > abs(dy) and x1 >= other.box[2] - 6, caption
    elif words == "above":
        assert dy < -abs(dx) and y2 <= other.box[1] + 6, caption
    elif words == "below":
        assert dy > abs(dx) and y1 >= other.box[3] - 6, caption
    return 1


def test_captions_say_only_what_is_true_and_unambiguous(scenes):
    total = relations = 0
    for drawn in scenes:
        for thing, captions in zip(drawn.objects, drawn.captions, strict=True):
            assert 2 <= len(captions) <= 4 and len(set(captions)) == len(captions)
            for caption in captions:
                assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", caption), caption
                assert not re.search(r"\ba [aeiou]\w", caption) and not re.search(r"\ban [^aeiou]", caption), caption
                relations += _check_caption(drawn, thing, caption)
                total += 1
    assert total > 1000 and relations > 0.3 * total


def test_tags_and_attributes_agree_with_the_object(scenes):
    for drawn in scenes:
        for thing, region in zip(drawn.objects, drawn.regions("a.png"), strict=True):
            assert set(region.tags) <= set(world.TAGS) and {thing.kind, thing.colour, thing.pattern} <= set(region.tags)
            assert list(region.attributes) == list(world.ATTRIBUTES)
            true = {name for name, value in region.attributes.items() if value == 1}
            assert {f"color:{thing.colour}", f"size:{thing.size}", f"surface:{thing.surface}"} <= true
            assert (f"{thing.pattern}:{thing.glyph}" in true) == (thing.glyph is not None)
            assert sum(name.startswith("position:") for name in true) <= 1
            assert set(region.attributes.values()) == {1, -1}


def test_word_lists_have_no_duplicates_and_some_twenty_kinds():
    assert len(world.CATEGORIES) >= 20
    for words in (world.CATEGORIES, world.TAGS, world.ATTRIBUTES):
        assert len(set(words)) == len(words)
    assert world.template_caption("cup") == "a cup" and world.template_caption("umbrella") == "an umbrella"
    with pytest.raises(ValueError, match="'spoon' is not in the world"):
        world.template_caption("spoon")


def test_splits_share_no_combination_but_train_knows_every_single_word(scenes):
    owned = {
        split: {(kind, *pair) for kind, pairs in kinds.items() for pair in pairs}
        for split, kinds in world.COMBINATIONS.items()
    }
    assert not owned["train"] & owned["test"] and not owned["train"] & owned["val"] and not owned["val"] & owned["test"]
    for place, words in enumerate((world.CATEGORIES, world.COLOURS, world.PATTERNS)):
        assert {combination[place] for combination in owned["train"]} == set(words)
        assert {combination[place] for combination in owned["test"]} == set(words)
    for drawn in scenes:
        assert {(t.kind, t.colour, t.pattern) for t in drawn.objects} <= owned[drawn.split]


def test_splits_share_no_layout():
    layouts = {
        split: {tuple(sorted(t.place for t in world.scene(seed, split).objects)) for seed in range(150)}
        for split in ("train", "val", "test")
    }
    assert all(len(found) == 150 for found in layouts.values())
    assert not layouts["train"] & layouts["test"] and not layouts["train"] & layouts["val"]


def test_patterns_keep_their_period_in_pixels_whatever_the_size():
    """Stripes are 7 px apart on a small and on a big book, so that only a close view shows them."""
    for side in (36, 78):
        width, height = extent("book", side)
        colours, _ = draw_object("book", "blue", "striped", None, "white", side, False, np.random.default_rng(0))
        column = np.asarray(colours)[:, width // 2, 0].astype(float)[3 : int(height * 0.9)]
        spectrum = np.abs(np.fft.rfft(column - column.mean(), 1024))
        assert 1024 / spectrum[20:].argmax() == pytest.approx(7, abs=3)
        assert (spectrum[20:].argmax() + 20) / 1024 == pytest.approx(1 / 7, abs=0.01)


def test_a_close_view_shows_the_pattern_and_the_whole_image_does_not():
    """Contrast between neighbouring pixels of a striped and a plain crop, and of the same box in the squashed image."""

    def roughness(split_scene, thing, whole):
        x1, y1, x2, y2 = thing.box
        height, width = split_scene.image_hw
        picture = Image.fromarray(split_scene.image)
        if whole:
            squashed = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC), dtype=float)
            view = squashed[
                round(y1 * 64 / height) + 2 : round(y2 * 64 / height) - 2,
                round(x1 * 64 / width) + 2 : round(x2 * 64 / width) - 2,
            ]
        else:
            view = np.asarray(picture.crop((x1, y1, x2, y2)).resize((64, 64), Image.Resampling.BICUBIC), dtype=float)
            view = view[24:44, 24:40]
        return np.abs(np.diff(view.mean(-1), axis=0)).mean()

    close, far = {"plain": [], "striped": []}, {"plain": [], "striped": []}
    for seed in range(250):
        drawn = world.scene(seed)
        for thing in drawn.objects:
            if (
                thing.kind in ("ball", "book", "bottle", "table", "shirt")
                and thing.pattern in close
                and thing.size == "big"
            ):
                close[thing.pattern].append(roughness(drawn, thing, whole=False))
                far[thing.pattern].append(roughness(drawn, thing, whole=True))
    assert min(len(found) for found in close.values()) >= 5
    assert np.median(close["striped"]) > 4 * np.median(close["plain"])
    assert np.median(close["striped"]) > 2 * np.median(far["striped"])


def test_write_gives_records_that_open_and_word_lists(tmp_path):
    path = world.write(tmp_path, 3, "train", seed=2)
    records = open_records(path)
    assert [len(group) for group in records.image_groups()] == [
        len(world.scene(2_000_000 + i).objects) for i in range(3)
    ]
    assert all(isinstance(record, Region) and (tmp_path / record.image).is_file() for record in records)
    assert (tmp_path / "tags.txt").read_text().split("\n")[:-1] == list(world.TAGS)
    assert (tmp_path / "categories.txt").read_text().split() == list(world.CATEGORIES)
    listed = json.loads((tmp_path / "attributes.json").read_text())["attributes"]
    assert [entry["name"] for entry in listed] == list(world.ATTRIBUTES) and listed[0]["is_has_att"] in ("is", "has")
    assert not [name for name in tmp_path.rglob("*") if name.name.startswith(".")]


def test_two_processes_write_what_one_writes(tmp_path):
    one, two = (world.write(tmp_path / str(n), 5, "test", seed=0, workers=n) for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    images = sorted((tmp_path / "1" / "images").iterdir())
    assert len(images) == 5
    assert all(image.read_bytes() == (tmp_path / "2" / "images" / image.name).read_bytes() for image in images)


def test_the_command_writes_both_splits(tmp_path, capsys):
    prepare.main(["--out", str(tmp_path), "--train", "2", "--test", "1", "--workers", "1"])
    assert len(open_records(tmp_path / "train.jsonl").image_groups()) == 2
    assert len(open_records(tmp_path / "test.jsonl").image_groups()) == 1
    assert "3 scenes in" in capsys.readouterr().out


@pytest.mark.parametrize("image_hw", [(192, 256), (256, 320), (400, 600)])
def test_other_image_sizes_work(image_hw):
    drawn = world.scene(1, "train", image_hw)
    assert drawn.image.shape == (*image_hw, 3)
    assert all(
        0 <= t.box[0] < t.box[2] <= image_hw[1] and 0 <= t.box[1] < t.box[3] <= image_hw[0] for t in drawn.objects
    )


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="split 'dev'"):
        world.scene(0, "dev")
    with pytest.raises(ValueError, match="seed -1"):
        world.scene(-1)
    drawn = world.scene(1, "train", (128, 160), most=1)
    assert drawn.image.shape == (128, 160, 3) and len(drawn.objects) == 1
    with pytest.raises(ValueError, match=r"image_hw \(128, 160\): objects are up to 100 px, so use at least \(192"):
        world.scene(0, "train", (128, 160), most=2)
    with pytest.raises(ValueError, match=r"image_hw \(64, 64\)"):
        world.scene(0, "train", (64, 64))
    with pytest.raises(ValueError, match="num_scenes 0"):
        world.write(tmp_path, 0, "train")
    with pytest.raises(ValueError, match="workers 0"):
        world.write(tmp_path, 1, "train", workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_workers_too_with_one_line(times, tmp_path):
    command = (
        "import signal, sys; signal.signal(2, signal.default_int_handler); from data_prep.world import __main__ as w; "
    )
    command += "sys.exit(w.main(['--out', sys.argv[1], '--train', '5000', '--test', '0', '--workers', '2']))"
    python = [sys.executable, "-c", command, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(python, **pipes) as process:
        try:
            while not list(tmp_path.glob("images/*.png")):
                assert process.poll() is None
                time.sleep(0.1)
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.3)
            out, err = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, err) == (130, "data_prep.world: stopped\n")
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (["--train", "-5"], "--train -5: expected a number of scenes"),
        (["--train", "3", "--val", "-1"], "--val -1: expected a number of scenes"),
        (["--train", "0", "--test", "0"], "nothing to draw"),
    ],
)
def test_numbers_of_scenes_that_are_none_are_refused_before_anything_is_written(numbers, said, tmp_path, capsys):
    assert prepare.main(["--out", str(tmp_path / "w"), *numbers]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "w").exists()
