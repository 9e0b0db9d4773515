"""DLC-Bench from its files to its scores: annotations.json, class_names.json and qa.json in the released layout."""

import base64
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.dlc_bench import DLC_BENCH, NUM_QUESTIONS, main
from dynrefer.data import open_records
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.masks import mask_to_rle
from eval import run as eval_run
from eval.benchmarks import get_task
from eval.metrics.judge import read_questions, shown_region
from eval.scoring import score

HW = (60, 80)


def mask(x1, y1, x2, y2):
    pixels = np.zeros(HW, bool)
    pixels[y1:y2, x1:x2] = True
    return mask_to_rle(pixels)


DOCUMENT = {
    "images": [
        {"id": number, "file_name": f"objects365_v2_{number:08d}.jpg", "height": HW[0], "width": HW[1]}
        for number in (900, 901)
    ],
    "annotations": [
        {"id": 71, "image_id": 900, "category_id": 5, "bbox": [10, 20, 30, 10], "area": 300, "iscrowd": 0},
        {"id": 72, "image_id": 900, "category_id": 5, "bbox": [50, 5, 20, 40], "area": 800, "iscrowd": 1},
        {"id": 83, "image_id": 901, "category_id": 9, "bbox": [0, 0, 80, 60], "area": 4800, "iscrowd": 0},
    ],
    "categories": [{"id": 5, "name": "Cup"}, {"id": 9, "name": "Street Lights"}],
}
for entry, box in zip(DOCUMENT["annotations"], [(10, 20, 40, 30), (50, 5, 70, 45), (0, 0, 80, 60)], strict=True):
    entry["segmentation"] = mask(*box)
CLASSES = {"71": "cup", "72": "mug", "83": "street lights"}
COLOUR = {
    "question": "Which colour is named?",
    "choices": [["Red", 1], ["Dark", 0.5], ["None is named", 0], ["Blue", -1]],
    "type": "positive",
}
HANDLE = {"question": "A handle?", "choices": [["It has none", 1], ["Not said", 0], ["It has one", -1]]}
HANDLE["type"] = "negative"
QA = {"71": [COLOUR, COLOUR, HANDLE], "72": [COLOUR, HANDLE], "83": [COLOUR]}


@pytest.fixture
def folder(tmp_path):
    for image in DOCUMENT["images"]:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (HW[1], HW[0])).save(path)
    return tmp_path


def run(folder, *options, document=DOCUMENT, qa=QA, classes=CLASSES, images="images", subset=True):
    for name, content in (("annotations", document), ("qa", qa), ("class_names", classes)):
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    files = {"--annotations": "annotations.json", "--images": images, "--out": "out/test.jsonl"}
    words = [word for option, file in files.items() if file for word in (option, str(folder / file))]
    return main([*words, *(["--subset"] if subset else []), *options])


def test_regions_are_masks_with_the_benchmarks_names(folder, capsys):
    assert run(folder, images=".") == 0
    cup, mug, lights = open_records(folder / "out" / "test.jsonl")
    assert [r.id for r in (cup, mug, lights)] == ["dlc-bench-test-71", "dlc-bench-test-72", "dlc-bench-test-83"]
    assert cup.category == "cup" and mug.category == "mug" and lights.category == "street lights"
    assert cup.box == (10, 20, 40, 30) and cup.to_mask().sum() == 300 and mug.mask is not None  # a crowd, too
    assert cup.image == "../images/objects365_v2_00000900.jpg" and cup.split == "test" and "BY-NC-SA" in cup.licence
    assert not check_file(folder / "out" / "test.jsonl").problems
    out = capsys.readouterr().out
    assert "3  records" in out and "4  positive questions" in out and "2  negative questions" in out


