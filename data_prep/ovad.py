r"""OVAD, the open-vocabulary attribute detection benchmark -> records with attributes.

    python -m data_prep.ovad --annotations ovad2000.json --images coco/val2017 --out data/ovad/test.jsonl

Where the files come from: ovad.zip of ovad-benchmark.github.io (ovad2000.json in it), images of COCO's val2017.zip
(cocodataset.org, 1 GB). Licence: annotations CC BY-NC-SA 4.0; photographs: their owners' terms (Flickr).

What must come out: 2,000 images of val2017, about 14,300 objects of 80 categories, 117 attributes, each known of an
object (1 = has it, -1 = has it not) or unknown (not in the record). All objects come out; OVAD's own box script crops
those of an area below 50 square pixels away. Beside the records: categories.txt, categories.json, and attributes.json
with each attribute's type, is_has_att and freq_set (head, medium, tail), which evaluation groups by.

It is a test set: name these records with --exclude when you convert training data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.coco import Converter, convert
from data_prep.coco_datasets import PHOTOS, Dataset, Labels
from data_prep.converter import arguments
from dynrefer.data.coco import coco_names
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items
from dynrefer.errors import run_command
from dynrefer.vocabulary import read_attributes

VALUES = {1: 1, 0: -1}  # has it, has it not; -1 is unknown and stays out


def attributes(path: Path) -> tuple[list[dict], Labels]:
    """The file's attributes, and the labels of an annotation: `att_vec` is indexed by attribute id."""
    entries = list(read_items(path, "attributes.item"))
    try:
        read_attributes(entries)
    except ValueError as error:
        raise ValueError(f"{path}: its attributes are not of the form of ovad ({error})") from error
    names = {entry["id"]: entry["name"] for entry in entries}
    if names.keys() != set(range(len(entries))):
        raise ValueError(f"{path}: attribute ids {str(list(names))[:60]}: expected 0 to {len(entries) - 1}, once each")
    ordered = [names[number] for number in range(len(entries))]

    def labels(annotation: dict) -> dict[str, int]:
        values = annotation.get("att_vec")
        if not isinstance(values, list) or len(values) != len(ordered) or not all(v in (1, 0, -1) for v in values):
            raise ValueError(
                f"{path}: annotation {annotation['id']}: att_vec {str(values)[:60]}: expected {len(ordered)} values, "
                "1, 0 or -1"
            )
        return {name: VALUES[value] for name, value in zip(ordered, values, strict=True) if value in VALUES}

    return entries, labels


OVAD = Dataset(
    "ovad-1.0",
    f"annotations: CC BY-NC-SA 4.0, OVAD; {PHOTOS}",
    {"test": {"images": 2000, "categories": 80, "attributes": 117}},
    names=coco_names,
    attributes=attributes,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("ovad", __doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="ovad2000.json")
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as damaged")
    return run_command("data_prep.ovad", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    images = ImageFolder(args.images, args.out, args.image_prefix)
    options = {"keep_crowd": True, "subset": args.subset, "strict": args.strict}
    convert(Converter("ovad", OVAD, "test", args.annotations, images, **options), args.out)


if __name__ == "__main__":
    sys.exit(main())
