"""LAVIS's BLIP-2 checkpoints <-> Transformers' BLIP-2 folders; our models -> LAVIS checkpoints. LAVIS is not needed.

A LAVIS file is {"model": tensors}. Frozen parts are left out of most: the vision encoder stands in eva_vit_g.pth, the
language model on the hub. Every tensor is used, checked and dropped, or named: in an error, or as left out where the
other side has no place for it. Tensors keep their number type.

    pretrained and caption files    t5_proj, opt_proj or llm_proj               Blip2ForConditionalGeneration
    InstructBLIP                    the same and the Q-Former's text branch     InstructBlipForConditionalGeneration
    first stage (blip2_pretrained)  text branch, vision_proj, text_proj         Blip2ForImageTextRetrieval

One number is not carried over: `ln_vision` has eps 1e-5, which our VisionEncoder uses, and which Transformers' BLIP-2
classes cannot hold (they take the blocks' 1e-6).
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynrefer.convert.blip2 import BASE_NAMES, base_folder
from dynrefer.convert.lavis_layout import (
    KNOWN_QFORMER,
    KNOWN_VISION,
    LANGUAGE_PREFIXES,
    LAVIS_SETTINGS,
    check_depth,
    check_model,
    check_settings,
    copies,
    join_biases,
    lavis_names,
    sized_config,
    split_biases,
    with_copies,
    without_copies,
)
from dynrefer.convert.tensors import (
    check_new,
    new_folder,
    read_safetensors,
    read_torch,
    rename,
    rename_all,
    save_torch,
    seems,
)
from dynrefer.models import FAMILIES
from dynrefer.models.auto import model_folder
from dynrefer.models.base_parts import check_source
from dynrefer.models.folder_check import read_object, reading

logger = logging.getLogger(__name__)

T5_WORDS, T5_OUTPUT = "language_model.shared.weight", "language_model.lm_head.weight"
NO_PLACE = re.compile(r"Qformer\.cls\.|temp$")  # the first stage's caption head and temperature

# ------------------------------------------------------------------------------------------------ LAVIS -> Transformers


def convert(
    checkpoint: str | Path,
    output: str | Path,
    vision: str | Path | None = None,
    language: str | Path | None = None,
    base: str | Path | None = None,
    vision_heads: int | None = None,
    vision_layers: int | None = None,
    qformer_heads: int | None = None,
    qformer_layers: int | None = None,
    revision: str | None = None,
    fill_missing: bool = False,
) -> list[str]:
    """A LAVIS checkpoint -> a Transformers BLIP-2 folder, in float16 where it was. Returns the names left out.

    checkpoint: LAVIS's .pth; vision: eva_vit_g.pth or EVA-CLIP's file, where the checkpoint has no visual_encoder;
    language: hub id or folder of the language model, such as google/flan-t5-xl; base: instead of these two, a
    Transformers BLIP-2 folder or hub id whose tensors stand in for those that the checkpoint has not; vision_heads,
    vision_layers (blocks that are used of the vision file), qformer_heads: where no tensor shows them and neither the
    base nor BLIP-2's published sizes (width 1408: 16 heads, 39 blocks; width 768: 12 heads, 12 layers) say so;
    qformer_layers: where a Q-Former of a published width has another number of them; fill_missing: tensors that LAVIS
    trains and the checkpoint lacks come from the other files too.

    Raises ValueError for unknown, missing, wrongly shaped or differing tensors.
    """
    from huggingface_hub import save_torch_state_dict

    if base is not None and (vision is not None or language is not None):
        raise ValueError("base holds a vision encoder and a language model already: give it, or vision and language")
    found = read_torch(checkpoint)
    kind, prefix = kind_of(found, str(checkpoint))
    if prefix is None and language is not None:
        raise ValueError(f"{checkpoint} is a first-stage checkpoint, which has no language model: leave language out")
    left_out = [name for name in found if kind == "retrieval" and NO_PLACE.match(name)]
    tensors = {name: tensor for name, tensor in found.items() if name not in left_out and not derived(name, tensor)}
    names = lavis_names(kind, prefix)
    own = rename_all(join_biases(tensors), lambda name: rename(name, names), str(checkpoint)).keys()
    if vision is not None:
        kept, dropped = read_vision(vision, vision_layers)
        tensors, left_out = kept | tensors, left_out + dropped
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise ValueError(f"{checkpoint}: {whole[0]} is {tensors[whole[0]].dtype}; expected a floating-point type")
    tensors = rename_all(join_biases(tensors), lambda name: rename(name, names), str(checkpoint))

    folder = base_config = text_config = None
    if base is not None:
        folder = base_folder(base, revision)
        standing, base_config = read_folder(folder)
        text_config = base_config.text_config
        tensors = standing | tensors
    elif language is not None:
        standing, text_config = read_language(language, revision)
        tensors = standing | tensors
    if prefix is not None:
        text_config = check_language(text_config, prefix, str(checkpoint))
        tensors = without_copies(tensors, text_config)
    config = sized_config(kind, tensors, text_config, base_config, vision_heads, qformer_heads)
    if missing := trained_elsewhere(own, tensors.keys(), text_config):
        said = f"{len(missing)} tensors that LAVIS trains, such as {', '.join(missing[:3])}"
        if not fill_missing:
            raise ValueError(
                f"checkpoint {str(checkpoint)!r} lacks {said}: it is cut, or of another model. --fill-missing takes "
                "them from the other files"
            )
        logger.warning(f"not in {checkpoint} but taken from the other files: {said}")
    check_depth("vision", config.vision_config, KNOWN_VISION, vision_layers, base_config)
    check_depth("qformer", config.qformer_config, KNOWN_QFORMER, qformer_layers, base_config)
    check_model(kind, config, tensors, checkpoint)
    with new_folder(output) as written:
        if folder is not None:
            copy_rest(folder, written)
        elif language is not None:
            config.image_token_index = save_processor(language, revision, written, config)
        config.save_pretrained(written)
        save_torch_state_dict(apart(tensors), written)
    return left_out


def trained_elsewhere(own: Collection[str], names: Collection[str], text_config) -> list[str]:
    """Names that are not the checkpoint's own and should be: all but those of a frozen part that it leaves out whole.
    Names are Transformers'; own: those of the checkpoint; text_config: of the language model, None where there is none.
    """
    frozen = (("vision_model.embeddings.", "vision_model.encoder."), ("language_model.",))
    left_out = sum((part for part in frozen if not any(name.startswith(part) for name in own)), ())
    repeated = {} if text_config is None else copies(text_config)
    repeated = repeated.keys() | repeated.values()
    return sorted(name for name in set(names) - set(own) - repeated if not name.startswith(left_out))


def kind_of(tensors: Mapping[str, Tensor], source: str) -> tuple[str, str | None]:
    """(a key of KINDS, the language model's prefix) of a LAVIS file's tensors."""
    if any(name.startswith("cvem_") for name in tensors):
        raise ValueError(f"{source} is a DynRefer checkpoint: `dynrefer convert dynrefer --checkpoint` reads it")
    if "query_tokens" not in tensors:
        said = seems(tensors)
        said = "; it is cut, or another model of LAVIS" if "LAVIS" in said else said
        raise ValueError(f"{source}: no query_tokens; expected a LAVIS checkpoint of BLIP-2{said}")
    prefixes = {p for p in LANGUAGE_PREFIXES.values() if any(name.startswith(f"{p}_proj.") for name in tensors)}
    text_branch = "Qformer.bert.embeddings.word_embeddings.weight" in tensors
    if len(prefixes) > 1 or not (prefixes or text_branch):
        raise ValueError(
            f"{source}: expected one of t5_proj, opt_proj, llm_proj, or the first stage's text branch "
            f"(Qformer.bert.embeddings.word_embeddings); found {', '.join(sorted(prefixes)) or 'neither'}"
        )
    if not prefixes:
        return "retrieval", None
    return ("instructblip" if text_branch else "blip2"), prefixes.pop()


def derived(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that the model computes; ValueError where they are not those."""
    if name.endswith("embeddings.position_ids"):
        expected = torch.arange(tensor.numel())
    elif name.endswith("rotary_emb.inv_freq"):
        expected = 10000.0 ** -(torch.arange(tensor.numel()) / tensor.numel())
    else:
        return False
    if not torch.allclose(tensor.flatten().double(), expected.double(), rtol=1e-2, atol=1e-6):
        raise ValueError(f"{name} is not what the model computes for itself ({expected[:3].tolist()} ...)")
    return True


def read_vision(path: str | Path, layers: int | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """eva_vit_g.pth, or EVA-CLIP's file with its text tower beside it -> visual_encoder.* and the names left out: what
    follows the last block that BLIP-2 uses. ValueError where the file does not show which that is."""
    tensors = read_torch(path)
    whole = any(name.startswith("visual.") for name in tensors)
    inner = {
        re.sub(r"^(visual_encoder|visual\.trunk|visual)\.", "", name): tensor
        for name, tensor in tensors.items()
        if not whole or name.startswith("visual.")
    }
    if "cls_token" not in inner:
        raise ValueError(f"vision file {str(path)!r}: no cls_token; expected LAVIS's eva_vit_g.pth or EVA-CLIP's file")
    blocks = {int(match[1]) for name in inner if (match := re.match(r"blocks\.(\d+)\.", name))}
    after = [name for name in inner if re.match(r"(norm|fc_norm|head)\.", name)]
    width = inner["cls_token"].shape[-1]
    if layers is None and width in KNOWN_VISION:
        layers = min(KNOWN_VISION[width][1], len(blocks))
    if layers is None and after:
        raise ValueError(
            f"vision file {str(path)!r} goes on after its {len(blocks)} blocks ({after[0]}): it is a whole tower, of "
            "which BLIP-2 leaves out the end; say how many blocks are used (--vision-layers)"
        )
    layers = len(blocks) if layers is None else layers
    if not 0 < layers <= len(blocks):
        raise ValueError(f"vision file {str(path)!r}: {layers} of its {len(blocks)} blocks asked for")
    dropped = [
        name
        for name in inner
        if name in after or ((match := re.match(r"blocks\.(\d+)\.", name)) and int(match[1]) >= layers)
    ]
    kept = {f"visual_encoder.{name}": tensor for name, tensor in inner.items() if name not in dropped}
    return kept, [f"visual_encoder.{name}" for name in dropped]


def read_language(name: str | Path, revision: str | None):
    """A language model's tensors as language_model.*, and its config."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    check_source(name, revision=revision)
    with reading(f"language model {str(name)!r}", "neither a folder nor a hub id that can be read"):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if config.model_type not in LANGUAGE_PREFIXES:
            known = ", ".join(LANGUAGE_PREFIXES)
            raise ValueError(
                f"language model {str(name)!r} is of type {config.model_type!r}; LAVIS's BLIP-2 has {known}"
            )
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, info = auto.from_pretrained(
            name, revision=revision, dtype="auto", output_loading_info=True, trust_remote_code=False, weights_only=True
        )
    if info["missing_keys"]:
        raise ValueError(f"language model {str(name)!r}: no {', '.join(sorted(info['missing_keys'])[:5])} in its files")
    return {f"language_model.{key}": tensor for key, tensor in model.state_dict().items()}, model.config


def check_language(text_config, prefix: str, source: str):
    """The language model's config as LAVIS uses it; ValueError where there is none or it is of another type."""
    if text_config is None:
        raise ValueError(f"{source} has a {prefix}_proj: its language model's config comes from language or base")
    if LANGUAGE_PREFIXES.get(text_config.model_type) != prefix:
        raise ValueError(f"{source} has a {prefix}_proj, the language model is of type {text_config.model_type!r}")
    if prefix == "t5":
        text_config.dense_act_fn = LAVIS_SETTINGS["text_config"]["dense_act_fn"]
    return text_config


# ------------------------------------------------------------------------------------------------ folders


def read_folder(folder: Path):
    """A Transformers BLIP-2 folder's tensors and config."""
    from transformers import AutoConfig

    with reading(f"base {str(folder)!r}", "its config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in ("blip-2", "instructblip"):
        raise ValueError(f"{str(folder)!r} is of type {config.model_type!r}; expected blip-2, instructblip or dynrefer")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{str(folder)!r}: no .safetensors file in it")
    tensors = {name: tensor for file in files for name, tensor in read_safetensors(file).items()}
    if T5_WORDS in tensors:  # T5's output layer is left out of a file where it is the same
        tensors.setdefault(T5_OUTPUT, tensors[T5_WORDS])
    return tensors, config


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: of those that share it, only one would be written."""
    seen, result = set(), {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return result


def copy_rest(folder: Path, output: Path) -> None:
    """Tokenizers and processors: everything in the folder that is neither weights nor the model's config."""
    for path in folder.iterdir():
        if (path / "tokenizer_config.json").is_file():  # InstructBLIP has a second tokenizer
            shutil.copytree(path, output / path.name, dirs_exist_ok=True)
        elif path.suffix in (".json", ".txt", ".model", ".jinja") and not re.match(
            r"(config|.*\.index)\.json", path.name
        ):
            shutil.copyfile(path, output / path.name)


def save_processor(language: str | Path, revision: str | None, output: Path, config) -> int | None:
    """The tokenizer, and Transformers' processor where the embedding has a free row for its <image> token, whose id is
    returned; None otherwise."""
    from transformers import AutoTokenizer, Blip2Processor, BlipImageProcessor
    from transformers.utils.hub import cached_file

    with reading(f"language model {str(language)!r}", "no tokenizer that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(language, revision=revision, trust_remote_code=False)
    files = ("tokenizer.json", *tokenizer.vocab_files_names.values())  # without any transformers makes an empty one
    place = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    if not any(cached_file(language, file, **place) for file in files):
        raise ValueError(f"language model {str(language)!r}: no tokenizer in it ({', '.join(dict.fromkeys(files))})")
    if len(tokenizer) >= config.text_config.vocab_size:
        tokenizer.save_pretrained(output)
        return None
    tokenizer.add_tokens("<image>", special_tokens=True)
    side = config.vision_config.image_size
    images = BlipImageProcessor(size={"height": side, "width": side})
    Blip2Processor(images, tokenizer, num_query_tokens=config.num_query_tokens).save_pretrained(output)
    return tokenizer.convert_tokens_to_ids("<image>")


# ------------------------------------------------------------------------------------------------ ours -> LAVIS


def export(
    model: str | Path, path: str | Path, leave_out: Sequence[str] = (), revision: str | None = None
) -> list[str]:
    """A model as a LAVIS checkpoint that LAVIS's load_checkpoint reads. Returns the names left out.

    model: a run, folder or hub id of ours with BLIP-2's vision encoder, or of Transformers' BLIP-2; leave_out: "vision"
    and "language", which LAVIS fetches itself where they are the published ones. Of ours, what BLIP-2 has no place for
    is left out (`dynrefer convert dynrefer --export` writes that); LoRA layers are merged.

    A block's key bias, which LAVIS has not, is left out: it adds the same number to all scores of a query, so the
    softmax is the same without it.

    Raises ValueError for a model that LAVIS would compute otherwise.
    """
    for part in leave_out:
        if part not in ("vision", "language"):
            raise ValueError(f"leave_out {part!r}: expected vision or language")
    check_new(path)
    kind, tensors, configs, left_out = read_model(model, revision)
    check_settings(configs)
    text_config = configs.get("text_config")
    prefix = None
    if text_config is not None:
        prefix = LANGUAGE_PREFIXES.get(text_config.model_type)
        if prefix is None:
            known = ", ".join(LANGUAGE_PREFIXES)
            raise ValueError(f"language model of type {text_config.model_type!r}: LAVIS's BLIP-2 has {known}")
        tensors = with_copies(tensors, text_config)
    backwards = {new: old for old, new in lavis_names(kind, prefix).items()}
    renamed = split_biases(rename_all(tensors, lambda name: rename(name, backwards), str(model)))
    parts = {"vision": "visual_encoder.", "language": f"{prefix}_model."}
    dropped = [name for name in renamed if name.startswith(tuple(parts[part] for part in leave_out))]
    kept = {name: tensor.cpu() for name, tensor in renamed.items() if name not in dropped}
    positions = configs["qformer_config"].max_position_embeddings
    kept["Qformer.bert.embeddings.position_ids"] = torch.arange(positions)[None]
    save_torch(kept, path)
    return left_out + dropped


def read_model(model: str | Path, revision: str | None):
    """(key of KINDS, tensors under Transformers' names, the parts' configs, names that BLIP-2 has no place for)."""
    keys = ("vision_config", "qformer_config", "text_config")
    folder = base_folder(model_folder(model), revision)
    if read_object(folder / "config.json").get("model_type") in FAMILIES:
        return "blip2", *read_ours(folder)
    tensors, config = read_folder(folder)
    kind = "instructblip" if config.model_type == "instructblip" else "blip2"
    if "itm_head.weight" in tensors:
        kind, keys = "retrieval", keys[:2]
    tensors = without_copies(tensors, config.text_config)
    check_model(kind, config, tensors, folder)
    return kind, tensors, {key: getattr(config, key) for key in keys}, []


def read_ours(folder: Path):
    """read_model of a folder of ours, of any family that is built around a BLIP-2."""
    import dynrefer

    model = dynrefer.load(folder, device="cpu")
    sources = {"vision_config": "vision_config", "qformer_config": "qformer_config", "text_config": "language_config"}
    configs = {key: getattr(model.config, ours, None) for key, ours in sources.items()}
    if missing := [sources[key] for key, config in configs.items() if config is None]:
        raise ValueError(f"model of family {model.config.model_type!r} has no {missing[0]}, so no BLIP-2 to export")
    if configs["vision_config"].model_type != "blip_2_vision_model":
        found = configs["vision_config"].model_type
        raise ValueError(f"vision encoder of type {found!r}: LAVIS's BLIP-2 has blip_2_vision_model only")
    backwards = {new: old for old, new in BASE_NAMES.items()}
    state = model.merged(model.state_dict())
    names = {name: rename(name, backwards) for name in state}
    tensors = {new: state[name] for name, new in names.items() if new is not None}
    return tensors, configs, [name for name, new in names.items() if new is None]


# ------------------------------------------------------------------------------------------------ command line


def summary(names: Sequence[str]) -> str:
    """ "region_encoder (9), text_encoder (20)": how many tensors of which part."""
    return ", ".join(f"{part} ({count})" for part, count in Counter(name.split(".")[0] for name in names).items())


def main(argv: list[str] | None = None) -> int:
    """`dynrefer convert lavis ...`"""
    import argparse
    import sys

    from dynrefer.errors import Parser

    parser = Parser(
        prog="dynrefer convert lavis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", metavar="MODEL", help="write this model as a LAVIS checkpoint to --output FILE")
    parser.add_argument("--leave-out", nargs="+", default=(), choices=("vision", "language"), help="with --export")
    parser.add_argument("--checkpoint", help="LAVIS's .pth file")
    parser.add_argument("--vision", help="eva_vit_g.pth, where the checkpoint has no vision encoder")
    parser.add_argument("--language", help="language model: hub id or folder, such as google/flan-t5-xl")
    parser.add_argument("--base", help="instead of these two: Transformers' BLIP-2, hub id or folder")
    parser.add_argument("--revision", help="of the hub id")
    parser.add_argument("--vision-heads", type=int, help="16 for width 1408")
    parser.add_argument("--vision-layers", type=int, help="blocks used of the vision file; 39 for width 1408")
    parser.add_argument("--qformer-heads", type=int, help="12 for width 768")
    parser.add_argument("--qformer-layers", type=int, help="12 for width 768")
    parser.add_argument(
        "--fill-missing",
        action="store_true",
        help="take trained tensors that the checkpoint lacks from the other files, and say so",
    )
    parser.add_argument("--output", required=True, help="folder, or with --export a file")
    given = vars(parser.parse_args(argv))
    model, leave_out, checkpoint = given.pop("export"), given.pop("leave_out"), given["checkpoint"]
    if (model is None) == (checkpoint is None):
        parser.error("needs --checkpoint FILE or --export MODEL")
    if model is not None:
        left_out = export(model, given["output"], leave_out, given["revision"])
    else:
        left_out = convert(**given)
    if left_out:
        print(f"left out: {summary(left_out)}", file=sys.stderr)
    print(given["output"])
    return 0
