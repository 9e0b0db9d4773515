"""A new DynRefer model from the `model:` section of a YAML: parts by hub id or by their own config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.mixture import Mixture
from dynrefer.data.packing import Piece
from dynrefer.data.records import RegionRecords
from dynrefer.errors import check_keys
from dynrefer.vocabulary import read_attributes, read_words, words_of_records

from ..base_parts import Origin, check_source, fill_part, locate
from ..folder_check import reading
from ..language import MODES
from ..tokenizer import train_tokenizer
from ..vision import NORMS
from .configuration import DynReferConfig
from .modeling import DynReferModel
from .options import Options
from .processor import DynReferProcessor

NUM_MEASURED = 64  # pictures
PARTS = ("vision", "language", "text")
PART_KEYS = ("name", "revision", "config", "trainable", "mode", "lora")
VISION_KEYS = (*PART_KEYS, "norm")
OWN_KEYS = (*PARTS, "qformer", "tokenizer", "words")


def build(section: Mapping, records: Sequence) -> tuple[DynReferModel, DynReferProcessor]:
    """section: keys `vision`, `language`, `text` (each with `name`, a hub id or folder, or `config`, the part's own
    config, and `trainable`, for the vision encoder `norm`, for the language model `mode` and `lora`), `qformer`
    (its config), `tokenizer` ({vocab_size}, trained on the records where the language model has no name), `words`
    ({tags, attributes, categories}: files, lists, or {min_count} for the records' own words), and any field of
    DynReferConfig.

    Raises ValueError for unknown keys, with the nearest known one, and for group normalization in a vision encoder that
    was trained with another.
    """
    check_keys(section, known_keys(), "model")
    parts = {name: dict(section.get(name) or {}) for name in PARTS}
    for name, part in parts.items():
        check_keys(part, VISION_KEYS if name == "vision" else PART_KEYS, f"model.{name}")
    if parts["vision"].get("name") and parts["vision"].get("norm") == "group":
        raise ValueError(
            f"model.vision.norm is 'group', but {parts['vision']['name']} was trained with another normalization; use "
            "norm: frozen, which keeps its statistics"
        )
    tokenizer, text_tokenizer = tokenizers(section, parts, records)
    settings = {key: value for key, value in section.items() if key not in OWN_KEYS}
    words = dict(section.get("words") or {})
    check_keys(words, ("tags", "attributes", "categories"), "model.words")
    for kind, read in (("tags", read_words), ("attributes", read_attributes), ("categories", read_words)):
        settings[kind] = word_list(words.get(kind, {}), kind, read, records)
    config = DynReferConfig(
        vision_config=part_config(parts["vision"], "vision"),
        language_config=part_config(parts["language"], "language", tokenizer),
        text_config=part_config(parts["text"], "text", text_tokenizer),
        qformer_config=dict(section.get("qformer") or {}),
        vision_norm=parts["vision"].get("norm", "batch"),
        vision_trainable=bool(parts["vision"].get("trainable", False)),
        text_trainable=bool(parts["text"].get("trainable", False)),
        language_mode=parts["language"].get("mode", "frozen"),
        language_lora=parts["language"].get("lora"),
        **settings,
    )
    model = DynReferModel(config)
    load_parts(model, parts)
    for parameter in model.parameters():
        if parameter.requires_grad:  # what is trained is trained in full precision, whatever a hub id's config says
            parameter.data = parameter.data.float()
    processor = DynReferProcessor(config, tokenizer, text_tokenizer)
    model.processor = processor
    if config.vision_norm == "frozen" and not parts["vision"].get("name"):
        measure_norms(model, records)
    model.before_eval()
    return model, processor


def measure_norms(model: DynReferModel, records: Sequence) -> None:
    """What a new vision encoder with `norm: frozen` normalizes with: the statistics of the views of NUM_MEASURED
    pictures, spread over the training records. They are the same for any number of processes."""
    records = records.parts[0] if isinstance(records, Mixture) else records
    if not isinstance(records, RegionRecords):
        raise ValueError(
            "model.vision.norm is 'frozen' and the vision encoder is new: its statistics are measured on pictures of a "
            f"record file, and the training data is {type(records).__name__}; use norm: group, or start from a saved "
            "model with init"
        )
    dataset = ExampleDataset(records, model.processor, Options(), train=True, seed=0)
    numbers = np.linspace(0, len(dataset.counts) - 1, min(NUM_MEASURED, len(dataset.counts))).astype(int)
    pieces = [Piece(int(number), np.arange(dataset.counts[number])) for number in numbers]
    samples = [sample for piece in pieces for sample in dataset.samples(dataset.example(piece), epoch=0)]
    views = torch.stack([torch.as_tensor(sample["views"]) for sample in samples])  # (R, V, 3, S, S)
    model.vision.measure_norms(model.normalize(views).flatten(0, 1))


# What may change when training goes on from a saved model: nothing that shapes a tensor or a text.
CHANGEABLE = (
    "view_strategy",
    "train_view_strategy",
    "tag_threshold",
    "control_drop_all",
    "control_keep",
    "generation",
    "mirror",
    "box_jitter",
    "mask_same_caption",
    "pair_over",
    "licence",
)


def adapt(model: DynReferModel, section: Mapping) -> None:
    """A saved model takes over what the `model:` section of a YAML says of CHANGEABLE fields and of what is trained
    (`trainable`, the vision encoder's `norm`, and the language model's `mode` and `lora`); word lists and tokenizers
    stay its own. ValueError where the section describes another model than the saved one."""
    config = model.config
    check_keys(section, known_keys(), "model")
    for key, value in section.items():
        if key in CHANGEABLE:
            setattr(config, key, value)
        elif key in (*PARTS, "qformer"):
            wanted = section[key] if key == "qformer" else (section[key] or {}).get("config")
            saved = getattr(config, f"{key}_config").to_dict()
            for name, number in (wanted or {}).items():
                if name in saved and saved[name] != number and name != "initializer_range":
                    raise other_model(f"model.{key}.{name}", number, saved[name])
        elif key not in OWN_KEYS and getattr(config, key) != value:
            raise other_model(f"model.{key}", value, getattr(config, key))
    set_trained(model, {name: section.get(name) or {} for name in PARTS})


def set_trained(model: DynReferModel, parts: Mapping[str, Mapping]) -> None:
    """What the parts of a `model:` section say of `trainable`, `norm`, `mode` and `lora`; the rest stays as it was
    saved."""
    config = model.config
    norm = parts["vision"].get("norm", config.vision_norm)
    if norm != config.vision_norm and "group" in (norm, config.vision_norm):
        raise other_model("model.vision.norm", norm, config.vision_norm)
    if norm not in NORMS:
        raise ValueError(f"model.vision.norm {norm!r}: expected one of {', '.join(NORMS)}")
    config.vision_norm = model.vision.norm = norm
    config.vision_trainable = bool(parts["vision"].get("trainable", config.vision_trainable))
    config.text_trainable = bool(parts["text"].get("trainable", config.text_trainable))
    saved = config.language_mode, config.language_lora
    mode = parts["language"].get("mode", saved[0])
    lora = parts["language"].get("lora", saved[1]) if mode == "lora" else None
    if saved[0] == "lora" and (mode, lora) != saved:
        raise ValueError(
            f"model.language is {mode} {lora or ''} and the model of `init` has LoRA layers {saved[1]}; leave mode and "
            "lora out to train those further, or merge them first: save_pretrained(FOLDER, adapters='merged')"
        )
    if mode not in MODES:
        raise ValueError(f"model.language.mode {mode!r}: expected one of {', '.join(MODES)}")
    model.language.set_mode(mode, lora)
    config.language_mode, config.language_lora = mode, lora
    model.freeze()


def other_model(where: str, wanted, saved) -> ValueError:
    return ValueError(f"{where} is {wanted!r}, but the model of `init` has {saved!r}; leave it out, or set init=null")


def known_keys() -> tuple[str, ...]:
    return (*OWN_KEYS, *(field.name for field in fields(DynReferConfig) if field.name not in BASE_FIELDS))


BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)} | {"training", "base_parts"}  # written, not set


def tokenizers(section: Mapping, parts: Mapping[str, Mapping], records: Sequence):
    """The language model's and the text encoder's; trained on the captions where no name is given."""
    found = {name: part_tokenizer(parts[name], name) for name in ("language", "text") if parts[name].get("name")}
    if len(found) < 2:
        settings = dict(section.get("tokenizer") or {})
        check_keys(settings, ("vocab_size",), "model.tokenizer")
        lower = str.lower if section.get("lowercase") else str
        texts = [lower(text) for record in records for text in (*record.captions, *(record.tags or ()))]
        if not texts:
            raise ValueError("model.tokenizer: the training records have no captions to train a tokenizer on")
        trained = train_tokenizer(texts, settings.get("vocab_size", 4000))
        found = {"language": trained, "text": trained, **found}
    return found["language"], found["text"]


def part_tokenizer(part: Mapping, name: str):
    """Of a part's folder or hub id; ValueError where there is none that can be read."""
    place = {"revision": part.get("revision")}
    check_source(part["name"], weights=False, **place)
    with reading(f"model.{name}.name {part['name']!r}", "no tokenizer that can be read"):
        return AutoTokenizer.from_pretrained(part["name"], trust_remote_code=False, **place)


def part_config(part: Mapping, name: str, tokenizer=None) -> dict:
    """The part's own config as a dict; vocabulary size and special ids follow the tokenizer where it was trained."""
    if part.get("name"):
        place = {"revision": part.get("revision")}
        check_source(part["name"], weights=False, **place)
        with reading(f"model.{name}.name {part['name']!r}", "no config.json that can be read"):
            config = AutoConfig.from_pretrained(part["name"], trust_remote_code=False, **place)
        for inner in (f"{name}_config", "text_config"):  # a two-tower model, or one with a language model inside
            if name != "language" or not hasattr(config, "vocab_size"):
                config = getattr(config, inner, config)
        values = {**config.to_dict(), **(part.get("config") or {})}
        values.pop("_name_or_path", None)  # base_parts says it, and may leave a local path out
        return values
    values = dict(part.get("config") or {})
    if tokenizer is not None:
        ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
        values = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **ids, **values}
        if values.get("model_type") == "t5":
            values.setdefault("decoder_start_token_id", tokenizer.pad_token_id)
    return values


def word_list(source, kind: str, read, records: Sequence) -> list:
    """A file or a list as it is; {min_count: n} or nothing: the records' own words that occur at least n times."""
    if source is None:
        return []
    if isinstance(source, Mapping):
        check_keys(source, ("min_count",), f"model.words.{kind}")
        field = {"tags": "tags", "attributes": "attributes", "categories": "category"}[kind]
        source = words_of_records(records, field, source.get("min_count", 1))
    return read(source)


def load_parts(model: DynReferModel, parts: Mapping[str, Mapping]) -> None:
    """Pretrained weights of the named parts, and their sources into the config. ValueError when a file lacks a tensor
    of its part."""
    for name, part in parts.items():
        if part.get("name"):
            fill_part(model, name, Origin("transformers", *locate(part["name"], part.get("revision"))))
