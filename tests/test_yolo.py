import json

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep import export
from data_prep.check import check_file
from data_prep.yolo import main
from dynrefer.data import Region, open_records, write_records
from dynrefer.data.record_files import detector_file

HW = (100, 200)
NAMES = ["cup", "no", "table"]


@pytest.fixture
def folder(tmp_path):
    """A data set: images/train/{a,sub/b}.png, labels beside, data.yaml."""
    for name in ("a.png", "sub/b.JPG", "c.png", "d.png"):
        path = tmp_path / "set" / "images" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (HW[1], HW[0])).save(path, "PNG")
    labels(tmp_path, "a", "0 0.5 0.5 0.25 0.2\n2 0.1 0.1 0.3 0.1 0.3 0.5\n")
    labels(tmp_path, "sub/b", "1 0.5 0.5 1 1")
    labels(tmp_path, "c", "")
    settings(tmp_path, path="set", train="images/train", val="images/val", nc=3, names=NAMES)
    return tmp_path


def labels(folder, name, text) -> None:
    path = folder / "set" / "labels" / "train" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def settings(folder, **content) -> None:
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items())
    (folder / "data.yaml").write_text(text.replace('"no"', "no"))  # as people write it: YAML takes it for false


def run(folder, *options, out="out/train.jsonl") -> int:
    given = [] if "--images" in options else ["--data", str(folder / "data.yaml")]
    return main([*given, "--out", str(folder / out), *map(str, options)])


def records(folder, out="out/train.jsonl"):
    return list(open_records(folder / out))


def test_boxes_and_polygons_with_their_classes(folder, capsys):
    assert run(folder) == 0
    cup, table, no = records(folder)
    assert cup.box == (75, 40, 125, 60) and cup.category == "cup" and cup.mask is None and cup.image_hw == HW
    assert table.mask == [[20, 10, 60, 10, 60, 50]] and table.box == (20, 10, 60, 50) and table.category == "table"
    assert no.box == (0, 0, 200, 100) and no.category == "no" and no.image == "../set/images/train/sub/b.JPG"
    assert len({cup.id, table.id, no.id}) == 3 and cup.split == "train"
    printed = capsys.readouterr().out
    for line in ("4  images\n", "1  images without a label file", "1  images with an empty label file", "3  regions"):
        assert line in printed
    assert (folder / "out" / "categories.txt").read_text() == "cup\nno\ntable\n"
    assert not check_file(folder / "out" / "train.jsonl").problems


@pytest.mark.parametrize(
    "content",
    [
        {"names": {0: "cup", 1: "no", 2: "table"}, "train": "set/images/train"},
        {"names": NAMES, "train": "../set/images/train"},  # one .. too many, as exports have it
        {"names": NAMES, "path": "set", "train": ["images/train"]},
        {"names": NAMES, "path": "elsewhere", "train": "set/images/train"},
        {"names": NAMES, "train": "list.txt"},
        {"names": NAMES, "path": "{folder}/set", "train": "images/train"},
        {"names": NAMES, "train": "set\\images\\train"},
    ],
)
def test_every_way_to_name_the_images(folder, content):
    lines = ["./set/images/train/a.png", "set/images/train/sub/b.JPG", ""]
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    settings(folder, **{k: v.format(folder=folder) if isinstance(v, str) else v for k, v in content.items()})
    assert run(folder) == 0
    assert [region.category for region in records(folder)] == ["cup", "table", "no"]


def test_images_and_names_without_a_data_yaml(folder):
    (folder / "classes.txt").write_text("\ufeffcup\nno\ntable\n")
    images = folder / "set" / "images"
    assert run(folder, "--images", images, "--names", folder / "classes.txt", "--split", "val") == 0
    assert [region.category for region in records(folder)] == ["cup", "table", "no"]
    (folder / "set" / "labels").rename(folder / "elsewhere")
    assert run(folder, "--images", images, "--names", folder / "data.yaml", "--labels", folder / "elsewhere") == 0
    assert [region.category for region in records(folder)] == ["cup", "table", "no"]


def test_labels_beside_their_images(folder):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (HW[1], HW[0])).save(folder / name)
    (folder / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    settings(folder, names=NAMES, train=".")
    (folder / "set").rename(folder / "images_of_others")
    assert run(folder) == 0
    assert [region.image for region in records(folder)][:1] == ["../a.png"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("3 0.5 0.5 0.2 0.2", "a class beyond the 3 names"),
        ("-1 0.5 0.5 0.2 0.2", "the first number is no class"),
        ("0.5 0.5 0.5 0.2 0.2", "the first number is no class"),
        ("0 75 40 125 60", "numbers outside 0..1"),
        ("0 0.5 0.5 0.2", "4 numbers: expected 5"),
        ("0 0.5 0.5 0.2 nan", "a number that is not finite"),
        ("cup 0.5 0.5 0.2 0.2", "what is no number"),
        ("0 0.5 0.5 0.2 0.2 7", "a score outside 0..1"),
        ("0 0.5 0.5 0.25 0.2", "the same line stands above"),
    ],
)
def test_bad_lines_are_left_out_and_counted_or_stop(folder, capsys, line, why):
    labels(folder, "a", f"0 0.5 0.5 0.25 0.2\n{line}\n")
    assert run(folder) == 0
    printed = capsys.readouterr()
    assert f"1  lines left out: {why}" in printed.out and "a.txt:2" in printed.err and why in printed.err
    assert len(records(folder)) == 2
    assert run(folder, "--strict") == 2
    assert "a.txt:2" in (error := capsys.readouterr().err) and why in error


