"""What stands behind the page of `dynrefer demo`: files and regions that are checked, controls, cards, downloads."""

import json
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import omni_rgpt, tiny_dynrefer
from tests.demo_browser import write_clip

gr = pytest.importorskip("gradio")
from dynrefer.cli import main  # noqa: E402
from dynrefer.data.records import RegionResult  # noqa: E402
from dynrefer.demo import page  # noqa: E402
from dynrefer.demo.asking import Answer, Asker, read_regions  # noqa: E402
from dynrefer.demo.cards import cards  # noqa: E402
from dynrefer.demo.controls import OWN, controls, given  # noqa: E402
from dynrefer.demo.downloads import write_files  # noqa: E402
from dynrefer.demo.opened import Opened, open_uploaded, prepare  # noqa: E402
from dynrefer.masks import mask_to_rle, to_mask  # noqa: E402
from dynrefer.models import FAMILIES  # noqa: E402
from dynrefer.regions import regions_of  # noqa: E402
from dynrefer.results import Results  # noqa: E402
from dynrefer.serve.client_options import open_names  # noqa: E402

HW = (80, 100)
PIXELS = tiny_dynrefer.picture(1, *HW)
BOX = {"box": [10, 10, 60, 50]}


@pytest.fixture(scope="module")
def model():
    return tiny_dynrefer.model()[0]


@pytest.fixture
def photo(tmp_path):
    """An uploaded picture, as the page names it."""
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    return {"path": str(tmp_path / "photo.png"), "name": "photo.png"}


def opened(**clip):
    return Opened("photo.png", PIXELS, **clip)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_options_are_its_controls_and_untouched_ones_change_nothing(family):
    options = FAMILIES[family].options()
    with gr.Blocks():
        made = controls(options, "A")
    assert sorted(one.name for one in made) == sorted(open_names(type(options)))
    assert all(one.component.info for one in made), "every option is explained"
    assert given(made, [one.component.value for one in made], options) == {}


def test_what_is_typed_is_what_the_option_says():
    options = FAMILIES["dynrefer"].options(num_beams=4)
    with gr.Blocks():
        made = {one.name: one for one in controls(options, "A")}
    assert made["num_beams"].component.value == "4" and made["num_beams"].value(" 2 ") == 2
    assert made["top_p"].value("0,5") == 0.5 and made["top_p"].value("") is None
    assert made["do_sample"].value("yes") is True and made["do_sample"].value(OWN) is None
    assert made["categories"].value("red cup, dog\nlamp,") == ["red cup", "dog", "lamp"]
    assert made["control"].value("''") == "" and made["control"].value("") is None
    assert "phash" in [value for value, _ in made["view_strategy"].component.choices]
    with pytest.raises(ValueError, match="^num_beams: '2.5'; expected a whole number, or nothing for the model's own$"):
        made["num_beams"].value("2.5")


# --- what comes from the page -----------------------------------------------------------------------------------------


def test_files_from_elsewhere_and_no_pictures_are_a_line_each(tmp_path, photo):
    secret = tmp_path / "secret.png"
    Image.fromarray(PIXELS).save(secret)
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    for path in (
        str(secret),
        str(folder / ".." / "secret.png"),
        str(folder / "link.png"),
        "/etc/passwd",
        "a\0b",
        str(folder),
    ):
        assert list(prepare({"path": path, "name": "a.png"}, folder, False)) == ["error"]
    for record in (None, 5, {}, {"path": 5}):
        assert prepare(record, folder, False) == {"error": "no picture; open, paste or take one first"}
    (folder / "text.png").write_text("no picture")
    (folder / "bad.mp4").write_text("no clip")
    Image.fromarray(PIXELS).save(folder / "half.png")
    (folder / "half.png").write_bytes((folder / "half.png").read_bytes()[:200])
    for name in ("text.png", "bad.mp4", "half.png"):
        answer = prepare({"path": str(folder / name), "name": name}, folder, True)
        assert answer["error"].startswith(f"{name}: ") and str(folder) not in answer["error"]
        assert "\n" not in answer["error"]


