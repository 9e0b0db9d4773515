"""The one thing that models need from the other processes: their rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dynrefer.processes import Processes


def gather_rows(rows: Tensor, fill: int = 0) -> tuple[Tensor, int]:
    """All processes' rows below each other, in rank order, and the offset of this process's own.

    rows: (N, T), N and T may differ between processes; T is padded with `fill`. Returns (sum N, max T), no gradient.
    """
    rank, world_size = Processes.here()
    if world_size == 1:
        return rows, 0
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(world_size)]
    dist.all_gather(shapes, shape)
    most_rows, most_columns = (max(int(s[i]) for s in shapes) for i in (0, 1))
    padded = rows.new_full((most_rows, most_columns), fill)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    gathered = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(gathered, padded)
    parts = [part[: int(s[0])] for part, s in zip(gathered, shapes, strict=True)]
    return torch.cat(parts), sum(len(part) for part in parts[:rank])
