r"""Records with expressions, and boxes of the same pictures -> question file: which of the boxes is meant?

    python -m data_prep.selection --records data/refcocog/val_expressions.jsonl --proposals data/coco2014/train.jsonl \
        --name refcocog-val --out data/refcocog_selection/val.jsonl

RefCOCOg by selection, as RegionGPT and Omni-RGPT are scored: all proposals of a picture are marked together, and the
model says which one an expression means. One record is one expression. The right proposal is the one that overlaps the
true box most, with an IoU of at least --iou; where none does, every answer is wrong. Which proposals they took is not
published: here they are any records of boxes of the same pictures, a detector's or COCO's own (`data_prep.coco`), in
their order, at most --most of a picture, since a model has so many marks. --with-truth adds the true box where no
proposal reaches --iou.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.converter import image_key
from data_prep.counts import Tally, tell
from data_prep.question_converter import write
from dynrefer.boxes import box_iou
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region
from dynrefer.errors import Parser, run_command

MOST = 100


def proposals_of(paths: Sequence[Path], wanted: set) -> dict[object, list[Region]]:
    """Key of a picture (`converter.image_key`) -> regions of the files."""
    found: dict[object, list[Region]] = {}
    for path in paths:
        for region in open_records(path):
            if (key := image_key(region.image)) in wanted:
                found.setdefault(key, []).append(region)
    return found


def questions(
    records: Sequence[Region], proposals: Mapping[object, list[Region]], args: argparse.Namespace, tally: Tally
) -> Iterator[dict]:
    """One a caption of each record, in order."""
    for region in records:
        there = list(proposals.get(image_key(region.image), ()))
        tally["proposals beyond the first ones of a picture left out"] += max(0, len(there) - args.most)
        boxes = [other.box for other in there[: args.most]]
        scale = region.image_hw[0] / there[0].image_hw[0] if there else 1.0
        boxes = [tuple(c * scale for c in box) for box in boxes]
        overlaps = box_iou([region.box], boxes)[0] if boxes else np.zeros(0)
        best = int(overlaps.argmax()) if len(overlaps) and overlaps.max() >= args.iou else -1
        if best < 0 and args.with_truth:
            boxes = [*boxes[: args.most - 1], region.box]
            best = len(boxes) - 1
            tally["expressions whose true box was added"] += 1
        if not boxes:
            boxes = [(0.0, 0.0, float(region.image_hw[1]), float(region.image_hw[0]))]
            tally["pictures without a proposal, which is the whole picture"] += 1
        tally["expressions that no proposal fits, whose every answer is wrong"] += best < 0
        names = ", ".join(f"[{n}] <region{n}>" for n in range(len(boxes)))
        for number, caption in enumerate(region.captions):
            yield {
                "id": f"{args.name}-{region.id}" + (f"-{number}" if len(region.captions) > 1 else ""),
                "image": region.image,
                "image_hw": list(region.image_hw),
                "regions": [{"box": list(box)} for box in boxes],
                "question": f'The regions: {names}. Which of them is "{caption}"?',
                "choices": [f"[{n}]" for n in range(len(boxes))],
                "answer": best,
                "split": region.split,
                "source": args.name,
                "licence": region.licence,
            }


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.selection", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True, help="regions with expressions, in the folder of --out")
    parser.add_argument("--proposals", nargs="+", type=Path, required=True, metavar="FILE", help="records of boxes")
    parser.add_argument("--name", required=True, help="what the questions' ids begin with")
    parser.add_argument("--out", type=Path, required=True, help="question file to write, .jsonl")
    parser.add_argument("--iou", type=float, default=0.5, help="least overlap of the right proposal with the true box")
    parser.add_argument("--most", type=int, default=MOST, help="proposals of a picture, at most")
    parser.add_argument("--with-truth", action="store_true", help="add the true box where no proposal fits")
    return run_command("data_prep.selection", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if not 0 < args.iou <= 1 or args.most < 1:
        raise ValueError(
            f"--iou {args.iou}, --most {args.most}: an overlap above 0 and at most 1, and at least one box"
        )
    records = open_records(args.records)
    tally = Tally()
    found = proposals_of(args.proposals, {image_key(name) for name in records.image_names()})
    moved = [relocated(region, records.root, args.out) for region in records]
    write(args.out, questions(moved, found, args, tally), tally)
    tell(args.out, tally.told())


def relocated(region: Region, root: Path, out: Path) -> Region:
    """The record with its picture's path as seen from another folder."""
    return replace(region, image=os.path.relpath(root / region.image, out.absolute().parent))


if __name__ == "__main__":
    sys.exit(main())
