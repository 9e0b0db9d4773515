"""Shards -> batches: a stream that is planned as a whole, read image by image, and decoded by the workers.

The index tells how many regions every image has, so an epoch is laid out before anything is read:

    shards in random order                    s3 s0 s4 s1 s2
    their regions, cut into `streams`         |--------|--------|    equal parts, wherever the cuts fall
    in each, images change places             ~~~~~~~~ ~~~~~~~~      by less than buffer / 2 / streams
    every batch takes a stretch of each       b0 b4 .. b0 b4 ..      in the order of `Visits`

A process reads the streams that its part of the batches comes from, in a thread, and hands encoded images to its
workers.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynrefer.data.dataset import ImagePart, RegionDataset
from dynrefer.data.loader import (
    LANES,
    PLAN_STREAM,
    Key,
    Loader,
    Visits,
    check_most,
    kept_counts,
    kept_positions,
    parts_of_batch,
    share,
)
from dynrefer.data.records import Region
from dynrefer.data.shards import EncodedImage, Shards

AHEAD = 4  # batches that are read before they are asked for


@dataclass
class Piece:
    """Regions of an encoded image: which of its `count`, and the number of its first one in all shards."""

    encoded: EncodedImage
    count: int
    chosen: np.ndarray
    first_number: int
    unfinished: bool  # the image is wanted again soon


class ShardDataset(RegionDataset):
    """Samples of encoded images. The same seed, epoch and region always give the same sample: that of a RegionDataset,
    where the records have the order of the shards."""

    records: Shards

    def samples(self, pieces: list[Piece], epoch: int) -> list[dict]:
        """One sample a region, in the order of the pieces. Raises ValueError for bad records and images."""
        parts = []
        for piece in pieces:
            name, records = piece.encoded.name, piece.encoded.regions(piece.count)
            chosen = piece.chosen.tolist()
            wanted = range(piece.count) if self.draft else chosen
            regions = {k: Region.from_dict(records[k], f"{name}.json:{k}") for k in wanted}
            reduce = self.processor.reduction(list(regions.values())) if self.draft else 1
            some, numbers = [regions[k] for k in chosen], [piece.first_number + k for k in chosen]
            parts.append(ImagePart(name, piece.encoded.image, some, numbers, piece.unfinished, reduce))
        return self.part_samples(parts, epoch)


@dataclass
class Stream:
    """A part of an epoch's regions, in an order of its own. M images lie in it, the first and the last perhaps in part.

    images (M,): their numbers; places (M,): when each is read; firsts (M,): of the regions that the epoch keeps of it,
    how many lie before this part; stops (M,): regions of the stream up to the end of each; width: regions of a stretch,
    which is what a batch takes.
    """

    images: np.ndarray
    places: np.ndarray
    firsts: np.ndarray
    stops: np.ndarray
    width: int


class ShardLoader(Loader):
    """Batches of shards, with the interface of `RegionLoader`.

    They depend on the shards, seed, epoch, batch_size, streams and buffer alone. A process reads only the streams that
    its part of every batch comes from: with as many processes as streams each reads its own, with more of them some
    share one. Whole batches come first; the regions that do not fill one make the last, unless drop_last.

    streams: parts that are read side by side, at most one for each shard and each region of a batch; None: one for
    every 64 regions of a batch. One without shuffle. buffer: images of all streams that are held, encoded, to mix them:
    half of them to change places, half for `Visits`. span: see RegionLoader.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        max_regions_per_image: int | None = None,
        streams: int | None = None,
        buffer: int = 1000,
        mp_context: str | None = None,
        span: tuple[int, int] | None = None,
    ):
        check_most(max_regions_per_image)
        if (streams is not None and streams < 1) or buffer < 1:
            raise ValueError(f"streams {streams}, buffer {buffer}: expected at least 1")
        self.shards, self.shuffle, self.seed, self.span = dataset.records, shuffle, seed, span
        self.max_regions_per_image = max_regions_per_image
        self._kept = kept_counts(self.shards.counts, max_regions_per_image)
        super().__init__(
            [dataset],
            batch_size,
            num_regions=int(self._kept.sum()),
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            mp_context=mp_context,
        )
        wanted = min(streams or parts_of_batch(batch_size), batch_size, len(self.shards.urls))
        self.streams = wanted if shuffle else 1
        self.window = max(1, buffer // 2 // self.streams)
        num_full = self.num_regions // batch_size
        rows = max(1, int(buffer / 2 * self._kept.mean() / batch_size / LANES))  # of batches whose images can be held
        self.visits = Visits(num_full, LANES if shuffle else 1, block=LANES * rows)

    def plan(self, epoch: int) -> list[Stream]:
        """The streams of an epoch, and one more with what makes its short last batch."""
        generator = np.random.default_rng([self.seed, epoch, PLAN_STREAM, 0])
        first = self.shards.first_image
        shards = generator.permutation(len(first) - 1) if self.shuffle else range(len(first) - 1)
        images = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
        ends = np.cumsum(self._kept[images])  # of the regions of each image, (G,)
        num_full = self.num_regions // self.batch_size
        bounds = [number * self.batch_size // self.streams for number in range(self.streams + 1)]
        cuts = [*(num_full * bound for bound in bounds), self.num_regions]
        widths = [*np.diff(bounds).tolist(), self.num_regions - num_full * self.batch_size]
        result = []
        for (begin, end), width in zip(pairwise(cuts), widths, strict=True):
            places = np.arange(*np.searchsorted(ends, [begin, end - 1], side="right") + [0, 1])
            if self.shuffle:
                moved = generator.uniform(0, self.window, len(places))
                places = places[np.argsort(np.arange(len(places)) + moved, kind="stable")]
            kept = self._kept[images[places]]
            before = ends[places] - kept  # regions of the images in front
            firsts = np.maximum(begin - before, 0)
            stops = np.cumsum(np.minimum(end - before, kept) - firsts)
            result.append(Stream(images[places], places, firsts, stops, width))
        return result

    def keys(self, epoch: int, start_batch: int) -> Iterator[Key]:
        return _ahead(self._keys_of(epoch, start_batch), AHEAD)

    def _keys_of(self, epoch: int, start_batch: int) -> Iterator[Key]:
        *streams, rest = self.plan(epoch)
        begin, end = self.span or share(self.batch_size, self.rank, self.world_size)
        readers, start = [], 0
        for stream in streams:
            first, last = np.clip([begin - start, end - start], 0, stream.width).tolist()
            if first < last:
                readers.append(self._pieces(stream, epoch, self.visits, start_batch, first, last))
            start += stream.width
        num_full = self.num_regions // self.batch_size
        for _ in range(start_batch, num_full):
            yield [(0, ([piece for reader in readers for piece in next(reader)], epoch))]
        if len(self) > num_full:
            span = share(rest.width, self.rank, self.world_size)
            for pieces in self._pieces(rest, epoch, Visits(1, 1, 1), 0, *span):
                yield [(0, (pieces, epoch))]

    def _pieces(
        self, stream: Stream, epoch: int, visits: Visits, start: int, first: int, last: int
    ) -> Iterator[list[Piece]]:
        """What positions first ... last - 1 of a stream's stretches hold, from the visit `start` on."""
        stops, width = stream.stops, stream.width
        begins = np.concatenate([[0], stops[:-1]])
        seeds = [self.seed, epoch, PLAN_STREAM]
        ours = np.append(visits.turn >= start, False)  # stretches that are still to come
        before = np.concatenate([[0], np.cumsum(ours)])

        def taken(positions: np.ndarray) -> np.ndarray:
            """How many of the regions before a position we are to take."""
            stretch, place = np.divmod(positions, width)
            return before[stretch] * (last - first) + ours[stretch] * np.clip(place - first, 0, last - first)

        left = taken(stops) - taken(begins)  # regions of each image that we still take
        order = np.flatnonzero(left)
        order = order[np.argsort(stream.places[order], kind="stable")]  # as they are read
        arriving = zip(order.tolist(), self.shards.read(stream.images[order]), strict=True)
        held: dict[int, EncodedImage] = {}
        for stretch in visits.order[start:].tolist():
            pieces = []
            position, stop = stretch * width + first, stretch * width + last
            while position < stop:
                k = int(np.searchsorted(stops, position, side="right"))
                while k not in held:
                    arrived, (_, encoded) = next(arriving)
                    held[arrived] = encoded
                image, until = int(stream.images[k]), min(stop, int(stops[k]))
                count = int(self.shards.counts[image])
                chosen = np.arange(count)[kept_positions(seeds, image, count, self.max_regions_per_image, self.shuffle)]
                skipped = int(stream.firsts[k] - begins[k])  # from positions in the stream to those in the image
                left[k] -= until - position
                pieces.append(
                    Piece(
                        encoded=held[k],
                        count=count,
                        chosen=chosen[position + skipped : until + skipped],
                        first_number=int(self.shards.first_region[image]),
                        unfinished=bool(left[k]),
                    )
                )
                if not left[k]:
                    del held[k]
                position = until
            yield pieces


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
