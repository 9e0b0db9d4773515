"""Image and language models that Omni-RGPT is built on: what differs between their kinds, and nothing else.

A frame of a clip is a picture to them, encoded by itself. All kinds have `get_image_features`, which gives the tokens
of each picture after the projector, and read them by `mm_encoder_outputs`; marks are added in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from dynrefer.errors import suggestion


@dataclass(frozen=True)
class BaseKind:
    """One kind of base.

    token: the text that stands for a picture's tokens; before, after: what stands around it. any_shape: a picture keeps
    its shape and has as many tokens as it needs; otherwise it is squashed to a square.
    """

    token: str = "<image>"
    before: str = ""
    after: str = ""
    any_shape: bool = False

    @property
    def special(self) -> list[str]:
        """Tokens that a tokenizer needs for it."""
        return [token for token in (self.before, self.token, self.after) if token]

    @staticmethod
    def native_size(config: PreTrainedConfig) -> int:
        """The side of the pictures that its vision encoder was trained on."""
        size = config.vision_config.image_size
        return size[0] if isinstance(size, list | tuple) else size


QWEN = BaseKind("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", any_shape=True)
KINDS = {
    "llava": BaseKind(),
    "llava_onevision": BaseKind(),
    "internvl": BaseKind("<IMG_CONTEXT>", "<img>", "</img>"),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
}


def base_kind(config: PreTrainedConfig | None) -> BaseKind:
    """ValueError for an architecture that is not in KINDS."""
    name = getattr(config, "model_type", None)
    if name not in KINDS:
        raise ValueError(
            f"base model of type {name!r}: expected one of {', '.join(KINDS)}.{suggestion(str(name), KINDS)}"
        )
    return KINDS[name]


PROJECTORS = ("multi_modal_projector.", "merger", "image_newline")  # in names of tensors


def part_of(name: str) -> str:
    """Of a tensor of a base: "language", "projector" or "vision".

    >>> part_of("model.language_model.norm.weight"), part_of("model.visual.merger.norm.weight")
    ('language', 'projector')
    """
    if "language_model." in name or name.startswith("lm_head."):
        return "language"
    return "projector" if any(part in name for part in PROJECTORS) else "vision"


# ------------------------------------------------------------------------------------------------ pictures


@dataclass
class ReadFrames:
    """F frames as a base reads them. pixels: its tensors by name; grids: F rows and columns of tokens; tokens: how many
    each has, which may be more than its grid."""

    pixels: dict[str, Tensor]
    grids: list[tuple[int, int]]
    tokens: list[int]


class FrameReader:
    """Resizes frames and their masks alike, and makes what the base's vision encoder reads.

    config: of an Omni-RGPT model.
    """

    def __init__(self, config):
        self.config, self.kind = config, base_kind(config.base_config)

    def size(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that pictures of such become. ValueError for a shape that the base refuses."""
        if not self.kind.any_shape:
            return self.config.frame_size, self.config.frame_size
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        vision, (least, most) = self.config.base_config.vision_config, self.config.frame_pixels
        try:
            return smart_resize(*image_hw, vision.patch_size * vision.spatial_merge_size, least, most)
        except ValueError as error:
            raise ValueError(f"picture of {image_hw} (height, width): {error}; crop it") from error

    def read(self, frames: Sequence[np.ndarray]) -> ReadFrames:
        """ReadFrames (h, w, 3) uint8 that have been resized, all of one size."""
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.image_mean, self.config.image_std))
        pixels = (pixels - mean) / std
        if not self.kind.any_shape:
            grid, tokens = tuple(self.config.frame_grid), self.config.frame_tokens
            return ReadFrames({"pixel_values": pixels}, [grid] * len(frames), [tokens] * len(frames))
        vision = self.config.base_config.vision_config
        merge = vision.spatial_merge_size
        patches, grid = patchify(pixels, vision.patch_size, merge, vision.temporal_patch_size)
        inner = grid[0] // merge, grid[1] // merge
        sizes = torch.tensor([[1, *grid]] * len(frames))
        tokens = [inner[0] * inner[1]] * len(frames)
        return ReadFrames({"pixel_values": patches, "image_grid_thw": sizes}, [inner] * len(frames), tokens)


def patchify(pixels: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, tuple[int, int]]:
    """pixels (F, 3, H, W) -> patches as Qwen-VL reads them, (F*h*w, 3*frames*patch*patch), and their grid (h, w).

    Patches that are merged stand together; a picture is repeated where its encoder takes several frames at once.
    """
    count, channels, height, width = pixels.shape
    grid = height // patch, width // patch
    cells = pixels.reshape(count, channels, grid[0] // merge, merge, patch, grid[1] // merge, merge, patch)
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (F, rows, columns, merge, merge, 3, patch, patch)
    cells = cells.unsqueeze(6).expand(*cells.shape[:6], frames, patch, patch)
    return cells.reshape(count * grid[0] * grid[1], -1), grid


def feature_arguments(config: PreTrainedConfig, pixels: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a base's `get_image_features` is called with."""
    if config.model_type != "llava_onevision":
        return dict(pixels)
    # as pictures of a series, which it does not cut into tiles
    frames = pixels["pixel_values"]
    sizes = torch.tensor([frames.shape[-2:]] * len(frames), device=frames.device)
    return {**pixels, "image_sizes": sizes, "batch_num_images": [max(2, len(frames))]}


def measure(config, base) -> None:
    """Notes in an Omni-RGPT config what a frame becomes in its base, where all are of one size."""
    if base_kind(config.base_config).any_shape or config.frame_grid is not None:
        return
    parameter = next(base.parameters())
    blank = torch.zeros(1, 3, config.frame_size, config.frame_size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        arguments = feature_arguments(config.base_config, {"pixel_values": blank})
        tokens = len(base.base_model.get_image_features(**arguments, return_dict=True).pooler_output[0])
    side = int(tokens**0.5)
    config.frame_grid, config.frame_tokens = [side, side], tokens


def picture_settings(config):
    """transformers' own image processor that takes pictures as an Omni-RGPT model's base has been shown them."""
    normalization = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    if base_kind(config.base_config).any_shape:
        from transformers import Qwen2VLImageProcessor

        vision, (least, most) = config.base_config.vision_config, config.frame_pixels
        sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
        sizes |= {"merge_size": vision.spatial_merge_size, "size": {"shortest_edge": least, "longest_edge": most}}
        return Qwen2VLImageProcessor(**sizes, **normalization)
    from transformers import CLIPImageProcessor

    side = {"height": config.frame_size, "width": config.frame_size}
    return CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, **normalization)
