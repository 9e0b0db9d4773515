import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file, main
from dynrefer.data import Region, save_arrow

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
