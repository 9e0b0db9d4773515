"""Scenes drawn and training samples made, each beside a plainer way."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from .loading import Crops
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


def loader_samples(budget: Budget) -> Result:
    """Training samples: image decoded once for all its regions against once for each."""
    from data_prep import world
    from dynrefer.data.dataset import ExampleDataset
    from dynrefer.data.loader import ExampleLoader
    from dynrefer.data.packing import Piece
    from dynrefer.data.record_files import open_records

    with tempfile.TemporaryDirectory() as folder:
        records = open_records(world.write(folder, 60, "train", seed=0))
        dataset = ExampleDataset(records, Crops(), train=True, seed=0)

        def one_by_one() -> int:
            pieces = [Piece(n, np.array([k])) for n, count in enumerate(dataset.counts) for k in range(count)]
            return len([dataset.samples(dataset.example(piece).part(piece.positions), 0) for piece in pieces])

        def batches(num_workers: int) -> Callable[[], int]:
            loader = ExampleLoader(dataset, 32, shuffle=True, seed=0, num_workers=num_workers)
            return lambda: sum(len(batch) for step in loader.epoch(0) for batch in step)

        ways = {"region by region": one_by_one, "image by image": batches(0), "2 workers": batches(2)}
        return Result(compare(ways, budget), "samples/s")
