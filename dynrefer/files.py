"""Reading and writing files: whole or not at all, line by line, with the file's name in every error."""

import errno
import gzip
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from dynrefer.packed import open_text


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """(line number, text) of every line that is not blank, of a text file as `open_text` has it; ValueError names file
    and line."""
    line = 0
    try:
        with open_text(path) as file:
            for line, text in enumerate(file, 1):  # noqa: B007 (the last line's number serves the error below)
                if text.strip():
                    yield line, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{line + 1}: damaged or cut off gzip ({error}); copy or download it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{line + 1}: not {error.encoding} text ({error.reason}); save it as UTF-8") from error


def parse_line(text: bytes, where: str) -> object:
    """The value of one JSON line; ValueError begins with `where`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # json reads some more, such as NaN, whose place in the record an error can then name
    try:
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON line ({error}); the file is damaged or cut off") from None


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, object]]:
    """(line number, value) of every line that is not blank, of .jsonl or .jsonl.gz; ValueError names file and line."""
    for line, text in read_lines(path):
        yield line, parse_line(text, f"{path}:{line}")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; it takes the name `path` when the block ends well and is
    removed when it does not. What stood at `path` stays whole until then.

    ValueError where something else stands, a device for instance. An OSError names `path`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file but a device, pipe or socket, which is not replaced; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    try:
        with naming(path, temporary):
            yield temporary
            if temporary.is_dir() and path.exists():
                os.replace(path, old)  # a folder cannot replace a full one
            os.replace(temporary, path)
    finally:
        for leftover in (temporary, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: object) -> None:
    """The file appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def naming(path: str | os.PathLike, temporary: str | os.PathLike | None = None) -> Iterator[None]:
    """Within it an OSError that names no file, as that of a full disk, or the temporary one names `path`."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
        if unnamed or (temporary is not None and str(error.filename).startswith(str(temporary))):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
