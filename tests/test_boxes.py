import numpy as np
import pytest

from dynrefer.boxes import BOX_FORMATS, box_area, box_iou, check_boxes, check_image_hw, share_beyond, to_xyxy

HW = (100, 200)  # height, width


@pytest.mark.parametrize(
    ("box", "box_format"),
    [
        ([40, 30, 80, 90], "xyxy"),
        ([40, 30, 40, 60], "xywh"),
        ([60, 60, 40, 60], "cxcywh"),
        ([0.2, 0.3, 0.4, 0.9], "xyxy-unit"),
        ([0.2, 0.3, 0.2, 0.6], "xywh-unit"),
        ([0.3, 0.6, 0.2, 0.6], "cxcywh-unit"),
        ([200, 300, 400, 900], "xyxy-1000"),
        ([200, 300, 200, 600], "xywh-1000"),
        ([300, 600, 200, 600], "cxcywh-1000"),
    ],
)
def test_every_format_says_the_same_box(box, box_format):
    boxes = to_xyxy([box], box_format, HW)
    assert boxes.dtype == np.float64
    np.testing.assert_allclose(boxes, [[40, 30, 80, 90]], atol=1e-9)


def test_the_formats_are_these_nine():
    assert len(BOX_FORMATS) == len(set(BOX_FORMATS)) == 9
    assert {"xyxy", "xywh-unit", "cxcywh-1000"} <= set(BOX_FORMATS)


def test_conversion_leaves_its_input_alone():
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    to_xyxy(boxes, "xywh", HW)
    assert boxes.tolist() == [[1, 2, 3, 4]]


def test_unknown_format_and_pixels_taken_for_fractions_are_refused():
    with pytest.raises(ValueError, match="'yxyx'.*xyxy"):
        to_xyxy([[0, 0, 1, 1]], "yxyx", HW)
    with pytest.raises(ValueError, match="box 1.*0..1.*box_format='xywh'"):
        to_xyxy([[0, 0, 1, 1], [40, 30, 80, 90]], "xywh-unit", HW)


def test_no_boxes_stay_no_boxes():
    for empty in ([], np.zeros((0, 4))):
        assert check_boxes(to_xyxy(empty, "xywh", HW), HW).shape == (0, 4)


def test_partly_outside_is_clipped_and_a_whole_image_stays():
    boxes = check_boxes([[-5, -5, 10, 10], [190, 90, 300, 300], [0, 0, 200, 100], [0.25, 0.5, 0.75, 0.625]], HW)
    assert boxes.tolist() == [[0, 0, 10, 10], [190, 90, 200, 100], [0, 0, 200, 100], [0.25, 0.5, 0.75, 0.625]]


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([float("nan"), 0, 10, 10], "non-finite"),
        ([0, 0, float("inf"), 10], "non-finite"),
        ([10, 0, 5, 10], "inverted"),
        ([0, 10, 10, 5], "inverted"),
        ([5, 0, 5, 10], "empty"),
        ([0, 5, 10, 5], "empty"),
        ([200, 0, 210, 10], "wholly outside"),
        ([0, -20, 10, 0], "wholly outside"),
    ],
)
def test_bad_box_is_refused_by_index_and_by_name(box, what):
    with pytest.raises(ValueError, match=f"box 1: {what} box"):
        check_boxes([[0, 0, 10, 10], box], HW)
    with pytest.raises(ValueError, match=f"region dog: {what} box"):
        check_boxes([box], HW, ids=["dog"])


@pytest.mark.parametrize(
    "boxes", [[1, 2, 3, 4], [[1, 2, 3]], [["a", 0, 1, 1]], "box", None, [[[1, 2, 3, 4]]], [[1], [2, 3]]]
)
def test_what_is_not_a_list_of_boxes_is_refused(boxes):
    with pytest.raises(ValueError, match="box"):
        check_boxes(boxes, HW)


def test_numbers_too_large_for_a_float_are_refused():
    with pytest.raises(ValueError):
        check_boxes([[0, 0, 10**400, 1]], HW)


@pytest.mark.parametrize("image_hw", [(0, 10), (10,), (1.5, 2), "ab", None, (True, True), (-1, 5)])
def test_image_size_is_two_positive_integers(image_hw):
    with pytest.raises(ValueError, match="image_hw"):
        check_image_hw(image_hw)


