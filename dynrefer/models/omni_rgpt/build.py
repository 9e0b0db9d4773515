"""A new Omni-RGPT model from the `model:` section of a YAML: its base by hub id, folder or its own config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig

from dynrefer.errors import check_keys
from dynrefer.mentions import MENTION

from ..base_parts import Origin, check_source, fill_part, locate
from ..folder_check import reading
from ..language import MODES
from ..tokenizer import train_tokenizer
from .bases import base_kind, part_of
from .configuration import OmniRgptConfig
from .modeling import OmniRgptModel
from .other_regions import HUNDRED
from .processor import OmniRgptProcessor
from .texts import chat_template, check_template

BASE_KEYS = ("name", "revision", "config", "mode", "lora", "vision", "projector")
OWN_KEYS = ("base", "tokenizer")
WRITTEN = ("training", "base_parts", "base_config", "base_mode", "base_lora", "frame_grid", "frame_tokens")
BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)} | {*WRITTEN, "vision_trainable", "projector_trainable"}


def known_keys() -> tuple[str, ...]:
    return (*OWN_KEYS, *(field.name for field in fields(OmniRgptConfig) if field.name not in BASE_FIELDS))


def build(section: Mapping, records: Sequence) -> tuple[OmniRgptModel, OmniRgptProcessor]:
    """section: key `base` (`name`, a hub id or folder, or `config`, its own config; `mode` and `lora` of its language
    model; `vision` and `projector`, whether these learn), `tokenizer` ({vocab_size}, trained on the records where the
    base has no name) and any other field of OmniRgptConfig.

    Raises ValueError for unknown keys, with the nearest known one.
    """
    check_keys(section, known_keys(), "model")
    base = dict(section.get("base") or {})
    check_keys(base, BASE_KEYS, "model.base")
    if not base.get("name") and not base.get("config"):
        raise ValueError("model.base: neither name nor config; give a hub id or a folder as model.base.name")
    settings = {key: value for key, value in section.items() if key not in OWN_KEYS}
    if base.get("name"):
        base_config, tokenizer, normalization = published(base)
        settings = {**normalization, **settings}
    else:
        base_config, tokenizer = new_base(base["config"], section, records)
    config = OmniRgptConfig(base_config=base_config.to_dict(), **trained(base), **settings)
    model = OmniRgptModel(config)
    if base.get("name"):
        fill_part(model, "base", Origin("transformers", *locate(base["name"], base.get("revision"))))
    model.fit_marks()
    in_full_precision(model)
    model.processor = OmniRgptProcessor(config, tokenizer)
    return model, model.processor


def trained(base: Mapping) -> dict[str, Any]:
    """Fields of the config that say what learns, of those that a `base:` section names."""
    names = {"mode": "base_mode", "lora": "base_lora", "vision": "vision_trainable", "projector": "projector_trainable"}
    return {field: base[key] for key, field in names.items() if key in base}


def in_full_precision(model: OmniRgptModel) -> None:
    """What is trained is float32, whatever a hub id's config says; vision encoder and projector are of one type."""
    learns = {part_of(name) for name, parameter in model.base.named_parameters() if parameter.requires_grad}
    if learns & {"vision", "projector"}:
        learns |= {"vision", "projector"}
    whole = model.config.base_mode == "full"
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix("base.")) if name.startswith("base.") else None
        if parameter.requires_grad or part in learns and (part != "language" or whole):
            parameter.data = parameter.data.float()


