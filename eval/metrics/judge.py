"""Questions about a region's description that a judge answers with one of their choices: DLC-Bench's scores.

A description is never compared with a reference text. A judge that sees only the description picks one choice of each
question; a positive question asks for a detail that is there (right, vague, left out, wrong), a negative one for what
is not (avoided, left open, claimed). A number is comparable only under the same judge: name it with the score.

As the released evaluator has it (describe-anything, evaluation/eval_model_outputs.py): a question at a time, choices
with letters, greedy decoding, the answer read as `read_choice` does, and means over regions of a region's mean. The
prompt says the same in other words. GAR's variant shows the judge the region as well (`shown_region`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dynrefer.endpoint import Endpoint
from dynrefer.images import open_image

from .. import statistics
from .base import CAPTION, Metric, Scoring

POINTS = {"positive": {1.0, 0.5, 0.0, -1.0}, "negative": {1.0, 0.0, -1.0}, "recognition": {1.0, 0.5, 0.0, -1.0}}
NAMES = {"positive": "choice score/positive", "negative": "choice score/negative"}
NAMES["recognition"] = "choice accuracy/recognition"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIN_SIDE = 56  # pixels of a region that is shown, as of DAM's focal crops
Judge = Callable[..., str]  # prompt -> answer; (prompt, pictures) -> answer where the region is shown
Pictures = Callable[[str], Sequence[np.ndarray]]  # region id -> uint8 arrays


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
    """Mean points of the positive and of the negative questions, and the mean of the two. A mean is taken over the
    questions of a region, then over the regions that have such questions.

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
    items: dict[str, dict[str, float]] = {}
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
        if own["recognition"]:
            own["recognition"] = [float(own["recognition"][0] > 0)]
        items[region_id] = _summary(own)
    of_regions = {kind: [item[name] for item in items.values() if name in item] for kind, name in NAMES.items()}
    if not of_regions["positive"] and not of_regions["negative"]:
        raise ValueError("no questions: there is nothing to score")
    return _summary(of_regions), items


