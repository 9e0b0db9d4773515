"""Speed of the parts, each beside a plain way to do the same, in one run: `python -m bench.run [NAME ...]`.

A benchmark is one function of a Budget and one row in BENCHMARKS. Its ways are timed in turns and each gets the median
of its turns; the ratio to the first, the plain way, is what counts: the machine divides out.
"""

import argparse
import sys
from collections.abc import Callable

from dynrefer.errors import Parser, run_command

from .crops import draft, view_construction, view_construction_large
from .data import loader_samples, world_scenes
from .describe import describe
from .metrics import caption_metrics, densecap_matching
from .packing import packed_long_texts, packed_texts
from .ranking import ranked_tags
from .recognition import recognition
from .timing import Budget, MissingPackage, Result, report
from .views import transform, view_choice, view_choice_large

BENCHMARKS: dict[str, Callable[[Budget], Result]] = {
    "views": view_choice,
    "views-large": view_choice_large,
    "transform": transform,
    "crops": view_construction,
    "crops-large": view_construction_large,
    "draft": draft,
    "loader": loader_samples,
    "world": world_scenes,
    "tags": ranked_tags,
    "recognition": recognition,
    "packing": packed_texts,
    "packing-long": packed_long_texts,
    "describe": describe,
    "captions": caption_metrics,
    "densecap": densecap_matching,
}


def main() -> int:
    parser = Parser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHMARKS)}; all if none"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each way is repeated (default 2)")
    parser.add_argument("--quick", action="store_true", help="one turn each: shows that all run, the numbers are rough")
    args = parser.parse_args()
    for name in args.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return run_command("bench.run", run, args)


def run(args: argparse.Namespace) -> None:
    budget = Budget(0, 1) if args.quick else Budget(args.seconds)
    for name in args.names or BENCHMARKS:
        title = BENCHMARKS[name].__doc__.splitlines()[0]
        try:
            print(report(name, title, BENCHMARKS[name](budget)), flush=True)
        except MissingPackage as missing:
            print(f"{name}: not measured: {missing}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
