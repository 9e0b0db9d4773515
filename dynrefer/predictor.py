"""Images and regions in, structured results out: the one call that the command line, a server or a notebook makes."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynrefer.boxes import check_boxes, to_xyxy
from dynrefer.images import open_image
from dynrefer.masks import mask_to_box, to_mask
from dynrefer.prompts import CONTROL_FORMS, Control, is_one_control, region_controls

if TYPE_CHECKING:
    from dynrefer.data.records import RegionResult


class RegionPredictor:
    """Describes regions of images with a model from `dynrefer.load`.

        predictor = RegionPredictor(model)
        results = predictor("photo.jpg", boxes=[[40, 30, 180, 200]])      # one result a region, in order
        results = predictor([image1, image2], boxes=[[...], [...]])       # a list of such lists, one an image

    max_regions: regions that go through the model together. Images fill such a chunk one after another, so memory is
    the same for one image with 10,000 regions and for 10,000 images with one.
    crop_on_device: copy each image to the model's device and cut the views there, where this is quicker than on the
    CPU. Their values are at most a grey level off, see dynrefer/resize.py.
    """

    def __init__(self, model: Any, max_regions: int = 64, crop_on_device: bool = False):
        if max_regions < 1:
            raise ValueError(f"max_regions: {max_regions}; at least one region must fit into a chunk")
        self.model = model
        self.max_regions = max_regions
        self.crop_on_device = crop_on_device

    def __call__(
        self,
        image: Any,
        boxes: Any = None,
        box_format: str = "xyxy",
        masks: Any = None,
        control: Control | Sequence = None,
        tag_threshold: float | None = None,
        attributes: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        view_strategy: str | None = None,
        generation: Mapping[str, Any] | None = None,
        ids: Any = None,
    ) -> "list[RegionResult] | list[list[RegionResult]]":
        """One result a region, in the order given; for a list of images one such list an image.

        image: path, PIL image or RGB uint8 array (H, W, 3), or a list of them. With a list, `boxes`, `masks` and `ids`
          hold one entry an image; an entry may be None where the other of boxes and masks is given.
        boxes: (N, 4) numbers in `box_format` (one of `dynrefer.boxes.BOX_FORMATS`), counted in the upright picture.
          A box partly outside the image is clipped.
        masks: N of array (H, W), path of a PNG, COCO run lengths or polygons. Masks give the boxes where `boxes` is
          None; where both are given the boxes make the views, and there must be N of each.
        control: words that the caption should build on, "red,car" or ["red", "car"]; None takes the predicted tags, ""
          none, "red,<tags>" both. For words of each region a list with one list of words (or None) a region, and for a
          list of images one such list an image.
        tag_threshold: least probability of a reported tag, the model's own where None; above 1 means no tags.
        attributes, categories: names to score; the model's own lists where None.
        view_strategy: how the views are chosen; the model's own way where None.
        generation: settings of text generation, for instance {"num_beams": 5}.
        ids: N names for the results; "IMAGE:REGION", both counted from 0, where None.

        Raises ValueError that names the image and the box or mask: not finite, inverted, empty or wholly outside the
        image, a mask of another size, unequal counts, an unreadable image. All images are looked at in turn, so the
        regions before a bad one have been predicted by then.
        """
        _check_words(control, attributes, categories)
        several = isinstance(image, (list, tuple))
        images = list(image) if several else [image]
        boxes, masks, ids = (
            _one_per_image(value, name, len(images)) if several else [value]
            for value, name in ((boxes, "boxes"), (masks, "masks"), (ids, "ids"))
        )
        last_index = getattr(self.model.processor, "mask_box_last_index", False)
        results: list[list[RegionResult]] = [[] for _ in images]
        chunk: list[Any] = []  # RegionBatches that go through the model together
        owners: list[int] = []  # for each of their regions, the index of its image
        words: list[Any] = []  # for each of their regions its control, where they have their own
        one_control = is_one_control(control)
        controls = _one_per_image(control, "control", len(images)) if several and not one_control else [control]

        def predict_chunk() -> None:
            batch = chunk[0] if len(chunk) == 1 else type(chunk[0]).concat(chunk)
            predicted = self.model.predict(
                batch.to(self.model.device),
                control=control if one_control else list(words),
                tag_threshold=tag_threshold,
                attributes=attributes,
                categories=categories,
                generation=generation,
            )
            for owner, result in zip(owners, predicted, strict=True):
                results[owner].append(result)
            chunk.clear()
            owners.clear()
            words.clear()

        for index, source in enumerate(images):
            name = f"image {index} ({source})" if isinstance(source, (str, os.PathLike)) else f"image {index}"
            try:
                pixels = open_image(source)
            except ValueError as error:
                raise ValueError(f"image {index}: {error}" if several else str(error)) from error
            try:
                image_boxes, image_masks = check_regions(
                    boxes[index], box_format, masks[index], ids[index], pixels.shape[:2], last_index
                )
                image_words = [] if one_control else region_controls(controls[index], len(image_boxes))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            names = ids[index]
            if names is None:
                names = [f"{index}:{region}" for region in range(len(image_boxes))]
            start = 0
            while start < len(image_boxes):
                stop = min(start + self.max_regions - len(owners), len(image_boxes))
                some_masks = image_masks and [to_mask(mask, pixels.shape[:2]) for mask in image_masks[start:stop]]
                chunk.append(
                    self.model.processor.prepare(
                        pixels,
                        image_boxes[start:stop],
                        some_masks,
                        view_strategy=view_strategy,
                        ids=list(names[start:stop]),
                        **({"crop_on": self.model.device} if self.crop_on_device else {}),
                    )
                )
                owners += [index] * (stop - start)
                words += image_words[start:stop]
                start = stop
                if len(owners) == self.max_regions:
                    predict_chunk()
        if chunk:
            predict_chunk()
        return results if several else results[0]


def _check_words(control: Any, attributes: Any, categories: Any) -> None:
    if control is not None and not isinstance(control, Sequence):
        raise ValueError(f"control {control!r}: {CONTROL_FORMS}")
    for name, words in (("attributes", attributes), ("categories", categories)):
        if isinstance(words, str):
            raise ValueError(f"{name}: {words!r} is one text; give a list of names, for instance [{words!r}]")


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


def check_regions(
    boxes: Any, box_format: str, masks: Any, ids: Any, image_hw: tuple[int, int], last_index: bool = False
) -> tuple[np.ndarray, list | None]:
    """Valid xyxy boxes (N, 4) of one image, and its N masks as given, each of which `to_mask` accepts.

    Arguments as for `RegionPredictor`, for one image of size image_hw; ValueError names the box or mask at fault.
    last_index: a mask's box ends at its last pixel's index (see mask_to_box).

    Masks are decoded one at a time here and again when their chunk's turn comes: N masks of a large image decoded
    at once would not fit into memory.
    """
    if boxes is None and masks is None:
        raise ValueError("no regions; give boxes or masks (an empty list for none)")
    if masks is not None:
        masks = _mask_list(masks)
        mask_boxes = np.zeros((len(masks), 4))
        for index, mask in enumerate(masks):
            try:
                drawn = isinstance(mask, (list, tuple))  # polygons: their corners are the box in any case
                mask_boxes[index] = mask_to_box(to_mask(mask, image_hw), last_index and not drawn)
            except ValueError as error:
                raise ValueError(f"mask {index}: {error}") from error
    valid = mask_boxes if boxes is None else check_boxes(to_xyxy(_on_cpu(boxes), box_format, image_hw), image_hw)
    if masks is not None and len(masks) != len(valid):
        raise ValueError(
            f"{len(valid)} boxes but {len(masks)} masks; give one mask a box, in the same order, or only one kind"
        )
    if ids is not None and (isinstance(ids, str) or len(ids) != len(valid)):
        raise ValueError(f"ids: {ids!r} for {len(valid)} regions; give a list with one name a region")
    return valid, masks


def _mask_list(masks: Any) -> list:
    masks = _on_cpu(masks)
    if (
        isinstance(masks, (str, os.PathLike, Mapping))
        or getattr(masks, "ndim", 3) != 3
        or not hasattr(masks, "__len__")
    ):
        raise ValueError(f"masks: one {type(masks).__name__}; give a list of masks, or an array (N, H, W)")
    return list(masks)


def _on_cpu(value: Any) -> Any:
    """A torch tensor on any device as an array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
