"""Released RegionSpot checkpoints <-> our folders.

A released file holds the 60 trained tensors, alone or in a whole training checkpoint; SAM and CLIP come from their own
models. BL and BL@336 have the same shapes: the CLIP that is named decides which one it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from zipfile import is_zipfile

from torch import Tensor

from dynrefer.convert.tensors import check_new, new_folder, read_torch, save_torch, seems
from dynrefer.convert.torch_pickle import TorchFile, tensors_in

from ..base_parts import fill_part
from ..folder_check import check_file, check_numbers

logger = logging.getLogger(__name__)

LAYERS, HEADS = 3, 8
WRAPPERS = ("module.", "model.")  # of DDP and of the training program
FROZEN = ("sam.", "clip_model.")  # copies of SAM and CLIP, which come from their own models
LICENCE = "cc-by-nc-4.0"  # of the released code; nothing says that of the weights is another
KINDS = {768: "bb", 1024: "bl"}  # in file names, by CLIP's width
VARIANTS = {(768, 224): "BB", (1024, 224): "BL", (1024, 336): "BL@336"}  # by CLIP's width and picture


def released_names(layers: int = LAYERS) -> list[str]:
    """The tensors of a released file: 60."""
    each = [
        f"{part}.{kind}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3") for kind in ("weight", "bias")
    ]
    for attention in ("self_attn", "multihead_attn"):
        each += [f"{attention}.{name}" for name in ("in_proj_weight", "in_proj_bias")]
        each += [f"{attention}.out_proj.{kind}" for kind in ("weight", "bias")]
    ends = [f"{part}.{kind}" for part in ("to_clip", "projector", "decoder.norm") for kind in ("weight", "bias")]
    return ends + [f"decoder.layers.{i}.{name}" for i in range(layers) for name in each]


# ------------------------------------------------------------------------------------------------ released -> ours


def convert(
    checkpoint: str | Path,
    sam: str | Path,
    clip: str | Path,
    output: str | Path,
    image_size: int | None = None,
    categories: str | Path | None = None,
    sam_revision: str | None = None,
    clip_revision: str | None = None,
) -> Path:
    """A released file, SAM and CLIP -> a folder that `dynrefer.load` opens. Sizes come from the files.

    checkpoint: the released file, stripped, whole or bare; sam, clip: hub ids or folders, see parts.py;
    output: a folder that is new or empty, which appears when everything in it is written; image_size: side of CLIP's
    picture where it is not CLIP's own; categories: the model's own names, one a line.

    Raises ValueError for a tensor too many or too few, and for a SAM or a CLIP that does not fit.
    """
    from dynrefer.vocabulary import read_words

    from .configuration import RegionSpotConfig
    from .modeling import RegionSpotModel
    from .parts import clip_tokenizer_of, normalization, origin, part_config
    from .processor import RegionSpotProcessor
    from .text_bank import template_list

    names = [] if categories is None else list(dict.fromkeys(read_words(categories)))
    with new_folder(output) as folder:
        tensors = read_released(checkpoint)
        parts = {"sam": origin(str(sam), sam_revision), "clip": origin(str(clip), clip_revision)}
        place = str(clip), parts["clip"].revision
        config = RegionSpotConfig(
            sam_config=part_config({"name": str(sam), "revision": parts["sam"].revision}, "sam"),
            clip_config=part_config({"name": str(clip), "revision": parts["clip"].revision}, "clip"),
            image_size=image_size,
            **normalization(*place),
            decoder_layers=LAYERS,
            decoder_heads=HEADS,
            decoder_mlp_width=len(tensors["decoder.layers.0.linear1.weight"]),
            templates=template_list("openai81"),
            categories=names,
            licence=LICENCE,
        )
        skeleton = RegionSpotModel.skeleton(config)
        check_sizes(skeleton, tensors, str(checkpoint), str(sam), str(clip))
        print(check_variant(config, len(tensors["to_clip.bias"]), str(checkpoint), str(clip), image_size))
        model = RegionSpotModel(config).float()
        for part, source in parts.items():
            fill_part(model, part, source)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        model.processor = RegionSpotProcessor(config, clip_tokenizer_of(*place, config.clip_config))
        model.save_pretrained(folder)
    return Path(output)


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The 60 tensors of a released file under our names, which are theirs. ValueError where it holds others."""
    what = f"checkpoint {str(path)!r}"
    check_file(path, "checkpoint")
    file = TorchFile(path) if is_zipfile(path) else None
    found = read_torch(path) if file is None else tensors_in(file.content)
    named: dict[str, str] = {}
    for name in found:
        ours = bare(name)
        if ours.startswith(FROZEN):
            continue
        if ours in named:
            raise ValueError(f"{what}: {named[ours]} and {name} are both {ours}; expected one of them")
        named[ours] = name
    expected = set(released_names())
    if missing := sorted(expected - named.keys()):
        raise ValueError(
            f"{what}: lacks {len(missing)} of the {len(expected)} tensors of RegionSpot, such as {missing[0]}"
            f"{seems(map(bare, found))}"
        )
    if others := sorted(named.keys() - expected):
        raise ValueError(
            f"{what}: {len(others)} tensors are none of RegionSpot's {len(expected)}, such as {others[0]}; is it "
            "trained by another program?"
        )
    chosen = {ours: found[name] for ours, name in named.items()}
    tensors = chosen if file is None else file.read(chosen)
    check_numbers(tensors.items(), what)
    return tensors


