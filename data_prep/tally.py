"""What a converter counted, and what it left out: nothing goes without a number and a name."""

import sys
from collections import Counter

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
