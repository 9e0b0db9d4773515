"""What a user points at in one picture -> checked regions: boxes, masks, points, annotations, detections of others."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynrefer.boxes import check_boxes, plain_array, to_xyxy
from dynrefer.data.coco import annotation_region
from dynrefer.data.example import Prompt
from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.masks import mask_to_box, mask_to_rle, to_mask
from dynrefer.points import check_points, points_box, scribble_points

NAMED = ("image", "all", "alpha")
NEEDS_SAM = "RegionPredictor(model, sam=FOLDER_OR_HUB_ID), a SAM of Transformers"
REGION_FORMS = 'expected "image", "all", "alpha", supervision\'s Detections, or a list of COCO annotations'


@dataclass(frozen=True)
class Asked:
    """What is asked of one picture, as a user gives it; `RegionPredictor` says what each may be."""

    boxes: Any = None
    box_format: str = "xyxy"
    masks: Any = None
    points: Any = None
    scribbles: Any = None
    ids: Any = None
    regions: Any = None

    def __post_init__(self):
        others = [name for name in ("boxes", "masks", "points", "scribbles") if getattr(self, name) is not None]
        if self.regions is not None and others:
            raise ValueError(f"regions and {others[0]}: give one of them")
        if self.points is not None and self.scribbles is not None:
            raise ValueError("points and scribbles: give one of them")

    def kind(self) -> str:
        """Of `regions`: "" where not given, one of NAMED, "annotations" or "detections"; ValueError otherwise."""
        given = self.regions
        if given is None:
            return ""
        if isinstance(given, str):
            if given not in NAMED:
                raise ValueError(f"regions {given!r}; {REGION_FORMS}")
            return given
        if hasattr(given, "xyxy") and hasattr(given, "mask"):
            return "detections"
        if isinstance(given, Sequence) and all(isinstance(entry, Mapping) for entry in given):
            return "annotations"
        raise ValueError(f"regions {shown(given)}; {REGION_FORMS}")


def check_prompts(takes_points: bool, sam: Any, points: Any = None, scribbles: Any = None) -> None:
    """ValueError for points or scribbles where neither the model's family takes them nor a SAM makes masks of them."""
    what = "points" if points is not None else "scribbles"
    if not takes_points and sam is None and not points is scribbles is None:
        raise ValueError(f"{what}: this model's family takes none; give boxes or masks, or {NEEDS_SAM}, for masks")


def asked_regions(
    asked: Asked,
    pixels: np.ndarray,
    image: int = 0,
    *,
    alpha: np.ndarray | None = None,
    sam: Any = None,
    takes_points: bool = False,
) -> tuple[list[Region], list[Prompt]]:
    """Checked regions of the picture of this number, and what the user pointed at each with.

    pixels: (H, W, 3) uint8; alpha: the mask (H, W) of its alpha channel, where that varies; sam: a
    `dynrefer.segment.Segmenter`; takes_points: whether the family looks at points itself, so that no SAM is asked.
    ValueError names the region at fault, and the SAM that would be needed.
    """
    image_hw, kind = pixels.shape[:2], asked.kind()
    if kind == "annotations":
        regions = [
            annotation_region(entry, image_hw, str(image), f"{image}:{number}")
            for number, entry in enumerate(asked.regions)
        ]
        if asked.ids is not None:
            names = _names(asked.ids, len(regions))
            regions = [replace(region, id=name) for region, name in zip(regions, names, strict=True)]
        if len({region.id for region in regions}) < len(regions):
            name = Counter(region.id for region in regions).most_common(1)[0][0]
            raise ValueError(f"annotation id {name!r} stands in the list twice; ids are unique")
        return regions, [Prompt(True, None, region.mask is not None) for region in regions]
    boxes, masks, points, box_format = asked.boxes, asked.masks, asked.points, asked.box_format
    if kind == "detections":
        boxes, masks, box_format = asked.regions.xyxy, _detected_masks(asked.regions), "xyxy"
    elif kind == "image":
        boxes, box_format = [[0, 0, image_hw[1], image_hw[0]]], "xyxy"
    elif kind == "alpha":
        if alpha is None:
            raise ValueError(
                'regions "alpha", but the picture has no alpha channel, or one that is the same everywhere'
            )
        masks = [alpha]
    elif kind == "all":
        if sam is None:
            raise ValueError(f'regions "all": {NEEDS_SAM}, and its grid of points finds them')
        found = sam.propose(pixels)
        boxes, masks, box_format = found["boxes"], found["masks"], "xyxy"
    if asked.scribbles is not None:
        points = scribble_points(asked.scribbles, image_hw)
    if points is not None and not takes_points:
        check_prompts(takes_points, sam, asked.points, asked.scribbles)
        if masks is not None:
            raise ValueError("points and masks: give one of them; points may have a box each")
        rows = check_points(points, image_hw)
        near = None if boxes is None else check_boxes(to_xyxy(boxes, box_format, image_hw), image_hw)
        if near is not None and len(near) != len(rows):
            raise ValueError(_unequal(len(near), len(rows)))
        masks = sam.masks(pixels, rows, near)
        boxes = points = None
    return pointed_regions(image_hw, boxes, box_format, masks, points, asked.ids, image)


