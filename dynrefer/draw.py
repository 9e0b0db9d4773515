"""Results of any family drawn on their picture: boxes, masks, texts, heat maps.

    picture = draw_results("photo.jpg", predictor("photo.jpg", boxes=[[40, 30, 180, 200]]))
    picture.save("drawn.png")

A region has a colour and the number that it has among the results. Its name stands beside its box; what does not fit
there without covering something, and captions, stand in a list below the picture. Where a result's `extra` has a grid
of numbers over the picture, under "attention" or "heat_map", it follows as a heat map of its own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dynrefer.files import naming
from dynrefer.images import open_image
from dynrefer.letters import Letters, clean
from dynrefer.masks import to_mask
from dynrefer.paint import colour_of, heat_colours, ink_on, outline, paint_box, paint_heat, spread, tint

if TYPE_CHECKING:
    from dynrefer.data.records import RegionResult

HEAT_MAPS = ("attention", "heat_map")  # keys of a result's `extra` that hold a grid
SMALLEST, LARGEST = 800, 2400  # pixels of the longer side: others are enlarged or shrunk, so that letters can be read
MASK_SHARE = 0.38  # of the colour in a mask
CROWDED = 0.15  # share of a number that would cover others, above which it is left out
LIKELY = 0.01  # categories below it are not told, but for the first
MAX_NAMES, MAX_ENTRIES, MAX_PANELS = 3, 60, 24  # categories of a region; regions in the list; heat maps
PAPER, INK, FAINT = (255, 255, 255), (28, 28, 32), (110, 110, 118)


def draw_results(image: Any, results: Sequence[RegionResult], largest: int = LARGEST) -> Image.Image:
    """The picture with what was said about its regions.

    image: path, PIL image or RGB uint8 array, as for `RegionPredictor`; of a clip, the frame that its regions are shown
    in (`example.image`). results: of its regions, of any family; `largest`: pixels of the picture's longer side.
    Raises ValueError for a mask or box of another picture, and for a heat map that is no grid of finite numbers.
    """
    sheet = Sheet(open_image(image), results, largest)
    picture = sheet.picture()
    parts = [picture, *filter(None, (sheet.list_below(), *sheet.heat_maps()))]
    if len(parts) == 1:
        return picture
    whole = Image.new("RGB", (sheet.width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        whole.paste(part, (0, y))
        y += part.height
    return whole


def save_picture(folder: str | os.PathLike, name: str, picture: Image.Image) -> Path:
    """Writes NAME.png, or NAME-2.png and so on: what stands in the folder already stays. Returns the path."""
    data = io.BytesIO()
    picture.save(data, "png")
    folder, number = Path(folder), 1
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
        try:
            with naming(path), open(path, "xb") as file:
                file.write(data.getvalue())
            return path
        except FileExistsError:
            number += 1


# --- what is said -----------------------------------------------------------------------------------------------------


def label_of(result: RegionResult) -> str:
    """The region's category with its score, as it stands beside the box; '' where it has none."""
    if result.category is not None:
        return clean(f"{result.category['name']} {result.category['score']:.2f}")
    return "unknown" if result.categories else ""


def entry_of(result: RegionResult) -> tuple[str, str]:
    """The two parts of a region's entry in the list: the caption, or its first category; the rest in small."""
    likely = [one for n, one in enumerate(result.categories) if n == 0 or one["score"] >= LIKELY][:MAX_NAMES]
    names = [f"{one['name']} {one['score']:.2f}" for one in likely]
    if result.caption or result.score > 0:
        return clean(result.caption), clean(" · ".join(filter(None, (", ".join(names), f"score {result.score:.3g}"))))
    return label_of(result), clean(", ".join(names if result.category is None else names[1:]))


def heat_of(result: RegionResult) -> np.ndarray | None:
    """The grid (h, w) float32 of a result's heat map over the picture, or None."""
    values = next((result.extra[key] for key in HEAT_MAPS if result.extra.get(key) is not None), None)
    if values is None:
        return None
    try:
        grid = np.asarray(values, np.float32)
    except (ValueError, TypeError):
        grid = np.zeros(0)
    if grid.ndim != 2 or not grid.size or not np.isfinite(grid).all():
        raise ValueError(
            f"region {result.id}: its heat map is no grid of finite numbers; expected rows of equal length"
        )
    return grid


