"""Crops of an image as squares of S x S pixels: bicubic, antialiased, their aspect ratio squashed.

One definition, three ways. Each output pixel is a weighted mean of the crop's pixels: Keys' cubic (a = -0.5), stretched
where the crop shrinks, what lies outside the crop left out. Columns first, rounded to 8 bits, then rows.

- "pillow", what the released program uses, is the reference. From version 13 on it does the rows of tall crops first.
- "torch" is torch's kernel for bytes, 4 to 10 times as fast on a core with AVX2. Its weights have 16 bits: one value in
  200 is a grey level off, one in 200,000 is two off.
- `crops_on_device` is two matrix products a crop, wherever the image lies. One value in 1,000 is a grey level off.

All three read the pixels of the crop alone; the image is not copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .errors import suggestion

SPARE = 16  # view pixels that may be made beside a crop of a reduced image


def crops(image: np.ndarray, boxes: np.ndarray, size: int, way: str) -> np.ndarray:
    """The crops of one image.

    image: (H, W, 3) uint8; boxes: (N, 4) xyxy pixels inside it, none empty, for a reduced image perhaps with fractions;
    way: a name of RESIZE. Returns (N, 3, size, size) uint8. Equal boxes are cut once.
    """
    if way not in RESIZE:
        raise ValueError(f"unknown way to resize {way!r}.{suggestion(way, RESIZE)} Known: {', '.join(RESIZE)}")
    resize = RESIZE[way](image)
    height, width = image.shape[:2]
    columns, rows = (_whole_pixels(boxes[:, i], boxes[:, i + 2], size, side) for i, side in ((0, width), (1, height)))
    result = np.empty((len(boxes), 3, size, size), np.uint8)
    done: dict[bytes, int] = {}  # the whole image is one view of many regions
    for n, ((x1, x2, left, wide), (y1, y2, top, high)) in enumerate(zip(columns, rows, strict=True)):
        first = done.setdefault(boxes[n].tobytes(), n)
        if first < n:
            result[n] = result[first]
        else:
            result[n] = resize(slice(y1, y2), slice(x1, x2), (high, wide))[:, top : top + size, left : left + size]
    return result


def _whole_pixels(low: np.ndarray, high: np.ndarray, size: int, side: int) -> list[list[int]]:
    """Where to cut for crops from low to high (N,) pixels, which need not be whole numbers, along a side.

    Returns rows (first, last, before, count): the pixels first ... last - 1, resized to `count`, hold the `size` wanted
    behind the `before`-th. No kernel begins between two pixels; but up to SPARE output pixels further out there often
    is a whole one. Whole numbers give (low, high, 0, size).
    """
    step = ((high - low) / size)[:, None]

    def nearest(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = np.rint(edges)  # (N, SPARE)
        error = np.where((whole < 0) | (whole > side), np.inf, np.abs(edges - whole))
        spare = error.argmin(axis=1)
        return whole[np.arange(len(whole)), spare], spare

    first, before = nearest(low[:, None] - step * np.arange(SPARE))
    last, after = nearest(high[:, None] + step * np.arange(SPARE))
    return np.stack([first, last, before, before + size + after], axis=1).astype(int).tolist()


Resize = Callable[[slice, slice, tuple[int, int]], np.ndarray]  # rows, columns, (height, width) -> (3, height, width)


def _pillow(image: np.ndarray) -> Resize:
    from PIL import Image

    picture = Image.fromarray(image)

    def resize(rows: slice, columns: slice, hw: tuple[int, int]) -> np.ndarray:
        # `resize(box=...)` would let the filter read past the crop's edge: a picture of its own
        crop = picture.crop((columns.start, rows.start, columns.stop, rows.stop))
        return np.asarray(crop.resize(hw[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    return resize


def _torch(image: np.ndarray) -> Resize:
    pixels = shared(image).permute(2, 0, 1)[None]  # (1, 3, H, W)

    def resize(rows: slice, columns: slice, hw: tuple[int, int]) -> np.ndarray:
        crop = pixels[:, :, rows, columns]
        return torch.nn.functional.interpolate(crop, hw, mode="bicubic", antialias=True)[0].numpy()

    return resize


RESIZE = {"pillow": _pillow, "torch": _torch}
# without these instructions torch takes longer than Pillow
FASTEST = "torch" if torch.backends.cpu.get_cpu_capability().startswith("AVX") else "pillow"


def shared(image: np.ndarray) -> Tensor:
    """A tensor over an array's memory, also over one that nobody may write to: it is only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(image)


def crops_on_device(image: Tensor, boxes: np.ndarray, size: int) -> Tensor:
    """The crops of an image on its device. image: (3, H, W) uint8; boxes: (N, 4) int xyxy pixels inside it, none empty.
    Returns (N, 3, size, size) uint8."""
    result = torch.empty(len(boxes), 3, size, size, dtype=torch.uint8, device=image.device)
    for crop, (x1, y1, x2, y2) in zip(result, boxes.tolist(), strict=True):
        pixels = image[:, y1:y2, x1:x2].float()
        columns = _bytes(pixels @ _weights(x2 - x1, size, image.device).T)  # (3, h, S)
        crop.copy_(_bytes(_weights(y2 - y1, size, image.device) @ columns))  # (3, S, S)
    return result


def _weights(side: int, size: int, device: torch.device) -> Tensor:
    """The resize of a side as a matrix, (size, side) float32 with rows of sum 1."""
    scale = side / size
    centre = (torch.arange(size, device=device) + 0.5) * scale
    x = ((torch.arange(side, device=device) + 0.5 - centre[:, None]) / max(scale, 1)).abs()  # (size, side)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdim=True)


def _bytes(values: Tensor) -> Tensor:
    """Rounded to 0 ... 255, still float."""
    return (values + 0.5).floor().clamp(0, 255)
