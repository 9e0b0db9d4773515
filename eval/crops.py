"""The baseline of a model that recognises regions: its own encoders of pictures and names, on each region's crop alone.

The crop is the box, from the pixel in which it begins to the one in which it ends, and goes the way of a whole picture.
Names, text bank and scores are the model's; what it learned about regions takes no part. Masks are scored with those
of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynrefer.data.example import Example
from dynrefer.data.records import RegionResult
from dynrefer.models import options
from dynrefer.models.family import FamilyModel, FamilyProcessor, ImageText
from dynrefer.models.ranking import ranked

from .task import Task

NAMING = frozenset(("categories", "recognition", "detection", "lvis"))  # metrics of names


@dataclass(frozen=True)
class Options(options.Options):
    categories_field = "top_k"

    categories: list[str] | None = None  # names to choose from
    top_k: int = 5  # categories that are reported


@dataclass
class Batch:
    """ids, boxes: one a region; pixels (R, ...): what the encoder reads of each crop."""

    ids: list[str]
    boxes: list[list[float]]
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        return replace(self, pixels=self.pixels.to(device))

    def counts(self) -> dict[str, float]:
        """No targets: nothing is trained."""
        return {}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        """There are no targets to take."""


class Crops(FamilyProcessor):
    """Examples -> crops. pixels: of `ImageText`."""

    def __init__(self, pixels: Any):
        self.pixels = pixels

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample a region."""
        return [
            {"id": region.id, "box": list(region.box), "pixels": self.pixels(crop(example.image, region.box))}
            for region in example.regions
        ]

    def collate(self, samples: Sequence[dict]) -> Batch:
        pixels = torch.stack([sample["pixels"] for sample in samples]) if samples else torch.zeros(0)
        return Batch([sample["id"] for sample in samples], [sample["box"] for sample in samples], pixels)


class CropNamer(FamilyModel):
    """Names crops. model: whose encoders they are; encoders: what it says they are. name: for people."""

    Options = Options
    answers = frozenset({"categories"})
    NAMES = frozenset(("categories", "top_k"))  # options that it takes over from the model's

    def __init__(self, model: FamilyModel, encoders: ImageText):
        self.model, self.config, self.encoders = model, model.config, encoders
        self.processor, self.name = Crops(encoders.pixels), f"{encoders.name} on crops"

    @property
    def device(self) -> torch.device:
        return self.model.device

    def named_parameters(self):
        return self.model.named_parameters()

    def before_eval(self) -> None:
        self.model.before_eval()

    def settings(self, options: Options) -> dict[str, Any]:
        return super().settings(options) | {"encoder": self.name}

    @torch.inference_mode()
    def predict(self, batch: Batch, options: Options) -> list[RegionResult]:
        """One result a region, in the order of batch.ids."""
        if not len(batch):
            return []
        names = list(dict.fromkeys(self.config.categories if options.categories is None else options.categories))
        scores = self.encoders.logits(batch.pixels, names).float().softmax(-1)
        found = ranked(names, scores, most=options.top_k)
        return [
            RegionResult(name, box, categories=own)
            for name, box, own in zip(batch.ids, batch.boxes, found, strict=True)
        ]


def crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The pixels (h, w, 3) that a box touches.

    >>> crop(np.zeros((10, 20, 3)), (2.5, 3, 4.2, 4)).shape
    (1, 3, 3)
    """
    x1, y1 = (int(np.floor(side)) for side in box[:2])
    x2, y2 = (int(np.ceil(side)) for side in box[2:])
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def crop_namer(model: Any, task: Task) -> CropNamer | None:
    """That of a model, None where the task scores no names or the model has no such encoders."""
    encoders = model.image_text() if NAMING & set(task.metrics) else None
    return None if encoders is None else CropNamer(model, encoders)
