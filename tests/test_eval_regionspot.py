"""RegionSpot from records to LVIS AP of boxes and masks, beside its CLIP on crops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from dynrefer import RegionPredictor
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from dynrefer.images import open_image
from dynrefer.masks import to_mask
from dynrefer.predictions import read_predictions
from eval import run as eval_run
from eval.metrics.coco import Objects
from tests.regionspot import CLIP, NAMES, RECORDS, folder, model, picture
from tests.test_eval_lvis import by_hand, named

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
FREQUENCIES = dict(zip(NAMES, "rcfrcfr", strict=True))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """LVIS's JSON of the vectors' pictures, whose objects are called and outlined as the model does, three boxes each;
    (its folder, {image: results of all five boxes}, references)."""
    path = tmp_path_factory.mktemp("lvis")
    number = {name: k for k, name in enumerate(NAMES, 1)}
    document = {"categories": [{"id": k, "name": n, "frequency": FREQUENCIES[n]} for n, k in number.items()]}
    document |= {"images": [], "annotations": []}
    regions, answers, references = [], {}, {}
    predictor = RegionPredictor(model())
    for k, record in enumerate(RECORDS):
        image = open_image(picture(record))
        height, width = image.shape[:2]
        name = f"{k:012d}.png"
        Image.fromarray(image).save(path / name)
        boxes = record["boxes_xyxy"][:3]
        found = answers[name] = predictor(image, boxes=boxes, categories=NAMES, top_k=len(NAMES))
        truth = references[name] = Objects([], [], areas=[], masks=[], negative=NAMES[:2])
        marks = {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
        document["images"].append({"id": k, "file_name": name, "height": height, "width": width} | marks)
        for n, ((x1, y1, x2, y2), result) in enumerate(zip(boxes, found, strict=True)):
            category = result.categories[n % 2]["name"]  # it is wrong about the second
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(to_mask(result.mask, (height, width)).sum())}
            annotation = {
                "id": len(regions),
                "image_id": k,
                "category_id": number[category],
                "segmentation": result.mask,
            }
            document["annotations"].append(annotation | box)
            regions.append(Region(f"lvis-{len(regions)}", name, (height, width), (x1, y1, x2, y2), category=category))
            for column, value in ((truth.boxes, [x1, y1, x2, y2]), (truth.categories, category)):
                column.append(value)
            truth.areas.append(box["area"])
            truth.masks.append(result.mask)
    write_records(path / "val.jsonl", regions)
    (path / "categories.txt").write_text("\n".join(NAMES))
    (path / "lvis.json").write_text(json.dumps(document))
    return path, answers, references


def scored(path, task, *more):
    given = ["--model", folder(), "--task", task, "--data", path / "val.jsonl", "--annotations", path / "lvis.json"]
    given += ["--out", path / "out", "--num-workers", "0", "--device", "cpu", "--overwrite", *more]
    assert eval_run.main([*map(str, given)]) == 0
    return json.loads((path / "out/scores.json").read_text())


def counted(answers, references):
    """The plain count of box and mask AP."""
    found, masks = {}, {}
    for name, results in answers.items():
        own = found[name] = Objects([], [], [], areas=[])
        decoded = [to_mask(result.mask, result.mask["size"]) for result in results]
        masks[name] = (decoded, [])  # of objects, and of detections
        for result, mask in zip(results, decoded, strict=True):
            for each in result.categories:
                own.boxes.append(result.box)
                own.categories.append(each["name"])
                own.scores.append(each["score"])
                own.areas.append(float(mask.sum()))
                masks[name][1].append(mask)
    boxes = by_hand(found, references, frequencies=FREQUENCIES)
    return named(boxes, "LVIS") | named(by_hand(found, references, masks, frequencies=FREQUENCIES), "LVIS mask")


def test_box_and_mask_ap_of_records_are_a_plain_count_and_stand_beside_clip_on_crops(benchmark):
    path, answers, references = benchmark
    content = scored(path, "lvis-boxes", "--baselines")
    expected = counted(answers, references)
    assert 0.1 < expected["LVIS AP"] < 0.95 and "LVIS mask AP" in expected
    assert {name: content["scores"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    crops = content["baselines"]["CLIP on crops"]
    assert crops.keys() == content["scores"].keys() and crops["LVIS mask AP"] != content["scores"]["LVIS mask AP"]
    kept = read_predictions(path / "out/crops/predictions.jsonl")
    named_alone = {i: {each["name"]: each["score"] for each in result.categories} for i, result in kept.items()}
    clip = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    image, (x1, y1, x2, y2) = open_image(picture(RECORDS[0])), RECORDS[0]["boxes_xyxy"][0]
    crop = np.ascontiguousarray(image[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))])
    pixels = model().processor.clip_pixels(crop)
    with torch.no_grad():
        embeds = clip.get_image_features(pixel_values=pixels[None]).pooler_output
        logits = clip.logit_scale.exp() * torch.nn.functional.normalize(embeds, dim=-1) @ model().text_bank(NAMES).T
    expected = dict(zip(NAMES, logits[0].softmax(-1).tolist(), strict=True))
    assert named_alone["lvis-0"] == pytest.approx(expected, abs=1e-5)


def test_boxes_of_a_detector_that_is_sure_are_those_of_the_records(benchmark):
    path, answers, references = benchmark
    boxes = {str(k): {"boxes": r["boxes_xyxy"][:3], "scores": [0.5] * 3} for k, r in enumerate(RECORDS)}
    (path / "glip.json").write_text(json.dumps(boxes))
    content = scored(path, "lvis-proposals", "--boxes", path / "glip.json")
    expected = counted(answers, references)
    assert {name: content["scores"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
