"""`dynrefer export MODEL --onnx DIR`: parts of a model as ONNX graphs, which run without PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

WORDS = ("categories", "attributes")  # word lists that may be given


def add_parser(commands: Any, load: Callable) -> None:
    parser = commands.add_parser(
        "export",
        help="parts of a model as ONNX graphs",
        description="Writes parts of a model as ONNX graphs, with a description of what goes in and comes out.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder or hub id")
    parser.add_argument("--onnx", required=True, metavar="DIR", help="a new folder for the graphs and export.json")
    for name in WORDS:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{name} instead of the model's own, one a line")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.set_defaults(run=partial(run, load=load), device="cpu", dtype="float32")


def run(args: argparse.Namespace, load: Callable) -> int:
    from dynrefer.models.auto import family_of
    from dynrefer.models.options import make_options, parse_options

    kind = family_of(args.model, args.revision).options
    given = [f"{name}={value}" for name in WORDS if (value := getattr(args, name)) is not None]
    options = make_options(kind, parse_options(kind, given))
    from dynrefer.convert.tensors import new_folder
    from dynrefer.graph_files import need_onnx, write_graphs

    need_onnx()
    with new_folder(args.onnx) as folder:
        model = load(args)
        differences = write_graphs(model.eval().graphs(options), folder, model.config.model_type)
    for name, difference in differences.items():
        print(f"{args.onnx}/{name}.onnx: onnxruntime and PyTorch agree within {difference:.1e}")
    return 0
