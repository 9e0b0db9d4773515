"""Views: nested crops around a region, and the choice of how far each of them grows.

A view at scale t in [0, 1] is the box b(t) = b0 + t * (b1 - b0), where b0 is the region's box and b1 the whole image
(DynRefer, section 3.1). t = 0 is the region alone, t = 1 the image. View 0 is always t = 0.

Shape letters: R regions, V views, S view size in pixels, C candidate scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from .errors import suggestion
from .phash import grey, hash_bits, low_frequencies
from .resize import crops, crops_on_device

CANDIDATE_SCALES = tuple(round(0.1 * i, 1) for i in range(1, 11))

# name: (which scales the views beside view 0 get, where it is used)
VIEW_STRATEGIES = {
    "phash": ("those whose hash differs most from view 0, divided by t; released", "inference, by default"),
    "joint": ("those whose hashes differ most from view 0 and from each other", "inference, when asked for"),
    "task": ("those nearest to what a task likes; task:attributes names it", "inference, when one task counts"),
    "random": ("distinct ones, uniform; random:0.2 shows 1 region in 5 at one scale", "training, by default"),
    "fixed": ("exactly these, view 0 included; fixed:0,0.3,1", "measuring scales (eval.sweep); flickr30k_small"),
}

# The scale a task likes, from the paper's figure 4: attributes live in the region itself, captions want some context,
# too much of it hurts everything.
TASK_SCALES = {"attributes": 0.1, "tags": 0.3, "categories": 0.3, "captions": 0.4}

REDUCED_SIDES = 2  # pixels that a crop of a reduced image has at least, for each of the view's

REGIONS_AT_ONCE = 512  # bounds the memory of hashes and their distances, whatever the number of regions


def view_boxes(boxes: Tensor, image_hw: tuple[int, int], scales: Tensor) -> Tensor:
    """Boxes of the views in image pixels: b(t) = b0 + t * (b1 - b0).

    boxes: (R, 4) or (4,) float xyxy pixels; scales: (R, V) or (V,) in [0, 1]. Returns (R, V, 4), or (V, 4) for one box.

    >>> view_boxes(torch.tensor([40.0, 30, 80, 90]), (100, 200), torch.tensor([0.0, 0.5, 1.0])).tolist()
    [[40.0, 30.0, 80.0, 90.0], [20.0, 15.0, 140.0, 95.0], [0.0, 0.0, 200.0, 100.0]]
    """
    height, width = image_hw
    whole = boxes.new_tensor([0, 0, width, height])
    return boxes[..., None, :] + scales[..., :, None].to(boxes) * (whole - boxes)[..., None, :]


def pixel_boxes(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Float boxes -> the whole pixels that are cropped: clipped to the image, truncated, at least one pixel wide.

    boxes: (..., 4) float xyxy. Returns (..., 4) int64. The arithmetic is float32, as in the released program: at
    t = 1 float64 could truncate 239.99999 to another pixel.
    """
    height, width = image_hw
    boxes = np.asarray(boxes, np.float32)
    low = np.maximum(boxes[..., :2], 0).astype(np.int64)
    high = np.minimum(boxes[..., 2:], np.array([width, height], np.float32)).astype(np.int64)
    low = np.minimum(low, np.array([width - 1, height - 1]))
    return np.concatenate([low, np.maximum(high, low + 1)], -1)


def widen_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes thinner than a pixel become one pixel wide, before their views are made. boxes (R, 4); returns float32.

    They grow towards the left and the top, as in the released program; at those edges of the image to the other side.
    """
    boxes = np.array(boxes, np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    low[:] = np.maximum(np.minimum(low, high - 1), 0)
    high[:] = np.maximum(high, low + 1)
    return boxes.astype(np.float32)


def crop_views(
    image: np.ndarray,
    boxes: np.ndarray,
    scales: np.ndarray,
    size: int,
    *,
    truncate_region_boxes: bool = False,
    image_hw: tuple[int, int] | None = None,
    resize: str = "pillow",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut and resize the views of every region of one image.

    image: (H, W, 3) uint8; boxes: (R, 4) float xyxy pixels; scales: (R, V). Each crop is resized to size x size,
    bicubic, its aspect ratio squashed. truncate_region_boxes: round the region's box in the view down to whole view
    pixels, as the released program does. image_hw: what the boxes count in, where the image was decoded at a fraction
    of that (see `reduction`). resize: "pillow", the released pixels, or another way of resize.py.
    Returns views (R, V, 3, S, S) uint8, the cropped boxes (R, V, 4) in image pixels, and the region's box in each view
    (R, V, 4) float32 in view pixels.
    """
    image_hw = image_hw or image.shape[:2]
    cropped, region_boxes = place_views(boxes, scales, image_hw, size, truncate_region_boxes)
    flat = cropped.reshape(-1, 4) / round(image_hw[0] / image.shape[0])
    return crops(image, flat, size, resize).reshape(*cropped.shape[:2], 3, size, size), cropped, region_boxes


