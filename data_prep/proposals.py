r"""SAM's own proposals, of a grid of points in every picture -> one JSON of boxes and scores.

    python -m data_prep.proposals --sam facebook/sam-vit-base --records data/lvis/val.jsonl --out data/lvis/val_sam.json
    python -m data_prep.proposals --sam facebook/sam-vit-huge --coco data/lvis/lvis_v1_val.json --images coco \
        --out data/lvis/val_sam.json

What comes out: {image: {"scores": [...], "labels": [...], "boxes": [[x1, y1, x2, y2], ...]}}, as `eval.run --boxes`
reads it. The image is named as the records name it, or by its id in the COCO JSON. Boxes count pixels of the original
picture and have continuous edges; a score is SAM's predicted IoU of the mask; a label says nothing and is 0.

The masks are made by Transformers' mask generation. A picture goes through SAM's image encoder once. SAM's mask decoder
answers points in batches, with three masks each. A mask is left out where its predicted IoU or its stability is too
low, and where its box overlaps that of a surer mask too much. --crop-layers looks at the picture's crops as well.

A killed run goes on with OUT.part: pictures that are in it are not looked at again. OUT.part.meta.json holds the
settings; with others it is an error to go on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.data.coco import coco_names
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items, read_object
from dynrefer.data.record_files import open_records
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path, file_sha256, read_jsonl, write_json
from dynrefer.images import open_image
from dynrefer.segment import Segmenter

STOPPED = "stopped; the same command goes on"
SETTINGS = {  # option -> (default, what it is); the names are those of Transformers' pipeline
    "points-per-side": ("points_per_crop", 32, "points of the grid along a side"),
    "pred-iou": ("pred_iou_thresh", 0.88, "least predicted IoU of a mask"),
    "stability": ("stability_score_thresh", 0.95, "least IoU of a mask's two versions, cut a little higher and lower"),
    "stability-offset": ("stability_score_offset", 1.0, "by how much higher and lower"),
    "mask-threshold": ("mask_threshold", 0.0, "logit above which a pixel is inside"),
    "box-nms": ("crops_nms_thresh", 0.7, "a box that overlaps a surer one more, by IoU, is left out"),
    "crop-layers": ("crops_n_layers", 0, "layers of crops; layer n cuts the picture into 2^n x 2^n"),
    "crop-overlap": ("crop_overlap_ratio", 512 / 1500, "how much crops overlap, as a share of the picture"),
    "crop-downscale": ("crop_n_points_downscale_factor", 1, "how many times fewer points a side a further layer has"),
}


class Proposer(Segmenter):
    """A picture -> its boxes and their scores, as the JSON has them."""

    def __call__(self, image: np.ndarray) -> dict[str, list]:
        """image (H, W, 3) uint8 -> {"scores", "labels", "boxes"}, the surest first."""
        found = self.propose(image, masks=False)
        return {
            "scores": np.round(found["scores"], 6).tolist(),
            "labels": [0] * len(found["scores"]),
            "boxes": np.round(found["boxes"], 2).tolist(),
        }


def pictures_of_records(path: Path) -> Iterator[tuple[str, Path]]:
    """(image as the records name it, where it lies), each once."""
    records = open_records(path)
    for image in records.image_names():
        yield image, records.root / image


def pictures_of_coco(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """(id, where it lies) of the images of a COCO JSON; also of those without an object."""
    images = ImageFolder(folder, path)
    for image in read_items(path, "images.item"):
        try:
            number, names = str(image["id"]), coco_names(image)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: image {str(image)[:80]}: expected an id, and file_name or coco_url") from error
        found = images.find(*names)
        yield number, images.file(found or images.whole(names[0], f"{path}: image {number}"))


def propose(pictures: Sequence[tuple[str, Path]], proposer: Proposer, out: Path, source: str) -> dict[str, int]:
    """Writes the JSON; what it holds, in numbers. source: the hash of the file that names the pictures. ValueError for
    a picture that cannot be read, and for a part that was made with other settings."""
    from tqdm import tqdm

    part = out.with_name(f"{out.name}.part")
    done = _resume(part, json.loads(json.dumps({"sam": proposer.fingerprint, "source": source, **proposer.settings})))
    with open(part, "a", encoding="utf-8") as file:
        for key, path in tqdm(pictures, desc="proposals", unit="picture", disable=None):
            if key not in done:
                done[key] = proposer(open_image(path))
                file.write(json.dumps({"image": key, **done[key]}) + "\n")
                file.flush()
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps({key: done[key] for key, _ in pictures}), encoding="utf-8")
    part.unlink()
    _settings_file(part).unlink()
    return {"pictures": len(pictures), "boxes": sum(len(done[key]["boxes"]) for key, _ in pictures)}


def _settings_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.meta.json")


def _resume(part: Path, settings: dict) -> dict[str, dict[str, list]]:
    """What a killed run has written, after its last line is dropped where that is torn; {} where there is nothing."""
    beside, done = _settings_file(part), {}
    if part.is_file() and beside.is_file():
        before = read_object(beside)
        for name in sorted(settings.keys() | before.keys()):
            if settings.get(name) != before.get(name):
                raise ValueError(
                    f"{part} was begun with {name} {before.get(name)!r}, now it is {settings.get(name)!r}; remove it, "
                    "or name another --out"
                )
        whole = part.read_bytes().rpartition(b"\n")
        part.write_bytes(whole[0] + whole[1])
        for line, entry in read_jsonl(part):
            if not isinstance(entry, dict) or not {"image", "scores", "labels", "boxes"} <= entry.keys():
                raise ValueError(f"{part}:{line}: no boxes of a picture; the file is damaged, remove it")
            done[entry.pop("image")] = entry
    else:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        write_json(beside, settings)
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = Parser(prog="python -m data_prep.proposals", description=__doc__.splitlines()[0])
    parser.add_argument("--sam", required=True, help="folder or hub id of a SAM in Transformers' form")
    parser.add_argument("--records", type=Path, metavar="FILE", help="records, in whose pictures boxes are proposed")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="instead: a COCO JSON, all of its images")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where the images of --coco lie")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON to write")
    for name, (_, default, text) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} ({default:.4g})")
    parser.add_argument(
        "--points-at-once", type=int, default=64, help="points that SAM's mask decoder answers together"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return run_command("data_prep.proposals", _run, parser.parse_args(argv), STOPPED)


def _run(args: argparse.Namespace) -> None:
    if bool(args.records) == bool(args.coco):
        raise ValueError("give --records FILE or --coco FILE, one of them: they name the pictures")
    if bool(args.coco) != bool(args.images):
        raise ValueError("--coco FILE needs --images FOLDER, where its images lie")
    if not str(args.out).endswith(".json"):
        raise ValueError(f"--out {args.out}: expected a name that ends in .json, as `eval.run --boxes` reads it")
    settings = {key: getattr(args, name.replace("-", "_")) for name, (key, _, _) in SETTINGS.items()}
    _check(settings, args.points_at_once)
    pictures = list(pictures_of_records(args.records) if args.records else pictures_of_coco(args.coco, args.images))
    proposer = Proposer(args.sam, settings, args.points_at_once, args.device)
    counts = propose(pictures, proposer, args.out, file_sha256(args.records or args.coco))
    print(f"{counts['boxes']:,} boxes in {counts['pictures']:,} pictures -> {args.out}")


def _check(settings: Mapping[str, Any], points_at_once: int) -> None:
    """ValueError for a number that the pipeline would take and make nothing of."""
    names = {key: f"--{name}" for name, (key, _, _) in SETTINGS.items()}
    for key in ("pred_iou_thresh", "stability_score_thresh", "crops_nms_thresh"):
        if not 0 <= settings[key] <= 1:
            raise ValueError(f"{names[key]} {settings[key]}: expected a number from 0 to 1")
    if not 0 <= settings["crop_overlap_ratio"] < 1:
        raise ValueError(f"--crop-overlap {settings['crop_overlap_ratio']}: expected a share from 0 to below 1")
    for key, least in (("points_per_crop", 1), ("crop_n_points_downscale_factor", 1), ("crops_n_layers", 0)):
        if settings[key] < least:
            raise ValueError(f"{names[key]} {settings[key]}: expected a whole number of at least {least}")
    if settings["stability_score_offset"] <= 0 or points_at_once < 1:
        raise ValueError("--stability-offset and --points-at-once are above 0")


if __name__ == "__main__":
    sys.exit(main())
