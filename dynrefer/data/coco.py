"""COCO's annotations -> regions, as they are: of one picture in memory, or of a user's file that is to be described.

`data_prep.coco` makes training records of published files; it shares the ids and the boxes of masks with this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dynrefer.boxes import check_boxes, to_xyxy
from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.masks import check_mask_record, mask_to_box, rle_to_box, to_mask

FORM = 'an annotation is {"id": 7, "bbox": [x, y, width, height]}, or has a "segmentation", or both'
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpg$")


def coco_image_id(name: str) -> int | None:
    """The COCO id in an image's file name; None for a name of another form.

    >>> coco_image_id("train2014/COCO_train2014_000000581857.jpg"), coco_image_id("val2017/000000000139.jpg")
    (581857, 139)
    """
    match = COCO_NAME.search(str(name))
    return int(match[1]) if match else None


def coco_names(image: dict) -> tuple[str, ...]:
    """Names of a COCO photo in all layouts; LVIS gives only its address, PACO and Osprey one or no folder.

    >>> coco_names({"coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"})[:3]
    ('val2017/000000000139.jpg', '000000000139.jpg', 'train2017/000000000139.jpg')
    """
    name = image.get("file_name") or urlsplit(image["coco_url"]).path.lstrip("/")
    number = coco_image_id(name)
    if number is None:
        return (name,)
    bare = f"{number:012d}.jpg"
    return tuple(dict.fromkeys((name, bare, f"train2017/{bare}", f"val2017/{bare}")))


def known_id(value: Any) -> int | str | None:
    """An id as a whole number where it is one, also as text or with a point; as text; None for anything else.

    >>> known_id("17"), known_id(17.0), known_id("a-017"), known_id(None), known_id("")
    (17, 17, 'a-017', None, None)
    """
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and str(int(value)) == value else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def box_of_mask(mask: dict | list | None, image_hw: tuple[int, int], where: str) -> tuple[float, ...]:
    """The box of an annotation without one; ValueError, beginning with `where`, where it has no mask either."""
    if mask is None:
        raise ValueError(f"{where}: neither a bbox nor a segmentation; an annotation has at least one of them")
    try:
        box = rle_to_box(mask) if isinstance(mask, dict) else mask_to_box(to_mask(mask, image_hw))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if box is None:
        raise ValueError(f"{where}: no bbox, and no pixel in its segmentation")
    return tuple(box.tolist())


def annotation_region(
    annotation: Any, image_hw: tuple[int, int], image: str, name: str, where: str = "annotation"
) -> Region:
    """The region of one annotation: its bbox [x, y, width, height], clipped to the picture, its mask, its own id as
    text, or `name` where it has none. ValueError begins with `where` and the id."""
    if not isinstance(annotation, Mapping):
        raise ValueError(f"{where} {name}: {shown(annotation)}; {FORM}")
    number = known_id(annotation.get("id"))
    name = name if number is None else str(number)
    where = f"{where} {name}"
    mask, bbox = annotation.get("segmentation"), annotation.get("bbox")
    mask = None if isinstance(mask, (list, tuple)) and not mask else mask
    try:
        if mask is not None:
            check_mask_record(mask, image_hw)
        if bbox is None or (isinstance(bbox, (list, tuple)) and not bbox):
            box = box_of_mask(mask, image_hw, "bbox")
        else:
            box = tuple(check_boxes(to_xyxy([bbox], "xywh", image_hw), image_hw)[0].tolist())
    except ValueError as error:
        text = str(error).removeprefix("box 0: ").removeprefix("bbox: ")
        raise ValueError(f"{where}: {text}") from error
    return Region(name, image, image_hw, box, mask)
