"""Attributes (a scored list a region, labels partly unknown): OVAD's mean average precision."""

import numpy as np

from .tags import average_precision, check_scores


def attribute_map(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """{"attribute mAP"}: the mean over attributes that at least one region has, each ranking the regions that know it.

    labels: (N, A) 1 = has it, 0 = has it not, -1 = unknown, as OVAD's evaluation has them. (Records write 1, -1 and
    nothing for the same three.) scores: (N, A), higher = likelier. ValueError: shapes, labels, scores that are not
    finite, no positive.
    """
    precisions = attribute_precisions(labels, scores)
    if np.isnan(precisions).all():
        raise ValueError("attributes: no region has any of them; check the attribute list against the records")
    return {"attribute mAP": float(np.nanmean(precisions))}


def attribute_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each attribute, (A,); nan where no region has it. Arguments as for `attribute_map`."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    check_scores(labels, scores, allowed=(1, 0, -1), what="attributes")
    precisions = np.full(labels.shape[1], np.nan)
    for a in np.flatnonzero((labels == 1).any(0)):
        known = labels[:, a] >= 0
        precisions[a] = average_precision(labels[known, a], scores[known, a])
    return precisions
