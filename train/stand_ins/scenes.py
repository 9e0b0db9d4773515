"""Pictures with all their regions, small enough to be kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region
from dynrefer.images import open_image


@dataclass(frozen=True)
class Scenes:
    """pixels (N, H, W, 3) uint8, all of one size; regions: those of each picture."""

    pixels: np.ndarray
    regions: list[list[Region]]

    def __len__(self) -> int:
        return len(self.regions)


def read_scenes(
    path: str | Sequence[str], resize: Callable[[np.ndarray], np.ndarray], limit: int | None = None
) -> Scenes:
    """The first `limit` pictures of a record file. resize: a picture (H, W, 3) -> the same in the size to keep.

    Raises ValueError for records that cannot be read, and pictures that come out in different sizes.
    """
    records = open_records(path)
    groups = records.image_groups()
    count = len(groups) if limit is None else min(limit, len(groups))
    pixels, regions = np.empty(0, np.uint8), []
    for number in range(count):
        found = records.fetch(groups[number])
        path_of_image, first = found[0]
        picture = resize(open_image(path_of_image))
        if not number:
            pixels = np.empty((count, *picture.shape), np.uint8)  # one array: thousands would be scattered in memory
        elif picture.shape != pixels.shape[1:]:
            raise ValueError(
                f"{path}: {first.image} is {picture.shape[:2]} after resizing and those before it are "
                f"{pixels.shape[1:3]}; a stand-in is trained on pictures of one shape"
            )
        pixels[number] = picture
        regions.append([region for _, region in found])
    return Scenes(pixels, regions)
