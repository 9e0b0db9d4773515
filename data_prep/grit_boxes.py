r"""GRiT's boxes on Visual Genome -> records to caption, and GRiT's scores for them: dense captioning with a detector.

    python -m data_prep.grit_boxes --results vg_instances_results.json --records data/vg1.2/test.jsonl \
        --out data/vg1.2/test_grit.jsonl

Where the file comes from: GRiT (github.com/JialianW/GRiT), `train_net.py --eval-only` with its DenseCap model, writes
vg_instances_results.json: image_id, bbox (xywh), score and object_descriptions of every detection. Its boxes do not
count pixels of the image: they are scaled to an image whose longer side has 720, as DenseCap's evaluation wants them.
Read as pixels they match nearly nothing. Forks that write pixels: --longer-side 0.

What comes out: --out, a record without a caption for each detection in an image of --records, in its order; and beside
it NAME_predictions.jsonl, a prediction file that holds what GRiT said of the same regions: its description and its
score. Dense captioning by detector describes the records and ranks them by the detector's score,

    python -m eval.run --model M --task densecap-vg1.2-detected --boxes data/vg1.2/test_grit.jsonl

and the prediction file alone is GRiT's own result, `--predictions data/vg1.2/test_grit_predictions.jsonl`.

Licence: none is given for GRiT's output; photographs of their Flickr owners.
"""

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.box_formats import BoxReader
from data_prep.converter import write
from data_prep.counts import Tally, tell
from dynrefer.boxes import DENSECAP_LONGER_SIDE, share_beyond
from dynrefer.data.json_files import read_items
from dynrefer.data.record_files import detector_file, open_records
from dynrefer.data.records import Region
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path

MIN_BOXES = 100  # fewer cannot tell how a file is scaled
LICENCE = "Boxes: GRiT; photographs: their Flickr owners"


def read_images(records: Path) -> dict[int, tuple[str, tuple[int, int]]]:
    """Visual Genome id -> (path of the image, (height, width)) for the images of a record file, in its order."""
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    for region in open_records(records):
        name = Path(region.image).stem
        if not name.isdecimal():
            raise ValueError(f"{records}: image {region.image!r}: expected Visual Genome's names, as 2411288.jpg")
        images.setdefault(int(name), (region.image, region.image_hw))
    return images


def read_detections(path: Path, counts: Counter) -> dict[int, list[dict]]:
    """Detections by image id, those of each image in the file's order."""
    detections: dict[int, list[dict]] = {}
    for entry in read_items(path, "item"):
        try:
            kept = {key: entry[key] for key in ("bbox", "score", "object_descriptions")}
            usable = isinstance(kept["object_descriptions"], str) and math.isfinite(kept["score"])
            usable = usable and len(kept["bbox"]) == 4 and all(map(math.isfinite, kept["bbox"]))
            if not usable:
                raise ValueError("a box is four numbers, a score one, a description a text")
            detections.setdefault(entry["image_id"], []).append(kept)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: {str(entry)[:200]}: expected image_id, bbox, score and object_descriptions, as GRiT writes "
                f"them ({type(error).__name__}: {error})"
            ) from error
        counts["detections in the file"] += 1
    return detections


def scaling_problem(boxes: np.ndarray, image_hws: np.ndarray, longer_side: float) -> str | None:
    """Whether boxes are scaled otherwise than `longer_side` says (0: pixels), in a sentence; None where none shows it.

    boxes: (N, 4) xyxy as the file has them. image_hws: (N, 2) of their images.
    """
    if len(boxes) < MIN_BOXES:
        return None
    side = longer_side or DENSECAP_LONGER_SIDE
    beyond_image, beyond_scaled = share_beyond(boxes, image_hws), share_beyond(boxes, image_hws, side)
    smaller = image_hws.max() < side  # then boxes that are scaled leave the image
    if longer_side and (beyond_scaled > beyond_image or (smaller and not beyond_image)):
        return (
            f"{1 - beyond_image:.0%} of the boxes lie in their images as they are: they count pixels; --longer-side 0"
        )
    if not longer_side and beyond_image > max(beyond_scaled, 0.02):
        return f"{beyond_image:.0%} of the boxes leave their images: they are scaled; --longer-side {side:.0f}"
    return None


