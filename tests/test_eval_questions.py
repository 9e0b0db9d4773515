"""Scores of answers: choices, kinds and conjunctions, yes and no, marks of a judge, right, wrong and missing."""

import json
from dataclasses import replace

import pytest

from dynrefer.data.questions import Question
from dynrefer.data.records import Region, RegionResult
from eval.asking import Asking
from eval.benchmarks import get_task
from eval.metrics import check_task
from eval.metrics.judge import Question as Judged
from eval.metrics.judged import RUBRICS, judge_answers
from eval.metrics.misses import miss_counts, miss_scores
from eval.metrics.yes_no import yes_no_scores
from eval.scoring import intervals, score
from eval.task import Task


def question(name, answer=0, choices=("red", "blue", "green"), **fields):
    return Question(name, f"{name}.jpg", (10, 10), "Which?", choices=choices, answer=answer, **fields)


def said(answers):
    return {i: RegionResult(i, [], caption=text) for i, text in answers.items()}


# --- how questions are asked -----------------------------------------------------------------------------------------


def test_a_question_is_asked_with_its_choices_and_names():
    regions = (
        Region("r", "a.jpg", (10, 10), (0, 0, 5, 5), category="dog"),
        Region("s", "a.jpg", (10, 10), (1, 1, 5, 5)),
    )
    asked = replace(question("q"), question="Is <region0> on <region1>?", regions=regions)
    assert Asking(prompt="{question}\n{choices}\nSay the letter.").text(asked) == (
        "Is <region0> on <region1>?\nA. red\nB. blue\nC. green\nSay the letter."
    )
    named = Asking(prompt="Q: {question} {choices}", option="({letter}) {choice}", names=True)
    assert named.text(asked) == "Q: Is dog <region0> on <region1>? (A) red\n(B) blue\n(C) green"
    assert Asking(form="words", prompt="{question} One word.").text(asked) == "Is <region0> on <region1>? One word."
    assert (
        Asking().labels(asked) == ("A", "B", "C")
        and Asking(form="words", prompt="{question}").labels(asked)[2] == "green"
    )


def test_an_answer_is_read_with_patience_or_to_the_letter():
    patient, exact = Asking(), Asking(exact=True)
    for text, place in (
        ("b", 1),
        ("B", 1),
        ("(C) green", 2),
        ("The answer is C.", 2),
        ("blue", 1),
        ("a blue one", None),
    ):
        assert patient.read(text, question("q")) == place, text
    assert [exact.read(text, question("q")) for text in ("b", " B ", "B.", "blue")] == [1, 1, None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "letter"}, "form 'letter'; one of letters, words, open"),
        ({"by": "luck"}, "by 'luck'; one of generation, likelihood"),
        ({"prompt": "{question}"}, "prompt '{question}': no {choices} in it"),
        ({"option": "{choice}"}, "option '{choice}': no {letter} in it"),
    ],
)
def test_a_way_to_ask_with_a_mistake_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Asking(**change)
    with pytest.raises(ValueError, match="it scores answers to questions; say how they are asked"):
        check_task(Task("t", "", "", metrics=("answers",)))


# --- choices ---------------------------------------------------------------------------------------------------------

CAUSAL = ("description", "explanation", "prediction answer", "prediction reason")
CAUSAL += ("counterfactual answer", "counterfactual reason")


def causal(video):
    groups = ["d", "e", "p", "p", "c", "c"]
    return [
        question(f"{video}-{n}", answer=1, kinds=(kind,), group=f"{video}-{group}")
        for n, (kind, group) in enumerate(zip(CAUSAL, groups, strict=True))
    ]


def test_causal_vidqa_asks_answers_and_reasons_together():
    """Video v: all right but one reason; video w: only the descriptions and one answer."""
    records = [*causal("v"), *causal("w")]
    right = {"v-0", "v-1", "v-2", "v-3", "v-4", "w-0", "w-2"}
    scores = score(get_task("causal-vidqa"), records, said({q.id: "B" if q.id in right else "A" for q in records}))
    parts = {name.removeprefix("answer accuracy/"): value for name, value in scores.corpus.items()}
    assert parts["description"] == 1 and parts["explanation"] == 0.5
    assert parts["prediction answer"] == 1 and parts["prediction reason"] == 0.5 and parts["prediction"] == 0.5
    assert parts["counterfactual answer"] == 0.5 and parts["counterfactual"] == 0
    assert scores.corpus["answer accuracy"] == (1 + 0.5 + 0.5 + 0) / 4
    low, high = intervals(scores)["answer accuracy"]
    assert low <= scores.corpus["answer accuracy"] <= high


