import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.flickr30k import is_held_out, main
from data_prep.phrase_words import singular
from dynrefer.data import open_records

WIDTH, HEIGHT = 200, 100


def photo(name: str, regions: list[dict]) -> dict:
    return {
        "id": name,
        "width": WIDTH,
        "height": HEIGHT,
        "captions": [],
        "regions": regions,
        "scene_eids": [],
        "nobox_eids": [],
        "file": f"{name}_x.jpg",
    }


def region(box, phrases, types=("people",), n_boxes=1) -> dict:
    return {"box": box, "eids": ["1"], "n_boxes": n_boxes, "types": list(types), "phrases": list(phrases)}


def jpeg(size=(WIDTH, HEIGHT), shade=0) -> bytes:
    buffer = io.BytesIO()
    ramp = np.linspace(0, 200, size[0]).astype(np.uint8)[None, :, None].repeat(size[1], 0).repeat(3, 2)
    Image.fromarray(ramp + np.uint8(shade)).save(buffer, "JPEG")
    return buffer.getvalue()


PHOTOS = [
    photo(
        "10",
        [
            region([20, 10, 60, 90], ["A man", " the  man ", "A white man"]),
            region([1, 5, 100, 50], ["two dogs", "dogs"], ["animals"], n_boxes=2),
            region([100, 5, 200, 100], ["a Red shirt", "a grey and red shirt"], ["clothing"]),
            region([5, 5, 10, 10], ["the bench of men"], ["other", "scene"]),
        ],
    ),
    photo("11", [region([50, 20, 150, 80], ["dogs", "a brown dog"], ["animals"])]),
    photo("12", [region([1, 5, 100, 50], ["two people"], n_boxes=2), region([1, 1, 9, 9], [" "])]),
]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PHOTOS))
    with gzip.open(tmp_path / "photos.jsonl.gz", "wt") as file:
        file.write((tmp_path / "photos.jsonl").read_text())
    (tmp_path / "images").mkdir()
    for k, p in enumerate(PHOTOS):
        (tmp_path / "images" / p["file"]).write_bytes(jpeg(shade=k))
    return tmp_path


def run(source, *options, jsonl="photos.jsonl", images="images", out="out"):
    return main(
        ["--jsonl", str(source / jsonl), "--images", str(source / images), "--out", str(source / out), *options]
    )


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_single_boxes_become_records(source, capsys):
    assert run(source, "--min-tag-count", "1") == 0
    records = open_records(source / "out" / "train.jsonl")
    man, shirt, bench, dog = records
    assert [r.id for r in records] == ["10_0", "10_2", "10_3", "11_0"]  # 10_1 names a group; numbers stay
    assert man.captions == ("A man", "the man", "A white man") and man.category == "people"
    assert man.box == (20, 10, 60, 90) and man.image_hw == (HEIGHT, WIDTH) and man.image == "images/10_x.jpg"
    assert man.attributes == {} and shirt.attributes == {"red": 1, "gray": 1} and dog.attributes == {"brown": 1}
    assert bench.category is None and dog.category == "animals"
    assert man.tags == ("man", "white") and bench.tags == ("bench", "man") and dog.tags == ("dog", "brown")
    assert {r.split for r in records} == {"train"} and man.source == "flickr30k-entities:people" and man.licence
    assert (source / "out" / "images" / "10_x.jpg").read_bytes() == jpeg()
    assert sorted(path.name for path in (source / "out" / "images").iterdir()) == ["10_x.jpg", "11_x.jpg"]
    printed = capsys.readouterr().out
    for line in ("2  boxes of groups left out", "1  boxes without a phrase", "1  photos without", "4  train regions\n"):
        assert line in printed
    assert not check_file(source / "out" / "train.jsonl").problems


def test_groups_are_kept_on_request_without_colours_of_their_members(source):
    assert run(source, "--groups", "keep") == 0
    records = {r.id: r for r in open_records(source / "out" / "train.jsonl")}
    assert set(records) == {"10_0", "10_1", "10_2", "10_3", "11_0", "12_0"} and records["10_1"].attributes == {}


def test_boxes_follow_the_size_that_the_file_really_has(source):
    for p in PHOTOS:
        (source / "images" / p["file"]).write_bytes(jpeg((160, 160)))
    assert run(source) == 0
    man = open_records(source / "out" / "train.jsonl")[0]
    assert man.image_hw == (160, 160)
    assert man.box == pytest.approx((20 * 160 / WIDTH, 10 * 160 / HEIGHT, 60 * 160 / WIDTH, 90 * 160 / HEIGHT))


def test_image_size_squashes_the_written_photos(source):
    assert run(source, "--image-size", "40") == 0
    records = open_records(source / "out" / "train.jsonl")
    assert records[0].box == pytest.approx((4, 4, 12, 36)) and records[0].image_hw == (40, 40)
    with Image.open(records.image_path(0)) as image:
        assert image.size == (40, 40) and image.format == "JPEG"
        assert np.asarray(image)[20, 35, 0] > np.asarray(image)[20, 5, 0] + 100  # the ramp still runs to the right


