"""The `dynrefer` command. Only what a command needs is imported, and only when it runs: `--help` answers at once."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dynrefer
from dynrefer import describe, export
from dynrefer.demo import command as demo
from dynrefer.errors import Parser, run_command
from dynrefer.serve import command as serve

DTYPES = ("float32", "bfloat16", "float16")


class _CommandParser(Parser):
    """Of one command: it tells itself of arguments that it does not have, since its own --help lists those it has."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        return (found, unknown) if not unknown else self.error(f"unrecognized arguments: {' '.join(unknown)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status, see `errors.run_command`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["convert"] and argv[1:2] and argv[1] in _converters():
        return run_command("dynrefer", _convert, argv[1:])
    argv, options = describe.take_options(argv) if argv[:1] in (["describe"], ["caption"]) else (argv, [])
    args = _parser().parse_args(argv, argparse.Namespace(options=options))
    return run_command("dynrefer", args.run, args, describe.STOPPED if getattr(args, "out", None) else "stopped")


def _convert(argv: list[str]) -> int | None:
    """argv: whose weights, and the converter's own options."""
    return importlib.import_module(_converters()[argv[0]]).main(argv[1:])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dynrefer", description="Describes regions of images: captions, tags, attributes, categories.")
    parser.add_argument("--version", action="version", version=f"dynrefer {dynrefer.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_CommandParser)

    describe.add_parser(commands, _model_options, _load)
    serve.add_parser(commands, _model_options, _load)
    demo.add_parser(commands, _model_options, _load)

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

    export.add_parser(commands, _load)

    convert = commands.add_parser("convert", help="released weights -> a model folder")
    convert.add_argument(
        "source", choices=_converters(), help="whose weights; `dynrefer convert SOURCE --help` says more"
    )
    return parser


def _model_options(parser: argparse.ArgumentParser, name: str, **choices) -> None:
    parser.add_argument(name, **choices, metavar="MODEL", help="run folder, model folder or hub id")
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


def _info(args: argparse.Namespace) -> int:
    model = _load(args)
    from dynrefer.info import facts, text

    found = facts(model, args.model)
    print(json.dumps(found, ensure_ascii=False) if args.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
