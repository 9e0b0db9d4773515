import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import coco
from data_prep.check import check_file
from data_prep.coco import Converter, main
from data_prep.coco_datasets import DATASETS
from dynrefer.data import open_records
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from dynrefer.masks import mask_to_rle
from dynrefer.vocabulary import read_attributes, read_words

SAMPLE = Path(os.environ.get("DYNREFER_TEST_DATA", "../shared/data")) / "coco_sample"
HW = (100, 200)
SQUARE = [10.0, 20.0, 60.0, 20.0, 60.0, 70.0, 10.0, 70.0]
TRIANGLE = [10.0, 20.0, 60.0, 20.0, 60.0, 90.0]
CROWD = {"size": [100, 200], "counts": [0, 5000, 15000]}  # the left quarter
IMAGES = [
    {"id": 139, "file_name": "000000000139.jpg", "height": 100, "width": 200, "license": 3},
    {"id": 285, "file_name": "000000000285.jpg", "height": 100, "width": 200, "license": 1},
    {"id": 632, "file_name": "000000000632.jpg", "height": 100, "width": 200, "license": 2},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 139, "category_id": 18, "bbox": [10.0, 20.0, 50.0, 70.0], "segmentation": [TRIANGLE]},
    {"id": 2, "image_id": 285, "category_id": 1, "bbox": [0, 0, 50, 100], "segmentation": CROWD, "iscrowd": 1},
    {"id": 3, "image_id": 285, "category_id": 1, "bbox": [150.5, 50, 52, 20], "segmentation": [], "iscrowd": 0},
    {"id": 4, "image_id": 139, "category_id": 1, "bbox": [20, 30, 0, 10], "area": 0},
    {"id": 5, "image_id": 139, "category_id": 18, "bbox": [5, 5, 80, 80], "segmentation": [[5, 5, 9, 9], TRIANGLE]},
]
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog ", "supercategory": "animal"}]


def document(images=IMAGES, annotations=ANNOTATIONS, categories=CATEGORIES, **more) -> dict:
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories, **more}


def picture(path: Path, hw=HW) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (hw[1], hw[0])).save(path)


@pytest.fixture
def folder(tmp_path):
    for image in IMAGES:
        picture(tmp_path / "val2017" / image["file_name"])
    return tmp_path


def run(folder, content, *options, dataset="own", images="val2017", out="out/val.jsonl", split="val"):
    path = folder / "in.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    own = () if dataset != "own" or "--box-format" in options else ("--box-format", "xywh")
    where = ("--annotations", path, "--images", folder / images, "--out", folder / out, "--split", split)
    return main([*map(str, where), "--dataset", dataset, *own, *map(str, options)])


def refused(folder, capsys, content, *options, out="refused/val.jsonl", **choices) -> str:
    capsys.readouterr()
    assert run(folder, content, *options, out=out, **choices) == 2
    assert not (folder / out).exists()
    return capsys.readouterr().err


def converter(folder, dataset, split="val", **options) -> Converter:
    return Converter("x", dataset, split, folder / "in.json", ImageFolder(folder, folder / "x.jsonl"), **options)


def test_annotations_become_records(folder, capsys):
    assert run(folder, document(), "--subset", dataset="coco") == 0
    printed = capsys.readouterr()
    dog, clipped, both = open_records(folder / "out" / "val.jsonl")
    assert dog == Region(
        id="coco-val-1",
        image="../val2017/000000000139.jpg",
        image_hw=HW,
        box=(10.0, 20.0, 60.0, 90.0),
        mask=[TRIANGLE],
        category="dog",
        source="coco-2017",
        licence=DATASETS["coco"].licence,
        split="val",
    )
    assert clipped.id == "coco-val-3" and clipped.box == (150.5, 50, 200, 70) and clipped.mask is None
    assert both.mask == [TRIANGLE]  # a line of two corners is no polygon
    for line in (
        "3  images\n",
        "5  annotations\n",
        "2  images with annotations\n",
        "1  crowd regions left out\n",
        "1  polygons left out",
        "1  boxes clipped",
        "3  records\n",
    ):
        assert line in printed.out
    assert "annotation 4" in printed.err  # its box has no width, and it is named
    assert not check_file(folder / "out" / "val.jsonl").problems
    assert read_words(folder / "out" / "categories.txt") == ["person", "dog"]
    assert json.loads((folder / "out" / "categories.json").read_text()) == CATEGORIES
    assert "annotation 4" in refused(folder, capsys, document(), "--subset", "--strict", dataset="coco")


