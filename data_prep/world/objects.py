"""The things that live in the world: kinds, colours, patterns, and how each kind is drawn.

A kind is a short function over a `Pen`, in a unit square that the pen stretches to the object's size. "body" is the
part that takes the object's colour and carries its pattern; everything else has fixed colours.

Patterns are drawn at a period of about seven pixels of the full-resolution image whatever the object's size, so the
object's own crop shows them and a whole image squashed to a small view does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SUPERSAMPLING = 2
LINE = 3  # outline width in supersampled pixels

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (245, 140, 30),
    "yellow": (248, 214, 48),
    "green": (40, 150, 66),
    "blue": (44, 92, 208),
    "purple": (132, 62, 176),
    "pink": (246, 138, 186),
    "white": (246, 246, 242),
    "black": (46, 46, 52),
}
INK_RGB = {"white": (255, 255, 255), "black": (22, 22, 26)}
INKS = {  # the pattern colours that stand out on a body colour
    "red": ("white", "black"),
    "orange": ("white", "black"),
    "yellow": ("black",),
    "green": ("white", "black"),
    "blue": ("white",),
    "purple": ("white",),
    "pink": ("white", "black"),
    "white": ("black",),
    "black": ("white",),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "letter", "number")
# Glyphs are straight strokes in a unit box, so that no font is needed and every machine draws the same pixels.
GLYPHS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "h": (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),
    "k": (((0, 0), (0, 1)), ((1, 0), (0.05, 0.55)), ((0.3, 0.42), (1, 1))),
    "t": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "x": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
    "2": (((0, 0.2), (0.25, 0), (0.75, 0), (1, 0.2), (0.95, 0.42), (0, 1), (1, 1)),),
    "4": (((0.7, 1), (0.7, 0), (0, 0.68), (1, 0.68)),),
    "5": (((0.95, 0), (0.1, 0), (0.05, 0.44), (0.65, 0.4), (1, 0.62), (0.9, 0.88), (0.6, 1), (0, 0.95)),),
    "7": (((0, 0), (1, 0), (0.4, 1)),),
}
LETTERS = ("h", "k", "t", "x")
NUMBERS = ("2", "4", "5", "7")

WOOD, DARK_WOOD, STEEL, GLASS = (150, 98, 52), (104, 66, 38), (120, 126, 136), (186, 224, 240)
INK, CREAM, LEAF, BEAK = (34, 34, 40), (250, 244, 226), (70, 158, 74), (250, 170, 40)


def _mix(a: Sequence[int], b: Sequence[int], share: float) -> tuple[int, int, int]:
    """`share` of b in a, per channel."""
    return tuple(int(round(x * (1 - share) + y * share)) for x, y in zip(a, b, strict=True))


class Pen:
    """Draws in a unit square, stretched to (w, h) image pixels, on three layers at once: colours, shape and body."""

    def __init__(self, width: int, height: int, colour: tuple[int, int, int], flip: bool) -> None:
        self.size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self.flip = flip
        self.outline = _mix(colour, (0, 0, 0), 0.68)
        self.fills = {
            "body": colour,
            "shade": _mix(colour, (0, 0, 0), 0.3),
            "tint": _mix(colour, (255, 255, 255), 0.45),
        }
        self.colours = Image.new("RGB", self.size, self.outline)
        self.shape = Image.new("L", self.size, 0)
        self.body = Image.new("L", self.size, 0)
        self._draws = [ImageDraw.Draw(layer) for layer in (self.colours, self.shape, self.body)]

    def _x(self, x: float) -> float:
        return (1 - x if self.flip else x) * (self.size[0] - 1)

    def _points(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(self._x(x), y * (self.size[1] - 1)) for x, y in points]

    def _box(self, x1: float, y1: float, x2: float, y2: float) -> list[float]:
        left, right = sorted((self._x(x1), self._x(x2)))
        return [left, y1 * (self.size[1] - 1), right, y2 * (self.size[1] - 1)]

    def _layers(self, fill: str | tuple[int, int, int]) -> list[tuple[ImageDraw.ImageDraw, object, object]]:
        """(draw, fill, outline) of the three layers."""
        body = 255 if fill == "body" else 0
        return list(
            zip(self._draws, (self.fills.get(fill, fill), 255, body), (self.outline, 255, 0), strict=True)  # type: ignore[arg-type]
        )

    def polygon(self, points: Sequence[tuple[float, float]], fill: str | tuple[int, int, int] = "body") -> None:
        pixels = self._points(points)
        for draw, inside, edge in self._layers(fill):
            draw.polygon(pixels, fill=inside)
            draw.line([*pixels, pixels[0], pixels[1]], fill=edge, width=LINE, joint="curve")

    def ellipse(self, box: tuple[float, float, float, float], fill: str | tuple[int, int, int] = "body") -> None:
        for draw, inside, edge in self._layers(fill):
            draw.ellipse(self._box(*box), fill=inside, outline=edge, width=LINE)

    def rectangle(
        self, box: tuple[float, float, float, float], fill: str | tuple[int, int, int] = "body", round: float = 0.0
    ) -> None:
        pixels = self._box(*box)
        radius = round * min(pixels[2] - pixels[0], pixels[3] - pixels[1])
        for draw, inside, edge in self._layers(fill):
            draw.rounded_rectangle(pixels, radius=radius, fill=inside, outline=edge, width=LINE)

    def pie(
        self, box: tuple[float, float, float, float], start: int, end: int, fill: str | tuple[int, int, int] = "body"
    ) -> None:
        """A closed half or part of an ellipse; angles in degrees clockwise from three o'clock (not mirrored)."""
        for draw, inside, edge in self._layers(fill):
            draw.chord(self._box(*box), start, end, fill=inside, outline=edge, width=LINE)

    def line(self, points: Sequence[tuple[float, float]], fill: str | tuple[int, int, int], width: float) -> None:
        """`width` is a share of the shorter side."""
        thickness = max(2, round(width * min(self.size)))
        for draw, inside, _ in self._layers(fill):
            draw.line(self._points(points), fill=inside, width=thickness, joint="curve")

    def ring(self, box: tuple[float, float, float, float], width: float) -> None:
        """An open ring of the body's darker shade, such as a handle."""
        thickness = max(3 * LINE, round(width * min(self.size)))
        x1, y1, x2, y2 = self._box(*box)
        for draw, inside, edge in self._layers("shade"):
            draw.ellipse([x1, y1, x2, y2], outline=edge, width=thickness)
            inner = [x1 + LINE, y1 + LINE, x2 - LINE, y2 - LINE]
            draw.ellipse(inner, outline=inside, width=thickness - 2 * LINE)

    def ink(self, ink: Image.Image, colour: tuple[int, int, int]) -> None:
        """Puts a pattern (an L picture of the pen's size) on the body only."""
        self.colours.paste(colour, (0, 0), ImageChops.multiply(ink, self.body))

    def finish(self) -> tuple[Image.Image, Image.Image]:
        """Colours (RGB) and coverage (L), both at image resolution."""
        return self.colours.reduce(SUPERSAMPLING), self.shape.reduce(SUPERSAMPLING)


