"""`dynrefer serve --model MODEL`: the command, and the process around the application."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .settings import Settings

API_KEY = "DYNREFER_API_KEY"  # environment variable
EPILOG = (
    "KEY=VALUE: an option of the model for all requests that do not set it, for instance num_beams=1; "
    "`dynrefer describe --model MODEL --help` lists those of MODEL."
)


def add_parser(commands: Any, model_options: Callable, load: Callable) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP, also in OpenAI's form",
        description="Answers requests over HTTP: /v1/regions, /v1/chat/completions, /docs.",
        epilog=EPILOG,
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="an option of the model")
    model_options(parser, "--model", required=True)
    parser.add_argument("--name", help="of the model, as clients call it; the last part of MODEL where not given")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: also from other machines")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one, see the first line of the log")
    parser.add_argument(
        "--api-key", help=f"that clients must send as a bearer token; better in the environment, {API_KEY}"
    )
    parser.add_argument(
        "--allow-host", nargs="+", action="extend", default=[], metavar="HOST", help="fetch pictures from these hosts"
    )
    parser.add_argument(
        "--cors-origin", nargs="+", action="extend", default=[], metavar="ORIGIN", help="web pages that may call"
    )
    for each in dataclasses.fields(Settings):
        if text := each.metadata.get("help"):
            flag, kind = f"--{each.name.replace('_', '-')}", type(each.default)
            parser.add_argument(flag, type=kind, default=each.default, metavar="N", help=f"{text} ({each.default:,})")
    parser.set_defaults(run=partial(run, load=load))


def run(args: argparse.Namespace, load: Callable) -> int:
    """Everything that can be wrong with the settings is looked at before the weights are loaded."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"dynrefer serve needs {error.name}: pip install 'dynrefer[serve]'") from None
    from dynrefer.models.auto import family_of
    from dynrefer.models.options import make_options, parse_options

    limits = {each.name: getattr(args, each.name) for each in dataclasses.fields(Settings) if hasattr(args, each.name)}
    settings = Settings(
        **limits
        | {
            "name": args.name or Path(args.model).name or args.model,
            "api_key": os.environ.get(API_KEY) if args.api_key is None else args.api_key,
            "allow_hosts": tuple(args.allow_host),
            "cors_origins": tuple(args.cors_origin),
        }
    )
    kind = family_of(args.model, args.revision).options
    options = parse_options(kind, args.options)
    make_options(kind, options)
    from .app import create_app
    from .process import bind, run_until_signal

    sock = bind(args.host, args.port)
    gate = create_app(load(args), settings, options)
    return run_until_signal(gate, sock)
