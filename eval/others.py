"""Models of others in our harness: Florence-2, Qwen-VL, InternVL, Kosmos-2, and any other that reads images and writes.

`load` gives what `dynrefer.predictions` wants of a model. How each is told which region is meant is a row of
`region_prompts.CAPTIONERS`; models that take no boxes are shown a line around the region (`overlay`) or the region
alone (`crop`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationMixin,
    GitProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dynrefer.data.example import Example
from dynrefer.data.records import Region, RegionResult
from dynrefer.errors import first_line, shown, suggestion
from dynrefer.models import FAMILIES
from dynrefer.models.auto import check_dtype, model_folder, pick_device
from dynrefer.models.base_parts import check_source
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.models.folder_check import check_numbers, reading
from dynrefer.models.language import check_generation, log_probability, most_positions
from dynrefer.models.options import Options, TextOptions
from dynrefer.prompts import check_text

from .benchmarks import get_task
from .region_prompts import CAPTIONERS, PLACE, Convention
from .task import Task

MAX_NEW_TOKENS = 64  # where neither the task nor the model says
PAIRS = ("vision-encoder-decoder",)  # they come without a processor for both images and texts
CAPTION_ONLY = ("blip", "git", "vision-encoder-decoder")  # they describe what they see and answer no questions
ELSEWHERE = {  # model types of remote code: what has the same weights for Transformers
    "internvl_chat": "OpenGVLab's repositories that end in -hf",
    "florence2": "florence-community/Florence-2-base, -large, -base-ft and -large-ft",
}
NO_DECODING = ("_from_model_config", "transformers_version", "use_cache", "output_attentions", "output_hidden_states")


# --- loading ---------------------------------------------------------------------------------------------------------


def is_captioner(name: str, revision: str | None = None) -> bool:
    """Whether a run, folder or hub id is a model of others; False also where there is none, which `dynrefer.load`
    says best."""
    try:
        return _model_type(name, revision) not in FAMILIES
    except (OSError, ValueError):
        return False


def load(
    name: str,
    task: Task,
    family: str | None = None,
    prompt: str | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> "Captioner":
    """A model of others, to describe the regions of a task.

    name: a folder or hub id; family: a row of CAPTIONERS, by the model's type where None; prompt: instead of the
    task's question, with {region} where the region's coordinates go; the rest as of `dynrefer.load`.

    Raises ValueError when there is no model or processor, Transformers has no class for images and text of its type,
    the family is unknown or not of this model, or the prompt does not say where the region goes.
    """
    with reading(f"model {name!r}", "no model folder or hub id that can be read"):
        kind = _model_type(name, revision)
    if kind in FAMILIES:
        raise ValueError(f"model {name!r} is one of ours; --captioner and --prompt are for models of others")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"model {name!r} is of type {kind!r}, of which Transformers has no model that reads images and writes "
            f"text. Known by their boxes: {_known()}{_elsewhere(kind)}"
        )
    family = family or _family_of(name, kind)
    if family not in CAPTIONERS:
        raise ValueError(
            f"unknown captioner {family!r}.{suggestion(family, CAPTIONERS)} Known: {', '.join(CAPTIONERS)}."
        )
    if CAPTIONERS[family].own_format and kind not in CAPTIONERS[family].model_types:
        raise ValueError(
            f"model {name!r} is of type {kind!r} and does not know the boxes of {family}; --captioner overlay shows "
            "a red line around the region to any model"
        )
    text = _prompt(name, kind, CAPTIONERS[family], task, prompt)
    place_on = pick_device(device)
    processor = _processor(name, kind, revision)
    model = _model(name, kind, check_dtype(dtype) or "auto", revision).to(place_on).eval()
    if tokens := beyond(model.config, processor.tokenizer, text):
        raise ValueError(
            f"prompt {shown(text)}: {tokens:,} tokens; model {name!r} holds at most {most_positions(model.config):,}, "
            "the picture and the answer included; ask something shorter"
        )
    return Captioner(model, processor, family, text, task)


def beyond(config: Any, tokenizer: Any, text: str) -> int:
    """Tokens of a text where a model does not hold as many, else 0."""
    check_text(text, "prompt")
    tokens, most = len(tokenizer(text, verbose=False)["input_ids"]), most_positions(config)
    return tokens if most is not None and tokens >= most else 0


def _prompt(name: str, kind: str, row: Convention, task: Task, prompt: str | None) -> str:
    text = row.ask(task) if prompt is None else prompt
    if prompt is None and row.words is None and kind in CAPTION_ONLY:
        text = ""
    if text and kind in PAIRS:
        raise ValueError(
            f"model {name!r} is of type {kind!r} and reads no text: --captioner overlay or crop, no prompt"
        )
    if row.words and PLACE not in text:
        raise ValueError(
            f"prompt {text!r} does not say where the region's coordinates go: write {PLACE} there, as in "
            f"{row.ask(get_task('world'))!r}"
        )
    return text


def _processor(name: str, kind: str, revision: str | None) -> Any:
    place = {"revision": revision}
    try:
        with reading("its files"):
            if kind in PAIRS:
                images = AutoImageProcessor.from_pretrained(model_folder(name), trust_remote_code=False, **place)
                words = AutoTokenizer.from_pretrained(model_folder(name), trust_remote_code=False, **place)
                return GitProcessor(images, words)  # which is nothing but the two
            processor = AutoProcessor.from_pretrained(model_folder(name), trust_remote_code=False, **place)
    except ValueError as error:
        raise ValueError(
            f"model {name!r}: no processor that can be read ({first_line(error)}){_elsewhere(kind)}"
        ) from error
    if missing := [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]:
        raise ValueError(
            f"model {name!r}: its processor ({type(processor).__name__}) has no {' and no '.join(missing)}; the folder "
            "needs what `processor.save_pretrained` writes, such as preprocessor_config.json and tokenizer.json"
        )
    return processor


def _model(name: str, kind: str, dtype: torch.dtype | str, revision: str | None) -> Any:
    try:
        with reading("its files"):
            model, info = AutoModelForImageTextToText.from_pretrained(
                model_folder(name),
                revision=revision,
                dtype=dtype,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
            )
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be loaded ({first_line(error)}){_elsewhere(kind)}") from error
    check_numbers(model.named_parameters(), f"model {name!r}")
    if missing := sorted(map(str, info.get("missing_keys") or ())):
        raise ValueError(
            f"model {name!r}: its file lacks {len(missing)} weights, the first {missing[0]}; they would be random"
            + _elsewhere(kind)
        )
    return model


def _model_type(name: str, revision: str | None) -> str:
    check_source(model_folder(name), revision=revision)
    config, _ = PreTrainedConfig.get_config_dict(model_folder(name), revision=revision)
    if "model_type" not in config:
        raise ValueError(f"model {name!r}: its config.json names no model_type")
    return config["model_type"]


def _family_of(name: str, model_type: str) -> str:
    for family, row in CAPTIONERS.items():
        if model_type in row.model_types:
            return family
    raise ValueError(
        f"model {name!r} is of type {model_type!r}, whose way to read boxes is not known here. --captioner overlay "
        f"shows a red line around the region to any model, --captioner crop the region alone. Known: {_known()}"
    )


def _known() -> str:
    return ", ".join(f"{name} ({', '.join(row.model_types)})" for name, row in CAPTIONERS.items() if row.model_types)


def _elsewhere(model_type: str) -> str:
    place = ELSEWHERE.get(model_type)
    return f"; repositories of their own code are not run, Transformers reads {place}" if place else ""


# --- image and region -> inputs --------------------------------------------------------------------------------------


@dataclass
class Batch:
    """ids, boxes: one a region; inputs: of `model.generate`, the regions in the same order."""

    ids: list[str]
    boxes: list[list[float]]
    inputs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return replace(self, inputs=moved)

    def counts(self) -> dict[str, float]:
        """No targets: these models are not trained here."""
        return {}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        """There are no targets to take."""


class Prompts(FamilyProcessor):
    """Examples -> the model's inputs, see `dynrefer.models.family.Processor`.

    processor: Transformers', of the model; text: the prompt, which the chat template is put around where there is one
    (`self.text`); task: says how a line is drawn; seq2seq: an encoder reads the prompt; cut: the tokenizer's end token
    behind the prompt is taken off.
    """

    def __init__(
        self, processor: Any, family: Convention, text: str, task: Task, *, seq2seq: bool = False, cut: bool = False
    ):
        self.processor, self.family, self.task, self.cut = processor, family, task, cut
        self.template = None if family.own_format else self._template()
        self.text = self._asked(text) if text or self.template else ""
        self._resized: dict[tuple[int, int], tuple[int, int]] = {}
        tokenizer = processor.tokenizer
        # what is generated must follow its prompt; an encoder counts positions from the left
        tokenizer.padding_side = "right" if seq2seq else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        begins = tokenizer.bos_token is not None and self.text.startswith(tokenizer.bos_token)
        self.options = {"add_special_tokens": False} if begins and self.template else {}

    def _template(self) -> str | None:
        """The chat template, which some models have at their tokenizer."""
        found = getattr(self.processor, "chat_template", None) or self.processor.tokenizer.chat_template
        return found["default"] if isinstance(found, dict) else found

    def _asked(self, text: str) -> str:
        """The prompt as the processor takes it together with an image: in the chat template, which may or may not know
        of images; without one as it is, or behind an image token where the processor does not put it there."""
        token = str(getattr(self.processor, "image_token", None) or "")
        behind = f"{token}\n{text}" if token else text
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        problem: Exception = ValueError("it leaves out the prompt")
        for content in (parts, behind) if self.template else (text, behind):
            try:
                asked = self._chat(content) if self.template else content
                if text in asked and str(parts) not in asked:
                    blank = Image.new("RGB", (64, 64))
                    self.processor(images=[[blank] if self.template else blank], text=[asked.replace(PLACE, "")])
                    return asked
            except (ValueError, TypeError, IndexError, TemplateError) as error:
                problem = error
        how = "with its chat template" if self.template else "and has no chat template"
        raise ValueError(
            f"{type(self.processor).__name__} does not take an image and the prompt {text!r} {how} "
            f"({first_line(problem)}); a chat_template.jinja beside the model's config.json says how they are put"
        ) from problem

    def _chat(self, content: list | str) -> str:
        silent = {"enable_thinking": False} if "enable_thinking" in self.template else {}
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
            **silent,
        )

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample a region: its image and its prompt."""
        image = example.image
        whole = Image.fromarray(image)
        return [
            {
                "id": region.id,
                "box": list(region.box),
                "image": Image.fromarray(self.family.show(image, region, self.task)) if self.family.show else whole,
                "text": self.prompt(region),
            }
            for region in example.regions
        ]

    def prompt(self, region: Region) -> str:
        """The text that asks for this region."""
        words = self.family.words
        try:
            return self.text.replace(PLACE, words(region.box, region.image_hw, self)) if words else self.text
        except ValueError as error:
            raise ValueError(f"region {region.id}: {error}") from error

    def resized_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that the image processor gives an image of this size."""
        if image_hw not in self._resized:
            images = self.processor.image_processor
            made = images(images=[Image.new("RGB", image_hw[::-1])], return_tensors="pt")
            if "image_grid_thw" not in made:
                raise ValueError(
                    f"boxes in pixels of the resized image, whose size {type(images).__name__} does not tell"
                )
            _, rows, columns = made["image_grid_thw"][0].tolist()
            self._resized[image_hw] = rows * images.patch_size, columns * images.patch_size
        return self._resized[image_hw]

    def collate(self, samples: list[dict]) -> Batch:
        """Samples -> inputs, padded to the longest prompt."""
        if not samples:
            return Batch([], [], {})
        images = [[sample["image"]] if self.template else sample["image"] for sample in samples]
        texts = {"text": [sample["text"] for sample in samples], "padding": True} if self.text else {}
        try:
            inputs = dict(self.processor(images=images, return_tensors="pt", **texts, **self.options))
        except ValueError as error:  # an image of a shape that it does not take, for instance
            raise ValueError(f"regions {', '.join(sample['id'] for sample in samples)}: {error}") from error
        inputs.pop("labels", None)  # PaliGemma's processor always makes them
        if self.cut and texts and not self.template:
            ends = {self.processor.tokenizer.eos_token_id, self.processor.tokenizer.sep_token_id}
            if all(last in ends for last in inputs["input_ids"][:, -1].tolist()):  # the text is to go on
                length = inputs["input_ids"].shape[1]
                inputs = {k: v[:, :-1] if v.ndim == 2 and v.shape[1] == length else v for k, v in inputs.items()}
        return Batch([sample["id"] for sample in samples], [sample["box"] for sample in samples], inputs)


# --- inputs -> captions ----------------------------------------------------------------------------------------------


class NewTokens(LogitsProcessor):
    """Knows where the generated tokens begin, and penalises repetition among them: words of the prompt, its end tokens
    and its padding, which depends on the other regions of the batch, are no repetition."""

    def __init__(self, penalty: float):
        self.penalty, self.start = penalty, None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.start is None:
            self.start = input_ids.shape[1]
            self.penalize = RepetitionPenaltyLogitsProcessor(self.penalty, prompt_ignore_length=self.start)
        return self.penalize(input_ids, scores) if self.penalty != 1 else scores


class Captioner(FamilyModel):
    """A model of others with the interface of ours; it captions and is not trained.

    Texts are drawn only where options say do_sample=true, whatever the model's own settings. The score is
    exp(sum of the log probabilities of the generated tokens, their end included), as of `RegionResult`: what dense
    captions are ranked by.
    """

    Options = TextOptions
    answers = frozenset(("caption",))

    def __init__(self, model: Any, processor: Any, family: str, prompt: str, task: Task):
        self.model, self.config, row = model, model.config, CAPTIONERS[family]
        own = type(model).generate is GenerationMixin.generate
        # others make of the image what their language model reads, and hand `generate` on to it
        parts = [getattr(model, name, None) for name in ("text_decoder", "text_model", "language_model")]
        self.decoder = model if own else next((part for part in parts if part is not None), model)
        seq2seq = bool(getattr(self.decoder.config, "is_encoder_decoder", False))
        self.processor = Prompts(processor, row, prompt, task, seq2seq=seq2seq, cut=own and not seq2seq)
        decoding = self.decoder.generation_config
        if decoding.pad_token_id is None:
            decoding.pad_token_id = processor.tokenizer.pad_token_id
        decoding.max_length = None  # new tokens are counted
        decoding.do_sample = False
        decoding.temperature = decoding.top_p = decoding.top_k = None
        decoding.max_new_tokens = decoding.max_new_tokens or MAX_NEW_TOKENS
        self._settings = {
            "family": family,
            "model_type": self.config.model_type,
            "revision": getattr(self.config, "_commit_hash", None),
            "convention": row.description,
            "line": {"around": task.prompt, "width": task.line_width} if family == "overlay" else None,
            "prompt": prompt,
            "input": self.processor.text,
            "dtype": str(model.dtype).removeprefix("torch."),
            "model_decoding": {
                name: value
                for name, value in json.loads(json.dumps(decoding.to_diff_dict(), default=str)).items()
                if name not in NO_DECODING
            },
        }

    @property
    def device(self) -> torch.device:
        return self.model.device

    def named_parameters(self):
        return self.model.named_parameters()

    def before_eval(self) -> None:
        self.model.eval()

    def check_options(self, options: TextOptions) -> None:
        check_generation(options.decoding())

    def settings(self, options: TextOptions) -> dict[str, Any]:
        return self._settings | {"generation": options.decoding()}

    @torch.inference_mode()
    def predict(self, batch: Batch, options: TextOptions | None = None) -> list[RegionResult]:
        """One result a region, with a caption and its score. ValueError for unknown generation options."""
        if not len(batch):
            return []
        own = self.decoder.generation_config
        settings = {"max_new_tokens": own.max_new_tokens, **check_generation((options or TextOptions()).decoding())}
        new = NewTokens(settings.pop("repetition_penalty", None) or own.repetition_penalty or 1.0)
        inputs = {
            k: v.to(self.model.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in batch.inputs.items()
        }
        output = self.model.generate(
            **inputs,
            **settings,
            repetition_penalty=1.0,
            logits_processor=LogitsProcessorList([new]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = settings.get("num_beams") or own.num_beams or 1
        penalty = settings.get("length_penalty", own.length_penalty)
        end = settings.get("eos_token_id", own.eos_token_id)
        if self.config.model_type == "blip":
            end = self.config.text_config.sep_token_id  # which its `generate` sets
        ends = [] if end is None else end if isinstance(end, list) else [end]
        score = log_probability(self.decoder, output, ends, beams, 1.0 if penalty is None else penalty)
        texts = self.processor.processor.tokenizer.batch_decode(
            output.sequences[:, new.start :], skip_special_tokens=True
        )
        thinking = self.processor.text.rstrip().endswith("<think>")
        return [
            RegionResult(
                id=batch.ids[r],
                box=batch.boxes[r],
                caption=clean(texts[r], thinking),
                score=float(score[r].double().exp()),
            )
            for r in range(len(batch))
        ]


MARKUP = re.compile(
    r"<\|box_start\|>.*?<\|box_end\|>|<box>.*?</box>|<object>.*?</object>"  # boxes
    r"|<loc_?\d+>|<seg\d+>|<patch_index_\d+>"
    r"|</?(?:ref|box|object|phrase|grounding|image|s|pad|chunk|line|doc|delimiter_of_multi_objects/)>"
    r"|<\|(?:object_ref|box|im|quad)_(?:start|end)\|>|<\|endoftext\|>",
    re.DOTALL,
)


def clean(text: str, thinking: bool = False) -> str:
    """What a model said of the region: without thoughts, boxes and other marks, in one line.

    thinking: whether the prompt has begun a thought. A thought that does not end leaves nothing.

    >>> clean("<think>A dog?</think>\\n\\n<ref>a brown dog</ref><box>[[1, 2, 3, 4]]</box> on grass<|im_end|>")
    'a brown dog on grass'
    """
    if thinking or "<think>" in text:
        text = text.rpartition("</think>")[2] if "</think>" in text else text.partition("<think>")[0] * (not thinking)
    return " ".join(MARKUP.sub(" ", text.rpartition("</think>")[2]).split())
