"""A benchmark as another harness sees it: for each region a picture, a question, and a score of all answers.

`python -m eval.export` writes the description, EXPORT, into a folder that the harness is pointed to; the code that runs
inside the harness opens it again. Records and images stay where they are.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords, RegionResult
from dynrefer.files import file_sha256
from dynrefer.images import open_image

from ..benchmarks import get_task
from ..overlay import overlay
from ..scoring import score
from ..task import Task

EXPORT = "export.json"
PREFIX = "dynrefer_"
UNITS = {  # how the question names the region, where no line on the image does
    "xyxy": "in pixels of the image, which is {width} wide and {height} high",
    "xyxy-unit": "in fractions of the image's width and height",
    "xyxy-1000": "in thousandths of the image's width and height",
}
SHOW = ("overlay", *UNITS)
ANSWERED = ("captions", "densecap", "categories", "recognition", "similarity", "choices")  # metrics that texts have
MAX_CHOICES = 200  # names of categories that a question lists


@dataclass(frozen=True)
class Exported:
    """What EXPORT holds.

    task: a row of the table; version: its version then. data: absolute path of the records; split, limit: which of
    them; data_sha256: of the file then. show: a value of SHOW. question: asked of every region. scores: names of the
    scores that answers have.
    """

    task: str
    version: int
    data: str
    data_sha256: str
    split: str | None
    limit: int | None
    show: str
    question: str
    scores: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The benchmark's name in the harness: "dynrefer_refcocog_d_val", "dynrefer_world_xyxy_1000"."""
        shown = "" if self.show == "overlay" else f"_{self.show}"
        return (PREFIX + self.task + shown).replace("-", "_").replace(".", "_")

    @cached_property
    def row(self) -> Task:
        """The row of the table; ValueError where it has another version by now."""
        task = get_task(self.task)
        if task.version != self.version:
            raise ValueError(
                f"task {self.task} was exported in version {self.version}, now it is {task.version}; export it again"
            )
        return task

    @cached_property
    def records(self) -> RegionRecords:
        """The records; ValueError where the file is another one by now."""
        if (found := file_sha256(self.data)) != self.data_sha256:
            raise ValueError(f"{self.data} has changed (sha256 {found}, was {self.data_sha256}); export the task again")
        records = open_records(self.data, self.split)
        return records if self.limit is None else records.subset(range(min(self.limit, len(records))))

    @cached_property
    def places(self) -> dict[str, int]:
        """{region id: its place in the records}"""
        return {region.id: n for n, region in enumerate(self.records)}

    @cached_property
    def names(self) -> dict[str, list | None]:
        """The word lists beside the records."""
        return self.row.word_lists(self.data)

    @cached_property
    def choices(self) -> list[str]:
        """The names of categories of which the answer has to be one; none where it may be any text."""
        if not {"categories", "recognition"} & set(self.row.metrics) or "captions" in self.row.metrics:
            return []
        names = self.names["categories"] or sorted({region.category for region in self.records if region.category})
        return names if len(names) <= MAX_CHOICES else []

    def ask(self, region: Region) -> str:
        """The question about a region."""
        parts = [self.question]
        if self.show != "overlay":
            parts.append(_box_text(region, self.show))
        if self.choices:
            parts.append(f"Answer with one of: {', '.join(self.choices)}.")
        return " ".join(parts)

    def picture(self, region_id: str) -> np.ndarray:
        """uint8 (H, W, 3): the image, with a line around the region where it is shown so."""
        place = self.places[region_id]
        image = open_image(self.records.image_path(place))
        if self.show != "overlay":
            return image
        return overlay(image, self.records[place], width=self.row.line_width, prompt=self.row.prompt)

    def references(self, region: Region) -> list[str]:
        """What a good answer says."""
        return list(region.captions) or [region.category or ""]

    def with_scores(self) -> "Exported":
        """The same with the names of its scores, parts of scores left out; found by scoring two true answers."""
        few = [region for region in self.records if region.captions or region.category][:2]
        results = {region.id: RegionResult(region.id, [], self.references(region)[0]) for region in few}
        corpus = score(self.row, few, results, names=self.names, encode=lambda texts: np.ones((len(texts), 1))).corpus
        return replace(self, scores=tuple(name for name in corpus if "/" not in name))

    def score(self, answers: Mapping[str, str]) -> dict[str, float]:
        """{score name: fraction} of {region id: text}: what `python -m eval.run --predictions` says of the same. A
        region without an answer counts as wrong."""
        if missing := len(self.records) - len(answers):
            print(
                f"{self.name}: {missing} of {len(self.records)} regions have no answer and count as wrong; for a part "
                "of the benchmark export it with --limit",
                file=sys.stderr,
            )
        results = {i: RegionResult(i, [], text) for i, text in answers.items()}
        return score(self.row, self.records, results, names=self.names).corpus

    def write(self, folder: Path) -> None:
        """EXPORT in this folder; it also says where this checkout is, for a harness that is started elsewhere."""
        content = asdict(self) | {"protocol": self.row.protocol, "checkout": str(Path(__file__).parents[2])}
        (folder / EXPORT).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@lru_cache
def exported(folder: str | os.PathLike) -> Exported:
    """The benchmark whose EXPORT lies in a folder, opened once."""
    content = json.loads((Path(folder) / EXPORT).read_text(encoding="utf-8"))
    return Exported(**{name: content[name] for name in Exported.__dataclass_fields__})


@lru_cache(maxsize=1)
def score_answers(folder: str | os.PathLike, answers: tuple[tuple[str, str], ...]) -> dict[str, float]:
    """`Exported.score` of (region id, text) pairs, computed once for a harness that asks for one score after the
    other; ValueError for two answers about one region."""
    found = dict(answers)
    if len(found) != len(answers):
        raise ValueError(f"{folder}: {len(answers)} answers about {len(found)} regions; there is one a region")
    return exported(folder).score(found)


def check_exportable(task: Task) -> None:
    """ValueError for a task whose scores need more than a text for each of its regions."""
    if task.boxes != "given":
        raise ValueError(f"task {task.name} scores boxes of a detector, and a harness asks about given ones")
    if not set(task.metrics) & set(ANSWERED):
        raise ValueError(
            f"task {task.name} scores {', '.join(task.metrics)}, which are more than a text; tasks with texts have "
            f"{' or '.join(ANSWERED)}"
        )
    if "recognition" in task.metrics and task.score_source == "model":
        raise ValueError(f"task {task.name} ranks by a model's scores, which a text has none of: {task.name}-text")


def _box_text(region: Region, show: str) -> str:
    height, width = region.image_hw
    scale = {"xyxy": (1, 1), "xyxy-unit": (1 / width, 1 / height), "xyxy-1000": (1000 / width, 1000 / height)}[show]
    digits = 3 if show == "xyxy-unit" else 0
    corners = ", ".join(f"{x * factor:.{digits}f}" for x, factor in zip(region.box, scale * 2, strict=True))
    return f"The region is the box [{corners}], {UNITS[show].format(width=width, height=height)}."
