"""How the time of a predictor grows with the regions of one picture.

    python -m bench.regions                         1,000, 5,000 and 20,000 regions, control words for all and for each
    python -m bench.regions --regions 100 200       a few: shows that it runs

The model is the tiny one of the tests, so what is measured is everything around a model. Times are those of one CPU.
"""

import argparse
import sys
import time

import numpy as np

from dynrefer.errors import Parser, run_command
from dynrefer.predictor import RegionPredictor

IMAGE_HW = (480, 640)


def boxes(number: int) -> list[list[float]]:
    """As many boxes of 10 to 100 pixels a side."""
    rng = np.random.default_rng(number)
    low = rng.uniform(0, 1, (number, 2)) * [IMAGE_HW[1] - 100, IMAGE_HW[0] - 100]
    return np.concatenate([low, low + rng.uniform(10, 100, (number, 2))], 1).tolist()


def seconds(predictor: RegionPredictor, number: int, controls: bool) -> float:
    """CPU seconds for all regions. controls: each has words of its own."""
    image = np.random.default_rng(0).integers(0, 255, (*IMAGE_HW, 3), dtype=np.uint8)
    control = [["red", f"w{i}"] for i in range(number)] if controls else "red"
    start = time.process_time()
    results = predictor(image, boxes(number), control=control, view_strategy="phash")
    assert len(results) == number
    return time.process_time() - start


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.regions", description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, nargs="+", default=[1000, 5000, 20000], help="how many, one run each")
    return run_command("bench.regions", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    import torch

    from tests import tiny_dynrefer

    torch.set_num_threads(1)
    predictor = RegionPredictor(tiny_dynrefer.model()[0])
    seconds(predictor, 64, controls=False)  # warm up
    print("| regions of one picture | s, words for all | ms a region | s, words for each | ms a region |")
    print("|---|---|---|---|---|")
    for number in args.regions:
        cells = [f"{number:,}"]
        for controls in (False, True):
            took = seconds(predictor, number, controls)
            cells += [f"{took:.1f}", f"{1000 * took / number:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
