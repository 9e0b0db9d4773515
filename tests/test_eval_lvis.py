"""LVIS AP of boxes and masks, of sizes, standard and Fixed: the numbers of a plain count."""

import json

import numpy as np
import pytest

from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.masks import mask_to_rle
from eval import run
from eval.benchmarks import get_task
from eval.metrics import lvis as lvis_module
from eval.metrics.coco import Objects
from eval.metrics.lvis import lvis_ap
from eval.scoring import score

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
SIDE = 160
FREQUENCIES = {"cup": "r", "dog": "c", "lamp": "f", "tree": "f"}
NAMES = list(FREQUENCIES)
RANGES = {"": (0, 1e10), "/small": (0, 32**2), "/medium": (32**2, 96**2), "/large": (96**2, 1e10)}


def disc(box):
    """An ellipse inside of a box, bool (H, W)."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 <= 1
    inside[min(int(y1), SIDE - 1), min(int(x1), SIDE - 1)] = True  # never empty
    return inside


def random_benchmark(seed, number=14):
    """Objects and detections with masks beside their run lengths, equal scores, all marks, all sizes."""
    generator = np.random.default_rng(seed)
    predictions, references, masks = {}, {}, {}
    for n in range(number):
        truth = references[f"image {n}"] = Objects([], [], areas=[], masks=[])
        found = predictions[f"image {n}"] = Objects([], [], [], areas=[], masks=[])
        shapes = masks[f"image {n}"] = ([], [])
        for _ in range(generator.integers(1, 7)):
            side = generator.uniform(*[(8, 30), (40, 80), (110, 150)][generator.integers(3)], 2)
            corner = generator.uniform(0, SIDE - side)
            box, name = np.round([*corner, *(corner + side)]).tolist(), str(generator.choice(NAMES))
            add(truth, shapes[0], box, name, float(generator.uniform(10, 12_000)))
            for _ in range(generator.integers(0, 4)):
                moved = np.clip(np.array(box) + generator.normal(size=4) * side.mean() * 0.05, 0, SIDE)
                moved = np.round(
                    [moved[0], moved[1], max(moved[2], moved[0] + 1), max(moved[3], moved[1] + 1)]
                ).tolist()
                found.scores.append(float(np.round(generator.random(), 1)))
                add(found, shapes[1], moved, name if generator.random() < 0.7 else str(generator.choice(NAMES)))
        truth.negative = [n for n in NAMES if n not in truth.categories and generator.random() < 0.6]
        truth.not_exhaustive = [n for n in NAMES if generator.random() < 0.3]
    return predictions, references, masks


def add(objects, shapes, box, name, area=None):
    shape = disc(box)
    objects.boxes.append(box)
    objects.categories.append(name)
    objects.areas.append(float(shape.sum()) if area is None else area)
    objects.masks.append(mask_to_rle(shape))
    shapes.append(shape)


def box_overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared)


def mask_overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def by_hand(predictions, references, masks=None, fixed=None, limit=300, frequencies=FREQUENCIES):
    """LVIS's rules, one category, size and threshold at a time. masks: image -> those of its objects and those of its
    detections. fixed: detections of a category that count, instead of `limit` an image."""
    kept = {(i, k) for i, found in predictions.items() for k in range(len(found.scores))}
    if fixed is None:
        order = {i: np.argsort(-np.array(found.scores), kind="stable")[:limit] for i, found in predictions.items()}
        kept = {(i, int(k)) for i, places in order.items() for k in places}
    else:
        ranked = [(-f.scores[k], n, k, i) for n, (i, f) in enumerate(predictions.items()) for k in range(len(f.scores))]
        kept = set()
        for name in frequencies:
            own = sorted(entry for entry in ranked if predictions[entry[3]].categories[entry[2]] == name)
            kept |= {(i, k) for _, _, k, i in own[:fixed]}

    def precision(name, least, low, high):
        ranked, objects = [], 0
        for image, truth in references.items():
            if name not in {*truth.categories, *truth.negative}:
                continue
            true = [j for j, each in enumerate(truth.categories) if each == name]
            counts = {j: low <= truth.areas[j] <= high for j in true}
            objects += sum(counts.values())
            found, taken = predictions.get(image, Objects([], [], [])), set()
            for k in np.argsort(-np.array(found.scores), kind="stable"):
                if found.categories[k] != name or (image, int(k)) not in kept:
                    continue
                if masks:
                    fits = {j: mask_overlap(masks[image][1][k], masks[image][0][j]) for j in true if j not in taken}
                else:
                    fits = {j: box_overlap(found.boxes[k], truth.boxes[j]) for j in true if j not in taken}
                fits = {j: overlap for j, overlap in fits.items() if overlap >= least}
                fits = {j: overlap for j, overlap in fits.items() if counts[j]} or fits
                best = max(reversed(fits), key=fits.get) if fits else None
                x1, y1, x2, y2 = found.boxes[k]
                area = found.areas[k] if masks else (x2 - x1) * (y2 - y1)
                if best is None and (name in truth.not_exhaustive or not low <= area <= high):
                    continue
                taken.add(best)
                if best is None or counts[best]:
                    ranked.append((found.scores[k], best is not None))
        if not objects:
            return None
        ranked.sort(key=lambda pair: -pair[0])
        right = np.cumsum([is_right for _, is_right in ranked])
        best = np.maximum.accumulate((right / np.arange(1, len(ranked) + 1))[::-1])[::-1]
        return np.append(best, 0)[np.searchsorted(right / objects, np.linspace(0, 1, 101))].mean()

    scores = {}
    for part, ends in RANGES.items():
        parts = {n: [precision(n, least, *ends) for least in np.linspace(0.5, 0.95, 10)] for n in frequencies}
        parts = {n: np.array(values) for n, values in parts.items() if values[0] is not None}
        scores[f"AP{part}"] = list(parts.values())
        if not part:
            scores |= {"AP50": [v[0] for v in parts.values()], "AP75": [v[5] for v in parts.values()]}
            for letter, group in (("r", "APr"), ("c", "APc"), ("f", "APf")):
                scores[group] = [values for n, values in parts.items() if frequencies[n] == letter]
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def named(scores, name):
    return {f"{name} {part}": value for part, value in scores.items()}


def of_boxes(predictions):
    """The same with the areas of boxes, by which boxes are sorted into sizes."""
    areas = {i: [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in found.boxes] for i, found in predictions.items()}
    return {i: Objects(f.boxes, f.categories, f.scores, areas=areas[i]) for i, f in predictions.items()}


@pytest.mark.parametrize("seed", range(2))
def test_boxes_and_masks_of_all_sizes_are_those_of_a_plain_count(seed):
    predictions, references, masks = random_benchmark(seed)
    boxes = lvis_ap(of_boxes(predictions), references, FREQUENCIES)
    assert boxes == pytest.approx(named(by_hand(predictions, references), "LVIS"), abs=1e-12)
    found = lvis_ap(predictions, references, FREQUENCIES, name="LVIS mask", masks=True)
    assert found == pytest.approx(named(by_hand(predictions, references, masks), "LVIS mask"), abs=1e-12)
    assert len(boxes) == len(found) == 9 and 0.05 < found["LVIS mask AP"] < 0.9
    assert found["LVIS mask AP"] != boxes["LVIS AP"]


@pytest.mark.parametrize("with_masks", [False, True])
def test_fixed_ap_counts_a_categorys_surest_detections_and_any_number_of_an_image(monkeypatch, with_masks):
    monkeypatch.setattr(lvis_module, "MOST_OF_CATEGORY", 20)
    monkeypatch.setattr(lvis_module, "MOST_OF_IMAGE", 4)
    predictions, references, masks = random_benchmark(3)
    assert max(len(found.scores) for found in predictions.values()) > 6
    shapes, given = (masks, predictions) if with_masks else (None, of_boxes(predictions))
    fixed = lvis_ap(given, references, FREQUENCIES, masks=with_masks, fixed=True)
    standard = lvis_ap(given, references, FREQUENCIES, masks=with_masks)
    expected = by_hand(predictions, references, shapes, fixed=20)
    assert fixed == pytest.approx(named(expected, "LVIS"), abs=1e-12)
    assert standard == pytest.approx(named(by_hand(predictions, references, shapes, limit=4), "LVIS"), abs=1e-12)
    assert expected != by_hand(predictions, references, shapes, fixed=10**6)  # the limit cuts
    assert fixed["LVIS AP"] != standard["LVIS AP"]


# --- in a benchmark ------------------------------------------------------------------------------------------------


def files(tmp_path, predictions, references, proposals):
    """LVIS's JSON, the records of its objects, and results with two labels each, of boxes with masks."""
    number = {name: k for k, name in enumerate(NAMES, 1)}
    document = {"categories": [{"id": k, "name": n, "frequency": FREQUENCIES[n]} for n, k in number.items()]}
    document |= {"images": [], "annotations": []}
    regions, results, images = [], {}, {}
    for k, (image, truth) in enumerate(references.items()):
        marks = {"neg_category_ids": [number[n] for n in truth.negative], "height": SIDE, "width": SIDE}
        marks |= {"not_exhaustive_category_ids": [number[n] for n in truth.not_exhaustive]}
        document["images"].append({"id": k, "file_name": f"{image}.jpg", **marks})
        for n, (x1, y1, x2, y2) in enumerate(truth.boxes):
            annotation = {"id": len(document["annotations"]), "image_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotation |= {"area": truth.areas[n], "segmentation": truth.masks[n]}
            document["annotations"].append(annotation | {"category_id": number[truth.categories[n]]})
            regions.append(Region(f"r-{k}-{n}", f"{image}.jpg", (SIDE, SIDE), tuple(truth.boxes[n])))
        found = predictions[image] if proposals else truth
        for n, box in enumerate(found.boxes):
            i = f"d-{k}-{n}" if proposals else f"r-{k}-{n}"
            ranked = [{"name": found.categories[n], "score": 0.6}, {"name": NAMES[n % 4], "score": 0.3}]
            results[i] = RegionResult(i, list(box), categories=ranked, mask=found.masks[n])
            images[i] = f"{image}.jpg"
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    return regions, results, images


@pytest.mark.parametrize("task", ["lvis-boxes", "lvis-proposals"])
def test_every_label_of_a_box_is_a_detection_and_a_detectors_scores_multiply(tmp_path, task):
    predictions, references, masks = random_benchmark(5)
    proposals = task == "lvis-proposals"
    regions, results, images = files(tmp_path, predictions, references, proposals)
    weights = {i: 0.1 + 0.8 * n / len(results) for n, i in enumerate(results)} if proposals else {}
    given = {"images": images, "weights": weights} if proposals else {}
    scores = score(get_task(task), regions, results, annotations=str(tmp_path / "lvis.json"), **given)
    found, shapes = {}, {}
    for i, result in results.items():
        image = images[i].removesuffix(".jpg")
        own = found.setdefault(image, Objects([], [], [], areas=[], masks=[]))
        _, k, n = i.split("-")
        both = shapes.setdefault(image, (masks[image][0], []))
        for label in result.categories:
            own.scores.append(label["score"] * weights.get(i, 1))
            add(own, both[1], result.box, label["name"])
            both[1][-1] = masks[image][1 if proposals else 0][int(n)]
    expected = named(by_hand(found, references), "LVIS") | named(by_hand(found, references, shapes), "LVIS mask")
    for kind, own in (("LVIS", None), ("LVIS mask", shapes)):
        fixed = by_hand(found, references, own, fixed=10_000)
        expected |= {f"{kind} fixed {group}": fixed[group] for group in ("AP", "APr", "APc", "APf")}
    assert scores.corpus == pytest.approx(expected, abs=1e-12)
    most = max(len(own.scores) for own in found.values())
    assert any(f"at most {most} an image" in note for note in scores.notes)
    assert not scores.left_out and set(scores.versions) == {name for name in expected if "/" not in name}


def test_mask_ap_needs_masks_on_both_sides(tmp_path):
    predictions, references, _ = random_benchmark(1)
    regions, results, _ = files(tmp_path, predictions, references, False)
    path = tmp_path / "lvis.json"
    for result in list(results.values())[:3]:
        result.mask = None
    scores = score(get_task("lvis-boxes"), regions, results, annotations=str(path))
    assert scores.counts == {"predictions have no mask, and their box counts as one": 3}
    for result in results.values():
        result.mask = None
    scores = score(get_task("lvis-boxes"), regions, results, annotations=str(path))
    assert scores.left_out == {"LVIS mask AP": "no prediction has a mask (`segmentation`)"}
    assert "LVIS AP" in scores.corpus and "LVIS mask AP" not in scores.corpus
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(document))
    results["r-0-0"].mask = references["image 0"].masks[0]
    scores = score(get_task("lvis-boxes"), regions, results, annotations=str(path))
    assert scores.left_out == {"LVIS mask AP": f"1 objects of {path} have no mask"}


def test_a_results_list_with_masks_is_read(tmp_path):
    """As detectors write it: a category, a box and run lengths an entry, by the ids of the JSON."""
    predictions, references, masks = random_benchmark(2)
    regions, _, _ = files(tmp_path, predictions, references, False)
    write_records(tmp_path / "val.jsonl", regions)
    entries = [
        {"image_id": k, "category_id": NAMES.index(name) + 1, "score": score, "segmentation": mask}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1]}
        for k, found in enumerate(predictions.values())
        for (x1, y1, x2, y2), name, score, mask in zip(
            found.boxes, found.categories, found.scores, found.masks, strict=True
        )
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    given = ["--task", "lvis-proposals", "--data", tmp_path / "val.jsonl", "--annotations", tmp_path / "lvis.json"]
    given += ["--predictions", tmp_path / "results.json", "--out", tmp_path / "out"]
    assert run.main([*map(str, given)]) == 0
    scores = json.loads((tmp_path / "out/scores.json").read_text())["scores"]
    expected = named(by_hand(predictions, references), "LVIS")
    expected |= named(by_hand(predictions, references, masks), "LVIS mask")
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
