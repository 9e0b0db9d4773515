import io
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.cvat import main, rle_of_part
from dynrefer.data import open_records
from dynrefer.masks import mask_to_box, rle_to_box, to_mask

HW = (100, 200)
XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><name>cups</name><size>2</size><mode>annotation</mode>
    <labels><label><name>cup</name><attributes>
      <attribute><name>colour</name><input_type>select</input_type><values>red
blue</values></attribute>
      <attribute><name>full</name><input_type>checkbox</input_type></attribute>
      <attribute><name>text</name><input_type>text</input_type></attribute>
      <attribute><name>price</name><input_type>number</input_type></attribute>
    </attributes></label><label><name>table</name><attributes></attributes></label></labels></task>
    <dumped>2026-01-01</dumped></meta>
  <image id="0" name="a.png" width="200" height="100">
    <box label="cup" source="manual" occluded="0" xtl="20.00" ytl="10.00" xbr="60.50" ybr="90.00" z_order="0">
      <attribute name="colour">red</attribute><attribute name="full">false</attribute>
      <attribute name="text">a red cup</attribute><attribute name="price">7</attribute>
    </box>
    <polygon label="table" source="manual" occluded="0" points="100.00,5.00;180.00,5.00;180.00,95.00" z_order="0">
    </polygon>
    <polyline label="table" occluded="0" points="1,2;3,4" z_order="0"></polyline>
    <mask label="cup" occluded="0" rle="1, 2, 3, 1, 5" left="10" top="20" width="4" height="3" z_order="0">
      <attribute name="full">true</attribute>
    </mask>
    <tag label="table"></tag>
  </image>
  <image id="1" name="sub/b.png" width="200" height="100">
    <box label="cup" occluded="0" xtl="40" ytl="40" xbr="80" ybr="60" rotation="90.00" z_order="0"></box>
    <ellipse label="cup" occluded="0" cx="100" cy="50" rx="30" ry="10" rotation="90" z_order="0"></ellipse>
    <box label="cup" occluded="0" xtl="150" ytl="40" xbr="210" ybr="60" z_order="0"></box>
  </image>
</annotations>
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "photos" / name).write_bytes(png())
    (tmp_path / "annotations.xml").write_text(XML)
    return tmp_path


def png(size=(HW[1], HW[0])) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def run(folder, *options, export="annotations.xml", images="photos"):
    where = ["--images", str(folder / images)] if images else []
    return main(["--export", str(folder / export), *where, "--out", str(folder / "out" / "train.jsonl"), *options])


def records(folder):
    return list(open_records(folder / "out" / "train.jsonl"))


def test_every_shape_becomes_a_region(folder, capsys):
    assert run(folder, "--caption-attribute", "text", "--split", "train") == 0
    cup, table, mask, turned, ellipse, half = records(folder)
    assert cup.id == "annotations-0-0" and cup.box == (20, 10, 60.5, 90) and cup.mask is None and cup.category == "cup"
    assert cup.attributes == {"colour:red": 1, "full": -1} and cup.captions == ("a red cup",)
    assert table.mask == [[100, 5, 180, 5, 180, 95]] and table.box == (100, 5, 180, 95) and table.category == "table"
    # 4 wide and 3 high at (10, 20), along the rows: .XX. / ..X. / ....
    assert np.argwhere(mask.to_mask()).tolist() == [[20, 11], [20, 12], [21, 12]]
    assert mask.box == (11, 20, 13, 22) and mask.attributes == {"full": 1}
    assert turned.box == pytest.approx((50, 30, 70, 70)) and turned.mask is not None  # 40 x 20 turned about (60, 50)
    assert turned.to_mask().sum() == pytest.approx(800, rel=0.06) and turned.image == "../photos/sub/b.png"
    assert ellipse.box == pytest.approx((90, 20, 110, 80)) and ellipse.to_mask().sum() == pytest.approx(942, rel=0.05)
    assert half.box == (150, 40, 200, 60)
    printed = capsys.readouterr().out
    for line in ("1  left out, no region: polyline", "1  left out, no region: tag", "1  rotated boxes", "2  images"):
        assert line in printed
    assert "1  attributes left out: numbers" in printed
    assert not check_file(folder / "out" / "train.jsonl").problems


def test_a_project_has_a_folder_for_each_subset(folder):
    (folder / "photos" / "Train").mkdir()
    (folder / "photos" / "a.png").rename(folder / "photos" / "Train" / "a.png")
    (folder / "annotations.xml").write_text(XML.replace('name="a.png"', 'name="a.png" subset="Train"'))
    assert run(folder) == 0
    assert records(folder)[0].image == "../photos/Train/a.png"


def write_zip(path, members: dict[str, bytes], links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, data)


def test_the_zip_as_downloaded_brings_its_images(folder):
    members = {"annotations.xml": XML.encode(), "images/a.png": png(), "images/sub/b.png": png()}
    write_zip(folder / "mine.zip", members)
    assert run(folder, export="mine.zip", images=None) == 0
    found = open_records(folder / "out" / "train.jsonl")
    assert [r.image for r in found][::3] == ["images/a.png", "images/sub/b.png"] and found[0].id == "mine-0-0"
    assert (folder / "out" / "images" / "a.png").read_bytes() == png()
    write_zip(folder / "bare.zip", {"annotations.xml": XML.encode()})
    assert run(folder, export="bare.zip") == 0  # with a folder of images


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "images/../../a.png", "..\\a.png", "C:/a.png"])
def test_a_zip_with_entries_that_lead_out_is_refused(folder, capsys, name):
    write_zip(folder / "bad.zip", {"annotations.xml": XML.encode(), name: png()})
    assert run(folder, export="bad.zip", images=None) == 2
    assert "leads out of the archive" in capsys.readouterr().err and not (folder / "out").exists()
    assert not (folder / "a.png").exists()


