"""The same model measured with one value of an option after the other; if not told otherwise, which views serve which
task.

    python -m eval.sweep --model runs/quickstart --task world --limit 400
    python -m eval.sweep --model runs/quickstart --task world --option num_beams --values 1 2 5

Views: the region and one scale t, (0, t), for t = 0, 0.1 ... 1 (t = 0 is the crop alone); the scale t alone, (t, t),
which shows what the region's own view is good for; and every strategy that chooses scales by itself. Writes views.json
and the page views.html into --out, of other options OPTION.json; predictions are kept, so a killed sweep goes on.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dynrefer.data.records import RegionRecords
from dynrefer.errors import run_command
from dynrefer.files import write_json
from dynrefer.models.options import parse_options
from dynrefer.processes import is_main, launched

from .compare import table
from .evaluate import default_out, evaluate, task_options
from .options import STOPPED, arguments, load_model, open_task
from .report import sweep_page
from .task import Task
from .view_settings import best_settings, view_settings

VIEWS = "view_strategy"  # the option that is swept where none is named
# METEOR and BLEU add minutes to fifteen settings and tell the same as CIDEr.
CAPTION_METRICS = ("rouge", "cider")
PLOTTED = ("CIDEr", "tag mAP", "attribute mAP", "category accuracy")


def sweep(
    model: Any,
    task: Task,
    records: RegionRecords,
    out_dir: str | os.PathLike,
    *,
    option: str = VIEWS,
    values: Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    overwrite: bool = False,
) -> dict[str, dict[str, float]]:
    """{value of the option: scores}, predictions in OUT_DIR/<value>/; BLEU and METEOR are left out.

    values: the values, as on a command line; every view setting where None. Raises ValueError for an option that the
    model does not have and a value that does not fit it.
    """
    names = [each.name for each in fields(model.Options)]
    num_views = getattr(getattr(model, "config", None), "num_views", None)
    if values is None and (option != VIEWS or VIEWS not in names or num_views is None):
        what = f"option {option!r} is swept over --values" if option in names else f"the model has no option {option!r}"
        raise ValueError(f"{what}; name one and its values: --option, of {', '.join(names) or 'none'}, and --values")
    values = list(values or view_settings(num_views))
    given = {value: parse_options(model.Options, [f"{option}={value}"]) for value in values}
    for one in given.values():  # not after the values before it were measured
        model.check_options(task_options(model, task, task.word_lists(records.path), one))
    kept = tuple(name for name in task.caption_metrics if name in CAPTION_METRICS)
    task = replace(task, caption_metrics=kept or task.caption_metrics)
    rows = {}
    for value, one in given.items():
        folder = Path(out_dir) / re.sub(r"[^\w.,]+", "-", value or "none")
        places = {"batch_size": batch_size, "num_workers": num_workers, "overwrite": overwrite}
        scores, _ = evaluate(model, task, records, folder, one, **places)
        rows[value] = scores.corpus
        if not is_main():
            continue
        shown = " | ".join(f"{name} {scores.corpus[name]:.3f}" for name in PLOTTED if name in scores.corpus)
        print(f"{value}: {shown}", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = arguments("python -m eval.sweep", "Measures a benchmark for a list of values of an option.")
    parser.add_argument("--model", required=True, help="run folder, model folder or hub id")
    parser.add_argument("--option", default=VIEWS, help="an option of the model; view_strategy if not given")
    parser.add_argument(
        "--values",
        "--settings",
        nargs="+",
        metavar="V",
        dest="values",
        help="values of the option, such as phash fixed:0,0.3; all views when not given",
    )
    return run_command("eval.sweep", launched()(_run), parser.parse_args(argv), STOPPED)


def _run(args: argparse.Namespace) -> None:
    task, records, _ = open_task(args)
    name = "views" if args.option == VIEWS else args.option
    out = Path(args.out or default_out(args.model, f"{task.name}-{name}"))
    rows = sweep(
        load_model(args),
        task,
        records,
        out,
        option=args.option,
        values=args.values,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        overwrite=args.overwrite,
    )
    if not is_main():
        return
    content = {"task": task.name, "model": args.model, "option": args.option, "regions": len(records), "scores": rows}
    written = [out / f"{name}.json"]
    write_json(written[0], content)
    if args.option == VIEWS:
        written.append(sweep_page(out / "views.html", content))
    print(table(rows))
    for score, value in best_settings(rows).items():
        print(f"best for {score}: {value}")
    print(f"-> {', '.join(map(str, written))}")


if __name__ == "__main__":
    sys.exit(main())
