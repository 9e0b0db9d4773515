import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import published, record_form
from data_prep.check import check_file, main
from dynrefer.data import Region, open_records, save_arrow

HW = (20, 30)
ROOT = Path(__file__).parents[1]


def record(name, image="a.png", **changes) -> dict:
    return {"id": name, "image": image, "image_hw": list(HW), "box": [1, 2, 10, 12], "captions": ["a cup"], **changes}


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate("abc"):
        Image.fromarray(np.full((*HW, 3), 40 * k, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_a_good_file_has_no_problems(folder, capsys):
    path = write(
        folder / "r.jsonl", record("1"), record("2", mask=[[1, 2, 10, 2, 10, 12]]), record("3", "b.png", captions=[])
    )
    assert main([str(path)]) == 0
    assert "no problems; 3 records, 1 of them without a caption, 2 images" in capsys.readouterr().out


def test_every_problem_is_told_with_its_line(folder):
    Image.effect_noise((30, 20), 90).save(folder / "broken.png")
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:300])
    path = write(
        folder / "r.jsonl",
        record("1"),
        '{"id": "2", "ima',
        record("3", box=[10, 2, 5, 12]),
        record("4", captions=[""]),
        record("1"),
        "",
        record("7", "none.png"),
        record("8", "broken.png"),
        record("9", image_hw=[30, 20]),
        record("10", "none.png"),
        record("11", mask={"size": [20, 30], "counts": [5]}),
        record("12", mask={"size": [20, 30], "counts": [600]}),
        record("13", mask=[[20, 15, 28, 15, 28, 19]]),
        record("14", colour="red"),
        record("15", box=[1, 2, float("nan"), 4]),
    )
    expected = {
        2: "not a JSON line",
        3: "inverted box",
        4: "captions: ''",
        5: "stands in line 1",
        7: "none.png: no such file; .*also in lines 10",
        8: "broken.png",
        9: r"image_hw \(30, 20\), but .*a.png is \(20, 30\)",
        11: "add up to 5",
        12: "empty mask",
        13: "do not overlap",
        14: r"unknown key \['colour'\]",
        15: "non-finite box",
    }
    report = check_file(path)
    assert [line for line, _ in report.problems] == list(expected)
    for (_, text), rule in zip(report.problems, expected.values(), strict=True):
        with pytest.raises(AssertionError, match=rule):
            raise AssertionError(text)
        assert "data_prep.check" not in text
    assert report.lines()[-1].endswith("12 problems; 14 records, 3 images")
    assert report.lines()[1].startswith(f"{path}:3: ")


