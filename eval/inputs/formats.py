"""Prediction files of any model -> {region id: result}.

What is read: this package's JSON lines; COCO results lists ([{"image_id", "caption"}], as Osprey and GLaMM write them,
or boxes with scores); one object {annotation id: text}, as DAM writes; lists and JSON lines with a text an id, as of
Ref-L4, PixelRefer, LLaVA ({"question_id", "text"}) and the samples that lmms-eval logs ({"doc_id", "filtered_resps"});
tables of answers, as VLMEvalKit writes them (`eval/inputs/tables.py`).
Ids of a benchmark are brought to ours by the ends of ours: 12345 is "refcocog-umd-val-12345". What fits none or several
regions is an error, and so are several texts of one prediction that differ: one of them may be the reference.
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.boxes import DENSECAP_LONGER_SIDE, share_beyond
from dynrefer.data.records import Region, RegionResult, is_number
from dynrefer.files import parse_line
from dynrefer.masks import record_rle, rle_to_box

from .coco_json import Pairing, category_names, pair_images, parse_json, read_document, read_text
from .names import Names, Pictures, is_picture, plain
from .tables import is_table, read_table

IMAGE_KEYS = ("image_id", "image", "file_name", "image_path", "filename")
ID_KEYS = ("region_id", "ann_id", "annotation_id", "ref_id", "question_id", "id", "image_id", "doc_id")
TEXT_KEYS = ("pred", "prediction", "pred_caption", "response", "output", "outputs", "generated_text", "caption", "text")
TEXT_KEYS += ("answer", "description", "filtered_resps", "object_descriptions")
GRIT_TEXT = "object_descriptions"  # GRiT's alone, whose boxes are scaled
VLMEVALKIT = frozenset(("index", "question", "prediction"))  # a row of its tables; what it calls answer is the true one
NO_ANSWER = "Failed to obtain answer"  # what VLMEvalKit writes in the place of one
LIST_KEYS = ("annotations", "results", "predictions")  # of an object that holds a list and not {id: text}
QUERY = "query"  # beside the regions of {id: text}: what the model was asked
OWN_KEYS = frozenset(RegionResult.__dataclass_fields__)
NAMING = frozenset(
    ("categories", "recognition", "detection", "lvis", "similarity")
)  # metrics that read a prediction's category
MASKED = frozenset(("detection", "lvis"))  # metrics that read a prediction's mask
RANKING = {
    "densecap": False,
    "recognition": True,
    "detection": True,
    "lvis": True,
}  # metric -> whether the category's score ranks


@dataclass
class Predictions:
    """results: region id -> result; for tasks whose boxes are detected prediction number -> result, and images: number
    -> image of the records. how: what the ids were read as, for people. weights: as `score` takes
    them."""

    results: dict[str, RegionResult]
    images: dict[str, str] | None = None
    how: str = ""
    weights: Mapping[str, float] | None = None


def read_any(
    path: str | os.PathLike,
    regions: Sequence[Region],
    *,
    detected: bool = False,
    id_key: str | None = None,
    text_key: str | None = None,
    annotations: str | os.PathLike | None = None,
    categories: Mapping[Any, str] | None = None,
    metrics: Collection[str] | None = None,
) -> Predictions:
    """The predictions of a file for these regions.

    Args:
        detected: predictions are boxes of images, [{"image_id", "bbox" (xywh) or "box" (xyxy), "score", ...}]. Those of
            GRiT's own file, which has `object_descriptions`, are brought from DenseCap's scale to pixels. Where masks
            are scored, "segmentation" holds run lengths or polygons, and a box may be missing.
        id_key, text_key: the key that names a region, and the one that holds its text, where a file has several that
            would fit.
        annotations: the benchmark's COCO JSON: an `image_id` is the image of its one annotation there, and a
            `category_id` a category of it.
        categories: id -> name of `category_id`s, where there are no annotations.
        metrics: what is scored (`Task.metrics`): a `category_id` is not looked at where no category is, and where
            predictions are ranked all or none of them have a score. None = a category is; scores may be missing.

    Raises:
        ValueError: no such file, not JSON, a form that is not known, a prediction without text or with several that
            differ, a second one for a region, an id that fits no region or several, a value of another type, a score
            that is not finite, a box that ends before it begins.
    """
    path = Path(path)
    if not path.is_file():
        said = "a folder; name the file in it" if path.is_dir() else "no such file"
        raise ValueError(f"predictions {str(path)!r}: {said}; `python -m eval.run --model M --task T` writes it")
    document = read_document(annotations) if annotations else {}
    known = category_names(document, annotations) or categories or {}
    entries = _entries(path)
    _check_scores(path, entries, metrics or ())
    read = _Reader(_text_keys(path, entries, text_key), {plain(number): name for number, name in known.items()})
    read.named = metrics is None or bool(NAMING & set(metrics))
    if detected:
        pairing = pair_images(document, [r.image for r in regions], annotations) if document.get("images") else None
        return _detections(entries, regions, read, pairing, masks=bool(MASKED & set(metrics or ())))
    if all(_is_own(entry) for _, entry in entries):
        results = [RegionResult.from_dict(_without_null(entry), where) for where, entry in entries]
        for key, own in ((id_key, "id"), (text_key, "caption")):
            if key not in (None, own):
                raise ValueError(f"{path}: its predictions have no {key!r}")
    else:
        results = [read.result(entry, where) for where, entry in entries]
    ids, how = _region_ids(path, entries, regions, id_key, document)
    found: dict[str, RegionResult] = {}
    for region_id, result in zip(ids, results, strict=True):
        result.id = region_id
        found[region_id] = result
    return Predictions(found, how=how)


def _is_own(entry: Mapping[str, Any]) -> bool:
    """Whether it is a line of this package; others have a category's name alone."""
    known = entry.keys() <= OWN_KEYS and isinstance(entry.get("id"), str)
    return known and not isinstance(entry.get("category"), str)


