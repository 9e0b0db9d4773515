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


# ------------------------------------------------------------------------------------------------ released -> ours

RELEASED_GENERATION = {
    "num_beams": 2,
    "max_new_tokens": 20,
    "min_length": 1,
    "length_penalty": 0.0,
    "repetition_penalty": 1.5,
}


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
    an open_clip name; vocabulary, attributes, categories: word lists, see vocabulary.py.

    Raises ValueError for unknown, missing, wrongly shaped or differing tensors.
    """
    from dynrefer.vocabulary import read_attributes, read_words

    from .config import DynReferConfig
    from .model import DynReferModel
    from .processor import DynReferProcessor

    released = read_torch(checkpoint)
    folder = base_folder(base, revision)
    base_tensors, base_config = read_base(folder)
    texts = text_tensors(read_text_encoder(text_encoder))
    trained, copies = split_released(released, str(checkpoint))
    config = DynReferConfig(
        **released_sizes(trained, base_tensors, base_config),
        text_config=text_sizes(texts, text_heads),
        truncate_region_boxes=True,
        roi_aligned=False,
        mask_same_caption=False,
        tags=read_words(vocabulary),
        attributes=read_attributes(attributes),
        categories=read_words(categories),
        generation=dict(RELEASED_GENERATION),
    )
    tensors = {name: tensor for name, tensor in base_tensors.items() if not name.startswith(REPLACED)}
    tensors |= trained | {f"text_encoder.model.{name}": tensor for name, tensor in texts.items()}
    model = DynReferModel(config)
    load_all(model, tensors)
    check_copies(model, copies)
    model.processor = DynReferProcessor(config, base_tokenizer(folder), clip_tokenizer(config.text_config.vocab_size))
    model.eval().before_eval()
    model.save_pretrained(output)
    model.processor.save_pretrained(output)
    return Path(output)


REPLACED = ("qformer.", "language.projection.")  # the base's own are trained further in the checkpoint


def split_released(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained tensors under our names, and copies of frozen ones under ours; position ids are checked and dropped."""
    copies = {name: tensor for name, tensor in tensors.items() if COPIES.match(name)}
    for name, tensor in tensors.items():
        if POSITION_IDS.search(name) and not torch.equal(tensor.flatten(), torch.arange(tensor.numel())):
            raise ValueError(f"{source}: {name} is not 0, 1, 2, ...; the released file's is")
    rest = {name: tensor for name, tensor in tensors.items() if name not in copies and not POSITION_IDS.search(name)}
    return rename_all(rest, checkpoint_name, source), rename_all(copies, checkpoint_name, source)


def check_copies(model, copies: Mapping[str, Tensor]) -> None:
    """ValueError where a tensor that repeats a frozen one differs from it by more than half precision."""
    state = model.state_dict()
    for name, tensor in copies.items():
        if name not in state or state[name].shape != tensor.shape:
            raise ValueError(f"checkpoint tensor {name} {tuple(tensor.shape)} repeats nothing in the base model")
        if not torch.allclose(state[name].float(), tensor.float(), rtol=1e-2, atol=1e-3):
            raise ValueError(f"checkpoint tensor {name} differs from the base's: they belong to different base models")


