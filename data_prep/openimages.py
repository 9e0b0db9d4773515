r"""Open Images V7 boxes -> records with categories.

    python -m data_prep.openimages --split validation --boxes validation-annotations-bbox.csv \
        --classes oidv7-class-descriptions-boxable.csv --images openimages/validation --out data/openimages/val.jsonl

Where the files come from: storage.googleapis.com/openimages/web, "Download": oidv6-train-annotations-bbox.csv (2 GB),
validation-annotations-bbox.csv, test-annotations-bbox.csv, and the class names; images from its bucket, ID.jpg (train
with boxes about 560 GB). Licence: annotations CC BY 4.0, Google LLC; images listed as CC BY 2.0.

What must come out: 14,610,229 boxes on 1,743,042 images (train), 303,980 (validation), 937,327 (test). One box is one
record, its category the class's display name. Boxes around groups of more than five (IsGroupOf) are left out and
counted unless --keep-groups. The corners are fractions of the image, and the file does not say its size: it is read
from each image's header, or from --sizes, a table with the columns ImageID, Width and Height. Beside the records:
categories.txt (every class) and categories.json (with the class's machine id).
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.box_formats import BoxReader
from data_prep.converter import arguments, write, write_list
from data_prep.counts import BadEntry, Tally, Undecided, check_counts, tell
from dynrefer.boxes import check_image_hw
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.records import Region
from dynrefer.errors import run_command

SOURCE = "openimages-7"
LICENCE = "annotations: CC BY 4.0, Google LLC; photographs: listed as CC BY 2.0"
PUBLISHED = {
    "train": {"images": 1743042, "boxes": 14610229},
    "validation": {"boxes": 303980},
    "test": {"boxes": 937327},
}
CORNERS = ("XMin", "YMin", "XMax", "YMax")


def regions(
    boxes: Path,
    classes: dict[str, str],
    images: ImageFolder,
    split: str,
    counts: Tally,
    *,
    sizes: dict[str, tuple[int, int]] | None = None,
    keep_groups: bool = False,
    subset: bool = False,
) -> Iterator[Region]:
    """Records of a table of boxes, in its order; what it held is checked behind the last.

    classes: machine id -> name. sizes: image id -> (height, width), None = from the headers. subset: counts may differ
    and images may be missing. Raises ValueError with file and line for what is damaged.
    """
    rows = _rows(boxes, classes, images, counts, sizes, keep_groups, subset)
    for box, (number, path, image_hw, category) in BoxReader(boxes, "xyxy-unit", counts).read(rows):
        yield Region(
            id=f"openimages-{split}-{number}",
            image=path,
            image_hw=image_hw,
            box=box,
            category=category,
            source=SOURCE,
            licence=LICENCE,
            split=split,
        )
    check_counts(counts, PUBLISHED[split], f"{boxes} (Open Images {split})", subset)


def _rows(
    boxes: Path,
    classes: dict[str, str],
    images: ImageFolder,
    counts: Tally,
    sizes: dict[str, tuple[int, int]] | None,
    keep_groups: bool,
    subset: bool,
) -> Iterator[tuple]:
    """(corners, image_hw, place in the file, (number, path, image_hw, category)) of every box that is wanted."""
    num_boxes: dict[str, int] = {}  # of an image so far; its boxes stand together, but nothing promises it
    last, path, image_hw = "", None, None
    for where, (image, label, group, *corners) in read_table(boxes, ("ImageID", "LabelName", "IsGroupOf", *CORNERS)):
        counts["boxes"] += 1
        number = num_boxes[image] = num_boxes.get(image, -1) + 1
        if image != last:
            last, path = image, None
            with counts.entries("images"):
                path, image_hw = _picture(image, images, sizes, subset, where)
        if label not in classes:
            raise ValueError(f"{where}: class {label!r} is not in --classes; it is the list of boxable classes")
        if path is None:
            counts["boxes left out, their image is not in the folder or damaged"] += 1
        elif group == "1" and not keep_groups:
            counts["boxes of groups left out"] += 1
        else:
            with counts.entries("boxes"):
                try:
                    numbers = list(map(float, corners))
                except ValueError as error:
                    raise BadEntry(f"{where}: corners {corners}: {error}") from error
                yield numbers, image_hw, where, (f"{image}-{number}", path, image_hw, classes[label])
    counts["images"] = len(num_boxes)


def _picture(
    image: str, images: ImageFolder, sizes: dict[str, tuple[int, int]] | None, subset: bool, where: str
) -> tuple[str | None, tuple[int, int] | None]:
    """(path, image_hw) of an image; path None for one that a part does not have."""
    path = images.find(f"{image}.jpg") if subset else images.whole(f"{image}.jpg", where)
    if path is None:
        return None, None
    if sizes is None:
        return path, images.readable_hw(path, where)
    if image not in sizes:
        raise Undecided(f"{where}: image {image} is not in --sizes; without --sizes headers are read")
    images.check_size(path, sizes[image], where)
    return path, sizes[image]


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(place, values of these columns) of every row of a table whose first line names its columns."""
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            if missing := [name for name in columns if name not in names]:
                raise ValueError(f"{path}:1: no column {missing[0]!r} in {names[:20]}; is it the right file?")
            places = [names.index(name) for name in columns]
            for line, row in enumerate(reader, 2):
                if len(row) != len(names):
                    raise ValueError(
                        f"{path}:{line}: {len(row)} columns instead of {len(names)}; cut off? Download it again"
                    )
                yield f"{path}:{line}", [row[place] for place in places]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: behind line {line}: not a table in UTF-8 ({error}); download it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not line:
        raise ValueError(f"{path}: no rows in it; download it again")


