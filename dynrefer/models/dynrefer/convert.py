"""Released DynRefer checkpoints <-> our folders.

A released file holds the trained tensors only; vision, query tokens and language model come from BLIP-2 (or an
InstructBLIP-style base with a decoder-only language model), the text encoder from EVA-CLIP. Every tensor is used,
checked as a copy and ignored, or named in an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dynrefer.convert.blip2 import QFORMER_NAMES, base_folder, base_tokenizer, part_settings, read_base
from dynrefer.convert.clip_text import (
    clip_tokenizer,
    head_count,
    open_clip_settings,
    read_text_encoder,
    text_sizes,
    text_tensors,
)
from dynrefer.convert.tensors import check_fit, check_new, new_folder, read_torch, rename, rename_all, save_torch, seems

from ..base_parts import LORA, Origin, locate, plain, record

# Released name -> ours; {i} is a layer number. Both directions read this one table.
CHECKPOINT_NAMES = {
    "cvem_align.": "region_encoder.align.",
    "cvem_mlp.": "region_encoder.mlp.",
    **QFORMER_NAMES,
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
# Tensors of a checkpoint that repeat something: compared with it, then ignored.
COPIES = re.compile(
    r"(t5_model|llm_model)\.(.*embed_tokens\.(base_layer\.)?weight|shared\.weight)$"  # the base's word embeddings
    r"|llm_model\..*rotary_emb\.inv_freq$"  # what the language model computes for itself
    r"|Qformer\.bert\.embeddings\.position_ids$"  # 0, 1, 2, ...
    r"|(clip|att|ov)_embeds$"  # text embeddings of the word lists
)
TEXT_BANKS = {"clip_embeds": "tag_texts", "att_embeds": "attribute_texts", "ov_embeds": "category_texts"}
# InstructBLIP's Q-Former can read text too; DynRefer gives it queries only, so these never take part.
TEXT_BRANCH = {
    "Qformer.bert.embeddings.word_embeddings.": "qformer.embeddings.word_embeddings.",
    "Qformer.bert.embeddings.position_embeddings.": "qformer.embeddings.position_embeddings.",
    "Qformer.bert.encoder.layer.{i}.intermediate.": "qformer.encoder.layer.{i}.intermediate.",
    "Qformer.bert.encoder.layer.{i}.output.": "qformer.encoder.layer.{i}.output.",
}


def checkpoint_name(name: str) -> str | None:
    """Released name -> ours, the decoders' inner names too. PEFT's wrapper of the language model leaves no trace."""
    ours = rename(name.replace("_model.base_model.model.", "_model."), CHECKPOINT_NAMES)
    for decoder in ("tag_decoder.", "region_text_decoder."):
        if ours is not None and ours.startswith(decoder + "layer."):
            inner = rename(ours.removeprefix(decoder), DECODER_NAMES)
            ours = None if inner is None else decoder + inner
    return ours


# ------------------------------------------------------------------------------------------------ released -> ours

RELEASED_GENERATION = {
    "num_beams": 2,
    "max_new_tokens": 20,
    "min_length": 1,
    "length_penalty": 0.0,
    "repetition_penalty": 1.5,
}
REPLACED = ("qformer.", "language.projection.")  # the base's own are trained further in the checkpoint


def convert(
    checkpoint: str | Path,
    base: str | Path,
    text_encoder: str | Path,
    vocabulary: str | Path,
    attributes: str | Path,
    categories: str | Path,
    output: str | Path,
    text_heads: int | None = None,
    revision: str | None = None,
) -> Path:
    """Released files -> a folder that `dynrefer.load` opens. Sizes come from the tensors; head counts, which no tensor
    shows, from the base's config, and for the text encoder from text_heads (width / 64, at least 4, when None).

    checkpoint: the released .pth; base: BLIP-2's or InstructBLIP's hub id or folder; text_encoder: eva_clip_psz14.pt or
    an open_clip name; vocabulary, attributes, categories: word lists, see vocabulary.py; output: a folder that is new
    or empty, which appears when everything in it is written.

    Raises ValueError for unknown, missing, wrongly shaped or differing tensors, and for files of the wrong kind.
    """
    from dynrefer.vocabulary import read_attributes, read_words

    from .configuration import DynReferConfig
    from .processor import DynReferProcessor

    words = {
        "tags": once_each(read_words(vocabulary), str(vocabulary)),
        "attributes": read_attributes(attributes),
        "categories": read_words(categories),
    }
    for name, entries in words.items():
        if not entries:
            raise ValueError(f"{name}: the list is empty")
    with new_folder(output) as folder:
        released = read_torch(checkpoint)
        trained, copies = split_released(released, str(checkpoint))
        texts = text_tensors(read_text_encoder(text_encoder))
        base_source = Origin("transformers", *locate(base, revision))
        base_files = base_folder(base, base_source.revision)
        base_tensors, base_config = read_base(base_files)
        check_language(released, base_config, f"checkpoint {str(checkpoint)!r}", f"base {str(base)!r}")
        config = DynReferConfig(
            **released_sizes(trained, base_tensors, base_config),
            **released_settings(),
            query_tokens_trainable="query_tokens" in trained,
            **language_settings(base_config, base_tensors, trained),
            text_config=text_sizes(texts, text_heads, **open_clip_settings(text_encoder)),
            **words,
        )
        model = filled_model(config, all_tensors(trained, base_tensors, texts))
        tokenizer = base_tokenizer(base_files, config.language_config.vocab_size)
        model.processor = DynReferProcessor(config, tokenizer, clip_tokenizer(config.text_config.vocab_size))
        model.eval().before_eval()
        check_copies(model, base_tensors, copies)
        record_sources(model, trained, base_source, text_encoder)
        model.save_pretrained(folder)
    return Path(output)


def all_tensors(
    trained: Mapping[str, Tensor], base: Mapping[str, Tensor], texts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What a model is made of, under our names: the checkpoint's, and the base's that it does not replace."""
    wrapped = {name.split(f".{LORA}")[0] for name in trained if LORA in name}
    tensors = {}
    for name, tensor in base.items():
        layer, _, kind = name.rpartition(".")
        if not name.startswith(REPLACED):
            tensors[f"{layer}.base_layer.{kind}" if layer in wrapped else name] = tensor
    return tensors | trained | {f"text_encoder.model.{name}": tensor for name, tensor in texts.items()}


