"""Results in the forms of other programs, big jobs in little memory, and a batch that shrinks when memory runs out."""

import gc
import json
import weakref

import numpy as np
import pytest
import supervision
import torch
from PIL import Image

from dynrefer.data.records import RegionResult
from dynrefer.masks import mask_to_rle
from dynrefer.predictor import RegionPredictor
from tests.test_predictor import FakeModel, picture

MASK = np.zeros((100, 200), bool)
MASK[10:20, 30:50] = True
BOXES = [[40, 30, 180, 100], [0, 0, 10, 10]]


class Namer(FakeModel):
    """Names every region by its number."""

    def predict(self, batch, options):
        results = super().predict(batch, options)
        for number, result in enumerate(results):
            result.categories = [{"name": "cup dog cat".split()[number % 3], "score": 0.5}]
            result.category = result.categories[0]
        return results


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "000000000139.jpg")
    return str(tmp_path / "000000000139.jpg")


# --- forms ---


def test_json_holds_picture_and_regions(photo):
    results = RegionPredictor(Namer())(photo, BOXES, ids=["b", "a"])
    content = json.loads(results.to_json())
    assert content["image"] == photo and content["image_hw"] == [100, 200] and "timings" not in content
    assert [RegionResult.from_dict(line).id for line in content["regions"]] == ["b", "a"]


def test_coco_results_keep_order_ids_and_masks(photo):
    results = RegionPredictor(Namer())(photo, masks=[MASK, MASK], ids=["b", "a"])
    found = results.to_coco()
    assert [one["region_id"] for one in found] == ["b", "a"]
    assert found[0]["bbox"] == [30, 10, 20, 10] and found[0]["segmentation"] == mask_to_rle(MASK)
    assert found[0]["image_id"] == 139 and found[0]["caption"] == "box [30.0, 10.0, 50.0, 20.0]"
    assert [one["category_id"] for one in results.to_coco(categories={"dog": 18, "cup": 47})] == [47, 18]
    assert [one["image_id"] for one in results.to_coco(image_id=7)] == [7, 7]
    assert RegionPredictor(Namer())(photo, []).to_coco() == []


def test_supervision_takes_and_gives_detections(photo):
    given = supervision.Detections(xyxy=np.array(BOXES, float), class_id=np.array([3, 4]))
    results = RegionPredictor(Namer())(photo, regions=given)
    found = results.to_detections()
    assert isinstance(found, supervision.Detections) and found.xyxy.tolist() == BOXES
    assert found.data["caption"].tolist() == [f"box {[float(n) for n in box]}" for box in BOXES]
    assert found.data["class_name"].tolist() == ["cup", "dog"] and found.class_id.tolist() == [0, 1]
    assert found.mask is None and found[1].data["region_id"].tolist() == ["0:1"]
    assert results.to_detections(["dog"]).class_id.tolist() == [-1, 0]
    masked = RegionPredictor(Namer())(photo, masks=[MASK]).to_detections()
    assert (masked.mask == MASK).all()
    again = RegionPredictor(Namer())(photo, regions=masked)
    assert again.regions[0].mask == mask_to_rle(MASK)
    masked.mask = supervision.CompactMask.from_dense(MASK[None], masked.xyxy, (100, 200))
    assert RegionPredictor(Namer())(photo, regions=masked).regions[0].mask == mask_to_rle(MASK)
    assert len(RegionPredictor(Namer())(photo, []).to_detections()) == 0


def test_results_are_drawn_on_their_picture(photo):
    results = RegionPredictor(Namer())(photo, masks=[MASK])
    drawn = np.asarray(results.draw())
    assert drawn.shape[1] == 800 and drawn[:400].any()
    assert results[0].mask is None, "what the model said stays"
    loose = RegionPredictor(Namer())(picture(), BOXES)
    with pytest.raises(ValueError, match=r"did not come from a file; give it to draw\(image\)"):
        loose.draw()
    assert loose.draw(picture()).size[0] == 800


