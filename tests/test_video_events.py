import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check_clips import check_clips
from data_prep.video_events import main
from dynrefer.data.clips import clip_frames, open_clips, read_clip

HW = (48, 64)
ROOT = Path(__file__).parents[1]
SAMPLE = Path(os.environ.get("DYNREFER_TEST_DATA", ROOT.parent / "shared" / "data")) / "video_sample"


@pytest.fixture
def folder(tmp_path):
    for video, count in (("v1", 6), ("v2", 3)):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for k in range(count):
            if (video, k) != ("v1", 3):
                Image.new("RGB", HW[::-1]).save(tmp_path / "frames" / video / f"{k:05d}.png")
    return tmp_path


def event(number, first, last, boxes, text=" A man walks.") -> dict:
    return {"event_id": number, "frames": [f"{k:05d}.png" for k in range(first, last + 1)], "gt": text, "box": boxes}


EVENTS = [
    {
        "video": "v1",
        "annotations": [
            event(1, 0, 2, [[5, 6, 20, 30]]),
            event(2, 3, 5, [[1, 2, 9, 9]]),
            event(3, 2, 4, [[1, 2, 9, 9]]),
        ],
    },
    {"video": "v2", "annotations": [event(1, 0, 2, [[5, 6, 20, 30], [30, 6, 90, 30]])]},
]


def run(folder, events=EVENTS, *options):
    text = events if isinstance(events, str) else "".join(json.dumps(line) + "\n" for line in events)
    (folder / "events.jsonl").write_text(text)
    where = ("--events", "events.jsonl"), ("--videos", "frames"), ("--out", "out/train.jsonl")
    return main([word for name, path in where for word in (name, str(folder / path))] + ["--split", "train", *options])


def test_events_become_clips_from_their_first_frame(folder, capsys):
    assert run(folder) == 0
    first, third, left, right = open_clips(folder / "out" / "train.jsonl")
    assert first.id == "v1-1-0" and first.prompt_frame == 0 and first.end_frame == 3 and first.num_frames == 5
    assert first.frames[0].box == (5, 6, 25, 36) and first.captions == ("A man walks.",) and first.split == "train"
    assert third.prompt_frame == 2 and third.end_frame == 4  # the fourth picture, 00004.png, is its last
    assert left.id == "v2-1-0" and right.id == "v2-1-1" and right.frames[0].box == (30, 6, 64, 36)
    printed = capsys.readouterr()
    assert (
        "events.jsonl:1, event 2: their first frame" in printed.err and "2  frames that are not on disk" in printed.out
    )
    assert check_clips(folder / "out" / "train.jsonl") == ([], 4, 2)
    assert run(folder, EVENTS, "--strict") == 2


@pytest.mark.parametrize(
    ("events", "rule"),
    [
        (json.dumps(EVENTS[0])[:-9], "events.jsonl:1: not a JSON line"),
        ([{"video": "v1"}], "events.jsonl:1: expected video and annotations"),
        ([{"video": "v3", "annotations": []}], "events.jsonl:1: video 'v3' is not in"),
        ([{"video": "/etc", "annotations": []}], "events.jsonl:1: video '/etc': expected a name in"),
        ([{"video": "v2", "annotations": [event(1, 0, 2, [[5, 6, 20]])]}], "events.jsonl:1, event 1: box"),
        ([{"video": "v2", "annotations": [event(1, 0, 2, [[30, 40, 35, 46]] * 30)]}], "as 'xyxy' 100% fit"),
        ([{"video": "v2", "annotations": [event(1, 0, 2, [[5, 6, 20, 30]], None)]}], "events.jsonl:1: expected"),
        ([{"video": "v2", "annotations": [event(1, 0, 2, [None])]}], "events.jsonl:1, event 1: box 0 is null"),
        ([{"video": "v2", "annotations": [event(1, 0, 2, [[5, 6, 20, 30]], " ")]}], "captions: '' among them"),
    ],
)
def test_bad_events_are_refused_with_their_line(folder, capsys, events, rule):
    assert run(folder, events) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_the_check_tells_every_problem_with_its_line(folder, capsys):
    assert run(folder) == 0
    path = folder / "out" / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["num_frames"] = 6
    lines[2]["frames"]["0"] = {"mask": {"size": list(HW), "counts": [5]}, "box": [1, 2, 3, 4]}
    lines[3]["frame_hw"] = [64, 48]
    lines += [{**lines[0], "video": "../frames/v9", "id": "x"}, lines[0], {"id": "y"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": ')
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.check", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines()[:-1]}
    rules = {
        2: "num_frames 6, but .*v1 has 5",
        3: "clip v2-1-0, frame 0: mask counts add up to 5",
        4: "frame_hw .64, 48., but frames of .*v2 are .48, 64.",
        5: "v9: no such file or folder .1 records.",
        6: "id 'v1-1-0' stands in line 1 already",
        7: "missing key",
        8: "not a JSON line",
    }
    assert done.returncode == 1 and list(found) == list(rules) and not done.stderr
    for line, rule in rules.items():
        with pytest.raises(AssertionError, match=rule):
            raise AssertionError(found[line])
    assert done.stdout.splitlines()[-1].endswith("7 problems; 5 records, 3 videos")
    (folder / "empty.jsonl").write_text("")
    assert check_clips(folder / "empty.jsonl")[0] == [(0, "no records in it")]
    assert "cannot be read" in check_clips(folder / "none.jsonl")[0][0][1]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of real videos is not on this machine")
def test_the_real_sample_is_converted_and_read(tmp_path, capsys):
    words = [
        "--events",
        str(SAMPLE / "events.jsonl"),
        "--videos",
        str(SAMPLE / "frames"),
        "--out",
        str(tmp_path / "a.jsonl"),
    ]
    assert main(words) == 0
    records = open_clips(tmp_path / "a.jsonl")
    assert len(records) == 4 and {clip.frame_hw for clip in records} == {(480, 720), (480, 640)}
    assert "1  events left out" in capsys.readouterr().out  # the box of one is in a frame that the sample lacks
    assert check_clips(tmp_path / "a.jsonl") == ([], 4, 2)
    clip = records[1]
    assert clip.captions[0].startswith("This woman is shown putting on her makeup")
    frames = read_clip(records.video_path(1), clip, clip_frames(clip, 4))
    assert frames.shape == (4, 480, 640, 3) and clip_frames(clip, 4) == [0, 5, 10, 15]
