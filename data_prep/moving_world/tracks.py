"""Where the objects of a clip are in each of its frames, and what happens between them.

A clip has three lanes, which lie beneath each other or, where it is turned, beside each other. Objects move along them:
`along` counts pixels in their direction, `across` from lane to lane. What happens is drawn first and placed then, so
that it is clear: whoever overtakes is clearly behind at first and clearly ahead at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SIDE = 128  # pixels of a frame, which is square
NUM_FRAMES = 10
LANES = (23.0, 64.0, 105.0)
JITTER = 3.0  # of a lane, pixels
ENDS = (19.0, 109.0)  # where objects begin and end, at most
LEAST_WAY = 34.0  # of an object that moves
CLEARLY = 14.0  # along, between objects of which one is ahead

PAIRS = ("overtakes", "keeps", "crosses")  # what two objects do that move at once
HIDINGS = ("stops", "passes")  # what an object does behind a box


@dataclass
class Track:
    """Centre of an object in T frames. along, across: (T,) pixels."""

    along: np.ndarray
    across: float

    @property
    def way(self) -> float:
        """Pixels from its first place to its last; negative: to the left, or up."""
        return float(self.along[-1] - self.along[0])

    @property
    def stops(self) -> bool:
        """Whether it moves first and stands still for the last quarter of the clip at least."""
        rest = max(2, len(self.along) // 4)
        return self.way != 0 and np.ptp(self.along[-rest - 1 :]) == 0


@dataclass
class Plan:
    """Tracks of the objects, and what they do to each other.

    pairs: (first, second, one of PAIRS); "overtakes": the first the second, "keeps": the first stays ahead. hiding:
    (object, one of HIDINGS) behind the box, whose `along` and `across` stand in box; turned: lanes beside each other.
    """

    tracks: list[Track] = field(default_factory=list)
    pairs: list[tuple[int, int, str]] = field(default_factory=list)
    hiding: tuple[int, str] | None = None
    box: tuple[float, float] | None = None
    turned: bool = False

    def centre(self, number: int, frame: int) -> tuple[float, float]:
        """x and y of an object."""
        track = self.tracks[number]
        return self.place(float(track.along[frame]), track.across)

    def place(self, along: float, across: float) -> tuple[float, float]:
        return (across, along) if self.turned else (along, across)

    def direction(self, number: int) -> str | None:
        """left, right, up or down; None where it stays."""
        way = self.tracks[number].way
        if way == 0:
            return None
        return ("up", "down")[way > 0] if self.turned else ("left", "right")[way > 0]


def line(start: float, end: float, num_frames: int, arrives: int | None = None) -> np.ndarray:
    """(T,) from start to end, where it is from frame `arrives` on; None: the last."""
    last = num_frames - 1 if arrives is None else arrives
    return start + (end - start) * np.minimum(np.arange(num_frames) / last, 1.0)


def draw_plan(rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> Plan:
    """A clip's plan: mostly two objects that move at once, mostly a box that one goes behind, others for themselves."""
    plan = Plan(turned=bool(rng.integers(2)))
    lanes = [LANES[number] + rng.uniform(-JITTER, JITTER) for number in rng.permutation(3)]
    what = (*PAIRS, None)[int(rng.choice(4, p=(0.35, 0.2, 0.25, 0.2)))]
    with_box = rng.random() < 0.75
    if what is not None:
        _pair(plan, what, lanes, rng, num_frames)
    if with_box:
        _hide(plan, HIDINGS[int(rng.integers(2))] if rng.random() < 0.8 else None, lanes.pop(), rng, num_frames)
    for lane in lanes:
        if rng.random() < 0.8 or not plan.tracks:
            plan.tracks.append(_alone(lane, rng, num_frames))
    while len(plan.tracks) < 2:  # a clip whose box has a lane for itself
        taken = [track.across for track in plan.tracks] + [plan.box[1] if plan.box else -SIDE]
        free = [lane for lane in LANES if all(abs(lane - other) > 2 * JITTER for other in taken)]
        plan.tracks.append(_alone(free[int(rng.integers(len(free)))], rng, num_frames))
    return plan


def _ends(rng: np.random.Generator, least: float, most: float = ENDS[1] - ENDS[0]) -> tuple[float, float]:
    """Two places with so many pixels between them, in either order."""
    way = rng.uniform(least, most)
    start = rng.uniform(ENDS[0], ENDS[1] - way)
    return (start, start + way) if rng.random() < 0.5 else (start + way, start)


def _mirrored(values: Sequence[float], rng: np.random.Generator) -> list[float]:
    """Places along a lane, or all of them seen from its other end."""
    if rng.random() < 0.5:
        return list(values)
    return [SIDE - value for value in values]


def _pair(plan: Plan, what: str, lanes: list[float], rng: np.random.Generator, num_frames: int) -> None:
    """Two objects, in two lanes, or in one where they cross and one hides the other."""
    first = lanes.pop()
    second = first if what == "crosses" and rng.random() < 0.5 else lanes.pop()
    low, high = ENDS
    if what == "overtakes":
        behind = low + rng.uniform(0, 6)
        ahead = behind + rng.uniform(CLEARLY, 32)
        slow = min(ahead + rng.uniform(LEAST_WAY, 40), high - CLEARLY)
        fast = rng.uniform(slow + CLEARLY, high)
        places = [behind, fast, ahead, slow]
    elif what == "keeps":
        behind = low + rng.uniform(0, 6)
        ahead = behind + rng.uniform(CLEARLY, 32)
        last = behind + rng.uniform(LEAST_WAY, 44)
        places = [ahead, rng.uniform(max(last + CLEARLY, ahead + LEAST_WAY), high), behind, last]
    else:
        places = [
            low + rng.uniform(0, 12),
            high - rng.uniform(0, 12),
            high - rng.uniform(0, 12),
            low + rng.uniform(0, 12),
        ]
    a, b, c, d = _mirrored(places, rng)
    number = len(plan.tracks)
    plan.tracks += [Track(line(a, b, num_frames), first), Track(line(c, d, num_frames), second)]
    plan.pairs.append((number, number + 1, what))


def _hide(plan: Plan, what: str | None, lane: float, rng: np.random.Generator, num_frames: int) -> None:
    """A box in a lane; an object stops behind it, passes behind it, or the lane has the box alone."""
    plan.box = (rng.uniform(54, 74), lane)
    low, high = ENDS
    if what is None:
        plan.box = (rng.uniform(low, high), lane)
        return
    if what == "stops":
        arrives = int(rng.integers(num_frames // 2, num_frames - 2))
        start = low + rng.uniform(0, 3)
        middle = rng.uniform(70, 100)
        start, middle = _mirrored([start, middle], rng)
        plan.box = (middle, lane)
        track = Track(line(start, middle, num_frames, arrives), lane)
    else:
        start, end = _mirrored([low + rng.uniform(-2, 4), high - rng.uniform(-2, 4)], rng)
        track = Track(line(start, end, num_frames), lane)
    plan.hiding = (len(plan.tracks), what)
    plan.tracks.append(track)


def _alone(lane: float, rng: np.random.Generator, num_frames: int) -> Track:
    """An object that stays, moves, or moves and stops."""
    draw = rng.random()
    if draw < 0.4:
        return Track(np.full(num_frames, rng.uniform(*ENDS)), lane)
    start, end = _ends(rng, LEAST_WAY)
    arrives = int(rng.integers(num_frames // 2, num_frames - 3)) if draw < 0.6 else None
    return Track(line(start, end, num_frames, arrives), lane)
