"""The whole command on predictions whose scores are known: from files of records and predictions to scores.json."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import eval.run as run
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from eval.benchmarks import TASKS, get_task
from tests.test_eval_captions import FIXTURES, GOLDENS, needs_goldens

HW = (10_000, 10_000)  # of images that nobody looks at


@pytest.fixture
def scores_of(tmp_path, monkeypatch):
    """scores_of(task, regions, predictions), the content of scores.json; a task by its name or a row of its own."""

    def scored(task, regions, predictions) -> dict:
        if not isinstance(task, str):
            monkeypatch.setitem(TASKS, task.name, task)
            task = task.name
        write_records(tmp_path / "records.jsonl", regions)
        (tmp_path / "predictions.json").write_text(json.dumps(predictions))
        options = ["--task", task, "--data", str(tmp_path / "records.jsonl"), "--out", str(tmp_path / "out")]
        assert run.main([*options, "--predictions", str(tmp_path / "predictions.json")]) == 0
        return json.loads((tmp_path / "out/scores.json").read_text())

    return scored


def described(references) -> list[Region]:
    return [
        Region(str(n), f"{n}.jpg", HW, (0, 0, 10, 10), captions=tuple(texts), split="test")
        for n, texts in enumerate(references)
    ]


def results_list(texts) -> list[dict]:
    return [{"image_id": n, "caption": text} for n, text in enumerate(texts)]


def test_captions_equal_the_released_evaluator_from_file_to_file(scores_of, tmp_path):
    vector = json.loads((FIXTURES / "captions.json").read_text())
    references, expected = list(vector["references"].values()), vector["expected"]
    assert len(references) == 200 and list(vector["references"]) == list(vector["predictions"])
    found = scores_of("refcocog-b-val", described(references), results_list(vector["predictions"].values()))
    names = {f"BLEU-{n + 1}": value for n, value in enumerate(expected["BLEU"])}
    names |= {"ROUGE-L": expected["ROUGE_L"], "CIDEr": expected["CIDEr"], "METEOR": expected["METEOR"]}
    assert found["scores"] == pytest.approx(names, abs=1e-6)
    items = json.loads((tmp_path / "out/items.json").read_text())
    for name in ("CIDEr", "METEOR"):
        per_item = [items[str(n)][name] for n in range(200)]
        assert per_item == pytest.approx(vector["expected_per_item"][name], abs=1e-6)


def test_dense_captions_equal_the_released_evaluator_from_file_to_file(scores_of):
    images = json.loads((FIXTURES / "densecap.json").read_text())["images"]
    vector = json.loads((FIXTURES / "densecap.json").read_text())
    regions = [
        Region(f"{image['image_id']}-{n}", f"{image['image_id']}.jpg", HW, item["box"], captions=(item["caption"],))
        for image in images
        for n, item in enumerate(image["ground_truth"])
    ]
    predictions = [{"image_id": image["image_id"]} | item for image in images for item in image["predictions"]]
    assert len(regions) == 166 and len(predictions) == 109
    found = scores_of("densecap-vg1.2-detected", regions, predictions)
    counted, released = vector["expected_counting_images_without_predictions"], vector["expected_released_code"]
    assert found["scores"] == pytest.approx(
        {
            "dense mAP": counted["map"],
            "dense detection mAP": counted["detmap"],
            "dense mAP (released)": released["map"],
            "dense detection mAP (released)": released["detmap"],
        },
        abs=1e-6,
    )
    parts = {name: value for name, value in found["parts"]["densecap"].items() if "meteor" in name}
    assert parts == pytest.approx(counted["ap"], abs=1e-6)


def test_attributes_equal_the_released_evaluator_from_file_to_file(scores_of, tmp_path):
    vector = np.load(FIXTURES / "ovad.npz")
    attributes = json.loads((FIXTURES / "ovad_attributes.json").read_text())
    (tmp_path / "attributes.json").write_text(json.dumps(attributes))
    names = [attribute["name"] for attribute in attributes]
    regions, predictions = [], []
    for n, (labels, scores) in enumerate(zip(vector["labels"].tolist(), vector["scores"].tolist(), strict=True)):
        known = {name: 1 if label else -1 for name, label in zip(names, labels, strict=True) if label != -1}
        regions.append(Region(str(n), f"{n}.jpg", HW, (0, 0, 10, 10), attributes=known))
        scored = [{"name": name, "score": score} for name, score in zip(names, scores, strict=True)]
        predictions.append({"id": str(n), "attributes": scored})
    found = scores_of("ovad", regions, predictions)["scores"]
    expected = json.loads((FIXTURES / "ovad_expected.json").read_text())
    expected = {f"attribute mAP/{name.rpartition('/')[2]}": value / 100 for name, value in expected.items()}
    expected["attribute mAP"] = expected.pop("attribute mAP/all")
    assert len(expected) == 25 and found == pytest.approx(expected, abs=1e-6)


@needs_goldens
def test_published_scores_of_nlg_eval_from_file_to_file(scores_of):
    one, two, said = ((GOLDENS / "nlg_eval" / f"{n}.txt").read_text().splitlines() for n in ("ref1", "ref2", "hyp"))
    task = replace(get_task("flickr30k"), name="nlg", metrics=("captions",), tokenizer="lower")
    found = scores_of(task, described(zip(one, two, strict=True)), results_list(said))
    published = {"BLEU-1": 0.55, "BLEU-2": 0.428174, "BLEU-3": 0.284043, "BLEU-4": 0.201143}
    published |= {"METEOR": 0.295797, "ROUGE-L": 0.522104, "CIDEr": 1.242192}
    assert found["scores"] == pytest.approx(published, abs=1e-6)


@needs_goldens
def test_published_bleu_of_flickr30k_captions_from_file_to_file(scores_of):
    images = json.loads((GOLDENS / "flickr30k_glstm/glstm_lda_37.37_struct.json").read_text())["imgblobs"]
    task = replace(get_task("flickr30k"), name="glstm", metrics=("captions",), tokenizer="tokens")
    task = replace(task, caption_metrics=("bleu",))
    regions = described([text["text"] for text in image["references"]] for image in images)
    found = scores_of(task, regions, results_list(image["candidate"]["text"] for image in images))
    assert [round(100 * found["scores"][f"BLEU-{n}"], 1) for n in (1, 2, 3, 4)] == [51.6, 30.9, 18.5, 11.6]


@needs_goldens
@pytest.mark.slow
@pytest.mark.parametrize("split", ["testA", "testB"])
def test_scores_of_four_models_of_refcoco_plus_from_file_to_file(scores_of, split):
    expected = json.loads((GOLDENS / "refcoco+_scores.json").read_text())
    items = json.loads((GOLDENS / f"refcoco+_{split}.json").read_text())
    task = replace(get_task("flickr30k"), name="refcoco+", metrics=("captions",), tokenizer="tokens")

    def tokens(text):
        return " ".join(re.findall(r"[a-z0-9']+", text.lower()))

    for model in ("baseline", "baseline_mmi", "visdif", "visdif_mmi"):
        regions = described([tokens(text) for text in item["refs"]] for item in items)
        found = scores_of(task, regions, results_list(tokens(item["pred"][model]) for item in items))["scores"]
        names = {f"BLEU-{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)} | {"ROUGE-L": "ROUGE_L"}
        for ours in ("CIDEr", "METEOR", *names):
            theirs = expected[f"refcoco+_{split}_{model}"][names.get(ours, ours)]
            assert found[ours] == pytest.approx(theirs, abs=6e-5), (model, ours)