def test_ids_and_boxes_are_as_many():
    with pytest.raises(ValueError, match="1 boxes but 2 ids"):
        check_boxes([[0, 0, 1, 1]], HW, ids=["a", "b"])


def test_iou_and_area_by_hand():
    a, b = [[0, 0, 10, 10]], [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4]]
    np.testing.assert_allclose(box_iou(a, b), [[1, 50 / 150, 0, 4 / 100]])
    assert box_iou(a, []).shape == (1, 0)
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]
    assert box_area(b).tolist() == [100, 100, 100, 4]


def test_boxes_beyond_their_images_tell_what_they_count():
    boxes = np.array([[0, 0, 200, 100], [0, 0, 201.5, 100], [0, 0, 10, 10], [0, 0, 10, 300]])
    hws = np.array([(100, 200)] * 4)
    assert share_beyond(boxes, hws) == 0.5
    assert share_beyond(boxes, hws, 720) == 0 and share_beyond(boxes, hws, 100) == 0.75
    assert share_beyond(boxes[:0], hws[:0]) == 0


@pytest.mark.parametrize("layout", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("box", [[0.141, 0.399, 0.346, 0.601], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.0]])
def test_numbers_of_0_to_1_are_not_taken_for_pixels(layout, box):
    with pytest.raises(ValueError, match=f"box 1: .*0..1 numbers: box_format='{layout}-unit'\\?"):
        to_xyxy([[1, 2, 3, 4], box], layout, HW)
    assert to_xyxy([box], layout, (1, 1)).shape == (1, 4), "an image of one pixel has no others"
    assert to_xyxy([box], f"{layout}-unit", HW).shape == (1, 4)


def test_a_thin_box_elsewhere_and_a_box_of_few_pixels_are_pixels():
    boxes = [[10.2, 10.2, 10.6, 10.7], [0, 0, 1.5, 1], [0.5, 0.5, 2, 1], [-0.5, 0, 1, 1]]
    assert to_xyxy(boxes, "xyxy", HW).tolist() == boxes


@pytest.mark.parametrize(
    ("boxes", "what"),
    [
        ([[True, False, True, True]], "booleans"),
        ([[True, 0, 5, 5]], "booleans"),
        ([[0.0, 0, np.True_, 5]], "booleans"),
        (np.ones((1, 4), bool), "booleans"),
        ([[1j, 0, 5, 5]], "complex"),
        (np.ones((1, 4), complex), "complex"),
        ([["1", "2", "3", "4"]], "text"),
        ([["1", 2, 3, 4]], "text"),
        (np.array([["1", "2", "3", "4"]]), "text"),
        ([[b"1", b"2", b"3", b"4"]], "text"),
        ([[None, 0, 5, 5]], "None, not a number"),
        (np.array([["2020-01-01"] * 4], "datetime64[D]"), "values of type datetime64"),
        ([[], []], "shape"),
        ([[]], "shape"),
        (np.zeros((3, 0)), "shape"),
        (np.zeros((0, 5)), "shape"),
        ([[0, 0, 10**5000, 5]], "too large"),
    ],
)
def test_what_is_no_box_is_refused(boxes, what):
    for call in (lambda: check_boxes(boxes, HW), lambda: to_xyxy(boxes, "xyxy", HW)):
        with pytest.raises(ValueError, match=what) as error:
            call()
        assert "box" in str(error.value) and len(str(error.value)) < 300


def test_tensors_are_read_on_any_terms():
    torch = pytest.importorskip("torch")
    box = [4.0, 8.0, 16.0, 32.0]
    numbers = torch.tensor([box], requires_grad=True)
    tensors = (numbers, numbers[0].clone()[None], numbers.to(torch.bfloat16), [numbers[0]], [list(numbers[0])])
    for boxes in tensors:
        assert to_xyxy(boxes, "xyxy", HW).tolist() == [box]
    with pytest.raises(ValueError, match="a tensor that cannot be read as an array"):
        to_xyxy(numbers.detach().to_sparse(), "xyxy", HW)
    with pytest.raises(ValueError, match="booleans"):
        to_xyxy(numbers > 5, "xyxy", HW)


def test_a_size_of_thousands_of_digits_is_refused_in_a_line():
    for size in ([10**5000, 5], [10**12, 5], ["9" * 5000, 5]):
        with pytest.raises(ValueError, match="^image_hw .*(expected|at most)") as error:
            check_image_hw(size)
        assert len(str(error.value)) < 250
