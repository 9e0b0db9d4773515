"""Which examples an epoch takes together, and who works on what: whole examples are packed into steps, a step is dealt
out to processes and their passes. Everything follows from counts, seed and epoch, before anything is opened.

    examples in order, with their regions      3 5 | 2 4 1 | 9 | 6 2       batch_size 8; 9 is a step of its own
    one step dealt to two processes            2 4 1 -> 4, 2 1             whole where they fit into a share
                                               6 2 -> 3 2, 3               in parts where not (share 4)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# told apart from the generators of single samples, which are seeded by (seed, epoch, number)
PLAN_STREAM = 0x504C414E


@dataclass(frozen=True)
class Piece:
    """Regions of one example: its number, and the positions of the regions among all that it has. source: the example
    itself, where it was read already."""

    number: int
    positions: np.ndarray
    source: Any = None

    def __len__(self) -> int:
        return len(self.positions)


def pack(weights: np.ndarray, room: float) -> np.ndarray:
    """Where each step begins, and the end: (steps + 1,). Neighbours share a step while their weights (N,) fit into
    `room`; one that is heavier is a step of its own.

    >>> pack(np.array([3, 5, 2, 4, 1, 9, 6, 2]), 8).tolist()
    [0, 2, 5, 6, 8]
    """
    ends = np.cumsum(weights, dtype=np.float64)
    befores = np.concatenate([[0.0], ends[:-1]])[: len(ends)]
    # of a step that began at each place, where it would end; an epoch has a hundred thousand steps
    stops = np.maximum(np.searchsorted(ends, befores + room, side="right"), np.arange(1, len(ends) + 1)).tolist()
    starts = [0]
    while starts[-1] < len(stops):
        starts.append(stops[starts[-1]])
    return np.array(starts, np.int64)


class Plan(Sequence):
    """The steps of an epoch, each a list of pieces, made when it is looked at.

    counts (N,): regions of every example; weights (N,): what each weighs in a step, its regions where None. shuffle:
    examples in random order. most: at most so many regions of an example, others in the next epoch.
    """

    def __init__(
        self,
        counts: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: bool,
        most: int | None = None,
        weights: np.ndarray | None = None,
    ):
        self.counts, self.shuffle, self.most, self.seeds = counts, shuffle, most, [seed, epoch, PLAN_STREAM]
        self.weights = kept_counts(counts, most) if weights is None else weights
        generator = np.random.default_rng([*self.seeds, 0])
        self.order = generator.permutation(len(counts)) if shuffle else np.arange(len(counts))
        self.starts = pack(self.weights[self.order], batch_size)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, step: int) -> list[Piece]:
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        return [self.piece(int(number)) for number in self.order[self.starts[step] : self.starts[step + 1]]]

    def piece(self, number: int) -> Piece:
        """The regions that the epoch takes of an example."""
        count = int(self.counts[number])
        return Piece(number, kept_positions(self.seeds, number, count, self.most, self.shuffle))


def kept_counts(counts: np.ndarray, most: int | None) -> np.ndarray:
    """Regions of every example that an epoch takes, of those there are."""
    return counts if most is None else np.minimum(counts, most)


def kept_positions(seeds: Sequence[int], number: int, count: int, most: int | None, shuffle: bool) -> np.ndarray:
    """Which of an example's `count` regions an epoch takes: at random where it shuffles, else the first."""
    if most is None or count <= most:
        return np.arange(count)
    if not shuffle:
        return np.arange(most)
    return np.sort(np.random.default_rng([*seeds, 1, number]).choice(count, most, replace=False))


Share = list[list[Piece]]  # one process's passes through the model, each some pieces


def num_passes(weight: float, batch_size: float, accumulation: int = 1, joint: bool = False) -> int:
    """Passes through the model that a step of this weight takes: one that holds a single example heavier than
    batch_size takes more than others, so that none of them is larger than usual. An example of a joint family is one
    pass."""
    return accumulation * (1 if joint else max(1, math.ceil(weight / batch_size)))


def deal(
    pieces: Sequence[Piece],
    weights: Sequence[float],
    batch_size: float,
    *,
    processes: int = 1,
    passes: int = 1,
    accumulation: int = 1,
    joint: bool = False,
) -> list[Share]:
    """A step's pieces as the shares of its processes, each of so many passes (see `num_passes`); some may be empty.

    A share weighs about batch_size / processes / accumulation. What is heavier is cut into parts of about equal size,
    unless its regions belong together (`joint`); the rest is dealt out whole.
    """
    room, items = batch_size / processes / accumulation, list(zip(pieces, weights, strict=True))
    return [
        [[piece for piece, _ in one] for one in _spread(own, passes, room, joint)]
        for own in _spread(items, processes, room, joint)
    ]


Weighed = tuple[Piece, float]


def _spread(items: Iterable[Weighed], number: int, room: float, joint: bool) -> list[list[Weighed]]:
    """Items over `number` places: the heaviest first, each to where the least is; in each place in their order."""
    if number == 1:
        return [list(items)]
    parts = [part for item in items for part in ([item] if joint else _cut(*item, room, number))]
    places: list[list[int]] = [[] for _ in range(number)]
    loads = [0.0] * number
    for index in sorted(range(len(parts)), key=lambda index: (-parts[index][1], index)):
        least = loads.index(min(loads))
        places[least].append(index)
        loads[least] += parts[index][1]
    return [[parts[index] for index in sorted(place)] for place in places]


def _cut(piece: Piece, weight: float, room: float, most: int) -> list[Weighed]:
    """A piece in as few parts of about equal size as `room` asks for, at most `most` of at least a region each."""
    number = min(math.ceil(weight / room), most, len(piece))
    if number <= 1:
        return [(piece, weight)]
    parts = np.array_split(piece.positions, number)
    return [(replace(piece, positions=part), weight * len(part) / len(piece)) for part in parts]
