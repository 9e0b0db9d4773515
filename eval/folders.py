"""Scores a model on several data sets, one after the other, and their average: ODinW, or folders of your own.

    python -m eval.folders --task odinw --sets data/odinw/*/test.jsonl --boxes "glip/{name}.json" --model M --out runs/o
    python -m eval.folders --task odinw-boxes --sets data/odinw/*/test.jsonl --model M --out runs/o --baselines

A set is a record file in a folder of its own, whose name it has; `python -m data_prep.coco_folders` writes such, and
the benchmark's JSON beside it under the same name. The other options are those of `python -m eval.run`, which scores
each set into --out/NAME; {name} in --boxes and --predictions is the set's name. A killed run goes on.

Prints a table, a row a set, and the average of the sets, and writes both to --out/scores.json. It says which of ODinW's
13, of its 35 and of RegionSpot's 5 sets these are: an average over others compares with nothing that is published so.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynrefer.errors import run_command
from dynrefer.files import check_out, write_json
from dynrefer.processes import is_main, launched

from .compare import read_scores, table
from .evaluate import SCORES
from .options import STOPPED
from .run import run, run_arguments

ODINW_13 = (
    "AerialMaritimeDrone, Aquarium, CottontailRabbits, EgoHands, NorthAmericaMushrooms, Packages, PascalVOC, pistols, "
    "pothole, Raccoon, ShellfishOpenImages, thermalDogsAndPeople, VehiclesOpenImages"
).split(", ")
ODINW_35 = [name for name in ODINW_13 if name not in ("AerialMaritimeDrone", "EgoHands")] + (
    "AerialMaritimeDrone_large, AerialMaritimeDrone_tiled, AmericanSignLanguageLetters, BCCD, boggleBoards, "
    "brackishUnderwater, ChessPieces, dice, DroneControl, EgoHands_generic, EgoHands_specific, HardHatWorkers, "
    "MaskWearing, MountainDewCommercial, openPoetryVision, OxfordPets_by_breed, OxfordPets_by_species, PKLot, "
    "plantdoc, selfdrivingCar, ThermalCheetah, UnoCards, websiteScreenshots, WildfireSmoke"
).split(", ")
SUITES = {
    "ODinW-13": ODINW_13,
    "ODinW-35": ODINW_35,
    "RegionSpot's choice": "AerialMaritimeDrone, Aquarium, PascalVOC, ShellfishOpenImages, VehiclesOpenImages".split(
        ", "
    ),
}
ALIKE = {"aerialmaritimedronelarge": "aerialmaritimedrone", "egohandsgeneric": "egohands"}  # of 35 -> of 13
AVERAGE = "average"


def plain(name: str) -> str:
    """A set's name without case and marks.

    >>> plain("EgoHands_generic"), plain("thermalDogsAndPeople")
    ('egohandsgeneric', 'thermaldogsandpeople')
    """
    return "".join(letter for letter in name.lower() if letter.isalnum())


def suites_of(names: Sequence[str]) -> list[str]:
    """What the sets are of the known collections, a sentence each."""
    own, said = {plain(name) for name in names}, []
    for suite, members in SUITES.items():
        wanted = {plain(member): member for member in members}
        alike = {ALIKE.get(name, name) if ALIKE.get(name) in wanted else name for name in own}
        missing, others = [wanted[name] for name in wanted if name not in alike], len(alike - wanted.keys())
        if not missing and not others:
            said.append(f"all of {suite}")
        elif len(missing) < len(wanted):
            lacking = f" without {', '.join(missing)}" if 0 < len(missing) <= 3 else ""
            beside = f", and {others} beside them" if others else ""
            said.append(f"{len(wanted) - len(missing)} of the {len(wanted)} of {suite}{lacking}{beside}")
    return said or ["none of ODinW's sets"]


def average(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of the scores that every set has."""
    first = next(iter(sets.values()))
    shared = [name for name in first if all(name in scores for scores in sets.values())]
    return {name: float(np.mean([scores[name] for scores in sets.values()])) for name in shared}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = run_arguments("python -m eval.folders", __doc__.splitlines()[0], argv)
    parser.add_argument("--sets", nargs="+", required=True, metavar="FILE", help="records, one file a set; not --data")
    args = parser.parse_intermixed_args(argv)
    return run_command("eval.folders", launched()(_run), args, STOPPED if args.model else "stopped")


def _run(args: argparse.Namespace) -> None:
    sets = _named(args.sets)
    if not args.out or args.data or args.report or args.annotations:
        raise ValueError(
            "--sets names the records, and --out a folder to write into; leave out --data, --annotations, --report"
        )
    predictions = args.predictions[0] if args.predictions else None
    for option, pattern in (("--boxes", args.boxes), ("--predictions", predictions)):
        if pattern and "{name}" not in pattern:
            raise ValueError(f"{option} {pattern!r}: expected {{name}} in it, in the place of the set's name")
    out, contents = Path(args.out), {}
    check_out(out)
    for name, path in sets.items():
        beside = path.with_name(f"{path.name.partition('.')[0]}.json")
        own = {"data": str(path), "out": str(out / name), "annotations": str(beside) if beside.is_file() else None}
        own |= {"boxes": args.boxes and args.boxes.replace("{name}", name)}
        own |= {"predictions": predictions and [predictions.replace("{name}", name)]}
        run(argparse.Namespace(**{**vars(args), **own}))
        if is_main():
            contents[name] = read_scores(out / name)
    if not is_main():
        return
    rows = {name: content["scores"] for name, content in contents.items()}
    baselines = {
        row: average({name: content["baselines"][row] for name, content in contents.items()})
        for row in next(iter(contents.values()))["baselines"]
        if all(row in content["baselines"] for content in contents.values())
    }
    suites, mean = suites_of(list(rows)), average(rows)
    print(table(rows | {AVERAGE: mean} | {f"{AVERAGE}, {row}": scores for row, scores in baselines.items()}))
    print(f"{len(rows)} sets: {'; '.join(suites)}")
    content = {"task": args.task, "scores": mean, "sets": rows, "baselines": baselines, "suites": suites}
    write_json(out / SCORES, content)
    print(f"-> {out / SCORES}")


def _named(paths: Sequence[str]) -> dict[str, Path]:
    """{name of its folder: record file}; ValueError for a name twice or a file that is not there."""
    sets: dict[str, Path] = {}
    for path in map(Path, paths):
        name = path.absolute().parent.name
        if not path.is_file():
            raise ValueError(f"no records at {str(path)!r}; `python -m data_prep.coco_folders` writes them")
        if name in sets:
            raise ValueError(f"{path}: {sets[name]} lies in a folder {name!r} too; sets are named by their folders")
        sets[name] = path
    return sets


if __name__ == "__main__":
    sys.exit(main())
