"""JSON of others is read whatever a program saved it as; what is not JSON is named."""

import gzip
import json
import math
from pathlib import Path

import pytest

from data_prep import coco, llava
from dynrefer.data import open_records
from dynrefer.data.json_files import CHUNK, read_items, read_json, read_list, read_pairs
from dynrefer.files import read_jsonl

CASES = Path(__file__).parent / "fixtures" / "cases"
WORDS = 'a "NaN", -Infinity \\ café 日本'
DOCUMENT = {"images": [{"id": 1, "words": WORDS}], "annotations": [{"id": k, "area": k / 4} for k in range(3000)]}
STRANGE = {**DOCUMENT, "annotations": [{"id": k, "area": math.nan, "box": [-math.inf, k]} for k in range(3000)]}
SAVED = {
    "mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 without a mark": lambda text: text.encode("utf-16-le"),
    "utf-16 of another machine": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "packed": lambda text: gzip.compress(text.encode()),
    "packed with a mark": lambda text: gzip.compress(text.encode("utf-8-sig")),
    "packed utf-16": lambda text: gzip.compress(text.encode("utf-16")),
}


@pytest.mark.parametrize("saved", SAVED)
def test_every_way_to_save_a_file_gives_the_same_values(tmp_path, saved):
    path = tmp_path / "of_others.json"
    plain = {"images": [{"id": 1, "words": "café 日本"}], "size": 5}  # without what the slower reader is for
    path.write_bytes(SAVED[saved](json.dumps(plain, ensure_ascii=False)))
    assert list(read_items(path, "images.item")) == plain["images"] and dict(read_pairs(path)) == plain
    path.write_bytes(SAVED[saved](json.dumps(DOCUMENT, ensure_ascii=False)))
    assert list(read_items(path, "annotations.item")) == DOCUMENT["annotations"]
    assert read_json(path) == dict(read_pairs(path)) == DOCUMENT and read_list(path, "images") == DOCUMENT["images"]
    path.write_bytes(SAVED[saved]("".join(json.dumps(entry) + "\n" for entry in DOCUMENT["annotations"])))
    assert [value for _, value in read_jsonl(path)] == DOCUMENT["annotations"]


@pytest.mark.parametrize("saved", ["mark", "utf-16", "packed"])
def test_numbers_that_json_lacks_are_floats_and_words_stay_words(tmp_path, saved):
    path = tmp_path / "of_others.json"
    path.write_bytes(SAVED[saved](json.dumps(STRANGE, ensure_ascii=False)))
    assert list(read_items(path, "images.item")) == STRANGE["images"]
    found = list(read_items(path, "annotations.item"))
    assert [entry["id"] for entry in found] == list(range(3000)) and all(math.isnan(e["area"]) for e in found)
    assert all(entry["box"] == [-math.inf, entry["id"]] for entry in found)


@pytest.mark.parametrize("shift", range(12))
def test_a_number_across_the_border_of_two_reads_is_found(tmp_path, shift):
    path = tmp_path / "long.json"
    words = "x" * (CHUNK - 40 + shift)
    path.write_text(json.dumps([words, -math.inf, 5, words, math.nan, "NaN"]))
    found = list(read_items(path, "item"))
    assert found[:4] == [words, -math.inf, 5, words] and math.isnan(found[4]) and found[5] == "NaN"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "an empty file; copy or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a page in HTML"),
        (b"PK\x03\x04....", "zip archive; unpack it"),
        (json.dumps(DOCUMENT)[:-9].encode(), "is it cut off"),
        (json.dumps(DOCUMENT).encode("utf-16")[:-9], "is it cut off"),
        (gzip.compress(json.dumps(DOCUMENT).encode())[:-9], "damaged or cut off gzip"),
        (
            '[{"id": 7, "name": "Löffel"}]'.encode("latin-1"),
            "in the value of 'name' .behind id 7., .*Löffel.*iconv",
        ),
    ],
)
def test_what_is_no_json_is_named_with_the_next_step(tmp_path, content, rule):
    path = tmp_path / "of_others.json"
    path.write_bytes(content)
    for read in (
        lambda: list(read_items(path, "images.item")),
        lambda: read_json(path),
        lambda: dict(read_pairs(path)),
    ):
        with pytest.raises(ValueError, match=f"^{path}: .*{rule}"):
            read()