def released_settings() -> dict:
    """Fields of DynReferConfig in which the released program differs from our defaults."""
    return {
        "truncate_region_boxes": True,
        "mask_box_last_index": True,
        "roi_aligned": False,
        "mask_same_caption": False,
        "generation": dict(RELEASED_GENERATION),
    }


def once_each(words: list[str], source: str) -> list[str]:
    """Words without repeats, with a warning: the same word twice is the same text with the same score."""
    kept = list(dict.fromkeys(words))
    if len(kept) < len(words):
        warnings.warn(f"{source}: {len(words) - len(kept)} repeated words are left out", stacklevel=3)
    return kept


def split_released(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained tensors under our names, and what only repeats others, under released names."""
    if not any(name.startswith("cvem_") for name in tensors):
        raise ValueError(f"checkpoint {source!r}: no cvem_mlp, so it is no released DynRefer file{seems(tensors)}")
    copies = {
        name: tensor for name, tensor in tensors.items() if COPIES.match(name) or rename(name, TEXT_BRANCH) is not None
    }
    trained = {name: tensor for name, tensor in tensors.items() if name not in copies}
    return rename_all(trained, checkpoint_name, f"checkpoint {source!r}"), copies


def check_language(released: Mapping[str, Tensor], base_config, checkpoint: str, base: str) -> None:
    """ValueError where the checkpoint's language model is of the other kind than the base's."""
    found = [prefix for prefix in ("t5", "llm") if f"{prefix}_proj.weight" in released]
    if not found:
        raise ValueError(f"{checkpoint}: neither t5_proj.weight nor llm_proj.weight; is it a released DynRefer file?")
    language = base_config.text_config
    expected = "t5" if language.is_encoder_decoder else "llm"
    if found[0] != expected:
        kind = "an encoder-decoder" if language.is_encoder_decoder else "decoder-only"
        raise ValueError(
            f"{checkpoint} has a {found[0]}_proj, but the language model of {base} is {kind} ({language.model_type}); "
            f"it needs a base with {'T5' if found[0] == 't5' else 'a decoder-only language model, such as Vicuna'}"
        )


def filled_model(config, tensors: Mapping[str, Tensor]):
    """The config's model in float32 with exactly these tensors; ValueError naming what does not fit. Text embeddings
    of the word lists are still zero."""
    from .modeling import DynReferModel

    skeleton = DynReferModel.skeleton(config)  # tensors are checked before memory is taken
    check_fit(skeleton, tensors, computed=TEXT_BANKS.values())
    state = skeleton.state_dict()
    banks = {name: torch.zeros(state[name].shape) for name in TEXT_BANKS.values() if name in state}
    model = DynReferModel.from_pretrained(None, config=config, state_dict={**tensors, **banks}, dtype=torch.float32)
    model.freeze()
    state = model.state_dict()
    changed = [name for name, tensor in tensors.items() if not torch.equal(state[name], tensor.float())]
    if changed:
        raise ValueError(
            f"{', '.join(changed[:5])}: not the file's numbers after loading; they are no numbers (NaN), or the model "
            "ties the tensor to another one"
        )
    return model


def record_sources(model, trained: Mapping[str, Tensor], base: Origin, text_encoder: str | Path) -> None:
    """Notes where the frozen parts come from; those that the checkpoint changes come from nowhere else."""
    text = str(Path(text_encoder).resolve() if Path(text_encoder).exists() else text_encoder)
    for part, source in {"vision": base, "language": base, "text": Origin("clip_text", text)}.items():
        if not any(name.startswith(f"{model.BASE_PARTS[part]}.") and LORA not in name for name in trained):
            record(model, part, source, model.state_dict())


def check_copies(model, base: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    """ValueError where a tensor that repeats another differs from it by more than half precision. A text branch that
    the base does not have cannot be compared: a warning, since DynRefer never reads it."""
    unread = []
    for name, tensor in copies.items():
        original = repeated(name, tensor, model, base)
        if original is None and rename(name, TEXT_BRANCH) is not None:
            unread.append(name)
        elif original is None or original.shape != tensor.shape:
            found = "nothing" if original is None else f"a tensor {tuple(original.shape)}"
            raise ValueError(f"checkpoint tensor {name} {tuple(tensor.shape)} repeats {found} of the other files")
        elif not torch.allclose(original.float(), tensor.float(), rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"checkpoint tensor {name} differs from what it should repeat: it belongs to other word lists, or they "
                "belong to different base models"
            )
    if unread:
        warnings.warn(
            f"{len(unread)} tensors of the Q-Former's text branch, such as {unread[0]}, are left out: DynRefer does "
            "not read them, and the base has none to compare them with",
            stacklevel=3,
        )


def repeated(name: str, tensor: Tensor, model, base: Mapping[str, Tensor]) -> Tensor | None:
    """What a tensor of the checkpoint repeats; None where there is no such thing."""
    if name.endswith("position_ids"):
        return torch.arange(tensor.numel()).reshape(tensor.shape)
    if name.endswith("inv_freq"):
        return next((buffer for key, buffer in model.named_buffers() if key.endswith("rotary_emb.inv_freq")), None)
    if (ours := rename(name, TEXT_BRANCH)) is not None:
        return base.get(ours)
    known = {plain(key): value for key, value in model.state_dict().items()}
    return known.get(TEXT_BANKS.get(name) or plain(checkpoint_name(name)))


# ------------------------------------------------------------------------------------------------ sizes


def released_sizes(trained: Mapping[str, Tensor], base: Mapping[str, Tensor], base_config) -> dict:
    """Fields of DynReferConfig that the tensors show, head counts and what else shapes do not tell from the base's
    config."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in trained:
            raise ValueError(f"missing tensor {name}: is the checkpoint a released DynRefer file?")
        return tuple(trained[name].shape)

    def layers(pattern: str) -> set[int]:
        return {int(match[1]) for name in trained if (match := re.match(pattern, name))}

    width, fused = shape("region_encoder.mlp.0.weight")
    if fused % width:
        raise ValueError(f"region_encoder.mlp.0.weight is {(width, fused)}: no whole number of views of width {width}")
    cross = sorted(layers(r"qformer\.encoder\.layer\.(\d+)\.crossattention\."))
    depth = layers(r"qformer\.encoder\.layer\.(\d+)\.")
    query_tokens = trained.get("query_tokens", base.get("query_tokens"))
    if not cross or query_tokens is None:
        raise ValueError("no Q-Former cross-attention or query tokens: is the checkpoint a released DynRefer file?")
    vision = {**part_settings(base_config.vision_config), "model_type": "blip_2_vision_model"}  # InstructBLIP's as well
    side = base_config.vision_config.image_size
    if width != base_config.vision_config.hidden_size:
        raise ValueError(
            f"the checkpoint's features have width {width} and the base's vision encoder "
            f"{base_config.vision_config.hidden_size}: they belong to different base models"
        )
    decoder_width, _ = shape("tag_decoder.vision_proj.weight")
    qformer = base_config.qformer_config
    if len(depth) != qformer.num_hidden_layers:  # without its last layer it looks like a whole, smaller one
        raise ValueError(
            f"the checkpoint's Q-Former has {len(depth)} layers and the base's {qformer.num_hidden_layers}: the file "
            "is cut, or they belong to different base models"
        )
    return {
        "vision_config": vision,
        "vision_shape": [width, side // base_config.vision_config.patch_size],
        "image_size": side,
        "qformer_config": {
            "hidden_size": query_tokens.shape[-1],
            "num_hidden_layers": len(depth),
            "num_attention_heads": qformer.num_attention_heads,
            "intermediate_size": shape("qformer.encoder.layer.0.intermediate_query.dense.weight")[0],
            "cross_attention_frequency": len(depth) if len(cross) == 1 else cross[1] - cross[0],
            "encoder_hidden_size": width,
            "max_position_embeddings": qformer.max_position_embeddings,
            "hidden_dropout_prob": qformer.hidden_dropout_prob,
            "attention_probs_dropout_prob": qformer.attention_probs_dropout_prob,
            "layer_norm_eps": qformer.layer_norm_eps,
            "hidden_act": qformer.hidden_act,
        },
        "num_query_tokens": query_tokens.shape[1],
        "num_views": fused // width,
        "align_groups": shape("region_encoder.align.offset_mask.weight")[0] // 27 if fused > width else 4,
        "decoder_width": decoder_width,
        "decoder_heads": head_count(decoder_width),
        "decoder_mlp_width": shape("tag_decoder.layers.0.intermediate.weight")[0],
        "decoder_layers": len(layers(r"tag_decoder\.layers\.(\d+)\.")),
    }


def language_settings(base_config, base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict:
    """Fields of DynReferConfig for the language model: the base's config, with what BLIP-2 and the tensors say."""
    language = part_settings(base_config.text_config)
    if language["model_type"] == "t5":
        language["dense_act_fn"] = "gelu"  # BLIP-2's setting; "gated-gelu" alone means another approximation
    output = base.get("language.model.lm_head.weight")
    inputs = next((base[name] for name in WORD_EMBEDDINGS if name in base), output)
    if output is not None and not torch.equal(output, inputs):
        language["tie_word_embeddings"] = False  # whatever the config says: the file has two matrices
        language.pop("scale_decoder_outputs", None)
    return {"language_config": language, **lora_settings(trained)}


WORD_EMBEDDINGS = tuple(
    f"language.model.{name}.weight" for name in ("shared", "model.embed_tokens", "model.decoder.embed_tokens")
)


def lora_settings(trained: Mapping[str, Tensor]) -> dict:
    """Fields of DynReferConfig for the LoRA layers of a checkpoint. Their alpha, which no tensor shows, is twice their
    rank, as released (64 and 128)."""
    ranks = {
        name.split(f".{LORA}")[0]: len(tensor) for name, tensor in trained.items() if re.search(r"\.lora_\w*A\.", name)
    }
    if not ranks:
        return {}
    if len(set(ranks.values())) > 1:
        raise ValueError(f"LoRA layers of several ranks, {sorted(set(ranks.values()))}; expected one")
    rank = next(iter(ranks.values()))
    targets = sorted({layer.rsplit(".", 1)[-1] for layer in ranks})
    lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": targets}
    return {"language_mode": "lora", "language_lora": lora}


# ------------------------------------------------------------------------------------------------ ours -> released

EXPORTED = ("region_encoder.", "qformer.", "tag_decoder.", "region_text_decoder.", "language.projection.")
# What the released layout has no place for: it is read back with these settings.
LAYOUT = {
    "roi_aligned": (False,),
    "positions": (False,),
    "view_text": (False,),
    "vision_trainable": (False,),
    "text_trainable": (False,),
    "language_mode": ("frozen", "lora"),
}


def export(model, path: str | Path) -> Path:
    """Writes the released layout: {"model": trained tensors under released names} (+ position ids and the repeated
    embeddings that released files carry). The frozen parts are left to the base and the text encoder's file.

    Raises ValueError for a model that the layout cannot hold, and where there is a file of this name.
    """
    path = Path(path)
    check_new(path)
    check_layout(model.config)
    save_torch({name: tensor.cpu() for name, tensor in released_tensors(model).items()}, path)
    return path


def check_layout(config) -> None:
    heads, grid = head_count(config.decoder_width), config.vision_shape[1]
    fixed = LAYOUT | {"decoder_heads": (heads,), "grid": (None, grid)}
    for name, allowed in fixed.items():
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(
                f"{name} is {value!r}: the released layout has no place for it (it means "
                f"{' or '.join(map(repr, allowed))}); save_pretrained keeps everything"
            )
    lora = config.language_lora or {}
    if lora.get("lora_alpha", 128) != 2 * lora.get("r", 64):
        raise ValueError(f"language_lora {lora}: the released layout does not hold lora_alpha, it means twice r")


def released_tensors(model) -> dict[str, Tensor]:
    """The trained tensors under released names, position ids and repeated embeddings among them."""
    state = model.state_dict()
    prefix = "t5" if model.config.language_config.is_encoder_decoder else "llm"
    wrapper = "base_model.model." if any(LORA in name for name in state) else ""  # PEFT's
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        learned = name.startswith(EXPORTED) or name == "language.control_memory" or LORA in name
        learned |= name == "query_tokens" and model.config.query_tokens_trainable
        copied = prefix == "t5" and plain(name).endswith("embed_tokens.weight")
        if learned or copied:
            tensors[released_name(plain(name), prefix, wrapper)] = tensor
    positions = model.config.qformer_config.max_position_embeddings
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(positions)[None]
    return tensors


def released_name(name: str, prefix: str, wrapper: str = "") -> str:
    """Our name -> the released one, by the same tables read backwards. prefix: of the language model, t5 or llm;
    wrapper: before its layers' names, where it has LoRA layers."""
    if name.startswith("language.model."):
        return f"{prefix}_model.{wrapper}{name.removeprefix('language.model.')}"
    decoders = {"tag_decoder.": "tag", "region_text_decoder.": "attr"}
    for ours, short in decoders.items():
        if name.startswith(ours + "layers."):
            inner = {new: old for old, new in DECODER_NAMES.items() if new != "layers.{i}."}
            found = rename(name.removeprefix(ours), inner) or rename(
                name.removeprefix(ours), {"layers.{i}.": "layer.{i}.crossattention.self."}
            )
            return f"{short}_head.encoder.{found}"
    other = "llm_" if prefix == "t5" else "t5_"
    backwards = {
        new: old for old, new in CHECKPOINT_NAMES.items() if "head.encoder" not in old and not old.startswith(other)
    }
    found = rename(name, backwards)
    assert found is not None, name
    return found


def main(argv: list[str] | None = None) -> int:
    """`dynrefer convert dynrefer ...`"""
    from dynrefer.errors import Parser

    parser = Parser(prog="dynrefer convert dynrefer", description=__doc__)
    parser.add_argument("--export", metavar="MODEL", help="write this model in the released layout to --output FILE")
    parser.add_argument("--checkpoint", help="released .pth file")
    parser.add_argument("--base", help="BLIP-2 or InstructBLIP: hub id or folder")
    parser.add_argument("--revision", help="of the base's hub id")
    parser.add_argument("--text-encoder", help="eva_clip_psz14.pt, or an open_clip name such as EVA01-g-14")
    parser.add_argument("--vocabulary", help="tags, one a line")
    parser.add_argument("--attributes", help="OVAD's JSON")
    parser.add_argument("--categories", help="JSON list of names")
    parser.add_argument("--text-heads", type=int, help="heads of the text encoder (width / 64, at least 4)")
    parser.add_argument("--output", required=True, help="folder, or with --export a file")
    arguments = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()  # a mistake is told in one line
    if arguments.export:
        import dynrefer

        print(export(dynrefer.load(arguments.export, device="cpu"), arguments.output))
        return 0
    names = ("checkpoint", "base", "text_encoder", "vocabulary", "attributes", "categories")
    missing = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)} (or --export MODEL)")
    print(
        convert(
            **{name: getattr(arguments, name) for name in names},
            output=arguments.output,
            text_heads=arguments.text_heads,
            revision=arguments.revision,
        )
    )
    return 0
