"""Label Studio's JSON export -> record file.

    python -m data_prep.label_studio --export project-1.json --images photos --out data/mine/train.jsonl

The export named "JSON" (not JSON-MIN, which says less). The format fixes what numbers are: per cent of the image's
width and height. What becomes of a region:

    rectangle       a box; a rotated one keeps its form as a polygon mask, and its box is the upright one around it
    polygon         a polygon mask with its box
    brush, bitmask  run lengths; a brush is a packed picture of four channels, of which the last (alpha) is the mask
    ellipse         a polygon of 64 corners
    others          key points, vectors, and what is said of the whole image are no regions: left out and counted

Its label is the category (several labels are tags instead). What annotators said of the region itself joins it: text of
a TextArea with perRegion="true" and of its `meta` is a caption, a choice is an attribute NAME:CHOICE. Results of one id
are one region where their form is the same, and a region each where it is not. Images are looked for by the name that
the task has, without the address of a server or a bucket, and without the mark that an upload puts before it; two
names that would be one picture are refused. Where a task has several annotations, --annotations says which count.
"""

import argparse
import base64
import binascii
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from data_prep.counts import BadEntry, Tally, Undecided
from data_prep.cvat import rle_of_part
from data_prep.own_data import Found, OwnImages, own_arguments, read_entries, write_found
from data_prep.polygons import ellipse, turned_rectangle
from data_prep.texts import TEXT_KEY, TextKeys
from dynrefer.data.image_folder import NOT_THERE
from dynrefer.errors import run_command
from dynrefer.images import DECODE_ERRORS
from dynrefer.masks import to_mask

SHAPES = ("rectangle", "polygon", "brush", "bitmask", "ellipse")
FORM = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "rle", "imageDataURL")
WHICH = ("only", "first", "last", "ground-truth", "all")


def regions(
    path: Path,
    images: OwnImages,
    counts: Tally,
    image_key: str,
    which: str = "only",
    text_keys: Sequence[str] = (),
) -> Iterator[Found]:
    """Regions of an export in its order; their boxes are xyxy pixels. image_key: where a task's data name its image.
    which: of `WHICH`, the annotations of a task that count. text_keys: where a region's `meta` has texts."""
    seen: dict[str, str] = {}
    meta = TextKeys(counts, text_keys)
    for number, (where, task) in enumerate(read_entries(path, counts)):
        counts["tasks"] += 1
        task_id = str(task.get("id", f"entry{number}"))
        if (first := seen.setdefault(task_id, where)) != where:
            raise ValueError(f"{where}: task {task_id} stands there already, see {first}")
        with counts.entries("tasks"):
            yield from _task_regions(task, task_id, f"{where} (task {task_id})", images, counts, image_key, which, meta)
    meta.check(str(path))


def _task_regions(
    task: dict,
    task_id: str,
    where: str,
    images: OwnImages,
    counts: Tally,
    image_key: str,
    which: str,
    meta: TextKeys,
) -> Iterator[Found]:
    annotations = _annotations(task, which, where)
    if not annotations:
        predicted = isinstance(task.get("predictions"), list) and bool(task["predictions"])
        counts[f"tasks left out: {'predictions, but no annotation' if predicted else 'without an annotation'}"] += 1
    place = None
    for annotation in annotations:
        name = f"{task_id}-{annotation.get('id')}" if which == "all" else task_id
        for k, results in enumerate(_by_region(annotation, where, counts)):
            there = f"{where}, region {k}"
            shapes = [result for result in results if _kind(result) in SHAPES and _has_form(result)]
            if not shapes:
                counts[f"left out, no region: {results[0].get('type')}"] += 1
                continue
            place = place or _find_image(task, image_key, images, shapes[0], where)
            with counts.entries("regions"):
                file, image_hw = place
                if shapes[0].get("image_rotation"):
                    raise BadEntry(
                        f"{there}: image_rotation {shapes[0]['image_rotation']}; only upright images count",
                        "annotated on a turned image",
                    )
                box, mask = _form(shapes[0], image_hw, there)
                is_turned = _kind(shapes[0]) == "rectangle" and mask is not None
                counts["rotated boxes: the upright box around them, and a polygon"] += is_turned
                keys = {"id": f"{name}-{k}", "image": file, "mask": mask, **_texts(results, counts, there, meta)}
                yield box, image_hw, there, keys