def test_exif_rotated_photos_count_upright(source):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(source / "images" / "10_x.jpg", exif=exif)
    assert run(source) == 0
    assert open_records(source / "out" / "train.jsonl")[0].image_hw == (HEIGHT, WIDTH)


def test_gzip_and_tar_give_the_same_as_plain_files(source):
    assert run(source) == 0
    write_tar(
        source / "images.tar",
        {f"some/folder/{p['file']}": (source / "images" / p["file"]).read_bytes() for p in PHOTOS},
    )
    assert run(source, jsonl="photos.jsonl.gz", images="images.tar", out="out2") == 0
    for name in ("train.jsonl", "tags.txt", "images/10_x.jpg"):
        assert (source / "out" / name).read_bytes() == (source / "out2" / name).read_bytes()


def test_the_held_out_photos_are_a_fixed_share_and_wholly_apart(source):
    names = [str(number) for number in range(400)]
    held = [name for name in names if is_held_out(name, 0.25)]
    assert 70 < len(held) < 130 and set(n for n in names if is_held_out(n, 0.1)) < set(held)
    photos = [photo(name, [region([1, 1, 50, 50], ["a dog"])]) for name in names[:40]]
    (source / "many.jsonl").write_text("".join(json.dumps(p) + "\n" for p in photos))
    for k, p in enumerate(photos):
        (source / "images" / p["file"]).write_bytes(jpeg(shade=k))
    assert run(source, "--holdout", "0.25", jsonl="many.jsonl") == 0
    train, val = (open_records(source / "out" / f"{split}.jsonl", split=split) for split in ("train", "val"))
    assert {r.id for r in val} == {f"{name}_0" for name in held if int(name) < 40} and len(train) + len(val) == 40
    assert not check_file(source / "out" / "train.jsonl", against=source / "out" / "val.jsonl").problems


def test_another_split_uses_the_training_tags(source):
    assert run(source, "--min-tag-count", "2") == 0
    assert (source / "out" / "tags.txt").read_text().split() == ["man"]
    assert run(source, "--split", "val", "--tags", str(source / "out" / "tags.txt"), out="val") == 0
    assert [r.tags for r in open_records(source / "val" / "val.jsonl")] == [("man",), (), ("man",), ()]


def test_only_the_photos_named(source):
    (source / "ids.txt").write_text("11\n")
    assert run(source, "--ids", str(source / "ids.txt")) == 0
    assert [r.id for r in open_records(source / "out" / "train.jsonl")] == ["11_0"]


def test_singulars():
    words = "dogs ladies dresses men women children grass jeans buses benches boxes tennis bus leaves shoes people"
    expected = "dog lady dress man woman child grass jeans bus bench box tennis bus leaf shoe people"
    assert [singular(word) for word in words.split()] == expected.split()


def refused(source, capsys, *options, **where) -> str:
    assert run(source, *options, **where) == 2
    assert not (source / "out" / "train.jsonl").exists()
    return capsys.readouterr().err


def test_cut_off_input_is_refused_and_nothing_is_written(source, capsys):
    data = (source / "photos.jsonl.gz").read_bytes()
    (source / "cut.jsonl.gz").write_bytes(data[:-20])
    assert "cut off gzip" in refused(source, capsys, jsonl="cut.jsonl.gz")
    (source / "cut.jsonl").write_bytes((source / "photos.jsonl").read_bytes()[:-30])
    assert "cut.jsonl:3: not a JSON line" in refused(source, capsys, jsonl="cut.jsonl")
    write_tar(source / "all.tar", {p["file"]: jpeg() for p in PHOTOS})
    for length in (1000, 2000, 3500, 4096, 5000):
        (source / "cut.tar").write_bytes((source / "all.tar").read_bytes()[:length])
        assert "cut" in refused(source, capsys, images="cut.tar")
    (source / "images" / "10_x.jpg").write_bytes(jpeg()[:-100])
    assert "10_x.jpg" in (message := refused(source, capsys)) and "truncated" in message
    (source / "images" / "10_x.jpg").unlink()
    assert "photos.jsonl:1: image" in refused(source, capsys)
    assert "no such" in refused(source, capsys, images="nowhere")
    assert "cannot be read" in refused(source, capsys, jsonl="nowhere.jsonl")


