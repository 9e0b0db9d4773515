"""Boxes of a detector: its own file, what grit_boxes makes of it, and a model that describes them."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import eval.run as run
from data_prep import grit_boxes
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.predictions import read_predictions

TRUE = {100: [(10, 10, 70, 60), (100, 10, 160, 60)], 101: [(20, 20, 90, 80), (110, 30, 190, 90)]}
SIZE = (100, 200)
TASK = "densecap-vg1.2-detected"


@pytest.fixture
def folder(tmp_path):
    """Four objects of two images, and GRiT's file: every object, and a box with nothing in it that it is unsure of."""
    regions, detections = [], []
    (tmp_path / "images").mkdir()
    for image, boxes in TRUE.items():
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"images/{image}.jpg")
        for n, box in enumerate(boxes):
            regions.append(Region(f"t-{image}-{n}", f"images/{image}.jpg", SIZE, box, captions=(f"a red cat {n}",)))
        for n, (x1, y1, x2, y2) in enumerate([*boxes, (0, 0, 8, 8)]):
            box = [value * 720 / 200 for value in (x1, y1, x2 - x1, y2 - y1)]
            detections.append({"image_id": image, "category_id": 1, "bbox": box, "score": 0.9 - 0.2 * n, "logit": 0.1})
            detections[-1]["object_descriptions"] = f"a red cat {n}"
    write_records(tmp_path / "test.jsonl", regions)
    (tmp_path / "vg_instances_results.json").write_text(json.dumps(detections))
    return tmp_path


def converted(folder):
    files = {"--results": "vg_instances_results.json", "--records": "test.jsonl", "--out": "test_grit.jsonl"}
    assert grit_boxes.main([word for key, name in files.items() for word in (key, str(folder / name))]) == 0


def scores(folder, *options, task=TASK):
    arguments = ["--task", task, "--data", str(folder / "test.jsonl"), "--out", str(folder / "out")]
    assert run.main([*arguments, *map(str, options)]) == 0
    return json.loads((folder / "out/scores.json").read_text())


def test_grits_own_file_is_scored(folder, capsys):
    found = scores(folder, "--predictions", folder / "vg_instances_results.json")["scores"]
    assert found["dense detection mAP"] == found["dense mAP"] == pytest.approx(1)
    assert "scaled to a longer side of 720" in capsys.readouterr().err


def test_the_text_key_and_the_metrics_reach_the_file(folder, capsys):
    entries = json.loads((folder / "vg_instances_results.json").read_text())
    for entry in entries:
        entry["caption"] = "a red cat"
    (folder / "p.json").write_text(json.dumps(entries))
    options = ["--predictions", folder / "p.json", "--text-key", "object_descriptions"]
    assert scores(folder, *options)["scores"]["dense mAP"] == pytest.approx(1)
    arguments = ["--task", TASK, "--data", str(folder / "test.jsonl"), "--predictions", str(folder / "p.json")]
    assert run.main(arguments) == 2
    assert "choose the prediction with --text-key KEY" in capsys.readouterr().err


def test_what_grit_boxes_writes_is_scored_as_it_is(folder):
    converted(folder)
    found = scores(folder, "--predictions", folder / "test_grit_predictions.jsonl")["scores"]
    assert found == scores(folder, "--predictions", folder / "vg_instances_results.json")["scores"]


class Batch(list):
    def to(self, device):
        return self


class Processor(FamilyProcessor):
    def samples(self, example, options, generators, train):
        return list(example.regions)

    def collate(self, samples):
        return Batch(samples)


class Model(FamilyModel, nn.Module):
    """Says "a red cat N" of the Nth box of an image, the surer the worse the box is; stops before batch `die_at`."""

    answers = frozenset({"caption", "categories"})

    def __init__(self, die_at=None):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0))
        self.processor, self.device = Processor(), torch.device("cpu")
        self.config = type("Config", (), {"attributes": [], "categories": []})()
        self.die_at, self.calls = die_at, 0

    def predict(self, batch, options):
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [
            RegionResult(
                region.id,
                list(region.box),
                f"a red cat {region.id[-1]}",
                score=float(region.id[-1]),
                category={"name": "cup", "score": 0.5},
            )
            for region in batch
        ]


def described(folder, monkeypatch, *options, die_at=None, task=TASK):
    models = []
    monkeypatch.setattr(run, "load_model", lambda args: models.append(Model(die_at)) or models[-1])
    boxes = ["--boxes", folder / "test_grit.jsonl", "--num-workers", "0", "--batch-size", "2"]
    return scores(folder, "--model", "m", *boxes, *options, task=task), models[0]


