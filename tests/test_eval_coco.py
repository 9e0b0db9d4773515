"""COCO mAP and LVIS AP: pycocotools' numbers, federated cases that can be checked by eye, wrong input."""

import contextlib
import io
import json

import numpy as np
import pytest

from dynrefer.data.records import Region, RegionResult
from eval.benchmarks import get_task
from eval.metrics.coco import Objects, coco_map, image_order, region_detections
from eval.metrics.lvis import lvis_ap
from eval.scoring import score

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")

NAMES = ["cup", "dog", "lamp", "tree"]


def random_images(seed, number=12):
    generator = np.random.default_rng(seed)
    references, predictions = {}, {}
    for n in range(number):
        corner = generator.integers(0, 200, (6, 2))
        boxes = np.hstack([corner, corner + generator.integers(4, 200, corner.shape)]).astype(float)
        truth = Objects(boxes, [NAMES[k] for k in generator.integers(0, 3, 6)], crowds=generator.random(6) < 0.1)
        references[f"image {n}"] = truth
        if n % 4:
            chosen = generator.integers(0, 6, 15)
            names = [truth.categories[i] if generator.random() < 0.7 else "tree" for i in chosen]
            found = boxes[chosen] + generator.integers(-9, 10, (15, 1))
            predictions[f"image {n}"] = Objects(found, names, np.round(generator.normal(size=15), 1))  # like logits
    return predictions, references


