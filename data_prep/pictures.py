"""Pictures opened once, by several processes if asked to, and found again: the same pixels, or the same picture stored
or scaled anew."""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dynrefer.images import open_image
from dynrefer.phash import grey, low_frequencies
from dynrefer.processes import interrupts_held, worker_pool

IMAGES_AT_ONCE = 32  # handed to a worker
# The same picture: of the 63 lowest frequencies but the mean, so many may lie on the other side of their median, and
# they correlate so well. Measured on 247 photos: scaled to a half or 160 x 160, as JPEG of quality 30, or grey, at most
# 4 bits and at least 0.998; different photos at least 14 bits and at most 0.89.
NEAR_BITS, NEAR_CORRELATION = 6, 0.99


class Look(NamedTuple):
    """What opening an image showed. exact: the same for the same pixels; low: (63,) what the whole looks like, or None
    for a flat picture. Both empty where nothing is compared."""

    error: str
    image_hw: tuple[int, int]
    exact: bytes
    low: np.ndarray | None


def look(path: Path, compare: bool) -> Look:
    """Opens one image. compare: also what tells it from others."""
    try:
        pixels = open_image(path)
    except ValueError as error:
        return Look(str(error), (0, 0), b"", None)
    image_hw = pixels.shape[:2]
    if not compare:
        return Look("", image_hw, b"", None)
    exact = hashlib.blake2b(repr(image_hw).encode() + pixels.tobytes(), digest_size=16).digest()
    height, width = image_hw
    low = low_frequencies(grey(pixels), np.array([[0, 0, width, height]]))[0].reshape(-1)[1:]  # without the mean
    size = float(np.linalg.norm(low))
    return Look("", image_hw, exact, low / size if size > 1 else None)


class Pictures:
    """Pictures of other files, to find one again: by its pixels, or the same picture stored or scaled anew."""

    def __init__(self) -> None:
        self._exact: dict[bytes, int] = {}
        self._names: list[str] = []
        self._low: list[np.ndarray] = []  # float16, of pictures that are not flat
        self._places = array("q")  # their names
        self._bits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, seen: Look) -> None:
        """Adds a picture that could be opened."""
        self._exact.setdefault(seen.exact, len(self._names))
        if seen.low is not None:
            self._low.append(seen.low.astype(np.float16))
            self._places.append(len(self._names))
        self._names.append(name)
        self._bits = None

    def find(self, seen: Look) -> tuple[str, bool] | None:
        """(name, whether its pixels are the same) of the picture that this one is, or None."""
        if (place := self._exact.get(seen.exact)) is not None:
            return self._names[place], True
        if seen.low is None or not self._low:
            return None
        if self._bits is None:
            self._bits = np.array([_bits(low.astype(np.float32)) for low in self._low], np.uint64)
        near = np.flatnonzero(np.bitwise_count(self._bits ^ _bits(seen.low)) <= NEAR_BITS)
        likeness = [float(self._low[k].astype(np.float32) @ seen.low) for k in near]
        if not likeness or max(likeness) < NEAR_CORRELATION:
            return None
        return self._names[self._places[int(near[int(np.argmax(likeness))])]], False


def _bits(low: np.ndarray) -> np.uint64:
    return np.packbits(np.append(low > np.median(low), False)).view(np.uint64)[0]


def look_at(paths: Iterable[Path], compare: bool, workers: int = 0) -> Iterator[Look]:
    """`look` of every path, in order. workers: processes that open them, 0 = this one."""
    paths = iter(paths)
    if not workers:
        yield from (look(path, compare) for path in paths)
        return
    try:
        with worker_pool(workers, "spawn") as pool:
            waiting: deque = deque()
            while part := list(islice(paths, IMAGES_AT_ONCE)):
                with interrupts_held():
                    waiting.append(pool.submit(_look_at_part, part, compare))
                if len(waiting) > 3 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"one of {workers} processes that open images ended early (out of memory?); try fewer --workers, or none"
        ) from None


def _look_at_part(paths: list[Path], compare: bool) -> list[Look]:
    return [look(path, compare) for path in paths]