def test_the_question_what_it_is_comes_first(folder):
    assert run(folder) == 0
    questions = read_questions(folder / "out" / "questions.json")
    assert [question.kind for question in questions["dlc-bench-test-71"]] == [
        "recognition",
        "positive",
        "positive",
        "negative",
    ]
    recognition, colour = questions["dlc-bench-test-83"]
    assert "street lights" in recognition.text and recognition.choices == [("Yes", 1.0), ("No", 0.0)]
    assert colour.text == COLOUR["question"] and colour.choices[1] == ("Dark", 0.5)


def test_another_download_is_refused(folder, capsys):
    assert DLC_BENCH.published["test"] == {"images": 77, "annotations": 100} and sum(NUM_QUESTIONS.values()) == 892
    assert run(folder, subset=False) == 2
    assert "2 images, published 77" in capsys.readouterr().err
    for change, message in (
        ({"qa": {**QA, "72": []}}, "qa.json: no questions about annotation 72"),
        ({"qa": {**QA, "72": [{**COLOUR, "type": "other"}]}}, "annotation 72: {'question': 'Which colour"),
        ({"qa": {**QA, "72": [{**COLOUR, "type": "negative"}]}}, "points of negative choices are 1, 0, -1"),
        ({"qa": {**QA, "72": [{"question": "?"}]}}, "KeyError: 'type'"),
        ({"qa": "[]"}, "list instead of an object"),
        ({"qa": '{"71": ['}, "download it again"),
        ({"classes": {"71": "cup", "72": "mug"}}, "no class name for annotation 83"),
        ({"document": {**DOCUMENT, "annotations": [{**DOCUMENT["annotations"][0], "segmentation": []}]}}, "no mask"),
        ({"document": {**DOCUMENT, "categories": []}}, "nothing at 'categories.item'"),
        ({"images": "nowhere"}, "no such folder"),
    ):
        assert run(folder, **change) == 2
        assert message in capsys.readouterr().err
    (folder / "images" / "objects365_v2_00000901.jpg").unlink()
    assert run(folder) == 0  # a part
    assert len(open_records(folder / "out" / "test.jsonl")) == 2
    assert "1  images left out, not in the folder" in capsys.readouterr().out


def test_without_the_pictures_nothing_is_written(folder, capsys, monkeypatch):
    monkeypatch.setattr("data_prep.dlc_bench.DLC_BENCH", type(DLC_BENCH)(DLC_BENCH.source, "", names=DLC_BENCH.names))
    (folder / "images" / "objects365_v2_00000901.jpg").unlink()
    assert run(folder, subset=False) == 2
    assert "image 'objects365_v2_00000901.jpg' is not in" in capsys.readouterr().err
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


