r"""YOLO label files -> record file: boxes, polygons, and what a detector wrote with its scores.

    python -m data_prep.yolo --data mine/data.yaml --split train --out data/mine/train.jsonl
    python -m data_prep.yolo --images mine/images --names classes.txt --out data/mine/train.jsonl
    python -m data_prep.yolo --images photos --labels predict/labels --names data.yaml --out data/found.jsonl

data.yaml names the classes (`names`, a list or numbers with names), and where the images of a split lie (`train`,
`val`, `test`: a folder, a .txt file that lists images, or several), counted from `path` or from where the file lies. An
image's labels lie where its path has `labels` instead of the last `images`, or beside it; --labels names another
folder.

A line is a thing, its numbers are shares of the image's width and height:

    5 numbers          class, centre and size of a box
    7, 9, 11, ...      class, corners of a polygon: a mask (turned boxes have four corners)
    6, 8, 10, ...      one of these, and a detector's score at the end
    with kpt_shape     class, box, key points: they are left out and counted

Images without a label file and with an empty one have nothing in them: counted. Scores come out as
NAME_predictions.jsonl beside the records, which `eval.run --boxes` reads. categories.txt beside the records has the
class names in their order.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.converter import write_list
from data_prep.counts import Tally
from data_prep.own_data import Found, own_arguments, write_found
from dynrefer.data.image_folder import picture_hw
from dynrefer.data.record_files import detector_file, open_records
from dynrefer.errors import cut, run_command
from dynrefer.files import atomic_path, read_text
from dynrefer.packed import other_text
from dynrefer.vocabulary import read_words

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"))
SPLITS = ("train", "val", "test")
SLACK = 0.01  # that a number may lie outside 0..1: rounding
NO_LABELS = frozenset(("classes.txt", "labels.txt", "obj.names", "train.txt", "val.txt", "test.txt"))


@dataclass
class Layout:
    """What a data.yaml says, or the options: class names, images, how many numbers a line's key points take."""

    names: list[str]
    images: list[Path]
    folders: list[Path]  # where images are listed from
    num_key_numbers: int = 0
    labels: Path | None = None  # a folder of their own
    scores: dict[str, float] = field(default_factory=dict)  # filled by `regions`: image and line -> score


def read_data_yaml(path: Path) -> dict[str, Any]:
    """A data.yaml as texts: YAML makes false of a class called no. ValueError for what is none."""
    try:
        text = read_text(path)
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name the data.yaml") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({other_text(text) or ' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        if kind := other_text(text):
            raise ValueError(f"{path}: not YAML ({kind})")
        raise ValueError(f"{path}: expected lines such as `names: [cup, table]` and `train: images/train`")
    return content


def class_names(content: dict[str, Any], path: Path) -> list[str]:
    """The class names in their order, of a list or of {number: name}; ValueError where they do not fit `nc`."""
    names = content.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(key): name for key, name in names.items()}
            names = [numbered[k] for k in range(len(numbered))]
        except (KeyError, ValueError):
            raise ValueError(f"{path}: names {cut(str(list(names)))}: expected the numbers 0, 1, 2, ...") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{path}: names {cut(str(names))}: expected the class names; or say --names FILE")
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: two classes are called {twice!r}")
    if "nc" in content and content["nc"] != str(len(names)):
        raise ValueError(f"{path}: nc {content['nc']!r}, but {len(names)} names; which of them is right?")
    return names


def split_images(content: dict[str, Any], path: Path, split: str) -> tuple[list[Path], list[Path]]:
    """(images, folders they were listed from) of a split. ValueError names what is not there."""
    value = content.get(split) or (content.get("valid") if split == "val" else None)
    if not value:
        known = [key for key in (*SPLITS, "valid") if content.get(key)]
        raise ValueError(f"{path}: no images of split {split!r}; it has {', '.join(known) or 'none'}: say --split")
    images, folders = [], []
    for entry in value if isinstance(value, list) else [value]:
        place = _find(str(entry), content.get("path"), path)
        if place.is_dir():
            folders.append(place)
            images += images_in(place)
        else:
            images += _listed(place)
    return list(dict.fromkeys(images)), folders


