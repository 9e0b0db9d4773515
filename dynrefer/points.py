"""Points that a user clicked: x and y in image pixels, inside the object (1) or outside of it (0)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynrefer.boxes import number_array, plain_array
from dynrefer.errors import shown

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


def points_box(points: np.ndarray, image_hw: Sequence[int]) -> np.ndarray:
    """The box (4,) float64 of the pixels around the points that are inside the object, clipped to the image."""
    inside = points[points[:, 2] == 1, :2].astype(np.float64)
    low, high = inside.min(0) - 0.5, inside.max(0) + 0.5
    height, width = image_hw
    return np.concatenate([np.maximum(low, 0), np.minimum(high, [width, height])])
