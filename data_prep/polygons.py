"""Outlines of users' own data -> polygons of records, and the boxes of such masks."""

import numpy as np

from dynrefer.masks import rle_to_box


def mask_box(mask: dict | list, image_hw: tuple[int, int], where: str) -> tuple[float, float, float, float] | None:
    """The box of run lengths or polygons, clipped to the image, without painting them; None where nothing is inside."""
    try:
        if isinstance(mask, dict):
            if tuple(mask.get("size") or ()) != tuple(image_hw):
                raise ValueError(f"of size {mask.get('size')} for an image of {image_hw}, both (height, width)")
            box = rle_to_box(mask)
            return None if box is None else tuple(box.tolist())
        x = [number for polygon in mask for number in polygon[0::2]]
        y = [number for polygon in mask for number in polygon[1::2]]
        low = max(0.0, float(min(x))), max(0.0, float(min(y)))
        high = min(float(image_hw[1]), float(max(x))), min(float(image_hw[0]), float(max(y)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: mask: expected COCO run lengths or polygons ({error})") from error
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
