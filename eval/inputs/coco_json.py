"""A benchmark's own COCO JSON: its images in the order of their ids, beside those of the records; its categories."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dynrefer.packed import open_text, other_kind

from .names import Pictures, plain

MAX_DIGITS = 400  # no float is as large
WANTED = "expected the benchmark's COCO JSON"


@dataclass(frozen=True)
class Pairing:
    """The images of a file. image: id -> the records' image, or the file's own name of one that no record has, in the
    order of the ids; names: the same by the ids as texts; recorded: ids of those that a record has; others: image ->
    its path in the file, of those that no record has; size: image -> (height, width), where the file says it."""

    image: Mapping[Any, str]
    names: Mapping[str, str]
    recorded: frozenset
    others: Mapping[str, str]
    size: Mapping[str, tuple[int, int]]

    @property
    def order(self) -> list[str]:
        """Images in the order of their ids."""
        return list(self.image.values())

    def find(self, value: Any) -> str:
        """The image of an id, as a number or a text; "" where none has it."""
        return self.names.get(plain(value), "")


def read_text(path: str | os.PathLike) -> str:
    """A text file of others, whatever it was saved as (`open_text`); ValueError names the file and what it is."""
    try:
        with open_text(path) as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {error.encoding.upper()} text at byte {error.start}; save it as UTF-8"
        ) from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or cut off gzip ({error}); copy or download it again") from error
    except OSError as error:
        if error.filename is None:  # of gzip
            raise ValueError(f"{path}: damaged or cut off gzip ({error}); copy or download it again") from error
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file that is there") from error


def parse_json(path: str | os.PathLike, text: str) -> Any:
    """The value of a JSON text, where NaN is a float that is none; ValueError names the file and what is wrong."""

    def integer(digits: str) -> int:
        if len(digits) >= MAX_DIGITS:
            raise ValueError(f"{path}: the number {digits[:40]}; expected finite numbers")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{path}: {twice!r} stands twice in one object; there is one prediction a region")
        return found

    try:
        return json.loads(text, parse_int=integer, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        kind = other_kind(path) or "the file is damaged or cut off, copy or write it again"
        raise ValueError(f"{path}: not JSON ({error}); {kind}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error


def read_document(path: str | os.PathLike) -> dict:
    """The object of a benchmark's file; ValueError for another value."""
    document = parse_json(path, read_text(path))
    if not isinstance(document, dict):
        raise ValueError(f"{path}: a {type(document).__name__}; {WANTED}, an object")
    return document


def category_names(document: Mapping, path: str | os.PathLike | None) -> dict[Any, str]:
    """id -> name, in the order of the ids."""
    try:
        names = {entry["id"]: entry["name"].strip() for entry in document.get("categories") or ()}
        return {number: names[number] for number in sorted(names, key=_place)}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: categories without id and name; {WANTED}") from error


def pair_images(document: Mapping, images: Iterable[str], path: str | os.PathLike | None) -> Pairing:
    """The images of a file beside `images`, those of records. A name may lie under another root; of two that fit one
    image the one that is alike in more folders has it. ValueError: a name that fits several, images of another form."""
    pictures, of_image = Pictures(dict.fromkeys(images)), {}
    try:
        entries = {entry["id"]: entry for entry in document["images"]}
        entries = {number: entries[number] for number in sorted(entries, key=_place)}
        names = {number: entry.get("file_name") or entry["coco_url"] for number, entry in entries.items()}
        size = {n: (int(e["height"]), int(e["width"])) for n, e in entries.items() if "height" in e and "width" in e}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: images without id and file_name ({error!r}); {WANTED}") from error
    for number, name in names.items():
        image, alike = pictures.match(str(name))
        if image is None:
            raise ValueError(f"{path}: image {number!r}, {name!r}, fits several images of the records by its name")
        if not image or not alike:
            continue
        before, other = of_image.get(image, (0, None))
        if alike == before:
            raise ValueError(
                f"{path}: images {other!r} and {number!r} are both {image!r} of the records, by their names"
            )
        if alike > before:
            of_image[image] = alike, number
    recorded = {number: image for image, (_, number) in of_image.items()}
    image = {number: recorded.get(number, f"{name} (image {number})") for number, name in names.items()}
    return Pairing(
        image,
        {plain(number): found for number, found in image.items()},
        frozenset(recorded),
        {image[number]: str(name) for number, name in names.items() if number not in recorded},
        {image[number]: image_hw for number, image_hw in size.items()},
    )


def _place(number: Any) -> tuple[bool, Any]:
    return isinstance(number, str), number
