"""Categories (one name a region): accuracy."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from .. import statistics
from .base import WORDS, Metric, Scoring
from .captions import lower_tokens
from .similarity import plain_name

SHOWN = 10  # names that a note lists
OUTSIDE = "predictions name no category of the list and count as wrong"


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
    asked = [False] if s.caption_is_answer else [False, True]  # answers in words are read with more patience
    s.scores.notes += [note for of_predictions in asked if (note := not_in_list(s, of_predictions))]
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


def not_in_list(s: Scoring, of_predictions: bool = False) -> str:
    """Categories of the records, or of predictions, that the word list does not have, with numbers; "" if none."""
    names = s.names.get("categories")
    if of_predictions:
        what, said = "predictions name", [r.category["name"] for r in s.results.values() if r.category]
    else:
        what, said = "regions have", [region.category for region in s.regions if region.category]
    if not names or not (unlike := Counter(said) - Counter(dict.fromkeys(names, len(said)))):
        return ""
    plain = {plain_answer(name): name for name in names}
    like = {name: plain.get(plain_answer(name)) for name in unlike}
    each = [
        f"{name!r} ({number}" + (f"; the list has {like[name]!r})" if like[name] else ")")
        for name, number in unlike.most_common(SHOWN)
    ]
    return (
        f"{unlike.total()} {what} a category that the word list does not have, which counts as wrong: "
        + ", ".join(each + ([f"{len(unlike) - SHOWN} more"] if len(unlike) > SHOWN else []))
        + "; spell both alike, letter by letter"
    )


def named(s: Scoring, names: Collection[str] = ()) -> dict[str, tuple[str, float] | None]:
    """prediction id -> (category, score), None where it names none of the list: its category or, of one that has none,
    its caption, a score of 1. names: the list, the task's if empty."""
    names = names or s.names.get("categories") or sorted({region.category for region in s.regions if region.category})
    find, answers = category_finder(names), {}
    for i, result in s.results.items():
        said, score = (result.category["name"], result.category["score"]) if result.category else (result.caption, 1)
        name = find(said)
        answers[i] = name and (name, float(score))
    if outside := sum(answer is None for answer in answers.values()):
        s.scores.counts[OUTSIDE] = outside
    return answers


def category_finder(names: Collection[str]) -> Callable[[str], str | None]:
    """What is said -> the name of the list that it is, letter by letter or else in words (`plain_answer`), or None."""
    known = {plain_answer(name): name for name in names} | {name: name for name in names}

    def find(said: str) -> str | None:
        if said not in known:  # as often as a model says it
            known[said] = known.get(plain_answer(said))
        return known[said]

    return find


def plain_answer(text: str) -> str:
    """What counts of a category's name in words: "The Traffic_light." -> "traffic light"."""
    words = lower_tokens([plain_name(text)])[0].split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


CATEGORIES = Metric(WORDS, add_scores, {"category accuracy": lambda task, judge: "categories 2"})
