"""Released DynRefer checkpoints <-> our folders.

A released file holds the trained tensors only; vision, query tokens and language model come from BLIP-2 (or an
InstructBLIP-style base with a decoder-only language model), the text encoder from EVA-CLIP. Every tensor is used,
checked as a copy and ignored, or named in an error.
"""

from __future__ import annotations

import difflib
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..base_parts import LORA, Source, locate, plain, record

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
    """Released name -> ours, the decoders' inner names too. PEFT's wrapper of the language model leaves no trace."""
    ours = rename(name.replace("_model.base_model.model.", "_model."), CHECKPOINT_NAMES)
    for decoder in ("tag_decoder.", "region_text_decoder."):
        if ours is not None and ours.startswith(decoder + "layer."):
            inner = rename(ours.removeprefix(decoder), DECODER_NAMES)
            ours = None if inner is None else decoder + inner
    return ours


def rename_all(
    tensors: Mapping[str, Tensor], rename_one: Callable[[str], str | None], source: str
) -> dict[str, Tensor]:
    """Every tensor under our name; ValueError naming those that no row of the tables knows, or that share a name."""
    renamed = {name: rename_one(name) for name in tensors}
    unknown = sorted(name for name, ours in renamed.items() if ours is None)
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} unknown tensors, such as {', '.join(unknown[:5])}; is it a file of this kind?"
        )
    result: dict[str, Tensor] = {}
    for name, ours in renamed.items():
        if ours in result:
            first = next(other for other in renamed if renamed[other] == ours)
            raise ValueError(f"{source}: {first} and {name} are both {ours}; expected one of them")
        result[ours] = tensors[name]
    return result


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


KINDS = {
    "a DynRefer checkpoint (--checkpoint)": ("cvem_", "tag_head.", "attr_head."),
    "a CLIP text encoder (--text-encoder)": ("text.", "token_embedding.", "transformer.resblocks.", "visual."),
    "a BLIP-2 of transformers (--base, as a folder)": ("vision_model.", "language_model.", "qformer."),
    "a BLIP-2 of LAVIS (see `dynrefer convert lavis`)": ("visual_encoder.", "ln_vision."),
}


def seems(names: Iterable[str]) -> str:
    """ "; it looks like ..." for the names of a file's tensors, "" where they tell nothing."""
    counts = {kind: sum(name.startswith(starts) for name in names) for kind, starts in KINDS.items()}
    kind = max(counts, key=lambda kind: counts[kind])
    return f"; it looks like {kind}" if counts[kind] else ""


def read_torch(path: str | Path) -> dict[str, Tensor]:
    """A .pth, .pt or .safetensors file's tensors by name, without running code; {"model": {...}} is unpacked."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        # memory-mapped where the format allows it: a training checkpoint holds the optimizer's numbers, too
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {str(path)!r}: damaged, or it holds more than tensors, such as code, which is never run "
            f"({first_line(error)})"
        ) from error
    except Exception as error:  # torch raises many kinds for a broken file
        raise ValueError(
            f"checkpoint {str(path)!r}: truncated, damaged or not PyTorch's ({first_line(error)})"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r}: expected names and tensors, found {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {str(path)!r}: {name!r} is a {type(value).__name__}; expected tensors only")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r}: truncated, damaged or not safetensors ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


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
        base_source = Source("transformers", *locate(base, revision))
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


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written; nothing is left of it after an error."""
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"output {str(path)!r} exists and is not an empty folder; give another, or remove it")
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            path.rmdir()
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
    check_fit(skeleton, tensors)
    banks = {name: torch.zeros(tensor.shape) for name, tensor in skeleton.state_dict().items() if is_bank(name)}
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


def record_sources(model, trained: Mapping[str, Tensor], base: Source, text_encoder: str | Path) -> None:
    """Notes where the frozen parts come from; those that the checkpoint changes come from nowhere else."""
    text = str(Path(text_encoder).resolve() if Path(text_encoder).exists() else text_encoder)
    for part, source in {"vision": base, "language": base, "text": Source("clip_text", text)}.items():
        if not any(name.startswith(f"{model.BASE_PARTS[part]}.") and LORA not in name for name in trained):
            record(model, part, source, model.state_dict())


def is_bank(name: str) -> bool:
    return name in TEXT_BANKS.values()


def check_fit(model, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless there is a tensor of its shape for everything in the model, and nothing else. One of two tied
    tensors is enough."""
    state = model.state_dict()
    tied = {name for name, original in model.all_tied_weights_keys.items() if original in tensors}
    wanted = {name for name in state if not is_bank(name)}
    problems = [f"missing {name}" for name in sorted(wanted - tied - tensors.keys())]
    problems += [f"unused {name}" for name in sorted(tensors.keys() - wanted)]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(state[name].shape)}"
        for name in sorted(wanted & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"tensors and config do not fit: {'; '.join(problems[:8])}{more}")


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


def part_settings(config) -> dict:
    """A part's config as a dict, without the number type that its file had."""
    return {key: value for key, value in config.to_dict().items() if key not in ("dtype", "torch_dtype")}


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


# ------------------------------------------------------------------------------------------------ files


def base_folder(base: str | Path, revision: str | None = None) -> Path:
    """The base model's folder, fetched from the hub where it is an id."""
    if (Path(base) / "config.json").is_file():
        return Path(base)
    if Path(base).exists():
        raise ValueError(f"base {str(base)!r}: no config.json in it; expected a transformers folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
        return Path(snapshot_download(str(base), revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"base {str(base)!r}: neither a folder nor a hub id that can be fetched ({error})") from error


def read_base(folder: Path) -> tuple[dict[str, Tensor], object]:
    """The base's tensors under our names, its Q-Former and projection left as they are, and its config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"base {str(folder)!r}: its config.json cannot be read ({first_line(error)})") from error
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


def read_text_encoder(source: str | Path) -> dict[str, Tensor]:
    """A file's tensors, or those of an open_clip model by name, vision tower and all."""
    if Path(source).exists():
        return read_torch(source)
    open_clip = import_open_clip()
    if str(source) not in open_clip.list_models():
        near = difflib.get_close_matches(str(source), open_clip.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"text encoder {str(source)!r}: neither a file nor one of open_clip.list_models(){hint}")
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


def base_tokenizer(folder: Path, vocab_size: int):
    """The language model's; ValueError where there is none or it has more entries than the model."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")):
        raise ValueError(f"base {str(folder)!r}: no tokenizer in it, neither tokenizer.json nor tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"base {str(folder)!r}: its tokenizer cannot be read ({first_line(error)})") from error
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"base {str(folder)!r}: its tokenizer has {tokenizer.vocab_size} entries, its language model {vocab_size}"
        )
    return tokenizer


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
    if path.exists():
        raise ValueError(f"output {str(path)!r} exists; give another name, or remove it")
    check_layout(model.config)
    tensors = {name: tensor.cpu() for name, tensor in released_tensors(model).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        torch.save({"model": tensors}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
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
    import argparse

    parser = argparse.ArgumentParser(prog="dynrefer convert dynrefer", description=__doc__)
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
