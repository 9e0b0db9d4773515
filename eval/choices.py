"""Questions about a region's description that a judge answers with a letter: DLC-Bench's scores.

A description is never compared with a reference text. A judge that sees only the description picks one choice of each
question; a positive question asks for a detail that is there (right, vague, left out, wrong), a negative one for what
is not (avoided, left open, claimed). A number is comparable only under the same judge: name it with the score.
"""

import json
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

POINTS = {"positive": {1.0, 0.5, 0.0, -1.0}, "negative": {1.0, 0.0, -1.0}, "recognition": {1.0, 0.5, 0.0, -1.0}}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Judge = Callable[[str], str]  # prompt -> answer


@dataclass(frozen=True)
class Question:
    """One question about one region. kind: "positive", "negative", or "recognition", of which a region has at most one:
    whether the description names the right thing. choices: (text, points) as the benchmark lists them."""

    text: str
    choices: Sequence[tuple[str, float]]
    kind: str = "positive"

    def __post_init__(self):
        if self.kind not in POINTS:
            raise ValueError(f"question {self.text!r}: kind {self.kind!r}; expected one of {', '.join(POINTS)}")
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise ValueError(f"question {self.text!r}: {len(self.choices)} choices; expected 2 to {len(LETTERS)}")
        for text, points in self.choices:
            if points not in POINTS[self.kind]:
                allowed = ", ".join(f"{p:g}" for p in sorted(POINTS[self.kind], reverse=True))
                raise ValueError(f"question {self.text!r}: choice {text!r} has {points} points; expected {allowed}")


def choice_accuracy(predicted: Mapping[str, int | None], true: Mapping[str, int]) -> float:
    """Share of questions whose predicted choice is the true one; one without a prediction is wrong.

    predicted, true: question id -> place of the choice. ValueError: no questions, a prediction for an unknown one.
    """
    unknown = [question_id for question_id in predicted if question_id not in true]
    if unknown:
        raise ValueError(f"{len(unknown)} answers are for unknown questions, the first for {unknown[0]!r}")
    if not true:
        raise ValueError("no questions: there is no accuracy to compute")
    return sum(predicted.get(question_id) == choice for question_id, choice in true.items()) / len(true)


