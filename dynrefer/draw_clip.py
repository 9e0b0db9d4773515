"""Results about a clip, drawn: the frame in which the regions are shown with them, and below it the frames that the
model looked at, for each region under its heat maps where there are some.

    picture = draw_clip(frames, numbers, results)  # of results whose `extra` holds "heat", (T, h, w) a region
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from dynrefer.draw import FAINT, INK, LARGEST, MAX_PANELS, PAPER, draw_results, entry_of
from dynrefer.letters import Letters
from dynrefer.paint import colour_of, paint_heat, spread

if TYPE_CHECKING:
    from dynrefer.data.records import RegionResult


def draw_clip(
    frames: np.ndarray, numbers: Sequence[int], results: Sequence[RegionResult], largest: int = LARGEST
) -> Image.Image:
    """frames (T, H, W, 3) uint8, the prompt frame first; numbers: of the frames in their video. largest: pixels of the
    first one's longer side. ValueError for heat maps of another number of frames."""
    top = draw_results(frames[0], results, largest)
    letters = Letters(max(16, round(top.width / 60)))
    maps = [(index, clip_heat(result, len(frames))) for index, result in enumerate(results)]
    maps = [(index, heat) for index, heat in maps if heat is not None][:MAX_PANELS]
    rows = [(index, heat, f"{index}: {entry_of(results[index])[0]}") for index, heat in maps]
    strips = [strip(frames, numbers, row, top.width, letters) for row in rows or [(0, None, "")]]
    whole = Image.new("RGB", (top.width, top.height + sum(each.height for each in strips)), PAPER)
    y = 0
    for part in (top, *strips):
        whole.paste(part, (0, y))
        y += part.height
    return whole


def clip_heat(result: RegionResult, num_frames: int) -> np.ndarray | None:
    """The heat maps (T, h, w) of a result, or None."""
    values = result.extra.get("heat")
    if values is None:
        return None
    heat = np.asarray(values, np.float32)
    if heat.ndim != 3 or len(heat) != num_frames or not np.isfinite(heat).all():
        raise ValueError(
            f"region {result.id}: heat of shape {heat.shape}; expected finite numbers, a map for each of the "
            f"{num_frames} frames"
        )
    return heat


def strip(
    frames: np.ndarray, numbers: Sequence[int], row: tuple[int, np.ndarray | None, str], width: int, letters: Letters
) -> Image.Image:
    """The frames side by side, under a region's heat maps, with its text above and the frames' numbers below."""
    index, heat, title = row
    gap = letters.size // 2
    side = max(1, (width - gap * (len(frames) + 1)) // len(frames))
    size = side, max(1, round(side * frames.shape[1] / frames.shape[2]))
    head = 2 * letters.line if title else gap
    whole = Image.new("RGB", (width, head + size[1] + 2 * letters.line), PAPER)
    draw = ImageDraw.Draw(whole)
    if title:
        draw.rectangle((gap, gap, 2 * gap, gap + letters.line), fill=tuple(colour_of(index)))
        letters.write(draw, (3 * gap, gap + letters.ascent), letters.shortened(title, width - 4 * gap), INK)
    low, high = (0.0, 1.0) if heat is None else (float(heat.min()), float(heat.max()))
    for t, (frame, number) in enumerate(zip(frames, numbers, strict=True)):
        pixels = np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        if heat is not None:  # one scale for all frames
            paint_heat(pixels, np.clip((spread(heat[t], size[::-1]) - low) / (high - low or 1.0), 0, 1))
        x = gap + t * (side + gap)
        whole.paste(Image.fromarray(pixels), (x, head))
        letters.write(draw, (x, head + size[1] + letters.ascent + 2), f"frame {number}", FAINT)
    return whole
