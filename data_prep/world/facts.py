"""What is known of one object of a scene; captions, tags and attributes are made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Relation:
    """`word`: left, right, above or below where that is clear, else near; `neighbour`: index in the scene."""

    word: str
    neighbour: int


@dataclass
class WorldObject:
    """One object and the facts that captions, tags and attributes are made of.

    box: xyxy pixels, continuous edges, of the visible pixels; mask: bool (H, W) of the visible pixels.
    glyph: the letter or number on it; ink: the pattern's colour (None for plain); under: "sun", "moon" or None.
    """

    kind: str
    colour: str
    pattern: str
    glyph: str | None
    ink: str | None
    size: str
    side: float
    flip: bool
    place: tuple[int, int, int, int]  # where it is drawn, before others hide a part of it
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    mask: np.ndarray | None = None
    visible: float = 1.0  # share of its own pixels that no other object hides
    surface: str = ""
    relation: Relation | None = None
    under: str | None = None