def test_crowds_can_be_kept(folder):
    assert run(folder, document(), "--keep-crowd", "--name", "mine", "--source", "s", "--licence", "CC0") == 0
    crowd = open_records(folder / "out" / "val.jsonl")[1]
    assert crowd.id == "mine-val-2" and crowd.to_mask().sum() == 5000 and (crowd.source, crowd.licence) == ("s", "CC0")


def test_every_box_format_gives_the_same_records(folder, capsys):
    numbers = {
        "xyxy": [10, 20, 60, 90],
        "xywh": [10, 20, 50, 70],
        "cxcywh": [35, 55, 50, 70],
        "xyxy-unit": [0.05, 0.2, 0.3, 0.9],
        "xywh-1000": [50, 200, 250, 700],
    }
    for box_format, box in numbers.items():
        content = document(annotations=[{**ANNOTATIONS[0], "bbox": box, "segmentation": None}])
        assert run(folder, content, "--box-format", box_format, out=f"{box_format}/val.jsonl") == 0
        assert open_records(folder / box_format / "val.jsonl")[0].box == pytest.approx((10, 20, 60, 90))
    wrong = [[120 + k, 50 + k, 140 + k, 80 + k] for k in range(10)]
    content = document(annotations=[{**ANNOTATIONS[2], "id": k, "bbox": box} for k, box in enumerate(wrong)])
    assert "as 'xyxy' 100% fit" in refused(folder, capsys, content, "--box-format", "xywh")
    (folder / "in.json").write_text(json.dumps(document()))
    where = ("--annotations", folder / "in.json", "--images", folder / "val2017", "--out", folder / "no.jsonl")
    assert main([*map(str, where), "--dataset", "own"]) == 2  # a convention is never guessed
    assert "--box-format" in capsys.readouterr().err


def test_masks_without_boxes_and_captions_of_regions(folder, capsys):
    rle = mask_to_rle(np.pad(np.ones((10, 30), bool), ((40, 50), (60, 110))))
    annotations = [
        {"id": "a", "image_id": 139, "category_id": 1, "segmentation": rle, "captions": ["a  man", " ", "he"]},
        {"id": "b", "image_id": 139, "category_id": 1, "segmentation": SQUARE, "caption": "a dog"},
    ]
    assert run(folder, document(annotations=annotations), "--box-format", "xywh") == 0
    man, dog = open_records(folder / "out" / "val.jsonl")
    assert man.box == (60, 40, 90, 50) and man.captions == ("a man", "he") and man.id == "in-val-a"
    assert dog.box == (10, 20, 60, 70) and dog.captions == ("a dog",) and dog.mask == [SQUARE]
    annotations[0] = {"id": "a", "image_id": 139, "category_id": 1}
    assert "neither a bbox nor a seg" in refused(folder, capsys, document(annotations=annotations), "--strict")


