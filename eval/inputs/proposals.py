"""Boxes of a detector, or of SAM, in one JSON file -> records that a model names.

Two forms are read. GLIP's is one object {image id: {"scores": [...], "labels": [...], "boxes": [[x1, y1, x2, y2],
...]}}, in pixels of the original picture; its labels are not looked at. COCO's is a results list [{"image_id", "bbox":
[x, y, width, height], "score"}]. `python -m data_prep.proposals` writes the first form with SAM's own proposals.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.boxes import number_array
from dynrefer.data.image_groups import ImageGroups
from dynrefer.data.records import Region, RegionRecords, is_number

from .coco_json import Pairing, pair_images, parse_json, read_document, read_text
from .names import Pictures

FORMS = 'expected {image id: {"boxes": [[x1, y1, x2, y2], ...], "scores": [...]}} or [{"image_id", "bbox", "score"}]'


@dataclass(frozen=True)
class _Lazy(Sequence):
    """Regions, each made when it is asked for: millions of boxes are two arrays. images, keys: one an image, as records
    and as the file call it; owners (N,) the image of every box; numbers (N,) its place in the file's own list."""

    images: Sequence[str]
    keys: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    owners: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: int) -> Region:
        owner = self.owners[index]
        box = tuple(self.boxes[index].tolist())
        return Region(self.id_of(index), self.images[owner], self.sizes[owner], box)

    def id_of(self, index: int) -> str:
        return f"box-{self.keys[self.owners[index]]}-{self.numbers[index]}"


class Proposals(RegionRecords):
    """Records of a detector's boxes. scores (N,) the detector's; truth: what the ground truth calls the images, one
    each; left_out: what of the file is not among them, for people."""

    def __init__(
        self,
        path: Path,
        root: Path,
        regions: _Lazy,
        scores: np.ndarray,
        truth: Sequence[str],
        left_out: Mapping[str, int],
    ):
        super().__init__(path, regions)
        self.root, self.scores, self.truth, self.left_out = root, scores, truth, left_out

    def images(self) -> list[str]:
        return [self._regions.images[owner] for owner in self._regions.owners]

    def image_groups(self) -> ImageGroups:
        return ImageGroups.from_codes(self._regions.owners.astype(np.int32))

    def example_groups(self) -> ImageGroups:
        return self.image_groups()

    def ids(self) -> list[str]:
        return [self._regions.id_of(n) for n in range(len(self))]

    def truth_images(self) -> list[str]:
        """The ground truth's image of every box."""
        return [self.truth[owner] for owner in self._regions.owners]

    def of_images(self, wanted: set[str]) -> "Proposals":
        """Those in some images, by the ground truth's names."""
        keep = np.array([name in wanted for name in self.truth], bool)[self._regions.owners]
        if keep.all():
            return self
        lazy = self._regions
        part = _Lazy(lazy.images, lazy.keys, lazy.sizes, *(a[keep] for a in (lazy.owners, lazy.numbers, lazy.boxes)))
        names = sorted(set(part.owners.tolist()))
        place = np.zeros(len(lazy.images), np.int64)
        place[names] = np.arange(len(names))
        part = _Lazy(
            *([column[n] for n in names] for column in (lazy.images, lazy.keys, lazy.sizes)),
            place[part.owners],
            part.numbers,
            part.boxes,
        )
        return Proposals(self.path, self.root, part, self.scores[keep], [self.truth[n] for n in names], self.left_out)


def is_proposal_file(path: str | os.PathLike) -> bool:
    """Whether it is read by `read_proposals`; others are records."""
    return str(path).removesuffix(".gz").endswith(".json")


