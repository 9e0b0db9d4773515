import gzip
import json
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.refcoco import PUBLISHED, ROWS, main
from dynrefer.data import open_records
from dynrefer.data.json_files import read_list
from dynrefer.masks import mask_to_box
from dynrefer.plain_pickle import read_plain_pickle
from eval.inputs.formats import read_any

WIDTH, HEIGHT = 64, 48
SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_sample"
NAMES = {9: "COCO_train2014_000000000009.jpg", 25: "COCO_train2014_000000000025.jpg"}
POLYGON = [[10, 10, 30, 10, 30, 40, 10, 40]]
RUNS = {"counts": [48 * 5, 48 * 2, 48 * 57], "size": [HEIGHT, WIDTH]}  # columns 5 and 6
ANNOTATIONS = [
    {"id": 101, "image_id": 9, "category_id": 1, "bbox": [10, 10, 20, 30], "segmentation": POLYGON, "iscrowd": 0},
    {"id": 102, "image_id": 9, "category_id": 3, "bbox": [5, 0, 2, 48], "segmentation": RUNS, "iscrowd": 1},
    {"id": 103, "image_id": 25, "category_id": 3, "bbox": [40, 20, 60, 20], "segmentation": [[1, 2]], "iscrowd": 0},
    {"id": 104, "image_id": 25, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": POLYGON, "iscrowd": 0},
]
INSTANCES = {
    "info": {},
    "images": [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in NAMES.items()],
    "annotations": ANNOTATIONS,
    "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
}


def ref(ref_id, ann_id, split, *texts):
    annotation = next(a for a in ANNOTATIONS if a["id"] == ann_id)
    sentences = [
        {"tokens": text.split(), "raw": text.title(), "sent_id": 10 * ref_id + k, "sent": text}
        for k, text in enumerate(texts)
    ]
    name = NAMES[annotation["image_id"]].replace(".jpg", f"_{ann_id}.jpg")
    return {
        **{"ref_id": ref_id, "ann_id": ann_id, "image_id": annotation["image_id"], "file_name": name, "split": split},
        **{
            "category_id": annotation["category_id"],
            "sentences": sentences,
            "sent_ids": [s["sent_id"] for s in sentences],
        },
    }


REFS = [
    ref(7, 103, "val", "the grey car", "a car at the edge"),
    ref(8, 101, "val", "man in black", " "),
    ref(9, 102, "test", "the crowd"),
    ref(10, 104, "train", "small car"),
]


def mdetr(refs, masks=True) -> dict:
    """The JSON form: an "image" an expression, one annotation each."""
    images, annotations = [], []
    for one in refs:
        annotation = next(a for a in ANNOTATIONS if a["id"] == one["ann_id"])
        for sentence in one["sentences"]:
            number = 500 + len(images)
            entry = {"file_name": NAMES[one["image_id"]], "height": HEIGHT, "width": WIDTH, "id": number}
            images.append(
                {**entry, "original_id": one["image_id"], "caption": sentence["sent"], "dataset_name": "refcocog"}
            )
            annotations.append({**annotation, "id": number, "image_id": number, "original_id": annotation["id"]})
            if not masks:
                del annotations[-1]["segmentation"]
    return {**INSTANCES, "images": images, "annotations": annotations}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "refs(umd).p").write_bytes(pickle.dumps(REFS, protocol=2))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "captions.json").write_text(json.dumps(mdetr(REFS[:2])))
    (tmp_path / "train2014").mkdir()
    for name in NAMES.values():
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train2014" / name)
    return tmp_path


def run(source, *options, split="val", dataset="refcocog-umd", captions=None, images="train2014", subset=True):
    files = {"--captions": captions} if captions else {"--refs": "refs(umd).p", "--instances": "instances.json"}
    files = {**files, "--images": images, "--out": "out.jsonl"}
    paths = [word for option, file in files.items() for word in (option, str(source / file))]
    return main(["--dataset", dataset, "--split", split, *paths, *(["--subset"] if subset else []), *options])


def refused(source, capsys, *options, **where) -> str:
    assert run(source, *options, **where) == 2
    assert not (source / "out.jsonl").exists() and not list(source.glob(".*"))
    return capsys.readouterr().err