def crop_views_torch(image: Tensor, view_boxes: np.ndarray | Tensor, size: int) -> Tensor:
    """The views of every region of one image, cut on the image's device.

    image: (3, H, W) uint8 on any device; view_boxes: (R, V, 4) whole pixels on the CPU, of `place_views` or of a
    RegionBatch. Returns (R, V, 3, S, S) uint8 there: the pixels of `crop_views` within about a grey level, see
    resize.py. Raises ValueError for an image of another shape or type, and for a box that does not lie in it.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image of shape {tuple(image.shape)} and type {image.dtype}: expected (3, H, W) uint8")
    height, width = image.shape[1:]
    flat, where = np.unique(np.asarray(view_boxes, np.int64).reshape(-1, 4), axis=0, return_inverse=True)
    low, high = flat[:, :2], flat[:, 2:]
    if (wrong := ((low < 0) | (low >= high) | (high > [width, height])).any(axis=1)).any():
        box = ", ".join(map(str, flat[wrong][0].tolist()))
        raise ValueError(f"view box {box}: expected x1 < x2 and y1 < y2 within the image of {width} x {height}")
    views = crops_on_device(image, flat, size)[torch.from_numpy(where.reshape(-1)).to(image.device)]
    return views.reshape(*view_boxes.shape[:2], 3, size, size)


def place_views(
    boxes: np.ndarray, scales: np.ndarray, image_hw: tuple[int, int], size: int, truncate_region_boxes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Where the views lie. boxes (R, 4), scales (R, V); returns what is cropped (R, V, 4) int64 in image pixels, and
    the region's box in each view (R, V, 4) float32 in view pixels; see `crop_views`."""
    boxes = widen_boxes(boxes)
    cropped = pixel_boxes(view_boxes(torch.from_numpy(boxes), image_hw, torch.as_tensor(scales)).numpy(), image_hw)
    own = pixel_boxes(boxes, image_hw)  # (R, 4)
    origin = np.tile(cropped[..., :2], 2)  # (R, V, 4)
    extent = np.tile(cropped[..., 2:] - cropped[..., :2], 2)  # (R, V, 4)
    region_boxes = (own[:, None] - origin).astype(np.float32) * (size / extent).astype(np.float32)
    return cropped, np.trunc(region_boxes) if truncate_region_boxes else region_boxes


