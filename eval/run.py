"""Scores a model, or a predictions file, on a benchmark.

    python -m eval.run --model runs/quickstart --task world
    python -m eval.run --model runs/quickstart --task world --baselines --view-strategy fixed:0,0,0 num_beams=5
    python -m eval.run --predictions predictions.jsonl --task flickr30k --data data/flickr30k/dev.jsonl

Writes predictions.jsonl (a killed run goes on with it) and scores.json into --out. The table of benchmarks is
`eval/tasks.py`.
"""

import argparse
import datetime
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dynrefer.commands import run_command
from dynrefer.data.schema import Region, RegionRecords, RegionResult, atomic_path, open_records

from .baselines import constant_caption, one_human, true_type_template
from .captions import caption_scores
from .predict import file_sha256, predict, read_predictions
from .tasks import TASKS, WORD_LISTS, Scores, Task, get_task, score

PREDICTIONS, SCORES, ITEMS = "predictions.jsonl", "scores.json", "items.json"


def evaluate(
    model: Any,
    task: Task,
    records: RegionRecords,
    out_dir: str | os.PathLike,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    control: str | None = None,
    view_strategy: str | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[Scores, dict[str, RegionResult]]:
    """Predicts the records with the task's settings (see `predict` for the others) and scores the predictions.

    `generation` goes over the task's. The task's word lists are scored where they are not the model's own.
    """
    names = {kind: task.word_list(kind, records.path) for kind in WORD_LISTS}
    results = predict(
        model,
        records,
        Path(out_dir) / PREDICTIONS,
        batch_size=batch_size,
        num_workers=num_workers,
        control=control,
        tag_threshold=task.tag_threshold,
        attributes=_unless_own(model, "attributes", names),
        categories=_unless_own(model, "categories", names),
        generation={**task.generation, **(generation or {})},
        view_strategy=view_strategy,
        overwrite=overwrite,
        progress=progress,
    )
    return score(task, records, results, names=names), results


def baseline_scores(task: Task, records: RegionRecords, train: Sequence[Region] | None) -> dict[str, dict[str, float]]:
    """{baseline: caption scores}: always the commonest training caption, the commonest of the true category, and one
    human against the others (the first reference against the rest, of regions that have several)."""
    references = {region.id: list(region.captions) for region in records if region.captions}
    captioned = [region for region in records if region.captions]
    rows: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {}
    if references and train is not None:
        constant = constant_caption(train, captioned)
        rows[f"always {next(iter(constant.values()))!r}"] = constant, references
        rows["commonest caption of the true category"] = true_type_template(train, captioned), references
    human, others = one_human(references)
    if human:
        rows["one human against the others"] = human, others
    scores = {}
    for name, (predicted, expected) in rows.items():
        scores[name] = caption_scores(predicted, expected, task.caption_metrics, task.tokenizer)
        scores[name]["regions"] = len(expected)
    return scores


def report_scores(
    task: Task,
    records: RegionRecords,
    scores: Scores,
    *,
    model: str,
    settings: Mapping[str, Any],
    baselines: Mapping[str, Any] | None = None,
) -> dict:
    """Everything that scores.json holds."""
    return {
        "task": task.name,
        "task_version": task.version,
        "protocol": task.protocol,
        "tokenizer": task.tokenizer,
        "model": model,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": str(records.path),
        "data_sha256": file_sha256(records.path),
        "regions": len(records),
        "regions_scored": scores.regions,
        "left_out": scores.left_out,
        "settings": dict(settings),
        "scores": scores.corpus,
        "baselines": dict(baselines or {}),
        "versions": {name: _version(name) for name in ("dynrefer", "pycocoevalcap", "torch", "transformers", "numpy")},
    }


def write_json(path: str | os.PathLike, content: Any) -> None:
    """The file appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of scores as text, from {row: {score}}; kinds of attributes ("attribute mAP/color") are left out."""
    names = [n for n in dict.fromkeys(n for row in rows.values() for n in row) if "/" not in n and n != "regions"]
    width = max(map(len, rows)) + 2
    lines = [" " * width + "  ".join(names)]
    for row, values in rows.items():
        cells = [f"{values[name]:.3f}" if name in values else "-" for name in names]
        lines.append(row.ljust(width) + "  ".join(c.rjust(len(n)) for c, n in zip(cells, names, strict=True)))
    return "\n".join(lines)


def default_out(model: str, task: str, view_strategy: str | None, control: str | None) -> Path:
    """RUN/predictions/TASK for a run folder, runs/eval/MODEL/TASK for other models; settings that change the
    predictions are part of the name."""
    name = "-".join(
        [task]
        + ([view_strategy] if view_strategy else [])
        + ([f"control {control or 'none'}"] if control is not None else [])
    )
    name = re.sub(r"[^\w.,]+", "-", name)
    if Path(model).is_dir():
        return Path(model) / "predictions" / name
    return Path("runs") / "eval" / re.sub(r"[^\w.]+", "-", model) / name


def arguments(prog: str, description: str) -> argparse.ArgumentParser:
    """The options that the commands of this package share."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--data", help="records; the task's own where not given")
    parser.add_argument("--out", help="folder to write into")
    parser.add_argument("--limit", type=int, help="only the first N regions")
    parser.add_argument("--batch-size", type=int, default=64, help="regions that go through the model together")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that prepare views; 0 = none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--overwrite", action="store_true", help="predict anew what was predicted already")
    return parser


def open_task(args: argparse.Namespace) -> tuple[Task, RegionRecords, RegionRecords]:
    """(task, records to score, all records of the file) of the shared options."""
    task = get_task(args.task)
    data = args.data or task.data
    if not Path(data).exists():
        raise ValueError(f"task {task.name}: no records at {data!r}; name them with --data FILE, data_prep writes them")
    everything = open_records(data, None if args.data else task.split)
    if args.limit is None:
        return task, everything, everything
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected at least 1 region")
    return task, everything.subset(range(min(args.limit, len(everything)))), everything


def load_model(args: argparse.Namespace) -> Any:
    import dynrefer

    return dynrefer.load(args.model, device=args.device, revision=args.revision)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = arguments("python -m eval.run", "Scores a model or a predictions file on a benchmark.")
    parser.add_argument("--model", help="run folder, model folder or hub id")
    parser.add_argument("--predictions", help="score this file; no model is loaded")
    parser.add_argument(
        "--view-strategy", help="phash, joint, task, random or fixed:0,0.3; the model's own if not given"
    )
    parser.add_argument("--control", help="control words of every region; '' for none; the predicted tags if not given")
    parser.add_argument("--tag-threshold", type=float, help="least probability of a tag, over the task's")
    parser.add_argument("--baselines", action="store_true", help="also score constant captions and people")
    parser.add_argument(
        "--train-data", nargs="+", metavar="FILE", help="records that the baselines learn from; train.jsonl beside data"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="text generation, for instance num_beams=5")
    return run_command("eval.run", _run, parser.parse_intermixed_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.model and args.predictions or not (args.model or args.predictions or args.baselines):
        raise ValueError("give --model RUN_OR_HUB_ID or --predictions FILE (or --baselines alone)")
    task, records, everything = open_task(args)
    if args.tag_threshold is not None:
        task = get_task(args.task, tag_threshold=args.tag_threshold)
    generation = key_values(args.settings)
    train = _train_records(task, records, args.train_data) if args.baselines else None
    settings: dict[str, Any] = {}
    if args.predictions:
        results = read_predictions(args.predictions)
        known, wanted = {region.id for region in everything}, {region.id for region in records}
        # of another set: an error in `score`; of this set but beyond --limit: not looked at
        results = {i: result for i, result in results.items() if i in wanted or i not in known}
        scores = score(task, records, results, names={k: task.word_list(k, records.path) for k in WORD_LISTS})
        name, out = args.predictions, Path(args.out or Path(args.predictions).parent)
    elif args.model:
        name = args.model
        out = Path(args.out or default_out(args.model, task.name, args.view_strategy, args.control))
        model = load_model(args)
        settings = {
            "generation": {**task.generation, **generation},
            "view_strategy": args.view_strategy or getattr(model.processor, "view_strategy", None),
            "control": args.control,
            "tag_threshold": task.tag_threshold,
        }
        scores, _ = evaluate(
            model,
            task,
            records,
            out,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            control=args.control,
            view_strategy=args.view_strategy,
            generation=generation,
            overwrite=args.overwrite,
        )
    else:
        name, out, scores = "no model", args.out and Path(args.out), Scores()
    baselines = baseline_scores(task, records, train) if args.baselines else {}
    print(f"{task.name}, {len(records)} regions of {records.path}")
    print(table(({name: scores.corpus} if scores.corpus else {}) | baselines))
    for metric, why in scores.left_out.items():
        print(f"not computed: {metric}: {why}")
    if out:
        content = report_scores(task, records, scores, model=name, settings=settings, baselines=baselines)
        write_json(out / ITEMS, scores.items)
        write_json(out / SCORES, content)
        print(f"-> {out / SCORES}")


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """["num_beams=5"] -> {"num_beams": 5}."""
    from dynrefer.config import parse_value

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is no setting; write KEY=VALUE, for instance num_beams=5")
        values[key] = parse_value(value)
    return values


def _train_records(task: Task, records: RegionRecords, paths: Sequence[str] | None) -> Sequence[Region] | None:
    found = paths or [path for path in [task.train_path(records.path)] if path]
    if not found:
        print(
            f"no {task.train} beside {records.path}: baselines that learn from it are left out; --train-data names it",
            file=sys.stderr,
        )
        return None
    return [region for path in found for region in open_records(path)]


def _unless_own(model: Any, kind: str, names: Mapping[str, list[str] | None]) -> list[str] | None:
    """The task's names, or None (the model's own list) where they are the same words or there are none."""
    own = [word["name"] if isinstance(word, dict) else word for word in getattr(model.config, kind, None) or ()]
    return None if names[kind] is None or set(names[kind]) == set(own) else names[kind]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
