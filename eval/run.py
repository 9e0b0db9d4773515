"""Scores a model, or a predictions file, on a benchmark.

    python -m eval.run --model runs/quickstart --task world
    python -m eval.run --model runs/quickstart --task world --baselines --view-strategy fixed:0,0,0 num_beams=5
    python -m eval.run --model Qwen/Qwen2.5-VL-3B-Instruct --task refcocog-a --batch-size 8 --dtype bfloat16
    python -m eval.run --predictions predictions.jsonl --task flickr30k --data data/flickr30k/dev.jsonl --report r.html
    python -m eval.run --model runs/caption --task densecap-vg1.2-detected --boxes data/vg1.2/test_grit.jsonl
    python -m eval.run --predictions seed0.json seed1.json seed2.json --task refcocog-a --model-name "their model"
    accelerate launch -m eval.run --model runs/quickstart --task world
    python -m eval.run --compare ours/predictions.jsonl theirs.json --task refcocog-a
    python -m eval.compare ours/scores.json theirs/scores.json

Writes predictions.jsonl (a killed run goes on with it) and scores.json into --out; scores of FOLDER/theirs.json go
into FOLDER/theirs-TASK/. --predictions reads the files of other models too, see `eval/inputs/formats.py`; several are
one model with several seeds. --model takes ours and, told by their config.json, those of `eval/others.py`. The
benchmarks are in `eval/benchmarks`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords
from dynrefer.errors import Parser, run_command
from dynrefer.files import check_out, file_sha256, write_json
from dynrefer.models.fingerprint import model_fingerprint
from dynrefer.processes import is_main, launched

from . import pair
from .benchmarks import get_task
from .compare import table
from .evaluate import (
    ITEMS,
    PREDICTIONS,
    SCORES,
    baseline_scores,
    default_out,
    evaluate,
    mean_scores,
    predictions_out,
    report_scores,
    task_options,
)
from .inputs.coco_json import category_names, parse_json, read_text
from .inputs.detected import DetectedBoxes, open_boxes
from .inputs.formats import Predictions, read_any
from .metrics.judge import HTTPJudge
from .options import STOPPED, add_options_help, arguments, given_options, load_model, open_task
from .report import report_of
from .scoring import Scores, score
from .task import Task


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = run_arguments("python -m eval.run", "Scores a model or a predictions file on a benchmark.", argv)
    args = parser.parse_intermixed_args(argv)
    return run_command("eval.run", launched()(run), args, STOPPED if args.model else "stopped")


def run_arguments(prog: str, description: str, argv: Sequence[str] | None) -> Parser:
    """What `run` is told; with --help also the options of the model that argv names."""
    parser = arguments(prog, description)
    parser.add_argument("--model", help="run folder, model folder or hub id")
    parser.add_argument(
        "--captioner",
        help="how a model of others is told the region: florence2, qwen2-vl, qwen2.5-vl, qwen3-vl, internvl, kosmos-2, "
        "overlay (a red line), crop; by the model's type if not given",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what it is asked; {region} is where the coordinates go")
    parser.add_argument(
        "--predictions",
        nargs="+",
        metavar="FILE",
        help="score this file, no model is loaded; several: one a seed. Scores of F/predictions.jsonl go into F, those "
        "of F/theirs.json into F/theirs-TASK, unless --out names a folder",
    )
    parser.add_argument("--model-name", help="what the predictions are of; the file's name if not given")
    parser.add_argument("--id-key", help="the key of a predictions file that names a region, where several could")
    parser.add_argument("--text-key", help="the key of a predictions file that holds the text, where several could")
    parser.add_argument(
        "--annotations", metavar="FILE", help="the benchmark's own JSON: images of ids, LVIS's marks, ..."
    )
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        help="a detector's boxes, which the model or the predictions describe: records, GLIP's JSON or COCO's list",
    )
    parser.add_argument("--judge", metavar="URL", help="a chat completions server, up to /v1, that answers questions")
    parser.add_argument("--judge-model", help="the judge's name there")
    parser.add_argument(
        "--compare", nargs=2, metavar="FILE", help="two predictions files: differences with intervals and p-values"
    )
    parser.add_argument(
        "--different-protocols", action="store_true", help="compare what is not comparable, and mark it"
    )
    parser.add_argument("--view-strategy", help="option view_strategy, of models that have it")
    parser.add_argument("--control", help="option control, of models that have it; '' for none")
    parser.add_argument(
        "--tag-threshold", type=float, help="least probability of a tag, over the task's; option tag_threshold too"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score constant captions and people; for categories, crops named by the model's own encoder",
    )
    parser.add_argument(
        "--train-data", nargs="+", metavar="FILE", help="records that the baselines learn from; train.jsonl beside data"
    )
    parser.add_argument("--report", metavar="FILE", help="also write a page with the scores, charts and pictures")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="the model's options, for instance num_beams=5; --model MODEL --help lists them",
    )
    try:
        add_options_help(parser, argv)
    except ValueError as error:
        parser.epilog = f"no options are listed: {error}"
    return parser


def run(args: argparse.Namespace) -> None:
    """Scores what the arguments name, prints and writes the scores; ValueError for a mistake in input or settings."""
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
    for folder in [args.out] * bool(args.out) + [Path(args.report or "").parent] * bool(args.report):
        check_out(folder)
    task, records, everything = open_task(args)
    if args.tag_threshold is not None:
        task = get_task(args.task, tag_threshold=args.tag_threshold)
    boxes = open_boxes(args.boxes, task, records, everything, args.annotations) if args.boxes else None
    if args.compare:
        _compare(args, task, records, everything, boxes)
        return
    captioned = args.baselines and "captions" in task.metrics
    train = _train_records(task, records, args.train_data) if captioned else None
    crops: dict[str, dict[str, float]] = {}
    settings: dict[str, Any] = {}
    predicted, seeds = {}, {}
    if args.predictions:
        out = Path(args.out or predictions_out(args.predictions, task.name))
        check_out(out)
        _all_different(args.predictions)
        for path in args.predictions:
            predictions = _read(args, path, task, records, everything, boxes)
            predicted[path], seeds[path] = predictions.results, _score(args, path, task, records, predictions)
        scores = mean_scores(list(seeds.values()))
        settings = {"generation": None} | _settings_of(args.predictions[0])
        settings.pop("answers", None)
        name = args.model_name or args.predictions[0]
    elif args.model:
        if task.boxes == "detected" and not boxes:
            raise ValueError(
                f"task {task.name} needs boxes of a detector: name records of them with --boxes, or a JSON (`python -m "
                "data_prep.grit_boxes` and `data_prep.proposals` write such), or score a file with its own boxes with "
                "--predictions"
            )
        name = args.model_name or args.model
        model = load_model(args)
        given = given_options(args, model.Options)
        if "tag_threshold" in given:
            task = get_task(args.task, tag_threshold=given["tag_threshold"])
        out = Path(args.out or default_out(args.model, task.name, given, args.captioner, args.prompt))
        options = task_options(model, task, task.word_lists(records.path), given)
        settings = {"model": model_fingerprint(model), "dtype": args.dtype, **model.settings(options)}
        scores, results = evaluate(
            model,
            task,
            records,
            out,
            given,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            overwrite=args.overwrite,
            annotations=args.annotations,
            judge=_judge(args),
            boxes=boxes,
        )
        if args.baselines and (namer := _crop_namer(model, task)):
            own = {name: value for name, value in given.items() if name in namer.NAMES}
            alike = {"batch_size": args.batch_size, "num_workers": args.num_workers, "overwrite": args.overwrite}
            alike |= {"annotations": args.annotations, "boxes": boxes, "masks": results}
            of_crops, _ = evaluate(namer, task, records, out / "crops", own, **alike)
            crops = {namer.name: of_crops.corpus}
        if not is_main():
            return
        predicted = {str(out / PREDICTIONS): results}
    else:
        name, out, scores = "no model", args.out and Path(args.out), Scores()
    if boxes:
        settings["boxes"] = boxes.settings
    if args.judge:
        settings["judge"] = args.judge_model
    if "tags" in task.metrics:
        if settings.get("tag_threshold") not in (None, task.tag_threshold):  # that a file's control words lie above
            settings["control_threshold"] = settings["tag_threshold"]
        settings["tag_threshold"] = task.tag_threshold
    baselines = (baseline_scores(task, records, train) if args.baselines else {}) | crops
    if not baselines:
        _computed(task, scores, f"; the predictions are kept in {out / PREDICTIONS}" if args.model else "")
    content = report_scores(
        task,
        records,
        scores,
        model=name,
        settings=settings,
        baselines=baselines,
        predictions=predicted,
        seeds=seeds if len(seeds) > 1 else None,
        annotations=args.annotations,
    )
    _print(content, task, scores)
    if out:
        write_json(out / ITEMS, scores.items)
        write_json(out / SCORES, content)
        print(f"-> {out / SCORES}")
    if args.report:
        notes = f"Captions, tags and their calibration are those of {args.predictions[-1]}." if len(seeds) > 1 else ""
        shown = list(predicted.values())[-1]
        print(f"-> {report_of(args.report, args.model, content, records, shown, scores.items, notes=notes)}")


def _print(content: dict, task: Task, scores: Scores) -> None:
    print(f"{task.name}, {content['regions']} {task.unit} of {content['data']}")
    rows = {content["model"]: scores.corpus} if scores.corpus else {}
    print(table(rows | content["baselines"], {content["model"]: content["intervals"]}))
    if caution := content["bootstrap"]["caution"]:
        print(caution)
    for metric, why in scores.left_out.items():
        print(f"not computed: {metric}: {why}")
    if "seeds" in content:
        each = ", ".join(f"{name} {value:.3f}" for name, value in content["deviation"].items() if "/" not in name)
        print(f"mean of {len(content['seeds'])} seeds; standard deviation: {each}")
    for file in content.get("predictions", ()):
        of = f"{file['path']}: " if "seeds" in content else ""
        if missing := file.get("regions_without_prediction"):
            print(f"{of}{missing} {task.unit} without a prediction count as wrong")
        if (empty := file.get("empty_captions")) and "captions" in {*task.metrics} - scores.left_out.keys():
            print(f"{of}{empty} empty captions count as wrong")
    if scores.seconds is not None:
        print(f"predicted in {scores.seconds:.1f} s, loading the model and scoring left out")
    for what, number in scores.counts.items():
        print(f"{number} {what}")
    for note in scores.notes:
        print(note)
    for deviation in content["deviations"]:
        print(f"not the benchmark: {deviation}")


def _computed(task: Task, scores: Scores, kept: str = "") -> None:
    """ValueError with the reasons where there is no score at all."""
    if not scores.corpus:
        reasons = [f"{metric}: {why}" for metric, why in scores.left_out.items()]
        why = ". ".join(reasons) or "Baselines need reference captions, and --train-data or several a region"
        raise ValueError(f"task {task.name}: no score was computed{kept}. {why}")


def _compare(
    args: argparse.Namespace,
    task: Task,
    records: RegionRecords,
    everything: RegionRecords,
    boxes: DetectedBoxes | None,
) -> None:
    marks = pair.protocol_marks(args.compare, task, records, args.different_protocols)
    a, b = (
        _score(args, path, task, records, _read(args, path, task, records, everything, boxes)) for path in args.compare
    )
    _computed(task, a)
    _computed(task, b)
    pair.print_pair(args.compare, task, records, a, b, marks, args.out)
    for note in dict.fromkeys([*a.notes, *b.notes]):
        print(note)


def _read(
    args: argparse.Namespace,
    path: str,
    task: Task,
    records: RegionRecords,
    everything: RegionRecords,
    boxes: DetectedBoxes | None,
) -> Predictions:
    """A predictions file; what is of the same records but beyond --limit is not looked at."""
    own = task.annotations if task.annotations and Path(task.annotations).is_file() else None
    by_file = (args.id_key is None or task.boxes == "detected") and not {"choices", "misses"} & {*task.metrics}
    known = (args.annotations or own) if by_file else None
    detected = task.boxes == "detected" and not boxes
    if boxes:
        records, everything = boxes.records, boxes.everything
    keys = {"id_key": args.id_key, "text_key": args.text_key, "categories": _categories_beside(records.path)}
    found = read_any(path, everything, detected=detected, **keys, annotations=known, metrics=task.metrics)
    if found.how not in ("", "id"):
        print(f"{path}: regions by {found.how}", file=sys.stderr)
    if args.limit is not None:
        wanted = {region.image for region in records} if detected else {region.id for region in records}
        found.results = {
            i: result for i, result in found.results.items() if (found.images[i] if detected else i) in wanted
        }
    return boxes.detections(found.results) if boxes else found


def _categories_beside(path: Path) -> dict[Any, str]:
    """id -> name of the converter's categories.json beside records, {} where there is none or it has no ids."""
    beside = path.absolute().parent / "categories.json"
    entries = parse_json(beside, read_text(beside)) if beside.is_file() else []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        return {}
    return category_names({"categories": entries}, beside)


