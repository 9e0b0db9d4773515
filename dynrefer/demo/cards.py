"""Results as cards: HTML of the caption, categories, tags and attributes, and of what the model looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.data.records import RegionResult
from dynrefer.draw import LIKELY, heat_of
from dynrefer.errors import cut
from dynrefer.masks import to_mask
from dynrefer.pages import picture_uri, render
from dynrefer.paint import colour_of, paint_box, paint_heat, spread

from .asking import Answer
from .opened import Opened

TEMPLATE = Path(__file__).parent / "cards.html"
# pixels of a view's height, and of the longer side of a heat map and of a clip's frame
VIEW_SIDE, HEAT_SIDE, FRAME_SIDE = 184, 420, 240
MOST_FRAMES = 32  # of a clip that are shown
MOST_PICTURES = 120  # regions whose views are shown: a page of thousands would not open
FEW, MOST_TAGS = 5, 14  # attributes and tags that are seen without asking for the others


def cards(answer: Answer, opened: Opened, title: str = "", settings: Mapping[str, Any] | None = None) -> str:
    """settings: the options that a visitor has changed, beside the title."""
    shown = [card(number, result, opened) for number, result in enumerate(answer.results)]
    said = ", ".join(f"{name} = {cut(str(value), 40)}" for name, value in (settings or {}).items())
    return render(TEMPLATE, title=title, settings=said, cards=shown)


def waiting(text: str) -> str:
    return render(TEMPLATE, title="", settings="", cards=[], waiting=text)


def card(number: int, result: RegionResult, opened: Opened) -> dict[str, Any]:
    pixels = opened.pixels
    said = bool(result.caption or result.score > 0)
    name = result.category["name"] if result.category else "unknown" if result.categories else ""
    facts = [f"probability {result.score:.3g}"] if said else []
    facts.append("box " + ", ".join(f"{side:.4g}" for side in result.box))
    if result.mask is not None:
        facts.append(f"mask of {int(to_mask(result.mask, pixels.shape[:2]).sum()):,} pixels")
    facts += [
        f"{title.replace('_', ' ')} {values[0]:.3g}"
        for title, values in result.extra.items()
        if isinstance(values, list) and len(values) == 1 and isinstance(values[0], float) and title != "scales"
    ]
    likely = sum(one["score"] >= LIKELY for one in result.categories)
    pictured = number < MOST_PICTURES
    return {
        "number": number,
        "colour": f"rgb{colour_of(number)}",
        "text": result.caption if said else name,
        "nothing": "an empty text" if said else "no answer",
        "facts": " · ".join(facts),
        "categories": parted(result.categories, max(1, likely)),
        "tags": parted(result.tags, MOST_TAGS),
        "attributes": parted(result.attributes, FEW),
        "views": views(result, pixels) if pictured else [],
        "heat": heat(number, heat_of(result), result.box, pixels, HEAT_SIDE) if pictured else None,
        "film": film(number, result, opened) if pictured else [],
    }


def parted(scored: list[dict], few: int) -> tuple[list[dict], list[dict]]:
    """Those that are seen, and those that are seen when asked for."""
    return scored[:few], scored[few:]


def views(result: RegionResult, pixels: np.ndarray) -> list[tuple[float, str]]:
    """(t, picture) of each view that the model looked at, of a family that has views."""
    if not result.scales:
        return []
    from dynrefer.views import place_views

    cropped, _ = place_views(np.array([result.box]), np.array([result.scales]), pixels.shape[:2], 1)
    found = []
    for t, (x1, y1, x2, y2) in zip(result.scales, cropped[0].tolist(), strict=True):
        picture = Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2]))
        width = min(max(1, round(VIEW_SIDE * (x2 - x1) / (y2 - y1))), 4 * VIEW_SIDE)
        found.append((t, picture_uri(picture.resize((width, VIEW_SIDE), Image.Resampling.BICUBIC))))
    return found


def heat(number: int, grid: np.ndarray | None, box: Sequence[float], pixels: np.ndarray, side: int) -> str | None:
    """The picture, its longer side so long, under a region's heat map, of a family that has one."""
    if grid is None:
        return None
    low, high = float(grid.min()), float(grid.max())
    small = shrunk(pixels, side)
    paint_heat(small, np.clip((spread(grid, small.shape[:2]) - low) / (high - low or 1.0), 0, 1))
    return outlined(small, number, box, pixels.shape)


def film(number: int, result: RegionResult, opened: Opened) -> list[tuple[int, str]]:
    """(frame, picture) of each frame of a clip that the model looked at; under its heat map where there is one."""
    frames, grids = result.extra.get("frames"), result.extra.get("heat")
    if not frames or opened.video is None and grids is None:
        return []
    found = []
    for place, frame in enumerate(frames[:MOST_FRAMES]):
        (pixels,) = opened.frames([frame])
        box = result.box if frame == opened.frame else None
        if grids is None:
            picture = outlined(shrunk(pixels, FRAME_SIDE), number, box, pixels.shape)
        else:
            picture = heat(number, np.asarray(grids[place], np.float32), box, pixels, FRAME_SIDE)
        found.append((frame, picture))
    return found


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """A copy whose longer side is so long."""
    factor = side / max(pixels.shape[:2])
    size = tuple(max(1, round(length * factor)) for length in pixels.shape[1::-1])
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def outlined(small: np.ndarray, number: int, box: Sequence[float] | None, of: Sequence[int]) -> str:
    """A small picture with a region's box; of: the shape of the picture that the box is of."""
    if box is not None:
        factors = [small.shape[1] / of[1], small.shape[0] / of[0]] * 2
        paint_box(small, np.array(box) * factors, 2, colour_of(number))
    return picture_uri(Image.fromarray(small))
