"""CLIP or SigLIP, frozen: a whole picture -> the tokens of its last block; texts -> one vector each."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from dynrefer.convert.clip_text import import_open_clip
from dynrefer.errors import suggestion

from ..folder_check import reading
from ..vision import cut_patches, summary_and_patches
from .sam import outputs_of


class OpenClipConfig(PreTrainedConfig):
    """A model of open_clip, both towers: architecture, its name there such as "ViT-B-16-quickgelu"; model_cfg, all of
    its settings, those of the name where None; image_size, the side of its own pictures."""

    model_type = "open_clip"
    architecture: str = "ViT-B-16-quickgelu"
    image_size: int | None = None
    model_cfg: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.model_cfg is None:
            self.model_cfg = open_clip_settings(self.architecture)
        if self.image_size is None:
            self.image_size = self.model_cfg["vision_cfg"].get("image_size", 224)


def open_clip_settings(architecture: str) -> dict:
    """Of a published model; ValueError for another name."""
    known = import_open_clip().list_models()
    if architecture not in known:  # hub ids and folders too, which it would read
        raise ValueError(f"clip {architecture!r}: not one of open_clip.list_models().{suggestion(architecture, known)}")
    return import_open_clip().get_model_config(architecture)


AutoConfig.register("open_clip", OpenClipConfig)


class TransformersClip(nn.Module):
    """A two-tower model of transformers.

    Attributes: width D of image tokens, text_width, max_tokens of a text, full_length: texts are padded to it.
    """

    def __init__(self, config: PreTrainedConfig, image_size: int):
        super().__init__()
        self.model = AutoModel.from_config(config, trust_remote_code=False)
        vision, text = config.vision_config, config.text_config
        self.width, self.max_tokens = vision.hidden_size, text.max_position_embeddings
        self.patch_size, self.grid = vision.patch_size, image_size // vision.patch_size
        arguments = inspect.signature(self.model.vision_model.forward).parameters
        self.patchwise = "spatial_shapes" in arguments  # SigLIP 2 takes patches, not pictures
        self.full_length = config.model_type != "clip"  # SigLIP reads padding too
        self.text_width = getattr(config, "projection_dim", None) or getattr(text, "projection_size", text.hidden_size)
        native = getattr(vision, "image_size", image_size)
        self.extra = {"interpolate_pos_encoding": True} if native != image_size and not self.patchwise else {}

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, S, S) normalized -> (N, 1+P, D) before the tower's last norm: the class token, or the mean of
        the patches where there is none, then the patches row by row."""
        tower = self.model.vision_model
        pixels = pixels.to(next(tower.parameters()).dtype)
        with outputs_of(tower.encoder) as seen:
            if self.patchwise:
                tower(**cut_patches(pixels, self.patch_size, self.grid))
            else:
                tower(pixel_values=pixels, **self.extra)
        return summary_and_patches(seen[0].last_hidden_state)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, S, S) normalized -> (N, E), not normalized: what texts are compared with."""
        pixels = pixels.to(next(self.model.vision_model.parameters()).dtype)
        read = cut_patches(pixels, self.patch_size, self.grid) if self.patchwise else {"pixel_values": pixels}
        return self.model.get_image_features(**read, **self.extra).pooler_output

    @torch.no_grad()
    def embed_texts(self, ids: Tensor) -> Tensor:
        """ids (N, T) -> (N, E), not normalized."""
        return self.model.get_text_features(input_ids=ids).pooler_output

    def scale_and_bias(self) -> tuple[Tensor, Tensor | float]:
        """What cosines are multiplied by, and what is added then."""
        return self.model.logit_scale.float().exp(), getattr(self.model, "logit_bias", 0.0)


class OpenClip(nn.Module):
    """A two-tower model of open_clip; attributes as `TransformersClip` has them."""

    full_length = True

    def __init__(self, config: OpenClipConfig, image_size: int):
        super().__init__()
        open_clip, settings = import_open_clip(), dict(config.model_cfg or {})
        settings["vision_cfg"] = {**settings["vision_cfg"], "image_size": image_size, "timm_model_pretrained": False}
        custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
        self.config, self.image_size = config, image_size
        self.model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
        self.text_width, self.max_tokens = settings["embed_dim"], self.model.context_length
        visual = self.model.visual
        tower = getattr(visual, "trunk", visual)  # timm's, or open_clip's own
        arguments = inspect.signature(tower.forward_intermediates).parameters
        self.convolutional = not {"return_prefix_tokens", "output_extra_tokens"} & arguments.keys()
        self.convolutional |= isinstance(tower, open_clip.model.ModifiedResNet)
        with torch.no_grad():
            self.eval()  # a normalization that measures what it sees keeps what it has
            tokens = self.image_tokens(torch.zeros(1, 3, image_size, image_size))
            self.train()
        self.width, self.grid = tokens.shape[-1], int((tokens.shape[1] - 1) ** 0.5)

    def read_weights(self, weights: str) -> dict[str, Tensor]:
        """Tensors of a tag that open_clip knows, or of a file; positions are interpolated to this model's pictures.
        ValueError where they cannot be read, or are another model's."""
        open_clip = import_open_clip()
        name = f"open_clip {self.config.architecture}, weights {weights!r}"
        with reading(name, "cannot be fetched or read, or are another model's"), torch.device("cpu"):
            if not os.path.isabs(weights):
                weights = open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.config.architecture, weights))
            fresh = OpenClip(self.config, self.image_size).model
            open_clip.load_checkpoint(fresh, weights)
        return fresh.state_dict()

    def reset_buffers(self) -> None:
        """What no file holds: which tokens of a text see which."""
        for module in self.model.modules():
            if getattr(module, "attn_mask", None) is not None:
                module.attn_mask.copy_(torch.full_like(module.attn_mask, -torch.inf).triu_(1))

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(next(self.model.parameters()).dtype)
        layout = {} if self.convolutional else {"output_fmt": "NLC", "output_extra_tokens": True}
        found = self.model.visual.forward_intermediates(pixels, indices=1, intermediates_only=True, **layout)
        patches = found["image_intermediates"][-1]
        if self.convolutional:  # a map (N, D, g, g)
            return summary_and_patches(patches)
        prefix = found.get("image_intermediates_prefix") or [patches[:, :0]]
        return summary_and_patches(torch.cat([prefix[-1], patches], 1))

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels.to(next(self.model.parameters()).dtype))

    @torch.no_grad()
    def embed_texts(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)

    def scale_and_bias(self) -> tuple[Tensor, Tensor | float]:
        bias = self.model.logit_bias
        return self.model.logit_scale.float().exp(), 0.0 if bias is None else bias