@pytest.mark.parametrize("case", ["byte_order_mark/coco.json", "nan_in_json/area.json"])
def test_coco_files_of_others_become_records(tmp_path, case):
    where = ["--annotations", str(CASES / case), "--images", str(CASES / case.split("/")[0] / "img")]
    options = ["--dataset", "own", "--box-format", "xywh", "--out", str(tmp_path / "train.jsonl")]
    assert coco.main([*where, *options]) == 0
    assert [r.box for r in open_records(tmp_path / "train.jsonl")] == [(10, 8, 30, 28)]


def test_json_lines_in_utf_16_and_packed_under_any_name_are_read(tmp_path):
    entry = {"image": "a.jpg", "bboxes": [[10, 8, 30, 28]], "caption": "a cup"}
    text = json.dumps(entry) + "\n"
    for name, content in (("a.jsonl", text.encode("utf-16")), ("b.jsonl", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        where = ["--json", str(tmp_path / name), "--images", str(CASES / "byte_order_mark" / "img")]
        assert llava.main([*where, "--box-format", "xyxy", "--out", str(tmp_path / "train.jsonl")]) == 0
        assert open_records(tmp_path / "train.jsonl")[0].box == (10, 8, 30, 28)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b'{"images": ' + b"[" * 100_000, "more than 1,000 lists and objects .*; mend it there, or write it anew"),
        (b'{"area": NaN, "images": [' + b'{"a": [' * 20_000, "more than 1,000 lists and objects"),
        (b'{"images": [{"id": 1},]}', "mend it there, or write it anew"),
        (b"{'images': [{'id': 1}]}", "mend it there, or write it anew"),
        (b'{"images": [{"id": 1}', "is it cut off"),
        (b"\0" * 500, "nothing but zeros"),
    ],
)
def test_the_next_step_fits_what_is_wrong(tmp_path, content, rule):
    path = tmp_path / "of_others.json"
    path.write_bytes(content)
    for read in (lambda: list(read_items(path, "images.item")), lambda: read_json(path)):
        with pytest.raises(ValueError, match=rule):
            read()


def test_brackets_in_texts_are_no_depth(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([{"counts": "[" * 3000}, {"counts": '{\\"' * 3000}]))
    assert list(read_items(path, "item"))[0] == {"counts": "[" * 3000}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html><html></html>", "a page in HTML or XML"),
        (b"\0" * 300, "nothing but zeros"),
        (
            '{"id": 1}\n{"id": "L\u00f6ffel"}\n'.encode("latin-1"),
            "jsonl:2: .*byte 0xf6 is not UTF-8; it is in another",
        ),
    ],
)
def test_json_lines_that_are_none_are_named(tmp_path, content, rule):
    path = tmp_path / "of_others.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rule):
        list(read_jsonl(path))


# escapes: a whole pair, halves alone or in the wrong order, and words that only look like them
ESCAPES = (
    r"\ud83d\ude00",
    r"\ud83d",
    r"x\ude00\ud83d",
    r"\ud83d\ud83d\ude00",
    r"\\ud83d",
    r"\\\ud83d",
    r"\n\uDC00\u00e9",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_half_a_surrogate_comes_as_pythons_reader_has_it(tmp_path, escape):
    path = tmp_path / "of_others.json"
    text = f'{{"a": ["one", {{"key {escape}": "{escape}"}}, NaN], "last": ["{escape}"]}}'.replace("NaN", "0")
    path.write_text(text)
    expected = json.loads(text)
    assert list(read_items(path, "a.item")) == expected["a"] and dict(read_pairs(path)) == expected == read_json(path)
    assert read_list(path, "last") == expected["last"]


@pytest.mark.parametrize("shift", range(14))
def test_half_a_surrogate_across_the_border_of_two_reads_is_found(tmp_path, shift):
    path = tmp_path / "long.json"
    entries = [r'"\ud83d\ude00"'] * 3 + ['"' + "x" * (CHUNK - 60 + shift) + r'\ud83d\ude00\ud83d"', '"end"']
    path.write_text(f"[{', '.join(entries)}]")
    assert list(read_items(path, "item")) == json.loads(path.read_text())
