"""LVIS's average precision of boxes and of masks, standard and Fixed, counted by faster-coco-eval.

LVIS marks only some categories of an image, so a detection counts where its category is in the image's ground truth or
its `negative` names and is dropped elsewhere; one that matches nothing is no mistake where its category is
`not_exhaustive`. The standard count takes the MOST_OF_IMAGE surest detections of an image, all categories together, so
a category gains from others that are unsure. Fixed AP (Dave et al., 2021) takes the MOST_OF_CATEGORY surest ones of a
category over all images, and any number of an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynrefer.masks import record_rle

from ..inputs.coco_json import Pairing, pair_images, read_document
from ..versions import package
from .base import WORDS, Metric, Scoring
from .coco import Objects, check_objects, chosen, counted_by_coco, left_out, places_of
from .detection import NO_MASK, detections, named_labels

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}  # categories of 1-10, 11-100 and more training images
SIZES = ("small", "medium", "large")
MOST_OF_IMAGE = 300
MOST_OF_CATEGORY = 10_000
WHOLE = "expected LVIS's lvis_v1_val.json, whole"


def lvis_ap(
    predictions: Mapping[str, Objects],
    references: Mapping[str, Objects],
    frequencies: Mapping[str, str],
    order: Sequence[str] | None = None,
    *,
    name: str = "LVIS",
    masks: bool = False,
    fixed: bool = False,
) -> dict[str, float]:
    """LVIS's scores: {"LVIS AP", "LVIS AP50", "LVIS AP75", "LVIS APr", "LVIS APc", "LVIS APf", and of sizes "LVIS
    AP/small", "/medium", "/large"}, under `name`. masks: of masks, not of boxes. fixed: Fixed AP.

    frequencies: every category's name -> "r", "c" or "f". A category without an object in these images counts nowhere,
    and a group or size without one is left out of the result. Other arguments and errors as for `coco_map`.
    """
    wrong = {each: value for each, value in frequencies.items() if value not in FREQUENCIES}
    if wrong:
        each, value = next(iter(wrong.items()))
        raise ValueError(f"category {each!r}: frequency {value!r}; expected one of {', '.join(FREQUENCIES)}")
    check_objects(predictions, references, frequencies)
    judged: dict[str, list[str]] = {}  # category -> images that are marked for it
    for image_id, truth in references.items():
        for each in sorted({*truth.categories, *truth.negative}):
            judged.setdefault(each, []).append(image_id)
    found_by, true_by = _counted(predictions, judged, fixed), _places_by_category(references)
    places, rows, names = places_of(references, order), [], [each for each in frequencies if each in true_by]
    for each in names:  # one at a time: all pairs of 20,000 images and 1,203 categories would not fit into memory
        truth = {i: chosen(references[i], true_by[each].get(i, [])) for i in judged[each]}
        own = found_by.get(each, {})
        found = {i: chosen(predictions[i], own[i]) for i in judged[each] if i in own}
        most = max([1, *(len(objects.categories) for objects in found.values())])
        counted = counted_by_coco(found, truth, [each], [most], places, federated=True, masks=masks)
        rows.append(counted["precision"][:, :, 0, :, -1])
    precision = np.stack(rows, 2)  # (T, R, K, A)
    groups = {
        f"{name} AP": precision[..., 0],
        f"{name} AP50": precision[0, ..., 0],
        f"{name} AP75": precision[5, ..., 0],
    }
    for letter, group in FREQUENCIES.items():
        groups[f"{name} {group}"] = precision[:, :, [frequencies[each] == letter for each in names], 0]
    groups |= {f"{name} AP/{size}": precision[..., n] for n, size in enumerate(SIZES, 1)}
    return {group: float(values[values > -1].mean()) for group, values in groups.items() if (values > -1).any()}


def _places_by_category(images: Mapping[str, Objects]) -> dict[str, dict[str, list[int]]]:
    """category -> image id -> where its objects stand in the image's lists."""
    result: dict[str, dict[str, list[int]]] = {}
    for image_id, objects in images.items():
        for place, name in enumerate(objects.categories):
            result.setdefault(name, {}).setdefault(image_id, []).append(place)
    return result