def judge_captions(
    captions: Mapping[str, str],
    questions: Mapping[str, Sequence[Question]],
    judge: Judge,
    pictures: Pictures | None = None,
) -> dict[str, list[int | None]]:
    """The judge's choices about each region's caption, as `choice_scores` takes them. pictures: what it sees of a
    region beside the caption; None = nothing.

    A region without a caption, or with an empty one, is not asked about and has no answers. Whatever the judge raises
    goes through: a judge that does not answer gives no score. RuntimeError where none of its answers names a choice.
    """
    unknown = [region_id for region_id in captions if region_id not in questions]
    if unknown:
        raise ValueError(f"{len(unknown)} captions are for unknown regions, the first for {unknown[0]!r}")
    described = [region_id for region_id in questions if captions.get(region_id, "").strip()]

    def ask(region_id: str) -> list[str]:
        seen = () if pictures is None else (pictures(region_id),)
        return [judge(prompt(q, captions[region_id], shown=bool(seen)), *seen) for q in questions[region_id]]

    pool = ThreadPoolExecutor(getattr(judge, "parallel", 1))
    try:
        said = dict(zip(described, tqdm(pool.map(ask, described), "judge", len(described), disable=None), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # an error ends the run, not the questions that are still to be asked
    answers = {i: [read_choice(a, q) for a, q in zip(said[i], questions[i], strict=True)] for i in described}
    places = [place for chosen in answers.values() for place in chosen]
    if places and all(place is None for place in places):
        first = next(answer for texts in said.values() for answer in texts)
        raise RuntimeError(f"none of the judge's {len(places)} answers names a choice, the first is {first[:200]!r}")
    return answers


def prompt(question: Question, caption: str, shown: bool = False) -> str:
    """What the judge reads: the rules, the caption, the question, its choices with letters. shown: with a picture."""
    choices = "\n".join(f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, question.choices, strict=False))
    return (
        f"An object in {'this' if shown else 'an'} image was described in words. Answer the multiple-choice question "
        "about it from the description alone. Write exactly one of the choices: no reasoning, no second thoughts, not "
        "the question again. A choice need not be in the description word for word; take the one that is closest to "
        f"it.\n\nDescription:\n{caption.strip()}\n\nQuestion: {question.text}\n{choices}"
    )


def shown_region(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What GAR's judge sees of a region: the image around it, and its mask there, white on black.

    image: uint8 (H, W, 3); mask: bool (H, W), not empty. Both are cut at three times the sides of the mask's box, which
    count 56 pixels at least.
    """
    y, x = np.nonzero(mask)
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()]) + 1
    size = np.maximum(high - low, MIN_SIDE)
    corner = ((low + high) / 2 - size / 2).astype(int)
    (x1, y1), (x2, y2) = np.maximum(corner - size, 0), corner + 2 * size  # slices end at the edge
    return image[y1:y2, x1:x2], np.uint8(255) * mask[y1:y2, x1:x2]


def read_choice(answer: str, question: Question) -> int | None:
    """The place of the choice that an answer names, None where it names none; case does not matter.

    By the released evaluator's rules, the first that fits: the answer is a choice, "B. choice" or a letter; one choice
    is in it; it begins with "B."; of several choices in it the one that begins last, the longest of those; the longest
    choice that it is a part of; it begins with a letter on a line of its own.

    >>> question = Question("What colour?", [("red", 1.0), ("blue", -1.0)])
    >>> [read_choice(text, question) for text in ("B", "(b) blue", "A. Red, not blue", "Not red: blue.", "A car", "C")]
    [1, 1, 0, 1, None, None]
    """
    said = answer.strip().lower()
    texts = [text.strip().lower() for text, _ in question.choices]
    letters = LETTERS[: len(texts)].lower()
    for place, (letter, text) in enumerate(zip(letters, texts, strict=True)):
        if said in (text, letter, f"{letter}. {text}"):
            return place
    if len(said) < 2:
        return None
    inside = [place for place, text in enumerate(texts) if text in said]
    if len(inside) == 1:
        return inside[0]
    first = letters.find(said[0])
    if first >= 0 and said[1] == ".":
        return first
    if inside:
        return max(inside, key=lambda place: (said.index(texts[place]), len(texts[place])))
    if around := [place for place, text in enumerate(texts) if said in text]:
        return max(around, key=lambda place: len(texts[place]))
    return first if first >= 0 and said[1] == "\n" else None


@dataclass(frozen=True)
class HTTPJudge(Endpoint):
    """A judge behind an address, see `Endpoint`. `parallel` regions are asked about at a time."""

    parallel: int = 8
    role = "judge"

    def __call__(self, text: str, pictures: Sequence[np.ndarray] = ()) -> str:
        """The answer to a prompt. pictures: of the region, the image and the mask. RuntimeError where there is none."""
        if not pictures:
            return self.ask(text).text
        titled = zip(("The image:", "The mask of the region in it:"), pictures, strict=True)
        return self.ask([*(part for pair in titled for part in pair), text]).text


def _summary(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{score name: mean} of the kinds of questions that there are, and the mean of the positive and negative one."""
    means = {kind: sum(each) / len(each) for kind, each in values.items() if each}
    both = [means[kind] for kind in ("positive", "negative") if kind in means]
    return ({"choice score": sum(both) / len(both)} if both else {}) | {
        NAMES[kind]: mean for kind, mean in means.items()
    }


# --- in a benchmark ------------------------------------------------------------------------------------------------


def judged_choices(s: Scoring, metric: str) -> tuple[dict[str, list[int | None]], dict[str, list[Question]]] | None:
    """The judge's answers to the questions of the task's file, and the questions; None, told, without a judge."""
    if s.judge is None:
        s.scores.left_out[metric] = "it needs a judge; --judge URL --judge-model NAME names one"
        return None
    path = Path(s.annotations or "")
    if not path.is_file():
        raise ValueError(f"task {s.task.name}: no questions at {str(path)!r}; name the file with --annotations")
    questions = read_questions(path)
    if missing := [region.id for region in s.regions if region.id not in questions]:
        raise ValueError(f"{path}: no questions about {len(missing)} regions, the first is {missing[0]!r}")
    questions = {region.id: questions[region.id] for region in s.regions}
    captions = {i: result.caption for i, result in s.results.items()}
    pictures = shown_regions(s) if s.task.judge_sees == "region" else None
    answers = judge_captions(captions, questions, s.judge, pictures)
    places = [place for chosen in answers.values() for place in chosen]
    s.scores.parts[metric] = {"answers that name no choice": sum(p is None for p in places) / max(1, len(places))}
    return answers, questions


def add_scores(s: Scoring) -> None:
    found = judged_choices(s, "choices")
    if found is None:
        return
    answers, questions = found
    corpus, items = choice_scores(answers, questions)
    s.scores.corpus |= corpus
    s.scores.regions["choices"] = len(questions)
    for region_id, values in items.items():
        s.scores.items[region_id] |= values
    columns = {name: s.spread({i: item[name] for i, item in items.items() if name in item}) for name in corpus}
    both = [name for name in columns if name.startswith("choice score/")]
    resampling = statistics.means({name: column for name, column in columns.items() if name != "choice score"})

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        values = resampling.values(counts)
        return values | {"choice score": sum(values[name] for name in both) / len(both)}

    s.scores.resamplings.append(replace(resampling, values=values_of))


def shown_regions(s: Scoring) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Region id -> what a judge sees of it."""
    root = getattr(s.regions, "root", None)
    if root is None:
        raise ValueError(f"task {s.task.name}: the judge sees the regions; score records of a file, with their images")
    regions = {region.id: region for region in s.regions}

    def pictures(region_id: str) -> tuple[np.ndarray, np.ndarray]:
        region = regions[region_id]
        mask = region.to_mask()
        if mask is None:
            raise ValueError(f"region {region_id} has no mask to show the judge")
        return shown_region(open_image(root / region.image), mask)

    return pictures


def read_questions(path: str | Path) -> dict[str, list[Question]]:
    """Questions of a JSON file {region id: [{"text", "choices": [[text, points], ...], "kind"}]}; ValueError names the
    region of what is not of this form."""
    document = json.loads(Path(path).read_bytes())
    questions = {}
    for region_id, entries in document.items() if isinstance(document, dict) else ():
        try:
            questions[region_id] = [
                Question(
                    entry["text"], [(str(t), float(p)) for t, p in entry["choices"]], entry.get("kind", "positive")
                )
                for entry in entries
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: region {region_id!r}: {error!r}; a question has text, choices, kind") from error
    if not questions:
        raise ValueError(f'{path}: expected {{region id: [{{"text", "choices", "kind"}}]}}')
    return questions


JUDGE = Metric(
    CAPTION, add_scores, {"choice ": lambda task, judge: f"choices 1; judge {judge}"}, {"choice ": (-1.0, 1.0)}
)
