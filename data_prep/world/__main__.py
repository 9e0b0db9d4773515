"""Draws the embedded world into a folder; nothing is downloaded.

python -m data_prep.world --out data/world --train 2000 --val 200 --test 200 --seed 0
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep import world
from dynrefer.errors import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.world", description="Draw the embedded world.")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=2000, help="training scenes (about four regions each)")
    parser.add_argument("--val", type=int, default=0, help="validation scenes, with combinations of their own")
    parser.add_argument("--test", type=int, default=200, help="test scenes")
    parser.add_argument("--image-hw", type=int, nargs=2, metavar=("H", "W"), default=world.IMAGE_HW, help="pixels")
    parser.add_argument(
        "--hold-out", nargs="+", default=(), metavar="NAME", help="categories that SPLIT-seen.jsonl leaves unsaid"
    )
    parser.add_argument("--most", type=int, metavar="N", help="objects in a scene, where there are to be fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    return run_command("data_prep.world", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    numbers = {"train": args.train, "val": args.val, "test": args.test}
    for split, number in numbers.items():
        if number < 0:
            raise ValueError(f"--{split} {number}: expected a number of scenes, 0 for none")
    if not any(numbers.values()):
        raise ValueError("--train, --val and --test are all 0: nothing to draw; give one of them a number of scenes")
    start = time.perf_counter()
    for split, number in numbers.items():
        if number:
            print(f"{number} scenes -> {_write(args, number, split)}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{sum(numbers.values())} scenes in {seconds:.1f} s ({60 * sum(numbers.values()) / seconds:,.0f} a minute)")


def _write(args: argparse.Namespace, number: int, split: str) -> Path:
    size = tuple(args.image_hw)
    return world.write(args.out, number, split, args.seed, args.workers, size, args.most, args.hold_out)


if __name__ == "__main__":
    sys.exit(main())
