"""Regions in texts: <region0> and [0] name the first region of an example, <region> the one that is asked about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from dynrefer.errors import cut

NUMBERED = re.compile(r"<region(\d+)>")
EACH = "<region>"
BRACKETS = re.compile(r"\[(\d{1,4})\]")
MENTION = re.compile(r"<region(\d*)>")

Piece = str | int  # of a text: words, or the position of a region


def asks_each(text: str) -> bool:
    """Whether a text asks of one region after the other."""
    return EACH in text


def split_mentions(
    text: str, names: Sequence[str], own: int | None = None, what: str = "question", brackets: bool = True
) -> list[Piece]:
    """Words and regions of a text, in order. names: of the example's regions; own: what <region> stands for.

    [0] names a region only in a text without <region...>, of an example with regions, and where `brackets` says that it
    may; otherwise brackets are words. ValueError for a mention of a region that is not there.

    >>> split_mentions("Is <region1> left of <region0>?", ["a", "b"])
    ['Is ', 1, ' left of ', 0, '?']
    >>> split_mentions("What is [0]?", ["a"]), split_mentions("[0] is <region>.", ["a", "b"], own=1)
    (['What is ', 0, '?'], ['[0] is ', 1, '.'])
    """
    brackets = bool(brackets and names) and not MENTION.search(text)
    pieces: list[Piece] = []
    last = 0
    for match in (BRACKETS if brackets else MENTION).finditer(text):
        position = own if match[1] == "" else int(match[1])
        if position is None and len(names) == 1:
            position = 0
        if position is None or position >= len(names):
            raise ValueError(f"{what} {cut(text)!r}: {match[0]} without a region; {there_are(names)}")
        pieces += [text[last : match.start()], position]
        last = match.end()
    pieces.append(text[last:])
    return [piece for piece in pieces if piece != ""]


def renumbered(text: str, number: Callable[[int], int], form: str = "<region{}>") -> str:
    """A text whose regions have other numbers.

    >>> renumbered("<region3> and <region5>", {3: 0, 5: 1}.get), renumbered("<region3>", {3: 0}.get, "[{}]")
    ('<region0> and <region1>', '[0]')
    """
    return NUMBERED.sub(lambda match: form.format(number(int(match[1]))), text)


def there_are(names: Sequence[str]) -> str:
    if not names:
        return "no regions are given; give their boxes or masks, or ask without them"
    last = "" if len(names) == 1 else f" to <region{len(names) - 1}>"
    return f"there {'is' if len(names) == 1 else 'are'} <region0>{last}; name one of them"


def check_all_named(texts: Iterable[Sequence[Piece]], names: Sequence[str], what: str = "question") -> None:
    """ValueError for a region that none of a conversation's texts names."""
    named = {piece for pieces in texts for piece in pieces if isinstance(piece, int)}
    if missing := [position for position in range(len(names)) if position not in named]:
        first = missing[0]
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{what}: region {names[first]!r}{others} is never named; write <region{first}> where it belongs, "
            "<region> to ask the same of each, or leave its box out"
        )
