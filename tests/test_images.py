import io

import numpy as np
import pytest
from PIL import Image

from dynrefer.images import open_image, read_image_hw

EXIF_ORIENTATION = 0x0112


@pytest.fixture
def picture() -> np.ndarray:
    """(20, 30, 3) with four colours in its corners, so that every rotation shows."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10, :15], pixels[:10, 15:], pixels[10:, :15], pixels[10:, 15:] = (
        (250, 10, 10),
        (10, 250, 10),
        (10, 10, 250),
        (240, 240, 10),
    )
    return pixels


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_bytes_pil_and_array_give_the_same(picture, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(picture)))
    for source in (path, str(path), path.read_bytes(), Image.fromarray(picture), picture):
        opened = open_image(source)
        assert opened.dtype == np.uint8 and opened.flags.c_contiguous
        np.testing.assert_array_equal(opened, picture)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# how a camera stores an upright picture, by orientation (EXIF 2.3, table of the tag)
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_rotation_gives_the_upright_picture(picture, orientation, kind):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation](picture))), kind, exif=exif, **options)
    opened = open_image(data)
    assert opened.shape == picture.shape
    assert np.abs(opened.astype(int) - picture)[2:8, 2:13].max() < 40  # inside the corner's patch, whatever JPEG does
    assert np.abs(opened.astype(int) - picture)[12:18, 17:28].max() < 40
    np.testing.assert_array_equal(open_image(Image.open(io.BytesIO(data))), opened)


def test_damaged_exif_does_not_turn_the_picture(picture):
    data = encode(Image.fromarray(picture), "PNG", exif=b"Exif\x00\x00not a tiff header")
    np.testing.assert_array_equal(open_image(data), picture)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "YCbCr", "HSV"])
def test_every_mode_comes_out_as_rgb(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    opened = open_image(image)
    assert opened.shape == (20, 30, 3) and opened.dtype == np.uint8
    np.testing.assert_array_equal(opened, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours(picture):
    data = encode(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    opened = open_image(data).astype(int)
    assert np.abs(opened - picture)[2:8, 2:13].max() < 25 and np.abs(opened - picture)[2:8, 17:28].max() < 25


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 256, 257, 514], [32768, 40000, 65534, 65535]], dtype=np.uint16)
    grey = values // 257
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(values), kind)
        assert Image.open(io.BytesIO(data)).mode.startswith("I")
        np.testing.assert_array_equal(open_image(data), np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(open_image(values), open_image(data))
    np.testing.assert_array_equal(open_image(Image.fromarray(values.astype(np.int32))), open_image(data))
    with pytest.raises(ValueError, match="16 bits"):
        open_image(Image.fromarray(values.astype(np.int32) * 2))


def test_transparent_pixels_lie_over_white_and_opaque_ones_stay():
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], dtype=np.uint8)
    expected = [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]  # 0.2 * colour + 0.8 * white
    assert open_image(rgba).tolist() == expected
    assert open_image(encode(Image.fromarray(rgba))).tolist() == expected


def test_palette_with_transparency_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert open_image(encode(image, "PNG", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert open_image(encode(image, "GIF", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert open_image(encode(image, "PNG")).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_rgb_with_a_transparent_colour_lies_over_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8))
    assert open_image(encode(image, "PNG", transparency=(9, 9, 9))).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).tolist() == np.full((6, 8, 3), (255, 0, 0)).tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for length in (5, 20, len(data) // 2, len(data) * 9 // 10):
        path = tmp_path / f"cut{length}.{kind.lower()}"
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=path.name):
            open_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_give_a_picture_or_a_value_error():
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = bytearray(encode(Image.fromarray(pixels), kind))
        for _ in range(40):
            damaged = bytearray(data)
            for position in generator.integers(0, len(data), 6):
                damaged[position] = generator.integers(256)
            try:
                opened = open_image(bytes(damaged))
                assert opened.ndim == 3 and opened.dtype == np.uint8
            except ValueError:
                refused += 1
    assert refused > 40


def test_missing_empty_and_foreign_files_are_errors_that_name_them(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    for name, rule in (("missing.jpg", "no such file"), ("empty.jpg", "0 bytes"), ("page.jpg", "not an image")):
        with pytest.raises(ValueError, match=f"{name}.*{rule}"):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="0 bytes"):
        open_image(b"")
    with pytest.raises(ValueError, match="NoneType"):
        open_image(None)


def test_arrays_of_other_shapes_and_types_are_refused_or_read():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert open_image(grey).tolist() == open_image(grey[:, :, None]).tolist() == np.stack([grey] * 3, axis=2).tolist()
    with pytest.raises(ValueError, match="channels come last"):
        open_image(np.zeros((3, 20, 30), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 20, 30, 3\)"):
        open_image(np.zeros((2, 20, 30, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(0, 30, 3\)"):
        open_image(np.zeros((0, 30, 3), dtype=np.uint8))
    for kind in (np.float32, np.int64, bool):
        with pytest.raises(ValueError, match="expected uint8"):
            open_image(np.zeros((20, 30, 3), dtype=kind))
    with pytest.raises(ValueError, match="floating-point"):
        open_image(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(factor, kind, tmp_path):
    pixels = np.asarray(Image.fromarray(noise(10, 13)).resize((208, 160), Image.Resampling.BICUBIC))
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(Image.fromarray(pixels), kind, quality=95, subsampling=0))
    small = open_image(path, factor)
    np.testing.assert_array_equal(open_image(path.read_bytes(), factor), small)
    blocks = pixels.reshape(160 // factor, factor, 208 // factor, factor, 3).mean((1, 3))
    assert small.shape == blocks.shape
    assert np.abs(small - blocks).mean() < 3, "each pixel is about the mean of a block"


def test_the_fraction_is_one_that_divides_the_sides():
    for height, width, factor in ((80, 64, 8), (80, 68, 4), (82, 64, 2), (80, 65, 1), (81, 64, 1), (1, 3, 1)):
        data = encode(Image.new("RGB", (width, height)), "JPEG")
        assert open_image(data, 8).shape == (height // factor, width // factor, 3)


def test_other_files_and_arrays_are_opened_whole_where_a_fraction_is_asked_for(picture):
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encode(Image.fromarray(picture), kind)
        np.testing.assert_array_equal(open_image(data, 2), open_image(data))
    assert open_image(picture, 2).shape == open_image(Image.fromarray(picture), 2).shape == picture.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_upright(picture, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](picture.repeat(4, 0).repeat(4, 1)))
    small = open_image(encode(Image.fromarray(stored), "JPEG", quality=95, subsampling=0, exif=exif), 4)
    assert small.shape == picture.shape and np.abs(small.astype(int) - picture).mean() < 3


def test_a_file_cut_off_is_an_error_at_every_size():
    data = encode(Image.fromarray(noise(64, 64)), "JPEG")
    for factor in (1, 2, 4, 8):
        with pytest.raises(ValueError, match="cannot be decoded"):
            open_image(data[: len(data) // 2], factor)


def test_a_picture_too_large_to_be_meant_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(Image.new("L", (30, 30)))
    for read in (open_image, read_image_hw):
        with pytest.raises(ValueError, match="900 pixels exceeds limits, 200 .*; set DYNREFER_MAX_PIXELS="):
            read(data)


def test_the_limit_of_pixels_is_an_option(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(Image.new("L", (30, 30)))
    monkeypatch.setenv("DYNREFER_MAX_PIXELS", "900")
    assert open_image(data).shape == (30, 30, 3) and read_image_hw(data) == (30, 30)
    monkeypatch.setenv("DYNREFER_MAX_PIXELS", "898")
    with pytest.raises(ValueError, match="900 pixels exceeds limits, 898"):
        open_image(data)
    monkeypatch.setenv("DYNREFER_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="DYNREFER_MAX_PIXELS='many' in the environment: expected a number"):
        open_image(data)


def test_tensors_are_pictures_where_they_hold_uint8(picture):
    torch = pytest.importorskip("torch")
    assert (open_image(torch.from_numpy(picture.copy())) == picture).all()
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match="image array of type float32: expected uint8"):
            open_image(torch.from_numpy(picture.copy()).to(dtype).requires_grad_())


def test_the_size_from_the_header_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
        size = open_image(tmp_path / "a.jpg").shape[:2]
        assert read_image_hw(tmp_path / "a.jpg") == read_image_hw((tmp_path / "a.jpg").read_bytes()) == size
    (tmp_path / "b.png").write_text("no picture")
    for source, rule in ((tmp_path / "b.png", "b.png.*not an image"), (tmp_path / "c", "c: no such"), (b"", "0 bytes")):
        with pytest.raises(ValueError, match=rule):
            read_image_hw(source)
