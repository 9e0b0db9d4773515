"""Reading and writing files: whole or not at all, line by line, with the file's name in every error."""

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from dynrefer.packed import OTHER_ENCODING, kind_of, open_text

KEY_END, QUOTED = re.compile(rb'"\s*:'), re.compile(rb'\\"\s*:')  # of a key in JSON; the same in a text
HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # the hidden folders of `hidden_folder`
REPLACED = ".replaced"  # in a hidden folder: what stood there before, between two renames
MANY = 1000  # entries of a folder that is searched for leftovers only once
_num_entries: dict[Path, int] = {}  # of the folders searched for leftovers


def read_text(path: str | os.PathLike, kind: str = "") -> str:
    """A whole text file, as `open_text` has it: a byte order mark is no part of it.

    kind: what the file is, for the message. ValueError where it is not UTF-8 or damaged; an OSError is left as it is.
    """
    where = f"{kind} {str(path)!r}" if kind else str(path)
    try:
        with open_text(path) as file:
            text = file.read().decode()
            if rest := getattr(getattr(file, "reader", None), "bytebuffer", b""):  # of UTF-16: half a character
                raise UnicodeDecodeError("utf-16", rest, 0, len(rest), "cut off")
            return text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not a text file in {error.encoding.upper()} ({error.reason} at byte {error.start}); save it as "
            "UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{where}: damaged or cut off gzip ({error}); copy or download it again") from error


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


def parse_line(text: bytes, where: str, unique_keys: bool = False) -> object:
    """The value of one JSON line; ValueError begins with `where`. unique_keys: a key that stands twice is one."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        # json reads some more, such as NaN, whose place in the record an error can then name
        return _parse_slowly(text, where, unique_keys)
    if unique_keys:
        if len(KEY_END.findall(text)) - len(QUOTED.findall(text)) != _num_keys(value):
            _parse_slowly(text, where, True)
    return value


def _parse_slowly(text: bytes, where: str, unique_keys: bool) -> object:
    def checked(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Told(f"{where}: key {twice[:100]!r} stands in one object twice; which of its values is right?")
        return found

    try:
        return json.loads(text, object_pairs_hook=checked if unique_keys else None)
    except _Told as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError) as error:
        if "integer string conversion" in str(error):  # Python's limit, 4300 digits
            raise ValueError(f"{where}: a number of thousands of digits; mend it, or leave out the line") from None
        if kind := kind_of(text[:200]):
            raise ValueError(f"{where}: not a JSON line: {kind}") from None
        if isinstance(error, UnicodeDecodeError):
            byte = f"byte 0x{text[error.start]:02x} is not UTF-8"
            raise ValueError(f"{where}: not a JSON line: {byte}; {OTHER_ENCODING}") from None
        raise ValueError(f"{where}: not a JSON line ({error}); the file is damaged or cut off") from None


class _Told(Exception):
    """What `json` shall pass through."""


def _num_keys(value: object) -> int:
    """Keys of all objects in a value; a list of numbers is not walked through."""
    if isinstance(value, dict):
        return len(value) + sum(_num_keys(inner) for inner in value.values() if isinstance(inner, dict | list))
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return sum(map(_num_keys, value))
    return 0


def read_jsonl(path: str | os.PathLike, unique_keys: bool = False) -> Iterator[tuple[int, object]]:
    """(line number, value) of every line that is not blank, of .jsonl or .jsonl.gz; ValueError names file and line."""
    for line, text in read_lines(path):
        yield line, parse_line(text, f"{path}:{line}", unique_keys)


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
    with naming(path, path.with_name(f".{path.name[:40]}.")), hidden_folder(path.parent, path.name) as hidden:
        temporary, replaced = hidden / path.name, hidden / REPLACED
        yield temporary
        if temporary.is_dir() and path.exists():
            _check_replaced(path, temporary)
            replaced.mkdir()
            os.replace(path, replaced / path.name)  # a folder cannot replace a full one
        os.replace(temporary, path)


def _check_replaced(path: Path, new: Path) -> None:
    """A folder takes the place of an earlier one of its kind; not that of a file, nor of other things' folder."""
    if not path.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    names = sorted(os.listdir(path))
    if names and not set(names) & set(os.listdir(new)):
        shown = ", ".join(names[:3] + ["..."] * (len(names) > 3))
        raise ValueError(f"{path} is a folder of other things ({shown}), which are not deleted; name a new folder")


@contextmanager
def hidden_folder(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `parent` for what is not whole yet; it is removed at the block's end.

    It is locked as long as its process lives, on any machine or in any container. Folders that killed processes left
    there are not locked any more: they are removed first.
    """
    remove_leftovers(parent)
    while True:
        folder = parent / f".{name[:40]}.{secrets.token_hex(4)}.tmp"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process took it for a leftover before it was locked
        try:
            with suppress(OSError):  # a file system without locks, where nobody removes leftovers
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                continue
            try:
                yield folder
            finally:
                _put_back(folder)
                shutil.rmtree(folder)
            return
        finally:
            os.close(lock)


def remove_leftovers(parent: Path) -> None:
    """Removes the hidden folders of processes that live no more. What one of them had moved aside, to put a new folder
    in its place, is put back."""
    if _num_entries.get(parent, 0) > MANY:
        return  # a folder of many pictures is not listed again for each of them
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries]
    _num_entries[parent] = len(names)
    for folder in (parent / name for name in names if HIDDEN.fullmatch(name)):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _put_back(folder)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # locked: its process lives; or there are no locks here
        finally:
            os.close(lock)


def _put_back(hidden: Path) -> None:
    """What was moved aside returns to its place, where nothing new came there."""
    replaced = hidden / REPLACED
    for old in replaced.iterdir() if replaced.is_dir() else ():
        if not (place := hidden.parent / old.name).exists():
            os.replace(old, place)


def write_json(path: str | os.PathLike, content: object) -> None:
    """The file appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: str | os.PathLike, lines: Iterable[bytes], *, packed: bool = False) -> int:
    """Writes lines, each with its line break, and returns how many. The file, gzip where `packed`, appears whole or not
    at all, and only when the disk has it."""
    count = 0
    with atomic_path(path) as temporary, gzip.open(temporary, "wb") if packed else open(temporary, "wb") as file:
        for line in lines:
            file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def check_out(folder: str | os.PathLike) -> None:
    """OSError that names what stands in the way where a folder cannot be written into, or made; nothing is written."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(place))


def file_sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes, or of those of all files of a folder in the order of their names; in hexadecimal."""
    path = Path(path)
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
