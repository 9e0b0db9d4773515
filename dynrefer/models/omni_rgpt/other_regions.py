"""Other ways to say which region is meant, for comparison with marks: its place in words, or what the vision encoder
saw of it. Neither lays anything on the frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

HUNDRED = tuple(map(str, range(100)))


def place_in_words(box: Sequence[float], image_hw: tuple[int, int]) -> str:
    """The box as hundredths of the picture, each a word.

    >>> place_in_words((40, 30, 180, 200), (200, 200))
    '[ 20 15 90 99 ]'
    """
    height, width = image_hw
    shares = (edge / side for edge, side in zip(box, (width, height, width, height), strict=True))
    return f"[ {' '.join(HUNDRED[min(max(int(share * 100), 0), 99)] for share in shares)} ]"


class PooledRegions(nn.Module):
    """The mean of the tokens that a region covers in the prompt frame, projected: it stands where a mark would."""

    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Linear(width, width)

    def forward(self, features: Tensor, cover: Tensor) -> Tensor:
        """features (P, D) of a frame, cover (R, h, w) -> (R, D). A region that covers nothing: of no token."""
        share = cover.flatten(1).to(features)
        total = share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        mean = share @ features[: share.shape[1]] / total
        return self.projection(mean.to(self.projection.weight))
