"""One way to open an image: whatever comes in, RGB uint8 as a viewer would show it goes out."""

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dynrefer.boxes import plain_array
from dynrefer.fetch import is_address

EXIF_ORIENTATION = 0x0112
# what Pillow's decoders raise on damaged files, one kind a format
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
MAX_PIXELS = "DYNREFER_MAX_PIXELS"  # environment variable: how many a file may have; Pillow's limit where not set

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def open_image(source: ImageSource, reduce: int = 1) -> np.ndarray:
    """The picture as RGB uint8, (H, W, 3), the way a viewer shows it.

    source: a path, an encoded file's bytes, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of
    uint8 or uint16; a torch tensor may have its channels first, (3, H, W). EXIF rotation is applied (so boxes count in
    the upright picture), an animation gives its first frame (a PIL image its current one), 16-bit values become
    value // 257, transparent pixels are laid over white.
    reduce: 2, 4 or 8 decodes a JPEG file at 1/2, 1/4 or 1/8 of its size, which is quicker: at the smallest down to that
    by which both sides can be divided. Files of other kinds come whole.
    Raises ValueError that names the file or the array for anything missing, truncated or of another kind.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(bytes(source)), f"image of {len(source)} bytes", len(source), reduce)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            if is_address(source):
                raise ValueError(f"image {source}: addresses are not fetched; download it, or see RegionPredictor")
            kind = "is a folder" if path.is_dir() else "no such file"
            raise ValueError(f"image {source}: {kind}; give the path of a JPEG, PNG, WebP, GIF, BMP or TIFF file")
        try:
            with open(path, "rb") as file:
                return _from_file(file, f"image {source}", path.stat().st_size, reduce)
        except OSError as error:
            raise ValueError(f"image {source}: cannot be read ({error})") from error
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _from_array(_channels_last(source))
    raise ValueError(
        f"image of type {type(source).__name__}: expected a path, bytes, a PIL image or a uint8 array (H, W, 3)"
    )


def open_with_alpha(source: ImageSource) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture as `open_image` gives it, and the mask bool (H, W) that its alpha channel is, non-zero inside.

    Where the alpha is a mask, the colours below it stay as they are. Without an alpha channel, or with one that is the
    same everywhere: None, and transparent pixels are laid over white.
    """
    if (found := _with_alpha(source)) is None:
        return open_image(source), None
    return np.ascontiguousarray(found[..., :3]), found[..., 3] > 0


def _with_alpha(source: ImageSource) -> np.ndarray | None:
    """(H, W, 4) uint8, upright, of a picture whose alpha varies; None of another, and of what is no picture."""
    if isinstance(source, Image.Image):
        pixels = _rgba(source)
    elif isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        path = isinstance(source, (str, os.PathLike))
        if path and not os.path.isfile(source):
            return None
        with open_file(source if path else io.BytesIO(bytes(source)), f"image {source}" if path else "image") as image:
            pixels = _rgba(image)
    else:
        pixels = _channels_last(source) if hasattr(source, "__array__") else np.zeros(0)
        pixels = pixels if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8 else None
    varies = pixels is not None and pixels.size and (pixels[..., 3] != pixels[0, 0, 3]).any()
    return pixels if varies else None


def _rgba(image: Image.Image) -> np.ndarray | None:
    """(H, W, 4) uint8, upright; None of a picture without an alpha channel, and of one that cannot be decoded."""
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return None
    try:
        image.load()
        orientation = _orientation(image)
        if image.mode in PREMULTIPLIED:
            image = image.convert(PREMULTIPLIED[image.mode])
        return upright(np.asarray(image.convert("RGBA")), orientation)
    except DECODE_ERRORS:
        return None


def _channels_last(source: Any) -> np.ndarray:
    """An array as it is; of a torch tensor (C, H, W), as torch's programs have pictures, (H, W, C)."""
    array = np.asarray(plain_array(source))
    first = hasattr(source, "detach") and array.ndim == 3 and array.shape[0] in (1, 3, 4)
    return array.transpose(1, 2, 0) if first and not (array.shape[2] in (1, 3, 4) and array.shape[1] > 4) else array


