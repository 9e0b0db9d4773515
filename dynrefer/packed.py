"""Text files of other programs as UTF-8 bytes, whatever they were saved as: packed, with a mark, in UTF-16."""

import codecs
import gzip
import io
import os
from pathlib import Path
from typing import BinaryIO

GZIP = b"\x1f\x8b"
MARKS = (  # that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_ENCODING = (
    "it is in another encoding, such as Windows-1252: `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` writes it anew"
)
OTHERS = (  # beginnings of what is no text, and what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive; unpack it, and name the file in it"),
    (b"BZh", "packed by bzip2; unpack it with `bunzip2`"),
    (b"\xfd7zXZ", "packed by xz; unpack it with `unxz`"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it with `unzstd`"),
    (b"<", "a page in HTML or XML, which a server sends instead of a file that it does not give; download it again"),
)


class _Recoded(io.RawIOBase):
    """A stream of text in some encoding as UTF-8; the `readinto` of codecs.EncodedFile gives the file's own bytes."""

    def __init__(self, file: BinaryIO, encoding: str):
        self._file, self._decoder, self._rest = file, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = b" "
        while data and not self._rest:
            data = self._file.read(len(buffer))
            self._rest = self._decoder.decode(data, final=not data).encode("utf-8")
        done, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(done)] = done
        return len(done)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_text(path: str | os.PathLike) -> BinaryIO:
    """A text file's bytes as UTF-8 without a mark, as a stream.

    Packed by gzip under any name; UTF-8 with or without a byte order mark; UTF-16 and UTF-32 with theirs;
    UTF-16 without, where it begins with a character of ASCII. Other encodings come as they are.
    """
    file = open(path, "rb")
    if file.peek(2)[:2] == GZIP or Path(path).suffix == ".gz":
        packed = gzip.GzipFile(fileobj=file)
        packed.myfileobj = file  # which is closed with it
        file = packed
    head = file.peek(4)[:4]
    encoding = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if encoding is None and len(head) >= 2 and head.count(0) in (1, 2) and (head[0] == 0) != (head[1] == 0):
        encoding = "utf-16-be" if head[0] == 0 else "utf-16-le"
    if encoding == "utf-8-sig":
        file.read(len(codecs.BOM_UTF8))
        return file
    return file if encoding is None else io.BufferedReader(_Recoded(file, encoding))


def other_kind(path: str | os.PathLike) -> str | None:
    """What a file is that was to be text, and what to do: empty, a pointer, an archive, a page; None where nothing of
    the kind shows."""
    try:
        with open_text(path) as file:
            head = file.read(200)
    except UnicodeDecodeError:  # UTF-16 that is cut off
        return None
    return kind_of(head)


def other_text(text: str) -> str | None:
    """`other_kind` of a text that was read but is not what it should be."""
    return kind_of(text[:200].encode("utf-8", "replace"))


def kind_of(head: bytes) -> str | None:
    """`other_kind` of the first 200 bytes."""
    if head and not head.strip(b"\0"):
        return "nothing but zeros, as a copy that broke off leaves them; copy or download it again"
    head = head.lstrip()
    if not head:
        return "an empty file; copy or download it again"
    return next((text for start, text in OTHERS if head.lower().startswith(start.lower())), None)