def tidy_of(config: PreTrainedConfig) -> Callable[[str], str]:
    """What is done to a text before the tokenizer has it: nothing, or, of an open_clip model, what its settings say."""
    if not isinstance(config, OpenClipConfig) or "hf_tokenizer_name" not in config.model_cfg["text_cfg"]:
        return str
    from open_clip.tokenizer import get_clean_fn

    settings = config.model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    return get_clean_fn(settings.get("clean", "whitespace"))


def make_clip(config: PreTrainedConfig, image_size: int) -> TransformersClip | OpenClip:
    """ValueError for a size that is no whole number of patches, and for a model of one tower."""
    if isinstance(config, OpenClipConfig):
        kind, patch = OpenClip, config.model_cfg["vision_cfg"].get("patch_size", 16)
    elif hasattr(config, "text_config") and hasattr(getattr(config, "vision_config", None), "patch_size"):
        kind, patch = TransformersClip, config.vision_config.patch_size
    else:
        raise ValueError(
            f"clip_config: model_type {config.model_type!r} is not a model of two towers such as clip or siglip"
        )
    if image_size < patch or image_size % patch:
        near = max(1, image_size // patch) * patch
        raise ValueError(
            f"image_size {image_size}: CLIP's patches have {patch} pixels; give a multiple, such as {near}"
        )
    return kind(config, image_size)
