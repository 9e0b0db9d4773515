"""Facts about an object -> captions, tags and attributes.

Every sentence states only what is true and unambiguous in its scene: a relation is to the nearest neighbour, and the
neighbour's words single it out. Sentences mix what only the crop shows (pattern, letter, number) with what only the
surroundings show (the neighbour, its side, the sun).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.world.draw import SKY, SURFACES
from data_prep.world.facts import WorldObject
from data_prep.world.objects import COLOURS, INK_RGB, KINDS, LETTERS, NUMBERS, PATTERNS

SIZES = ("small", "big")
DIRECTIONS = ("left", "right", "above", "below")
LIGHTS = ("sun", "moon")

CATEGORIES: tuple[str, ...] = tuple(KINDS)
TAGS: tuple[str, ...] = (
    *CATEGORIES,
    *COLOURS,
    *PATTERNS,
    *LETTERS,
    *NUMBERS,
    *SIZES,
    *SURFACES,
    SKY,
    *LIGHTS,
    *DIRECTIONS,
    "near",
)

# type: (values, how OVAD's texts say it, how often it holds)
_ATTRIBUTE_TYPES: dict[str, tuple[Sequence[str], str, str]] = {
    "color": (tuple(COLOURS), "has", "medium"),
    "pattern": (PATTERNS, "is", "head"),
    "pattern color": (tuple(INK_RGB), "has", "head"),
    "letter": (LETTERS, "has", "tail"),
    "number": (NUMBERS, "has", "tail"),
    "size": (SIZES, "is", "head"),
    "surface": ((*SURFACES, SKY), "is", "head"),
    "position": (DIRECTIONS, "is", "medium"),  # clearly on this side of the nearest neighbour
}
ATTRIBUTE_LIST: tuple[dict, ...] = tuple(
    {
        "id": number,
        "name": f"{kind}:{value}",
        "type": kind,
        "parent_type": kind,
        "is_has_att": verb,
        "freq_set": frequency,
    }
    for number, (kind, value, verb, frequency) in enumerate(
        (kind, value, verb, frequency)
        for kind, (values, verb, frequency) in _ATTRIBUTE_TYPES.items()
        for value in values
    )
)
ATTRIBUTES: tuple[str, ...] = tuple(attribute["name"] for attribute in ATTRIBUTE_LIST)

_ADJECTIVE = {"plain": "plain", "striped": "striped", "dotted": "dotted", "checked": "checked"}
_NOUN = {"striped": "stripes", "dotted": "dots", "checked": "checks"}
_RELATION_WORDS = {
    "left": ("left of", "left of", "to the left of"),
    "right": ("right of", "right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
    "near": ("near", "next to"),
}
_VERBS = {
    "bird": "sitting",
    "cat": "sitting",
    "car": "parked",
    "tree": "growing",
    "flower": "growing",
    "mushroom": "growing",
    "house": "standing",
    "lamp": "standing",
    "chair": "standing",
    "table": "standing",
    "bottle": "standing",
    "book": "lying",
    "hat": "lying",
    "shirt": "lying",
    "fish": "lying",
}


def article(words: str) -> str:
    """ "an orange cup", "a red umbrella"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def template_caption(category: str) -> str:
    """The caption of a baseline that knows the true category and nothing else, such as "a cup"."""
    if category not in KINDS:
        raise ValueError(f"category {category!r} is not in the world; its categories are {', '.join(CATEGORIES)}")
    return article(category)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _detail(thing: WorldObject, rng: np.random.Generator) -> str:
    """What follows the noun: "with white stripes", "with the number 7", nothing for a plain object."""
    if thing.pattern == "plain":
        return ""
    if thing.glyph is not None:
        return _pick((f"with a {thing.ink} {thing.glyph}", f"with the {thing.pattern} {thing.glyph}"), rng)
    return f"with {thing.ink} {_NOUN[thing.pattern]}"


