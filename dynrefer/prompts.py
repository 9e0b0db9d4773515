"""Control words -> prompt text. Words are joined by "," and closed by "|": "red,cup|"; no words give "|"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

PREDICTED_TAGS = "<tags>"  # stands for the predicted tags among a user's control words


def control_prompt(words: Iterable[str]) -> str:
    """Words in the order given, repeats dropped.

    >>> control_prompt(["red", "cup", "red"])
    'red,cup|'
    """
    return ",".join(dict.fromkeys(words)) + "|"


def parse_control(control: str | None, predicted: Sequence[str]) -> list[str]:
    """A user's control text -> words. None means the predicted tags, "" none, "red,car" these two, and "red,<tags>"
    these with the predicted tags where <tags> stands."""
    words: list[str] = []
    for word in (PREDICTED_TAGS if control is None else control).split(","):
        words.extend(predicted if word.strip() == PREDICTED_TAGS else [word.strip()])
    return [word for word in words if word]


def training_words(words: Sequence[str], generator: np.random.Generator, drop_all: float, keep: float) -> list[str]:
    """Control words of one training sample: none with probability `drop_all`, otherwise each word stays with
    probability `keep`, in shuffled order (DynRefer, section 3.4; released values 0.5 and 0.5)."""
    if generator.random() < drop_all:
        return []
    kept = [word for word in words if generator.random() < keep]
    return [kept[i] for i in generator.permutation(len(kept))]
