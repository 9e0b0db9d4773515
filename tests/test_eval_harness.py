"""Benchmarks as tasks of lmms-eval and VLMEvalKit: their files, and scores that are `eval.run`'s."""

import csv
import importlib.util
import json
import shlex
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import yaml
from PIL import Image

from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from eval.benchmarks import TASKS, get_task
from eval.export import main as export
from eval.harness.exported import EXPORT, check_exportable, exported, score_answers
from eval.inputs.formats import read_any
from eval.inputs.tables import read_table
from eval.run import main as run

RLE = {"size": [40, 60], "counts": [205, 20, 2175]}  # of image_hw (40, 60): column 5, rows 5 to 24
SAID = ["a red cup", "the lamp on a table", "a dog", "two cups"]
ODD = ["=a red cup", "NA", "a\tb\n\"c\" 'd'", "", "42", "http://a.b/c", "café 红色", "a\rb"]


def records(tmp_path, count=4, **fields):
    """A file of `count` regions, two an image, with captions, a category and a mask."""
    path = tmp_path / "data" / "test.jsonl"
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    regions = []
    for n in range(count):
        image = f"images/{n // 2}.png"
        Image.new("RGB", (60, 40), (90, 90, 90)).save(path.parent / image)
        values = {"captions": (SAID[n % 4], f"{SAID[n % 4]} here"), "category": ("cup", "dog")[n % 2], "mask": RLE}
        region = Region(f"set-test-{n}", image, (40, 60), (10.0 + n, 5.0, 30.0, 20.0), split="test")
        regions.append(replace(region, **(values | fields)))
    write_records(path, regions)
    return path


def exported_to(tmp_path, data, task="world", kind="lmms-eval", *options):
    """The folder that EXPORT lies in."""
    out = tmp_path / kind
    assert export(["--task", task, "--format", kind, "--out", str(out), "--data", str(data), *options]) == 0
    (found,) = out.rglob(EXPORT)
    return found.parent


