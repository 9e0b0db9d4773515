"""What a user may set when DynRefer describes regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dynrefer.prompts import CONTROL_FORMS, is_one_control, region_controls

from ..options import FIRST, LOCAL, TextOptions


@dataclass(frozen=True)
class Options(TextOptions):
    """control: see prompts.py; one for all regions, a list with one a region, or for images a list of such lists."""

    categories_field = "num_categories"

    # words that captions build on, as red,car; <tags>: the predicted tags; '': none
    control: str | list | None = field(default=None, metadata=FIRST)
    tag_threshold: float | None = None  # least probability of a tag that is reported and is a control word
    list_tags: float | None = None  # report tags above this probability instead, for a ranking; control words stay
    attributes: list[str] | None = None  # attributes to score
    categories: list[str] | None = None  # categories to choose from
    num_categories: int = 5  # categories that are reported, the likeliest first
    # how the views are chosen, for instance phash
    view_strategy: str | None = field(default=None, metadata={"choices": ("phash", "joint", "task:captions", "random")})
    # device that cuts the views, where it is quicker than the CPU; a grey level off at most
    crop_on: str | None = field(default=None, metadata=LOCAL)

    def __post_init__(self):
        if self.control is not None and not isinstance(self.control, Sequence):
            raise ValueError(f"control {self.control!r}: {CONTROL_FORMS}")
        for name in ("attributes", "categories"):
            if isinstance(words := getattr(self, name), str):
                raise ValueError(f"{name}: {words!r} is one text; give a list of names, for instance [{words!r}]")
        if not isinstance(self.num_categories, int) or self.num_categories < 1:
            raise ValueError(f"num_categories {self.num_categories!r}: expected a whole number of at least 1")

    def for_image(self, number: int, num_images: int) -> Options:
        if is_one_control(self.control):
            return self
        if len(self.control) != num_images:
            raise ValueError(
                f"control: {len(self.control)} entries for {num_images} images; give one entry an image, in their order"
            )
        return replace(self, control=self.control[number])

    def for_regions(self, positions: Sequence[int], num_regions: int) -> Options:
        if is_one_control(self.control):
            return self
        if len(self.control) != num_regions:
            region_controls(self.control, num_regions)  # which says so
        own = [self.control[position] for position in positions]
        return replace(self, control=region_controls(own, len(own)) if own else [])