def test_rounding_beyond_the_edge_is_clipped(folder):
    labels(folder, "a", "0 0.995 0.5 0.02 0.2\n1 0 0 1.001 0 1.001 1\n")
    assert run(folder) == 0
    first, second, _ = records(folder)
    assert first.box == pytest.approx((197, 40, 200, 60)) and second.mask == [[0, 0, 200, 0, 200, 100]]


def test_scores_of_a_detector_become_predictions(folder, capsys):
    labels(folder, "a", "0 0.5 0.5 0.25 0.2 0.75\n2 0.1 0.1 0.3 0.1 0.3 0.5 0.5\n")
    assert run(folder) == 0
    cup, table, _ = records(folder)
    path = detector_file(folder / "out" / "train.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["id"], line["score"]) for line in lines] == [(cup.id, 0.75), (table.id, 0.5)]
    assert lines[1]["category"] == {"name": "table", "score": 0.5} and f"-> {path}" in capsys.readouterr().out


def test_key_points_are_left_out(folder, capsys):
    settings(folder, path="set", train="images/train", names=NAMES, kpt_shape=[2, 3])
    labels(folder, "a", "0 0.5 0.5 0.25 0.2 0.4 0.4 2 0.6 0.6 1\n")
    assert run(folder) == 0
    assert records(folder)[0].box == (75, 40, 125, 60) and records(folder)[0].mask is None
    assert "1  key points left out, of regions" in capsys.readouterr().out


def test_pictures_and_label_files_without_each_other_are_counted(folder, capsys):
    (folder / "set/images/train/d.png").write_bytes(b"no picture")
    labels(folder, "d", "0 0.5 0.5 0.25 0.2")
    labels(folder, "alone", "0 0.5 0.5 0.25 0.2")
    assert run(folder) == 0
    printed = capsys.readouterr()
    assert "1  images left out: cannot be read" in printed.out and "d.png" in printed.err
    assert "1  label files left out: no image of this name" in printed.out and "alone.txt" in printed.err


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"train": "images", "names": NAMES}, "data.yaml: 'images' is not there, looked for"),
        ({"names": NAMES, "val": "set"}, "no images of split 'train'; it has val: say --split"),
        ({"names": NAMES, "train": "set", "nc": 4}, "nc '4', but 3 names"),
        ({"names": {"1": "cup", "2": "table"}, "train": "set"}, "expected the numbers 0, 1, 2, ..."),
        ({"names": ["cup", "cup"], "train": "set"}, "two classes are called 'cup'"),
        ({"nc": 3, "train": "set"}, "names None: expected the class names; or say --names FILE"),
        ({"names": NAMES, "train": "empty"}, "no images in it"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, capsys, content, rule):
    (folder / "empty").mkdir()
    settings(folder, **content)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert rule in error and error.count("\n") == 1 and not (folder / "out").exists()


def test_options_that_are_missing_are_named(folder, capsys):
    assert main(["--out", str(folder / "r.jsonl")]) == 2
    assert "say --data data.yaml, or --images FOLDER" in capsys.readouterr().err
    assert run(folder, "--images", folder / "set") == 2
    assert "--images without class names" in capsys.readouterr().err


def test_what_export_writes_is_read_back(folder):
    mask = [[10.5, 20.0, 60.0, 20.0, 60.25, 90.0]]
    kinds = [dict(box=(10.25, 20.5, 60.0, 90.125), category="cup"), dict(box=(150, 20, 199.5, 80), category="table")]
    boxes = [Region(str(k), "set/images/train/a.png", HW, **kind) for k, kind in enumerate(kinds)]
    masks = [Region("0", "set/images/train/a.png", HW, (10.5, 20.0, 60.25, 90.0), mask=mask, category="cup")]
    for name, given in (("boxes", boxes), ("masks", masks)):
        write_records(folder / f"{name}.jsonl", given)
        assert export.main([str(folder / f"{name}.jsonl"), "--to", "yolo", "--out", str(folder / name)]) == 0
        assert main(["--data", str(folder / name / "data.yaml"), "--out", str(folder / f"{name}2" / "r.jsonl")]) == 0
        back = records(folder, f"{name}2/r.jsonl")
        assert np.allclose([region.box for region in back], [region.box for region in given], atol=1e-6)
        assert [region.category for region in back] == [region.category for region in given]
        for found, expected in zip(back, given, strict=True):
            assert (found.mask is None) == (expected.mask is None)
            assert found.mask is None or np.allclose(found.mask, expected.mask, atol=1e-6)
    assert yaml.safe_load((folder / "boxes" / "data.yaml").read_text())["names"] == {0: "cup", 1: "table"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html>\n", "a page in HTML"),
    ],
)
def test_a_data_yaml_that_is_something_else_is_named_as_what_it_is(folder, capsys, content, said):
    (folder / "data.yaml").write_text(content)
    assert main(["--data", str(folder / "data.yaml"), "--out", str(folder / "r.jsonl")]) == 2
    assert f"data.yaml: not YAML ({said}" in capsys.readouterr().err
