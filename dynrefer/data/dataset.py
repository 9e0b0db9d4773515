"""Records -> samples: opens each image once and hands it, with all its regions, to the model family's processor."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dynrefer.data.image_groups import ImageGroups
from dynrefer.data.records import Region, RegionRecords
from dynrefer.images import open_image, read_image_hw

UNFINISHED_BYTES = 72 << 20  # room for decoded images of which the next batches want more, in each worker


class SampleProcessor(Protocol):
    """What a model family brings: samples of one image's regions, and their batch."""

    def samples(
        self, image: np.ndarray, regions: list[Region], generators: list[np.random.Generator], train: bool
    ) -> list[dict]: ...

    def collate(self, samples: list[dict]) -> Any: ...

    def reduction(self, regions: list[Region]) -> int:
        """How many times smaller `samples` takes the image that has all these regions; asked with `draft` only."""
        ...


@dataclass
class ImagePart:
    """Some regions of one image, as a batch wants them.

    key: tells images apart, and names this one in errors. source: its path, or its file's bytes. numbers: of the
    regions in their data set; with seed and epoch they fix the samples. unfinished: the image is wanted again soon.
    reduce: how many times smaller it may be decoded.
    """

    key: Hashable
    source: Path | bytes
    regions: list[Region]
    numbers: list[int]
    unfinished: bool
    reduce: int = 1


class RegionDataset:
    """Samples by record index. The same seed, epoch and index always give the same sample.

    records: any `RegionRecords`. processor: see `SampleProcessor`. train: handed to the processor (augmentation, random
    scales). seed: a non-negative integer. cache_bytes: room for decoded images kept from call to call, in each worker.
    draft: in training, decode a JPEG at a fraction of its size where all regions of the image allow it, whichever of
    them are wanted: the sample of a region does not depend on the others in its batch.
    """

    def __init__(
        self,
        records: RegionRecords,
        processor: SampleProcessor,
        train: bool,
        seed: int,
        cache_bytes: int = 0,
        draft: bool = False,
    ):
        if seed < 0 or cache_bytes < 0:
            raise ValueError(f"seed {seed} and cache_bytes {cache_bytes}: expected numbers that are not negative")
        self.records, self.processor, self.train, self.seed = records, processor, train, seed
        self.cache_bytes, self.draft = cache_bytes, draft and train
        self._cache: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._unfinished: OrderedDict[Hashable, np.ndarray] = OrderedDict()  # batches end within images

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict:
        own = {"_cache": OrderedDict(), "_cached_bytes": 0, "_unfinished": OrderedDict()}  # a worker fills its own
        return {key: value for key, value in self.__dict__.items() if key != "_groups"} | own

    def samples(self, indices: Sequence[int], epoch: int, unfinished: Sequence[int] = ()) -> list[dict]:
        """One sample an index, in the order of `indices`; every image is opened once for all its regions. unfinished:
        positions in `indices` of regions whose images are wanted again soon, and kept until then.

        Raises ValueError for an image that is missing, damaged or not of the size its record says.
        """
        found = self.records.fetch(indices)
        again = {found[position][0] for position in unfinished}
        by_image: dict[Path, list[int]] = {}  # positions in `indices`
        for position, (path, _) in enumerate(found):
            by_image.setdefault(path, []).append(position)
        parts = [
            ImagePart(
                key=path,
                source=path,
                regions=[found[position][1] for position in positions],
                numbers=[int(indices[position]) for position in positions],
                unfinished=path in again,
                reduce=self.processor.reduction(self._of_image(indices[positions[0]])) if self.draft else 1,
            )
            for path, positions in by_image.items()
        ]
        samples: list[dict] = [{}] * len(indices)
        order = (position for positions in by_image.values() for position in positions)
        for position, sample in zip(order, self.part_samples(parts, epoch), strict=True):
            samples[position] = sample
        return samples

    @cached_property
    def _groups(self) -> ImageGroups:
        return self.records.image_groups()

    def _of_image(self, index: int) -> list[Region]:
        """All regions of the image of one of them."""
        return [region for _, region in self.records.fetch(self._groups.members(self._groups.number(index)))]

    def part_samples(self, parts: Sequence[ImagePart], epoch: int) -> list[dict]:
        """One sample a region, image after image."""
        samples = []
        for part in parts:
            generators = [np.random.default_rng([self.seed, epoch, number]) for number in part.numbers]
            image = self._image(part)
            made = self.processor.samples(image, part.regions, generators, self.train)
            assert len(made) == len(part.regions), f"processor made {len(made)} samples of {len(part.regions)} regions"
            samples += made
            if part.unfinished:
                self._unfinished[part.key] = image
                while sum(kept.nbytes for kept in self._unfinished.values()) > UNFINISHED_BYTES:
                    self._unfinished.popitem(last=False)
        return samples

    def _image(self, part: ImagePart) -> np.ndarray:
        """RGB uint8 (H, W, 3), read-only: others may get the same array. H and W may be smaller by part.reduce."""
        image = self._cache.get(part.key)
        if image is None:
            image = self._unfinished.pop(part.key, None)
        if image is None:
            try:
                image = open_image(part.source, part.reduce)
            except ValueError as error:
                place = "" if isinstance(part.source, Path) else f" ({part.key})"
                raise ValueError(
                    f"region {part.regions[0].id}{place}: {error}; `python -m data_prep.check FILE` finds all"
                ) from error
            image.flags.writeable = False
            if self._cached_bytes + image.nbytes <= self.cache_bytes:
                self._cache[part.key] = image
                self._cached_bytes += image.nbytes
        image_hw = image.shape[:2] if part.reduce == 1 else read_image_hw(part.source)
        for region in part.regions:
            if region.image_hw != image_hw:
                raise ValueError(
                    f"region {region.id}: image_hw {region.image_hw} but {part.key} is {image_hw} (height, "
                    "width); boxes count in the recorded size: convert again, `python -m data_prep.check FILE` finds "
                    "all"
                )
        return image
