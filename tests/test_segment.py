"""Points, scribbles and whole pictures become regions through a SAM of Transformers."""

import numpy as np
import pytest
import torch
from transformers import Sam2Model, SamHQModel, SamModel

from dynrefer.masks import mask_to_box, to_mask
from dynrefer.predictor import RegionPredictor
from dynrefer.segment import Segmenter
from tests.regionspot import lively_sam
from tests.test_predictor import FakeModel, boxes_of
from tests.test_regionspot_parts import tiny_sam

POINTS = [[[30, 20, 1]], [[100, 60, 1], [20, 20, 0]], [[40, 30, 1]]]


@pytest.fixture(scope="module")
def image():
    pixels = np.full((90, 120, 3), 90, np.uint8)
    pixels[10:40, 20:60], pixels[45:60, 30:50] = (200, 30, 30), (20, 200, 30)
    return pixels


@pytest.fixture(scope="module")
def folder():
    return lively_sam()


def by_hand(folder, image, points, box=None):
    """SAM's own code asked for one region, the masks brought to the picture's size by hand."""
    sam = SamModel.from_pretrained(folder, dtype=torch.float32).eval()
    height, width = image.shape[:2]
    scale = 128 / max(height, width)
    inner = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, inner, mode="bilinear", antialias=True).round()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    padded = torch.zeros(1, 3, 128, 128)
    padded[..., : inner[0], : inner[1]] = (pixels - mean) / std
    rows = torch.tensor(points, dtype=torch.float32)[None, None]
    prompt = {"input_points": rows[..., :2] * scale, "input_labels": rows[..., 2].long()}
    if box is not None:
        prompt["input_boxes"] = torch.tensor([[box]], dtype=torch.float32) * scale
    with torch.no_grad():
        output = sam(padded, **prompt, multimask_output=box is None and len(points) == 1)
    logits = output.pred_masks[0, 0, output.iou_scores[0, 0].argmax()][None, None]
    logits = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear")[..., : inner[0], : inner[1]]
    return torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")[0, 0].numpy() > 0


def test_masks_are_those_of_sam_asked_for_each_region_alone(folder, image):
    segmenter = Segmenter(folder, points_at_once=2, device="cpu")
    masks = [to_mask(mask, (90, 120)) for mask in segmenter.masks(image, [np.array(rows) for rows in POINTS])]
    for rows, mask in zip(POINTS, masks, strict=True):
        assert (mask != by_hand(folder, image, rows)).mean() < 0.002
    assert (masks[0] != masks[2]).any()
    boxes = np.array([[20.0, 10, 60, 40]] * 2)
    boxed = segmenter.masks(image, [np.array(POINTS[0])] * 2, boxes)
    assert boxed[0] == boxed[1]
    assert (to_mask(boxed[0], (90, 120)) != by_hand(folder, image, POINTS[0], [20, 10, 60, 40])).mean() < 0.002


def test_points_and_scribbles_give_masks_to_a_family_that_takes_none(folder, image):
    segmenter = Segmenter(folder, device="cpu")
    predictor = RegionPredictor(FakeModel(), sam=segmenter)
    results = predictor(image, points=[[30, 20], [40, 30]], ids=["a", "b"])
    expected = segmenter.masks(image, [np.array(POINTS[0]), np.array(POINTS[2])])
    assert [region.mask for region in results.regions] == expected and [r.id for r in results] == ["a", "b"]
    assert boxes_of(results) == [mask_to_box(to_mask(mask, (90, 120))).tolist() for mask in expected]
    line = predictor(image, scribbles=[[[25, 15], [55, 35]]])
    assert len(line.regions) == 1 and line.regions[0].mask not in expected
    boxed = predictor(image, boxes=[[20, 10, 60, 40]], points=[[30, 20]])
    assert boxed.regions[0].mask == segmenter.masks(image, [np.array(POINTS[0])], np.array([[20.0, 10, 60, 40]]))[0]
    with pytest.raises(ValueError, match="1 boxes but points of 2 regions"):
        predictor(image, boxes=[[20, 10, 60, 40]], points=[[30, 20], [40, 30]])


