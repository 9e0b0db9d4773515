"""JSON files of others, read as a stream where they are large, whole where they fit in memory.

for image in read_items("region_descriptions.json", "item"): ...

Packed by gzip under any name, with a byte order mark or in UTF-16, they are read like others. NaN and Infinity, which
other programs write though JSON has none, come as floats: harmless in a key that nobody reads. Half a surrogate in an
escape comes as it stands, as Python's own reader has it; whoever reads the text refuses it.
"""

import codecs
import contextlib
import gzip
import io
import itertools
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dynrefer.errors import cut
from dynrefer.packed import OTHER_ENCODING, open_text, other_kind

MAX_TAIL = 2**26  # bytes behind the beginning of a list that `read_list` takes from a file's end
CHUNK = 2**16
NOT_JSON = "not JSON from its first to its last byte"
MAX_DEPTH = 1000
DEEP = f"more than {MAX_DEPTH:,} lists and objects within each other"
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
STRANGE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)', re.DOTALL)  # texts, which stay, and numbers JSON lacks
MARK = "\ufdd0"  # begins a text that stands for such a number; a character that no text has
# escapes one after the other, where the group is half a surrogate without its other half
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.?)", re.DOTALL
)
MOST_ESCAPED = 12  # bytes of such a pair
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
HALF = "\ufdd1"  # stands before the four digits of such a half
HALVES = re.compile(HALF + "([0-9a-fA-F]{4})")


def read_items(path: str | os.PathLike, prefix: str, required: bool = True) -> Iterator[Any]:
    """The values at `prefix` of a JSON file one after the other, the file never in memory as a whole.

    prefix: as ijson has it: "item" for the entries of a top-level list, "annotations.item" for those of
    {"annotations": [...]}. Raises ValueError for a file that is missing, cut off or not JSON, and, where it is
    `required`, for one with nothing at `prefix`.
    """
    count = 0
    for value in _stream(Path(path), prefix):
        count += 1
        yield value
    if required and not count:
        raise ValueError(f"{path}: nothing at {prefix!r}, {_what_is_there(Path(path), prefix)}; is it the right file?")


def _what_is_there(path: Path, prefix: str) -> str:
    """Of a JSON file without what was looked for."""
    keys = [key for key, _ in itertools.islice(_stream(path, None), 20)]
    if not keys:
        return "a list or a single value" if "." in prefix else "a list without entries, or a single value"
    key = prefix.partition(".")[0]
    if key in keys:
        return f"its {key!r} holds no entries"
    return f"but an object with {cut(', '.join(map(repr, keys)), 200)}"


def read_list(path: str | os.PathLike, key: str, required: bool = True) -> list:
    """The list at `key` of a file's object: categories, mostly behind millions of annotations, which are not read.

    required: a file without it, or with an empty one, is an error; otherwise it gives an empty list. Raises ValueError
    as `read_items` does, but does not notice damage before the list.
    """
    import ijson

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.rfind(b'"%s"' % key.encode())
            if start >= 0 and len(data) - start <= MAX_TAIL and not SURROGATE.search(data, start):
                tail = io.BytesIO(b"{" + data[start:])  # an object again, if this is the list and not a word in a text
                if entries := list(ijson.items(tail, f"{key}.item", use_float=True)):
                    return entries
    except (ijson.JSONError, OSError, ValueError):
        pass  # packed, a word in a text, damaged: what the whole file says
    return list(read_items(path, f"{key}.item", required))


