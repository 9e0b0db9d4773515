"""The page of `dynrefer demo` in a real browser: mouse, finger and keyboard draw, and what the model says is read."""

import json
import os
import queue
import socket
import tempfile
import threading

import numpy as np
import pytest
from PIL import Image

from tests import omni_rgpt, tiny_dynrefer
from tests.demo_browser import PATIENCE, page, write_clip

pytest.importorskip("gradio")
from dynrefer.demo.asking import Asker  # noqa: E402
from dynrefer.demo.page import Server, application, build  # noqa: E402
from dynrefer.serve.process import bind  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HW = (80, 100)
BOXES = [(10.0, 10.0, 60.0, 50.0), (62.0, 44.0, 94.0, 74.0)]


@pytest.fixture(scope="module")
def model():
    return tiny_dynrefer.model()[0]


@pytest.fixture(scope="module")
def photo():
    """Path of a picture of HW."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "photo.png")
        Image.fromarray(tiny_dynrefer.picture(1, *HW)).save(path)
        yield path


@pytest.fixture(scope="module")
def connections():
    """Hosts that this process has connected to."""
    found, connect = set(), socket.socket.connect

    def noted(self, address):
        found.add(address[0] if isinstance(address, tuple) else "")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield found


@pytest.fixture(scope="module")
def served(model, connections):
    """Addresses of the page of one model, and of that of two, the second one for clips."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", folder)
        clips = omni_rgpt.shared("llava")
        askers = [Asker(model, "tiny", model.Options()), Asker(clips, "clips", clips.Options())]
        addresses, servers, found = queue.Queue(), [], []
        for some in (askers[:1], askers):  # one after the other, so that the addresses are in their order
            app = application(build(some), folder)
            servers.append(Server(app, bind("127.0.0.1", 0), addresses.put))
            threading.Thread(target=servers[-1].run, daemon=True).start()
            found.append(addresses.get(timeout=PATIENCE))
        yield found
        for server in servers:
            server.should_exit = True


def listed(tab):
    """What the list of regions says: "box 10, 10, 60, 50"."""
    return tab.run(
        "return [...document.querySelectorAll('.dr-list [data-pick]')].map((one) => one.lastChild.textContent)"
    )


def near(text, box, pixels):
    """Whether the box in a text is this one, a few pixels off."""
    return np.abs(np.array(text.split(" ", 1)[1].split(", "), float) - box).max() <= pixels


def test_a_box_drawn_with_the_mouse_is_described_and_nothing_leaves_the_machine(served, model, photo, connections):
    import dynrefer

    with page(served[0]) as tab:
        assert tab.open(photo) == "photo.png, 100 x 80. Draw a box around an object."
        for box in BOXES:
            tab.drag(box, HW)
        drawn = tab.wait(lambda: len(tab.all(".dr-list li")) == 2 and listed(tab))
        assert all(near(text, box, 1.5) for text, box in zip(drawn, BOXES, strict=True))
        captions = tab.describe()
        regions = json.loads(tab.download("JSON").read_text("utf-8"))["regions"]
        expected = dynrefer.RegionPredictor(model)(photo, boxes=[one["box"] for one in regions])
        assert captions == [f"{n} {result.caption}" for n, result in enumerate(expected)]
        assert tab.texts(".dr-views figcaption") == ["t = 0", "t = 0.4", "t = 1"] * 2
        widths = tab.run("return [...document.querySelectorAll('.dr-views img')].map((one) => one.naturalWidth)")
        assert all(widths)
        coco = json.loads(tab.download("COCO").read_text("utf-8"))
        assert [one["caption"] for one in coco["annotations"]] == [result.caption for result in expected]
        assert Image.open(tab.download("Picture")).size[0] >= 800
        assert not tab.foreign_hosts() and not tab.errors()
    assert connections <= {"127.0.0.1", "::1", "localhost", ""}


def test_a_finger_draws_on_a_phone_and_answers_come_before_the_settings(served, photo):
    with page(served[0], (390, 844), touch=True) as tab:
        tab.open(photo)
        tab.drag(BOXES[0], HW, finger=True)
        tab.wait(lambda: tab.all(".dr-list li"))
        assert len(tab.describe()) == 1
        assert tab.run("return document.documentElement.scrollWidth <= window.innerWidth")
        tops = [tab.one(name).rect["y"] for name in ("#dr-describe", ".dr-cards", "#dr-compare", ".dr-settings")]
        assert tops == sorted(tops)
        sides = tab.run(
            "return [...document.querySelectorAll('.dr button')].map((b) => b.offsetHeight).filter(Boolean)"
        )
        assert min(sides) >= 38  # a finger's width


def test_dark_mode_is_readable(served, photo):
    script = """
        const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0) / 3;
        const style = (name) => getComputedStyle(document.querySelector(name));
        return [light(style('.dr-card').backgroundColor), light(style('.dr-card h3').color)];
    """
    for dark in (False, True):
        with page(served[0], dark=dark) as tab:
            tab.open(photo)
            tab.drag(BOXES[0], HW)
            tab.describe()
            ground, ink = tab.run(script)
            assert (ground < 60 and ink > 200) if dark else (ground > 200 and ink < 80)


