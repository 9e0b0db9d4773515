"""Released DynRefer checkpoints <-> our folders.

A released file holds the trained tensors only; vision, query tokens and language model come from BLIP-2 (or an
InstructBLIP-style base with a decoder-only language model), the text encoder from EVA-CLIP. Every tensor is used,
checked as a copy and ignored, or named in an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

# Released name -> ours; {i} is a layer number. Both directions read this one table.
CHECKPOINT_NAMES = {
    "cvem_align.": "region_encoder.align.",
    "cvem_mlp.": "region_encoder.mlp.",
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.encoder.layer.{i}.attention.self.": "qformer.encoder.layer.{i}.attention.attention.",
    "Qformer.bert.encoder.layer.{i}.crossattention.self.": "qformer.encoder.layer.{i}.crossattention.attention.",
    "Qformer.bert.encoder.": "qformer.encoder.",
    "tag_head.encoder.": "tag_decoder.",
    "tag_vision_proj.": "tag_decoder.vision_proj.",
    "tag_text_proj.": "tag_decoder.text_proj.",
    "tag_fc.": "tag_decoder.fc.",
    "attr_head.encoder.": "region_text_decoder.",
    "attr_vision_proj.": "region_text_decoder.vision_proj.",
    "attr_text_proj.": "region_text_decoder.text_proj.",
    "attr_fc.": "region_text_decoder.fc.",
    "attr_t": "region_text_decoder.logit_scale",
    "attr_b": "region_text_decoder.logit_bias",
    "t5_proj.": "language.projection.",
    "llm_proj.": "language.projection.",
    "cem_memory": "language.control_memory",
    "query_tokens": "query_tokens",
    "t5_model.": "language.model.",
    "llm_model.": "language.model.",
}
DECODER_NAMES = {
    "layer.{i}.crossattention.self.": "layers.{i}.",
    "layer.{i}.crossattention.output.dense.": "layers.{i}.attention_output.",
    "layer.{i}.crossattention.output.LayerNorm.": "layers.{i}.attention_norm.",
    "layer.{i}.intermediate.dense.": "layers.{i}.intermediate.",
    "layer.{i}.output.dense.": "layers.{i}.output.",
    "layer.{i}.output.LayerNorm.": "layers.{i}.output_norm.",
}
BASE_NAMES = {
    "vision_model.": "vision.model.",
    "qformer.": "qformer.",
    "query_tokens": "query_tokens",
    "language_model.": "language.model.",
    "language_projection.": "language.projection.",
}
TEXT_NAMES = {
    "transformer.resblocks.{i}.ln_1.": "encoder.layers.{i}.layer_norm1.",
    "transformer.resblocks.{i}.ln_2.": "encoder.layers.{i}.layer_norm2.",
    "transformer.resblocks.{i}.attn.out_proj.": "encoder.layers.{i}.self_attn.out_proj.",
    "transformer.resblocks.{i}.mlp.c_fc.": "encoder.layers.{i}.mlp.fc1.",
    "transformer.resblocks.{i}.mlp.c_proj.": "encoder.layers.{i}.mlp.fc2.",
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
}
COPIES = re.compile(r"(t5_model|llm_model)\.(.*embed_tokens\.weight|shared\.weight)$")
POSITION_IDS = re.compile(r"Qformer\.bert\.embeddings\.position_ids$")


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """The name under the longest matching prefix of a table; None when no row fits.

    >>> rename("attr_fc.bias", CHECKPOINT_NAMES)
    'region_text_decoder.fc.bias'
    """
    for old, new in sorted(table.items(), key=lambda row: -len(row[0])):
        pattern = re.escape(old).replace(r"\{i\}", r"(\d+)")
        if match := re.match(pattern + ("" if old.endswith(".") else "$"), name):
            return new.replace("{i}", match.group(1) if match.groups() else "") + name[match.end() :]
    return None


def checkpoint_name(name: str) -> str | None:
    """Released name -> ours, the decoders' inner names too."""
    ours = rename(name, CHECKPOINT_NAMES)
    for decoder in ("tag_decoder.", "region_text_decoder."):
        if ours is not None and ours.startswith(decoder + "layer."):
            inner = rename(ours.removeprefix(decoder), DECODER_NAMES)
            ours = None if inner is None else decoder + inner
    return ours


def rename_all(
    tensors: Mapping[str, Tensor], rename_one: Callable[[str], str | None], source: str
) -> dict[str, Tensor]:
    """Every tensor under our name; ValueError naming those that no row of the tables knows."""
    renamed = {name: rename_one(name) for name in tensors}
    unknown = sorted(name for name, ours in renamed.items() if ours is None)
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} unknown tensors, such as {', '.join(unknown[:5])}; is it a file of this kind?"
        )
    return {ours: tensors[name] for name, ours in renamed.items()}


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA-CLIP's or open_clip's text tower -> transformers' CLIPTextModelWithProjection names.

    Keys are `text.*` beside `visual.*` (ignored), or the tower's own. The packed query, key and value are split.
    """
    inner = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if not name.startswith("visual.")}
    inner = {name: tensor for name, tensor in inner.items() if name not in ("logit_scale", "logit_bias", "attn_mask")}
    renamed: dict[str, Tensor] = {}
    for name, tensor in inner.items():
        if match := re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"text_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.t()
        elif (ours := rename(name, TEXT_NAMES)) is not None:
            renamed[f"text_model.{ours}"] = tensor
        else:
            raise ValueError(f"text encoder: unknown tensor {name!r}; expected EVA-CLIP's text.* or open_clip's names")
    return renamed


def read_torch(path: str | Path) -> dict[str, Tensor]:
    """A .pth or .pt file's tensors by name, without running code from it; {"model": {...}} is unpacked."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken or hostile file
        raise ValueError(f"checkpoint {str(path)!r}: cannot be read as plain tensors ({error})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"checkpoint {str(path)!r}: expected names and tensors, found {type(content).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
