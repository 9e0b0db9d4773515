"""Recognition of categories that training left out, beside the model's own frozen CLIP on each region's crop.

    python -m eval.held_out --models runs/regionspot/spot --data data/regionspot/test.jsonl

A model's own `categories` are what it was trained to tell apart; other names are held out. Regions of both are
recognised among all names, and those of held-out categories also among the held-out names alone. Accuracies come with
intervals, and with their difference to those of crops: see statistics.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dynrefer
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region
from dynrefer.errors import Parser, run_command
from dynrefer.files import write_json
from dynrefer.models.family import FamilyModel
from dynrefer.vocabulary import read_words

from .crops import CropNamer
from .statistics import difference, interval, means, samples

CROPS = "CLIP on crops"
AMONG_ALL, HELD_OUT, AMONG_HELD_OUT = "trained, among all", "held out, among all", "held out, among held out"

Example = tuple[Path, list[Region]]
Ranking = dict[str, list[str]]  # region id -> names, the likeliest first


def examples_of(path: str, limit: int | None = None) -> list[Example]:
    """Every picture with its regions. ValueError for a region without a category."""
    records = open_records(path)
    groups = records.image_groups()
    found = []
    for number in range(len(groups) if limit is None else min(limit, len(groups))):
        pairs = records.fetch(groups[number])
        for _, region in pairs:
            if region.category is None:
                raise ValueError(f"{path}: region {region.id} has no category; accuracy is of regions that have one")
        found.append((pairs[0][0], [region for _, region in pairs]))
    return found


def rank(model: FamilyModel, examples: Sequence[Example], names: Sequence[str], **settings: Any) -> Ranking:
    """All names, for all regions; those of a picture at once."""
    predictor = dynrefer.RegionPredictor(model)
    options = model.Options(categories=list(names), top_k=len(names), **settings)
    return {
        result.id: [category["name"] for category in result.categories]
        for path, regions in examples
        for result in predictor(
            path, boxes=[region.box for region in regions], ids=[region.id for region in regions], options=options
        )
    }


def right(ranking: Ranking, examples: Sequence[Example], held_out: Sequence[str]) -> dict[str, np.ndarray]:
    """{column: (N,) 1 where the first name is the true one, 0 where not, nan where the region is not of the column}."""
    rows = []
    for region in (region for _, regions in examples for region in regions):
        names, true = ranking[region.id], region.category
        first = float(names[0] == true)
        if true in held_out:
            rows.append((np.nan, first, float(next(name for name in names if name in held_out) == true)))
        else:
            rows.append((first, np.nan, np.nan))
    return dict(zip((AMONG_ALL, HELD_OUT, AMONG_HELD_OUT), np.array(rows).T, strict=True))


def score(rankings: dict[str, Ranking], examples: Sequence[Example], held_out: Sequence[str]) -> dict[str, dict]:
    """{row: {column: {"accuracy", "interval", "more_than_crops", "difference_interval"}}}; the last two where there is
    a row of CLIP on crops."""
    groups = [str(path) for path, regions in examples for _ in regions]
    values = {row: right(ranking, examples, held_out) for row, ranking in rankings.items()}
    draws = {row: samples([means(columns)], groups) for row, columns in values.items()}
    table: dict[str, dict] = {}
    for row, columns in values.items():
        table[row] = {}
        for column, numbers in columns.items():
            if np.isnan(numbers).all():
                continue
            accuracy = float(np.nanmean(numbers))
            cell = {"accuracy": accuracy, "interval": interval(draws[row][column], accuracy)}
            if CROPS in values and row != CROPS:
                more = accuracy - float(np.nanmean(values[CROPS][column]))
                cell["more_than_crops"] = more
                cell["difference_interval"] = difference(draws[row][column], draws[CROPS][column], more)["interval"]
            table[row][column] = cell
    return table


def markdown(table: dict[str, dict], num_names: int, num_held_out: int) -> str:
    """The accuracies with their intervals; "*": the interval of the difference to CLIP on crops is above 0."""
    columns = (AMONG_ALL, HELD_OUT, AMONG_HELD_OUT)
    chance = [1 / num_names, 1 / num_names, 1 / num_held_out if num_held_out else np.nan]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * 4 + "|"]
    lines.append("| chance | " + " | ".join(f"{share:.3f}" for share in chance) + " |")
    for row, cells in table.items():
        shown = []
        for column in columns:
            if (cell := cells.get(column)) is None:
                shown.append("")
                continue
            above = cell.get("difference_interval", [0.0])[0] > 0
            low, high = cell["interval"]
            shown.append(f"{cell['accuracy']:.3f} ({low:.3f} to {high:.3f}){' *' if above else ''}")
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _run(args: argparse.Namespace) -> None:
    models = {Path(name).name: dynrefer.load(name, device=args.device) for name in args.models}
    trained = {row: set(model.config.categories) for row, model in models.items()}
    first = next(iter(trained))
    for row, own in trained.items():
        if own != trained[first]:
            raise ValueError(
                f"--models: {row} was trained on other categories than {first}; compare models of the same"
            )
    examples = examples_of(args.data, args.limit)
    shown = {region.category for _, regions in examples for region in regions}
    names = sorted(shown | trained[first] | set(read_words(args.names) if args.names else ()))
    held_out = [name for name in names if name not in trained[first]]
    rankings = {row: rank(model, examples, names, with_masks=False) for row, model in models.items()}
    if (encoders := models[first].image_text()) is not None:
        rankings[CROPS] = rank(CropNamer(models[first], encoders), examples, names)
    table = score(rankings, examples, held_out)
    print(f"{len(names)} names, {len(held_out)} of them held out")
    print(f"{len(examples)} pictures, {sum(len(regions) for _, regions in examples)} regions")
    print(markdown(table, len(names), len(held_out)))
    if args.output:
        write_json(args.output, {"names": names, "held_out": held_out, "pictures": len(examples), "table": table})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m eval.held_out", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="RUN", help="runs trained on the same categories")
    parser.add_argument("--data", required=True, help="record file of pictures that no model was trained on")
    parser.add_argument("--names", metavar="FILE", help="more names to choose from, one a line")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N pictures only")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--output", metavar="FILE", help="the table as JSON")
    return run_command("eval.held_out", _run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
