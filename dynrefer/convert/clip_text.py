"""The text tower of an EVA-CLIP, OpenAI or open_clip model -> transformers' CLIPTextModelWithProjection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dynrefer.convert.tensors import read_torch, rename, seems
from dynrefer.errors import first_line, suggestion

# open_clip's name -> transformers'; {i} is a layer number.
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


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA-CLIP's, OpenAI's or open_clip's text tower -> transformers' CLIPTextModelWithProjection names.

    Keys are `text.*` beside `visual.*` (ignored), or the tower's own. The packed query, key and value are split.
    """
    inner = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if not name.startswith("visual.")}
    ignored = ("logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size")
    renamed: dict[str, Tensor] = {}
    for name, tensor in inner.items():
        if match := re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"text_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece.clone()
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.t().contiguous()
        elif (ours := rename(name, TEXT_NAMES)) is not None:
            renamed[f"text_model.{ours}"] = tensor
        elif name not in ignored:
            raise ValueError(
                f"text encoder: unknown tensor {name!r}; expected EVA-CLIP's text.* or open_clip's names"
                + seems(tensors)
            )
    if "text_projection.weight" not in renamed or "text_model.embeddings.token_embedding.weight" not in renamed:
        raise ValueError(f"text encoder: no token_embedding.weight or text_projection in it{seems(tensors)}")
    return renamed


def read_text_encoder(source: str | Path) -> dict[str, Tensor]:
    """A file's tensors, or those of an open_clip model by name, vision tower and all."""
    if Path(source).exists():
        return read_torch(source)
    open_clip = import_open_clip()
    if str(source) not in open_clip.list_models():
        raise ValueError(
            f"text encoder {str(source)!r}: neither a file nor one of open_clip.list_models()."
            f"{suggestion(source, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(str(source))
    if not tags:
        raise ValueError(f"text encoder {str(source)!r}: open_clip knows no weights of it; give a file")
    try:
        return open_clip.create_model(str(source), pretrained=tags[0]).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"text encoder {str(source)!r}: open_clip cannot fetch its weights {tags[0]!r}; give a file "
            f"({first_line(error)})"
        ) from error


def open_clip_settings(source: str | Path) -> dict:
    """What no tensor shows of an open_clip model by name; {} for a file."""
    if Path(source).exists():
        return {}
    config = import_open_clip().get_model_config(str(source))
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return {"known_heads": config["text_cfg"].get("heads"), "hidden_act": act}


def import_open_clip():
    try:
        import open_clip
    except ImportError as error:
        raise ValueError("this needs open_clip: pip install open_clip_torch") from error
    return open_clip


def text_sizes(
    texts: Mapping[str, Tensor], heads: int | None, known_heads: int | None = None, hidden_act: str = "gelu"
) -> dict:
    """CLIPTextConfig fields of a text tower, pooled at the end token, the largest id. EVA-CLIP's has exact GELU."""
    vocab_size, width = texts["text_model.embeddings.token_embedding.weight"].shape
    depth = {int(match[1]) for name in texts if (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    heads = heads or known_heads or head_count(width)
    if heads < 1 or width % heads:
        raise ValueError(f"text encoder of width {width} cannot have {heads} heads; give --text-heads")
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": texts["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(depth),
        "num_attention_heads": heads,
        "max_position_embeddings": texts["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": texts["text_projection.weight"].shape[0],
        "hidden_act": hidden_act,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,
    }


def head_count(width: int) -> int:
    """Heads of 64, at least four."""
    return max(4, width // 64)


def clip_tokenizer(vocab_size: int):
    """OpenAI CLIP's byte-pair tokenizer from the list that open_clip_torch carries, as transformers' class."""
    import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    plain = SimpleTokenizer()
    if len(plain.encoder) != vocab_size:
        raise ValueError(f"text encoder vocabulary of {vocab_size}: CLIP's tokenizer has {len(plain.encoder)} entries")
    merges = [pair for pair, _ in sorted(plain.bpe_ranks.items(), key=lambda row: row[1])]
    special = {"unk_token": "<end_of_text>", "bos_token": "<start_of_text>", "eos_token": "<end_of_text>"}
    return CLIPTokenizer(vocab=dict(plain.encoder), merges=merges, **special, pad_token="<end_of_text>")