def load_all(model, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor into the model and every tensor of the model from them; ValueError naming what does not fit. Text
    embeddings of the word lists are made anew."""
    state = model.state_dict()
    wanted = {name for name in state if not re.fullmatch(r"(tag|attribute|category)_texts", name)}
    problems = [f"missing {name}" for name in sorted(wanted - tensors.keys())]
    problems += [f"unused {name}" for name in sorted(tensors.keys() - wanted)]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(state[name].shape)}"
        for name in sorted(wanted & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"tensors and config do not fit: {'; '.join(problems[:8])}{more}")
    model.load_state_dict({name: tensors[name].to(state[name].dtype) for name in wanted}, strict=False)


# ------------------------------------------------------------------------------------------------ sizes


def released_sizes(trained: Mapping[str, Tensor], base: Mapping[str, Tensor], base_config: Mapping) -> dict:
    """Fields of DynReferConfig that the tensors show, head counts from the base's config."""

    def shape(name: str, tensors: Mapping[str, Tensor] = trained) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"missing tensor {name}: is the checkpoint a released DynRefer file?")
        return tuple(tensors[name].shape)

    def layers(pattern: str) -> set[int]:
        return {int(match[1]) for name in trained if (match := re.match(pattern, name))}

    width = shape("region_encoder.mlp.2.weight")[0]
    cross = layers(r"qformer\.encoder\.layer\.(\d+)\.crossattention\.")
    depth = layers(r"qformer\.encoder\.layer\.(\d+)\.")
    query_tokens = trained.get("query_tokens", base.get("query_tokens"))
    if not cross or query_tokens is None:
        raise ValueError("no Q-Former cross-attention or query tokens: is the checkpoint a released DynRefer file?")
    decoder_width, _ = shape("tag_decoder.vision_proj.weight")
    vision = {**base_config["vision_config"], "model_type": "blip_2_vision_model"}  # InstructBLIP's is the same
    qformer = {
        "hidden_size": query_tokens.shape[-1],
        "num_hidden_layers": len(depth),
        "num_attention_heads": base_config["qformer_config"].get("num_attention_heads", 12),
        "intermediate_size": shape("qformer.encoder.layer.0.intermediate_query.dense.weight")[0],
        "cross_attention_frequency": max(depth) + 1 if len(cross) == 1 else sorted(cross)[1] - sorted(cross)[0],
        "encoder_hidden_size": width,
        **{
            key: base_config["qformer_config"][key]
            for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "hidden_act")
            if key in base_config["qformer_config"]
        },
    }
    return {
        "vision_config": vision,
        "vision_shape": [width, vision.get("image_size", 224) // vision.get("patch_size", 14)],
        "image_size": vision.get("image_size", 224),
        "qformer_config": qformer,
        "language_config": dict(base_config["text_config"]),
        "num_query_tokens": query_tokens.shape[1],
        "num_views": shape("region_encoder.mlp.0.weight")[1] // width,
        "align_groups": shape("region_encoder.align.offset_mask.weight")[0] // 27,
        "decoder_width": decoder_width,
        "decoder_heads": head_count(decoder_width),
        "decoder_mlp_width": shape("tag_decoder.layers.0.intermediate.weight")[0],
        "decoder_layers": len(layers(r"tag_decoder\.layers\.(\d+)\.")),
    }


def text_sizes(texts: Mapping[str, Tensor], heads: int | None) -> dict:
    """CLIPTextConfig fields of EVA-CLIP's text tower: exact GELU, pooled at the end token, the largest id."""
    vocab_size, width = texts["text_model.embeddings.token_embedding.weight"].shape
    depth = {int(match[1]) for name in texts if (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": texts["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(depth),
        "num_attention_heads": heads or head_count(width),
        "max_position_embeddings": texts["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": texts["text_projection.weight"].shape[0],
        "hidden_act": "gelu",
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


def read_base(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The base's tensors under our names, its Q-Former and projection left as they are, and its config.json."""
    import json

    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts = [key for key in ("vision_config", "qformer_config", "text_config") if not isinstance(config.get(key), dict)]
    if parts:
        raise ValueError(f"base {str(folder)!r}: its config.json has no {', '.join(parts)}; expected BLIP-2's layout")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"base {str(folder)!r}: no .safetensors file in it")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return rename_all(tensors, lambda name: rename(name, BASE_NAMES), str(folder)), config


def read_text_encoder(source: str | Path) -> dict[str, Tensor]:
    """A file's tensors, or the text tower of an open_clip model by name."""
    if Path(source).is_file():
        tensors = read_torch(source)
        return {name: t for name, t in tensors.items() if name.startswith(("text.", "visual."))} or tensors
    import open_clip

    if str(source) not in open_clip.list_models():
        raise ValueError(f"text encoder {str(source)!r}: neither a file nor one of open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(str(source))
    model = open_clip.create_model(str(source), pretrained=tags[0] if tags else None)
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(("text.", "visual."))}


def base_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def clip_tokenizer(vocab_size: int):
    """OpenAI CLIP's byte-pair tokenizer from the list that open_clip_torch carries, as transformers' class."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ValueError("CLIP's tokenizer comes with open_clip: pip install open_clip_torch") from error
    from transformers import CLIPTokenizer

    plain = SimpleTokenizer()
    if len(plain.encoder) != vocab_size:
        raise ValueError(f"text encoder vocabulary of {vocab_size}: CLIP's tokenizer has {len(plain.encoder)} entries")
    merges = [pair for pair, _ in sorted(plain.bpe_ranks.items(), key=lambda row: row[1])]
    special = {"unk_token": "<end_of_text>", "bos_token": "<start_of_text>", "eos_token": "<end_of_text>"}
    return CLIPTokenizer(vocab=dict(plain.encoder), merges=merges, **special, pad_token="<end_of_text>")


# ------------------------------------------------------------------------------------------------ ours -> released


def export(model, path: str | Path) -> Path:
    """Writes the released layout: {"model": trained tensors under released names} (+ position ids and the repeated
    embeddings that released files carry)."""
    prefix = "t5" if model.config.language_config.is_encoder_decoder else "llm"
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(("region_encoder.", "qformer.", "tag_decoder.", "region_text_decoder.")) or name in (
            "language.projection.weight",
            "language.projection.bias",
            "language.control_memory",
        ):
            tensors[released_name(name, prefix)] = tensor.cpu()
        elif "lora_" in name:
            tensors[name.replace("language.model.", f"{prefix}_model.")] = tensor.cpu()
        elif prefix == "t5" and name.endswith("embed_tokens.weight") and name.startswith("language.model."):
            tensors[name.replace("language.model.", "t5_model.")] = tensor.cpu()
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": tensors}, path)
    return Path(path)


def released_name(name: str, prefix: str) -> str:
    """Our name -> the released one, by the same tables read backwards."""
    decoders = {"tag_decoder.": "tag", "region_text_decoder.": "attr"}
    for ours, short in decoders.items():
        if name.startswith(ours + "layers."):
            inner = {new: old for old, new in DECODER_NAMES.items() if new != "layers.{i}."}
            found = rename(name.removeprefix(ours), inner) or rename(
                name.removeprefix(ours), {"layers.{i}.": "layer.{i}.crossattention.self."}
            )
            return f"{short}_head.encoder.{found}"
    backwards = {
        new: old
        for old, new in CHECKPOINT_NAMES.items()
        if not (new.startswith("language.projection") and not old.startswith(prefix)) and "head.encoder" not in old
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
