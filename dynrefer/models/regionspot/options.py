"""What a user may set when RegionSpot recognises regions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynrefer.errors import shown

from .. import options


@dataclass(frozen=True)
class Options(options.Options):
    categories_field = "top_k"

    categories: list[str] | None = field(default=None, metadata=options.FIRST)  # names to choose from
    top_k: int = 5  # categories that are reported, the likeliest first
    scores: Literal["softmax", "sigmoid"] = (
        "softmax"  # softmax: shares of the names given; sigmoid: each name by itself
    )
    unknown: float | None = None  # a region whose best score is below it has no category; the list stays
    independent: bool = False  # each region by itself; otherwise those of a picture see each other, as released
    mask_prompts: bool = True  # masks that a user gives are shown to SAM too; otherwise only their boxes are
    with_masks: bool = True  # report SAM's masks
    embedding: bool = False  # report each region's vector, of length 1, which names are compared with
    attention: bool = False  # report what each region's token looks at, over CLIP's grid

    def __post_init__(self):
        if isinstance(self.categories, str):
            raise ValueError(f"categories: {self.categories!r} is one text; give a list of names")
        for name in self.categories or ():
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"categories: {shown(name)} among them; expected names, texts that are not empty")
        if self.categories is not None and not len(self.categories):
            raise ValueError("categories: no names; give at least one, or leave it out")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 1:
            raise ValueError(f"top_k {self.top_k!r}: expected a number of categories, at least 1")
        if self.unknown is not None and not (isinstance(self.unknown, int | float) and 0 <= self.unknown <= 1):
            raise ValueError(f"unknown {self.unknown!r}: expected a probability, from 0 to 1")
