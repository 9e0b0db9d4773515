"""Stochastic multi-view embedding (DynRefer, section 3.2): RoIAlign -> align -> fuse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from .align import DeformableAlign


class RegionEncoder(nn.Module):
    """Patches of V views of a region -> one set of region features.

    width: D; num_views: V; image_size: view side S in pixels; grid: side of the aligned map; align_groups,
    align_start: see align; roi_aligned: torchvision's half-pixel setting of RoIAlign; False for released weights;
    positions: normalize the fused features and learn a vector for each place of the map, which the Q-Former needs to
    tell places apart where the vision encoder's patches do not say where they are (convolutional ones).
    """

    def __init__(
        self,
        width: int,
        num_views: int,
        image_size: int,
        grid: int,
        *,
        align_groups: int = 4,
        align_start: str = "zero",
        roi_aligned: bool = False,
        positions: bool = False,
    ):
        super().__init__()
        self.num_views, self.image_size, self.grid, self.roi_aligned = num_views, image_size, grid, roi_aligned
        self.align = DeformableAlign(width, align_groups, align_start) if num_views > 1 else None
        self.mlp = nn.Sequential(nn.Linear(num_views * width, width), nn.ReLU(), nn.Linear(width, width))
        self.positions = nn.Parameter(torch.empty(1 + grid * grid, width)) if positions else None
        self.norm = nn.LayerNorm(width) if positions else None

    def reset_parameters(self) -> None:
        """Keeps the features' scale: the Q-Former normalizes its queries but not what they read."""
        for layer, gain in ((self.mlp[0], 2.0), (self.mlp[2], 1.0)):
            nn.init.normal_(layer.weight, std=(gain / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.5)

    def forward(self, patches: Tensor, region_boxes: Tensor) -> Tensor:
        """patches: (R, V, 1+P, D); region_boxes: (R, V, 4) in view pixels. Returns (R, 1+G*G, D)."""
        num_regions, num_views, _, width = patches.shape
        if num_views != self.num_views:
            raise ValueError(f"{num_views} views a region: this model was built with num_views={self.num_views}")
        side = round((patches.shape[2] - 1) ** 0.5)
        maps = patches[:, :, 1:].transpose(2, 3).reshape(-1, width, side, side)  # (R*V, D, g, g)
        boxes = region_boxes.reshape(-1, 4).float()
        index = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None]
        maps = roi_align(  # has no bfloat16 kernel on CPU
            maps.float(),
            torch.cat([index, boxes], 1),
            self.grid,
            spatial_scale=side / self.image_size,
            sampling_ratio=2,
            aligned=self.roi_aligned,
        ).to(patches.dtype)  # (R*V, D, G, G)
        maps = maps.reshape(num_regions, num_views, width, self.grid, self.grid)
        first = maps[:, 0]
        if self.align is not None:
            others = maps[:, 1:].flatten(0, 1)  # (R*(V-1), D, G, G)
            reference = first[:, None].expand(-1, num_views - 1, -1, -1, -1).flatten(0, 1)
            aligned = self.align(others, reference).reshape(num_regions, num_views - 1, width, self.grid, self.grid)
            maps = torch.cat([first[:, None].to(aligned.dtype), aligned], 1)
        tokens = maps.flatten(3).transpose(2, 3)  # (R, V, G*G, D)
        tokens = torch.cat([patches[:, :, :1].to(tokens.dtype), tokens], 2)  # (R, V, 1+G*G, D), class tokens unaligned
        features = self.mlp(tokens.transpose(1, 2).flatten(2))  # (R, 1+G*G, V*D) -> (R, 1+G*G, D)
        return features if self.positions is None else self.norm(features) + self.positions
