"""Deformable alignment of a view to view 0 (DynRefer, section 3.2), in plain PyTorch: no compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 3
POINTS = KERNEL * KERNEL


class DeformableAlign(nn.Module):
    """Moves a view's features onto view 0's grid, the operator known as DCNv4 (stride 1, padding 1, no softmax).

    Each output is a weighted sum of 9 bilinear reads a group. Reads and weights together are one sparse mixing matrix
    over the map's positions; on maps of 16 x 16 a dense matrix product is fastest everywhere and differentiable.
    width: channels D; groups: channel groups that move together; start: "zero" (released: the branch starts silent) or
    "centre" (each position reads itself: views speak from the first step, for models trained from scratch).
    """

    def __init__(self, width: int, groups: int = 4, start: str = "zero"):
        super().__init__()
        if start not in ("zero", "centre"):
            raise ValueError(f"align_start {start!r}: expected 'zero' or 'centre'")
        if width % groups:
            raise ValueError(f"align_groups {groups} does not divide the vision width {width}")
        self.groups, self.start = groups, start
        numbers = groups * POINTS * 3
        self.offset_mask_dw = nn.Conv2d(2 * width, width, KERNEL, padding=1, groups=width)
        self.offset_mask = nn.Linear(width, (numbers + 7) // 8 * 8)  # released layout: padded to a multiple of 8
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        """Offsets and weights start at zero; see `start`."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if self.start == "centre":
            with torch.no_grad():  # the fifth of nine weights, behind eighteen offsets
                self.offset_mask.bias[POINTS * 2 + POINTS // 2 : self.groups * POINTS * 3 : POINTS * 3] = 1.0
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, view: Tensor, reference: Tensor) -> Tensor:
        """view, reference: (N, D, h, w). Returns (N, D, h, w)."""
        n, width, height, breadth = view.shape
        positions = height * breadth
        # the grouped convolution sees the concatenation's channels two by two: half its outputs see only the view,
        # half only the reference, as the released weights have it
        hidden = self.offset_mask_dw(torch.cat([view, reference], 1))  # (N, D, h, w)
        numbers = self.offset_mask(hidden.flatten(2).transpose(1, 2))  # (N, hw, 112)
        numbers = numbers[..., : self.groups * POINTS * 3].reshape(n, positions, self.groups, POINTS * 3).float()
        offsets = numbers[..., : POINTS * 2].reshape(n, positions, self.groups, POINTS, 2)  # (dx, dy)
        weights = numbers[..., POINTS * 2 :]  # (N, hw, G, 9), raw
        mixing = self.mixing_matrix(offsets, weights, height, breadth)  # (N, G, hw, hw)
        value = self.value_proj(view.flatten(2).transpose(1, 2))  # (N, hw, D)
        value = value.reshape(n, positions, self.groups, -1).transpose(1, 2)  # (N, G, hw, D/G)
        mixed = (mixing.to(value.dtype) @ value).transpose(1, 2).reshape(n, positions, width)
        return self.output_proj(mixed).transpose(1, 2).reshape(n, width, height, breadth)

    def mixing_matrix(self, offsets: Tensor, weights: Tensor, height: int, breadth: int) -> Tensor:
        """offsets (N, hw, G, 9, 2) in cells; weights (N, hw, G, 9). Returns (N, G, hw, hw): row = output position."""
        n, positions, groups = weights.shape[:3]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(breadth), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(1, positions, 1, 1, 2).to(offsets)
        step = torch.arange(KERNEL, device=offsets.device) - KERNEL // 2
        steps = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).reshape(POINTS, 2)  # x outer, y inner
        where = centre + steps + offsets  # (N, hw, G, 9, 2) x, y
        low = where.floor()
        fraction = where - low
        matrix = weights.new_zeros(n, positions, groups, positions)
        for dx in (0, 1):
            for dy in (0, 1):
                corner_x, corner_y = low[..., 0] + dx, low[..., 1] + dy
                inside = (corner_x >= 0) & (corner_x < breadth) & (corner_y >= 0) & (corner_y < height)
                share = (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (
                    fraction[..., 1] if dy else 1 - fraction[..., 1]
                )
                index = (corner_y.clamp(0, height - 1) * breadth + corner_x.clamp(0, breadth - 1)).long()
                matrix = matrix.scatter_add(3, index, weights * share * inside)  # nine points a row and corner
        return matrix.transpose(1, 2)