def regions(
    path: Path,
    detections: dict[int, list[dict]],
    images: dict[int, tuple[str, tuple[int, int]]],
    tally: Tally,
    longer_side: float = DENSECAP_LONGER_SIDE,
) -> Iterator[tuple[Region, dict]]:
    """(record, GRiT's detection) for every detection in one of the images, image by image. longer_side: of the images
    that the boxes are scaled to, 0 where they count pixels. ValueError where the boxes show another scale."""
    used = [(image_id, d) for image_id in images for d in detections.get(image_id, ())]
    if used:
        boxes = np.array([d["bbox"] for _, d in used], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        hws = np.array([images[image_id][1] for image_id, _ in used])
        if problem := scaling_problem(boxes, hws, longer_side):
            raise ValueError(f"{path}: {problem}")

    def found() -> Iterator[tuple]:
        for image_id, (image, image_hw) in images.items():
            scale = max(image_hw) / longer_side if longer_side else 1.0
            for rank, detection in enumerate(detections.get(image_id, ())):
                where = f"{path}: image {image_id}, detection {rank}"
                numbers = [float(number) * scale for number in detection["bbox"]]
                yield numbers, image_hw, where, (f"grit-{image_id}-{rank}", image, image_hw, detection)

    for box, (region_id, image, image_hw, detection) in BoxReader(str(path), "xywh", tally).read(found()):
        tally["regions"] += 1
        yield (
            Region(region_id, image, image_hw, box, source="grit-visual-genome", licence=LICENCE, split="test"),
            detection,
        )


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m data_prep.grit_boxes", description="GRiT's boxes on Visual Genome -> records and predictions"
    )
    parser.add_argument("--results", type=Path, required=True, help="vg_instances_results.json")
    parser.add_argument("--records", type=Path, required=True, help="the test set: records that name the images")
    parser.add_argument("--out", type=Path, required=True, help="record file, .jsonl or .jsonl.gz, in the same folder")
    parser.add_argument(
        "--longer-side",
        type=float,
        default=DENSECAP_LONGER_SIDE,
        help="the boxes count pixels of images scaled to this longer side; 0 = of the images as they are (default 720)",
    )
    parser.add_argument("--strict", action="store_true", help="a box with nothing in its image is an error")
    return run_command("data_prep.grit_boxes", convert, parser.parse_args(argv))


def convert(args: argparse.Namespace) -> None:
    """Writes records and predictions and prints what was counted."""
    if not args.longer_side >= 0:
        raise ValueError(f"--longer-side {args.longer_side}: expected a number of pixels, or 0")
    if args.out.absolute().parent != args.records.absolute().parent:
        raise ValueError(f"--out {args.out}: expected the folder of {args.records}, which its image paths start from")
    tally = Tally(args.strict)
    images = read_images(args.records)
    detections = read_detections(args.results, tally)
    tally["images"] = len(images)
    tally["images without a detection"] = len(images.keys() - detections.keys())
    tally["detections left out: of other images"] = sum(len(d) for i, d in detections.items() if i not in images)
    predictions = detector_file(args.out)

    with atomic_path(predictions) as temporary, open(temporary, "w", encoding="utf-8") as file:

        def both() -> Iterator[Region]:
            for region, detection in regions(args.results, detections, images, tally, args.longer_side):
                line = {"id": region.id, "image": region.image, "box": list(region.box)}
                line |= {"caption": detection["object_descriptions"], "score": float(detection["score"])}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                yield region
            file.flush()
            os.fsync(file.fileno())  # a full disk is noticed before the records appear

        write(args.out, both(), tally)
    tell(args.out, tally.told())
    print(f"-> {predictions}")


if __name__ == "__main__":
    sys.exit(main())
