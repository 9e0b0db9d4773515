"""Records at Visual Genome's size: opened, passed through, streamed, converted; each beside a plain way and a floor.

    python -m bench.scale            108,000 images with 5.4 million regions; ten minutes, 6 GB of memory, 3 GB of disk
    python -m bench.scale --small    a fiftieth: shows that all runs
    python -m bench.scale open pass  some of it

Memory is what a fresh process has above its imports: RSS counts what is mapped of files, USS what is its own alone.
Times of conversions are CPU seconds of one process less those of a file of ten regions, so imports do not count.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dynrefer.errors import Parser, run_command

from .generated import (
    HW,
    REGIONS_AN_IMAGE,
    write_arrow,
    write_coco,
    write_images,
    write_lines,
    write_visual_genome,
)
from .loading import Boxes

Rows = Iterator[tuple[str, str, str]]  # what, measured, in comparison


# ---------------------------------------------------------------------------------------------- fresh processes


def in_fresh_process(probe: Callable[..., dict], *arguments) -> dict:
    """What a probe of this file returns, run in a Python that has imported nothing yet."""
    command = [sys.executable, "-m", "bench.scale", "--probe", probe.__name__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def memory() -> np.ndarray:
    """(RSS, USS) of this process in MB."""
    import psutil

    found = psutil.Process().memory_full_info()
    return np.array([found.rss, found.uss]) / 1e6


def probe_records(path: str, warm: str) -> dict:
    """Opens records and what a training run makes of them; also in a worker process."""
    from dynrefer.data.dataset import ExampleDataset
    from dynrefer.data.loader import ExampleLoader
    from dynrefer.data.record_files import open_records

    def loader_of(records) -> ExampleLoader:
        dataset = ExampleDataset(records, Boxes(), train=True, seed=0)
        return ExampleLoader(dataset, 64, shuffle=True, seed=0, num_workers=0)

    next(loader_of(open_records(warm)).keys(0, 0))  # pyarrow imports what it needs when it is needed
    open_records(warm).fetch([0])
    before, start = memory(), time.perf_counter()
    records = open_records(path)
    opened = time.perf_counter() - start
    loader = loader_of(records)
    ((items, _),) = next(loader.keys(0, 0))
    assert sum(len(piece) for _, _, piece in items) == REGIONS_AN_IMAGE
    ready = time.perf_counter() - start
    held = memory() - before
    start = time.perf_counter()
    keys = list(zip(range(2000), loader.keys(1, 0), strict=False))
    planned = (time.perf_counter() - start) / len(keys)
    start = time.perf_counter()
    pieces = [piece for _, [(items, _)] in keys for _, _, piece in items]
    num_rows = sum(len(loader.dataset.example(piece)) for piece in pieces)
    fetched = num_rows / (time.perf_counter() - start)
    after = memory() - before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        worker = pool.apply(worker_memory, (loader.dataset, warm, pieces))
    return {
        "regions": len(records),
        "opened": opened,
        "ready": ready,
        "held": held.tolist(),
        "after": after.tolist(),
        "worker": worker,
        "plan": planned,
        "fetch": fetched,
    }


def worker_memory(dataset, warm: str, pieces: list) -> list[float]:
    """(RSS, USS) in MB that a dataset costs a worker after many examples, whose imports are done."""
    import pickle

    from dynrefer.data.record_files import open_records

    open_records(warm).fetch([0])
    state = pickle.dumps(dataset)
    del dataset
    before = memory()
    own = pickle.loads(state)
    for piece in pieces:
        own.example(piece)
    return (memory() - before).tolist()


def probe_coco(path: str) -> dict:
    """The same with pycocotools: its index of a COCO JSON file."""
    import contextlib

    from pycocotools.coco import COCO

    before, start = memory(), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        index = COCO(path)
    opened = time.perf_counter() - start
    return {"regions": len(index.anns), "opened": opened, "held": (memory() - before).tolist()}


def probe_pass(folder: str, num_workers: int, source: str) -> dict:
    """One epoch of a loader: seconds, and how often an image was opened."""
    from dynrefer.data import dataset as dataset_module
    from dynrefer.data.loader import ExampleLoader
    from dynrefer.data.record_files import open_records
    from dynrefer.data.shards import open_shards
    from dynrefer.data.stream import ShardDataset, ShardLoader

    opened, original = multiprocessing.Value("q"), dataset_module.open_image

    def open_image(*arguments):
        with opened:
            opened.value += 1
        return original(*arguments)

    dataset_module.open_image = open_image
    options = {
        "shuffle": True,
        "seed": 0,
        "num_workers": int(num_workers),
        "mp_context": "fork" if int(num_workers) else None,
    }
    if source == "shards":
        dataset = ShardDataset(open_shards(folder), Boxes(), train=True, seed=0)
        loader = ShardLoader(dataset, 64, **options)
    else:
        dataset = dataset_module.ExampleDataset(open_records(folder), Boxes(), train=True, seed=0)
        loader = ExampleLoader(dataset, 64, **options)
    start = time.perf_counter()
    num_regions = sum(len(batch) for step in loader.epoch(0) for batch in step)
    return {"seconds": time.perf_counter() - start, "regions": num_regions, "opened": opened.value}


def cpu_of(command: list[str]) -> tuple[float, float]:
    """(CPU seconds, MB at most) of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


