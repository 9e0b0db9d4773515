"""A new RegionSpot model from the `model:` section of a YAML: SAM and CLIP by hub id, folder or their own config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from dynrefer.errors import check_keys
from dynrefer.vocabulary import read_words, words_of_records

from ..base_parts import fill_part
from ..tokenizer import train_tokenizer
from .configuration import RegionSpotConfig
from .modeling import RegionSpotModel
from .parts import clip_tokenizer_of, normalization, origin, part_config
from .processor import RegionSpotProcessor
from .text_bank import template_list

PARTS = ("sam", "clip")
PART_KEYS = ("name", "revision", "config")
OWN_KEYS = (*PARTS, "tokenizer")
BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)} | {
    "training",
    "base_parts",
    "sam_config",
    "clip_config",
}  # written, not set


def known_keys() -> tuple[str, ...]:
    return (*OWN_KEYS, *(field.name for field in fields(RegionSpotConfig) if field.name not in BASE_FIELDS))


def build(section: Mapping, records: Sequence) -> tuple[RegionSpotModel, RegionSpotProcessor]:
    """section: keys `sam` and `clip` (each with `name`, a hub id or folder, or `config`, the part's own config),
    `tokenizer` ({vocab_size}, trained on the records where CLIP has no name), `categories` (a file, a list, or
    {min_count}; the records' own where nothing is said) and any other field of RegionSpotConfig.

    Raises ValueError for unknown keys, with the nearest known one.
    """
    check_keys(section, known_keys(), "model")
    parts = {name: dict(section.get(name) or {}) for name in PARTS}
    for name, part in parts.items():
        check_keys(part, PART_KEYS, f"model.{name}")
        if not part.get("name") and not part.get("config"):
            raise ValueError(f"model.{name}: neither name nor config; give a hub id or a folder as model.{name}.name")
    settings = {key: value for key, value in section.items() if key not in OWN_KEYS}
    settings["categories"] = category_list(section.get("categories", {}), records)
    settings["templates"] = template_list(section.get("templates", "openai81"))
    configs = {f"{name}_config": part_config(part, name) for name, part in parts.items()}
    place = parts["clip"].get("name"), parts["clip"].get("revision")
    tokenizer = None
    if place[0] is None:
        tokenizer = new_tokenizer(section, records)
        set_vocabulary(configs["clip_config"], tokenizer)
    config = RegionSpotConfig(**configs, **{**normalization(*place), **settings})
    tokenizer = tokenizer or clip_tokenizer_of(*place, config.clip_config)
    model = RegionSpotModel(config)
    for name, part in parts.items():
        if part.get("name"):
            fill_part(model, name, origin(part["name"], part.get("revision")))
    model.processor = RegionSpotProcessor(config, tokenizer)
    return model, model.processor


def category_list(source: Any, records: Sequence) -> list[str]:
    """A file or a list, each name once; {min_count: n} or nothing: the records' own that occur at least n times."""
    if source is None or isinstance(source, Mapping):
        check_keys(source or {}, ("min_count",), "model.categories")
        source = words_of_records(records, "category", (source or {}).get("min_count", 1))
    return list(dict.fromkeys(read_words(source)))


def new_tokenizer(section: Mapping, records: Sequence) -> Any:
    """Trained on the records, for a CLIP that is new."""
    settings = dict(section.get("tokenizer") or {})
    check_keys(settings, ("vocab_size",), "model.tokenizer")
    texts = [text for record in records for text in (*record.captions, record.category or "") if text]
    if not texts:
        raise ValueError("model.tokenizer: the training records have no texts to train a tokenizer on")
    return train_tokenizer(texts, settings.get("vocab_size", 4000))


def set_vocabulary(clip_config: dict, tokenizer) -> None:
    """A new CLIP's vocabulary is that of its tokenizer."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    clip_config["text_config"] = {**ids, **(clip_config.get("text_config") or {})}


# What may change when training goes on from a saved model: nothing that shapes a tensor or a text.
CHANGEABLE = ("decoder_dropout", "focal_alpha", "focal_gamma", "mirror", "licence")


def adapt(model: RegionSpotModel, section: Mapping) -> None:
    """A saved model takes over what the `model:` section of a YAML says of CHANGEABLE fields, and another list of
    `categories`: they shape no tensor. ValueError where the section describes another model than the saved one."""
    check_keys(section, known_keys(), "model")
    config = model.config
    for key, value in section.items():
        if key in CHANGEABLE:
            setattr(config, key, value)
        elif key == "categories":
            if not isinstance(value, Mapping | None):
                config.categories = category_list(value, ())
        elif key == "templates":
            if template_list(value) != template_list(config.templates):
                raise other_model("model.templates", value, config.templates)
        elif key in PARTS:
            saved = getattr(config, f"{key}_config").to_dict()
            for name, number in ((value or {}).get("config") or {}).items():
                if name in saved and saved[name] != number:
                    raise other_model(f"model.{key}.{name}", number, saved[name])
        elif key not in OWN_KEYS and getattr(config, key) != value:
            raise other_model(f"model.{key}", value, getattr(config, key))
    for layer in model.decoder.modules():
        if layer.__class__.__name__ == "Dropout":
            layer.p = config.decoder_dropout
    for layer in model.decoder.layers:
        layer.self_attn.dropout = layer.multihead_attn.dropout = config.decoder_dropout
    model.processor = RegionSpotProcessor(config, model.processor.tokenizer)


def other_model(where: str, wanted: Any, saved: Any) -> ValueError:
    return ValueError(f"{where} is {wanted!r}, but the model of `init` has {saved!r}; leave it out, or set init=null")
