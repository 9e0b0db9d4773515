"""Which views serve which task: the same model measured with one view setting after the other.

    python -m eval.sweep --model runs/quickstart --task world --limit 400

Settings: the region and one scale t, (0, t), for t = 0, 0.1 ... 1 (t = 0 is the crop alone); the scale t alone, (t, t),
which shows what the region's own view is good for; and every strategy that chooses scales by itself. Writes views.json
and the page views.html into --out; predictions are kept, so a killed sweep goes on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynrefer.data.records import RegionRecords
from dynrefer.errors import run_command
from dynrefer.files import write_json
from dynrefer.processes import is_main, launched

from .compare import table
from .evaluate import default_out, evaluate
from .options import STOPPED, arguments, load_model, open_task
from .predict import check_view_strategy
from .report import sweep_page
from .task import Task
from .view_settings import best_settings, view_settings

# METEOR and BLEU add minutes to fifteen settings and tell the same as CIDEr.
CAPTION_METRICS = ("rouge", "cider")
PLOTTED = ("CIDEr", "tag mAP", "attribute mAP", "category accuracy")


def sweep(
    model: Any,
    task: Task,
    records: RegionRecords,
    out_dir: str | os.PathLike,
    *,
    settings: Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    overwrite: bool = False,
) -> dict[str, dict[str, float]]:
    """{view setting: scores}, predictions in OUT_DIR/<setting>/; BLEU and METEOR are left out.

    Raises ValueError for an unknown setting, or one that the model's number of views does not fit.
    """
    settings = list(settings or view_settings(model.processor.num_views))
    for setting in settings:  # not after the settings before it were measured
        check_view_strategy(setting, model.processor.num_views)
    kept = tuple(name for name in task.caption_metrics if name in CAPTION_METRICS)
    task = replace(task, caption_metrics=kept or task.caption_metrics)
    rows = {}
    for setting in settings:
        folder = Path(out_dir) / setting.replace(":", "-")
        scores, _ = evaluate(
            model,
            task,
            records,
            folder,
            batch_size=batch_size,
            num_workers=num_workers,
            view_strategy=setting,
            overwrite=overwrite,
        )
        rows[setting] = scores.corpus
        if not is_main():
            continue
        shown = " | ".join(f"{name} {scores.corpus[name]:.3f}" for name in PLOTTED if name in scores.corpus)
        print(f"{setting}: {shown}", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = arguments("python -m eval.sweep", "Measures a benchmark for a list of view settings.")
    parser.add_argument("--model", required=True, help="run folder, model folder or hub id")
    parser.add_argument("--settings", nargs="+", metavar="S", help="such as phash fixed:0,0.3; all when not given")
    return run_command("eval.sweep", launched()(_run), parser.parse_args(argv), STOPPED)


def _run(args: argparse.Namespace) -> None:
    task, records, _ = open_task(args)
    out = Path(args.out or default_out(args.model, f"{task.name}-views", None, None))
    model = load_model(args)
    if not hasattr(model.processor, "num_views"):
        raise ValueError(f"model {args.model!r} sees no views; views are of our models")
    rows = sweep(
        model,
        task,
        records,
        out,
        settings=args.settings,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        overwrite=args.overwrite,
    )
    if not is_main():
        return
    best = best_settings(rows)
    views = {"task": task.name, "model": args.model, "regions": len(records), "scores": rows}
    write_json(out / "views.json", views)
    sweep_page(out / "views.html", views)
    print(table(rows))
    for name, setting in best.items():
        print(f"best for {name}: {setting}")
    print(f"-> {out / 'views.json'}, {out / 'views.html'}")


if __name__ == "__main__":
    sys.exit(main())