def _entries(path: Path) -> list[tuple[str, dict]]:
    """(where, prediction) of a file of any form; {id: text} becomes {"id", "caption"}."""
    if is_table(path):
        return _checked(path, [(f"{path}: row {number}", row) for number, row in read_table(path)])
    content = read_text(path)
    text = content.strip()
    if not text:
        raise ValueError(f"{path}: the file is empty")
    value = None
    if ".jsonl" not in path.suffixes and text[0] in "[{":
        try:
            value = parse_json(path, text)
        except ValueError:
            if text[0] == "[" or "\n" not in text:  # otherwise perhaps JSON lines under another name
                raise
    if isinstance(value, dict) and not value.keys() & {*ID_KEYS, *TEXT_KEYS}:
        lists = [key for key in LIST_KEYS if isinstance(value.get(key), list)]
        if lists:
            value = value[lists[0]]
        else:
            entries = [
                (f"{path}: {key!r}", {**text, "id": key} if isinstance(text, dict) else {"id": key, "caption": text})
                for key, text in value.items()
                if key != QUERY
            ]
            return _checked(path, entries)
    if isinstance(value, list):
        return _checked(path, [(f"{path}: prediction {n}", entry) for n, entry in enumerate(value)])
    if isinstance(value, dict):
        return _checked(path, [(f"{path}", value)])
    places = [(f"{path}:{number}", line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    return _checked(path, [(where, parse_line(line.encode(), where)) for where, line in places])


def _checked(path: Path, entries: list[tuple[str, Any]]) -> list[tuple[str, dict]]:
    if not entries:
        raise ValueError(f"{path}: no predictions in it")
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {str(entry)[:80]!r}; expected an object with an id and a text")
    return entries


# --- one prediction --------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """How a prediction of this file is read. text_keys: which may hold its text; categories: id -> name; named: whether
    a category is scored."""

    text_keys: Sequence[str]
    categories: Mapping[Any, str]
    named: bool = True

    def result(self, entry: Mapping[str, Any], where: str) -> RegionResult:
        category = self._category(entry, where)
        if category is None and (ranked := entry.get("categories")) and all(isinstance(one, dict) for one in ranked):
            category = ranked[0]
        text = self._text(entry, where)
        said = text is not None or any(_is_null(entry[key]) for key in self.text_keys if key in entry)
        if not said and category is None and not entry.get("attributes") and not entry.get("tags"):
            keys = ", ".join(map(str, entry))
            raise ValueError(f"{where}: no text in it, only {keys}; expected one of {', '.join(self.text_keys)}")
        if text is None or text.startswith(NO_ANSWER):
            text = ""
        values = {name: entry[name] for name in ("tags", "attributes") if isinstance(entry.get(name), list)}
        return RegionResult.from_dict(
            {"id": "", "caption": text, "score": _score(entry, where), "category": category, **values}, where
        )

    def _text(self, entry: Mapping[str, Any], where: str) -> str | None:
        found: dict[str, str] = {}
        for key in self.text_keys:
            text = entry.get(key)
            if isinstance(text, list) and len(text) == 1:
                text = text[0]
            if _is_null(text):
                continue
            if not isinstance(text, str):
                raise ValueError(f"{where}: {key} is {str(text)[:80]!r}; expected one text")
            found[key] = text
        if len(set(found.values())) > 1:
            said = " and ".join(f"{key} {text[:60]!r}" for key, text in found.items())
            raise ValueError(
                f"{where}: {said} differ, and one of them may be the reference; choose the prediction with "
                "--text-key KEY"
            )
        return next(iter(found.values()), None)

    def _category(self, entry: Mapping[str, Any], where: str) -> dict | None:
        name = entry.get("category", entry.get("category_name"))
        if isinstance(name, dict):
            return name
        if name is None and self.named and "category_id" in entry:
            number = entry["category_id"]
            name = self.categories.get(plain(number)) if isinstance(number, int | float | str) else None
            if name is None:
                known = f" beside {', '.join(list(self.categories)[:10])}" if self.categories else ""
                raise ValueError(
                    f"{where}: category_id {number!r} has no name{known}; name the benchmark's COCO JSON with "
                    "--annotations"
                )
        if _is_null(name) or name == "":
            return None
        if not isinstance(name, str):
            raise ValueError(f"{where}: category {str(name)[:80]!r}; expected a name")
        return {"name": name, "score": _score(entry, where, 1.0)}


def _is_null(value: Any) -> bool:
    """What stands where a model said nothing: null, or the NaN that pandas makes of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _without_null(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**entry, "caption": ""} if "caption" in entry and _is_null(entry["caption"]) else entry


def _score(entry: Mapping[str, Any], where: str, otherwise: float = 0.0) -> float:
    score = entry.get("score", otherwise)
    if not is_number(score):
        raise ValueError(f"{where}: score {repr(score)[:80]}; expected a finite number")
    return float(score)


def _text_keys(path: Path, entries: list[tuple[str, dict]], chosen: str | None) -> Sequence[str]:
    if chosen is None:
        theirs = entries[0][1].keys() >= VLMEVALKIT
        return [key for key in TEXT_KEYS if key != "answer"] if theirs else TEXT_KEYS
    if not any(chosen in entry for _, entry in entries):
        raise ValueError(f"{path}: its predictions have no {chosen!r}, only {', '.join(map(str, entries[0][1]))}")
    return [chosen]


def _check_scores(path: Path, entries: list[tuple[str, dict]], metrics: Collection[str]) -> None:
    """ValueError where predictions are ranked by scores that only some of them have."""
    for metric in RANKING.keys() & set(metrics):
        scored = [
            "score" in entry
            or (RANKING[metric] and (isinstance(entry.get("category"), dict) or bool(entry.get("categories"))))
            for _, entry in entries
        ]
        if any(scored) and not all(scored):
            raise ValueError(
                f"{entries[scored.index(False)][0]}: no score, which {sum(scored)} of the {len(scored)} predictions "
                "have; they are ranked by it, so all of them have one or none"
            )


# --- whose prediction ------------------------------------------------------------------------------------------------


def _region_ids(
    path: Path, entries: list[tuple[str, dict]], regions: Sequence[Region], id_key: str | None, document: dict
) -> tuple[list[str], str]:
    """The region of every prediction, and how it was found."""
    keys = [key for key in ([id_key] if id_key else ID_KEYS) if all(key in entry for _, entry in entries)]
    if not keys and id_key is None:  # by the picture, where nothing else names a region
        keys = [key for key in IMAGE_KEYS if all(key in entry for _, entry in entries)][:1]
    if not keys:
        lacking = next((w for w, entry in entries if not entry.keys() & {id_key or "", *ID_KEYS}), entries[0][0])
        raise ValueError(f"{lacking}: no id that all predictions have; expected {id_key or ' or '.join(ID_KEYS)}")
    whole = {region.id for region in regions}
    if id_key is None and "region_id" in keys and all(entry["region_id"] in whole for _, entry in entries):
        keys = ["region_id"]  # our own, beside which a harness has numbers of its own
    readings: dict[str, Callable[[Any], str | None]] = {}
    names = _region_names(regions)
    pictures = Pictures([region.image for region in regions], [region.id for region in regions])
    for key in keys:
        if key == "image_id" and document:
            readings["image_id, by its annotation"] = _by_annotation(document, names)
            continue
        paths = all(is_picture(entry[key]) for _, entry in entries)
        by_picture = {f"{key}, by the one region of the image": pictures.find} if paths or key in IMAGE_KEYS else {}
        readings |= by_picture | {key: names.find} if paths else {key: names.find} | by_picture
    problems, fitting = [], {}
    for how, read in readings.items():
        key = how.partition(",")[0]
        known = [region.image for region in regions] if "by the one region" in how else list(whole)
        ids, problem = _read_all(entries, key, read, known)
        if problem:
            problems.append((len(ids), how, problem))
        else:
            fitting.setdefault(tuple(ids), how)
    if not fitting:
        raise ValueError(max(problems, key=lambda problem: problem[0])[2])
    if len(fitting) > 1:
        raise ValueError(
            f"{path}: the regions of its predictions could be named by {' or '.join(fitting.values())}, which differ; "
            "choose with --id-key KEY, or name the benchmark's own JSON with --annotations"
        )
    return next((list(ids), how) for ids, how in fitting.items())


def _some(names: Sequence[str]) -> str:
    """The first of some names, as an example."""
    return f"like {min(names)!r}" if names else "none"


def _read_all(entries, key: str, read: Callable[[Any], str | None], known: Sequence[str]) -> tuple[list[str], str]:
    """(regions read, what is wrong with the next prediction or ""). known: names as the records have them."""
    places: dict[str, str] = {}
    for where, entry in entries:
        region_id = read(entry[key])
        if region_id is None:
            return list(places), f"{where}: {key} {entry[key]!r} fits several regions of the records; use their ids"
        if not region_id:
            return list(places), (
                f"{where}: predictions are for regions that the records do not have, the first for {entry[key]!r} "
                f"({key}), where theirs are {_some(known)}; score a predictions file with the data and the split it "
                "was made from, or name the key of its ids with --id-key"
            )
        if region_id in places:
            return list(places), (
                f"{where}: a second prediction for region {region_id!r} ({key} {entry[key]!r}), the first is "
                f"{places[region_id]}; there is one a region"
            )
        places[region_id] = where
    return list(places), ""


def _region_names(regions: Iterable[Region]) -> Names:
    """A region's id and every end of it behind a hyphen: "lvis-val-139-3", "val-139-3", "139-3", "3"."""
    ids = [region.id for region in regions]
    names = Names()
    for region_id in ids:
        rest = region_id
        while "-" in rest:
            rest = rest.partition("-")[2]
            names.add(rest, region_id)
            if rest[:1] == "e" and rest[1:].isdecimal():  # an expression
                names.add(rest[1:], region_id)
    names.known |= {region_id: region_id for region_id in ids}  # a whole id is never ambiguous
    return names


def _by_annotation(document: dict, names: Names) -> Callable[[Any], str | None]:
    if not isinstance(document.get("annotations"), list):
        raise ValueError("the annotations file has no list `annotations`; expected the benchmark's COCO JSON")
    regions = Names()
    for annotation in document["annotations"]:
        if found := names.known.get(str(annotation["id"])):
            regions.add(plain(annotation["image_id"]), found)
    return regions.find


def _detections(
    entries: list[tuple[str, dict]], regions: Sequence[Region], read: _Reader, pairing: Pairing | None, masks: bool
) -> Predictions:
    """Boxes of images. pairing: of the benchmark's file, whose ids come before the names of images; masks: whether
    they are read, and serve where a box is missing."""
    sizes = {region.image: region.image_hw for region in regions}
    others = pairing.others if pairing else {}
    pictures = Pictures([*sizes, *others.values()], [*sizes, *others])
    sizes = (pairing.size if pairing else {}) | sizes
    results, of_image = {}, {}
    for number, (where, entry) in enumerate(entries):
        name = next((entry[key] for key in IMAGE_KEYS if key in entry), None)
        image = (pairing and pairing.find(name)) or pictures.find(name)
        if not image:
            problem = "fits several images" if image is None else "is no image"
            raise ValueError(
                f"{where}: image {name!r} {problem} of the records; score it with the data it is of, name the "
                "COCO JSON whose ids these are with --annotations, or, where its predictions are of the records of a "
                "detector's boxes, name those with --boxes"
            )
        mask = _mask(entry, sizes.get(image), where) if masks else None
        box = [] if mask and not entry.get("bbox", entry.get("box")) else _box(entry, where)
        if "score" not in entry:
            raise ValueError(f"{where}: no score; detections are ranked by their scores")
        result = read.result(entry, where)
        result.id, result.box, result.mask = str(number), box, mask
        results[result.id], of_image[result.id] = result, image
    how = "image"
    if any(GRIT_TEXT in entry for _, entry in entries):
        hws = np.array([sizes[image] for image in of_image.values()])
        how = f"image; GRiT's boxes, {_to_pixels(list(results.values()), hws)}"
    return Predictions(results, of_image, how)


def _mask(entry: Mapping[str, Any], image_hw: tuple[int, int] | None, where: str) -> dict | None:
    """Compressed run lengths of an entry's segmentation."""
    mask = entry.get("segmentation")
    if not mask:
        return None
    try:
        if isinstance(mask, dict):
            mask = {key: mask.get(key) for key in ("size", "counts")}
            rle_to_box(mask)  # a damaged one is told here
        elif not isinstance(mask, list):
            raise ValueError(f"a {type(mask).__name__}; expected run lengths or polygons")
        hw = image_hw or (tuple(mask["size"]) if isinstance(mask, dict) else None)
        if hw is None:
            raise ValueError("polygons of an image whose size is not known; expected run lengths")
        return record_rle(mask, hw)
    except ValueError as error:
        raise ValueError(f"{where}: segmentation: {error}") from error


def _box(entry: Mapping[str, Any], where: str) -> list[float]:
    """xyxy."""
    key = "box" if "box" in entry else "bbox"
    box = entry.get(key)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(
            f"{where}: box {str(box)[:80]}; expected `bbox` [x, y, width, height] or `box` [x1, y1, x2, y2], four "
            "finite numbers"
        )
    x1, y1, x2, y2 = map(float, box)
    if key == "bbox":
        if x2 < 0 or y2 < 0:
            raise ValueError(f"{where}: bbox {box} is [x, y, width, height]; expected a width and height of 0 or more")
        return [x1, y1, x1 + x2, y1 + y2]
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{where}: box {box} is [x1, y1, x2, y2]; expected x1 <= x2 and y1 <= y2")
    return [x1, y1, x2, y2]


def _to_pixels(results: Sequence[RegionResult], image_hws: np.ndarray) -> str:
    """GRiT writes boxes of images scaled to DenseCap's longer side, forks of it pixels: whether boxes leave their
    images tells. Scales them in place; how, for people."""
    boxes = np.array([result.box for result in results])
    beyond, beyond_scaled = (share_beyond(boxes, image_hws, side) for side in (None, DENSECAP_LONGER_SIDE))
    smaller = image_hws.max() < DENSECAP_LONGER_SIDE  # then boxes that are scaled leave the image
    if beyond_scaled > beyond or (smaller and beyond <= 0.02):
        return "which count pixels"
    scales = image_hws.max(axis=1, keepdims=True) / DENSECAP_LONGER_SIDE
    for result, box in zip(results, boxes * scales, strict=True):
        result.box = box.tolist()
    return f"of images scaled to a longer side of {DENSECAP_LONGER_SIDE:.0f}"
