"""Example: one picture or clip with its regions, read, shown and answered as one. Loaders pack whole ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynrefer.data.chats import Chat
from dynrefer.data.clips import ClipRegion

Frames = Callable[[Sequence[int] | None, int], np.ndarray]


def still(image: np.ndarray, indices: Sequence[int] | None = None) -> np.ndarray:
    """Frames (T, H, W, 3) of a picture (H, W, 3), which has the frame 0 only. ValueError for another one."""
    if unknown := [index for index in indices or () if index]:
        raise ValueError(f"frame {unknown[0]}: a picture has the frame 0 only")
    return np.broadcast_to(image, (1 if indices is None else len(indices), *image.shape))


@dataclass(frozen=True)
class Prompt:
    """What a user pointed at a region with. box: whether its box is the user's, or the user's mask's; points (K, 3):
    x, y and 1 inside or 0 outside the object; mask: whether its mask is the user's."""

    box: bool = True
    points: np.ndarray | None = None
    mask: bool = False


@dataclass
class Example:
    """One picture or clip, its regions and the conversations about it.

    key: names it in errors, and is the same for the same picture. regions: `Region`s of a picture or `ClipRegion`s of a
    clip, each of which is described. chats: `Chat`s, each of which is answered; their regions are their own. Records of
    the example are its regions and behind them its chats. read: opens the frames, see `frames`. numbers: one a record,
    by which training and random views are seeded together with seed and epoch; None = 0, 1, 2, ... reduce: how many
    times smaller its picture is decoded. prompts: one a region where a user pointed at them; () = regions of records,
    which have boxes.
    """

    key: str
    regions: Sequence[Any]
    read: Frames
    numbers: Sequence[int] | None = None
    chats: Sequence[Any] = ()
    reduce: int = 1
    prompts: Sequence[Prompt] = ()
    stored: Callable[..., dict[str, Any]] | None = None
    variants: tuple[str, ...] = ("plain",)
    vocabulary: tuple[str, ...] | None = None
    negatives: int | None = None
    _frames: dict[tuple[int, ...] | None, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of_picture(
        cls, image: np.ndarray, regions: Sequence[Any], key: str = "image", prompts: Sequence[Prompt] = ()
    ) -> Example:
        """Of a picture in memory. image: (H, W, 3) uint8."""
        return cls(key, regions, lambda indices, reduce: still(image, indices), prompts=prompts)

    def __len__(self) -> int:
        """How many records it has."""
        return len(self.regions) + len(self.chats)

    @property
    def records(self) -> list[Any]:
        """Its regions, and behind them its conversations."""
        return [*self.regions, *self.chats]

    def frames(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """Frames (T, H, W, 3) uint8, read-only; opened when first asked for, once.

        indices: frame numbers of a clip; None = the frame that its regions are shown in. A picture has the frame 0.
        Raises ValueError for a picture or clip that is missing, damaged or not of the recorded size.
        """
        key = None if indices is None else tuple(indices)
        if key not in self._frames:
            frames = self.read(indices, self.reduce)
            frames.flags.writeable = False
            self._frames[key] = frames
        return self._frames[key]

    @property
    def clip(self) -> Any | None:
        """Of a clip one of its records, which all say the same of its frames; None of a picture."""
        record = next(iter(self.records), None)
        return record if isinstance(record, ClipRegion) or isinstance(record, Chat) and record.is_clip else None

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, read-only: the picture, or the frame in which the regions of a clip are shown."""
        return self.frames()[0]

    def part(self, positions: Sequence[int]) -> Example:
        """The same example with some of its records; what was opened is not opened again."""
        numbers = range(len(self)) if self.numbers is None else self.numbers
        count = len(self.regions)
        regions, chats = [p for p in positions if p < count], [p for p in positions if p >= count]
        return replace(
            self,
            regions=[self.regions[p] for p in regions],
            chats=[self.chats[p - count] for p in chats],
            numbers=[numbers[p] for p in (*regions, *chats)],
            prompts=[self.prompts[p] for p in regions] if self.prompts else (),
        )

    def generators(self, *seeds: int) -> list[np.random.Generator]:
        """One a record: the same seeds and number always draw the same."""
        numbers = range(len(self)) if self.numbers is None else self.numbers
        return [np.random.default_rng([*seeds, int(number)]) for number in numbers]