def images_in(folder: Path) -> list[Path]:
    """Pictures of a folder and those below it, by name."""
    if not folder.is_dir():
        raise ValueError(f"image folder {folder}: no such folder; name where the images are")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _find(entry: str, root: Any, path: Path) -> Path:
    """A folder or list of data.yaml, from its `path:` or from where it lies; exports often have one .. too many."""
    entry = entry.replace("\\", "/")
    roots = [path.parent]
    if isinstance(root, str) and root.strip():
        roots = [path.parent / root.replace("\\", "/"), Path(root), path.parent]
    inner = entry
    while inner.startswith("../"):
        inner = inner[3:]
    places = [base / name for name in dict.fromkeys((entry, inner)) for base in roots]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(os.path.normpath(place) for place in places))
        raise ValueError(f"{path}: {entry!r} is not there, looked for {looked}; mend `path:`, or say --images FOLDER")
    return Path(os.path.normpath(found))


def _listed(path: Path) -> list[Path]:
    """Images of a list, one a line; a name that is not absolute counts from the list's folder."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return [Path(os.path.normpath(path.parent / name.replace("\\", "/"))) for name in names]


def label_path(image: Path, layout: Layout) -> Path:
    """Where an image's labels lie.

    >>> str(label_path(Path("d/images/train/a.jpg"), Layout([], [], [])))
    'd/labels/train/a.txt'
    """
    name = f"{image.stem}.txt"
    if layout.labels is not None:
        inside = next((image.relative_to(f) for f in layout.folders if image.is_relative_to(f)), Path(image.name))
        deep = layout.labels / inside.with_name(name)
        return deep if deep.is_file() else layout.labels / name
    parts, beside = list(image.parts[:-1]), image.with_name(name)
    if "images" not in parts or beside.is_file():
        return beside
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :], name)


def regions(layout: Layout, out: Path, tally: Tally, stored: bool = False) -> Iterator[Found]:
    """Regions of all images in their order. A line that is not of this form is left out and counted. stored: sizes are
    those of the pictures as stored, before their EXIF orientation turns them."""
    used: set[Path] = set()
    ids: set[str] = set()
    for image in layout.images:
        tally["images"] += 1
        path = label_path(image, layout)
        if not image.is_file():
            tally.leave_out("images", "no such file", str(image))
            continue
        if not path.is_file():
            tally["images without a label file"] += 1
            continue
        if path in used:
            tally.leave_out("images", "another image has the same label file", str(image))
            continue
        used.add(path)
        try:
            image_hw = picture_hw(image, stored)
        except ValueError as error:
            tally.leave_out("images", "cannot be read", str(error))
            continue
        file = os.path.relpath(image.absolute(), out.absolute().parent)
        inside = next((image.relative_to(f) for f in layout.folders if image.is_relative_to(f)), Path(image.name))
        name = inside.with_suffix("").as_posix()
        while name in ids:
            name += "_"
        ids.add(name)
        lines = [(number, text) for number, text in enumerate(read_text(path).splitlines(), 1) if text.strip()]
        tally["images with an empty label file"] += not lines
        seen: dict[str, int] = {}
        for number, text in lines:
            where = f"{path}:{number}"
            if (first := seen.setdefault(" ".join(text.split()), number)) != number:
                tally.leave_out("lines", "the same line stands above", f"{where} (line {first})")
                continue
            try:
                category, box, polygon, score = _read_line(text, layout, tally)
            except ValueError as error:
                tally.leave_out("lines", str(error), f"{where}: {cut(text.strip(), 60)!r}")
                continue
            key = f"{name}-{number}"
            if score is not None:
                layout.scores[key] = score
            mask = None
            if polygon is not None:
                sides = image_hw[::-1] * (len(polygon) // 2)
                mask = [[min(max(x, 0.0), 1.0) * side for x, side in zip(polygon, sides, strict=True)]]
            yield box, image_hw, where, {"id": key, "image": file, "mask": mask, "category": layout.names[category]}
    folders = [layout.labels] if layout.labels else {path.parent for path in used}
    alone = sorted({path for folder in folders for path in folder.glob("*.txt")} - used)
    missing = {label_path(image, layout) for image in layout.images}
    for path in alone:
        if path.name not in NO_LABELS and path not in missing and not path.name.upper().startswith("README"):
            tally.leave_out("label files", "no image of this name", str(path))


def _read_line(text: str, layout: Layout, tally: Tally) -> tuple[int, list | None, list | None, float | None]:
    """(class, box or None, polygon or None, score or None); ValueError says what is wrong."""
    try:
        numbers = [float(token) for token in text.split()]
    except ValueError:
        raise ValueError("what is no number") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number that is not finite")
    if not numbers[0].is_integer() or numbers[0] < 0:
        raise ValueError("the first number is no class: expected 0, 1, 2, ...")
    if numbers[0] >= len(layout.names):
        raise ValueError(f"a class beyond the {len(layout.names)} names")
    category, values = int(numbers[0]), numbers[1:]
    score = polygon = None
    if layout.num_key_numbers and len(values) in (4 + layout.num_key_numbers, 5 + layout.num_key_numbers):
        score = values[-1] if len(values) == 5 + layout.num_key_numbers else None
        values = values[:4]
        tally["key points left out, of regions"] += 1
    elif len(values) >= 5 and len(values) % 2:
        values, score = values[:-1], values[-1]
    if len(values) < 4 or len(values) % 2:
        raise ValueError(
            f"{len(numbers)} numbers: expected 5 (a box), 7 or more (a polygon), and one more with a score"
        )
    if not all(-SLACK <= value <= 1 + SLACK for value in values):
        raise ValueError("numbers outside 0..1, which are no shares of the image (pixels?)")
    if score is not None and not 0 <= score <= 1:
        raise ValueError("a score outside 0..1")
    if len(values) > 4:
        values, polygon = None, values
    return category, values, polygon, score


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("yolo", __doc__.splitlines()[0], images_required=False)
    parser.add_argument("--data", type=Path, metavar="FILE", help="data.yaml: class names, and images of --split")
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="label files (default: by the images' names)")
    parser.add_argument("--names", type=Path, metavar="FILE", help="class names: one a line, or a data.yaml")
    return run_command("data_prep.yolo", _run, parser.parse_args(argv))


def _layout(args: argparse.Namespace) -> Layout:
    if args.data is None and args.images is None:
        raise ValueError("say --data data.yaml, or --images FOLDER and --names FILE")
    content = read_data_yaml(args.data) if args.data else {}
    source = args.names or args.data
    if source is None:
        raise ValueError("--images without class names: say --names FILE, one name a line, or --data data.yaml")
    if source.suffix in (".yaml", ".yml"):
        names = class_names(content if source == args.data else read_data_yaml(source), source)
    else:
        names = read_words(source)
        if not names:
            raise ValueError(f"--names {source}: no names in it")
    if args.images is not None:
        images, folders = images_in(args.images), [args.images]
    else:
        images, folders = split_images(content, args.data, args.split or "train")
    if not images:
        raise ValueError(f"{', '.join(map(str, folders)) or args.data}: no images in it")
    if args.labels is not None and not args.labels.is_dir():
        raise ValueError(f"--labels {args.labels}: no such folder")
    shape = content.get("kpt_shape") or [0, 0]
    try:
        points, numbers = map(int, shape)
    except (TypeError, ValueError):
        raise ValueError(f"{args.data}: kpt_shape {shape!r}: expected two numbers, [points, 2 or 3]") from None
    return Layout(names, images, folders, points * numbers, args.labels)


def _run(args: argparse.Namespace) -> None:
    layout, tally = _layout(args), Tally(args.strict)
    file = args.data or args.images
    args.name = args.name or (args.data.absolute().parent if args.data else args.images.absolute()).name
    if args.data and not args.split:
        args.split = "train"
    words = args.out.absolute().parent / "categories.txt"
    write_list(words, layout.names, check_only=True)
    write_found(args, file, regions(layout, args.out, tally, args.stored_pixels), tally, "cxcywh-unit")
    write_list(words, layout.names)
    if layout.scores:
        _write_scores(args.out, args.name, layout.scores)


def _write_scores(out: Path, name: str, scores: dict[str, float]) -> None:
    """The detector's scores beside its records, as predictions."""
    path = detector_file(out)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for region in open_records(out):
            if (score := scores.get(region.id.removeprefix(f"{name}-"))) is not None:
                line = {"id": region.id, "box": list(region.box), "score": score}
                line["category"] = {"name": region.category, "score": score}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    sys.exit(main())