def test_answers_that_are_missing_or_unread_are_wrong_and_told():
    records = [question(f"q{n}") for n in range(4)]
    scores = score(TASK, records, said({"q0": "A", "q1": "a red one", "q2": "B"}))
    assert scores.corpus == {"answer accuracy": 0.25}
    assert scores.counts == {"answers name no choice and count as wrong": 1}
    assert scores.items["q0"] == {"answer accuracy": 1.0} and scores.items["q3"] == {"answer accuracy": 0.0}


TASK = Task("t", "", "", metrics=("answers",), asks=Asking())


def test_a_question_of_which_no_choice_is_right_counts_as_wrong_and_one_that_nobody_knows_not():
    records = [question("a"), question("b", answer=-1), question("c", answer=None)]
    scores = score(TASK, records, said({"a": "A", "b": "A", "c": "A"}))
    assert scores.corpus == {"answer accuracy": 0.5} and scores.regions == {"answers": 2}
    assert scores.notes == ["1 questions do not say which choice is right, and are left out"]
    assert score(TASK, [question("c", answer=None)], {}).left_out == {
        "answers": "no question says which choice is right"
    }


def test_half_a_group_is_no_conjunction_and_no_mean():
    records = causal("v")[:3]
    scores = score(get_task("causal-vidqa"), records, said({q.id: "B" for q in records}))
    assert "answer accuracy" not in scores.corpus and "answer accuracy/prediction" not in scores.corpus
    assert scores.notes[0].startswith("no prediction question, or whole group of them")


def test_vcr_needs_both():
    records = [question(f"{n}-{kind}", kinds=(kind,), group=str(n)) for n in range(3) for kind in ("Q->A", "QA->R")]
    answers = {q.id: "A" for q in records} | {"0-Q->A": "B", "1-QA->R": "C"}
    corpus = score(get_task("vcr"), records, said(answers)).corpus
    assert corpus["answer accuracy/Q->A"] == corpus["answer accuracy/QA->R"] == pytest.approx(2 / 3)
    assert corpus["answer accuracy"] == corpus["answer accuracy/Q->AR"] == pytest.approx(1 / 3)


# --- yes and no ------------------------------------------------------------------------------------------------------


def test_popes_scores_by_hand():
    """Three right of five: 2 yes said and true, 1 yes said and false, 1 no said and false, 1 no said and true."""
    true = {"a": True, "b": True, "c": False, "d": True, "e": False}
    scores = yes_no_scores({"a": True, "b": True, "c": True, "d": False, "e": False}, true)
    assert scores == pytest.approx(
        {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3, "share of yes": 0.6}
    )
    assert yes_no_scores({}, true)["accuracy"] == 0 and yes_no_scores({}, true)["F1"] == 0
    with pytest.raises(ValueError, match="1 answers are for unknown questions, the first for 'z'"):
        yes_no_scores({"z": True}, true)
    with pytest.raises(ValueError, match="no questions"):
        yes_no_scores({}, {})


def test_pope_by_set():
    records = [
        question(f"{kind}-{n}", answer=n % 2, choices=("yes", "no"), kinds=(kind,))
        for kind in ("random", "popular")
        for n in range(4)
    ]
    answers = {
        q.id: "Yes." if q.kinds == ("random",) else ("Yes" if q.answer == 0 else "No, there is none") for q in records
    }
    scores = score(get_task("pope"), records, said(answers))
    corpus = scores.corpus
    assert corpus["yes-no accuracy/random"] == 0.5 and corpus["yes-no F1/random"] == pytest.approx(2 / 3)
    assert corpus["yes-no accuracy/popular"] == 1 and corpus["yes-no accuracy"] == 0.75
    assert corpus["yes-no share of yes/random"] == 1 and corpus["yes-no share of yes"] == 0.75
    low, high = intervals(scores)["yes-no F1"]
    assert low <= corpus["yes-no F1"] <= high
    assert score(get_task("pope"), [question("q")], {}).left_out["yes_no"].startswith("no question has the choices yes")


# --- a judge ---------------------------------------------------------------------------------------------------------


