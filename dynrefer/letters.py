"""Texts on pictures: letters of any script that a font on this machine has, lines that fit a width.

Pillow's own font writes Latin letters, the same on every machine. Other characters are looked for in fonts that systems
bring along; DYNREFER_FONT in the environment names a file that is asked first.
"""

import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageDraw, ImageFont

FONT = "DYNREFER_FONT"  # environment variable: a font file
# of Linux, macOS and Windows; Pillow looks for them where the system keeps fonts
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "segoeui.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "unifont.ttf",
)
NO_CHARACTER = "\U0010fffd"  # which no font has: fonts draw their sign for missing ones
ELLIPSIS = "…"


class Letters:
    """Letters of one size in pixels. ascent, descent: of the first font, above and below the base line."""

    def __init__(self, size: int):
        self.size = size
        self.fonts = fonts_of(size, os.environ.get(FONT))
        self.ascent, self.descent = self.fonts[0].getmetrics()
        self.line = round(1.32 * size)  # from one base line to the next

    def length(self, text: str) -> float:
        return sum(font.getlength(part) for font, part in runs(text, self.fonts))

    def write(self, draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, fill: Sequence[int]) -> None:
        """Writes one line; xy: where its base line begins."""
        x, y = xy
        for font, part in runs(text, self.fonts):
            draw.text((round(x), round(y)), part, tuple(fill), font, anchor="ls")
            x += font.getlength(part)

    def shortened(self, text: str, width: float) -> str:
        """The text, or its beginning with an ellipsis, at most `width` wide."""
        if self.length(text) <= width:
            return text
        low, high = 0, len(text)  # characters that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.length(text[:middle].rstrip() + ELLIPSIS) <= width
            low, high = (middle, high) if fits else (low, middle)
        return text[:low].rstrip() + ELLIPSIS

    def lines(self, text: str, width: float, most: int) -> list[str]:
        """The text in lines of at most `width`, broken between words, or in words that are wider, as
        in scripts without spaces; at most `most` lines, the last one shortened."""
        done: list[str] = []
        rest = text
        while rest and len(done) < most - 1 and self.length(rest) > width:
            fitting = max(len(self.shortened(rest, width + self.length(ELLIPSIS))) - 1, 1)
            space = rest.rfind(" ", 0, fitting + 1)
            cut = space if space > 0 else fitting
            done.append(rest[:cut].rstrip())
            rest = rest[cut:].lstrip()
        return [*done, self.shortened(rest, width)] if rest else done


def clean(text: str) -> str:
    """One line without characters that draw nothing, or that would turn the direction of others.

    >>> clean(" a\\tred\\n\\u202ecup ")
    'a red cup'
    """
    joined = " ".join(text.split())
    return "".join(one for one in joined if unicodedata.category(one) not in ("Cc", "Cs") and one not in TURNING)


TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def runs(text: str, fonts: Sequence) -> list[tuple]:
    """[(font, part)] of a text: each character in the first font that has it, or in the first font. Marks and spaces
    stay with the character before them."""
    found: list[list] = []
    for one in text:
        joins = found and (one.isspace() or unicodedata.category(one) in ("Mn", "Mc", "Me", "Cf"))
        font = found[-1][0] if joins else next((font for font in fonts if has(font, one)), fonts[0])
        if found and found[-1][0] is font:
            found[-1][1] += one
        else:
            found.append([font, one])
    return [(font, part) for font, part in found]


@lru_cache(maxsize=65536)
def has(font: ImageFont.FreeTypeFont, one: str) -> bool:
    """Whether a font has a character, and not only its sign for a missing one."""
    return one.isspace() or shape(font, one) != missing(font)


@lru_cache(maxsize=256)
def missing(font: ImageFont.FreeTypeFont) -> tuple:
    return shape(font, NO_CHARACTER)


def shape(font: ImageFont.FreeTypeFont, one: str) -> tuple:
    picture = font.getmask(one)
    return picture.size, bytes(picture)


@lru_cache(maxsize=64)
def fonts_of(size: int, own: str | None) -> tuple:
    """Pillow's font, then those of this machine. own: a file; ValueError where it is none."""
    found = [ImageFont.load_default(size)]
    if own:
        try:
            found.append(ImageFont.truetype(own, size))
        except OSError as error:
            raise ValueError(
                f"{FONT}={own!r} in the environment: not a font file ({error}); give a .ttf or .otf"
            ) from None
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)
