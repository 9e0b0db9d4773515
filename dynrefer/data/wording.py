"""How a question of a question file is worded: the words around it, and whether a letter or a word answers."""

import re
from dataclasses import dataclass

from dynrefer.data.questions import Question
from dynrefer.mentions import MENTION

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMS = ("letters", "words", "open")


@dataclass(frozen=True)
class Wording:
    """form: "letters": choices are listed, a letter answers; "words": a choice itself answers, such as yes or [3];
    "open": there are no choices. prompt: with {question} and, for letters, {choices}. option: a listed choice, with
    {letter} and {choice}. names: whether a region's category stands before its mention.
    """

    form: str = "letters"
    prompt: str = "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
    option: str = "{letter}. {choice}"
    names: bool = False

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r}; one of {', '.join(FORMS)}")
        for where, parts in (("prompt", ["question"]), ("option", ["letter", "choice"] * (self.form == "letters"))):
            parts = [*parts, "choices"] if where == "prompt" and self.form == "letters" else parts
            if missing := [part for part in parts if f"{{{part}}}" not in getattr(self, where)]:
                raise ValueError(f"{where} {getattr(self, where)!r}: no {{{missing[0]}}} in it")

    def labels(self, question: Question) -> tuple[str, ...]:
        """What answers a question: a letter a choice, or the choices themselves; () where it is open. ValueError for
        a question without the choices that are asked for."""
        if self.form == "open":
            return ()
        if not question.choices:
            raise ValueError(f"question {question.id}: no choices, and one of them is asked for")
        if len(question.choices) > len(LETTERS) and self.form == "letters":
            raise ValueError(f"question {question.id}: {len(question.choices)} choices for {len(LETTERS)} letters")
        return tuple(LETTERS[: len(question.choices)]) if self.form == "letters" else question.choices

    def text(self, question: Question) -> str:
        """What a model is asked."""
        labels = self.labels(question)
        listed = [
            self.option.replace("{letter}", letter).replace("{choice}", choice)
            for letter, choice in zip(labels, question.choices, strict=False)
        ]
        text = self.prompt.replace("{choices}", "\n".join(listed)).replace("{question}", question.question)
        return MENTION.sub(lambda mention: _named(mention, question), text) if self.names else text


def _named(mention: re.Match, question: Question) -> str:
    number = int(mention[1] or 0)
    category = question.regions[number].category if number < len(question.regions) else None
    return f"{category} {mention[0]}" if category else mention[0]
