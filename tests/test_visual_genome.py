import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import grit_boxes
from data_prep.check import check_file
from data_prep.densecap import SPLITS, clamp_box, clean_phrase, read_splits
from data_prep.visual_genome import main
from dynrefer.data import open_records
from dynrefer.files import read_jsonl

WIDTH, HEIGHT = 200, 100
TRAIN, VAL, TEST = (1, 2, 3), (4,), (5, 6)
COCO_IDS = {2: 9, 3: 42, 6: 77}


def region(region_id, x, y, width, height, phrase, image_id=1):
    box = {"x": x, "y": y, "width": width, "height": height}
    return {"region_id": region_id, "image_id": image_id, "phrase": phrase, **box}


REGIONS = {
    1: [
        region(1382, 20, 10, 40, 30, "The clock is GREEN, in colour."),
        region(1383, 0, -5, 260, 300, "a café\n at 20°"),
        region(1384, 10, 10, 5, 5, " ".join(["word"] * 15)),
        region(1385, 10, 10, 5, 5, " ".join(["word"] * 16)),
        region(1386, 10, 10, 5, 5, "..."),
        region(1387, 300, 10, 5, 5, "outside"),
        region(1388, 0, 0, 1, 50, "before the first pixel"),
    ],
    2: [region(21, 5, 5, 60, 60, "two")],
    3: [region(31, 5, 5, 60, 60, "three")],
    4: [],
    5: [region(51, 5, 5, 60, 60, "five"), region(52, 5, 5, 60, 60, "!")],
    6: [region(61, 5, 5, 60, 60, "six")],
}


def meta(image_id, key="image_id", folder="VG_100K"):
    return {
        key: image_id,
        "width": WIDTH,
        "height": HEIGHT,
        "coco_id": COCO_IDS.get(image_id),
        "flickr_id": None,
        "url": f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg",
    }


def save(path: Path, value) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    save(tmp_path / "regions.json", [{"regions": regions, "id": i} for i, regions in REGIONS.items()])
    save(tmp_path / "images.json", [meta(i, folder="VG_100K_2" if i == 1 else "VG_100K") for i in REGIONS])
    save(tmp_path / "splits.json", {"train": TRAIN, "val": VAL, "test": TEST})
    for i in REGIONS:
        folder = tmp_path / "vg" / ("VG_100K_2" if i == 1 else "VG_100K")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (i, i, i)).save(folder / f"{i}.jpg")
    coco = {"id": "1", "image": "images/COCO_val2014_000000000042.jpg", "image_hw": [5, 5], "box": [0, 0, 5, 5]}
    (tmp_path / "refcocog_val.jsonl").write_text(json.dumps(coco) + "\n")
    return tmp_path


def run(source, *options, name="1.2", split="train", out="out.jsonl", regions="regions.json"):
    files = {"--regions": regions, "--image-data": "images.json", "--splits": "splits.json", "--images": "vg"}
    files = {**files, "--out": out}
    paths = [word for option, file in files.items() for word in (option, str(source / file))]
    return main(["--set", name, "--split", split, *paths, *options])


def refused(source, capsys, *options, **where) -> str:
    assert run(source, *options, **where) == 2
    assert not (source / where.get("out", "out.jsonl")).exists() and not list(source.glob(".*"))
    return capsys.readouterr().err


def test_cleaning_is_densecaps():
    assert clean_phrase("Man's ½-eaten T-shirt…  costs 5¢; ÇA") == "mans halfeaten tshirt costs 5cent ça"
    assert clean_phrase(" —!? ") == ""
    assert clamp_box((0.0, 0.0, 200.0, 100.0), (100, 200)) == (1.0, 1.0, 200.0, 100.0)
    assert clamp_box((199.5, 5.0, 200.0, 9.0), (100, 200)) == (199.0, 5.0, 200.0, 9.0)
    assert clamp_box((0.0, 0.0, 1.0, 9.0), (100, 200)) is None