def test_the_keyboard_alone_is_enough(served, photo):
    from selenium.webdriver.common.keys import Keys

    with page(served[0]) as tab:
        tab.open(photo)
        tab.one("input[name=x1]").send_keys("10")
        tab.press(Keys.TAB, "10", Keys.TAB, "60", Keys.TAB, "50", Keys.ENTER)
        assert tab.wait(lambda: listed(tab)) == ["box 10, 10, 60, 50"]
        tab.run("document.querySelector('.dr-stage').focus()")
        tab.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        assert listed(tab) == ["box 12, 11, 62, 51"]
        tab.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ARROW_RIGHT)
        assert listed(tab) == ["box 12, 11, 63, 51"]
        tab.driver.switch_to.active_element.send_keys(Keys.CONTROL, "z")
        assert listed(tab) == ["box 12, 11, 62, 51"]
        tab.driver.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
        assert len(tab.answers()) == 1
        tab.run("document.querySelector('.dr-stage').focus()")
        tab.press(Keys.DELETE)
        assert not tab.all(".dr-list li")
        assert tab.all(".dr-card.dr-old")  # the answer is about what was drawn then
        tab.one("input[name=x1]").send_keys("ten", Keys.ENTER)
        assert tab.one(".dr-note").text == 'x1: "ten" is no number; give four, in pixels'


def test_paint_is_a_mask_and_the_eraser_takes_it_away(served, photo):
    with page(served[0]) as tab:
        tab.open(photo)
        tab.tool("brush")
        tab.drag((20, 20, 50, 20), HW)
        painted = tab.wait(lambda: listed(tab))[0]
        assert painted.startswith("mask ") and near(painted, (17.5, 17.5, 52.5, 22.5), 2)
        tab.drag((80, 60, 80, 60), HW)  # a dot of the same mask
        tab.tool("eraser")
        tab.drag((18, 20, 34, 20), HW)
        assert len(tab.describe()) == 1
        (region,) = json.loads(tab.download("COCO").read_text("utf-8"))["annotations"]
        assert region["segmentation"]["size"] == list(HW) and 60 < region["area"] < 180
        assert near("box " + ", ".join(map(str, region["bbox"][:2])) + ", 0, 0", (36.5, 17.5, 0, 0), 2)


def test_two_settings_of_a_model_stand_side_by_side(served, photo):
    with page(served[0]) as tab:
        tab.open(photo)
        tab.drag(BOXES[0], HW)
        tab.click("#dr-compare input")
        fields = "#dr-B-control textarea, #dr-B-control input"
        second = tab.wait(lambda: [one for one in tab.all(fields) if one.is_displayed()])
        second[0].send_keys("red,dog")
        assert len(tab.describe()) == 2
        assert tab.texts(".dr-cards h2") == ["A", "B control = red,dog"]


def test_two_models_a_clip_and_a_question(served, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    with page(served[1]) as tab:
        assert tab.open(clip) == "clip.mp4, 128 x 96, 12 frames. Draw a box around an object."
        tab.run(
            "const slider = document.querySelector('.dr-frames input'); slider.value = 3;"
            "slider.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        tab.wait(lambda: tab.one(".dr-frames output").text == "3 of 11, 0.30 s")
        tab.wait(lambda: tab.one(".dr-frames").get_attribute("data-shown") == "3")
        tab.drag((16, 20, 46, 50), (96, 128))
        tab.one("#dr-B-question textarea, #dr-B-question input").send_keys("What is <region>?")
        assert len(tab.describe()) == 2
        assert tab.texts(".dr-cards h2") == ["tiny", "clips question = What is <region>?"]
        frames = [text for text in tab.texts(".dr-views figcaption") if text.startswith("frame")]
        assert frames[0] == "frame 3" and frames[-1] == "frame 11" and len(frames) == 4
        assert json.loads(tab.download("JSON", 1).read_text("utf-8"))["frame"] == 3
        assert not tab.foreign_hosts() and not tab.errors()


def test_the_camera_and_the_clipboard_give_pictures(served, photo):
    with page(served[0]) as tab:
        tab.click("[data-do=camera]")
        tab.wait(lambda: tab.one("[data-do=take]").is_displayed())
        tab.wait(lambda: tab.run("return document.querySelector('.dr-stage video').videoWidth"))
        tab.click("[data-do=take]")
        assert tab.wait(lambda: (text := tab.one(".dr-note").text) and text.startswith("camera.png, ") and text)
        script = """
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(arguments[0])], 'pasted.png', {type: 'image/png'}));
            document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
        """
        with open(photo, "rb") as file:
            tab.run(script, list(file.read()))
        tab.wait(lambda: tab.one(".dr-note").text.startswith("pasted.png, 100 x 80"))


def test_what_is_wrong_is_one_line_on_the_page(served, photo, tmp_path):
    with page(served[0]) as tab:
        assert tab.describe() == ["no picture; open, paste or take one first"]
        (tmp_path / "text.png").write_text("this is no picture")
        note = tab.open(tmp_path / "text.png")
        assert note.startswith("text.png: ") and "\n" not in note and tab.all(".dr-note.dr-wrong")
        note = tab.open(write_clip(tmp_path / "clip.mp4"))
        assert note.startswith("clip.mp4: a clip, but this model looks at pictures; ")
        tab.open(photo)
        assert tab.describe() == ["no region; draw a box around an object, paint over it, or type a box's four numbers"]
        tab.drag(BOXES[0], HW)
        tab.run("document.querySelectorAll('.dr-settings .label-wrap').forEach((one) => one.click())")
        field = tab.wait(lambda: tab.all("#dr-A-num_beams textarea, #dr-A-num_beams input"))[0]
        tab.wait(field.is_displayed)
        field.send_keys("many")
        assert tab.describe() == ["num_beams: 'many'; expected a whole number, or nothing for the model's own"]
        field.clear()
        field.send_keys("99")
        assert tab.describe() == ["Options: num_beams 99; this server allows at most 8"]
        field.clear()
        field.send_keys("2")
        assert len(tab.describe()) == 1 and tab.all(".dr-card:not(.dr-old)") and not tab.all(".dr-error")
