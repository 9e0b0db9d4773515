"""Scenes drawn and training samples made, each beside a plainer way."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from .timing import Budget, Result, compare


def world_scenes(budget: Budget) -> Result:
    """Scenes of the embedded world, drawn and written to disk."""
    from data_prep import world

    number = 32
    with tempfile.TemporaryDirectory() as folder:
        fresh = count()

        def write(workers: int) -> Callable[[], int]:
            def work() -> int:
                world.write(Path(folder) / str(next(fresh)), number, "train", seed=0, workers=workers)
                return number

            return work

        return Result(compare({"1 process": write(1), "2 processes": write(2)}, budget), "scenes/s")


class CropProcessor:
    """A stand-in for a model family's processor: three views of every region, as numbers."""

    def samples(self, image, regions, generators, train):
        from dynrefer.views import choose_scales, crop_views

        boxes = np.array([region.box for region in regions])
        scales = choose_scales("random", image, boxes, 3, generators)
        views, _, _ = crop_views(image, boxes, scales, 64)
        return [{"views": view} for view in views]

    def collate(self, samples):
        return np.stack([sample["views"] for sample in samples])


def loader_samples(budget: Budget) -> Result:
    """Training samples: image decoded once for all its regions against once for each."""
    from data_prep import world
    from dynrefer.data.dataset import RegionDataset
    from dynrefer.data.loader import RegionLoader
    from dynrefer.data.record_files import open_records

    with tempfile.TemporaryDirectory() as folder:
        records = open_records(world.write(folder, 60, "train", seed=0))
        dataset = RegionDataset(records, CropProcessor(), train=True, seed=0)

        def one_by_one() -> int:
            return len([dataset.samples([index], 0) for index in range(len(records))])

        def batches(num_workers: int) -> Callable[[], int]:
            loader = RegionLoader(dataset, 32, shuffle=True, seed=0, num_workers=num_workers)
            return lambda: sum(len(batch) for batch in loader.epoch(0))

        ways = {"region by region": one_by_one, "image by image": batches(0), "2 workers": batches(2)}
        return Result(compare(ways, budget), "samples/s")