def _counted(
    predictions: Mapping[str, Objects], judged: Mapping[str, Sequence[str]], fixed: bool
) -> dict[str, dict[str, list[int]]]:
    """As `_places_by_category`, of the detections that count: the surest, in images that are marked for their category.
    Most of millions are not."""
    images, names = list(predictions), {}
    for found in predictions.values():
        for name in found.categories:
            names.setdefault(name, len(names))
    lengths = [len(found.categories) for found in predictions.values()]
    codes = np.concatenate(
        [np.zeros(0, np.int64), *([names[n] for n in found.categories] for found in predictions.values())]
    ).astype(np.int64)
    scores = np.concatenate([np.zeros(0), *(np.asarray(found.scores, float) for found in predictions.values())])
    owners = np.repeat(np.arange(len(images)), lengths)
    groups, most = (codes, MOST_OF_CATEGORY) if fixed else (owners, MOST_OF_IMAGE)
    order = np.lexsort((-scores, groups))  # of equal ones those that stand first come first
    starts = np.searchsorted(groups[order], groups[order])
    kept = np.sort(order[np.arange(len(order)) - starts < most])
    place = {image_id: n for n, image_id in enumerate(images)}
    pairs = [names[n] * len(images) + place[i] for n in judged if n in names for i in judged[n] if i in place]
    kept = kept[np.isin(codes[kept] * len(images) + owners[kept], pairs)]
    firsts, words = np.cumsum([0, *lengths]), list(names)
    result: dict[str, dict[str, list[int]]] = {}
    for n in kept.tolist():
        owner = owners[n]
        result.setdefault(words[codes[n]], {}).setdefault(images[owner], []).append(n - int(firsts[owner]))
    return result


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    path = Path(s.annotations or "")
    if not s.annotations or not path.is_file():
        raise ValueError(
            f"LVIS AP needs to know which categories were looked for in an image, which records do not hold: no file "
            f"at {s.annotations!r}; name LVIS's lvis_v1_val.json with --annotations"
        )
    with_mask = sum(result.mask is not None for result in s.results.values())
    try:
        document = read_document(path)
        pairing = pair_images(document, s.scores.groups, path)
        sizes = dict(pairing.size) | {region.image: region.image_hw for region in s.regions}
        truth, frequencies = _objects(document, pairing, sizes if with_mask else None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"{path}: {error!r}"
        raise ValueError(f"{what}; {WHOLE}") from error
    if missing := set(s.scores.groups) - truth.keys():
        raise ValueError(f"{path}: {len(missing)} images of the records are not in it, for instance {min(missing)}")
    outside = left_out(s, truth)
    labels = {i: said for i, said in named_labels(s, frequencies).items() if i not in outside}
    order = [image for image in pairing.order if image in truth]
    corpus = _both(detections(s, labels), truth, frequencies, order, "LVIS", masks=False)
    lacking = sum(mask is None for objects in truth.values() for mask in objects.masks or ())
    if not with_mask:
        s.scores.left_out["LVIS mask AP"] = "no prediction has a mask (`segmentation`)"
    elif lacking:
        s.scores.left_out["LVIS mask AP"] = f"{lacking} objects of {path} have no mask"
    else:
        if with_mask < len(s.results):
            s.scores.counts[NO_MASK] = len(s.results) - with_mask
        corpus |= _both(detections(s, labels, sizes, by_mask=True), truth, frequencies, order, "LVIS mask", masks=True)
    s.scores.corpus |= corpus
    s.scores.regions["lvis"] = sum(len(objects.categories) for objects in truth.values())
    s.scores.no_interval |= dict.fromkeys(corpus, "LVIS's matching would be repeated on every draw")
    most = max((sum(map(len, said)) for said in _by_image(s, labels).values()), default=0)
    s.scores.notes.append(
        f"Fixed AP counts the {MOST_OF_CATEGORY:,} surest detections of a category over all images, of which the "
        f"predictions hold at most {most:,} an image"
    )


def _both(found: Mapping[str, Objects], truth, frequencies, order, name: str, masks: bool) -> dict[str, float]:
    """Standard scores, and of the Fixed ones those that are published."""
    fixed = lvis_ap(found, truth, frequencies, order, name=f"{name} fixed", masks=masks, fixed=True)
    wanted = [f"{name} fixed AP", *(f"{name} fixed {group}" for group in FREQUENCIES.values())]
    standard = lvis_ap(found, truth, frequencies, order, name=name, masks=masks)
    return standard | {each: fixed[each] for each in wanted if each in fixed}


def _by_image(s: Scoring, labels: Mapping[str, list]) -> dict[str, list[list]]:
    found: dict[str, list[list]] = {}
    for i, said in labels.items():
        found.setdefault(s.image_of(i), []).append(said)
    return found


def _objects(
    document: Mapping, pairing: Pairing, sizes: Mapping[str, tuple[int, int]] | None
) -> tuple[dict[str, Objects], dict[str, str]]:
    """({image: its objects and marks}, {category: "r", "c" or "f"}) of LVIS's file: of images that have a record, and
    of those without an object. sizes: of images, where masks are read."""
    categories = sorted(document["categories"], key=lambda entry: entry["id"])
    names = {entry["id"]: entry["name"] for entry in categories}
    truth = {
        pairing.image[entry["id"]]: Objects(
            [],
            [],
            areas=[],
            masks=None if sizes is None else [],
            negative=[names[k] for k in entry["neg_category_ids"]],
            not_exhaustive=[names[k] for k in entry["not_exhaustive_category_ids"]],
        )
        for entry in document["images"]
    }
    for annotation in document["annotations"]:
        image = pairing.image[annotation["image_id"]]
        objects, (x, y, width, height) = truth[image], annotation["bbox"]
        objects.boxes.append([x, y, x + width, y + height])
        objects.categories.append(names[annotation["category_id"]])
        objects.areas.append(annotation["area"])
        if objects.masks is not None:
            mask = annotation.get("segmentation")
            objects.masks.append(record_rle(mask, sizes[image]) if mask else None)
    recorded = {pairing.image[number] for number in pairing.recorded}
    truth = {image: objects for image, objects in truth.items() if image in recorded or not objects.categories}
    return truth, {entry["name"]: entry["frequency"] for entry in categories}


LVIS = Metric(
    WORDS,
    add_scores,
    {"LVIS ": lambda task, judge: f"{package('faster-coco-eval')}; federation 4, categories 2"},
    own_images=True,
)
