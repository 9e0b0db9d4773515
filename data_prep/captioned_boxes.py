"""JSON files in COCO's form with a caption a box: GRiT's and GLaMM's of Visual Genome, MDETR's, GLaMM's and Osprey's of
RefCOCO. The caption stands with the annotation or with the image, where every expression is an "image" of its own."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from dynrefer.boxes import check_image_hw
from dynrefer.data.json_files import read_items
from dynrefer.errors import cut


class Image(NamedTuple):
    """An entry of `images`: file name, (height, width), its caption and dataset ("" where it says none)."""

    name: str
    image_hw: tuple[int, int]
    caption: str
    dataset: str


def read_captioned_boxes(path: str | os.PathLike) -> Iterator[tuple[dict[str, Any], Image]]:
    """(annotation, its image) for every annotation in the file's order; the annotation has id, image_id, bbox (as it
    stands) and caption. Images are held in memory, annotations are not. ValueError names what is not of this form."""
    images: dict[Any, Image] = {}
    for entry in read_items(path, "images.item"):
        try:
            image_hw = check_image_hw((entry["height"], entry["width"]))
            image = Image(
                _text(entry["file_name"]),
                image_hw,
                _text(entry.get("caption", "")),
                _text(entry.get("dataset_name", "")),
            )
            repeated = images.setdefault(entry["id"], image) is not image
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: image {cut(repr(entry))}: expected id, file_name, height and width "
                f"({type(error).__name__}: {error})"
            ) from error
        if repeated:
            raise ValueError(f"{path}: image id {entry['id']!r} stands there twice")
    seen: set = set()
    for annotation in read_items(path, "annotations.item"):
        try:
            image = images[annotation["image_id"]]
            annotation["caption"] = _text(annotation.get("caption", image.caption))
            annotation["bbox"] = annotation["bbox"]
            repeated = annotation["id"] in seen
            seen.add(annotation["id"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: annotation {cut(repr(annotation))}: expected id, image_id (of an image in the file), bbox "
                f"and a caption ({type(error).__name__}: {error})"
            ) from error
        if repeated:
            raise ValueError(f"{path}: annotation id {annotation['id']!r} stands there twice")
        yield annotation, image


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value
