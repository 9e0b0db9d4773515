"""COCO's average precision of boxes and masks, against the benchmark's own file.

Predictions bring their boxes along, or name the records'. One with several ranked categories is as many detections.

The file says what records do not: which regions are crowds, the ids by which equal scores are ranked, images without an
object, where every detection is wrong. Without it the records are the ground truth, and a note says what is missing.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dynrefer.masks import check_mask_record, mask_area, record_rle, rle_to_box

from ..inputs.coco_json import category_names, pair_images, read_document
from ..versions import package
from .base import WORDS, Metric, Scoring
from .categories import OUTSIDE, category_finder, not_in_list
from .coco import Objects, box_area, coco_map, left_out, region_area

BOX, MASK = "COCO box AP", "COCO mask AP"
BOX_RECALL, MASK_RECALL = "COCO box AR", "COCO mask AR"
NO_FILE = (
    "the records are the ground truth: crowds, images without an object and the ids of images are not known; "
    "--annotations FILE with the benchmark's COCO JSON gives the official numbers"
)
NO_MASK = "predictions have no mask, and their box counts as one"
Truth = tuple[dict[str, Objects], list[str], list[str] | None]  # of every image, the categories, the order of images


def add_scores(s: Scoring) -> None:
    with_mask = sum(result.mask is not None for result in s.results.values())
    sizes = {region.image: region.image_hw for region in s.regions}
    path = Path(s.annotations or "")
    if path.is_file():
        truth, names, order = _of_file(path, s, sizes, bool(with_mask))
    else:
        truth, names, order = _of_records(s, bool(with_mask))
    if not any(objects.categories for objects in truth.values()):
        s.scores.left_out["detection"] = "no region has a category"
        return
    outside = left_out(s, truth)
    labels = {i: said for i, said in named_labels(s, names).items() if i not in outside}
    corpus = coco_map(detections(s, labels), truth, names, order, name=BOX, recalls=BOX_RECALL)
    lacking = sum(mask is None for objects in truth.values() for mask in objects.masks or ())
    if not with_mask:
        s.scores.left_out["mask AP"] = "no prediction has a mask (`segmentation`)"
    elif lacking:
        s.scores.left_out["mask AP"] = f"{lacking} objects of the ground truth have no mask"
    else:
        if with_mask < len(s.results):
            s.scores.counts[NO_MASK] = len(s.results) - with_mask
        corpus |= coco_map(
            detections(s, labels, sizes), truth, names, order, name=MASK, recalls=MASK_RECALL, masks=True
        )
    s.scores.corpus |= corpus
    s.scores.regions["detection"] = sum(len(objects.categories) for objects in truth.values())
    s.scores.no_interval |= dict.fromkeys(corpus, "COCO's matching would be repeated on every draw")


def named_labels(s: Scoring, names: Collection[str]) -> dict[str, list[tuple[str, float]]]:
    """prediction id -> [(category, score)], one detection each: all its ranked categories that the list has or, of one
    that has none, its caption with a score of 1. A score of several factors is their product (`Scoring.weights`)."""
    find = category_finder(names)
    labels, outside = {}, 0
    for i, result in s.results.items():
        said = [(each["name"], each["score"]) for each in result.categories] or [(result.caption, 1.0)]
        weight = s.weights.get(i, 1.0)
        labels[i] = [(name, float(score) * weight) for text, score in said if (name := find(text))]
        outside += not labels[i]
    if outside:
        s.scores.counts[OUTSIDE] = outside
    return labels


def detections(
    s: Scoring,
    labels: Mapping[str, list[tuple[str, float]]],
    sizes: Mapping[str, tuple[int, int]] | None = None,
    *,
    by_mask: bool = False,
) -> dict[str, Objects]:
    """image -> its detections, in the order of the predictions. sizes: of images, where masks are matched. by_mask: a
    detection's size is its mask's; else, as COCO's evaluator has it of an entry with both, its box's."""
    found: dict[str, Objects] = {}
    for i, said in labels.items():
        result, image = s.results[i], s.image_of(i)
        objects = found.setdefault(image, Objects([], [], [], areas=[], masks=None if sizes is None else []))
        box, mask = s.box_of(i) or tight_box(result.mask), None
        area = box_area(box) if s.box_of(i) else mask_area(result.mask)
        if sizes is not None:
            x1, y1, x2, y2 = box
            corners = [[x1, y1, x1, y2, x2, y2, x2, y1]]
            mask = result.mask or record_rle(corners, sizes[image])
            area = mask_area(mask) if by_mask else area
        for name, score in said:  # what is not a number is shared among them
            objects.boxes.append(box)
            objects.categories.append(name)
            objects.scores.append(1.0 if s.task.score_source == "one" else score)
            objects.areas.append(area)
            if mask is not None:
                objects.masks.append(mask)
    return found


def tight_box(mask: dict) -> list[float]:
    box = rle_to_box(mask)
    return [0.0] * 4 if box is None else box.tolist()


def _of_records(s: Scoring, masks: bool) -> Truth:
    if unlike := not_in_list(s):
        raise ValueError(f"{s.task.name}: {unlike}")
    truth = {region.image: Objects([], [], areas=[], masks=[]) for region in s.regions}
    for region in s.regions:
        if region.category:
            objects = truth[region.image]
            objects.boxes.append(region.box)
            objects.categories.append(region.category)
            objects.areas.append(region_area(region))
            objects.masks.append(record_rle(region.mask, region.image_hw) if masks and region.mask else None)
    names = s.names.get("categories") or sorted({name for o in truth.values() for name in o.categories})
    s.scores.notes.append(NO_FILE)
    return truth, list(names), None


def _of_file(path: Path, s: Scoring, sizes: dict[str, tuple[int, int]], masks: bool) -> Truth:
    """The objects of the records' images and of those without an object; the sizes of these are added to `sizes`."""
    document = read_document(path)
    names, pairing = category_names(document, path), pair_images(document, sizes, path)
    if missing := sizes.keys() - {pairing.image[number] for number in pairing.recorded}:
        raise ValueError(
            f"{path}: {len(missing)} images of the records are not in it, for instance {min(missing)!r}; name the COCO "
            "JSON that the records were made of with --annotations"
        )
    for image, image_hw in pairing.size.items():
        sizes.setdefault(image, image_hw)
    truth = {image: Objects([], [], areas=[], masks=[], crowds=[]) for image in pairing.image.values()}
    for annotation in document.get("annotations") or ():
        try:
            image, name = pairing.image[annotation["image_id"]], names[annotation["category_id"]]
            _add(truth[image], annotation, name, sizes.get(image), masks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            which = annotation.get("id") if isinstance(annotation, dict) else str(annotation)[:80]
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path}: annotation {which}: {why}; expected image_id of `images`, category_id of `categories`, and "
                "bbox [x, y, width, height] or segmentation"
            ) from error
    recorded = {pairing.image[number] for number in pairing.recorded}
    others = [i for i, objects in truth.items() if i not in recorded and not all(objects.crowds)]
    if others:
        s.scores.notes.append(f"{len(others)} images of {path} have objects and no record, and are left out")
    truth = {image: objects for image, objects in truth.items() if image not in set(others)}
    return truth, list(dict.fromkeys(names.values())), [image for image in pairing.order if image in truth]


