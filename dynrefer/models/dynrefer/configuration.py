"""All sizes of a DynRefer model: the 4.2B one and a 3M one are the same code with other numbers."""

from __future__ import annotations

from transformers import AutoConfig, Blip2QFormerConfig, CLIPTextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..language import MODES
from ..vision import NORMS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PAIR_OVER = ("step", "batch")


class DynReferConfig(PreTrainedConfig):
    r"""
    vision_config (`dict`): the vision encoder's own config with its `model_type`.
    vision_shape (`list[int]`): (D, g) width and grid side of its patch map; measured when a model is first built.
    vision_norm (`str`): what a convolutional encoder normalizes with, see vision.py; "group" and "frozen" make a
        step's losses the same for any number of processes and accumulated batches.
    vision_trainable, text_trainable (`bool`): whether these towers learn.
    language_config (`dict`): the language model's own config; language_mode: "frozen", "lora" or "full"; language_lora:
        PEFT LoraConfig fields.
    text_config (`dict`): the CLIP text tower that embeds tags, attributes, categories and captions.
    qformer_config (`dict`): BLIP-2's Q-Former; its encoder width is the vision width.
    image_size (`int`): side S of a view in pixels; image_mean, image_std: channel normalization.
    num_views (`int`): V; num_query_tokens: Q; query_tokens_trainable: whether they learn (released: BLIP-2's stay);
        grid: side of the aligned map, the vision grid when None.
    align_groups, align_start, positions, roi_aligned: see region_encoder.py; truncate_region_boxes: released rounding
        of the region's box in a view; mask_box_last_index: a mask's box ends at its last pixel's index instead of one
        past it, as in the released program, which loses the last row and column.
    decoder_width, decoder_heads, decoder_mlp_width, decoder_layers, decoder_dropout, decoder_gain: tag and region-text
        decoders.
    tags, attributes, categories (`list`): the word lists; attributes are dicts name, type, is_has_att.
    text_bank_hash (`str`): hash of the word lists that the saved text embeddings were made from.
    view_strategy, train_view_strategy (`str`): see views.py; tag_threshold: a tag is predicted above it.
    control_drop_all, control_keep (`float`): control words in training, see prompts.py.
    view_text (`bool`): also train view 0's summary token directly on texts (model.view_text_loss).
    lowercase (`bool`): target captions in lower case; mirror: probability that a training picture is mirrored;
        box_jitter: training boxes move by up to this share of their sides.
    pair_over (`str`): which captions region_text and view_text compare a region with: "step", those of the whole
        optimizer step, over all processes and accumulated batches; "batch", those of one pass of one process.
    mask_same_caption (`bool`): two regions with one caption are no negatives of each other (released: they are).
    generation (`dict`): default generation options.
    licence (`str`): of the weights, for the model card, such as "apache-2.0"; training (`list`): what they were trained
        on, a dict a run (train/checkpoint.py); base_parts (`dict`): where parts were taken from (base_parts.py).
    """

    model_type = "dynrefer"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="blip_2_vision_model"),
        "qformer_config": Blip2QFormerConfig,
        "language_config": SubConfigSpec(config_class=AutoConfig, model_type="t5"),
        "text_config": CLIPTextConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    language_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_shape: list | tuple | None = None
    vision_norm: str = "batch"
    vision_trainable: bool = False
    text_trainable: bool = False
    language_mode: str = "frozen"
    language_lora: dict | None = None
    image_size: int = 224
    image_mean: list | tuple = CLIP_MEAN
    image_std: list | tuple = CLIP_STD
    num_views: int = 3
    num_query_tokens: int = 32
    query_tokens_trainable: bool = True
    grid: int | None = None
    align_groups: int = 4
    align_start: str = "zero"
    roi_aligned: bool = False
    positions: bool = False
    truncate_region_boxes: bool = False
    mask_box_last_index: bool = False
    decoder_width: int = 256
    decoder_heads: int = 4
    decoder_mlp_width: int = 1024
    decoder_layers: int = 2
    decoder_dropout: float = 0.1
    decoder_gain: float = 1.0
    tags: list | tuple = ()
    attributes: list | tuple = ()
    categories: list | tuple = ()
    text_bank_hash: str | None = None
    view_strategy: str = "phash"
    train_view_strategy: str = "random"
    tag_threshold: float = 0.7
    control_drop_all: float = 0.5
    control_keep: float = 0.5
    view_text: bool = False
    lowercase: bool = False
    mirror: float = 0.0
    box_jitter: float = 0.0
    pair_over: str = "step"
    mask_same_caption: bool = True
    generation: dict | None = None
    licence: str | None = None
    training: list | None = None
    base_parts: dict | None = None

    def __post_init__(self, **kwargs):
        for name in ("vision_config", "language_config"):
            value = getattr(self, name)
            if isinstance(value, dict) and "model_type" not in value:
                raise ValueError(
                    f"{name}: no model_type; it names the architecture, such as 'clip_vision_model' or 't5'"
                )
        super().__post_init__(**kwargs)
        language = self.language_config
        if hasattr(language, "scale_decoder_outputs") and not language.scale_decoder_outputs:
            # T5Config always sets tie_word_embeddings; not scaling is how it remembers that the file said "untied"
            language.tie_word_embeddings = False
        self.generation = {"num_beams": 2, "max_new_tokens": 20} if self.generation is None else self.generation
        if self.language_mode not in MODES:
            raise ValueError(f"language_mode {self.language_mode!r}: expected one of {', '.join(MODES)}")
        for name, known in (("vision_norm", NORMS), ("pair_over", PAIR_OVER)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.num_views < 1:
            raise ValueError(f"num_views {self.num_views}: at least view 0, the region itself")
        if self.vision_shape is not None:
            self.qformer_config.encoder_hidden_size = self.vision_shape[0]


AutoConfig.register("dynrefer", DynReferConfig, exist_ok=True)