class Server(BaseHTTPRequestHandler):
    """A judge that believes what the description says: it picks the choice whose first word it finds there."""

    asked: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        pictures = []
        if not isinstance(text, str):
            urls = [part["image_url"]["url"] for part in text if part["type"] == "image_url"]
            pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
            text = text[-1]["text"]
        self.asked.append((body["model"], body["temperature"], pictures))
        caption, _, question = text.partition("Description:\n")[2].partition("\n\nQuestion: ")
        lines = question.splitlines()[1:]
        if "Yes" in lines[0]:
            answer = "A. Yes" if any(name in question for name in caption.split()[1:]) else "No"
        else:
            answer = next((line for line in lines if line[3:].split()[0].lower() in caption), lines[-2])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("task", "name", "images"),
    [
        ("dlc-bench", "dam.json", "images"),
        ("dlc-bench", "dam.json", None),
        ("dlc-bench", "answers.jsonl", "images"),
        ("dlc-bench-shown", "dam.json", "images"),
    ],
)
def test_released_predictions_are_judged_to_the_end(folder, task, name, images, capsys):
    """DAM's {annotation id: text}, and PixelRefer's lines before they are brought to that form; without pictures too,
    where the judge reads texts alone."""
    if images is None:
        shutil.rmtree(folder / "images")
    assert run(folder, images=images) == 0
    assert ("2  images not looked at, since --images names no folder" in capsys.readouterr().out) == (images is None)
    assert next(iter(open_records(folder / "out" / "test.jsonl"))).image == "../images/objects365_v2_00000900.jpg"
    captions = {"71": "a red cup", "72": "a red plate", "83": "the street lights"}
    lines = [{"id": key, "image": "x.jpg", "pred": text} for key, text in captions.items()]
    content = (
        json.dumps({**captions, "query": "Describe it."}) if name == "dam.json" else "\n".join(map(json.dumps, lines))
    )
    (folder / name).write_text(content)
    Server.asked = []
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["--task", task, "--data", folder / "out" / "test.jsonl", "--predictions", folder / name]
        words += ["--annotations", folder / "out" / "questions.json", "--out", folder / "scores"]
        judge = ["--judge", f"http://127.0.0.1:{server.server_port}/v1", "--judge-model", "stub"]
        assert eval_run.main([*map(str, words), *judge]) == 0
        server.shutdown()
    content = json.loads((folder / "scores" / "scores.json").read_text())
    # 71: red, red; 72: red, but another thing; 83: no colour is named
    assert content["scores"]["choice score/positive"] == pytest.approx((1 + 0 + 0) / 3)
    assert content["scores"]["choice score/negative"] == 0
    assert content["scores"]["choice score"] == pytest.approx(1 / 6)
    assert content["scores"]["choice accuracy/recognition"] == pytest.approx(2 / 3)
    assert content["settings"]["judge"] == "stub" and content["regions_without_prediction"] == 0
    assert {(model, temperature) for model, temperature, _ in Server.asked} == {("stub", 0)} and len(Server.asked) == 9
    shown = [[picture.shape for picture in pictures] for *_, pictures in Server.asked]
    if task == "dlc-bench":
        assert shown == [[]] * 9
    else:
        assert [(60, 80, 3), (60, 80)] in shown  # regions are asked about at the same time, in any order
        assert any(pictures[1].sum() == 255 * 300 for *_, pictures in Server.asked)


def test_the_task_reads_what_the_converter_writes():
    task = get_task("dlc-bench")
    assert task.num_regions == DLC_BENCH.published["test"]["annotations"] and task.split == "test"
    assert (task.data, task.annotations) == ("data/dlc_bench/test.jsonl", "data/dlc_bench/questions.json")
    assert get_task("dlc-bench-shown").judge_sees == "region"


def test_a_region_is_shown_with_three_times_its_sides():
    image = np.arange(300 * 400 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 400, 3)
    mask = np.zeros((300, 400), bool)
    mask[100:180, 150:250] = True  # 100 x 80 pixels
    shown, shown_mask = shown_region(image, mask)
    assert shown.shape == (240, 300, 3) and (shown == image[20:260, 50:350]).all()
    assert shown_mask.shape == (240, 300) and (shown_mask == 255 * mask[20:260, 50:350]).all()
    small = np.zeros((300, 400), bool)
    small[0:4, 200:210] = True  # of 56 x 56 pixels, at the upper edge
    shown, _ = shown_region(image, small)
    assert shown.shape == (86, 168, 3) and (shown == image[0:86, 121:289]).all()


def test_a_judge_that_sees_regions_needs_their_images(tmp_path):
    region = Region("a", "a.jpg", HW, (0, 0, 10, 10))
    entry = {"text": COLOUR["question"], "choices": COLOUR["choices"]}
    (tmp_path / "questions.json").write_text(json.dumps({"a": [entry]}))
    results = {"a": RegionResult("a", list(region.box), caption="red")}
    options = {"judge": lambda text, pictures: "Red", "annotations": str(tmp_path / "questions.json")}
    with pytest.raises(ValueError, match="the judge sees the regions; score records of a file"):
        score(get_task("dlc-bench-shown"), [region], results, **options)
    write_records(tmp_path / "r.jsonl", [region])
    with pytest.raises(ValueError, match="region a has no mask to show"):
        score(get_task("dlc-bench-shown"), open_records(tmp_path / "r.jsonl"), results, **options)