# --- where labels stand -----------------------------------------------------------------------------------------------


@dataclass
class Places:
    """Rectangles (x1, y1, x2, y2) that labels keep away from: boxes, and the labels that stand already."""

    size: tuple[int, int]  # width and height of the picture
    boxes: np.ndarray  # (R, 4)
    taken: list[np.ndarray]

    def put(self, index: int, width: int, height: int, gap: int) -> tuple[np.ndarray, bool]:
        """Where a label of region `index` covers least, and whether that is nothing of its box nor any other label."""
        x1, y1, x2, y2 = self.boxes[index]
        right, bottom = self.size[0] - width, self.size[1] - height
        corners = [
            (x, y) for y in (y1 - gap - height, y2 + gap) for x in (x1 - gap, x2 + gap - width, (x1 + x2 - width) / 2)
        ]
        corners += [(x, y) for x in (x2 + gap, x1 - gap - width) for y in (y1 - gap, y2 + gap - height)]
        corners += [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
        places = np.clip(np.array(corners), 0, [max(right, 0), max(bottom, 0)])
        places = np.concatenate([places, places + [width, height]], 1)  # (N, 4)
        away = np.abs(places[:, :2] - np.array(corners)).sum(1)  # moved into the picture
        own = overlaps(places, self.boxes[index : index + 1])
        labels = overlaps(places, np.array(self.taken).reshape(-1, 4))
        others = overlaps(places, self.boxes) - own
        best = int(np.argmin(own + 3 * labels + 0.3 * others + 0.02 * away * height))
        return places[best], not (own[best] or labels[best]) and width <= self.size[0]


def overlaps(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels that each of (N, 4) shares with (M, 4), summed: (N,)."""
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), -1).sum(1)


# --- the parts of the picture -----------------------------------------------------------------------------------------


class Sheet:
    """One picture with its results, at the size at which it is drawn."""

    def __init__(self, pixels: np.ndarray, results: Sequence[RegionResult], largest: int):
        self.results, self.image_hw = results, pixels.shape[:2]
        height, width = self.image_hw
        factor = min(max(SMALLEST / max(width, height), 1), largest / max(width, height))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        self.plain = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        self.scale = np.array([size[0] / width, size[1] / height] * 2)
        self.letters = Letters(max(18, round(max(size) / 44)))
        self.small = Letters(round(0.85 * self.letters.size))
        self.stroke = max(2, round(max(size) / 270))
        self.width = max(size[0], 26 * self.letters.size)  # of the sheet: a list below a narrow picture is wider
        self.listed = any(result.caption or result.score > 0 for result in results)
        for result in results:
            inside = len(result.box) == 4 and 0 <= result.box[0] < width and 0 <= result.box[1] < height
            if not inside or result.box[2] > width or result.box[3] > height:
                raise ValueError(
                    f"region {result.id}: box {result.box} does not lie in this picture of {width} x {height}; give "
                    "the picture that the results are of"
                )
        self.boxes = np.array([result.box for result in results], np.float64).reshape(-1, 4) * self.scale

    def picture(self) -> Image.Image:
        """Masks, then boxes, then labels: nothing of a label is hidden."""
        pixels = self.plain.copy()
        for index, result in enumerate(self.results):
            if (mask := self.mask(result)) is not None:
                self.paint_mask(pixels, mask, colour_of(index))
        for index, result in enumerate(self.results):
            self.paint_region(pixels, index, self.stroke if result.mask is None else max(2, self.stroke // 2))
        picture = Image.fromarray(pixels)
        places = Places(picture.size, self.boxes, [])
        for index, result in enumerate(self.results):
            self.put_label(picture, places, index, label_of(result))
        return picture

    def mask(self, result: RegionResult) -> np.ndarray | None:
        """The region's mask at the picture's size, how much of each pixel is inside, 0..1 float32 (H, W)."""
        if result.mask is None:
            return None
        try:
            mask = to_mask(result.mask, self.image_hw)
        except ValueError as error:
            if "empty mask" in str(error):
                return None
            raise ValueError(f"region {result.id}: {error}") from error
        size = self.plain.shape[1::-1]
        smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        if self.scale[0] > 1.2:  # the steps of its pixels
            smooth = smooth.filter(ImageFilter.GaussianBlur(0.4 * float(self.scale[0])))
        return np.asarray(smooth, np.float32) / 255

    def paint_mask(self, pixels: np.ndarray, mask: np.ndarray, colour: Sequence[int]) -> None:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        reach = 2 * self.stroke  # the line lies around
        part = tuple(slice(max(ids[0] - reach, 0), ids[-1] + 1 + reach) for ids in (rows, columns))
        tint(pixels[part], mask[part] > 0, colour, MASK_SHARE * mask[part])
        inside = mask[part] >= 0.5
        pixels[part][outline(inside, self.stroke)] = PAPER
        pixels[part][outline(inside, max(1, self.stroke - 1))] = colour

    def paint_region(self, pixels: np.ndarray, index: int, stroke: int) -> None:
        """The box's line between two thin white ones, to be seen on any ground."""
        box, thin = self.boxes[index], max(1, stroke // 3)
        inner = [*(box[:2] + thin), *(box[2:] - thin)] if (box[2:] - box[:2]).min() > 6 * stroke else box
        paint_box(pixels, inner, stroke + 2 * thin, PAPER)
        paint_box(pixels, box, stroke, colour_of(index))

    def put_label(self, picture: Image.Image, places: Places, index: int, label: str) -> None:
        """The number with the label beside the box; the number alone where that would cover something."""
        pad, number = round(0.36 * self.letters.size), f"{index}"
        height = self.letters.ascent + self.letters.descent + pad // 2
        room = 0.45 * picture.width
        text = f"{number}  {self.letters.shortened(label, room)}" if label else number
        place, free = places.put(index, round(self.letters.length(text)) + 2 * pad, height, self.stroke)
        if label and (not free or self.letters.length(label) > room):
            self.listed = True
        if label and not free:
            text = number
            place, free = places.put(index, round(self.letters.length(text)) + 2 * pad, height, self.stroke)
        covered = overlaps(place[None], np.array(places.taken).reshape(-1, 4)).item()
        if covered > CROWDED * np.prod(place[2:] - place[:2]):
            return  # among hundreds its colour tells more than a number on numbers
        places.taken.append(place)
        self.chip(ImageDraw.Draw(picture), place, text, index, pad)

    def chip(self, draw: ImageDraw.ImageDraw, place: Sequence[float], text: str, index: int, pad: int) -> None:
        """A text on the region's colour."""
        x1, y1, x2, y2 = (round(side) for side in place)
        draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), 0.28 * self.letters.size, colour_of(index), PAPER)
        line = y1 + (y2 - y1 + self.letters.ascent - self.letters.descent) / 2
        self.letters.write(draw, (x1 + pad, line), text, ink_on(colour_of(index)))

    def list_below(self) -> Image.Image | None:
        """Captions and categories below each other, each beside its region's number."""
        if not self.listed:
            return None
        letters, small, pad = self.letters, self.small, self.letters.size
        chip = round(max(letters.length(f"{len(self.results)}"), 0.6 * pad) + 0.72 * pad)
        shown = self.results[:MAX_ENTRIES]
        texts = [entry_of(result) for result in shown]
        lengths = [max(letters.length(first), small.length(second)) for first, second in texts]
        column = chip + 1.6 * pad + min(np.quantile(lengths, 0.8), 34 * pad)  # the longest may take a line more
        columns = max(1, min(int((self.width - pad) // column), len(shown) // 3))
        width = (self.width - pad) // columns - pad
        room = width - chip - 0.6 * pad
        entries = []
        for first, second in texts:
            lines = letters.lines(first, room, 4), small.lines(second, room, 2)
            entries.append((lines, letters.line * max(1, len(lines[0])) + small.line * len(lines[1]) + pad // 2))
        per_column = -(-len(entries) // columns)
        rest = len(self.results) - len(shown)
        tallest = max(
            sum(height for _, height in entries[n : n + per_column]) for n in range(0, len(entries), per_column)
        )
        page = Image.new("RGB", (self.width, tallest + pad + pad // 2 + (small.line if rest else 0)), PAPER)
        draw = ImageDraw.Draw(page)
        for index, ((first, second), _) in enumerate(entries):
            above = index // per_column * per_column  # the first entry of its column
            x = pad + index // per_column * (width + pad)
            y = pad + sum(height for _, height in entries[above:index])
            high = letters.ascent + letters.descent
            middle = letters.length(f"{index}")
            self.chip(draw, (x, y, x + chip, y + high), f"{index}", index, round((chip - middle) / 2))
            line = y + letters.ascent
            for text in first:
                letters.write(draw, (x + chip + 0.6 * pad, line), text, INK)
                line += letters.line
            line = y + letters.line * max(1, len(first)) + small.ascent
            for text in second:
                small.write(draw, (x + chip + 0.6 * pad, line), text, FAINT)
                line += small.line
        if rest:
            small.write(draw, (pad, page.height - pad // 2), f"and {rest:,} more regions", FAINT)
        return page

    def heat_maps(self) -> list[Image.Image]:
        """One picture a row of heat maps."""
        grids = [(index, grid) for index, result in enumerate(self.results) if (grid := heat_of(result)) is not None]
        panels = [self.heat_map(index, grid) for index, grid in grids[:MAX_PANELS]]
        rows, gap = [], self.letters.size
        for start in range(0, len(panels), 2):
            row = Image.new("RGB", (self.width, panels[0].height + gap), PAPER)
            for place, panel in enumerate(panels[start : start + 2]):
                row.paste(panel, (gap + place * (panel.width + gap), gap // 2))
            rows.append(row)
        if len(grids) > len(panels):
            rows.append(note := Image.new("RGB", (self.width, 2 * gap), PAPER))
            text = f"and {len(grids) - len(panels):,} more heat maps"
            self.small.write(ImageDraw.Draw(note), (gap, 1.2 * gap), text, FAINT)
        return rows

    def heat_map(self, index: int, grid: np.ndarray) -> Image.Image:
        """The region's number and name, the map over the picture, and what its colours mean."""
        letters, small, pad = self.letters, self.small, self.letters.size
        width = (self.width - 3 * pad) // 2
        shrink = min(width / self.plain.shape[1], 1)
        size = max(1, round(self.plain.shape[1] * shrink)), max(1, round(self.plain.shape[0] * shrink))
        pixels = np.array(Image.fromarray(self.plain).resize(size, Image.Resampling.LANCZOS))
        values, low, high = spread(grid, size[::-1]), float(grid.min()), float(grid.max())
        paint_heat(pixels, np.clip((values - low) / (high - low or 1.0), 0, 1))
        box, stroke = self.boxes[index] * shrink, max(2, round(0.75 * self.stroke))
        paint_box(pixels, box, stroke + 1, PAPER)
        paint_box(pixels, box, stroke, colour_of(index))
        head, bar = round(1.9 * pad), round(0.7 * pad)
        panel = Image.new("RGB", (width, head + size[1] + pad // 2 + bar + small.line), PAPER)
        draw = ImageDraw.Draw(panel)
        chip = round(letters.length(f"{index}") + 0.72 * pad)
        self.chip(draw, (0, 0, chip, letters.ascent + letters.descent), f"{index}", index, round(0.36 * pad))
        title = letters.shortened(entry_of(self.results[index])[0], width - chip - pad)
        letters.write(draw, (chip + 0.6 * pad, letters.ascent), title, INK)
        panel.paste(Image.fromarray(pixels), (0, head))
        colours = np.rint(heat_colours(np.linspace(0, 1, size[0]))).astype(np.uint8)
        top = head + size[1] + pad // 2
        panel.paste(Image.fromarray(np.broadcast_to(colours, (bar, size[0], 3)).copy()), (0, top))
        line, most = top + bar + small.ascent + 2, f"{high:.3g}"
        small.write(draw, (0, line), f"{low:.3g}", FAINT)
        small.write(draw, (size[0] - small.length(most), line), most, FAINT)
        return panel
