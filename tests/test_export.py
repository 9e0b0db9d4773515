import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep import coco, label_studio
from data_prep.export import main
from dynrefer.data import Region, open_records, write_records
from dynrefer.data.export import coco_document, exported, image_names, image_numbers, write_yolo
from dynrefer.masks import mask_to_rle
from dynrefer.outlines import joined, one_polygon, polygon_area, rings

HW = (100, 200)
POLYGON = [10.5, 20.0, 60.0, 20.0, 60.25, 90.0]
SPOT = np.zeros(HW, dtype=bool)
SPOT[20:40, 150:180] = True
SPOT[25:30, 160:170] = False  # a hole
SPOT[99, 199] = True
RLE = mask_to_rle(SPOT)


def region(name, image="../photos/a.png", box=(10.25, 20.5, 60.0, 90.125), **more) -> Region:
    return Region(name, image, HW, box, **more)


REGIONS = [
    region("x-1", captions=("a red cup", "a cup, où"), category="cup"),
    region("x-2", "../photos/sub/b.png", box=(10.5, 20.0, 60.25, 90.0), mask=[POLYGON], category="table"),
    region("x-3", box=(150.0, 20.0, 200.0, 100.0), mask=RLE, captions=("a spot",), category="cup"),
]


@pytest.fixture
def folder(tmp_path):
    for name in ("photos/a.png", "photos/sub/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (HW[1], HW[0])).save(tmp_path / name)
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data" / "r.jsonl", REGIONS)
    return tmp_path


def run(folder, to, out, *options, file="data/r.jsonl") -> int:
    return main([str(folder / file), "--to", to, "--out", str(folder / out), *map(str, options)])


def same(found: Region, expected: Region) -> bool:
    masks = (found.to_mask(), expected.to_mask())
    return (
        np.allclose(found.box, expected.box, rtol=0, atol=1e-6)
        and (found.captions, found.category, found.image_hw) == (expected.captions, expected.category, HW)
        and ((masks[0] is None) == (masks[1] is None))
        and (masks[0] is None or (masks[0] == masks[1]).all())
        and os.path.basename(found.image) == os.path.basename(expected.image)
    )


# --- COCO ---


def test_coco_and_back_is_the_same(folder, capsys):
    assert run(folder, "coco", "out.json") == 0
    printed = capsys.readouterr().out
    assert f"images: {folder / 'photos'}\n" in printed and "3  regions" in printed and "2  images" in printed
    options = ("--dataset", "own", "--box-format", "xywh", "--annotations", folder / "out.json")
    where = ("--images", folder / "photos", "--out", folder / "back" / "r.jsonl", "--keep-shared")
    assert coco.main([*map(str, options), *map(str, where)]) == 0
    assert all(map(same, open_records(folder / "back" / "r.jsonl"), REGIONS))


def test_a_coco_document_has_what_tools_ask_for(folder):
    assert run(folder, "coco", "out.json") == 0
    document = json.loads((folder / "out.json").read_text())
    assert document["images"] == [
        {"id": 1, "file_name": "a.png", "height": 100, "width": 200},
        {"id": 2, "file_name": "sub/b.png", "height": 100, "width": 200},
    ]
    assert document["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "table"}]
    first, second, third = document["annotations"]
    assert first["bbox"] == [10.25, 20.5, 49.75, 69.625] and first["area"] == pytest.approx(49.75 * 69.625)
    assert first["caption"] == first["attributes"]["caption"] == "a red cup" and first["captions"][1] == "a cup, où"
    assert (first["image_id"], first["category_id"], first["iscrowd"], first["segmentation"]) == (1, 1, 0, [])
    assert second["segmentation"] == [POLYGON] and second["area"] == pytest.approx(polygon_area(POLYGON))
    assert third["segmentation"] == RLE and third["area"] == SPOT.sum() and "score" not in third


def test_pycocotools_reads_document_and_results(folder):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert run(folder, "coco", "truth.json") == 0
    predictions(folder)
    assert run(folder, "coco", "results.json", "--records", folder / "data/r.jsonl", file="p.jsonl") == 0
    truth = COCO(str(folder / "truth.json"))
    results = truth.loadRes(str(folder / "results.json"))
    assert [(entry["image_id"], entry["category_id"], entry["score"]) for entry in results.anns.values()] == [
        (1, 3, 0.25),
        (2, 2, 0.75),
        (1, 1, 0.5),
    ]
    assert (truth.annToMask(truth.anns[3]) == SPOT).all()
    evaluator = COCOeval(truth, results, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval["precision"].shape[2] == 2  # of the two categories that the records have


def test_coco_pictures_and_categories_keep_their_ids(folder):
    names = [f"../photos/{number:012d}.jpg" for number in (139, 285)]
    write_records(folder / "data" / "c.jsonl", [region(str(k), name, category="cup") for k, name in enumerate(names)])
    (folder / "data" / "categories.json").write_text(json.dumps([{"id": 47, "name": "cup"}, {"id": 90, "name": "dog"}]))
    assert run(folder, "coco", "out.json", file="data/c.jsonl") == 0
    document = json.loads((folder / "out.json").read_text())
    assert [image["id"] for image in document["images"]] == [139, 285]
    assert document["categories"] == [{"id": 47, "name": "cup"}, {"id": 90, "name": "dog"}]
    assert [entry["category_id"] for entry in document["annotations"]] == [47, 47]
    assert image_numbers(["a/000000000139.jpg", "b/000000000139.jpg"]) == {
        "a/000000000139.jpg": 1,
        "b/000000000139.jpg": 2,
    }


def predictions(folder) -> None:
    lines = [
        {"id": "x-1", "box": [10.25, 20.5, 60.0, 90.125], "caption": "a mug", "score": 0.25},
        {"id": "x-2", "box": [1, 2, 3, 4], "caption": "a desk", "category": {"name": "table", "score": 0.75}},
        {"id": "x-3", "caption": "a spot", "score": 0.1, "category": {"name": "cup", "score": 0.5}},
    ]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_predictions_are_a_list_of_results(folder):
    predictions(folder)
    assert run(folder, "coco", "out.json", "--records", folder / "data/r.jsonl", file="p.jsonl") == 0
    first, second, third = json.loads((folder / "out.json").read_text())
    assert first["caption"] == "a mug" and "segmentation" not in first
    assert second["bbox"] == [1, 2, 2, 2] and "segmentation" not in second  # its own box: the record's mask is not its
    assert third["bbox"] == [150, 20, 50, 80] and third["segmentation"] == RLE


def test_predictions_without_records_are_told_the_next_step(folder, capsys):
    predictions(folder)
    assert run(folder, "coco", "out.json", file="p.jsonl") == 2
    assert "p.jsonl: predictions, which name no image; name the records they are of with --records" in (
        capsys.readouterr().err
    )
    (folder / "p.jsonl").write_text('{"id": "x-9", "caption": "a"}\n')
    assert run(folder, "coco", "out.json", "--records", folder / "data/r.jsonl", file="p.jsonl") == 2
    assert "p.jsonl:1: no record has the id 'x-9'" in capsys.readouterr().err


# --- Label Studio ---


def test_label_studio_and_back_is_the_same(folder):
    assert run(folder, "label-studio", "tasks.json") == 0
    where = ("--images", folder / "photos", "--out", folder / "back" / "r.jsonl")
    assert label_studio.main(["--export", str(folder / "tasks.json"), *map(str, where)]) == 0
    found = {r.id: r for r in open_records(folder / "back" / "r.jsonl")}
    assert all(map(same, (found[f"tasks-{k}"] for k in ("1-0", "2-0", "1-1")), REGIONS))
    config = (folder / "tasks.xml").read_text()
    for text in ('<Image name="image" value="$image"', '<Label value="cup"/>', 'perRegion="true"'):
        assert text in config
    results = [r for task in json.loads((folder / "tasks.json").read_text()) for r in task["annotations"][0]["result"]]
    assert {(r["from_name"], r["type"]) for r in results} == {
        ("box", "rectanglelabels"),
        ("polygon", "polygonlabels"),
        ("brush", "brushlabels"),
        ("caption", "textarea"),
    }


def test_predictions_are_predictions_in_label_studio(folder):
    predictions(folder)
    assert run(folder, "label-studio", "tasks.json", "--records", folder / "data/r.jsonl", file="p.jsonl") == 0
    first, second = json.loads((folder / "tasks.json").read_text())
    assert first["data"] == {"image": "/data/local-files/?d=a.png"} and "annotations" not in first
    assert first["predictions"][0]["score"] == pytest.approx(0.375)
    values = [r["value"] for r in first["predictions"][0]["result"] if r["type"] == "textarea"]
    assert [value["text"] for value in values] == [["a mug"], ["a spot"]]
    box = second["predictions"][0]["result"][0]
    assert box["score"] == 0.75 and box["value"]["rectanglelabels"] == ["table"] and box["value"]["x"] == 0.5


# --- YOLO ---


def test_yolo_folders_have_labels_pictures_and_settings(folder, capsys):
    assert run(folder, "yolo", "out") == 0
    assert "captions left out, YOLO has no place for them" in capsys.readouterr().out
    lines = (folder / "out/labels/train/a.txt").read_text().splitlines()
    assert lines == ["0 0.175625 0.553125 0.24875 0.69625", "0 0.875 0.6 0.25 0.8"]
    assert (folder / "out/labels/train/sub/b.txt").read_text().startswith("1 ")
    assert Image.open(folder / "out/images/train/sub/b.png").size == (200, 100)
    settings = yaml.safe_load((folder / "out/data.yaml").read_text())
    assert settings["names"] == {0: "cup", 1: "table"} and settings["nc"] == 2 and settings["train"] == "images/train"
    assert run(folder, "yolo", "out") == 0  # again, in its place
    assert run(folder, "yolo", "photos") == 2 and "name a new one" in capsys.readouterr().err
    assert (folder / "photos/a.png").is_file()


def test_yolo_masks_are_one_polygon_each(folder):
    assert run(folder, "yolo", "out", "--shapes", "polygons", "--pictures", "copy") == 0
    box, spot = (folder / "out/labels/train/a.txt").read_text().splitlines()
    assert box.split()[1:3] == ["0.05125", "0.205"] and len(box.split()) == 9
    corners = np.array(spot.split()[1:], float).reshape(-1, 2) * (200, 100)
    back = Region("1", "a.png", HW, (0, 0, 1, 1), mask=[corners.reshape(-1).tolist()])
    assert (back.to_mask() == SPOT).all()
    assert not (folder / "out/images/train/a.png").is_symlink()


def test_images_that_would_share_a_label_file_are_refused(tmp_path):
    shown = [exported(region("1", "a.png")), exported(region("2", "a.jpg"))]
    with pytest.raises(ValueError, match="'a.png' and 'a.jpg' would share the label file a.txt"):
        write_yolo(tmp_path / "out", shown, pictures="none")
    shown = [exported(region("1", "a.png", split="val")), exported(region("2", "a.png"))]
    with pytest.raises(ValueError, match="'a.png' is in splits 'val' and 'train'"):
        write_yolo(tmp_path / "out", shown, pictures="none")


# --- all of them ---


def test_names_count_from_the_folder_that_holds_all_images():
    _, names = image_names(["../a.jpg", "b/c.jpg"], root="/data/records")
    assert names == {"../a.jpg": "a.jpg", "b/c.jpg": "records/b/c.jpg"}  # never one that leads out of the folder


def test_regions_without_a_category_are_objects():
    document = coco_document([exported(region("1")), exported(region("2", category="cup"))], ["cup"])
    assert document["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "object"}]
    assert [entry["category_id"] for entry in document["annotations"]] == [2, 1]


@pytest.mark.parametrize(
    ("to", "out", "options", "rule"),
    [
        ("coco", "out.txt", (), "expected a name that ends with .json"),
        ("yolo", "out.json", (), "expected the name of a folder"),
        ("coco", "out.json", ("--whole",), "--whole: it is for predictions"),
        ("yolo", "out", ("--confidence",), "--confidence: it is for predictions"),
        ("coco", "out.json", ("--split", "val"), "no records of split 'val'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, capsys, to, out, options, rule):
    assert run(folder, to, out, *options) == 2
    assert rule in capsys.readouterr().err and not (folder / out).exists()


def test_outlines_cover_what_the_mask_covers():
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8, 1.0):
        mask = rng.random((13, 17)) < share
        mask[0, 0] = True
        back = Region("1", "a.png", mask.shape, (0, 0, 1, 1), mask=[one_polygon(mask_to_rle(mask), mask.shape)])
        assert (back.to_mask() == mask).all()
    assert len(rings(SPOT)) == 3 and len(joined(rings(SPOT))) == 4 + 2 * (4 + 2)
