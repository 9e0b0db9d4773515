import gzip
import json

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.llava import main
from dynrefer.data import open_records
from dynrefer.masks import mask_to_rle

HW = (100, 200)


def talk(*turns):
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)]


def rle(x1, y1, x2, y2) -> dict:
    mask = np.zeros(HW, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask_to_rle(mask)


SQUARE = [20, 10, 60, 10, 60, 50, 20, 50]
OSPREY = {
    "id": 7,
    "file_name": "COCO_train2014_a.png",
    "height": 100,
    "width": 200,
    "annotation": [
        {"bbox": [20, 10, 40, 40], "segmentation": [SQUARE], "area": 1600},
        {"bbox": [100, 0, 50, 100], "segmentation": rle(100, 0, 150, 100)},
    ],
    "conversations": talk(
        "<image>\nWhat is <region1>?",
        "A red cup.",
        "And the colour of <region2>?",
        "Blue",
        "How do <region1> and <region2> relate?",
        "They do not.",
        "Is it day?",
        "Yes.",
        "What stands beside <region 1>?",
        "Nothing but <region2>.",
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "coco").mkdir(parents=True)
    for name in ("a.png", "coco/b.png"):
        Image.new("RGB", (HW[1], HW[0])).save(tmp_path / "photos" / name)
    return tmp_path


def run(folder, entries, *options, name="mine.json"):
    if ".jsonl" in name and isinstance(entries, list):
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
    else:
        text = entries if isinstance(entries, str) else json.dumps(entries)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    where = ("--json", folder / name, "--images", folder / "photos", "--out", folder / "out" / "train.jsonl")
    return main([*map(str, where), *options])


def records(folder):
    return list(open_records(folder / "out" / "train.jsonl"))


def test_osprey_answers_about_one_region_are_its_captions(folder, capsys):
    options = "--box-format xywh --first-region 1 --image-prefix COCO_train2014_".split()
    assert run(folder, [OSPREY], *options) == 0
    cup, blue = records(folder)
    assert (
        cup.id == "mine-0-0"
        and cup.box == (20, 10, 60, 50)
        and cup.mask == [SQUARE]
        and cup.captions == ("A red cup.",)
    )
    assert blue.box == (100, 0, 150, 100) and blue.captions == ("Blue",) and blue.to_mask().sum() == 5000
    assert cup.image == "../photos/a.png" and cup.image_hw == HW
    assert "3  answers left out: not about one region" in capsys.readouterr().out
    assert not check_file(folder / "out" / "train.jsonl").problems
    assert run(folder, [OSPREY], *options, "--question", "what is") == 0
    assert [r.captions for r in records(folder)] == [("A red cup.",), ()]


def test_osprey_descriptions_belong_to_the_regions_in_order(folder):
    entry = {**OSPREY, "description": ["<region1>: A cup.", "no mark: A: B"], "conversations": []}
    entry["file_name"] = "a.png"
    assert run(folder, [entry], "--box-format", "xywh") == 0
    assert [r.captions for r in records(folder)] == [("A cup.",), ("no mark: A: B",)]


def test_placeholders_without_numbers_are_taken_in_order(folder):
    entry = {
        "image": "a.png",
        "bboxes": [[20, 10, 60, 50], [100, 0, 150, 100]],
        "segmentations": [None, [[[100, 0], [150, 0], [150, 100]], [[1, 1], [2, 2]]]],
        "conversations": talk("<image>\nDescribe <mask><pos>.", "a cup", "Now <mask><pos>", "a door", "Sure?", "Yes"),
    }
    assert run(folder, [entry], "--box-format", "xyxy") == 0
    cup, door = records(folder)
    assert cup.captions == ("a cup",) and door.captions == ("a door",)
    assert cup.mask is None and door.mask == [[100, 0, 150, 0, 150, 100]]


def test_zero_based_numbers(folder):
    entry = {"image": "a.png", "bboxes": [[20, 10, 60, 50]] * 2}
    entry["conversations"] = talk("What is within <bbox1>?", "a cup", "And <bbox0>?", "a hand")
    assert run(folder, [entry], "--box-format", "xyxy", "--first-region", "0") == 0
    assert [r.captions for r in records(folder)] == [("a hand",), ("a cup",)]


def test_a_single_region_is_what_all_answers_are_about(folder):
    single = {"image": "a.png", "bbox": [20, 10, 60, 50], "answer": "the left cup"}
    asked = {
        "image": "a.png",
        "regions": [{"bbox": [20, 10, 60, 50]}],
        "conversations": talk("What?", "a cup", "Colour?", "red"),
    }
    named = {
        "image": "a.png",
        "bboxes": [[20, 10, 60, 50]],
        "conversations": talk("<region>?", "a", "<region>!", "b", "Day?", "yes"),
    }
    assert run(folder, [single, asked, named], "--box-format", "xyxy") == 0
    assert [r.captions for r in records(folder)] == [("the left cup",), ("a cup", "red"), ("a", "b")]
    assert [r.id for r in records(folder)] == ["mine-0-0", "mine-1-0", "mine-2-0"]


def test_glamm_groundings_and_referring_expressions(folder):
    grounded = {
        "file_name": "coco/b.png",
        "caption": "two cups beside a door",
        "groundings": {
            "two cups": {"token_positives": [0, 8], "rle_masks": [rle(0, 0, 10, 10), rle(20, 20, 40, 30)]},
            "a door": {"token_positives": [16, 22], "rle_masks": [rle(100, 0, 150, 100)]},
        },
    }
    referred = {
        "17": {
            "img_file_name": "a.png",
            "caption": "x",
            "refs": [{"sentence": "the cup", "segmentation": [SQUARE], "bbox": [20, 10, 40, 40]}],
        }
    }
    assert run(folder, [grounded, referred], "--box-format", "xywh") == 0
    cups, door, cup = records(folder)
    assert cups.captions == ("two cups",) and cups.box == (0, 0, 40, 30) and cups.to_mask().sum() == 300
    assert door.box == (100, 0, 150, 100) and cup.captions == ("the cup",) and cup.box == (20, 10, 60, 50)


def test_masks_alone_need_no_convention_and_lines_are_read_too(folder):
    entries = [
        {"image": "a.png", "rle": rle(5, 6, 7, 9), "caption": "x"},
        {"image": "a.png", "masks": [[SQUARE], rle(0, 0, 3, 3)]},
    ]
    for name in ("mine.jsonl", "mine.jsonl.gz"):
        assert run(folder, entries, name=name) == 0
        assert [r.box for r in records(folder)] == [(5, 6, 7, 9), (20, 10, 60, 50), (0, 0, 3, 3)]
    assert run(folder, entries, name="mine.json.gz") == 0


def test_an_empty_mask_is_left_out_or_an_error(folder, capsys):
    entries = [{"image": "a.png", "masks": [rle(5, 6, 5, 6), [[300, 0, 400, 0, 400, 9]], rle(0, 0, 3, 3)]}]
    assert run(folder, entries) == 0
    assert len(records(folder)) == 1 and "2  masks left out" in capsys.readouterr().out
    assert run(folder, entries, "--strict") == 2


def refused(folder, capsys, entries, *options, **more) -> str:
    assert run(folder, entries, *options, **more) == 2
    assert not list(folder.glob("out/*"))
    return capsys.readouterr().err


OPTIONS = ("--box-format", "xyxy", "--first-region", "1", "--strict")
PLAIN = {"image": "a.png", "bboxes": [[20, 10, 60, 50]] * 2, "conversations": talk("<region>", "a", "<region>", "b")}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"conversations": talk("<region>", "a")}, "entry 1: 1 placeholders without a number .* 2 regions"),
        ({"conversations": talk("<region3>", "a")}, "entry 1: a question names region 3, but there are 2"),
        ({"bboxes": [[20, 10, 60]] * 2}, "entry 1, region 0: box .*four numbers"),
        ({"bboxes": [[20, 10, 60, 50]], "masks": [rle(0, 0, 3, 3)] * 2}, "1 boxes but 2 masks"),
        ({"image": "b.png"}, "entry 1: image 'b.png' does not lie in .*, but coco/b.png does: say --images"),
        ({"image": "nope.png"}, "entry 1: image 'nope.png' is not in"),
        ({"image": 5}, "entry 1: image 5: expected the name"),
        ({"height": 200, "width": 100}, "is \\(100, 200\\), the annotation says \\(200, 100\\).*EXIF"),
        ({"bboxes": None, "masks": ["a.png", "b.png"]}, "entry 1: mask of type str"),
        ({"bboxes": None, "masks": [{"size": [5, 5], "counts": [25]}] * 2}, "entry 1: mask of size"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "entry 1: a turn of 'robot'"),
        ({"conversations": ["x"]}, "entry 1: a turn"),
        ({"bboxes": None, "masks": [[SQUARE], [[[1, 2], 3]]]}, "entry 1: mask .*expected polygons"),
        ({"annotation": [5]}, "entry 1: annotation: expected a list of objects"),
        ({"description": ["x"]}, "entry 1: 1 descriptions of 2 regions"),
        ({"regions": [{"label": "x"}]}, "entry 1, region 0: neither a box nor a mask"),
    ],
)
def test_a_bad_entry_names_its_place(folder, capsys, change, rule):
    message = refused(folder, capsys, [PLAIN, {**PLAIN, **change}], *OPTIONS)
    with pytest.raises(AssertionError, match=f"mine.json: .*{rule}"):
        raise AssertionError(message)


