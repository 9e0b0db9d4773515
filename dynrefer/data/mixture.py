"""Several data sets in one training run, by weight: whole batches of one of them, or a part of every batch.

    data:
      train:
        - {path: data/vg, weight: 3, tasks: [captions, tags]}
        - {path: data/coco/train.jsonl, weight: 1, tasks: [categories]}

Who comes when is fixed by the weights alone: after any number of draws every data set has had its share, to within one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

from dynrefer.data.dataset import RegionDataset, SampleProcessor
from dynrefer.data.loader import ANNOTATIONS, DataConfig, Key, Loader, RegionLoader, Source, share
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords
from dynrefer.data.shards import Shards, is_shards, open_shards
from dynrefer.data.stream import ShardDataset, ShardLoader


class Mixture:
    """Opened data sets with their weights and tasks. Iterating gives the regions of all, one data set after another."""

    def __init__(self, parts: Sequence[RegionRecords | Shards], sources: Sequence[Source]):
        self.parts, self.sources = list(parts), list(sources)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def licences(self) -> Counter:
        """{(source, licence): number of its regions}, as RegionRecords has it."""
        return sum((part.licences() for part in self.parts), Counter())

    def __iter__(self) -> Iterator[Region]:
        for part in self.parts:
            yield from part


def open_training(train: str | os.PathLike | Sequence[str | Source]) -> RegionRecords | Shards | Mixture:
    """What `data.train` names: a record file, several read as one, shards, or a mixture where an entry has a weight.

    Raises ValueError for what cannot be opened, and for record files and shards read as one.
    """
    if isinstance(train, (str, os.PathLike)) or not any(isinstance(one, Source) for one in train):
        if not is_shards(train):
            return open_records(train)
        names = [train] if isinstance(train, (str, os.PathLike)) else train
        if files := [name for name in names if not is_shards(name)]:
            raise ValueError(f"{files[0]}: a record file among shards; give each a weight to mix them")
        return open_shards(train)
    sources = [one if isinstance(one, Source) else Source(one) for one in train]
    return Mixture([open_training(source.path) for source in sources], sources)


def training_loader(
    records: RegionRecords | Shards | Mixture,
    processor: SampleProcessor,
    data: DataConfig,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
) -> Loader:
    """Whole batches of what `open_training` gave, for training. batch_size: regions of a global batch."""
    parts = records.parts if isinstance(records, Mixture) else [records]
    datasets = []
    for part in parts:
        kind = ShardDataset if isinstance(part, Shards) else RegionDataset
        cache_bytes = (data.cache_mb << 20) // len(parts)
        datasets.append(kind(part, processor, train=True, seed=seed, cache_bytes=cache_bytes, draft=data.draft))
    options = {
        "shuffle": data.shuffle,
        "seed": seed,
        "num_workers": data.num_workers,
        "drop_last": True,
        "max_regions_per_image": data.max_regions_per_image,
    }
    streams = {"streams": data.streams, "buffer": data.buffer}

    def loader(dataset: RegionDataset, batch_size: int, **place) -> RegionLoader | ShardLoader:
        if isinstance(dataset, ShardDataset):
            return ShardLoader(dataset, batch_size, **options, **streams, **place)
        return RegionLoader(dataset, batch_size, **options, **place)

    if not isinstance(records, Mixture):
        return loader(datasets[0], batch_size, rank=rank, world_size=world_size)
    weights = [source.weight for source in records.sources]
    if data.mix == "batches":
        loaders = [loader(dataset, batch_size, rank=rank, world_size=world_size) for dataset in datasets]
    else:
        sizes = counts_after(weights, batch_size)
        begin, end = share(batch_size, rank, world_size)
        loaders = []
        for dataset, source, size, start in zip(
            datasets, records.sources, sizes, accumulate(sizes, initial=0), strict=False
        ):
            if not size:
                raise ValueError(
                    f"data.train: the weight of {source.path} gives it none of {batch_size} regions; raise it, or set "
                    "data.mix=batches"
                )
            span = tuple(min(max(place - start, 0), size) for place in (begin, end))
            loaders.append(loader(dataset, size, span=span))
    return MixLoader(
        loaders,
        weights,
        [source.tasks for source in records.sources],
        batch_size,
        whole_batches=data.mix == "batches",
        num_workers=data.num_workers,
        rank=rank,
        world_size=world_size,
    )


class MixLoader(Loader):
    """Batches of several loaders, each of which goes on from epoch to epoch of its own.

    whole_batches: every batch comes from one of the loaders, by weight; otherwise each one's batch is a part of every
    batch. tasks: of each, the annotations to train on, None for all; the targets of others are taken out of the batch
    by its method `leave_out`. An epoch has as many regions as all data sets together, whatever the weights.
    """

    def __init__(
        self,
        loaders: Sequence[RegionLoader | ShardLoader],
        weights: Sequence[float],
        tasks: Sequence[Sequence[str] | None],
        batch_size: int,
        *,
        whole_batches: bool,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        mp_context: str | None = None,
    ):
        self.loaders, self.weights, self.whole_batches = list(loaders), list(weights), whole_batches
        left_out = [[] if own is None else [task for task in ANNOTATIONS if task not in own] for own in tasks]
        super().__init__(
            [dataset for loader in loaders for dataset in loader.datasets],
            batch_size,
            num_regions=sum(loader.num_regions for loader in loaders),
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            drop_last=True,
            mp_context=mp_context,
            finish=_LeaveOut(left_out) if any(left_out) else None,
        )

    def keys(self, epoch: int, start_batch: int) -> Iterator[Key]:
        first = epoch * len(self) + start_batch
        if self.whole_batches:
            done = counts_after(self.weights, first)
            turns = draws(self.weights, done)
        else:
            done, turns = [first] * len(self.loaders), None
        endless = [_from_batch(loader, number) for loader, number in zip(self.loaders, done, strict=True)]
        for _ in range(start_batch, len(self)):
            chosen = range(len(self.loaders)) if turns is None else [next(turns)]
            yield [(number, arguments) for number in chosen for _, arguments in next(endless[number])]


def _from_batch(loader: Loader, number: int) -> Iterator[Key]:
    """Keys of a loader from a batch on, counted over epochs, for ever."""
    epoch, batch = divmod(number, len(loader))
    while True:
        yield from loader.keys(epoch, batch)
        epoch, batch = epoch + 1, 0


class _LeaveOut:
    """Takes targets out of batches. tasks: of each data set, those that it is not to train."""

    def __init__(self, tasks: list[list[str]]):
        self.tasks = tasks

    def __call__(self, batch: Any, key: Key, num_samples: list[int]) -> Any:
        if not hasattr(batch, "leave_out"):
            raise ValueError(f"data.train: {type(batch).__name__} cannot leave tasks out; name no `tasks` there")
        start = 0
        for (number, _), count in zip(key, num_samples, strict=True):
            if self.tasks[number]:
                batch.leave_out(self.tasks[number], slice(start, start + count))
            start += count
        return batch


def draws(weights: Sequence[float], counts: Sequence[int]) -> Iterator[int]:
    """Who is drawn next, for ever, after each was drawn so many times: the one whose (count + 1/2) / weight is least
    (Webster's method). Exact, so that every process and every restart agrees."""
    weights, counts = [Fraction(weight) for weight in weights], list(counts)
    due = [(2 * count + 1) / weight for count, weight in zip(counts, weights, strict=True)]
    while True:
        chosen = due.index(min(due))
        yield chosen
        due[chosen] += 2 / weights[chosen]


def counts_after(weights: Sequence[float], number: int) -> list[int]:
    """How often each has been drawn in the first `number` draws, without going through them.

    >>> counts_after([3, 1], 4), counts_after([3, 1], 6)
    ([3, 1], [5, 1])
    """
    total = sum(Fraction(weight) for weight in weights)
    sure = max(number - len(weights), 0)  # all that are due by then are among the first `number`
    counts = [int(Fraction(weight) * sure / total + Fraction(1, 2)) for weight in weights]
    turns = draws(weights, counts)
    for _ in range(number - sum(counts)):
        counts[next(turns)] += 1
    return counts
