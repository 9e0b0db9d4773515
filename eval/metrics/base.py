"""What metrics share: what they read, what they add to, and the row that a metric is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dynrefer.data.records import Region, RegionResult

from ..statistics import Resampling
from ..task import Task


@dataclass
class Scores:
    """corpus: {score name: fraction}; regions: {metric: regions that it counts}; items: {region id: {name: score}};
    left_out: {metric: why it was not computed}; parts: {metric: {name: fraction}}, what a score is the mean of.
    counts: {what is wrong with predictions, for people: how many}. versions: {score name: what computed it}.
    notes: what a reader must know of the scores, a sentence each. groups: (N,) the image of every region; resamplings:
    how scores are computed on draws of the regions, and no_interval: {score name: why it has none}. seconds: that the
    predictions took, None where some were there already."""

    corpus: dict[str, float] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    resamplings: list[Resampling] = field(default_factory=list)
    no_interval: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass
class Scoring:
    """What a metric function reads, and `scores`, which it adds to.

    results: region id -> prediction; where a task's boxes are detected, prediction id -> prediction, and images:
    prediction id -> image of the records. names: word lists. annotations: the benchmark's own file. judge: of
    `choices`; encode: of `similarity`. weights: prediction id -> a detector's score of its box, which those of its
    categories are multiplied by (1 where there is none).
    """

    task: Task
    regions: Sequence[Region]
    results: Mapping[str, RegionResult]
    names: Mapping[str, Sequence | None]
    images: Mapping[str, str]
    annotations: str | None
    judge: Callable[..., str] | None
    encode: Callable | None
    scores: Scores
    weights: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _of_id(self) -> dict[str, Region]:
        return {region.id: region for region in self.regions}

    def image_of(self, i: str) -> str:
        """The image of a prediction."""
        return self._of_id[i].image if self.task.boxes == "given" else self.images[i]

    def box_of(self, i: str) -> Sequence[float]:
        """The box of a prediction: the record's, or its own where a task's are detected, which may be missing."""
        return self._of_id[i].box if self.task.boxes == "given" else self.results[i].box

    def indices(self, regions: Iterable[Region]) -> np.ndarray:
        """(M,) indices of regions among all."""
        index = {region.id: n for n, region in enumerate(self.regions)}
        return np.array([index[region.id] for region in regions], int)

    @property
    def caption_is_answer(self) -> bool:
        """Whether a caption may name the category: where captions are not scored themselves."""
        return "captions" not in self.task.metrics

    def nothing_of(self, metric: str, key: str | None = None) -> bool:
        """Whether no prediction says anything that the metric is about; it is left out then."""
        nothing = bool(self.results) and not any(getattr(result, key or metric) for result in self.results.values())
        if nothing:
            self.scores.left_out[metric] = f"no prediction has {metric}"
        return nothing

    def spread(self, values: Mapping[str, float]) -> np.ndarray:
        """(N,) the values of region ids, nan for the others."""
        return np.array([values.get(region.id, np.nan) for region in self.regions])


CAPTION, WORDS = frozenset(("caption",)), frozenset(("caption", "categories"))  # a name is said in either


@dataclass(frozen=True)
class Metric:
    """A row of METRICS. asks: fields of a result, of which it needs one. add_scores: adds to `Scoring.scores`.
    versions: {start of a score's name: (task, judge) -> what computes it}; a number of our own in it grows when a score
    may change. ranges: {start of a score's name: (least, most)}, of scores that do not go from 0 to 1.
    own_images: whether it reads the benchmark's own file, which may have images without a record."""

    asks: frozenset[str]
    add_scores: Callable[[Scoring], None]
    versions: Mapping[str, Callable[[Task, str], str]]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    own_images: bool = False


def of_some(resampling: Resampling, indices: np.ndarray) -> Resampling:
    """A resampling of some of the regions, (M,) indices among all, as one of all."""
    return replace(resampling, values=lambda counts: resampling.values(counts[:, indices]), places=indices)


def word_table(regions: Sequence[Region], results: Mapping[str, RegionResult], kind: str, words: Sequence[str]):
    """(N, K) scores of the words; a word that a prediction does not list ranks behind all that any does."""
    column = {word: k for k, word in enumerate(words)}
    table = np.full((len(regions), len(words)), np.nan)
    for n, region in enumerate(regions):
        for item in getattr(results[region.id], kind) if region.id in results else ():
            if item["name"] in column:
                table[n, column[item["name"]]] = item["score"]
    lowest = min(0.0, np.nanmin(table, initial=0.0) - 1.0) if kind == "attributes" else 0.0
    return np.where(np.isnan(table), lowest, table)
