"""What the page sends -> checked pictures, regions and options -> results. Whatever is wrong is a ValueError of a line.

A picture or clip is a file that the browser has uploaded; a path from elsewhere is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.data.example import Prompt
from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.masks import to_mask
from dynrefer.models.options import Options
from dynrefer.predictor import RegionPredictor
from dynrefer.regions import pointed_regions
from dynrefer.results import Results
from dynrefer.serve.client_options import client_options
from dynrefer.serve.settings import Refusal

from .opened import LIMITS, Opened


@dataclass(frozen=True)
class Answer:
    """What one model said with some options."""

    name: str
    options: Options
    results: Results


class Asker:
    """A model, one visitor at a time. options: those that the page starts with."""

    def __init__(self, model: Any, name: str, options: Options):
        self.model, self.name, self.options = model, name, options
        self.predictor = RegionPredictor(model, batch_size="auto")
        self.turn = threading.Lock()

    @property
    def clips(self) -> bool:
        """Whether the model looks at clips."""
        return self.model.clips

    def __call__(
        self, opened: Opened, regions: Sequence[Region], prompts: Sequence[Prompt], given: Mapping[str, Any]
    ) -> Answer:
        """given: what a visitor has set, by name."""
        try:
            options = client_options(given, self.options, LIMITS, "Options")
        except Refusal as error:
            raise ValueError(str(error)) from None
        self.model.check_options(options)
        own = options.for_regions(range(len(regions)), len(regions))
        example = opened.example(regions, prompts)
        if not self.model.processor.results(example, options):
            raise ValueError("no region; draw a box around an object, paint over it, or type a box's four numbers")
        with self.turn:
            (found,) = self.predictor.describe([(example, own)])
        return Answer(self.name, options, Results(found, regions, opened.image_hw, opened.name))


def read_regions(records: Any, image_hw: tuple[int, int]) -> tuple[list[Region], list[Prompt]]:
    """Checked regions of the page's records, named by their numbers, and how a visitor pointed at each. ValueError
    names the region at fault."""
    if not isinstance(records, list):
        raise ValueError(f"regions {shown(records)}: expected a list; open the picture again")
    if len(records) > LIMITS.max_regions:
        raise ValueError(f"{len(records):,} regions; at most {LIMITS.max_regions:,} at once, remove some")
    regions: list[Region] = []
    prompts: list[Prompt] = []
    for number, record in enumerate(records):
        try:
            box, mask = (record.get("box"), record.get("mask")) if isinstance(record, dict) else (None, None)
            if mask is None and not (isinstance(box, list) and len(box) == 4):
                raise ValueError(f"{shown(record)}; expected a box of four numbers, or a mask")
            masks = None if mask is None else [enlarged(mask, image_hw)]
            found = pointed_regions(image_hw, None if box is None else [box], "xyxy", masks, ids=[str(number)])
        except (ValueError, TypeError) as error:
            text = str(error).removeprefix("box 0: ").removeprefix("mask 0: ")
            raise ValueError(f"region {number}: {text}") from None
        regions += found[0]
        prompts += found[1]
    return regions, prompts


def enlarged(mask: Any, image_hw: tuple[int, int]) -> np.ndarray:
    """The mask in its picture's size, (H, W) bool: the page paints large pictures at a smaller one."""
    size = mask.get("size") if isinstance(mask, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ValueError("mask: expected run lengths with a size of two whole numbers")
    if not all(0 < side <= most for side, most in zip(size, image_hw, strict=True)):
        raise ValueError(f"mask of size {size}: larger than the picture, {list(image_hw)}")
    found = to_mask(mask, tuple(size))
    return np.asarray(Image.fromarray(found).resize(image_hw[::-1], Image.Resampling.NEAREST))