def test_all_regions_of_a_picture_come_the_surest_first(folder, image):
    settings = {"points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    segmenter = Segmenter(folder, settings, device="cpu")
    found = segmenter.propose(image)
    assert len(found["boxes"]) > 2 and (np.diff(found["scores"]) <= 0).all()
    for box, mask in zip(found["boxes"], found["masks"], strict=True):
        assert mask_to_box(to_mask(mask, (90, 120))).tolist() == box.tolist()
    predictor = RegionPredictor(FakeModel(), sam=segmenter)
    for results in (predictor(image, regions="all"), *predictor([image, image], regions="all")):
        assert boxes_of(results) == found["boxes"].tolist()
        assert len(results.regions) == len(results) and all(region.mask for region in results.regions)


def test_a_sam_may_be_named_and_what_is_none_is_refused(folder, tmp_path, image):
    assert RegionPredictor(FakeModel(), sam=folder).sam.model.device.type == "cpu"
    with pytest.raises(ValueError, match="^model folder .*: neither config.json nor"):
        RegionPredictor(FakeModel(), sam=str(tmp_path))


def test_nothing_where_it_was_pointed_at_is_told(folder, image):
    segmenter = Segmenter(folder, device="cpu")
    post = segmenter.processor.post_process_masks
    segmenter.processor.post_process_masks = lambda *a, **k: [mask & False for mask in post(*a, **k)]
    with pytest.raises(ValueError, match="^image 0: points 0: SAM finds nothing there"):
        RegionPredictor(FakeModel(), sam=segmenter)(image, points=[[30, 20]])


@pytest.mark.parametrize(("kind", "whole"), [("sam2", Sam2Model), ("sam_hq", SamHQModel)])
def test_other_sams_are_asked_alike(tmp_path, image, kind, whole):
    torch.manual_seed(0)
    whole(tiny_sam(kind)).save_pretrained(tmp_path)
    segmenter = Segmenter(str(tmp_path), device="cpu")
    points = [np.array(rows) for rows in POINTS]
    assert all(mask["size"] == [90, 120] for mask in segmenter.masks(image, points, np.array([[20.0, 10, 60, 40]] * 3)))
    sam = whole.from_pretrained(tmp_path).eval()
    pixels = segmenter.processor(images=image, return_tensors="pt")["pixel_values"]
    scale = torch.tensor([128 / 120, 128 / (90 if kind == "sam2" else 120)])  # squashed, or padded
    asked = []
    segmenter.model.forward, forward = lambda **k: asked.append(k) or forward(**k), segmenter.model.forward
    try:
        segmenter.masks(image, points[:1])
    except ValueError as error:  # weights that nobody trained may find nothing
        assert "SAM finds nothing there" in str(error)
    with torch.no_grad():
        given = {"input_points": torch.tensor([[[[30.0, 20.0]]]]) * scale, "input_labels": torch.ones(1, 1, 1).long()}
        expected, found = sam(pixels, **given), forward(**asked[0])
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
def test_a_box_alone_has_a_mask(kind, folder, image, tmp_path):
    if kind != "sam":
        {"sam_hq": SamHQModel, "sam2": Sam2Model}[kind](tiny_sam(kind)).save_pretrained(tmp_path)
    segmenter = Segmenter(str(tmp_path) if kind != "sam" else folder, device="cpu")
    found = segmenter.box_masks(image, np.array([[20, 10, 60, 40], [30, 45, 50, 60]]))
    assert len(found) == 2 and all(mask is None or mask["size"] == [90, 120] for mask in found)
    if kind == "sam":
        sam = SamModel.from_pretrained(folder, dtype=torch.float32).eval()
        inputs = segmenter.processor(images=image, return_tensors="pt")
        box = torch.tensor([[[20.0, 10, 60, 40]]]) * 128 / 120
        with torch.no_grad():
            output = sam(inputs["pixel_values"], input_boxes=box, multimask_output=False)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (expected,) = segmenter.processor.post_process_masks(output.pred_masks, *sizes)
        assert (to_mask(found[0], (90, 120)) == expected[0, 0].numpy()).mean() > 0.999
