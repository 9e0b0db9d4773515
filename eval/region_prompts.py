"""How models of others are told which region is meant: a row of CAPTIONERS each.

A new one is a row, with a function where it writes boxes in a way of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Protocol

import numpy as np
import torch
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index

from dynrefer.data.records import Region

from .overlay import overlay
from .task import CATEGORY_QUESTION, Task

PLACE = "{region}"  # in a prompt: where the text that stands for the region goes


class Prompts(Protocol):
    """What the functions of a row may ask: Transformers' processor, and the (height, width) it resizes images to."""

    processor: Any

    def resized_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Convention:
    """How a model is told which region is meant.

    description: for scores.json. model_types: of config.json, by which the row is chosen. words: (box,
    image_hw, prompts) -> the text that stands for the region in a prompt; boxes are xyxy pixels. show: (image, region,
    task) -> the image that the model sees. ask: task -> prompt, with {region} where `words` go. own_format: whether
    only a model of these types understands it.
    """

    description: str
    model_types: tuple[str, ...] = ()
    words: Callable[[Sequence[float], tuple[int, int], Prompts], str] | None = None
    show: Callable[[np.ndarray, Region, Task], np.ndarray] | None = None
    ask: Callable[[Task], str] = lambda task: task.about(PLACE)
    own_format: bool = False


def thousandths(box: Sequence[float], image_hw: tuple[int, int]) -> list[int]:
    """Coordinates in 1/1000 of the image's width and height, 0 to 1000: [x1, y1, x2, y2]."""
    height, width = image_hw
    return [min(max(round(1000 * c / side), 0), 1000) for c, side in zip(box, (width, height) * 2, strict=True)]


def florence2(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    quantize = prompts.processor.post_processor.quantize
    bins = quantize(torch.tensor([box], dtype=torch.float64), size=image_hw[::-1])[0].tolist()
    return "".join(f"<loc_{number}>" for number in bins)


def qwen2_vl(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    x1, y1, x2, y2 = thousandths(box, image_hw)
    return f"<|object_ref_start|>the region<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def qwen2_5_vl(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    resized = prompts.resized_hw(image_hw)
    scales = [new / old for new, old in zip(resized, image_hw, strict=True)][::-1] * 2
    last = [side - 1 for side in resized[::-1]] * 2
    pixels = [min(max(round(c * scale), 0), end) for c, scale, end in zip(box, scales, last, strict=True)]
    return f'the region {{"bbox_2d": {pixels}}}'


def qwen3_vl(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    return f'the region {{"bbox_2d": {thousandths(box, image_hw)}}}'


def internvl(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    return f"the <ref>region</ref><box>[{thousandths(box, image_hw)}]</box>"


def kosmos2(box: Sequence[float], image_hw: tuple[int, int], prompts: Prompts) -> str:
    height, width = image_hw
    side = round(prompts.processor.num_patch_index_tokens**0.5)
    corners = coordinate_to_patch_index([c / s for c, s in zip(box, (width, height) * 2, strict=True)], side)
    return "<object>" + "".join(f"<patch_index_{index:04d}>" for index in corners) + "</object>"


def crop(image: np.ndarray, region: Region, task: Task) -> np.ndarray:
    """The pixels that the box touches, at least one."""
    x1, y1 = (floor(c) for c in region.box[:2])
    x2, y2 = (ceil(c) for c in region.box[2:])
    return image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]


CAPTIONERS = {
    "florence2": Convention(
        "<loc_N> tokens, 1,000 bins of the image's width and height",
        model_types=("florence2",),
        words=florence2,
        ask=lambda task: f"<REGION_TO_{'CATEGORY' if task.question == CATEGORY_QUESTION else 'DESCRIPTION'}>{PLACE}",
        own_format=True,
    ),
    "qwen2-vl": Convention(
        "<|box_start|>(x1,y1),(x2,y2)<|box_end|> in 1/1000 of the image's width and height",
        model_types=("qwen2_vl",),
        words=qwen2_vl,
    ),
    "qwen2.5-vl": Convention(
        '{"bbox_2d": [x1, y1, x2, y2]} in pixels of the image as the processor resizes it',
        model_types=("qwen2_5_vl",),
        words=qwen2_5_vl,
    ),
    "qwen3-vl": Convention(
        '{"bbox_2d": [x1, y1, x2, y2]} in 1/1000 of the image\'s width and height',
        model_types=("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        words=qwen3_vl,
    ),
    "internvl": Convention(
        "<ref>region</ref><box>[[x1, y1, x2, y2]]</box> in 1/1000 of the image's width and height",
        model_types=("internvl",),
        words=internvl,
    ),
    "kosmos-2": Convention(
        "<patch_index_N> of the box's corners in a grid of 32 x 32",
        model_types=("kosmos-2",),
        words=kosmos2,
        ask=lambda task: f"<grounding><phrase> It</phrase>{PLACE} is",
        own_format=True,
    ),
    "overlay": Convention(
        "a red line around the region on the image",
        show=lambda image, region, task: overlay(image, region, width=task.line_width, prompt=task.prompt),
        ask=lambda task: task.question,
    ),
    "crop": Convention(
        "the image is cut to the region's box",
        show=crop,
        ask=lambda task: task.about("this image"),
    ),
}
