"""RegionSpotBatch: what the loader hands to the model. Pictures by example, the rest one row a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .sam import Prompts


@dataclass
class Pictures:
    """N pictures for SAM and CLIP.

    sam_pictures  (N, 3, S, S) uint8, padded; inner_hw (N, 2): what of it is the image
    clip_pixels   (N, 3, C, C) normalized
    prompts       N: where SAM looks, groups of regions as (positions in the picture, Prompts)
    """

    sam_pictures: Tensor
    inner_hw: Tensor
    clip_pixels: Tensor
    prompts: list[list[tuple[list[int], Prompts]]]

    def to(self, device: torch.device | str) -> Pictures:
        prompts = [[(rows, some.to(device)) for rows, some in groups] for groups in self.prompts]
        return replace(self, **moved(self, device), prompts=prompts)


@dataclass
class Kept:
    """What SAM and CLIP have made of N pictures before: tokens (I, W) of the regions, memory (N, 1+P, D)."""

    tokens: Tensor
    memory: Tensor

    @classmethod
    def of(cls, samples: Sequence[dict]) -> Kept:
        return cls(torch.cat([s["tokens"] for s in samples]), torch.stack([s["memory"] for s in samples]))

    def to(self, device: torch.device | str) -> Kept:
        return replace(self, **moved(self, device))


@dataclass
class RegionSpotBatch:
    """N examples with I regions in all, at most R each.

    ids           I names; boxes (I, 4) image pixels, image_hw (I, 2)
    seen          the examples' pictures, or what the frozen parts have made of them
    present       (N, R) bool: True for a region, False for padding; there are I regions
    categories    (I,) index of the target among the names of its example, -1 where unknown
    boxed         (I,) bool: whether a region's box was given; otherwise it is that of its mask
    vocabularies  names that the examples' data sets tell apart; vocabulary (N,): which of them is an example's
    against       N: the names (K,) that an example is compared with in training, None for all
    """

    ids: list[str]
    boxes: Tensor
    image_hw: Tensor
    seen: Pictures | Kept
    present: Tensor
    categories: Tensor
    boxed: Tensor
    vocabularies: list[tuple[str, ...]]
    vocabulary: Tensor
    against: list[Tensor | None]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> RegionSpotBatch:
        return replace(self, **moved(self, device), seen=self.seen.to(device))

    def counts(self) -> dict[str, float]:
        return {"categories": float((self.categories >= 0).sum())}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        if "categories" in tasks:
            self.categories[rows] = -1


def moved(batch: object, device: torch.device | str) -> dict[str, Tensor]:
    """Its tensors, by name, on a device."""
    return {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
