"""SAM, frozen: a picture and where to look in it -> the position-aware token and the mask of every region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

MEAN = (123.675, 116.28, 103.53)  # of pixels in 0..255
STD = (58.395, 57.12, 57.375)
NORM_EPS = 1e-5  # of the two-way transformer in SAM's own code; transformers gives SAM's it 1e-6
TOKENS = ("prompt", "transformer", "mlp")
MASKS_AT_ONCE = 16  # that are brought to the image's size together


@dataclass(frozen=True)
class Kind:
    """slot: of the mask token among the output tokens. letterbox: whether a picture keeps its shape and is padded to a
    square (SAM), or is squashed to one (SAM 2)."""

    slot: int
    letterbox: bool


KINDS = {"sam": Kind(1, True), "sam_hq": Kind(1, True), "sam2": Kind(2, False)}


def check_kind(config: PreTrainedConfig) -> Kind:
    if config.model_type not in KINDS:
        raise ValueError(
            f"sam_config: model_type {config.model_type!r} gives no mask token; expected one of {', '.join(KINDS)}"
        )
    return KINDS[config.model_type]


@dataclass
class Prompts:
    """Where to look in one picture, in pixels of SAM's input; R regions that have the same kinds of prompt.

    boxes (R, 4), points (R, K, 2) with labels (R, K): 1 inside the object, 0 outside; masks (R, 1, h, w) logits, at
    `Sam.mask_hw`. Each may be None, but boxes and points not both.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes if self.boxes is not None else self.points)

    def part(self, rows: slice) -> Prompts:
        return Prompts(*(None if value is None else value[rows] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> Prompts:
        return Prompts(*(None if value is None else value.to(device) for value in vars(self).values()))


@dataclass
class Decoded:
    """tokens (R, W), mask logits (R, h, w) of the padded picture, quality (R,): SAM's own guess of each mask's IoU."""

    tokens: Tensor
    masks: Tensor
    quality: Tensor


class Sam(nn.Module):
    """One SAM behind one interface.

    config: SAM's own; token: one of TOKENS. Attributes: size S of the side of its pictures, width W of a token,
    mask_hw of its masks; model, SAM itself.
    """

    def __init__(self, config: PreTrainedConfig, token: str = "transformer"):
        super().__init__()
        self.kind, self.token = check_kind(config), token
        self.model = AutoModel.from_config(config, trust_remote_code=False)
        for layer in self.model.mask_decoder.transformer.layers:
            for number in (1, 2, 3, 4):
                getattr(layer, f"layer_norm{number}").eps = NORM_EPS
        self.size, self.mask_hw = mask_sides(config)
        decoder = config.mask_decoder_config
        self.width = decoder.hidden_size // 8 if token == "mlp" else decoder.hidden_size

    # ------------------------------------------------------------------------------------------ pictures

    def normalize(self, pictures: Tensor, inner_hw: Tensor) -> Tensor:
        """pictures (N, 3, S, S) uint8, of which the top left inner_hw (N, 2) is the image and the rest padding."""
        mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (MEAN, STD))
        inner_hw = inner_hw.to(pictures.device)
        inside = torch.arange(self.size, device=pictures.device) < inner_hw[..., None]  # (N, 2, S)
        inside = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]  # (N, 1, S, S)
        pixels = (pictures.float() - mean) / std
        return torch.where(inside, pixels, 0.0).to(next(self.model.parameters()).dtype)

    def maps(self, pixels: Tensor) -> dict[str, Any]:
        """pixels (N, 3, S, S) normalized -> {argument of `decode`'s model: maps (N, ...), one or a list}."""
        found = self.model.get_image_embeddings(pixels)
        if self.kind is KINDS["sam_hq"]:
            return dict(zip(("image_embeddings", "intermediate_embeddings"), found, strict=True))
        return {"image_embeddings": found}

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> list[dict[str, Any]]:
        """pixels (N, 3, S, S) normalized -> what `decode` needs of each picture."""
        maps = self.maps(pixels)
        return [{name: rows_of(value, slice(n, n + 1)) for name, value in maps.items()} for n in range(len(pixels))]

    # ------------------------------------------------------------------------------------------ regions

    @torch.no_grad()
    def decode(self, features: dict[str, Any], prompts: Prompts) -> Decoded:
        """Regions of one picture; they do not see each other here."""
        arguments = {
            "input_boxes": prompts.boxes,
            "input_points": prompts.points,
            "input_labels": prompts.labels,
        }
        dtype = next(self.model.parameters()).dtype
        if prompts.masks is None:  # (1, R, ...): all of one picture
            arguments = {name: None if value is None else value[None] for name, value in arguments.items()}
        else:  # (R, 1, ...): transformers' SAM adds one mask a picture
            arguments = {name: None if value is None else value[:, None] for name, value in arguments.items()}
            arguments["input_masks"] = prompts.masks.to(dtype)
            features = {name: repeated(value, len(prompts)) for name, value in features.items()}
        decoder = self.model.mask_decoder
        with outputs_of(self.model.prompt_encoder) as prompted, outputs_of(decoder.transformer) as transformed:
            output = self.model(**features, **arguments, multimask_output=False)
        if self.token == "prompt":
            tokens = prompted[0][0].mean(-2)
        else:
            tokens = transformed[0][0][..., self.kind.slot, :]
            if self.token == "mlp":
                tokens = decoder.output_hypernetworks_mlps[0](tokens)
        return Decoded(
            tokens.reshape(-1, self.width),
            output.pred_masks.reshape(-1, *output.pred_masks.shape[-2:]),
            output.iou_scores.reshape(-1),
        )

    def masks(self, logits: Tensor, image_hw: Sequence[int], inner_hw: Sequence[int]) -> Iterator[np.ndarray]:
        """Mask logits (R, h, w) -> one bool (H, W) a region, at the image's size."""
        height, width = inner_hw
        for some in logits.float().split(MASKS_AT_ONCE):
            large = F.interpolate(some[:, None], (self.size, self.size), mode="bilinear", align_corners=False)
            large = F.interpolate(large[..., :height, :width], tuple(image_hw), mode="bilinear", align_corners=False)
            yield from (large[:, 0] > 0).cpu().numpy()


