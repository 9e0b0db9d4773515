"""A new RegionSpot model from the `model:` section of a YAML: SAM and CLIP by hub id, folder or their own config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from dynrefer.errors import check_keys
from dynrefer.vocabulary import read_words, words_of_records

from ..base_parts import Origin, check_source, fill_part, local_folder, locate
from ..folder_check import read_object, reading
from ..tokenizer import train_tokenizer
from .configuration import RegionSpotConfig
from .modeling import RegionSpotModel
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
    tokenizer = tokenizer_of(section, parts["clip"], records)
    configs = {f"{name}_config": part_config(part, name) for name, part in parts.items()}
    if not parts["clip"].get("name"):
        set_vocabulary(configs["clip_config"], tokenizer)
    config = RegionSpotConfig(**configs, **{**normalization(parts["clip"].get("name")), **settings})
    model = RegionSpotModel(config)
    for name, part in parts.items():
        if part.get("name"):
            fill_part(model, name, Origin("transformers", *locate(part["name"], part.get("revision"))))
    model.processor = RegionSpotProcessor(config, tokenizer)
    return model, model.processor


def category_list(source: Any, records: Sequence) -> list[str]:
    """A file or a list, each name once; {min_count: n} or nothing: the records' own that occur at least n times."""
    if source is None or isinstance(source, Mapping):
        check_keys(source or {}, ("min_count",), "model.categories")
        source = words_of_records(records, "category", (source or {}).get("min_count", 1))
    return list(dict.fromkeys(read_words(source)))


def part_config(part: Mapping, name: str) -> dict:
    """The part's own config as a dict, in full precision whatever it was saved in."""
    values = dict(part.get("config") or {})
    if part.get("name"):
        place = {"revision": part.get("revision")}
        check_source(part["name"], weights=False, **place)
        with reading(f"model.{name}.name {part['name']!r}", "no config.json that can be read"):
            config = AutoConfig.from_pretrained(part["name"], trust_remote_code=False, **place)
        values = {**config.to_dict(), **values}
        values.pop("_name_or_path", None)  # base_parts says it, and may leave a local path out
    return without_dtype(values)


def without_dtype(values: Any) -> Any:
    """A config's values without the number type that it was saved in, its parts' too."""
    if isinstance(values, Mapping):
        return {key: without_dtype(value) for key, value in values.items() if key not in ("dtype", "torch_dtype")}
    return values


def normalization(name: str | None, revision: str | None = None) -> dict[str, list[float]]:
    """What CLIP's preprocessor_config.json says of channel means; {} where there is none."""
    folder = None if name is None else local_folder(name, revision=revision)
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.is_file():
        return {}
    content = read_object(path, "model file")
    return {key: content[key] for key in ("image_mean", "image_std") if key in content}


def tokenizer_of(section: Mapping, part: Mapping, records: Sequence):
    """CLIP's own; OpenAI's where a folder has none; one trained on the records where CLIP is new."""
    if part.get("name"):
        return clip_tokenizer_of(part["name"], part.get("revision"))
    settings = dict(section.get("tokenizer") or {})
    check_keys(settings, ("vocab_size",), "model.tokenizer")
    texts = [text for record in records for text in (*record.captions, record.category or "") if text]
    if not texts:
        raise ValueError("model.tokenizer: the training records have no texts to train a tokenizer on")
    return train_tokenizer(texts, settings.get("vocab_size", 4000))


def clip_tokenizer_of(name: str, revision: str | None = None):
    """The tokenizer in a CLIP's folder or hub id; OpenAI's, which open_clip carries, where a folder has none."""
    from dynrefer.convert.clip_text import clip_tokenizer

    folder = local_folder(name, revision=revision)
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")
    if folder is not None and not any((folder / file).is_file() for file in files):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        return clip_tokenizer(config.text_config.vocab_size)
    check_source(name, weights=False, revision=revision)
    with reading(f"clip {name!r}", "no tokenizer that can be read"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


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