def test_published_splits_add_up_to_the_published_totals():
    totals = {name: [sum(column) for column in zip(*parts.values(), strict=True)] for name, parts in PUBLISHED.items()}
    assert totals["refcoco"] == [142_210, 50_000, 19_994] and totals["refcoco+"] == [141_564, 49_856, 19_992]
    assert totals["refcocog-umd"] == [95_010, 49_822, 25_799]
    assert totals["refcocog-google"][:2] == [95_010, 49_822]  # the same expressions; its parts share images


def test_regions_come_with_all_their_expressions_masks_and_categories(source, capsys):
    assert run(source) == 0
    man, car = open_records(source / "out.jsonl")  # in the order of instances.json
    assert (man.id, car.id) == ("refcocog-umd-val-8", "refcocog-umd-val-7")
    assert man.captions == ("man in black",) and car.captions == ("the grey car", "a car at the edge")
    assert man.box == (10, 10, 30, 40) and car.box == (40, 20, 64, 40) and man.image_hw == (HEIGHT, WIDTH)
    assert man.category == "person" and car.category == "car" and man.image == f"train2014/{NAMES[9]}"
    assert man.mask == POLYGON and car.mask is None  # a polygon of one point
    assert man.source == "refcocog-umd" and man.split == "val" and "COCO" in man.licence
    told = capsys.readouterr()
    for line in ("3  val expressions", "2  val records", "2  val images", "1  expressions left out: empty"):
        assert line in told.out
    assert "1  masks left out: damaged" in told.out and "annotation 103: mask polygon 0" in told.err
    assert not check_file(source / "out.jsonl").problems
    (source / "out.jsonl").unlink()
    assert "annotation 103" in refused(source, capsys, "--strict")


def test_run_lengths_are_kept_as_they_are(source):
    assert run(source, split="test") == 0
    (crowd,) = open_records(source / "out.jsonl")
    assert crowd.mask == RUNS and mask_to_box(crowd.to_mask()).tolist() == list(crowd.box) == [5, 0, 7, 48]


def test_one_record_an_expression(source):
    assert run(source, "--per", "expression") == 0
    records = open_records(source / "out.jsonl")
    assert [(r.id, r.captions) for r in records] == [
        ("refcocog-umd-val-8-80", ("man in black",)),
        ("refcocog-umd-val-7-70", ("the grey car",)),
        ("refcocog-umd-val-7-71", ("a car at the edge",)),
    ]
    assert records[1].box == records[2].box


def test_json_files_give_the_same_regions(source, capsys):
    assert run(source) == 0
    refer = {r.captions: (r.box, r.mask, r.category, r.image) for r in open_records(source / "out.jsonl")}
    assert run(source, captions="captions.json") == 0
    records = open_records(source / "out.jsonl")
    assert {r.captions: (r.box, r.mask, r.category, r.image) for r in records} == refer
    assert [r.id for r in records] == ["refcocog-umd-val-e500", "refcocog-umd-val-e502"]
    assert run(source, "--per", "expression", captions="captions.json") == 0
    assert [r.captions for r in open_records(source / "out.jsonl")] == [
        ("the grey car",),
        ("a car at the edge",),
        ("man in black",),
    ]
    plain = mdetr(REFS[:2], masks=False)
    for image, annotation in zip(plain["images"], plain["annotations"], strict=True):
        annotation["caption"] = image.pop("caption")  # GLaMM's validation file has it here
    del plain["categories"]
    (source / "captions.json").write_text(json.dumps(plain))
    assert run(source, captions="captions.json") == 0
    assert {(r.captions, r.mask, r.category) for r in open_records(source / "out.jsonl")} == {
        (captions, None, None) for captions in refer
    }
    (source / "out.jsonl").unlink()
    assert "is of refcocog, but --dataset says refcoco+" in refused(
        source, capsys, captions="captions.json", dataset="refcoco+"
    )
    assert "UMD's split" in refused(source, capsys, captions="captions.json", dataset="refcocog-google")


def test_images_are_found_under_the_names_of_train2017(source):
    (source / "train2017").mkdir()
    for name in NAMES.values():
        (source / "train2014" / name).rename(source / "train2017" / name.rpartition("_")[2])
    assert run(source, images="train2017") == 0
    assert open_records(source / "out.jsonl")[0].image == "train2017/000000000009.jpg"


