"""Boxes: pure functions on float xyxy pixels with continuous edges; the whole image is (0, 0, W, H)."""

import numbers
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dynrefer.errors import first_line, shown

# layout of the four numbers, then the unit they count in; no suffix means pixels
BOX_FORMATS = tuple(f"{layout}{unit}" for unit in ("", "-unit", "-1000") for layout in ("xyxy", "xywh", "cxcywh"))
DENSECAP_LONGER_SIDE = 720.0  # of the scaled images whose pixels DenseCap's evaluation, and so GRiT's results, count
LONGEST_SIDE = 10**9  # of an image, in pixels
NUMBERS = frozenset((int, float))
NOT_NUMBERS = {"b": "booleans", "c": "complex numbers", "U": "text", "S": "text"}  # by numpy's kinds
_FULL_SIZE = {"unit": 1.0, "1000": 1000.0}  # the number that stands for the image's whole width or height


def to_xyxy(boxes: ArrayLike, box_format: str, image_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of any of `BOX_FORMATS` as float64 xyxy pixels, (N, 4). Validity is `check_boxes`'s matter.

    boxes: (N, 4) numbers. box_format: "xyxy", "xywh" (corner and size) or "cxcywh" (centre and size), in pixels,
    with "-unit" as fractions 0..1 of the image, with "-1000" in thousandths of it. image_hw: (height, width).

        >>> to_xyxy([[0.5, 0.5, 0.5, 0.2]], "cxcywh-unit", (100, 200)).tolist()
        [[50.0, 40.0, 150.0, 60.0]]

    Raises ValueError for an unknown format, another shape than (N, 4), what is not a number, and for coordinates
    far outside the format's range: pixels given as fractions, or fractions given as pixels.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"unknown box format {box_format!r}; choose one of {', '.join(BOX_FORMATS)}")
    height, width = check_image_hw(image_hw)
    boxes = _as_boxes(boxes).copy()
    layout, _, unit = box_format.partition("-")
    if not unit and height * width > 1:
        within = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & boxes.any(axis=1)
        for index in np.flatnonzero(within)[:1]:
            raise ValueError(
                f"box {index}: {boxes[index].tolist()} in pixels would be a corner of the image of {width} x {height}; "
                f"0..1 numbers: box_format='{layout}-unit'?"
            )
    if unit:
        full = _FULL_SIZE[unit]
        # a box may reach out of the image, but pixels mistaken for fractions would clip to nonsense without a word
        far = np.flatnonzero((np.abs(boxes) > 2 * full).any(axis=1))
        if far.size:
            raise ValueError(
                f"box {far[0]}: {boxes[far[0]].tolist()} is far outside 0..{full:g}, the range of {box_format!r}; "
                f"for pixels use box_format={layout!r}"
            )
        boxes *= np.array([width, height, width, height]) / full
    if layout == "xywh":
        boxes[:, 2:] += boxes[:, :2]
    elif layout == "cxcywh":
        centre, size = boxes[:, :2].copy(), boxes[:, 2:].copy()
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return boxes


def share_beyond(boxes: np.ndarray, image_hws: np.ndarray, longer_side: float | None = None) -> float:
    """Share of boxes whose right or lower edge lies more than a pixel beyond their image: it tells what they count.

    boxes: (N, 4) xyxy; image_hws: (N, 2) of their images; longer_side: to which the images are scaled, None = they are
    as they are. 0 for no boxes.
    """
    if not len(boxes):
        return 0.0
    limits = np.asarray(image_hws, np.float64)[:, ::-1]
    if longer_side:
        limits = limits * (longer_side / limits.max(axis=1, keepdims=True))
    return float((np.asarray(boxes)[:, 2:] > limits + 1).any(axis=1).mean())


def check_boxes(boxes: ArrayLike, image_hw: tuple[int, int], ids: Sequence[str] | None = None) -> np.ndarray:
    """Valid xyxy pixel boxes, clipped to the image: (N, 4) float64.

    Raises ValueError that names the box (its index, or its entry of `ids`) for NaN or infinite numbers, x1 >= x2 or
    y1 >= y2 (inverted or empty), and a box wholly outside the image. Partly outside is clipped.
    """
    height, width = check_image_hw(image_hw)
    boxes = _as_boxes(boxes)
    if ids is not None and len(ids) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes but {len(ids)} ids; give one id a box")

    def refuse(bad: np.ndarray, what: str, rule: str) -> None:
        for index in np.flatnonzero(bad):
            name = f"box {index}" if ids is None else f"region {ids[index]}"
            raise ValueError(f"{name}: {what} box {boxes[index].tolist()}; {rule}")

    rule = "boxes are xyxy pixels with x1 < x2 and y1 < y2 (other layouts: box_format)"
    refuse(~np.isfinite(boxes).all(axis=1), "non-finite", rule)
    refuse((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]), "inverted", rule)
    refuse((boxes[:, 2] == boxes[:, 0]) | (boxes[:, 3] == boxes[:, 1]), "empty", rule)
    clipped = np.clip(boxes, 0.0, [width, height, width, height])
    outside = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    refuse(outside, "wholly outside", f"the image is {width} wide and {height} high, (0, 0, {width}, {height})")
    return clipped


