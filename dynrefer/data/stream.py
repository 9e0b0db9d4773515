"""Shards -> batches: a stream that is planned as a whole, read image by image, and decoded by the workers.

The index tells how many regions every image has, so an epoch is laid out before anything is read:

    shards in random order                     s3 s0 s4 s1 s2
    their images, cut into `streams`           |--------|--------|    with about as many regions in each
    in each, images change places              ~~~~~~~~ ~~~~~~~~      by less than buffer / streams
    and are packed                             |.|.|.|. |.|.|.|.      a step takes one pack of each stream

A process reads the streams that its share of the steps comes from, in a thread, and hands encoded images to its
workers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.example import Example
from dynrefer.data.loader import Key, Loader, check_most
from dynrefer.data.packing import PLAN_STREAM, Piece, deal, kept_counts, kept_positions, num_passes, pack
from dynrefer.data.records import Region
from dynrefer.data.shards import EncodedImage, Shards

AHEAD = 4  # steps that are read before they are asked for
PART = 64  # regions of a step for each stream


class ShardDataset(ExampleDataset):
    """Examples of encoded images. The same seed, epoch and region always give the same sample: that of an
    ExampleDataset, where the records have the order of the shards."""

    records: Shards

    @property
    def counts(self) -> np.ndarray:
        return self.records.counts

    def example(self, piece: Piece) -> Example:
        """Raises ValueError for bad records."""
        encoded: EncodedImage = piece.source
        count, first = int(self.counts[piece.number]), int(self.records.first_region[piece.number])
        rows = enumerate(encoded.regions(count))
        regions = [Region.from_dict(row, f"{encoded.name}.json:{number}") for number, row in rows]
        reader = partial(self._picture, encoded.image, regions, name=encoded.name)
        numbers = range(first, first + count)
        return self.told(Example(encoded.name, regions, reader, numbers, reduce=self._reduction(regions)))


@dataclass
class Stream:
    """A part of an epoch's images. images (M,): their numbers, in the order of the steps; places (M,): when each is
    read; starts (steps + 1,): of each step's images; room: what a step has for it."""

    images: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    room: float


