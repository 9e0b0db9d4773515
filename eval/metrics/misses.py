"""Questions about a description that a judge answers from it: right, wrong, or missing in the description.

MotionAtlas-Bench's scores. Accuracy is the share that is right, recall the share that the description says something
about (right or wrong), precision the share that is right of these. Choices have the points of `eval.metrics.judge`: 1
the right one, 0 one that says the description does not tell, -1 the others.
"""

from collections.abc import Sequence

import numpy as np

from .. import statistics
from .base import CAPTION, Metric, Scoring
from .judge import Question, judged_choices

NAMES = ("accuracy", "recall", "precision")


def miss_counts(chosen: Sequence[int | None] | None, questions: Sequence[Question]) -> list[float]:
    """[questions, right, wrong] of one description; None = not answered, which is wrong, as is a choice that could not
    be read.

    >>> asked = [Question("Where to?", [("left", 1.0), ("right", -1.0), ("not told", 0.0)])] * 3
    >>> miss_counts([0, 1, 2], asked), miss_counts(None, asked)
    ([3.0, 1.0, 1.0], [3.0, 0.0, 3.0])
    """
    chosen = [None] * len(questions) if chosen is None else chosen
    points = [-1.0 if k is None else q.choices[k][1] for k, q in zip(chosen, questions, strict=True)]
    return [float(len(points)), float(sum(p > 0 for p in points)), float(sum(p < 0 for p in points))]


def miss_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """(D, 3) sums of `miss_counts` -> {"accuracy", "recall", "precision": (D,)}; a precision of nothing is 0."""
    total, right, wrong = np.asarray(counts, np.float64).T
    told = right + wrong
    shares = [(right, total), (told, total), (right, told)]
    return {
        f"missing {name}": np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        for name, (above, below) in zip(NAMES, shares, strict=True)
    }


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    found = judged_choices(s, "misses")
    if found is None:
        return
    answers, questions = found
    rows = [miss_counts(answers.get(region.id), questions[region.id]) for region in s.regions]
    s.scores.corpus |= {name: float(v[0]) for name, v in miss_scores(np.sum(rows, 0)[None]).items()}
    s.scores.resamplings.append(statistics.of_sums(rows, miss_scores))
    for region, row in zip(s.regions, rows, strict=True):
        s.scores.items[region.id]["missing accuracy"] = row[1] / row[0]
    s.scores.regions["misses"] = len(rows)


MISSES = Metric(CAPTION, add_scores, {"missing ": lambda task, judge: f"misses 1; judge {judge}"})
