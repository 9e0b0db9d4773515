import json

import pytest

from data_prep import hcstvg
from data_prep.check_clips import check_clips
from data_prep.hcstvg import main
from dynrefer.data.clips import open_clips
from tests.test_vidstg import COUNT, HW, write_video

V1 = {
    "bbox": [[2, 5, 10, 30], [3, 5, 10, 30], [4, 5, 70, 30], [70, 5, 10, 30]],
    "st_time": 0.1,
    "ed_time": 0.3,
    "img_num": COUNT,
    "caption": " The woman turns  in a circle. ",
    "width": HW[1],
    "height": HW[0],
    "st_frame": 4,
}
V2 = {**{key: V1[key] for key in ("bbox", "st_time", "img_num", "st_frame")}, "img_size": list(HW)}
V2 |= {"English": "The man sits down.", "caption": "他坐下"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hcstvg, "PUBLISHED", {"v1": {"train": 1}, "v2": {"train": 2, "val": 7}})
    write_video(tmp_path / "video" / "1_a.mp4")
    write_video(tmp_path / "video" / "part2" / "2_b.mp4")
    return tmp_path


def run(folder, entries, *options, split="train"):
    (folder / "a.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    places = ("--annotations", "a.json"), ("--videos", "video"), ("--out", "out/a.jsonl")
    return main([word for name, path in places for word in (name, str(folder / path))] + ["--split", split, *options])


def test_persons_become_clips_with_their_boxes(folder, capsys):
    assert run(folder, {"1_a.mp4": V1, "2_b.mp4": V2}) == 0
    woman, man = open_clips(folder / "out" / "a.jsonl")
    assert woman.id == "hcstvg-train-1_a" and woman.captions == ("The woman turns in a circle.",)
    assert (woman.num_frames, woman.frame_hw, woman.prompt_frame, woman.end_frame) == (COUNT, HW, 3, 6)
    assert {frame: place.box for frame, place in woman.frames.items()} == {
        3: (2, 5, 12, 35),
        4: (3, 5, 13, 35),
        5: (4, 5, 64, 35),
    }
    assert woman.video == "../video/1_a.mp4" and woman.category == "person" and woman.frame_rate == 24
    assert man.captions == ("The man sits down.",) and man.video == "../video/part2/2_b.mp4"
    printed = capsys.readouterr()
    assert "2  boxes clipped" in printed.out and "left out most: 2 boxes: nothing of them in the frame" in printed.out
    assert check_clips(folder / "out" / "a.jsonl") == ([], 2, 2)


def test_frames_of_the_same_time_are_taken_on_demand(folder, capsys):
    entries = {"1_a.mp4": V1, "2_b.mp4": {**V2, "img_num": 2 * COUNT, "st_frame": 9}}
    assert run(folder, entries) == 0
    printed = capsys.readouterr()
    assert "1  annotations left out: another number of frames" in printed.out and "img_num 24, but" in printed.err
    assert run(folder, entries, "--strict") == 2
    capsys.readouterr()
    assert run(folder, entries, "--resample") == 0
    _, man = open_clips(folder / "out" / "a.jsonl")
    assert sorted(man.frames) == [4, 5] and man.frames[4].box == (2, 5, 12, 35)  # frames 8 to 10 of 24
    entries["2_b.mp4"]["img_num"] = COUNT + 1  # as decoders differ by one at a file's end
    entries["2_b.mp4"]["st_frame"] = 3
    assert run(folder, entries) == 0
    assert sorted(open_clips(folder / "out" / "a.jsonl")[1].frames) == [2, 3, 4]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox": "x"}, "not as the format has it"),
        ({"bbox": [[1, 2, 3]]}, "not as the format has it"),
        ({"st_frame": 0}, "not as the format has it"),
        ({"caption": " "}, "not as the format has it"),
        ({"width": 640}, "another size of frames"),
        ({"bbox": [[90, 90, 5, 5]]}, "no box in any frame"),
        (None, "not as the format has it"),
    ],
)
def test_a_faulty_entry_is_left_out_and_counted(folder, capsys, change, why):
    entries = {"1_a.mp4": None if change is None else V1 | change, "2_b.mp4": V2}
    assert run(folder, entries) == 0
    printed = capsys.readouterr()
    assert f"1  annotations left out: {why}" in printed.out and "1_a.mp4" in printed.err
    assert run(folder, entries, "--strict") == 2
    assert "1_a.mp4" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("[]", "a.json: no object with entries|a.json: not"),
        ('{"1_a.mp4": {"bbox": [', "not JSON"),
        (json.dumps({"9.mp4": V1}), "no regions came out; 1 annotations left out: their video is not there"),
        (json.dumps({"1_a.mp4": V1, "2_b.mp4": V2, "3.mp4": V2, "4.mp4": V2}), "4 annotations, published 2"),
    ],
)
def test_another_file_is_refused_by_name(folder, capsys, content, rule):
    assert run(folder, content) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))
