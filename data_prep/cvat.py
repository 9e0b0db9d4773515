"""CVAT's export "CVAT for images 1.1" -> record file.

    python -m data_prep.cvat --export mine.zip --out data/mine/train.jsonl
    python -m data_prep.cvat --export annotations.xml --images photos --caption-attribute text --out mine/train.jsonl

The export is the zip as downloaded (its images, where it has any, are written to images/ beside the records) or the
annotations.xml in it. The format fixes what numbers are: xyxy pixels. What becomes of a shape:

    box             a box; a rotated one keeps its form as a polygon mask, and its box is the upright one around it
    polygon         a polygon mask with its box
    mask            run lengths; CVAT counts them along the rows of a cut-out, COCO down the columns of the image
    ellipse         a polygon of 64 corners
    others          polylines, points, cuboids, skeletons and tags of images are no regions: left out and counted

The label is the category. Attributes: a checkbox is NAME, 1 or -1; a choice is NAME:VALUE, 1 (what was not chosen stays
unknown). Free text is the caption where the attribute is called caption, description, text or the like, or named with
--caption-attribute; other texts, and numbers, are left out and counted.
"""

import argparse
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from xml.etree import ElementTree

import numpy as np

from data_prep.counts import Tally
from data_prep.own_data import Found, OwnImages, own_arguments, write_found
from data_prep.polygons import ellipse, turned_rectangle
from data_prep.texts import TEXT_KEYS
from dynrefer.errors import run_command
from dynrefer.files import atomic_path
from dynrefer.masks import mask_to_box

NO_REGION = ("polyline", "points", "cuboid", "skeleton", "tag")
CHOICES = ("checkbox", "select", "radio")
Element = ElementTree.Element


def regions(
    file: IO[bytes], where: str, images: OwnImages, counts: Tally, caption_attributes: tuple[str, ...] = ()
) -> Iterator[Found]:
    """Regions of an annotations.xml in its order; their boxes are xyxy pixels. where: the file's name, for errors."""
    kinds: dict[tuple[str, str], str] = {}  # (label, attribute) -> input type
    unknown_captions = set(caption_attributes)
    seen: set[str | None] = set()
    files: dict[str | None, str] = {}
    root: Element | None = None
    for event, element in _parse(file, where):
        if event == "start":
            root = element if root is None else root
            if root.tag != "annotations":
                raise ValueError(f"{where}: begins with <{root.tag}>; expected <annotations> of CVAT for images 1.1")
            continue
        if element.tag == "meta":
            kinds = _attribute_kinds(element)
        elif element.tag == "track":
            raise ValueError(f"{where}: has tracks, so it is 'CVAT for video 1.1'; export it as 'CVAT for images 1.1'")
        elif element.tag == "image":
            counts["images"] += 1
            if (name := element.get("id", element.get("name"))) in seen:
                raise ValueError(f"{where}: two images have the id {name!r}; export one task or project at a time")
            seen.add(name)
            file = _file_of(element, images)
            found = file and images.first(file) or file  # names that differ in case alone may be one picture
            if found in files:
                raise ValueError(
                    f"{where}: images {files[found]} and {_titled(element)} would both be {file} in {images.folder}: "
                    "of different jobs, tasks or subsets; export one at a time, or put each subset's images into a "
                    "folder of its name"
                )
            files[found] = _titled(element)
            with counts.entries("images"):
                yield from _image_regions(
                    element, file, where, images, counts, kinds, caption_attributes, unknown_captions
                )
            element.clear()
            root.clear()  # otherwise it keeps every image
    if not counts["images"]:
        raise ValueError(f"{where}: no <image> in it; is it an export of CVAT for images 1.1?")
    if unknown_captions:
        raise ValueError(f"{where}: no shape has an attribute {sorted(unknown_captions)[0]!r} (--caption-attribute)")


def _parse(file: IO[bytes], where: str) -> Iterator[tuple[str, Element]]:
    try:
        yield from ElementTree.iterparse(file, events=("start", "end"))
    except ElementTree.ParseError as error:
        raise ValueError(f"{where}: not XML from its first to its last byte ({error}); export it again") from error


def _attribute_kinds(meta: Element) -> dict[tuple[str, str], str]:
    """(label, attribute) -> checkbox, select, radio, number or text, as the task's labels say."""
    return {
        (label.findtext("name", ""), attribute.findtext("name", "")): attribute.findtext("input_type", "")
        for label in meta.iter("label")
        for attribute in label.iter("attribute")
    }


def _file_of(image: Element, images: OwnImages) -> str | None:
    """An image's name in the folder: a project's export has a folder for each subset."""
    name, subset = image.get("name"), image.get("subset")
    inside = f"{subset}/{name}"
    return inside if subset and images.first(inside) else name


def _titled(image: Element) -> str:
    keys = ("id", "name", "subset", "task_id", "job_id")
    return " ".join(f"{key}={image.get(key)!r}" for key in keys if image.get(key) is not None)