def _annotations(task: dict, which: str, where: str) -> list[dict]:
    listed = task.get("annotations", task.get("completions"))
    if listed is None and isinstance(task.get("predictions"), list):
        listed = []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        hint = "; this is JSON-MIN: export as JSON" if "annotator" in task or "annotation_id" in task else ""
        raise ValueError(f"{where}: no list of annotations{hint}")
    done = [annotation for annotation in listed if not annotation.get("was_cancelled")]
    if which == "only" and len(done) > 1:
        raise Undecided(f"{where}: {len(done)} annotations; say with --annotations which count: {', '.join(WHICH[1:])}")
    if which == "ground-truth":
        return [annotation for annotation in done if annotation.get("ground_truth")][:1]
    return done[:1] if which == "first" else done[-1:] if which == "last" else done


def _by_region(annotation: dict, where: str, counts: Tally) -> list[list[dict]]:
    """Results that are about the same region: they share an id, and the form where they have one. Two forms of one id
    (of merged files, or of none) are two regions; what is said of that id without a form is of neither."""
    results = annotation.get("result")
    if not isinstance(results, list):
        raise ValueError(f"{where}: result {results!r}: expected a list")
    forms: dict[str, list[tuple[dict, list[dict]]]] = {}  # id -> (form, its results) of each region
    groups: list[list[dict]] = []
    without: list[tuple[int, str, dict]] = []
    for number, result in enumerate(results):
        with counts.entries("results"):
            if not isinstance(result, dict):
                raise BadEntry(f"{where}: result {number} is {result!r}; expected an object")
            if result.get("type") == "relation":
                continue
            region_id = "" if result.get("id") is None else str(result["id"])
            if not _has_form(result):
                without.append((number, region_id or f"result {number}", result))
                continue
            form = {key: result["value"][key] for key in FORM if key in result["value"]}
            same = (group for known, group in forms.get(region_id, ()) if _is_same(known, form))
            if (group := next(same, None)) is None:
                group = []
                groups.append(group)
                forms.setdefault(region_id, []).append((form, group))
            group.append(result)
    alone: dict[str, list[dict]] = {}
    for _, region_id, result in without:
        regions_of_id = forms.get(region_id, ())
        if len(regions_of_id) > 1:
            counts[f"left out, said of an id that {len(regions_of_id)} regions share: {result.get('type')}"] += 1
        elif regions_of_id:
            regions_of_id[0][1].append(result)
        else:
            alone.setdefault(region_id, []).append(result)
    return [*groups, *alone.values()]


def _is_same(first: dict, second: dict) -> bool:
    shared = first.keys() & second.keys()
    return bool(shared - {"rotation"}) and all(first[key] == second[key] for key in shared)


def _kind(result: dict) -> str:
    """rectangle, polygon, ... of a result, also where its labels are another result's ("labels")."""
    kind = str(result.get("type", "")).removesuffix("labels")
    value = result.get("value")
    if kind == "" and isinstance(value, dict):  # <Labels> for any form
        keys = {
            "points": "polygon",
            "rle": "brush",
            "imageDataURL": "bitmask",
            "radiusX": "ellipse",
            "width": "rectangle",
        }
        return next((form for key, form in keys.items() if key in value), "")
    return kind


def _has_form(result: dict) -> bool:
    value = result.get("value")
    return isinstance(value, dict) and bool({"x", "points", "rle", "imageDataURL"} & value.keys())


