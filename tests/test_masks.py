import json

import numpy as np
import pytest
from PIL import Image

from dynrefer.masks import check_mask_record, mask_to_box, mask_to_rle, rle_to_box, to_mask

HW = (4, 6)


@pytest.fixture
def mask() -> np.ndarray:
    result = np.zeros(HW, dtype=bool)
    result[1:3, 2:5] = True
    return result


def test_array_png_rle_and_polygon_are_the_same_mask(mask, tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    runs = [9, 2, 2, 2, 2, 2, 5]  # down the columns: 2 columns of 4 and one row outside, 2 inside, ...
    rle = mask_to_rle(mask)
    sources = [
        mask,
        mask.astype(np.uint8),
        mask.astype(np.int64) * 7,
        path,
        str(path),
        Image.open(path),
        {"size": [4, 6], "counts": runs},
        {"size": [4, 6], "counts": rle["counts"]},
        {"size": [4, 6], "counts": rle["counts"].encode()},
        [[2, 1, 5, 1, 5, 3, 2, 3]],
        [2, 1, 5, 1, 5, 3, 2, 3],
        [np.array([2, 1, 5, 1, 5, 3, 2, 3])],
    ]
    for source in sources:
        result = to_mask(source, HW)
        assert result.dtype == bool
        np.testing.assert_array_equal(result, mask)


def test_two_polygons_are_one_mask():
    result = to_mask([[0, 0, 1, 0, 1, 1, 0, 1], [3, 2, 6, 2, 6, 4, 3, 4]], HW)
    assert result.sum() == 1 + 6 and result[0, 0] and result[2:, 3:].all()


def test_box_of_a_mask_ends_after_its_last_pixel(mask):
    assert mask_to_box(mask).tolist() == [2, 1, 5, 3]
    one = np.zeros(HW, dtype=bool)
    one[3, 5] = True
    assert mask_to_box(one).tolist() == [5, 3, 6, 4]
    assert mask_to_box(np.ones(HW)).tolist() == [0, 0, 6, 4]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run_lengths_agree_with_the_c_implementation_both_ways():
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for _ in range(200):
        hw = tuple(int(side) for side in generator.integers(1, 70, 2))
        mask = generator.random(hw) < generator.random() ** 2
        mask[generator.integers(hw[0]), generator.integers(hw[1])] = True
        rle = json.loads(json.dumps(mask_to_rle(mask)))
        np.testing.assert_array_equal(to_mask(rle, hw), mask)
        np.testing.assert_array_equal(coco.decode(rle).astype(bool), mask)
        uncompressed = coco.frPyObjects({"size": list(hw), "counts": _runs(mask)}, *hw)
        assert uncompressed["counts"].decode() == rle["counts"]
        np.testing.assert_array_equal(to_mask({"size": list(hw), "counts": _runs(mask)}, hw), mask)


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(HW, dtype=bool),
        {"size": [4, 6], "counts": [24]},
        [[-9, -9, -8, -9, -8, -8]],
    ],
)
def test_an_empty_mask_is_an_error(mask):
    with pytest.raises(ValueError, match="empty mask"):
        to_mask(mask, HW)
    with pytest.raises(ValueError, match="empty mask"):
        mask_to_box(np.zeros(HW))


