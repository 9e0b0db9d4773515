"""Prediction files as other projects write them."""

import gzip
import json

import pytest

from dynrefer.data.records import Region
from eval.inputs.formats import read_any

ITEMS = [  # an expression each: two of the first image
    Region(f"refcocog-umd-val-e{number}", f"../train2014/COCO_train2014_{image:012d}.jpg", (8, 8), (0, 0, 4, 4))
    for number, image in ((0, 581857), (1, 581857), (2, 9))
]
LONE = [Region(f"vg-glamm-test-{n}", f"VG_100K/{image}.jpg", (8, 8), (0, 0, 4, 4)) for n, image in ((7, 61), (8, 62))]
TEXTS = ["a cup", "the lamp", ""]


def write(tmp_path, content, name="p.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", lines({"id": region.id, "caption": t} for region, t in zip(ITEMS, TEXTS, strict=True))),
        ("osprey.json", [{"image_id": str(n), "caption": t} for n, t in enumerate(TEXTS)]),
        ("glamm.json", [{"image_id": n, "caption": t} for n, t in enumerate(TEXTS)]),
        ("dam.json", {str(n): t for n, t in enumerate(TEXTS)}),
        ("nested.json", {str(n): {"caption": t} for n, t in enumerate(TEXTS)}),
        ("coco.json", {"images": [], "annotations": [{"id": n, "caption": t} for n, t in enumerate(TEXTS)]}),
        ("refl4.json", [{"id": n, "image": "x.jpg", "gt": "not this", "pred": t} for n, t in enumerate(TEXTS)]),
        ("refl4.jsonl", lines({"id": n, "image": "x.jpg", "pred": t} for n, t in enumerate(TEXTS))),
        (
            "answers.jsonl",
            lines(
                {"question_id": n, "prompt": "What?", "text": t, "answer_id": f"x{n}", "model_id": "m", "metadata": {}}
                for n, t in enumerate(TEXTS)
            ),
        ),
        ("lines.json", lines({"ann_id": f"e{n}", "output": [t]} for n, t in enumerate(TEXTS))),
    ],
)
def test_every_form_gives_the_same_captions(tmp_path, name, content):
    found = read_any(write(tmp_path, content, name), ITEMS)
    assert {i: result.caption for i, result in found.results.items()} == {
        region.id: text for region, text in zip(ITEMS, TEXTS, strict=True)
    }
    assert all(i == result.id for i, result in found.results.items()) and found.how


def test_an_image_with_one_region_is_named_by_its_image(tmp_path):
    path = write(tmp_path, [{"image_id": 62, "caption": "a"}, {"image_id": 61, "caption": "b"}])
    assert {i: r.caption for i, r in read_any(path, LONE).results.items()} == {
        "vg-glamm-test-8": "a",
        "vg-glamm-test-7": "b",
    }


def test_the_benchmarks_file_tells_images_from_annotations(tmp_path):
    path = write(tmp_path, [{"image_id": 2, "caption": "a"}])
    document = {"annotations": [{"id": 1, "image_id": 2}, {"id": 2, "image_id": 1}]}
    annotations = write(tmp_path, document, "finetune_refcocog_val_captions.json")
    assert list(read_any(path, ITEMS).results) == ["refcocog-umd-val-e2"]
    assert list(read_any(path, ITEMS, annotations=annotations).results) == ["refcocog-umd-val-e1"]


def test_two_readings_that_differ_are_not_guessed_between(tmp_path):
    entries = [{"id": n, "image_id": 2 - n, "caption": t} for n, t in enumerate(TEXTS)]
    path = write(tmp_path, entries)
    with pytest.raises(ValueError, match="by id or image_id, which differ; choose with --id-key"):
        read_any(path, ITEMS)
    assert read_any(path, ITEMS, id_key="id").results["refcocog-umd-val-e0"].caption == "a cup"
    same = write(tmp_path, [{"id": n, "image_id": n, "caption": t} for n, t in enumerate(TEXTS)])
    assert len(read_any(same, ITEMS).results) == 3