def _image_regions(
    image: Element,
    name_in_folder: str | None,
    where: str,
    images: OwnImages,
    counts: Tally,
    kinds: dict[tuple[str, str], str],
    caption_attributes: tuple[str, ...],
    unknown_captions: set[str],
) -> Iterator[Found]:
    name = image.get("name")
    where = f"{where}: image {name!r}"
    recorded = tuple(int(_number(image, key, where)) for key in ("height", "width"))
    file = image_hw = None
    for k, shape in enumerate(image):
        if shape.tag not in SHAPES and shape.tag not in NO_REGION:
            text = f"{where}: shape <{shape.tag}>: expected one of {', '.join((*SHAPES, *NO_REGION))}"
            counts.leave_out("shapes", f"an unknown form, <{shape.tag}>", where, text)
            continue
        if shape.tag in NO_REGION:
            counts[f"left out, no region: {shape.tag}"] += 1
            continue
        if file is None:
            file, image_hw = images.find(name_in_folder, where, recorded)
        with counts.entries("shapes"):
            place = f"{where}, {shape.tag} {k}"
            box, mask = SHAPES[shape.tag](shape, image_hw, place)
            is_turned = shape.tag == "box" and mask is not None
            counts["rotated boxes: the upright box around them, and a polygon"] += is_turned
            texts = _attributes(shape, counts, kinds, caption_attributes, unknown_captions)
            keys = {"id": f"{image.get('id', name)}-{k}", "image": file, "mask": mask}
            yield box, image_hw, place, {**keys, "category": shape.get("label") or None, **texts}


def _attributes(
    shape: Element,
    counts: Tally,
    kinds: dict[tuple[str, str], str],
    caption_attributes: tuple[str, ...],
    unknown_captions: set[str],
) -> dict:
    """attributes and captions of a shape. Without --caption-attribute, free text under a usual name is its caption."""
    label = shape.get("label", "")
    attributes: dict[str, int] = {}
    captions: dict[str, list[str]] = {}
    for attribute in shape.iter("attribute"):
        key, value = attribute.get("name", ""), (attribute.text or "").strip()
        kind = kinds.get((label, key)) or _likely_kind(key, value)
        if key in caption_attributes or (not caption_attributes and kind == "text" and key.lower() in TEXT_KEYS):
            unknown_captions.discard(key)
            captions.setdefault(key, []).extend([value] if value else [])
        elif kind == "text":
            counts[f"texts not read: attribute {key} (--caption-attribute {key} takes them)"] += bool(value)
        elif kind not in CHOICES:
            counts["attributes left out: numbers"] += bool(value)
        elif kind == "checkbox":
            attributes[key] = 1 if value == "true" else -1
        elif value:
            attributes[f"{key}:{value}"] = 1
    return {"attributes": attributes, "captions": list(dict.fromkeys(sum(captions.values(), [])))}


def _likely_kind(key: str, value: str) -> str:
    """Of an attribute that no <meta> tells of: what others have written has none."""
    if value in ("true", "false"):
        return "checkbox"
    return "text" if key.lower() in TEXT_KEYS else "select"


def _box(shape: Element, image_hw: tuple[int, int], where: str) -> tuple[list | None, list | None]:
    x1, y1, x2, y2 = (_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
    (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))  # drawn from any corner
    degrees = _number(shape, "rotation", where, 0.0)
    if not degrees % 360:
        return [x1, y1, x2, y2], None
    # CVAT turns clockwise about the centre: the corner that was top left comes to lie here
    turn, half = np.deg2rad(degrees), np.array([x2 - x1, y2 - y1]) / 2
    corner = (
        np.array([x1, y1])
        + half
        - [
            half[0] * np.cos(turn) - half[1] * np.sin(turn),
            half[0] * np.sin(turn) + half[1] * np.cos(turn),
        ]
    )
    return None, [turned_rectangle(*corner, x2 - x1, y2 - y1, degrees)]


def _polygon(shape: Element, image_hw: tuple[int, int], where: str) -> tuple[None, list]:
    text = shape.get("points", "")
    try:
        corners = [float(number) for corner in text.split(";") for number in corner.split(",")]
    except ValueError:
        raise ValueError(f"{where}: points {text[:60]!r}: expected x,y;x,y;...") from None
    if len(corners) < 6 or len(corners) % 2:
        raise ValueError(f"{where}: points {text[:60]!r}: a polygon has at least three corners of two numbers")
    return None, [corners]


def _ellipse(shape: Element, image_hw: tuple[int, int], where: str) -> tuple[None, list]:
    cx, cy, rx, ry = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
    return None, [ellipse(cx, cy, rx, ry, _number(shape, "rotation", where, 0.0))]


