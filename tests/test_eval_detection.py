"""COCO AP of a results file with its own boxes and masks: pycocotools' numbers, which are sums in another order."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_prep import coco as data_prep_coco
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionResult
from eval import run as eval_run
from eval.benchmarks import get_task
from eval.inputs.formats import read_any
from eval.scoring import score

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
NAMES = {7: "cup", 3: "dog", 12: "lamp", 5: "tree"}
SIDE = 240
PARTS = ("", "50", "75", "/small", "/medium", "/large")
RECALLS = ("1", "10", "100", "100/small", "100/medium", "100/large")


def polygon(generator, x, y, width, height):
    """A star inside of a box."""
    angles = np.sort(generator.random(9)) * 2 * np.pi
    radius = generator.uniform(0.4, 1, 9)
    corners = np.stack([x + width / 2 * (1 + radius * np.cos(angles)), y + height / 2 * (1 + radius * np.sin(angles))])
    return np.round(corners.T.reshape(-1), 2).tolist()


def crowd_mask(x, y, width, height):
    """Run lengths as a list, as COCO has those of crowds."""
    mask = np.zeros((SIDE, SIDE), int)
    mask[int(y) : int(y + height), int(x) : int(x + width)] = 1
    flat = np.concatenate([[0], mask.T.reshape(-1), [2]])
    changes = np.flatnonzero(np.diff(flat))
    return {"size": [SIDE, SIDE], "counts": np.diff(np.concatenate([[0], changes])).tolist()}


def area_of(corners):
    x, y = np.array(corners).reshape(-1, 2).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def benchmark(seed, number=14):
    """(COCO JSON, results): unordered ids, ties, crowds, a key `ignore`, images without an object, all sizes."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(1000)[:number].tolist()
    images = [{"id": i, "file_name": f"{n:06d}.jpg", "height": SIDE, "width": SIDE} for n, i in enumerate(ids)]
    annotations, results = [], []
    for n, image in enumerate(ids):
        for _ in range(0 if n % 7 == 3 else 7):
            side = generator.uniform(*[(6, 30), (30, 90), (100, 200)][generator.integers(3)], 2)
            x, y = generator.uniform(0, SIDE - side)
            box = np.round([x, y, *side], 2).tolist()
            crowd = bool(generator.random() < 0.15)
            shape = crowd_mask(*box) if crowd else [polygon(generator, *box)]
            annotations.append(
                {"id": 5000 - len(annotations), "image_id": image, "bbox": box, "iscrowd": int(crowd)}
                | {"category_id": int(generator.choice(list(NAMES)[:3])), "segmentation": shape, "ignore": 1}
                | {"area": float(box[2] * box[3] / 2) if crowd else area_of(shape[0])}
            )
            for _ in range(generator.integers(0, 5)):
                moved = np.array(box) + generator.normal(size=4) * side.mean() * 0.07
                moved[2:] = np.maximum(moved[2:], 1)
                right = generator.random() < 0.75
                results.append(
                    {"image_id": image, "bbox": np.round(moved, 2).tolist()}
                    | {
                        "segmentation": rle(
                            polygon(generator, *moved) if generator.random() < 0.4 else corners(shape, box)
                        )
                    }
                    | {"category_id": annotations[-1]["category_id"] if right else int(generator.choice(list(NAMES)))}
                    | {"score": float(np.round(generator.random(), 1))}  # many are equal
                )
        if n % 7 == 3:  # wrong whatever it says
            results.append(
                {"image_id": image, "bbox": [5, 5, 40, 40], "category_id": 7, "score": 0.9}
                | {"segmentation": rle([5, 5, 45, 5, 45, 45, 5, 45])}
            )
    generator.shuffle(results)
    generator.shuffle(annotations)
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


def corners(shape, box):
    x, y, width, height = box
    return shape[0] if isinstance(shape, list) else [x, y, x + width, y, x + width, y + height, x, y + height]


def rle(polygon_or_corners):
    from pycocotools import mask

    found = mask.merge(mask.frPyObjects([[float(v) for v in polygon_or_corners]], SIDE, SIDE))
    return {"size": [SIDE, SIDE], "counts": found["counts"].decode()}


