"""Examples -> batches: the steps of an epoch, the same for any number of workers and processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.example import Example
from dynrefer.data.packing import Piece, Plan, deal, kept_counts, num_passes
from dynrefer.models.family import ANNOTATIONS


@dataclass(frozen=True)
class DataSource:
    """One data set, of several that are mixed or alone."""

    path: str | list[str]  # record file, record files read as one, or shards
    weight: float = 1.0  # its share of the regions seen, beside the weights of the others
    tasks: list[str] | None = None  # of its annotations, those to train on: captions, tags, ...; null: all
    features: str = ""  # folder of frozen features that `train.extract` makes; empty: pictures are read
    # names that it tells apart, a file with one a line; empty: categories.txt beside the records, where there is one
    vocabulary: str = ""
    # of a data set labelled in part: names that an example is trained against, drawn anew for each, beside its own;
    # null: all of the vocabulary
    negatives: int | None = None

    def __post_init__(self):
        if not self.path:
            raise ValueError("path is empty; name a record file or shards")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight {self.weight} of {self.path}: expected a number above 0")
        if self.negatives is not None and self.negatives < 1:
            raise ValueError(f"negatives {self.negatives} of {self.path}: expected at least 1, or null for all names")
        if unknown := [task for task in self.tasks or ANNOTATIONS if task not in ANNOTATIONS]:
            raise ValueError(f"task {unknown[0]!r} of {self.path}: expected some of {', '.join(ANNOTATIONS)}")


@dataclass(frozen=True)
class DataConfig:
    """Which records are read and how they are batched."""

    # record file, record files read as one, shards (their folder, index or pattern), or {path, weight, ...} to mix, see
    # DataSource
    train: str | list[str | DataSource] = ""
    val: str = ""  # record file for periodic evaluation; empty = none
    batch_size: int = 64  # regions an optimizer step holds at most, over all processes and accumulated batches
    num_workers: int = 2  # processes that prepare batches, for each training process; 0 = none
    max_regions_per_image: int | None = None  # at most so many regions of an image an epoch, others in the next
    shuffle: bool = True  # another order of images each epoch
    cache_mb: int = 0  # room for decoded images in each worker, in MB
    draft: bool = False  # decode JPEGs at 1/2 or 1/4 where every view allows it: quicker, pixels differ a little
    # whole steps of one data set, or steps with some regions of each; the regions seen go by weight either way
    mix: Literal["batches", "regions"] = "batches"
    # parts that shards are read in side by side: up to so many processes read no shard twice; null: one for every 64
    # regions of a step. Another number makes other steps
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


# What a worker makes a step's batches of: for each pass its pieces, each with the number of its data set and the epoch
# that this is in; and whether the pass is a stand-in.
Item = tuple[int, int, Piece]
Pass = tuple[list[Item], bool]
Key = list[Pass]
# A last touch where a batch is made: (batch, number of the data set and of regions, piece by piece) -> what goes out.
Finish = Callable[[Any, list[tuple[int, int]]], Any]


class StandIn:
    """What a process that has no region works on where it cannot be idle: a batch whose sums count nothing. The others
    wait for its share of the weights (ZeRO-3), and gradients must arrive in the same order everywhere (ZeRO-2 too)."""

    def __init__(self, shown: Any):
        self.shown, self.ids = shown, []

    def __len__(self) -> int:
        return 0

    def to(self, device: torch.device | str) -> StandIn:
        return StandIn(self.shown.to(device))

    def counts(self) -> dict[str, float]:
        return {}


class Loader:
    """What all loaders share: the steps of an epoch, made by workers from the keys that a subclass gives.

    datasets: those that keys speak of by number; all have the same processor. Which regions a step has depends on the
    records, seed, epoch and batch_size alone; process `rank` of `world_size` works on its share of it in passes
    (`accumulation` of them, more where an example is larger than batch_size), and num_workers changes nothing.
    joint: examples are never cut. stand_in: a process without a region gets a `StandIn`. finish: see `Finish`.
    """

    def __init__(
        self,
        datasets: Sequence[ExampleDataset],
        batch_size: int,
        *,
        num_regions: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        joint: bool = False,
        stand_in: bool = False,
        mp_context: str | None = None,
        finish: Finish | None = None,
    ):
        if batch_size < 1 or accumulation < 1:
            raise ValueError(f"batch_size {batch_size}, accumulation {accumulation}: expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes: expected 0..{world_size - 1}")
        if num_workers < 0:
            raise ValueError(f"num_workers {num_workers}: expected 0 (no extra process) or more")
        self.datasets, self.batch_size, self.num_regions = list(datasets), batch_size, num_regions
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.joint, self.stand_in = joint, stand_in
        self.num_workers, self.mp_context = num_workers, mp_context
        self._maker, self._keys = _BatchMaker(self.datasets, finish), _Keys()
        self._loader: DataLoader | None = None

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch, the same in every process."""
        raise NotImplementedError

    def keys(self, epoch: int, start_step: int) -> Iterator[Key]:
        """What this process's batches are made of, from `start_step` on."""
        raise NotImplementedError

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Step by step the batches that this process works on, one a pass, as `processor.collate` makes them; a batch
        may be empty. Nothing of the steps before `start_step` is opened."""
        steps = self.num_steps(epoch)
        if not 0 <= start_step <= steps:
            raise ValueError(f"start_step {start_step}: expected 0..{steps}, the steps of epoch {epoch}")
        if start_step < steps:
            yield from self.made(self.keys(epoch, start_step))

    def made(self, keys: Iterator[Key]) -> Iterator[list[Any]]:
        """The batches of keys, in their order."""
        self._keys.start(keys)
        if self._loader is None:
            self._loader = DataLoader(
                self._maker,
                batch_size=None,  # a key is a whole step
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

    def dealt(self, pieces: Sequence[Piece], weights: Sequence[float], epoch: int) -> Key:
        """This process's share of a step, with what it works on where it has nothing."""
        passes = num_passes(sum(weights), self.batch_size, self.accumulation, self.joint)
        places = {"processes": self.world_size, "passes": passes, "accumulation": self.accumulation}
        share = deal(pieces, weights, self.batch_size, joint=self.joint, **places)[self.rank]
        return self.filled([[(0, epoch, piece) for piece in one] for one in share], [(0, epoch, p) for p in pieces])

    def filled(self, share: list[list[Item]], step: list[Item]) -> Key:
        """A share as a key: where a pass is empty, the smallest piece of the step stands in, if it must."""
        if not self.stand_in:
            return [(one, False) for one in share]
        smallest = min(step, key=lambda item: len(item[-1]))
        if not self.joint:
            smallest = (*smallest[:2], replace(smallest[-1], positions=smallest[-1].positions[:1]))
        return [(one or [smallest], not one) for one in share]


