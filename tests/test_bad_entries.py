"""Converters of users' own data: bad entries are left out and counted, pictures found by name, dialects read."""

import json
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_prep import coco, csv_boxes, cvat, label_studio, llava, swift
from data_prep.converter import write
from data_prep.counts import Tally
from data_prep.polygons import turn
from dynrefer.data import open_records
from dynrefer.data.coco import known_id
from dynrefer.data.records import Region
from dynrefer.images import upright
from dynrefer.masks import mask_to_box, mask_to_rle, to_mask

CASES = Path(__file__).parent / "fixtures" / "cases"
HW = (50, 100)
SQUARE = [10, 8, 30, 8, 30, 28, 10, 28]
IMAGE = {"id": 1, "file_name": "a.jpg", "height": 50, "width": 100}
GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 20, 20]}
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", HW[::-1]).save(tmp_path / "photos" / "a.jpg")
    return tmp_path


def convert(folder, main, option, content, *options, name="in.json", images="photos"):
    """(exit status, records) of a converter."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    shutil.rmtree(folder / "out", ignore_errors=True)
    out = folder / "out" / "train.jsonl"
    status = main([option, str(path), "--images", str(folder / images), "--out", str(out), *map(str, options)])
    return status, list(open_records(out)) if out.exists() else []


def own(folder, annotations, *options, images=(IMAGE,), categories=CATEGORIES, **choices):
    content = {"images": list(images), "annotations": annotations, "categories": categories}
    where = ("--dataset", "own", "--box-format", "xywh")
    return convert(folder, coco.main, "--annotations", content, *where, *options, **choices)


def case(folder, main, option, name, *options, images="img"):
    source = CASES / name
    shutil.copytree(CASES / name.split("/")[0], folder, dirs_exist_ok=True)
    out = folder / "out" / "train.jsonl"
    where = [option, str(source), "--images", str(CASES / name.split("/")[0] / images), "--out", str(out)]
    status = main([*where, *options])
    return status, list(open_records(out)) if out.exists() else []


COCO = ("--dataset", "own", "--box-format", "xywh")


@pytest.mark.parametrize(
    ("bad", "count", "message"),
    [
        ({"image_id": 9}, "annotations left out: their image_id is not of `images`", "image_id 9 is not there"),
        ({"category_id": "0"}, "annotations left out: their category_id is not of `cat", "category_id '0' is not th"),
        ({"bbox": [10, 8, -1, 20]}, "boxes left out: a side is negative", "annotation 2: box [10"),
        ({"bbox": [200, 8, 5, 20]}, "boxes left out: nothing of them in the image", "annotation 2: box [200"),
        ({"segmentation": {"size": [50, 100], "counts": [1, 2, 3]}}, "annotations left out: its mask", "add up to 6"),
        ({"bbox": []}, "annotations left out: not as the format has it", "annotation 2: neither a bbox nor a seg"),
        ({"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, "boxes left out: not four numbers", "{'x': 1, 'y': 2"),
        ({"bbox": [10, 8, float("nan"), 20]}, "boxes left out: a number is not finite", "nan, 20]"),
        ({"iscrowd": "maybe"}, "annotations left out: not as the format has it", "iscrowd 'maybe'"),
        ({"id": None}, "annotations left out: not as the format has it", "id None is no number and no text"),
        ({"segmentation": {"size": [9, 9], "counts": "x"}}, "annotations left out: its mask is damaged", "(9, 9)"),
        ({"image_id": 2}, "images left out: its image cannot be read", "image 2"),
        ({"image_id": 3}, "images left out: its image is not in the folder", "image 'none.jpg' is not in"),
        ({"image_id": 4}, "images left out: its image has another size than recorded", "is (50, 100), the annotation"),
    ],
)
def test_a_bad_entry_is_left_out_counted_and_named_and_an_error_when_strict(folder, capsys, bad, count, message):
    (folder / "photos" / "bad.jpg").write_bytes(b"no picture")
    more = {2: {"file_name": "bad.jpg"}, 3: {"file_name": "none.jpg"}, 4: {"height": 5}}
    number = bad.get("image_id")
    images = [IMAGE, *({**IMAGE, "id": k, **more[k]} for k in more if k == number)]
    annotations = [GOOD, {**GOOD, "id": 2, **bad}, {**GOOD, "id": 3}]
    status, records = own(folder, annotations, images=images)
    printed = capsys.readouterr()
    assert status == 0 and [record.id for record in records] == ["in-train-1", "in-train-3"]
    assert f"1  {count}" in printed.out and message in printed.err
    what, _, why = count.partition(" left out: ")
    assert printed.out.splitlines()[-1].startswith(f"-> {folder}/out/train.jsonl; left out most: 1 {what}: {why}")
    assert own(folder, annotations, "--strict", images=images) == (2, [])
    assert message in capsys.readouterr().err


def test_a_mask_beside_its_picture_is_left_out_and_its_box_stays(folder, capsys):
    outside = {**GOOD, "segmentation": [[200, 60, 300, 60, 300, 90]]}
    status, records = own(folder, [outside])
    assert status == 0 and records[0].mask is None and records[0].box == (10, 8, 30, 28)
    assert "1  masks left out: nothing of them in the image" in capsys.readouterr().out
    assert own(folder, [outside], "--strict")[0] == 2


@pytest.mark.parametrize("sides", [(50.0, 100.0), ("50", "100")])
def test_sides_of_pictures_are_read_as_texts_and_with_points(folder, sides):
    _, records = own(folder, [GOOD], images=[{**IMAGE, "height": sides[0], "width": sides[1]}])
    assert records[0].image_hw == HW


def test_what_is_said_of_a_bad_picture_is_not_said_of_its_annotations(folder, capsys):
    nameless = {"id": 2, "file_name": 5, "height": 50, "width": 100}
    status, records = own(folder, [GOOD, {**GOOD, "id": 2, "image_id": 2}], images=[IMAGE, nameless])
    out, err = capsys.readouterr()
    assert status == 0 and len(records) == 1 and "file_name 5 is no text" in err and err.count("left out") == 1
    assert "1  annotations left out with their image" in out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": [IMAGE], "annotations": [], "categories": CATEGORIES}, "its 'annotations' holds no entries"),
        ({"images": [IMAGE], "categories": CATEGORIES}, "but an object with 'images', 'categories'"),
        ([GOOD], "a list or a single value"),
    ],
)
def test_a_file_of_another_form_is_told_by_what_it_holds(folder, capsys, content, said):
    status, _ = convert(folder, coco.main, "--annotations", content, *COCO)
    assert status == 2 and said in capsys.readouterr().err


def test_a_file_of_another_program_names_its_converter(folder, capsys):
    entries = [{"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>hello"}]}]
    status, _ = convert(folder, llava.main, "--json", entries, "--box-format", "xyxy")
    assert status == 2 and "`python -m data_prep.swift` reads such files" in capsys.readouterr().err


def test_a_picture_in_a_folder_below_is_named(folder, capsys):
    (folder / "photos" / "train").mkdir()
    Image.new("RGB", HW[::-1]).save(folder / "photos" / "train" / "b.jpg")
    status, _ = own(folder, [GOOD], images=[{**IMAGE, "file_name": "b.jpg"}])
    assert status == 2 and f"but train/b.jpg does: say --images {folder}/photos/train" in capsys.readouterr().err


def test_the_last_line_names_what_was_left_out_most(folder, capsys):
    bad = [{**GOOD, "id": k, "bbox": [1, 2, 3]} for k in range(5, 8)]
    assert own(folder, [GOOD, {**GOOD, "id": 2, "iscrowd": 1}, *bad])[0] == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; left out most: 3 boxes: not four numbers")


@pytest.mark.parametrize(
    ("main", "option", "content", "options", "name"),
    [
        (
            llava.main,
            "--json",
            [{"image": "a.jpg", "bboxes": [[1, 2, 30, 40]]}, {"image": "none.jpg", "bboxes": [[1, 2, 30, 40]]}, 5],
            ("--box-format", "xyxy"),
            "in.json",
        ),
        (
            csv_boxes.main,
            "--csv",
            "image,x1,y1,x2,y2\na.jpg,1,2,30,40\na.jpg,x,2,30,40\n",
            ("--box-format", "xyxy"),
            "a.csv",
        ),
        (
            swift.main,
            "--jsonl",
            "".join(
                json.dumps({"images": ["a.jpg"], "query": "<bbox>", "response": "x", "objects": {"bbox": [box]}}) + "\n"
                for box in ([1, 2, 30, 40], [1, 2, 3], "1,2,3,4")
            ),
            (),
            "in.jsonl",
        ),
    ],
)
def test_other_converters_have_the_same_rule(folder, capsys, main, option, content, options, name):
    status, records = convert(folder, main, option, content, *options, name=name)
    assert status == 0 and len(records) == 1
    assert "; left out most: " in capsys.readouterr().out.splitlines()[-1]
    assert convert(folder, main, option, content, *options, "--strict", name=name) == (2, [])


def test_an_empty_outcome_prints_the_counts_and_names_the_largest(folder, capsys):
    assert case(folder, coco.main, "--annotations", "crowds_only/allcrowd.json", *COCO) == (2, [])
    printed = capsys.readouterr()
    assert "3  crowd regions left out\n" in printed.out
    assert "no regions came out; 3 crowd regions left out: --keep-crowd keeps them" in printed.err
    texts = [{"id": str(k), "conversations": [{"from": "human", "value": "hello"}]} for k in range(4)]
    assert convert(folder, llava.main, "--json", texts, "--box-format", "xyxy") == (2, [])
    assert "4 entries left out: no image, only text" in capsys.readouterr().err
    tasks = [{"id": k, "data": {"image": "a.jpg"}, "predictions": [{"result": []}]} for k in range(2)]
    assert convert(folder, label_studio.main, "--export", tasks) == (2, [])
    assert "2 tasks left out: predictions, but no annotation: accept or correct" in capsys.readouterr().err


# --- pictures by their names


@pytest.mark.parametrize(
    ("on_disk", "named"),
    [
        ("JPEGImages/a.jpg", "JPEGImages\\a.jpg"),
        ("a.jpg", ".\\a.jpg"),
        ("b.jpg", "b.JPG"),
        ("sub/B.JPG", "SUB/b.jpg"),
        (unicodedata.normalize("NFD", "café_año.jpg"), unicodedata.normalize("NFC", "café_año.jpg")),
        (unicodedata.normalize("NFC", "Ünï/é.jpg"), unicodedata.normalize("NFD", "Ünï\\é.jpg")),
        ("a.jpg", "FOLDER/a.jpg"),
        ("a.jpg", "file://FOLDER/a.jpg"),
    ],
)
def test_a_picture_is_found_by_its_name_in_every_converter(folder, on_disk, named):
    path = folder / "photos" / on_disk
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", HW[::-1]).save(path)
    named = named.replace("FOLDER", str(folder / "photos"))
    entry = {"images": [named], "query": "<bbox>", "response": "x", "objects": {"bbox": [[10, 8, 30, 28]]}}
    value = {"x": 10, "y": 16, "width": 20, "height": 40, "rectanglelabels": ["cat"]}
    shape = {"id": "r", "type": "rectanglelabels", "original_width": 100, "original_height": 50, "value": value}
    xml = f'<annotations><image id="0" name="{named}" width="100" height="50">' + (
        '<box label="cat" xtl="10" ytl="8" xbr="30" ybr="28"/></image></annotations>'
    )
    found = [
        own(folder, [GOOD], images=[{**IMAGE, "file_name": named}]),
        convert(folder, llava.main, "--json", [{"image": named, "bboxes": [[10, 8, 30, 28]]}], "--box-format", "xyxy"),
        convert(folder, csv_boxes.main, "--csv", f"image,x1,y1,x2,y2\n{named},10,8,30,28\n", "--box-format", "xyxy"),
        convert(folder, swift.main, "--jsonl", json.dumps(entry), name="in.jsonl"),
        convert(folder, cvat.main, "--export", xml),
    ]
    if "://" not in named and "\\" not in named:
        tasks = [{"id": 1, "data": {"image": named}, "annotations": [{"result": [shape]}]}]
        found.append(convert(folder, label_studio.main, "--export", tasks))
    for status, records in found:
        assert status == 0 and [record.image for record in records] == [f"../photos/{on_disk}"]
        assert records[0].box == (10, 8, 30, 28)


@pytest.mark.parametrize("named", ["C:\\Users\\x\\data\\a.jpg", "/home/other/data/a.jpg", "data/a.jpg"])
def test_another_root_is_named_with_the_option_that_removes_it(folder, capsys, named):
    images = [{**IMAGE, "file_name": named}]
    assert own(folder, [GOOD], images=images) == (2, [])
    prefix = named.replace("\\", "/").removesuffix("a.jpg")
    assert f"but a.jpg does: say --image-prefix {prefix!r}" in capsys.readouterr().err
    assert own(folder, [GOOD], "--image-prefix", prefix, images=images)[0] == 0
    assert own(folder, [GOOD], "--image-prefix", prefix.rstrip("/"), images=images)[0] == 0


def test_two_files_that_differ_in_case_only_are_not_guessed(folder, capsys):
    for name in ("b.JPG", "B.jpg"):
        Image.new("RGB", HW[::-1]).save(folder / "photos" / name)
    assert own(folder, [GOOD], images=[{**IMAGE, "file_name": "b.jpg"}]) == (2, [])
    assert "but B.jpg and b.JPG are; name one of them" in capsys.readouterr().err


def test_two_names_that_find_the_same_picture_are_refused(folder, capsys):
    images = "".join(
        f'<image id="{k}" name="{name}" width="100" height="50"/>' for k, name in enumerate(["a.jpg", "A.JPG"])
    )
    assert convert(folder, cvat.main, "--export", f"<annotations>{images}</annotations>") == (2, [])
    assert "id='0' name='a.jpg' and id='1' name='A.JPG' would both be " in capsys.readouterr().err


def test_two_names_of_coco_that_find_the_same_picture_are_refused(folder, capsys):
    images = [{**IMAGE, "id": number, "file_name": name} for number, name in ((7, "a.jpg"), (8, "A.JPG"))]
    assert own(folder, [GOOD], images=images) == (2, [])
    assert "file_name 'A.JPG' would be ../photos/a.jpg, and so would 'a.jpg'; give" in capsys.readouterr().err


@pytest.mark.parametrize("more", ['subset="val"', 'task_id="2"', 'job_id="5"'])
def test_two_pictures_of_one_name_are_refused(folder, capsys, more):
    box = '<box label="cat" xtl="10" ytl="8" xbr="30" ybr="28"/>'
    image = '<image id="{}" name="a.jpg" width="100" height="50" {}>{}</image>'
    xml = f"<annotations>{image.format(0, '', box)}{image.format(7, more, box)}</annotations>"
    assert convert(folder, cvat.main, "--export", xml) == (2, [])
    message = capsys.readouterr().err
    assert "id='0' name='a.jpg'" in message and "id='7' name='a.jpg'" in message and "would both be a.jpg" in message
    if "subset" in more:  # each in its folder
        (folder / "photos" / "val").mkdir()
        shutil.copy(folder / "photos" / "a.jpg", folder / "photos" / "val" / "a.jpg")
        status, records = convert(folder, cvat.main, "--export", xml)
        assert status == 0 and [r.image for r in records] == ["../photos/a.jpg", "../photos/val/a.jpg"]


def test_two_addresses_that_would_be_one_picture_are_refused(folder, capsys):
    value = {"x": 10, "y": 16, "width": 20, "height": 40, "rectanglelabels": ["cat"]}
    shape = {"id": "r", "type": "rectanglelabels", "original_width": 100, "original_height": 50, "value": value}

    def tasks(*names):
        return [{"id": k, "data": {"image": n}, "annotations": [{"result": [shape]}]} for k, n in enumerate(names)]

    addresses = ("/data/local-files/?d=one/a.jpg", "/data/local-files/?d=two/a.jpg")
    assert convert(folder, label_studio.main, "--export", tasks(*addresses)) == (2, [])
    assert "image 'two/a.jpg' would be ../photos/a.jpg, and so would 'one/a.jpg'" in capsys.readouterr().err
    assert len(convert(folder, label_studio.main, "--export", tasks(addresses[0], addresses[0]))[1]) == 2


# --- dialects


def shape(region_id, x, label=None, kind="rectangle", **more):
    value = {"x": x, "y": 10, "width": 20, "height": 20, "rotation": 0}
    value |= {f"{kind}labels": [label]} if label else {}
    return {"id": region_id, "type": f"{kind}labels", "from_name": "label", "value": value} | more


def test_two_forms_of_one_id_are_two_regions(folder, capsys):
    status, records = case(folder, label_studio.main, "--export", "label_studio_ids/sameid.json")
    assert status == 0 and [(r.category, r.box) for r in records] == [
        ("people", (0, 0, 20, 10)),
        ("car", (50, 25, 70, 35)),
    ]


@pytest.mark.parametrize("region_id", [None, "", "r", 0])
def test_ids_that_tell_nothing_apart_leave_forms_apart(folder, capsys, region_id):
    caption = shape(region_id, 50) | {"type": "textarea"}
    caption["value"] |= {"text": ["the second"]}
    loose = {"id": region_id, "type": "choices", "from_name": "c", "value": {"choices": ["red"]}}
    results = [shape(region_id, 0, "people"), shape(region_id, 50, "car"), caption, loose]
    tasks = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": results}]}]
    status, records = convert(folder, label_studio.main, "--export", tasks)
    assert status == 0 and [(r.category, r.captions) for r in records] == [("people", ()), ("car", ("the second",))]
    if region_id not in (None, ""):
        assert "1  left out, said of an id that 2 regions share: choices" in capsys.readouterr().out
    assert all(record.attributes == {} for record in records)


@pytest.mark.parametrize("name", ["other_text_keys/description.json", "other_text_keys/cvatattr.json"])
def test_texts_under_other_keys_are_captions(folder, name):
    status, records = case(folder, coco.main, "--annotations", name, *COCO)
    assert status == 0 and [r.captions for r in records] == [("a green square on red",)] * 2


def test_texts_in_lists_of_named_values_are_captions_or_told(folder, capsys):
    listed = [{"name": "description", "value": "a cup"}, {"name": "state", "value": "broken"}]
    _, records = own(folder, [{**GOOD, "attributes": listed}])
    assert records[0].captions == ("a cup",)
    assert "texts not read: attributes.state (--text-key attributes.state takes them)" in capsys.readouterr().out


def test_texts_that_are_not_read_are_told_and_can_be_asked_for(folder, capsys):
    annotations = [
        {**GOOD, "note": "a cup"},
        {**GOOD, "id": 2, "note": "a mug", "attributes": {"by": "Ann"}},
        {**GOOD, "id": 3, "sentences": [{"sent": "a jug", "tokens": ["a", "jug"]}], "phrase": float("nan")},
    ]
    status, records = own(folder, annotations)
    printed = capsys.readouterr().out
    assert status == 0 and [r.captions for r in records] == [(), (), ("a jug",)]
    assert "2  texts not read: note (--text-key note takes them)" in printed and "attributes.by" in printed
    assert "2  regions without a caption" in printed and "1  captions" in printed
    assert [r.captions for r in own(folder, annotations, "--text-key", "note")[1]] == [("a cup",), ("a mug",), ()]
    assert own(folder, annotations, "--text-key", "notes") == (2, [])
    assert "nothing under 'notes' (--text-key). Did you mean 'note'?" in capsys.readouterr().err


def test_texts_of_other_programs_meta_attributes_and_columns(folder, capsys):
    results = [shape("r", 0, "cup", meta={"text": ["a red cup"]}), shape("q", 50, "cup", meta={"note": "a blue cup"})]
    tasks = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": results}]}]
    assert [r.captions for r in convert(folder, label_studio.main, "--export", tasks)[1]] == [("a red cup",), ()]
    assert "1  texts not read: note" in capsys.readouterr().out
    found = convert(folder, label_studio.main, "--export", tasks, "--text-key", "note")[1]
    assert [r.captions for r in found] == [(), ("a blue cup",)]
    entry = [{"image": "a.jpg", "objects": [{"bbox": [1, 2, 30, 40], "text": "a cup", "label": "cup"}]}]
    assert convert(folder, llava.main, "--json", entry, "--box-format", "xyxy")[1][0].captions == ("a cup",)
    table = "image,x1,y1,x2,y2,description,who\na.jpg,1,2,30,40,a cup,Ann\n"
    assert convert(folder, csv_boxes.main, "--csv", table, "--box-format", "xyxy")[1][0].captions == ("a cup",)
    assert "1  texts not read: column who (--caption-column who takes them)" in capsys.readouterr().out
    kinds = "<meta><task><labels><label><name>cat</name><attributes>" + "".join(
        f"<attribute><name>{name}</name><input_type>text</input_type></attribute>" for name in ("Description", "note")
    )
    xml = f"""<annotations>{kinds}</attributes></label></labels></task></meta>
        <image id="0" name="a.jpg" width="100" height="50"><box label="cat" xtl="10" ytl="8" xbr="30" ybr="28">
        <attribute name="Description">a cup</attribute><attribute name="note">mine</attribute></box></image>
        </annotations>"""
    assert convert(folder, cvat.main, "--export", xml)[1][0].captions == ("a cup",)
    assert "1  texts not read: attribute note (--caption-attribute note takes them)" in capsys.readouterr().out


def test_entries_of_text_only_and_boxes_in_texts_are_counted(folder, capsys):
    options = ("--box-format", "xyxy", "--first-region", "1")
    status, records = case(folder, llava.main, "--json", "text_only_entries/textonly.json", *options)
    assert status == 0 and [r.captions for r in records] == [("a green square",)]
    assert "2  entries left out: no image, only text" in capsys.readouterr().out
    status, records = case(folder, swift.main, "--jsonl", "boxes_in_text/mixed.jsonl")
    printed = capsys.readouterr()
    assert status == 0 and [r.captions for r in records] == [("a dog",)]
    assert "2  entries left out: their boxes are written in the text" in printed.out and "bbox_2d" in printed.err
    for text in ("the cup <box>[[10, 8, 30, 28]]</box>", "at [0.1, 0.2, 0.3, 0.4]", '{"bbox": [1, 2, 3, 4]}'):
        talk = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": text}]
        entry = [{"image": "a.jpg", "conversations": talk}]
        assert convert(folder, llava.main, "--json", entry) == (2, [])
        assert "1 entries left out: their boxes are written in the text" in capsys.readouterr().err


def test_boxes_may_be_drawn_from_any_corner(folder):
    status, records = case(folder, label_studio.main, "--export", "negative_sides/neg.json")
    assert status == 0 and [r.box for r in records] == [(40, 15, 60, 30), (10, 5, 30, 20), (20, 10, 40, 25)]
    xml = '<annotations><image id="0" name="a.jpg" width="100" height="50">' + (
        '<box label="cat" xtl="30" ytl="28" xbr="10" ybr="8"/></image></annotations>'
    )
    assert convert(folder, cvat.main, "--export", xml)[1][0].box == (10, 8, 30, 28)


def test_masks_of_every_dialect_are_kept(folder):
    pairs = [[SQUARE[k], SQUARE[k + 1]] for k in range(0, 8, 2)]
    inside = to_mask([SQUARE], HW)
    left, right = inside.copy(), inside.copy()
    left[:, 20:], right[:, :20] = False, False
    dialects = [
        *([SQUARE], SQUARE, [pairs], pairs, [[SQUARE]], [[pairs]]),
        *(mask_to_rle(inside), [mask_to_rle(inside)], [mask_to_rle(left), mask_to_rle(right)]),
        *({**mask_to_rle(inside), "format": "coco"}, [{**mask_to_rle(inside), "area": 400}]),
    ]
    annotations = [{**GOOD, "id": k, "segmentation": mask} for k, mask in enumerate(dialects)]
    status, records = own(folder, annotations)
    assert status == 0 and len(records) == len(dialects)
    assert all((record.to_mask() == inside).all() for record in records)
    entry = [{"image": "a.jpg", "masks": [[pairs]], "bboxes": [[10, 8, 30, 28]]}]
    assert (convert(folder, llava.main, "--json", entry, "--box-format", "xyxy")[1][0].to_mask() == inside).all()
    status, records = case(folder, coco.main, "--annotations", "nested_polygons/nested.json", *COCO)
    assert records[0].mask == [[10, 8, 30, 8, 30, 28]]


def test_a_root_category_without_annotations_is_no_class(folder):
    name = "root_category/train/_annotations.coco.json"
    status, records = case(folder, coco.main, "--annotations", name, *COCO, images="train")
    assert status == 0 and (folder / "out" / "categories.txt").read_text() == "cat\ndog\n"
    roots = [{"id": 0, "name": "pets", "supercategory": "none"}] + [{**c, "supercategory": "pets"} for c in CATEGORIES]
    assert own(folder, [GOOD, {**GOOD, "id": 2, "category_id": 0}], categories=roots)[0] == 0  # one that is annotated
    assert (folder / "out" / "categories.txt").read_text() == "pets\ncat\ndog\n"


def test_crowds_and_ids_are_read_as_numbers_and_as_texts(folder, capsys):
    values = [0, "0", False, None, 0.0, "false", float("nan"), 1, "1", True, 1.0]
    annotations = [{**GOOD, "id": k, "iscrowd": value} for k, value in enumerate(values)]
    status, records = own(folder, annotations)
    assert status == 0 and len(records) == 7 and "4  crowd regions left out" in capsys.readouterr().out
    status, records = own(folder, [{**GOOD, "id": "7", "image_id": "1", "category_id": 1.0}])
    assert status == 0 and records[0].id == "in-train-7"
    for other in ("1", 1.0):
        assert own(folder, [GOOD, {**GOOD, "id": other}]) == (2, [])
        assert "annotation id 1 stands in it twice" in capsys.readouterr().err
    assert known_id("01") == "01" and known_id(True) is None and known_id([]) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_of_stored_pixels_turn_with_the_picture(orientation):
    mask = to_mask([[10, 8, 30, 8, 30, 20]], HW)
    expected = upright(mask, orientation)
    box, rle, image_hw = turn(tuple(mask_to_box(mask)), mask_to_rle(mask), orientation, HW)
    assert image_hw == expected.shape and (to_mask(rle, image_hw) == expected).all()
    assert box == tuple(mask_to_box(expected))
    _, polygons, _ = turn(None, [[10, 8, 30, 8, 30, 20]], orientation, HW)
    assert (to_mask(polygons, image_hw) != expected).sum() <= 30  # pixels of an edge


def test_boxes_drawn_before_exif_turned_the_picture(folder, capsys):
    assert case(folder, coco.main, "--annotations", "exif/raw.json", *COCO) == (2, [])
    assert "before its EXIF orientation turns it; say --stored-pixels" in capsys.readouterr().err
    status, records = case(folder, coco.main, "--annotations", "exif/raw.json", *COCO, "--stored-pixels")
    assert status == 0 and records[0].image_hw == (64, 48) and records[0].box == (26, 30, 46, 45)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: 64 wide, 48 high; shown 48 wide, 64 high
    Image.new("RGB", (64, 48)).save(folder / "photos" / "p.jpg", exif=exif)
    table = "image,x1,y1,x2,y2\np.jpg,30,2,45,22\n"
    options = ("--box-format", "xyxy", "--stored-pixels")
    records = convert(folder, csv_boxes.main, "--csv", table, *options)[1]
    assert records[0].image_hw == (64, 48) and records[0].box == (26, 30, 46, 45)


@pytest.mark.parametrize("text", ["a cup \ud83d", "\ude00 a cup"])
def test_half_of_a_character_is_named_left_out_and_counted(folder, capsys, text):
    entries = [{**GOOD, "caption": "a cup 😀"}, {**GOOD, "id": 2, "caption": text}, {**GOOD, "id": 3, "area": text}]
    status, found = own(folder, entries)
    assert status == 0 and [region.captions for region in found] == [("a cup 😀",), ()]
    printed = capsys.readouterr()
    assert "annotation 2: caption " in printed.err and "half of a character in it" in printed.err
    assert "1  annotations left out: not as the format has it" in printed.out
    assert own(folder, entries, "--strict") == (2, [])
    assert own(folder, [GOOD], categories=[{"id": 1, "name": text}]) == (2, [])
    assert "error: a word for categories.txt, " in capsys.readouterr().err


def test_half_of_a_character_in_any_text_of_a_region_is_not_written(tmp_path, capsys):
    whole = Region("1", "a.jpg", HW, (0, 0, 9, 9), captions=("é",), attributes={"color:red": 1})
    halves = {"id": "\ud83d", "category": "\ud83d", "tags": ("cup", "\ud83d"), "attributes": {"\ud83d": 1}}
    regions, tally = (
        [whole, *(replace(whole, **{"id": f"{key}-2", key: half}) for key, half in halves.items())],
        Tally(),
    )
    assert write(tmp_path / "r.jsonl", regions, tally) == 1 and list(open_records(tmp_path / "r.jsonl")) == [whole]
    assert tally == {"regions left out: not as the format has it": 4}
    assert "region 'category-2': category '\\ud83d': half of a character in it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no regions came out; 4 regions left out"):
        write(tmp_path / "none.jsonl", regions[1:], Tally())
    with pytest.raises(ValueError, match="half of a character"):
        write(tmp_path / "strict.jsonl", regions, Tally(strict=True))
