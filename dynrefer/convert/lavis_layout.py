"""LAVIS's BLIP-2 beside Transformers': names of tensors, sizes that tensors show, settings that none shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor

from dynrefer.convert.blip2 import QFORMER_NAMES, part_settings
from dynrefer.convert.tensors import check_fit

# LAVIS name -> Transformers name; {i} is a layer number. Both directions read these tables.
VISION_NAMES = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "visual_encoder.blocks.{i}.norm1.": "vision_model.encoder.layers.{i}.layer_norm1.",
    "visual_encoder.blocks.{i}.norm2.": "vision_model.encoder.layers.{i}.layer_norm2.",
    "visual_encoder.blocks.{i}.attn.qkv.": "vision_model.encoder.layers.{i}.self_attn.qkv.",
    "visual_encoder.blocks.{i}.attn.proj.": "vision_model.encoder.layers.{i}.self_attn.projection.",
    "visual_encoder.blocks.{i}.mlp.fc1.": "vision_model.encoder.layers.{i}.mlp.fc1.",
    "visual_encoder.blocks.{i}.mlp.fc2.": "vision_model.encoder.layers.{i}.mlp.fc2.",
    "ln_vision.": "vision_model.post_layernorm.",
}
# kind -> transformers' model class, config class, and the names of its text branch
KINDS = {
    "blip2": ("Blip2ForConditionalGeneration", "Blip2Config", {}),
    "instructblip": (
        "InstructBlipForConditionalGeneration",
        "InstructBlipConfig",
        {
            "Qformer.bert.embeddings.": "qformer.embeddings.",
            "Qformer.bert.embeddings.LayerNorm.": "qformer.embeddings.layernorm.",
        },
    ),
    "retrieval": (
        "Blip2ForImageTextRetrieval",
        "Blip2Config",
        {
            "Qformer.bert.embeddings.": "embeddings.",
            "vision_proj.": "vision_projection.",
            "text_proj.": "text_projection.",
            "itm_head.": "itm_head.",
        },
    ),
}
LANGUAGE_PREFIXES = {"t5": "t5", "opt": "opt", "llama": "llm"}  # model type -> LAVIS's prefix
# What LAVIS computes with and no tensor shows; a model with other settings is not one that LAVIS can run.
LAVIS_SETTINGS = {
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True},
    "qformer_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2},
    "text_config": {"dense_act_fn": "gelu"},  # T5 only: exact GELU whatever flan-t5's own config says
}
KNOWN_VISION = {1408: (16, 39)}  # width -> heads and blocks: EVA-CLIP ViT-g, of whose 40 blocks BLIP-2 uses 39
KNOWN_QFORMER = {768: (12, 12)}  # width -> heads and layers: BERT-base


def lavis_names(kind: str, language: str | None) -> dict[str, str]:
    """The whole table of a kind. language: LAVIS's prefix of the language model, None where there is none."""
    names = VISION_NAMES | QFORMER_NAMES | KINDS[kind][2]
    if language is not None:
        names |= {f"{language}_proj.": "language_projection.", f"{language}_model.": "language_model."}
    return names


