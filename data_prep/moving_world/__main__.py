"""Draws the embedded world in motion into a folder; nothing is downloaded.

python -m data_prep.moving_world --out data/motion --train 3000 --val 100 --test 300 --seed 0
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from data_prep import moving_world
from dynrefer.errors import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.moving_world", description="Draw the embedded world in motion.")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=3000, help="training clips (about four regions each)")
    parser.add_argument("--val", type=int, default=0, help="validation clips, with combinations of their own")
    parser.add_argument("--test", type=int, default=300, help="test clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    return run_command("data_prep.moving_world", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    numbers = {"train": args.train, "val": args.val, "test": args.test}
    for split, number in numbers.items():
        if number < 0:
            raise ValueError(f"--{split} {number}: expected a number of clips, 0 for none")
    if not any(numbers.values()):
        raise ValueError("--train, --val and --test are all 0: nothing to draw; give one of them a number of clips")
    start = time.perf_counter()
    for split, number in numbers.items():
        if number:
            path = moving_world.write(args.out, number, split, args.seed, args.workers)
            print(f"{number} clips -> {path}", flush=True)
    print(f"{sum(numbers.values())} clips in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
