"""The benchmarks: one row a task. A new one is a metric function and a row here.

A task says what is scored and how: the records, the metrics, the tokenizer of captions, decoding, the tag threshold. A
number is comparable only under the same task and version.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.data.schema import Region, RegionResult
from dynrefer.vocabulary import read_attributes, read_words

from .attributes import attribute_precisions
from .captions import METRICS as CAPTION_METRICS
from .captions import caption_scores
from .categories import category_accuracy
from .tags import tag_map

WORD_LISTS = {  # kind -> files looked for beside the records
    "tags": ("tags.txt",),
    "attributes": ("attributes.json", "attributes.txt"),
    "categories": ("categories.txt",),
}


@dataclass(frozen=True)
class Task:
    """One benchmark.

    data: path of the records, beside which the word lists of WORD_LISTS are looked for; train: the records that the
    baselines learn from, looked for beside the data; split: only records of this split, None = all of the file.
    metrics: rows of METRICS; caption_metrics, tokenizer: see `caption_scores`. generation: decoding, over the model's
    own settings; tag_threshold: of control words, precision and recall. protocol: what a reader must know to compare
    a number.
    """

    name: str
    data: str
    protocol: str
    train: str = "train.jsonl"
    split: str | None = None
    metrics: tuple[str, ...] = ("captions", "tags", "attributes", "categories")
    caption_metrics: tuple[str, ...] = CAPTION_METRICS
    tokenizer: str = "ptb"
    generation: Mapping[str, Any] = field(default_factory=dict)
    tag_threshold: float = 0.7
    closed_attributes: bool = False
    version: int = 1

    def word_list(self, kind: str, data: str | Path | None = None) -> list[str] | None:
        """Names of "tags", "attributes" or "categories" in the file beside the records; None where there is none."""
        for name in WORD_LISTS[kind]:
            path = Path(data or self.data).absolute().parent / name
            if path.is_file():
                return [a["name"] for a in read_attributes(path)] if kind == "attributes" else read_words(path)
        return None

    def train_path(self, data: str | Path | None = None) -> Path | None:
        """The training records beside the data, or None where there are none."""
        path = Path(data or self.data).absolute().parent / self.train
        return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="world",
            data="data/world/test.jsonl",
            split="test",
            tag_threshold=0.9,
            generation={"num_beams": 2, "max_new_tokens": 32},
            protocol="Embedded world, unseen scenes and attribute combinations; boxes; several references a region; "
            "PTB tokens; BLEU, ROUGE-L, METEOR 1.5, CIDEr-D with document frequencies of this set's references.",
        ),
        Task(
            name="flickr30k",
            data="data/flickr30k/dev.jsonl",
            tokenizer="lower",
            tag_threshold=0.9,
            closed_attributes=True,
            generation={"num_beams": 2, "max_new_tokens": 20},
            protocol="Flickr30k Entities, boxes whose phrases name them alone, all phrases as references; lower-cased, "
            "punctuation removed, no PTB; CIDEr-D with document frequencies of this set's references; categories: "
            "8 coarse types, regions of several types left out; attributes: on regions with a colour word, other "
            "colours count as absent.",
        ),
    )
}


def get_task(name: str, **changes: Any) -> Task:
    """The task of this name, with some fields replaced; ValueError with the nearest name for an unknown one."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task {name!r}{hint} Known: {', '.join(TASKS)}")
    return replace(TASKS[name], **{key: value for key, value in changes.items() if value is not None})


@dataclass
class Scores:
    """corpus: {score name: fraction}; regions: {metric: regions that it counts}; items: {region id: {name: score}};
    left_out: {metric: why it was not computed}."""

    corpus: dict[str, float] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def score(
    task: Task,
    regions: Sequence[Region],
    results: Mapping[str, RegionResult],
    *,
    names: Mapping[str, Sequence[str] | None] | None = None,
) -> Scores:
    """All metrics of a task. A region without a prediction is wrong in each; a region without the annotation of a
    metric is left out of that one; a metric that no region is annotated for is left out and named.

    names: word lists of "tags" and "attributes"; the words that occur in the records where there is none.
    Raises ValueError for predictions of unknown regions.
    """
    known = {region.id for region in regions}
    if len(known) != len(regions):
        raise ValueError(f"{len(regions)} regions with {len(known)} different ids; ids are unique")
    unknown = [region_id for region_id in results if region_id not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for regions that the records do not have, the first for {unknown[0]!r}; "
            "score a predictions file with the data it was made from"
        )
    scores = Scores(items={region.id: {} for region in regions})
    for metric in task.metrics:
        METRICS[metric](scores, task, regions, results, names or {})
    return scores


