"""Categories (one name a region): accuracy."""

from collections.abc import Collection, Mapping

from .. import statistics
from .base import WORDS, Metric, Scoring
from .captions import lower_tokens
from .similarity import plain_name


def category_accuracy(predicted: Mapping[str, str | None], true: Mapping[str, str | None]) -> float:
    """Share of regions whose predicted name is the true one.

    predicted, true: region id -> name. Regions whose true category is None are left out; a region without a prediction
    counts as wrong. ValueError: a prediction for an unknown region, or no region with a category.
    """
    unknown = [region_id for region_id in predicted if region_id not in true]
    if unknown:
        raise ValueError(f"{len(unknown)} predictions are for unknown regions, the first for {unknown[0]!r}")
    known = {region_id: name for region_id, name in true.items() if name is not None}
    if not known:
        raise ValueError("no region has a category; there is no accuracy to compute")
    return sum(predicted.get(region_id) == name for region_id, name in known.items()) / len(known)


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    true = {region.id: region.category for region in s.regions}
    if not any(true.values()):
        s.scores.left_out["categories"] = "no region has a category"
        return
    if s.caption_is_answer:
        predicted = {i: answer and answer[0] for i, answer in named(s).items()}
    elif s.nothing_of("categories", "category"):
        return
    else:
        predicted = {i: result.category and result.category["name"] for i, result in s.results.items()}
    s.scores.corpus["category accuracy"] = category_accuracy(predicted, true)
    s.scores.regions["categories"] = sum(category is not None for category in true.values())
    right = {i: float(predicted.get(i) == category) for i, category in true.items() if category is not None}
    for region_id, value in right.items():
        s.scores.items[region_id]["category accuracy"] = value
    s.scores.resamplings.append(statistics.means({"category accuracy": s.spread(right)}))


def named(s: Scoring, names: Collection[str] = ()) -> dict[str, tuple[str, float] | None]:
    """prediction id -> (category, score), None where it names none of the list: its category or, of one that has none,
    its caption, a score of 1. names: the list, the task's if empty."""
    names = names or s.names.get("categories") or sorted({region.category for region in s.regions if region.category})
    known = {plain_answer(name): name for name in names} | {name: name for name in names}
    answers = {}
    for i, result in s.results.items():
        said, score = (result.category["name"], result.category["score"]) if result.category else (result.caption, 1)
        name = known.get(said) or known.get(plain_answer(said))
        answers[i] = name and (name, float(score))
    if outside := sum(answer is None for answer in answers.values()):
        s.scores.counts["predictions name no category of the list and count as wrong"] = outside
    return answers


def plain_answer(text: str) -> str:
    """What counts of a category's name in words: "The Traffic_light." -> "traffic light"."""
    words = lower_tokens([plain_name(text)])[0].split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


CATEGORIES = Metric(WORDS, add_scores, {"category accuracy": lambda task, judge: "categories 2"})
