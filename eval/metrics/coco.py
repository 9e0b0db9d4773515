"""COCO's average precision of boxes and of masks, counted by faster-coco-eval; LVIS's is in `lvis.py`.

Detections of the same score are ranked in the order of their images' ids, as COCO's and LVIS's evaluators do.

Two average precisions can only be compared when their scores come from the same source: a classifier's raw logits, its
probabilities, a detector's confidences, or 1 for every box of a model that answers with words. `region_detections`
makes detections of recognised ground-truth regions and takes that source by name. The accuracy over the same regions
is `eval.metrics.categories.category_accuracy`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynrefer.data.records import Region
from dynrefer.errors import suggestion
from dynrefer.masks import mask_area

from ..versions import package
from .base import WORDS, Metric, Scoring
from .categories import named, not_in_list

SCORE_SOURCES = ("model", "one")
SIZES = ("small", "medium", "large")
NUM_DETECTIONS = (1, 10, 100)  # the surest of an image and category, for recalls; all of them for precision
DECIMALS = 9  # of a width that was a number of a file before it was added to x1: what it was comes back


@dataclass
class Objects:
    """Boxes of one image with their categories.

    boxes: (N, 4) xyxy pixels; categories: N names; scores: (N,), of predictions only, higher = surer; areas: (N,)
    square pixels, which sort objects into COCO's sizes: of ground truth those of the masks (the boxes' areas if None);
    masks: N compressed run lengths, where masks are matched. Of ground truth: crowds (N,) bool, groups that a detection
    may match without counting; negative: names checked to be absent from the image; not_exhaustive: names of which not
    every object is marked (both LVIS).
    """

    boxes: Sequence[Sequence[float]]
    categories: Sequence[str]
    scores: Sequence[float] | None = None
    areas: Sequence[float] | None = None
    masks: Sequence[dict] | None = None
    crowds: Sequence[bool] | None = None
    negative: Collection[str] = ()
    not_exhaustive: Collection[str] = ()


def image_order(images: Iterable[str | int]) -> list[str | int]:
    """Images in the order of their ids: of the number that a name ends with, those without one by name behind them.

    >>> image_order(["train2017/000000000139.jpg", "val2017/000000000042.jpg", "b.jpg", "a.jpg"])
    ['val2017/000000000042.jpg', 'train2017/000000000139.jpg', 'a.jpg', 'b.jpg']
    """

    def place(image: str | int) -> tuple:
        stem = Path(str(image)).stem
        digits = stem[len(stem.rstrip("0123456789")) :]
        return (0, int(digits), str(image)) if digits else (1, 0, str(image))

    return sorted(images, key=place)


def region_detections(
    predicted: Mapping[str, tuple[str, float]], regions: Mapping[str, tuple[str, Sequence[float]]], score_source: str
) -> dict[str, Objects]:
    """Detections of recognised regions: image id -> their ground-truth boxes with the predicted names.

    predicted: region id -> (name, score); a region without one is missed. regions: region id -> (image id, xyxy box).
    score_source: "model", the scores as predicted, or "one", 1 for each. ValueError: unknown source or region.
    """
    if score_source not in SCORE_SOURCES:
        raise ValueError(f"unknown score source {score_source!r}; known: {', '.join(SCORE_SOURCES)}")
    unknown = [region_id for region_id in predicted if region_id not in regions]
    if unknown:
        raise ValueError(f"{len(unknown)} predictions are for unknown regions, the first for {unknown[0]!r}")
    found: dict[str, Objects] = {}
    for region_id, (name, score) in predicted.items():
        image_id, box = regions[region_id]
        objects = found.setdefault(image_id, Objects([], [], []))
        objects.boxes.append(box)
        objects.categories.append(name)
        objects.scores.append(1.0 if score_source == "one" else score)
    return found


def coco_map(
    predictions: Mapping[str, Objects],
    references: Mapping[str, Objects],
    categories: Sequence[str],
    order: Sequence[str] | None = None,
    *,
    name: str = "COCO mAP",
    recalls: str | None = None,
    masks: bool = False,
) -> dict[str, float]:
    """COCO's scores: {"COCO mAP" (overlaps 0.5 to 0.95), "COCO mAP50", "COCO mAP75", of sizes "COCO mAP/small",
    "/medium", "/large"}, under `name`; under `recalls`, where given, average recalls of the 1, 10 and 100 surest
    detections of an image and category, "COCO AR1", "COCO AR10", "COCO AR100", of sizes "COCO AR100/small" and so on.
    masks: of masks, not of boxes.

    predictions: image id -> detections, of which the 100 surest of each category and image count; an image without any
    is missed. references: image id -> ground truth. categories: the names; a category without an object counts
    nowhere, nor does a size that no object has (it is left out of the result). order: the images in the order of their
    ids, which ranks equal scores; `image_order` of their names if None.

    ValueError: a prediction for an unknown image, an unknown category, boxes, names or scores that do not fit
    together or are not finite, no ground truth.
    """
    check_objects(predictions, references, categories)
    places = places_of(references, order)
    counted = counted_by_coco(predictions, references, list(categories), NUM_DETECTIONS, places, masks=masks)
    precision, recall = counted["precision"][..., -1], counted["recall"]  # (T, R, K, A), (T, K, A, M)
    scores = {
        name: precision[..., 0],
        f"{name}50": precision[0, ..., 0],
        f"{name}75": precision[5, ..., 0],
        f"{name}/small": precision[..., 1],
        f"{name}/medium": precision[..., 2],
        f"{name}/large": precision[..., 3],
    }
    if recalls is not None:
        scores |= {f"{recalls}{most}": recall[:, :, 0, m] for m, most in enumerate(NUM_DETECTIONS)}
        scores |= {f"{recalls}100/{size}": recall[:, :, a, -1] for a, size in enumerate(SIZES, 1)}
    return {name: float(values[values > -1].mean()) for name, values in scores.items() if (values > -1).any()}


def counted_by_coco(
    predictions: Mapping[str, Objects],
    references: Mapping[str, Objects],
    categories: Sequence[str],
    max_detections: Sequence[int],
    places: Mapping[str, int],
    *,
    federated: bool = False,
    masks: bool = False,
) -> dict[str, np.ndarray]:
    """faster-coco-eval's precision (T overlaps, R recalls, K categories, A sizes, M) and recall (T, K, A, M), -1 where
    there is no object. max_detections: M numbers of the surest that count; places: image -> its place among all, in the
    order of their ids."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise RuntimeError(
            "COCO's and LVIS's AP need the package faster-coco-eval: `pip install faster-coco-eval`"
        ) from error

    numbers = {name: k for k, name in enumerate(categories, 1)}
    truth = {"info": {}, "images": [], "annotations": []}
    truth["categories"] = [{"id": k, "name": name, "frequency": "f"} for name, k in numbers.items()]
    for image_id, objects in references.items():
        skipped = [numbers[name] for name in objects.not_exhaustive if name in numbers]
        entry = {"id": places[image_id], "neg_category_ids": list(numbers.values()) if federated else []}
        height, width = objects.masks[0]["size"] if masks and objects.masks else (1, 1)
        truth["images"].append(entry | {"not_exhaustive_category_ids": skipped, "height": height, "width": width})
        boxes = _xywh(objects)
        areas = boxes[:, 2] * boxes[:, 3] if objects.areas is None else np.asarray(objects.areas, float)
        crowds = np.zeros(len(boxes), int) if objects.crowds is None else np.asarray(objects.crowds, int)
        for n, (box, name, area, crowd) in enumerate(
            zip(boxes.tolist(), objects.categories, areas, crowds, strict=True)
        ):
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": places[image_id], "bbox": box}
            annotation |= {"category_id": numbers[name], "area": float(area), "iscrowd": int(crowd)}
            truth["annotations"].append(annotation | ({"segmentation": objects.masks[n]} if masks else {}))
    found, areas = [], []
    for image_id, objects in predictions.items():
        for n, (box, name) in enumerate(zip(_xywh(objects).tolist(), objects.categories, strict=True)):
            detection = {"image_id": places[image_id], "category_id": numbers[name], "bbox": box}
            detection |= {"score": float(objects.scores[n])}
            found.append(detection | ({"segmentation": objects.masks[n]} if masks else {}))
            areas.append(box[2] * box[3] if objects.areas is None else float(objects.areas[n]))
    truth = COCO(truth)
    results = truth.loadRes(found)
    for entry, area in zip(results.dataset["annotations"], areas, strict=True):
        entry["area"] = area
    counted = COCOeval_faster(truth, results, "segm" if masks else "bbox", lvis_style=federated)
    counted.params.maxDets = list(max_detections)
    counted.evaluate()
    counted.accumulate()
    return {kind: np.asarray(counted.eval[kind]) for kind in ("precision", "recall")}


