"""Masks and outlines of users' own data -> masks of records, and the boxes of such masks."""

from collections import Counter
from typing import Any

import numpy as np

from data_prep.counts import BadEntry
from dynrefer.errors import cut
from dynrefer.images import upright
from dynrefer.masks import check_mask_record, mask_to_rle, rle_to_box, to_mask

NUMBERS = frozenset((int, float))
FEW_CORNERS = "polygons left out: fewer than three corners"
OUTSIDE = "masks left out: nothing of them in the image"


def read_mask(mask: Any, image_hw: tuple[int, int], where: str, counts: Counter) -> dict | list | None:
    """A mask of any usual form as a record has it; None where there is none.

    Run lengths, with or without other keys, also in a list, where all together are the region; a polygon or several,
    their corners in a row or in pairs, also one list deeper. Polygons of fewer than three corners have no inside and
    are left out, and so are masks of which nothing is in the image. BadEntry for another form or size, and for run
    lengths that do not fill the image.
    """
    if not mask:
        return None
    try:
        listed = mask if isinstance(mask, list) else [mask]
        if isinstance(mask, list) and all(isinstance(part, dict) for part in mask) and len(mask) > 1:
            return mask_to_rle(np.logical_or.reduce([to_mask(_run_lengths(part), image_hw) for part in mask]))
        if isinstance(listed[0], dict):
            mask = _run_lengths(listed[0])
        elif not isinstance(mask, list):
            raise ValueError(f"mask of type {type(mask).__name__}: expected run lengths or polygons")
        else:
            polygons = _polygons(mask)
            mask = [polygon for polygon in polygons if len(polygon) >= 6]
            counts[FEW_CORNERS] += len(polygons) - len(mask)
            if not mask:
                return None
        check_mask_record(mask, image_hw)
        if _box_inside(mask, image_hw) is None:
            counts[OUTSIDE] += 1
            return None
    except ValueError as error:
        raise BadEntry(f"{where}: {error}", "its mask is damaged or of another size") from error
    return mask


def _run_lengths(mask: dict) -> dict:
    return {key: mask[key] for key in ("size", "counts") if key in mask} if "counts" in mask else mask


def _polygons(part: list) -> list[list]:
    """[x1, y1, x2, y2, ...] of every polygon in a list."""
    if NUMBERS.issuperset(map(type, part)):
        return [part]
    if all(isinstance(point, list) and len(point) == 2 and NUMBERS.issuperset(map(type, point)) for point in part):
        return [[number for point in part for number in point]]
    if not all(isinstance(inner, list) for inner in part):
        raise ValueError(f"mask {cut(repr(part), 60)}: expected polygons, [[x1, y1, x2, y2, ...], ...]")
    return [polygon for inner in part for polygon in _polygons(inner)]


def turn(
    box: tuple | None, mask: dict | list | None, orientation: int, stored_hw: tuple[int, int]
) -> tuple[tuple | None, dict | list | None, tuple[int, int]]:
    """(box, mask, image_hw) in the picture as shown, of those in the picture as stored with an EXIF orientation."""
    height, width = stored_hw

    def points(numbers: list) -> np.ndarray:
        x, y = np.asarray(numbers, dtype=np.float64).reshape(-1, 2).T
        across, down = width, height
        if orientation >= 5:
            x, y, across, down = y, x, height, width
        x = across - x if orientation in (2, 3, 6, 7) else x
        y = down - y if orientation in (3, 4, 7, 8) else y
        return np.stack([x, y], axis=1)

    if box is not None:
        corners = points(list(box))
        box = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    if isinstance(mask, dict):
        mask = mask_to_rle(upright(to_mask(mask, stored_hw), orientation))
    elif mask is not None:
        mask = [points(polygon).reshape(-1).tolist() for polygon in mask]
    return box, mask, (width, height) if orientation >= 5 else (height, width)


def mask_box(mask: dict | list, image_hw: tuple[int, int], where: str) -> tuple[float, float, float, float] | None:
    """The box of run lengths or polygons, clipped to the image, without painting them; None where nothing is inside."""
    try:
        return _box_inside(mask, image_hw)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: mask: expected COCO run lengths or polygons ({error})") from error


def _box_inside(mask: dict | list, image_hw: tuple[int, int]) -> tuple[float, float, float, float] | None:
    if isinstance(mask, dict):
        if tuple(mask.get("size") or ()) != tuple(image_hw):
            raise ValueError(f"of size {mask.get('size')} for an image of {image_hw}, both (height, width)")
        box = rle_to_box(mask)
        return None if box is None else tuple(box.tolist())
    x = [number for polygon in mask for number in polygon[0::2]]
    y = [number for polygon in mask for number in polygon[1::2]]
    low = max(0.0, float(min(x))), max(0.0, float(min(y)))
    high = min(float(image_hw[1]), float(max(x))), min(float(image_hw[0]), float(max(y)))
    return (*low, *high) if low[0] < high[0] and low[1] < high[1] else None


def turned_rectangle(x: float, y: float, width: float, height: float, degrees: float) -> list[float]:
    """Corners [x1, y1, ..., x4, y4] in pixels of a rectangle turned clockwise (as seen) about its corner (x, y)."""
    angle = np.deg2rad(degrees)
    along = np.array([np.cos(angle), np.sin(angle)]) * width
    across = np.array([-np.sin(angle), np.cos(angle)]) * height
    corner = np.array([x, y])
    return np.concatenate([corner, corner + along, corner + along + across, corner + across]).tolist()


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float, num_corners: int = 64) -> list[float]:
    """Corners [x1, y1, ...] of a polygon of the ellipse's form, turned clockwise (as seen) about its centre."""
    turn, angle = np.deg2rad(degrees), np.arange(num_corners) * (2 * np.pi / num_corners)
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    corners = [cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)]
    return np.stack(corners, axis=1).reshape(-1).tolist()