class ShardLoader(Loader):
    """Steps of shards, with the interface of `ExampleLoader`.

    They depend on the shards, seed, epoch, batch_size, streams and buffer alone. A process reads only the streams that
    its share of every step comes from: with as many processes as streams each reads its own, with more of them some
    share one.

    streams: parts that are read side by side, at most one for each shard and each region of a step; None: one for
    every 64 regions of a step. One without shuffle. buffer: images of all streams that are held, encoded, to mix them.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_workers: int,
        max_regions_per_image: int | None = None,
        streams: int | None = None,
        buffer: int = 1000,
        **places,
    ):
        check_most(max_regions_per_image)
        if (streams is not None and streams < 1) or buffer < 1:
            raise ValueError(f"streams {streams}, buffer {buffer}: expected at least 1")
        self.shards, self.shuffle, self.seed = dataset.records, shuffle, seed
        self.max_regions_per_image = max_regions_per_image
        kept = kept_counts(self.shards.counts, max_regions_per_image)
        self._weights = dataset.processor.weights(kept)
        super().__init__([dataset], batch_size, num_regions=int(kept.sum()), num_workers=num_workers, **places)
        usual = 1 << max(0, (batch_size // PART).bit_length() - 1)  # a power of two, which processes share evenly
        wanted = min(streams or usual, batch_size, len(self.shards.urls))
        self.streams = wanted if shuffle else 1
        self.window = max(1, buffer // self.streams)
        self._plan: tuple[int, list[Stream]] | None = None

    def plan(self, epoch: int) -> list[Stream]:
        """The streams of an epoch."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._streams(epoch)
        return self._plan[1]

    def _streams(self, epoch: int) -> list[Stream]:
        generator = np.random.default_rng([self.seed, epoch, PLAN_STREAM, 0])
        first = self.shards.first_image
        shards = generator.permutation(len(first) - 1) if self.shuffle else range(len(first) - 1)
        images = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
        ends = np.cumsum(self._weights[images])
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, self.streams) / self.streams, side="left") + 1
        room = self.batch_size / self.streams
        result = []
        for own in np.split(images, np.minimum(cuts, len(images))):
            places = np.arange(len(own))
            if self.shuffle:
                places = np.argsort(places + generator.uniform(0, self.window, len(own)), kind="stable")
            result.append(Stream(own[places], places, pack(self._weights[own[places]], room), room))
        return result

    def num_steps(self, epoch: int) -> int:
        return max(len(stream.starts) - 1 for stream in self.plan(epoch))

    def keys(self, epoch: int, start_step: int) -> Iterator[Key]:
        return _ahead(self._keys_of(epoch, start_step), AHEAD)

    def _keys_of(self, epoch: int, start_step: int) -> Iterator[Key]:
        streams = self.plan(epoch)
        own, first, last = self._own_streams()
        readers = [self._pieces(streams[number], epoch, start_step) for number in own]
        spare: list[Piece] = []  # for a stand-in where the streams of this process have ended before the others
        for step in range(start_step, self.num_steps(epoch)):
            pieces = [piece for reader in readers for piece in next(reader)]
            if self.stand_in:
                spare = pieces[:1] or spare or [self._last_piece([streams[number] for number in own], epoch)]
            weights = [float(self._weights[piece.number]) for piece in pieces]
            shares = deal(
                pieces,
                weights,
                self.batch_size * (last - first) / self.world_size,
                processes=last - first,
                passes=max(self._num_passes(stream, step) for stream in streams),
                accumulation=self.accumulation,
                joint=self.joint,
            )
            share = [[(0, epoch, piece) for piece in one] for one in shares[self.rank - first]]
            yield self.filled(share, [(0, epoch, piece) for piece in pieces or spare])

    def _own_streams(self) -> tuple[range, int, int]:
        """The streams that this process reads, and the processes, from the first up to, not with, the last, that share
        them: those between two borders that streams and processes have in common."""
        common = np.gcd(self.streams, self.world_size)
        group = self.rank * common // self.world_size
        streams = range(group * self.streams // common, (group + 1) * self.streams // common)
        return streams, group * self.world_size // common, (group + 1) * self.world_size // common

    def _last_piece(self, streams: list[Stream], epoch: int) -> Piece:
        """The first of the last step that has any of these streams; all of them may be empty."""
        longest = max(streams, key=lambda stream: len(stream.starts))
        number = int(longest.images[longest.starts[-2]]) if len(longest.images) else 0
        (encoded,) = (encoded for _, encoded in self.shards.read([number]))
        return self._piece(number, encoded, epoch)

    def _piece(self, number: int, encoded: EncodedImage, epoch: int) -> Piece:
        """The regions that an epoch takes of an image."""
        seeds, count = [self.seed, epoch, PLAN_STREAM], int(self.shards.counts[number])
        chosen = kept_positions(seeds, number, count, self.max_regions_per_image, self.shuffle)
        return Piece(number, chosen, source=encoded)

    def _num_passes(self, stream: Stream, step: int) -> int:
        """Those that a stream asks for in a step; past its end the usual number."""
        images = stream.images[slice(*stream.starts[step : step + 2])] if step + 1 < len(stream.starts) else []
        return num_passes(float(self._weights[images].sum()), stream.room, self.accumulation, self.joint)

    def _pieces(self, stream: Stream, epoch: int, start_step: int) -> Iterator[list[Piece]]:
        """What the steps hold of a stream, from a step on, for ever."""
        first = int(stream.starts[min(start_step, len(stream.starts) - 1)])
        order = first + np.argsort(stream.places[first:], kind="stable")  # as they are read
        arriving = zip(order.tolist(), self.shards.read(stream.images[order]), strict=True)
        held: dict[int, EncodedImage] = {}
        for step in range(start_step, len(stream.starts) - 1):
            pieces = []
            for place in range(stream.starts[step], stream.starts[step + 1]):
                while place not in held:
                    arrived, (_, encoded) = next(arriving)
                    held[arrived] = encoded
                pieces.append(self._piece(int(stream.images[place]), held.pop(place), epoch))
            yield pieces
        while True:
            yield []


def _ahead(items: Iterator, most: int) -> Iterator:
    """The same items, made up to `most` ahead by a thread; it ends with the iteration."""
    made: queue.Queue = queue.Queue(most)
    stopped = threading.Event()
    end = object()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    break
            put((end, None))
        except BaseException as error:
            put((end, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, daemon=True, name="shards")
    try:
        thread.start()
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
