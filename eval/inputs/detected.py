"""Boxes of a detector that a model describes: records without annotations, and the detector's scores, which rank them.

`python -m data_prep.grit_boxes` writes both; for another detector the file of scores has lines {"id", "score"}. A JSON
file with boxes and scores of a detector is read as well, see `proposals.py`.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynrefer.data.record_files import detector_file, open_records
from dynrefer.data.records import RegionRecords, RegionResult, is_number
from dynrefer.files import file_sha256, read_jsonl

from ..task import Task
from .formats import Predictions
from .proposals import is_proposal_file, read_proposals


@dataclass(frozen=True)
class DetectedBoxes:
    """records: the boxes to describe; everything: all of their file; images: id -> image of the ground truth; scores:
    id -> the detector's, None where a task is ranked by what the model says; weights: id -> the detector's, which those
    of the categories are multiplied by, None where the file has none; settings: for scores.json."""

    records: RegionRecords
    everything: RegionRecords
    images: Mapping[str, str]
    scores: Mapping[str, float] | None
    settings: Mapping[str, Any]
    weights: Mapping[str, float] | None = None

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
        return Predictions(found, {i: self.images[i] for i in found}, weights=self.weights)


def open_boxes(
    path: str | os.PathLike,
    task: Task,
    records: RegionRecords,
    everything: RegionRecords | None = None,
    annotations: str | None = None,
) -> DetectedBoxes:
    """The boxes in the images of `records`, the ground truth to score; `everything`: all of its file, where `records`
    are a part, whose other images are no mistake. annotations: the benchmark's own file, over the task's.

    Raises ValueError: the task gives its boxes, a box in an image without ground truth, no detector's score for a box.
    """
    if task.boxes != "detected":
        raise ValueError(
            f"task {task.name} gives its boxes; --boxes is for tasks of a detector's, such as those of -detected"
        )
    if is_proposal_file(path):
        return _of_proposals(path, task, records, everything or records, annotations)
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


def _of_proposals(
    path: str | os.PathLike, task: Task, records: RegionRecords, everything: RegionRecords, annotations: str | None
) -> DetectedBoxes:
    if not Path(path).is_file():
        raise ValueError(f"boxes {str(path)!r}: no such file; `python -m data_prep.proposals` writes SAM's")
    known = next((p for p in (annotations, task.annotations) if p and Path(p).is_file()), None)
    found = read_proposals(path, everything, known)
    chosen = found if len(records) == len(everything) else found.of_images(set(records.image_names()))
    for what, number in found.left_out.items():
        print(f"{path}: {number:,} boxes {what} are left out", file=sys.stderr)
    images = dict(zip(chosen.ids(), chosen.truth_images(), strict=True))
    weights = dict(zip(images, chosen.scores.tolist(), strict=True))
    settings = {"boxes": str(path), "sha256": file_sha256(path), "number": len(chosen), "left_out": found.left_out}
    scores = weights if "densecap" in task.metrics else None
    if scores is None:
        settings["score"] = "the category's times the box's"
    return DetectedBoxes(chosen, found, images, scores, settings, weights)


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
