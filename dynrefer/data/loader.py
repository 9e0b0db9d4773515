"""Samples -> batches: one global list of batches an epoch, the same for any number of workers and processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from dynrefer.data.dataset import RegionDataset
from dynrefer.data.image_groups import ImageGroups

# told apart from the generators of single samples, which are seeded by (seed, epoch, index)
PLAN_STREAM = 0x504C414E
LANES = 24  # places of an epoch that are visited side by side; numbers of workers that divide it decode images once
PART = 64  # regions from one place that a batch is not cut below
ANNOTATIONS = ("captions", "tags", "attributes", "categories")

# What a worker makes a batch of: the number of each data set in it, with the arguments of that one's `samples`.
Key = list[tuple[int, tuple]]
# A last touch, where the batch was made: (batch, key, regions of each entry of the key) -> what goes out.
Finish = Callable[[Any, Key, list[int]], Any]


@dataclass(frozen=True)
class Source:
    """One data set of several that are mixed."""

    path: str | list[str]  # record file, record files read as one, or shards
    weight: float = 1.0  # its share of the regions seen, beside the weights of the others
    tasks: list[str] | None = None  # of its annotations, those to train on: captions, tags, ...; null: all

    def __post_init__(self):
        if not self.path:
            raise ValueError("path is empty; name a record file or shards")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight {self.weight} of {self.path}: expected a number above 0")
        if unknown := [task for task in self.tasks or ANNOTATIONS if task not in ANNOTATIONS]:
            raise ValueError(f"task {unknown[0]!r} of {self.path}: expected some of {', '.join(ANNOTATIONS)}")


@dataclass(frozen=True)
class DataConfig:
    """Which records are read and how they are batched."""

    # record file, record files read as one, shards (their folder, index or pattern), or {path, weight, tasks} to mix
    train: str | list[str | Source] = ""
    val: str = ""  # record file for periodic evaluation; empty = none
    batch_size: int = 64  # regions an optimizer step, over all processes and accumulation steps
    num_workers: int = 2  # processes that prepare batches, for each training process; 0 = none
    max_regions_per_image: int | None = None  # at most so many regions of an image an epoch, others in the next
    shuffle: bool = True  # another order of images each epoch
    cache_mb: int = 0  # room for decoded images in each worker, in MB
    draft: bool = False  # decode JPEGs at 1/2 or 1/4 where every view allows it: quicker, pixels differ a little
    mix: Literal["batches", "regions"] = (
        "batches"  # whole batches of one data set, or some regions of each in every one
    )
    # parts that shards are read in side by side: up to so many processes read no shard twice; null: one for every 64
    # regions of a batch. Another number makes other batches
    streams: int | None = None
    buffer: int = 1000  # images of shards that a process holds, encoded, to mix them

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size {self.batch_size}: expected at least 1")
        if self.num_workers < 0 or self.cache_mb < 0:
            raise ValueError(f"data.num_workers {self.num_workers}, data.cache_mb {self.cache_mb}: expected 0 or more")
        if self.max_regions_per_image is not None and self.max_regions_per_image < 1:
            raise ValueError(f"data.max_regions_per_image {self.max_regions_per_image}: expected at least 1, or null")
        if (self.streams is not None and self.streams < 1) or self.buffer < 1:
            raise ValueError(f"data.streams {self.streams}, data.buffer {self.buffer}: expected at least 1")


class ImageOrder:
    """The regions of an epoch in order, worked out only where somebody looks: `order.between(first, last)`.

    Images in random order (`shuffle`) or in the file's, the regions of each kept together, at most `most` of each.
    """

    def __init__(self, groups: ImageGroups, seed: int, epoch: int, shuffle: bool, most: int | None):
        self.groups, self.most, self.shuffle, self.seeds = groups, most, shuffle, [seed, epoch, PLAN_STREAM]
        generator = np.random.default_rng([*self.seeds, 0])
        self.images = generator.permutation(len(groups)) if shuffle else np.arange(len(groups))
        self.ends = np.cumsum(kept_counts(groups.counts, most)[self.images])  # where the regions of each image end

    def place(self, position: int) -> int:
        """Which image of the order the region at a position belongs to."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def between(self, first: int, last: int) -> np.ndarray:
        """Record indices at positions first ... last - 1."""
        parts = [np.zeros(0, np.int64)]
        place = self.place(first)
        while first < last:
            begin = int(self.ends[place - 1]) if place else 0
            image = int(self.images[place])
            members = self.groups.members(image)
            members = members[kept_positions(self.seeds, image, len(members), self.most, self.shuffle)]
            parts.append(members[first - begin : last - begin])
            first, place = int(self.ends[place]), place + 1
        return np.concatenate(parts)


