"""What is true of a clip's objects -> captions, and questions with their answers.

Each kind of question has few answers. `start` needs one frame, the others need several and an object that is followed
from the first to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.moving_world.clips import Clip
from data_prep.world.grammar import article
from data_prep.world.objects import COLOURS

STAYS = "it stays"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {  # of questions: what is asked, its answers
    "start": ("What colour is {0} at the start?", tuple(COLOURS)),
    "end": ("What colour is {0} at the end?", tuple(COLOURS)),
    "motion": ("Which way does {0} move?", ("left", "right", "up", "down", STAYS)),
    "box": ("Does {0} go behind the {box} box?", ("it stops behind it", "it passes behind it", "no")),
    "pass": ("Does {0} overtake {1}?", ("yes", "no, it is overtaken", "no, they cross", "no, neither does")),
}


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS; movers: numbers of the objects in the order of their mention, {0} and {1} in the text."""

    kind: str
    movers: tuple[int, ...]
    text: str
    answer: str

    def named(self, places: dict[int, int]) -> str:
        """The text that names them as regions. places: object -> number of its region."""
        return self.text.format(*(f"<region{places[mover]}>" for mover in self.movers))


def questions(clip: Clip) -> list[Question]:
    """All that are asked of a clip. Each kind asks as often for what happens as its objects allow."""
    return [*_colours(clip), *_motions(clip), *_boxes(clip), *_passes(clip)]


def _ask(kind: str, movers: tuple[int, ...], answer: str, box: str = "") -> Question:
    text = KINDS[kind][0].replace("{box}", box)
    return Question(kind, movers, text, answer)


def _colours(clip: Clip) -> Iterator[Question]:
    """At the start of all objects, at the end of the one that has another then, and of one that has not."""
    for number, mover in enumerate(clip.movers):
        yield _ask("start", (number,), mover.thing.colour)
    in_sight = [number for number, mover in enumerate(clip.movers) if mover.visible[-1] > 0]
    turned = [number for number in in_sight if clip.movers[number].turns]
    others = [number for number in in_sight if number not in turned]
    for number in [*turned, *others[clip.seed % len(others) :][:1]]:
        yield _ask("end", (number,), clip.movers[number].last_colour)


def _motions(clip: Clip) -> Iterator[Question]:
    for number in range(len(clip.plan.tracks)):
        yield _ask("motion", (number,), clip.plan.direction(number) or STAYS)


def _boxes(clip: Clip) -> Iterator[Question]:
    """Of the object that goes behind the box, and of one that does not."""
    if clip.box is None:
        return
    hiding, colour = clip.plan.hiding, clip.box.thing.colour
    if hiding is not None:
        yield _ask(
            "box", (hiding[0],), {"stops": "it stops behind it", "passes": "it passes behind it"}[hiding[1]], colour
        )
    others = [n for n in range(len(clip.plan.tracks)) if hiding is None or n != hiding[0]]
    moving = [n for n in others if clip.plan.direction(n)]
    if others:
        yield _ask("box", ((moving or others)[clip.seed % len(moving or others)],), "no", colour)


def _passes(clip: Clip) -> Iterator[Question]:
    """Of a pair in one of its orders."""
    for first, second, what in clip.plan.pairs:
        turned = clip.seed % 2 == 1
        answers = {"overtakes": ("yes", "no, it is overtaken"), "crosses": ("no, they cross",) * 2}
        answer = answers.get(what, ("no, neither does",) * 2)[turned]
        yield _ask("pass", (second, first) if turned else (first, second), answer)


def captions(clip: Clip, number: int) -> tuple[str, ...]:
    """A long caption of an object and a short one."""
    mover = clip.movers[number]
    motion = _motion(clip, number)
    clauses = [motion, *_clauses(clip, number)]
    return f"{article(mover.name)} that {' and '.join(clauses)}", f"the {mover.name} {motion}"


def _motion(clip: Clip, number: int) -> str:
    direction = clip.plan.direction(number) if number < len(clip.plan.tracks) else None
    if direction is None:
        return "stays where it is"
    stops = clip.plan.tracks[number].stops and (clip.plan.hiding or (None,))[0] != number
    return f"moves {direction}" + (" and stops" if stops else "")


def _clauses(clip: Clip, number: int) -> Iterator[str]:
    """What an object does beside moving."""
    mover = clip.movers[number]
    if mover.turns is not None:
        yield f"turns {mover.turns[1]}"
    if clip.plan.hiding is not None and clip.plan.hiding[0] == number:
        yield f"{clip.plan.hiding[1]} behind the {clip.box.name}"
    for first, second, what in clip.plan.pairs:
        if number in (first, second):
            other = clip.movers[second if number == first else first].name
            if what == "overtakes":
                yield f"overtakes the {other}" if number == first else f"is overtaken by the {other}"
            elif what == "crosses":
                yield f"passes the {other}"