def test_lists_may_come_in_any_order_and_compressed(folder):
    content = {key: document()[key] for key in ("annotations", "categories", "images")}
    (folder / "in.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    where = ("--annotations", folder / "in.json.gz", "--images", folder / "val2017", "--out", folder / "o" / "a")
    assert main([*map(str, where), "--dataset", "own", "--box-format", "xywh"]) == 0
    assert [region.id for region in open_records(folder / "o" / "a")] == ["in-train-1", "in-train-3", "in-train-5"]


def test_images_of_tests_are_left_out_of_training(folder, capsys):
    shared = Region(id="r", image="train2014/COCO_train2014_000000000139.jpg", image_hw=HW, box=(0, 0, 9, 9))
    write_records(folder / "refcocog.jsonl", [shared])
    content = document()
    message = refused(folder, capsys, content, "--subset", dataset="coco", split="train")
    assert "--exclude" in message and "RefCOCOg" in message
    exclude = ("--exclude", folder / "refcocog.jsonl")
    assert run(folder, content, "--subset", *exclude, dataset="coco", split="train", out="out/train.jsonl") == 0
    assert [region.id for region in open_records(folder / "out" / "train.jsonl")] == ["coco-train-3"]
    printed = capsys.readouterr().out
    assert "1  images left out, shared" in printed and "3  annotations left out with their image" in printed
    assert run(folder, content, "--subset", "--keep-shared", dataset="coco", split="train", out="out/all.jsonl") == 0
    assert len(open_records(folder / "out" / "all.jsonl")) == 3
    assert run(folder, content, *exclude, out="own/val.jsonl") == 0  # also for one's own data
    assert len(open_records(folder / "own" / "val.jsonl")) == 1


def test_published_counts_are_checked(folder, capsys):
    assert "3 images, published 5,000; 2 categories, published 80" in refused(
        folder, capsys, document(), dataset="coco"
    )
    counts = {"images": 3, "categories": 2, "annotations": 5, "images with annotations": 2}
    dataset = replace(DATASETS["coco"], published={"val": counts, "train": {"images": 4}})
    assert len(list(converter(folder, dataset).regions())) == 3
    for key in counts:
        dataset = replace(dataset, published={"val": {**counts, key: 1}})
        with pytest.raises(ValueError, match=f"{counts[key]} {key}, published 1"):
            list(converter(folder, dataset).regions())
    dataset = replace(dataset, published={"val": {"images": 9}, "train": counts})
    with pytest.raises(ValueError, match="3 images are those of split 'train'"):
        converter(folder, dataset, subset=True)
    assert "has train, val" in refused(folder, capsys, document(), dataset="coco", split="test")


def test_the_published_counts_of_coco_agree_with_each_other():
    def total(name, key):
        return sum(counts[key] for counts in DATASETS[name].published.values())

    for key in ("images", "annotations"):
        assert total("coco", key) == total("coco2014", key)  # 2017 is 2014 divided anew
    assert total("coco-captions", "images") == total("coco", "images")


def test_lvis_images_lie_in_both_folders_and_frequencies_are_kept(folder):
    picture(folder / "train2017" / "000000391895.jpg")
    urls = [(139, "val2017/000000000139.jpg"), (391895, "train2017/000000391895.jpg")]
    content = {
        "annotations": [
            {"id": 1, "image_id": 391895, "category_id": 2, "bbox": [1.5, 2, 30, 40], "segmentation": [TRIANGLE]},
            {"id": 2, "image_id": 139, "category_id": 1, "bbox": [1, 2, 30, 40], "segmentation": [TRIANGLE]},
        ],
        "images": [
            {"id": k, "coco_url": f"http://images.cocodataset.org/{name}", "height": 100, "width": 200}
            for k, name in urls
        ],
        "categories": [
            {"id": 1, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "frequency": "c"},
            {"id": 2, "name": "car_(automobile)", "synonyms": ["car"], "frequency": "f"},
        ],
    }
    assert run(folder, content, "--subset", dataset="lvis", images=".") == 0
    car, can = open_records(folder / "out" / "val.jsonl")
    assert car.id == "lvis-val-1" and car.image == "../train2017/000000391895.jpg"
    assert (car.category, can.category) == ("car_(automobile)", "aerosol_can")  # as the file spells them
    entries = json.loads((folder / "out" / "categories.json").read_text())
    assert [entry["frequency"] for entry in entries] == ["c", "f"]


def test_paco_says_which_attributes_are_absent_and_which_unknown(folder):
    kinds = {"color": ["black", "light_blue"], "pattern_marking": ["plain", "striped"], "material": ["wood", "metal"]}
    words = [word for names in kinds.values() for word in names]
    numbers = {kind: [words.index(word) for word in names] for kind, names in kinds.items()}
    thing = {"image_id": 139, "bbox": [10, 20, 50, 70], "segmentation": mask_to_rle(np.ones(HW, bool)), "obj_ann_id": 1}
    unknown = {f"unknown_{kind}": 0 for kind in kinds}
    content = document(
        annotations=[
            {**thing, **unknown, "id": 1, "category_id": 1, "attribute_ids": [1, 2], "unknown_pattern_marking": 1},
            {**thing, **unknown, "id": 2, "category_id": 2, "attribute_ids": []},
        ],
        categories=[{"id": 1, "name": "bottle"}, {"id": 2, "name": "bottle:cap", "supercategory": "PART"}],
        attributes=[{"id": k, "name": word, "supercategory": "ATTR"} for k, word in enumerate(words)],
        attr_type_to_attr_idxs=numbers,
    )
    assert run(folder, content, "--subset", dataset="paco") == 0
    bottle, cap = open_records(folder / "out" / "val.jsonl")
    # the pattern was not to be seen, the material has no answer
    assert bottle.attributes == {"color:black": -1, "color:light blue": 1}
    assert cap.category == "bottle:cap" and cap.attributes == {}
    attributes = read_attributes(folder / "out" / "attributes.json")
    assert [a["name"] for a in attributes][:3] == ["color:black", "color:light blue", "pattern marking:plain"]
    assert {a["type"] for a in attributes} == {"color", "pattern marking", "material"}


def test_objects365_lies_in_patches_and_lacks_three_images(folder, capsys):
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v1/patch6/objects365_v1_00320532.jpg"]
    picture(folder / "o365" / "patch8" / "objects365_v1_00420917.jpg")
    content = document(
        images=[{"id": k, "file_name": name, "height": 100, "width": 200, "url": ""} for k, name in enumerate(names)],
        annotations=[
            {"id": k, "image_id": k % 2, "category_id": 1, "bbox": [9.5, 8.1, 35.6, 44.4], "isfake": 0, "iscrowd": 0}
            for k in range(4)
        ],
    )
    message = refused(folder, capsys, content, dataset="objects365", images="o365")
    assert "2 images, published 80,000" in message
    (folder / "in.json").write_text(json.dumps(content))
    images = ImageFolder(folder / "o365", folder / "x.jsonl")
    dataset = replace(DATASETS["objects365"], published={})
    found = Converter("objects365", dataset, "val", folder / "in.json", images)
    assert {region.image for region in found.regions()} == {"o365/patch8/objects365_v1_00420917.jpg"}
    assert found.counts["images left out, lost by the dataset's makers"] == 1


def test_v3det_names_that_occur_twice_are_one_category(folder, capsys):
    picture(folder / "V3Det" / "images" / "n07745046" / "21_371.jpg")
    content = document(
        images=[{"id": 7, "file_name": "images/n07745046/21_371.jpg", "height": 100, "width": 200}],
        annotations=[{"id": k, "image_id": 7, "category_id": k, "bbox": [9, 8, 35, 44]} for k in (1, 2, 3)],
        categories=[{"id": 1, "name": "crane"}, {"id": 2, "name": "crane"}, {"id": 3, "name": "Ä"}],
    )
    for images in ("V3Det", "V3Det/images"):
        assert run(folder, content, "--subset", dataset="v3det", images=images) == 0
        crane = open_records(folder / "out" / "val.jsonl")[1]
        assert crane.category == "crane" and crane.image == "../V3Det/images/n07745046/21_371.jpg"
    assert "1  categories that share another's name" in capsys.readouterr().out
    assert read_words(folder / "out" / "categories.txt") == ["crane", "Ä"]


def test_osprey_samples_hold_annotations_in_their_images(folder, capsys):
    rle = mask_to_rle(np.pad(np.ones((10, 30), bool), ((40, 50), (60, 110))))
    content = [
        {
            **IMAGES[0],
            "annotations": [{"bbox": [60, 40, 30, 10], "segmentation": rle}, {"segmentation": [SQUARE]}],
            "categories": ["bottle:cap", "trash_can"],
        }
    ]
    assert run(folder, content, "--subset", dataset="osprey-paco", images=".") == 0
    cap, can = open_records(folder / "out" / "val.jsonl")
    assert cap.id == "osprey-paco-val-139-0" and cap.box == (60, 40, 90, 50) and cap.category == "bottle:cap"
    assert can.box == (10, 20, 60, 70) and can.image == "../val2017/000000000139.jpg"
    assert "2 annotations, published 4,263" in refused(folder, capsys, content, dataset="osprey-paco", images=".")
    content[0]["categories"].pop()
    assert "as many names" in refused(folder, capsys, content, "--subset", dataset="osprey-paco", images=".")


def test_captions_belong_to_the_whole_image(folder, capsys):
    texts = [(139, "A dog. "), (285, "Nobody\nhere."), (139, "The dog.")]
    annotations = [{"id": k, "image_id": image, "caption": text} for k, (image, text) in enumerate(texts)]
    content = {"images": IMAGES, "annotations": annotations}
    assert run(folder, content, "--subset", dataset="coco-captions") == 0
    dog, nobody = open_records(folder / "out" / "val.jsonl")
    assert dog.id == "coco-captions-val-139" and dog.box == (0, 0, 200, 100) and dog.captions == ("A dog.", "The dog.")
    assert nobody.captions == ("Nobody here.",)
    assert "1  images left out, without a caption" in capsys.readouterr().out
    assert not (folder / "out" / "categories.txt").exists()
    assert "published 25,014" in refused(
        folder, capsys, {**content, "images": IMAGES + many_images(folder)}, dataset="coco-captions"
    )


def many_images(folder):
    """As many images as val2017 has, all of them one picture."""
    picture(folder / "val2017" / "000000999999.jpg")
    return [{**IMAGES[0], "id": 10**6 + k, "file_name": "000000999999.jpg"} for k in range(5000 - len(IMAGES))]


def test_damaged_files_are_refused(folder, capsys):
    whole = json.dumps(document()).encode()
    for length in (0, 30, len(whole) // 2, len(whole) - 1):
        assert "in.json" in refused(folder, capsys, whole[:length])
    assert "not JSON" in refused(folder, capsys, whole.replace(b"person", b"pers\xf6n"))
    assert "'images.item'" in refused(folder, capsys, [1, 2])
    assert "'annotations.item'" in refused(folder, capsys, document(annotations=[]))
    assert "no such folder" in refused(folder, capsys, document(), images="nowhere")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"images": [*IMAGES, IMAGES[0]]}, "twice"),
        ({"images": [{**IMAGES[0], "width": 0}]}, "positive integers"),
        ({"images": [{"id": 1, "height": 1, "width": 1}]}, "file_name"),
        ({"images": [{**IMAGES[0], "width": 100, "height": 200}]}, "is (100, 200), the annotation says (200, 100)"),
        ({"images": [{**IMAGES[0], "file_name": "other.jpg"}]}, "'other.jpg' is not in"),
        ({"images": [{**IMAGES[0], "file_name": "../val2017/000000000139.jpg"}]}, "does not lie in"),
        ({"images": [{**IMAGES[0], "file_name": "/etc/passwd"}]}, "does not lie in"),
        ({"annotations": [{**ANNOTATIONS[0], "image_id": 5}]}, "image_id of `images`"),
        ({"annotations": [{**ANNOTATIONS[0], "category_id": 5}]}, "category_id of `categories`"),
        ({"annotations": [{"image_id": 139}]}, "'id' is missing"),
        ({"annotations": [ANNOTATIONS[0]] * 2}, "annotation id 1 stands in it twice"),
        ({"annotations": [{**ANNOTATIONS[0], "id": "a"}] * 2}, "annotation id 'a' stands in it twice"),
        ({"annotations": [{**ANNOTATIONS[0], "bbox": [1, 2, 3]}]}, "annotation 1: box [1, 2, 3]"),
        ({"annotations": [{**ANNOTATIONS[0], "bbox": [1, 2, 3, "4"]}]}, "four numbers"),
        ({"annotations": [{**ANNOTATIONS[0], "segmentation": {**CROWD, "size": [50, 50]}}]}, "(50, 50)"),
        ({"annotations": [{**ANNOTATIONS[0], "segmentation": [["x"] * 6]}]}, "annotation 1: mask ['x'"),
        ({"annotations": [{**ANNOTATIONS[0], "segmentation": "x"}]}, "annotation 1: mask of type str"),
        ({"annotations": [{**ANNOTATIONS[0], "caption": 5}]}, "caption 5"),
        ({"annotations": ["x", 5]}, "annotation x"),
        ({"categories": ["person"]}, "category person"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "cat"}]}, "an id of its own"),
    ],
)
def test_wrong_entries_are_named(folder, capsys, change, rule):
    message = refused(folder, capsys, {**document(), **change}, "--strict")
    assert "in.json" in message and rule in message


