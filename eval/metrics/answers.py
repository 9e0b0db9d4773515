"""Questions with choices: accuracy of each kind of question, of kinds that must be right together, and of the whole."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dynrefer.data.questions import Question

from .. import statistics
from .base import CAPTION, Metric, Scoring

NAME = "answer accuracy"
UNREAD = "answers name no choice and count as wrong"


def answer_table(
    right: Mapping[str, float], questions: Sequence[Question], conjunctions: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """{kind: {question id: 1 right or 0}}; a conjunction's value stands at the first question of its group.

    right: of every question. conjunctions: {name: kinds}; a group is right where all of its questions of these kinds
    are. Groups that lack one of the kinds do not count.

    >>> pair = [Question(kind, "a.jpg", (1, 1), "?", kinds=(kind,), group="7") for kind in ("answer", "reason")]
    >>> answer_table({"answer": 1, "reason": 0}, pair, {"both": ["answer", "reason"]})
    {'answer': {'answer': 1}, 'reason': {'reason': 0}, 'both': {'answer': 0}}
    """
    table: dict[str, dict[str, float]] = {}
    groups: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        for kind in question.kinds:
            table.setdefault(kind, {})[question.id] = right[question.id]
            groups[question.group or question.id][kind].append(question.id)
    for name, kinds in conjunctions.items():
        table[name] = {
            of_kind[kinds[0]][0]: min(right[i] for kind in kinds for i in of_kind[kind])
            for of_kind in groups.values()
            if all(kind in of_kind for kind in kinds)
        }
    return {name: values for name, values in table.items() if values}


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    asking, questions = s.task.asks, list(s.regions)
    assert asking is not None, f"task {s.task.name} scores answers and does not say how questions are asked"
    known = [question for question in questions if isinstance(question, Question) and question.answer is not None]
    if not known:
        s.scores.left_out["answers"] = "no question says which choice is right"
        return
    chosen = {q.id: asking.read(s.results[q.id].caption, q) for q in known if q.id in s.results}
    if unread := sum(place is None for place in chosen.values()):
        s.scores.counts[UNREAD] = unread
    if without := len(questions) - len(known):
        s.scores.notes.append(f"{without:,} questions do not say which choice is right, and are left out")
    right = {question.id: float(chosen.get(question.id) == question.answer) for question in known}
    add_kinds(s, NAME, right, known)
    s.scores.regions["answers"] = len(known)


def add_kinds(s: Scoring, name: str, values: Mapping[str, float], questions: Sequence[Question]) -> None:
    """Scores of questions, in [0, 1], as the task's kinds and conjunctions have them: name/KIND, and the whole."""
    asking = s.task.asks
    conjunctions, mean_of = (asking.conjunctions, asking.mean_of) if asking else ({}, ())
    table = answer_table(values, questions, conjunctions)
    if missing := [kind for kind in mean_of if kind not in table]:
        s.scores.notes.append(f"no {missing[0]} question, or whole group of them: no mean of {', '.join(mean_of)}")
    whole = not mean_of
    columns = {name: s.spread(values)} if whole else {}
    columns |= {f"{name}/{kind}": s.spread(of_kind) for kind, of_kind in table.items()}
    for each, column in columns.items():
        s.scores.corpus[each] = float(np.nanmean(column))
    for question_id, value in values.items():
        s.scores.items[question_id][name] = value
    if not columns:
        return
    resampling = statistics.means(columns)
    if not whole and not missing:
        parts = [f"{name}/{kind}" for kind in mean_of]
        s.scores.corpus = {name: float(np.mean([s.scores.corpus[part] for part in parts]))} | s.scores.corpus

        def values_of(counts: np.ndarray, means=resampling.values) -> dict[str, np.ndarray]:
            drawn = means(counts)
            return drawn | {name: np.mean([drawn[part] for part in parts], 0)}

        resampling = replace(resampling, values=values_of)
    s.scores.resamplings.append(resampling)


ANSWERS = Metric(CAPTION, add_scores, {"answer ": lambda task, judge: "answers 1"})
