"""Conversations as records: their form, their files, and what is wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from dynrefer.data.chats import Chat, Turn, named_regions, write_chats
from dynrefer.data.clips import ClipRegion
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.packing import Piece
from dynrefer.data.record_files import open_records, record_of, write_records
from dynrefer.data.records import Region, RegionRecords
from dynrefer.models.family import FamilyProcessor

PLACE = {"id": "7", "image": "a.jpg", "image_hw": [40, 60]}
REGIONS = [{"box": [4, 6, 24, 30]}, {"mask": [[18, 20, 50, 20, 50, 36]], "category": "cup", "id": "the cup"}]
TURNS = [{"question": "What does <region0> do on <region1>?", "answer": "It sits."}, {"question": "Is it [3] wet?"}]
PICTURE = {**PLACE, "regions": REGIONS, "turns": TURNS, "licence": "CC0"}
CLIP = {
    "id": "8",
    "video": "a",
    "num_frames": 9,
    "frame_hw": [40, 60],
    "prompt_frame": 2,
    "end_frame": 8,
    "regions": [{"frames": {"2": {"box": [4, 6, 24, 30]}, "5": None}}],
    "turns": [{"question": "Where does <region0> go?", "answer": "Away."}],
}


def test_a_conversation_of_a_picture():
    chat = record_of(PICTURE, "a:1")
    assert isinstance(chat, Chat) and not chat.is_clip and chat.example == "a.jpg" and chat.num_frames == 1
    assert [type(region) for region in chat.regions] == [Region, Region]
    assert [region.id for region in chat.regions] == ["7/0", "the cup"] and chat.regions[1].box == (19, 20, 50, 36)
    assert chat.turns == (Turn("What does <region0> do on <region1>?", "It sits."), Turn("Is it [3] wet?"))
    assert chat.captions == ("It sits.",) and chat.box == (0, 0, 60, 40) and chat.licence == "CC0"
    assert Chat.from_dict(json.loads(json.dumps(chat.to_dict()))) == chat


def test_a_conversation_of_a_clip():
    chat = record_of(CLIP, "a:1")
    assert chat.is_clip and (chat.num_frames, chat.prompt_frame, chat.end_frame) == (9, 2, 8)
    (region,) = chat.regions
    assert isinstance(region, ClipRegion) and region.id == "8/0" and region.frames[5] is None
    assert chat.example == region.example == ("a", 2, 8)
    assert Chat.from_dict(json.loads(json.dumps(chat.to_dict()))) == chat


def test_a_conversation_about_the_whole():
    whole = {**PLACE, "turns": [{"question": "What is there?", "answer": "Cups."}]}
    assert record_of(whole, "").regions == () and Chat.from_dict(record_of(whole, "").to_dict()) == record_of(whole, "")
    clip = {key: value for key, value in CLIP.items() if key not in ("regions", "prompt_frame", "end_frame")}
    chat = record_of({**clip, "turns": whole["turns"]}, "")
    assert (chat.prompt_frame, chat.end_frame, chat.regions) == (0, 9, ())


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        (
            PICTURE,
            {"turns": [{"question": "Where is <region2>?"}]},
            "<region2> without a region; there are <region0>",
        ),
        (PICTURE, {"turns": TURNS[1:]}, "turns: region '7/0' and 1 more is never named; write <region0>"),
        (PICTURE, {"turns": [{"question": "<region0> <region1>"}, TURNS[0]]}, "turn 0: no answer; only the last"),
        (PICTURE, {"turns": [{**TURNS[0], "answer": "On <region1>."}]}, "names <region1>.* write \\[1\\]"),
        (PICTURE, {"turns": []}, "turns \\[\\]: expected a list"),
        (PICTURE, {"turns": ["What?"]}, "turn 0, What\\?: expected an object"),
        (PICTURE, {"turns": [{"question": " "}]}, "turn 0: question ' ': expected text that is not empty"),
        (PICTURE, {"regions": [{"box": [4, 6, 2, 30]}, REGIONS[1]]}, "region 0: .*7/0"),
        (PICTURE, {"regions": [{"frames": {}}, REGIONS[1]]}, "region 0: unknown key \\['frames'\\]"),
        (PICTURE, {"regions": [{"category": "cup"}, REGIONS[1]]}, "region 0: neither box nor mask"),
        (PICTURE, {"captions": ["a"]}, "unknown key \\['captions'\\]; a conversation has"),
        (PICTURE, {"image_hw": [0, 3]}, "region 0: image_hw"),
        (PICTURE, {"id": ""}, "id ''"),
        (CLIP, {"prompt_frame": 8}, "region 0: prompt_frame 8, end_frame 8, num_frames 9: expected prompt_frame < "),
        (CLIP, {"regions": [], "turns": TURNS[1:], "end_frame": 10}, "prompt_frame 2, end_frame 10, num_frames 9"),
        (CLIP, {"num_frames": 0}, "num_frames 0: expected a whole number of at least 1"),
        (CLIP, {"regions": [{"box": [1, 2, 3, 4]}]}, "region 0: unknown key \\['box'\\]"),
    ],
)
def test_what_is_wrong_is_named(record, change, said):
    with pytest.raises(ValueError, match=f"^f.jsonl:3: .*{said}"):
        record_of({**record, **change}, "f.jsonl:3")


def test_files_hold_all_kinds_of_records(tmp_path):
    region = {**PLACE, "id": "r", "box": [1, 2, 30, 30], "captions": ["a cup"]}
    records = [record_of(d, "") for d in (PICTURE, region, CLIP)]
    assert write_records(tmp_path / "a.jsonl", records) == 3
    opened = open_records(tmp_path / "a.jsonl")
    assert list(opened) == records and list(opened.example_groups()) == [[0, 1], [2]]
    clips = [records[2], record_of({**CLIP, "id": "9", "end_frame": 9}, "")]
    assert write_chats(tmp_path / "b.jsonl", clips) == 2  # read when they are asked for
    opened = open_records(tmp_path / "b.jsonl")
    assert list(opened) == clips and len(opened.example_groups()) == 2 and opened.video_path(0) == tmp_path / "a"
    joined = open_records([tmp_path / "a.jsonl", tmp_path / "c.jsonl"][:1])
    assert len(joined.subset([2, 0])) == 2


def test_numbers_count_the_regions_that_are_named():
    turns = [Turn("Is <region5> on <region2>?", "<region5> is, [1] is not."), Turn("And here?", "<region7> is.")]
    assert named_regions(turns) == ([2, 5], [Turn("Is <region1> on <region0>?", "[1] is, [1] is not.")])
    assert named_regions([Turn("Where is <region1>?", "At <region0>.")]) == ([], [])


def test_checked_with_their_lines(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    lines = [
        PICTURE,
        {**PICTURE, "id": "b", "turns": [{"question": "Where is <region2>?", "answer": "no"}]},
        {**PICTURE, "id": "c", "regions": [{"box": [4, 6, 70, 30]}, {"box": [4, 6, 4.5, 30]}]},
        {**PICTURE, "id": "7"},
        {**PICTURE, "id": "d", "image_hw": [41, 60]},
        {**PICTURE, "id": "e", "turns": [{"question": "<region0> and <region1>?", "answer": "..."}]},
        {**PLACE, "id": "r", "box": [1, 2, 30, 30]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    report = check_file(tmp_path / "a.jsonl")
    said = {line: text for line, text in report.problems}
    assert sorted(said) == [2, 3, 4, 5, 6]
    assert "<region2> without a region" in said[2] and "region 0: " in said[3] and "reaches beyond" in said[3]
    assert "stands in line 1 already" in said[4] and "image_hw (41, 60)" in said[5] and "no word" in said[6]
    assert report.lines()[-1].endswith("7 records, 6 of them conversations, 1 of them without a caption, 1 images")
    (tmp_path / "a").mkdir()
    for index in range(9):
        Image.new("RGB", (60, 40)).save(tmp_path / "a" / f"{index}.png")
    bad = {**CLIP, "id": "9", "regions": [{"frames": {"2": {"box": [4, 6, 4.5, 30]}}}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(CLIP) + "\n" + json.dumps(bad) + "\n")
    (problem,) = check_file(tmp_path / "b.jsonl").problems
    assert problem[0] == 2 and "conversation 9, region 0" in problem[1] and "thinner than a pixel" in problem[1]


def test_families_that_describe_regions_say_that_they_read_no_conversation(tmp_path):
    dataset = ExampleDataset(
        RegionRecords(tmp_path / "a", [record_of(PICTURE, "")]), FamilyProcessor(), train=True, seed=0
    )
    with pytest.raises(ValueError, match="record 7: a conversation, and this family describes regions; leave its file"):
        dataset.example(Piece(0, np.arange(1)))
