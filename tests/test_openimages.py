import pytest
from PIL import Image

from data_prep import openimages
from data_prep.check import check_file
from data_prep.openimages import main
from dynrefer.data import open_records
from dynrefer.vocabulary import read_words

A, B = "000002b66c9c498e", "000002b97e5471a0"
COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
BOXES = f"""{COLUMNS}
{A},xclick,/m/011k07,1,0.05,0.3,0.2,0.9,0,0,0,0,0
{A},activemil,/m/01g317,1,0,1,0,0.999,1,1,1,0,0
{B},xclick,/m/01g317,1,0.5,0.5,0.25,0.75,0,-1,0,0,0
{A},xclick,/m/01g317,1,0.5,1,0.25,0.75,0,-1,0,0,0
"""
CLASSES = '/m/011k07,Tortoise\n/m/01g317,Person\n/m/0sgh53y,"Container, other"\n'
SIZES = f"ImageID,Width,Height\n{A},200,100\n{B},40,80\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in ((A, (200, 100)), (B, (40, 80))):
        Image.new("RGB", size).save(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "classes.csv").write_text(CLASSES)
    (tmp_path / "sizes.csv").write_text(SIZES)
    return tmp_path


def run(folder, boxes, *options, out="out/val.jsonl"):
    (folder / "boxes.csv").write_bytes(boxes if isinstance(boxes, bytes) else boxes.encode())
    where = ("--boxes", "boxes.csv", "--classes", "classes.csv", "--images", "images", "--out", out)
    paths = [str(folder / word) if not word.startswith("--") else word for word in where]
    return main([*paths, "--split", "validation", *map(str, options)])


def test_fractions_become_pixels_of_each_image(folder, capsys):
    assert run(folder, BOXES, "--subset") == 0
    tortoise, person = open_records(folder / "out" / "val.jsonl")
    assert tortoise.id == f"openimages-validation-{A}-0" and tortoise.category == "Tortoise"
    assert tortoise.box == pytest.approx((10, 20, 60, 90)) and tortoise.image_hw == (100, 200)
    assert person.id == f"openimages-validation-{A}-2" and person.box == (100, 25, 200, 75)
    assert person.image == f"../images/{A}.jpg" and person.source == "openimages-7"
    printed = capsys.readouterr()
    for line in ("4  boxes\n", "2  images\n", "1  boxes of groups left out\n", "2  records\n"):
        assert line in printed.out
    assert "boxes.csv:4" in printed.err  # a box without width is named
    assert not check_file(folder / "out" / "val.jsonl").problems
    assert read_words(folder / "out" / "categories.txt") == ["Tortoise", "Person", "Container, other"]
    assert run(folder, BOXES, "--subset", "--strict", out="strict/val.jsonl") == 2


def test_groups_can_be_kept_and_sizes_given(folder, capsys):
    assert run(folder, BOXES, "--subset", "--keep-groups", "--sizes", folder / "sizes.csv") == 0
    assert [region.id[-1] for region in open_records(folder / "out" / "val.jsonl")] == ["0", "1", "2"]
    for sizes, rule in (
        (SIZES.replace("200,100", "20,10"), "is (100, 200)"),
        (SIZES.replace(B, "x"), f"{B} is not in --sizes"),
        (SIZES.replace("40,80", "40,0"), "sizes.csv:3"),
        (SIZES.replace("Width", "W"), "no column 'Width'"),
    ):
        (folder / "sizes.csv").write_text(sizes)
        assert run(folder, BOXES, "--subset", "--sizes", folder / "sizes.csv", out="no/val.jsonl") == 2
        assert rule in capsys.readouterr().err


def test_published_counts_are_checked(folder, capsys, monkeypatch):
    assert run(folder, BOXES) == 2 and "4 boxes, published 303,980" in capsys.readouterr().err
    assert not (folder / "out" / "val.jsonl").exists()
    monkeypatch.setitem(openimages.PUBLISHED, "validation", {"images": 2, "boxes": 4})
    assert run(folder, BOXES) == 0
    cut = BOXES[: BOXES.rindex(A)]  # between two lines, which nothing but the count notices
    assert run(folder, cut, out="no/val.jsonl") == 2 and "3 boxes, published 4" in capsys.readouterr().err


def test_names_of_columns_may_head_the_classes(folder):
    (folder / "classes.csv").write_text("LabelName,DisplayName\n" + CLASSES)
    assert run(folder, BOXES, "--subset") == 0
    assert read_words(folder / "out" / "categories.txt")[0] == "Tortoise"


@pytest.mark.parametrize(
    ("boxes", "rule"),
    [
        (BOXES[:-12], "boxes.csv:5: 8 columns instead of 13"),
        (BOXES.replace("0.05", "x"), "boxes.csv:2: corners"),
        (BOXES.replace("0.05", "nan"), "boxes.csv:2: box"),
        (BOXES.replace("LabelName", "Label"), "no column 'LabelName'"),
        (BOXES.replace("/m/011k07", "/m/0"), "boxes.csv:2: class '/m/0'"),
        (BOXES.replace(B, "0" * 16), f"boxes.csv:4: image '{'0' * 16}.jpg' is not in"),
        (BOXES.replace(B, f"../images/{B}"), f"boxes.csv:4: image '../images/{B}.jpg' does not lie in"),
        (BOXES.encode().replace(b"xclick", b"\xff"), "not a table in UTF-8"),
        (COLUMNS, "no rows"),
        ("", "no column"),
    ],
)
def test_damaged_tables_are_named(folder, capsys, boxes, rule):
    assert run(folder, boxes, "--strict", *([] if "image" in rule else ["--subset"])) == 2
    assert rule in capsys.readouterr().err and not (folder / "out" / "val.jsonl").exists()


def test_pixels_given_as_fractions_are_refused(folder, capsys):
    rows = "".join(f"{A},xclick,/m/011k07,1,{k},{k + 40},{k},{k + 40},0,0,0,0,0\n" for k in range(1, 30))
    assert run(folder, f"{COLUMNS}\n{rows}", "--subset") == 2
    assert (
        "29 boxes leave their image or are not a pixel wide when read as 'xyxy-unit'; as 'xyxy'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("classes", ["", "Tortoise,/m/011k07\n", "/m/011k07\n", "/m/011k07, \n"])
def test_another_file_is_no_list_of_classes(folder, capsys, classes):
    (folder / "classes.csv").write_text(classes)
    assert run(folder, BOXES, "--subset") == 2 and "classes.csv" in capsys.readouterr().err


def test_images_that_are_not_there_are_left_out_of_a_subset_only(folder, capsys):
    (folder / "images" / f"{B}.jpg").unlink()
    assert run(folder, BOXES) == 2 and f"image '{B}.jpg' is not in" in capsys.readouterr().err
    assert run(folder, BOXES, "--subset") == 0
    assert "1  boxes left out, their image is not in the folder" in capsys.readouterr().out