def choice_scores(
    answers: Mapping[str, Sequence[int | None]], questions: Mapping[str, Sequence[Question]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Mean points of the positive and of the negative questions, and the mean of the two.

    Args:
        answers: region id -> the chosen place of each of its questions, None where no choice could be read. A region
            without answers has described nothing: no points for its positive questions, and none for the negative ones.
        questions: region id -> its questions. Where the choice of its recognition question has no points above 0, the
            description is of another thing, and no question of the region gives more than 0 points.

    Returns:
        ({"choice score", "choice score/positive", "choice score/negative", "choice accuracy/recognition"}, each where
        there are such questions, and {region id: the same names}).

    Raises:
        ValueError: no questions, answers for an unknown region, not one answer a question, a choice that is not there.
    """
    unknown = [region_id for region_id in answers if region_id not in questions]
    if unknown:
        raise ValueError(f"{len(unknown)} answers are for unknown regions, the first for {unknown[0]!r}")
    points: dict[str, list[float]] = {kind: [] for kind in POINTS}
    items = {}
    for region_id, asked in questions.items():
        chosen = answers.get(region_id, [None] * len(asked))
        if len(chosen) != len(asked):
            raise ValueError(f"region {region_id}: {len(chosen)} answers to {len(asked)} questions")
        own: dict[str, list[float]] = {kind: [] for kind in POINTS}
        for question, place in zip(asked, chosen, strict=True):
            if place is not None and not 0 <= place < len(question.choices):
                raise ValueError(f"region {region_id}: choice {place} of {len(question.choices)}: {question.text!r}")
            own[question.kind].append(0.0 if place is None else float(question.choices[place][1]))
        if len(own["recognition"]) > 1:
            raise ValueError(
                f"region {region_id}: {len(own['recognition'])} recognition questions; expected one at most"
            )
        if any(value <= 0 for value in own["recognition"]):
            for kind in ("positive", "negative"):
                own[kind] = [min(0.0, value) for value in own[kind]]
        for kind, values in own.items():
            points[kind] += values
        items[region_id] = _summary(own)
    if not points["positive"] and not points["negative"]:
        raise ValueError("no questions: there is nothing to score")
    return _summary(points), items


def judge_captions(
    captions: Mapping[str, str], questions: Mapping[str, Sequence[Question]], judge: Judge
) -> dict[str, list[int | None]]:
    """The judge's choices about each region's caption, as `choice_scores` takes them.

    A region without a caption, or with an empty one, is not asked about and has no answers. Whatever the judge raises
    goes through: a judge that does not answer gives no score.
    """
    unknown = [region_id for region_id in captions if region_id not in questions]
    if unknown:
        raise ValueError(f"{len(unknown)} captions are for unknown regions, the first for {unknown[0]!r}")
    return {
        region_id: [read_choice(judge(prompt(question, captions[region_id])), question) for question in asked]
        for region_id, asked in questions.items()
        if captions.get(region_id, "").strip()
    }


def prompt(question: Question, caption: str) -> str:
    """What the judge reads: the caption, the question, its choices with letters."""
    choices = "\n".join(f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, question.choices, strict=False))
    return (
        "Answer the multiple-choice question about the description of an image region. Use only what the description "
        f"says; the image is not shown. Answer with the letter of one choice and nothing else.\n\n"
        f"Description:\n{caption.strip()}\n\nQuestion: {question.text}\n{choices}\n\nAnswer:"
    )


def read_choice(answer: str, question: Question) -> int | None:
    """The place of the choice that an answer names: its first letter where it is written as one, "B", "(B)", "B. text"
    or "Answer: B", else the one choice whose text is the answer; None where neither is there.

    >>> question = Question("What colour?", [("red", 1.0), ("blue", -1.0)])
    >>> [read_choice(text, question) for text in ("B", "(b) blue", "The answer is A.", "Blue.", "A car", "C")]
    [1, 1, 0, 1, None, None]
    """
    letters = LETTERS[: len(question.choices)]
    lead = r"(?:(?:the )?(?:correct )?(?:answer|choice)(?: is)?:?)?"
    found = re.match(rf"{lead}[\s(\[*\"']*([{letters}])\s*(?:[.,:)\]*\"']|\n|$)", answer.strip(), re.IGNORECASE)
    if found:
        return letters.index(found[1].upper())
    same = [
        n for n, (text, _) in enumerate(question.choices) if text.strip(" .").lower() == answer.strip(" .\n").lower()
    ]
    return same[0] if len(same) == 1 else None


@dataclass(frozen=True)
class HTTPJudge:
    """A judge behind an address that speaks the chat completions protocol, as vLLM, SGLang and llama.cpp serve it.

    url: up to and with "/v1"; model: the name under which it is served; key: sent as bearer token if given. Decoding is
    greedy. RuntimeError where the server does not answer with a message within `timeout` seconds.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    max_tokens: int = 16

    def __call__(self, text: str) -> str:
        message = {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens}
        message["messages"] = [{"role": "user", "content": text}]
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(message).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.load(response)
            return str(answer["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"the judge {self.model!r} at {address} gave no answer: {error!r}") from error


def _summary(points: Mapping[str, Sequence[float]]) -> dict[str, float]:
    means = {kind: sum(values) / len(values) for kind, values in points.items() if values}
    scores = {f"choice score/{kind}": means[kind] for kind in ("positive", "negative") if kind in means}
    result = {"choice score": sum(scores.values()) / len(scores)} | scores if scores else {}
    if points["recognition"]:
        right = sum(value > 0 for value in points["recognition"])
        result["choice accuracy/recognition"] = right / len(points["recognition"])
    return result
