"""What ids and pictures may be called in files of others: 12345, "12345.0", "photos\\a.JPG", "/other/root/a.jpg"."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

WHOLE = re.compile(r"([+-]?\d+)\.0+")  # what pandas makes of a column of numbers with a gap
ENDINGS = ("jpg", "png", "webp", "bmp", "gif", "tif", "ppm", "avif", "heic")
SPELLINGS = {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif"}


@dataclass
class Names:
    """name -> the one region (or image), or None where several are called so."""

    known: dict[str, str | None] = field(default_factory=dict)

    def add(self, name: str, target: str) -> None:
        if self.known.setdefault(name, target) != target:
            self.known[name] = None

    def find(self, value: Any) -> str | None:
        """What a value names, "" where it names nothing, None where it fits several."""
        return self.known.get(str(value), self.known.get(plain(value), ""))


class Pictures:
    """Images by their paths, ends of them, file names, stems and the numbers that stems end with."""

    def __init__(self, images: Iterable[str], targets: Iterable[str] | None = None):
        images = list(images)
        self._paths, self._numbers = Names(), Names()
        for image, target in zip(images, images if targets is None else targets, strict=True):
            for end in _ends(picture_name(image)):
                self._paths.add(end, target)
                self._paths.add(_stem(end), target)
            stem = _stem(picture_name(image).rpartition("/")[2])
            if digits := stem[len(stem.rstrip("0123456789")) :]:
                self._numbers.add(str(int(digits)), target)

    def find(self, value: Any) -> str | None:
        """The image of a value, "" where there is none, None where it fits several: the longest end of a path that an
        image's path ends with as well, or else the number."""
        return self.match(value)[0]

    def match(self, value: Any) -> tuple[str | None, int]:
        """(`find`, how many parts of the path are alike)."""
        name = picture_name(value)
        if name.isdecimal() and len(name) < 256:
            found = {self._paths.known.get(name, ""), self._numbers.known.get(str(int(name)), "")} - {""}
            return (found.pop() if len(found) == 1 else None) if found else "", 1
        for end in _ends(name):
            if end in self._paths.known:
                return self._paths.known[end], end.count("/") + 1
        return "", 0


def plain(value: Any) -> str:
    """A value as a name: one form of characters, no blanks around it, whole numbers without a point.

    >>> plain(100.0), plain(" 100.00 "), plain("1.5")
    ('100', '100', '1.5')
    """
    text = unicodedata.normalize("NFC", str(value)).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_picture(value: Any) -> bool:
    """Whether it is a text that ends as the names of pictures do."""
    return isinstance(value, str) and picture_name(value).rpartition(".")[2] in ENDINGS


def picture_name(value: Any) -> str:
    r"""A picture's path as a name: forward slashes, the ending in small letters and one spelling.

    >>> picture_name(r"D:\photos\a.JPEG"), picture_name("./photos/a.jpg")
    ('D:/photos/a.jpg', 'photos/a.jpg')
    """
    path = plain(value).replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    stem, point, ending = path.rpartition(".")
    if not point or not ending.isalpha():
        return path
    return f"{stem}.{SPELLINGS.get(ending.lower(), ending.lower())}"


def _ends(path: str) -> Iterator[str]:
    """The path, and what is left of it without its first folder, its first two, ..."""
    while True:
        yield path
        _, slash, path = path.partition("/")
        if not slash:
            return


def _stem(path: str) -> str:
    stem, point, ending = path.rpartition(".")
    return stem if point and ending.isalpha() else path