def reduction(boxes: np.ndarray, size: int) -> int:
    """How many times smaller an image may be decoded for the views of these regions: 4, 2 or 1.

    boxes: (R, 4) xyxy pixels; size: S. Every view keeps REDUCED_SIDES times the pixels of its side, view 0 is the
    smallest. Values are then 1 to 2 grey levels off in the mean over views, up to 6 in one full of fine detail, which
    lies up to a quarter of a view pixel aside. 1/8 would be off by more.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).min()
    return next((factor for factor in (4, 2) if side >= factor * REDUCED_SIDES * size), 1)


# ---------------------------------------------------------------------------------------------- choice of scales


def perceptual_hash(grey_image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """64 hash bits of the crop of each box. grey_image: (H, W) in 0..255; boxes: (N, 4) float xyxy, truncated to whole
    pixels. Returns (N, 64) bool, see phash.py."""
    return hash_bits(low_frequencies(grey_image, pixel_boxes(boxes, grey_image.shape)))


def phash_scales(hashes: np.ndarray, num_extra: int) -> np.ndarray:
    """Released choice: the extra scales that differ most from view 0, divided by t to hold context back.

    hashes: (R, 1 + C, 64) bool at t = 0 and at every candidate. Returns (R, num_extra), best first; ties go to the
    smaller t (DynRefer, section 3.3). Where no scale is left that differs from view 0 at all (the region is the whole
    image, or the image is flat), the first candidate is taken, also again: the released search does so.
    """
    candidates = np.array(CANDIDATE_SCALES)
    score = (hashes[:, 1:] != hashes[:, :1]).sum(-1) / candidates  # (R, C)
    best = np.argsort(-score, axis=1, kind="stable")[:, :num_extra]
    differs = np.take_along_axis(score, best, axis=1) > 0
    return candidates[np.where(differs, best, 0)]


def joint_scales(hashes: np.ndarray, num_extra: int) -> np.ndarray:
    """Extra scales that differ from view 0 and from each other: the set with the largest sum of pairwise distances,
    each divided by the larger t of the pair. Same shapes as phash_scales."""
    scales = np.array((0.0, *CANDIDATE_SCALES))
    distance = (hashes[:, :, None] != hashes[:, None]).sum(-1) / np.maximum(
        np.maximum(scales[:, None], scales[None]), CANDIDATE_SCALES[0]
    )  # (R, 1 + C, 1 + C)
    sets = np.array(list(combinations(range(1, len(scales)), num_extra)))  # (N, num_extra), in order of t
    with_zero = np.concatenate([np.zeros((len(sets), 1), int), sets], 1)
    pairs = list(combinations(range(with_zero.shape[1]), 2))
    score = sum(distance[:, with_zero[:, a], with_zero[:, b]] for a, b in pairs)  # (R, N)
    return scales[sets[np.argmax(score, axis=1)]]


HASH_STRATEGIES = {"phash": phash_scales, "joint": joint_scales}


def choose_scales(
    strategy: str,
    image: np.ndarray,
    boxes: np.ndarray,
    num_views: int,
    generators: Sequence[np.random.Generator],
) -> np.ndarray:
    """Scales of the views of every region of one image.

    strategy: a name of VIEW_STRATEGIES, with ":" and its argument where it takes one: "random:0.2" shows a region at
    one single scale, 0 among them, with this probability, so that each scale can also be measured alone.
    image: (H, W, 3) uint8; boxes: (R, 4); generators: one a region, read by "random" only.
    Returns (R, V) float32, except for "fixed" the first column is 0. Raises ValueError on an unknown strategy.
    """
    num_regions, num_extra = len(boxes), num_views - 1
    name, colon, argument = strategy.partition(":")
    if name not in VIEW_STRATEGIES:
        raise ValueError(
            f"unknown view strategy {strategy!r}.{suggestion(name, VIEW_STRATEGIES)} "
            f"Known: {', '.join(VIEW_STRATEGIES)}"
        )
    if name == "fixed":
        return np.tile(fixed_scales(argument, num_views), (num_regions, 1))
    if name in HASH_STRATEGIES and colon:
        raise ValueError(f"view strategy {strategy!r}: {name} takes nothing after its name; write {name!r}")
    lone = lone_probability(strategy) if name == "random" else 0.0
    liked = task_scale(strategy) if name == "task" else None
    if num_extra > len(CANDIDATE_SCALES):
        raise ValueError(f"num_views {num_views}: at most {len(CANDIDATE_SCALES) + 1}; view 0 and ten candidates")
    scales = np.zeros((num_regions, num_views), np.float32)
    if not num_extra or not num_regions:
        return scales
    if name == "random":
        for r, generator in enumerate(generators):
            scales[r, 1:] = generator.choice(CANDIDATE_SCALES, num_extra, replace=False)
            if lone and generator.random() < lone:
                scales[r] = generator.choice((0.0, *CANDIDATE_SCALES))
    elif name == "task":
        nearest = sorted(CANDIDATE_SCALES, key=lambda t: (round(abs(t - liked), 6), t))[:num_extra]
        scales[:, 1:] = np.sort(nearest)
    else:
        grey_image = grey(image)
        for start in range(0, num_regions, REGIONS_AT_ONCE):
            part = slice(start, start + REGIONS_AT_ONCE)
            scales[part, 1:] = HASH_STRATEGIES[name](candidate_hashes(grey_image, boxes[part]), num_extra)
    return scales


def candidate_hashes(grey_image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Hash bits of every region at t = 0 and at every candidate scale. boxes (R, 4). Returns (R, 1 + C, 64) bool."""
    scales = torch.tensor((0.0, *CANDIDATE_SCALES))
    grown = view_boxes(torch.from_numpy(widen_boxes(boxes)), grey_image.shape, scales).numpy()  # (R, 1 + C, 4)
    return perceptual_hash(grey_image, grown.reshape(-1, 4)).reshape(*grown.shape[:2], -1)


def task_scale(strategy: str) -> float:
    """The scale that the task of "task:attributes" likes, captions for "task"; ValueError for an unknown task."""
    task = strategy.partition(":")[2] or "captions"
    if task not in TASK_SCALES:
        raise ValueError(
            f"view strategy {strategy!r}: unknown task.{suggestion(task, TASK_SCALES)} Known: {', '.join(TASK_SCALES)}"
        )
    return TASK_SCALES[task]


def lone_probability(strategy: str) -> float:
    """The number of "random:0.2", 0 for "random"; ValueError unless it lies in [0, 1]."""
    try:
        probability = float(strategy.partition(":")[2] or 0)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"view strategy {strategy!r}: the number is a probability in [0, 1], such as random:0.2")
    return probability


def fixed_scales(text: str, num_views: int) -> np.ndarray:
    """ "0,0.3,1" -> (V,) float32; ValueError unless there are num_views numbers in [0, 1]."""
    try:
        scales = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        scales = np.array([], np.float32)
    if len(scales) != num_views or not ((scales >= 0) & (scales <= 1)).all():
        raise ValueError(
            f"view strategy 'fixed:{text}': expected {num_views} comma-separated scales in [0, 1], one a view of "
            f"this model, such as fixed:{','.join(['0', '0.3', '1', '0.6'][:num_views])}"
        )
    return scales