def test_train_regions_are_cleaned_and_shared_images_left_out(source, capsys):
    assert run(source, "--exclude", str(source / "refcocog_val.jsonl"), "--subset") == 0
    records = open_records(source / "out.jsonl")
    assert [r.id for r in records] == ["vg-1382", "vg-1383", "vg-1384", "vg-21"]  # image 3 is COCO's 42
    clock, cafe, long, _ = records
    assert clock.box == (20, 10, 60, 40) and clock.captions == ("the clock is green in colour",)
    assert cafe.box == (1, 1, 200, 100) and cafe.captions == ("a cafe at 20 degree",)
    assert len(long.captions[0].split()) == 15
    assert clock.image == "vg/VG_100K_2/1.jpg" and clock.image_hw == (HEIGHT, WIDTH) and clock.split == "train"
    assert clock.source == "visual-genome-1.2" and "CC BY 4.0" in clock.licence and clock.category is None
    told = capsys.readouterr()
    for line in (
        "4  train regions",
        "2  train images with regions",
        "1  images left out: in a test set that --exclude names",
        "1  regions left out: more than 15 words",
        "1  regions left out: a phrase without a word",
        "1  regions left out: its box covers nothing of (1, 1, W, H)",
        "1  boxes left out: nothing of them in the image",
        "2  boxes clipped to their image",
    ):
        assert line in told.out
    assert "region 1387: box [300, 10, 5, 5]" in told.err and "region 1388: its box" in told.err
    assert not check_file(source / "out.jsonl").problems


def test_test_regions_stay_without_a_caption_and_need_no_exclusion(source):
    assert run(source, "--subset", split="test") == 0
    records = open_records(source / "out.jsonl")
    assert [(r.id, r.captions) for r in records] == [("vg-51", ("five",)), ("vg-52", ()), ("vg-61", ("six",))]
    assert run(source, "--subset", name="coco", split="test") == 0
    assert [(r.id, r.source) for r in open_records(source / "out.jsonl")] == [("vg-61", "visual-genome-coco")]


def test_version_1_0_names_its_ids_otherwise(source):
    entries = [{**meta(i), "id": i} for i in REGIONS]
    for entry in entries:
        del entry["image_id"]
    save(source / "images.json", entries)
    old = [{key: value for key, value in r.items() if key != "region_id"} | {"id": r["region_id"]} for r in REGIONS[6]]
    save(source / "regions.json", [{"image_id": 5, "regions": []}, {"image_id": 6, "regions": old}])
    assert run(source, "--subset", name="1.0", split="test") == 0
    assert [r.id for r in open_records(source / "out.jsonl")] == ["vg-61"]


def test_training_parts_need_the_test_sets_named(source, capsys):
    assert "--exclude" in refused(source, capsys, "--subset") and run(source, "--subset", "--keep-shared") == 0
    assert len(open_records(source / "out.jsonl")) == 5


def test_published_counts_are_checked(source, capsys):
    message = refused(source, capsys, split="test")
    assert "3 train, published 77,398" in message and "2 test, published 5,000" in message and "--subset" in message
    ids = iter(range(10**6))
    save(source / "splits.json", {name: [next(ids) for _ in range(count)] for name, count in SPLITS.items()})
    message = refused(source, capsys, "--keep-shared")
    assert "6 images, published 108,077" in message and "train images, published 77,398" in message
    assert "published 77,398" in refused(source, capsys, "--keep-shared", name="1.0")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"train": [1], "val": []}, "lists of image ids named"),
        ({"train": [1, 2], "val": [], "test": [2]}, "in train and in test"),
        ({"train": ["1"], "val": [], "test": []}, "lists of image ids named"),
        ([1, 2], "lists of image ids named"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, rule):
    with pytest.raises(ValueError, match=rule):
        read_splits(save(tmp_path / "s.json", content), subset=True)
    (tmp_path / "s.json").write_bytes(json.dumps(content).encode()[:-2])
    with pytest.raises(ValueError, match="s.json: not JSON"):
        read_splits(tmp_path / "s.json")


