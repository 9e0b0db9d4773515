"""Several data sets in one training run, by weight: whole steps of one of them, or a part of every step.

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
from itertools import count, islice, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.features import FeatureStore
from dynrefer.data.loader import DataConfig, DataSource, ExampleLoader, Key, Loader
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords, record_root
from dynrefer.data.shards import Shards, is_shards, open_shards
from dynrefer.data.stream import ShardDataset, ShardLoader
from dynrefer.models.family import ANNOTATIONS, Processor
from dynrefer.models.options import Options
from dynrefer.vocabulary import read_words


class Mixture:
    """Opened data sets with their weights and tasks. Iterating gives the regions of all, one data set after another."""

    def __init__(self, parts: Sequence[RegionRecords | Shards], sources: Sequence[DataSource]):
        self.parts, self.sources = list(parts), list(sources)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def licences(self) -> Counter:
        """{(source, licence): number of its regions}, as RegionRecords has it."""
        return sum((part.licences() for part in self.parts), Counter())

    def __iter__(self) -> Iterator[Region]:
        for part in self.parts:
            yield from part


def open_training(train: str | os.PathLike | Sequence[str | DataSource]) -> RegionRecords | Shards | Mixture:
    """What `data.train` names: a record file, several read as one, shards, or a mixture where an entry has a weight.

    Raises ValueError for what cannot be opened, and for record files and shards read as one.
    """
    if isinstance(train, (str, os.PathLike)) or not any(isinstance(one, DataSource) for one in train):
        if not is_shards(train):
            return open_records(train)
        names = [train] if isinstance(train, (str, os.PathLike)) else train
        if files := [name for name in names if not is_shards(name)]:
            raise ValueError(f"{files[0]}: a record file among shards; give each a weight to mix them")
        return open_shards(train)
    sources = [one if isinstance(one, DataSource) else DataSource(one) for one in train]
    return Mixture([open_training(source.path) for source in sources], sources)


def training_loader(
    records: RegionRecords | Shards | Mixture,
    processor: Processor,
    options: Options,
    data: DataConfig,
    *,
    seed: int,
    features: Sequence[FeatureStore | None] | None = None,
    **places,
) -> Loader:
    """Steps of what `open_training` gave, for training. features: what `data_features` gave, opened here where None.
    places: rank, world_size, accumulation, joint, stand_in, as `Loader` has them."""
    parts = records.parts if isinstance(records, Mixture) else [records]
    sources = records.sources if isinstance(records, Mixture) else [DataSource(data.train)]
    features = data_features(records) if features is None else features
    datasets = []
    for part, source, store in zip(parts, sources, features, strict=True):
        kind = ShardDataset if isinstance(part, Shards) else ExampleDataset
        known = {"features": store, "vocabulary": vocabulary_of(source), "negatives": source.negatives}
        room = (data.cache_mb << 20) // len(parts)
        ways = {"train": True, "seed": seed, "cache_bytes": room, "draft": data.draft}
        datasets.append(kind(part, processor, options, **ways, **known))
    choices = {
        "shuffle": data.shuffle,
        "seed": seed,
        "num_workers": data.num_workers,
        "max_regions_per_image": data.max_regions_per_image,
        **places,
    }
    streams = {"streams": data.streams, "buffer": data.buffer}

    def loader(dataset: ExampleDataset, batch_size: int) -> ExampleLoader | ShardLoader:
        if isinstance(dataset, ShardDataset):
            return ShardLoader(dataset, batch_size, **choices, **streams)
        return ExampleLoader(dataset, batch_size, **choices)

    if not isinstance(records, Mixture):
        return loader(datasets[0], data.batch_size)
    weights = [source.weight for source in records.sources]
    sizes = [data.batch_size] * len(datasets)
    if data.mix == "regions":
        sizes = counts_after(weights, data.batch_size)
        if 0 in sizes:
            raise ValueError(
                f"data.train: the weight of {records.sources[sizes.index(0)].path} gives it none of {data.batch_size} "
                "regions; raise it, or set data.mix=batches"
            )
    return MixLoader(
        [loader(dataset, size) for dataset, size in zip(datasets, sizes, strict=True)],
        weights,
        [source.tasks for source in records.sources],
        data.batch_size,
        whole_steps=data.mix == "batches",
        num_workers=data.num_workers,
        **places,
    )


def data_features(records: RegionRecords | Shards | Mixture) -> list[FeatureStore | None]:
    """The frozen features of every data set, None where its pictures are read."""
    sources = records.sources if isinstance(records, Mixture) else [None]
    return [FeatureStore(source.features) if source and source.features else None for source in sources]


def vocabulary_of(source: DataSource) -> list[str] | None:
    """The names that a data set tells apart, each once: its own file's, else those of categories.txt beside it."""
    paths = [source.path] if isinstance(source.path, str | os.PathLike) else source.path
    beside = [record_root(Path(path)) / "categories.txt" for path in paths if not is_shards(path)]
    found = [source.vocabulary] if source.vocabulary else [path for path in beside if path.is_file()]
    return list(dict.fromkeys(word for path in found for word in read_words(path))) or None


