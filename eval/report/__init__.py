"""One self-contained report.html: scores with intervals beside baselines and published numbers, curves, views, and
pictures with what was said.

    python -m eval.report --run runs/quickstart --task world
    python -m eval.run --predictions predictions.jsonl --task refcocog-a --report report.html

The first needs the files that `python -m eval.run --model RUN --task TASK --baselines` wrote. The loss curve of
RUN/log.jsonl and the sweep of `python -m eval.sweep` are shown where they are.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.data.record_files import open_records
from dynrefer.data.records import RegionRecords, RegionResult
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path, read_text
from dynrefer.pages import render
from dynrefer.predictions import read_predictions

from ..evaluate import ITEMS, PREDICTIONS, SCORES, default_out
from . import sections
from .cards import Cards, different

PAGE = Path(__file__).with_name("page.html")
RANKING = ("CIDEr", "ROUGE-L", "METEOR", "dense METEOR", "category accuracy")  # the first that regions have orders them
MAX_SIZE_CHARTS = 4


def report(
    path: str | os.PathLike,
    *,
    title: str,
    scores: Mapping[str, Any],
    records: RegionRecords,
    results: Mapping[str, RegionResult],
    items: Mapping[str, Mapping[str, float]] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    views: Mapping[str, Any] | None = None,
    notes: str = "",
    num_samples: int = 12,
    num_extremes: int = 4,
) -> Path:
    """Writes report.html: one file, pictures inside, nothing loaded from elsewhere. Returns its path.

    Args:
        scores: content of scores.json. records: the records that were scored, with their images on disk.
        results: {region id: prediction}. items: {region id: {score: value}}, content of items.json.
        log: rows of log.jsonl, {"step", "loss", "loss/captions", ...} and {"step", "eval/CIDEr", ...}.
        views: content of views.json. notes: a paragraph under the title.
        num_samples, num_extremes: cards in "samples", and in each of "best" and "worst".
    """
    items = items or {}
    cards = Cards(records, results, items, scores["settings"].get("tag_threshold") or 0.0)
    ids = [region.id for region in records]
    rated = dict.fromkeys(name for row in items.values() for name in row if not name.startswith("BLEU"))
    rated = [name for name in RANKING if name in rated] + [name for name in rated if name not in RANKING]
    ranking = rated[0] if rated else None
    ranked = sorted((i for i in ids if ranking in items.get(i, {})), key=lambda i: -items[i][ranking])
    samples = [ids[n * len(ids) // num_samples] for n in range(num_samples)] if len(ids) > num_samples else ids
    if scores.get("boxes", "given") != "given":  # predictions are no answers to regions
        samples = []
    extremes = [different(order, results, num_extremes) for order in (ranked, ranked[::-1])] if ranking else [[], []]
    facts = {"Model": scores["model"], "Task": scores["task"], "Regions": f"{scores['regions']:,}"}
    page = render(
        PAGE,
        title=title,
        notes=notes,
        facts=facts | {"Date": scores["date"][:10]},
        headlines=sections.headlines(scores["scores"]),
        intervals_lead=sections.intervals_lead(scores),
        scores=sections.score_table(scores, views),
        parts=sections.parts(scores),
        left_out=scores["left_out"],
        published=sections.published(scores),
        training=sections.training(log) if log else None,
        views=sections.sweep(views) if views else None,
        sizes=sections.sizes(records, items, rated[:MAX_SIZE_CHARTS]),
        calibration=sections.reliability(records, results, scores),
        samples=list(map(cards.card, samples)),
        ranking=ranking,
        best=list(map(cards.card, extremes[0])),
        worst=list(map(cards.card, extremes[1])),
        details=sections.details(scores),
    )
    return write_page(path, page)


def write_page(path: str | os.PathLike, page: str) -> Path:
    """The file appears whole or not at all; captions may hold half a character. Returns its path."""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return Path(path)


def sweep_page(path: str | os.PathLike, views: Mapping[str, Any]) -> Path:
    """A page of a sweep alone, of what views.json holds. Returns its path."""
    title = f"{Path(views['model']).name}: views of {views['task']}"
    return write_page(path, render(PAGE.with_name("sweep.html"), title=title, views=sections.sweep(views)))


# --- the command -----------------------------------------------------------------------------------------------------


def read_log(path: str | os.PathLike) -> list[dict]:
    """Rows of a run's log.jsonl; a last line torn by a kill is left out. ValueError for any other damage."""
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON line ({error}); the log is damaged") from error
    return rows


def report_run(
    run: str | os.PathLike,
    task: str,
    *,
    data: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    views: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    title: str | None = None,
) -> Path:
    """RUN/report.html from the files in a run folder; returns its path.

    data: the records, where scores.json names them if not given; predictions: the folder with scores.json, views: the
    folder with views.json, where `eval.run` and `eval.sweep` put them if not given. ValueError names what is missing.
    """
    from dynrefer.models.folder_check import read_object

    run = Path(run)
    folder = Path(predictions or default_out(str(run), task, None, None))
    if not (folder / SCORES).is_file():
        raise ValueError(
            f"no {folder / SCORES}; `python -m eval.run --model {run} --task {task} --baselines` writes it"
        )

    scores = read_object(folder / SCORES)
    results = read_predictions(folder / PREDICTIONS)
    items = read_object(folder / ITEMS)
    everything = open_records(data or scores["data"])
    records = everything.subset([n for n, region in enumerate(everything) if region.id in items])
    if len(records) != len(items):
        raise ValueError(f"{everything.path} lacks {len(items) - len(records)} of the regions scored; name --data FILE")
    return report_of(
        out or run / "report.html",
        str(run),
        scores,
        records,
        results,
        items,
        title=title or f"{run.name}: {task}",
        views=views,
    )


def report_of(
    path: str | os.PathLike,
    model: str | None,
    scores: Mapping[str, Any],
    records: RegionRecords,
    results: Mapping[str, RegionResult],
    items: Mapping[str, Mapping[str, float]],
    *,
    title: str | None = None,
    notes: str = "",
    views: str | os.PathLike | None = None,
) -> Path:
    """`report` with the loss curve and the sweep of views of a model, where it has them; model: a run folder, another
    model, or None for a predictions file, of which neither is known. views: as in `report_run`."""
    if views is None and model:
        views = default_out(model, f"{scores['task']}-views", None, None)
    sweep, log = views and Path(views) / "views.json", model and Path(model) / "log.jsonl"
    from dynrefer.models.folder_check import read_object

    return report(
        path,
        title=title or f"{Path(scores['model']).name}: {scores['task']}",
        scores=scores,
        records=records,
        results=results,
        items=items,
        log=read_log(log) if log and log.is_file() else (),
        views=read_object(sweep) if sweep and sweep.is_file() else None,
        notes=notes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = Parser(prog="python -m eval.report", description="Writes a run's report.html.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--task", required=True, help="the task whose scores are shown")
    parser.add_argument("--data", help="records; those that were scored where not given")
    parser.add_argument("--predictions", help="folder with scores.json; RUN/predictions/TASK where not given")
    parser.add_argument("--views", help="folder with views.json; RUN/predictions/TASK-views where not given")
    parser.add_argument("--out", help="file to write; RUN/report.html where not given")
    parser.add_argument("--title", help="heading of the page")
    return run_command("eval.report", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    path = report_run(
        args.run,
        args.task,
        data=args.data,
        predictions=args.predictions,
        views=args.views,
        out=args.out,
        title=args.title,
    )
    print(f"-> {path}")