def _wheels(pen: Pen, centres: Sequence[float], y: float, rx: float, ry: float) -> None:
    for x in centres:
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), INK)
        pen.ellipse((x - rx / 2, y - ry / 2, x + rx / 2, y + ry / 2), (190, 194, 200))


def _eye(pen: Pen, x: float, y: float, rx: float, ry: float) -> None:
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), (255, 255, 255))
    pen.ellipse((x - rx * 0.3, y - ry * 0.5, x + rx * 0.7, y + ry * 0.6), INK)


def house(pen: Pen) -> None:
    pen.rectangle((0.7, 0.04, 0.84, 0.4), (150, 80, 66))
    pen.rectangle((0.08, 0.36, 0.92, 1))
    pen.polygon([(0, 0.4), (0.5, 0), (1, 0.4)], (150, 80, 66))
    pen.rectangle((0.74, 0.68, 0.88, 1), DARK_WOOD)


def tree(pen: Pen) -> None:
    pen.rectangle((0.41, 0.6, 0.59, 1), WOOD)
    for box in ((0, 0.25, 0.52, 0.74), (0.48, 0.25, 1, 0.74), (0.16, 0, 0.84, 0.56)):
        pen.ellipse(box)
    pen.ellipse((0.12, 0.14, 0.88, 0.72))


