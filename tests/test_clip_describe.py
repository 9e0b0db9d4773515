"""Clips that a user points into: from Python and the command line, drawn, and all that can be wrong with them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import dynrefer
from dynrefer import cli
from dynrefer.clip_example import clip_example
from dynrefer.draw_clip import draw_clip
from dynrefer.models.family import FamilyModel
from tests.omni_rgpt import HW, batch, examples, new, records, scenes, shared

av = pytest.importorskip("av")
BOXES = [[2, 4, 14, 20], [20, 22, 40, 38]]  # of the clip of the scenes, in its first frame


def video(path, times=range(8), hw=(40, 60)):
    """A file whose frames, shown at these ticks of 1/10 s, are the brighter the later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = hw[1], hw[0], "bgr0"
        container.start_encoding()  # also of no frames
        for number, tick in enumerate(times):
            pixels = np.full((*hw, 3), 20 + 20 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def predictor():
    return dynrefer.RegionPredictor(shared())


def test_a_folder_of_frames_is_asked_as_its_records_are(predictor):
    results = predictor.clip(scenes().parent / "clip", boxes=BOXES)
    model = predictor.model
    expected = model.predict(batch(model, examples(model)[-1:]))
    assert [r.extra["frames"] for r in results] == [[0, 2, 5, 7]] * 2 and results.image_hw == HW
    assert [r.box for r in results] == [r.box for r in expected] and [r.id for r in results] == ["0:0", "0:1"]
    assert records()[-1].frames[0].box == tuple(BOXES[1])


def test_a_clip_is_asked_with_and_without_regions(predictor, tmp_path):
    path = video(tmp_path / "clip.mkv")
    once = predictor.clip(path, boxes=BOXES, question="Does <region0> pass <region1>?")
    assert once[0].caption == once[1].caption and once[0].extra["frames"] == [0, 2, 5, 7]
    later = predictor.clip(path, boxes=BOXES[:1], prompt_frame=3, end_frame=6, question="What does <region0> do?")
    assert later[0].extra["frames"] == [3, 4, 4, 5]
    (whole,) = predictor.clip(path, question="What happens?")
    assert whole.box == [0, 0, 60, 40] and whole.extra["frames"] == [0, 2, 5, 7]
    (next_one,) = predictor.clip(path, question="And then?", history=[["What happens?", "It gets bright."]])
    assert next_one.prompt_tokens > whole.prompt_tokens


def test_a_conversation_goes_on_with_the_same_marks():
    model = shared()
    image = scenes().parent / "scene0.png"
    ask = dynrefer.RegionPredictor(model)
    first = ask(image, boxes=BOXES, question="Is <region0> left of <region1>?")
    history = [["Is <region0> left of <region1>?", first[0].caption or "yes"]]
    second = ask(image, boxes=BOXES, question="Is it <region1>?", history=history)
    assert second[0].caption == second[1].caption
    assert second[0].prompt_tokens > first[0].prompt_tokens
    with pytest.raises(ValueError, match="region '0:1' is never named"):
        ask(image, boxes=BOXES, question="And <region0>?", history=[["What is <region0>?", "red"]])
    for history, said in [
        ([["only a question"]], "expected pairs of texts"),
        ("What?", "'What\\?'; expected a list of"),
        ([["What is <region7>?", "red"]], "<region7> without a region"),
    ]:
        with pytest.raises(ValueError, match=said):
            ask(image, boxes=BOXES, question="Are <region0> and <region1> red?", history=history)
    with pytest.raises(ValueError, match="history: without a question"):
        ask(image, boxes=BOXES, history=[["What?", "red"]])
    long = [["What is <region0>, and <region1>?", "red " * 600]]
    with pytest.raises(ValueError, match="question of 0:0: .* tokens, 16 of them of 1 frames, .* holds 512"):
        ask(image, boxes=BOXES, question="Are they?", history=long)


def test_what_can_be_wrong_with_a_clip(predictor, tmp_path):
    path = video(tmp_path / "clip.mkv")
    for span, said in [
        ({"prompt_frame": 8}, "prompt_frame 8: .*clip.mkv has the frames 0 to 7"),
        ({"prompt_frame": 5, "end_frame": 5}, "end_frame 5: expected 6 to 8, behind prompt_frame 5"),
        ({"end_frame": 9}, "end_frame 9: expected 1 to 8"),
        ({"boxes": [[50, 10, 70, 30], [70, 10, 80, 30]]}, "0:1|box"),
    ]:
        with pytest.raises(ValueError, match=said):
            predictor.clip(path, **{"boxes": BOXES, **span})
    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="broken.mp4: "):
        predictor.clip(tmp_path / "broken.mp4", boxes=BOXES)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="empty.mp4: cannot be read, truncated or damaged"):
        predictor.clip(tmp_path / "empty.mp4", boxes=BOXES)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no picture in the folder"):
        predictor.clip(tmp_path / "none", boxes=BOXES)
    with pytest.raises(ValueError, match="no frame in it|cannot be read"):
        predictor.clip(video(tmp_path / "zero.mkv", []), boxes=BOXES)
    predictor.model = FamilyModel()
    with pytest.raises(ValueError, match="this model's family reads no clips"):
        predictor.clip(path, boxes=BOXES)