def test_train_parts_leave_out_the_images_of_test_parts(source, capsys):
    assert "convert those first and name them with --exclude" in refused(source, capsys, split="train")
    assert run(source, "--keep-shared", split="train") == 0 and len(open_records(source / "out.jsonl")) == 1
    record = {"id": "1", "image": "coco/val2017/000000000025.jpg", "image_hw": [5, 5], "box": [0, 0, 5, 5]}
    (source / "test.jsonl").write_text(json.dumps(record) + "\n")
    (source / "out.jsonl").unlink()
    exclude = ("--exclude", str(source / "test.jsonl"))
    assert "no regions came out" in refused(source, capsys, *exclude, split="train")
    (source / "test.jsonl").write_text(json.dumps({**record, "image": "VG_100K/2411288.jpg"}) + "\n")
    assert "none of its images has a COCO name" in refused(source, capsys, *exclude, split="train")


def test_published_counts_are_checked(source, capsys):
    message = refused(source, capsys, subset=False)
    assert "4 expressions, published 4,896; 2 regions, published 2,573; 2 images, published 1,300" in message
    message = refused(source, capsys, subset=False, captions="captions.json")
    assert "4 expressions, published 4,896; 2 images" in message and "regions" not in message


def test_files_that_do_not_belong_together_are_refused(source, capsys):
    other = {**INSTANCES, "annotations": ANNOTATIONS[:2]}
    (source / "instances.json").write_text(json.dumps(other))
    assert "lacks 1 annotations" in refused(source, capsys)
    (source / "instances.json").write_text(json.dumps({**INSTANCES, "images": INSTANCES["images"][:1]}))
    assert "lacks 1 images" in refused(source, capsys)
    moved = [{**a, "image_id": 9} for a in ANNOTATIONS]
    (source / "instances.json").write_text(json.dumps({**INSTANCES, "annotations": moved}))
    assert "annotation 103 is of image 9, but of 25" in refused(source, capsys)
    (source / "instances.json").write_text(json.dumps({**INSTANCES, "annotations": [{"id": 101}]}))
    assert "expected image_id, category_id, bbox, segmentation" in refused(source, capsys)
    (source / "instances.json").write_text(json.dumps(INSTANCES)[:-40])
    assert "instances.json: not JSON from its first to its last byte" in refused(source, capsys)
    assert "--split testA: refcocog-umd has train, val, test" in refused(source, capsys, split="testA")
    assert main(["--dataset", "refcoco", "--split", "val", "--images", "x", "--out", str(source / "out.jsonl")]) == 2
    assert "give --refs with --instances" in capsys.readouterr().err


def test_resized_and_missing_images_are_refused(source, capsys):
    Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(source / "train2014" / NAMES[9])
    message = refused(source, capsys, "--strict")
    assert "annotation 101: image" in message and "the annotation says (48, 64)" in message
    (source / "train2014" / NAMES[9]).unlink()
    assert "also not as '000000000009.jpg'" in refused(source, capsys)
    assert "no such folder" in refused(source, capsys, images="nowhere")


@pytest.mark.parametrize(
    "changed",
    [
        {"categories": INSTANCES["categories"], **INSTANCES, "info": {"note": "categories"}},
        {**INSTANCES, "info": {"note": 'two "categories": [1, 2]'}},
        {**INSTANCES, "notes": {"categories": [{"id": 1, "name": "another"}]}},
        {**INSTANCES, "annotations": [{"categories": [{"id": 9, "name": "none"}], **a} for a in ANNOTATIONS]},
    ],
)
def test_categories_are_found_wherever_they_stand(source, changed):
    for text in (json.dumps(changed), json.dumps(changed, indent=1), json.dumps(dict(reversed(changed.items())))):
        (source / "instances.json").write_text(text)
        assert read_list(source / "instances.json", "categories") == INSTANCES["categories"]
    (source / "instances.json.gz").write_bytes(gzip.compress(text.encode()))
    assert read_list(source / "instances.json.gz", "categories") == INSTANCES["categories"]
    (source / "instances.json.gz").write_bytes(gzip.compress(text.encode())[:-30] + bytes(30))
    with pytest.raises(ValueError, match="not JSON from its first to its last byte"):
        read_list(source / "instances.json.gz", "categories")
    (source / "instances.json").write_text("{}")
    assert read_list(source / "instances.json", "categories", required=False) == []
    with pytest.raises(ValueError, match="nothing at 'categories.item'"):
        read_list(source / "instances.json", "categories")


# pickles


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_read(tmp_path, protocol):
    value = [*REFS, ("é", 1.5, None, True, b"x" if protocol > 2 else "x", {1, 2}, frozenset("a"), 2**70)]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == value


