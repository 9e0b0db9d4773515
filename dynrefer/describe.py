"""`dynrefer describe PHOTO --model MODEL --box X1 Y1 X2 Y2 [key=value ...]`: regions of a picture, described."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

EPILOG = (
    "key=value: an option of the model, for instance num_beams=5; `dynrefer describe --model MODEL --help` lists those "
    "of MODEL. A list is given as a,b,c or as a file with one a line."
)
LIKELY = 0.01  # categories below it are not shown to people, but for the first
ALIASES = ("control", "tag_threshold", "attributes", "categories", "view_strategy")  # flags of version 0.3.0


def add_parser(commands: Any, model_options: Callable, load: Callable) -> None:
    parser = commands.add_parser(
        "describe",
        aliases=["caption"],
        help="describe boxes or masks of a picture",
        description="Describes regions of a picture, one result a box or mask, in the order given.",
        epilog=EPILOG,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, and with --model its options, and exit")
    parser.add_argument("photo", nargs="*", metavar="PHOTO", help="path of the picture; key=value: an option")
    model_options(parser, "--model", required=False)
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar="N",
        help="one region's box; again for each further region",
    )
    parser.add_argument(
        "--mask", nargs="+", action="extend", metavar="PNG", help="one region's mask, non-zero inside; gives the box"
    )
    parser.add_argument(
        "--point",
        nargs="+",
        type=float,
        action="append",
        metavar="N",
        help="one region by points X Y inside of it, [X Y ...]; of a family that takes points",
    )
    parser.add_argument(
        "--box-format", default="xyxy", help="xyxy, xywh or cxcywh; with -unit 0..1, with -1000 0..1000"
    )
    for name in ALIASES:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"as {name}=VALUE")
    parser.add_argument("--generation", nargs="*", metavar="KEY=VALUE", help="before key=value, which it does not need")
    parser.add_argument("--json", action="store_true", help="one JSON object a region and line")
    parser.add_argument("--draw", metavar="DIR", help="also draw the results on the picture, into this folder (PNG)")
    parser.set_defaults(run=partial(run, load=load), show_help=parser.print_help)


def take_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other arguments, those that are options of the model): key=value, where "=" stands before any "/", unless it
    is the value of a flag.

    >>> take_options(["a.jpg", "--model", "m", "--box", "1", "2", "3", "4", "num_beams=5", "--control", "x=y", "b/c=d"])
    (['a.jpg', '--model', 'm', '--box', '1', '2', '3', '4', '--control', 'x=y', 'b/c=d'], ['num_beams=5'])
    """
    valued = {
        f"--{name.replace('_', '-')}"
        for name in (*ALIASES, "model", "device", "dtype", "revision", "box_format", "draw")
    }
    others, pairs = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = "=" in argument.partition("/")[0] and not argument.startswith("-") and before not in valued
        (pairs if option else others).append(argument)
    return others, pairs


def run(args: argparse.Namespace, load: Callable) -> int:
    """Everything that can be wrong with the user's input is looked at before the weights are loaded."""
    if args.help:
        args.show_help()
        if args.model:
            from dynrefer.config import settings_help
            from dynrefer.models.auto import family_of

            print(f"\noptions of {args.model}:\n{settings_help(family_of(args.model, args.revision).options)}")
        return 0
    if not args.model:
        raise ValueError("no model; give --model RUN_OR_FOLDER_OR_HUB_ID")
    photos = args.photo
    pairs = list(args.generation or ())
    pairs += [f"{name}={value}" for name in ALIASES if (value := getattr(args, name)) is not None]
    if len(photos) != 1:
        raise ValueError(f"{len(photos)} pictures ({', '.join(photos) or 'none'}): --box and --mask need exactly one")
    if not args.box and not args.mask and not args.point:
        raise ValueError(
            "no region; give --box X1 Y1 X2 Y2, --mask FILE.png or --point X Y, each as often as there are regions"
        )
    if odd := [numbers for numbers in args.point or () if len(numbers) % 2]:
        raise ValueError(f"--point {' '.join(f'{n:g}' for n in odd[0])}: a number without its other; give X Y pairs")
    from dynrefer.data.example import Example
    from dynrefer.images import open_image
    from dynrefer.models.auto import family_of
    from dynrefer.models.options import make_options, parse_options
    from dynrefer.predictor import RegionPredictor
    from dynrefer.regions import check_prompts, pointed_regions

    image = open_image(photos[0])
    points = args.point and [list(zip(numbers[::2], numbers[1::2], strict=True)) for numbers in args.point]
    regions, prompts = pointed_regions(image.shape[:2], args.box, args.box_format, args.mask, points)
    row = family_of(args.model, args.revision)
    kind = row.options
    if points:
        check_prompts("points" in row.load("model").prompts, None, points)
    options = make_options(kind, parse_options(kind, [*pairs, *args.options]))
    if args.draw:
        Path(args.draw).mkdir(parents=True, exist_ok=True)
    model = load(args)
    model.check_options(options)
    (results,) = RegionPredictor(model).describe([(Example.of_picture(image, regions, photos[0], prompts), options)])
    for index, result in enumerate(results):
        print(json.dumps(result.to_dict(), ensure_ascii=False) if args.json else result_text(index, result))
    sys.stdout.flush()
    if args.draw:
        from dynrefer.draw import draw_results, save_picture

        for region, result in zip(regions, results, strict=True):  # a mask that was given is drawn, too
            result.mask = region.mask if result.mask is None else result.mask
        print(f"drawn: {save_picture(args.draw, Path(photos[0]).stem, draw_results(image, results))}", file=sys.stderr)
    return 0


def result_text(index: int, result: Any) -> str:
    """A result in lines for people: what it has an answer for."""
    box = ", ".join(f"{number:.6g}" for number in result.box)
    name = result.category["name"] if result.category else "unknown"
    said = result.caption or result.score > 0  # a caption may be empty, with the probability of that
    sure = f"score {result.score:.3f}, " if said else ""
    lines = [f"{index}: {result.caption if said else name}  ({sure}box {box})"]
    likely = [one for n, one in enumerate(result.categories) if n == 0 or one["score"] >= LIKELY]
    named = [("tags", result.tags), ("attributes", result.attributes[:5])]
    named.append(("category" if len(likely) == 1 else "categories", likely))
    for title, scored in named:
        if scored:
            lines.append(f"   {title}: " + ", ".join(f"{item['name']} {item['score']:.2f}" for item in scored))
    if result.mask is not None:
        from dynrefer.masks import to_mask

        lines.append(f"   mask: {int(to_mask(result.mask, result.mask['size']).sum()):,} pixels")
    for title, values in result.extra.items():
        if isinstance(values, list) and all(isinstance(value, float) for value in values):
            lines.append(f"   {title}: " + ", ".join(f"{value:.3g}" for value in values))
    return "\n".join(lines)
