"""What a user may set when Omni-RGPT describes regions or answers questions about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynrefer.errors import shown
from dynrefer.prompts import check_text

from ..options import FIRST, TextOptions


@dataclass(frozen=True)
class Options(TextOptions):
    # one with <region> asks it of each; one with <region0>, <region1> or [0] asks once
    question: str | None = field(default=None, metadata=FIRST)
    history: list | None = None  # what was asked and answered before: [question, answer] pairs
    choices: list[str] | None = None  # answers to choose from: the likeliest is given, instead of one that is written
    tracklet: bool = False  # show regions in all frames of a clip that say where they are, not only in the first
    heat: bool = False  # report where the guide head sees each region, a map a frame

    def __post_init__(self):
        if self.question is not None:
            check_text(self.question, "question")
            if not self.question.strip():
                raise ValueError("question: an empty text; ask something, or leave it out")
        if not isinstance(self.history, list | tuple | None):
            raise ValueError(f"history: {shown(self.history)}; expected a list of [question, answer] pairs")
        if self.history and self.question is None:
            raise ValueError("history: without a question; ask the next one, question='...'")
        for pair in self.history or ():
            texts = pair if isinstance(pair, list | tuple) and len(pair) == 2 else [None]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(f"history: {shown(pair)} among it; expected pairs of texts, [question, answer]")
            for text in pair:
                check_text(text, "history")
        if self.choices is not None:
            if self.question is None:
                raise ValueError("choices: answers to nothing; give a question too")
            if not self.choices or not all(isinstance(c, str) and c.strip() for c in self.choices):
                raise ValueError(f"choices: {shown(self.choices)}; expected answers, none of them empty")
            for choice in self.choices:
                check_text(choice, "choices")
