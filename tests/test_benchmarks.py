"""docs/benchmarks.md: every task's records can be made, with a command that the converter accepts."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.dlc_bench import QUESTIONS
from data_prep.ref_l4 import SHA256
from eval import run as eval_run
from eval.benchmarks import TASKS
from tests.test_readme import read_commands

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
COMMANDS = read_commands(PAGE)
JUDGED = {f"data_prep.{name}" for name in ("dlc_bench", "paradlc", "motionatlas")}  # they write questions of a judge


def rows() -> dict[str, tuple[str, str]]:
    """task -> (records, regions) of the table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if "| `" in line]
    table = {row[0].strip("`"): (row[2].strip("`"), row[3]) for row in cells if len(row) == 5}
    assert len(table) == sum(len(row) == 5 for row in cells), "a task stands there twice"
    return table


def option(command, name: str) -> str | None:
    words = command.arguments
    return words[words.index(name) + 1] if name in words else None


def folders(command) -> list[str]:
    """What a command names before its options."""
    words = command.arguments
    return words[: next((n for n, word in enumerate(words) if word.startswith("--")), len(words))]


def written(command) -> list[str]:
    """The record files that a command writes."""
    out = option(command, "--out")
    if out is None:  # it scores
        return []
    if out.endswith(".jsonl"):
        return [out]
    if command.module == "data_prep.coco_folders":
        return [f"{out}/{Path(folder).name}/{option(command, '--split')}.jsonl" for folder in folders(command)]
    splits = [option(command, "--split")] if option(command, "--split") else ["train", "val", "test"]
    kind = "-questions" if command.module == "data_prep.moving_world" else ""
    return [f"{out}/{split}{kind}.jsonl" for split in splits]


def test_every_task_has_its_row_and_a_command_that_writes_its_records():
    assert rows().keys() == TASKS.keys()
    records = {path for command in COMMANDS for path in written(command)}
    for name, task in TASKS.items():
        path, regions = rows()[name]
        assert path == task.data and path in records, name
        assert regions == ("-" if task.num_regions is None else f"{task.num_regions:,}"), name


def test_a_tasks_annotations_are_written_or_are_what_a_converter_reads():
    written_beside = {str(Path(option(c, "--out")).parent / QUESTIONS) for c in COMMANDS if c.module in JUDGED}
    copied = [c for c in COMMANDS if c.module == "data_prep.coco_folders"]
    written_beside |= {path.removesuffix("l") for command in copied for path in written(command)}
    read = {option(command, "--annotations") for command in COMMANDS}
    wanted = {task.annotations for task in TASKS.values() if task.annotations}
    assert wanted and wanted <= written_beside | read
    assert all(f"`{path}`" in PAGE for path in wanted)


def test_a_command_says_the_split_that_its_task_scores():
    scored = {task.data: task.split for task in TASKS.values()}
    for command in COMMANDS:
        for path in written(command):
            split = option(command, "--split")
            if scored.get(path) and split:
                assert split == scored[path], str(command)


def test_hashes_are_the_converters():
    assert set(SHA256.values()) <= set(re.findall(r"\b[0-9a-f]{64}\b", PAGE))


# --- from a small official file to a score, under the table's own paths ---------------------------------------------


def photo(folder: Path, name: str) -> dict:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60)).save(folder / name)
    return {"height": 60, "width": 80}


def convert_and_score(command: str, options: list[str], task: str, predictions, *more: str) -> dict:
    """Runs the page's command for a task's records on what lies in this folder, then scores the predictions."""
    arguments = next(c.arguments for c in COMMANDS if c.module == command and TASKS[task].data in written(c))
    assert importlib.import_module(command).main([*arguments, *options]) == 0
    Path("p.json").write_text(json.dumps(predictions))
    assert eval_run.main(["--task", task, "--predictions", "p.json", "--out", "scores", *more]) == 0
    return json.loads(Path("scores/scores.json").read_text())


def test_lvis_boxes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [
        {"id": 139, "coco_url": f"http://images.cocodataset.org/{name}", **photo(tmp_path / "coco", name)}
        | {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
        for name in ("val2017/000000000139.jpg",)
    ]
    annotations = [
        {"id": 11, "image_id": 139, "category_id": 1, "bbox": [10, 10, 30, 20], "area": 600, "segmentation": []},
        {"id": 12, "image_id": 139, "category_id": 2, "bbox": [50, 10, 20, 20], "area": 400, "segmentation": []},
    ]
    names = [("dog_collar", "f"), ("cup", "r")]
    categories = [{"id": n, "name": name, "frequency": f} for n, (name, f) in enumerate(names, 1)]
    Path("data/lvis").mkdir(parents=True)
    document = {"images": images, "annotations": annotations, "categories": categories}
    Path("data/lvis/lvis_v1_val.json").write_text(json.dumps(document))
    named = {"11": {"category": "dog_collar", "score": 0.9}, "12": {"category": "dog_collar", "score": 0.5}}
    content = convert_and_score("data_prep.coco", ["--subset"], "lvis-boxes", named)
    assert content["scores"]["LVIS APf"] == pytest.approx(1) and content["scores"]["LVIS APr"] == 0
    numbers = [{"ann_id": 11, "category_id": 1, "score": 0.9}, {"ann_id": 12, "category_id": 2, "score": 0.8}]
    content = convert_and_score("data_prep.coco", ["--subset"], "lvis-boxes", numbers)
    assert content["scores"]["LVIS AP"] == pytest.approx(1) and content["regions"] == 2


def test_refcocog_by_expression(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "COCO_train2014_000000000009.jpg"
    size = photo(tmp_path / "train2014", name)
    texts = ["the left dog", "a brown dog on the left"]
    entry = {"file_name": name, "original_id": 9, "dataset_name": "refcocog", **size}
    images = [{**entry, "id": n, "caption": text} for n, text in enumerate(texts)]
    annotations = [{"id": n, "image_id": n, "bbox": [5, 5, 30, 30], "segmentation": []} for n in range(2)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    Path("finetune_refcocog_val_captions.json").write_text(json.dumps(document))
    said = [{"image_id": n, "caption": text.capitalize() + "."} for n, text in enumerate(texts)]
    content = convert_and_score("data_prep.refcoco", ["--subset"], "refcocog-a", said)
    assert content["regions"] == 2 and content["scores"]["BLEU-1"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["lvis", "paco"])
def test_ospreys_samples(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    sample = [
        {"id": 139, "file_name": "000000000139.jpg", **photo(tmp_path / "coco", "val2017/000000000139.jpg")}
        | {"annotations": [{"segmentation": square}] * 2, "categories": ["dog_collar", "car:wheel"]}
    ]
    Path(f"{name}_val_1k_category.json").write_text(json.dumps(sample))
    monkeypatch.setattr("eval.metrics.similarity.SentenceEncoder", lambda: lambda texts: np.eye(9)[: len(texts)])
    said = {"139-0": "Dog collar", "139-1": "wheel"}
    content = convert_and_score("data_prep.coco", ["--subset"], f"{name}-similarity", said)
    assert content["prompt"] == "mask" and content["scores"]["word IoU"] == pytest.approx((1 + 0.5) / 2)