def test_a_huge_picture_is_refused_by_its_header(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    answer = prepare({"path": str(tmp_path / "huge.png"), "name": "huge.png"}, tmp_path, False)
    assert answer == {"error": "huge.png: 10,000 x 10,000 are 100,000,000 pixels; at most 50,000,000, make it smaller"}


def test_a_picture_that_browsers_do_not_show_is_shown_as_png(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "scan.tiff")
    answer = prepare({"path": str(tmp_path / "scan.tiff"), "name": "scan.tiff"}, tmp_path, False)
    assert (answer["width"], answer["height"]) == (100, 80) and answer["shown"].endswith("-shown.png")
    assert (np.asarray(Image.open(answer["shown"])) == PIXELS).all()


def test_a_clip_has_frames_where_a_model_takes_clips(tmp_path):
    record = {"path": str(write_clip(tmp_path / "clip.mp4")), "name": "clip.mp4"}
    assert "this model looks at pictures" in prepare(record, tmp_path, False)["error"]
    answer = prepare({**record, "frame": 7}, tmp_path, True)
    assert (answer["frames"], answer["rate"], answer["width"], answer["height"]) == (12, 10.0, 128, 96)
    red = (
        np.asarray(Image.open(answer["shown"]))[:, :, 0].astype(int) - np.asarray(Image.open(answer["shown"]))[:, :, 1]
    )
    assert abs(np.flatnonzero(red[35] > 90)[0] - (4 + 4 * 7)) <= 2
    for frame in (12, -1, "3", True):
        assert "expected 0 to 11" in prepare({**record, "frame": frame}, tmp_path, True)["error"]


def test_regions_are_checked_and_the_one_at_fault_is_named():
    small = np.zeros((40, 50), bool)
    small[10:20, 5:15] = True
    regions, prompts = read_regions([BOX, {"mask": mask_to_rle(small)}], HW)
    assert regions[0].box == (10, 10, 60, 50) and regions[1].box == (10, 20, 30, 40)
    assert to_mask(regions[1].mask, HW).sum() == 20 * 20 and [prompt.mask for prompt in prompts] == [False, True]
    empty = {"size": [80, 100], "counts": [8000]}
    for record, text in [
        ({"box": [1, 2, 3]}, "expected a box of four numbers"),
        ({"box": [60, 10, 10, 50]}, "x1 < x2"),
        ({"box": ["a", 0, 5, 5]}, "number"),
        ({"box": [1e9, 0, 2e9, 5]}, "outside"),
        ({"mask": 5}, "run lengths"),
        ({"mask": {"size": [9999, 100], "counts": [1]}}, "larger than the picture"),
        ({"mask": empty}, "empty"),
        ("box", "expected a box"),
        (None, "expected a box"),
    ]:
        with pytest.raises(ValueError, match="^region 1: ") as error:
            read_regions([BOX, record], HW)
        assert text in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^1,001 regions; at most 1,000 at once, remove some$"):
        read_regions([BOX] * 1001, HW)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_predictors_and_its_files_are_the_librarys(model, tmp_path):
    import dynrefer

    mask = np.zeros(HW, bool)
    mask[20:60, 30:70] = True
    records = [BOX, {"mask": mask_to_rle(mask)}]
    answer = Asker(model, "tiny", model.Options())(opened(), *read_regions(records, HW), {"control": "red"})
    expected = dynrefer.RegionPredictor(model)(PIXELS, boxes=[BOX["box"], [30, 20, 70, 60]], control="red")
    assert [one.caption for one in answer.results] == [one.caption for one in expected]
    paths = write_files(answer, opened(), tmp_path)
    assert [Path(path).name for path in paths] == ["photo.json", "photo.coco.json", "photo.png"]
    content = json.loads(Path(paths[0]).read_text("utf-8"))
    assert content["model"] == "tiny" and content["options"]["control"] == "red" and content["image"] == "photo.png"
    assert [one["id"] for one in content["regions"]] == ["0", "1"]
    coco = json.loads(Path(paths[1]).read_text("utf-8"))
    assert coco["images"][0]["file_name"] == "photo.png" and coco["annotations"][1]["area"] == 40 * 40
    assert coco["annotations"][0]["caption"] == answer.results[0].caption


def test_a_clip_goes_from_the_regions_frame_on_and_a_question_needs_no_region(tmp_path):
    model = omni_rgpt.shared("llava")
    asker = Asker(model, "omni", model.Options())
    record = {"path": str(write_clip(tmp_path / "clip.mp4")), "name": "clip.mp4", "frame": 3}
    clip = open_uploaded(record, tmp_path, True)
    regions, prompts = read_regions([{"box": [16, 20, 46, 50]}], clip.image_hw)
    answer = asker(clip, regions, prompts, {"question": "What is <region>?", "heat": True})
    assert answer.results[0].extra["frames"] == [3, 6, 8, 11]
    shown = cards(answer, clip)
    assert [f"frame {n}<" in shown for n in (3, 6, 8, 11)] == [True] * 4
    (whole,) = asker(clip, [], [], {"question": "What happens?"}).results
    assert whole.box == [0, 0, 128, 96]
    with pytest.raises(ValueError, match="^no region; draw a box"):
        asker(clip, [], [], {})


def test_cards_show_what_the_model_looked_at_and_nothing_of_a_text_is_markup(model):
    regions = regions_of(HW, [BOX["box"], [0, 0, 20, 20]])
    results = [
        RegionResult("0", BOX["box"], "<script>alert(1)</script>", 0.5, extra={"scales": [0.0, 0.25]}),
        RegionResult(
            "1", [0, 0, 20, 20], category={"name": "cup", "score": 0.9}, categories=[{"name": "cup", "score": 0.9}]
        ),
    ]
    results[1].extra["attention"] = [[0.0, 1.0], [0.5, 0.2]]
    page = cards(Answer("tiny", model.Options(), Results(results, regions, HW)), opened(), "<b>", {"control": "<i>"})
    assert (
        "<script>" not in page
        and "&lt;script&gt;" in page
        and "<b>" not in page.replace("<b style", "")
        and "<i>" not in page.replace("<i><b", "")
    )
    assert "t = 0.25" in page and "what the region looks at" in page and page.count("data:image/jpeg") == 3


# --- the page's one call ----------------------------------------------------------------------------------------------


class Broken:
    """A model that fails, after `check_options` has let the options pass."""

    def __init__(self, model, error):
        self.error, self.model = error, model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def predict(self, batch, options):
        raise self.error


@pytest.fixture
def describe(model, tmp_path, monkeypatch):
    """A function: what the page sends, perhaps with an error of the model -> its outputs."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def describe(drawn, error=None):
        asker = Asker(model if error is None else Broken(model, error), "tiny", model.Options())
        with gr.Blocks():
            sides = [page.Side(asker, True), page.Side(asker, False)]
            for side, letter in zip(sides, "AB", strict=True):
                side.show_controls(letter, None)
        values = [one.component.value for side in sides for one in side.controls]
        return page._describe(sides, drawn, False, *values)

    return describe


def test_whatever_the_page_sends_is_an_answer_or_a_line(describe, photo, caplog):
    error, drawing, html, *_ = describe({"picture": photo, "regions": [BOX]})
    assert error == "" and html.count("<article") == 1
    for drawn in (None, 5, {}, {"picture": 5}, {"picture": photo, "regions": 5}, {"picture": photo, "regions": [None]}):
        error, *others = describe(drawn)
        assert error.startswith('<p class="dr-error" role="alert">') and error.count("\n") == 0
        assert "Traceback" not in error and not caplog.records
    error = describe({"picture": photo, "regions": [BOX]}, RuntimeError("out of <memory>\nmore"))[0]
    assert error == '<p class="dr-error" role="alert">The model failed: out of &lt;memory&gt;</p>'
    assert "the model failed" in caplog.text


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_command_that_cannot_work_says_why_before_it_loads(capsys, tmp_path, monkeypatch):
    model, processor = tiny_dynrefer.model()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr("dynrefer.load", lambda *args, **kwargs: pytest.fail("loaded"))
    capsys.readouterr()
    name = str(tmp_path / "tiny")
    for arguments, text in [
        (["--model", name] * 3, "3 models; the page compares at most two, give --model once or twice"),
        (["--model", name, "--port", "99999"], "port 99999: expected 0 to 65535"),
        (["num_beems=2", "--model", name], "unknown option 'num_beems'. Did you mean 'num_beams'"),
        (["--model", str(tmp_path / "none")], "none"),
    ]:
        assert main(["demo", *arguments]) == 2
        line = capsys.readouterr().err
        assert text in line and line.count("\n") == 1


def test_the_command_starts_the_page_and_says_where(capsys, tmp_path, monkeypatch, request):
    import urllib.request

    model, processor = tiny_dynrefer.model()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "tiny")
    found = {}

    def look(address):
        found["page"] = urllib.request.urlopen(address).read().decode()
        found["out"] = capsys.readouterr().out
        signal.raise_signal(signal.SIGINT)

    ready = page.Server.__init__

    def prepared(self, app, sock, tell):
        def told(address):
            tell(address)
            threading.Thread(target=look, args=(address,)).start()

        ready(self, app, sock, told)

    monkeypatch.setattr(page.Server, "__init__", prepared)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert main(["demo", "--model", str(tmp_path / "tiny"), "--port", "0"]) == 130
    assert "listening on http://127.0.0.1:" in found["out"]
    assert 'content="dynrefer"' in found["page"]
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?://(?!127\.0\.0\.1)", found["page"])
