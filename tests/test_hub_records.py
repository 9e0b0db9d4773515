import hashlib
import io

import numpy as np
import pytest
from PIL import Image as Picture

from data_prep.check import check_file
from data_prep.hub import main
from dynrefer.data import open_records
from dynrefer.masks import mask_to_rle

datasets = pytest.importorskip("datasets")
HW = (100, 200)


def encoded(shade=0, kind="PNG", hw=HW, **options) -> bytes:
    buffer = io.BytesIO()
    Picture.new("RGB", (hw[1], hw[0]), (shade, 0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def cell(*arguments, **options) -> dict:
    return {"bytes": encoded(*arguments, **options), "path": None}


SPOT = np.zeros(HW, dtype=bool)
SPOT[20:40, 50:80] = True
BOXES = [[[20, 10, 40, 40], [100, 0, 50, 100]], [], [[1, 2, 3, 4]], [[5, 5, 10, 10]]]
CATEGORIES = [[1, 0], [], [-1], [1]]
IMAGES = [cell(), cell(50), cell(99, "JPEG"), cell()]
LABEL = datasets.ClassLabel(names=["cup", "table"])


def of_lists():
    """objects as a dict of lists, the layout of detection sets on the Hub."""
    features = datasets.Features(
        image=datasets.Image(),
        objects={
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(LABEL),
        },
    )
    objects = [{"bbox": boxes, "category": numbers} for boxes, numbers in zip(BOXES, CATEGORIES, strict=True)]
    return datasets.Dataset.from_dict({"image": IMAGES, "objects": objects}, features=features)


def of_dicts():
    """objects as a list of dicts."""
    thing = {"bbox": datasets.List(datasets.Value("float32")), "category": LABEL}
    features = datasets.Features(image=datasets.Image(), objects=datasets.List(thing))
    objects = [
        [{"bbox": box, "category": number} for box, number in zip(boxes, numbers, strict=True)]
        for boxes, numbers in zip(BOXES, CATEGORIES, strict=True)
    ]
    return datasets.Dataset.from_dict({"image": IMAGES, "objects": objects}, features=features)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def run(folder, dataset, *options, name="mine"):
    if dataset is not None:
        dataset.save_to_disk(str(folder / name))
    return main(["--dataset", str(folder / name), "--out", str(folder / "out" / "train.jsonl"), *options])


def records(folder):
    return list(open_records(folder / "out" / "train.jsonl"))


OBJECTS = ("--boxes-column", "objects.bbox", "--category-column", "objects.category", "--box-format", "xywh")


@pytest.mark.parametrize("make", [of_lists, of_dicts])
def test_objects_become_regions_and_images_keep_their_bytes(tmp_path, capsys, make):
    assert run(tmp_path, make(), *OBJECTS) == 0
    first, second, third, fourth = records(tmp_path)
    assert first.id == "mine-0-0" and first.box == (20, 10, 60, 50) and first.category == "table"
    assert second.category == "cup" and third.category is None and third.id == "mine-2-0" and third.split == "train"
    assert first.image == f"images/{hashlib.sha256(encoded()).hexdigest()[:20]}.png" == fourth.image
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert sorted(written.values()) == sorted([encoded(), encoded(50), encoded(99, "JPEG")])
    assert third.image.endswith(".jpg") and str(tmp_path / "mine") == first.source
    printed = capsys.readouterr().out
    assert "3  images written" in printed and "1  rows left out: without a region" in printed
    assert not check_file(tmp_path / "out" / "train.jsonl").problems


def test_one_region_a_row_with_texts_masks_and_ids(tmp_path):
    rows = {
        "photo": IMAGES[:2],
        "box": [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]],
        "text": ["a cup ", ""],
        "kind": ["cup", "table"],
        "name": ["first", "second"],
        "mask": [mask_to_rle(SPOT)] * 2,
    }
    options = (
        "--image-column photo --boxes-column box --box-format xyxy-unit --captions-column text --category-column kind"
    )
    more = "--id-column name --masks-column mask --split val --name things --licence CC0".split()
    assert run(tmp_path, datasets.Dataset.from_dict(rows), *options.split(), *more) == 0
    cup, table = records(tmp_path)
    assert cup.id == "things-first" and cup.box == pytest.approx((20, 20, 100, 60)) and cup.captions == ("a cup",)
    assert table.captions == () and table.category == "table" and table.split == "val" and table.licence == "CC0"
    assert (cup.to_mask() == SPOT).all()


def test_ids_that_stand_twice_are_refused(tmp_path, capsys):
    rows = datasets.Dataset.from_dict({"image": IMAGES[:2], "box": [[0, 0, 9, 9]] * 2, "name": ["x", "x"]})
    rows = rows.cast_column("image", datasets.Image())
    assert run(tmp_path, rows, "--boxes-column", "box", "--box-format", "xyxy", "--id-column", "name") == 2
    assert "row 1, region 0: id 'x' stands in" in capsys.readouterr().err


def test_masks_as_pictures_and_several_captions_a_region(tmp_path):
    mask = io.BytesIO()
    Picture.fromarray(SPOT.astype(np.uint8) * 255).save(mask, "PNG")
    features = datasets.Features(
        image=datasets.Image(),
        masks=datasets.List(datasets.Image()),
        texts=datasets.List(datasets.List(datasets.Value("string"))),
    )
    rows = {"image": IMAGES[:1], "masks": [[{"bytes": mask.getvalue(), "path": None}]], "texts": [[["a spot", "it"]]]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    assert run(tmp_path, dataset, "--masks-column", "masks", "--captions-column", "texts") == 0
    (spot,) = records(tmp_path)
    assert spot.captions == ("a spot", "it") and spot.box == (50, 20, 80, 40) and (spot.to_mask() == SPOT).all()


def test_turned_photos_count_upright(tmp_path):
    exif = Picture.Exif()
    exif[0x0112] = 6
    rows = {"image": [cell(0, "JPEG", HW[::-1], exif=exif)], "box": [[150, 10, 190, 90]]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert run(tmp_path, dataset, "--boxes-column", "box", "--box-format", "xyxy") == 0
    assert records(tmp_path)[0].image_hw == HW


def test_a_dict_of_splits_and_a_folder_of_parquet(tmp_path):
    parts = datasets.DatasetDict(train=of_lists().select([2]), test=of_lists())
    assert run(tmp_path, parts, *OBJECTS, "--split", "test", name="parts") == 0
    assert len(records(tmp_path)) == 4
    (tmp_path / "parquet").mkdir()
    of_lists().to_parquet(str(tmp_path / "parquet" / "train-0.parquet"))
    assert run(tmp_path, None, *OBJECTS, "--streaming", name="parquet") == 0
    assert len(records(tmp_path)) == 4 and records(tmp_path)[0].category == "table"


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ((), "say where the boxes or masks are, .*; its columns are image"),
        (("--boxes-column", "boxes"), "no column 'boxes' for boxes; its columns are image"),
        (
            ("--boxes-column", "objects.box", "--box-format", "xywh"),
            "row 0: no 'box' of 'objects.box'; there is \\['bbox', 'category'\\]",
        ),
        (("--boxes-column", "objects.bbox"), "say what their numbers are with --box-format"),
        ((*OBJECTS, "--captions-column", "image"), "row 0: captions .*expected a list"),
        ((*OBJECTS, "--captions-column", "objects.category"), "row 0, region 0: captions"),
        (("--boxes-column", "objects.bbox", "--box-format", "xyxy-unit"), "as 'xywh'.* fit"),
        ((*OBJECTS, "--split", "test", "--config", "x"), None),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, options, rule):
    assert run(tmp_path, of_lists(), *options) == (0 if rule is None else 2)
    if rule is not None:
        with pytest.raises(AssertionError, match=rule):
            raise AssertionError(capsys.readouterr().err)
        assert not (tmp_path / "out" / "train.jsonl").exists()


def test_missing_splits_damaged_images_and_numbers_beyond_the_names_are_refused(tmp_path, capsys):
    parts = datasets.DatasetDict(train=of_lists())
    assert run(tmp_path, parts, *OBJECTS, "--split", "val", name="parts") == 2
    assert "no split 'val', it has ['train']" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, None, *OBJECTS, name="empty") == 2
    assert "cannot be opened" in capsys.readouterr().err
    rows = {"image": [{"bytes": b"no picture", "path": None}], "box": [[1, 2, 3, 4]]}
    bad = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert run(tmp_path, bad, "--boxes-column", "box", "--box-format", "xyxy", name="bad") == 2
    assert "row 0: image of 10 bytes: not an image" in capsys.readouterr().err
    rows = {"image": [{"bytes": None, "path": "/etc/passwd"}], "box": [[1, 2, 3, 4]]}
    bad = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert run(tmp_path, bad, "--boxes-column", "box", "--box-format", "xyxy", name="leak") == 2
    assert not list((tmp_path / "out").rglob("*passwd*")) and "row 0" in capsys.readouterr().err
