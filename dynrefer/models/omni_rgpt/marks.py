"""Token Marks: a small palette of vectors. A region's mark stands in the text where it is named, and lies over the
frame where it is (arXiv 2501.08326, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of equation 1
AT_ONCE = 8  # regions whose masks are pooled together


class TokenMarks(nn.Module):
    """num_marks vectors of `mark_width`, and one projection into the language model's space for texts and frames."""

    def __init__(self, num_marks: int, mark_width: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_marks, mark_width))
        self.projection = nn.Linear(mark_width, width, bias=False)  # a bias would mark cells outside of all regions
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        self.projection.reset_parameters()

    @torch.no_grad()
    def fit(self, words: Tensor, scale: float = 1.0) -> None:
        """Makes projected marks `scale` times as long as word embeddings (N, D), by their mean square."""
        marks = self.projection(self.weight).float()
        self.weight.mul_(scale * words.float().square().mean().sqrt() / marks.square().mean().sqrt())

    def forward(self, indices: Tensor) -> Tensor:
        """indices (R,) -> projected marks (R, D)."""
        return self.projection(self.weight[indices])


def draw_marks(
    num_regions: int, num_marks: int, how: str, generator: np.random.Generator | None, what: str = "question"
) -> np.ndarray:
    """Different marks for regions, (R,). how: "random" or "first". ValueError for more regions than marks, which begins
    with `what`."""
    if num_regions > num_marks:
        raise ValueError(
            f"{what}: {num_regions} regions in one text, but this model has {num_marks} marks; name fewer at a time"
        )
    if how == "first" or generator is None:
        return np.arange(num_regions)
    return generator.permutation(num_marks)[:num_regions]


def rectangle(box: Sequence[float], image_hw: tuple[int, int]) -> np.ndarray:
    """The box's pixels, bool (H, W), its sides rounded; at least one pixel."""
    mask = np.zeros(image_hw, bool)
    x1, y1, x2, y2 = (int(np.floor(side + 0.5)) for side in box)
    x1, y1 = min(x1, image_hw[1] - 1), min(y1, image_hw[0] - 1)
    mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return mask


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """mask (H, W) -> (h, w), each pixel its nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[rows][:, columns]


def coverage(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """What share of each cell belongs to each region. masks bool (R, H, W) -> (R, h, w) float32, at most 1 in sum.

    The paper spreads marks over a canvas of C x H x W, averages them there and pools. Both are linear: pooling shares
    instead gives the same without the canvas.
    """
    total = masks.sum(0, dtype=torch.float32)
    parts = [
        F.adaptive_avg_pool2d((some / (EPSILON + total))[None], tuple(grid))[0] for some in masks.float().split(AT_ONCE)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, *grid)


def strengthen(cover: Tensor, least: float) -> Tensor:
    """Coverage (R, h, w) in which the strongest cell of a region that has one is at least `least`."""
    most = cover.amax((1, 2), keepdim=True)
    factor = torch.where((most > 0) & (most < least), least / most.clamp(min=EPSILON**2), 1.0)
    cover = cover * factor
    return cover / cover.sum(0).clamp(min=1)


def spatial_marks(cover: Tensor, marks: Tensor) -> Tensor:
    """cover (R, h, w), projected marks (R, D) -> what is added to a frame's tokens, (h*w, D)."""
    return torch.einsum("rp,rd->pd", cover.flatten(1).to(marks), marks)


def soft_labels(cover: Tensor, indices: Tensor, num_marks: int) -> Tensor:
    """cover (R, T, h, w), marks (R,) -> which mark each cell shows, (T, h, w, num_marks + 1), last the background."""
    labels = cover.new_zeros(*cover.shape[1:], num_marks + 1)
    labels[..., indices] = cover.permute(1, 2, 3, 0)
    labels[..., -1] = (1 - cover.sum(0)).clamp(min=0)
    return labels
