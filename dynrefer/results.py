"""What a model says of the regions of one picture: a list of results that turns into the forms of other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynrefer.data.records import Region, RegionResult

if TYPE_CHECKING:
    from PIL import Image


class Results(list[RegionResult]):
    """The results of one picture, one a region, in the order in which the regions were given.

    regions: what was asked, one a result, with the masks that were given; none for the one result of a question about
    the whole picture, which then stands for it. image: the picture's path or address, None
    where it came otherwise. image_hw: (height, width). timings: where they were asked for, the seconds of "read",
    "prepare" and "model"; what several pictures share is dealt out by their numbers of regions.
    """

    def __init__(
        self,
        results: Iterable[RegionResult],
        regions: Sequence[Region],
        image_hw: tuple[int, int],
        image: str | None = None,
        timings: Mapping[str, float] | None = None,
    ):
        super().__init__(results)
        self.regions, self.image_hw, self.image, self.timings = list(regions), image_hw, image, timings
        if len(self.regions) < len(self):
            self.regions = [Region(one.id, image or "image", image_hw, tuple(one.box)) for one in self]

    def to_json(self, indent: int | None = None) -> str:
        """One object: image, image_hw, regions (one a result, as lines of a prediction file), timings if there are."""
        content: dict[str, Any] = {"image": self.image, "image_hw": list(self.image_hw)}
        content["regions"] = [result.to_dict() for result in self]
        if self.timings is not None:
            content["timings"] = dict(self.timings)
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)

    def to_coco(self, image_id: int | str | None = None, categories: Mapping[str, int] | Sequence[str] = ()) -> list:
        """COCO's list of results, one a region: bbox, segmentation, score, caption, and the region's id as `region_id`.

        image_id: as your COCO file has it; None: the number in the name of a picture of COCO's, else 1. categories:
        names in the order of their ids from 1, or {name: id}; others get the next ids.
        """
        from dynrefer.data.export import coco_document, coco_results

        found = coco_results(coco_document(self.exported(), categories))
        return found if image_id is None else [{**entry, "image_id": image_id} for entry in found]

    def exported(self) -> list:
        """What `dynrefer.data.export` writes of every result, in order."""
        from dynrefer.data.export import exported

        image = self.image or "image"
        return [
            exported(Region(region.id, image, region.image_hw, region.box, region.mask), result)
            for region, result in zip(self.regions, self, strict=True)
        ]

    def to_detections(self, categories: Sequence[str] = ()) -> Any:
        """supervision's Detections: boxes, masks where every region has one, scores, class ids, and in `data` for each
        region its caption, class_name ("" for none) and region_id.

        categories: names whose places are the class ids; without them names are numbered as they come. A class id is -1
        where a region has no category, or one that is not in the list.
        """
        import numpy as np

        from dynrefer.masks import to_mask

        try:
            from supervision import Detections
        except ImportError:
            raise ValueError("supervision is not installed; `pip install supervision` brings its Detections") from None
        shown = self.exported()
        names = [one.category or "" for one in shown]
        known = list(categories) or list(dict.fromkeys(filter(None, names)))
        masks = [one.mask for one in shown]
        whole = bool(shown) and all(mask is not None for mask in masks)
        return Detections(
            xyxy=np.array([one.box for one in shown], np.float32).reshape(-1, 4),
            mask=np.stack([to_mask(mask, self.image_hw) for mask in masks]) if whole else None,
            confidence=np.array([one.score for one in shown], np.float32),
            class_id=np.array([known.index(name) if name in known else -1 for name in names], int),
            data={
                "caption": np.array([result.caption for result in self], dtype=object),
                "class_name": np.array(names, dtype=object),
                "region_id": np.array([result.id for result in self], dtype=object),
            },
        )

    def masked(self) -> list[RegionResult]:
        """Results that have the masks that were given, where the model answers with none."""
        return [with_mask(result, region) for region, result in zip(self.regions, self, strict=True)]

    def draw(self, image: Any = None, **choices: Any) -> Image.Image:
        """The picture with the results on it, see `dynrefer.draw_results`. image: needed where it did not come from a
        file. A mask that was given is drawn where the model answers with none."""
        from dynrefer.draw import draw_results

        if image is None and (self.image is None or not os.path.isfile(self.image)):
            raise ValueError("the picture of these results did not come from a file; give it to draw(image)")
        return draw_results(self.image if image is None else image, self.masked(), **choices)


def with_mask(result: RegionResult, region: Region) -> RegionResult:
    """A result to draw: with the mask that was given, as run lengths, where the model answers with none."""
    given = result.mask is None and isinstance(region.mask, dict)
    return replace(result, mask=region.mask) if given else result