def cup(pen: Pen) -> None:
    pen.ring((0.58, 0.22, 1, 0.76), 0.11)
    pen.polygon([(0, 0.1), (0.8, 0.1), (0.7, 1), (0.1, 1)])
    pen.ellipse((0, 0, 0.8, 0.22), "shade")


def lamp(pen: Pen) -> None:
    pen.rectangle((0.45, 0.5, 0.55, 0.94), STEEL)
    pen.pie((0.2, 0.84, 0.8, 1.16), 180, 360, STEEL)
    pen.polygon([(0.26, 0), (0.74, 0), (1, 0.6), (0, 0.6)])


def ball(pen: Pen) -> None:
    pen.ellipse((0, 0, 1, 1))
    pen.ellipse((0.2, 0.1, 0.42, 0.24), "tint")


def car(pen: Pen) -> None:
    pen.polygon([(0.16, 0.42), (0.3, 0), (0.66, 0), (0.84, 0.42)], "shade")
    pen.polygon([(0.25, 0.38), (0.34, 0.1), (0.47, 0.1), (0.47, 0.38)], GLASS)
    pen.polygon([(0.53, 0.38), (0.53, 0.1), (0.63, 0.1), (0.74, 0.38)], GLASS)
    pen.rectangle((0, 0.36, 1, 0.86), round=0.25)
    _wheels(pen, (0.22, 0.78), 0.83, 0.115, 0.17)


def boat(pen: Pen) -> None:
    pen.line([(0.5, 0), (0.5, 0.8)], DARK_WOOD, 0.07)
    pen.polygon([(0.55, 0.02), (0.98, 0.66), (0.55, 0.66)])
    pen.polygon([(0.45, 0.1), (0.45, 0.66), (0.08, 0.66)])
    pen.polygon([(0, 0.74), (1, 0.74), (0.84, 1), (0.16, 1)], WOOD)


def fish(pen: Pen) -> None:
    pen.polygon([(0.72, 0.5), (1, 0.14), (0.95, 0.5), (1, 0.86)], "shade")
    pen.polygon([(0.32, 0.2), (0.5, 0), (0.66, 0.24)], "shade")
    pen.ellipse((0, 0.1, 0.84, 0.92))
    _eye(pen, 0.17, 0.4, 0.06, 0.09)


def bird(pen: Pen) -> None:
    pen.line([(0.45, 0.82), (0.45, 1)], BEAK, 0.06)
    pen.line([(0.6, 0.82), (0.6, 1)], BEAK, 0.06)
    pen.polygon([(0.72, 0.5), (1, 0.34), (0.97, 0.62), (0.75, 0.72)], "shade")
    pen.polygon([(0.12, 0.2), (0, 0.29), (0.14, 0.34)], BEAK)
    pen.ellipse((0.16, 0.3, 0.88, 0.9))
    pen.ellipse((0.08, 0, 0.5, 0.5))
    _eye(pen, 0.21, 0.2, 0.055, 0.065)