def test_frames_count_whatever_the_time_between_them(predictor, tmp_path):
    even, uneven = video(tmp_path / "even.mkv"), video(tmp_path / "uneven.mkv", [0, 1, 2, 9, 10, 40, 41, 90])
    one, other = (clip_example(path, boxes=BOXES).frames([0, 3, 7]) for path in (even, uneven))
    assert one[:, 0, 0, 0].tolist() == other[:, 0, 0, 0].tolist() == [20, 80, 160]
    results = predictor.clip(uneven, boxes=BOXES)
    assert [r.caption for r in results] == [r.caption for r in predictor.clip(even, boxes=BOXES)]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_odd_sizes(kind, tmp_path):
    path = video(tmp_path / "odd.mkv", hw=(37, 91))
    predictor = dynrefer.RegionPredictor(shared(kind))
    results = predictor.clip(path, boxes=[[0, 0, 1, 2], [3.4, 2.2, 90.9, 36.8]], prompt_frame=7)
    assert len(results) == 2 and results[0].extra["frames"] == [7, 7, 7, 7]
    if kind == "qwen2_5_vl":
        with pytest.raises(ValueError, match="crop it"):  # 300 times as wide as high
            predictor.clip(video(tmp_path / "thin.mkv", range(1), hw=(2, 600)), boxes=[[0, 0, 2, 2]])


def test_a_drawn_clip_has_a_row_of_heat_maps_a_region(predictor):
    results = predictor.clip(scenes().parent / "clip", boxes=BOXES, heat=True)
    frames = clip_example(scenes().parent / "clip", boxes=BOXES).frames([0, 2, 5, 7])
    whole, bare = (
        draw_clip(frames, [0, 2, 5, 7], results),
        draw_clip(frames, [0, 2, 5, 7], predictor.clip(scenes().parent / "clip", boxes=BOXES)),
    )
    assert whole.width == bare.width and whole.height > bare.height
    results[1].extra["heat"] = np.eye(3).tolist()
    with pytest.raises(ValueError, match="region 0:1: heat of shape \\(3, 3\\); expected finite numbers, a map for"):
        draw_clip(frames, [0, 2, 5, 7], results)


def test_the_command_line_describes_clips(tmp_path, capsys):
    torch.manual_seed(0)
    model = new()
    model.save_pretrained(tmp_path / "model")
    path = video(tmp_path / "clip.mp4".replace("mp4", "mkv"))
    command = ["describe", str(path), "--model", str(tmp_path / "model"), "--device", "cpu"]
    boxes = ["--box", "2", "4", "14", "20"]
    asked = [*command, *boxes, "--question", "What does <region0> do?", "heat=true", "--draw", str(tmp_path / "drawn")]
    assert cli.main([*asked, "--json"]) == 0
    out, error = capsys.readouterr()
    expected = dynrefer.RegionPredictor(model).clip(path, boxes=BOXES[:1], question="What does <region0> do?")
    assert json.loads(out.splitlines()[-1])["caption"] == expected[0].caption and "drawn: " in error
    assert Image.open(tmp_path / "drawn" / "clip.png").width >= 800
    assert cli.main([*command, "--question", "What happens?"]) == 0
    for wrong, said in [
        ([*command], "no region; give --box"),
        ([*command, *boxes, "--prompt-frame", "9"], "prompt_frame 9: "),
        ([*command, *boxes, "--out", "a.jsonl"], "--out is for pictures"),
        ([*command, *boxes, "--question", "And <region1>?"], "<region1> without a region"),
        (["describe", "a.png", *command[2:], *boxes, "--prompt-frame", "1"], "are for a clip"),
    ]:
        capsys.readouterr()
        assert cli.main(wrong) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
