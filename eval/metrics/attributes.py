"""Attributes (a scored list a region, labels partly unknown): OVAD's mean average precision."""

from collections.abc import Mapping, Sequence

import numpy as np

from .. import statistics
from .base import Metric, Scoring, word_table
from .tags import average_precision, check_scores


def attribute_map(
    labels: np.ndarray, scores: np.ndarray, attributes: Sequence[Mapping[str, str]] | None = None
) -> dict[str, float]:
    """{"attribute mAP"}: the mean over attributes that at least one region has, each ranking the regions that know it.

    labels: (N, A) 1 = has it, 0 = has it not, -1 = unknown, as OVAD's evaluation has them. (Records write 1, -1 and
    nothing for the same three.) scores: (N, A), higher = likelier. attributes: A entries of OVAD's list; with them also
    {"attribute mAP/head", ...}, the mean of each of `attribute_groups` that has a positive. ValueError: shapes, labels,
    scores that are not finite, no positive.
    """
    precisions = attribute_precisions(labels, scores)
    if attributes is not None and len(attributes) != len(precisions):
        raise ValueError(f"attributes: {len(attributes)} entries for {len(precisions)} columns; expected one a column")
    if np.isnan(precisions).all():
        raise ValueError("attributes: no region has any of them; check the attribute list against the records")
    result = {"attribute mAP": float(np.nanmean(precisions))}
    for group, members in attribute_groups(attributes or ()).items():
        if not np.isnan(precisions[members]).all():
            result[f"attribute mAP/{group}"] = float(np.nanmean(precisions[members]))
    return result


def attribute_groups(attributes: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """Groups that OVAD reports: places of the attributes in each.

    By how often an attribute occurs, `freq_set` (head, medium, tail); by what it is about, `parent_type`, else `type`,
    else what stands before the colon of its name ("color"); and by how many synonyms its name has, "single" or
    "multiple" ("color:gray/grey"). An entry without one of these is in no group of that sort.

    >>> attribute_groups([{"name": "color:red", "freq_set": "head"}, {"name": "color:gray/grey", "freq_set": "tail"}])
    {'head': [0], 'tail': [1], 'color': [0, 1], 'single': [0], 'multiple': [1]}
    """
    sorts = (
        lambda entry, kind, word: entry.get("freq_set"),
        lambda entry, kind, word: entry.get("parent_type") or entry.get("type") or kind,
        lambda entry, kind, word: ("multiple" if "/" in word else "single") if kind else None,
    )
    groups: dict[str, list[int]] = {}
    for sort in sorts:
        for place, entry in enumerate(attributes):
            kind, _, word = entry["name"].rpartition(":")
            group = sort(entry, kind, word)
            if group:
                groups.setdefault(group, []).append(place)
    return groups


def attribute_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each attribute, (A,); nan where no region has it. Arguments as for `attribute_map`."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    check_scores(labels, scores, allowed=(1, 0, -1), what="attributes")
    precisions = np.full(labels.shape[1], np.nan)
    for a in np.flatnonzero((labels == 1).any(0)):
        known = labels[:, a] >= 0
        precisions[a] = average_precision(labels[known, a], scores[known, a])
    return precisions


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    annotated = [region for region in s.regions if region.attributes]
    entries = s.names.get("attributes") or sorted({name for region in annotated for name in region.attributes})
    entries = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in entries]
    words = [entry["name"] for entry in entries]
    # records say 1, -1 and nothing where the metric says 1, 0 and -1
    records_labels = np.array([[region.attributes.get(word, 0) for word in words] for region in annotated], int)
    if not (records_labels == 1).any():
        s.scores.left_out["attributes"] = "no region has an attribute"
        return
    labels = np.select([records_labels == 1, records_labels == -1], [1, 0], 0 if s.task.closed_attributes else -1)
    if not (labels == 0).any():
        s.scores.left_out["attributes"] = "no region is known to lack an attribute, so every ranking would be perfect"
        return
    if s.nothing_of("attributes"):
        return
    table = word_table(annotated, s.results, "attributes", words)
    precisions = attribute_precisions(labels, table)
    columns = {"attribute mAP": list(range(len(words)))}
    groups = attribute_groups(entries)
    if "multiple" not in groups:  # a list without synonyms is not sorted by them
        groups.pop("single", None)
    columns |= {f"attribute mAP/{g}": ks for g, ks in groups.items() if not np.isnan(precisions[ks]).all()}
    for name, chosen in columns.items():
        s.scores.corpus[name] = float(np.nanmean(precisions[chosen]))
    s.scores.regions["attributes"] = len(annotated)
    s.scores.resamplings.append(statistics.rankings(columns, labels, table, s.indices(annotated), len(s.regions)))


ATTRIBUTES = Metric(frozenset(("attributes",)), add_scores, {"attribute mAP": lambda task, judge: "attributes 1"})
