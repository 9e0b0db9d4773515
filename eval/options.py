"""What the commands of this package ask for alike: a task, its records, a model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynrefer.config import settings_help
from dynrefer.data.questions import Question
from dynrefer.data.record_files import open_records
from dynrefer.data.records import RegionRecords
from dynrefer.errors import Parser
from dynrefer.models.options import Options, make_options, parse_options

from .benchmarks import TASKS, get_task
from .task import Task

STOPPED = "stopped; the same command goes on (without --overwrite)"  # what a model has predicted is kept
# Options with a flag of their own, for instance --tag-threshold -> what stands before their value in a folder's name.
FLAGS = {"view_strategy": "", "control": "control", "tag_threshold": "tag_threshold"}


def arguments(prog: str, description: str) -> argparse.ArgumentParser:
    """The options that the commands of this package share."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--data", help="records; the task's own where not given")
    parser.add_argument("--out", help="folder to write into")
    parser.add_argument("--limit", type=int, help="only the first N regions")
    parser.add_argument("--batch-size", type=int, default=64, help="regions that go through the model together")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that prepare views; 0 = none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", help="such as bfloat16; as it was saved if not given")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--overwrite", action="store_true", help="predict anew what was predicted already")
    return parser


def open_task(args: argparse.Namespace) -> tuple[Task, RegionRecords, RegionRecords]:
    """(task, records to score, all records of the file) of the shared options."""
    task = get_task(args.task)
    data = args.data or task.data
    if not Path(data).exists():
        raise ValueError(f"task {task.name}: no records at {data!r}; name them with --data FILE, data_prep writes them")
    everything = open_records(data, None if args.data else task.split)
    check_kind(task, everything)
    if args.limit is None:
        return task, everything, everything
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected at least 1 region")
    return task, everything.subset(range(min(args.limit, len(everything)))), everything


def check_kind(task: Task, records: RegionRecords) -> None:
    """ValueError where a task that asks questions is given regions, or the other way round."""
    of_questions = isinstance(records[0], Question)
    if of_questions != bool(task.asks):
        has, wants = ("questions", "regions") if of_questions else ("regions", "questions")
        raise ValueError(f"task {task.name} is about {wants}, {records.path} holds {has}; name its own with --data")


def load_model(args: argparse.Namespace) -> Any:
    """One of our models, or a `Captioner`; options that it does not have are a ValueError before it is loaded."""
    import dynrefer
    from dynrefer.models.auto import family_of

    from .others import Captioner, is_captioner, load

    place = {"device": args.device, "dtype": args.dtype, "revision": args.revision}
    family, prompt = getattr(args, "captioner", None), getattr(args, "prompt", None)
    if family or prompt is not None or is_captioner(args.model, args.revision):
        given_options(args, Captioner.Options)
        return load(args.model, get_task(args.task), family, prompt, **place)
    given_options(args, family_of(args.model, args.revision).options)
    return dynrefer.load(args.model, **place)


def given_options(args: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """The options that the command line gives, flags and key=value, by name; ValueError for what `kind` has not."""
    flags = {name: value for name in FLAGS if (value := getattr(args, name, None)) is not None}
    make_options(kind, flags)
    return flags | parse_options(kind, getattr(args, "settings", ()))


def add_options_help(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Where --help and a --model are asked for, the model's options stand below the others."""
    first = Parser(prog=parser.prog, add_help=False)
    for names in (["--model"], ["--revision"]):
        first.add_argument(*names)
    first.add_argument("-h", "--help", action="store_true")
    args, _ = first.parse_known_args(argv)
    if args.help and args.model:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        kind = options_class(args.model, args.revision)
        parser.epilog = f"options of {args.model}, each as key=value:\n{settings_help(kind) or '  none'}"


def options_class(name: str, revision: str | None = None) -> type[Options]:
    """That of a model, without its weights; ValueError where there is no model of a known family."""
    from dynrefer.models.auto import family_of

    from .others import Captioner, is_captioner

    return Captioner.Options if is_captioner(name, revision) else family_of(name, revision).options
