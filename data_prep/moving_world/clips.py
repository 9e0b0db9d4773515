"""One clip of the moving world: its frames, exact masklets, and what is true of each object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data_prep.moving_world.tracks import NUM_FRAMES, SIDE, Plan, draw_plan
from data_prep.world import draw
from data_prep.world.facts import WorldObject
from data_prep.world.objects import COLOURS, INKS, SPLITS, Pen, draw_object, extent
from data_prep.world.scenes import draw_thing

FRAME_HW = (SIDE, SIDE)
SIDES = (27.0, 33.0)  # of an object, square root of its area, pixels
BOX = "box"  # what others go behind; no kind of the world's pictures
BOX_MARGIN = 5  # pixels by which a box is larger than what goes behind it, on each side
MOST_PIXELS = 40  # of an object's longer side, so that it keeps to its lane
IN_SIGHT = 0.5  # share of an object that is to be seen where questions say that it can be seen
RECOLOURED = 0.6  # share of clips in which an object changes its colour


@dataclass(frozen=True)
class Look:
    """An object's picture and coverage, of one colour."""

    colours: Image.Image
    cover: Image.Image

    @property
    def inside(self) -> np.ndarray:
        """bool (h, w): its pixels."""
        return np.asarray(self.cover) >= 128


@dataclass
class Mover:
    """An object of a clip. masks: bool (T, H, W), its visible pixels; visible: (T,) which share of its own they are.
    turns: (frame, colour) from which on it has another colour."""

    thing: WorldObject
    masks: np.ndarray
    visible: np.ndarray
    turns: tuple[int, str] | None = None

    @property
    def name(self) -> str:
        """ "red cup", as it is at first; nothing else in the clip is called so."""
        return f"{self.thing.colour} {self.thing.kind}"

    @property
    def last_colour(self) -> str:
        return self.thing.colour if self.turns is None else self.turns[1]


@dataclass
class Clip:
    """frames: RGB uint8 (T, H, W, 3). movers: the objects in the order of the plan's tracks, then the box, if any."""

    seed: int
    split: str
    frames: np.ndarray
    movers: list[Mover]
    plan: Plan

    @property
    def box(self) -> Mover | None:
        return None if self.plan.box is None else self.movers[-1]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:07d}"