def test_cut_off_and_foreign_files_are_refused_and_nothing_is_written(source, capsys):
    whole = (source / "regions.json").read_bytes()
    for length in (len(whole) - 1, len(whole) - 100, 30, 0):
        (source / "cut.json").write_bytes(whole[:length])
        assert "cut.json: not JSON from" in refused(source, capsys, "--subset", split="test", regions="cut.json")
    (source / "latin.json").write_bytes(whole.replace(b"five", b"f\xefve"))
    assert "latin.json: not JSON" in refused(source, capsys, "--subset", split="test", regions="latin.json")
    assert "is it region_descriptions" in refused(source, capsys, "--subset", split="test", regions="images.json")
    assert "cannot be read" in refused(source, capsys, "--subset", split="test", regions="none.json")
    save(source / "objects.json", [{"regions": [{"object_id": 1}], "id": 5}])
    assert "expected region_id, x, y" in refused(source, capsys, "--subset", split="test", regions="objects.json")
    save(source / "images.json", REGIONS[1])
    assert "not an entry of image_data.json" in refused(source, capsys, "--subset", split="test")


def test_files_of_two_versions_are_refused(source, capsys):
    save(source / "images.json", [meta(i) for i in (1, 2, 3, 4, 5)])
    assert "image 6 is not in image_data.json" in refused(source, capsys, "--subset", split="test")


def test_missing_resized_and_damaged_pictures(source, capsys):
    picture = source / "vg" / "VG_100K" / "6.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    assert run(source, "--subset", split="test") == 0
    assert [r.id for r in open_records(source / "out.jsonl")] == ["vg-51", "vg-52"]
    told = capsys.readouterr()
    assert "1  images left out: its file is damaged" in told.out and "6.jpg" in told.err
    (source / "out.jsonl").unlink()
    assert "6.jpg" in refused(source, capsys, "--subset", "--strict", split="test")
    Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(picture)
    assert "1 of 2 images have another size" in refused(source, capsys, "--subset", split="test")
    picture.unlink()
    assert "image '6.jpg' is neither in" in refused(source, capsys, "--subset", split="test")
    (source / "vg" / "6.jpg").write_bytes(whole)  # all pictures in one folder
    assert run(source, "--subset", split="test") == 0
    assert [r.image for r in open_records(source / "out.jsonl")][-1] == "vg/6.jpg"


def test_a_repeated_region_is_counted_and_refused_when_strict(source, capsys):
    save(source / "regions.json", [{"id": 5, "regions": REGIONS[5] + REGIONS[5][:1]}, {"id": 6, "regions": []}])
    assert run(source, "--subset", split="test") == 0
    assert "1  regions left out: its id stood there before" in capsys.readouterr().out
    (source / "out.jsonl").unlink()
    assert "region 51" in refused(source, capsys, "--subset", "--strict", split="test")
    save(source / "regions.json", [{"id": 5, "regions": []}, {"id": 5, "regions": []}])
    assert "stands there once" in refused(source, capsys, "--subset", split="test")


# GLaMM's and GRiT's files


