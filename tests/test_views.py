"""Views: boxes by hand-checkable numbers, crops, the hash, and the choice of scales."""

import io
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer import phash, views
from dynrefer.images import open_image
from dynrefer.models.dynrefer.configuration import DynReferConfig
from dynrefer.phash import dct_rows
from dynrefer.resize import RESIZE, crops, shared
from dynrefer.views import (
    CANDIDATE_SCALES,
    VIEW_STRATEGIES,
    choose_scales,
    crop_views,
    crop_views_torch,
    perceptual_hash,
    place_views,
    reduction,
    view_boxes,
)

BOX = torch.tensor([40.0, 30, 80, 90])


def picture(height=100, width=200, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_views_grow_from_the_box_to_the_image():
    grown = view_boxes(BOX, image_hw=(100, 200), scales=torch.tensor([0.0, 0.5, 1.0]))
    assert grown.tolist() == [[40, 30, 80, 90], [20, 15, 140, 95], [0, 0, 200, 100]]


def test_every_view_holds_the_one_before():
    boxes = torch.tensor([[3.5, 7.25, 60.0, 50.0], [0.0, 0.0, 200.0, 100.0]])
    grown = view_boxes(boxes, (100, 200), torch.tensor([[0.0, *CANDIDATE_SCALES]]).expand(2, -1))  # (2, 11, 4)
    assert (grown[:, 1:, :2] <= grown[:, :-1, :2]).all() and (grown[:, 1:, 2:] >= grown[:, :-1, 2:]).all()
    assert (grown[1] == boxes[1]).all(), "the whole image cannot grow"


def test_the_region_keeps_its_place_in_each_view():
    _, cropped, inside = crop_views(picture(), BOX[None].numpy(), np.array([[0.0, 0.5, 1.0]]), size=100)
    assert cropped[0].tolist() == [[40, 30, 80, 90], [20, 15, 140, 95], [0, 0, 200, 100]]
    assert inside[0, 0].tolist() == [0, 0, 100, 100]  # the view is the region
    np.testing.assert_allclose(inside[0, 1], [20 / 1.2, 15 / 0.8, 60 / 1.2, 75 / 0.8], rtol=1e-6)
    assert inside[0, 2].tolist() == [20, 30, 40, 90]


def test_released_rounding_cuts_fractions_off():
    _, _, inside = crop_views(picture(), BOX[None].numpy(), np.array([[0.5]]), 100, truncate_region_boxes=True)
    assert inside[0, 0].tolist() == [16, 18, 50, 93]


def test_a_view_is_the_resized_crop():
    image = picture()
    cut, _, _ = crop_views(image, BOX[None].numpy(), np.array([[0.0]]), size=32)
    expected = Image.fromarray(image[30:90, 40:80]).resize((32, 32), Image.Resampling.BICUBIC)
    assert (cut[0, 0].transpose(1, 2, 0) == np.asarray(expected)).all()


# wide, tall, smaller and larger than a view, one pixel, the whole picture
CROPS = np.array([[3, 5, 180, 90], [20, 1, 31, 99], [60, 60, 70, 65], [7, 9, 8, 10], [0, 0, 200, 100], [0, 2, 200, 3]])


def columns_first(image, box, size):
    """A crop by Pillow, first its columns and then its rows, whatever order Pillow would take itself."""
    x1, y1, x2, y2 = box
    narrow = Image.fromarray(image[y1:y2, x1:x2]).resize((size, y2 - y1), Image.Resampling.BICUBIC)
    return np.asarray(narrow.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def cut_on_device(image, boxes, size):
    return crop_views_torch(shared(image).permute(2, 0, 1), boxes[None], size)[0].numpy()


WAYS = {"torch": lambda image, boxes, size: crops(image, boxes, size, "torch"), "device": cut_on_device}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["photo", "noise", "edges"])
def test_every_resize_gives_pillows_pixels_within_a_grey_level(way, kind):
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    image = {"photo": picture(), "noise": noise, "edges": np.where(noise < 128, np.uint8(0), np.uint8(255))}[kind]
    for size in (32, 100):
        expected = np.stack([columns_first(image, box, size) for box in CROPS.tolist()]).astype(int)
        off = np.abs(WAYS[way](image, CROPS, size) - expected)
        assert off.max() <= 2 and (off > 1).mean() < 1e-4 and (off > 0).mean() < 0.02


@pytest.mark.parametrize("way", RESIZE)
def test_views_are_the_same_whichever_regions_are_cut_with_them(way):
    image, boxes = picture(), CROPS.astype(np.float32)
    scales = np.tile(np.array([[0, 0.5, 1]], np.float32), (len(boxes), 1))
    together = crop_views(image, boxes, scales, 24, resize=way)
    for r in range(len(boxes)):
        for some, one in zip(together, crop_views(image, boxes[[r]], scales[[r]], 24, resize=way), strict=True):
            assert (some[r] == one[0]).all()
    assert (together[0][:, 2] == together[0][0, 2]).all(), "the whole image, once for all"
    assert crop_views(image, boxes[:0], scales[:0], 24, resize=way)[0].shape == (0, 3, 3, 24, 24)


@pytest.mark.parametrize("way", RESIZE)
def test_crops_copy_nothing_but_themselves_and_write_nowhere(way):
    image, boxes = np.zeros((2000, 3000, 3), np.uint8), some_boxes(20, 200, 300)
    image.flags.writeable = False  # as the data set hands it on
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop_views(image, boxes, np.zeros((20, 1), np.float32), 16, resize=way)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6, f"{peak / 1e6:.1f} MB for crops of an image of {image.nbytes / 1e6:.0f} MB"


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(ValueError, match="'pilow'. Did you mean 'pillow'"):
        crop_views(picture(), BOX[None].numpy(), np.array([[0.0]]), size=8, resize="pilow")


def test_views_on_a_device_are_those_of_the_batch():
    image, boxes = picture(), np.array([[3.5, 7.25, 60.0, 50.0], [100, 10, 199.5, 90]], np.float32)
    scales = np.array([[0, 0.5, 1], [0, 0.1, 1]], np.float32)
    expected, cropped, inside = crop_views(image, boxes, scales, 40)
    placed = place_views(boxes, scales, image.shape[:2], 40)
    assert (placed[0] == cropped).all() and (placed[1] == inside).all()
    tensor = torch.tensor(image).permute(2, 0, 1)
    for where in (cropped, torch.from_numpy(cropped).float()):  # a RegionBatch has them as float
        views = crop_views_torch(tensor, where, 40)
        assert views.dtype == torch.uint8 and views.shape == expected.shape
        assert np.abs(views.numpy() - expected.astype(int)).max() <= 2
    for wrong, rule in ((tensor.permute(1, 2, 0), r"\(100, 200, 3\).*\(3, H, W\)"), (tensor.float(), "float32.*uint8")):
        with pytest.raises(ValueError, match=rule):
            crop_views_torch(wrong, cropped, 40)
    for box in ([0, 0, 201, 5], [-1, 0, 5, 5], [5, 5, 5, 9]):
        with pytest.raises(ValueError, match=f"view box {box[0]}, {box[1]}, {box[2]}, {box[3]}.*200 x 100"):
            crop_views_torch(tensor, np.array([[box]]), 40)


def photo_file(height, width, **options):
    """A JPEG file with a photo's spectrum: amplitudes fall with 1 / frequency."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    waves = np.fft.rfft2(rng.standard_normal((3, height, width))) / np.maximum(frequency, 1)
    pixels = np.fft.irfft2(waves, (height, width)).transpose(1, 2, 0)
    file = io.BytesIO()
    picture = Image.fromarray((128 + 50 * pixels / pixels.std()).clip(0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def test_an_image_may_be_reduced_as_far_as_the_smallest_view_allows():
    boxes = np.array([[0, 0, 900, 448], [10, 10, 906, 906]], np.float32)
    assert reduction(boxes, 224) == 1 and reduction(boxes[1:], 224) == reduction(boxes[:1], 112) == 2
    assert reduction(boxes[1:], 225) == 1 and reduction(boxes[1:], 112) == 4 and reduction(boxes[1:], 10) == 4


@pytest.mark.parametrize("way", RESIZE)
@pytest.mark.parametrize(("factor", "hw"), [(2, (602, 806)), (4, (600, 804))])
def test_views_of_a_reduced_decode_lie_where_they_lay(way, factor, hw):
    data, size = photo_file(*hw), 520 // (2 * factor)
    boxes = np.array([[101, 33, 701, 562], [277, 80, 797, 600], [0, 0, hw[1], hw[0]]], np.float32)
    assert reduction(boxes, size - 1) == factor
    scales = np.tile(np.array([[0, 0.3, 1]], np.float32), (3, 1))
    image = open_image(data)
    whole = crop_views(image, boxes, scales, size, resize=way)
    reduced = crop_views(open_image(data, factor), boxes, scales, size, resize=way, image_hw=hw)
    assert (whole[1] == reduced[1]).all() and (whole[2] == reduced[2]).all()
    off = np.abs(whole[0].astype(int) - reduced[0]).mean(axis=(2, 3, 4))
    moved = np.abs(np.diff(whole[0].astype(int), axis=-1)).mean()
    assert off.mean() < 2 and off.max() < 6 and moved > 12, "much less than by a view pixel to the side"


@pytest.mark.parametrize("box", [[10.2, 10.2, 10.6, 10.7], [199.5, 99.5, 200, 100], [0, 0, 0.1, 100]])
def test_regions_thinner_than_a_pixel_get_one(box):
    cut, cropped, inside = crop_views(picture(), np.array([box], np.float32), np.array([[0.0, 1.0]]), size=16)
    assert cut.shape == (1, 2, 3, 16, 16)
    assert (cropped[..., 2:] > cropped[..., :2]).all() and np.isfinite(inside).all()
    assert (cropped[..., 2:] <= [200, 100]).all() and (cropped[..., :2] >= 0).all()


def test_thin_regions_grow_to_the_left_and_to_the_top_inside_the_image():
    boxes = np.array([[10.2, 20.5, 10.6, 90], [199.5, 99.5, 200, 100], [0, 0, 0.25, 0.25], [5, 6, 6, 7]])
    expected = [[9.6, 20.5, 10.6, 90], [199, 99, 200, 100], [0, 0, 1, 1], [5, 6, 6, 7]]
    np.testing.assert_allclose(views.widen_boxes(boxes), expected, rtol=1e-6)


def plain_hash(grey, box):
    """The definition, step by step: bilinear resize to 224 x 224, full 2-D DCT-II, top-left 8 x 8 against its mean."""
    x1, y1, x2, y2 = (int(side) for side in box)
    crop = torch.from_numpy(grey[y1:y2, x1:x2].astype(np.float64))[None, None]
    resized = torch.nn.functional.interpolate(crop, (224, 224), mode="bilinear", align_corners=False)[0, 0].numpy()
    basis = dct_rows(224, 224)
    block = (basis @ resized @ basis.T)[:8, :8].ravel()
    return block > block.mean()


def test_the_fast_hash_is_the_plain_one():
    grey = views.grey(picture(120, 160, seed=3))
    boxes = np.array([[0, 0, 160, 120], [10, 20, 60, 50], [5, 5, 6, 90], [100, 3, 159, 119], [7, 8, 9, 10]], float)
    expected = np.stack([plain_hash(grey, box) for box in boxes])
    assert (perceptual_hash(grey, boxes) == expected).all()
    assert (perceptual_hash(grey.astype(np.float32), boxes) == expected).all()


@pytest.mark.parametrize("height", [phash.LONG_HEIGHT, phash.LONG_HEIGHT + 1])
@pytest.mark.parametrize("width", [phash.LONG_WIDTH, phash.LONG_WIDTH + 1])
def test_the_hash_of_long_sides_is_the_plain_one(height, width):
    grey = views.grey(picture(height + 20, width + 20))
    box = np.array([7, 11, 7 + width, 11 + height], float)
    assert (perceptual_hash(grey, box[None])[0] == plain_hash(grey, box)).all()


def test_the_hash_is_what_opencv_gives():
    cv2 = pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    rng = np.random.default_rng(0)
    for seed, (height, width) in enumerate([(40, 64), (240, 320), (331, 203), (700, 500)]):
        image = picture(height, width, seed)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        assert (views.grey(image) == grey).all()
        corners = np.sort(rng.integers(0, [[height], [width]], (25, 2, 2)), axis=2)  # (N, y and x, from and to)
        boxes = np.stack([corners[:, 1, 0], corners[:, 0, 0], corners[:, 1, 1] + 1, corners[:, 0, 1] + 1], axis=1)
        blocks = [
            cv2.dct(cv2.resize(grey[y1:y2, x1:x2].astype(np.float32), (224, 224)))[:8, :8].ravel()
            for x1, y1, x2, y2 in boxes
        ]
        assert (perceptual_hash(grey, boxes) == [block > block.mean() for block in blocks]).all()


def test_grey_rounds_in_fixed_point():
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    red, green, blue = colours.astype(int).transpose(2, 0, 1)
    assert (views.grey(colours) == (9798 * red + 19235 * green + 3735 * blue + 2**14) // 2**15).all()


def test_flat_crops_have_the_same_bits_everywhere():
    box = np.array([[3, 4, 50, 60]])
    assert perceptual_hash(np.full((70, 80), 9, np.uint8), box).nonzero()[1].tolist() == [0], "only the mean"
    assert not perceptual_hash(np.zeros((70, 80), np.uint8), box).any()


def some_boxes(number, height, width):
    corners = np.random.default_rng(0).uniform(0, 0.6, (number, 2))
    sides = np.random.default_rng(1).uniform(0.1, 0.4, (number, 2))
    return np.concatenate([corners, corners + sides], axis=1) * [width, height, width, height]


@pytest.mark.parametrize("strategy", ["phash", "joint"])
def test_regions_do_not_see_each_other(strategy, monkeypatch):
    monkeypatch.setattr(views, "REGIONS_AT_ONCE", 4)
    image, boxes = picture(100, 200)[:20, :30].repeat(8, 0).repeat(8, 1), some_boxes(9, 160, 240)
    together = choose_scales(strategy, image, boxes, 3, [])
    alone = [choose_scales(strategy, image, boxes[r : r + 1], 3, [])[0] for r in range(9)]
    assert (together == np.stack(alone)).all() and len(np.unique(together, axis=0)) > 1


@pytest.mark.parametrize("strategy", ["phash", "joint"])
def test_many_regions_need_little_memory(strategy):
    image, boxes = picture(32, 48), some_boxes(3000, 32, 48)
    tracemalloc.start()
    scales = choose_scales(strategy, image, boxes, 3, [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scales.shape == (3000, 3) and peak < 10e6, f"{peak / 1e6:.0f} MB"


def test_released_choice_divides_by_t_and_ties_go_to_the_smaller():
    hashes = np.zeros((1, 11, 64), bool)
    hashes[0, 5, :10] = True  # 10 bits at t = 0.5: 20
    hashes[0, 2, :4] = True  # 4 bits at t = 0.2: 20, a tie
    hashes[0, 10, :15] = True  # 15 bits at t = 1: 15
    np.testing.assert_allclose(views.phash_scales(hashes, 3), [[0.2, 0.5, 1.0]])


def test_released_choice_returns_to_the_first_scale_when_nothing_differs():
    hashes = np.zeros((2, 11, 64), bool)
    hashes[1, 6, :3] = True
    np.testing.assert_allclose(views.phash_scales(hashes, 3), [[0.1, 0.1, 0.1], [0.6, 0.1, 0.1]])
    whole_image = np.array([[0, 0, 200, 100]], np.float32)
    np.testing.assert_allclose(choose_scales("phash", picture(), whole_image, 3, [None]), [[0, 0.1, 0.1]])


def test_joint_choice_takes_scales_that_differ_from_each_other():
    hashes = np.zeros((1, 11, 64), bool)
    hashes[0, 4, :20] = hashes[0, 5, :20] = True  # equal to each other, far from view 0
    hashes[0, 6, 20:38] = True  # nearly as far from view 0, and far from those two
    np.testing.assert_allclose(views.phash_scales(hashes, 2), [[0.4, 0.5]])
    np.testing.assert_allclose(views.joint_scales(hashes, 2), [[0.4, 0.6]])


@pytest.mark.parametrize("strategy", ["phash", "joint", "task", "random"])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_every_strategy_starts_with_the_region(strategy, num_views):
    image, boxes = picture(), np.array([[3, 4, 50, 60], [100, 10, 190, 90]], np.float32)
    scales = choose_scales(strategy, image, boxes, num_views, [np.random.default_rng(i) for i in range(2)])
    assert scales.shape == (2, num_views) and (scales[:, 0] == 0).all()
    for row in scales:
        assert len(set(row.tolist())) == num_views, "scales are distinct"


def test_random_scales_follow_the_generator():
    image, boxes = picture(), np.array([[3, 4, 50, 60]], np.float32)
    draws = [choose_scales("random", image, boxes, 3, [np.random.default_rng(seed)]) for seed in (7, 7, 8)]
    assert (draws[0] == draws[1]).all() and not (draws[0] == draws[2]).all()


def test_fixed_scales_need_one_a_view():
    image, boxes = picture(), np.array([[3, 4, 50, 60]], np.float32)
    np.testing.assert_allclose(choose_scales("fixed:0,0.3,1", image, boxes, 3, [None]), [[0, 0.3, 1]])
    for wrong in ("fixed:0,0.3", "fixed:0,0.3,2", "fixed:", "fixed:a,b,c"):
        with pytest.raises(ValueError, match="fixed:"):
            choose_scales(wrong, image, boxes, 3, [None])


def test_task_scales_lie_around_what_the_task_likes():
    image, boxes = picture(), np.array([[3, 4, 50, 60]], np.float32)
    for strategy, expected in (
        ("task", [0, 0.3, 0.4]),
        ("task:attributes", [0, 0.1, 0.2]),
        ("task:tags", [0, 0.2, 0.3]),
    ):
        np.testing.assert_allclose(choose_scales(strategy, image, boxes, 3, []), [expected])
    with pytest.raises(ValueError, match="'task:atributes': unknown task. Did you mean 'attributes'"):
        choose_scales("task:atributes", image, boxes, 3, [])


def test_an_unknown_strategy_answers_with_the_nearest():
    for wrong, near in (("pash", "phash"), ("Joint", "joint"), ("fixd:0,1", "fixed")):
        with pytest.raises(ValueError, match=f"{wrong}'. Did you mean '{near}'.*phash, joint, task, random, fixed"):
            choose_scales(wrong, picture(), np.zeros((1, 4)), 3, [None])


def test_the_table_of_strategies_says_what_the_model_uses_by_default():
    config = DynReferConfig()
    assert VIEW_STRATEGIES[config.view_strategy][1] == "inference, by default"
    assert VIEW_STRATEGIES[config.train_view_strategy][1] == "training, by default"


def test_random_views_show_a_single_scale_as_often_as_asked():
    image, boxes = picture(), np.tile(np.array([[3, 4, 50, 60]], np.float32), (300, 1))
    generators = [np.random.default_rng(i) for i in range(300)]
    scales = choose_scales("random:0.3", image, boxes, 3, generators)
    lone = (scales == scales[:, :1]).all(1)
    assert 0.2 < lone.mean() < 0.4 and len(np.unique(scales[lone])) > 8
    assert (scales[~lone, 0] == 0).all()
    for wrong in ("random:2", "random:x", "phash:0.3"):
        with pytest.raises(ValueError, match=wrong):
            choose_scales(wrong, image, boxes, 3, generators)