@pytest.mark.parametrize("name", ["/etc/10_x.jpg", "../10_x.jpg", "a/../../10_x.jpg"])
def test_a_tar_with_paths_that_lead_out_is_refused(source, capsys, name):
    write_tar(source / "bad.tar", {name: jpeg(), "11_x.jpg": jpeg()})
    assert "'..'" in refused(source, capsys, images="bad.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_links_is_refused(source, capsys, kind):
    with tarfile.open(source / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("10_x.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "link or device" in refused(source, capsys, images="bad.tar")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"regions": None}, "not a photo"),
        ({"width": 0}, "0: expected a whole number"),
        ({"file": "../../etc/passwd"}, "plain file name"),
        ({"regions": [region([1, 2, 3], ["a"])]}, "four numbers"),
        ({"regions": [region([50, 2, 3, 9], ["a"])]}, "inverted box"),
        ({"regions": [region([300, 2, 400, 9], ["a"])]}, "wholly outside"),
        ({"regions": [region([1, 2, 30, 9], [5])]}, "list of texts"),
    ],
)
def test_a_bad_photo_names_its_line(source, capsys, change, rule):
    (source / "bad.jsonl").write_text("\n" + json.dumps({**PHOTOS[0], **change}) + "\n")
    message = refused(source, capsys, jsonl="bad.jsonl")
    assert "bad.jsonl:2: " in message and rule in message


def test_options_that_do_not_fit_are_refused(source, capsys):
    for options in (
        ("--holdout", "1"),
        ("--split", "a/b"),
        ("--split", "val", "--holdout", "0.5"),
        ("--image-size", "0"),
    ):
        assert options[0] in refused(source, capsys, *options)
    assert "--sentences" in refused(source, capsys, "--annotations", "x")
    assert "no such file" in refused(source, capsys, "--tags", str(source / "none.txt"))


XML = """<annotation><filename>7.jpg</filename><size><width>200</width><height>100</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>90</ymax></bndbox></object>
<object><name>2</name><name>3</name><bndbox><xmin>100</xmin><ymin>5</ymin><xmax>200</xmax><ymax>100</ymax></bndbox></object>
<object><name>4</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>4</name><bndbox><xmin>11</xmin><ymin>1</ymin><xmax>19</xmax><ymax>9</ymax></bndbox></object>
<object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>6</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>7</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""
SENTENCES = """[/EN#1/people A man] in [/EN#2/clothing/other a red shirt] sees [/EN#4/animals two dogs] .
[/EN#1/people The man] and [/EN#3/clothing a shirt] , [/EN#0/notvisual it] rains on [/EN#5/scene the beach] .
[/EN#6/other a pole]
"""


@pytest.fixture
def release(tmp_path):
    for folder, name, data in (("A", "7.xml", XML), ("S", "7.txt", SENTENCES)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(data)
    (tmp_path / "I").mkdir()
    (tmp_path / "I" / "7.jpg").write_bytes(jpeg())
    return tmp_path


def run_release(release, *options):
    folders = (("--annotations", "A"), ("--sentences", "S"), ("--images", "I"), ("--out", "out"))
    return main([*(word for option, name in folders for word in (option, str(release / name))), *options])


def test_the_official_release_gives_the_same_kind_of_records(release):
    (release / "ids.txt").write_text("7\n")
    assert run_release(release, "--split", "val", "--ids", str(release / "ids.txt"), "--min-tag-count", "1") == 0
    man, shirt, pole = open_records(release / "out" / "val.jsonl")
    assert man.id == "7_0" and man.captions == ("A man", "The man") and man.box == (20, 10, 60, 90)
    assert man.category == "people" and man.tags == ("man",)
    assert shirt.captions == ("a red shirt", "a shirt") and shirt.category is None  # two chains, two types
    assert shirt.attributes == {"red": 1} and shirt.box == (100, 5, 200, 100)
    assert pole.box == (6, 7, 7, 9)  # both corners are pixel 7, counted from 1
    assert run_release(release, "--groups", "keep") == 0
    kept = open_records(release / "out" / "train.jsonl")
    assert [r.captions for r in kept if r.category == "animals"] == [("two dogs",)] * 2


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("A/7.xml", XML[:300], "7.xml: not an annotation"),
        ("A/7.xml", XML.replace("<xmin>20</xmin>", ""), "7.xml: not an annotation"),
        ("A/7.xml", XML.replace("<scene>1</scene>", ""), "neither a bndbox"),
        ("A/7.xml", XML.replace("<width>200</width>", ""), "7.xml: not an annotation"),
        ("S/7.txt", SENTENCES.replace("two dogs]", "two dogs"), "7.txt:1: a phrase"),
        ("S/7.txt", None, "7.txt: no such file"),
        ("A/7.xml", None, "no .xml files"),
        ("I/7.jpg", None, "cannot be read"),
    ],
)
def test_damaged_release_files_are_named(release, capsys, path, text, rule):
    (release / path).unlink()
    if text is not None:
        (release / path).write_text(text)
    assert run_release(release) == 2
    assert rule in capsys.readouterr().err and not (release / "out" / "train.jsonl").exists()