def lmms_config(folder):
    """An exported task as lmms-eval reads it: `include` beside it, `!function` from the file beside it."""

    class Loader(yaml.FullLoader):
        pass

    def function(loader, node):
        file, name = loader.construct_scalar(node).split(".")
        spec = importlib.util.spec_from_file_location(file, folder / f"{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # for each tag anew, as lmms-eval does
        return getattr(module, name)

    Loader.add_constructor("!function", function)
    (path,) = folder.glob("*.yaml")
    config = yaml.load(path.read_text(), Loader)
    return yaml.load((folder / config.pop("include")).read_text(), Loader) | config


def scored(predictions, task, data, out, *options):
    """The scores that `eval.run` writes."""
    arguments = ["--predictions", str(predictions), "--task", task, "--data", str(data), "--out", str(out), *options]
    assert run(arguments) == 0
    return json.loads((out / "scores.json").read_text())["scores"]


# --- lmms-eval -------------------------------------------------------------------------------------------------------


def test_lmms_eval_sees_each_region_and_scores_as_eval_run_does(tmp_path):
    data = records(tmp_path)
    folder = exported_to(tmp_path, data, "world")
    config = lmms_config(folder)
    assert config["task"] == folder.name == "dynrefer_world" and config["output_type"] == "generate_until"
    assert config["generation_kwargs"]["max_new_tokens"] == TASKS["world"].generation["max_new_tokens"]
    assert not {"task", "split", "doc_id", "repeats"} & set(config["metadata"])  # lmms-eval's own
    docs = [json.loads(line) for line in (folder / config["dataset_kwargs"]["data_files"]["test"]).open()]
    assert [doc["region_id"] for doc in docs] == [f"set-test-{n}" for n in range(4)]
    assert {doc[config["doc_to_text"]] for doc in docs} == {"Provide a short description for this region."}
    assert docs[1][config["doc_to_target"]] == [SAID[1], f"{SAID[1]} here"]
    (image,) = config["doc_to_visual"](docs[1])
    red = (np.asarray(image) == (255, 0, 0)).all(-1)
    assert image.size == (60, 40) and red[5, 11:30].all() and red[5:20, 11].all() and not red[7:19, 13:29].any()

    answers = ["a red cup here", "lamp", "", "a cup"]
    results = [config["process_results"](doc, [text]) for doc, text in zip(docs, answers, strict=True)]
    samples = tmp_path / "20260101_samples_dynrefer_world.jsonl"
    with samples.open("w") as file:  # what --log_samples leaves of a document
        for n, (text, result) in enumerate(zip(answers, results, strict=True)):
            line = {"doc_id": n, "target": "x", "filtered_resps": text, "doc_hash": "0", **result, "input": "x"}
            file.write(json.dumps(line) + "\n")
    expected = scored(samples, "world", data, tmp_path / "out")
    metrics = {row["metric"]: row["aggregation"] for row in config["metric_list"]}
    assert {name: score([r[name] for r in results]) for name, score in metrics.items()} == expected
    assert {"CIDEr", "METEOR", "ROUGE-L", "BLEU-4"} <= expected.keys() and 0 < expected["CIDEr"]


def test_a_region_that_was_not_asked_about_counts_as_wrong_unless_the_export_leaves_it_out(tmp_path, capsys):
    data = records(tmp_path)
    answers = tuple((f"set-test-{n}", SAID[n]) for n in range(2))
    whole = score_answers(exported_to(tmp_path, data), answers)
    assert "2 of 4 regions have no answer and count as wrong" in capsys.readouterr().err
    part = score_answers(exported_to(tmp_path / "part", data, "world", "lmms-eval", "--limit", "2"), answers)
    assert part["ROUGE-L"] == pytest.approx(1.0) and whole["ROUGE-L"] == pytest.approx(0.5)
    assert not capsys.readouterr().err
    path = tmp_path / "p.json"
    path.write_text(json.dumps(dict(answers)))
    assert scored(path, "world", data, tmp_path / "a") == whole
    assert scored(path, "world", data, tmp_path / "b", "--limit", "2") == part


def test_a_score_that_fails_does_not_cost_the_answers(tmp_path, capsys):
    folder = exported_to(tmp_path, records(tmp_path))
    cider = next(row["aggregation"] for row in lmms_config(folder)["metric_list"] if row["metric"] == "CIDEr")
    assert np.isnan(cider([["set-test-0", "a"], ["set-test-0", "b"]]))
    assert "2 answers about 1 regions" in capsys.readouterr().err


def test_records_that_changed_are_not_scored(tmp_path):
    data = records(tmp_path)
    folder = exported_to(tmp_path, data)
    records(tmp_path, 3)
    with pytest.raises(ValueError, match="has changed .* export the task again"):
        exported(folder).score({})


def test_a_task_of_another_version_is_not_scored(tmp_path, monkeypatch):
    folder = exported_to(tmp_path, records(tmp_path))
    monkeypatch.setitem(TASKS, "world", replace(TASKS["world"], version=99))
    with pytest.raises(ValueError, match="exported in version 1, now it is 99"):
        exported(folder).score({})


# --- which tasks, and how regions are shown --------------------------------------------------------------------------

SCORED = (
    "ovad",
    "coco-recognition",
    "lvis-boxes",
    "lvis-minival-boxes",
    "odinw-boxes",
)  # what a model says needs scores
ASKED = {"answers", "yes_no", "judged", "misses"}  # of answers to questions, or by a judge's rubric
TEXTS = [
    name
    for name, task in TASKS.items()
    if task.boxes == "given" and name not in SCORED and not ASKED.intersection(task.metrics)
]


@pytest.mark.parametrize("name", TEXTS)
def test_every_benchmark_of_texts_can_be_exported(tmp_path, name):
    folder = exported_to(tmp_path, records(tmp_path), name)
    config, benchmark = lmms_config(folder), exported(folder)
    assert config["metadata"]["benchmark"] == name and config["metadata"]["protocol"] == TASKS[name].protocol
    assert {row["metric"] for row in config["metric_list"]} == set(benchmark.scores)
    assert bool(benchmark.scores) == ("choices" not in TASKS[name].metrics)  # those need a judge
    assert all(callable(row["aggregation"]) for row in config["metric_list"])
    assert (benchmark.picture("set-test-1") == (255, 0, 0)).all(-1).any()


@pytest.mark.parametrize(
    "name", ["ovad", "lvis-boxes", "lvis-proposals", "densecap-vg1.2-detected", "coco-recognition", "gar-vqa"]
)
def test_benchmarks_of_more_than_texts_are_refused(name):
    with pytest.raises(ValueError, match=f"task {name} "):
        check_exportable(get_task(name))


def test_protocol_d_draws_what_lmms_eval_draws(tmp_path):
    data = records(tmp_path)
    benchmark = exported(exported_to(tmp_path, data, "refcocog-d-val"))
    red = (benchmark.picture("set-test-0") == (255, 0, 0)).all(-1)
    assert red.sum() == 2 * 21 + 2 * 14 and red[20, 30]  # a pixel wide, the far corner on the line


def test_a_mask_is_outlined_where_the_protocol_says_masks(tmp_path):
    benchmark = exported(exported_to(tmp_path, records(tmp_path), "lvis-similarity"))
    red = (benchmark.picture("set-test-0") == (255, 0, 0)).all(-1)
    assert red.any() and not red[5:25, 5].any() and not red[:, 10:].any()
    assert benchmark.ask(benchmark.records[0]).startswith("What is the category of this region?")


def test_a_closed_list_of_names_is_part_of_the_question(tmp_path):
    data = records(tmp_path)
    (data.parent / "categories.txt").write_text("cup\ndog\ntraffic light\n")
    benchmark = exported(exported_to(tmp_path, data, "coco-recognition-text"))
    assert benchmark.ask(benchmark.records[0]).endswith("Answer with one of: cup, dog, traffic light.")
    scores = benchmark.score({f"set-test-{n}": ("A cup.", "two dogs")[n % 2] for n in range(4)})
    assert scores["category accuracy"] == 0.5 and "COCO mAP" in benchmark.scores


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ("xyxy", "The region is the box [11, 5, 30, 20], in pixels of the image, which is 60 wide and 40 high."),
        ("xyxy-unit", "The region is the box [0.183, 0.125, 0.500, 0.500], in fractions of the image's width and"),
        ("xyxy-1000", "The region is the box [183, 125, 500, 500], in thousandths of the image's width and height."),
    ],
)
def test_a_region_can_be_named_by_its_coordinates(tmp_path, show, expected):
    folder = exported_to(tmp_path, records(tmp_path), "world", "lmms-eval", "--show", show, "--question", "What?")
    benchmark = exported(folder)
    assert benchmark.ask(benchmark.records[1]).startswith(f"What? {expected}")
    assert (benchmark.picture("set-test-1") == 90).all() and benchmark.name == f"dynrefer_world_{show}".replace(
        "-", "_"
    )