def read_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a file's JSON object one after the other, the file never in memory as a whole; ValueError for a
    file that is missing, cut off or something else."""
    count = 0
    for pair in _stream(path, None):
        count += 1
        yield pair
    if not count:
        raise ValueError(f"{path}: no object with entries; is it the right file?")


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file that fits in memory; ValueError for one that is missing, cut off or something else."""
    text = b""
    try:
        with open_text(path) as file:
            text = file.read()
        return json.loads(text)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError, EOFError, zlib.error) as error:  # not text, not JSON, or nested without end
        raise ValueError(f"{path}: {_problem(Path(path), error)}") from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """`read_json` of an object; ValueError for another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {type(value).__name__} instead of an object; is it the right file?")
    return value


def _stream(path: Path, prefix: str | None) -> Iterator[Any]:
    """Values at a prefix, or the pairs of the whole object (None). From where the quick reader meets a number that JSON
    lacks, or half a surrogate, a slower one goes on that knows them."""
    count = 0
    for known in (False, True):
        try:
            with open_text(path) as file:
                flat = _Flat(file, path, halves=known)
                for number, value in enumerate(_values(_Marked(flat) if known else flat, prefix)):
                    if number >= count:
                        count += 1
                        yield _unmarked(value) if known else value
            return
        except _HalfFound:
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, EOFError, zlib.error) as error:  # ijson's own are of ijson.JSONError
            failed = error
        except _json_error() as error:
            failed = error
            if not known and _has_strange_numbers(path):
                continue
        place = f"damaged behind entry {count} of {'the object' if prefix is None else repr(prefix)}"
        raise ValueError(f"{path}: {_problem(path, failed, place)}") from failed


def _values(file: Any, prefix: str | None) -> Iterator[Any]:
    import ijson

    return ijson.kvitems(file, "", use_float=True) if prefix is None else ijson.items(file, prefix, use_float=True)


def _json_error() -> type[Exception]:
    import ijson

    return ijson.JSONError


class _HalfFound(Exception):
    """The quick reader would make "?" of half a surrogate."""


class _Flat:
    """A stream of JSON; ValueError where it is nested so deep that the quick reader would take all memory, _HalfFound
    where half a surrogate is in it, unless `halves` are known."""

    def __init__(self, file: BinaryIO, path: Path, halves: bool):
        self._file, self._path, self._open, self._last, self._halves = file, path, 0, b"", halves

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if not self._halves and SURROGATE.search(self._last + data):
            self._halves = True  # looked for in the whole file, once
            if _has_halves(self._path):
                raise _HalfFound
        self._last = data[-MOST_ESCAPED:]
        if self._open <= MAX_DEPTH:
            self._open += _opened(data)  # those in texts too
            if self._open > MAX_DEPTH and _is_deep(self._path):
                raise ValueError(DEEP)
        return data


def _has_halves(path: Path) -> bool:
    rest = b""
    with open_text(path) as file:
        while data := file.read(2**20):
            rest += data
            end = len(rest) - MOST_ESCAPED
            for match in ESCAPE.finditer(rest):
                if match.start() > end:
                    rest = rest[match.start() :]  # may not be over yet
                    break
                if match[1]:
                    return True
            else:
                rest = b""
    return any(match[1] for match in ESCAPE.finditer(rest))


def _opened(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{") - data.count(b"]") - data.count(b"}")


def _is_deep(path: Path) -> bool:
    depth, rest = 0, b""
    with open_text(path) as file:
        while data := file.read(CHUNK):
            plain = TEXT.sub(b"", rest + data)
            begun = plain.find(b'"')
            plain, rest = (plain, b"") if begun < 0 else (plain[:begun], plain[begun:])
            depth += _opened(plain)
            if depth > MAX_DEPTH:
                return True
    return False


class _Marked:
    """A stream of JSON in which NaN and Infinity outside of texts are texts that begin with MARK, and half a surrogate
    in a text is HALF and its digits."""

    def __init__(self, file: BinaryIO):
        self._file, self._rest = file, b""

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        while data := self._file.read(CHUNK):
            self._rest += data
            if (end := self._whole()) > 0:
                done, self._rest = self._rest[:end], self._rest[end:]
                return STRANGE.sub(_marked, done)
        done, self._rest = self._rest, b""
        return STRANGE.sub(_marked, done)

    def _whole(self) -> int:
        """Where a text or a number may begin that is not over yet."""
        end = 0
        for match in STRANGE.finditer(self._rest):
            end = match.end()
        if (begun := self._rest.find(b'"', end)) >= 0:
            return begun
        return max(end, len(self._rest) - len(b"-Infinity"))


def _marked(match: re.Match) -> bytes:
    text = match[0]
    if text.startswith(b'"'):
        return ESCAPE.sub(lambda escape: HALF.encode() + escape[1] if escape[1] else escape[0], text)
    return b'"' + MARK.encode() + text + b'"'


def _unmarked(value: Any) -> Any:
    """A value with floats and halves of surrogates where `_Marked` has put texts."""
    if isinstance(value, str):
        if value.startswith(MARK):
            return float(value[1:].lower())
        return HALVES.sub(lambda half: chr(int(half[1], 16)), value) if HALF in value else value
    if isinstance(value, list | tuple):
        return type(value)([_unmarked(entry) for entry in value])
    return {_unmarked(key): _unmarked(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _has_strange_numbers(path: Path) -> bool:
    last = b""
    with contextlib.suppress(UnicodeDecodeError), open_text(path) as file:
        while data := file.read(2**20):
            if re.search(rb"NaN|Infinity", last[-10:] + data):
                return True
            last = data
    return False


def _unreadable(path: str | os.PathLike, error: OSError) -> ValueError:
    if isinstance(error, gzip.BadGzipFile):
        return ValueError(f"{path}: {NOT_JSON}: damaged or cut off gzip ({error}); copy or download it again")
    return ValueError(f"{path}: cannot be read ({error})")


def _problem(path: Path, error: Exception, place: str = "damaged") -> str:
    """What is wrong with a file that is not JSON, and the next step."""
    if isinstance(error, EOFError | zlib.error):
        return f"{NOT_JSON}: damaged or cut off gzip ({error}), {place}; copy or download it again"
    if (kind := other_kind(path)) is not None:
        return f"{NOT_JSON}: {kind}"
    if isinstance(error, UnicodeDecodeError) and not error.encoding.startswith("utf-8"):
        return f"{NOT_JSON} ({error.encoding}: {error.reason}), {place}; is it cut off? Copy or download it again"
    if found := _not_utf8(path):
        return f"{NOT_JSON}: {found}"
    reason = DEEP if isinstance(error, RecursionError) else _reason(error)
    whole = isinstance(error, json.JSONDecodeError) and error.pos < len(error.doc.rstrip())
    whole = whole or isinstance(error, _json_error()) and "EOF" not in reason or reason == DEEP
    step = "mend it there, or write it anew" if whole else "is it cut off? Copy or download it again"
    return f"{NOT_JSON} ({cut(reason, 200)}), {place}; {step}"


def _reason(error: Exception) -> str:
    """ijson's own texts are bytes, and of several lines, the last of which points at a column."""
    text = error.args[0] if error.args else str(error)
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return " ".join(text.replace("(right here) ------^", "").split())


def _not_utf8(path: Path) -> str | None:
    """Where the first byte stands that is not UTF-8, with the text around it."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), ""
    with open_text(path) as file:
        for data in iter(lambda: file.read(CHUNK), b""):
            try:
                before = (before + decoder.decode(data))[-400:]
            except UnicodeDecodeError as error:
                text = before + error.object[: error.start].decode("utf-8")
                byte, behind = error.object[error.start], error.object[error.start + 1 : error.start + 15]
                shown = cut((text[-200:] + bytes([byte]).decode("cp1252", "replace")), 1000)[-60:]
                shown += behind.decode("cp1252", "replace")
                return f"byte 0x{byte:02x} in {_key_before(text)}{shown!r} is not UTF-8; {OTHER_ENCODING}"
    return None


def _key_before(text: str) -> str:
    """ "the value of 'name' (id 7): " for a text that ends within a value."""
    keys = re.findall(r'"([^"\\]{1,60})"\s*:', text)
    ids = re.findall(r'"id"\s*:\s*("?[^",}\s]{1,40})', text)
    return (f"the value of {keys[-1]!r}" + (f" (behind id {ids[-1]})" if ids else "") + ", ") if keys else ""