def _form(result: dict, image_hw: tuple[int, int], where: str) -> tuple[list | None, Any]:
    """(box in pixels or None, mask or None) of a result."""
    value, kind = result["value"], _kind(result)
    height, width = image_hw
    if kind == "brush":
        if value.get("format", "rle") != "rle":
            raise ValueError(f"{where}: brush of format {value.get('format')!r}: expected rle")
        return None, rle_of_part(decode_brush(value["rle"], image_hw, where), 0, 0, image_hw)
    if kind == "bitmask":
        return None, rle_of_part(_decode_picture(value["imageDataURL"], image_hw, where), 0, 0, image_hw)
    if kind == "polygon":
        points = value["points"]
        if not isinstance(points, list) or len(points) < 3:
            raise ValueError(f"{where}: polygon {points!r}: expected at least three corners")
        corners = [_numbers(point, 2, "corner", where) for point in points]
        return None, [(np.array(corners) * (width, height) / 100).reshape(-1).tolist()]
    keys = ("x", "y", "radiusX", "radiusY") if kind == "ellipse" else ("x", "y", "width", "height")
    numbers = _numbers([value.get(key) for key in keys], 4, ", ".join(keys), where)
    x, y, across, down = (number * side / 100 for number, side in zip(numbers, (width, height) * 2, strict=True))
    (degrees,) = _numbers([value.get("rotation") or 0], 1, "rotation", where)
    if kind == "ellipse":
        return None, [ellipse(x, y, across, down, degrees)]
    if kind == "rectangle" and min(across, down) < 0 and not degrees % 360:  # drawn from another corner
        x, y, across, down = min(x, x + across), min(y, y + down), abs(across), abs(down)
    if degrees % 360:
        return None, [turned_rectangle(x, y, across, down, degrees)]  # (x, y) is where the corner lies when turned
    return [x, y, x + across, y + down], None


def _texts(results: list[dict], counts: Tally, where: str, meta: TextKeys) -> dict:
    """category or tags, captions and attributes that the results of a region say."""
    labels: dict[str, None] = {}
    captions: dict[str, None] = {}
    attributes: dict[str, int] = {}
    for result in results:
        if isinstance(result.get("meta"), dict):
            captions.update(dict.fromkeys(meta.read(result["meta"], where)))
        value = result.get("value") if isinstance(result.get("value"), dict) else {}
        for key, words in value.items():
            if key == "labels" or key.endswith("labels"):
                labels.update(dict.fromkeys(_words(words, key, where)))
        kind = result.get("type")
        if kind == "textarea":
            captions.update(dict.fromkeys(text.strip() for text in _words(value.get("text"), "text", where)))
        elif kind == "choices":
            name = result.get("from_name", "choice")
            attributes.update({f"{name}:{word}": 1 for word in _words(value.get("choices"), "choices", where)})
        elif kind in ("taxonomy", "rating", "number", "datetime"):
            counts[f"left out, of a region: {kind}"] += 1
    texts: dict[str, Any] = {"captions": [text for text in captions if text], "attributes": attributes}
    if len(labels) > 1:
        return {**texts, "tags": list(labels)}
    return {**texts, "category": next(iter(labels), None)}


def _words(value: Any, key: str, where: str) -> list[str]:
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where}: {key} {value!r}: expected texts")
    return words


def _numbers(values: Any, count: int, name: str, where: str) -> list[float]:
    known = isinstance(values, list) and len(values) == count and all(type(v) in (int, float) for v in values)
    if not known or not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: {name} {values!r}: expected {count} numbers, per cent of the image")
    return [float(value) for value in values]


def _find_image(task: dict, key: str, images: OwnImages, result: dict, where: str) -> tuple[str, tuple[int, int]]:
    data = task.get("data") if isinstance(task.get("data"), dict) else {}
    name = data.get(key)
    if not isinstance(name, str):
        raise BadEntry(f"{where}: data without a text {key!r}, but {sorted(data)}; say which with --image-key")
    recorded = (result.get("original_height"), result.get("original_width"))
    candidates = image_names(name.replace("\\", "/").removeprefix(images.prefix))
    if (found := images.first(*candidates)) is None:
        raise BadEntry(
            f"{where}: image {name!r} is not in {images.folder}, looked for {', '.join(candidates)}; name their folder "
            "with --images, or what to remove from their names with --image-prefix",
            NOT_THERE,
        )
    images.meant_once(found, candidates[0] if candidates else name, where)
    return images.sized(found, name, where, None if None in recorded else recorded)