def test_the_command_names_mistakes(tmp_path, capsys):
    assert export(["--task", "ovad", "--format", "lmms-eval", "--out", "x", "--data", str(records(tmp_path))]) == 2
    assert "task ovad scores attributes, which are more than a text" in capsys.readouterr().err
    assert export(["--task", "vg-v3", "--format", "lmms-eval", "--out", "x"]) == 2
    assert "Did you mean 'vg-v" in capsys.readouterr().err


def test_the_documented_commands_are_accepted(monkeypatch):
    lines = (Path(__file__).parents[1] / "docs" / "harnesses.md").read_text().splitlines()
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m eval.export ")]
    asked = []
    monkeypatch.setattr("eval.export.export", asked.append)
    assert commands and all(export(command) == 0 for command in commands)
    for args in asked:
        check_exportable(get_task(args.task))


# --- VLMEvalKit ------------------------------------------------------------------------------------------------------


def write_xlsx(path, rows):
    """As XlsxWriter writes texts: shared strings, empty cells left out, "=..." as a formula, _x000D_ for a return."""

    def cell(place, text):
        if text.startswith("="):
            return f'<c r="{place}"><f>{text[1:]}</f><v>0</v></c>'
        strings.append(text.replace("&", "&amp;").replace("\r", "_x000D_"))
        return f'<c r="{place}" t="s"><v>{len(strings) - 1}</v></c>'

    strings, lines = [], []
    for number, row in enumerate(rows, 1):
        cells = [cell(f"{'ABCDEFG'[n]}{number}", text) for n, text in enumerate(row) if text]
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    items = "".join(f'<si><t xml:space="preserve">{text}</t></si>' for text in strings)
    sheet = f"<worksheet {space}><sheetData>{''.join(lines)}</sheetData></worksheet>"
    with ZipFile(path, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{items}</sst>")
        archive.writestr("xl/worksheets/sheet1.xml", sheet)


def write_answers(path, table, answers):
    """What VLMEvalKit writes in each of its formats: the benchmark's table with a column of predictions."""
    (columns, *rows) = list(csv.reader(table.open(newline=""), delimiter="\t"))
    columns, rows = [*columns, "prediction"], [[*row, text] for row, text in zip(rows, answers, strict=True)]
    if path.suffix == ".xlsx":
        write_xlsx(path, [columns, *rows])
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows([columns, *rows])


@pytest.mark.parametrize("kind", [".xlsx", ".tsv", ".json"])
def test_vlmevalkit_answers_are_read_as_they_were_given(tmp_path, kind):
    data = records(tmp_path, len(ODD))
    folder = exported_to(tmp_path, data, "world", "vlmevalkit")
    table = folder.parents[1] / f"{folder.name}.tsv"
    rows = list(csv.DictReader(table.open(newline=""), delimiter="\t"))
    assert list(rows[0]) == ["index", "region_id", "question", "answer", "image_path"] and rows[3]["index"] == "3"
    shown = np.asarray(Image.open(rows[3]["image_path"]))
    assert (shown == (255, 0, 0)).all(-1).any() and json.loads(rows[3]["answer"]) == [SAID[3], f"{SAID[3]} here"]
    assert len(list(folder.glob("*.png"))) == len(ODD)
    boxes = exported_to(tmp_path / "boxes", data, "world", "vlmevalkit", "--show", "xyxy")
    assert len(list(boxes.glob("*.png"))) == len(ODD) / 2  # images
    path = tmp_path / f"Model_dynrefer_world{kind}"
    write_answers(path, table, ODD)
    found = read_any(path, open_records(data)).results
    assert [found[f"set-test-{n}"].caption for n in range(len(ODD))] == ODD
    write_answers(path, table, [*ODD[:-1], "Failed to obtain answer via API."])
    assert read_any(path, open_records(data)).results[f"set-test-{len(ODD) - 1}"].caption == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "region_id\tprediction\nr\n", "row 2 has 1 cells for 2 columns"),
        ("a.tsv", "region_id\tregion_id\n", "each of its own"),
        ("a.tsv", "", "columns \\[\\]"),
        ("a.tsv", 'region_id\tprediction\nr\t"a', "not a .tsv table"),
        ("a.xlsx", "PK", "not a .xlsx table"),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        list(read_table(tmp_path / name))


