"""Errors of whoever reads files of others: one entry is bad, or the whole file is for the user to decide about."""

FAULTY = "not as the format has it"


class BadEntry(ValueError):
    """What is wrong with one entry of a file. why: its kind, as counted."""

    def __init__(self, text: str, why: str = FAULTY):
        super().__init__(text)
        self.why = why


class Undecided(ValueError):
    """What only the user can decide, for the whole file: it is never left out entry by entry."""
