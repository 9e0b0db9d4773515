"""Control words -> prompt text. Words are joined by "," and closed by "|": "red,cup|"; no words give "|".

A user gives them as a `Control`: None for the predicted tags, a text such as "red,car", or a list of words; "" or []
for none. The word <tags> stands for the predicted tags, so "red,<tags>" takes both. Words keep the order they are given
in, predicted tags come best first, repeats are dropped: the same input always makes the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dynrefer.errors import cut, shown

PREDICTED_TAGS = "<tags>"  # stands for the predicted tags among a user's control words
Control = str | Sequence[str] | None


def control_prompt(words: Iterable[str]) -> str:
    """Words in the order given, repeats dropped.

    >>> control_prompt(["red", "cup", "red"])
    'red,cup|'
    """
    return ",".join(dict.fromkeys(words)) + "|"


def parse_control(control: Control, predicted: Sequence[str]) -> list[str]:
    """One region's control -> words, with the predicted tags where they are asked for. A prompt's closing "|" may stand
    at its end.

    >>> parse_control("red, <tags>", ["cup", "red"])
    ['red', 'cup']
    """
    if control is None:
        control = PREDICTED_TAGS
    text = control if isinstance(control, str) else ",".join(control)
    words = [" ".join(word.split()) for word in text.strip().removesuffix("|").split(",")]
    chosen = [tag for word in words for tag in (predicted if word == PREDICTED_TAGS else [word])]
    return [word for word in dict.fromkeys(chosen) if word]


CONTROL_FORMS = (
    'words are a text "red,car" or a list ["red", "car"] for all regions, or one list a region, [["red"], ["car"]]; '
    "None takes the predicted tags, an empty text or list no words"
)


def is_one_control(control: Control | Sequence[Control]) -> bool:
    """Whether this is one control for all regions: a list of texts is a list of words."""
    words = [] if control is None else [control] if isinstance(control, str) else control
    return isinstance(words, Sequence) and all(isinstance(word, str) for word in words)


def region_controls(control: Control | Sequence[Control], num_regions: int) -> list[list[str] | None]:
    """One control a region, None or a list of words, of one for all of them or a list with one a region.

    >>> region_controls("red,car", 2), region_controls([["red"], None], 2)
    ([['red,car'], ['red,car']], [['red'], None])

    Raises ValueError for another number of entries than regions, and for what is no text.
    """
    several = isinstance(control, Sequence) and not is_one_control(control)
    entries = list(control) if several else [control] * num_regions
    for entry in entries:
        if not is_one_control(entry):
            raise ValueError(f"control {entry!r}: {CONTROL_FORMS}")
    if len(entries) != num_regions:
        raise ValueError(f"control: {len(entries)} entries for {num_regions} regions; {CONTROL_FORMS}")
    return [[entry] if isinstance(entry, str) else entry if entry is None else list(entry) for entry in entries]


def each_control(control: Control | Sequence) -> Iterator[Control]:
    """Every region's control of one for all, of a list with one a region, and of a list of such lists.

    >>> list(each_control([[["red"], None], ["car"]]))
    [['red'], None, ['car']]
    """
    if is_one_control(control) or not isinstance(control, Sequence):
        yield control
        return
    for entry in control:
        yield from each_control(entry)


def check_text(text: Any, what: str) -> None:
    """ValueError for what no tokenizer reads: no text at all, or half a surrogate, which a file or a command line in
    another encoding than UTF-8 leaves behind."""
    if not isinstance(text, str):
        raise ValueError(f"{what}: {shown(text)} is no text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: {ascii(cut(text))} has half a surrogate ({text[error.start]!a}) at character {error.start}; it "
            "was read in another encoding, give it as UTF-8"
        ) from None


def training_words(words: Sequence[str], generator: np.random.Generator, drop_all: float, keep: float) -> list[str]:
    """Control words of one training sample: none with probability `drop_all`, otherwise each word stays with
    probability `keep`, in shuffled order (DynRefer, section 3.4; released values 0.5 and 0.5)."""
    if generator.random() < drop_all:
        return []
    kept = [word for word in words if generator.random() < keep]
    return [kept[i] for i in generator.permutation(len(kept))]