def cat(pen: Pen) -> None:
    pen.line([(0.84, 0.94), (0.97, 0.8), (0.94, 0.6)], "shade", 0.11)
    pen.ellipse((0.14, 0.38, 0.86, 1.06))
    pen.polygon([(0.22, 0.24), (0.2, 0), (0.42, 0.1)], "shade")
    pen.polygon([(0.78, 0.24), (0.8, 0), (0.58, 0.1)], "shade")
    pen.ellipse((0.16, 0.06, 0.84, 0.5), "tint")
    for x in (0.36, 0.64):
        pen.ellipse((x - 0.06, 0.19, x + 0.06, 0.3), (120, 220, 90))
        pen.line([(x, 0.2), (x, 0.29)], INK, 0.04)
    pen.polygon([(0.45, 0.33), (0.55, 0.33), (0.5, 0.39)], (240, 120, 140))
    for side in (-1, 1):
        pen.line([(0.5 + side * 0.12, 0.38), (0.5 + side * 0.44, 0.34)], INK, 0.02)
        pen.line([(0.5 + side * 0.12, 0.41), (0.5 + side * 0.44, 0.44)], INK, 0.02)


def chair(pen: Pen) -> None:
    for x in (0.04, 0.84):
        pen.rectangle((x, 0.6, x + 0.12, 1), DARK_WOOD)
    pen.rectangle((0.08, 0, 0.92, 0.64), round=0.14)
    pen.rectangle((0, 0.58, 1, 0.74), WOOD, round=0.3)


def table(pen: Pen) -> None:
    for x in (0.1, 0.82):
        pen.rectangle((x, 0.4, x + 0.08, 1), DARK_WOOD)
    pen.polygon([(0.1, 0), (0.9, 0), (1, 0.2), (1, 0.72), (0, 0.72), (0, 0.2)])
    pen.polygon([(0.1, 0), (0.9, 0), (1, 0.16), (0, 0.16)], "tint")


def clock(pen: Pen) -> None:
    pen.polygon([(0.06, 0.16), (0.5, 0), (0.94, 0.16)], "shade")
    pen.rectangle((0.08, 0.13, 0.92, 0.94))
    pen.rectangle((0, 0.9, 1, 1), DARK_WOOD)
    pen.ellipse((0.2, 0.17, 0.8, 0.5), CREAM)
    pen.line([(0.5, 0.22), (0.5, 0.34), (0.66, 0.38)], INK, 0.05)


def book(pen: Pen) -> None:
    pen.rectangle((0.06, 0.03, 1, 1), CREAM)
    pen.rectangle((0, 0, 0.94, 0.93))
    pen.rectangle((0, 0, 0.13, 0.93), "shade")


def bottle(pen: Pen) -> None:
    pen.rectangle((0.34, 0, 0.66, 0.1), WOOD)
    pen.polygon([(0.38, 0.08), (0.62, 0.08), (0.64, 0.24), (1, 0.38), (1, 1), (0, 1), (0, 0.38), (0.36, 0.24)])


def flower(pen: Pen) -> None:
    pen.line([(0.5, 0.6), (0.5, 1)], LEAF, 0.09)
    pen.ellipse((0.5, 0.78, 0.86, 0.92), LEAF)
    pen.ellipse((0.14, 0.84, 0.5, 0.97), LEAF)
    for x, y in ((0.5, 0.17), (0.8, 0.29), (0.7, 0.54), (0.3, 0.54), (0.2, 0.29)):
        pen.ellipse((x - 0.2, y - 0.17, x + 0.2, y + 0.17), "tint")
    pen.ellipse((0.17, 0.11, 0.83, 0.66))


def star(pen: Pen) -> None:
    radii = [(1.0 if i % 2 == 0 else 0.52) for i in range(10)]
    angles = [-np.pi / 2 + i * np.pi / 5 for i in range(10)]
    xs = [r * np.cos(a) for r, a in zip(radii, angles, strict=True)]
    ys = [r * np.sin(a) for r, a in zip(radii, angles, strict=True)]
    lowest = max(ys)
    pen.polygon([(0.5 + 0.5 * x / max(xs), (y + 1) / (lowest + 1)) for x, y in zip(xs, ys, strict=True)])