def read_image_hw(source: str | os.PathLike | bytes) -> tuple[int, int]:
    """(height, width) of the upright picture from the header of a file or of its bytes; no pixel is decoded.

    Raises ValueError for what is missing or not an image. A file cut off behind its header is not noticed.
    """
    encoded = isinstance(source, (bytes, bytearray))
    name = f"image of {len(source)} bytes" if encoded else f"image {source}"
    with open_file(io.BytesIO(source) if encoded else source, name) as image:
        width, height = image.size
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def open_file(file: str | os.PathLike | io.BufferedIOBase, name: str) -> Image.Image:
    """The opened file, not decoded; ValueError that begins with `name`."""
    _set_limit()
    try:
        return Image.open(file)
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image that Pillow can read (damaged, or another kind of file)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: its size of {_pixels(error)} exceeds limits, {2 * Image.MAX_IMAGE_PIXELS:,} (a damaged file "
            f"could ask for all memory); set {MAX_PIXELS}=1000000000 in the environment to open it, or make it smaller"
        ) from None
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: cannot be opened, truncated or damaged ({error})") from error


def _pixels(error: Image.DecompressionBombError) -> str:
    """
    >>> _pixels(Image.DecompressionBombError("Image size (200000000 pixels) exceeds limit of ..."))
    '200,000,000 pixels'
    """
    found = re.search(r"\d+", str(error))
    return f"{int(found[0]):,} pixels" if found else "too many pixels"


def _set_limit() -> None:
    """Pillow's limit is one for the whole process; it warns above it and refuses twice as many pixels."""
    if not (text := os.environ.get(MAX_PIXELS)):
        return
    try:
        pixels = int(text.replace("_", ""))
    except ValueError:
        pixels = 0
    if pixels < 1:
        raise ValueError(f"{MAX_PIXELS}={text!r} in the environment: expected a number of pixels, such as 1000000000")
    Image.MAX_IMAGE_PIXELS = -(-pixels // 2)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # asked for


def read_orientation(source: str | os.PathLike) -> int:
    """EXIF orientation of a picture's file: 1 = stored upright, 5 to 8 = stored with height and width exchanged.
    ValueError for what is missing or not an image."""
    try:
        with Image.open(source) as image:
            return _orientation(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"image {source}: cannot be opened, truncated or damaged or too large ({error})") from error


def _from_file(file: io.BufferedIOBase, name: str, num_bytes: int, reduce: int) -> np.ndarray:
    if num_bytes == 0:
        raise ValueError(f"{name}: the file is empty (0 bytes); download or write it again")
    with open_file(file, name) as image:
        width, height = image.size
        # a last column that is no whole one would lie elsewhere than its share, and come first in a turned picture
        while width % reduce or height % reduce:
            reduce //= 2
        if reduce > 1:
            image.draft(None, (width // reduce, height // reduce))
        return _from_pil(image, name)


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
        if image.mode == "F":
            raise ValueError("floating-point pixels have no agreed range; save it as 8 or 16 bit")
        pixels = _to_rgb(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: cannot be decoded, truncated or damaged or unsupported ({error})") from error
    if 0 in pixels.shape:
        raise ValueError(f"{name}: no pixels, size {pixels.shape[1]} x {pixels.shape[0]}")
    return np.ascontiguousarray(upright(pixels, _orientation(image)))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a loaded PIL image."""
    if image.mode.startswith("I"):  # "I;16", "I;16B", "I" (16 bits in 32): Pillow's own conversion would clip at 255
        return _from_array(_sixteen_bits(np.asarray(image)))
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        if image.mode in PREMULTIPLIED:
            image = image.convert(PREMULTIPLIED[image.mode])
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"pixel values {values.min()}..{values.max()}; expected 16 bits, 0..65535; save it as 8 bit")
    return values.astype(np.uint16)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 where the picture has none, or a damaged EXIF block, which viewers ignore too."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> as shown, the EXIF orientation undone: 1 as it is, 2-4 mirrored or upside down, 5-8 with
    height and width exchanged."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ValueError(f"image array of shape {array.shape}: channels come last, (H, W, 3); transpose it (1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ValueError(
            f"image array of shape {array.shape}: expected (H, W), (H, W, 3) or (H, W, 4) with pixels in it"
        )
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(
            f"image array of type {array.dtype}: expected uint8 in 0..255; scale, round and convert it first"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        return _over_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4) -> RGB (H, W, 3): opaque pixels as they are, others mixed with white by their alpha."""
    rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(rgb)
    mixed = rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))  # at most 255 * 255
    return ((mixed + 127) // 255).astype(np.uint8)