def test_an_end_that_several_ids_share_is_ambiguous(tmp_path):
    regions = [Region(f"lvis-val-{image}-0", f"{image}.jpg", (8, 8), (0, 0, 4, 4)) for image in (139, 140)]
    assert list(read_any(write(tmp_path, {"140-0": "a"}), regions).results) == ["lvis-val-140-0"]
    with pytest.raises(ValueError, match="id '0' fits several regions"):
        read_any(write(tmp_path, {"0": "a"}), regions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "no predictions"),
        ("[1]", "'1'; expected an object"),
        ("[{", "p.json: "),
        ('{"0": "a", "0": "b"}', "'0' stands twice"),
        ([{"id": 0, "caption": "a"}, {"id": "0", "caption": "b"}], "prediction 1: a second prediction for region"),
        ([{"id": 0, "caption": "a"}, {"id": 99, "caption": "b"}], "prediction 1: .*do not have, the first for 99"),
        ([{"caption": "a"}], "prediction 0: no id"),
        ([{"id": 0, "pred_bbox": [0, 0, 1, 1], "format": "xyxy"}], "no text in it, only id, pred_bbox"),
        ([{"id": 0, "caption": ["a", "b"]}], "expected one text"),
        ('[{"id": 0, "caption": "a", "score": NaN}]', "prediction 0: score nan; expected a finite number"),
        ([{"id": 0, "caption": "a", "score": "high", "x": 1}], "score 'high'"),
        ('[{"id": 0, "caption": "a", "score": 1' + "0" * 5000 + "}]", "p.json: the number 1000"),
        ('{"id": "refcocog-umd-val-e0", "captoin": "a"}', "no text in it, only id, captoin"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_any(write(tmp_path, content), ITEMS)


def test_bad_lines_are_named(tmp_path):
    path = write(tmp_path, '{"id": "refcocog-umd-val-e0", "caption": "a"}\n{"id": 7}\n', "p.jsonl")
    with pytest.raises(ValueError, match=r"p.jsonl:2: no text"):
        read_any(path, ITEMS)
    with pytest.raises(ValueError, match="no such file"):
        read_any(tmp_path / "none.json", ITEMS)


def test_packed_files_are_read_and_other_encodings_named(tmp_path):
    texts = json.dumps({str(n): t for n, t in enumerate(TEXTS)})
    path = tmp_path / "dam.json.gz"
    path.write_bytes(gzip.compress(texts.encode()))
    assert [result.caption for result in read_any(path, ITEMS).results.values()] == TEXTS
    path.write_bytes(gzip.compress(texts.encode())[:-12])
    with pytest.raises(ValueError, match="dam.json.gz: damaged or cut off gzip"):
        read_any(path, ITEMS)
    path = tmp_path / "dam.json"
    path.write_text(texts, encoding="utf-16")
    assert [result.caption for result in read_any(path, ITEMS).results.values()] == TEXTS
    path.write_bytes('{"0": "ein Löwe"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="dam.json: not UTF-8 text at byte 12; save it as UTF-8"):
        read_any(path, ITEMS)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="dam.json: nested too deeply"):
        read_any(path, ITEMS)


OWN = [Region(f"own-{n}", f"photos/été/IMG_{n:04d}.jpg", (8, 8), (0, 0, 4, 4)) for n in (100, 101, 102)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pandas.json", [{"id": float(n), "caption": t} for n, t in ((100, "a"), (101, None), (102, "c"))]),
        ("texts.json", [{"id": f"{n}.0", "caption": t} for n, t in ((100, "a"), (101, ""), (102, "c"))]),
        ("columns.csv", "id,caption\n100.0,a\n101.0,\n102.0,c\n"),
        ("semicolons.csv", "\ufeffregion_id;caption;score\r\nown-100;a;0.5\r\nown-101;;\r\nown-102;c;1\r\n"),
        ("tabs.CSV", "id\tcaption\n100\ta\n101\t\n102\tc\n"),
        ("missing.json", '[{"id": 100, "caption": "a"}, {"id": 101, "caption": NaN}, {"id": 102, "caption": "c"}]'),
        (
            "own.jsonl",
            '{"id": "own-100", "caption": "a"}\n{"id": "own-101", "caption": null}\n{"id": "own-102", "caption": "c"}',
        ),
        (
            "root.json",
            [
                {"image_id": f"/home/me/été/IMG_0{n}.jpg", "caption": t}
                for n, t in zip((100, 101, 102), "a c", strict=True)
            ],
        ),
        ("back.json", {f"C:\\été\\IMG_0{n}.JPEG": t for n, t in zip((100, 101, 102), "a c", strict=True)}),
        ("image.csv", "image,caption\nother/IMG_0100.jpg,a\nother/IMG_0101.jpg,\nother/IMG_0102.jpg,c\n"),
    ],
)
def test_ids_paths_and_tables_of_other_programs_are_read(tmp_path, name, content):
    found = read_any(write(tmp_path, content, name), OWN).results
    assert {i: result.caption.strip() for i, result in found.items()} == {"own-100": "a", "own-101": "", "own-102": "c"}