@pytest.fixture
def vlmevalkit(monkeypatch, tmp_path):
    """Our data set class: over VLMEvalKit where it is installed, else over what it uses of it."""
    monkeypatch.setenv("LMUData", str(tmp_path / "vlmevalkit"))
    if importlib.util.find_spec("vlmeval") is None:
        packages = {name: types.ModuleType(name) for name in ("vlmeval", "vlmeval.dataset", "vlmeval.smp")}
        base = types.ModuleType("vlmeval.dataset.image_base")
        base.ImageBaseDataset = object
        packages["vlmeval.smp"].LMUDataRoot = lambda: str(tmp_path / "vlmevalkit")
        packages["vlmeval"].dataset = packages["vlmeval.dataset"]
        packages["vlmeval.dataset"].DATASET_CLASSES, packages["vlmeval.dataset"].SUPPORTED_DATASETS = [], []
        for name, module in (packages | {"vlmeval.dataset.image_base": base}).items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "eval.harness.vlmevalkit", raising=False)
    yield importlib.import_module("eval.harness.vlmevalkit")
    sys.modules.pop("eval.harness.vlmevalkit", None)


def test_vlmevalkit_scores_as_eval_run_does(tmp_path, vlmevalkit):
    data = records(tmp_path)
    folder = exported_to(tmp_path, data, "world", "vlmevalkit")
    kind = vlmevalkit.RegionDataset
    assert kind.supported_datasets() == ["dynrefer_world"]
    vlmevalkit.register()
    assert sys.modules["vlmeval.dataset"].DATASET_CLASSES[0] is kind
    path = tmp_path / "Model_dynrefer_world.tsv"
    write_answers(path, folder.parents[1] / f"{folder.name}.tsv", ["a red cup here", "lamp", "", "a cup"])
    scores = kind.evaluate(str(path))
    assert scores == scored(path, "world", data, tmp_path / "out")
    assert json.loads((tmp_path / "Model_dynrefer_world_score.json").read_text()) == scores
    assert kind.report_primary_metric(scores) == {"CIDEr": scores["CIDEr"]} and not kind.report_primary_metric({})
    with pytest.raises(ValueError, match="ends with no exported benchmark"):
        kind.evaluate(str(tmp_path / "Model_MMBench.tsv"))