class ExampleLoader(Loader):
    """Steps of a dataset's examples: in random order or the file's, whole ones up to batch_size regions.

    shuffle: another order each epoch. max_regions_per_image: a random choice of so many of an example's regions each
    epoch. mp_context: how workers start, "fork" or "spawn"; None = torch's default.
    """

    def __init__(
        self,
        dataset: ExampleDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_workers: int,
        max_regions_per_image: int | None = None,
        **places,
    ):
        check_most(max_regions_per_image)
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.max_regions_per_image = max_regions_per_image
        kept = kept_counts(dataset.counts, max_regions_per_image)
        self._weights = dataset.processor.weights(kept)
        self._plan: tuple[int, Plan] | None = None
        super().__init__([dataset], batch_size, num_regions=int(kept.sum()), num_workers=num_workers, **places)

    def plan(self, epoch: int) -> Plan:
        """The steps of an epoch, without opening anything."""
        if self._plan is None or self._plan[0] != epoch:
            options = {"seed": self.seed, "epoch": epoch, "shuffle": self.shuffle, "most": self.max_regions_per_image}
            self._plan = epoch, Plan(self.dataset.counts, self.batch_size, weights=self._weights, **options)
        return self._plan[1]

    def num_steps(self, epoch: int) -> int:
        return len(self.plan(epoch))

    def key(self, epoch: int, step: int) -> Key:
        """What this process's batches of one step are made of."""
        pieces = self.plan(epoch)[step]
        return self.dealt(pieces, [float(self._weights[piece.number]) for piece in pieces], epoch)

    def keys(self, epoch: int, start_step: int) -> Iterator[Key]:
        return (self.key(epoch, step) for step in range(start_step, self.num_steps(epoch)))


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
    """Map from a key to the batches of its passes, in the shape a DataLoader wants its dataset."""

    def __init__(self, datasets: list[ExampleDataset], finish: Finish | None):
        self.datasets, self.finish = datasets, finish

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, key: Key) -> list[Any]:
        wanted = Counter((number, piece.number) for items, _ in key for number, _, piece in items)
        opened: dict[tuple[int, int], Example] = {}  # of which another pass wants more
        batches = []
        for items, stand_in in key:
            samples, sizes = [], []
            for number, epoch, piece in items:
                name, dataset = (number, piece.number), self.datasets[number]
                example = opened.pop(name, None) or dataset.example(piece)
                samples += dataset.samples(example.part(piece.positions), epoch)
                sizes.append((number, len(piece)))
                wanted[name] -= 1
                if wanted[name]:
                    opened[name] = example
            batch = self.datasets[0].processor.collate(samples)
            if stand_in:
                batch.leave_out(ANNOTATIONS)
                batch = StandIn(batch)
            elif self.finish is not None:
                batch = self.finish(batch, sizes)
            batches.append(batch)
        return batches


def _as_it_is(batches: Any) -> Any:
    return batches


def _start_worker(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too: the process that they work for decides
    torch.set_num_threads(1)  # many workers with many threads each stand in each other's way
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