def _place(thing: WorldObject, rng: np.random.Generator, verb: bool) -> str:
    if thing.surface == SKY:
        return "flying in the sky" if verb and thing.kind in ("bird", "kite") else "in the sky"
    if thing.surface == "water":
        if thing.kind == "fish":
            return "swimming in the water" if verb else "in the water"
        return "floating on the water" if verb else "on the water"
    return _join(_VERBS.get(thing.kind, "") if verb else "", f"on the {thing.surface}")


def _neighbour(things: Sequence[WorldObject], number: int, rng: np.random.Generator) -> str:
    """Words without article that fit this object alone in its scene."""
    thing = things[number]
    only_one = sum(other.kind == thing.kind for other in things) == 1
    draw = rng.random()
    if only_one and draw < 0.2:
        return thing.kind
    return _join(thing.size if draw > 0.8 else "", thing.colour, thing.kind)


def captions(things: Sequence[WorldObject], number: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Two to four different captions of one object; the first tells pattern and relation (or place) together."""
    thing = things[number]
    kind, colour, size, relation = thing.kind, thing.colour, thing.size, thing.relation
    adjective = _ADJECTIVE.get(thing.pattern, "")
    detail = _detail(thing, rng)
    place = _place(thing, rng, verb=False)

    def where(words: str | None = None, a: bool = False) -> str:
        """The relation, or the place where the object has no near neighbour."""
        if relation is None:
            return place
        other = _neighbour(things, relation.neighbour, rng)
        return f"{words or _pick(_RELATION_WORDS[relation.word], rng)} {article(other) if a else 'the ' + other}"

    full = [
        article(_join(colour, kind, detail, where())),
        article(_join(size, colour, kind, detail, where())),
    ]
    if adjective:
        full.append("the " + _join(size, adjective, colour, kind, where()))
        full.append(article(_join(adjective, colour, kind, where())))
    else:
        full.append("the " + _join(colour, kind, detail, where()))
    others = [
        _join(colour, kind, detail, place),
        article(_join(size, adjective, colour, kind, place)),
        _join(adjective or colour, kind, _place(thing, rng, verb=True)),
        article(_join(size, colour, kind, detail, "on it" if thing.glyph is not None else "")),
    ]
    if relation is not None:
        others.append(_join("the", size, kind, where()))
        words = "beside" if relation.word in ("left", "right") else None
        others.append(_join(colour, kind, place, where(words, a=True)))
        if things[relation.neighbour].size != size:
            compared = "smaller" if size == "small" else "bigger"
            other = f"the {things[relation.neighbour].colour} {things[relation.neighbour].kind}"
            others.append(article(_join(adjective, colour, kind, "that is", compared, "than", other)))
    chosen = [full.pop(int(rng.integers(len(full))))]
    if thing.under is not None:
        chosen.append(article(_join(colour, kind, detail, f"under the {thing.under}")))
    others.append(full[int(rng.integers(len(full)))])
    total = int(rng.integers(2, 5))
    for option in rng.permutation(len(others)):
        if len(chosen) >= total:
            break
        if others[option] not in chosen:
            chosen.append(others[option])
    return tuple(chosen)


def tags(things: Sequence[WorldObject], number: int) -> tuple[str, ...]:
    """The object's own words, its ground, and its neighbour's kind and side, in the order of TAGS."""
    thing = things[number]
    words = {thing.kind, thing.colour, thing.pattern, thing.size, thing.surface}
    words |= {word for word in (thing.ink, thing.glyph, thing.under) if word is not None}
    if thing.relation is not None:
        words |= {things[thing.relation.neighbour].kind, thing.relation.word}
    return tuple(tag for tag in TAGS if tag in words)


def attributes(thing: WorldObject) -> dict[str, int]:
    """Every attribute of the world: 1 holds, -1 does not."""
    holds = {
        f"color:{thing.colour}",
        f"pattern:{thing.pattern}",
        f"pattern color:{thing.ink}",
        f"{thing.pattern}:{thing.glyph}",
        f"size:{thing.size}",
        f"surface:{thing.surface}",
    }
    if thing.relation is not None:
        holds.add(f"position:{thing.relation.word}")
    return {name: 1 if name in holds else -1 for name in ATTRIBUTES}
