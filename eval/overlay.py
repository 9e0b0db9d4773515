"""Shows a region to a model that takes no boxes: a line around it on the image."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dynrefer.data.records import Region

RED = (255, 0, 0)
WIDTH_SHARE = 1 / 200  # of the image's longer side: 3 pixels of 640, which outlast the resizing to 224 pixels


def overlay(
    image: np.ndarray,
    region: Region,
    colour: Sequence[int] = RED,
    width: int | None = None,
    *,
    prompt: str = "box",
) -> np.ndarray:
    """A copy of the image, uint8 (H, W, 3), with the region's box or the outline of its mask drawn on it.

    The line lies around the region and hides at most one pixel of it at each side; where it has no room, at the edge
    of the image, it lies inside. With width 1 a box is drawn as lmms-eval and Pillow draw (x1, y1, x2, y2).

    Args:
        width: pixels; None = 1/200 of the image's longer side, at least 2. prompt: "box" or "mask", as of a `Task`.

    Raises:
        ValueError: an image of another type or size than the record says, a mask asked for where there is none, a
            width below 1, a prompt that is not known.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image {image.dtype} {image.shape}: expected uint8 (H, W, 3); dynrefer.images.open_image")
    if image.shape[:2] != tuple(region.image_hw):
        raise ValueError(
            f"region {region.id}: image of (height, width) {image.shape[:2]}, its record says {tuple(region.image_hw)}"
        )
    if width is None:
        width = max(2, round(max(image.shape[:2]) * WIDTH_SHARE))
    if width < 1:
        raise ValueError(f"line width {width}: expected at least 1 pixel")
    if prompt not in ("box", "mask"):
        raise ValueError(f"prompt {prompt!r}: expected 'box' or 'mask'")
    mask = region.to_mask() if prompt == "mask" else None
    if prompt == "mask" and mask is None:
        raise ValueError(f"region {region.id} has no mask to draw; prompt 'box' draws its box")
    drawn = image.copy()
    drawn[_box_line(region.box, image.shape[:2], width) if mask is None else _mask_line(mask, width)] = colour
    return drawn


def _box_line(box: Sequence[float], image_hw: tuple[int, int], width: int) -> np.ndarray:
    """bool (H, W): the pixels of x1, y1, x2 and y2, and further ones outwards."""
    height, length = image_hw
    x1, y1 = (max(int(side) + 1 - width, 0) for side in box[:2])
    x2, y2 = (min(int(side) + width, limit) for side, limit in zip(box[2:], (length, height), strict=True))
    line = np.zeros(image_hw, bool)
    line[y1:y2, x1:x2] = True
    line[y1 + width : max(y2 - width, 0), x1 + width : max(x2 - width, 0)] = False
    return line


def _mask_line(mask: np.ndarray, width: int) -> np.ndarray:
    """bool (H, W): the pixels around the mask, and those of the mask in a frame as wide as the line."""
    grown = mask
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (width, width)
        grown = sliding_window_view(np.pad(grown, padding), 2 * width + 1, axis).any(-1)
    edge = np.ones_like(mask)
    edge[width:-width, width:-width] = False
    return (grown & ~mask) | (mask & edge)