def image_names(address: str) -> list[str]:
    """What the file of a task's image may be called in a folder, the likeliest first.

    >>> image_names("/data/upload/3/1a2b3c4d-my%20cup.jpg")
    ['data/upload/3/1a2b3c4d-my cup.jpg', '1a2b3c4d-my cup.jpg', 'my cup.jpg']
    >>> image_names("/data/local-files/?d=shelf/a.jpg"), image_names("s3://bucket/shelf/a.jpg")
    (['shelf/a.jpg', 'a.jpg'], ['shelf/a.jpg', 'a.jpg'])
    """
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    path = local[0] if local else unquote(parts.path)
    path = re.sub(r"^(\.?/)+", "", path.replace("\\", "/"))
    base = path.rpartition("/")[2]
    names = [path, base, re.sub(r"^[0-9a-f]{8}-", "", base)]
    return [name for name in dict.fromkeys(names) if name and ".." not in name.split("/")]


def decode_brush(packed: Any, image_hw: tuple[int, int], where: str) -> np.ndarray:
    """The mask of a brush, bool (H, W).

    packed: bytes as a list of numbers, a stream of bits, high first: 32 bits the number of values (four an image's
    pixel), 5 the bits of a value less 1, four times 4 the bits of a length less 1; then runs of 1 bit (the values are
    one that repeats), 2 bits (which of the four lengths), the length less 1, and the value or values.
    """
    try:
        data = bytes(packed)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: brush rle: expected a list of bytes, numbers from 0 to 255") from None
    end, data = len(data) * 8, data + bytes(8)
    num, start = _bits(data, 0, 32), 53
    word, sizes = _bits(data, 32, 5) + 1, [_bits(data, 37 + 4 * k, 4) + 1 for k in range(4)]
    if num != image_hw[0] * image_hw[1] * 4 or end < start:
        raise ValueError(
            f"{where}: brush rle of {num} values, expected 4 x {image_hw[1]} x {image_hw[0]}; it is cut off, or of "
            "another image"
        )
    values = np.zeros(num, dtype=np.uint8 if word <= 8 else np.uint32)
    powers = 1 << np.arange(word - 1, -1, -1, dtype=np.int64)
    done = 0
    while done < num:
        repeats, size = _bits(data, start, 1), sizes[_bits(data, start + 1, 2)]
        length = _bits(data, start + 3, size) + 1
        start += 3 + size
        stop = start + (word if repeats else word * length)
        if stop > end or done + length > num:
            raise ValueError(f"{where}: brush rle: damaged or cut off at value {done} of {num}")
        if repeats:
            values[done : done + length] = _bits(data, start, word)
        else:
            part = np.frombuffer(data, np.uint8, (stop + 7) // 8 - start // 8, start // 8)
            bits = np.unpackbits(part)[start % 8 : start % 8 + word * length]
            values[done : done + length] = bits.reshape(length, word) @ powers
        start, done = stop, done + length
    return values.reshape(*image_hw, 4)[:, :, 3] > 0


def _bits(data: bytes, start: int, count: int) -> int:
    """A number of up to 32 bits, high first."""
    first = start >> 3
    return (int.from_bytes(data[first : first + 5], "big") >> (40 - (start & 7) - count)) & ((1 << count) - 1)


def _decode_picture(address: Any, image_hw: tuple[int, int], where: str) -> np.ndarray:
    """The mask of a bitmask, bool (H, W), from a PNG in a data: address."""
    try:
        head, _, text = address.partition(",")
        if not head.startswith("data:image/"):
            raise ValueError(f"begins with {head[:30]!r}")
        return to_mask(Image.open(io.BytesIO(base64.b64decode(text, validate=True))), image_hw)
    except (AttributeError, binascii.Error, *DECODE_ERRORS) as error:
        raise ValueError(f"{where}: bitmask: expected a picture as data:image/png;base64,... ({error})") from error


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("label_studio", __doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True, help="the project's JSON export")
    parser.add_argument("--image-key", default="image", help="where a task's data name its image (default image)")
    parser.add_argument("--annotations", choices=WHICH, default="only", help="of a task that has several")
    parser.add_argument("--text-key", nargs="+", default=(), metavar="KEY", help=f"in a region's meta, {TEXT_KEY}")
    return run_command("data_prep.label_studio", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    counts = Tally(args.strict)
    images = OwnImages(args.images, args.out, args.image_prefix, args.stored_pixels)
    found = regions(args.export, images, counts, args.image_key, args.annotations, args.text_key)
    write_found(args, args.export, found, counts, "xyxy")


if __name__ == "__main__":
    sys.exit(main())