class MixLoader(Loader):
    """Steps of several loaders, each of which goes on from epoch to epoch of its own.

    whole_steps: every step comes from one of the loaders; otherwise it has a part from each, a step of its own, which
    is left out now and then where its steps are too large for its weight. Both so that the regions seen go by weight.
    tasks: of each, the annotations to train on, None for all; the targets of others
    are taken out of the batch by its method `leave_out`. An epoch has about as many regions as all data sets together,
    whatever the weights, and always the same number of steps.
    """

    def __init__(
        self,
        loaders: Sequence[ExampleLoader | ShardLoader],
        weights: Sequence[float],
        tasks: Sequence[Sequence[str] | None],
        batch_size: int,
        *,
        whole_steps: bool,
        num_workers: int,
        **places,
    ):
        self.loaders, self.whole_steps = list(loaders), whole_steps
        self._lengths: list[list[int]] = [[0] for _ in loaders]  # steps of each up to the end of every epoch
        sizes = [Fraction(loader.num_regions, loader.num_steps(0)) for loader in loaders]  # of a step, in the mean
        rates = [Fraction(weight) / size for weight, size in zip(weights, sizes, strict=True)]
        most = sum(rates) if whole_steps else max(rates)
        self.rates = [rate / most for rate in rates]  # steps of each loader in a step of all
        num_regions = sum(loader.num_regions for loader in loaders)
        self._num_steps = max(1, round(num_regions / sum(map(Fraction, weights)) * most))
        left_out = [[] if own is None else [task for task in ANNOTATIONS if task not in own] for own in tasks]
        super().__init__(
            [dataset for loader in loaders for dataset in loader.datasets],
            batch_size,
            num_regions=num_regions,
            num_workers=num_workers,
            finish=_LeaveOut(left_out) if any(left_out) else None,
            **places,
        )

    def num_steps(self, epoch: int) -> int:
        return self._num_steps

    def keys(self, epoch: int, start_step: int) -> Iterator[Key]:
        first, last = epoch * self._num_steps + start_step, (epoch + 1) * self._num_steps
        done, turns = self._turns(first)
        endless = [self._from_step(number, step) for number, step in enumerate(done)]
        for chosen in islice(turns, last - first):
            yield _joined([_renumbered(next(endless[number]), number) for number in chosen])

    def _turns(self, first: int) -> tuple[list[int], Iterator[list[int]]]:
        """(steps of each loader before a step, the loaders of every step from there on, for ever)."""
        if self.whole_steps:
            done = counts_after(self.rates, first)
            return done, ([chosen] for chosen in draws(self.rates, done))

        def chosen(step: int) -> list[int]:
            return [number for number, rate in enumerate(self.rates) if ceil((step + 1) * rate) > ceil(step * rate)]

        return [ceil(first * rate) for rate in self.rates], map(chosen, count(first))

    def _from_step(self, number: int, step: int) -> Iterator[Key]:
        """Keys of a loader from a step on, counted over epochs, for ever."""
        loader, ends = self.loaders[number], self._lengths[number]
        while ends[-1] <= step:
            ends.append(ends[-1] + loader.num_steps(len(ends) - 1))
        epoch = next(epoch for epoch, end in enumerate(ends[1:]) if step < end)
        start = step - ends[epoch]
        while True:
            yield from loader.keys(epoch, start)
            epoch, start = epoch + 1, 0


def _renumbered(key: Key, dataset: int) -> Key:
    return [([(dataset, epoch, piece) for _, epoch, piece in items], stand_in) for items, stand_in in key]


def _joined(keys: Sequence[Key]) -> Key:
    """One key of several: pass by pass, and a stand-in only where there is nothing else."""
    passes = []
    for each in zip_longest(*keys, fillvalue=([], True)):
        real = [item for items, stand_in in each if not stand_in for item in items]
        shown = [item for items, _ in each for item in items][:1]
        passes.append((real, False) if real or not shown else (shown, True))
    return passes


class _LeaveOut:
    """Takes targets out of batches. tasks: of each data set, those that it is not to train."""

    def __init__(self, tasks: list[list[str]]):
        self.tasks = tasks

    def __call__(self, batch: Any, sizes: list[tuple[int, int]]) -> Any:
        start = 0
        for number, size in sizes:
            if self.tasks[number]:
                batch.leave_out(self.tasks[number], slice(start, start + size))
            start += size
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