def join_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """q_bias and v_bias of a block -> one qkv.bias, zero for the keys as in LAVIS."""
    joined = dict(tensors)
    for name in tensors:
        if name.endswith(".attn.q_bias"):
            block = name.removesuffix("q_bias")
            query, value = joined.pop(name), joined.pop(f"{block}v_bias", None)
            if value is None:
                raise ValueError(f"missing {block}v_bias beside {name}")
            joined[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return joined


def split_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """qkv.bias of a block -> q_bias and v_bias; see `export` for the keys'."""
    split = dict(tensors)
    for name in tensors:
        if name.endswith(".attn.qkv.bias"):
            block = name.removesuffix("qkv.bias")
            query, _, value = split.pop(name).chunk(3)
            split |= {f"{block}q_bias": query.clone(), f"{block}v_bias": value.clone()}
    return split


def copies(text_config) -> dict[str, str]:
    """Tensors of a language model that repeat another one, and that one."""
    if text_config.model_type == "t5":
        names = ("encoder.embed_tokens", "decoder.embed_tokens", *("lm_head",) * text_config.scale_decoder_outputs)
        original = "shared"
    else:
        names = ("lm_head",) if text_config.tie_word_embeddings else ()
        original = "model.decoder.embed_tokens" if text_config.model_type == "opt" else "model.embed_tokens"
    return {f"language_model.{name}.weight": f"language_model.{original}.weight" for name in names}


def without_copies(tensors: Mapping[str, Tensor], text_config) -> dict[str, Tensor]:
    """The originals alone. ValueError where a repeated tensor differs from its own by more than half precision."""
    kept = dict(tensors)
    for copy, original in copies(text_config).items():
        if copy in kept:
            first = kept.pop(copy)
            second = kept.setdefault(original, first)  # some files keep only a copy
            if first.shape != second.shape or not torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-3):
                raise ValueError(f"{copy} differs from {original}: they belong to different language models")
    return kept


def with_copies(tensors: Mapping[str, Tensor], text_config) -> dict[str, Tensor]:
    """Repeated tensors of the language model filled in. ValueError where one was trained apart from its original; T5's
    encoder does not read its own."""
    filled = dict(tensors)
    for copy, original in copies(text_config).items():
        first, second = tensors.get(copy), filled[original]
        if first is not None and not copy.endswith(".encoder.embed_tokens.weight") and not torch.equal(first, second):
            raise ValueError(f"{copy} differs from {original}: LAVIS has one tensor for both")
        filled[copy] = second
    return filled


def sized_config(
    kind: str, tensors: Mapping[str, Tensor], text_config, base, vision_heads: int | None, qformer_heads: int | None
):
    """The config of a kind's model. Its number type is one that holds all the tensors' numbers. base: the config of
    another model, for what no tensor shows."""
    import transformers

    model_class, config_class, _ = KINDS[kind]
    if base is not None and type(base).__name__ != config_class:
        raise ValueError(f"the base is of type {base.model_type!r}; the checkpoint needs a {config_class}")
    config = getattr(transformers, config_class)(
        vision_config=vision_sizes(tensors, base and base.vision_config, vision_heads),
        qformer_config=qformer_sizes(tensors, base and base.qformer_config, qformer_heads),
        text_config=text_config and part_settings(text_config),
        num_query_tokens=size_of(tensors, "query_tokens", 1),
        image_token_index=base and base.image_token_index,
        architectures=[model_class],
        dtype=reduce(torch.promote_types, {t.dtype for t in tensors.values() if t.is_floating_point()}),
    )
    if kind == "retrieval":
        config.qformer_config.use_qformer_text_input = True
        config.image_text_hidden_size = size_of(tensors, "vision_projection.weight")
    return config