def kite(pen: Pen) -> None:
    pen.line([(0.5, 0.76), (0.4, 0.86), (0.56, 0.92), (0.46, 1)], DARK_WOOD, 0.035)
    for x, y in ((0.41, 0.87), (0.54, 0.94)):
        pen.polygon(
            [(x - 0.12, y - 0.035), (x - 0.12, y + 0.035), (x + 0.12, y - 0.035), (x + 0.12, y + 0.035)], "tint"
        )
    pen.polygon([(0.5, 0), (1, 0.32), (0.5, 0.8), (0, 0.32)])


def umbrella(pen: Pen) -> None:
    pen.line([(0.5, 0), (0.5, 0.9), (0.55, 0.97), (0.64, 0.96), (0.67, 0.88)], DARK_WOOD, 0.06)
    pen.pie((0, 0.05, 1, 1.15), 180, 360)
    for x in (0.17, 0.5, 0.83):
        pen.pie((x - 0.17, 0.52, x + 0.17, 0.7), 180, 360, "shade")


def mushroom(pen: Pen) -> None:
    pen.polygon([(0.37, 0.5), (0.63, 0.5), (0.7, 1), (0.3, 1)], CREAM)
    pen.pie((0, 0, 1, 1.2), 180, 360)


def hat(pen: Pen) -> None:
    pen.rectangle((0.2, 0, 0.8, 0.84), round=0.12)
    pen.ellipse((0, 0.68, 1, 1), "shade")


def shirt(pen: Pen) -> None:
    pen.polygon([(0.24, 0.02), (0.3, 0.36), (0.1, 0.46), (0, 0.2)], "shade")
    pen.polygon([(0.76, 0.02), (0.7, 0.36), (0.9, 0.46), (1, 0.2)], "shade")
    pen.polygon([(0.24, 0), (0.38, 0), (0.5, 0.1), (0.62, 0), (0.76, 0), (0.8, 1), (0.2, 1)])


# name: (drawing, width / height, centre of a glyph in the unit square, whether it may fly)
KINDS: dict[str, tuple[Callable[[Pen], None], float, tuple[float, float], bool]] = {
    "ball": (ball, 1.0, (0.5, 0.54), False),
    "bird": (bird, 1.05, (0.54, 0.63), True),
    "boat": (boat, 1.0, (0.67, 0.5), False),
    "book": (book, 0.82, (0.54, 0.48), False),
    "bottle": (bottle, 0.6, (0.5, 0.68), False),
    "car": (car, 1.6, (0.5, 0.6), False),
    "cat": (cat, 0.76, (0.5, 0.74), False),
    "chair": (chair, 0.74, (0.5, 0.3), False),
    "clock": (clock, 0.62, (0.5, 0.7), False),
    "cup": (cup, 1.08, (0.4, 0.6), False),
    "fish": (fish, 1.5, (0.47, 0.52), False),
    "flower": (flower, 0.84, (0.5, 0.38), False),
    "hat": (hat, 1.2, (0.5, 0.36), False),
    "house": (house, 0.95, (0.42, 0.7), False),
    "kite": (kite, 0.8, (0.5, 0.38), True),
    "lamp": (lamp, 0.8, (0.5, 0.34), False),
    "mushroom": (mushroom, 1.05, (0.5, 0.32), False),
    "shirt": (shirt, 1.0, (0.5, 0.58), False),
    "star": (star, 1.05, (0.5, 0.57), True),
    "table": (table, 1.35, (0.5, 0.45), False),
    "tree": (tree, 0.86, (0.5, 0.42), False),
    "umbrella": (umbrella, 1.05, (0.5, 0.34), False),
}


