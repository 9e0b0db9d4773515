"""A detector's boxes in one JSON, named by a model: many labels a box, products of scores, images without an object."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eval.run as run
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.masks import mask_to_rle
from dynrefer.models import options
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.predictions import keep_surest, read_predictions
from eval.inputs.proposals import read_proposals

pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
SIZE = (60, 80)
COLOURS = {"ripe_tomato": (255, 0, 0), "leaf": (0, 255, 0), "sky_(clear)": (0, 0, 255)}
NAMES = list(COLOURS)
TRUE = {  # image -> its objects; the third is known to have no leaf
    139: [("ripe_tomato", (4, 4, 24, 24)), ("leaf", (40, 10, 70, 50))],
    285: [("sky_(clear)", (0, 0, 80, 30))],
    632: [],
}


@pytest.fixture
def folder(tmp_path):
    """LVIS's JSON, pictures with boxes of one colour, records of the objects."""
    document = {"categories": [{"id": k, "name": n, "frequency": "rcf"[k - 1]} for k, n in enumerate(NAMES, 1)]}
    document |= {"images": [], "annotations": []}
    regions = []
    (tmp_path / "coco/val2017").mkdir(parents=True)
    for number, objects in TRUE.items():
        name = f"val2017/{number:012d}.jpg"
        picture = np.zeros((*SIZE, 3), np.uint8)
        marks = {"neg_category_ids": [] if objects else [2], "not_exhaustive_category_ids": []}
        entry = {"id": number, "coco_url": f"http://images.cocodataset.org/{name}", "height": SIZE[0], "width": SIZE[1]}
        document["images"].append(entry | marks)
        for category, (x1, y1, x2, y2) in objects:
            picture[y1:y2, x1:x2] = COLOURS[category]
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            box |= {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            annotation = {"id": len(regions), "image_id": number, "category_id": NAMES.index(category) + 1} | box
            document["annotations"].append(annotation)
            regions.append(Region(f"lvis-val-{len(regions)}", f"../coco/{name}", SIZE, (x1, y1, x2, y2), split="val"))
        Image.fromarray(picture).save(tmp_path / "coco" / name, quality=100, subsampling=0)
    (tmp_path / "lvis").mkdir()
    write_records(tmp_path / "lvis/val.jsonl", regions)
    (tmp_path / "lvis/val.json").write_text(json.dumps(document))
    (tmp_path / "lvis/categories.txt").write_text("\n".join(NAMES))
    return tmp_path


@dataclass(frozen=True)
class Options(options.Options):
    categories_field = "top_k"

    categories: list[str] | None = None  # names to choose from
    top_k: int = 1  # that are reported


class Batch(list):
    def to(self, device):
        return self


class Processor(FamilyProcessor):
    def samples(self, example, options, generators, train):
        return [[(region, example.image) for region in example.regions]]

    def collate(self, samples):
        return Batch(pair for sample in samples for pair in sample)


class Model(FamilyModel, nn.Module):
    """Names a box by its mean colour, and knows its mask."""

    Options = Options
    answers = frozenset({"categories", "mask"})
    joint = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.processor, self.device, self.pictures = Processor(), torch.device("cpu"), []

    def predict(self, batch, options):
        results = []
        for region, image in batch:
            x1, y1, x2, y2 = (int(v) for v in region.box)
            mean = image[y1:y2, x1:x2].mean((0, 1)) / 64
            shares = np.exp(mean) / np.exp(mean).sum()
            best = [int(k) for k in np.argsort(-shares, kind="stable")[: options.top_k]]
            mask = np.zeros(SIZE, bool)
            mask[y1:y2, x1:x2] = True
            named = [{"name": options.categories[k], "score": float(shares[k])} for k in best]
            results.append(RegionResult(region.id, list(region.box), categories=named, mask=mask_to_rle(mask)))
        return results


ONE = {"boxes": [[1, 2, 3, 4]], "scores": [1]}


def proposals(folder, boxes, name="boxes.json"):
    (folder / name).write_text(json.dumps(boxes))
    return folder / name


def scored(folder, monkeypatch, task, *more):
    monkeypatch.setattr(run, "load_model", lambda args: Model())
    given = ["--model", "m", "--task", task, "--data", folder / "lvis/val.jsonl", "--num-workers", "0"]
    given += ["--annotations", folder / "lvis/val.json", "--out", folder / "out", "--overwrite", *more]
    assert run.main([*map(str, given)]) == 0
    return json.loads((folder / "out/scores.json").read_text())


def glip(entries):
    return {
        str(image): {"scores": [s for s, _ in own], "labels": [1] * len(own), "boxes": [b for _, b in own]}
        for image, own in entries.items()
    }


GOOD = {139: [(0.9, [4, 4, 24, 24]), (0.8, [40, 10, 70, 50])], 285: [(0.7, [-5, -5, 80, 30]), (0.9, [90, 0, 99, 9])]}


def test_true_boxes_have_many_labels_and_masks(folder, monkeypatch):
    content = scored(folder, monkeypatch, "lvis-boxes")
    names = ("LVIS AP", "LVIS APr", "LVIS APf", "LVIS mask AP", "LVIS fixed AP", "LVIS mask fixed AP")
    assert [content["scores"][name] for name in names] == pytest.approx([1] * 6)
    found = read_predictions(folder / "out/predictions.jsonl")
    assert [len(result.categories) for result in found.values()] == [3, 3, 3]
    assert json.loads((folder / "out/predictions.jsonl.meta.json").read_text())["labels"] == 900


def test_a_detectors_boxes_in_glips_form_and_in_cocos_are_the_same(folder, monkeypatch, capsys):
    content = scored(folder, monkeypatch, "lvis-proposals", "--boxes", proposals(folder, glip(GOOD)))
    assert content["scores"]["LVIS AP"] == content["scores"]["LVIS mask AP"] == pytest.approx(1)
    assert "1 boxes empty or outside their image are left out" in capsys.readouterr().err
    kept = content["settings"]["boxes"]
    assert kept["number"] == 3 and kept["left_out"] == {"empty or outside their image": 1}
    coco = [
        {"image_id": image, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, own in GOOD.items()
        for score, (x1, y1, x2, y2) in own
    ]
    again = scored(folder, monkeypatch, "lvis-proposals", "--boxes", proposals(folder, coco))
    assert again["scores"] == content["scores"]
    predictions = str(folder / "out/predictions.jsonl")
    arguments = ["--predictions", predictions, "--task", "lvis-proposals", "--data", str(folder / "lvis/val.jsonl")]
    arguments += ["--annotations", str(folder / "lvis/val.json"), "--boxes", str(folder / "boxes.json")]
    assert run.main(arguments) == 0  # the file has the names' scores, the boxes bring theirs
    assert json.loads((folder / "out/scores.json").read_text())["scores"] == content["scores"]


def test_the_detectors_score_ranks_too(folder, monkeypatch):
    """Two boxes are named alike, and surely; the detector knows which is an object."""
    far = [1, 30, 30, 58]
    for sure, expected in ((0.1, 1.0), (0.95, 0.5)):
        boxes = {139: [(0.9, [40, 10, 70, 50]), (sure, [42, 45, 68, 50])], 285: GOOD[285], 632: [(0.01, far)]}
        content = scored(folder, monkeypatch, "lvis-proposals", "--boxes", proposals(folder, glip(boxes)))
        assert content["scores"]["LVIS APc"] == pytest.approx(expected, abs=0.01)


def test_an_image_without_an_object_counts_where_its_picture_lies_beside_the_others(folder, monkeypatch, capsys):
    document = json.loads((folder / "lvis/val.json").read_text())
    picture = Image.new("RGB", SIZE[::-1], COLOURS["leaf"])
    picture.save(folder / "coco/val2017/000000000632.jpg", quality=100, subsampling=0)
    assert [entry["id"] for entry in document["images"]] == list(TRUE)
    path = proposals(folder, glip(GOOD | {632: [(0.99, [0, 0, 80, 60])]}))
    content = scored(folder, monkeypatch, "lvis-proposals", "--boxes", path)
    assert content["scores"]["LVIS APc"] == pytest.approx(0.5)  # a leaf where one was looked for and is none
    assert content["settings"]["boxes"]["number"] == 4
    limited = scored(folder, monkeypatch, "lvis-proposals", "--boxes", path, "--limit", "2")
    assert limited["settings"]["boxes"]["number"] == 2
    (folder / "coco/val2017/000000000632.jpg").unlink()
    content = scored(folder, monkeypatch, "lvis-proposals", "--boxes", path)
    assert content["scores"]["LVIS APc"] == pytest.approx(1)
    assert "1 boxes of images without a picture are left out" in capsys.readouterr().err


def test_an_image_keeps_its_surest_pairs_and_each_region_its_best():
    def result(i, *scores):
        return RegionResult(i, [], categories=[{"name": str(k), "score": s} for k, s in enumerate(scores)])

    results = [result("a", 0.5, 0.4, 0.3), result("b", 0.2, 0.1), result("c", 0.9, 0.8)]
    images = {"a": "x", "b": "x", "c": "y"}
    keep_surest(results, 2, images, {})
    assert [len(each.categories) for each in results] == [2, 1, 2]
    results = [result("a", 0.5, 0.4, 0.3), result("b", 0.2, 0.1)]
    keep_surest(results, 3, images, {"b": 10.0})
    assert [[each["score"] for each in one.categories] for one in results] == [[0.5], [0.2, 0.1]]


def test_records_of_boxes_are_made_when_they_are_asked_for(folder):
    records = open_records(folder / "lvis/val.jsonl")
    found = read_proposals(proposals(folder, glip(GOOD)), records, folder / "lvis/val.json")
    assert len(found) == 3 and found.ids() == [region.id for region in found] == ["box-139-0", "box-139-1", "box-285-0"]
    assert [list(group) for group in found.image_groups()] == [[0, 1], [2]]
    assert found[2].box == (0, 0, 80, 30) and found.image_path(2).is_file() and found.images()[2] == found[2].image
    part = found.of_images({records[2].image})
    assert part.ids() == ["box-285-0"] and part.scores.tolist() == [0.7] and part.image_names() == [records[2].image]
    by_path = {records[0].image: {"boxes": [[1, 1, 9, 9]], "scores": [1]}}
    assert read_proposals(proposals(folder, by_path), records).truth_images() == [records[0].image]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"139": [1, 2]}, "image '139': .*expected .image id"),
        ({"139": {"boxes": [[1, 2, 3]], "scores": [1]}}, r"boxes of shape \(1, 3\)"),
        ({"139": {"boxes": [[1, 2, 3, 4]], "scores": []}}, r"scores of shape \(0,\)"),
        ({"139": {"boxes": [[1, 2, 3, None]], "scores": [1]}}, "image '139': "),
        ([{"image_id": 139, "bbox": [1, 2, 3]}], "box 0: "),
        ({"7": ONE}, "no box in an image of .*1 of images that are not scored"),
        ({"139": ONE, "000000000139.jpg": ONE}, "a second list"),
    ],
)
def test_files_with_a_mistake_are_refused(folder, boxes, message):
    with pytest.raises(ValueError, match=message):
        read_proposals(proposals(folder, boxes), open_records(folder / "lvis/val.jsonl"), folder / "lvis/val.json")


def test_a_missing_file_is_one_line(folder, capsys):
    given = ["--model", "m", "--task", "lvis-proposals", "--data", str(folder / "lvis/val.jsonl"), "--boxes", "no.json"]
    assert run.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "boxes 'no.json': no such file; `python -m data_prep.proposals`" in line
