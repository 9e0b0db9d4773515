"""Masks: arrays, PNG files, COCO run lengths and polygons -> bool (H, W); mask -> box; mask -> run lengths."""

import io
import os

import numpy as np
from PIL import Image

from dynrefer.boxes import check_image_hw, number_array, plain_array
from dynrefer.images import DECODE_ERRORS, open_file

LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 2**30  # a damaged size must not ask for all memory


def to_mask(mask: object, image_hw: tuple[int, int]) -> np.ndarray:
    """The region's pixels, bool (H, W), where (H, W) = image_hw.

    mask: an array (H, W) of bool or integers (non-zero is inside), a PIL image, the path of a PNG or its bytes
    (non-zero is inside; where its alpha varies, alpha > 0), a COCO run-length dict {"size": [H, W], "counts": str,
    bytes or list}, or polygons [[x1, y1, x2, y2, ...], ...] in pixels (also one flat polygon).
    Raises ValueError for another size than the image's, an empty mask, or a damaged one.
    """
    image_hw = check_image_hw(image_hw)
    if image_hw[0] * image_hw[1] > MAX_PIXELS:
        raise ValueError(f"image_hw {image_hw}: a mask of more than {MAX_PIXELS} pixels is not decoded; check the size")
    if isinstance(mask, dict):
        result = _from_rle(mask, image_hw)
    elif isinstance(mask, (list, tuple)) and not (len(mask) and isinstance(mask[0], np.ndarray) and mask[0].ndim > 1):
        result = _from_polygons(mask, image_hw)
    elif isinstance(mask, (str, os.PathLike, Image.Image, bytes, bytearray)):
        result = _from_picture(mask)
    elif isinstance(mask, np.ndarray) or hasattr(mask, "__array__"):
        result = _from_array(np.asarray(plain_array(mask)))
    else:
        raise ValueError(
            f"mask of type {type(mask).__name__}: expected a bool array (H, W), a PNG path, a COCO run-length dict "
            "or a list of polygons"
        )
    if result.shape != image_hw:
        raise ValueError(_other_size(result.shape, image_hw))
    if not result.any():
        raise ValueError("empty mask: no pixel is inside; a region has at least one")
    return result