def vision_sizes(tensors: Mapping[str, Tensor], base, heads: int | None) -> dict:
    """Fields of the vision config. base: another model's, for the head count."""
    embeddings = "vision_model.embeddings."
    if not any(name.startswith(embeddings) for name in tensors):
        raise ValueError(
            "no vision encoder in the checkpoint: LAVIS leaves a frozen one out; give its file (--vision "
            "eva_vit_g.pth), or a base"
        )
    width = size_of(tensors, f"{embeddings}class_embedding", 2)
    patch = size_of(tensors, f"{embeddings}patch_embedding.weight", 3)
    grid = round((size_of(tensors, f"{embeddings}position_embedding", 1) - 1) ** 0.5)
    layers = count_layers(tensors, r"vision_model\.encoder\.layers\.(\d+)\.")
    return {
        "hidden_size": width,
        "intermediate_size": size_of(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": len(layers),
        "num_attention_heads": head_count(
            "vision", width, heads, base, {w: known[0] for w, known in KNOWN_VISION.items()}
        ),
        "image_size": grid * patch,
        "patch_size": patch,
        **LAVIS_SETTINGS["vision_config"],
    }


def qformer_sizes(tensors: Mapping[str, Tensor], base, heads: int | None) -> dict:
    """Fields of the Q-Former's config. base: another model's, for the head count."""
    width = size_of(tensors, "query_tokens", 2)
    layers = count_layers(tensors, r"qformer\.encoder\.layer\.(\d+)\.")
    cross = sorted(count_layers(tensors, r"qformer\.encoder\.layer\.(\d+)\.crossattention\."))
    if not cross:
        raise ValueError("no cross-attention in the Q-Former: is the checkpoint one of BLIP-2?")
    first = f"qformer.encoder.layer.{cross[0]}"
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": head_count(
            "qformer", width, heads, base, {w: known[0] for w, known in KNOWN_QFORMER.items()}
        ),
        "intermediate_size": size_of(tensors, f"{first}.intermediate_query.dense.weight"),
        "encoder_hidden_size": size_of(tensors, f"{first}.crossattention.attention.key.weight", 1),
        **LAVIS_SETTINGS["qformer_config"],
        "cross_attention_frequency": cross[1] - cross[0] if len(cross) > 1 else len(layers),
    }
    for prefix in ("embeddings.", "qformer.embeddings."):
        if f"{prefix}word_embeddings.weight" in tensors:
            sizes["vocab_size"] = size_of(tensors, f"{prefix}word_embeddings.weight")
            sizes["max_position_embeddings"] = size_of(tensors, f"{prefix}position_embeddings.weight")
    return sizes


def count_layers(tensors: Iterable[str], pattern: str) -> set[int]:
    return {int(match[1]) for name in tensors if (match := re.match(pattern, name))}


def size_of(tensors: Mapping[str, Tensor], name: str, dim: int = 0) -> int:
    if name not in tensors or tensors[name].dim() <= dim:
        raise ValueError(f"missing {name}, which shows a size; is the checkpoint one of BLIP-2?")
    return tensors[name].shape[dim]


def head_count(part: str, width: int, given: int | None, base, known: Mapping[int, int]) -> int:
    """Heads as given, of the base, or of the published size. ValueError where nobody says, or they do not divide."""
    heads = given or (base.num_attention_heads if base is not None else known.get(width))
    if heads is None:
        raise ValueError(
            f"{part} heads: no tensor shows them, and width {width} is no published size; give --{part}-heads"
        )
    if width % heads:
        raise ValueError(f"{part} heads {heads} do not divide the width {width}")
    return heads


def check_depth(part: str, config, known: Mapping[int, tuple[int, int]], given: int | None, base) -> None:
    """ValueError where there are other layers than were given, or else than the base or the published size has: a file
    without its last layer shows a whole, smaller model."""
    expected = given or (known[config.hidden_size][1] if config.hidden_size in known else None)
    if given is None and base is not None:
        expected = getattr(base, f"{part}_config").num_hidden_layers
    if expected not in (None, config.num_hidden_layers):
        raise ValueError(
            f"{part}: {config.num_hidden_layers} layers in the files, {expected} expected; a file is cut, or of "
            f"another model: --{part}-layers {config.num_hidden_layers} if it is meant"
        )


def check_model(kind: str, config, tensors: Mapping[str, Tensor], source: object) -> None:
    """ValueError unless the tensors are those of the kind's model, in the shapes that its config says. source: for
    errors."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, KINDS[kind][0])(config)
    # what transformers ties of T5 is another matter: its output layer, which flan-t5 has apart
    model.all_tied_weights_keys = {} if kind == "retrieval" else copies(config.text_config)
    check_fit(model, tensors, source=source)


def check_settings(configs: Mapping) -> None:
    """ValueError for a setting that LAVIS has fixed to another value."""
    for key, config in configs.items():
        for name, fixed in LAVIS_SETTINGS[key].items():
            if (key != "text_config" or config.model_type == "t5") and getattr(config, name, fixed) != fixed:
                raise ValueError(
                    f"{key}.{name} is {getattr(config, name)!r}: LAVIS's BLIP-2 computes with {fixed!r}, so that its "
                    "results would differ"
                )