def read_classes(path: Path) -> dict[str, str]:
    """Machine id -> display name, of class-descriptions-boxable.csv (V7's has a line of column names)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as class names ({error})") from error
    rows = rows[1:] if rows and rows[0][0] == "LabelName" else rows
    if wrong := [row for row in rows if len(row) != 2 or not row[0].startswith("/") or not row[1].strip()]:
        raise ValueError(f"{path}: {wrong[0]}: expected a machine id and a name, as in /m/011k07,Tortoise")
    if not rows:
        raise ValueError(f"{path}: no classes in it")
    return {label: name.strip() for label, name in rows}


def read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Image id -> (height, width), of a table with the columns ImageID, Width and Height."""
    sizes = {}
    for where, (image, width, height) in read_table(path, ("ImageID", "Width", "Height")):
        try:
            sizes[image] = check_image_hw([int(height), int(width)])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return sizes


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("openimages", __doc__.splitlines()[0])
    parser.add_argument("--split", choices=PUBLISHED, required=True, help="whose boxes they are")
    parser.add_argument("--boxes", type=Path, required=True, help="the split's ...annotations-bbox.csv")
    parser.add_argument("--classes", type=Path, required=True, help="...class-descriptions-boxable.csv")
    parser.add_argument("--sizes", type=Path, help="table of image sizes (default: read from the images' headers)")
    parser.add_argument("--keep-groups", action="store_true", help="keep boxes around groups of more than five")
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as damaged")
    return run_command("data_prep.openimages", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    classes, counts = read_classes(args.classes), Tally(args.strict)
    folder = args.out.absolute().parent
    lists = {
        folder / "categories.txt": list(dict.fromkeys(classes.values())),
        folder / "categories.json": [{"id": label, "name": name} for label, name in classes.items()],
    }
    for path, entries in lists.items():
        write_list(path, entries, check_only=True)
    counts["records"] = write(
        args.out,
        regions(
            args.boxes,
            classes,
            ImageFolder(args.images, args.out, args.image_prefix),
            args.split,
            counts,
            sizes=read_sizes(args.sizes) if args.sizes else None,
            keep_groups=args.keep_groups,
            subset=args.subset,
        ),
        counts,
    )
    for path, entries in lists.items():
        write_list(path, entries)
    tell(args.out, {name: count for name, count in counts.items() if count})


if __name__ == "__main__":
    sys.exit(main())
