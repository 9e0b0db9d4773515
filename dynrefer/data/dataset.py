"""Records -> samples: opens each image once and hands it, with all its regions, to the model family's processor."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dynrefer.data.schema import Region, RegionRecords
from dynrefer.images import open_image


class SampleProcessor(Protocol):
    """What a model family brings: samples of one image's regions, and their batch."""

    def samples(
        self, image: np.ndarray, regions: list[Region], generators: list[np.random.Generator], train: bool
    ) -> list[dict]: ...

    def collate(self, samples: list[dict]) -> Any: ...


class RegionDataset:
    """Samples by record index. The same seed, epoch and index always give the same sample.

    records: any `RegionRecords`. processor: see `SampleProcessor`. train: handed to the processor (augmentation, random
    scales). seed: a non-negative integer. cache_bytes: room for decoded images kept from call to call, in each worker.
    """

    def __init__(
        self, records: RegionRecords, processor: SampleProcessor, train: bool, seed: int, cache_bytes: int = 0
    ):
        if seed < 0 or cache_bytes < 0:
            raise ValueError(f"seed {seed} and cache_bytes {cache_bytes}: expected numbers that are not negative")
        self.records, self.processor, self.train, self.seed = records, processor, train, seed
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached_bytes": 0}  # a worker fills its own

    def samples(self, indices: Sequence[int], epoch: int) -> list[dict]:
        """One sample an index, in the order of `indices`; every image is opened once for all its regions.

        Raises ValueError for an image that is missing, damaged or not of the size its record says.
        """
        by_image: dict[Path, list[int]] = {}  # positions in `indices`
        for position, index in enumerate(indices):
            by_image.setdefault(self.records.image_path(index), []).append(position)
        samples: list[dict] = [{}] * len(indices)
        for path, positions in by_image.items():
            chosen = [int(indices[position]) for position in positions]
            regions = [self.records[index] for index in chosen]
            generators = [np.random.default_rng([self.seed, epoch, index]) for index in chosen]
            image = self._image(path, regions)
            made = self.processor.samples(image, regions, generators, self.train)
            assert len(made) == len(regions), f"processor made {len(made)} samples of {len(regions)} regions"
            for position, sample in zip(positions, made, strict=True):
                samples[position] = sample
        return samples

    def _image(self, path: Path, regions: list[Region]) -> np.ndarray:
        """RGB uint8 (H, W, 3), read-only where it is cached."""
        image = self._cache.get(path)
        if image is None:
            try:
                image = open_image(path)
            except ValueError as error:
                raise ValueError(
                    f"region {regions[0].id}: {error}; `python -m data_prep.check FILE` finds all"
                ) from error
            if self._cached_bytes + image.nbytes <= self.cache_bytes:
                image.flags.writeable = False
                self._cache[path] = image
                self._cached_bytes += image.nbytes
        for region in regions:
            if region.image_hw != image.shape[:2]:
                raise ValueError(
                    f"region {region.id}: image_hw {region.image_hw} but {path} is {image.shape[:2]} (height, width); "
                    "boxes count in the recorded size: convert again, `python -m data_prep.check FILE` finds all"
                )
        return image
