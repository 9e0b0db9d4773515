"""Painting on pictures, uint8 (H, W, 3), in place: lines of boxes and masks, tints, heat maps, colours of regions."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

Colour = Sequence[int]

# the first regions; told apart also by most who see fewer colours
PALETTE = (
    (230, 25, 75),
    (0, 114, 255),
    (245, 130, 49),
    (0, 138, 75),
    (145, 30, 180),
    (0, 150, 170),
    (240, 50, 200),
    (120, 90, 40),
    (90, 100, 220),
    (110, 150, 0),
)
# dark to bright, evenly in lightness, so that it also works in grey
HEAT = np.array(
    [(12, 8, 40), (66, 14, 104), (122, 28, 109), (178, 48, 90), (226, 84, 50), (250, 146, 22), (247, 213, 74)],
    np.float64,
)
GOLDEN = 0.618034  # turns of the colour circle that never come close to an earlier one soon


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of a region by its number: the same whatever else is drawn, and another one for each.

    >>> colour_of(0), colour_of(12)
    ((230, 25, 75), (231, 19, 164))
    """
    if index < len(PALETTE):
        return PALETTE[index]
    turn = index - len(PALETTE)
    hue, light, strength = (turn * GOLDEN + 0.65) % 1, (0.38, 0.3, 0.49)[turn % 3], (0.85, 0.95, 0.63)[turn // 3 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, light, strength)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink_on(colour: Colour) -> tuple[int, int, int]:
    """Black or white, whichever is read better on a colour.

    >>> ink_on((255, 220, 0)), ink_on((0, 0, 200))
    ((0, 0, 0), (255, 255, 255))
    """
    shares = np.asarray(colour, np.float64) / 255
    linear = np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    light = float(linear @ (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if (light + 0.05) ** 2 > 0.05 * 1.05 * 1.6 else (255, 255, 255)


def paint_box(pixels: np.ndarray, box: Sequence[float], width: int, colour: Colour) -> None:
    """The line around a box: the pixels of x1, y1, x2 and y2, and further ones outwards, `width` in all.

    At most one pixel of the box is hidden at each side. At the edge of the picture, without room, it lies inside.
    """
    height, length = pixels.shape[:2]
    x1, y1 = (max(int(side) + 1 - width, 0) for side in box[:2])
    x2, y2 = (min(int(side) + width, limit) for side, limit in zip(box[2:], (length, height), strict=True))
    inner_y1, inner_y2 = min(y1 + width, y2), max(y2 - width, y1)
    pixels[y1:inner_y1, x1:x2] = colour
    pixels[inner_y2:y2, x1:x2] = colour
    pixels[y1:y2, x1 : min(x1 + width, x2)] = colour
    pixels[y1:y2, max(x2 - width, x1) : x2] = colour


def grown(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask, bool (H, W), with all pixels that are at most `width` away in both directions."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (width, width)
        mask = sliding_window_view(np.pad(mask, padding), 2 * width + 1, axis).any(-1)
    return mask


def outline(mask: np.ndarray, width: int, inside: bool = False) -> np.ndarray:
    """bool (H, W): the line along a mask, around it or inside; in both, it runs on inside along the picture's edge."""
    edge = np.ones_like(mask)
    edge[width : max(mask.shape[0] - width, 0), width : max(mask.shape[1] - width, 0)] = False
    beside = grown(~mask, width) & mask if inside else grown(mask, width) & ~mask
    return beside | (mask & edge)


def tint(pixels: np.ndarray, mask: np.ndarray, colour: Colour, share: float) -> None:
    """Mixes a colour into the pixels of a mask; share: of the colour, 0..1, or one a pixel (H, W)."""
    shares = np.broadcast_to(np.asarray(share, np.float32), mask.shape)[mask][:, None]
    mixed = pixels[mask] * (1 - shares) + np.asarray(colour, np.float32) * shares
    pixels[mask] = np.rint(mixed).astype(np.uint8)


def heat_colours(shares: np.ndarray) -> np.ndarray:
    """Shares in 0..1 of any shape -> colours (..., 3) float64 in 0..255, dark to bright.

    >>> heat_colours(np.array([0.0, 1.0])).tolist()
    [[12.0, 8.0, 40.0], [247.0, 213.0, 74.0]]
    """
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(shares, stops, channel) for channel in HEAT.T], -1)


def spread(grid: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Numbers of a grid (h, w) over the picture -> one a pixel, (H, W) float32, bilinear between centres of cells."""
    picture = Image.fromarray(np.ascontiguousarray(grid, np.float32))
    return np.asarray(picture.resize(image_hw[::-1], Image.Resampling.BILINEAR))


def paint_heat(pixels: np.ndarray, shares: np.ndarray) -> None:
    """Lays a heat map over a picture: shares in 0..1, (H, W). The picture turns grey, and dark where they are low."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    warm = heat_colours(shares)
    mixed = 0.6 * warm + 0.5 * grey[..., None] * (0.75 + 0.25 * shares[..., None])
    pixels[:] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