def test_a_mask_of_another_size_names_both(mask, tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(mask).save(path)
    for source in (mask, path, mask_to_rle(mask)):
        with pytest.raises(ValueError, match=r"\(4, 6\).*\(6, 4\)"):
            to_mask(source, (6, 4))


@pytest.mark.parametrize(
    ("rle", "rule"),
    [
        ({"size": [4, 6]}, "'size' and 'counts'"),
        ({"size": [4, 6], "counts": [24], "more": 1}, "'size' and 'counts'"),
        ({"size": [4, 6], "counts": [9, 2, 2]}, "add up to 13, expected 24"),
        ({"size": [4, 6], "counts": [-1, 25]}, "negative"),
        ({"size": [4, 6], "counts": [10**18, 1]}, "expected 24"),
        ({"size": [4, 6], "counts": [1.5, 22.5]}, "whole numbers"),
        ({"size": [4, 6], "counts": ["a"]}, "whole numbers"),
        ({"size": [4, 6], "counts": []}, "add up to 0"),
        ({"size": [4, 6], "counts": ""}, "add up to 0"),
        ({"size": [4, 6], "counts": 24}, "a string, bytes or a list"),
        ({"size": [4, 6], "counts": "92 2"}, "compressed"),
        ({"size": [4, 6], "counts": "é"}, "ASCII"),
        ({"size": [4, 6], "counts": "PPPPPPPPPPPPPPPPPP"}, "cut off"),
        ({"size": [4, 6], "counts": "oooooooooooooooooo0"}, "40 bits"),
        ({"size": [4, 6, 3], "counts": [24]}, "image_hw"),
        ({"size": None, "counts": [24]}, "image_hw"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, rule):
    with pytest.raises(ValueError, match=rule):
        to_mask(rle, HW)


def test_random_counts_never_do_worse_than_a_value_error():
    generator = np.random.default_rng(3)
    for _ in range(300):
        text = bytes(generator.integers(48, 112, generator.integers(1, 12)).astype(np.uint8))
        try:
            assert to_mask({"size": [4, 6], "counts": text}, HW).shape == HW
        except ValueError as error:
            assert "mask" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("polygons", "rule"),
    [
        ([], "without a polygon"),
        ([[1, 1, 3, 1, 3]], "5 numbers"),
        ([[1, 1, 3, 1]], "at least 6"),
        ([[1, 1], [3, 1], [3, 3]], "at least 6"),
        ([[1, 1, 3, 1, 3, float("nan")]], "not finite"),
        ([[1, 1, 3, 1, 3, 1e9]], "pixels away"),
        ([["a", 1, 3, 1, 3, 3]], "expected an even number"),
        ([[[1, 1], [3, 1], [3, 3]]], "something else"),
    ],
)
def test_bad_polygons_are_refused(polygons, rule):
    with pytest.raises(ValueError, match=rule):
        to_mask(polygons, HW)
    with pytest.raises(ValueError, match=rule):
        check_mask_record(polygons, HW)


def test_float_arrays_colour_stacks_and_strangers_are_refused(mask):
    with pytest.raises(ValueError, match="threshold"):
        to_mask(mask.astype(np.float32), HW)
    with pytest.raises(ValueError, match=r"\(1, 4, 6\)"):
        to_mask(mask[None], HW)
    with pytest.raises(ValueError, match="NoneType"):
        to_mask(None, HW)
    with pytest.raises(ValueError, match="not decoded"):
        to_mask({"size": [10**6, 10**6], "counts": [10**12]}, (10**6, 10**6))


def test_mask_files_of_every_mode(mask, tmp_path):
    grey = Image.fromarray(mask.astype(np.uint8))
    palette = grey.copy()
    palette.putpalette([255, 255, 255, 0, 0, 0])  # white background, black thing: the index counts
    cut_out = np.zeros((*HW, 4), dtype=np.uint8)
    cut_out[mask] = (0, 0, 0, 255)  # black on transparent
    pictures = {
        "one_bit": Image.fromarray(mask),
        "grey": grey,
        "palette": palette,
        "rgb": Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255),
        "opaque": Image.fromarray(np.dstack([mask * 255] * 3 + [np.full(HW, 255)]).astype(np.uint8)),
        "cut_out": Image.fromarray(cut_out),
        "sixteen": Image.fromarray(mask.astype(np.uint16) * 65535),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(to_mask(tmp_path / f"{name}.png", HW), mask, err_msg=name)


def test_jpeg_missing_and_damaged_mask_files_are_refused(mask, tmp_path):
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.jpg")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, rule in (("m.jpg", "save it as PNG"), ("none.png", "no such file"), ("cut.png", "cannot be read")):
        with pytest.raises(ValueError, match=f"{name}.*{rule}"):
            to_mask(tmp_path / name, HW)


def test_the_box_of_run_lengths_is_that_of_the_decoded_mask():
    generator = np.random.default_rng(0)
    for _ in range(300):
        hw = tuple(generator.integers(1, 9, size=2).tolist())
        mask = generator.random(hw) < generator.choice([0.05, 0.3, 0.9])
        for rle in (mask_to_rle(mask), {"size": list(hw), "counts": runs(mask)}):
            box = rle_to_box(rle)
            assert (box is None) == (not mask.any())
            assert box is None or box.tolist() == mask_to_box(mask).tolist()
    assert rle_to_box({"size": [2, 3], "counts": [1, 1, 0, 1, 3]}).tolist() == [0, 0, 2, 2]  # a run of length nothing
    for damaged in ({"size": [2, 3], "counts": [1, 9]}, {"counts": [6]}, {"size": [2, 3], "counts": "~~"}, [[1, 2]]):
        with pytest.raises(ValueError):
            rle_to_box(damaged)


def runs(mask) -> list[int]:
    """Uncompressed run lengths, counted the plain way: down the columns, outside first."""
    counts, value = [0], False
    for inside in mask.T.reshape(-1).tolist():
        if inside != value:
            counts.append(0)
            value = inside
        counts[-1] += 1
    return counts


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        ({"size": [4, 6], "counts": [10**5000, 24]}, "mask counts: .*too large"),
        ({"size": [4, 6], "counts": [10**30, 24]}, "mask counts add up"),
        ({"size": [4, 6], "counts": ["3", "21"]}, "mask counts: .*text"),
        ({"size": [4, 6], "counts": [True, 23]}, "mask counts: .*booleans"),
        ({"size": [10**5000, 6], "counts": [3, 21]}, "image_hw a list with a number of thousands of digits"),
        ([["1", "1", "3", "1", "3", "3"]], "mask polygon 0: text"),
        ([[True, 1, 3, 1, 3, 3]], "mask polygon 0: booleans"),
        ([[1j, 1, 3, 1, 3, 3]], "mask polygon 0: complex"),
        ([[10**5000, 1, 3, 1, 3, 3]], "mask polygon 0: a number is too large"),
        (["1", "1", "3", "1", "3", "3"], "mask polygon 0: text"),
    ],
)
def test_what_is_no_number_is_refused_in_a_line(mask, rule):
    with pytest.raises(ValueError, match=rule) as error:
        to_mask(mask, (4, 6))
    assert len(str(error.value)) < 250


def test_tensors_are_masks_too(mask):
    torch = pytest.importorskip("torch")
    assert (to_mask(torch.from_numpy(mask), mask.shape) == mask).all()
    with pytest.raises(ValueError, match="mask array of type float32.*threshold it first"):
        to_mask(torch.from_numpy(mask).float().requires_grad_(), mask.shape)
