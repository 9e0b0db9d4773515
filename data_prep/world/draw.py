"""Backgrounds: what the objects stand on, and the sky with its sun or moon.

Every surface is one picture drawn once per process; a scene takes a window of it at a place of its own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SURFACES = ("grass", "sand", "water", "carpet", "snow", "floor")
SKY = "sky"
_MARGIN = 160  # how far a scene's window may shift on the surface's picture, pixels

_BASE = {
    "grass": (148, 200, 108),
    "sand": (236, 214, 162),
    "water": (128, 190, 226),
    "carpet": (188, 150, 160),
    "snow": (228, 236, 244),
    "floor": (206, 164, 118),
}
_MARK = {
    "grass": (120, 178, 84),
    "sand": (216, 190, 134),
    "water": (168, 214, 240),
    "carpet": (168, 128, 142),
    "snow": (206, 218, 232),
    "floor": (182, 138, 94),
}


def _shift(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    return tuple(int(np.clip(channel + amount, 0, 255)) for channel in colour)


@lru_cache(maxsize=64)
def _sheet(surface: str, width: int, height: int) -> Image.Image:
    """The picture of one surface, always the same for the same size."""
    rng = np.random.default_rng(SURFACES.index(surface))
    sheet = Image.new("RGB", (width, height), _BASE[surface])
    draw = ImageDraw.Draw(sheet)
    mark = _MARK[surface]
    if surface == "grass":
        for x, y in zip(rng.uniform(0, width, 1600), rng.uniform(0, height, 1600), strict=True):
            draw.line([x, y, x + rng.uniform(-2, 2), y - rng.uniform(3, 7)], fill=_shift(mark, rng.uniform(-6, 26)))
    elif surface in ("sand", "snow"):
        for x, y in zip(rng.uniform(0, width, 1300), rng.uniform(0, height, 1300), strict=True):
            radius = rng.uniform(0.4, 1.2)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_shift(mark, rng.uniform(-8, 8)))
        for y in np.arange(0, height, 46):
            for x in np.arange(-30 + (y % 92) / 2, width, 110):
                draw.arc([x, y, x + 70, y + 16], 190, 350, fill=mark, width=1)
    elif surface == "water":
        for row, y in enumerate(np.arange(0, height, 15)):
            for x in np.arange(-20 + (row % 3) * 13, width, 42):
                draw.arc([x, y, x + 14, y + 8], 200, 340, fill=mark, width=2)
                draw.arc([x + 12, y, x + 26, y + 8], 200, 340, fill=mark, width=2)
    elif surface == "carpet":
        for row, y in enumerate(np.arange(0, height, 18)):
            for x in np.arange((row % 2) * 18, width, 36):
                draw.polygon([(x, y - 7), (x + 11, y), (x, y + 7), (x - 11, y)], outline=mark)
    elif surface == "floor":
        for row, y in enumerate(np.arange(0, height, 24)):
            draw.rectangle([0, y, width, y + 23], fill=_shift(_BASE[surface], rng.uniform(-7, 7)))
            draw.line([0, y, width, y], fill=mark, width=2)
            for x in np.arange((row * 67) % 130, width, 130):
                draw.line([x, y, x, y + 24], fill=mark, width=2)
    return sheet


def surface_window(surface: str, image_hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """An RGB picture of `image_hw`, a window of the surface's sheet."""
    height, width = image_hw
    sheet = _sheet(surface, width + _MARGIN, height + _MARGIN)
    x, y = (int(v) for v in rng.integers(0, _MARGIN, 2))
    return sheet.crop((x, y, x + width, y + height))


def paint_sky(canvas: Image.Image, horizon: int, light: str | None, light_x: int, rng: np.random.Generator) -> None:
    """Paints rows above `horizon` in place: a blue sky with clouds, or a dusky one with the moon."""
    width = canvas.width
    top, bottom = ((106, 112, 168), (170, 164, 206)) if light == "moon" else ((150, 204, 246), (216, 238, 252))
    ramp = np.linspace(0, 1, horizon)[:, None, None]
    rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    canvas.paste(Image.fromarray(np.broadcast_to(rows, (horizon, width, 3)).astype(np.uint8)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 3))):
        x, y = rng.uniform(0, width), rng.uniform(14, horizon * 0.45)
        cloud = _shift(bottom, 22)
        for dx, dy, radius in ((-15, 3, 8), (0, 0, 11), (14, 3, 9)):
            draw.ellipse([x + dx - radius, y + dy - radius * 0.8, x + dx + radius, y + dy + radius * 0.8], fill=cloud)
    if light is None:
        return
    box = light_box(light_x)
    if light == "sun":
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        for angle in np.arange(0, 2 * np.pi, np.pi / 6):
            tip = (cx + 19 * np.cos(angle), cy + 19 * np.sin(angle))
            draw.line([cx, cy, *tip], fill=(252, 196, 40), width=2)
        draw.ellipse([box[0] + 6, box[1] + 6, box[2] - 6, box[3] - 6], fill=(255, 222, 70), outline=(248, 186, 40))
    else:
        crescent = Image.new("L", (28, 28), 0)
        pen = ImageDraw.Draw(crescent)
        pen.ellipse([0, 0, 27, 27], fill=255)
        pen.ellipse([8, -3, 34, 23], fill=0)
        canvas.paste((250, 246, 214), (box[0] + 5, box[1] + 5), crescent)


def light_box(light_x: int) -> tuple[int, int, int, int]:
    """Where the sun or the moon stands, xyxy pixels."""
    return (light_x - 19, 6, light_x + 19, 44)
