"""How a benchmark's questions are put to a model, and which choice its answer is.

The records hold a question and its choices; the wording around them, and whether a letter or a word answers, belong to
the benchmark (`Task.asks`), because a number is comparable only where they are the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynrefer.data.questions import Question
from dynrefer.data.records import RegionRecords
from dynrefer.data.wording import LETTERS, Wording

BY = ("generation", "likelihood")


@dataclass(frozen=True)
class Asking(Wording):
    """One way to ask: a wording, and how answers are read.

    by: "generation", the model writes and its text is read; "likelihood": of each letter or word the model tells how
    probable it is, and the most probable is the answer. exact: whether a text is an answer only where it is the letter
    or word and nothing else, but for case. conjunctions: {kind: kinds that must be right together in a group}. mean_of:
    kinds whose mean is the score of the whole; () = all questions count alike.
    """

    by: str = "generation"
    exact: bool = False
    conjunctions: Mapping[str, Any] = field(default_factory=dict)
    mean_of: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.by not in BY:
            raise ValueError(f"by {self.by!r}; one of {', '.join(BY)}")

    def read(self, answer: str, question: Question) -> int | None:
        """The place of the choice that an answer is, None where it is none."""
        labels, said = self.labels(question), answer.strip()
        alike = [place for place, label in enumerate(labels) if said.casefold() == label.casefold()]
        if alike or self.exact:
            return alike[0] if alike else None
        return _letter(said, question.choices) if self.form == "letters" else _word(said, labels)


def asked(records: RegionRecords, asking: Asking) -> RegionRecords:
    """The questions as a model is asked them. ValueError for records that are none."""
    questions = list(records)
    if wrong := [record.id for record in questions if not isinstance(record, Question)]:
        raise ValueError(f"{records.path}: {wrong[0]!r} is no question; name a question file with --data")
    worded = [
        replace(
            question,
            question=asking.text(question),
            choices=asking.labels(question) if asking.by == "likelihood" else (),
            answer=None,
        )
        for question in questions
    ]
    return RegionRecords(records.path, worded)


def _letter(said: str, choices: Sequence[str]) -> int | None:
    """The first of these that fits: a letter and a mark at the beginning; a choice and nothing else; a letter after
    "answer" or "option"; the one letter in round brackets.

    >>> read = lambda text: _letter(text, ["a red cup", "a blue pen"])
    >>> [read(text) for text in ("B.", "(b) a pen", "A blue pen", "The answer is B", "I say (A).", "A pen", "C.")]
    [1, 1, 1, 1, 0, None, None]
    """
    letters = LETTERS[: len(choices)]
    if begin := re.match(r"\(?([A-Za-z])(?:[.):]|$)", said):
        place = letters.find(begin[1].upper())
        return place if place >= 0 else None
    plain = [_plain(choice) for choice in choices]
    if _plain(said) in plain:
        return plain.index(_plain(said))
    for pattern in (rf"(?i:answer|option|choice)\W*(?i:is\W*)?([{letters}])\b", rf"\(([{letters}])\)"):
        found = set(re.findall(pattern, said))
        if len(found) == 1:
            return letters.index(found.pop())
    return None


def _word(said: str, labels: Sequence[str]) -> int | None:
    """The choice that is said alone, or that is said first.

    >>> [_word(text, ["[0]", "[1]", "[12]"]) for text in ("[1].", "It is [12], not [1]", "1", "the red one")]
    [1, 2, 1, None]
    >>> [_word(text, ["yes", "no"]) for text in ("Yes, it is.", "Nothing", "No: yes")]
    [0, None, 1]
    """
    plain = [_plain(label) for label in labels]
    if _plain(said) in plain:
        return plain.index(_plain(said))
    places = []
    for place, label in enumerate(labels):
        if match := re.search(rf"(?<!\w){re.escape(label.casefold())}(?!\w)", said.casefold()):
            places.append((match.start(), place))
    return min(places)[1] if places else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