def test_a_model_describes_a_detectors_boxes_which_rank_by_the_detectors_scores(folder, monkeypatch):
    converted(folder)
    content, _ = described(folder, monkeypatch)
    assert content["scores"]["dense mAP"] == content["scores"]["dense detection mAP"] == pytest.approx(1)
    kept = folder / "out/predictions.jsonl"
    assert [r.score for r in read_predictions(kept).values()] == [0, 1, 2, 0, 1, 2]  # the model's own, to look at
    assert content["settings"]["boxes"].keys() == {"records", "sha256", "scores_sha256"}
    again = scores(folder, "--predictions", kept, "--boxes", folder / "test_grit.jsonl")
    assert again["scores"] == content["scores"] and again["settings"]["boxes"] == content["settings"]["boxes"]
    lines = (folder / "test_grit_predictions.jsonl").read_text().splitlines()
    turned = [json.dumps(json.loads(line) | {"score": -n}) for n, line in enumerate(lines[::-1])]
    (folder / "test_grit_predictions.jsonl").write_text("\n".join(turned))
    content, _ = described(folder, monkeypatch)
    assert content["scores"]["dense mAP"] < 0.8


def test_a_killed_description_goes_on(folder, monkeypatch):
    converted(folder)
    with pytest.raises(AssertionError):  # a code that is not 0
        described(folder, monkeypatch, die_at=2)
    assert len(list((folder / "out").glob("predictions.jsonl.part-*"))) == 1
    content, model = described(folder, monkeypatch)
    assert model.calls == 2 and content["scores"]["dense mAP"] == pytest.approx(1)


def test_a_limit_takes_the_boxes_of_its_images(folder, monkeypatch):
    converted(folder)
    content, model = described(folder, monkeypatch, "--limit", "2")
    assert model.calls == 2 and content["scores"]["dense mAP"] == pytest.approx(1)
    options = ["--predictions", folder / "out/predictions.jsonl", "--boxes", folder / "test_grit.jsonl"]
    assert scores(folder, *options, "--limit", "2")["scores"] == content["scores"]


def test_captions_of_others_for_the_boxes_are_scored(folder, capsys):
    converted(folder)
    said = {region.id: f"A red cat {region.id[-1]}." for region in open_records(folder / "test_grit.jsonl")}
    (folder / "dam.json").write_text(json.dumps(said))
    options = ["--predictions", folder / "dam.json", "--boxes", folder / "test_grit.jsonl"]
    assert scores(folder, *options)["scores"]["dense mAP"] == pytest.approx(1)
    del said["grit-100-0"]  # the surest of its image, and right: its box is found still, its caption missing
    (folder / "dam.json").write_text(json.dumps(said))
    content = scores(folder, *options)
    assert content["scores"]["dense detection mAP"] == pytest.approx(1) and content["scores"]["dense mAP"] < 0.8
    assert content["counts"] == {"captions of boxes are empty and count as wrong": 1}
    assert "1 captions of boxes are empty" in capsys.readouterr().out


def test_a_model_names_the_proposals_of_lvis(folder, monkeypatch):
    converted(folder)
    (folder / "test_grit_predictions.jsonl").unlink()  # what ranks are the scores of the names
    document = {
        "images": [
            {"id": i, "coco_url": f"x/{i}.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in TRUE
        ],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for i, boxes in TRUE.items()
            for x1, y1, x2, y2 in boxes
        ],
        "categories": [{"id": 1, "name": "cup", "frequency": "f"}],
    }
    (folder / "lvis.json").write_text(json.dumps(document))
    content, _ = described(folder, monkeypatch, "--annotations", folder / "lvis.json", task="lvis-proposals")
    assert 0.7 < content["scores"]["LVIS AP"] < 1  # the box with nothing in it is named as well, as surely


def test_mistakes_with_boxes_are_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        run, "load_model", lambda args: pytest.fail("the model is loaded before the boxes are looked at")
    )
    converted(folder)

    def refused(*options, task=TASK):
        arguments = ["--task", task, "--data", str(folder / "test.jsonl"), "--out", str(folder / "out"), *options]
        assert run.main([*map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    boxes = folder / "test_grit.jsonl"
    assert "name records of them with --boxes" in refused("--model", "m")
    assert "densecap-vg1.2 gives its boxes" in refused("--model", "m", "--boxes", boxes, task="densecap-vg1.2")
    (folder / "p.json").write_text('{"0": "a cat"}')
    assert "fits several regions" in refused("--predictions", folder / "p.json", "--boxes", boxes)
    records = list(open_records(boxes))
    write_records(folder / "more.jsonl", [*records, Region("far", "images/7.jpg", SIZE, (0, 0, 9, 9))])
    assert "1 boxes are of images of which" in refused("--model", "m", "--boxes", folder / "more.jsonl")
    beside = folder / "test_grit_predictions.jsonl"
    lines = beside.read_text().splitlines()
    for content, message in (
        (lines[:-1], "no score for box 'grit-101-2'"),
        ([*lines, lines[0]], "_predictions.jsonl:7: a second score for box 'grit-100-0'"),
        ([lines[0].replace("0.9", '"0.9"'), *lines[1:]], "_predictions.jsonl:1: .*"),
    ):
        beside.write_text("\n".join(content))
        assert message.removesuffix(".*") in refused("--model", "m", "--boxes", boxes)
    beside.unlink()
    assert "no scores of the detector at" in refused("--model", "m", "--boxes", boxes)