def _captions(scores: Scores, task: Task, regions, results, names) -> None:
    references = {region.id: list(region.captions) for region in regions if region.captions}
    if not references:
        scores.left_out["captions"] = "no region has a reference caption"
        return
    predictions = {region_id: result.caption for region_id, result in results.items() if region_id in references}
    corpus, items = caption_scores(predictions, references, task.caption_metrics, task.tokenizer, per_item=True)
    scores.corpus |= corpus
    scores.regions["captions"] = len(references)
    for region_id, values in items.items():
        scores.items[region_id] |= values


def _tags(scores: Scores, task: Task, regions, results, names) -> None:
    annotated = [region for region in regions if region.tags is not None]
    words = names.get("tags") or sorted({word for region in annotated for word in region.tags})
    labels = np.array([[word in region.tags for word in words] for region in annotated], int)
    if not labels.any():
        scores.left_out["tags"] = "no region has a tag"
        return
    scores.corpus |= tag_map(labels, _table(annotated, results, "tags", words), task.tag_threshold)
    scores.regions["tags"] = len(annotated)


def _attributes(scores: Scores, task: Task, regions, results, names) -> None:
    annotated = [region for region in regions if region.attributes]
    words = names.get("attributes") or sorted({name for region in annotated for name in region.attributes})
    # records say 1, -1 and nothing where the metric says 1, 0 and -1
    records_labels = np.array([[region.attributes.get(word, 0) for word in words] for region in annotated], int)
    if not (records_labels == 1).any():
        scores.left_out["attributes"] = "no region has an attribute"
        return
    labels = np.select([records_labels == 1, records_labels == -1], [1, 0], 0 if task.closed_attributes else -1)
    if not (labels == 0).any():
        scores.left_out["attributes"] = "no region is known to lack an attribute, so every ranking would be perfect"
        return
    precisions = attribute_precisions(labels, _table(annotated, results, "attributes", words))
    scores.corpus["attribute mAP"] = float(np.nanmean(precisions))
    scores.regions["attributes"] = len(annotated)
    kinds = np.array([word.partition(":")[0] if ":" in word else "" for word in words])
    for kind in dict.fromkeys(kinds):  # "color:red" is of the kind "color"
        if kind and not np.isnan(precisions[kinds == kind]).all():
            scores.corpus[f"attribute mAP/{kind}"] = float(np.nanmean(precisions[kinds == kind]))


def _categories(scores: Scores, task: Task, regions, results, names) -> None:
    true = {region.id: region.category for region in regions}
    if not any(true.values()):
        scores.left_out["categories"] = "no region has a category"
        return
    predicted = {i: result.category and result.category["name"] for i, result in results.items()}
    scores.corpus["category accuracy"] = category_accuracy(predicted, true)
    scores.regions["categories"] = sum(category is not None for category in true.values())
    for region_id, category in true.items():
        if category is not None:
            scores.items[region_id]["category accuracy"] = float(predicted.get(region_id) == category)


METRICS = {"captions": _captions, "tags": _tags, "attributes": _attributes, "categories": _categories}


def _table(regions: Sequence[Region], results: Mapping[str, RegionResult], kind: str, words: Sequence[str]):
    """(N, K) scores of the words; a word that a prediction does not list ranks behind all that any does."""
    place = {word: k for k, word in enumerate(words)}
    table = np.full((len(regions), len(words)), np.nan)
    for n, region in enumerate(regions):
        for item in getattr(results[region.id], kind) if region.id in results else ():
            if item["name"] in place:
                table[n, place[item["name"]]] = item["score"]
    lowest = min(0.0, np.nanmin(table, initial=0.0) - 1.0) if kind == "attributes" else 0.0
    return np.where(np.isnan(table), lowest, table)