def clip(seed: int, split: str = "train") -> Clip:
    """The clip of a seed, always the same. ValueError for an unknown split and a negative seed."""
    if split not in SPLITS:
        raise ValueError(f"world split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"world seed {seed}: must be 0 or more")
    rng = np.random.default_rng((2, SPLITS.index(split), seed))
    while (drawn := _try(seed, split, rng)) is None:
        pass
    return drawn


def _try(seed: int, split: str, rng: np.random.Generator) -> Clip | None:
    """A clip, or None where an object is not to be seen well at first."""
    plan = draw_plan(rng, NUM_FRAMES)
    things = _things(split, len(plan.tracks), rng)
    turns = _turns(plan, things, rng)
    looks = [[_look(thing, rng)] for thing in things]
    for number, (_, colour) in turns.items():
        looks[number].append(_look(replace(things[number], colour=colour), rng))
    if plan.box is not None:
        inner = things[plan.hiding[0]] if plan.hiding else things[0]
        taken = {thing.colour for thing in things} | {colour for _, colour in turns.values()}
        box = _box(inner, taken, rng)
        things.append(box)
        looks.append([_box_look(box)])
    frames, masks, visible = _paint(plan, things, turns, looks, rng)
    movers = [
        Mover(thing, masks[:, number], visible[:, number], turns.get(number)) for number, thing in enumerate(things)
    ]
    if any(mover.visible[0] < IN_SIGHT for mover in movers):
        return None
    if any(mover.visible[-1] < IN_SIGHT for number, mover in enumerate(movers) if not _ends_hidden(plan, number)):
        return None
    return Clip(seed, split, frames, movers, plan)


def _ends_hidden(plan: Plan, number: int) -> bool:
    return plan.hiding == (number, "stops")


def _things(split: str, number: int, rng: np.random.Generator) -> list[WorldObject]:
    """Objects of different colours that fit into a lane."""
    things: list[WorldObject] = []
    while len(things) < number:
        thing = draw_thing(split, things, rng)
        side = float(rng.uniform(*SIDES))
        thing.side = min(side, side * MOST_PIXELS / max(extent(thing.kind, side)))
        if thing.colour not in {other.colour for other in things}:
            things.append(thing)
    return things


def _turns(plan: Plan, things: list[WorldObject], rng: np.random.Generator) -> dict[int, tuple[int, str]]:
    """Object -> (frame, colour) from which on it has a colour that nothing else has."""
    if rng.random() >= RECOLOURED:
        return {}
    free = [number for number in range(len(things)) if plan.hiding is None or plan.hiding[0] != number]
    if not free:
        return {}
    number = free[int(rng.integers(len(free)))]
    taken = {thing.colour for thing in things}
    colours = [colour for colour in COLOURS if colour not in taken]
    frame = int(rng.integers(2, NUM_FRAMES - 3))
    return {number: (frame, colours[int(rng.integers(len(colours)))])}


def _look(thing: WorldObject, rng: np.random.Generator) -> Look:
    ink = None if thing.ink is None else (thing.ink if thing.ink in INKS[thing.colour] else INKS[thing.colour][0])
    return Look(*draw_object(thing.kind, thing.colour, thing.pattern, thing.glyph, ink, thing.side, thing.flip, rng))


def _box(inner: WorldObject, taken: set[str], rng: np.random.Generator) -> WorldObject:
    """A box behind which an object of `inner`'s size disappears."""
    colours = [colour for colour in COLOURS if colour not in taken]
    colour = colours[int(rng.integers(len(colours)))]
    width, height = (edge + 2 * BOX_MARGIN for edge in extent(inner.kind, inner.side))
    return WorldObject(BOX, colour, "plain", None, None, "big", 0.0, False, (0, 0, width, height))


def _box_look(box: WorldObject) -> Look:
    pen = Pen(box.place[2], box.place[3], COLOURS[box.colour], False)
    pen.rectangle((0, 0, 1, 1))
    pen.rectangle((0, 0, 1, 0.16), "shade")
    return Look(*pen.finish())


def _paint(
    plan: Plan,
    things: list[WorldObject],
    turns: dict[int, tuple[int, str]],
    looks: list[list[Look]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3), masks (T, N, H, W) of visible pixels, and their shares (T, N). The box stands before all."""
    ground = draw.surface_window(draw.SURFACES[int(rng.integers(len(draw.SURFACES)))], FRAME_HW, rng)
    number, movers = len(things), len(plan.tracks)
    order = [*(int(n) for n in rng.permutation(movers)), *range(movers, number)]  # those behind first
    frames = np.zeros((NUM_FRAMES, *FRAME_HW, 3), np.uint8)
    masks = np.zeros((NUM_FRAMES, number, *FRAME_HW), bool)
    visible = np.zeros((NUM_FRAMES, number))
    for t in range(NUM_FRAMES):
        canvas, owner, pixels = ground.copy(), np.full(FRAME_HW, -1), np.zeros(number)
        for n in order:
            look = looks[n][n in turns and t >= turns[n][0]]
            x, y = plan.centre(n, t) if n < movers else plan.place(*plan.box)
            left, top = round(x - look.cover.width / 2), round(y - look.cover.height / 2)
            canvas.paste(look.colours, (left, top), look.cover)
            whole = np.zeros(FRAME_HW, bool)
            inside = look.inside
            rows, columns = slice(max(top, 0), top + len(inside)), slice(max(left, 0), left + inside.shape[1])
            target = whole[rows, columns]
            target[:] = inside[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
            owner[whole] = n
            pixels[n] = inside.sum()
        frames[t] = np.asarray(canvas)
        masks[t] = owner == np.arange(number)[:, None, None]
        visible[t] = masks[t].sum((1, 2)) / pixels
    return frames, masks, visible
