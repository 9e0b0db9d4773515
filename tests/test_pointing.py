"""Every way to point at regions of a picture, and every form in which a picture may come."""

import io
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer.images import open_image, open_with_alpha
from dynrefer.masks import mask_to_rle
from dynrefer.points import scribble_points
from dynrefer.predictor import RegionPredictor
from tests.test_predictor import FakeModel, boxes_of, picture

MASK = np.zeros((100, 200), bool)
MASK[10:20, 30:50] = True
BOX = [30.0, 10.0, 50.0, 20.0]
ANNOTATIONS = [
    {"id": 17, "bbox": [30, 10, 20, 10], "category_id": 3, "iscrowd": 0, "segmentation": []},
    {"id": "b", "segmentation": [[30, 10, 50, 10, 50, 20, 30, 20]]},
    {"bbox": [190, 90, 20, 20], "segmentation": mask_to_rle(MASK)},
]
Detections = namedtuple("Detections", "xyxy mask")


def png(array, **choices):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png", **choices)
    return file.getvalue()


def predictor():
    return RegionPredictor(FakeModel())


# --- pictures ---


def test_a_tensor_may_have_its_channels_first():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for tensor in (torch.tensor(pixels), torch.tensor(pixels).permute(2, 0, 1)):
        assert (open_image(tensor) == pixels).all()
    assert open_image(torch.zeros(1, 4, 6, dtype=torch.uint8)).shape == (4, 6, 3)
    assert open_image(torch.zeros(3, 9, 3, dtype=torch.uint8)).shape[:2] != (9, 3)
    with pytest.raises(ValueError, match=r"channels come last, \(H, W, 3\)"):
        open_image(pixels.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="float32: expected uint8"):
        open_image(torch.zeros(3, 4, 6))


def test_bytes_of_a_file_and_a_tensor_are_pictures():
    for image in (png(picture()), torch.tensor(picture()).permute(2, 0, 1)):
        assert boxes_of(predictor()(image, [BOX])) == [BOX]


def rgba():
    pixels = np.full((100, 200, 4), 7, np.uint8)
    pixels[..., 3] = np.where(MASK, 200, 0)
    return pixels


def test_the_alpha_channel_is_a_mask(tmp_path):
    (tmp_path / "a.png").write_bytes(png(rgba()))
    sources = [rgba(), Image.fromarray(rgba()), png(rgba()), tmp_path / "a.png", torch.tensor(rgba()).permute(2, 0, 1)]
    for source in sources:
        pixels, alpha = open_with_alpha(source)
        assert (alpha == MASK).all() and (pixels == 7).all()
        (result,) = predictor()(source, regions="alpha")
        assert result.box == BOX
    with pytest.raises(ValueError, match='^image 0: regions "alpha", but the picture has no alpha channel'):
        predictor()(picture(), regions="alpha")


def test_the_alpha_channel_is_turned_with_its_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    pixels, alpha = open_with_alpha(png(rgba(), exif=exif))
    assert pixels.shape == (200, 100, 3) and (alpha == np.rot90(MASK, -1)).all()


# --- regions ---


def test_a_mask_may_be_the_bytes_of_a_png():
    assert boxes_of(predictor()(picture(), masks=[png(MASK.astype(np.uint8) * 255)])) == [BOX]
    with pytest.raises(ValueError, match="^image 0: mask 0: mask image: cannot be read as a mask"):
        predictor()(picture(), masks=[b"no picture"])
    with pytest.raises(ValueError, match="^image 0: masks: one bytes; give a list"):
        predictor()(picture(), masks=b"no picture")


def test_annotations_of_coco_keep_their_ids():
    results = predictor()(picture(), regions=ANNOTATIONS)
    assert boxes_of(results) == [BOX, BOX, [190, 90, 200, 100]]
    assert [result.id for result in results] == ["17", "b", "0:2"]
    assert [region.mask is None for region in results.regions] == [True, False, False]
    assert [r.id for r in predictor()(picture(), regions=ANNOTATIONS, ids=["x", "y", "z"])] == ["x", "y", "z"]
    two = predictor()([picture(), picture()], regions=[ANNOTATIONS[:1], []])
    assert [boxes_of(one) for one in two] == [[BOX], []]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([{"id": 5}], "annotation 5: neither a bbox nor a segmentation"),
        ([{"id": 5, "bbox": [3, 3, 0, 5]}], "annotation 5: empty box"),
        ([{"bbox": [3, 3, 5]}], "annotation 0:0: boxes .*four"),
        ([{"id": 5, "bbox": [1, 1, 5, 5]}] * 2, "annotation id '5' stands in the list twice"),
        ([{"id": 5, "segmentation": {"size": [3, 3], "counts": "1"}}], "annotation 5: mask of size"),
        ([{"id": 5, "segmentation": [[1, 2, 3]]}], "annotation 5: mask polygon 0"),
        ("every", 'regions \'every\'; expected "image", "all", "alpha", supervision\'s Detections'),
        ([[1, 2, 3, 4]], "regions .*; expected"),
    ],
)
def test_bad_regions_are_named(regions, message):
    with pytest.raises(ValueError, match=f"^image 0: {message}"):
        predictor()(picture(), regions=regions)


def test_one_way_to_point_at_a_time():
    with pytest.raises(ValueError, match="^regions and boxes: give one of them"):
        predictor()(picture(), [BOX], regions="alpha")


def test_detections_of_another_program():
    found = predictor()(picture(), regions=Detections(np.array([BOX, [0, 0, 3, 4]]), None))
    assert boxes_of(found) == [BOX, [0, 0, 3, 4]]
    masked = predictor()(picture(), regions=Detections(np.array([BOX]), MASK[None]))
    assert masked.regions[0].mask == mask_to_rle(MASK)
    assert predictor()(picture(), regions=Detections(np.zeros((0, 4)), None)) == []


def test_the_whole_picture_may_be_the_region():
    assert boxes_of(predictor()(picture(), regions="image")) == [[0, 0, 200, 100]]


def test_a_scribble_is_points_along_it():
    (line,) = scribble_points([[[10, 20], [20, 20], [20, 30]]], (100, 200), number=5)
    assert line.tolist() == [[10, 20, 1], [15, 20, 1], [20, 20, 1], [20, 25, 1], [20, 30, 1]]
    (painted,) = scribble_points(MASK[None], (100, 200), number=3)
    assert painted[[0, -1]].tolist() == [[30.5, 10.5, 1], [49.5, 19.5, 1]]
    for bad, message in (
        ([[[10, 20, 5]]], "scribble 0: .*; a scribble is a line"),
        ([[[300, 20], [310, 20]]], "scribble 0: .*outside the image"),
        ("line", "scribbles 'line': expected one entry a region"),
    ):
        with pytest.raises(ValueError, match=message):
            scribble_points(bad, (100, 200))


def test_points_and_scribbles_need_a_family_that_takes_them_or_a_sam():
    for asked in ({"points": [[4, 5]]}, {"scribbles": [[[4, 5], [9, 9]]]}):
        with pytest.raises(ValueError, match=f"^{[*asked][0]}: this model's family takes none; .*sam="):
            predictor()(picture(), **asked)
    with pytest.raises(ValueError, match='^image 0: regions "all": RegionPredictor.*sam='):
        predictor()(picture(), regions="all")