def _mask(shape: Element, image_hw: tuple[int, int], where: str) -> tuple[list | None, dict]:
    left, top, width, height = (int(_number(shape, key, where)) for key in ("left", "top", "width", "height"))
    if not (0 <= left < left + width <= image_hw[1] and 0 <= top < top + height <= image_hw[0]):
        raise ValueError(
            f"{where}: cut-out at ({left}, {top}) of {width} x {height} leaves the image, {image_hw[1]} x {image_hw[0]}"
        )
    try:
        counts = np.array(list(map(int, shape.get("rle", "").split(","))))
    except ValueError:
        raise ValueError(f"{where}: rle {shape.get('rle', '')[:60]!r}: expected whole numbers") from None
    if (counts < 0).any() or counts.sum() != width * height:
        raise ValueError(f"{where}: rle adds up to {counts.sum()}, expected {width} x {height} = {width * height}")
    inside = np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(height, width)
    box = (mask_to_box(inside) + [left, top, left, top]).tolist() if inside.any() else None
    return box, rle_of_part(inside, left, top, image_hw)


SHAPES: dict[str, Callable] = {"box": _box, "polygon": _polygon, "mask": _mask, "ellipse": _ellipse}


def rle_of_part(inside: np.ndarray, left: int, top: int, image_hw: tuple[int, int]) -> dict:
    """COCO run lengths of an image (H, W) that is empty but for a part, bool (h, w), with its corner at (left, top)."""
    from pycocotools import mask as coco

    height, width = image_hw
    flat = np.zeros(
        1 + inside.shape[1] * (inside.shape[0] + 1), dtype=bool
    )  # columns, with a pixel outside around each
    flat[1:].reshape(inside.shape[1], -1)[:, :-1] = inside.T
    steps = np.flatnonzero(flat[1:] != flat[:-1])  # begins and ends of runs, in turn
    column, row = np.divmod(steps, inside.shape[0] + 1)
    bounds = np.concatenate([[0], (column + left) * height + row + top, [height * width]])
    rle = coco.frPyObjects({"size": [height, width], "counts": np.diff(bounds).tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _number(element: Element, key: str, where: str, default: float | None = None) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {key} {text!r}: expected a number") from None
    if not np.isfinite(value):
        raise ValueError(f"{where}: {key} {text!r}: expected a finite number")
    return value


@contextmanager
def open_export(path: Path, images_to: Path | None) -> Iterator[tuple[IO[bytes], str]]:
    """(annotations.xml, its name for messages) of an export. images_to: a folder to write a zip's images into.

    Raises ValueError for a zip that is damaged, has entries that lead out of it or links, or no annotations.xml.
    """
    if not path.is_file():
        raise ValueError(f"--export {path}: no such file")
    if not zipfile.is_zipfile(path):
        if path.suffix == ".zip":
            raise ValueError(f"--export {path}: not a zip file, or cut off; download it again")
        with open(path, "rb") as file:
            yield file, str(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check_member(member, path)
            annotations = [member for member in members if PurePosixPath(member.filename).name == "annotations.xml"]
            if len(annotations) != 1:
                raise ValueError(f"{path}: {len(annotations)} files annotations.xml in it, expected one; export a task")
            if images_to is not None:
                _unpack(archive, [member for member in members if member not in annotations], images_to, path)
            with archive.open(annotations[0]) as file:
                yield file, f"{path}: annotations.xml"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged, cut off or encrypted ({error}); download it again") from error


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    mode = member.external_attr >> 16
    if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
        raise ValueError(f"{path}: entry {member.filename!r} leads out of the archive; such an archive is not unpacked")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise ValueError(f"{path}: entry {member.filename!r} is a link or device; such an archive is not unpacked")


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path, path: Path) -> None:
    """Writes a zip's images; those below images/ without it, as annotations.xml names them."""
    if not members:
        raise ValueError(f"{path}: no images in it; name their folder with --images, or export with 'Save images'")
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: the images of {path} take {needed:,} bytes, but {free:,} are free")
    for member in members:
        target = folder / member.filename.replace("\\", "/").removeprefix("images/")
        with archive.open(member) as source, atomic_path(target) as temporary, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file)


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("cvat", __doc__.splitlines()[0], images_required=False)
    parser.add_argument("--export", type=Path, required=True, help="the zip as downloaded, or its annotations.xml")
    parser.add_argument(
        "--caption-attribute", nargs="+", default=[], metavar="NAME", help="attributes whose text is a caption"
    )
    return run_command("data_prep.cvat", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.images is None and args.export.suffix != ".zip":
        raise ValueError("name the folder of the images with --images, or give the zip that has them as --export")
    folder = args.images or args.out.parent / "images"
    counts = Tally(args.strict)
    with open_export(args.export, None if args.images else folder) as (file, where):
        images = OwnImages(folder, args.out, args.image_prefix, args.stored_pixels)
        found = regions(file, where, images, counts, tuple(args.caption_attribute))
        write_found(args, args.export, found, counts, "xyxy")


if __name__ == "__main__":
    sys.exit(main())
