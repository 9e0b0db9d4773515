"""All sizes of an Omni-RGPT model, and the choices that the paper leaves open."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from dynrefer.mentions import asks_each

from ..language import MODES
from .bases import base_kind

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DRAWS = ("random", "first")
MARKS = ("all", "own")
REGIONS = ("marks", "words", "pooled")


class OmniRgptConfig(PreTrainedConfig):
    r"""
    base_config (`dict`): the config of the image and language model that is built on, with its `model_type`, see
        bases.py.
    base_mode (`str`): how its language model learns, "frozen", "lora" or "full"; base_lora: PEFT LoraConfig fields.
    vision_trainable, projector_trainable (`bool`): whether its vision encoder and what follows that learn.
    num_marks, mark_width (`int`): of the Token Marks; marks_trainable: whether they learn. mark_scale (`float`): how
        long they are at the beginning, in lengths of a word embedding.
    mark_draw (`str`): which marks the regions of an example get: "random", drawn without repetition, or the "first".
    marks (`str`): what a text's pictures show: marks of "all" regions of the example, or its "own" regions' only.
    regions (`str`): what says which region is meant: "marks", or for comparison its box in "words", or its "pooled"
        tokens of the prompt frame; these lay nothing on the frames, and have no guide head.
    packed (`bool`): whether texts that are shown the same go through the language model as one sequence in training.
    guide (`bool`): whether there is a Temporal Region Guide Head; guide_prompt_frame: whether it learns the prompt
        frame too.
    num_frames (`int`): of a clip. annotated_frames: training takes those that are annotated, where there are enough.
    frame_size (`int`): side of a frame in pixels; the base's own where None.
    frame_pixels (`list[int]`): least and most pixels of a frame, of a base that takes frames of any shape.
    frame_grid (`list[int]`), frame_tokens (`int`): rows and columns that a frame becomes, and its tokens; measured.
    image_mean, image_std: channel normalization.
    least_coverage (`float`): a region's strongest cell is at least this covered; 0, as published: small ones are weak.
    box_prompts (`float`): probability that a training region is shown as its box though it has a mask.
    questions (`list`): what is asked where nobody asks; training draws one of them. Each has <region> in it.
    generation (`dict`): default generation options.
    licence (`str`): of the weights, for the model card; training (`list`): what they were trained on, a dict a run;
        base_parts (`dict`): where parts were taken from (base_parts.py).
    """

    model_type = "omni_rgpt"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="llava")}

    base_config: dict | PreTrainedConfig | None = None
    base_mode: str = "frozen"
    base_lora: dict | None = None
    vision_trainable: bool = False
    projector_trainable: bool = True
    num_marks: int = 100
    mark_width: int = 256
    marks_trainable: bool = True
    mark_scale: float = 1.0
    mark_draw: str = "random"
    marks: str = "all"
    regions: str = "marks"
    packed: bool = True
    guide: bool = True
    guide_prompt_frame: bool = True
    num_frames: int = 4
    annotated_frames: bool = True
    frame_size: int | None = None
    frame_pixels: list | tuple = (56 * 56, 448 * 448)
    frame_grid: list | tuple | None = None
    frame_tokens: int | None = None
    image_mean: list | tuple = CLIP_MEAN
    image_std: list | tuple = CLIP_STD
    least_coverage: float = 0.0
    box_prompts: float = 0.0
    questions: list | tuple = ("Describe <region> briefly.",)
    generation: dict | None = None
    licence: str | None = None
    training: list | None = None
    base_parts: dict | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.base_config, dict) and "model_type" not in self.base_config:
            raise ValueError("base_config: no model_type; it names the architecture, such as 'llava' or 'qwen2_5_vl'")
        super().__post_init__(**kwargs)
        kind = base_kind(self.base_config)
        self.generation = {"num_beams": 1, "max_new_tokens": 64} if self.generation is None else self.generation
        if self.frame_size is None and not kind.any_shape:
            self.frame_size = kind.native_size(self.base_config)
        for name, known in (("base_mode", MODES), ("mark_draw", DRAWS), ("marks", MARKS), ("regions", REGIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.guide and self.regions != "marks":
            raise ValueError(
                f"guide true, regions {self.regions!r}: the guide head looks for marks; set guide to false"
            )
        for name in ("num_marks", "mark_width", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        if not 0 < self.mark_scale < float("inf"):
            raise ValueError(f"mark_scale {self.mark_scale}: expected a positive number; 1 = as long as words")
        for name in ("least_coverage", "box_prompts"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected a share, from 0 to 1")
        if not self.questions:
            raise ValueError("questions: none; give at least one, such as 'Describe <region> briefly.'")
        for question in self.questions:
            if not asks_each(question):
                raise ValueError(f"questions: {question!r} names no region; write <region> where its mark belongs")


AutoConfig.register("omni_rgpt", OmniRgptConfig, exist_ok=True)