def _detected_masks(detections: Any) -> list | None:
    """Those of supervision's Detections: an array (N, H, W), or packed ones that are unpacked one by one."""
    masks = detections.mask
    if masks is None or isinstance(masks, np.ndarray):
        return masks
    return [mask_to_rle(np.asarray(masks[number], bool)) for number in range(len(detections.xyxy))]


def pointed_regions(
    image_hw: tuple[int, int],
    boxes: Any = None,
    box_format: str = "xyxy",
    masks: Any = None,
    points: Any = None,
    ids: Any = None,
    image: int = 0,
) -> tuple[list[Region], list[Prompt]]:
    """Regions as `regions_of` gives them, and what a user pointed at each with. Where that is points only, the region's
    box is that of the points inside the object."""
    found = None if points is None else check_points(points, image_hw)
    if found is not None and masks is not None:
        raise ValueError("points and masks: give one of them; points may have a box each")
    boxed = boxes is not None or masks is not None
    if found is not None and not boxed:
        boxes, box_format = [points_box(rows, image_hw) for rows in found], "xyxy"
    regions = regions_of(image_hw, boxes, box_format, masks, ids, image)
    if found is not None and len(found) != len(regions):
        raise ValueError(_unequal(len(regions), len(found)))
    rows = [None] * len(regions) if found is None else found
    return regions, [Prompt(boxed, row, masks is not None) for row in rows]


def _unequal(boxes: int, points: int) -> str:
    return f"{boxes} boxes but points of {points} regions; give one entry a box, or no boxes"


def regions_of(
    image_hw: tuple[int, int], boxes: Any, box_format: str = "xyxy", masks: Any = None, ids: Any = None, image: int = 0
) -> list[Region]:
    """Checked regions of one image of this size, whose number is `image`.

    Arguments as for `RegionPredictor`, for one image; ValueError names the box or mask at fault. Masks are decoded one
    at a time and kept as run lengths or polygons: N masks of a large image would not fit into memory.
    """
    if boxes is None and masks is None:
        raise ValueError("no regions; give boxes or masks, or points to a family with such (an empty list for none)")
    records: list[dict | list] | None = None
    if masks is not None:
        records, masks = [], _mask_list(masks)
        mask_boxes = np.zeros((len(masks), 4))
        for index, mask in enumerate(masks):
            try:
                decoded = to_mask(mask, image_hw)
                mask_boxes[index] = mask_to_box(decoded)
                # polygons stay: their corners are the box in any case
                records.append(mask if isinstance(mask, (list, tuple)) else mask_to_rle(decoded))
            except ValueError as error:
                raise ValueError(f"mask {index}: {error}") from error
    valid = mask_boxes if boxes is None else check_boxes(to_xyxy(boxes, box_format, image_hw), image_hw)
    if records is not None and len(records) != len(valid):
        raise ValueError(
            f"{len(valid)} boxes but {len(records)} masks; give one mask a box, in the same order, or only one kind"
        )
    names = [f"{image}:{region}" for region in range(len(valid))] if ids is None else _names(ids, len(valid))
    return [
        Region(name, str(image), image_hw, tuple(box), mask)
        for name, box, mask in zip(names, valid.tolist(), records or [None] * len(valid), strict=True)
    ]


def _names(ids: Any, number: int) -> list:
    if isinstance(ids, str) or len(ids) != number:
        raise ValueError(f"ids: {ids!r} for {number} regions; give a list with one name a region")
    return list(ids)


def _mask_list(masks: Any) -> list:
    masks = plain_array(masks)
    if (
        isinstance(masks, (str, os.PathLike, Mapping, bytes, bytearray))
        or getattr(masks, "ndim", 3) != 3
        or not hasattr(masks, "__len__")
    ):
        raise ValueError(f"masks: one {type(masks).__name__}; give a list of masks, or an array (N, H, W)")
    return list(masks)