def bare(name: str) -> str:
    """A tensor's name without what DDP and the training program put before it.

    >>> bare("module.model.to_clip.weight")
    'to_clip.weight'
    """
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def check_sizes(model, tensors: Mapping[str, Tensor], checkpoint: str, sam: str, clip: str) -> None:
    """ValueError where SAM or CLIP does not fit the checkpoint. model: on the meta device."""
    width, token_width = tensors["to_clip.weight"].shape
    text_width = len(tensors["projector.bias"])
    for what, name, found, wanted in (
        ("sam", sam, model.sam.width, token_width),
        ("clip", clip, model.clip.width, width),
        ("clip", clip, model.clip.text_width, text_width),
    ):
        if found != wanted:
            kind = {"sam": "tokens of SAM", "clip": "image tokens of CLIP"}[what]
            kind = "text vectors of CLIP" if wanted == text_width and found == model.clip.text_width else kind
            hint = {768: "; BB belongs to a CLIP ViT-B/16", 1024: "; BL belongs to a CLIP ViT-L/14"}.get(width, "")
            raise ValueError(
                f"{what} {name!r} does not fit checkpoint {checkpoint!r}: {kind} have {found} numbers, the checkpoint "
                f"expects {wanted}{hint if what == 'clip' else ''}"
            )
    state = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"checkpoint {checkpoint!r}: {name} is {tuple(tensor.shape)}, expected {tuple(state[name].shape)} "
                "beside its other tensors; the file is damaged"
            )


def check_variant(config, width: int, checkpoint: str, clip: str, image_size: int | None) -> str:
    """Which of the released models it becomes, in a line. ValueError where the file's name says that CLIP's picture has
    another side than that of the CLIP that is named; a warning where `image_size` overrides that."""
    from .configuration import native_size

    native, said = native_size(config.clip_config), named_size(checkpoint)
    words, own = name_words(checkpoint), KINDS.get(width)
    if own is not None and (others := words & set(KINDS.values()) - {own}):
        raise ValueError(
            f"checkpoint {checkpoint!r} is by its name {others.pop().upper()} and by its tensors {own.upper()}; name "
            "the file as what it is"
        )
    if image_size is None and said is not None and said != native:
        raise ValueError(
            f"checkpoint {checkpoint!r} is by its name for a CLIP of {said} x {said} pixels, and clip {clip!r} has "
            f"{native} x {native}; name the CLIP that it was trained with, or say --image-size {native}"
        )
    size = config.image_size
    if image_size is not None and (size != native or said not in (None, size)):
        sides = [f"clip {clip!r} has {native} x {native}"]
        sides += [f"the name of checkpoint {checkpoint!r} says {said} x {said}"] if said is not None else []
        logger.warning(f"--image-size {size}: pictures of {size} x {size} pixels, where {' and '.join(sides)}")
    variant = VARIANTS.get((width, size))
    return (
        f"{f'RegionSpot {variant}' if variant else 'RegionSpot'}: clip {clip} with pictures of {size} x {size} pixels"
    )


def named_size(checkpoint: str) -> int | None:
    """The side of CLIP's picture that a released file's name tells; None for another name.

    >>> named_size("regionspot_bl.pth"), named_size("regionspot_bl_336.pth"), named_size("model_final.pth")
    (224, 336, None)
    """
    words = name_words(checkpoint)
    if {"336", "bl336"} & words:
        return 336
    return 224 if {"bb", "bl", "224"} & words else None


def name_words(checkpoint: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", Path(checkpoint).stem.lower()))


# ------------------------------------------------------------------------------------------------ ours -> released


def export(model, output: str | Path) -> Path:
    """A model -> a file in the released layout, without SAM and CLIP. ValueError where that has no room for it."""
    check_new(output)
    config = model.config
    for name, released in (
        ("decoder_layers", LAYERS),
        ("decoder_heads", HEADS),
        ("token", "transformer"),
        ("class_token", True),
        ("clip_positions", "none"),
    ):
        if (value := getattr(config, name)) != released:
            raise ValueError(f"export: {name} is {value!r}; the released program knows {released!r} only")
    state = model.state_dict()
    tensors = {f"model.{name}": state[name].detach().cpu().float().contiguous() for name in released_names()}
    save_torch(tensors, output)
    return Path(output)


def main(argv: list[str] | None = None) -> int:
    """`dynrefer convert regionspot ...`"""
    from dynrefer.errors import Parser

    parser = Parser(prog="dynrefer convert regionspot", description=__doc__)
    parser.add_argument("--export", metavar="MODEL", help="write this model in the released layout to --output FILE")
    parser.add_argument("--checkpoint", help="released file: stripped, whole or bare")
    parser.add_argument("--sam", help="hub id or folder, such as facebook/sam-vit-base")
    parser.add_argument("--clip", help="hub id or folder, such as openai/clip-vit-large-patch14-336")
    parser.add_argument("--sam-revision", help="of SAM's hub id")
    parser.add_argument("--clip-revision", help="of CLIP's hub id")
    parser.add_argument("--image-size", type=int, help="side of CLIP's picture, where it is not CLIP's own")
    parser.add_argument("--categories", help="the model's own names, one a line, for where a user names none")
    parser.add_argument("--output", required=True, help="folder, or with --export a file")
    arguments = parser.parse_args(argv)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a mistake is told in one line
    if arguments.export:
        import dynrefer

        print(export(dynrefer.load(arguments.export, device="cpu"), arguments.output))
        return 0
    missing = [f"--{name}" for name in ("checkpoint", "sam", "clip") if getattr(arguments, name) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)} (or --export MODEL)")
    names = ("checkpoint", "sam", "clip", "output", "image_size", "categories", "sam_revision", "clip_revision")
    print(convert(**{name: getattr(arguments, name) for name in names}))
    return 0