def captions(boxes: dict[int, list], one_image_each=False) -> dict:
    images, annotations = [], []
    for image_id, image_boxes in boxes.items():
        for k, box in enumerate(image_boxes):
            entry = {"file_name": f"{image_id}.jpg", "height": HEIGHT, "width": WIDTH}
            if one_image_each or not k:
                images.append({**entry, "id": len(annotations) if one_image_each else image_id})
            annotations.append(
                {
                    **{"id": len(annotations), "image_id": images[-1]["id"], "iscrowd": 0, "category_id": 1},
                    **{"area": box[2] * box[3], "bbox": box, "caption": f"Thing {k} of {image_id} "},
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def run_captions(source, *options, name="grit", split="test", file="captions.json"):
    files = {"--captions": file, "--images": "vg", "--out": "out.jsonl"}
    paths = [word for option, path in files.items() for word in (option, str(source / path))]
    return main(["--set", name, "--split", split, *paths, *options])


def test_grits_and_glamms_captions_are_taken_as_they_are(source, capsys):
    save(source / "captions.json", captions({5: [[0, 0, 200, 100], [150, 20, 80, 30]], 6: [[5, 5, 60, 60]]}))
    assert run_captions(source, "--subset") == 0
    first, second, third = open_records(source / "out.jsonl")
    assert [r.id for r in (first, second, third)] == ["vg-grit-test-0", "vg-grit-test-1", "vg-grit-test-2"]
    assert first.box == (0, 0, 200, 100) and second.box == (150, 20, 200, 50) and second.captions == ("Thing 1 of 5",)
    assert first.image == "vg/VG_100K/5.jpg" and first.source == "visual-genome-grit" and not first.tags
    (source / "out.jsonl").unlink()
    assert run_captions(source) == 2
    assert "3 regions, published 232,935; 2 images, published 5,000" in capsys.readouterr().err
    assert run_captions(source, name="glamm") == 2
    assert "--set grit" in capsys.readouterr().err and not (source / "out.jsonl").exists()
    save(source / "captions.json", captions({5: [[0, 0, 20, 10]], 6: [[5, 5, 60, 60]]}, one_image_each=True))
    assert run_captions(source, name="glamm") == 0
    assert [r.id for r in open_records(source / "out.jsonl")] == ["vg-glamm-test-0", "vg-glamm-test-1"]


def test_grits_training_part_leaves_shared_images_out_by_their_coco_ids(source, capsys):
    save(source / "captions.json", captions({2: [[5, 5, 60, 60]], 3: [[5, 5, 60, 60]]}))
    exclude = ("--exclude", str(source / "refcocog_val.jsonl"), "--subset")
    assert run_captions(source, *exclude, split="train") == 2
    assert "needs --image-data" in capsys.readouterr().err
    assert run_captions(source, *exclude, "--image-data", str(source / "images.json"), split="train") == 0
    assert [r.image for r in open_records(source / "out.jsonl")] == ["vg/VG_100K/2.jpg"]
    assert run_captions(source, split="train") == 2 and run_captions(source, name="glamm", split="train") == 2


def test_boxes_in_another_convention_are_told(source, capsys):
    boxes = [[x, y, x + 50, y + 40] for x in range(60, 150, 10) for y in range(30, 60, 5)]
    save(source / "captions.json", captions({5: boxes}))
    assert run_captions(source, "--subset") == 2
    assert "as 'xyxy' 100% fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            {"annotations": [{"id": 0, "image_id": 99, "bbox": [1, 2, 3, 4], "caption": "a"}]},
            "annotation .*KeyError: 99",
        ),
        ({"annotations": [{"id": 0, "image_id": 5, "caption": "a"}]}, "KeyError: 'bbox'"),
        (
            {"annotations": [{"id": 0, "image_id": 5, "bbox": [1, 2, 3], "caption": "a"}]},
            "not four numbers",
        ),
        ({"annotations": [{"id": 0, "image_id": 5, "bbox": [1, 2, 3, 4], "caption": 7}]}, "7 is no text"),
        ({"annotations": []}, "nothing at 'annotations.item'"),
        ({"images": [{"id": 5, "file_name": "5.jpg", "width": 10}]}, "KeyError: 'height'"),
        ({"images": [{"id": 5, "file_name": "../5.jpg", "width": 10, "height": 5}]}, "neither in"),
    ],
)
def test_a_damaged_caption_file_names_what_is_wrong(source, capsys, change, rule):
    save(source / "captions.json", {**captions({5: [[0, 0, 20, 10]]}), **change})
    if "../" in str(change):
        (source / "vg" / "VG_100K" / "5.jpg").unlink()
        (source / "5.jpg").write_bytes(b"")
    assert run_captions(source, "--subset", "--strict") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert re.search(rule, message), message