def test_what_nobody_said_is_asked_for(folder, capsys):
    assert "say what their numbers are with --box-format" in refused(folder, capsys, [PLAIN])
    entry = {**PLAIN, "conversations": talk("<region1>", "a")}
    assert "like <region1>; say with --first-region" in refused(folder, capsys, [entry], "--box-format", "xyxy")
    assert "regular expression" in refused(folder, capsys, [PLAIN], "--question", "(")


def test_cut_off_and_foreign_files_are_refused(folder, capsys):
    text = json.dumps([PLAIN] * 3)
    options = ("--box-format", "xyxy")
    assert "not JSON from its first to its last byte" in refused(folder, capsys, text[:-40], *options)
    assert "is it the right file" in refused(folder, capsys, '{"images": []}', *options)
    assert "instead of an object" in refused(folder, capsys, "[1, 2]", *options)
    assert "mine.jsonl:2: not a JSON line" in refused(folder, capsys, '{"image": "a.png"}\n{"ima', name="mine.jsonl")


CHATS = "--box-format xywh --image-prefix COCO_train2014_ --first-region 1 --chats".split()


def test_whole_conversations_name_any_number_of_regions(folder, capsys):
    whole = {"image": "coco/b.png", "conversations": talk("<image>\nIs it day?", "Yes.")}
    single = {"image": "a.png", "bboxes": [[0, 0, 50, 20]], "conversations": talk("<image>\nWhat is this?", "A cup.")}
    short = {"image": "a.png", "bboxes": [[0, 0, 50, 20]], "description": ["a cup"]}
    assert run(folder, [OSPREY, whole, single, short], *CHATS) == 0
    counted = capsys.readouterr().out
    first, about_all, about_one = records(folder)
    assert [region.box for region in first.regions] == [(20, 10, 60, 50), (100, 0, 150, 100)]
    assert all(region.mask is not None for region in first.regions) and first.id == "mine-0"
    assert first.questions[2] == "How do <region0> and <region1> relate?" and len(first.turns) == 5
    assert (first.questions[4], first.captions[4]) == ("What stands beside <region0>?", "Nothing but [1].")
    assert about_all.regions == () and about_all.questions == ("Is it day?",)
    assert about_one.questions == ("About <region0>: What is this?",) and len(about_one.regions) == 1
    assert "1  entries left out: without a conversation" in counted and "7  questions" in counted
    assert check_file(folder / "out" / "train.jsonl").problems == []


def test_a_region_without_a_place_takes_its_questions_along(folder, capsys):
    entry = {**OSPREY, "annotation": [OSPREY["annotation"][0], {"bbox": [300, 0, 5, 5]}]}
    assert run(folder, [entry], *CHATS) == 0
    (chat,) = records(folder)
    assert chat.questions == ("What is <region0>?", "Is it day?") and len(chat.regions) == 1
    assert "3  answers left out: they name a region that no question does" in capsys.readouterr().out
    assert run(folder, [entry], *CHATS[:4], "--chats") == 2
    assert "say with --first-region" in capsys.readouterr().err
    assert run(folder, [entry], *CHATS, "--question", "what") == 2
    assert "leave --question and --text-key out" in capsys.readouterr().err
