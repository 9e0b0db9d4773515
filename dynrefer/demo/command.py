"""`dynrefer demo --model MODEL [--model MODEL2]`: the command, and the page's process."""

from __future__ import annotations

import argparse
import os
import tempfile
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

EPILOG = (
    "KEY=VALUE: an option of the model that the page starts with, for instance num_beams=1; "
    "`dynrefer describe --model MODEL --help` lists those of MODEL."
)
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # nothing is sent anywhere


def add_parser(commands: Any, model_options: Callable, load: Callable) -> None:
    parser = commands.add_parser(
        "demo",
        help="a page in the browser: draw regions on a picture, read what a model says",
        description="Serves a page on which regions of a picture are drawn and described, by two models side by side.",
        epilog=EPILOG,
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="an option of the models")
    model_options(parser, "--model", required=True, action="append")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: also from other machines")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one, see the line that is printed")
    parser.add_argument("--browser", action="store_true", help="open the page in this machine's browser")
    parser.set_defaults(run=partial(run, load=load))


def run(args: argparse.Namespace, load: Callable) -> int:
    """Everything that can be wrong with the arguments is looked at before the weights are loaded."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(f"dynrefer demo needs {error.name}: pip install 'dynrefer[demo]'") from None
    from dynrefer.models.auto import family_of
    from dynrefer.models.options import make_options, parse_options
    from dynrefer.serve.process import bind

    if len(args.model) > 2:
        raise ValueError(f"{len(args.model)} models; the page compares at most two, give --model once or twice")
    options = []
    for name in args.model:
        kind = family_of(name, args.revision).options
        options.append(make_options(kind, parse_options(kind, args.options)))
    sock = bind(args.host, args.port)  # says in a line where the port is taken
    from .asking import Asker
    from .page import Server, application, build

    askers = []
    for name, own in zip(args.model, options, strict=True):
        model = load(argparse.Namespace(**{**vars(args), "model": name}))
        model.check_options(own)
        askers.append(Asker(model, Path(name).name or name, own))

    def ready(address: str) -> None:
        print(f"listening on {address}; Ctrl-C ends it", flush=True)
        if args.browser:
            webbrowser.open(address)

    with tempfile.TemporaryDirectory(prefix="dynrefer-demo-") as folder:
        Server(application(build(askers), folder), sock, ready).run()
    return 0
