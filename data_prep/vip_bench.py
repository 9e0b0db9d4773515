r"""ViP-Bench, free questions about marked things -> question file.

    python -m data_prep.vip_bench --annotations vip-bench-meta-data.json --images source_image \
        --out data/vip_bench/test.jsonl

From huggingface.co/datasets/mucai/ViP-Bench: vip-bench-meta-data.json, {id: {"image_source", "image", "question",
"answer", "capability"}}, and source_image, pictures without marks, beside each its shapes as NAME.json in LabelMe's
form. A question names them <obj>, <obj1>, ...; a shape with that label is the region, a rectangle as box, a polygon as
mask. Right answers may be joined by <AND> and <OR>, which the judge is told about. Of the pictures with drawn boxes,
bbox/images, this benchmark is another: models with regions are asked about the plain ones.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, check_counts, tell
from data_prep.question_converter import PictureScenes, question_arguments, write
from dynrefer.data.json_files import read_object
from dynrefer.errors import run_command

NUM_QUESTIONS = 303
OBJECT = re.compile(r"<(obj\d*)>")


def questions(path: Path, folder: Path, scenes: PictureScenes, tally: Tally) -> Iterator[dict]:
    """Records in the order of the file."""
    for name, entry in read_object(path).items():
        where = f"{path}: {name!r}"
        tally["entries"] += 1
        with tally.entries("questions"):
            keys = ("image_source", "question", "answer", "capability")
            if not isinstance(entry, dict) or (missing := [key for key in keys if not entry.get(key)]):
                lacking = missing[0] if isinstance(entry, dict) else "object"
                raise ValueError(f"{where}: no {lacking}; is it vip-bench-meta-data.json?")
            labels = list(dict.fromkeys(OBJECT.findall(entry["question"])))
            shapes = (folder / entry["image_source"]).with_suffix(".json")
            regions = [_region(read_object(shapes), label, f"{where}: {shapes}") for label in labels]
            yield scenes.of(entry["image_source"], where) | {
                "id": f"vip-bench-{name}",
                "question": _named(entry["question"], labels),
                "regions": regions,
                "answers": [entry["answer"].strip()],
                "kinds": sorted(set(entry["capability"])),
                "split": "test",
                "source": "vip-bench",
                "licence": "Annotations: ViP-Bench, research use; pictures: their owners' terms",
            }


def _named(text: str, labels: Sequence[str]) -> str:
    return OBJECT.sub(lambda match: f"<region{labels.index(match[1])}>", text)


def _region(document: dict, label: str, where: str) -> dict[str, Any]:
    for shape in document.get("shapes") or ():
        if shape.get("label") == label:
            points = [[float(x), float(y)] for x, y in shape["points"]]
            if shape.get("shape_type") == "polygon":
                return {"mask": [[c for point in points for c in point]]}
            if shape.get("shape_type") == "rectangle":
                (x1, y1), (x2, y2) = points
                return {"box": [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]}
            raise ValueError(f"{where}: {label}: shape {shape.get('shape_type')!r}; expected rectangle or polygon")
    raise ValueError(f"{where}: no shape with the label {label!r}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("vip_bench", __doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="vip-bench-meta-data.json")
    return run_command("data_prep.vip_bench", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    write(args.out, questions(args.annotations, args.images, PictureScenes(args.images, args.out), tally), tally)
    check_counts(tally, {"entries": NUM_QUESTIONS}, str(args.annotations), args.subset)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
