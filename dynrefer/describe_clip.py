"""`dynrefer describe CLIP --model MODEL --box X1 Y1 X2 Y2 [--question TEXT]`: regions of a clip, described."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_clip(args: argparse.Namespace) -> bool:
    """Whether a clip is meant: a video file alone, or a folder of frames with --prompt-frame."""
    from dynrefer.clip_example import is_video

    if len(args.photo) != 1:
        return False
    return is_video(args.photo[0]) or args.prompt_frame is not None and Path(args.photo[0]).is_dir()


def check_clip(args: argparse.Namespace, row: Any) -> None:
    """ValueError for flags that are for pictures, and a family that reads no clips."""
    pictures = ("regions", "coco", "records", "out", "sam", "point")
    if given := [f"--{name}" for name in pictures if getattr(args, name)]:
        raise ValueError(f"{given[0]} is for pictures; point into the clip {args.photo[0]} with --box or --mask")
    if not (args.box or args.mask or args.question):
        raise ValueError("no region; give --box X1 Y1 X2 Y2 or --mask FILE.png, or --question about the whole clip")
    if not row.load("model").clips:
        raise ValueError(f"{args.photo[0]}: the family of {args.model} reads no clips; take a picture out of it")


def run_clip(args: argparse.Namespace, load: Callable, options: Any, result_text: Callable) -> int:
    """What can be wrong with the clip is looked at before the weights are loaded."""
    from dynrefer.clip_example import clip_example
    from dynrefer.predictor import RegionPredictor

    span = {"prompt_frame": args.prompt_frame or 0, "end_frame": args.end_frame}
    boxes = args.box or (None if args.mask else ())
    place = {"boxes": boxes, "box_format": args.box_format, "masks": args.mask}
    example = clip_example(args.photo[0], **place, **span)
    if args.draw:
        Path(args.draw).mkdir(parents=True, exist_ok=True)
    model = load(args)
    results = RegionPredictor(model, args.batch_size).clip(args.photo[0], **place, **span, options=options)
    for index, result in enumerate(results):
        print(json.dumps(result.to_dict(), ensure_ascii=False) if args.json else result_text(index, result))
    sys.stdout.flush()
    if args.draw:
        from dynrefer.draw import save_picture
        from dynrefer.draw_clip import draw_clip

        numbers = results[0].extra.get("frames", [span["prompt_frame"]])
        picture = draw_clip(example.frames(numbers), numbers, results.masked())
        print(f"drawn: {save_picture(args.draw, Path(args.photo[0]).stem, picture)}", file=sys.stderr)
    return 0
