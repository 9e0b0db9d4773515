"""What a converter counted and left out: nothing goes without a number and a name, and published numbers are compared.

check_counts({"images": 108077}, published={"images": 108077}, name="Visual Genome 1.2")
"""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = 3  # of each reason that are named, the others are counted


class Tally(Counter):
    """Counts by name. strict: what is left out as faulty is an error instead."""

    def __init__(self, strict: bool = False):
        super().__init__()
        self.strict = strict

    def leave_out(self, what: str, why: str, where: str) -> None:
        """Counts one of "regions" or "images" as left out for a fault of the source, and names the first few.
        ValueError, beginning with `where`, when strict."""
        if self.strict:
            raise ValueError(f"{where}: {why}")
        name = f"{what} left out: {why}"
        self[name] += 1
        if self[name] <= EXAMPLES:
            print(f"{where}: {why}; left out", file=sys.stderr)

    def told(self) -> dict[str, int]:
        """What is worth printing: everything that occurred."""
        return {name: count for name, count in self.items() if count}


def check_counts(found: Mapping[str, int], published: Mapping[str, int], name: str, subset: bool = False) -> None:
    """ValueError where a published count differs from what a file held. subset: the file is knowingly a part."""
    wrong = [f"{found.get(key, 0):,} {key}, published {count:,}" for key, count in published.items()]
    wrong = [text for text, key in zip(wrong, published, strict=True) if found.get(key, 0) != published[key]]
    if wrong and not subset:
        raise ValueError(
            f"{name}: {'; '.join(wrong)}: another version or a broken download? `--subset` converts a part knowingly"
        )


def tell(out: Path, counts: Mapping[str, int]) -> None:
    """Prints what was counted, a line each, and where it went."""
    for name, count in counts.items():
        print(f"{count:>12,}  {name}")
    print(f"-> {out}")