# ---------------------------------------------------------------------------------------------- sections


def opening(folder: Path, num_images: int) -> Rows:
    """A record file opened, up to the first step of an epoch, beside pycocotools' index of the same as COCO JSON."""
    write_arrow(folder / "warm", 10)
    write_arrow(folder / "arrow", num_images)
    file = next((folder / "arrow").glob("*.arrow"))
    start = time.perf_counter()
    with open(file, "rb") as stream:
        while stream.read(1 << 22):
            pass
    seconds = time.perf_counter() - start
    yield (
        "floor: the file read through",
        f"{seconds:.2f} s",
        f"{file.stat().st_size / 1e9:.2f} GB, in the system's cache",
    )
    write_coco(folder / "coco.json", num_images)
    plain = in_fresh_process(probe_coco, folder / "coco.json")
    os.remove(folder / "coco.json")
    rss, uss = plain["held"]
    yield "pycocotools' index: made", f"{plain['opened']:.1f} s", f"{plain['regions']:,} regions"
    yield "  memory", f"RSS {rss:,.0f}, USS {uss:,.0f} MB", ""
    others = folder / "others.arrow"
    os.link(file, others)
    for name, path in (("folder of save_arrow", folder / "arrow"), ("its rows alone", others)):
        found = in_fresh_process(probe_records, path, folder / "warm")
        yield f"{name}: opened", f"{found['opened']:.2f} s", f"{found['regions']:,} regions, ids known to be unique"
        yield "  ready for batches", f"{found['ready']:.2f} s", "images known, first step planned"
        for what, key in (("memory then", "held"), ("after 2,000 steps", "after"), ("in a worker", "worker")):
            rss, uss = found[key]
            yield f"  {what}", f"RSS {rss:.0f}, USS {uss:.0f} MB", ""
        yield "  a step planned", f"{found['plan'] * 1e6:.0f} us", f"{REGIONS_AN_IMAGE} regions, an image"
        yield "  records read", f"{found['fetch']:,.0f} /s", "image by image, in random order"


