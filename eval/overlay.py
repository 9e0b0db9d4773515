"""Shows a region to a model that takes no boxes: a line around it on the image."""

from collections.abc import Sequence

import numpy as np

from dynrefer.data.records import Region
from dynrefer.paint import outline, paint_box

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
    if mask is None:
        paint_box(drawn, region.box, width, colour)
    else:
        drawn[outline(mask, width)] = colour
    return drawn