def mask_to_box(mask: np.ndarray, last_index: bool = False) -> np.ndarray:
    """Tight box (4,) float64 xyxy of a bool mask (H, W): (min x, min y, max x + 1, max y + 1). ValueError if empty.

    last_index: (min x, min y, max x, max y) instead, as in the released DynRefer, which loses the last row and column.

    >>> mask_to_box(np.array([[False, False, False], [False, True, True]])).tolist()
    [1.0, 1.0, 3.0, 2.0]
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask of shape {mask.shape}: expected (H, W)")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("empty mask: no pixel is inside; a region has at least one")
    past = 0 if last_index else 1
    return np.array([columns[0], rows[0], columns[-1] + past, rows[-1] + past], dtype=np.float64)


def rle_to_box(rle: dict) -> np.ndarray | None:
    """Tight box (4,) float64 xyxy of COCO run lengths, as `mask_to_box` of the decoded mask, without decoding it.
    None where no pixel is inside; ValueError for run lengths that are damaged.

    >>> rle_to_box({"size": [2, 3], "counts": [3, 1, 1, 1]}).tolist()
    [1.0, 1.0, 3.0, 2.0]
    """
    if not isinstance(rle, dict):
        raise ValueError(f"mask of type {type(rle).__name__}: expected a COCO run-length dict")
    image_hw = check_image_hw(rle.get("size"))
    counts = _run_lengths(rle, image_hw)
    stops = np.cumsum(counts)[1::2]  # every second run is inside
    starts = stops - counts[1::2]
    starts, last = starts[stops > starts], stops[stops > starts] - 1
    if not starts.size:
        return None
    height = image_hw[0]  # runs go down the columns; one that goes on in the next column touches both edges
    across = (starts // height != last // height).any()
    top, bottom = (0, height) if across else ((starts % height).min(), (last % height).max() + 1)
    return np.array([starts[0] // height, top, last[-1] // height + 1, bottom], dtype=np.float64)


def mask_area(mask: dict | list) -> float:
    """Square pixels of a record's mask as COCO's `area` counts them: those inside polygons, the pixels of run lengths.

    >>> mask_area([[0, 0, 4, 0, 4, 3]]), mask_area({"size": [2, 3], "counts": [3, 1, 1, 1]})
    (6.0, 2.0)
    """
    if isinstance(mask, dict):
        return float(_run_lengths(mask, check_image_hw(mask.get("size")))[1::2].sum())
    polygons = [mask] if isinstance(mask[0], (int, float)) else mask
    corners = [np.asarray(polygon, np.float64).reshape(-1, 2).T for polygon in polygons]
    return float(sum(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) for x, y in corners) / 2)


def record_rle(mask: dict | list, image_hw: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a record's mask, run lengths or polygons; ValueError where it is damaged, or of
    another size than the image."""
    from pycocotools import mask as coco

    if isinstance(mask, dict):
        counts = _run_lengths(mask, image_hw)
        if isinstance(mask["counts"], str):
            return mask
        size = [int(side) for side in image_hw]
        rle = coco.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    else:
        rle = coco.merge(coco.frPyObjects(_check_polygons(mask, image_hw), *image_hw))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def mask_to_rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths {"size": [H, W], "counts": str} of a bool mask (H, W); fit for JSON."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(np.asarray(mask, dtype=bool).astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def check_mask_record(mask: object, image_hw: tuple[int, int]) -> None:
    """Form of a mask in a record (run lengths or polygons) without decoding it; ValueError says what is wrong."""
    if isinstance(mask, dict):
        _check_rle_form(mask, image_hw)
    elif isinstance(mask, (list, tuple)):
        _check_polygons(mask, image_hw)
    else:
        raise ValueError(f"mask of type {type(mask).__name__}: a record holds a COCO run-length dict or polygons")


def _other_size(mask_hw: tuple[int, ...], image_hw: tuple[int, int]) -> str:
    return (
        f"mask of size {tuple(int(side) for side in mask_hw)} for an image of size {image_hw}, both (height, width); "
        "they must be equal: resize the mask (nearest neighbour) or give the image it was drawn on"
    )


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2:
        raise ValueError(f"mask array of shape {array.shape}: expected one mask, (H, W)")
    if array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"mask array of type {array.dtype}: expected bool or uint8; threshold it first, as in mask > 0.5"
        )
    return array != 0


def _from_picture(source: str | os.PathLike | Image.Image | bytes | bytearray) -> np.ndarray:
    """Non-zero pixels of a mask file. Palette masks count by index, not by colour: index 0 is the background."""
    name = f"mask {source}" if isinstance(source, (str, os.PathLike)) else "mask image"
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    elif not isinstance(source, Image.Image) and not os.path.isfile(source):
        raise ValueError(f"{name}: no such file; give the path of a PNG")
    try:
        image = source if isinstance(source, Image.Image) else open_file(source, "the file")
        image.load()
        if image.format not in (*LOSSLESS, None):
            raise ValueError(f"{image.format} blurs the edge of a mask; save it as PNG")
        values = np.asarray(image.convert("RGBA") if image.mode in ("PA", "RGBa", "La") else image)
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: cannot be read as a mask ({error})") from error
    if values.ndim == 2:
        return values != 0
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        alpha = values[:, :, -1]
        if (alpha != alpha.flat[0]).any():
            return alpha > 0
        values = values[:, :, :-1]
    return (values != 0).any(axis=2)


def _check_rle_form(rle: dict, image_hw: tuple[int, int]) -> None:
    if set(rle) != {"size", "counts"}:
        raise ValueError(f"mask with keys {sorted(map(str, rle))}: run lengths have exactly 'size' and 'counts'")
    size = check_image_hw(rle["size"])
    if size != tuple(image_hw):
        raise ValueError(_other_size(size, tuple(image_hw)))
    if not isinstance(rle["counts"], (str, bytes, list, tuple, np.ndarray)):
        raise ValueError(f"mask counts of type {type(rle['counts']).__name__}: expected a string, bytes or a list")


