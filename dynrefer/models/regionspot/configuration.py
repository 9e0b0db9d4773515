"""All sizes of a RegionSpot model, and the choices that the paper's ablations make."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .clip import OpenClipConfig  # which makes itself known to AutoConfig
from .decoder import POSITIONS
from .sam import TOKENS, check_kind

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class RegionSpotConfig(PreTrainedConfig):
    r"""
    sam_config (`dict`): SAM's own config with its `model_type`: "sam", "sam_hq" or "sam2".
    clip_config (`dict`): that of CLIP or SigLIP, both towers; `model_type` "open_clip" is one of open_clip.
    image_size (`int`): side of the picture that CLIP sees; its own where None. image_mean, image_std: normalization.
    antialias (`bool`): whether that picture is smoothed when it becomes smaller (released: it is not).
    token (`str`): which of SAM's tokens stands for a region: "prompt", the mean of what the prompt encoder gives;
        "transformer", the mask token after the two-way transformer (released); "mlp", the same after its MLP.
    class_token (`bool`): whether the regions see CLIP's class token beside its patches.
    clip_positions (`str`): "sine" adds to each of CLIP's patches where it is, for a convolutional CLIP, whose patches
        do not say; "none" (released): they are read as they are.
    decoder_layers, decoder_heads, decoder_mlp_width, decoder_dropout: of the decoder; its width is CLIP's.
    templates (`str` or `list`): sentences with {} for a name, whose embeddings are averaged; or a row of
        text_bank.TEMPLATES.
    categories (`list`): names that a region is told apart by where the options name none, and those of training.
    focal_alpha, focal_gamma (`float`): of the sigmoid focal loss.
    mirror (`float`): probability that a training picture is mirrored, with its boxes.
    licence (`str`): of the weights, for the model card; training (`list`): what they were trained on, a dict a run;
        base_parts (`dict`): where parts were taken from (base_parts.py).
    """

    model_type = "regionspot"
    sub_configs_defaults = {
        "sam_config": SubConfigSpec(config_class=AutoConfig, model_type="sam"),
        "clip_config": SubConfigSpec(config_class=AutoConfig, model_type="clip"),
    }

    sam_config: dict | PreTrainedConfig | None = None
    clip_config: dict | PreTrainedConfig | None = None
    image_size: int | None = None
    image_mean: list | tuple = CLIP_MEAN
    image_std: list | tuple = CLIP_STD
    antialias: bool = False
    token: str = "transformer"
    class_token: bool = True
    clip_positions: str = "none"
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    decoder_dropout: float = 0.1
    templates: str | list | tuple = "openai81"
    categories: list | tuple = ()
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    mirror: float = 0.0
    licence: str | None = None
    training: list | None = None
    base_parts: dict | None = None

    def __post_init__(self, **kwargs):
        for name in ("sam_config", "clip_config"):
            value = getattr(self, name)
            if isinstance(value, dict) and "model_type" not in value:
                raise ValueError(f"{name}: no model_type; it names the architecture, such as 'sam' or 'clip'")
        super().__post_init__(**kwargs)
        check_kind(self.sam_config)
        if self.token not in TOKENS:
            raise ValueError(f"token {self.token!r}: expected one of {', '.join(TOKENS)}")
        if self.clip_positions not in POSITIONS:
            raise ValueError(f"clip_positions {self.clip_positions!r}: expected one of {', '.join(POSITIONS)}")
        if self.image_size is None:
            self.image_size = native_size(self.clip_config)


def native_size(clip_config: PreTrainedConfig) -> int:
    """The side of the pictures that a CLIP was trained on."""
    if isinstance(clip_config, OpenClipConfig):
        return clip_config.image_size
    size = getattr(clip_config.vision_config, "image_size", 224)
    return size[0] if isinstance(size, list | tuple) else size


AutoConfig.register("regionspot", RegionSpotConfig, exist_ok=True)