def official(document, results, kind, count=6):
    """The first numbers of pycocotools' summary: precisions, then recalls."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = copy.deepcopy(document)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        counted = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return counted.stats[:count].tolist()


def converted(tmp_path, document):
    """Records as the converter writes them, without crowds."""
    for image in document["images"]:
        path = tmp_path / "photos" / image["file_name"]
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (SIDE, SIDE)).save(path)
    (tmp_path / "instances.json").write_text(json.dumps(document))
    arguments = ["--dataset", "own", "--split", "val", "--annotations", str(tmp_path / "instances.json")]
    arguments += ["--box-format", "xywh", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "val.jsonl")]
    assert data_prep_coco.main(arguments) == 0
    return tmp_path / "val.jsonl"


def run(tmp_path, results, *more, task="coco-detection", name="results.json"):
    (tmp_path / name).write_text(results if isinstance(results, str) else json.dumps(results))
    given = ["--task", task, "--data", str(tmp_path / "val.jsonl"), "--predictions", str(tmp_path / name)]
    assert eval_run.main([*given, "--out", str(tmp_path / "out"), *map(str, more)]) == 0
    return json.loads((tmp_path / "out" / "scores.json").read_text())


def named(scores, name):
    return [scores[f"{name}{part}"] for part in PARTS]


@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_masks_equal_pycocotools(tmp_path, seed):
    document, results = benchmark(seed)
    converted(tmp_path, document)
    content = run(tmp_path, results, "--annotations", tmp_path / "instances.json")
    boxes, masks = named(content["scores"], "COCO box AP"), named(content["scores"], "COCO mask AP")
    assert 0.05 < boxes[0] < 0.9 and 0.05 < masks[0] < 0.9 and boxes != masks
    assert boxes == pytest.approx(official(document, results, "bbox"), abs=1e-15)
    assert masks == pytest.approx(official(document, results, "segm"), abs=1e-15)
    for name, kind in (("COCO box AR", "bbox"), ("COCO mask AR", "segm")):
        recalls = [content["scores"][f"{name}{part}"] for part in RECALLS]
        assert recalls == pytest.approx(official(document, results, kind, 12)[6:], abs=1e-15)
        assert 0.05 < recalls[0] < recalls[2] and f"{name}1" in content["metric_versions"]
    assert content["regions_scored"] == {"detection": len(document["annotations"])} and content["annotations_sha256"]
    other = copy.deepcopy(document)
    for image in other["images"]:
        image["id"] = 1000 - image["id"]
    for entry in other["annotations"]:
        entry["image_id"] = 1000 - entry["image_id"]
    assert official(other, [r | {"image_id": 1000 - r["image_id"]} for r in results], "bbox") != boxes, "no tie matters"


def test_masks_alone_and_boxes_alone(tmp_path):
    document, results = benchmark(5)
    converted(tmp_path, document)
    alone = [{k: v for k, v in entry.items() if k != "bbox"} for entry in results]
    content = run(tmp_path, alone, "--annotations", tmp_path / "instances.json")
    for name, kind in (("COCO box AP", "bbox"), ("COCO mask AP", "segm")):
        assert named(content["scores"], name) == pytest.approx(official(document, alone, kind), abs=1e-15)
    alone = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in results]
    content = run(tmp_path, alone, "--annotations", tmp_path / "instances.json")
    assert named(content["scores"], "COCO box AP") == pytest.approx(official(document, alone, "bbox"), abs=1e-15)
    assert "COCO mask AP" not in content["scores"] and "no prediction has a mask" in content["left_out"]["mask AP"]
    some = [{k: v for k, v in e.items() if k != "segmentation" or n % 3} for n, e in enumerate(results)]
    content = run(tmp_path, some, "--annotations", tmp_path / "instances.json")
    assert named(content["scores"], "COCO mask AP") == pytest.approx(official(document, some, "segm"), abs=1e-15)
    (number,) = content["counts"].values()
    assert number == len(results[::3])


def test_the_hundred_surest_of_a_category_and_image_count(tmp_path):
    document, results = benchmark(1)
    converted(tmp_path, document)
    generator = np.random.default_rng(0)
    many = [results[0] | {"bbox": [*generator.integers(0, 200, 2).tolist(), 30, 30], "score": 0.95} for _ in range(150)]
    expected = official(document, many + results, "bbox")
    assert expected != official(document, many[:90] + results, "bbox")
    content = run(tmp_path, many + results, "--annotations", tmp_path / "instances.json")
    assert named(content["scores"], "COCO box AP") == pytest.approx(expected, abs=1e-15)


def test_names_texts_and_other_roots_stand_for_ids(tmp_path):
    document, results = benchmark(2)
    converted(tmp_path, document)
    expected = run(tmp_path, results, "--annotations", tmp_path / "instances.json")["scores"]
    files = {image["id"]: image["file_name"] for image in document["images"]}
    spelt = [
        lambda e: e | {"image_id": str(e["image_id"])},
        lambda e: e | {"image_id": float(e["image_id"]), "category_id": float(e["category_id"])},
        lambda e: {**e, "image": f"D:\\other\\photos\\{files[e['image_id']].replace('jpg', 'JPG')}", "image_id": None},
        lambda e: {**e, "category_id": 0, "category": NAMES[e["category_id"]].upper()},
    ]
    for change in spelt:
        changed = [{k: v for k, v in change(entry).items() if v is not None} for entry in results]
        assert run(tmp_path, changed, "--annotations", tmp_path / "instances.json")["scores"] == expected
    columns = ["image_id", "category_id", "score", "bbox"]
    rows = [columns] + [[json.dumps(entry[column]) for column in columns] for entry in results]
    table = "\n".join(";".join(row) for row in rows)
    found = run(tmp_path, table, "--annotations", tmp_path / "instances.json", name="results.csv")["scores"]
    assert found["COCO box AP"] == expected["COCO box AP"]


def test_without_the_benchmarks_file_the_records_are_the_truth(tmp_path, capsys):
    """As pycocotools has it, of a file without crowds whose images are numbered by their names."""
    document, results = benchmark(3)
    number = {image["id"]: int(image["file_name"][:6]) for image in document["images"]}
    with_objects = {entry["image_id"] for entry in document["annotations"] if not entry["iscrowd"]}
    kept = [
        entry | {"image_id": number[entry["image_id"]]} for entry in document["annotations"] if not entry["iscrowd"]
    ]
    plain = document | {"annotations": kept}
    plain["images"] = [i | {"id": number[i["id"]]} for i in document["images"] if i["id"] in with_objects]
    results = [e | {"image_id": number[e["image_id"]]} for e in results if e["image_id"] in with_objects]
    path = converted(tmp_path, document)
    lines = path.read_text().splitlines()
    np.random.default_rng(0).shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    of_image = {}  # of one image the annotations come in the file's order
    for region in open_records(path):
        of_image.setdefault(int(region.image[-10:-4]), []).append(int(region.id.rpartition("-")[2]))
    place = {i: n for ids in of_image.values() for n, i in enumerate(ids)}
    plain["annotations"] = sorted(kept, key=lambda entry: place[entry["id"]])
    content = run(tmp_path, results)
    assert named(content["scores"], "COCO box AP") == pytest.approx(official(plain, results, "bbox"), abs=1e-15)
    assert named(content["scores"], "COCO mask AP") == pytest.approx(official(plain, results, "segm"), abs=1e-15)
    assert "--annotations FILE with the benchmark's COCO JSON gives the official numbers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 99}, "prediction 0: category_id 99 has no name beside 3, 5, 7, 12; name"),
        ({"image_id": 4321}, "prediction 0: image 4321 is no image of the records"),
        ({"segmentation": {"size": [SIDE, SIDE], "counts": "~~"}}, "prediction 0: segmentation: mask counts"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"prediction 0: segmentation: mask of size \(9, 9\)"),
        ({"segmentation": "none"}, "prediction 0: segmentation: a str; expected run lengths or polygons"),
        ({"bbox": [1, 2, -3, 4]}, "prediction 0: bbox .* width and height of 0 or more"),
        ({"score": None}, "prediction 0: score None"),
    ],
)
def test_bad_results_are_named(tmp_path, change, message, capsys):
    document, results = benchmark(2)
    path = converted(tmp_path, document)
    (tmp_path / "results.json").write_text(json.dumps([results[0] | change, *results[1:]]))
    known = {"annotations": tmp_path / "instances.json", "metrics": ("detection",), "detected": True}
    with pytest.raises(ValueError, match=message):
        read_any(tmp_path / "results.json", open_records(path), **known)


def test_a_bad_benchmark_file_is_named(tmp_path):
    document, results = benchmark(2)
    regions = open_records(converted(tmp_path, document))
    task, path = get_task("coco-detection"), tmp_path / "bad.json"
    for change, message in (
        ({"images": document["images"][2:]}, "bad.json: 2 images of the records are not in it"),
        ({"images": [{"id": 1}]}, "bad.json: images without id and file_name"),
        ({"categories": [{"id": 3}]}, "bad.json: categories without id and name"),
        ({"annotations": [{"id": 4, "image_id": 1, "category_id": 3}]}, "bad.json: annotation 4: 1 is missing"),
        (
            {"images": [i | {"file_name": "000000.jpg"} for i in document["images"]]},
            "are both .*000000.jpg' of the rec",
        ),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            score(task, regions, {}, images={}, annotations=str(path))


def test_images_whose_objects_no_record_has_are_left_out_and_counted(tmp_path):
    document, results = benchmark(4)
    path = converted(tmp_path, document)
    lines = path.read_text().splitlines()
    gone = {json.loads(line)["image"] for line in lines[:1]}
    path.write_text("\n".join(line for line in lines if json.loads(line)["image"] not in gone) + "\n")
    number = next(i["id"] for i in document["images"] if next(iter(gone)).endswith(i["file_name"]))
    content = run(tmp_path, results, "--annotations", tmp_path / "instances.json")
    less = {
        key: [e for e in document[key] if e.get("image_id", e["id"]) != number] for key in ("images", "annotations")
    }
    kept = [entry for entry in results if entry["image_id"] != number]
    assert named(content["scores"], "COCO box AP") == pytest.approx(official(document | less, kept, "bbox"), abs=1e-15)
    assert content["counts"]["predictions are of images whose objects no record has, and are left out"] > 0
    assert content["notes"] == [
        f"1 images of {tmp_path / 'instances.json'} have objects and no record, and are left out"
    ]


def recognition(seed):
    """Regions in no order, with masks, and the names that a model gives them, many with the same score."""
    document, _ = benchmark(seed)
    generator = np.random.default_rng(seed)
    plain = [entry for entry in document["annotations"] if not entry["iscrowd"]]
    files = {image["id"]: f"photos/{image['id']:012d}.jpg" for image in document["images"]}
    regions, results, official_results = [], {}, []
    for entry in plain:
        x, y, width, height = entry["bbox"]
        box = (x, y, x + width, y + height)
        name = NAMES[entry["category_id"]] if generator.random() < 0.6 else str(generator.choice(list(NAMES.values())))
        value = float(np.round(generator.random(), 1))
        region = Region(f"own-val-{entry['id']}", files[entry["image_id"]], (SIDE, SIDE), box, entry["segmentation"])
        regions.append(Region(**(region.__dict__ | {"category": NAMES[entry["category_id"]]})))
        results[region.id] = RegionResult(region.id, list(box), category={"name": name, "score": value})
        number = next(k for k, n in NAMES.items() if n == name)
        official_results.append(entry | {"category_id": number, "score": value})
    keys = ("image_id", "bbox", "category_id", "score")
    return document | {"annotations": plain}, regions, results, [{k: e[k] for k in keys} for e in official_results]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["coco-recognition", "coco-recognition-text"])
def test_recognised_regions_equal_pycocotools(seed, task):
    document, regions, results, theirs = recognition(seed)
    if task == "coco-recognition-text":
        theirs = [entry | {"score": 1.0} for entry in theirs]
    scores = score(get_task(task), regions, results, names={"categories": [NAMES[k] for k in sorted(NAMES)]}).corpus
    assert named(scores, "COCO mAP") == pytest.approx(official(document, theirs, "bbox"), abs=1e-15)