def _from_rle(rle: dict, image_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths to a mask, decoded here: the C decoder trusts the counts, and a damaged file must not crash a run."""
    counts = _run_lengths(rle, image_hw)
    height, width = image_hw
    inside = np.arange(counts.size) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T.copy()  # runs go down the columns


def _run_lengths(rle: dict, image_hw: tuple[int, int]) -> np.ndarray:
    """Checked run lengths (N,) int64 of a run-length dict: outside, inside, outside, ...; they fill the image."""
    _check_rle_form(rle, image_hw)
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _uncompress(counts)
    else:
        try:
            numbers = number_array(counts).reshape(-1)
        except ValueError as error:
            raise ValueError(
                f"mask counts: expected whole numbers, the lengths of runs outside, inside, ... ({error})"
            ) from None
        if not (np.isfinite(numbers) & (numbers == np.floor(numbers))).all():
            raise ValueError("mask counts: expected whole numbers, the lengths of runs outside, inside, ...")
        counts = np.clip(numbers, -1, 2**62).astype(np.int64)  # longer ones are longer than any image too
    height, width = image_hw
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise ValueError(
            f"mask counts add up to {counts.sum()}, expected {height * width} = {height} x {width} "
            "(no run negative); the run lengths are damaged or of another image"
        )
    return counts


def _uncompress(text: str | bytes) -> np.ndarray:
    """COCO's compressed counts -> run lengths (N,): 5 bits a character, low first, from the third on as differences."""
    try:
        codes = (
            np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64) - 48
        )
    except UnicodeEncodeError:
        raise ValueError("mask counts: not COCO's compressed run lengths (a character outside ASCII)") from None
    if not codes.size:
        return np.zeros(0, dtype=np.int64)
    last = (codes & 0x20) == 0  # no continuation bit
    if (codes < 0).any() or (codes > 63).any() or not last[-1]:
        raise ValueError("mask counts: not COCO's compressed run lengths (cut off, or a character outside '0'..'o')")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("mask counts: not COCO's compressed run lengths (a number of more than 40 bits)")
    position = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * position), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)  # sign bit of the last character
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])  # counts[2] stands alone: differences begin with counts[3] - counts[1]
    return values


def _check_polygons(polygons: list | tuple, image_hw: tuple[int, int]) -> list[list[float]]:
    if not len(polygons):
        raise ValueError("mask without a polygon: expected [[x1, y1, x2, y2, x3, y3, ...], ...]")
    if all(isinstance(value, (int, float, str, np.number)) for value in polygons):
        polygons = [polygons]
    reach = 10 * max(image_hw)  # far-off corners cost the rasteriser memory by their distance
    result = []
    for index, polygon in enumerate(polygons):
        try:
            numbers = number_array(polygon)
        except ValueError as error:
            raise ValueError(
                f"mask polygon {index}: {error}; expected an even number of numbers, [x1, y1, x2, y2, x3, y3, ...]"
            ) from None
        if numbers.ndim != 1 or numbers.size % 2 or numbers.size < 6:
            count = f"{numbers.size} numbers" if numbers.ndim == 1 else "something else"
            raise ValueError(
                f"mask polygon {index}: {count}; expected an even number of at least 6, [x1, y1, x2, y2, x3, y3, ...]"
            )
        if not np.isfinite(numbers).all() or np.abs(numbers).max() > reach:
            raise ValueError(f"mask polygon {index}: a corner is not finite or over {reach} pixels away from the image")
        result.append(numbers.tolist())
    return result


def _from_polygons(polygons: list | tuple, image_hw: tuple[int, int]) -> np.ndarray:
    polygons = _check_polygons(polygons, image_hw)
    from pycocotools import mask as coco

    return _from_rle(coco.merge(coco.frPyObjects(polygons, *image_hw)), image_hw)