def kept_counts(counts: np.ndarray, most: int | None) -> np.ndarray:
    """Regions of every image that an epoch takes, of those there are."""
    return counts if most is None else np.minimum(counts, most)


def kept_positions(seeds: list[int], image: int, count: int, most: int | None, shuffle: bool) -> np.ndarray | slice:
    """Which of an image's `count` regions an epoch takes: at random where it shuffles, else the first."""
    if most is None or count <= most:
        return slice(None)
    if not shuffle:
        return slice(most)
    return np.sort(np.random.default_rng([*seeds, 1, image]).choice(count, most, replace=False))


class Visits:
    """In which order an epoch's stretches of regions (a batch, or an equal part of one) are visited.

    Loaders hand batch after batch to their workers in turn, and most batches end within an image. So that a worker gets
    the rest of an image that it has decoded, an epoch goes through LANES places of the order side by side:

        stretches 0 1 2 3 4 5 6 7 in 4 lanes -> 0 2 4 6, 1 3 5 7

    and with any number of workers that divides LANES each stays in lanes of its own. block: so many stretches are
    finished before the next ones begin. order (total,): the stretches as they are visited; turn (total,): when each is.
    """

    def __init__(self, total: int, lanes: int, block: int):
        parts = [np.zeros(0, np.int64)]
        for start in range(0, total, block):
            size = min(block, total - start)
            lane = np.arange(size) * lanes // size
            row = np.arange(size) - np.searchsorted(lane, lane)
            parts.append(start + np.lexsort((lane, row)))
        self.order = np.concatenate(parts)
        self.turn = np.empty_like(self.order)
        self.turn[self.order] = np.arange(total)

    def later(self, stretch: int, than: int) -> bool:
        """Whether a stretch is visited after another one; a short last batch, which counts as one more, comes last."""
        if stretch < 0 or than >= len(self.turn):
            return False
        return stretch == len(self.turn) or bool(self.turn[stretch] > self.turn[than])


def parts_of_batch(batch_size: int) -> int:
    """Into how many stretches, from as many places, a batch is cut: processes that share a large one have images of
    their own then. A power of two, so that each has at least PART regions."""
    parts = 1
    while batch_size % (2 * parts) == 0 and batch_size // (2 * parts) >= PART:
        parts *= 2
    return parts


