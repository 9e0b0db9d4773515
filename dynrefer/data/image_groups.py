"""What a record file is known by without its records: which of them share an image, and that no id stands twice.

Everything here is arrays: five million records must open in a second, and not as five million Python objects.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

BLOCK = 1 << 16  # texts that are hashed at once
_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(9)], dtype=np.uint64)  # the first `count` bytes of eight
_ODD = np.uint64(0x9E3779B97F4A7C15)


class ImageGroups(Sequence):
    """The records of each image: `groups[k]` are the indices of the k-th image's, in file order, as a list.

    Images stand in the order of their first record. starts (G + 1,): where each group begins; order (N,): record
    indices group by group, or None where every image's records stand together and `order` would be 0 ... N - 1.
    """

    def __init__(self, starts: np.ndarray, order: np.ndarray | None = None):
        self.starts, self.order = starts, order

    @classmethod
    def from_codes(cls, codes: np.ndarray) -> "ImageGroups":
        """codes (N,): the image of every record as a number, 0, 1, ... in the order of first appearance."""
        if not len(codes):
            return cls(np.zeros(1, np.int64))
        steps = np.diff(codes)  # (N - 1,)
        if ((steps == 0) | (steps == 1)).all():  # every image's records stand together
            return cls(np.concatenate([[0], np.flatnonzero(steps) + 1, [len(codes)]]))
        starts = np.concatenate([[0], np.cumsum(np.bincount(codes))])
        return cls(starts, np.argsort(codes, kind="stable").astype(np.int32 if len(codes) < 2**31 else np.int64))

    def codes(self) -> np.ndarray:
        """The group of every record, (N,)."""
        codes = np.repeat(np.arange(len(self), dtype=np.int32), self.counts)
        if self.order is None:
            return codes
        result = np.empty_like(codes)
        result[self.order] = codes
        return result

    def number(self, record: int) -> int:
        """The group of one record."""
        if self.order is None:
            return int(np.searchsorted(self.starts, record, side="right")) - 1
        return int(self._codes[record])

    @cached_property
    def _codes(self) -> np.ndarray:
        return self.codes()

    @property
    def counts(self) -> np.ndarray:
        """Records of every image, (G,)."""
        return np.diff(self.starts)

    def firsts(self) -> np.ndarray:
        """The first record of every image, (G,)."""
        return self.starts[:-1] if self.order is None else np.asarray(self.order)[self.starts[:-1]]

    def members(self, number: int) -> np.ndarray:
        """Record indices of one image."""
        first, last = int(self.starts[number]), int(self.starts[number + 1])
        return np.arange(first, last) if self.order is None else np.asarray(self.order[first:last], np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> list[int]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        return self.members(int(number) % len(self)).tolist()

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return f"ImageGroups({len(self)} images, {int(self.starts[-1])} records)"

    def save(self, stem: str) -> None:
        """Writes STEM.starts.npy, and STEM.order.npy where there is an order."""
        np.save(f"{stem}.starts.npy", self.starts)
        if self.order is not None:
            np.save(f"{stem}.order.npy", self.order)

    @classmethod
    def load(cls, stem: str) -> "ImageGroups | None":
        """What `save` wrote, memory-mapped; None where there is nothing. ValueError for a damaged file."""
        if not os.path.exists(f"{stem}.starts.npy"):
            return None
        try:
            starts = np.load(f"{stem}.starts.npy", mmap_mode="r")
            order = np.load(f"{stem}.order.npy", mmap_mode="r") if os.path.exists(f"{stem}.order.npy") else None
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{stem}.*.npy: damaged ({error}); remove them, they are made anew when needed") from error
        return cls(starts, order)


def renumbered(codes: np.ndarray) -> np.ndarray:
    """The same codes as 0, 1, ... in the order of first appearance."""
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), np.int32)
    ranks[np.argsort(firsts)] = np.arange(len(firsts))
    return ranks[inverse]


def text_hashes(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """64 bits of each text, uint64 (N,): the same for the same text, and for others not the same but once in 2^64.

    data: bytes of all texts, uint8; offsets (N + 1,): where each begins and the last ends, as Arrow keeps them.
    """
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    if not len(starts):
        return np.zeros(0, np.uint64)
    begin, end = int(starts[0]), int(offsets[-1])
    padded = np.zeros(end - begin + 8, np.uint8)
    padded[: end - begin] = data[begin:end]
    words = np.ndarray(len(padded) - 7, "<u8", buffer=padded, strides=(1,))  # eight bytes from every byte on
    starts -= begin
    hashes = lengths.astype(np.uint64) * _ODD
    rows: np.ndarray | slice = slice(None)  # those that go on at byte `place`
    for place in range(0, int(lengths.max()), 8):
        if lengths.min() <= place:
            rows = np.flatnonzero(lengths > place)
        part = words[starts[rows] + place] & _MASKS[np.minimum(lengths[rows] - place, 8)]
        part = (hashes[rows] ^ part) * _ODD
        hashes[rows] = part ^ (part >> np.uint64(29))
    return hashes


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """`text_hashes` of Python texts."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)])
    return text_hashes(np.frombuffer(b"".join(encoded), np.uint8), offsets)