def test_texts_of_python_2_are_read(tmp_path):
    text = "café".encode()  # what Python 2 wrote for 'café': a byte string
    python_2 = b"\x80\x02]q\x00}q\x01U\x04sentU" + bytes([len(text)]) + text + b"sa."
    (tmp_path / "refs.p").write_bytes(python_2)
    assert read_plain_pickle(tmp_path / "refs.p") == [{"sent": "café"}]
    (tmp_path / "refs.p").write_bytes(python_2.replace(text, b"caf\xe9\xe9"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_plain_pickle(tmp_path / "refs.p")


class Runs:
    def __reduce__(self):
        import os

        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (pickle.dumps([Runs()], protocol=2), "posix.mkdir"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
        (b"(ios\nsystem\n.", "os.system"),
        (b'c__builtin__\neval\n(S\'open("ran", "w")\'\ntR.', "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
        (pickle.dumps([OrderedDict(a=1)]), "collections.OrderedDict"),
    ],
)
def test_pickles_that_would_run_code_are_refused_by_name(source, capsys, monkeypatch, pickled, name):
    monkeypatch.chdir(source)
    (source / "refs(umd).p").write_bytes(pickled)
    assert f"the pickle names {name}, which would run code" in refused(source, capsys)
    assert not (source / "ran").exists()


def test_damaged_pickles_are_refused(source, capsys):
    whole = (source / "refs(umd).p").read_bytes()
    foreign = (b"", b"{}", b"PK\x03\x04", b"\x80\x7f", b"Pid\n.", b"h\x00.", b"\x8e" + struct.pack("<Q", 2**62) + b"a")
    for data in (*(whole[:length] for length in (1, 20, len(whole) // 2, len(whole) - 1)), *foreign):
        (source / "refs(umd).p").write_bytes(data)
        assert "refs(umd).p: not a pickle from" in refused(source, capsys)
    for value in ({"images": []}, 5, [1], [{"ref_id": 1}], [{**REFS[0], "ann_id": "x"}], [{**REFS[0], "sentences": 1}]):
        (source / "refs(umd).p").write_bytes(pickle.dumps(value))
        assert "not REFER's list of references" in refused(source, capsys)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the COCO sample is not here")
def test_real_coco_instances(tmp_path):
    file = SAMPLE / "instances_train2017.json"
    annotations = json.loads(file.read_text())["annotations"]
    refs = [
        {
            **{"ref_id": k, "ann_id": a["id"], "image_id": a["image_id"], "split": "train"},
            "sentences": [{"sent_id": k, "sent": f"thing {k}"}],
        }
        for k, a in enumerate(annotations)
    ]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(refs, protocol=0))
    files = ("--refs", str(tmp_path / "refs.p"), "--instances", str(file), "--images", str(SAMPLE / "images"))
    options = ("--dataset", "refcoco", "--split", "train", "--keep-shared", "--subset", "--strict")
    assert main([*options, *files, "--out", str(tmp_path / "out.jsonl")]) == 0
    records = open_records(tmp_path / "out.jsonl")
    assert len(records) == len(annotations) > 600 and all(r.mask and r.category for r in records)
    assert not check_file(tmp_path / "out.jsonl").problems


# --- files with a region an entry --------------------------------------------------------------------------------


def by_region(refs) -> dict:
    """All-Seeing's form: an "image" a region, its box xyxy, its captions as annotations."""
    images, annotations = [], []
    for one in refs:
        x, y, width, height = next(a for a in ANNOTATIONS if a["id"] == one["ann_id"])["bbox"]
        name = f"coco/train2014/{NAMES[one['image_id']]}"
        images.append({"id": one["ann_id"], "image": name, "bbox": [x, y, x + width, y + height]})
        for sentence in one["sentences"]:
            annotations.append({"image_id": one["ann_id"], "id": len(annotations), "caption": sentence["sent"]})
    return {"images": images, "annotations": annotations}


def test_all_seeings_regions_are_named_by_their_numbers(source, capsys):
    (source / "asm.json").write_text(json.dumps(by_region(REFS[:2])))
    assert run(source, captions="asm.json") == 0
    car, man = open_records(source / "out.jsonl")
    assert (car.id, man.id) == ("refcocog-umd-val-103", "refcocog-umd-val-101")
    assert car.captions == ("the grey car", "a car at the edge") and man.captions == ("man in black",)
    assert man.box == (10, 10, 30, 40) and car.box == (40, 20, 64, 40)  # clipped
    assert car.image_hw == (HEIGHT, WIDTH) and car.image == f"train2014/{NAMES[25]}"
    predictions = [{"image_id": 103, "caption": "a car"}, {"image_id": 101, "caption": "a man"}]
    (source / "p.json").write_text(json.dumps(predictions))
    found = read_any(source / "p.json", open_records(source / "out.jsonl"))
    assert {i: result.caption for i, result in found.results.items()} == {car.id: "a car", man.id: "a man"}
    (source / "out.jsonl").unlink()
    for change, message in (
        ({"images": [{"id": 1, "image": "x.jpg", "bbox": [0, 0, 5]}]}, "image 1"),
        ({"annotations": [{"image_id": 7, "caption": "a"}]}, "image_id of `images`"),
        ({"images": by_region(REFS[:2])["images"][:1] * 2}, "image id 103 stands there twice"),
    ):
        content = {**by_region(REFS[:2]), **change}
        if "images" in change:
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
            content["annotations"] = content["annotations"] or [{"image_id": 1, "caption": "a"}]
        (source / "asm.json").write_text(json.dumps(content))
        assert message in refused(source, capsys, captions="asm.json")
    (source / "asm.json").write_text(json.dumps(by_region(REFS[:2])))
    assert "UMD's split" in refused(source, capsys, captions="asm.json", dataset="refcocog-google")


def rows_of(source, rows, name="val-00000-of-00001.parquet"):
    pq.write_table(pa.Table.from_pylist(rows), source / name)
    return str(source / name)


def row(ann_id, *answers):
    annotation = next(a for a in ANNOTATIONS if a["id"] == ann_id)
    name = NAMES[annotation["image_id"]].replace(".jpg", f"_{ann_id}.jpg")
    image = {"bytes": b"not read", "path": None}
    box = [float(x) for x in annotation["bbox"]]
    return {"question_id": str(ann_id), "image": image, "answer": list(answers), "bbox": box, "file_name": name}


def lmms(source, *files, subset=True, dataset="refcocog-lmms"):
    where = ["--images", str(source / "train2014"), "--out", str(source / "out.jsonl")]
    options = ["--dataset", dataset, "--split", "val", "--rows", *files, *(["--subset"] if subset else [])]
    return main([*where, *options])


def test_lmms_evals_rows_keep_their_places(source, capsys):
    later = rows_of(source, [row(103, "again")], "val-00001-of-00002.parquet")
    first = rows_of(source, [row(103, "the grey car", "a car"), row(101, "man in black")], "val-00000-of-00002.parquet")
    assert lmms(source, later, first) == 0  # in the order of their names
    records = open_records(source / "out.jsonl")
    assert [r.id for r in records] == [f"refcocog-lmms-val-{end}" for end in ("103-0", "101-1", "103-2")]
    assert records[0].captions == ("the grey car", "a car") and records[0].box == (40, 20, 64, 40)
    assert records[1].image == f"train2014/{NAMES[9]}" and records[1].image_hw == (HEIGHT, WIDTH)
    logged = [{"doc_id": n, "target": "x", "resps": [["r"]], "filtered_resps": [f"said {n}"]} for n in (2, 0, 1)]
    (source / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in logged))
    found = read_any(source / "samples.jsonl", records)
    assert [found.results[r.id].caption for r in records] == ["said 0", "said 1", "said 2"]
    assert not check_file(source / "out.jsonl").problems


def test_other_rows_are_refused(source, capsys):
    good = rows_of(source, [row(103, "a car")])

    def message(*arguments, **options) -> str:
        assert lmms(source, *arguments, **options) == 2
        assert not (source / "out.jsonl").exists()
        return capsys.readouterr().err

    assert sum(ROWS["refcocog-lmms"].values()) == 7_573 + 5_023
    assert "1 regions, published 7,573" in message(good, subset=False)
    assert "--rows goes with refcocog-lmms" in message(good, dataset="refcocog-umd")
    assert "expected question_id, answer" in message(rows_of(source, [{"id": 1}], "other.parquet"))
    (source / "cut.parquet").write_bytes((source / "val-00000-of-00001.parquet").read_bytes()[:-9])
    assert "or cut off" in message(str(source / "cut.parquet"))
    lost = {**row(103, "a car"), "file_name": "COCO_train2014_000000000077_103.jpg"}
    assert "COCO_train2014_000000000077.jpg' is not in" in message(rows_of(source, [lost], "lost.parquet"))
