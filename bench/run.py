"""Speed of the parts, each beside a plain way to do the same, in one run: `python -m bench.run [NAME ...]`.

A benchmark is one function and one row in BENCHMARKS; it returns rows (what, amount per second or minute, unit). The
first row is the plain way, and the ratio of every row to it is what counts: the machine divides out.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Row = tuple[str, float, str]


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work a second: `work` returns how many it has done and is repeated for `seconds`, after one warm-up."""
    work()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not done:
        done += work()
    return done / elapsed


def world_scenes(seconds: float) -> list[Row]:
    """Scenes drawn and written to disk."""
    from dynrefer import world

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            number = max(20, int(20 * seconds))
            start = time.perf_counter()
            world.write(Path(folder) / str(workers), number, "train", seed=0, workers=workers)
            name = f"{workers} process{'es' if workers > 1 else ''}"
            rows.append((name, 60 * number / (time.perf_counter() - start), "scenes/min"))
    return rows


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


def loader_samples(seconds: float) -> list[Row]:
    """Training samples: image decoded once for all its regions against once for each."""
    from dynrefer import world
    from dynrefer.data.dataset import RegionDataset
    from dynrefer.data.loader import RegionLoader
    from dynrefer.data.schema import open_records

    with tempfile.TemporaryDirectory() as folder:
        records = open_records(world.write(folder, 60, "train", seed=0))
        dataset = RegionDataset(records, CropProcessor(), train=True, seed=0)

        def one_by_one() -> int:
            return len([dataset.samples([index], 0) for index in range(len(records))])

        def batches(num_workers: int) -> Callable[[], int]:
            loader = RegionLoader(dataset, 32, shuffle=True, seed=0, num_workers=num_workers)
            return lambda: sum(len(batch) for batch in loader.epoch(0))

        return [
            ("region by region", rate(one_by_one, seconds), "samples/s"),
            ("image by image", rate(batches(0), seconds), "samples/s"),
            ("2 workers", rate(batches(2), seconds), "samples/s"),
        ]


def view_choice(seconds: float) -> list[Row]:
    """Perceptual hashes of the candidate views: full transform of every crop against two small matrix products."""
    import torch
    from torch.nn.functional import interpolate

    from dynrefer.views import perceptual_hash, pixel_boxes

    rng = np.random.default_rng(0)
    picture = interpolate(torch.from_numpy(rng.random((1, 1, 30, 40), np.float32)), (480, 640), mode="bicubic")[0, 0]
    picture = (255 * picture.clamp(0, 1)).numpy()
    corners = rng.uniform(0, 300, (110, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 170, (110, 2))], axis=1)
    k, x = np.arange(224)[:, None], np.arange(224)[None]
    transform = torch.from_numpy(np.cos(np.pi * (2 * x + 1) * k / 448) * np.where(k, 1.0, 0.5**0.5) / 112**0.5).float()

    def plain() -> np.ndarray:
        bits = []
        for x1, y1, x2, y2 in pixel_boxes(boxes, picture.shape):
            crop = torch.from_numpy(picture[y1:y2, x1:x2])[None, None]
            crop = interpolate(crop, (224, 224), mode="bilinear", align_corners=False)[0, 0]
            block = (transform @ crop @ transform.T)[:8, :8].flatten()
            bits.append((block > block.mean()).numpy())
        return np.stack(bits)

    differing = (plain() != perceptual_hash(picture, boxes)).mean()
    if differing > 0.001:  # rounding may turn a coefficient that equals the mean
        raise RuntimeError(f"view_choice: {differing:.2%} of the hash bits differ between the two ways")
    return [
        ("full transform", rate(lambda: len(plain()), seconds), "hashes/s"),
        ("dynrefer.views", rate(lambda: len(perceptual_hash(picture, boxes)), seconds), "hashes/s"),
    ]


BENCHMARKS: dict[str, Callable[[float], list[Row]]] = {
    "world": world_scenes,
    "loader": loader_samples,
    "views": view_choice,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHMARKS)}; all if none"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each way is repeated")
    args = parser.parse_args()
    for name in args.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        rows = BENCHMARKS[name](args.seconds)
        print(f"{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}")
        for what, amount, unit in rows:
            print(f"  {what:<20} {amount:>12,.0f} {unit:<12} x{amount / rows[0][1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