def repeated(hashes: Callable[[], Iterator[np.ndarray]], total: int, text: Callable[[int], str]) -> list[int]:
    """Rows [first, again] of a text that stands twice, where `again` is the earliest such row; [] where none does.

    hashes: called for the hashes of all texts, part by part; total: their number; text: the text of a row, asked for
    only where hashes agree. Eight bytes a text are held.
    """
    every, place = np.empty(total, np.uint64), 0
    for part in hashes():
        every[place : place + len(part)] = part
        place += len(part)
    assert place == total, f"{place} hashes of {total} texts"
    every.sort()
    suspects = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    if not len(suspects):
        return []
    first: dict[str, int] = {}
    place = 0
    for part in hashes():
        for row in np.flatnonzero(np.isin(part, suspects)) + place:
            if (before := first.setdefault(text(int(row)), int(row))) != row:
                return [before, int(row)]
        place += len(part)
    return []


def list_hashes(texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Hashes of many Python texts, BLOCK at a time."""
    for start in range(0, len(texts), BLOCK):
        yield hashes_of(texts[start : start + BLOCK])


def column_hashes(arrays: Iterable) -> Iterator[np.ndarray]:
    """Hashes of pyarrow string arrays, BLOCK texts at a time."""
    for array in arrays:
        for start in range(0, len(array), BLOCK):
            yield text_hashes(*_buffers(array.slice(start, BLOCK)))


def column_groups(arrays: Iterable) -> ImageGroups:
    """Groups of equal texts of pyarrow string arrays, without a Python object for each text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    firsts, starts, place, before = [], [], 0, None  # of runs: neighbours with the same text
    for array in arrays:
        if not len(array):
            continue
        changed = to_numpy(pc.not_equal(array.slice(1), array.slice(0, len(array) - 1)))
        begins = np.concatenate([[0], np.flatnonzero(changed) + 1])
        if array[0] == before:
            begins = begins[1:]
        firsts.append(array.take(from_numpy(begins)))
        starts.append(begins + place)
        place, before = place + len(array), array[len(array) - 1]
    if not place:
        return ImageGroups(np.zeros(1, np.int64))
    encoded = pa.chunked_array(firsts).dictionary_encode()
    codes = np.concatenate([to_numpy(chunk.indices) for chunk in encoded.chunks])
    starts = np.concatenate([*starts, [place]])
    if len(encoded.chunk(0).dictionary) == len(codes):  # no image comes back after another one
        return ImageGroups(starts)
    return ImageGroups.from_codes(np.repeat(codes, np.diff(starts)))


def to_numpy(array) -> np.ndarray:
    """A pyarrow array of booleans or int32 without nulls. pyarrow's own way imports pandas, 40 MB, to look for it."""
    import pyarrow as pa

    if pa.types.is_boolean(array.type):
        return to_numpy(array.cast(pa.int32())).astype(bool)
    assert pa.types.is_int32(array.type), array.type
    data = array.buffers()[1]
    return (
        np.frombuffer(data, np.int32)[array.offset : array.offset + len(array)] if len(array) else np.zeros(0, np.int32)
    )


def from_numpy(indices: np.ndarray):
    """Row numbers as a pyarrow array of int64."""
    import pyarrow as pa

    return pa.Array.from_buffers(
        pa.int64(), len(indices), [None, pa.py_buffer(np.ascontiguousarray(indices, np.int64))]
    )


def _buffers(array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, offsets) of a pyarrow string array without nulls."""
    import pyarrow as pa

    wide = pa.types.is_large_string(array.type)
    _, offsets, data = array.buffers()
    offsets = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets
