import numpy as np
import pytest

from data_prep.box_formats import BoxReader, box_convention_problem
from data_prep.counts import Tally
from dynrefer.boxes import BOX_FORMATS, to_xyxy

HW = (480, 640)


def boxes_of(count=500, largest=0.9, hws=None) -> tuple[np.ndarray, np.ndarray]:
    """Things anywhere in images of every size: xyxy pixels (N, 4), height and width (N, 2)."""
    generator = np.random.default_rng(0)
    hws = generator.integers(200, 1200, size=(count, 2)) if hws is None else np.array([hws] * count)
    wh = hws[:, ::-1] * generator.uniform(0.02, largest, (count, 2))
    corner = generator.uniform(0, 1, (count, 2)) * (hws[:, ::-1] - wh)
    corner[::5, 0] = 0  # things cut off by the image's edge
    return np.hstack([corner, corner + wh]), hws


def written_as(xyxy, hws, box_format):
    layout, _, unit = box_format.partition("-")
    boxes = xyxy * {"": 1, "unit": 1, "1000": 1000}[unit] / (hws[:, [1, 0, 1, 0]] if unit else 1)
    wh = boxes[:, 2:] - boxes[:, :2]
    start = {"xyxy": boxes[:, :2], "xywh": boxes[:, :2], "cxcywh": boxes[:, :2] + wh / 2}[layout]
    return np.hstack([start, boxes[:, 2:] if layout == "xyxy" else wh])


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_the_right_convention_has_no_problem_and_a_wrong_one_is_told_with_the_right(box_format):
    xyxy, hws = boxes_of()
    boxes = written_as(xyxy, hws, box_format)
    np.testing.assert_allclose(to_xyxy(boxes[:1], box_format, tuple(hws[0].tolist())), xyxy[:1])
    assert box_convention_problem(boxes, hws, box_format) is None
    wrong = [name for name in BOX_FORMATS if name != box_format]
    told = [
        name
        for name in wrong
        if repr(box_format) in (box_convention_problem(boxes, hws, name) or "").partition("; as ")[2]
    ]
    # pixels read as thousandths stay inside the image whatever they are; so may a centre read as a corner
    missed = set(wrong) - set(told)
    assert all(name.endswith("-1000") for name in missed) and (not missed or not box_format.endswith(("unit", "1000")))


def test_small_things_tell_corners_from_centres_by_those_at_the_edge():
    xyxy, hws = boxes_of(largest=0.2)
    boxes = written_as(xyxy, hws, "xywh")
    assert (
        "as 'xywh'" in box_convention_problem(boxes, hws, "cxcywh")
        and box_convention_problem(boxes, hws, "xywh") is None
    )


def test_a_few_boxes_suffice_when_most_are_wrong():
    assert box_convention_problem([[200, 300, 50, 60], [500, 90, 40, 80], [1, 2, 60, 70]], [HW] * 3) == (
        "67% of 3 boxes leave their image or are not a pixel wide when read as 'xyxy'; as 'xywh' 100% fit"
    )
    assert "'xyxy-unit' 100%" in box_convention_problem([[0.1, 0.2, 0.95, 0.9]], [HW])
    assert box_convention_problem([], []) is None and box_convention_problem([[np.nan] * 4], [HW]) is None


def test_annotators_who_draw_over_the_edge_are_no_problem():
    xyxy, hws = boxes_of()
    xyxy[:100, 2] = hws[:100, 1] * 1.3
    assert box_convention_problem(xyxy, hws) is None


def test_exchanged_axes_and_foreign_images_are_told():
    xyxy, hws = boxes_of(hws=(300, 1200))
    assert "exchanged 100% fit" in box_convention_problem(xyxy[:, [1, 0, 3, 2]], hws)
    assert "none of xyxy" in box_convention_problem(xyxy * 9, hws)


def test_strange_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown box format 'xyhw'"):
        box_convention_problem([[1, 2, 3, 4]], [HW], "xyhw")
    with pytest.raises(ValueError, match="2 image sizes"):
        box_convention_problem([[1, 2, 3, 4]], [HW] * 2)
    with pytest.raises(ValueError, match="unknown box format"):
        BoxReader("a.csv", "yolo", Tally())


def items(*boxes, hw=HW):
    return [(box, hw, f"a.csv:{line}", line) for line, box in enumerate(boxes, 2)]


def test_boxes_come_as_clipped_pixels_in_order_and_empty_ones_are_counted_and_named(capsys):
    counts = Tally()
    rows = items([10, 20, 30, 40], [600, 400, 100, 100], [700, 10, 5, 5], [5, 5, 0, 9], [0, 0, 640, 480])
    boxes = list(BoxReader("a.csv", "xywh", counts).read(rows))
    assert boxes == [((10, 20, 40, 60), 2), ((600, 400, 640, 480), 3), ((0, 0, 640, 480), 6)]
    assert counts["boxes left out: nothing of them in the image"] == 2
    assert (
        "a.csv:4: box [700, 10, 5, 5] (xywh) covers nothing of its image, 640 wide and 480 high"
        in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="a.csv:4: box .* covers nothing"):
        list(BoxReader("a.csv", "xywh", Tally(strict=True)).read(rows))


@pytest.mark.parametrize("bad", [[1, 2, 3], "1234", {}, [1, 2, 3, "4"], [1, 2, 3, True], [1, 2, 3, float("nan")], 5])
def test_what_is_not_four_numbers_names_its_place(bad):
    tally = Tally()
    assert list(BoxReader("a.csv", "xyxy", tally).read(items([1, 2, 3, 4], bad, [5, 6, 7, 8])))[1][1] == 4
    assert sum(tally.values()) == 1 and tally.first.startswith("a.csv:3: box") and f"box {bad!r}" in tally.first
    with pytest.raises(ValueError, match="a.csv:3: box"):
        list(BoxReader("a.csv", "xyxy", Tally(strict=True)).read(items([1, 2, 3, 4], bad)))


def test_regions_without_a_box_pass_in_their_place_and_need_no_convention():
    rows = items([1, 2, 3, 4], None, [5, 6, 7, 8])
    assert [payload for _, payload in BoxReader("a.json", "xyxy", Tally()).read(rows)] == [2, 3, 4]
    assert list(BoxReader("a.json", None, Tally()).read(items(None))) == [(None, 2)]
    with pytest.raises(ValueError, match="a.csv:2: there are boxes; say what their numbers are with --box-format"):
        list(BoxReader("a.json", None, Tally()).read(rows))


def test_a_wrong_convention_is_told_after_the_first_boxes_and_one_that_begins_late_at_the_end():
    xyxy, hws = boxes_of(6000, largest=0.4)
    wrong = written_as(xyxy, hws, "xywh").tolist()
    stream = ((box, tuple(hw), "x", None) for box, hw in zip(wrong, hws.tolist(), strict=True))
    with pytest.raises(ValueError, match="a.csv: .*as 'xywh' 100% fit"):
        next(BoxReader("a.csv", "xyxy", Tally()).read(stream))
    assert len(list(stream)) == 6000 - 1024  # nothing beyond the first was read
    mixed = [*xyxy[:1024].tolist(), *wrong[1024:]]
    reader = BoxReader("a.csv", "xyxy", Tally())
    with pytest.raises(ValueError, match="a.csv: .*of 6,000 boxes"):
        list(reader.read((box, tuple(hw), "x", None) for box, hw in zip(mixed, hws.tolist(), strict=True)))