def test_images_that_are_not_there_are_left_out_of_a_subset_only(folder, capsys):
    (folder / "val2017" / "000000000139.jpg").unlink()
    assert "'000000000139.jpg' is not in" in refused(folder, capsys, document(), "--strict")
    message = refused(folder, capsys, document(), dataset="coco")
    assert "is not in" in message and "--subset leaves out images" in message  # published data are whole, or a part
    assert run(folder, document()) == 0
    printed = capsys.readouterr()
    assert "1  images left out: its image is not in the folder" in printed.out
    assert "image 139: image '000000000139.jpg' is not in" in printed.err
    assert run(folder, document(), "--subset") == 0
    assert "1  images left out, not in the folder" in capsys.readouterr().out
    assert [region.id for region in open_records(folder / "out" / "val.jsonl")] == ["in-val-3"]
    picture(folder / "elsewhere" / "a.jpg")
    assert "none of its 3 images" in refused(folder, capsys, document(), "--subset", images="elsewhere")


def test_other_words_in_the_same_folder_are_refused(folder, capsys):
    assert run(folder, document()) == 0
    assert run(folder, document(), out="out/again.jsonl") == 0
    other = document(categories=[{"id": 1, "name": "human"}, {"id": 18, "name": "dog"}])
    assert "categories.txt: another list" in refused(folder, capsys, other, out="out/other.jsonl")


