"""Images and regions in, structured results out: the one call that the command line, a server or a notebook makes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynrefer.boxes import check_boxes, plain_array, to_xyxy
from dynrefer.data.example import Example, Prompt
from dynrefer.data.records import Region
from dynrefer.images import open_image
from dynrefer.masks import mask_to_box, mask_to_rle, to_mask
from dynrefer.models.options import Options, make_options
from dynrefer.points import check_points, points_box

if TYPE_CHECKING:
    from dynrefer.data.records import RegionResult


class RegionPredictor:
    """Describes regions of images with a model from `dynrefer.load`, of any family.

        predictor = RegionPredictor(model)
        results = predictor("photo.jpg", boxes=[[40, 30, 180, 200]])      # one result a region, in order
        results = predictor([image1, image2], boxes=[[...], [...]])       # a list of such lists, one an image

    max_regions: regions that go through the model together. Images fill such a chunk one after another, so memory is
    the same for one image with 10,000 regions and for 10,000 images with one; the regions of an image that influence
    each other (a joint family) stay together. crop_on_device: cut views on the model's device, of a family that has
    views, see the option `crop_on`.
    """

    def __init__(self, model: Any, max_regions: int = 64, crop_on_device: bool = False):
        if max_regions < 1:
            raise ValueError(f"max_regions: {max_regions}; at least one region must fit into a chunk")
        self.model = model
        self.max_regions = max_regions
        own = {"crop_on": str(model.device)} if crop_on_device else {}
        self.options = make_options(model.Options, own)

    def __call__(
        self,
        image: Any,
        boxes: Any = None,
        box_format: str = "xyxy",
        masks: Any = None,
        ids: Any = None,
        options: Options | None = None,
        points: Any = None,
        **fields: Any,
    ) -> "list[RegionResult] | list[list[RegionResult]]":
        """One result a region, in the order given; for a list of images one such list an image.

        image: path, PIL image or RGB uint8 array (H, W, 3), or a list of them. With a list, `boxes`, `masks`, `points`
          and `ids` hold one entry an image; an entry may be None where another way to point is given.
        boxes: (N, 4) numbers in `box_format` (one of `dynrefer.boxes.BOX_FORMATS`), counted in the upright picture.
          A box partly outside the image is clipped.
        masks: N of array (H, W), path of a PNG, COCO run lengths or polygons. Masks give the boxes where `boxes` is
          None; where both are given there must be N of each.
        points: N of [x, y] or of [[x, y, 1], [x, y, 0], ...], 1 inside and 0 outside the object, of a family that takes
          them (`model.prompts`); alone, or with a box each.
        ids: N names for the results; "IMAGE:REGION", both counted from 0, where None.
        options, fields: the model's options (`model.Options`), as an object, one by one, or both; for DynRefer for
          instance num_beams=5, categories=["cup", "plate"], view_strategy="phash", and control, the words that captions
          build on: "red,car" or ["red", "car"]; None takes the predicted tags, "" none, "red,<tags>" both, and a list
          with one list of words (or None) a region gives each its own.

        Raises ValueError for an option that the model does not have, and one that names the image and the box or mask:
        not finite, inverted, empty or wholly outside the image, a mask of another size, unequal counts, an unreadable
        image. All images are looked at in turn, so the regions before a bad one have been predicted by then.
        """
        chosen = make_options(self.model.Options, fields, self.options if options is None else options)
        self.model.check_options(chosen)
        check_prompts(self.model, points)
        several = isinstance(image, (list, tuple))
        images = list(image) if several else [image]
        boxes, masks, points, ids = (
            _one_per_image(value, name, len(images)) if several else [value]
            for value, name in (
                (boxes, "boxes"),
                (masks, "masks"),
                (points, "points"),
                (ids, "ids"),
            )
        )

        def asked() -> Iterator[tuple[Example, Options]]:
            for index, source in enumerate(images):
                own = chosen.for_image(index, len(images)) if several else chosen
                name = f"image {index} ({source})" if isinstance(source, (str, os.PathLike)) else f"image {index}"
                try:
                    pixels = open_image(source)
                except ValueError as error:
                    raise ValueError(f"image {index}: {error}" if several else str(error)) from error
                try:
                    regions, prompts = pointed_regions(
                        pixels.shape[:2], boxes[index], box_format, masks[index], points[index], ids[index], index
                    )
                    own.for_regions(range(len(regions)), len(regions))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                yield Example.of_picture(pixels, regions, name, prompts), own

        results = self.describe(asked())
        return results if several else results[0]

    def describe(self, examples: "Iterable[tuple[Example, Options]]") -> "list[list[RegionResult]]":
        """One list of results an example, of examples with their options."""
        results: list[list[RegionResult]] = []
        samples: list[dict] = []  # of the chunk that is being filled
        owners: list[int] = []  # for each of its regions, the number of its example
        options = self.options

        def predict_chunk() -> None:
            batch = self.model.processor.collate(samples).to(self.model.device)
            for owner, result in zip(owners, self.model.predict(batch, options), strict=True):
                results[owner].append(result)
            samples.clear()
            owners.clear()

        for number, (example, own) in enumerate(examples):
            results.append([])
            options = own  # what differs from example to example is in the samples
            start = 0
            while start < len(example):
                if owners and len(owners) + (len(example) if self.model.joint else 1) > self.max_regions:
                    predict_chunk()
                stop = len(example) if self.model.joint else min(start + self.max_regions - len(owners), len(example))
                positions = range(start, stop)
                part, of_part = example.part(positions), own.for_regions(positions, len(example))
                samples += self.model.processor.samples(part, of_part, part.generators(0, 0), train=False)
                owners += [number] * len(positions)
                start = stop
        if owners:
            predict_chunk()
        return results


def _one_per_image(value: Any, name: str, num_images: int) -> list:
    """`value` as a list with one entry an image; None stands for none anywhere."""
    if value is None:
        return [None] * num_images
    if isinstance(value, (str, dict)) or not hasattr(value, "__len__"):
        raise ValueError(f"{name}: a {type(value).__name__} for a list of images; give a list with one entry an image")
    if len(value) != num_images:
        raise ValueError(
            f"{name}: {len(value)} entries for {num_images} images; give one entry an image, in their order"
        )
    return list(value)


def check_prompts(model: Any, points: Any) -> None:
    """ValueError for points where a model's family does not take them. model: it, or its class."""
    if points is not None and "points" not in model.prompts:
        raise ValueError("points: this model's family takes none; give boxes or masks")


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
        raise ValueError(f"{len(regions)} boxes but points of {len(found)} regions; give one entry a box, or no boxes")
    rows = [None] * len(regions) if found is None else found
    return regions, [Prompt(boxed, row, masks is not None) for row in rows]


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
    if ids is not None and (isinstance(ids, str) or len(ids) != len(valid)):
        raise ValueError(f"ids: {ids!r} for {len(valid)} regions; give a list with one name a region")
    names = [f"{image}:{region}" for region in range(len(valid))] if ids is None else list(ids)
    return [
        Region(name, str(image), image_hw, tuple(box), mask)
        for name, box, mask in zip(names, valid.tolist(), records or [None] * len(valid), strict=True)
    ]


def _mask_list(masks: Any) -> list:
    masks = plain_array(masks)
    if (
        isinstance(masks, (str, os.PathLike, Mapping))
        or getattr(masks, "ndim", 3) != 3
        or not hasattr(masks, "__len__")
    ):
        raise ValueError(f"masks: one {type(masks).__name__}; give a list of masks, or an array (N, H, W)")
    return list(masks)
