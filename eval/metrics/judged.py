"""Free answers and descriptions that a judge marks against the right ones, by a rubric.

A number is comparable only under the same rubric and judge: name both. The rubrics say what the benchmarks' own judges
are told, in other words.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from dynrefer.data.questions import Question

from .. import statistics
from .answers import add_kinds
from .base import CAPTION, Metric, Scoring
from .judge import Judge, shown_regions

NAME = "judged score"


@dataclass(frozen=True)
class Rubric:
    """A way to mark. marks: what is marked, () for one mark; most: the highest; words: (question, right answers,
    answer) -> what the judge reads. whole: whether a mark between two whole numbers is none."""

    most: float
    words: Callable[[str, Sequence[str], str], str]
    marks: tuple[str, ...] = ()
    whole: bool = False

    def read(self, said: str) -> list[float] | None:
        """Fractions of the highest mark, one of each of `marks`; None where the judge's answer has not all of them, or
        one beyond the scale."""
        found = _numbers(said, self.marks) if self.marks else re.findall(r"-?\d+(?:\.\d+)?", said)[:1]
        if found is None or len(found) < max(1, len(self.marks)):
            return None
        values = [float(number) for number in found]
        if not all(0 <= v <= self.most and (not self.whole or v == int(v)) for v in values):
            return None
        return [value / self.most for value in values]


def _numbers(said: str, marks: Sequence[str]) -> list[str] | None:
    """The number of each mark: in a JSON object, or behind its name."""
    start, end = said.find("{"), said.rfind("}")
    if 0 <= start < end:
        try:
            values = {str(key).casefold(): str(value) for key, value in json.loads(said[start : end + 1]).items()}
            return [values[mark.casefold()] for mark in marks]
        except (ValueError, KeyError, AttributeError):
            pass
    found = [re.search(rf"{re.escape(mark)}\W*?(-?\d+(?:\.\d+)?)", said, re.IGNORECASE) for mark in marks]
    return [match[1] for match in found if match] if all(found) else None


def _correctness(question: str, right: Sequence[str], answer: str) -> str:
    return (
        "Mark how correct an answer is, from 0.0 (wholly wrong) to 1.0 (wholly right), in steps of 0.1. Parts of the "
        "right answer joined by <AND> must all be in it; of parts joined by <OR> one is enough. Objects may be named "
        "by numbers in brackets and times by numbers in <>; both must agree. Write the mark and nothing else.\n\n"
        f"Question: {question}\nRight answer: {' <OR> '.join(right)}\nAnswer: {answer}\nMark:"
    )


def _description(question: str, right: Sequence[str], answer: str) -> str:
    return (
        "One object of a video was described. Compare the description with the right one and give four marks, each a "
        "whole number from 0 (not at all) to 5 (fully). subject: is it about the same object? appearance: are colour, "
        "shape, texture and other looks right? temporal: are its movements and actions over time right? hallucination: "
        "5 where nothing is claimed that the right description rules out or does not support, 0 where most of it is "
        'made up. Write JSON only: {"subject": 0, "appearance": 0, "temporal": 0, "hallucination": 0}\n\n'
        f"Right description: {' '.join(right)}\n\nDescription: {answer}"
    )


def _right_or_wrong(question: str, right: Sequence[str], answer: str) -> str:
    return (
        "Does the answer say the same as the right answer, about the same objects? Other words are fine, a "
        f"contradiction or another object is not. Write 1 for yes or 0 for no, and nothing else.\n\nTask: {question}\n"
        f"Right answer: {' / '.join(right)}\nAnswer: {answer}"
    )


RUBRICS: dict[str, Rubric] = {
    "correctness": Rubric(1.0, _correctness),
    "description": Rubric(5.0, _description, ("subject", "appearance", "temporal", "hallucination"), whole=True),
    "right or wrong": Rubric(1.0, _right_or_wrong, whole=True),
}


def judge_answers(
    answers: Mapping[str, str],
    right: Mapping[str, Sequence[str]],
    questions: Mapping[str, str],
    rubric: Rubric,
    judge: Judge,
    pictures: Callable[[str], Sequence] | None = None,
) -> dict[str, list[float] | None]:
    """The judge's marks of each answer, fractions of the highest; None where it gives none.

    An answer that is missing or empty is not asked about: no marks. RuntimeError where none of the judge's answers is a
    mark, and what the judge itself raises.
    """
    said = [i for i in right if answers.get(i, "").strip()]

    def ask(i: str) -> str:
        seen = () if pictures is None else (pictures(i),)
        return judge(rubric.words(questions[i], right[i], answers[i].strip()), *seen)

    pool = ThreadPoolExecutor(getattr(judge, "parallel", 1))
    try:
        texts = dict(zip(said, tqdm(pool.map(ask, said), "judge", len(said), disable=None), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    marks = {i: rubric.read(text) for i, text in texts.items()}
    if marks and all(each is None for each in marks.values()):
        first = next(iter(texts.values()))
        raise RuntimeError(f"none of the judge's {len(marks)} answers is a mark, the first is {first[:200]!r}")
    return {i: marks.get(i) for i in right}


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    if s.judge is None:
        s.scores.left_out["judged"] = "it needs a judge; --judge URL --judge-model NAME names one"
        return
    rubric = RUBRICS[s.task.rubric]
    known = [record for record in s.regions if record.captions]
    if not known:
        s.scores.left_out["judged"] = f"no {s.task.unit.removesuffix('s')} has a right answer in words"
        return
    asked = {r.id: s.task.asks.text(r) if s.task.asks and isinstance(r, Question) else s.task.question for r in known}
    answers = {i: result.caption for i, result in s.results.items()}
    pictures = shown_regions(s) if s.task.judge_sees == "region" else None
    marks = judge_answers(answers, {r.id: r.captions for r in known}, asked, rubric, s.judge, pictures)
    if unread := sum(each is None and bool(answers.get(i, "").strip()) for i, each in marks.items()):
        s.scores.counts["answers of the judge are no mark and count as 0"] = unread
    number = max(1, len(rubric.marks))
    values = {i: each or [0.0] * number for i, each in marks.items()}
    whole = {i: sum(each) / number for i, each in values.items()}
    add_kinds(s, NAME, whole, [record for record in known if isinstance(record, Question)])
    if rubric.marks:
        columns = {f"{NAME}/{m}": {i: each[k] for i, each in values.items()} for k, m in enumerate(rubric.marks)}
        s.scores.corpus |= {name: sum(each.values()) / len(each) for name, each in columns.items()}
        s.scores.resamplings.append(statistics.means({name: s.spread(each) for name, each in columns.items()}))
    s.scores.regions["judged"] = len(known)


JUDGED = Metric(CAPTION, add_scores, {"judged ": lambda task, judge: f"judged 1, {task.rubric}; judge {judge}"})