def published(base: Mapping) -> tuple[PreTrainedConfig, Any, dict]:
    """Config, tokenizer and normalization of a base that others trained."""
    place = {"revision": base.get("revision")}
    check_source(base["name"], weights=False, **place)
    with reading(f"model.base.name {base['name']!r}", "no config.json that can be read"):
        config = AutoConfig.from_pretrained(base["name"], trust_remote_code=False, **place)
    kind = base_kind(config)
    with reading(f"model.base.name {base['name']!r}", "no tokenizer and picture settings that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(base["name"], trust_remote_code=False, **place)
        pictures = AutoImageProcessor.from_pretrained(base["name"], trust_remote_code=False, **place)
        if tokenizer.chat_template is None:  # older ones keep it with the processor
            whole = AutoProcessor.from_pretrained(base["name"], trust_remote_code=False, **place)
            tokenizer.chat_template = getattr(whole, "chat_template", None) or chat_template(kind)
    check_template(tokenizer, f"model.base.name {base['name']!r}")
    return config, tokenizer, {name: list(getattr(pictures, name)) for name in ("image_mean", "image_std")}


def new_base(values: Mapping, section: Mapping, records: Sequence) -> tuple[PreTrainedConfig, Any]:
    """Config and tokenizer of a base that starts from nothing; the tokenizer is trained on the records."""
    values = dict(values)
    with reading("model.base.config", "not a config of this architecture"):
        config = AutoConfig.for_model(values.pop("model_type", ""), **values)
    kind = base_kind(config)
    settings = dict(section.get("tokenizer") or {})
    check_keys(settings, ("vocab_size",), "model.tokenizer")
    texts = [text for record in records for text in (*record.captions, record.category or "") if text]
    texts += [MENTION.sub("", text) for record in records for text in getattr(record, "questions", ())]
    if not texts:
        raise ValueError("model.tokenizer: the training records have no texts to train a tokenizer on")
    asked = section.get("questions") or OmniRgptConfig.questions
    numbers = [f"[ {' '.join(HUNDRED)} ]"] if section.get("regions") == "words" else []
    tokenizer = train_tokenizer([*texts, *asked, *numbers, "USER: ASSISTANT: region"], settings.get("vocab_size", 4000))
    tokenizer.add_tokens(kind.special, special_tokens=True)
    tokenizer.chat_template = chat_template(kind)
    text = config.text_config
    text.vocab_size, text.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.image_token_id = tokenizer.convert_tokens_to_ids(kind.token)
    return config, tokenizer


# What may change when training goes on from a saved model: nothing that shapes a tensor or a picture.
CHANGEABLE = (
    "marks_trainable",
    "mark_draw",
    "marks",
    "packed",
    "guide_prompt_frame",
    "num_frames",
    "annotated_frames",
    "least_coverage",
    "box_prompts",
    "questions",
    "generation",
    "licence",
)


def adapt(model: OmniRgptModel, section: Mapping) -> None:
    """A saved model takes over what the `model:` section of a YAML says of CHANGEABLE fields and of what is trained
    (`mode`, `lora`, `vision` and `projector` of its base). ValueError where the section describes another model than
    the saved one."""
    check_keys(section, known_keys(), "model")
    config = model.config
    base = dict(section.get("base") or {})
    check_keys(base, BASE_KEYS, "model.base")
    for key, value in section.items():
        if key in CHANGEABLE:
            setattr(config, key, value)
        elif key == "base":
            saved = config.base_config.to_dict()
            for name, number in (base.get("config") or {}).items():
                if name in saved and not isinstance(number, Mapping) and saved[name] != number:
                    raise other_model(f"model.base.{name}", number, saved[name])
        elif key not in OWN_KEYS and getattr(config, key) != value:
            raise other_model(f"model.{key}", value, getattr(config, key))
    set_trained(model, base)
    model.processor = OmniRgptProcessor(config, model.processor.tokenizer)


def set_trained(model: OmniRgptModel, base: Mapping) -> None:
    """What a `base:` section says of what learns; the rest stays as it was saved."""
    config = model.config
    saved = config.base_mode, config.base_lora
    mode = base.get("mode", saved[0])
    if mode not in MODES:
        raise ValueError(f"model.base.mode {mode!r}: expected one of {', '.join(MODES)}")
    lora = base.get("lora", saved[1]) if mode == "lora" else None
    if saved[0] == "lora" and (mode, lora) != saved:
        raise ValueError(
            f"model.base is {mode} {lora or ''} and the model of `init` has LoRA layers {saved[1]}; leave mode and "
            "lora out to train those further, or merge them first: save_pretrained(FOLDER, adapters='merged')"
        )
    for field, value in trained(base).items():
        setattr(config, field, value)
    config.base_mode, config.base_lora = mode, lora
    if mode == "lora" and saved[0] != "lora":
        model.add_lora()
    model.freeze()
    in_full_precision(model)


def other_model(where: str, wanted: Any, saved: Any) -> ValueError:
    return ValueError(f"{where} is {wanted!r}, but the model of `init` has {saved!r}; leave it out, or set init=null")