class Plan(Sequence):
    """The global batches of an epoch as lists of record indices, each made when it is looked at.

    shuffle: batches are visited in lanes (see Visits), the short last one at the end; otherwise one after the other.
    """

    def __init__(self, order: ImageOrder, batch_size: int, num_batches: int, shuffle: bool):
        self.order, self.batch_size, self.num_batches = order, batch_size, num_batches
        self.total = int(order.ends[-1])
        self.parts = parts_of_batch(batch_size) if shuffle else 1
        self.part_size = batch_size // self.parts
        num_stretches = self.total // batch_size * self.parts
        self.visits = Visits(num_stretches, LANES * self.parts if shuffle else 1, block=max(num_stretches, 1))

    def stretches(self, number: int, begin: int, end: int) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Record indices at positions begin ... end - 1 of a batch, stretch by stretch; with each, the positions in it
        (its ends) of regions whose image is wanted again at the same positions of a later batch."""
        size, image_at = self.part_size, self.order.place
        for part in range(self.parts):
            first, last = max(begin - part * size, 0), min(end - part * size, size)
            if first >= last:
                continue
            place = number * self.parts + part
            stretch = int(self.visits.order[place]) if place < len(self.visits.order) else place  # the short last batch
            start, again = stretch * size, []
            for other, own, theirs in ((stretch - 1, first, last - 1), (stretch + 1, last - 1, first)):
                if self.visits.later(other, stretch) and image_at(start + own) == image_at(other * size + theirs):
                    again.append(own - first)
            yield self.order.between(start + first, start + last), again

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        number %= len(self)
        size = min(self.batch_size, self.total - number * self.batch_size)
        return [index for indices, _ in self.stretches(number, 0, size) for index in indices.tolist()]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented


class Loader:
    """What all loaders share: an epoch's batches, made by workers from the keys that a subclass gives.

    datasets: those that keys speak of by number; all have the same processor. The batches depend on records, seed,
    epoch and batch_size alone, process `rank` of `world_size` takes its contiguous part of each (the shares of a short
    last batch differ by at most one region), and num_workers changes nothing. finish: see `Finish`.
    """

    def __init__(
        self,
        datasets: Sequence[RegionDataset],
        batch_size: int,
        *,
        num_regions: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        mp_context: str | None = None,
        finish: Finish | None = None,
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
        full, rest = divmod(num_regions, batch_size)
        self._num_batches = full if drop_last or not rest else full + 1
        if not self._num_batches:
            raise ValueError(
                f"{num_regions} regions do not fill a batch of {batch_size}; use a smaller one, or drop_last=False"
            )
        if self._num_batches > full and rest < world_size:
            raise ValueError(
                f"the last batch has {rest} regions for {world_size} processes, and each needs one; set drop_last=True "
                "or another batch_size"
            )
        self.datasets, self.batch_size, self.num_regions = list(datasets), batch_size, num_regions
        self.rank, self.world_size, self.num_workers, self.mp_context = rank, world_size, num_workers, mp_context
        self._maker, self._keys = _BatchMaker(self.datasets, finish), _Keys()
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        """Batches an epoch, the same in every process."""
        return self._num_batches

    def keys(self, epoch: int, start_batch: int) -> Iterator[Key]:
        """What this process's batches are made of, from `start_batch` on."""
        raise NotImplementedError

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """This process's batches of an epoch, as `processor.collate` makes them, from `start_batch` on (no image of the
        batches before is opened)."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch {start_batch}: expected 0..{len(self)}, the batches of an epoch")
        if start_batch == len(self):
            return
        self._keys.start(self.keys(epoch, start_batch))
        if self._loader is None:
            self._loader = DataLoader(
                self._maker,
                batch_size=None,  # a key is a whole batch
                sampler=self._keys,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # the global one stays as it is: a resumed run draws the same
                persistent_workers=self.num_workers > 0,
                multiprocessing_context=self.mp_context if self.num_workers else None,
            )
        try:
            yield from self._loader
        finally:
            self._keys.stop()


class RegionLoader(Loader):
    """Batches of a dataset's regions: images in random order, the regions of each kept together, cut into batch_size
    regions, which are visited as `Visits` says.

    batch_size: regions of a global batch. drop_last: leave a short last batch out. max_regions_per_image: a random
    choice of so many of an image's regions each epoch. mp_context: how workers start, "fork" or "spawn"; None = torch's
    default. span: the positions of every full batch that this process takes, where that is not an even share.
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
        span: tuple[int, int] | None = None,
    ):
        check_most(max_regions_per_image)
        self.dataset, self.shuffle, self.seed, self.span = dataset, shuffle, seed, span
        self.max_regions_per_image = max_regions_per_image
        self._groups = dataset.records.image_groups()
        super().__init__(
            [dataset],
            batch_size,
            num_regions=int(kept_counts(self._groups.counts, max_regions_per_image).sum()),
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            mp_context=mp_context,
        )

    def plan(self, epoch: int) -> Plan:
        """The global batches of an epoch as record indices, without opening anything."""
        order = ImageOrder(self._groups, self.seed, epoch, self.shuffle, self.max_regions_per_image)
        return Plan(order, self.batch_size, len(self), self.shuffle)

    def keys(self, epoch: int, start_batch: int) -> Iterator[Key]:
        plan = self.plan(epoch)
        for number in range(start_batch, len(self)):
            size = min(self.batch_size, self.num_regions - number * self.batch_size)
            begin, end = self.span or share(size, self.rank, self.world_size)
            indices, unfinished = [np.zeros(0, np.int64)], []
            for stretch, again in plan.stretches(number, begin, end):
                unfinished += [sum(map(len, indices)) + position for position in again]
                indices.append(stretch)
            yield [(0, (np.concatenate(indices), epoch, unfinished))]


def share(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The positions of a batch of `size` regions that a process takes: from the first up to, not with, the second."""
    return size * rank // world_size, size * (rank + 1) // world_size


def check_most(max_regions_per_image: int | None) -> None:
    if max_regions_per_image is not None and max_regions_per_image < 1:
        raise ValueError(f"max_regions_per_image {max_regions_per_image}: expected at least 1, or None for all")


class _Keys:
    """The sampler of a loader: its keys of the present epoch, each made when a worker is free for it.

    It does not know the loader: workers are slow to end where the garbage collector, not the last reference, ends them.
    """

    def __init__(self):
        self._keys: Iterator[Key] = iter(())

    def start(self, keys: Iterator[Key]) -> None:
        self.stop()
        self._keys = keys

    def stop(self) -> None:
        if hasattr(self._keys, "close"):
            self._keys.close()

    def __iter__(self) -> Iterator[Key]:
        return self._keys


class _BatchMaker:
    """Map from a key to a batch, in the shape a DataLoader wants its dataset."""

    def __init__(self, datasets: list[RegionDataset], finish: Finish | None):
        self.datasets, self.finish = datasets, finish

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, key: Key) -> Any:
        parts = [self.datasets[number].samples(*arguments) for number, arguments in key]
        batch = self.datasets[0].processor.collate([sample for part in parts for sample in part])
        return batch if self.finish is None else self.finish(batch, key, list(map(len, parts)))


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)  # many workers with many threads each stand in each other's way
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
