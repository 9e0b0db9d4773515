"""What a converter counted and left out: nothing goes without a number and a name, and published numbers are compared.

One rule for bad entries: a converter leaves them out, names the first few, counts all by their kind, and its last line
names what was left out most; --strict makes each an error.

    with tally.entries("annotations"):  # a ValueError within it leaves this one out
        ...

check_counts({"images": 108077}, published={"images": 108077}, name="Visual Genome 1.2")
"""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dynrefer.data.bad_entries import FAULTY, BadEntry, Undecided

EXAMPLES = 3  # of each reason that are named, the others are counted
LEFT_OUT = "left out"  # in the name of every count of what was in the file and is not in the records
NEXT_STEPS = {  # of what is left out by rule, where nothing else was there
    "crowd regions left out": "--keep-crowd keeps them",
    "answers left out: not about one region": "--chats writes conversations, which may name several",
    "tasks left out: predictions, but no annotation": "accept or correct them in Label Studio, and export again",
}


class Tally(Counter):
    """Counts by name. strict: what is left out as faulty is an error instead. first: the first that was."""

    def __init__(self, strict: bool = False):
        super().__init__()
        self.strict = strict
        self.first = ""

    def leave_out(self, what: str, why: str, where: str, text: str | None = None) -> None:
        """Counts one of "regions" or "images" as left out for a fault of the source, and names the first few.
        ValueError, beginning with `where`, when strict. text: the whole message, where it says more than `why`."""
        text = text or f"{where}: {why}"
        if self.strict:
            raise ValueError(text)
        name = f"{what} {LEFT_OUT}: {why}"
        self[name] += 1
        self.first = self.first or text
        if self[name] <= EXAMPLES:
            print(f"{text}; {LEFT_OUT}", file=sys.stderr)

    def entries(self, what: str) -> "Entries":
        """A ValueError within it leaves out one of `what`, except `Undecided`; when strict it is an error."""
        return Entries(self, what)

    def told(self) -> dict[str, int]:
        """What is worth printing: everything that occurred."""
        return {name: count for name, count in self.items() if count}


class Entries:
    """The context of `Tally.entries`; a class, since it is entered for each of millions of entries."""

    __slots__ = ("_tally", "_what")

    def __init__(self, tally: Tally, what: str):
        self._tally, self._what = tally, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, ValueError) or isinstance(error, Undecided) or self._tally.strict:
            return False
        self._tally.leave_out(self._what, error.why if isinstance(error, BadEntry) else FAULTY, "", str(error))
        return True


def check_counts(found: Mapping[str, int], published: Mapping[str, int], name: str, subset: bool = False) -> None:
    """ValueError where a published count differs from what a file held. subset: the file is knowingly a part."""
    wrong = [f"{found.get(key, 0):,} {key}, published {count:,}" for key, count in published.items()]
    wrong = [text for text, key in zip(wrong, published, strict=True) if found.get(key, 0) != published[key]]
    if wrong and not subset:
        raise ValueError(
            f"{name}: {'; '.join(wrong)}: another version or a broken download? `--subset` converts a part knowingly"
        )


def tell(out: Path, counts: Mapping[str, int]) -> None:
    """Prints what was counted, a line each, where it went, and what was left out most."""
    _print(counts)
    name, count = _most(counts)
    short = " ".join(name.replace(LEFT_OUT, "").split()).replace(" :", ":").replace(" ,", ",").lstrip(", ")
    most = f"; {LEFT_OUT} most: {count:,} {short}" if count else ""
    print(f"-> {out}{most}")


def nothing(out: Path, counts: Mapping[str, int], what: str = "regions") -> ValueError:
    """The error of an outcome without any of `what`, which names what was left out most and the first fault; the counts
    are printed."""
    _print({name: count for name, count in counts.items() if count})
    name, count = _most(counts)
    if not count:
        held = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        return ValueError(
            f"{out}: no {what} came out, and none was left out: the input holds none"
            f"{f' ({held})' if held else ''}; is it the right file?"
        )
    step = NEXT_STEPS.get(name) or getattr(counts, "first", "") or "convert other data, or look at its form"
    return ValueError(f"{out}: no {what} came out; {count:,} {name}: {step}")


def _print(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        print(f"{count:>12,}  {name}")


def _most(counts: Mapping[str, int]) -> tuple[str, int]:
    """The largest count of what was left out, ("", 0) where nothing was. What went with something else comes last."""
    names = [name for name, count in counts.items() if LEFT_OUT in name and count]
    name = max(names, key=lambda name: ("with their" not in name, counts[name]), default="")
    return name, counts[name] if name else 0
