"""One scene of the world: where things stand, what they are to each other, the picture, and its records.

What needs which view (t = 0 is the box, t = 1 the whole image):
- pattern, letter and number: near t = 0, since they are a few pixels wide in the image;
- the neighbour, its side, who is bigger, the sun: the surroundings, best from t = 0.2 to 0.6;
- kind, colour and size: any view (a crop tells the size by how coarse its pixels and lines are).

Plain, striped and dotted objects differ a little in mean colour, so a pattern is never quite unreadable. docs/log.md
has numbers of a small probe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from data_prep.world import draw, grammar
from data_prep.world.facts import Relation, WorldObject
from data_prep.world.objects import COMBINATIONS, INKS, KINDS, LETTERS, NUMBERS, SPLITS, draw_object, extent
from dynrefer.data.records import Region

IMAGE_HW = (288, 384)
SMALLEST_HW, SMALLEST_ALONE_HW = (192, 256), (128, 160)  # of several objects, of one
SIDES = {"small": (36.0, 43.0), "big": (64.0, 78.0)}  # pixels; see objects.extent
NEAR = 48.0  # a neighbour further off than this many pixels between the boxes is not mentioned
CLEARLY_NEARER = 8.0  # and neither is one that another object is almost as near as
_GROUP_GAP = 27.0  # pixels between the boxes of objects that are not a pair
_EDGE = 3  # pixels kept free along the image's border
SOURCE, LICENCE = "world", "CC0-1.0"


@dataclass
class Scene:
    """image: RGB uint8 (H, W, 3); objects: front objects hide a little of those behind."""

    seed: int
    split: str
    image: np.ndarray
    objects: list[WorldObject]
    light: str | None
    light_x: int

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def captions(self) -> tuple[tuple[str, ...], ...]:
        """The reference captions of every object."""
        rng = np.random.default_rng((7, SPLITS.index(self.split), self.seed))
        return tuple(grammar.captions(self.objects, number, rng) for number in range(len(self.objects)))

    def regions(self, image_path: str) -> list[Region]:
        """One record an object. `image_path` is written into the records as it is. Masks as COCO run lengths."""
        from dynrefer.masks import mask_to_rle

        return [
            Region(
                id=f"world-{self.split}-{self.seed}-{number}",
                image=image_path,
                image_hw=self.image_hw,
                box=thing.box,
                mask=mask_to_rle(thing.mask),
                captions=self.captions[number],
                tags=grammar.tags(self.objects, number),
                attributes=grammar.attributes(thing),
                category=thing.kind,
                source=SOURCE,
                licence=LICENCE,
                split=self.split,
            )
            for number, thing in enumerate(self.objects)
        ]


# ---- geometry ----


def _gaps(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    """Free pixels between two boxes along x and y; negative where they overlap."""
    return max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3])


def _distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    gap_x, gap_y = _gaps(a, b)
    return float(np.hypot(max(gap_x, 0.0), max(gap_y, 0.0)))


def side_of(a: tuple[float, ...], b: tuple[float, ...]) -> str:
    """On which side of box b box a lies: left, right, above or below where that is clear, else near.

    Clear means next to each other along one axis (at most 6 px of overlap), and level along the other: the overlap
    there is at least half of the shorter side.
    """
    gap_x, gap_y = _gaps(a, b)
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    if gap_x >= -6 and abs(dx) > abs(dy) and -gap_y >= 0.5 * min(a[3] - a[1], b[3] - b[1]):
        return "left" if dx < 0 else "right"
    if gap_y >= -6 and abs(dy) > abs(dx) and -gap_x >= 0.5 * min(a[2] - a[0], b[2] - b[0]):
        return "above" if dy < 0 else "below"
    return "near"


def find_relation(boxes: list[tuple[float, ...]], number: int) -> Relation | None:
    """The relation of one box to its nearest neighbour, or None where none is near or two are about as near."""
    far = sorted((_distance(boxes[number], box), other) for other, box in enumerate(boxes) if other != number)
    if not far or far[0][0] > NEAR or (len(far) > 1 and far[1][0] - far[0][0] < CLEARLY_NEARER):
        return None
    neighbour = far[0][1]
    return Relation(side_of(boxes[number], boxes[neighbour]), neighbour)


@dataclass(frozen=True)
class _Ground:
    """One or two surfaces; `cut` is the row (horizontal) or column where the first ends, 0 where there is one."""

    surfaces: tuple[str, ...]
    cut: int
    horizontal: bool
    light: str | None
    light_x: int

    @property
    def has_sky(self) -> bool:
        return self.surfaces[0] == draw.SKY

    def surface_under(self, box: tuple[float, ...]) -> str | None:
        """What a box stands on, None where its lower half is on two surfaces."""
        if len(self.surfaces) == 1:
            return self.surfaces[0]
        first, last = (box[1] + box[3]) / 2 if self.horizontal else box[0], box[3] if self.horizontal else box[2]
        if self.has_sky and first < self.cut:  # whoever is in the sky is there wholly
            first = box[1]
        if last <= self.cut - 5:
            return self.surfaces[0]
        return self.surfaces[1] if first >= self.cut + 5 else None


def _draw_ground(image_hw: tuple[int, int], rng: np.random.Generator) -> _Ground:
    height, width = image_hw
    names = [draw.SURFACES[i] for i in rng.permutation(len(draw.SURFACES))[:2]]
    style = rng.random()
    if style < 0.4:
        outside = [name for name in draw.SURFACES if name not in ("carpet", "floor")]
        light = (None, "sun", "sun", "moon")[int(rng.integers(4))]
        cut = round(height * rng.uniform(0.34, 0.4))
        surface = outside[int(rng.integers(len(outside)))]
        return _Ground((draw.SKY, surface), cut, True, light, 0)  # the light gets its place after the objects
    if style < 0.7:
        horizontal = bool(rng.integers(2))
        cut = round((height if horizontal else width) * rng.uniform(0.42, 0.58))
        return _Ground(tuple(names), cut, horizontal, None, 0)
    return _Ground((names[0],), 0, True, None, 0)


def _paint_ground(ground: _Ground, image_hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    height, width = image_hw
    canvas = draw.surface_window(ground.surfaces[-1], image_hw, rng)
    if ground.has_sky:
        draw.paint_sky(canvas, ground.cut, ground.light, ground.light_x, rng)
    elif len(ground.surfaces) == 2:
        along = np.arange(0, (width if ground.horizontal else height) + 8, 8)
        wave = ground.cut + 2.5 * np.sin(along / rng.uniform(12, 26) + rng.uniform(0, 6))
        edge = [(float(a), float(w)) if ground.horizontal else (float(w), float(a)) for a, w in zip(along, wave)]  # noqa: B905
        corners = [(float(along[-1]), 0.0), (0.0, 0.0)] if ground.horizontal else [(0.0, float(along[-1])), (0.0, 0.0)]
        first = Image.new("L", (width, height), 0)
        ImageDraw.Draw(first).polygon(edge + corners, fill=255)
        canvas.paste(draw.surface_window(ground.surfaces[0], image_hw, rng), (0, 0), first)
    return canvas


# ---- layout ----


def draw_thing(
    split: str, taken: list[WorldObject], rng: np.random.Generator, choice: tuple[str, ...] = tuple(KINDS)
) -> WorldObject:
    """A new object, not yet placed: another kind than those there, now and then the same kind in another colour."""
    kinds = {thing.kind for thing in taken}
    named = {(thing.kind, thing.colour) for thing in taken}
    while True:
        kind = choice[int(rng.integers(len(choice)))]
        if kind in kinds and rng.random() < 0.6:
            continue
        pairs = COMBINATIONS[split][kind]
        colour, pattern = pairs[int(rng.integers(len(pairs)))]
        if (kind, colour) not in named:
            break
    glyphs = {"letter": LETTERS, "number": NUMBERS}.get(pattern)
    glyph = glyphs[int(rng.integers(len(glyphs)))] if glyphs else None
    ink = INKS[colour][int(rng.integers(len(INKS[colour])))] if pattern != "plain" else None
    size = grammar.SIZES[int(rng.integers(2))]
    side = float(rng.uniform(*SIDES[size]))
    return WorldObject(kind, colour, pattern, glyph, ink, size, side, bool(rng.integers(2)), (0, 0, 0, 0))


def _beside(
    anchor: tuple[int, int, int, int], width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A place for a partner: touching or a few pixels off, mostly level with the anchor, sometimes askew."""
    gap = rng.uniform(-2, 14)
    askew = rng.random() < 0.15
    shift = rng.uniform(0.55, 0.9) * rng.choice((-1, 1)) if askew else rng.uniform(-0.2, 0.2)
    cx, cy = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    long_x, long_y = (anchor[2] - anchor[0] + width) / 2, (anchor[3] - anchor[1] + height) / 2
    direction = grammar.DIRECTIONS[int(rng.integers(4))]
    if direction in ("left", "right"):
        cx += (long_x + gap) * (-1 if direction == "left" else 1)
        cy += shift * (long_y if askew else min(height, anchor[3] - anchor[1]))
    else:
        cy += (long_y + gap) * (-1 if direction == "above" else 1)
        cx += shift * (long_x if askew else min(width, anchor[2] - anchor[0]))
    x, y = round(cx - width / 2), round(cy - height / 2)
    return x, y, x + width, y + height