def test_images_shared_with_another_file_are_found_by_their_pixels(folder, capsys):
    (folder / "elsewhere").mkdir()
    Image.open(folder / "b.png").save(folder / "elsewhere" / "other name.bmp")
    path = write(folder / "r.jsonl", record("1"), record("2", "b.png"), record("3", "b.png"))
    apart = write(folder / "apart.jsonl", record("1", "c.png"))
    shared = write(folder / "elsewhere" / "val.jsonl", record("x", "other name.bmp"))
    assert main([str(path), "--against", str(apart)]) == 0
    capsys.readouterr()
    assert main([str(path), "--against", str(shared)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and lines[0].startswith(f"{path}:2: ")
        and "other name.bmp" in lines[0]
        and "lines 3" in lines[0]
    )


def test_what_cannot_be_compared_is_told(folder):
    path = write(folder / "r.jsonl", record("1"))
    other = write(folder / "o.jsonl", record("1", "none.png"), "{")
    texts = [text for _, text in check_file(path, against=other).problems]
    assert len(texts) == 2 and any("none.png" in text for text in texts) and any("o.jsonl:2" in text for text in texts)


def test_boxes_in_another_convention_are_told_once_with_the_one_that_fits(folder):
    boxes = [[12 + k, 8, 5, 6] for k in range(5)]
    report = check_file(write(folder / "r.jsonl", *(record(str(k), box=box) for k, box in enumerate(boxes))))
    first, *others = report.problems
    assert first[0] == 0 and "100% of 5 boxes" in first[1] and "as 'xywh' or 'cxcywh' 100% fit" in first[1]
    assert len(others) == 5 and all("inverted box" in text for _, text in others)
    unit = [record(str(k), box=[0.1, 0.2, 0.9, 0.95]) for k in range(3)]  # valid boxes of less than a pixel
    assert "as 'xyxy-unit'" in check_file(write(folder / "u.jsonl", *unit)).problems[0][1]


def test_tables_are_checked_by_row(folder):
    datasets = pytest.importorskip("datasets")
    good = Region("1", "a.png", HW, (1.0, 2.0, 10.0, 12.0))
    bad = Region("2", "a.png", HW, (10.0, 2.0, 1.0, 12.0))
    save_arrow(folder / "arrow", [good, bad])
    rows = datasets.load_from_disk(str(folder / "arrow"))
    datasets.concatenate_datasets([rows, rows.select([0])]).save_to_disk(str(folder / "twice"))
    report = check_file(folder / "twice")
    assert [line for line, _ in report.problems] == [1, 2] and "inverted" in report.problems[0][1]


@pytest.mark.parametrize(
    ("name", "data"), [("none.jsonl", None), ("empty.jsonl", b""), ("cut.jsonl.gz", b"\x1f\x8b\x08")]
)
def test_a_file_without_records_is_a_problem(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert check_file(tmp_path / name).problems


def test_the_command_exits_with_one_when_there_is_a_problem(folder):
    path = write(folder / "r.jsonl", record("1", "none.png"))
    command = [sys.executable, "-m", "data_prep.check", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "none.png" in done.stdout and not done.stderr


def texts_of(report) -> list[str]:
    return [f"{line}: {text}" for line, text in report.problems]


def test_the_same_picture_is_found_however_it_is_stored_and_told_how(tmp_path):
    noise = np.random.default_rng(0)
    small = [Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(3)]
    photos = [picture.resize((240, 180), Image.Resampling.BICUBIC) for picture in small]
    for name, picture in zip("abc", photos, strict=True):
        picture.save(tmp_path / f"{name}.png")
    photos[0].resize((97, 60)).save(tmp_path / "small.jpg", quality=60)
    photos[1].save(tmp_path / "same.bmp")
    Image.new("RGB", (50, 50), "grey").save(tmp_path / "flat.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "flatter.png")
    hw = [180, 240]
    path = write(
        tmp_path / "r.jsonl",
        *(record(name, f"{name}.png", image_hw=hw) for name in "abc"),
        record("f", "flat.png", image_hw=[50, 50]),
    )
    one = write(tmp_path / "one.jsonl", record("1", "small.jpg", image_hw=[60, 97]))
    two = write(
        tmp_path / "two.jsonl", record("1", "same.bmp", image_hw=hw), record("2", "flatter.png", image_hw=[60, 60])
    )
    report = check_file(path, against=[one, two])
    assert [line for line, _ in report.problems] == [1, 2]
    assert "small.jpg (the same picture stored or scaled anew" in report.problems[0][1]
    assert "same.bmp (the same pixels)" in report.problems[1][1]
    assert check_file(path, against=[one, two], workers=2).problems == report.problems


def test_captions_without_a_word_and_boxes_beyond_the_image_are_told(folder):
    path = write(
        folder / "r.jsonl",
        record("1", captions=["a cup", " ..."]),
        record("2", captions=["caf\ufffd"]),
        record("3", box=[1, 2, 10, 25]),
        record("4", box=[1, 2, 10, 20.000001]),
        record("5", box=[1, 2, 10, 9], captions=["犬"]),
    )
    told = texts_of(check_file(path))
    assert len(told) == 3
    assert "1: region 1: caption ' ...' has no word" in told[0]
    assert told[1].startswith("2: ") and "another encoding" in told[1]
    assert "3: region 3: box [1, 2, 10, 25] reaches beyond its image, 30 wide and 20 high" in told[2]


def test_nothing_is_clipped_where_the_numbers_mean_something_else(folder):
    path = write(folder / "r.jsonl", *(record(str(k), box=[20, 12, 35, 16 + k]) for k in range(4)))
    assert len(check_file(path, fix=folder / "fixed.jsonl").fixes) == 4
    path = write(folder / "r.jsonl", *(record(str(k), box=[12 + k % 3, 8, 5, 6]) for k in range(20)))
    path.write_text(path.read_text() + json.dumps(record("x", box=[8, 8, 14, 21])) + "\n")
    report = check_file(path, fix=folder / "fixed.jsonl")
    assert not report.fixes and "as 'xywh'" in report.problems[0][1]


def test_what_is_wrong_beside_a_bad_box_is_told_too(folder):
    path = write(folder / "r.jsonl", record("1", "none.png", box=[5, 5, 5, 5]), record("1", box=None, mask=None))
    told = texts_of(check_file(path))
    assert len(told) == 4
    assert any("none.png: no such file" in text for text in told) and any("stands in line 1" in text for text in told)


def test_without_images_none_is_opened(folder):
    path = write(folder / "r.jsonl", record("1", "none.png"))
    assert not check_file(path, images=False).problems
    assert main([str(path), "--no-images"]) == 0
    with pytest.raises(ValueError, match="--no-images opens none"):
        check_file(path, against=path, images=False)


def test_counts_are_compared_with_the_published_ones(folder, monkeypatch, capsys):
    assert published.published_counts("coco:val") == {"records": 36781, "images": 4952}
    assert published.published_counts("refcocog-umd:test") == {"captions": 9602, "records": 5023, "images": 2600}
    path = write(folder / "r.jsonl", record("1"), record("2", captions=["a", "b"]))
    monkeypatch.setattr(published, "_published", lambda: {"mine:val": {"records": 2, "images": 1, "captions": 4}})
    told = texts_of(check_file(path, counts="mine:val"))
    assert len(told) == 1 and "3 captions, published for mine:val are 4" in told[0]
    assert main([str(path), "--counts", "yours"]) == 2
    assert "known are mine:val" in capsys.readouterr().err


def test_a_mended_copy_has_only_what_is_safe(folder, capsys):
    twice = record("1", captions=["a cup"])
    path = write(
        folder / "r.jsonl",
        twice,
        record("2", box=[-3, 2, 10, 25], captions=["a cup", " "]),
        record("3", box=[10, 2, 5, 12]),
        dict(reversed(twice.items())),
        record("5", box=[1, 2, 30, 15], image_hw=[20, 29]),
        "{not json",
        record("7", captions=[""], tags=["", "cup"]),
        record("1", captions=["another"]),
    )
    before = path.read_bytes()
    out = folder / "fixed.jsonl"
    assert main([str(path), "--fix", str(out)]) == 1
    told = capsys.readouterr().out
    assert path.read_bytes() == before
    for text in (
        "r.jsonl:2: fixed: 1 empty captions left out",
        "r.jsonl:2: fixed: box [-3, 2, 10, 25] clipped to its image, [0, 2, 10, 20]",
        "r.jsonl:4: fixed: left out, the record '1' stands above already",
        "r.jsonl:7: fixed: 1 empty captions left out",
        "r.jsonl:7: fixed: 1 empty tags left out",
        "r.jsonl:3: region 3: inverted box",
        "r.jsonl:5: region 5: box [1, 2, 30, 15] reaches",
        "r.jsonl:5: image_hw (20, 29), but",
        "r.jsonl:6: not a JSON line",
        "r.jsonl:8: id '1' stands in line 1",
    ):
        assert text in told
    assert "5 fixed, 5 problems left" in told
    lines = out.read_text().splitlines()
    assert len(lines) == 7 and lines[0] == before.decode().splitlines()[0]
    assert json.loads(lines[1])["box"] == [0, 2, 10, 20] and json.loads(lines[1])["captions"] == ["a cup"]
    assert json.loads(lines[2])["box"] == [10, 2, 5, 12] and lines[4] == "{not json"
    assert json.loads(lines[5])["tags"] == ["cup"] and json.loads(lines[6])["captions"] == ["another"]


def test_a_mended_copy_of_a_table_is_whole(folder):
    rows = [Region("1", "a.png", HW, (1.0, 2.0, 10.0, 12.0)), Region("2", "a.png", HW, (1.0, -2.0, 99.0, 12.0))]
    save_arrow(folder / "arrow", rows)
    report = check_file(folder / "arrow", fix=folder / "fixed.jsonl.gz")
    assert not report.problems and len(report.fixes) == 1
    assert not check_file(folder / "fixed.jsonl.gz").problems


@pytest.mark.parametrize(("name", "text"), [("f.json", "ends with"), ("sub/f.jsonl", "folder"), ("r.jsonl", "itself")])
def test_where_a_mended_copy_cannot_go(folder, name, text, capsys):
    path = write(folder / "r.jsonl", record("1"))
    assert main([str(path), "--fix", str(folder / name)]) == 2
    assert text in capsys.readouterr().err


def test_problems_beyond_many_are_counted(folder, monkeypatch):
    monkeypatch.setattr(record_form, "MAX_PROBLEMS", 3)
    path = write(folder / "r.jsonl", *(record(str(k), box=[1, 1, 1, 1]) for k in range(8)))
    report = check_file(path)
    assert len(report.problems) == 3 and report.lines()[-2].endswith("5 problems more, not told")
    assert "8 problems; 8 records" in report.lines()[-1]


def test_video_regions_are_checked_as_such(tmp_path, capsys):
    path = write(tmp_path / "clips.jsonl", {"id": "1", "video": "none.mp4"})
    assert main([str(path)]) == 1
    assert "missing key ['num_frames'" in capsys.readouterr().out
    assert main([str(path), "--counts", "coco:val"]) == 2


def problems(path):
    return [(line, text) for line, text in check_file(path).problems]


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([1, 2, 1.5, 12], "box [1.0, 2.0, 1.5, 12.0] is thinner than a pixel, 0.5 wide and 10 high"),
        ([0.141, 0.399, 0.346, 0.601], "0.205 wide and 0.202 high; numbers of 0..1, which are no pixels?"),
    ],
)
def test_a_single_box_thinner_than_a_pixel_is_named(folder, box, text):
    path = write(folder / "r.jsonl", record("1"), record("2", box=box), record("3", box=[1, 2, 3, 4]))
    ((line, told),) = problems(path)
    assert line == 2 and text in told


def test_words_spelt_unlike_the_list_beside_the_records_are_named_with_their_counts(folder):
    (folder / "categories.txt").write_text("\ufefftable\ncup\n", encoding="utf-8")
    (folder / "attributes.json").write_text('["colour:red"]')
    names = ["table", "Table", "table ", "Table", "cups", "cup"]
    records = [record(str(k), category=name) for k, name in enumerate(names)]
    path = write(folder / "r.jsonl", *records, record("9", attributes={"Colour:Red": 1, "new": 1}, tags=["anything"]))
    assert problems(path) == [
        (2, "category 'Table' of 2 regions: the list categories.txt beside it has 'table'"),
        (3, "category 'table ' of 1 region: the list categories.txt beside it has 'table'"),
        (5, "category 'cups' of 1 region: the list categories.txt beside it has no such word. Did you mean 'cup'?"),
        (7, "attribute 'Colour:Red' of 1 region: the list attributes.json beside it has 'colour:red'"),
    ]


def test_words_of_two_spellings_are_named_without_a_list(folder):
    tags = [["dining table"], ["dining-table"], ["dining table", "cup"]]
    path = write(folder / "r.jsonl", *(record(str(k), tags=words) for k, words in enumerate(tags)))
    assert problems(path) == [(2, "tag 'dining-table' of 1 region: other records (2) has 'dining table'")]


@pytest.mark.parametrize("name", ["r.json", "r.txt", "r", "r.JSONL"])
def test_a_name_that_training_refuses_is_a_problem(folder, name):
    path = write(folder / name, record("1"))
    ((line, text),) = problems(path)
    assert line == 0 and text.startswith("training refuses it for its name: unknown kind; expected .jsonl")
    with pytest.raises(ValueError, match="unknown kind"):
        open_records(path)


BAD_LINES = {
    "a number of 5,000 digits": ('{"id": "2", "box": [1, 2, 3, %s]}' % ("9" * 5000), "a number of thousands of digits"),
    "half a character": (json.dumps(record("2", captions=["a \ud83d"])), "half of a character in it"),
    "half a character in an id": (json.dumps(record("2\udc00")), "id '2\\udc00': half of a character"),
    "half a character in a word": (json.dumps(record("2", attributes={"\ud83d": 1})), "attribute '\\ud83d': half"),
    "a key twice": (json.dumps(record("2"))[:-1] + ', "box": [0, 0, 5, 5]}', "key 'box' stands in one object twice"),
    "a key twice, spaced": (json.dumps(record("2"))[:-1] + ', "id"  : "3"}', "key 'id' stands in one object twice"),
    "a key twice within": (
        json.dumps(record("2"))[:-1] + ', "attributes": {"a": 1, "a": -1}}',
        "key 'a' stands in one object twice",
    ),
    "a side of many pixels": (json.dumps(record("2", image_hw=[2**40, 10])), "image_hw [1099511627776, 10]"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_lines_that_check_and_training_refuse_with_their_place(folder, kind):
    line, rule = BAD_LINES[kind]
    path = write(folder / "r.jsonl", record("1"), line, record("4"))
    ((number, text),) = problems(path)
    assert number == 2 and rule in text
    with pytest.raises(ValueError) as error:
        open_records(path)
    assert str(error.value).startswith(f"{path}:2: ") and rule in str(error.value)


def test_texts_with_keys_in_them_are_no_keys(folder):
    texts = ['he said "box": "box":', "a", '{"id": 1, "id": 2}', 'end"']
    path = write(folder / "r.jsonl", record("1", captions=texts), record("2", attributes={'a": b': 1, "a": 1}))
    assert not problems(path) and list(open_records(path)[0].captions) == texts


def test_a_thin_box_of_a_clip_is_named_with_its_frame(folder):
    (folder / "video").mkdir()
    for k in range(2):
        Image.new("RGB", (30, 20)).save(folder / "video" / f"{k:03d}.png")
    clip = {"id": "7", "video": "video", "num_frames": 2, "frame_hw": list(HW), "prompt_frame": 0, "captions": ["a"]}
    path = write(folder / "c.jsonl", {**clip, "frames": {"0": {"box": [1, 2, 9, 9]}, "1": {"box": [1, 2, 9, 2.5]}}})
    assert problems(path) == [
        (1, "clip 7, frame 1: box [1.0, 2.0, 9.0, 2.5] is thinner than a pixel, 8 wide and 0.5 high")
    ]


@pytest.mark.parametrize("clip_first", [False, True])
def test_clips_among_pictures_are_checked_as_clips(tmp_path, clip_first):
    (tmp_path / "clip").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"clip/{number}.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    picture = {"id": "p", "image": "a.png", "image_hw": [30, 40], "box": [1, 2, 20, 20], "captions": ["x"]}
    clip = {"id": "c", "video": "clip", "num_frames": 3, "frame_hw": [30, 40], "prompt_frame": 0}
    clip |= {"frames": {"0": {"box": [1, 1, 9, 9]}}, "captions": ["y"]}
    path = tmp_path / "mixed.jsonl"

    def lines_of(*records):
        path.write_text("".join(json.dumps(record) + "\n" for record in (records[::-1] if clip_first else records)))
        return check_file(path).lines()

    assert lines_of(picture, clip) == [f"{path}: no problems; 2 records, 1 images, 1 videos"]
    (problem, _) = lines_of(picture, clip | {"num_frames": 5})
    assert "num_frames 5, but" in problem and f"mixed.jsonl:{1 if clip_first else 2}: " in problem
    assert "id 'p' stands in line 1 already" in lines_of(picture, clip | {"id": "p"})[0]
    with pytest.raises(ValueError, match="1 records of clips among those of pictures; --fix mends pictures"):
        check_file(path, fix=tmp_path / "fixed.jsonl")
