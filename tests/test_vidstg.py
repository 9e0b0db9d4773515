import json

import numpy as np
import pytest

from data_prep import vidstg
from data_prep.check_clips import check_clips
from data_prep.vidstg import main
from dynrefer.data.clips import clip_frames, open_clips, read_clip
from dynrefer.data.record_files import open_records

av = pytest.importorskip("av")
HW, COUNT = (48, 64), 12


def write_video(path, count=COUNT, hw=HW):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.bit_rate, stream.width, stream.height, stream.pix_fmt = 4_000_000, hw[1], hw[0], "yuv420p"
        for index in range(count):
            pixels = np.full((*hw, 3), 20 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def box(x) -> dict:
    return {"xmin": x, "ymin": 5, "xmax": x + 10, "ymax": 30}


# thing 0 walks to the right in all frames, thing 1 is there from frame 4 to 8
TRAJECTORIES = [
    [{"tid": 0, "bbox": box(k), "generated": 0, "tracker": "none"}]
    + ([{"tid": 1, "bbox": box(40), "generated": 1, "tracker": "linear"}] if 4 <= k <= 8 else [])
    for k in range(COUNT)
]
VIDOR = {
    "version": "VERSION 1.0",
    "video_id": "77",
    "video_path": "1000/77.mp4",
    "frame_count": COUNT,
    "fps": 24.0,
    "width": HW[1],
    "height": HW[0],
    "subject/objects": [{"tid": 0, "category": "dog"}, {"tid": 1, "category": "adult"}],
    "trajectories": TRAJECTORIES,
    "relation_instances": [],
}


def row(captions, begin=2, end=10, **changes) -> dict:
    return {
        "vid": "77",
        "fps": 24.0,
        "frame_count": COUNT,
        "used_segment": {"begin_fid": 0, "end_fid": COUNT - 1},
        "width": HW[1],
        "height": HW[0],
        "subject/objects": VIDOR["subject/objects"],
        "used_relation": {"subject_tid": 0, "object_tid": 1, "predicate": "watch", "begin_fid": begin, "end_fid": end},
        "temporal_gt": {"begin_fid": begin, "end_fid": end},
        "captions": [{"description": text, "type": "object", "target_id": tid} for text, tid in captions],
        "questions": [{"description": "who?", "type": "person", "target_id": 1}],
        **changes,
    }


ROWS = [
    row([("a dog watches an adult.", 0), ("a dog runs.", 0), ("an adult is seen by a dog.", 1)]),
    row([("an adult is gone.", 1)], 9, COUNT),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(vidstg.PUBLISHED, "val", {"declarative sentences": 4, "questions": 2})
    write_video(tmp_path / "video" / "1000" / "77.mp4")
    (tmp_path / "vidor" / "1000").mkdir(parents=True)
    (tmp_path / "vidor" / "1000" / "77.json").write_text(json.dumps(VIDOR))
    (tmp_path / "val.json").write_text(json.dumps(ROWS))
    return tmp_path


def run(folder, *options):
    places = ("--annotations", "val.json"), ("--vidor", "vidor"), ("--videos", "video"), ("--out", "out/val.jsonl")
    return main([word for name, path in places for word in (name, str(folder / path))] + ["--split", "val", *options])


def test_described_things_become_clips_with_their_boxes(folder, capsys):
    assert run(folder) == 0
    records = open_clips(folder / "out" / "val.jsonl")
    dog, adult = records
    assert dog.id == "vidstg-val-0-77-0" and dog.captions == ("a dog watches an adult.", "a dog runs.")
    assert dog.category == "dog" and dog.frame_hw == HW and dog.num_frames == COUNT and dog.frame_rate == 24
    assert dog.prompt_frame == 2 and dog.end_frame == 10 and list(dog.frames) == list(range(2, 10))
    assert dog.frames[3].box == (3, 5, 13, 30) and dog.video == "../video/1000/77.mp4" and dog.licence
    assert adult.prompt_frame == 4 and adult.frames[2] is None and adult.frames[9] is None
    assert adult.frames[8].box == (40, 5, 50, 30) and adult.captions == ("an adult is seen by a dog.",)
    printed = capsys.readouterr()
    assert "1  regions left out: no box in the clip" in printed.out and "entry 1, target 1: no box" in printed.err
    assert check_clips(folder / "out" / "val.jsonl") == ([], 2, 1)
    frames = read_clip(records.video_path(0), dog, clip_frames(dog, 3))
    assert [round(frame.mean() / 20) for frame in frames] == [2, 6, 9]


def test_other_counts_than_published_are_refused(folder, capsys):
    (folder / "val.json").write_text(json.dumps(ROWS[:1]))
    assert run(folder) == 2
    assert "3 declarative sentences, published 4" in capsys.readouterr().err and not list(folder.glob("out/*"))
    assert run(folder, "--subset") == 0


def test_the_published_numbers_add_up():
    assert sum(counts["declarative sentences"] for counts in vidstg.PUBLISHED.values()) == 44808  # the paper's total
    assert sum(counts["questions"] for counts in vidstg.PUBLISHED.values()) == 55135


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("val.json", json.dumps(ROWS)[:-40], "not JSON from its first to its last byte"),
        ("val.json", json.dumps([{"vid": "77"}]), "entry 0: expected vid, temporal_gt, captions"),
        ("val.json", json.dumps([row([], vid="78")]), "there is no 78.json in"),
        ("val.json", json.dumps([row([("x", 5)])]), "entry 0: target_id 5"),
        ("val.json", json.dumps([row([("x", 0)], 5, 5)]), "entry 0: temporal_gt from 5 to 5"),
        ("val.json", json.dumps([row([("x", 0)], 5, 13)]), "temporal_gt from 5 to 13, but 12 frames"),
        ("val.json", json.dumps([row([("x", 0)], width=640)]), "frames of 48 x 640"),
        ("vidor/1000/77.json", json.dumps(VIDOR)[:-40], "77.json: not JSON"),
        ("vidor/1000/77.json", "[]", "77.json: list instead of an object"),
        (
            "vidor/1000/77.json",
            json.dumps(VIDOR | {"trajectories": [[{"tid": 0}]]}),
            "77.json: not an annotation of VidOR",
        ),
        ("vidor/1000/77.json", json.dumps(VIDOR | {"video_path": "../x.mp4"}), "video '../x.mp4': expected a name in"),
        ("vidor/1000/77.json", json.dumps(VIDOR | {"video_path": "1000/9.mp4"}), "video '1000/9.mp4' is not in"),
        ("vidor/1000/77.json", json.dumps(VIDOR | {"frame_count": 13}), "num_frames 13, but .*77.mp4 has 12"),
        ("video/1000/77.mp4", "no video", "77.mp4: cannot be read"),
    ],
)
def test_bad_input_is_refused_by_name(folder, capsys, file, content, rule):
    (folder / file).write_text(content)
    assert run(folder, "--subset") == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_boxes_beyond_the_frame_are_clipped_and_empty_ones_left_out(folder, capsys):
    frames = [[{"tid": 0, "bbox": {"xmin": 60, "ymin": 5, "xmax": 70, "ymax": 9}}] for _ in range(COUNT)]
    frames[3][0]["bbox"] = {"xmin": 5, "ymin": 5, "xmax": 5, "ymax": 9}
    (folder / "vidor" / "1000" / "77.json").write_text(json.dumps(VIDOR | {"trajectories": frames}))
    (folder / "val.json").write_text(json.dumps([row([("x", 0)])]))
    assert run(folder, "--subset") == 0
    (dog,) = open_clips(folder / "out" / "val.jsonl")
    assert dog.frames[2].box == (60, 5, 64, 9) and 3 not in dog.frames
    printed = capsys.readouterr()
    assert "7  boxes clipped" in printed.out and "frame 3: " in printed.err
    assert run(folder, "--subset", "--strict") == 2