def test_links_and_damage_in_a_zip_are_refused(folder, capsys):
    write_zip(folder / "link.zip", {"annotations.xml": XML.encode(), "images/a.png": b"/etc/passwd"}, ["images/a.png"])
    write_zip(folder / "two.zip", {"annotations.xml": XML.encode(), "x/annotations.xml": XML.encode()})
    write_zip(folder / "none.zip", {"a.txt": b"x"})
    write_zip(folder / "bare.zip", {"annotations.xml": XML.encode()})
    write_zip(folder / "all.zip", {"annotations.xml": XML.encode(), "images/a.png": png(), "images/sub/b.png": png()})
    data = (folder / "all.zip").read_bytes()
    (folder / "cut.zip").write_bytes(data[:-100])
    (folder / "flipped.zip").write_bytes(data.replace(b"a red cup", b"a bad cup", 1))
    rules = {
        "link": "is a link",
        "two": "2 files annotations.xml",
        "none": "0 files annotations.xml",
        "bare": "no images in it",
        "cut": "not a zip file, or cut off",
        "flipped": "damaged",
        "nowhere": "no such file",
    }
    for name, rule in rules.items():
        assert run(folder, export=f"{name}.zip", images=None) == 2
        assert rule in capsys.readouterr().err, name
        assert not (folder / "out" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("</annotations>", "", "not XML from its first to its last byte"),
        ("annotations>", "coco>", "begins with <coco>"),
        ("image", "picture", "no <image> in it"),
        ('<image id="0"', '<track id="0" label="cup"><box/></track><image id="0"', "CVAT for video"),
        ('id="1" name', 'id="0" name', "two images have the id '0'"),
        ('xtl="20.00"', "", "image 'a.png', box 0: xtl None: expected a number"),
        ('xtl="20.00"', 'xtl="inf"', "image 'a.png', box 0: xtl 'inf': expected a finite"),
        ("1, 2, 3, 1, 5", "1, 2, 3", "mask 3: rle adds up to 6, expected 4 x 3"),
        ("1, 2, 3, 1, 5", "1, x", "mask 3: rle '1, x': expected whole numbers"),
        ('left="10"', 'left="198"', "mask 3: cut-out at .* leaves the image"),
        ("100.00,5.00;180.00,5.00;180.00,95.00", "1,2;3,4", "polygon 1: .*three corners"),
        ("100.00,5.00;180.00,5.00;180.00,95.00", "a,b;3,4;1,2", "polygon 1: points"),
        ("polyline", "spiral", "shape <spiral>: expected one of box"),
        (
            'width="200" height="100">\n    <box label="cup" source',
            'width="100" height="200">\n    <box label="cup" source',
            "annotation says",
        ),
        ("a.png", "c.png", "image 'c.png' is not in"),
        ("a.png", "../photos/a.png", "image '../photos/a.png' does not lie in"),
    ],
)
def test_bad_exports_are_refused_with_the_place(folder, capsys, old, new, rule):
    (folder / "annotations.xml").write_text(XML.replace(old, new))
    assert run(folder, "--strict") == 2
    with pytest.raises(AssertionError, match=f"annotations.xml.*{rule}"):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_options_that_do_not_fit_are_refused(folder, capsys):
    assert run(folder, "--caption-attribute", "txt") == 2
    assert "no shape has an attribute 'txt'" in capsys.readouterr().err
    assert run(folder, images=None) == 2
    assert "--images" in capsys.readouterr().err


def test_runs_of_a_cut_out_are_those_of_the_whole_image():
    generator = np.random.default_rng(0)
    for _ in range(300):
        height, width = generator.integers(1, 9, size=2).tolist()
        top, left = generator.integers(0, height), generator.integers(0, width)
        part = generator.random((height - top, width - left)) < generator.choice([0.1, 0.5, 1])
        whole = np.zeros((height, width), dtype=bool)
        whole[top:, left:] = part
        rle = rle_of_part(part, int(left), int(top), (height, width))
        if whole.any():
            assert (to_mask(rle, (height, width)) == whole).all()
        assert rle_to_box(rle) is None if not whole.any() else (rle_to_box(rle) == mask_to_box(whole)).all()


@pytest.mark.parametrize("key", ["text", "Description"])
def test_a_caption_of_an_export_without_meta_is_no_attribute(folder, key):
    head, tail = XML.partition("  <meta>")[0], XML.partition("</meta>")[2]
    (folder / "annotations.xml").write_text((head + tail).replace('name="text"', f'name="{key}"'))
    assert run(folder) == 0
    cup, _, mask, *_ = records(folder)
    assert cup.captions == ("a red cup",) and cup.attributes == {"colour:red": 1, "full": -1, "price:7": 1}
    assert mask.captions == () and mask.attributes == {"full": 1}
