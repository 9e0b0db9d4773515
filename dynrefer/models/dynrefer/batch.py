"""RegionBatch: what the loader hands to a model. One row a region, whatever image it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class RegionBatch:
    """R regions, ready for a model. T counts text tokens (padded), each with a 0/1 mask of the same shape.

    ids                R names; boxes (R, 4) float, the described boxes in image pixels
    controls           R control words of users, see prompts.py: None for the predicted tags, or a list of words
    views              (R, V, 3, S, S) uint8; the model scales and normalizes them on its own device
    scales             (R, V) t of every view; view_boxes (R, V, 4) image pixels; region_boxes (R, V, 4) view pixels
    prompt_ids         (R, T) control words (None until known: inference with predicted tags), prompt_mask
    caption_ids        (R, T) target captions, caption_mask: 0 also where a region has no caption
    text_ids           (R, T) the same captions for the text encoder, text_mask
    tags               (R, K) 0/1 float; tags_known (R,) bool: regions whose tags are annotated
    attributes         (R, A) int8: 1, -1, or 0 for unknown; categories (R,) long, -1 for unknown
    step_texts         (N, T) text_ids of all regions with a caption of the whole step (None: it is this batch alone);
                       text_rows (R,): the row of each region that has one
    shows              R of V keys, equal where views are: such views are encoded once (None: not known)
    """

    ids: list[str]
    controls: list[list[str] | None]
    boxes: Tensor
    views: Tensor
    scales: Tensor
    view_boxes: Tensor
    region_boxes: Tensor
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None
    caption_ids: Tensor | None = None
    caption_mask: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    tags: Tensor | None = None
    tags_known: Tensor | None = None
    attributes: Tensor | None = None
    categories: Tensor | None = None
    step_texts: Tensor | None = None
    text_rows: Tensor | None = None
    shows: list[tuple] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> RegionBatch:
        """The same batch with its tensors on a device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def alike(self) -> list[int]:
        """Of each region the first that has the same views, box in them and control words: one answer is both's."""
        if self.shows is None:
            return list(range(len(self)))
        first: dict[tuple, int] = {}
        rows = zip(self.shows, self.region_boxes.tolist(), self.controls, strict=True)
        return [first.setdefault((shown, repr(boxes), repr(words)), r) for r, (shown, boxes, words) in enumerate(rows)]

    def part(self, rows: Sequence[int]) -> RegionBatch:
        """Some of the regions, as for inference."""
        picked = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                picked[name] = value[torch.as_tensor(rows, dtype=torch.long, device=value.device)]
            elif value is not None:
                picked[name] = [value[row] for row in rows]
        return replace(self, **picked)

    def counts(self) -> dict[str, float]:
        """The denominator of every task's loss: target tokens for captions, annotated regions for the others."""
        counts: dict[str, float] = {"view_text": len(self)}
        if self.caption_mask is not None:
            captioned = self.caption_mask.any(-1).sum().item()
            counts |= {"captions": self.caption_mask.sum().item(), "region_text": captioned}
        if self.tags_known is not None:
            counts["tags"] = self.tags_known.sum().item()
        if self.attributes is not None:
            counts["attributes"] = (self.attributes != 0).any(-1).sum().item()
        if self.categories is not None:
            counts["categories"] = (self.categories >= 0).sum().item()
        return {task: float(count) for task, count in counts.items()}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        """Takes the targets of some annotations from some of the regions: "captions" (and with them region_text),
        "tags", "attributes", "categories"; it has no others. Control words stay as they are."""
        unknown = {"captions": 0, "tags": False, "attributes": 0, "categories": -1}
        names = {"captions": "caption_mask", "tags": "tags_known"}
        for task in tasks:
            target = getattr(self, names.get(task, task), None)
            if target is not None:
                target[rows] = unknown[task]