def test_questions_and_sentences_pick_one_of_the_things_in_the_frame(folder, capsys):
    assert run(folder, "--selection") == 0
    chats = {chat.id: chat for chat in open_records(folder / "out" / "val.jsonl")}
    assert list(chats) == ["vidstg-val-0-77-q0"] + ["vidstg-val-0-77-c2"]
    asked = chats["vidstg-val-0-77-q0"]
    assert asked.turns[0].question == (
        "The regions: [0] <region0>, [1] <region1>. Who?\nAnswer with its number in brackets."
    )
    assert asked.is_clip
    assert (asked.prompt_frame, asked.end_frame, asked.num_frames, asked.split) == (4, 10, COUNT, "val")
    place = int(asked.turns[0].answer.strip("[]"))
    assert [asked.regions[place].category, asked.regions[1 - place].category] == ["adult", "dog"]
    assert asked.regions[place].frames[9] is None and asked.regions[1 - place].frames[9].box == (9, 5, 19, 30)
    assert 'is "an adult is seen by a dog"?' in chats["vidstg-val-0-77-c2"].turns[0].question
    printed = capsys.readouterr()
    assert "2  conversations left out: alone in its frame" in printed.out  # the dog's: it is there first
    assert "2  conversations left out: no box in the clip" in printed.out
    first = (folder / "out" / "val.jsonl").read_bytes()
    assert run(folder, "--selection") == 0 and (folder / "out" / "val.jsonl").read_bytes() == first
    (folder / "val.json").write_text(json.dumps(ROWS[1:]))
    assert run(folder, "--selection", "--subset") == 2
    assert "no conversations came out; 2 conversations left out: no box in the clip" in capsys.readouterr().err
