"""RegionSpotBatch: what the loader hands to the model. Pictures by example, the rest one row a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .sam import Prompts


@dataclass
class RegionSpotBatch:
    """N pictures with I regions in all, at most R each.

    ids           I names; boxes (I, 4) image pixels, image_hw (I, 2)
    sam_pictures  (N, 3, S, S) uint8, padded; inner_hw (N, 2): what of it is the image
    clip_pixels   (N, 3, C, C) normalized
    prompts       N: where SAM looks, groups of regions as (positions in the picture, Prompts)
    present       (N, R) bool: True for a region, False for padding; there are I regions
    categories    (I,) index of the target, -1 where unknown
    boxed         (I,) bool: whether a region's box was given; otherwise it is that of its mask
    """

    ids: list[str]
    boxes: Tensor
    image_hw: Tensor
    sam_pictures: Tensor
    inner_hw: Tensor
    clip_pixels: Tensor
    prompts: list[list[tuple[list[int], Prompts]]]
    present: Tensor
    categories: Tensor
    boxed: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> RegionSpotBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        prompts = [[(rows, some.to(device)) for rows, some in groups] for groups in self.prompts]
        return replace(self, **moved, prompts=prompts)

    def counts(self) -> dict[str, float]:
        return {"categories": float((self.categories >= 0).sum())}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        if "categories" in tasks:
            self.categories[rows] = -1