def _fits(
    thing: WorldObject, place: tuple[int, int, int, int], ground: _Ground, image_hw: tuple[int, int]
) -> str | None:
    """The surface that the place stands on, None where the object cannot be there."""
    height, width = image_hw
    if place[0] < _EDGE or place[1] < _EDGE or place[2] > width - _EDGE or place[3] > height - _EDGE:
        return None
    surface = ground.surface_under(place)
    if surface == draw.SKY and not KINDS[thing.kind][3]:
        return None
    return surface


def _alone_in_column(x: float, places: list[tuple[float, ...]]) -> list[int]:
    """The one object whose box a vertical line at x passes; empty where there is none or several."""
    crossed = [number for number, place in enumerate(places) if place[0] < x < place[2]]
    return crossed if len(crossed) == 1 else []


def _place_light(ground: _Ground, things: list[WorldObject], width: int, rng: np.random.Generator) -> _Ground:
    """Hangs the sun or the moon where no object is, two times in three straight above one that is alone below it."""
    if ground.light is None:
        return ground
    places = [thing.place for thing in things]
    columns = [int(x) for x in rng.integers(24, width - 24, 12)]
    if rng.random() < 0.67:
        middles = [(place[0] + place[2]) // 2 for place in places]
        above = [middles[i] for i in rng.permutation(len(places)) if _alone_in_column(middles[i], places)]
        columns = [x for x in above if 24 <= x < width - 24] + columns
    for x in columns:
        if all(_distance(place, draw.light_box(x)) > 0 for place in places):
            return replace(ground, light_x=x)
    return replace(ground, light=None)


def _layout(
    split: str, ground: _Ground, image_hw: tuple[int, int], num_objects: int, rng: np.random.Generator
) -> list[WorldObject]:
    """Up to `num_objects` placed objects: often one in the sky, pairs that stand close together, the last one alone."""
    height, width = image_hw
    placed: list[WorldObject] = []
    fliers = tuple(kind for kind, (_, _, _, flies) in KINDS.items() if flies)
    while len(placed) < num_objects:
        in_sky = ground.has_sky and not placed and rng.random() < 0.6
        group = [draw_thing(split, placed, rng, fliers if in_sky else tuple(KINDS))]
        if num_objects - len(placed) > 1 and not in_sky:
            group.append(draw_thing(split, placed + group, rng))
        for _ in range(60):
            places: list[tuple[int, int, int, int]] = []
            for thing in group:
                w, h = extent(thing.kind, thing.side)
                if not places:
                    lowest = max(_EDGE + 1, (ground.cut - 5 if in_sky else height - _EDGE) - h)
                    x, y = int(rng.integers(_EDGE, width - w - _EDGE)), int(rng.integers(_EDGE, lowest))
                    place = (x, y, x + w, y + h)
                else:
                    place = _beside(places[0], w, h, rng)
                surface = _fits(thing, place, ground, image_hw)
                if surface is None or any(_distance(place, other.place) < _GROUP_GAP for other in placed):
                    break
                thing.surface = surface
                places.append(place)
            if len(places) == len(group):
                for thing, place in zip(group, places, strict=True):
                    thing.place = place
                placed.extend(group)
                break
        else:
            break
    return placed


def _paint(canvas: Image.Image, things: list[WorldObject], rng: np.random.Generator) -> None:
    """Draws the objects in their order, and sets their boxes, masks and visible shares."""
    height, width = canvas.height, canvas.width
    owner = np.zeros((height, width), dtype=np.uint8)
    pixels = []
    for number, thing in enumerate(things):
        colours, cover = draw_object(
            thing.kind, thing.colour, thing.pattern, thing.glyph, thing.ink, thing.side, thing.flip, rng
        )
        x1, y1, x2, y2 = thing.place
        canvas.paste(colours, (x1, y1), cover)
        inside = np.asarray(cover) >= 128
        owner[y1:y2, x1:x2][inside] = number + 1
        pixels.append(int(inside.sum()))
    for number, thing in enumerate(things):
        thing.mask = owner == number + 1
        rows, columns = np.flatnonzero(thing.mask.any(axis=1)), np.flatnonzero(thing.mask.any(axis=0))
        thing.box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        thing.visible = int(thing.mask.sum()) / pixels[number]


def _set_relations(things: list[WorldObject], ground: _Ground) -> None:
    boxes = [thing.box for thing in things]
    for number, thing in enumerate(things):
        thing.relation = find_relation(boxes, number)
    if ground.light is not None:
        for number in _alone_in_column(ground.light_x, boxes):
            things[number].under = ground.light


def draw_scene(
    rng: np.random.Generator, split: str, image_hw: tuple[int, int], most: int | None = None
) -> tuple[np.ndarray, list[WorldObject], _Ground]:
    """Everything random about a scene comes from `rng`. most: objects, where there are to be fewer than usual."""
    while True:
        ground = _draw_ground(image_hw, rng)
        number = int(rng.choice((3, 4, 5, 6), p=(0.15, 0.4, 0.2, 0.25)))
        things = _layout(split, ground, image_hw, number if most is None else min(number, most), rng)
        if len(things) < min(2, most or 2):
            continue
        ground = _place_light(ground, things, image_hw[1], rng)
        things.sort(key=lambda thing: thing.place[3])  # lower in the picture is nearer
        canvas = _paint_ground(ground, image_hw, rng)
        _paint(canvas, things, rng)
        if min(thing.visible for thing in things) < 0.85:
            continue
        _set_relations(things, ground)
        order = rng.permutation(len(things))
        at = {int(old): new for new, old in enumerate(order)}
        for thing in things:
            if thing.relation is not None:
                thing.relation = Relation(thing.relation.word, at[thing.relation.neighbour])
        return np.asarray(canvas), [things[i] for i in order], ground


def scene(seed: int, split: str = "train", image_hw: tuple[int, int] = IMAGE_HW, most: int | None = None) -> Scene:
    """The scene of a seed, always the same. image_hw: (height, width), at least (192, 256), of one object (128, 160);
    most: objects.

    Splits never share a layout (each has its own stream of random numbers) nor a combination of kind, colour and
    pattern (objects.COMBINATIONS). Raises ValueError for an unknown split, a negative seed or a picture too small.
    """
    if split not in SPLITS:
        raise ValueError(f"world split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"world seed {seed}: must be 0 or more")
    smallest = SMALLEST_ALONE_HW if most == 1 else SMALLEST_HW
    if image_hw[0] < smallest[0] or image_hw[1] < smallest[1]:
        raise ValueError(
            f"world image_hw {tuple(image_hw)}: objects are up to 100 px, so use at least {smallest} (height, width)"
        )
    rng = np.random.default_rng((1, SPLITS.index(split), seed))
    image, things, ground = draw_scene(rng, split, tuple(image_hw), most)
    return Scene(seed, split, image, things, ground.light, ground.light_x)
