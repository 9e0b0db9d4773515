"""`dynrefer describe`: regions of pictures, described.

dynrefer describe PHOTO --model MODEL --box X1 Y1 X2 Y2 [key=value ...]
dynrefer describe CLIP --model MODEL --box X1 Y1 X2 Y2 --question "What does <region0> do?"
dynrefer describe PHOTO ... | FOLDER | --coco FILE | --records FILE --model MODEL --out results.jsonl
"""

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
NAMED = ("image", "all", "alpha")  # words for regions of every picture
JOB = ("coco", "records", "overwrite", "images", "image_prefix")  # flags that --out needs
VALUED = ("model", "device", "dtype", "revision", "box_format", "draw", "out", "coco", "records", "images", "sam")
VALUED += ("image_prefix", "regions", "batch_size", "num_workers", "prompt_frame", "end_frame")
STOPPED = "stopped; the same command goes on"
# flags of version 0.3.0, and one that is asked often
ALIASES = ("control", "tag_threshold", "attributes", "categories", "view_strategy", "question")


def add_parser(commands: Any, model_options: Callable, load: Callable) -> None:
    parser = commands.add_parser(
        "describe",
        aliases=["caption"],
        help="describe regions of pictures",
        description="Describes regions of a picture, or of many into a file; one result a region, in the order given.",
        epilog=EPILOG,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, and with --model its options, and exit")
    parser.add_argument(
        "photo", nargs="*", metavar="PHOTO", help="paths of pictures or of folders of them; key=value: an option"
    )
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
    parser.add_argument(
        "--prompt-frame", type=int, metavar="N", help="frame of a clip with the regions; 0 if not given"
    )
    parser.add_argument("--end-frame", type=int, metavar="N", help="first frame behind a clip; its end if not given")
    parser.add_argument(
        "--regions",
        choices=NAMED,
        help="of every picture: image, the whole of it (where nothing is said of several pictures); all, what --sam "
        "finds; alpha, its alpha channel",
    )
    parser.add_argument("--sam", metavar="MODEL", help="a SAM of Transformers: for --regions all, and masks of --point")
    parser.add_argument("--coco", metavar="FILE", help="instead of pictures: a COCO file, all of its annotations")
    parser.add_argument("--images", metavar="FOLDER", help="where the pictures of --coco lie; beside it if not given")
    parser.add_argument("--image-prefix", default="", metavar="TEXT", help="what names in --coco begin with elsewhere")
    parser.add_argument("--records", metavar="FILE", help="instead of pictures: records, as data_prep writes them")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the results into this .jsonl, or .coco.json; the same command goes on after a kill, and "
        "`accelerate launch -m dynrefer.cli describe ...` shares the work",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew whatever --out holds")
    parser.add_argument("--batch-size", type=int, default=64, help="regions that go through the model together")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that read pictures for --out; 0 = none")
    for name in ALIASES:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"as {name}=VALUE")
    parser.add_argument("--generation", nargs="*", metavar="KEY=VALUE", help="before key=value, which it does not need")
    parser.add_argument("--json", action="store_true", help="one JSON object a region and line")
    parser.add_argument("--draw", metavar="DIR", help="also draw the results on their pictures, into this folder")
    parser.set_defaults(run=partial(run, load=load), show_help=parser.print_help)