def test_a_picture_that_several_paths_fit_is_not_guessed(tmp_path):
    regions = [Region(str(n), f"{folder}/a.jpg", (8, 8), (0, 0, 4, 4)) for n, folder in ((7, "x"), (8, "y"))]
    assert list(read_any(write(tmp_path, [{"image": "/root/y/a.jpg", "caption": "a"}]), regions).results) == ["8"]
    for wrong, message in (("/root/z/a.jpg", "fits several regions"), ("/root/y/b.jpg", "theirs are like 'x/a.jpg'")):
        with pytest.raises(ValueError, match=message):
            read_any(write(tmp_path, [{"image": wrong, "caption": "a"}]), regions)
    with pytest.raises(ValueError, match="the first for 99.5 .* theirs are like '7'.*--id-key"):
        read_any(write(tmp_path, [{"id": 99.5, "caption": "a"}]), regions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,caption\n1,a,b\n", "p.csv: row 2 has 3 cells for 2 columns"),
        ('id,caption\n1,"a\n', "p.csv: not a .csv table .*write it anew"),
        ("id,caption,score\n100,a,high\n", "p.csv: row 2: score 'high' of 100: expected a finite number"),
        ("", "p.csv: columns \\[\\]; expected names"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_any(write(tmp_path, content, "p.csv"), OWN)


def test_captions_keep_tabs_quotes_and_other_alphabets(tmp_path):
    text = 'eine "Tasse"\t|||\nкружка 杯子'
    assert read_any(write(tmp_path, {"0": text}), ITEMS).results["refcocog-umd-val-e0"].caption == text


def test_several_texts_of_a_prediction_are_not_chosen_between(tmp_path):
    path = write(tmp_path, [{"id": n, "caption": f"truth {n}", "answer": text} for n, text in enumerate(TEXTS)])
    with pytest.raises(ValueError, match="prediction 0: caption 'truth 0' and answer 'a cup' differ.*--text-key KEY"):
        read_any(path, ITEMS)
    found = read_any(path, ITEMS, text_key="answer").results
    assert [result.caption for result in found.values()] == TEXTS
    with pytest.raises(ValueError, match="have no 'output', only id, caption, answer"):
        read_any(path, ITEMS, text_key="output")
    path = write(tmp_path, {"0": {"outputs": ["a cup"], "text": "a cup"}})
    assert read_any(path, ITEMS).results["refcocog-umd-val-e0"].caption == "a cup"
    own = write(tmp_path, lines([{"id": ITEMS[0].id, "caption": "a"}]), "p.jsonl")
    assert len(read_any(own, ITEMS, text_key="caption").results) == 1
    with pytest.raises(ValueError, match="have no 'answer'"):
        read_any(own, ITEMS, text_key="answer")


@pytest.mark.parametrize(
    "entry",
    [
        {"category": {"name": "cup", "score": "0.5"}},
        {"category": {"name": "cup", "score": None}},
        {"category": {"name": ["cup"], "score": 1}},
        {"category": {"name": "cup"}},
        {"category": ["cup"], "caption": "a cup"},
        {"category": ["cup"], "text": "a cup"},
        {"category_id": [1], "text": "a cup"},
        {"category_id": 1, "text": "a cup"},
        {"tags": [{"name": "cup", "score": "x"}]},
        {"tags": [{"name": "cup", "score": True}], "text": "a cup"},
        {"attributes": ["cup"]},
        {"box": ["a", 1, 2, 3]},
        {"box": [1, 2, 3]},
        {"scales": [None]},
        {"score": True, "caption": "a cup"},
        {"score": 10**400, "text": "a cup"},
        {"caption": 5},
    ],
)
def test_values_of_another_type_are_named_by_line(tmp_path, entry):
    path = write(tmp_path, lines([{"id": ITEMS[0].id, "caption": "a"}, {"id": ITEMS[1].id} | entry]), "p.jsonl")
    with pytest.raises(ValueError, match="p.jsonl:2: "):
        read_any(path, ITEMS)


@pytest.mark.parametrize("document", [[], {"categories": [1]}, {"categories": [{"id": 1}]}, {"categories": 5}])
def test_annotations_of_another_form_are_named(tmp_path, document):
    names = write(tmp_path, document, "names.json")
    with pytest.raises(ValueError, match="names.json: .*expected the benchmark's COCO JSON"):
        read_any(write(tmp_path, {"0": "a"}), ITEMS, annotations=names)


def test_where_scores_rank_all_have_one_or_none(tmp_path):
    entries = [{"id": n, "caption": text, "score": -3.0} for n, text in enumerate(TEXTS)]
    del entries[1]["score"]
    path = write(tmp_path, entries)
    with pytest.raises(ValueError, match="prediction 1: no score, which 2 of the 3 predictions have; they are ranked"):
        read_any(path, ITEMS, metrics=("densecap",))
    assert read_any(path, ITEMS, metrics=("captions",)).results  # nothing is ranked
    named = write(tmp_path, [{"id": 0, "category": "cup", "score": 0.5}, {"id": 1, "category": "cup"}])
    with pytest.raises(ValueError, match="prediction 1: no score"):
        read_any(named, ITEMS, metrics=("categories", "recognition"))
    own = [{"id": region.id, "category": {"name": "cup", "score": 1.0}} for region in ITEMS]
    assert read_any(write(tmp_path, lines(own), "p.jsonl"), ITEMS, metrics=("recognition",)).results


def test_a_category_id_needs_a_name_where_it_is_scored(tmp_path):
    path = write(tmp_path, [{"image_id": 0, "category_id": 1, "caption": "a cup"}])
    assert read_any(path, ITEMS, metrics=("captions",)).results["refcocog-umd-val-e0"].category is None
    with pytest.raises(ValueError, match="category_id 1 has no name"):
        read_any(path, ITEMS, metrics=("recognition",))


GRIT = {"category_id": 1, "score": 0.5, "object_descriptions": "a cup", "logit": 0.1}


def test_grits_own_file_is_brought_to_pixels(tmp_path):
    regions = [Region(str(n), f"VG_100K/{n}.jpg", (100, 200), (0, 0, 4, 4)) for n in (7, 8)]
    scale = 720 / 200
    scaled = [[36.0, 18.0, 36.0, 36.0], [18.0, 18.0, 199 * scale - 18, 99 * scale - 18]]
    path = write(tmp_path, [GRIT | {"image_id": n, "bbox": box} for n, box in zip((7, 8), scaled, strict=True)])
    found = read_any(path, regions, detected=True, metrics=("densecap",))
    assert found.results["0"].box == pytest.approx([10, 5, 20, 15])
    assert found.results["1"].box == pytest.approx([5, 5, 199, 99]) and found.results["1"].caption == "a cup"
    assert "720" in found.how and found.results["0"].score == 0.5
    pixels = [GRIT | {"image_id": n, "bbox": [10, 10, 60, 50]} for n in (7, 8)]
    found = read_any(write(tmp_path, pixels), regions, detected=True, metrics=("densecap",))
    assert found.results["0"].box == [10, 10, 70, 60] and "pixels" in found.how


def test_detections_are_boxes_of_images(tmp_path):
    entries = [
        {"image_id": 581857, "bbox": [1, 2, 3, 4], "score": 0.5, "caption": "a cup"},
        {"image_id": "COCO_train2014_000000000009", "box": [1, 2, 3, 4], "score": 0.25, "category_id": 5},
    ]
    names = write(tmp_path, {"categories": [{"id": 5, "name": "cup"}]}, "names.json")
    found = read_any(write(tmp_path, entries), ITEMS, detected=True, annotations=names)
    assert [result.box for result in found.results.values()] == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert list(found.images.values()) == [ITEMS[0].image, ITEMS[2].image]
    assert found.results["1"].category == {"name": "cup", "score": 0.25}
    with pytest.raises(ValueError, match="category_id 5 has no name"):
        read_any(write(tmp_path, entries), ITEMS, detected=True)
    for change, message in (
        ({"image_id": 3}, "image 3 is no image"),
        ({"bbox": [1, 2, 3]}, r"box \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 4]}, r"bbox \[1, 2, -3, 4\] is .*width and height of 0 or more"),
        ({"box": [5, 2, 3, 4]}, r"box \[5, 2, 3, 4\] is .*expected x1 <= x2"),
        ({"bbox": [True, 2, 3, 4]}, "four finite numbers"),
        ({"bbox": ["1", 2, 3, 4]}, "four finite numbers"),
        ({"score": None}, "score None"),
    ):
        with pytest.raises(ValueError, match=message):
            read_any(write(tmp_path, [entries[0] | change]), ITEMS, detected=True)


@pytest.mark.parametrize(
    "content", ['[{"id": "x", "cap', '{"1": "a", "2', '{"1": "a",\n"2": "b",\n"3', '{"id": "1", "capt']
)
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, content):
    with pytest.raises(ValueError, match=r"^\S*cut.json(:1)?: not .*damaged or cut off") as error:
        read_any(write(tmp_path, content, "cut.json"), ITEMS)
    assert str(error.value).count("cut.json") == 1
    whole = write(tmp_path, [{"image_id": 1, "caption": "a"}], "p.json")
    with pytest.raises(ValueError, match=r"^\S*cut.json: not JSON .*damaged or cut off"):
        read_any(whole, ITEMS, annotations=write(tmp_path, content, "cut.json"))
