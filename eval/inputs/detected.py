"""Boxes of a detector that a model describes: records without annotations, and the detector's scores, which rank them.

`python -m data_prep.grit_boxes` writes both; for another detector the file of scores has lines {"id", "score"}.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dynrefer.data.record_files import detector_file, open_records
from dynrefer.data.records import RegionRecords, RegionResult, is_number
from dynrefer.files import file_sha256, read_jsonl

from ..task import Task
from .formats import Predictions


@dataclass(frozen=True)
class DetectedBoxes:
    """records: the boxes to describe; everything: all of their file; images: id -> image of the ground truth; scores:
    id -> the detector's, None where a task is ranked by what the model says; settings: for scores.json."""

    records: RegionRecords
    everything: RegionRecords
    images: Mapping[str, str]
    scores: Mapping[str, float] | None
    settings: Mapping[str, str]

    def detections(self, results: Mapping[str, RegionResult]) -> Predictions:
        """What a model says of the boxes, ranked by the detector; a box of which it says nothing has an empty caption.

        results: id -> result. Without the detector's scores a box without a result is none.
        """
        found = {}
        for region in self.records:
            result = results.get(region.id)
            if self.scores is not None:
                result = replace(result or RegionResult(region.id, []), score=self.scores[region.id])
            if result is not None:
                found[region.id] = replace(result, box=list(region.box))
        return Predictions(found, {i: self.images[i] for i in found})


def open_boxes(
    path: str | os.PathLike, task: Task, records: RegionRecords, everything: RegionRecords | None = None
) -> DetectedBoxes:
    """The boxes in the images of `records`, the ground truth to score; `everything`: all of its file, where `records`
    are a part, whose other images are no mistake.

    Raises ValueError: the task gives its boxes, a box in an image without ground truth, no detector's score for a box.
    """
    if task.boxes != "detected":
        raise ValueError(
            f"task {task.name} gives its boxes; --boxes is for tasks of a detector's, such as those of -detected"
        )
    found = open_records(path)
    wanted, known = ({_place(r, image): image for image in r.images()} for r in (records, everything or records))
    places = [_place(found, image) for image in found.images()]
    other = [n for n, place in enumerate(places) if place not in known]
    chosen = [n for n, place in enumerate(places) if place in wanted]
    if other or not chosen:
        n = other[0] if other else 0
        raise ValueError(
            f"{path}: {len(other) or len(places)} boxes are of images of which {records.path} has no region to score, "
            f"the first, {found[n].id!r}, of {found[n].image!r}; leave them out"
        )
    images = {found[n].id: wanted[places[n]] for n in chosen}
    settings = {"records": str(path), "sha256": file_sha256(path)}
    scores = None
    if "densecap" in task.metrics:
        beside = detector_file(path)
        scores = _read_scores(beside)
        settings["scores_sha256"] = file_sha256(beside)
        if lacking := next((i for i in images if i not in scores), None):
            raise ValueError(f"{beside}: no score for box {lacking!r} of {path}; the detector's scores rank the boxes")
    return DetectedBoxes(found.subset(chosen), found, images, scores, settings)


def _place(records: RegionRecords, image: str) -> str:
    return os.path.normpath(records.root / image)


def _read_scores(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise ValueError(
            f'no scores of the detector at {str(path)!r}; it has a line {{"id", "score"}} for each box, as '
            "`python -m data_prep.grit_boxes` writes it beside the records"
        )
    scores: dict[str, float] = {}
    for line, value in read_jsonl(path):
        if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not is_number(value.get("score")):
            raise ValueError(f'{path}:{line}: {str(value)[:80]}; expected an object with "id" and a finite "score"')
        if value["id"] in scores:
            raise ValueError(f"{path}:{line}: a second score for box {value['id']!r}; there is one a box")
        scores[value["id"]] = float(value["score"])
    return scores