def _add(objects: Objects, annotation: Mapping, name: str, image_hw: Sequence[int] | None, masks: bool) -> None:
    """Adds an annotation. COCO's evaluator knows crowds alone: a key `ignore` of its own counts for nothing there."""
    mask, box = annotation.get("segmentation") or None, annotation.get("bbox")
    if isinstance(mask, list):
        polygons = [mask] if isinstance(mask[0], int | float) else mask
        mask = [polygon for polygon in polygons if len(polygon) >= 6] or None  # as converters do
    elif mask:
        mask = {"size": mask["size"], "counts": mask["counts"]}
    rle = None
    if mask and (masks or not box):
        if image_hw is None:
            raise ValueError("a mask in an image without height and width")
        check_mask_record(mask, image_hw)
        rle = record_rle(mask, image_hw)
    if not box and rle is None:
        raise ValueError("neither a bbox nor a segmentation")
    if box:
        x, y, width, height = map(float, box)
        box = [x, y, x + width, y + height]
    else:
        box = tight_box(rle)
    area = annotation.get("area")
    objects.boxes.append(box)
    objects.categories.append(name)
    objects.areas.append(float(area) if area is not None else mask_area(mask) if mask else box_area(box))
    objects.crowds.append(bool(int(annotation.get("iscrowd") or 0)))
    objects.masks.append(rle)


DETECTION = Metric(
    WORDS,
    add_scores,
    dict.fromkeys(
        (BOX, MASK, BOX_RECALL, MASK_RECALL),
        lambda task, judge: f"{package('faster-coco-eval')}; detection 2, categories 2",
    ),
    own_images=True,
)