# GRiT's detections


@pytest.fixture
def detected(source):
    assert run(source, "--subset", split="test", out="test.jsonl") == 0
    scale = 720 / WIDTH
    boxes = {5: [[10, 10, 50, 40], [100, 20, 100, 80]], 6: [[0, 0, 200, 100]], 1: [[1, 1, 9, 9]]}
    results = [
        {"image_id": i, "category_id": 0, "bbox": [n * scale for n in box], "score": 0.9 - k / 10, "logit": 0.1}
        | {"object_descriptions": f"thing {k}"}
        for i, image_boxes in boxes.items()
        for k, box in enumerate(image_boxes)
    ]
    save(source / "results.json", results)
    return source


def run_grit(source, *options, out="test_grit.jsonl"):
    files = {"--results": "results.json", "--records": "test.jsonl", "--out": out}
    return grit_boxes.main([*(w for option, file in files.items() for w in (option, str(source / file))), *options])


def test_grits_boxes_become_records_and_its_scores_predictions(detected, capsys):
    assert run_grit(detected) == 0
    records = open_records(detected / "test_grit.jsonl")
    assert [r.id for r in records] == ["grit-5-0", "grit-5-1", "grit-6-0"]
    assert records[1].box == pytest.approx((100, 20, 200, 100)) and records[1].captions == ()
    assert records[0].image == open_records(detected / "test.jsonl")[0].image
    lines = [d for _, d in read_jsonl(detected / "test_grit_predictions.jsonl")]
    assert [(d["id"], d["caption"], d["score"]) for d in lines] == [
        ("grit-5-0", "thing 0", 0.9),
        ("grit-5-1", "thing 1", pytest.approx(0.8)),
        ("grit-6-0", "thing 0", 0.9),
    ]
    assert lines[1]["box"] == list(records[1].box) and lines[1]["image"] == records[1].image
    printed = capsys.readouterr().out
    assert "1  detections left out: of other images" in printed and "3  regions" in printed


def test_boxes_at_another_scale_are_told(detected, capsys):
    generator = np.random.default_rng(0)
    boxes = np.hstack([generator.uniform(0, 0.5, (200, 2)), generator.uniform(0.1, 0.5, (200, 2))])
    for scale, right, wrong in ((1.0, "0", "720"), (720 / WIDTH, "720", "0")):
        pixels = (boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT] * scale).tolist()
        entries = [{"image_id": 5, "bbox": box, "score": 0.5, "object_descriptions": "a"} for box in pixels]
        save(detected / "results.json", entries)
        assert run_grit(detected, "--longer-side", right) == 0
        (detected / "test_grit.jsonl").unlink()
        (detected / "test_grit_predictions.jsonl").unlink()
        assert run_grit(detected, "--longer-side", wrong) == 2
        assert f"--longer-side {right}" in capsys.readouterr().err
        assert not (detected / "test_grit.jsonl").exists() and not list(detected.glob("*predictions*"))


def test_other_files_are_no_detections(detected, capsys):
    for content, rule in (
        ([{"image_id": 5, "bbox": [1, 2, 3], "score": 1, "object_descriptions": "a"}], "four numbers"),
        ([{"image_id": 5, "bbox": [1, 2, 3, 4], "score": None, "object_descriptions": "a"}], "as GRiT writes"),
        ([{"image_id": 5, "bbox": [1, 2, 3, 4], "object_descriptions": "a"}], "KeyError: 'score'"),
        ({"images": []}, "nothing at 'item'"),
        ([{"image_id": 99, "bbox": [1, 2, 3, 4], "score": 1, "object_descriptions": "a"}], "no regions came out"),
    ):
        save(detected / "results.json", content)
        assert run_grit(detected) == 2
        assert rule in capsys.readouterr().err and not (detected / "test_grit.jsonl").exists()
    assert run_grit(detected, out="elsewhere/test.jsonl") == 2 and run_grit(detected, "--longer-side", "-1") == 2
