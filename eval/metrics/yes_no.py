"""Questions that are answered with yes or no: POPE's accuracy, precision, recall, F1 and share of yes.

As its released evaluator reads answers: of the first sentence, one with a word "no" or "not" is a no, every other one,
an empty one too, is a yes.
"""

from collections.abc import Mapping

import numpy as np

from dynrefer.data.questions import Question

from .. import statistics
from .base import CAPTION, Metric, Scoring

NAMES = ("accuracy", "precision", "recall", "F1", "share of yes")


def says_yes(answer: str) -> bool:
    """Whether an answer is a yes.

    >>> [says_yes(text) for text in ("Yes.", "No, there is not", "It is a dog", "Yes. No.", "Nothing", "not there")]
    [True, False, True, True, True, False]
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & {*words}


def yes_no_scores(said: Mapping[str, bool], true: Mapping[str, bool]) -> dict[str, float]:
    """{score: fraction}, of NAMES. said, true: question id -> yes; a question without an answer is wrong, and no yes.

    ValueError: no questions, or an answer to an unknown one.
    """
    unknown = [question_id for question_id in said if question_id not in true]
    if unknown:
        raise ValueError(f"{len(unknown)} answers are for unknown questions, the first for {unknown[0]!r}")
    if not true:
        raise ValueError("no questions: there is nothing to score")
    return {name: float(v[0]) for name, v in _scores(_row_sums(said, true)[None]).items()}


def _row_sums(said: Mapping[str, bool], true: Mapping[str, bool]) -> np.ndarray:
    return np.sum([_row(said.get(i), yes) for i, yes in true.items()], 0)


def _row(said: bool | None, true: bool) -> list[float]:
    """One question: counted, right, yes said and true, yes said, yes true."""
    return [1.0, float(said == true), float(bool(said) and true), float(bool(said)), float(true)]


def _scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(D, 5) sums of `_row` -> {name: (D,)}; 0 where nothing is divided by."""
    count, right, both, said, true = sums.T

    def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    values = (share(right, count), share(both, said), share(both, true), share(2 * both, said + true))
    return dict(zip(NAMES, (*values, share(said, count)), strict=True))


def _plain(choice: str) -> str:
    return choice.strip().casefold()


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    known = [q for q in s.regions if isinstance(q, Question) and q.answer is not None]
    known = [q for q in known if sorted(_plain(choice) for choice in q.choices) == ["no", "yes"]]
    true = {q.id: _plain(q.choices[q.answer]) == "yes" for q in known}
    if not true:
        s.scores.left_out["yes_no"] = "no question has the choices yes and no, and says which is right"
        return
    said = {i: says_yes(s.results[i].caption) for i in true if i in s.results}
    rows = {i: _row(said.get(i), yes) for i, yes in true.items()}
    kinds = {kind for q in s.regions if q.id in true for kind in q.kinds}
    sets = {"": set(true)} | {f"/{kind}": {q.id for q in s.regions if kind in q.kinds} for kind in sorted(kinds)}
    for end, members in sets.items():
        table = np.array([rows[q.id] if q.id in members & true.keys() else [0.0] * 5 for q in s.regions])

        def scores_of(sums: np.ndarray, end: str = end) -> dict[str, np.ndarray]:
            return {f"yes-no {name}{end}": values for name, values in _scores(sums).items()}

        s.scores.corpus |= {name: float(values[0]) for name, values in scores_of(table.sum(0)[None]).items()}
        s.scores.resamplings.append(statistics.of_sums(table, scores_of))
    for question_id, row in rows.items():
        s.scores.items[question_id]["yes-no accuracy"] = row[1]
    s.scores.regions["yes_no"] = len(true)


YES_NO = Metric(CAPTION, add_scores, {"yes-no ": lambda task, judge: "yes_no 1"})