def places_of(references: Mapping[str, Objects], order: Sequence[str] | None) -> dict[str, int]:
    """image -> its place among all, by which equal scores are ranked."""
    order = image_order(references) if order is None else order
    return {image_id: n for n, image_id in enumerate(order, 1)}


def chosen(objects: Objects, places: Sequence[int]) -> Objects:
    """Some of an image's objects; its marks stay."""
    columns = {name: getattr(objects, name) for name in ("boxes", "categories", "scores", "areas", "masks", "crowds")}
    return replace(objects, **{k: None if v is None else [v[i] for i in places] for k, v in columns.items()})


def _xywh(objects: Objects) -> np.ndarray:
    boxes = np.asarray(objects.boxes, np.float64).reshape(-1, 4)
    return np.hstack([boxes[:, :2], np.round(boxes[:, 2:] - boxes[:, :2], DECIMALS)])


def check_objects(
    predictions: Mapping[str, Objects], references: Mapping[str, Objects], categories: Collection[str]
) -> None:
    unknown = [image_id for image_id in predictions if image_id not in references]
    if unknown:
        raise ValueError(f"{len(unknown)} images with predictions have no ground truth, the first is {unknown[0]!r}")
    if not any(len(objects.categories) for objects in references.values()):
        raise ValueError("no ground-truth objects: there is nothing to score detections against")
    names = set(categories)
    for kind, images in (("prediction", predictions), ("ground truth", references)):
        for image_id, objects in images.items():
            columns = {"boxes": objects.boxes, "scores": objects.scores if kind == "prediction" else None}
            columns |= {"areas": objects.areas, "masks": objects.masks, "crowds": objects.crowds}
            if kind == "prediction" and objects.scores is None:
                raise ValueError(f"prediction of image {image_id}: no scores; average precision ranks by them")
            for column, values in columns.items():
                if values is None:
                    continue
                if len(values) != len(objects.categories):
                    raise ValueError(
                        f"{kind} of image {image_id}: {len(values)} {column}, {len(objects.categories)} categories; "
                        "expected as many of each"
                    )
                if column != "masks" and not np.isfinite(np.asarray(values, np.float64)).all():
                    raise ValueError(f"{kind} of image {image_id}: {column} that are not finite numbers")
            boxes = _xywh(objects)
            if len(boxes) != len(objects.categories) or (boxes[:, 2:] < 0).any():
                raise ValueError(f"{kind} of image {image_id}: boxes are xyxy pixels, x1 <= x2 and y1 <= y2")
            for name in (*objects.categories, *objects.negative, *objects.not_exhaustive):
                if name not in names:
                    raise ValueError(f"{kind} of image {image_id}: unknown category {name!r}.{suggestion(name, names)}")


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_coco_scores(s: Scoring) -> None:
    truth: dict[str, Objects] = {}
    for region in s.regions:
        if region.category:
            objects = truth.setdefault(region.image, Objects([], [], areas=[]))
            objects.boxes.append(region.box)
            objects.categories.append(region.category)
            objects.areas.append(region_area(region))
    if not truth:
        s.scores.left_out["recognition"] = "no region has a category"
        return
    if unlike := not_in_list(s):
        raise ValueError(f"{s.task.name}: {unlike}")
    names = list(s.names.get("categories") or sorted({name for o in truth.values() for name in o.categories}))
    boxes = {region.id: (region.image, region.box) for region in s.regions if region.category}
    answers = {i: answer for i, answer in named(s, names).items() if answer and i in boxes}
    corpus = coco_map(region_detections(answers, boxes, s.task.score_source), truth, names)
    s.scores.corpus |= corpus
    s.scores.regions["recognition"] = len(boxes)
    s.scores.no_interval |= dict.fromkeys(corpus, "COCO's matching would be repeated on every draw")


def region_area(region: Region) -> float:
    """Square pixels: the mask's, the box's where there is none."""
    if region.mask is not None:
        return mask_area(region.mask)
    return box_area(region.box)


def box_area(box: Sequence[float]) -> float:
    x1, y1, x2, y2 = box
    return round(x2 - x1, DECIMALS) * round(y2 - y1, DECIMALS)


def left_out(s: Scoring, truth: Collection[str]) -> set[str]:
    """Predictions of images that are not scored, which are counted: the benchmark's file has objects there that the
    records do not have."""
    outside = {i for i, image in s.images.items() if image not in truth}
    if outside:
        s.scores.counts["predictions are of images whose objects no record has, and are left out"] = len(outside)
    return outside


COCO = Metric(
    WORDS, add_coco_scores, {"COCO mAP": lambda task, judge: f"{package('faster-coco-eval')}; COCO 3, categories 2"}
)
