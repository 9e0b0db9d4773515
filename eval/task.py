"""What a benchmark is: a Task says what is scored and how: the records, the metrics, the cleaning and tokenizer of
captions, decoding, the tag threshold. A number is comparable only under the same task, version and data.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynrefer.data.records import Region
from dynrefer.files import read_text
from dynrefer.vocabulary import read_attributes, read_json, read_words

from .asking import Asking

SHORT_QUESTION = "Provide a short description for this region."  # lmms-eval's
DETAILED_QUESTION = "Describe this region in detail."
CATEGORY_QUESTION = "What is the category of this region? Using only one word or phrase."  # Osprey's
WORD_LISTS = {  # kind -> files looked for beside the records
    "tags": ("tags.txt",),
    "attributes": ("attributes.json", "attributes.txt"),
    "categories": ("categories.txt",),
}


ALLOWED = {  # values of fields; names of other rooms are checked there, by `metrics.check_task`
    "prompt": ("box", "mask"),
    "boxes": ("given", "detected"),
    "references": ("1", "several", ""),
    "judge_sees": ("text", "region"),
}


@dataclass(frozen=True)
class Published:
    """What others report under a task's protocol. scores: fractions under our names; source: where it was read."""

    model: str
    scores: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Task:
    """One benchmark.

    data: path of the records, beside which the word lists of WORD_LISTS are looked for; sha256: of the records, None
    where nobody publishes one; num_regions: in the whole benchmark, None = unknown; train: the records that the
    baselines learn from, looked for beside the data; split: only records of this split, None = all of the file.
    annotations: the benchmark's own file, where scores need what records do not hold.
    prompt: what marks a region, "box" or "mask"; boxes: "given", or "detected" where predictions bring their own.
    references: captions a region, "1", "several" or "" (no captions are scored). clean: a row of `captions.CLEANING`.
    metrics: rows of METRICS; caption_metrics, tokenizer: see `caption_scores`. generation: decoding, over the model's
    own settings; tag_threshold: of control words, precision and recall; score_source: what ranks recognised regions,
    a row of `coco.SCORE_SOURCES`; labels: so many pairs of a region and a category are kept of an image, the surest,
    each of which is a detection; None = what the model reports. protocol: what a reader must know to compare a number.
    published: numbers of others that may stand beside it.
    question: what a model is asked that takes instructions; line_width: pixels of the line around the region on the
    image of a model that takes no boxes, None = by the size of the image (`eval.overlay`).
    judge_sees: "text", the description alone, or "region", the image around the region and its mask as well.
    asks: how questions are put, of a benchmark whose records are questions. rubric: of `judged`, a row of RUBRICS.
    """

    name: str
    data: str
    protocol: str
    train: str = "train.jsonl"
    split: str | None = None
    metrics: tuple[str, ...] = ("captions", "tags", "attributes", "categories")
    caption_metrics: tuple[str, ...] = ("bleu", "rouge", "meteor", "cider")
    tokenizer: str = "ptb"
    generation: Mapping[str, Any] = field(default_factory=dict)
    tag_threshold: float = 0.7
    closed_attributes: bool = False
    version: int = 1
    sha256: str | None = None
    num_regions: int | None = None
    annotations: str | None = None
    prompt: str = "box"
    boxes: str = "given"
    references: str = "several"
    clean: str = "none"
    score_source: str = "model"
    labels: int | None = None
    judge_sees: str = "text"
    published: tuple[Published, ...] = ()
    question: str = SHORT_QUESTION
    line_width: int | None = None
    asks: Asking | None = None
    rubric: str = ""

    def __post_init__(self):
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"task {self.name}: {name} {getattr(self, name)!r}; one of {', '.join(allowed)}")
        if not 0 < self.tag_threshold < 1:
            raise ValueError(f"task {self.name}: tag_threshold {self.tag_threshold}; a probability above 0 and below 1")
        if self.labels is not None and self.labels < 1:
            raise ValueError(f"task {self.name}: labels {self.labels}; at least 1 pair of a region and a category")

    @property
    def unit(self) -> str:
        """What its records are."""
        return "questions" if self.asks else "regions"

    def about(self, name: str) -> str:
        """The question, with `name` instead of "this region"."""
        return re.sub(r"(this|the masked) region", name, self.question)

    def word_list(self, kind: str, data: str | Path | None = None) -> list[str] | list[dict] | None:
        """Names of "tags" or "categories", or entries of "attributes", in the file beside the records; None where there
        is none."""
        for name in WORD_LISTS[kind]:
            path = Path(data or self.data).absolute().parent / name
            if path.is_file():
                return attribute_entries(path) if kind == "attributes" else read_words(path)
        return None

    def word_lists(self, data: str | Path | None = None) -> dict[str, list[str] | list[dict] | None]:
        """{kind: `word_list`} of all kinds."""
        return {kind: self.word_list(kind, data) for kind in WORD_LISTS}

    def deviations(self, regions: Sequence[Region], data_sha256: str) -> list[str]:
        """How scoring these regions differs from the benchmark, a short sentence each; [] where nothing is known."""
        reasons = []
        if self.num_regions is not None and len(regions) < self.num_regions:
            reasons.append(f"{len(regions):,} of the benchmark's {self.num_regions:,} {self.unit}")
        elif self.num_regions is not None and len(regions) > self.num_regions:
            reasons.append(f"{len(regions):,} {self.unit}, more than the {self.num_regions:,} that the benchmark has")
        splits = Counter(region.split for region in regions)
        if self.split is not None:
            others = {split: number for split, number in splits.items() if split != self.split}
            reasons += [
                f"{number:,} {self.unit} "
                + (f"of split {split!r}" if split else "of no split")
                + f", not {self.split!r}"
                for split, number in sorted(others.items())
            ]
        several = sum(len(region.captions) > 1 for region in regions) if self.references == "1" else 0
        if several:
            reasons.append(f"{several:,} regions have several references, the benchmark has 1 each")
        if self.sha256 not in (None, data_sha256):
            reasons.append(f"records of sha256 {data_sha256}, not the published {self.sha256}")
        return reasons

    def train_path(self, data: str | Path | None = None) -> Path | None:
        """The training records beside the data, or None where there are none."""
        path = Path(data or self.data).absolute().parent / self.train
        return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def attribute_entries(path: str | Path) -> list[dict]:
    """Entries of an attribute list's file (see `read_attributes`) with all that `attribute_groups` reads."""
    entries = read_attributes(path)
    if Path(path).suffix != ".json":
        return entries
    raw = read_json(read_text(Path(path), "attribute list"), Path(path), "attribute list")
    raw = raw["attributes"] if isinstance(raw, dict) else raw
    return [(a if isinstance(a, dict) else {}) | entry for a, entry in zip(raw, entries, strict=True)]
