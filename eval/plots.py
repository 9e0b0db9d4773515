"""Charts of the report, as SVG in the colours of the page around them, and the two analyses that are only shown there:
a score by region size, and whether tag probabilities mean what they say.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynrefer.data.records import Region, RegionResult

MAX_POINTS = 300  # of a curve; longer ones are averaged
MAX_SIZES = 8  # bins of region sizes, of as many regions each
MIN_REGIONS = 4  # in a bin of sizes
PROBABILITIES = 10  # bins of probabilities, equally wide
DEVIATIONS = 1.959964  # standard errors to either side that hold 95 % of a normal distribution


@dataclass
class Bin:
    """A point of a curve: `value` at `x`, the mean of `count` values; low, high: its 95 % interval."""

    x: float
    value: float
    low: float
    high: float
    count: int


def by_size(regions: Iterable[Region], values: Mapping[str, float]) -> tuple[list[Bin], list[float]]:
    """Means of a score in bins of region size, smallest first, each of about as many regions; x is the bin's number.

    values: {region id: score}; regions without one are left out. Size: square root of the box's area, in pixels of the
    image. Returns the bins and their edges, one more than bins; ([], []) where the sizes are too few to compare.
    The intervals count the regions of an image as one draw.
    """
    chosen = [region for region in regions if region.id in values]
    sizes = np.array([math.sqrt((r.box[2] - r.box[0]) * (r.box[3] - r.box[1])) for r in chosen])
    number = min(MAX_SIZES, len(chosen) // MIN_REGIONS)
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, number + 1))) if number > 1 else np.empty(0)
    if len(edges) < 3:
        return [], []
    of = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, len(edges) - 2)
    images = np.unique([region.image for region in chosen], return_inverse=True)[1]
    scores = np.array([values[region.id] for region in chosen])
    bins = []
    for k in np.unique(of):
        inside = of == k
        sums = np.bincount(images[inside], scores[inside])
        counts = np.bincount(images[inside])
        bins.append(_bin(float(k), sums[counts > 0], counts[counts > 0], (scores.min(), scores.max())))
    return bins, edges.tolist()


def calibration(
    regions: Iterable[Region], results: Mapping[str, RegionResult]
) -> tuple[list[Bin], float] | tuple[None, str]:
    """How often a tag is true, by the probability it was predicted with, and the expected calibration error.

    Counted is every tag that a prediction lists for a region with annotated tags. x is the mean probability in a bin of
    width 0.1, value the share of tags that are true; the error is the mean of |value - x|, weighted by the bins'
    counts. (None, why) where there is nothing to count or scores lie outside 0 to 1 and are no probabilities.
    The intervals count the tags of an image as one draw.
    """
    sums: dict[str, np.ndarray] = {}  # image -> (3, bins): number of tags, of true ones, sum of probabilities
    for region in regions:
        tags = results[region.id].tags if region.tags is not None and region.id in results else ()
        if not tags:
            continue
        said = np.array([tag["score"] for tag in tags], np.float64)
        if not ((said >= 0) & (said <= 1)).all():
            return None, f"a tag of {region.id} has the score {said[(said < 0) | (said > 1)][0]:g}, no probability"
        known = set(region.tags)
        true = np.array([tag["name"] in known for tag in tags], np.float64)
        of = np.minimum((said * PROBABILITIES).astype(int), PROBABILITIES - 1)
        rows = [np.bincount(of, weights, PROBABILITIES) for weights in (None, true, said)]
        sums[region.image] = sums.get(region.image, 0) + np.stack(rows)
    if not sums:
        return None, "no prediction lists tags of a region whose tags are known"
    counts, true, said = np.stack(list(sums.values()), 1)  # (images, bins) each
    bins = []
    for k in np.flatnonzero(counts.sum(0)):
        seen = counts[:, k] > 0
        bins.append(_bin(said[:, k].sum() / counts[:, k].sum(), true[seen, k], counts[seen, k], (0.0, 1.0)))
    error = sum(b.count * abs(b.value - b.x) for b in bins) / sum(b.count for b in bins)
    return bins, float(error)


def _bin(x: float, sums: np.ndarray, counts: np.ndarray, clip: tuple[float, float]) -> Bin:
    """The mean of a bin from the sums and counts of each image; images are drawn, so their spread makes the interval,
    cut at `clip`, what a mean can be. Of one image there is none: low = high = value."""
    total, images = counts.sum(), len(counts)
    mean = sums.sum() / total
    spread = np.sum((sums - mean * counts) ** 2) * images / max(1, images - 1)
    half = DEVIATIONS * math.sqrt(spread) / total
    return Bin(float(x), float(mean), float(max(clip[0], mean - half)), float(min(clip[1], mean + half)), int(total))


# --- drawing ---------------------------------------------------------------------------------------------------------


def chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str,
    levels: Mapping[str, float] | None = None,
    spread: Sequence[tuple[float, float, float]] = (),
    x_labels: Mapping[float, str] | None = None,
    diagonal: bool = False,
    colour: int = 0,
) -> str:
    """Curves of (x, y) points, the first in full colour; "" where there is no point.

    levels: horizontal dashed lines with their names. spread: (x, low, high) of bars of uncertainty. x_labels: what
    stands at the axis instead of numbers. diagonal: both axes run from 0 to 1, with a dashed line of y = x.
    """
    width, height, left, right, top, bottom = 340, 210, 46, 14, 30, 36
    levels = levels or {}
    right += 44 if levels else 0
    ends = [0.0, 1.0] if diagonal else []
    xs = [x for points in series.values() for x, _ in points] + list(x_labels or ())
    ys = [y for points in series.values() for _, y in points] + [y for _, *both in spread for y in both]
    if not ys:
        return ""
    xs, ys = xs + ends, ys + list(levels.values()) + ends
    y_ticks = ticks(min(ys), max(ys))
    x_labels = x_labels or {x: f"{x:g}" for x in ticks(min(xs), max(xs), inside=True)}
    x_low, x_high, y_low, y_high = min(xs), max(xs), y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low or 1) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y_low) / (y_high - y_low or 1) * (height - top - bottom)

    def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
        return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

    parts = [f'<text class="name" x="{left - 34}" y="16">{html.escape(title)}</text>']
    for y in y_ticks:
        parts.append(line("grid", left, py(y), width - right, py(y)))
        parts.append(f'<text class="y" x="{left - 7}" y="{py(y) + 3.5:.1f}">{y:g}</text>')
    for x, label in x_labels.items():
        parts.append(f'<text class="x" x="{px(x):.1f}" y="{height - bottom + 16}">{html.escape(label)}</text>')
    parts.append(f'<text class="x" x="{(left + width - right) / 2:.1f}" y="{height - 4}">{html.escape(x_title)}</text>')
    hue = f"c{colour % 4}"
    heights = sorted((py(y), name) for name, y in levels.items())
    at = -math.inf
    lowest = height - 4 - 11 * len(heights)
    for n, (y, name) in enumerate(heights):  # names do not cover each other and stay on the chart
        at = min(max(y + 3.5, at + 11), lowest + 11 * (n + 1))
        parts.append(line(f"level {hue}", left, y, width - right, y))
        parts.append(f'<text class="level" x="{width - right + 5}" y="{at:.1f}">{html.escape(name)}</text>')
    if diagonal:
        parts.append(line("level ideal", px(0), py(0), px(1), py(1)))
    parts += [line(f"spread {hue}", px(x), py(low), px(x), py(high)) for x, low, high in spread]
    for n, points in enumerate(series.values()):
        corners = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        faint = ' style="opacity: 0.45"' if n else ""
        parts.append(f'<polyline class="{hue}"{faint} points="{corners}"/>')
        if len(points) <= 25:
            parts += [f'<circle class="{hue}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.6"/>' for x, y in points]
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def bins_chart(bins: Sequence[Bin], **options) -> str:
    """`chart` of bins with their intervals."""
    spread = [(b.x, b.low, b.high) for b in bins if b.low < b.high]
    return chart({"": [(b.x, b.value) for b in bins]}, spread=spread, **options)


def averaged(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, each the mean of as many neighbours as needed."""
    size = -(-len(points) // MAX_POINTS) or 1
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float, inside: bool = False, wanted: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high` (between them if `inside`), about `wanted` steps.

    >>> ticks(0.13, 0.58)
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - wanted))
    first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
    slack = -1e-9 if inside else 1e-9
    numbers = range(first(low / step + slack), last(high / step - slack) + 1)
    marks = [round(n * step, 12) for n in numbers]
    return marks if len(marks) > 1 or inside else [marks[0], marks[0] + step]
