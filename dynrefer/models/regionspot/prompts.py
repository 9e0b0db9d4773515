"""Where SAM looks: boxes, and what users point with, in pixels of SAM's picture; regions in groups of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynrefer.data.example import Example

from .sam import Prompts

SURE = 10.0  # logit of a user's mask, about that of SAM's own where it is sure

Groups = list[tuple[list[int], Prompts]]  # positions in the example, and where SAM looks for these


def box_prompts(boxes: np.ndarray) -> Groups:
    """boxes (R, 4) in pixels of SAM's picture; one group."""
    return [(list(range(len(boxes))), Prompts(boxes=torch.from_numpy(boxes)))]


def user_prompts(
    example: Example,
    boxes: np.ndarray,
    scale: np.ndarray,
    inner_hw: Sequence[int],
    size: int,
    mask_hw: Sequence[int],
    use_masks: bool,
) -> Groups:
    """What a user pointed with; a group for each kind, since padding would change what SAM says.

    boxes (R, 4) and scale (2,), x and y, as for `box_prompts`; inner_hw, size: of SAM's picture, the image in it and
    with padding; mask_hw: of the masks that SAM takes; use_masks: whether it sees them, too.
    """
    groups: dict[tuple, list[int]] = {}
    for position, prompt in enumerate(example.prompts):
        kind = prompt.box, 0 if prompt.points is None else len(prompt.points), prompt.mask and use_masks
        groups.setdefault(kind, []).append(position)
    found: Groups = []
    for (boxed, num_points, masked), positions in groups.items():
        prompts = Prompts(boxes=torch.from_numpy(boxes[positions])) if boxed else Prompts()
        if num_points:
            rows = np.stack([example.prompts[position].points for position in positions])  # (r, K, 3)
            prompts.points = torch.from_numpy(rows[..., :2] * scale.astype(np.float32))
            prompts.labels = torch.from_numpy(rows[..., 2]).int()
        if masked:
            masks = [example.regions[position].to_mask() for position in positions]
            prompts.masks = torch.stack([mask_logits(mask, inner_hw, size, mask_hw) for mask in masks])
        found.append((positions, prompts))
    return found


def mask_logits(mask: np.ndarray, inner_hw: Sequence[int], size: int, mask_hw: Sequence[int]) -> Tensor:
    """mask bool (H, W) of the image -> logits (1, h, w) of SAM's picture, as its mask decoder gives them."""
    inner = [max(1, round(side * small / size)) for side, small in zip(inner_hw, mask_hw, strict=True)]
    share = torch.from_numpy(mask).float()[None, None]
    share = F.interpolate(share, inner, mode="bilinear", align_corners=False, antialias=True)
    share = F.pad(share, (0, mask_hw[1] - inner[1], 0, mask_hw[0] - inner[0]))[0]
    return (share * 2 - 1) * SURE
