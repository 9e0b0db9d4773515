"""Records and predictions -> every score of a task, and how sure each is."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from dynrefer.data.records import Region, RegionResult

from . import statistics
from .metrics import METRICS, check_task, metric_versions, score_range
from .metrics.base import Scores, Scoring
from .task import Task


def score(
    task: Task,
    regions: Sequence[Region],
    results: Mapping[str, RegionResult],
    *,
    names: Mapping[str, Sequence | None] | None = None,
    images: Mapping[str, str] | None = None,
    annotations: str | None = None,
    judge: Callable[..., str] | None = None,
    encode: Callable | None = None,
    answers: Collection[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Scores:
    """All metrics of a task. A region without a prediction is wrong in each; a region without the annotation of a
    metric is left out of that one; a metric that no region is annotated for is left out and named.

    names: word lists of "tags", "categories" and "attributes" (names, or OVAD's entries, which tell groups); the words
    that occur in the records where there is none.
    images: prediction id -> image, where the predictions bring their own boxes (task.boxes "detected").
    annotations: path of the benchmark's own file, over the task's. judge: answers the questions of `choices`. encode:
    texts -> embeddings of `similarity`, its own where not given. answers: fields of a result that the model gives; a
    metric of others is left out. None = any. weights: prediction id -> a detector's score of its box, which its
    categories' scores are multiplied by in average precision.
    Raises ValueError for predictions of unknown regions or images and for scores that are not finite.
    """
    check_task(task)
    known = {region.id for region in regions}
    if len(known) != len(regions):
        raise ValueError(f"{len(regions)} regions with {len(known)} different ids; ids are unique")
    if task.boxes == "detected":
        if images is None:
            raise ValueError(
                f"task {task.name}: predictions bring their own boxes, but nothing says of which images; use a results "
                "list with image_id, bbox and score"
            )
        pictures = {region.image for region in regions}
        own = all(METRICS[metric].own_images for metric in task.metrics)  # they know of more images
        unknown = [] if own else [images[i] for i in results if images[i] not in pictures]
    else:
        unknown = [region_id for region_id in results if region_id not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for regions that the records do not have, the first for {unknown[0]!r}; "
            "score a predictions file with the data it was made from"
        )
    for region_id, result in results.items():
        for what, value in _numbers(result):
            if not math.isfinite(value):
                raise ValueError(f"prediction for {region_id!r}: {what} is {value}; expected a finite number")
    scores = Scores(items={region.id: {} for region in regions}, groups=[region.image for region in regions])
    scoring = Scoring(
        task,
        regions,
        results,
        names or {},
        images or {},
        annotations or task.annotations,
        judge,
        encode,
        scores,
        weights or {},
    )
    for metric in task.metrics:
        asked = METRICS[metric].asks
        if answers is not None and not asked & set(answers):
            scores.left_out[metric] = f"this model gives {', '.join(sorted(answers)) or 'nothing'} only"
        else:
            METRICS[metric].add_scores(scoring)
    scores.versions = metric_versions(scores.corpus, task, getattr(judge, "model", "not named"))
    return scores


def intervals(scores: Scores, seed: int = 0) -> dict[str, list[float]]:
    """{score name: [low, high]}, 95 % of the score on draws of the regions; see `eval.statistics`."""
    drawn = statistics.samples(scores.resamplings, scores.groups, seed)
    wanted = [name for name in scores.corpus if name in drawn and name not in scores.no_interval]
    ends = {name: statistics.interval(drawn[name], scores.corpus[name], *score_range(name)) for name in wanted}
    return {name: low_high for name, low_high in ends.items() if low_high is not None}


def without_interval(scores: Scores, given: Mapping[str, Any]) -> dict[str, str]:
    """{score name: why it has no interval} of those that `given`, the intervals, does not have."""
    unit = statistics.unit_of(scores.groups)
    reasons = {}
    for resampling in scores.resamplings:
        if (number := statistics.number_drawn(resampling, scores.groups)) < statistics.MIN_NUMBER:
            names = resampling.values(np.ones((1, len(scores.groups))))
            reasons |= dict.fromkeys(names, f"only {number} of the {unit} counts, and an interval needs two")
    return {
        name: scores.no_interval.get(name) or reasons.get(name, "computing it on draws takes too long")
        for name in scores.corpus
        if name not in given
    }


def _numbers(result: RegionResult):
    yield "its score", result.score
    yield from ((f"a coordinate of its box {result.box}", x) for x in result.box)
    for kind in ("tags", "attributes", "categories"):
        yield from ((f"the score of {item['name']!r} in its {kind}", item["score"]) for item in getattr(result, kind))
