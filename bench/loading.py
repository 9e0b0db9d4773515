"""How fast the loader makes samples, beside the loader of another checkout, in turns in one run.

    python -m bench.loading --before ../dynrefer-0.3.0    the world's scenes, and 100,000 regions of 2,000 photos
    python -m bench.loading --before ../dynrefer-0.3.0 --small    a few: shows that all runs
    python -m bench.loading                               this checkout alone

Each checkout runs in a process of its own and makes an epoch when its turn comes: what slows the machine down for a
while slows both. This file is also what these processes run, so it imports what version 0.3.0 has as well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
BATCH_SIZE = 64


class Boxes:
    """A stand-in for a processor that costs nothing but the opened image: what is left is the way of the data."""

    def samples(self, shown, own, generators, train):
        image, regions = image_and_regions(shown, own)
        return [{"sample": [*region.box, image.shape[0]]} for region in regions]

    def collate(self, samples):
        return np.array([sample["sample"] for sample in samples])

    def weights(self, counts):
        return counts

    def reduction(self, regions):
        return 1


class Crops(Boxes):
    """A stand-in for a model family's processor: three views of every region, as numbers."""

    def samples(self, shown, own, generators, train):
        from dynrefer.views import choose_scales, crop_views

        image, regions = image_and_regions(shown, own)
        boxes = np.array([region.box for region in regions])
        scales = choose_scales("random", image, boxes, 3, generators)
        views, _, _ = crop_views(image, boxes, scales, 64)
        return [{"sample": view} for view in views]


def image_and_regions(shown, own) -> tuple[np.ndarray, list]:
    """Of an example with options, or, before there were examples, of an image with its regions."""
    return (shown.image, shown.regions) if hasattr(shown, "regions") else (shown, own)


PROCESSORS = {processor.__name__: processor for processor in (Boxes, Crops)}


# ---------------------------------------------------------------------------------------------- one checkout


def epochs_of(path: str, processor: str, num_workers: int) -> Callable[[int], int]:
    """Makes an epoch of a record file and tells how many samples it had."""
    from dynrefer.data import dataset as dataset_module
    from dynrefer.data import loader as loader_module
    from dynrefer.data import open_records

    records, options = open_records(path), {"shuffle": True, "seed": 0, "num_workers": num_workers}
    if hasattr(loader_module, "ExampleLoader"):
        dataset = dataset_module.ExampleDataset(records, PROCESSORS[processor](), train=True, seed=0)
        loader = loader_module.ExampleLoader(dataset, BATCH_SIZE, **options)
        return lambda epoch: sum(len(batch) for step in loader.epoch(epoch) for batch in step)
    dataset = dataset_module.RegionDataset(records, PROCESSORS[processor](), train=True, seed=0)
    loader = loader_module.RegionLoader(dataset, BATCH_SIZE, **options)
    return lambda epoch: sum(len(batch) for batch in loader.epoch(epoch))


def serve(path: str, processor: str, num_workers: str) -> None:
    """An epoch for every line that arrives; the answer is its number of samples."""
    make = epochs_of(path, processor, int(num_workers))
    for epoch, _ in enumerate(sys.stdin):
        print(make(epoch), flush=True)


# ---------------------------------------------------------------------------------------------- in turns


class Checkout:
    """The loader of a checkout, in a process of its own; called, it makes an epoch."""

    def __init__(self, path: Path, *arguments: object):
        environment = os.environ | {"PYTHONPATH": str(path.resolve()), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, str(HERE), "--serve", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.path, self.process = path, subprocess.Popen(command, env=environment, cwd=path, **pipes)

    def __call__(self) -> int:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the loader of {self.path} ended with exit status {self.process.wait()}")
        return int(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def in_turns(checkouts: dict[str, Path], turns: int, *arguments: object):
    """Samples a second of each checkout's loader."""
    from bench.timing import Budget, Result, compare

    ways = {name: Checkout(path, *arguments) for name, path in checkouts.items()}
    try:
        return Result(compare(ways, Budget(0, turns)), "samples/s")
    finally:
        for way in ways.values():
            way.close()


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--serve"]:
        serve(*given[1:])
        return 0
    from dynrefer.errors import Parser, run_command  # which version 0.3.0 has not

    parser = Parser(prog="python -m bench.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="PATH", help="another checkout, of version 0.3.0 or later")
    parser.add_argument("--small", action="store_true", help="a few images and one turn: shows that all runs")
    parser.add_argument("--scenes", type=int, help="of the world (default 300)")
    parser.add_argument("--images", type=int, help="photos of 50 regions each (default 2000)")
    parser.add_argument("--turns", type=int, help="epochs of each (default 5), of which the median counts")
    args = parser.parse_args(given)
    if args.before is not None and not (args.before / "dynrefer" / "data" / "loader.py").is_file():
        parser.error(f"--before {args.before}: no checkout with dynrefer/data/loader.py; `git worktree add` makes one")
    return run_command("bench.loading", run, args)


def run(args: argparse.Namespace) -> None:
    scenes, images, turns = (20, 40, 1) if args.small else (300, 2000, 5)
    scenes, images, turns = args.scenes or scenes, args.images or images, args.turns or turns

    from bench.generated import REGIONS_AN_IMAGE, write_arrow, write_images
    from bench.timing import report
    from data_prep import world

    checkouts = {} if args.before is None else {"before": args.before}
    checkouts["this checkout"] = HERE.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        drawn = world.write(Path(folder) / "world", scenes, "train", seed=0)
        write_arrow(Path(folder) / "photos", images)
        write_images(Path(folder), [f"VG_100K/{image}.jpg" for image in range(images)])
        for name, path, processor, title in (
            ("world", drawn, Crops, f"{scenes} scenes of the world, three views of every region"),
            ("photos", Path(folder) / "photos", Boxes, f"{images * REGIONS_AN_IMAGE:,} regions of {images:,} photos"),
        ):
            for num_workers in (0, 2):
                result = in_turns(checkouts, turns, path, processor.__name__, num_workers)
                print(report(name, f"{title}, {num_workers or 'no'} workers", result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