def passing(folder: Path, num_images: int) -> Rows:
    """A pass over 100,000 regions: how often an image is opened, and how long it takes beside opening alone."""
    from dynrefer.data.record_files import open_records
    from dynrefer.data.shards import write_shards
    from dynrefer.images import open_image

    num_images = min(num_images, 2000)
    write_arrow(folder / "records", num_images)
    write_images(folder, [f"VG_100K/{image}.jpg" for image in range(num_images)])
    records = open_records(folder / "records")
    paths = [records.root / name for name in records.image_names()][: -(-num_images // 5)]
    start = time.perf_counter()
    for path in paths:
        open_image(path)
    floor = num_images / len(paths) * (time.perf_counter() - start)
    yield "floor: images opened", f"{floor:.1f} s", f"{num_images:,} of {HW[1]} x {HW[0]}, one process, nothing else"
    plain = floor * REGIONS_AN_IMAGE
    yield "region by region", f"{plain:.0f} s", f"by the floor: {REGIONS_AN_IMAGE} openings an image"

    def passes(source: str) -> Rows:
        for num_workers in (0, 2):
            found = in_fresh_process(probe_pass, folder / source, num_workers, source)
            ratio = f"{found['regions']:,} regions, {found['opened'] / num_images:.3f} openings an image"
            yield f"{source}, {num_workers or 'no'} worker{'s' * (num_workers > 1)}", f"{found['seconds']:.1f} s", ratio

    yield from passes("records")
    start = time.perf_counter()
    written = write_shards(folder / "shards", records)
    rate = written["bytes"] / (time.perf_counter() - start) / 1e6
    yield "shards written", f"{rate:.0f} MB/s", f"{written['bytes'] / 1e6:.0f} MB"
    yield from passes("shards")


def converting(folder: Path, num_images: int) -> Rows:
    """Official files to records, regions a CPU second of one process, and memory."""
    num_images = min(num_images, 4000)
    images = [f"VG_100K/{image}.jpg" for image in range(1, num_images + 1)]
    images += [f"coco/{image:012d}.jpg" for image in range(num_images)]
    write_images(folder, images)
    for part, number in (("all", num_images), ("few", 10)):
        (folder / part).mkdir()
        write_visual_genome(folder / part, number)
        for mask in ("", "polygons", "run lengths"):
            write_coco(folder / part / f"coco {mask}.json", number, mask)
        write_lines(folder / part / "records.jsonl", REGIONS_AN_IMAGE * number)

    def visual_genome(part: str) -> list[str]:
        place = folder / part
        files = ["--regions", place / "region_descriptions.json", "--image-data", place / "image_data.json"]
        files += ["--splits", place / "densecap_splits.json", "--images", folder, "--keep-shared", "--subset"]
        return ["data_prep.visual_genome", "--set", "1.2", "--split", "train", *files]

    def coco(mask: str) -> Callable[[str], list[str]]:
        return lambda part: [
            *("data_prep.coco", "--dataset", "own", "--split", "train", "--box-format", "xywh"),
            *("--annotations", folder / part / f"coco {mask}.json", "--images", folder / "coco"),
        ]

    ways = {"Visual Genome": visual_genome, "COCO, boxes": coco("")}
    ways |= {f"COCO, {mask}": coco(mask) for mask in ("polygons", "run lengths")}
    for name, command in ways.items():
        for ending, kind in ((".jsonl", "JSON lines"), ("", "Arrow")):
            yield convert(name, kind, command, num_images, folder, ending)

    def shard(part: str) -> list[str]:
        return ["data_prep.shard", folder / part / "records.jsonl", "--arrow"]

    yield convert("our JSON lines", "Arrow", shard, num_images, folder, "")


def convert(
    name: str, kind: str, command: Callable, num_images: int, folder: Path, ending: str
) -> tuple[str, str, str]:
    """One conversion as a row; CPU seconds of a few regions are taken off."""
    seconds = {}
    for part in ("few", "all"):
        out = folder / f"{part} {name} {kind}{ending}"
        seconds[part], most = cpu_of([sys.executable, "-m", *map(str, command(part)), "--out", str(out)])
    count = num_images * REGIONS_AN_IMAGE
    rate = count / (seconds["all"] - seconds["few"])
    return f"{name} -> {kind}", f"{rate:,.0f} regions/s", f"{count:,} regions, {most:,.0f} MB at most, with imports"


SECTIONS: dict[str, Callable[[Path, int], Rows]] = {"open": opening, "pass": passing, "convert": converting}
FULL, SMALL = 108_000, 2_160  # images
PROBES = {probe.__name__: probe for probe in (probe_records, probe_coco, probe_pass)}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections: {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--small", action="store_true", help="a fiftieth of the size: shows that all runs")
    parser.add_argument("--images", type=int, help=f"how many images, of {REGIONS_AN_IMAGE} regions each")
    parser.add_argument("--folder", type=Path, help="where to write for the time being (default: the system's place)")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.probe:
        print(json.dumps(PROBES[args.probe[0]](*args.probe[1:])))
        return 0
    for name in args.names:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    return run_command("bench.scale", run, args)


def run(args: argparse.Namespace) -> None:
    num_images = args.images or (SMALL if args.small else FULL)
    for name in args.names or SECTIONS:
        print(f"{name}: {SECTIONS[name].__doc__}")
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for what, measured, comparison in SECTIONS[name](Path(folder), num_images):
                print(f"  {what:<32} {measured:>22}   {comparison}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
