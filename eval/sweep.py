"""Which views serve which task: the same model measured with one view setting after the other.

    python -m eval.sweep --model runs/quickstart --task world --limit 400

Settings: the region and one scale t, (0, t), for t = 0, 0.1 ... 1 (t = 0 is the crop alone); the scale t alone, (t, t),
which shows what the region's own view is good for; and every strategy that chooses scales by itself. Writes views.json
and views.png into --out; predictions are kept, so a killed sweep goes on.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynrefer.data.records import RegionRecords
from dynrefer.errors import run_command
from dynrefer.files import atomic_path
from dynrefer.processes import is_main, launched

from .compare import table
from .evaluate import default_out, evaluate, write_json
from .options import STOPPED, arguments, load_model, open_task
from .predict import check_view_strategy
from .task import Task

STRATEGIES = ("phash", "joint", "task", "random")
# METEOR and BLEU add minutes to fifteen settings and tell the same as CIDEr.
CAPTION_METRICS = ("rouge", "cider")
PLOTTED = ("CIDEr", "tag mAP", "attribute mAP", "category accuracy")


def view_settings(num_views: int, steps: int = 10) -> list[str]:
    """View strategies to measure for a model with V views: fixed ones for each t, then those that choose.

    >>> view_settings(3, steps=2)[:3]
    ['fixed:0,0,0', 'fixed:0,0.5,0.5', 'fixed:0,1,1']

    With one view it is that view's own scale that grows: fixed:0, fixed:0.5, fixed:1. With several, every second t
    also stands alone, all views at it: fixed:1,1,1.
    """
    scales = [f"{step / steps:g}" for step in range(steps + 1)]
    if num_views == 1:
        return [f"fixed:{t}" for t in scales]
    fixed = [",".join(["0"] + [t] * (num_views - 1)) for t in scales]
    alone = [",".join([t] * num_views) for t in scales[2::2]]
    return [f"fixed:{text}" for text in (*fixed, *alone)] + list(STRATEGIES)


def fixed_scale(setting: str) -> float | None:
    """The t of "fixed:0,t,t" (or of the only view); None for other settings."""
    scales = _scales(setting)
    return scales[-1] if scales and (scales[0] == 0 or len(scales) == 1) else None


def lone_scale(setting: str) -> float | None:
    """The t of "fixed:t,t,t", where no view is the region's own unless t is 0; None for other settings."""
    scales = _scales(setting)
    return scales[0] if len(scales) > 1 and len(set(scales)) == 1 else None


def _scales(setting: str) -> list[float]:
    name, _, values = setting.partition(":")
    return [float(t) for t in values.split(",")] if name == "fixed" else []


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


def best_settings(rows: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """{score: the setting with the highest}, kinds of attributes included; the first of equals."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: max(rows, key=lambda setting, name=name: rows[setting].get(name, float("-inf"))) for name in names}


def plot(rows: Mapping[str, Mapping[str, float]], dark: bool = False):
    """A matplotlib figure: each score of PLOTTED over t, solid for the region with t, dashed for t alone; strategies
    that choose their scales as marks at the right."""
    from matplotlib.figure import Figure

    fixed = {fixed_scale(setting): row for setting, row in rows.items() if fixed_scale(setting) is not None}
    lone = {lone_scale(setting): row for setting, row in rows.items() if lone_scale(setting) is not None}
    chosen = {setting: row for setting, row in rows.items() if not _scales(setting)}
    names = [name for name in PLOTTED if any(name in row for row in rows.values())]
    ink = "#c9ced6" if dark else "#3a4048"
    figure = Figure(figsize=(2.9 * max(1, len(names)), 2.7), layout="constrained")
    figure.patch.set_alpha(0)
    colours = ("#3b7dd8", "#d9822b", "#2f9e6e", "#a05cc5")
    for n, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), n + 1)
        scales = sorted(fixed)
        axes.plot(scales, [fixed[t].get(name) for t in scales], color=colours[n], marker="o", markersize=3.5, lw=1.8)
        scales = sorted(lone)
        axes.plot(
            scales, [lone[t].get(name) for t in scales], color=colours[n], ls="--", marker="o", markersize=3, lw=1.2
        )
        for place, row in enumerate(chosen.values()):
            if name in row:
                axes.plot(1.15 + 0.13 * place, row[name], color=colours[n], marker="D", markersize=5, ls="none")
        ticks = [(0.0, "0"), (0.5, "0.5"), (1.0, "1")] + [(1.15 + 0.13 * n, s) for n, s in enumerate(chosen)]
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=8)
        for label, (place, _) in zip(axes.get_xticklabels(), ticks, strict=True):
            label.set_rotation(60 if place > 1 else 0)
        axes.set_title(name, fontsize=10, color=ink)
        axes.set_xlabel("t of the outer view", fontsize=8.5, color=ink)
        axes.patch.set_alpha(0)
        axes.grid(axis="y", color=ink, alpha=0.15, lw=0.8)
        axes.tick_params(colors=ink, labelsize=8, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(ink)
    return figure


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
    write_json(out / "views.json", {"task": task.name, "model": args.model, "regions": len(records), "scores": rows})
    with atomic_path(out / "views.png") as temporary:
        plot(rows).savefig(temporary, format="png", dpi=150, facecolor="white")
    print(table(rows))
    for name, setting in best.items():
        print(f"best for {name}: {setting}")
    print(f"-> {out / 'views.json'}, {out / 'views.png'}")


if __name__ == "__main__":
    sys.exit(main())