def test_options_of_ones_own_data_are_not_for_others(folder, capsys):
    assert "--box-format: coco has its own" in refused(
        folder, capsys, document(), "--box-format", "xyxy", "--subset", dataset="coco"
    )


def test_millions_of_regions_stream(folder, monkeypatch):
    (folder / "in.json").write_text(json.dumps(document(annotations=ANNOTATIONS[:1])))
    seen = []

    def items(path, prefix):
        source = {"images.item": IMAGES, "categories.item": CATEGORIES}.get(prefix)
        if source:
            yield from source
        for number in () if source else range(10**7):
            seen.append(number)
            yield {**ANNOTATIONS[0], "id": number}

    monkeypatch.setattr(coco, "read_items", items)
    regions = converter(folder, replace(DATASETS["coco"], published={})).regions()
    assert next(regions).id == "x-val-0" and len(seen) < 5000


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no {SAMPLE}: 75 photos of COCO with their annotations")
def test_the_real_files(tmp_path, capsys):
    for dataset in ("coco", "coco-captions"):
        name = {"coco": "instances", "coco-captions": "captions"}[dataset]
        out = tmp_path / dataset / "train.jsonl"
        where = ("--annotations", SAMPLE / f"{name}_train2017.json", "--images", SAMPLE / "images", "--out", out)
        options = [*map(str, where), "--dataset", dataset, "--split", "train", "--keep-shared"]
        assert main(options) == 2 and "75 images, published 118,287" in capsys.readouterr().err
        assert main([*options, "--subset"]) == 0
        assert not check_file(out).problems
    instances, captions = (open_records(tmp_path / name / "train.jsonl") for name in ("coco", "coco-captions"))
    assert len(instances) == 677 - 7 and all(region.mask for region in instances)  # 7 crowds
    assert len(captions) == 75 and all(len(region.captions) == 5 for region in captions)
    assert len(read_words(tmp_path / "coco" / "categories.txt")) == 80