def box_area(boxes: ArrayLike) -> np.ndarray:
    """Areas in square pixels, (N,), of xyxy boxes (N, 4)."""
    boxes = _as_boxes(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Intersection over union, (N, M), of boxes `a` (N, 4) with boxes `b` (M, 4); 0 where both are empty."""
    a, b = _as_boxes(a), _as_boxes(b)
    corner_low = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    corner_high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    shared = np.clip(corner_high - corner_low, 0.0, None).prod(axis=2)  # (N, M)
    union = box_area(a)[:, None] + box_area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def check_image_hw(image_hw: Sequence[int]) -> tuple[int, int]:
    """(height, width) as two positive integers; ValueError otherwise."""
    values = list(image_hw) if isinstance(image_hw, (list, tuple, np.ndarray)) else []
    whole = [isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0 for value in values]
    if len(values) != 2 or not all(whole) or max(values) >= 2**31:  # no file holds a longer side
        raise ValueError(f"image_hw {shown(image_hw)}: expected two positive integers, (height, width) in pixels")
    if max(values) > LONGEST_SIDE:
        raise ValueError(f"image_hw {shown(image_hw)}: a side is at most {LONGEST_SIDE} pixels; the size is damaged")
    return int(values[0]), int(values[1])


def plain_array(value: Any) -> Any:
    """A torch tensor, on any device and with gradients or not, as an array; also within lists. Anything else as it is.

    Raises ValueError for a tensor that has no array, a sparse one for instance.
    """
    if isinstance(value, (list, tuple)):
        if NUMBERS.issuperset(map(type, value)):  # the common case: corners of a polygon
            return value
        tensors = any(hasattr(item, "detach") or isinstance(item, (list, tuple)) for item in value)
        return [plain_array(item) for item in value] if tensors else value
    if not hasattr(value, "detach"):
        return value
    try:
        tensor = value.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a tensor that cannot be read as an array ({first_line(error)})") from None


def number_array(value: Any) -> np.ndarray:
    """float64 of numbers in (nested) lists, an array or a tensor.

    ValueError for what is no number though it can be read as one (booleans, complex numbers, numbers as text), for rows
    of unequal lengths and for numbers too large.
    """
    value = plain_array(value)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # whole numbers of more than 64 bits, None, fractions, ...
            _check_entries(array.ravel().tolist())
        elif array.size and array.dtype.kind not in "iuf":
            raise ValueError(f"{NOT_NUMBERS.get(array.dtype.kind, f'values of type {array.dtype}')}, not numbers")
        elif not isinstance(value, np.ndarray):
            _check_entries([value])
        return array.astype(np.float64)
    except OverflowError:
        raise ValueError("a number is too large") from None
    except (TypeError, RuntimeError) as error:
        raise ValueError(first_line(error)) from None


def _check_entries(values: Sequence[Any]) -> None:
    """A boolean among numbers becomes one of them in an array, without a word."""
    if NUMBERS.issuperset(map(type, values)):
        return
    for value in values:
        if isinstance(value, (list, tuple)):
            _check_entries(value)
        elif type(value) in NUMBERS:
            continue
        elif isinstance(value, (bool, np.bool_)) or (isinstance(value, np.ndarray) and value.dtype.kind == "b"):
            raise ValueError("booleans, not numbers")
        elif not isinstance(value, (numbers.Real, Decimal, np.ndarray)):
            raise ValueError(f"{shown(value)}, not a number")


def _as_boxes(boxes: ArrayLike) -> np.ndarray:
    """(N, 4) float64, where an empty list is (0, 4)."""
    try:
        array = number_array(boxes)
    except ValueError as error:
        raise ValueError(f"boxes {shown(boxes)}: expected N boxes of four numbers each ({error})") from None
    if array.shape in ((0,), (0, 4)):
        return np.zeros((0, 4))
    if array.ndim == 1 and array.size == 4:
        raise ValueError(f"boxes {shown(boxes)}: expected a list of boxes, shape (N, 4); put one box in a list: [box]")
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes of shape {array.shape}: expected (N, 4), four numbers a box")
    return array
