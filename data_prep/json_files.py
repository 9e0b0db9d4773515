"""Official JSON files, read as a stream where they are large, whole where they fit in memory.

for image in read_items("region_descriptions.json", "item"): ...
"""

import gzip
import io
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_TAIL = 2**26  # bytes behind the beginning of a list that `read_list` takes from a file's end


def read_items(path: str | os.PathLike, prefix: str, required: bool = True) -> Iterator[Any]:
    """The values at `prefix` of a .json or .json.gz file one after the other, the file never in memory as a whole.

    prefix: as ijson has it: "item" for the entries of a top-level list, "annotations.item" for those of
    {"annotations": [...]}. Raises ValueError for a file that is missing, cut off or not JSON, and, where it is
    `required`, for one with nothing at `prefix`.
    """
    import ijson

    path = Path(path)
    count = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for value in ijson.items(file, prefix, use_float=True):
                count += 1
                yield value
    except (ijson.JSONError, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: not JSON from its first to its last byte ({error}), damaged behind entry {count} of {prefix!r}; "
            "download it again"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if required and not count:
        raise ValueError(f"{path}: nothing at {prefix!r}; is it the right file?")


def read_list(path: str | os.PathLike, key: str, required: bool = True) -> list:
    """The list at `key` of a file's object: categories, mostly behind millions of annotations, which are not read.

    required: a file without it, or with an empty one, is an error; otherwise it gives an empty list. Raises ValueError
    as `read_items` does, but does not notice damage before the list.
    """
    import ijson

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.rfind(b'"%s"' % key.encode())
            if start >= 0 and len(data) - start <= MAX_TAIL:
                tail = io.BytesIO(b"{" + data[start:])  # an object again, if this is the list and not a word in a text
                if entries := list(ijson.items(tail, f"{key}.item", use_float=True)):
                    return entries
    except (ijson.JSONError, OSError, ValueError):
        pass  # .gz, a word in a text, damaged: what the whole file says
    return list(read_items(path, f"{key}.item", required))


def read_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a file's JSON object one after the other, the file never in memory as a whole; ValueError for a
    file that is missing, cut off or something else."""
    import ijson

    count = 0
    try:
        with open(path, "rb") as file:
            for key, value in ijson.kvitems(file, "", use_float=True):
                count += 1
                yield key, value
    except (ijson.JSONError, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path}: not JSON from its first to its last byte ({error}), damaged behind entry {count}; download it "
            "again"
        ) from error
    if not count:
        raise ValueError(f"{path}: no object with entries; is it the right file?")


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file that fits in memory; ValueError for one that is missing, cut off or something else."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"{path}: not JSON from its first to its last byte ({error}); download it again") from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """`read_json` of an object; ValueError for another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {type(value).__name__} instead of an object; is it the right file?")
    return value
