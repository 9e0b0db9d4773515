"""SAM and CLIP as others published them: their config, tokenizer, normalization and where their weights are.

A part's name is a hub id or folder of transformers, or, of CLIP, "open_clip:ARCHITECTURE:TAG" with a tag of
open_clip's or a file, or "open_clip:FOLDER" with what open_clip writes of a model: its settings and its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from dynrefer.convert.clip_text import clip_tokenizer, import_open_clip
from dynrefer.errors import suggestion

from ..base_parts import Origin, check_source, local_folder, locate
from ..folder_check import read_object, reading
from .clip import OpenClipConfig

OPEN_CLIP = "open_clip:"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")
FOLDER_CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VIDEO = {"sam2_video": "sam2"}  # model types of files whose picture part is ours


def origin(name: str, revision: str | None = None) -> Origin:
    """Where a part's weights are. ValueError for weights that open_clip does not know."""
    if not name.startswith(OPEN_CLIP):
        return Origin("transformers", *locate(name, revision))
    if (folder := open_clip_folder(name)) is not None:
        files = [folder / file for file in FOLDER_WEIGHTS if (folder / file).is_file()]
        if not files:
            raise ValueError(f"clip {name!r}: no weights in the folder; expected {' or '.join(FOLDER_WEIGHTS)}")
        return Origin("open_clip", str(files[0].resolve()))
    architecture, weights = open_clip_name(name)
    if Path(weights).exists():
        return Origin("open_clip", str(Path(weights).resolve()))
    tags = import_open_clip().list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise ValueError(
            f"clip {name!r}: {weights!r} is neither a file nor weights that open_clip knows of {architecture} "
            f"({', '.join(tags) or 'none'}).{suggestion(weights, tags)}"
        )
    return Origin("open_clip", weights)


def open_clip_name(name: str) -> tuple[str, str]:
    """Architecture and weights."""
    architecture, _, weights = name.removeprefix(OPEN_CLIP).partition(":")
    if not weights:
        raise ValueError(f"clip {name!r}: no weights; expected open_clip:ARCHITECTURE:TAG_OR_FILE or open_clip:FOLDER")
    return architecture, weights


def open_clip_folder(name: str) -> Path | None:
    """The folder of "open_clip:FOLDER"; None for another name."""
    folder = Path(name.removeprefix(OPEN_CLIP))
    return folder if name.startswith(OPEN_CLIP) and folder.is_dir() else None


def folder_settings(folder: Path) -> dict[str, dict]:
    """`model_cfg` and `preprocess_cfg` of a folder that open_clip has written. ValueError where they are none."""
    content = read_object(folder / FOLDER_CONFIG, "open_clip's settings")
    model = content.get("model_cfg")
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
        raise ValueError(
            f"open_clip's settings {str(folder / FOLDER_CONFIG)!r}: no model_cfg with embed_dim, vision_cfg and "
            "text_cfg; name a folder that open_clip has written"
        )
    return {"model_cfg": model, "preprocess_cfg": content.get("preprocess_cfg") or {}}


def part_config(part: Mapping, name: str) -> dict:
    """A part's own config as a dict, in full precision whatever it was saved in. part: `name`, `revision`, and `config`
    over what is found there; name: "sam" or "clip"."""
    values = dict(part.get("config") or {})
    if source := part.get("name"):
        place = {"revision": part.get("revision")}
        if (folder := open_clip_folder(source)) is not None:
            settings = folder_settings(folder)["model_cfg"]
            config = OpenClipConfig(architecture=folder.resolve().name, model_cfg=settings)
        elif source.startswith(OPEN_CLIP):
            config = OpenClipConfig(architecture=open_clip_name(source)[0])
        else:
            check_source(source, weights=False, **place)
            with reading(f"{name} {source!r}", "no config.json that can be read"):
                config = AutoConfig.from_pretrained(source, trust_remote_code=False, **place)
        values = {**config.to_dict(), **values}
        values["model_type"] = VIDEO.get(values["model_type"], values["model_type"])
        values.pop("_name_or_path", None)  # base_parts says it, and may leave a local path out
    return without_dtype(values)


def without_dtype(values: Any) -> Any:
    """A config's values without the number type that it was saved in, its parts' too."""
    if isinstance(values, Mapping):
        return {key: without_dtype(value) for key, value in values.items() if key not in ("dtype", "torch_dtype")}
    return values


def normalization(name: str | None, revision: str | None = None) -> dict[str, list[float]]:
    """What a CLIP says of channel means and deviations; {} where it says nothing."""
    if name is None:
        return {}
    if name.startswith(OPEN_CLIP):
        if (folder := open_clip_folder(name)) is not None:
            found = folder_settings(folder)["preprocess_cfg"]
        else:
            architecture, weights = open_clip_name(name)
            tags = import_open_clip().list_pretrained_tags_by_model(architecture)
            tag = weights if weights in tags else next(iter(tags), None)
            found = import_open_clip().get_pretrained_cfg(architecture, tag) if tag else {}
        return {f"image_{key}": list(found[key]) for key in ("mean", "std") if found.get(key)}
    folder = local_folder(name, revision=revision)
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.is_file():
        return {}
    content = read_object(path, "model file")
    return {key: content[key] for key in ("image_mean", "image_std") if key in content}


def clip_tokenizer_of(name: str, revision: str | None, config: Any) -> Any:
    """The tokenizer of a CLIP; OpenAI's, which open_clip carries, where a folder has none. config: of that CLIP."""
    if isinstance(config, OpenClipConfig):
        text = config.model_cfg["text_cfg"]
        name, revision = text.get("hf_tokenizer_name"), None
        if name is None:
            return clip_tokenizer(text["vocab_size"])
    else:
        folder = local_folder(name, revision=revision)
        if folder is not None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
            return clip_tokenizer(config.text_config.vocab_size)
    check_source(name, weights=False, revision=revision)
    with reading(f"clip {name!r}", "no tokenizer that can be read"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