def mask_sides(config: PreTrainedConfig) -> tuple[int, tuple[int, int]]:
    """The side of SAM's pictures, and the height and width of the masks that it takes and gives."""
    prompt = config.prompt_encoder_config
    return prompt.image_size, (4 * prompt.image_size // prompt.patch_size,) * 2


def placed_hw(image_hw: Sequence[int], size: int, kind: Kind) -> tuple[int, int]:
    """Height and width that a picture takes in SAM's square of this side.

    >>> placed_hw((300, 200), 1024, KINDS["sam"]), placed_hw((300, 200), 1024, KINDS["sam2"])
    ((1024, 683), (1024, 1024))
    """
    if not kind.letterbox:
        return size, size
    scale = size / max(image_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in image_hw)
    return height, width


def sam_picture(image: np.ndarray, size: int, kind: Kind) -> tuple[np.ndarray, tuple[int, int]]:
    """image (H, W, 3) uint8 -> SAM's square (3, S, S) uint8, zero where nothing of the image is, and the image's
    height and width in it."""
    height, width = placed_hw(image.shape[:2], size, kind)
    square = np.zeros((size, size, 3), np.uint8)
    square[:height, :width] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return square.transpose(2, 0, 1).copy(), (height, width)


def rows_of(value: Any, rows: slice) -> Any:
    """Some pictures' features."""
    return [rows_of(level, rows) for level in value] if isinstance(value, list | tuple) else value[rows]


def repeated(value: Any, count: int) -> Any:
    """A picture's features for as many pictures."""
    if isinstance(value, list):
        return [repeated(level, count) for level in value]
    return value.expand(count, *value.shape[1:])


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list]:
    """Within it, what a module gives, call by call."""
    seen: list = []
    handle = module.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
