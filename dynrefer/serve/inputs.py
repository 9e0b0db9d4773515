"""What a client sends as a picture, a mask or a region -> pixels and checked regions.

Texts of a request are never taken for paths. A picture's header is read before its pixels, so that a small file of a
huge picture costs nothing.
"""

from __future__ import annotations

import binascii
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.images import DECODE_ERRORS, open_image, open_with_alpha
from dynrefer.masks import to_mask
from dynrefer.regions import regions_of

from .schema import RegionIn
from .settings import invalid, too_large

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MASK_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF")
DATA_URI = re.compile(r"data:([^,;]{0,100})((?:;[^,;]{0,100}){0,5}),", re.IGNORECASE)
MOST_MASK_PIXELS = 4_000_000_000  # of a request's masks together: each is decoded in the size of its picture
LONGEST_OUTLINE = 2_000_000  # of a polygon, in pixels: the rasteriser's memory grows by it


def file_bytes(text: str, where: str) -> bytes:
    """Of a data URI or of base64 alone; spaces and line ends between the letters are fine."""
    found = DATA_URI.match(text)
    if found:
        kind, settings = found[1].strip().lower(), found[2].lower()
        if not kind.startswith("image/"):
            raise invalid(f"{where}: a data URI of type {shown(kind)}; expected image/png, image/jpeg, ...", where)
        if ";base64" not in settings:
            raise invalid(f"{where}: a data URI without ;base64; encode the file's bytes as base64", where)
        text = text[found.end() :]
    elif text[:5].lower() == "data:":
        raise invalid(f"{where}: {shown(text[:40])} is no data URI; expected data:image/png;base64,...", where)
    try:
        letters = text.encode("ascii").translate(None, b" \t\r\n")
        content = binascii.a2b_base64(letters, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        what = "a character outside ASCII" if isinstance(error, UnicodeEncodeError) else str(error)
        raise invalid(f"{where}: neither a data URI nor base64 ({what}); encode the file's bytes", where) from None
    if not content:
        raise invalid(f"{where}: no bytes; send a file's bytes as base64", where)
    return content


def header(content: bytes, where: str, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The opened file, not decoded; Refusal for other kinds of files, 413 for too many pixels."""
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise too_large(f"{where}: far more than {max_pixels:,} pixels; make the picture smaller", where) from None
    except DECODE_ERRORS:
        raise invalid(
            f"{where}: {len(content):,} bytes that are no whole {', '.join(formats[:-1])} or {formats[-1]} file", where
        ) from None
    if image.width * image.height > max_pixels:
        raise too_large(
            f"{where}: {image.width} x {image.height} pixels; this server takes up to {max_pixels:,}, make it smaller",
            where,
        )
    return image


def pixels_of(content: bytes, where: str, want_alpha: bool | None) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) uint8, upright, and the mask (H, W) of its alpha channel.

    want_alpha: True: the mask, or a Refusal; None: the mask if the alpha varies; False: none. Where the alpha is a
    mask, the colours below it stay; otherwise transparent pixels are laid over white.
    """
    try:
        pixels, alpha = (open_image(content), None) if want_alpha is False else open_with_alpha(content)
    except DECODE_ERRORS as error:
        raise invalid(f"{where}: {error}", where, "invalid_image") from None
    if want_alpha and alpha is None:
        raise invalid(f'{where}: regions "alpha", but its alpha channel is missing or the same everywhere', where)
    return pixels, alpha


def read_regions(
    given: list[RegionIn] | np.ndarray, image_hw: tuple[int, int], box_format: str, image: int, where: str
) -> list[Region]:
    """Checked regions of the picture of this number, in order. given: the client's, or one mask (H, W)."""
    if isinstance(given, np.ndarray):
        return _checked(image_hw, None, box_format, [given], None, image, where)
    boxes, masks = [], []
    room = MOST_MASK_PIXELS // (image_hw[0] * image_hw[1])
    if sum(region.mask is not None for region in given) > room:
        raise too_large(
            f"{where}.regions: more than {room:,} masks of a picture of this size; send fewer at once", where
        )
    for number, region in enumerate(given):
        at = f"{where}.regions[{number}]"
        if region.box is not None and region.bbox_2d is not None:
            raise invalid(f"{at}: box and bbox_2d; give one of them", at)
        boxes.append(region.bbox_2d if region.box is None else region.box)
        masks.append(_mask(region.mask, image_hw, at))
        if boxes[-1] is None and masks[-1] is None:
            raise invalid(f"{at}: neither box nor mask; give one of them, or both", at)
    ids = [f"{image}:{number}" if region.id is None else region.id for number, region in enumerate(given)]
    has_boxes, has_masks = (any(one is not None for one in ones) for ones in (boxes, masks))
    if all(box is not None for box in boxes) and all(mask is not None for mask in masks) or has_boxes != has_masks:
        of_all = (boxes if has_boxes else None, masks if has_masks else None)
        return _checked(image_hw, of_all[0], box_format, of_all[1], ids, image, where)
    found = []
    for number, (box, mask, name) in enumerate(zip(boxes, masks, ids, strict=True)):
        own = (None if box is None else [box], None if mask is None else [mask])
        at = f"{where}.regions[{number}]"
        found += _checked(image_hw, own[0], box_format, own[1], [name], image, at)
    return found


def _checked(
    image_hw: tuple[int, int], boxes: Any, box_format: str, masks: Any, ids: Any, image: int, where: str
) -> list[Region]:
    try:
        return regions_of(image_hw, [] if boxes is masks is None else boxes, box_format, masks, ids, image)
    except ValueError as error:
        raise invalid(f"{where}: {error}", where, "invalid_region") from None


def _mask(given: Any, image_hw: tuple[int, int], where: str) -> Any:
    """What `regions_of` takes, of the schema's forms; a PNG is decoded here, and no text is taken for a path."""
    if given is None:
        return None
    if isinstance(given, str):
        image = header(file_bytes(given, f"{where}.mask"), f"{where}.mask", 2 * image_hw[0] * image_hw[1], MASK_FORMATS)
        try:
            return to_mask(image, image_hw)
        except ValueError as error:
            raise invalid(f"{where}: {error}", where, "invalid_region") from None
    if isinstance(given, list):
        polygons = [given] if given and not isinstance(given[0], list) else given
        for polygon in polygons:
            steps = np.abs(np.diff(np.asarray(polygon[: len(polygon) // 2 * 2], float).reshape(-1, 2), axis=0))
            if not steps.max(1, initial=0).sum() <= LONGEST_OUTLINE:
                raise too_large(f"{where}.mask: an outline of more than {LONGEST_OUTLINE:,} pixels", where)
        return given
    return given.model_dump()
