"""The `dynrefer` command. Only what a command needs is imported, and only when it runs: `--help` answers at once."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import dynrefer
from dynrefer.errors import MISTAKE, run_command

DTYPES = ("float32", "bfloat16", "float16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"dynrefer: error: {message}; `{self.prog} --help` shows the options\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status, see `errors.run_command`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["convert"] and argv[1:2] and argv[1] in _converters():
        return run_command("dynrefer", _convert, argv[1:])
    args = _parser().parse_args(argv)
    return run_command("dynrefer", args.run, args)


def _convert(argv: list[str]) -> int | None:
    """argv: whose weights, and the converter's own options."""
    return importlib.import_module(_converters()[argv[0]]).main(argv[1:])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynrefer", description="Describes regions of images: captions, tags, attributes, categories."
    )
    parser.add_argument("--version", action="version", version=f"dynrefer {dynrefer.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    caption = commands.add_parser(
        "caption",
        help="describe boxes or masks of a picture",
        description="Describes regions of a picture, one result a box or mask, in the order given.",
    )
    caption.add_argument("photo", help="path of the picture")
    _model_options(caption, "--model")
    caption.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar="N",
        help="one region's box; again for each further region",
    )
    caption.add_argument(
        "--mask", nargs="+", action="extend", metavar="PNG", help="one region's mask, non-zero inside; gives the box"
    )
    caption.add_argument(
        "--box-format", default="xyxy", help="xyxy, xywh or cxcywh; with -unit 0..1, with -1000 0..1000"
    )
    caption.add_argument(
        "--control",
        metavar="WORDS",
        help="words for the caption to build on, as red,car; <tags> stands for the predicted tags; '' for none",
    )
    caption.add_argument("--tag-threshold", type=float, metavar="P", help="least probability of a tag that is reported")
    caption.add_argument("--attributes", metavar="NAMES", help="attributes to score: a,b,c or a file with one a line")
    caption.add_argument(
        "--categories", metavar="NAMES", help="categories to choose from: a,b,c or a file with one a line"
    )
    caption.add_argument("--view-strategy", metavar="NAME", help="how the views are chosen, for instance phash")
    caption.add_argument(
        "--generation",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="text generation, for instance num_beams=5",
    )
    caption.add_argument("--json", action="store_true", help="one JSON object a region and line")
    caption.set_defaults(run=_caption)

    info = commands.add_parser(
        "info", help="what a model is, answers and learned from", description="Describes a model."
    )
    _model_options(info, "model")
    info.add_argument("--json", action="store_true", help="every fact, in one JSON object")
    info.set_defaults(run=_info)

    push = commands.add_parser(
        "push", help="publish a model on the hub", description="Uploads a model with its processor and a model card."
    )
    _model_options(push, "model")
    push.add_argument("repository", help="hub id, OWNER/NAME; made where there is none")
    push.add_argument("--branch", help="branch to upload to; main where not given")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--message", help="commit message")
    push.add_argument("--licence", help="of the weights, such as apache-2.0, for the model card")
    push.add_argument(
        "--trainable-only", action="store_true", help="leave out frozen parts that others fetch from their own hub ids"
    )
    push.add_argument("--merge-adapters", action="store_true", help="add LoRA layers to the language model's weights")
    push.set_defaults(run=_push)

    convert = commands.add_parser("convert", help="released weights -> a model folder")
    convert.add_argument(
        "source", choices=_converters(), help="whose weights; `dynrefer convert SOURCE --help` says more"
    )
    return parser


def _model_options(parser: argparse.ArgumentParser, name: str) -> None:
    required = {"required": True} if name.startswith("-") else {}
    parser.add_argument(name, **required, metavar="MODEL", help="run folder, model folder or hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", choices=DTYPES, help="number type of the weights, as saved where not given")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def _converters() -> dict[str, str]:
    """Whose weights can be converted -> the module that does it: a family's `convert.py`, or a file of
    `dynrefer/convert/` with a `main`."""
    here = Path(__file__).parent
    families = {path.parent.name: path for path in sorted(here.glob("models/*/convert.py"))}
    others = {path.stem: path for path in sorted(here.glob("convert/*.py")) if "\ndef main(" in path.read_text("utf-8")}
    return {
        name: ".".join(["dynrefer", *path.relative_to(here).with_suffix("").parts])
        for name, path in (families | others).items()
    }


def _load(args: argparse.Namespace) -> Any:
    dtype = None
    if args.dtype is not None:
        import torch

        dtype = getattr(torch, args.dtype)
    from transformers.utils import logging

    logging.disable_progress_bar()  # a mistake is told in one line
    return dynrefer.load(args.model, device=args.device, dtype=dtype, revision=args.revision)


def _push(args: argparse.Namespace) -> int:
    args.device = "cpu" if args.device == "auto" else args.device
    model = _load(args)
    if args.licence:
        model.config.licence = args.licence
    commit = model.push_to_hub(
        args.repository,
        save_trainable_only=args.trainable_only,
        adapters="merged" if args.merge_adapters else "separate",
        revision=args.branch,
        private=args.private or None,
        commit_message=args.message,
    )
    print(commit.commit_url)
    return 0


def _caption(args: argparse.Namespace) -> int:
    if not args.box and not args.mask:
        raise ValueError("no region; give --box X1 Y1 X2 Y2 or --mask FILE.png, each as often as there are regions")
    # everything that can be wrong with the user's input is looked at before the model is loaded
    from dynrefer.config import parse_pairs
    from dynrefer.images import open_image
    from dynrefer.predictor import RegionPredictor, check_regions

    image = open_image(args.photo)
    check_regions(args.box, args.box_format, args.mask, None, image.shape[:2])
    options = {
        "box_format": args.box_format,
        "masks": args.mask,
        "control": args.control,
        "tag_threshold": args.tag_threshold,
        "attributes": args.attributes and _names(args.attributes, "--attributes"),
        "categories": args.categories and _names(args.categories, "--categories"),
        "view_strategy": args.view_strategy,
        "generation": args.generation and parse_pairs(args.generation),
    }
    results = RegionPredictor(_load(args))(image, args.box, **options)
    for index, result in enumerate(results):
        print(json.dumps(result.to_dict(), ensure_ascii=False) if args.json else _result_text(index, result))
    sys.stdout.flush()
    return 0


def _names(text: str, option: str) -> list[str]:
    """Names from `a,b,c` or from a file with one name a line."""
    if Path(text).is_file():
        names = Path(text).read_text(encoding="utf-8").splitlines()
    elif text.endswith((".txt", ".csv", ".json")):
        raise ValueError(f"{option}: no file {text!r}; give names as a,b,c or the path of a file with one name a line")
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"{option}: {text!r} holds no name; give a,b,c or a file with one name a line")
    return names


def _result_text(index: int, result: Any) -> str:
    box = ", ".join(f"{number:.6g}" for number in result.box)
    lines = [f"{index}: {result.caption}  (score {result.score:.3f}, box {box})"]
    for title, scored in (("tags", result.tags), ("attributes", result.attributes[:5])):
        if scored:
            lines.append(f"   {title}: " + ", ".join(f"{item['name']} {item['score']:.2f}" for item in scored))
    if result.category is not None:
        lines.append(f"   category: {result.category['name']} {result.category['score']:.2f}")
    lines.append("   views: " + ", ".join(f"{scale:.3g}" for scale in result.scales))
    return "\n".join(lines)


def _info(args: argparse.Namespace) -> int:
    model = _load(args)
    from dynrefer.info import facts, text

    found = facts(model, args.model)
    print(json.dumps(found, ensure_ascii=False) if args.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
