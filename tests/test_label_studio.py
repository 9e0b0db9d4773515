import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.label_studio import decode_brush, image_names, main
from dynrefer.data import open_records

HW = (100, 200)


def result(kind, region_id, name="label", **value) -> dict:
    size = {"original_width": HW[1], "original_height": HW[0], "image_rotation": 0}
    return {
        "id": region_id,
        "type": kind,
        "from_name": name,
        "to_name": "image",
        "origin": "manual",
        "value": value,
    } | size


def task(*results, task_id=1, image="/data/upload/1/0123abcd-my%20cup.png", **changes) -> dict:
    annotation = {"id": 11, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": task_id, "annotations": [annotation], "predictions": [], "data": {"image": image}} | changes


def brush(mask, word=8, sizes=(3, 4, 8, 16), literal=False) -> list[int]:
    """The packed bits of a mask (H, W) as the format's description has it, one run or one literal after the other."""
    values = np.repeat(mask.reshape(-1).astype(int) * (2**word - 1), 4).tolist()
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        stop = place + 1
        while stop < len(values) and values[stop] == values[place] and stop - place < 2 ** sizes[3]:
            stop += 1
        length = stop - place
        which = next(k for k, size in enumerate(sizes) if length <= 2**size)
        run = values[place : place + 1] if not literal else values[place:stop]
        bits += f"{int(not literal)}{which:02b}{length - 1:0{sizes[which]}b}" + "".join(f"{v:0{word}b}" for v in run)
        place = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


SPOT = np.zeros(HW, dtype=bool)
SPOT[20:40, 150:180] = True
SPOT[99, 199] = True


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "shelf").mkdir(parents=True)
    for name in ("my cup.png", "shelf/b.png"):
        Image.new("RGB", (HW[1], HW[0])).save(tmp_path / "photos" / name)
    return tmp_path


def run(folder, tasks, *options):
    (folder / "project.json").write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    where = (
        "--export",
        folder / "project.json",
        "--images",
        folder / "photos",
        "--out",
        folder / "out" / "train.jsonl",
    )
    return main([*map(str, where), *options])


def records(folder):
    return list(open_records(folder / "out" / "train.jsonl"))


RECTANGLE = dict(x=10, y=20, width=30, height=40)
CUP = result("rectanglelabels", "r1", **RECTANGLE, rotation=0, rectanglelabels=["cup"])


def test_rectangles_with_what_is_said_of_them(folder, capsys):
    tasks = [
        task(
            CUP,
            result("textarea", "r1", "caption", **RECTANGLE, text=[" a red cup ", "a cup"]),
            result("choices", "r1", "colour", **RECTANGLE, choices=["red"]),
            result("rating", "r1", "stars", **RECTANGLE, rating=3),
            result("choices", "w", "quality", choices=["good"]),
            {"type": "relation", "from_id": "r1", "to_id": "r2"},
            result("keypointlabels", "k", x=1, y=2, width=1, keypointlabels=["tip"]),
        )
    ]
    assert run(folder, tasks) == 0
    (cup,) = records(folder)
    assert cup.id == "project-1-0" and cup.box == (20, 20, 80, 60) and cup.category == "cup" and cup.mask is None
    assert cup.captions == ("a red cup", "a cup") and cup.attributes == {"colour:red": 1} and cup.tags is None
    assert cup.image == "../photos/my cup.png" and cup.image_hw == HW
    printed = capsys.readouterr().out
    for line in (
        "left out, no region: choices",
        "left out, no region: keypointlabels",
        "left out, of a region: rating",
    ):
        assert f"1  {line}" in printed
    assert not check_file(folder / "out" / "train.jsonl").problems


def test_turned_rectangles_keep_their_form(folder):
    # turned by 90 degrees about the corner (100, 20) in pixels: 40 wide becomes 40 high, to the left of it
    turned = result("rectanglelabels", "r", x=50, y=20, width=20, height=10, rotation=90, rectanglelabels=["cup"])
    assert run(folder, [task(turned)]) == 0
    (cup,) = records(folder)
    assert cup.box == pytest.approx((90, 20, 100, 60)) and cup.to_mask().sum() == pytest.approx(400, rel=0.06)


def test_polygons_ellipses_and_general_labels(folder):
    polygon = result("polygonlabels", "p", points=[[50, 5], [90, 5], [90, 95]], polygonlabels=["table"])
    ellipse = result("ellipselabels", "e", x=50, y=50, radiusX=10, radiusY=30, rotation=0, ellipselabels=["eye"])
    plain = result("rectangle", "q", **RECTANGLE)
    labels = result("labels", "q", **RECTANGLE, labels=["cup", "red"])
    assert run(folder, [task(polygon, ellipse, plain, labels)]) == 0
    table, eye, cup = records(folder)
    assert table.mask == [[100, 5, 180, 5, 180, 95]] and table.box == (100, 5, 180, 95) and table.category == "table"
    assert eye.box == pytest.approx((80, 20, 120, 80)) and eye.to_mask().sum() == pytest.approx(np.pi * 600, rel=0.05)
    assert cup.box == (20, 20, 80, 60) and cup.category is None and cup.tags == ("cup", "red")


