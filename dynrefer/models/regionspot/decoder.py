"""The decoder: tokens of a picture's regions look at each other and at CLIP's tokens of the whole picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = ("none", "sine")  # of CLIP's patches, beside those that its own tower has given them


def make_decoder(width: int, layers: int, heads: int, mlp_width: int, dropout: float) -> nn.TransformerDecoder:
    """Layers normalize after each step; there are no positions in it, those are in SAM's tokens."""
    if width % heads:
        raise ValueError(f"decoder_heads {heads}: CLIP's tokens are {width} wide; give a number that divides it")
    layer = nn.TransformerDecoderLayer(width, heads, mlp_width, dropout, "relu", batch_first=True)
    return nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))


def waves(grid: int, width: int) -> Tensor:
    """(g * g, width): of each cell of a grid sines and cosines of its row and column, whose mean square is 1. The
    longest wave is two grids long, the shortest two cells."""
    number = width // 4
    frequencies = math.pi * 2 ** torch.linspace(0, math.log2(max(grid, 1)), number)
    along = (torch.arange(grid) + 0.5)[:, None] / grid * frequencies  # (g, width / 4)
    line = torch.cat([along.sin(), along.cos()], -1) * math.sqrt(2)  # (g, width / 2)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return F.pad(torch.cat([columns, rows], -1).flatten(0, 1), (0, width - 4 * number))


def with_waves(memory: Tensor, grid: int) -> Tensor:
    """memory (N, 1+P, D), a summary and P = g * g patches -> the same, to each patch the waves of its place added, as
    strong as the patches of its picture are. The summary has no place."""
    patches = memory[:, 1:]
    strength = patches.float().square().mean((1, 2), keepdim=True).sqrt()  # (N, 1, 1)
    places = (strength * waves(grid, memory.shape[-1]).to(memory.device)).to(memory.dtype)
    return torch.cat([memory[:, :1], patches + places], 1)


class Looks:
    """Within it, what a decoder's last layer looks at is noted in `weights`, (N, R, M) each call, the mean of its
    heads."""

    def __init__(self, decoder: nn.TransformerDecoder):
        self.attention = decoder.layers[-1].multihead_attn
        self.weights: list[Tensor] = []
        self.inside = False

    def note(self, module: nn.Module, arguments: tuple, keywords: dict) -> None:
        if not self.inside:  # the call below comes here too
            self.inside = True
            self.weights.append(module(*arguments[:3], **{**keywords, "need_weights": True})[1])
            self.inside = False

    def grids(self, present: Tensor, grid: int) -> Tensor:
        """Of the regions of all calls, (I, g, g): where over CLIP's patches each looks. present (N, R), of all calls or
        of the only one."""
        rows = self.weights[0][present] if len(self.weights) == 1 else torch.cat(self.weights).flatten(0, 1)  # (I, M)
        return rows[:, -grid * grid :].unflatten(1, (grid, grid))

    def __enter__(self) -> Looks:
        self.handle = self.attention.register_forward_pre_hook(self.note, with_kwargs=True)
        return self

    def __exit__(self, *error) -> None:
        self.handle.remove()


def spread(rows: Tensor, present: Tensor) -> Tensor:
    """One row a region, (I, ...) -> (N, R, ...), zeros where present (N, R) is false."""
    padded = rows.new_zeros(*present.shape, *rows.shape[1:])
    padded[present] = rows
    return padded


def present_of(counts: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Numbers of regions of N pictures -> (N, R) bool, True for a region."""
    return torch.arange(max(counts, default=0), device=device) < torch.tensor(counts, device=device)[:, None]
