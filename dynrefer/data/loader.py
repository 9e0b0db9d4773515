"""Samples -> batches: one global list of batches an epoch, the same for any number of workers and processes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dynrefer.data.dataset import RegionDataset

# told apart from the generators of single samples, which are seeded by (seed, epoch, index)
_PLAN_STREAM = 0x504C414E


@dataclass(frozen=True)
class DataConfig:
    """Which records are read and how they are batched."""

    train: str | list[str] = ""  # record file or files to train on
    val: str = ""  # record file for periodic evaluation; empty = none
    batch_size: int = 64  # regions an optimizer step, over all processes and accumulation steps
    num_workers: int = 2  # processes that prepare batches, for each training process; 0 = none
    max_regions_per_image: int | None = None  # at most so many regions of an image an epoch, others in the next
    shuffle: bool = True  # another order of images each epoch
    cache_mb: int = 0  # room for decoded images in each worker, in MB

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size {self.batch_size}: expected at least 1")
        if self.num_workers < 0 or self.cache_mb < 0:
            raise ValueError(f"data.num_workers {self.num_workers}, data.cache_mb {self.cache_mb}: expected 0 or more")
        if self.max_regions_per_image is not None and self.max_regions_per_image < 1:
            raise ValueError(f"data.max_regions_per_image {self.max_regions_per_image}: expected at least 1, or null")


class RegionLoader:
    """Batches of a dataset's regions.

    The global batches of an epoch depend only on records, seed, epoch and batch_size: images in random order, the
    regions of each kept together, cut into batch_size regions. Process `rank` of `world_size` takes its contiguous part
    of each; the shares of a short last batch differ by at most one region. Samples do not depend on num_workers.

    batch_size: regions of a global batch. drop_last: leave a short last batch out. max_regions_per_image: a random
    choice of so many of an image's regions each epoch. mp_context: how workers start, "fork" or "spawn"; None = torch's
    default.
    """

    def __init__(
        self,
        dataset: RegionDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        max_regions_per_image: int | None = None,
        mp_context: str | None = None,
    ):
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} for {world_size} processes: it counts the regions of all of them and must be "
                f"a multiple of {world_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes: expected 0..{world_size - 1}")
        if num_workers < 0:
            raise ValueError(f"num_workers {num_workers}: expected 0 (no extra process) or more")
        if max_regions_per_image is not None and max_regions_per_image < 1:
            raise ValueError(f"max_regions_per_image {max_regions_per_image}: expected at least 1, or None for all")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.num_workers, self.max_regions_per_image, self.mp_context = num_workers, max_regions_per_image, mp_context
        self._groups = dataset.records.image_groups()
        most = max_regions_per_image or len(dataset)
        self.num_regions = sum(min(len(group), most) for group in self._groups)  # an epoch, over all processes
        full, rest = divmod(self.num_regions, batch_size)
        self._num_batches = full if drop_last or not rest else full + 1
        if not self._num_batches:
            raise ValueError(
                f"{self.num_regions} regions do not fill a batch of {batch_size}; use a smaller one, or drop_last=False"
            )
        if self._num_batches > full and rest < world_size:
            raise ValueError(
                f"the last batch has {rest} regions for {world_size} processes, and each needs one; set drop_last=True "
                "or another batch_size"
            )
        self._keys: list[tuple[int, list[int]]] = []  # the sampler: (epoch, indices) a batch; filled for each epoch
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        """Batches an epoch, the same in every process."""
        return self._num_batches

    def plan(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch as record indices, without opening anything."""
        generator = np.random.default_rng([self.seed, epoch, _PLAN_STREAM, 0])
        order: list[int] = []
        groups = generator.permutation(len(self._groups)) if self.shuffle else range(len(self._groups))
        most = self.max_regions_per_image
        for number in groups:
            group = self._groups[number]
            if most is not None and len(group) > most:
                kept = generator.choice(len(group), most, replace=False) if self.shuffle else np.arange(most)
                group = [group[position] for position in np.sort(kept)]
            order.extend(group)
        starts = range(0, self._num_batches * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """This process's batches of an epoch, as `processor.collate` makes them, from `start_batch` on (no image of the
        batches before is opened)."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch {start_batch}: expected 0..{len(self)}, the batches of an epoch")
        self._keys[:] = [(epoch, self._share(batch)) for batch in self.plan(epoch)[start_batch:]]
        if not self._keys:
            return
        if self._loader is None:
            self._loader = DataLoader(
                _BatchMaker(self.dataset),
                batch_size=None,  # a key is a whole batch
                sampler=self._keys,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # the global one stays as it is: a resumed run draws the same
                persistent_workers=self.num_workers > 0,
                multiprocessing_context=self.mp_context if self.num_workers else None,
            )
        yield from self._loader

    def _share(self, batch: list[int]) -> list[int]:
        first, last = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return batch[first:last]


class _BatchMaker:
    """Map from (epoch, indices) to a collated batch, in the shape a DataLoader wants its dataset."""

    def __init__(self, dataset: RegionDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        epoch, indices = key
        return self.dataset.processor.collate(self.dataset.samples(indices, epoch))


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)  # many workers with many threads each stand in each other's way
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