def _pattern_ink(
    pattern: str, glyph: str | None, centre: tuple[float, float], size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """An L picture of the supersampled `size` with the pattern's ink. Periods are in full-resolution pixels."""
    scale = SUPERSAMPLING
    ink = Image.new("L", size, 0)
    draw = ImageDraw.Draw(ink)
    width, height = size
    phase = rng.uniform(0, 7, 2) * scale
    if pattern == "striped":
        period, thick = 7 * scale, round(2.6 * scale)
        for y in np.arange(phase[0] - period, height, period):
            draw.rectangle([0, y, width, y + thick - 1], fill=255)
    elif pattern == "dotted":
        period, radius = 8.2 * scale, 2.7 * scale
        for row, y in enumerate(np.arange(phase[0] - period, height + period, period)):
            for x in np.arange(phase[1] - period + (row % 2) * period / 2, width + period, period):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    elif pattern == "checked":
        period, thick = 8 * scale, round(1.8 * scale)
        for y in np.arange(phase[0] - period, height, period):
            draw.rectangle([0, y, width, y + thick - 1], fill=255)
        for x in np.arange(phase[1] - period, width, period):
            draw.rectangle([x, 0, x + thick - 1, height], fill=255)
    elif glyph is not None:
        tall = float(np.clip(0.38 * min(size), 12 * scale, 18 * scale))
        wide = 0.72 * tall
        x0, y0 = centre[0] * width - wide / 2, centre[1] * height - tall / 2
        for stroke in GLYPHS[glyph]:
            pixels = [(x0 + x * wide, y0 + y * tall) for x, y in stroke]
            draw.line(pixels, fill=255, width=round(2.7 * scale), joint="curve")
    return ink


def extent(kind: str, side: float) -> tuple[int, int]:
    """(width, height) in pixels of a kind drawn with an area of `side` squared."""
    aspect = KINDS[kind][1]
    return round(side * aspect**0.5), round(side / aspect**0.5)


def draw_object(
    kind: str,
    colour: str,
    pattern: str,
    glyph: str | None,
    ink: str | None,
    side: float,
    flip: bool,
    rng: np.random.Generator,
) -> tuple[Image.Image, Image.Image]:
    """One object alone: colours (RGB) and coverage (L), both at image resolution and cut to the object.

    `side` is the square root of the object's width times height, in image pixels; `rng` draws the phase of the
    pattern and a slight change of shade.
    """
    drawing, _, centre, _ = KINDS[kind]
    width, height = extent(kind, side)
    shade = rng.uniform(-14, 14)
    body = tuple(int(np.clip(channel + shade, 0, 255)) for channel in COLOURS[colour])
    pen = Pen(width, height, body, flip)
    drawing(pen)
    if ink is not None:
        at = (1 - centre[0], centre[1]) if flip else centre
        pen.ink(_pattern_ink(pattern, glyph, at, pen.size, rng), INK_RGB[ink])
    return pen.finish()


# ---- which combinations belong to which split ----

SPLITS = ("train", "val", "test")
_HELD_OUT = {"test": (0, 8), "val": (8, 12)}  # ranks by hash, of the 54 combinations of one kind


def _combinations() -> dict[str, dict[str, tuple[tuple[str, str], ...]]]:
    """split -> kind -> its (colour, pattern) pairs: each kind's pairs in the order of their hash, cut in three."""
    table: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {split: {} for split in SPLITS}
    for kind in KINDS:
        pairs = [(colour, pattern) for colour in COLOURS for pattern in PATTERNS]
        pairs.sort(key=lambda pair: hashlib.sha256(f"{kind}|{pair[0]}|{pair[1]}".encode()).hexdigest())
        for split, (start, stop) in _HELD_OUT.items():
            table[split][kind] = tuple(pairs[start:stop])
        table["train"][kind] = tuple(pairs[max(stop for _, stop in _HELD_OUT.values()) :])
    return table


COMBINATIONS = _combinations()