def read_proposals(
    path: str | os.PathLike, records: RegionRecords, annotations: str | os.PathLike | None = None
) -> Proposals:
    """The boxes in images of the records, and in images of the benchmark's own file (`annotations`) that have no object
    and so no record, where a picture of theirs lies beside those of the records.

    Boxes are clipped to their image; what is empty then is left out, as are boxes of other images.
    Raises ValueError: another form, an image that fits several, a box or score that is no finite number, no box at all.
    """
    path = Path(path)
    of_record = {region.image: region.image_hw for region in records}
    document = read_document(annotations) if annotations else {}
    pairing = pair_images(document, of_record, annotations) if document.get("images") else None
    find, pictures = _finder(pairing, of_record), _Pictures(records, pairing, document)
    images, keys, sizes, truth, parts = [], [], [], [], []
    truth_of: dict[str, Any] = {}
    left_out = {"of images that are not scored": 0, "of images without a picture": 0, "empty or outside their image": 0}
    for key, boxes, scores, where in _entries(path):
        image = find(key)
        if image is None:
            raise ValueError(f"{where}: several images of the records are called so; name its JSON with --annotations")
        if image in truth_of:
            raise ValueError(f"{where}: a second list of boxes for {image!r}, the first is {truth_of[image]!r}")
        place, image_hw = (image, of_record[image]) if image in of_record else pictures.find(image)
        if place is None:
            reason = "of images without a picture" if image in pictures.wanted else "of images that are not scored"
            left_out[reason] += len(boxes)
            continue
        clipped = np.clip(boxes, 0, np.tile(image_hw[::-1], 2))
        kept = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(1))
        left_out["empty or outside their image"] += len(boxes) - len(kept)
        truth_of[image] = key
        if not len(kept):
            continue
        parts.append((np.full(len(kept), len(images)), kept, clipped[kept], scores[kept]))
        for column, value in ((images, place), (keys, str(key)), (sizes, tuple(image_hw)), (truth, image)):
            column.append(value)
    if not parts:
        lost = ", ".join(f"{number} {what}" for what, number in left_out.items() if number) or "it is empty"
        raise ValueError(f"{path}: no box in an image of {records.path}: {lost}; name the boxes of these images")
    owners, numbers, boxes, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    lazy = _Lazy(images, keys, sizes, owners, numbers, boxes)
    return Proposals(path, records.root, lazy, scores, truth, {k: n for k, n in left_out.items() if n})


def _finder(pairing: Pairing | None, images: Mapping[str, Any]):
    """What a file calls an image -> the image; "" where there is none, None where it fits several."""
    pictures = Pictures(images)
    return lambda key: (pairing and pairing.find(key)) or pictures.find(key)


class _Pictures:
    """Pictures of images without a record. wanted: those in which nothing is marked, where every detection of a
    category that was looked for is wrong."""

    def __init__(self, records: RegionRecords, pairing: Pairing | None, document: Mapping):
        self.root, self.pairing = records.root, pairing
        self.folders = list(dict.fromkeys(os.path.dirname(image) for image in records.image_names()))
        marked = {entry["image_id"] for entry in document.get("annotations") or () if isinstance(entry, dict)}
        self.wanted = {
            name
            for number, name in (pairing.image.items() if pairing else ())
            if name in pairing.others and number not in marked and name in pairing.size
        }

    def find(self, image: str) -> tuple[str | None, tuple[int, int] | None]:
        """(path from the records' folder, (height, width)), (None, None) where none is wanted or there is none."""
        if image in self.wanted:
            name = self.pairing.others[image].replace("\\", "/").rpartition("/")[2]
            for folder in self.folders:
                place = os.path.join(folder, name)
                if (self.root / place).is_file():
                    return place, self.pairing.size[image]
        return None, None


def _entries(path: Path) -> Iterator[tuple[Any, np.ndarray, np.ndarray, str]]:
    """(image, boxes (N, 4) xyxy, scores (N,), where) of a file of either form."""
    content = parse_json(path, read_text(path))
    if isinstance(content, list):
        content = _by_image(content, path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}; {FORMS}")
    for key, entry in content.items():
        where = f"{path}: image {key!r}"
        if not isinstance(entry, dict) or not {"boxes", "scores"} <= entry.keys():
            raise ValueError(f"{where}: {str(entry)[:80]}; {FORMS}")
        try:
            boxes, scores = (number_array(entry[name]) for name in ("boxes", "scores"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; {FORMS}") from error
        boxes = boxes.reshape(0, 4) if not boxes.size else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != (len(boxes),):
            raise ValueError(f"{where}: boxes of shape {boxes.shape}, scores of shape {scores.shape}; {FORMS}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"{where}: a box or score that is no finite number; the file is damaged")
        yield key, boxes, scores, where


def _by_image(entries: list, path: Path) -> dict:
    """A results list as the other form."""
    found: dict[Any, dict[str, list]] = {}
    for n, entry in enumerate(entries):
        box = entry.get("bbox") if isinstance(entry, dict) else None
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(map(is_number, [*box, entry.get("score")]))
            or not isinstance(entry.get("image_id"), int | str)
        ):
            raise ValueError(f"{path}: box {n}: {str(entry)[:80]}; {FORMS}")
        x, y, width, height = box
        own = found.setdefault(entry["image_id"], {"boxes": [], "scores": []})
        own["boxes"].append([x, y, x + width, y + height])
        own["scores"].append(entry["score"])
    return found