def _score(args: argparse.Namespace, path: str, task: Task, records: RegionRecords, predictions: Predictions) -> Scores:
    return score(
        task,
        records,
        predictions.results,
        names=task.word_lists(records.path),
        images=predictions.images,
        annotations=args.annotations,
        judge=_judge(args),
        answers=_settings_of(path).get("answers"),
        weights=predictions.weights,
    )


def _judge(args: argparse.Namespace) -> HTTPJudge | None:
    if bool(args.judge) != bool(args.judge_model):
        raise ValueError("a judge needs --judge URL and --judge-model NAME: its name is part of the score")
    return HTTPJudge(args.judge, args.judge_model, os.environ.get("JUDGE_KEY")) if args.judge else None


def _all_different(paths: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for path in paths:
        if Path(path).is_file():  # else reading it says so
            sha256 = file_sha256(path)
            if sha256 in first:
                raise ValueError(f"{path} holds what {first[sha256]} holds; several files are seeds, each with its own")
            first[sha256] = path


def _crop_namer(model: Any, task: Task) -> Any:
    from .crops import crop_namer  # which needs torch

    return crop_namer(model, task)


def _settings_of(path: str) -> dict[str, Any]:
    """What a predictions file of `predict` was made with, from the file beside it; {} for others."""
    beside = Path(f"{path}.meta.json")
    if not beside.is_file():
        return {}
    from dynrefer.models.folder_check import read_object

    return read_object(beside)


def _train_records(task: Task, records: RegionRecords, paths: Sequence[str] | None) -> Sequence[Region] | None:
    found = paths or [path for path in [task.train_path(records.path)] if path]
    if not found:
        print(
            f"no {task.train} beside {records.path}: baselines that learn from it are left out; --train-data names it",
            file=sys.stderr,
        )
        return None
    return [region for path in found for region in open_records(path)]


if __name__ == "__main__":
    sys.exit(main())
