"""Tags (several words a region): average precision over the ranking, precision and recall at the threshold."""

import numpy as np

from .. import statistics
from .base import Metric, Scoring, of_some, word_table


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall steps of one ranking, equal scores counted together: sum (R_n - R_n-1) P_n.

    labels: (N,) 0 or 1, at least one 1; scores: (N,), higher = likelier. The same number as scikit-learn's
    `average_precision_score`.

    >>> average_precision(np.array([1, 0, 1]), np.array([0.9, 0.8, 0.7]))
    0.8333333333333333
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    if not hits.size or hits[-1] == 0:
        raise ValueError("average precision of a ranking without a positive label is not defined; leave it out")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    ranks = np.flatnonzero(last_of_equals) + 1
    hits = hits[last_of_equals]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / ranks))


def tag_map(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """{"tag mAP", "tag precision", "tag recall", "tag F1"} of N regions and K tags.

    labels: (N, K) 0 or 1; scores: (N, K) probabilities, 0 for what was not predicted. mAP is the mean over tags that
    at least one region has. Precision and recall count all (region, tag) pairs together; tags with a score of at least
    `threshold` (and above 0) are predicted. ValueError: shapes that differ, scores that are not finite, no positive.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    check_scores(labels, scores, allowed=(0, 1), what="tags")
    positives = labels.astype(bool)
    present = positives.any(0)
    if not present.any():
        raise ValueError("tags: no region has any of the tags; check the tag list against the records")
    predicted = (scores >= threshold) & (scores > 0)
    right = np.sum(predicted & positives)
    precision, recall = right / max(1, predicted.sum()), right / positives.sum()
    return {
        "tag mAP": float(np.mean([average_precision(positives[:, k], scores[:, k]) for k in np.flatnonzero(present)])),
        "tag precision": float(precision),
        "tag recall": float(recall),
        "tag F1": float(2 * precision * recall / max(1e-12, precision + recall)),
    }


def check_scores(labels: np.ndarray, scores: np.ndarray, allowed: tuple[int, ...], what: str) -> None:
    """ValueError unless labels (N, K) hold allowed values only and scores (N, K) are finite."""
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"{what}: labels {labels.shape} and scores {scores.shape}; expected both (regions, names)")
    if not np.isin(labels, allowed).all():
        wrong = labels[~np.isin(labels, allowed)][0]
        raise ValueError(f"{what}: label {wrong}; expected one of {', '.join(map(str, allowed))}")
    if not np.isfinite(scores).all():
        region, name = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"{what}: score {scores[region, name]} of region {region}, name {name}; expected a number")


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    annotated = [region for region in s.regions if region.tags is not None]
    words = s.names.get("tags") or sorted({word for region in annotated for word in region.tags})
    labels = np.array([[word in region.tags for word in words] for region in annotated], int)
    if not labels.any():
        s.scores.left_out["tags"] = "no region has a tag"
        return
    if s.nothing_of("tags"):
        return
    table = word_table(annotated, s.results, "tags", words)
    s.scores.corpus |= tag_map(labels, table, s.task.tag_threshold)
    s.scores.regions["tags"] = len(annotated)
    indices = s.indices(annotated)
    s.scores.resamplings.append(
        statistics.rankings({"tag mAP": range(len(words))}, labels, table, indices, len(s.regions))
    )
    said = (table >= s.task.tag_threshold) & (table > 0)
    right, said, true = (labels * said).sum(1), said.sum(1), labels.sum(1)
    parts = {"tag precision": (right, said), "tag recall": (right, true), "tag F1": (2 * right, said + true)}
    s.scores.resamplings.append(of_some(statistics.ratios(parts), indices))


TAGS = Metric(
    frozenset(("tags",)),
    add_scores,
    {
        "tag mAP": lambda task, judge: "tags 1",
        "tag ": lambda task, judge: f"tags 1, threshold {task.tag_threshold:g}",
    },
)