def test_timings_are_told_when_asked_for():
    predictor = RegionPredictor(Namer())
    assert predictor(picture(), BOXES).timings is None
    one, two = predictor([picture(), picture()], [BOXES, BOXES[:1]], timings=True)
    assert set(one.timings) == {"read", "prepare", "model"} and min(one.timings.values()) > 0
    assert one.timings["model"] == pytest.approx(2 * two.timings["model"])  # they went through the model together


# --- big jobs ---


def test_a_stream_holds_few_images_and_keeps_the_order():
    alive, most = set(), 0

    def pictures(number):
        nonlocal most
        for index in range(number):
            pixels = picture(20, 20 + index)
            alive.add(index)
            weakref.finalize(pixels, alive.discard, index)
            most = max(most, len(alive))
            yield {"image": pixels, "boxes": [[0, 0, index + 1, 2]] * (index % 3)}
            del pixels

    predictor = RegionPredictor(FakeModel())
    seen = []
    for results in predictor.stream(pictures(100), max_images=5):
        seen.append([result.box[2] for result in results])
    gc.collect()
    assert seen == [[index + 1] * (index % 3) for index in range(100)]
    assert most <= 7 and not alive  # of zero regions, those between two with some


def test_a_stream_begins_before_all_images_are_there():
    def pictures():
        for _ in range(8):
            yield picture()
        raise AssertionError("asked for more than it needs")

    stream = RegionPredictor(FakeModel()).stream(pictures(), max_images=2, boxes=BOXES)
    assert len(next(stream)) == 2


def test_a_bad_image_in_a_stream_comes_behind_the_results_before_it(tmp_path):
    items = [picture(), {"image": picture(), "boxes": BOXES[:1]}, str(tmp_path / "missing.png"), picture()]
    found = []
    with pytest.raises(ValueError, match="^image 2: .*missing.png: no such file"):
        for results in RegionPredictor(FakeModel()).stream(items, boxes=BOXES):
            found.append(len(results))
    assert found == [2, 1]
    for item, message in (
        ({"boxes": BOXES}, "no key 'image'"),
        ({"image": picture(), "bbox": 1}, "unknown key 'bbox'"),
    ):
        with pytest.raises(ValueError, match=f"^item 0: {message}"):
            list(RegionPredictor(FakeModel()).stream([item]))
    with pytest.raises(ValueError, match="^max_images: 0"):
        next(RegionPredictor(FakeModel()).stream([], max_images=0))


class Small(FakeModel):
    """Has memory for four regions."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def predict(self, batch, options):
        if len(batch) > 4:
            raise self.error
        return super().predict(batch, options)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("no room")]
)
def test_an_automatic_batch_shrinks_when_memory_runs_out(error):
    model = Small(error)
    predictor = RegionPredictor(model, batch_size="auto")
    boxes = [[0, 0, n + 1, 2] for n in range(70)]
    assert [result.box[2] for result in predictor(picture(), boxes)] == list(range(1, 71))
    assert predictor.max_regions <= 4 and max(model.chunks) <= 4 and sum(model.chunks) == 70
    fixed = RegionPredictor(model, batch_size=32)
    with pytest.raises(type(error)):
        fixed(picture(), boxes)
    assert fixed.max_regions == 32


def test_other_errors_and_sizes_that_are_none_are_told():
    with pytest.raises(RuntimeError, match="shapes differ"):
        RegionPredictor(Small(RuntimeError("shapes differ")), batch_size="auto")(picture(), [[0, 0, 5, 5]] * 6)
    with pytest.raises(ValueError, match="^batch_size: 'large'; expected a number of regions, or 'auto'"):
        RegionPredictor(FakeModel(), batch_size="large")
    with pytest.raises(ValueError, match="^batch_size: 0"):
        RegionPredictor(FakeModel(), batch_size=0)
