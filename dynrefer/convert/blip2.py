"""Transformers' BLIP-2 and InstructBLIP folders: their parts' names in our models, their tensors and tokenizer."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dynrefer.convert.tensors import read_safetensors, rename, rename_all
from dynrefer.models.folder_check import check_folder, reading

# LAVIS's name -> Transformers', which is ours too; {i} is a layer number.
QFORMER_NAMES = {
    "query_tokens": "query_tokens",
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.encoder.layer.{i}.attention.self.": "qformer.encoder.layer.{i}.attention.attention.",
    "Qformer.bert.encoder.layer.{i}.crossattention.self.": "qformer.encoder.layer.{i}.crossattention.attention.",
    "Qformer.bert.encoder.": "qformer.encoder.",
}
# Transformers' name -> ours.
BASE_NAMES = {
    "vision_model.": "vision.model.",
    "qformer.": "qformer.",
    "query_tokens": "query_tokens",
    "language_model.": "language.model.",
    "language_projection.": "language.projection.",
}


def base_folder(base: str | Path, revision: str | None = None) -> Path:
    """The base model's folder, fetched from the hub where it is an id."""
    if (Path(base) / "config.json").is_file():
        check_folder(base, weights=False)
        return Path(base)
    if Path(base).exists():
        raise ValueError(f"base {str(base)!r}: no config.json in it; expected a transformers folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
        folder = Path(snapshot_download(str(base), revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"base {str(base)!r}: neither a folder nor a hub id that can be fetched ({error})") from error
    check_folder(folder, weights=False)
    return folder


def read_base(folder: Path) -> tuple[dict[str, Tensor], object]:
    """The base's tensors under our names, its Q-Former and projection left as they are, and its config."""
    from transformers import AutoConfig

    with reading(f"base {str(folder)!r}", "its config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    parts = [name for name in ("vision_config", "qformer_config", "text_config") if not hasattr(config, name)]
    if parts:
        raise ValueError(
            f"base {str(folder)!r} is of type {config.model_type!r}, whose config has no {', '.join(parts)}; expected "
            "BLIP-2's or InstructBLIP's layout"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"base {str(folder)!r}: no .safetensors file in it")
    tensors = {name: tensor for file in files for name, tensor in read_safetensors(file).items()}
    return rename_all(tensors, lambda name: rename(name, BASE_NAMES), f"base {str(folder)!r}"), config


def base_tokenizer(folder: Path, vocab_size: int):
    """The language model's; ValueError where there is none or it has more entries than the model."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")):
        raise ValueError(f"base {str(folder)!r}: no tokenizer in it, neither tokenizer.json nor tokenizer_config.json")
    with reading(f"base {str(folder)!r}", "its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"base {str(folder)!r}: its tokenizer has {tokenizer.vocab_size} entries, its language model {vocab_size}"
        )
    return tokenizer


def part_settings(config) -> dict:
    """A part's config as a dict, without the number type that its file had."""
    return {key: value for key, value in config.to_dict().items() if key not in ("dtype", "torch_dtype")}