def test_brushes_and_bitmasks_are_masks(folder):
    buffer = io.BytesIO()
    Image.fromarray(SPOT.astype(np.uint8) * 255).save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    tasks = [
        task(
            result("brushlabels", "b", format="rle", rle=brush(SPOT), brushlabels=["spot"]),
            result("bitmasklabels", "m", imageDataURL=address, bitmasklabels=["spot"]),
        )
    ]
    assert run(folder, tasks) == 0
    for spot in records(folder):
        assert spot.category == "spot" and (spot.to_mask() == SPOT).all() and spot.box == (150, 20, 200, 100)


@pytest.mark.parametrize(
    ("word", "sizes"), [(8, (3, 4, 8, 16)), (1, (1, 2, 3, 9)), (16, (16, 16, 16, 16)), (5, (2, 2, 2, 12))]
)
@pytest.mark.parametrize("literal", [False, True])
def test_brushes_of_every_width_are_read(word, sizes, literal):
    mask = np.random.default_rng(0).random((7, 9)) < 0.3
    mask[3:] = True
    packed = brush(mask, word, sizes, literal)
    assert (decode_brush(packed, (7, 9), "x") == mask).all()
    for damaged in (packed[:-3], packed[:5], [], [300], "abc", packed[:4] + [255] * 40):
        with pytest.raises(ValueError, match="^x: brush rle"):
            decode_brush(damaged, (7, 9), "x")
    with pytest.raises(ValueError, match="expected 4 x 9 x 8"):
        decode_brush(packed, (8, 9), "x")


def test_images_are_found_under_the_names_that_tasks_give_them(folder):
    names = [
        "/data/local-files/?d=shelf/b.png",
        "s3://bucket/shelf/b.png",
        "http://host:8080/x/my%20cup.png",
        "shelf/b.png",
    ]
    assert run(folder, [task(CUP, task_id=k, image=name) for k, name in enumerate(names)]) == 0
    assert [r.image[10:] for r in records(folder)] == ["shelf/b.png", "shelf/b.png", "my cup.png", "shelf/b.png"]
    assert run(folder, [task(CUP, data={"photo": "shelf/b.png"})], "--image-key", "photo") == 0
    assert image_names("/data/upload/../../etc/passwd") == ["passwd"]


def test_which_of_several_annotations_count(folder, capsys):
    several = task(CUP)
    several["annotations"] += [
        {"id": 12, "result": [result("rectanglelabels", "r", x=0, y=0, width=50, height=50)], "ground_truth": True},
        {"id": 13, "result": [CUP], "was_cancelled": True},
        {"id": 14, "result": [CUP, CUP | {"id": "r2"}]},
    ]
    assert run(folder, [several]) == 2
    assert "3 annotations; say with --annotations" in capsys.readouterr().err
    expected = {"first": ["project-1-0"], "ground-truth": ["project-1-0"], "last": ["project-1-0", "project-1-1"]}
    expected["all"] = ["project-1-11-0", "project-1-12-0", "project-1-14-0", "project-1-14-1"]
    for which, ids in expected.items():
        assert run(folder, [several], "--annotations", which) == 0
        assert [r.id for r in records(folder)] == ids
    assert run(folder, [task(CUP), task(task_id=2, annotations=[])]) == 0
    assert "1  tasks left out: without an annotation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "rule"),
    [
        ([task(CUP | {"image_rotation": 90})], "entry 0 \\(task 1\\), region 0: image_rotation 90"),
        ([task(CUP | {"original_width": 400})], "the annotation says \\(100, 400\\)"),
        ([task(CUP, image="c.png")], "image 'c.png' is not in .*looked for c.png"),
        ([task(CUP, data={"text": "x"})], "data without a text 'image', but \\['text'\\]; say which with --image-key"),
        ([task(CUP, data=None)], "data without a text"),
        ([{"id": 1, "image": "x", "label": [], "annotator": 1}], "JSON-MIN: export as JSON"),
        ([{"images": []}], "entry 0 \\(task entry0\\): no list of annotations"),
        ([task(CUP), task(CUP)], "entry 1: task 1 stands there already"),
        ([task(result("rectanglelabels", "r", x="1", y=2, width=3, height=4))], "region 0: x, y, width, height"),
        ([task(result("polygonlabels", "r", points=[[1, 2]]))], "region 0: polygon .*three corners"),
        ([task(result("polygonlabels", "r", points=[[1, 2], [3], [4, 5]]))], "region 0: corner \\[3\\]"),
        ([task(result("brushlabels", "r", rle=[1, 2, 3], format="rle"))], "region 0: brush rle of"),
        ([task(result("brushlabels", "r", rle=[1], format="png"))], "format 'png'"),
        ([task(result("bitmask", "r", imageDataURL="http://x"))], "region 0: bitmask"),
        ([task(result("bitmask", "r", imageDataURL="data:image/png;base64,AAAA"))], "region 0: bitmask"),
        ([task(result("textarea", "r1", text=5), CUP)], "region 0: text 5: expected texts"),
        ([task("x")], "result 0 is 'x'"),
        ([task() | {"annotations": [{"result": None}]}], "result None: expected a list"),
        ("[{", "not JSON from its first to its last byte"),
        ("[]", "is it the right file"),
        ([task()], "no regions came out"),
    ],
)
def test_bad_exports_are_refused_with_the_place(folder, capsys, tasks, rule):
    assert run(folder, tasks) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))