def take_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other arguments, those that are options of the model): key=value, where "=" stands before any "/", unless it
    is the value of a flag.

    >>> take_options(["a.jpg", "--model", "m", "--box", "1", "2", "3", "4", "num_beams=5", "--control", "x=y", "b/c=d"])
    (['a.jpg', '--model', 'm', '--box', '1', '2', '3', '4', '--control', 'x=y', 'b/c=d'], ['num_beams=5'])
    """
    valued = {f"--{name.replace('_', '-')}" for name in (*ALIASES, *VALUED)}
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
    from dynrefer.describe_clip import check_clip, is_clip, run_clip
    from dynrefer.models.auto import family_of
    from dynrefer.models.options import make_options, parse_options

    pictures, clip = [], is_clip(args)
    if not clip:
        if args.prompt_frame is not None or args.end_frame is not None:
            raise ValueError("--prompt-frame and --end-frame are for a clip; give one video file")
        check(args)
        pictures = [] if args.out else _ask_pictures(args)
    row = family_of(args.model, args.revision)
    pairs = list(args.generation or ())
    pairs += [f"{name}={value}" for name in ALIASES if (value := getattr(args, name)) is not None]
    options = make_options(row.options, parse_options(row.options, [*pairs, *args.options]))
    if clip:
        check_clip(args, row)
        return run_clip(args, load, options, result_text)
    if args.out:
        return _write(args, load, options)
    if args.point:
        from dynrefer.regions import check_prompts

        check_prompts("points" in row.load("model").prompts, args.sam, args.point)
    return _print(args, load, options, pictures)


def check(args: argparse.Namespace) -> None:
    """ValueError for arguments that do not go together."""
    pointed = [f"--{name}" for name in ("box", "mask", "point") if getattr(args, name)]
    others = [f"--{name}" for name in ("coco", "records") if getattr(args, name)]
    if len(sources := ["pictures"] * bool(args.photo) + others) > 1:
        raise ValueError(f"{' and '.join(sources)}: give one of them")
    if (pointed or not sources) and (len(args.photo) != 1 or Path(args.photo[0]).is_dir()):
        what = "a folder" if len(args.photo) == 1 else f"{len(args.photo)} pictures"
        raise ValueError(f"{what} ({', '.join(args.photo) or 'none'}): --box and --mask need exactly one")
    if args.regions and (pointed or others):
        raise ValueError(f"--regions {args.regions} and {(pointed or others)[0]}: give one of them")
    if not args.out and (alone := [name for name in JOB if getattr(args, name)]):
        raise ValueError(f"--{alone[0].replace('_', '-')} needs --out FILE, the results to write")
    if args.out and args.json:
        raise ValueError("--json is how results are printed; --out FILE.jsonl has them a JSON object a line")
    if args.images and not args.coco:
        raise ValueError("--images is where the pictures of --coco lie; name pictures or their folder without it")
    if args.regions == "all" and not args.sam:
        raise ValueError("--regions all needs --sam MODEL, a SAM of Transformers, whose grid of points finds them")
    if args.batch_size < 1 or args.num_workers < 0:
        raise ValueError(f"--batch-size {args.batch_size}, --num-workers {args.num_workers}: expected 1 and 0 or more")
    if len(args.photo) == 1 and not (pointed or args.regions or args.out or Path(args.photo[0]).is_dir()):
        raise ValueError(
            "no region; give --box X1 Y1 X2 Y2, --mask FILE.png or --point X Y, each as often as there are regions, or "
            "--regions image for the whole picture"
        )
    if odd := [numbers for numbers in args.point or () if len(numbers) % 2]:
        raise ValueError(f"--point {' '.join(f'{n:g}' for n in odd[0])}: a number without its other; give X Y pairs")


def _points(args: argparse.Namespace) -> list | None:
    return args.point and [list(zip(numbers[::2], numbers[1::2], strict=True)) for numbers in args.point]


def _ask_pictures(args: argparse.Namespace) -> list[Path]:
    """The pictures to print results of; regions that are pointed at in the only one are looked at."""
    from dynrefer.images import open_image
    from dynrefer.jobs import find_pictures
    from dynrefer.regions import pointed_regions

    if len(args.photo) == 1 and not Path(args.photo[0]).is_dir():
        image = open_image(args.photo[0])
        if args.box or args.mask or args.point:
            pointed_regions(image.shape[:2], args.box, args.box_format, args.mask, _points(args))
        return [Path(args.photo[0])]
    pictures, others = find_pictures(args.photo)
    _tell(others)
    return pictures


def _tell(others: Sequence[Path]) -> None:
    if others:
        print(f"{len(others)} other files there are no pictures, such as {others[0]}", file=sys.stderr)


def _print(args: argparse.Namespace, load: Callable, options: Any, pictures: Sequence[Path]) -> int:
    """Describes pictures one after the other."""
    from dynrefer.predictor import RegionPredictor

    if args.draw:
        Path(args.draw).mkdir(parents=True, exist_ok=True)
    model = load(args)
    model.check_options(options)
    predictor = RegionPredictor(model, args.batch_size, sam=args.sam)
    given = {"boxes": args.box, "masks": args.mask, "points": _points(args), "box_format": args.box_format}
    if not (args.box or args.mask or args.point):
        given = {"regions": args.regions or "image"}
    for path, results in zip(pictures, predictor.stream(map(str, pictures), options=options, **given), strict=True):
        if len(pictures) > 1 and not args.json:
            print(f"{path}:")
        for index, result in enumerate(results):
            if len(pictures) > 1:
                result.id = f"{path}:{index}"
            print(json.dumps(result.to_dict(), ensure_ascii=False) if args.json else result_text(index, result))
        sys.stdout.flush()
        if args.draw:
            from dynrefer.draw import save_picture

            print(f"drawn: {save_picture(args.draw, path.stem, results.draw())}", file=sys.stderr)
    return 0


def _ask_job(args: argparse.Namespace) -> Any:
    """The job with its record file, which this writes where the user has none."""
    from dataclasses import replace

    from dynrefer import jobs
    from dynrefer.regions import Asked

    job = jobs.job_at(args.out, args.records)
    jobs.check_form(job, args.overwrite)
    root = job.records.parent
    if args.records:
        return job
    if args.coco:
        folder = args.images and Path(args.images)
        regions, image_ids, categories = jobs.ask_coco(Path(args.coco), folder, root, args.image_prefix)
        job = replace(job, image_ids=image_ids, categories=categories)
    else:
        pictures, others = jobs.find_pictures(args.photo)
        _tell(others)
        sam, pointed = None, None
        if args.sam:
            from dynrefer.segment import Segmenter

            sam = Segmenter(args.sam, device=args.device)
        if args.box or args.mask or args.point:
            pointed = Asked(args.box, args.box_format, args.mask, _points(args))
        regions = jobs.ask_pictures(pictures, root, args.regions or "image", sam, pointed)
    jobs.write_asked(job, regions, args.overwrite)
    return job


def _write(args: argparse.Namespace, load: Callable, options: Any) -> int:
    """Describes everything into --out; every process of a launch calls it."""
    from dynrefer import jobs
    from dynrefer.data.record_files import open_records
    from dynrefer.predictions import predict
    from dynrefer.processes import Processes, launched

    with launched():
        job = Processes().from_main(lambda: _ask_job(args))
        records = open_records(job.records)
        model = load(args)
        how = {"batch_size": args.batch_size, "num_workers": args.num_workers, "overwrite": args.overwrite}
        results = predict(model, records, job.predictions, options, **how)
        if not results:  # another process has them
            return 0
        if job.is_coco:
            jobs.write_form(job, records, results)
        drawn = jobs.draw_all(job, records, results, Path(args.draw)) if args.draw else 0
    print(f"{len(results):,} regions of {len(records.image_names()):,} pictures -> {job.out}")
    if drawn:
        print(f"{drawn:,} pictures drawn -> {args.draw}")
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
