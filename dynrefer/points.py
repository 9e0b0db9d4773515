"""Points that a user clicked: x and y in image pixels, inside the object (1) or outside of it (0)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynrefer.boxes import number_array, plain_array
from dynrefer.errors import shown
from dynrefer.masks import to_mask

SCRIBBLE_POINTS = 8
SCRIBBLE_FORMS = "a scribble is a line [[x, y], [x, y], ...], or a mask of what was painted"
FORMS = "a region's points are [x, y] or [x, y, 1 inside or 0 outside], or a list of such"


def check_points(points: Any, image_hw: Sequence[int]) -> list[np.ndarray]:
    """Points of N regions -> N arrays (K, 3) float32: x, y, and 1 inside or 0 outside the object.

    points: one entry a region, a point or a list of points. Raises ValueError that names the region: other shapes, what
    is not finite or outside the image, no point inside the object.

    >>> [rows.tolist() for rows in check_points([[4, 5], [[4, 5, 1], [7, 8, 0]]], (10, 10))]
    [[[4.0, 5.0, 1.0]], [[4.0, 5.0, 1.0], [7.0, 8.0, 0.0]]]
    """
    points = plain_array(points)
    if isinstance(points, str) or not hasattr(points, "__len__"):
        raise ValueError(f"points {shown(points)}: expected one entry a region; {FORMS}")
    return [_region_points(entry, number, image_hw) for number, entry in enumerate(points)]


def _region_points(entry: Any, number: int, image_hw: Sequence[int]) -> np.ndarray:
    try:
        rows = np.atleast_2d(number_array(entry))
    except ValueError as error:
        raise ValueError(f"points {number}: {error}; {FORMS}") from None
    if rows.ndim != 2 or rows.shape[1] not in (2, 3) or not len(rows):
        raise ValueError(f"points {number}: {shown(entry)}; {FORMS}")
    if rows.shape[1] == 2:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    if not np.isfinite(rows).all() or not np.isin(rows[:, 2], (0, 1)).all():
        raise ValueError(f"points {number}: {shown(entry)}; {FORMS}")
    height, width = image_hw
    if outside := [row for row in rows.tolist() if not (0 <= row[0] <= width and 0 <= row[1] <= height)]:
        raise ValueError(f"points {number}: {outside[0][:2]} is outside the image of {width} x {height} pixels")
    if not rows[:, 2].any():
        raise ValueError(f"points {number}: all are outside the object; give at least one that is inside, [x, y, 1]")
    return rows.astype(np.float32)


def scribble_points(scribbles: Any, image_hw: Sequence[int], number: int = SCRIBBLE_POINTS) -> list[np.ndarray]:
    """Scribbles over N objects -> at most `number` points inside of each, (K, 3) float32 as `check_points` has them.

    A scribble is a line [[x, y], [x, y], ...], from which points are taken at equal distances, or what was painted, as
    any mask, of which pixels are taken at equal distances in reading order. ValueError names the scribble.

    >>> scribble_points([[[0, 5], [9, 5]]], (10, 10), number=4)[0][:, 0].tolist()
    [0.0, 3.0, 6.0, 9.0]
    """
    scribbles = plain_array(scribbles)
    if isinstance(scribbles, (str, bytes, dict)) or not hasattr(scribbles, "__len__"):
        raise ValueError(f"scribbles {shown(scribbles)}: expected one entry a region; {SCRIBBLE_FORMS}")
    found = []
    for place, entry in enumerate(scribbles):
        try:
            found.append(_painted(entry, image_hw, number) if _is_mask(entry, image_hw) else _line(entry, number))
        except ValueError as error:
            raise ValueError(f"scribble {place}: {error}; {SCRIBBLE_FORMS}") from None
    try:
        return check_points(found, image_hw)
    except ValueError as error:
        raise ValueError(str(error).replace("points ", "scribble ", 1)) from None


def _is_mask(entry: Any, image_hw: Sequence[int]) -> bool:
    if isinstance(entry, (list, tuple)):
        return False
    return not isinstance(entry, np.ndarray) or entry.shape == tuple(image_hw)


def _painted(entry: Any, image_hw: Sequence[int], number: int) -> np.ndarray:
    rows, columns = np.nonzero(to_mask(entry, image_hw))
    chosen = np.unique(np.linspace(0, len(rows) - 1, number).round().astype(int))
    return np.stack([columns[chosen] + 0.5, rows[chosen] + 0.5], 1)


def _line(entry: Any, number: int) -> np.ndarray:
    """(number, 2) points at equal distances along a line, or its only point."""
    corners = number_array(entry)
    if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners) or not np.isfinite(corners).all():
        raise ValueError(shown(entry))
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    if along[-1] == 0:
        return corners[:1]
    places = np.linspace(0, along[-1], number)
    return np.stack([np.interp(places, along, corners[:, axis]) for axis in (0, 1)], 1)


def points_box(points: np.ndarray, image_hw: Sequence[int]) -> np.ndarray:
    """The box (4,) float64 of the pixels around the points that are inside the object, clipped to the image."""
    inside = points[points[:, 2] == 1, :2].astype(np.float64)
    low, high = inside.min(0) - 0.5, inside.max(0) + 0.5
    height, width = image_hw
    return np.concatenate([np.maximum(low, 0), np.minimum(high, [width, height])])