# --- the harnesses themselves ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lmms_eval_runs_an_exported_benchmark(tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; docs/harnesses.md")
    data = records(tmp_path)
    folder = exported_to(tmp_path, data)
    command = [sys.executable, "-m", "lmms_eval", "--model", "dummy", "--model_args", "response=a red cup"]
    command += ["--tasks", "dynrefer_world", "--include_path", str(folder.parent), "--log_samples"]
    done = subprocess.run([*command, "--output_path", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    (samples,) = (tmp_path / "out").rglob("*_samples_dynrefer_world.jsonl")
    found = json.loads(results.read_text())["results"]["dynrefer_world"]
    expected = scored(samples, "world", data, tmp_path / "scored")
    assert {name: found[f"{name},none"] for name in expected} == expected and expected["CIDEr"] > 0


MODEL = """
import sys
from vlmeval import config
from vlmeval.vlm.base import BaseModel

class Dummy(BaseModel):
    def generate_inner(self, message, dataset=None):
        assert [part["type"] for part in message] == ["image", "text"], message
        return "a red cup"

config.supported_VLM["Dummy"] = Dummy
from eval.harness import vlmevalkit
vlmevalkit.register()
from vlmeval.run import main
main()
"""


@pytest.mark.slow
def test_vlmevalkit_runs_an_exported_benchmark(tmp_path, monkeypatch):
    pytest.importorskip("vlmeval", reason="VLMEvalKit is not installed; docs/harnesses.md")
    monkeypatch.setenv("LMUData", str(tmp_path / "vlmevalkit"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    data = records(tmp_path)
    exported_to(tmp_path, data, "world", "vlmevalkit")
    command = [sys.executable, "-c", MODEL, "--data", "dynrefer_world", "--model", "Dummy", "--work-dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (answers,) = (tmp_path / "out").rglob("Dummy_dynrefer_world.xlsx")
    found = json.loads(answers.with_name("Dummy_dynrefer_world_score.json").read_text())
    assert found == scored(answers, "world", data, tmp_path / "scored") and found["CIDEr"] > 0