def test_rubrics_read_marks():
    assert RUBRICS["correctness"].read("0.7") == [0.7] and RUBRICS["correctness"].read("1.7") is None
    assert RUBRICS["right or wrong"].read("1") == [1.0] and RUBRICS["right or wrong"].read("0.5") is None
    marks = RUBRICS["description"]
    assert marks.read('{"subject": 5, "appearance": 4, "temporal": 1, "hallucination": 0}') == [1.0, 0.8, 0.2, 0.0]
    assert marks.read("Subject: 5\nAppearance - 4, temporal 1; hallucination = 0") == [1.0, 0.8, 0.2, 0.0]
    assert marks.read("Subject: 5") is None and marks.read('{"subject": 7}') is None


def test_videorefers_marks_are_fractions_of_five():
    records = [Region(f"v{n}", "a.jpg", (9, 9), (0, 0, 5, 5), captions=("A dog runs.",)) for n in range(2)]
    replies = {"good": '{"subject": 5, "appearance": 4, "temporal": 3, "hallucination": 4}', "bad": "I cannot say"}

    def judge(prompt):
        assert "A dog runs." in prompt and "whole number from 0" in prompt
        return replies["good" if "a running dog" in prompt else "bad"]

    judge.model = "j"
    task = Task("t", "", "", metrics=("judged",), rubric="description")
    scores = score(task, records, said({"v0": "a running dog", "v1": "?"}), judge=judge)
    assert scores.corpus["judged score"] == pytest.approx((4 / 5) / 2)
    assert scores.corpus["judged score/temporal"] == pytest.approx((3 / 5) / 2)
    assert scores.counts == {"answers of the judge are no mark and count as 0": 1}
    assert scores.versions["judged score"] == "judged 1, description; judge j"
    assert score(task, records, {}).left_out == {"judged": "it needs a judge; --judge URL --judge-model NAME names one"}
    with pytest.raises(RuntimeError, match="none of the judge's 1 answers is a mark, the first is 'I cannot say'"):
        judge_answers(
            {"v1": "?"}, {"v1": ["x"]}, {"v1": "?"}, RUBRICS["description"], judge=lambda text: replies["bad"]
        )
    with pytest.raises(ValueError, match="unknown rubric 'descriptions'. Did you mean 'description'"):
        check_task(replace(task, rubric="descriptions"))


def test_vip_benchs_marks_count_for_each_capability():
    records = [
        question("a", answer=None, choices=(), answers=("-1<AND>5",), kinds=("ocr", "math")),
        question("b", answer=None, choices=(), answers=("a dog",), kinds=("ocr",)),
    ]
    task = Task("t", "", "", metrics=("judged",), rubric="correctness", asks=Asking(form="open", prompt="{question}"))
    replies = {"x": "0.5", "y": "1.0"}
    scores = score(task, records, said({"a": "x", "b": "y"}), judge=lambda text: replies[text.split("Answer: ")[1][0]])
    assert scores.corpus == {"judged score": 0.75, "judged score/ocr": 0.75, "judged score/math": 0.5}


# --- right, wrong, missing -------------------------------------------------------------------------------------------


def test_what_a_description_does_not_tell_is_missing():
    asked = [Judged("Where?", [("left", 1.0), ("right", -1.0), ("not told", 0.0)])] * 4
    assert miss_counts([0, 0, 1, 2], asked) == [4.0, 2.0, 1.0] and miss_counts([None] * 4, asked) == [4.0, 0.0, 4.0]
    import numpy as np

    found = {name: float(value[0]) for name, value in miss_scores(np.array([[4.0, 2.0, 1.0]])).items()}
    assert found == {"missing accuracy": 0.5, "missing recall": 0.75, "missing precision": pytest.approx(2 / 3)}
    nothing = miss_scores(np.array([[4.0, 0.0, 0.0]]))
    assert all(float(value[0]) == 0 for value in nothing.values())


def test_a_judge_answers_from_the_description_alone(tmp_path):
    records = [Region(f"v{n}", "a.jpg", (9, 9), (0, 0, 5, 5)) for n in range(2)]
    entry = {"text": "Where to?", "choices": [["left", 1], ["right", -1], ["It does not mention that", 0]]}
    (tmp_path / "questions.json").write_text(json.dumps({"v0": [entry] * 3, "v1": [entry]}))
    answers = iter("ACB")
    task = Task("t", "", "", metrics=("misses",), annotations=str(tmp_path / "questions.json"))
    scores = score(task, records, said({"v0": "a dog runs"}), judge=lambda prompt: next(answers))
    # v0: right, missing, wrong; v1 was not described: wrong
    assert scores.corpus == {
        "missing accuracy": 0.25,
        "missing recall": 0.75,
        "missing precision": pytest.approx(1 / 3),
    }
