"""What is said about an example -> sequences: texts that show the same regions with the same marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from dynrefer.data.clips import ClipRegion
from dynrefer.data.example import Example
from dynrefer.mentions import Piece, asks_each, check_all_named, split_mentions

from .options import Options
from .texts import ChatTurn

Generators = Sequence[np.random.Generator]


@dataclass
class Said:
    """A text about an example. turns: None where nothing is learnt and nothing asked; their mentions count
    `Seen.regions`. regions: those that it names or is about; answers: positions of the records that it answers; what:
    its name in errors; generator: of its record; choices: answers to the last question, of which one is chosen."""

    what: str
    turns: list[ChatTurn] | None
    regions: list[int]
    answers: list[int]
    generator: np.random.Generator | None = None
    choices: Sequence[str] = ()

    @property
    def answered(self) -> list[list[ChatTurn]]:
        """The turns; with choices as often as there are such, each with another one as its answer."""
        if self.turns is None:
            return []
        *before, last = self.turns
        return [[*before, ChatTurn(last.question, choice)] for choice in self.choices] or [self.turns]


@dataclass
class Seen:
    """The regions of an example, each place once: a region that several records are about has one mark.

    regions: of its records and of its chats; generators: of each the one of the first record about it; positions: of
    each record the numbers of its regions.
    """

    regions: list[Any] = field(default_factory=list)
    generators: list[np.random.Generator] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, example: Example, generators: Generators) -> Seen:
        seen, known = cls(), {}
        of_records = [[region] for region in example.regions] + [chat.regions for chat in example.chats]
        for regions, generator in zip(of_records, generators, strict=True):
            found = []
            for region in regions:
                number = known.setdefault(place(region), len(seen.regions))
                if number == len(seen.regions):
                    seen.regions.append(region)
                    seen.generators.append(generator)
                found.append(number)
            seen.positions.append(found)
        return seen


def place(region: Any) -> bytes:
    """Where a region is, the same for two that are at the same place."""
    if not isinstance(region, ClipRegion):
        return orjson.dumps([region.box, region.mask], option=orjson.OPT_SERIALIZE_NUMPY)
    frames = [(index, at and [at.box, at.mask]) for index, at in region.frames.items()]
    return orjson.dumps(frames, option=orjson.OPT_SERIALIZE_NUMPY)


def said_of(
    example: Example, seen: Seen, options: Options, generators: Generators, kinds: Sequence[str], train: bool
) -> list[Said]:
    """Texts of an example in the order of its records. kinds: what is asked where nobody asks."""
    own = range(len(example.regions))
    numbers = [seen.positions[position][0] for position in own]
    names, texts = [region.id for region in example.regions], []

    def named(text: str, position: int | None) -> list[Piece]:
        pieces = split_mentions(text, names, own=position)
        return [numbers[piece] if isinstance(piece, int) else piece for piece in pieces]

    def asked(position: int | None) -> list[ChatTurn]:
        before = [ChatTurn(named(question, position), answer) for question, answer in options.history or ()]
        return [*before, ChatTurn(named(options.question, position))]

    if options.question is not None and not asks_each(options.question):
        if names or not example.chats:
            asking = [question for question, _ in options.history or ()] + [options.question]
            check_all_named([split_mentions(text, names, own=None) for text in asking], names)
            what = f"question of {names[0] if names else example.key}"
            answers, regions = list(own) or [0], list(dict.fromkeys(numbers))
            texts.append(Said(what, asked(None), regions, answers, first(generators), options.choices or ()))
    else:
        for position in own:
            region, generator = example.regions[position], generators[position]
            captions = region.captions
            caption = captions[generator.integers(len(captions)) if train else 0] if captions else None
            turns = None
            if options.question is not None:
                turns = asked(position)
            elif not train or caption is not None:
                question = kinds[generator.integers(len(kinds)) if train else 0]
                turns = [ChatTurn(named(question, position), caption)]
            regions = [numbers[position], *mentioned(turns or ())]
            choices = options.choices or () if options.question is not None else ()
            regions = list(dict.fromkeys(regions))
            texts.append(Said(f"region {region.id}", turns, regions, [position], generator, choices))
    for position, chat in enumerate(example.chats, len(example.regions)):
        places = seen.positions[position]
        ids = [region.id for region in chat.regions]
        turns = []
        for turn in chat.turns:
            pieces = split_mentions(turn.question, ids, brackets=False)
            pieces = [places[piece] if isinstance(piece, int) else piece for piece in pieces]
            turns.append(ChatTurn(pieces, turn.answer))
        regions = list(dict.fromkeys(places))
        what, generator = f"conversation {chat.id}", generators[position]
        texts.append(Said(what, turns, regions, [position], generator, chat.choices))
    return texts


def first(generators: Generators) -> np.random.Generator | None:
    return generators[0] if len(generators) else None


def mentioned(turns: Sequence[ChatTurn]) -> list[int]:
    return [piece for turn in turns for piece in turn.question if isinstance(piece, int)]


def sequences(texts: Sequence[Said], num_marks: int, own_marks: bool) -> list[list[Said]]:
    """Texts that are shown the same marks. Those that name no region are shown none, as by the base; own_marks: each
    text is shown those of its own regions only. More regions than there are marks make several sequences."""
    if own_marks:
        return [[text] for text in texts]
    whole = [text for text in texts if not text.regions]
    found: list[tuple[set[int], list[Said]]] = []  # regions, and texts about them
    for text in texts:
        if not text.regions:
            continue
        fitting = (pair for pair in found if len(pair[0].union(text.regions)) <= num_marks)
        if (pair := next(fitting, None)) is None:
            found.append(pair := (set(), []))
        pair[0].update(text.regions)
        pair[1].append(text)
    return [own for _, own in found] + ([whole] if whole else [])
