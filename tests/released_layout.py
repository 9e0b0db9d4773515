"""Files of the released layout in any size, written from its description: names and shapes, and random files.

`released_shapes` and `text_shapes` are plain dicts, so the published sizes cost nothing to describe.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from dynrefer.models.tokenizer import train_tokenizer

WORDS = ["a", "red", "blue", "old", "cup", "car", "dog", "table", "of", "on", "the", "shirt", ",", "|"]


@dataclass(frozen=True)
class Sizes:
    """Of a checkpoint; the defaults are the published 4.2B model's."""

    width: int = 1408
    views: int = 3
    groups: int = 4
    region: int = 768
    depth: int = 12
    cross_every: int = 2
    region_mlp: int = 3072
    positions: int = 512
    decoder: int = 256
    decoder_mlp: int = 1024
    decoder_layers: int = 2
    text: int = 1024
    language: int = 2048
    vocab: int = 32128
    prefix: str = "t5"
    text_branch: int = 0  # words that the Q-Former can read; 0: it has no text branch


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int, source: int) -> dict[str, tuple[int, ...]]:
    """BERT's, with its output."""
    return (
        linear(f"{name}.self.query", width, width)
        | linear(f"{name}.self.key", source, width)
        | linear(f"{name}.self.value", source, width)
        | linear(f"{name}.output.dense", width, width)
        | norm(f"{name}.output.LayerNorm", width)
    )


def feed_forward(first: str, second: str, width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    return (
        linear(f"{first}.dense", width, mlp)
        | linear(f"{second}.dense", mlp, width)
        | norm(f"{second}.LayerNorm", width)
    )


def released_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released checkpoint."""
    offsets = -(-s.groups * 27 // 8) * 8
    shapes = {
        "cem_memory": (s.language,),
        "attr_t": (),
        "attr_b": (),
        "cvem_align.offset_mask_dw.weight": (s.width, 2, 3, 3),
        "cvem_align.offset_mask_dw.bias": (s.width,),
        **linear("cvem_align.offset_mask", s.width, offsets),
        **linear("cvem_align.value_proj", s.width, s.width),
        **linear("cvem_align.output_proj", s.width, s.width),
        **linear("cvem_mlp.0", s.views * s.width, s.width),
        **linear("cvem_mlp.2", s.width, s.width),
        **linear(f"{s.prefix}_proj", s.region, s.language),
        **norm("Qformer.bert.embeddings.LayerNorm", s.region),
        "Qformer.bert.embeddings.position_ids": (1, s.positions),
    }
    for i in range(s.depth):
        layer = f"Qformer.bert.encoder.layer.{i}"
        shapes |= attention(f"{layer}.attention", s.region, s.region)
        shapes |= feed_forward(f"{layer}.intermediate_query", f"{layer}.output_query", s.region, s.region_mlp)
        if i % s.cross_every == 0:
            shapes |= attention(f"{layer}.crossattention", s.region, s.width)
        if s.text_branch:
            shapes |= feed_forward(f"{layer}.intermediate", f"{layer}.output", s.region, s.region_mlp)
    if s.text_branch:
        shapes["Qformer.bert.embeddings.word_embeddings.weight"] = (s.text_branch, s.region)
        shapes["Qformer.bert.embeddings.position_embeddings.weight"] = (s.positions, s.region)
    for head in ("tag", "attr"):
        for i in range(s.decoder_layers):
            layer = f"{head}_head.encoder.layer.{i}"
            shapes |= attention(f"{layer}.crossattention", s.decoder, s.decoder)
            shapes |= feed_forward(f"{layer}.intermediate", f"{layer}.output", s.decoder, s.decoder_mlp)
        shapes |= linear(f"{head}_vision_proj", s.region, s.decoder) | linear(f"{head}_text_proj", s.text, s.decoder)
        shapes |= linear(f"{head}_fc", s.decoder, 1)
    if s.prefix == "t5":
        shapes |= {f"t5_model.{stack}.embed_tokens.weight": (s.vocab, s.language) for stack in ("encoder", "decoder")}
    return shapes


def text_shapes(
    width: int = 768, layers: int = 12, mlp: int = 3072, output: int = 1024, positions: int = 77, vocab: int = 49408
) -> dict[str, tuple[int, ...]]:
    """Every tensor of EVA-CLIP's text tower, as in eva_clip_psz14.pt; the published sizes."""
    shapes = {
        "text.positional_embedding": (positions, width),
        "text.text_projection": (width, output),
        "text.logit_scale": (),
        "text.token_embedding.weight": (vocab, width),
        **norm("text.ln_final", width),
    }
    for i in range(layers):
        block = f"text.transformer.resblocks.{i}"
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width)
        shapes |= linear(f"{block}.mlp.c_fc", width, mlp) | linear(f"{block}.mlp.c_proj", mlp, width)
    return shapes


def fill(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random numbers that keep a network's numbers of everyday size; position ids as they are."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(shape[-1])[None]
        elif "norm" in name.lower() or re.search(r"\.ln_\w+\.weight$", name):
            tensors[name] = (1 if name.endswith("weight") else 0) + 0.1 * noise
        else:
            tensors[name] = noise if not shape else noise / shape[-1] ** 0.5
    return tensors


# ------------------------------------------------------------------------------------------------ tiny files

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
    "qkv_bias": True,
    "initializer_range": 0.2,
}
QFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "encoder_hidden_size": 32,
    "cross_attention_frequency": 2,
    "vocab_size": 30,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LANGUAGES = {
    "t5": {
        "d_model": 20,
        "d_ff": 32,
        "d_kv": 5,
        "num_heads": 4,
        "num_layers": 2,
        "tie_word_embeddings": False,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "llama": {
        "hidden_size": 20,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "max_position_embeddings": 128,
    },
    "opt": {
        "hidden_size": 20,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 20,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "max_position_embeddings": 128,
    },
}
SIZES = Sizes(
    width=32,
    region=24,
    depth=3,
    region_mlp=40,
    positions=64,
    decoder=36,
    decoder_mlp=28,
    decoder_layers=2,
    text=12,
    language=20,
    vocab=90,
)


def write_base(folder: Path, language: str = "t5", kind: str = "blip2") -> Path:
    """A random BLIP-2 or InstructBLIP of transformers, with a tokenizer of a few words."""
    name = "Blip2" if kind == "blip2" else "InstructBlip"
    text = AutoConfig.for_model(language, vocab_size=90, **LANGUAGES[language]).to_dict()
    parts = {"vision_config": VISION, "qformer_config": QFORMER, "text_config": text}
    config = getattr(transformers, f"{name}Config")(**parts, num_query_tokens=5)
    with torch.device("meta"):
        shapes = getattr(transformers, f"{name}ForConditionalGeneration")(config).state_dict()
    state = fill({key: tuple(tensor.shape) for key, tensor in shapes.items()}, seed=3)
    for stack in ("encoder", "decoder"):  # T5's file has one embedding for both, and an output matrix beside it
        state.pop(f"language_model.{stack}.embed_tokens.weight", None)
    if language == "opt":  # tied
        del state["language_model.lm_head.weight"]
    save_base(folder, config.to_dict(), state)
    train_tokenizer(WORDS * 3, 90).save_pretrained(folder)
    return folder


def save_base(folder: Path, config: dict, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
