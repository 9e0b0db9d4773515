"""Perceptual hash of many crops of one image: 64 bits each, without resizing a crop or transforming all of it.

The released program resizes each grey crop to 224 x 224 (OpenCV, bilinear), takes the full 2-D DCT and keeps the
top-left 8 x 8 block. Resizing and the DCT are both linear and separable, and the block needs 8 of 224 rows of the DCT:

    block = A(h) @ crop @ A(w).T        A(side) = DCT[:8] @ resize(side)        (8, side)

are two thin matrix products a crop, with an A for every length of a side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

HASH_SIZE = 224  # side of the grey crop that the hash looks at
HASH_BITS = 8  # the hash keeps the top-left 8 x 8 block of the transform

# The resize reads at most 2 * 224 rows and columns. Above these sides it is quicker to pick them out of the bytes than
# to multiply all pixels by A (measured; picking columns costs more than picking rows).
LONG_HEIGHT, LONG_WIDTH = 448, 1400
# OpenBLAS multiplies without packing its operands, twice as fast, up to this many multiplications.
UNPACKED_PRODUCT = 10**6


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 with the fixed-point weights of OpenCV's RGB2GRAY.

    The weights are multiples of 2**-15, so Pillow's floating-point sum is exact and rounds as OpenCV does.
    """
    from PIL import Image

    weights = (9798 / 2**15, 19235 / 2**15, 3735 / 2**15, 0)
    return np.asarray(Image.fromarray(image).convert("L", weights))


def low_frequencies(grey_image: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The 8 x 8 lowest DCT coefficients of crops resized to 224 x 224.

    grey_image: (H, W) in 0..255; crops: (N, 4) int xyxy whole pixels inside the image, none empty. Returns (N, 8, 8)
    float32, vertical frequencies first. Equal crops are computed once: the whole image is a view of every region.
    """
    crops, where = np.unique(crops, axis=0, return_inverse=True)
    pixels = grey_image.astype(np.float32)
    blocks = np.empty((len(crops), HASH_BITS, HASH_BITS), np.float32)
    reduced = np.empty((HASH_BITS, pixels.shape[1]), np.float32)  # A(h) @ crop
    for block, (x1, y1, x2, y2) in zip(blocks, crops.tolist(), strict=True):
        rows, vertical = _side_weights(y2 - y1, LONG_HEIGHT)
        columns, horizontal = _side_weights(x2 - x1, LONG_WIDTH)
        if rows is None and columns is None:
            crop = pixels[y1:y2, x1:x2]
        else:  # bytes are quicker to pick out than floats
            crop = grey_image[y1:y2, x1:x2]
            crop = crop if rows is None else crop[rows]
            crop = crop if columns is None else crop[:, columns]
            crop = crop.astype(np.float32)
        height, width = crop.shape
        step = UNPACKED_PRODUCT // (HASH_BITS * height)
        for start in range(0, width, step):
            part = slice(start, min(start + step, width))
            np.matmul(vertical, crop[:, part], out=reduced[:, part])
        np.matmul(reduced[:, :width], horizontal.T, out=block)
    return blocks[where.reshape(-1)]


def hash_bits(coefficients: np.ndarray) -> np.ndarray:
    """(N, 8, 8) -> (N, 64) bool: whether a coefficient lies above the mean of its block (its DC term takes part)."""
    block = coefficients.reshape(len(coefficients), HASH_BITS * HASH_BITS)
    return block > block.mean(-1, keepdims=True)


def dct_rows(size: int, count: int) -> np.ndarray:
    """First `count` rows of the orthonormal DCT-II matrix of a given size. (count, size) float64"""
    k, x = np.arange(count)[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * (2 * x + 1) * k / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = dct_rows(HASH_SIZE, HASH_BITS)  # (8, 224)


@lru_cache(maxsize=2048)  # at most 50 MB
def _side_weights(side: int, long_side: int) -> tuple[np.ndarray | None, np.ndarray]:
    """A(side), resize and transform in one matrix, for a crop side in pixels.

    Returns (None, (8, side) float32), or above long_side (the 448 pixels that the resize reads, (8, 448) float32).
    OpenCV's bilinear resize: half-pixel centres, float32 fractions, no antialiasing, clamped edges.
    """
    centre = (np.arange(HASH_SIZE) + 0.5) * (side / HASH_SIZE) - 0.5
    low = np.floor(centre).astype(np.int64)
    fraction = (centre - low).astype(np.float32)
    read = np.stack([low, low + 1], axis=1).clip(0, side - 1).reshape(-1)  # (448,), sorted
    weights = np.stack([_DCT * (1 - fraction), _DCT * fraction], axis=2).reshape(HASH_BITS, -1)  # (8, 448)
    if side > long_side:
        return read, weights.astype(np.float32)
    place = np.arange(HASH_BITS)[:, None] * side + read
    dense = np.bincount(place.reshape(-1), weights.reshape(-1), HASH_BITS * side)
    return None, dense.reshape(HASH_BITS, side).astype(np.float32)
