import gzip
import json
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.csv_boxes import main
from dynrefer.data import open_records

HW = (100, 200)
TABLE = """image,x1,y1,x2,y2,caption,category,tags
a.png,10,20,60,90,a red cup,cup,red; cup
sub/b.png,0,0,200,100,"the table, all of it",table,
a.png,10,20,60,90,a cup,cup,red; cup
a.png,10.5,20,60,90,,,
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (HW[1], HW[0])).save(tmp_path / "photos" / name)
    return tmp_path


def run(folder, table, *options, box_format="xyxy", out="out/train.jsonl"):
    if table is not None:
        (folder / "mine.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    where = ("--csv", folder / "mine.csv", "--images", folder / "photos", "--out", folder / out)
    return main([*map(str, where), "--box-format", box_format, *options])


def test_rows_become_regions_and_rows_of_a_box_its_captions(folder, capsys):
    assert run(folder, TABLE, "--split", "train", "--licence", "CC0", "--source", "my photos") == 0
    cup, table, other = open_records(folder / "out" / "train.jsonl")
    assert cup.id == "mine-2" and cup.box == (10, 20, 60, 90) and cup.image_hw == HW
    assert cup.captions == ("a red cup", "a cup") and cup.category == "cup" and cup.tags == ("red", "cup")
    assert table.captions == ("the table, all of it",) and table.tags == () and table.image == "../photos/sub/b.png"
    assert other.id == "mine-5" and other.captions == () and other.category is None
    assert (cup.source, cup.licence, cup.split) == ("my photos", "CC0", "train")
    printed = capsys.readouterr().out
    for line in (
        "4  rows\n",
        "1  rows that repeat a box",
        "3  regions\n",
        "3  captions",
        "1  regions without a caption",
    ):
        assert line in printed
    assert not check_file(folder / "out" / "train.jsonl").problems


@pytest.mark.parametrize(
    ("box_format", "columns", "numbers"),
    [
        ("xywh", "x,y,width,height", "10,20,50,70"),
        ("cxcywh", "cx,cy,width,height", "35,55,50,70"),
        ("xyxy-unit", "x1,y1,x2,y2", "0.05,0.2,0.3,0.9"),
        ("xywh-1000", "x,y,width,height", "50,200,250,700"),
        ("cxcywh-unit", "cx,cy,width,height", "0.175,0.55,0.25,0.7"),
    ],
)
def test_every_convention_gives_the_same_box(folder, box_format, columns, numbers):
    assert run(folder, f"image,{columns}\na.png,{numbers}\n", box_format=box_format) == 0
    assert open_records(folder / "out" / "train.jsonl")[0].box == pytest.approx((10, 20, 60, 90))


def test_any_columns_delimiter_and_encoding(folder):
    table = "Datei;l;o;r;u;Text;Nr\nC:\\alt\\a.png;10;20;60;90;eine Tür;7\n"
    options = "--delimiter ; --encoding cp1252 --image-column Datei --caption-column Text --id-column Nr".split()
    prefix = ("--box-columns", "l", "o", "r", "u", "--image-prefix", "C:/alt/", "--name", "tueren")
    assert run(folder, table.encode("cp1252"), *options, *prefix) == 0
    door = open_records(folder / "out" / "train.jsonl")[0]
    assert door.captions == ("eine Tür",) and door.id == "tueren-7"
    tabs = TABLE.replace(",", "\t").replace('"the table\t all of it"', '"the table, all of it"')
    for table, options in ((b"\xef\xbb\xbf" + TABLE.encode(), ()), (tabs, ("--delimiter", "tab"))):
        assert run(folder, table, *options) == 0
        assert open_records(folder / "out" / "train.jsonl")[1].captions == ("the table, all of it",)


def test_absolute_paths_into_the_image_folder_are_names_in_it(folder):
    table = f"image,x1,y1,x2,y2\n{folder}/photos/sub/b.png,1,2,30,40\n./a.png,1,2,30,40\n"
    assert run(folder, table) == 0
    records = open_records(folder / "out" / "train.jsonl")
    assert [r.image for r in records] == ["../photos/sub/b.png", "../photos/a.png"]
    assert all(records.image_path(k).is_file() for k in range(2))


def test_split_and_id_columns_and_an_arrow_folder(folder):
    table = "image,x1,y1,x2,y2,id,split\na.png,1,2,30,40,first,train\na.png,5,2,30,40,second,val\n"
    assert run(folder, table, out="out/mine") == 0
    assert [(r.id, r.split) for r in open_records(folder / "out" / "mine")] == [
        ("mine-first", "train"),
        ("mine-second", "val"),
    ]


def refused(folder, capsys, table, *options, **more) -> str:
    assert run(folder, table, *options, **more) == 2
    assert not list(folder.glob("out/*"))  # nothing that looks whole
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("", "mine.csv: an empty file"),
        (TABLE.replace("image,", "images,"), "mine.csv:1: no column 'image'; there are .*Did you mean 'images'"),
        (TABLE.replace(",", ";"), "parted by ';'"),
        (TABLE.replace("caption", "tags"), "two columns are called 'tags'"),
        (TABLE.replace("0,0,200", "0,null,200"), "mine.csv:3: y1 'null': expected a number"),
        (TABLE.replace("10.5,", '"10,5",'), "mine.csv:5: x1 '10,5'.*a point"),
        (TABLE.replace("a.png,10.5,", "a.png,nan,"), "mine.csv:5: box .*not finite"),
        (TABLE[: TABLE.index(" all of it")], "cut off"),
        (TABLE + "a.png,1,2\n", "mine.csv:6: 3 cells, but 8 columns"),
        (TABLE + "c.png,1,2,3,4,,,\n", "mine.csv:6: image 'c.png' is not in"),
        (
            TABLE + "b.png,1,2,3,4,,,\n",
            "mine.csv:6: image 'b.png' does not lie in .*but sub/b.png does: say --im",
        ),
        (
            TABLE + "x/y/a.png,1,2,3,4,,,\n",
            "mine.csv:6: image 'x/y/a.png' does not lie in .*, but a.png does: say --image-prefix 'x/y/'",
        ),
        (TABLE + "../a.png,1,2,3,4,,,\n", "mine.csv:6: image '../a.png' does not lie in .*--image-prefix '../'"),
        (TABLE + "/etc/passwd,1,2,3,4,,,\n", "mine.csv:6: image '/etc/passwd' does not lie in"),
        (TABLE + "http://host/a.png,1,2,3,4,,,\n", "--image-prefix"),
        (TABLE + "a.png,10,20,60,90,x,dog,\n", "mine.csv:6: category 'dog', but 'cup' in line 2"),
        (b"version https://git-lfs.github.com/spec/v1\n", "mine.csv: a Git LFS pointer"),
        (
            "image,x1,y1,x2,y2\n",
            "no regions came out, and none was left out: the input holds none; is it the right file",
        ),
        (TABLE.replace("cup", "Löffel").encode("latin-1"), "behind line 1: not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_bad_tables_are_refused_with_their_line(folder, capsys, table, rule):
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(refused(folder, capsys, table, "--strict"))


def test_a_wrong_convention_is_refused_with_the_right_one(folder, capsys):
    rows = "".join(f"a.png,{100 + k},{30 + k},{20 + k},{10 + k}\n" for k in range(30))
    message = refused(folder, capsys, "image,x1,y1,x2,y2\n" + rows)
    assert "mine.csv: 100% of 30 boxes" in message and "as 'xywh' or 'cxcywh' 100% fit" in message


def test_boxes_outside_are_left_out_and_named_or_an_error(folder, capsys):
    table = TABLE + "a.png,300,2,400,40,far away,,\na.png,150,2,260,40,half,,\n"
    assert "mine.csv:6: box [300.0, 2.0, 400.0, 40.0]" in refused(folder, capsys, table, "--strict")
    assert run(folder, table) == 0
    printed = capsys.readouterr()
    assert "mine.csv:6: box [300.0, 2.0, 400.0, 40.0]" in printed.err and "1  boxes left out" in printed.out
    assert open_records(folder / "out" / "train.jsonl")[-1].box == (150, 2, 200, 40)
    assert "1  boxes clipped" in printed.out or "2  boxes clipped" in printed.out


def test_options_that_do_not_fit_are_refused(folder, capsys):
    assert "one character" in refused(folder, capsys, TABLE, "--delimiter", ",,")
    assert "no column 'text'" in refused(folder, capsys, TABLE, "--caption-column", "text")
    assert "cannot be read" in refused(folder, capsys, TABLE, "--encoding", "utf-99")
    assert "ends with .jsonl" in refused(folder, capsys, TABLE, out="out/a.csv")
    with pytest.raises(SystemExit):
        run(folder, TABLE, box_format="yolo")


def test_records_are_json_of_plain_types(folder):
    assert run(folder, TABLE) == 0
    lines = Path(folder / "out" / "train.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["box"] == [10.0, 20.0, 60.0, 90.0] and json.loads(lines[0])["image_hw"] == [100, 200]


def test_a_byte_order_mark_is_read_over_whatever_utf8_is_called(folder):
    content = b"\xef\xbb\xbf" + TABLE.encode()
    for options in ((), ("--encoding", "utf-8"), ("--encoding", "UTF8")):
        assert run(folder, content, *options) == 0
        assert len(open_records(folder / "out" / "train.jsonl")) == 3


@pytest.mark.parametrize(
    "saved", [lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode("utf-8-sig"))]
)
def test_other_ways_to_save_a_table_give_the_same_records(folder, saved):
    assert run(folder, TABLE) == 0
    records = list(open_records(folder / "out" / "train.jsonl"))
    assert run(folder, saved(TABLE), out="other/train.jsonl") == 0
    others = list(open_records(folder / "other" / "train.jsonl"))
    assert [record.to_dict() for record in others] == [record.to_dict() for record in records] and records
