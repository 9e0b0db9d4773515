import json

import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.swift import main
from dynrefer.data import open_records

DOG, WOMAN = [33, 20, 85, 90], [100, 5, 190, 95]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "photos" / "a.png")
    Image.new("RGB", (400, 300)).save(tmp_path / "photos" / "b.png")
    return tmp_path


def line(question, answer, refs, boxes, images=("a.png",), **objects):
    turns = [{"role": "system", "content": "You help."}, {"role": "user", "content": f"<image>{question}"}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"messages": turns, "images": list(images), "objects": {"ref": refs, "bbox": boxes, **objects}}


def run(folder, lines, *options):
    (folder / "mine.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    where = ("--jsonl", folder / "mine.jsonl", "--images", folder / "photos", "--out", folder / "out" / "train.jsonl")
    return main([*map(str, where), *options])


def records(folder):
    return list(open_records(folder / "out" / "train.jsonl"))


def test_a_grounded_caption_names_each_box(folder):
    entry = line("Describe.", "<ref-object><bbox> and <ref-object><bbox> play", ["a dog", "a woman"], [DOG, WOMAN])
    assert run(folder, [entry], "--split", "train") == 0
    dog, woman = records(folder)
    assert dog.id == "mine-0-0" and dog.box == tuple(DOG) and dog.captions == ("a dog",) and dog.category is None
    assert woman.captions == ("a woman",) and woman.split == "train" and woman.image == "../photos/a.png"
    assert not check_file(folder / "out" / "train.jsonl").problems


def test_what_is_looked_for_names_all_boxes_found(folder):
    one = line("Find <ref-object>", "<bbox><bbox>", ["sheep"], [DOG, WOMAN])
    two = line("Find <ref-object> and <ref-object>.", "<bbox>, <bbox>", ["a dog", "a woman"], [DOG, WOMAN])
    three = line("Find <ref-object>, <ref-object>.", "<bbox>, <bbox>, <bbox>", ["x", "y"], [DOG, WOMAN, DOG])
    assert run(folder, [one, two, three], "--refs", "categories") == 0
    found = records(folder)
    assert [r.captions for r in found] == [("sheep",)] * 2 + [("a dog",), ("a woman",)] + [()] * 3
    assert [r.category for r in found] == ["sheep", "sheep", "a dog", "a woman", None, None, None]


def test_answers_to_a_question_about_one_box_are_its_captions(folder):
    turns = [
        "What is <bbox>?",
        "A brown dog.",
        "And <bbox>?",
        "It is <ref-object> with a <ref-object>.",
        "Day?",
        "Yes",
        "<bbox>?",
    ]
    entry = {
        "images": "a.png",
        "messages": [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)],
        "objects": {"ref": ["a woman", "hat"], "bbox": [DOG, WOMAN, [1, 2, 30, 40]]},
    }
    assert run(folder, [entry]) == 0
    assert [r.captions for r in records(folder)] == [("A brown dog.",), ("It is a woman with a hat.",), ()]


def test_every_type_of_box_in_its_own_image(folder):
    lines = [
        line("<bbox>", "x", [], [[0.25, 0.5, 0.75, 1.0]], bbox_type="norm1"),
        line("<bbox>", "x", [], [[250, 500, 750, 1000]], bbox_type="norm1000"),
        line("<bbox>", "x", [], [[50, 50, 150, 100]], bbox_type="real"),
        line("<bbox><bbox>", "", [], [[0.5, 0, 1, 1]] * 2, ("a.png", "b.png"), bbox_type="norm1", image_id=[1, 0]),
        {"query": "<bbox>", "response": "a cup", "images": [{"path": "b.png"}], "objects": {"bbox": [[1, 2, 30, 40]]}},
        {"messages": [], "images": ["a.png"]},
    ]
    assert run(folder, lines) == 0
    found = records(folder)
    assert [r.box for r in found[:3]] == [(50, 50, 150, 100)] * 3
    assert found[3].box == (200, 0, 400, 300) and found[4].box == (100, 0, 200, 100)
    assert found[5].captions == ("a cup",) and found[5].image_hw == (300, 400) and len(found) == 6


def test_points_are_left_out_and_counted(folder, capsys):
    lines = [line("Click", "<bbox><bbox>", [], [[61, 22], DOG])]
    assert run(folder, lines) == 0
    assert [r.id for r in records(folder)] == ["mine-0-1"] and "1  points left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (line("<bbox>", "x", [], [DOG, WOMAN]), "1 <bbox> in the text, but 2 in `objects`"),
        (line("<bbox><ref-object>", "x", [], [DOG]), "1 <ref-object> in the text, but 0"),
        (line("<bbox>", "x", [], [[1, 2, 3]]), "bbox 0, .1, 2, 3.: expected four numbers"),
        (line("<bbox>", "x", [], ["1,2,3,4"]), "bbox 0"),
        (line("<bbox>", "x", [], [DOG], bbox_type="norm1"), "bbox 0, 'norm1': .*far outside 0..1"),
        (
            line("<bbox>", "x", [], [DOG], bbox_type="pixels"),
            "bbox_type 'pixels': expected one of real, norm1, norm1000",
        ),
        (line("<bbox>", "x", [], [DOG], image_id=[1]), "image_id 1 of box 0, but there are 1 images"),
        (line("<bbox>", "x", [], [DOG], image_id=[0, 0]), "image_id .* for 1 boxes"),
        (line("<bbox>", "x", [], [DOG], ()), "images \\[\\]"),
        (line("<bbox>", "x", [], [DOG], ("/xxx/a.png",)), "--image-prefix '/xxx/'"),
        ({"images": ["a.png"], "objects": []} | {"objects": [1]}, "objects of type list"),
        (line("<bbox>", "x", "cup", [DOG]), "ref, a list of texts"),
    ],
)
def test_a_bad_line_is_named(folder, capsys, entry, rule):
    assert run(folder, [line("<bbox>", "x", [], [DOG]), entry], "--strict") == 2
    with pytest.raises(AssertionError, match=f"mine.jsonl:2.*{rule}"):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_boxes_of_another_kind_than_the_file_says_are_refused(folder, capsys):
    boxes = [[k * 30, 300 + k * 20, k * 30 + 200, 500 + k * 20] for k in range(25)]
    lines = [line("<bbox>", "x", [], [box], ("b.png",), bbox_type="real") for box in boxes]
    assert run(folder, lines) == 2
    assert "as 'xyxy-1000' 100% fit" in capsys.readouterr().err


def test_whole_conversations_name_any_number_of_boxes(folder, capsys):
    turns = [
        "<image>Is <bbox> left of <bbox>?",
        "<bbox> is <ref-object>.",
        "Where is it?",
        "At <bbox>.",
        "Day?",
        "Yes.",
    ]
    entry = {
        "images": ["a.png"],
        "messages": [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)],
        "objects": {"ref": ["a dog"], "bbox": [DOG, WOMAN, DOG, [1, 2, 30, 40]]},
    }
    assert run(folder, [entry], "--chats") == 0
    (chat,) = records(folder)
    assert [region.box for region in chat.regions] == [tuple(DOG), tuple(WOMAN)]
    assert chat.questions == ("Is <region0> left of <region1>?", "Day?") and chat.captions[1:] == ("Yes.",)
    assert "answers left out: they name a region" in capsys.readouterr().out
    several = line("<image>Which is it?", "This.", [], [], ("a.png", "b.png"))
    assert run(folder, [several], "--chats") == 2
    assert "several pictures" in capsys.readouterr().err