def pycocotools_stats(predictions, references):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def row(n, box, name):
        size = [box[2] - box[0], box[3] - box[1]]
        return {"image_id": n, "bbox": [*box[:2], *size], "category_id": NAMES.index(name), "area": size[0] * size[1]}

    truth, found = COCO(), []
    annotations = []
    for n, (image_id, objects) in enumerate(references.items()):
        for box, name, crowd in zip(objects.boxes, objects.categories, objects.crowds, strict=True):
            annotations.append(row(n, box, name) | {"id": len(annotations) + 1, "iscrowd": int(crowd)})
        if image_id in predictions:
            item = predictions[image_id]
            found += [
                row(n, box, name) | {"score": score}
                for box, name, score in zip(item.boxes, item.categories, item.scores, strict=True)
            ]
    truth.dataset = {
        "images": [{"id": n} for n in range(len(references))],
        "annotations": annotations,
        "categories": [{"id": k} for k in range(len(NAMES))],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        counted = COCOeval(truth, truth.loadRes(found), "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return counted.stats[:6]


def test_coco_map_equals_pycocotools():
    for seed in range(3):
        predictions, references = random_images(seed)
        result = coco_map(predictions, references, NAMES)
        assert 0.05 < result["COCO mAP"] < 0.9
        assert list(result.values()) == pytest.approx(list(pycocotools_stats(predictions, references)), abs=1e-9)


BOX, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def test_recognised_regions_are_ranked_by_the_named_score():
    regions = {"a": ("i", BOX), "b": ("i", FAR), "c": ("j", BOX)}
    references = {"i": Objects([BOX, FAR], ["cup", "cup"]), "j": Objects([BOX], ["dog"])}
    predicted = {"a": ("cup", -2.0), "c": ("cup", 5.0)}  # one right, one surely wrong, one missing
    by_model = coco_map(region_detections(predicted, regions, "model"), references, NAMES)
    assert by_model["COCO mAP"] == pytest.approx((0.5 * 51 / 101 + 0) / 2)
    equal = region_detections(predicted, regions, "one")
    assert equal["i"].scores == [1.0] and equal["j"].scores == [1.0]
    assert coco_map(equal, references, NAMES)["COCO mAP"] == pytest.approx((51 / 101 + 0) / 2)  # in the given order
    assert coco_map({}, references, NAMES)["COCO mAP"] == 0
    with pytest.raises(ValueError, match="unknown score source 'logit'; known: model, one"):
        region_detections(predicted, regions, "logit")
    with pytest.raises(ValueError, match="the first for 'x'"):
        region_detections({"x": ("cup", 1)}, regions, "one")


FREQUENCIES = {"cup": "r", "dog": "c", "lamp": "f", "tree": "f"}


def lvis(found, **marks):
    """LVIS AP of detections in a second image, beside a cup found in the first one with a lower score."""
    references = {"i": Objects([BOX], ["cup"]), "j": Objects([BOX], ["dog"], **marks)}
    predictions = {"i": Objects([BOX], ["cup"], [0.5]), "j": Objects([box for box, _ in found], [n for _, n in found])}
    predictions["j"].scores = [0.9] * len(found)
    return of_all_sizes(lvis_ap(predictions, references, FREQUENCIES))


def of_all_sizes(scores):
    """Without the parts, which tests/test_eval_lvis.py counts."""
    return {name: value for name, value in scores.items() if "/" not in name}


def test_a_detection_of_an_unmarked_category_is_dropped():
    assert lvis([(BOX, "dog"), (FAR, "cup")]) == pytest.approx(
        {name: 1.0 for name in ("LVIS AP", "LVIS AP50", "LVIS AP75", "LVIS APr", "LVIS APc")}
    )


def test_a_detection_of_a_negative_category_is_wrong():
    assert lvis([(BOX, "dog"), (FAR, "cup")], negative=["cup"])["LVIS APr"] == pytest.approx(0.5)


def test_an_unmatched_detection_of_a_category_marked_in_part_is_no_mistake():
    boxes = [(FAR, "dog"), (BOX, "dog")]
    assert lvis(boxes)["LVIS APc"] == pytest.approx(0.5)
    assert lvis(boxes, not_exhaustive=["dog"])["LVIS APc"] == 1
    assert lvis([], not_exhaustive=["dog"])["LVIS APc"] == 0


def test_lvis_groups_are_means_over_categories_that_have_objects():
    result = lvis([(FAR, "dog")])
    assert result["LVIS APr"] == 1 and result["LVIS APc"] == 0 and "LVIS APf" not in result
    assert result["LVIS AP"] == 0.5


def test_300_detections_of_an_image_count():
    references = {"i": Objects([BOX], ["dog"])}
    found = Objects([FAR] * 300 + [BOX], ["cup"] * 300 + ["dog"], [0.9] * 300 + [0.1])
    assert lvis_ap({"i": found}, references, FREQUENCIES)["LVIS AP"] == 0
    found = Objects([FAR] * 299 + [BOX], ["cup"] * 299 + ["dog"], [0.9] * 299 + [0.1])
    assert lvis_ap({"i": found}, references, FREQUENCIES)["LVIS AP"] == 1


def test_lvis_ap_is_coco_map_where_every_category_is_marked_in_every_image():
    predictions, references = random_images(4)
    for objects in references.values():
        objects.crowds, objects.negative = None, NAMES
    federated = lvis_ap(predictions, references, FREQUENCIES)
    assert federated["LVIS AP"] == pytest.approx(coco_map(predictions, references, NAMES)["COCO mAP"], abs=1e-9)


def lvis_by_hand(predictions, references, frequencies):
    """LVIS's rules, one category and threshold at a time."""

    def overlap(a, b, crowd):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return shared / (areas[0] if crowd else sum(areas) - shared)

    def precision(name, least):
        ranked, objects = [], 0
        for image_id, truth in references.items():
            if name not in {*truth.categories, *truth.negative}:
                continue
            crowds = truth.crowds if truth.crowds is not None else [False] * len(truth.categories)
            wanted = [
                (box, crowd) for box, n, crowd in zip(truth.boxes, truth.categories, crowds, strict=True) if n == name
            ]
            objects += sum(not crowd for _, crowd in wanted)
            found, taken = predictions.get(image_id, Objects([], [], [])), set()
            surest = np.argsort(-np.array(found.scores), kind="stable")[:300]
            for k in (k for k in surest if found.categories[k] == name):
                fits = {j: overlap(found.boxes[k], box, crowd) for j, (box, crowd) in enumerate(wanted)}
                fits = {j: iou for j, iou in fits.items() if iou >= least and j not in taken}
                fits = {j: iou for j, iou in fits.items() if not wanted[j][1]} or fits  # objects before crowds
                best = max(reversed(fits), key=fits.get) if fits else None
                if best is None and name in truth.not_exhaustive:
                    continue
                if best is not None and wanted[best][1]:
                    continue  # a crowd
                taken.add(best)
                ranked.append((found.scores[k], best is not None))
        if not objects:
            return None
        ranked.sort(key=lambda pair: -pair[0])
        right = np.cumsum([is_right for _, is_right in ranked])
        best = np.maximum.accumulate((right / np.arange(1, len(ranked) + 1))[::-1])[::-1]
        places = np.searchsorted(right / objects, np.linspace(0, 1, 101))
        return np.append(best, 0)[places].mean()

    parts = {n: [precision(n, least) for least in np.linspace(0.5, 0.95, 10)] for n in frequencies}
    parts = {n: np.array(values) for n, values in parts.items() if values[0] is not None}
    groups = {"LVIS AP": [*parts.values()], "LVIS AP50": [values[0] for values in parts.values()]}
    groups["LVIS AP75"] = [values[5] for values in parts.values()]
    for letter, group in (("r", "APr"), ("c", "APc"), ("f", "APf")):
        groups[f"LVIS {group}"] = [values for n, values in parts.items() if frequencies[n] == letter]
    return {name: float(np.mean(values)) for name, values in groups.items() if values}


@pytest.mark.parametrize("crowded", [False, True])
def test_lvis_ap_of_images_with_all_marks_is_that_of_a_plain_count(crowded):
    for seed in range(4):
        predictions, references = random_images(seed, 20)
        generator = np.random.default_rng(seed)
        for objects in references.values():
            objects.crowds = objects.crowds if crowded else None
            objects.areas = generator.uniform(10, 20_000, len(objects.categories))
            absent = [name for name in NAMES if name not in objects.categories]
            objects.negative = [name for name in absent if generator.random() < 0.7]
            objects.not_exhaustive = [name for name in NAMES if generator.random() < 0.3]
        assert any(objects.negative for objects in references.values())
        result = of_all_sizes(lvis_ap(predictions, references, FREQUENCIES))
        assert 0.05 < result["LVIS AP"] < 0.9
        assert result == pytest.approx(lvis_by_hand(predictions, references, FREQUENCIES), abs=1e-9)


def test_equal_scores_are_ranked_in_the_order_of_the_images_ids():
    for seed in range(3):
        predictions, references = random_images(seed, 20)
        for objects in predictions.values():
            objects.scores = np.ones(len(objects.scores))
        for objects in references.values():
            objects.crowds = np.zeros(len(objects.categories), bool)
        generator = np.random.default_rng(seed)
        ids = [f"image {n}" for n in range(20)]
        assert image_order(generator.permutation(ids)) == ids  # 10 is behind 9
        mixed = {i: references[i] for i in generator.permutation(ids)}
        expected = coco_map(predictions, references, NAMES)
        assert list(expected.values()) == pytest.approx(list(pycocotools_stats(predictions, references)), abs=1e-15)
        assert coco_map(dict(reversed(predictions.items())), mixed, NAMES) == expected
        other = coco_map(predictions, mixed, NAMES, order=list(mixed))
        assert other != expected
        assert list(other.values()) == pytest.approx(list(pycocotools_stats(predictions, mixed)), abs=1e-15)
        by_hand = lvis_by_hand(predictions, references, FREQUENCIES)
        assert of_all_sizes(lvis_ap(predictions, mixed, FREQUENCIES)) == pytest.approx(by_hand, abs=1e-15)
        by_hand = lvis_by_hand(predictions, mixed, FREQUENCIES)
        found = of_all_sizes(lvis_ap(predictions, references, FREQUENCIES, list(mixed)))
        assert found == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize("task", ["lvis-boxes", "lvis-proposals"])
@pytest.mark.parametrize("seed", range(3))
def test_lvis_of_a_file_with_unordered_ids_is_that_of_a_plain_count(tmp_path, task, seed):
    """All scores are equal to some others, an image has no object, and file names do not follow the ids."""
    _, references = random_images(seed, 16)
    generator = np.random.default_rng(seed)
    ids = generator.permutation(100)[:16].tolist()
    empty = f"image {generator.integers(16)}"
    references[empty] = Objects([], [])
    document = {"categories": [{"id": 9 - k, "name": n, "frequency": FREQUENCIES[n]} for k, n in enumerate(NAMES)]}
    number = {entry["name"]: entry["id"] for entry in document["categories"]}
    document |= {"images": [], "annotations": []}
    regions, results, images, predictions = [], {}, {}, {}
    for i, (image, truth) in zip(ids, references.items(), strict=True):
        truth.crowds = None
        truth.negative = [
            n for n in NAMES if n not in truth.categories and (generator.random() < 0.7 or image == empty)
        ]
        truth.not_exhaustive = [n for n in NAMES if generator.random() < 0.3]
        marks = {"neg_category_ids": [number[n] for n in truth.negative]}
        marks |= {"not_exhaustive_category_ids": [number[n] for n in truth.not_exhaustive]}
        document["images"].append({"id": i, "file_name": f"{image}.jpg", "height": 999, "width": 999} | marks)
        found = predictions.setdefault(image, Objects([], [], []))
        boxes = truth.boxes if image != empty else [[5.0, 5.0, 50.0, 50.0]] if task == "lvis-proposals" else []
        for n, box in enumerate(boxes):
            x1, y1, x2, y2 = box = [float(v) for v in box]
            name, value = str(generator.choice(NAMES)), float(np.round(generator.random(), 1))
            if image != empty:
                entry = {"image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1.0}
                document["annotations"].append(entry | {"category_id": number[truth.categories[n]]})
                name = truth.categories[n] if generator.random() < 0.6 else name
                regions.append(Region(f"r-{i}-{n}", f"photos/{image}.jpg", (999, 999), tuple(box)))
            results[f"r-{i}-{n}"] = RegionResult(f"r-{i}-{n}", box, category={"name": name, "score": value})
            images[f"r-{i}-{n}"] = f"photos/{image}.jpg" if image != empty else f"{image}.jpg (image {i})"
            for column, what in ((found.boxes, box), (found.categories, name), (found.scores, value)):
                column.append(what)
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    ranked = {image: references[image] for _, image in sorted(zip(ids, references, strict=True))}
    expected = lvis_by_hand(predictions, ranked, FREQUENCIES)
    assert 0.05 < expected["LVIS AP"] < 0.9
    detected = {"images": images} if task == "lvis-proposals" else {}
    scores = score(get_task(task), regions, results, annotations=str(tmp_path / "lvis.json"), **detected)
    assert {name: scores.corpus[name] for name in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"x": Objects([BOX], ["cup"], [1])}, "the first is 'x'"),
        ({"i": Objects([BOX], ["cap"], [1])}, "unknown category 'cap'. Did you mean 'cup'"),
        ({"i": Objects([BOX], ["cup"], [np.nan])}, "image i: scores that are not finite"),
        ({"i": Objects([BOX], ["cup"])}, "image i: no scores"),
        ({"i": Objects([BOX], ["cup", "dog"], [1, 1])}, "1 boxes, 2 categories"),
        ({"i": Objects([[9, 0, 3, 4]], ["cup"], [1])}, "boxes are xyxy"),
    ],
)
def test_wrong_detections_are_named(found, message):
    references = {"i": Objects([BOX], ["cup"])}
    with pytest.raises(ValueError, match=message):
        coco_map(found, references, NAMES)
    with pytest.raises(ValueError, match=message):
        lvis_ap(found, references, FREQUENCIES)


def test_missing_ground_truth_and_unknown_frequencies_are_named():
    with pytest.raises(ValueError, match="no ground-truth objects"):
        coco_map({}, {"i": Objects([], [])}, NAMES)
    with pytest.raises(ValueError, match="'cup': frequency 'rare'; expected one of r, c, f"):
        lvis_ap({}, {"i": Objects([BOX], ["cup"])}, {"cup": "rare"})
