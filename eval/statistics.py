"""How sure a score is: bootstrap intervals of one model's scores, paired differences of two models' scores.

A draw takes as many images as there are, some twice and some not at all, each with all its regions: regions of one
image are not independent of each other. (Of fewer than MIN_GROUPS images, regions are drawn one by one.) Scores are
computed anew on 1,000 draws (CIDEr with the document frequencies of all regions: where not all is anew,
`Resampling.approximate` says so). Draws follow from a seed: two models are scored on the same ones, so their difference
is paired.

The ends of an interval are quantiles of the draws. Few images vary less on draws than they should; the quantiles lie
further out for them ("expanded percentiles": Hesterberg, What Teachers Should Know About the Bootstrap, 2015). The
p-value of a difference is the same in reverse: an interval of level 1 - p would end at 0.

docs/results.md has the measured coverage of the intervals and the error rate of the p-values. Very skewed scores need
more images than any widening can replace; p-values of rare outcomes err on the side of no difference.

A score on a draw is a function of counts (D, N), how often each of N regions is in each of D draws: see `means`,
`of_sums`, `bleu`, `rankings`, `ratios`.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

DRAWS, MIN_DRAWS, MIN_GROUPS = 1000, 200, 10
FEW = 50  # images, or regions, below which intervals may be too narrow
MIN_NUMBER = 2  # images, or regions, that an interval needs
LEVEL = 0.95
RULE_OF_THREE = 3.0  # where all of n images are alike, at most 3 / n of all images are not, 95 times of 100
TIE = 1e-9  # a smaller difference, relative to the scores, is none: BLEU of right texts is 1 - 1e-11
WORK = 4e9  # operations that the draws of one metric may take, some seconds; fewer draws where it is not enough
CHUNK = 4_000_000  # counts held at a time


@dataclass(frozen=True)
class Resampling:
    """Scores on draws. values: counts (D, N) -> {score name: (D,)}; work: rough operations a draw; approximate: what
    keeps it from being the score computed anew, "" where it is; places: (M,) of the regions that count, None: all."""

    values: Callable[[np.ndarray], dict[str, np.ndarray]]
    work: float
    approximate: str = ""
    places: np.ndarray | None = None

    @property
    def draws(self) -> int:
        """How many draws are affordable; 0 where they would be too few for an interval."""
        draws = int(min(DRAWS, WORK // max(1.0, self.work)))
        return draws if draws >= MIN_DRAWS else 0


class Draws(NamedTuple):
    """A score on draws: (D,) values, and the number of images (or regions) that count and are drawn."""

    values: np.ndarray
    number: int


def draw_counts(groups: Sequence[Hashable], draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of N regions is drawn, (D, N) float arrays that make up all draws; groups: (N,) what is drawn
    together, the image of every region. The first draws are the same for any number of draws."""
    places = _units(groups)
    number = int(places.max()) + 1
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK // len(places))
    for start in range(0, draws, size):
        drawn = [rng.integers(0, number, number) for _ in range(min(size, draws - start))]
        counts = np.stack([np.bincount(numbers, minlength=number) for numbers in drawn])
        yield counts[:, places].astype(np.float64)


def unit_of(groups: Sequence[Hashable]) -> str:
    """What is drawn: "images", or "regions" where there are fewer than MIN_GROUPS images."""
    return "images" if len(set(groups)) >= MIN_GROUPS else "regions"


def _units(groups: Sequence[Hashable]) -> np.ndarray:
    """(N,) the number of the image, or of the region where regions are drawn."""
    if unit_of(groups) == "regions":
        return np.arange(len(groups))
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def number_drawn(resampling: Resampling, groups: Sequence[Hashable]) -> int:
    """How many images (or regions, see `unit_of`) have a region that counts."""
    units = _units(groups)
    return len(np.unique(units if resampling.places is None else units[resampling.places]))


def caution(resamplings: Sequence[Resampling], groups: Sequence[Hashable]) -> str:
    """What to say of intervals from few images (or regions); "" where there are enough."""
    numbers = [number_drawn(resampling, groups) for resampling in resamplings]
    few = [number for number in numbers if MIN_NUMBER <= number < FEW]
    if not few:
        return ""
    drawn = f"only {min(few)} {unit_of(groups)} are drawn"
    return f"{drawn}: intervals are too narrow; of fewer than {FEW} they hold the true score 84 to 94 times of 100"


def samples(resamplings: Sequence[Resampling], groups: Sequence[Hashable], seed: int = 0) -> dict[str, Draws]:
    """{score name: its values on the draws}; left out are scores whose draws are not affordable, and those of one image
    (or region), which is the same on every draw."""
    found: dict[str, Draws] = {}
    for resampling in resamplings:
        if (number := number_drawn(resampling, groups)) >= MIN_NUMBER:
            parts = [resampling.values(counts) for counts in draw_counts(groups, resampling.draws, seed)]
            for name in parts[0] if parts else ():
                found[name] = Draws(np.concatenate([part[name] for part in parts]), number)
    return found


def interval(draws: Draws, score: float, least: float = 0.0, most: float = 1.0) -> list[float] | None:
    """[low, high], the quantiles of the draws once these are moved so that their mean is the score: draws of rankings
    are too good where few regions are right, since a right one that is drawn twice is found twice. The score is within
    it, and nothing below 0 or above 1 where no draw is. Draws without a value (nan) do not count; None without any.

    Where the draws do not differ, every image is right, for instance: that says no more of others than their number
    does, see `_of_alike`. least, most: what the score can be, for it.
    """
    values = draws.values[np.isfinite(draws.values)]
    if not values.size:
        return None
    low, high = _quantiles(values + (score - values.mean()), draws.number)
    floor, ceiling = (0.0 if values.min() >= 0 else -np.inf), (1.0 if values.max() <= 1 else np.inf)
    low, high = min(score, max(low, floor)), max(score, min(high, ceiling))
    return [float(low), float(high)] if _differ(low, high) else _of_alike(score, draws.number, least, most)


def _differ(low: float, high: float) -> bool:
    return high - low > TIE * max(1.0, abs(low), abs(high))


def _of_alike(score: float, number: int, least: float, most: float) -> list[float]:
    """The interval of a score that is the same for each of so many images, by the rule of three.

    >>> _of_alike(1.0, 30, 0.0, 1.0)
    [0.9, 1.0]
    """
    share = min(1.0, RULE_OF_THREE / number)
    return [float(score - share * (score - least)), float(score + share * (most - score))]


def difference(
    a: Draws, b: Draws, score: float, least: float = 0.0, most: float = 1.0
) -> dict[str, float | list[float]] | None:
    """Interval and two-sided p-value of a difference of scores, from the same draws of both: {"interval": [low, high],
    "p"}, None without a draw that has both.

    p comes from the share of draws on the rarer side of 0. A draw without a difference is on both sides, and so is one
    draw more than there are: p is at least 2 / (D + 1). least, most: what the scores can be, see `interval`.
    """
    draws = min(len(a.values), len(b.values))  # of a score that takes long in one of them there are fewer
    of_a, of_b = a.values[:draws], b.values[:draws]
    values, scale = of_a - of_b, np.maximum(np.abs(of_a), np.abs(of_b))
    values = np.where(np.abs(values) <= TIE * scale, 0.0, values)  # sums in another order
    values, number = values[np.isfinite(values)], min(a.number, b.number)
    if not values.size:
        return None
    low, high = _quantiles(values, number)
    if not (_differ(of_a.min(), of_a.max()) or _differ(of_b.min(), of_b.max())):
        low, high = _of_alike(score, number, least - most, most - least)
    rarer = min(np.sum(values <= 0), np.sum(values >= 0))
    share = (rarer + 1) / (values.size + 1)
    p = 2 * _narrowed(share, number) if share < 0.5 else 1.0
    return {"interval": [min(low, score), max(high, score)], "p": p}


def _quantiles(values: np.ndarray, number: int) -> tuple[float, float]:
    """What lies between LEVEL of draws of so many images, as expanded percentiles."""
    share = _expanded((1 - LEVEL) / 2, number)
    low, high = np.quantile(values, [share, 1 - share])
    return float(low), float(high)


def _expanded(share: float, number: int) -> float:
    """The share of draws of `number` images that lies outside of where `share` should: by Student's t for the normal
    distribution (Wallace, Bounds on Normal Approximations to Student's t, 1959), and n / (n - 1) for the variance."""
    free = number - 1
    normal = NormalDist().inv_cdf(share) * (8 * free + 3) / (8 * free + 1)
    students = np.sqrt(free * np.expm1(normal**2 / free))
    return NormalDist().cdf(-students * np.sqrt(number / free))


def _narrowed(share: float, number: int) -> float:
    """The share whose `_expanded` is this."""
    free = number - 1
    students = NormalDist().inv_cdf(share) * np.sqrt(free / number)
    return NormalDist().cdf(-np.sqrt(free * np.log1p(students**2 / free)) * (8 * free + 1) / (8 * free + 3))


# --- scores on draws -------------------------------------------------------------------------------------------------


def means(values: Mapping[str, np.ndarray], approximate: str = "") -> Resampling:
    """Scores that are means of the regions' scores, {name: (N,), nan = not counted}, or nearly so: see `Resampling`."""
    names = list(values)
    table = np.stack([np.asarray(values[name], np.float64) for name in names], 1)  # (N, K)
    counted = ~np.isnan(table)
    places = np.flatnonzero(counted.any(1))
    table, counted = np.where(counted, table, 0.0), counted.astype(np.float64)

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, _ratio(counts @ table, counts @ counted).T, strict=True))

    return Resampling(values_of, 4 * table.size, approximate, places)


def ratios(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Resampling:
    """Scores that are one sum over the regions divided by another, {name: (above (N,), below (N,))}."""

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _ratio(counts @ above, counts @ below, 0.0) for name, (above, below) in parts.items()}

    return Resampling(values_of, 4 * sum(above.size for above, _ in parts.values()))


def rankings(
    names: Mapping[str, Sequence[int]], labels: np.ndarray, scores: np.ndarray, places: np.ndarray, num_regions: int
) -> Resampling:
    """Mean average precisions: a score is the mean over its columns that have a positive in the draw.

    names: score name -> its columns. labels: (M, K) 1, 0 or -1 = left out; scores: (M, K), equal ones are counted
    together; places: (M,) the rows' places among the N regions.
    """
    columns = []
    for k in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, k] >= 0)
        order = known[np.argsort(-scores[known, k], kind="stable")]
        last_of_equals = np.append(np.diff(scores[order, k]) != 0, True) if order.size else np.zeros(0, bool)
        columns.append((places[order], labels[order, k] == 1, np.flatnonzero(last_of_equals)))

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        table = np.stack([_average_precisions(counts, *column) for column in columns], 1)  # (D, K)
        present = ~np.isnan(table)
        filled = np.where(present, table, 0.0)
        return {name: _ratio(filled[:, list(ks)].sum(1), present[:, list(ks)].sum(1)) for name, ks in names.items()}

    return Resampling(values_of, 10 * labels.size + num_regions, places=places)


def _average_precisions(counts: np.ndarray, order: np.ndarray, right: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(D,) average precision of a ranking whose entries count so often; nan without a positive."""
    if not right.any():
        return np.full(len(counts), np.nan)
    weights = counts[:, order]  # (D, n)
    hits, ranks = np.cumsum(weights * right, 1)[:, last], np.cumsum(weights, 1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0)
    return _ratio((steps * _ratio(hits, ranks, 0.0)).sum(1), hits[:, -1])


def of_sums(table: Sequence[Sequence[float]], scores_of: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Resampling:
    """Scores that follow from sums over the regions: (N, F) what is summed; (D, F) sums -> {score name: (D,)}."""
    table = np.asarray(table, np.float64)
    return Resampling(lambda counts: scores_of(counts @ table), 2 * table.size)


def bleu(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> Resampling:
    """BLEU-1..4 of tokenized texts, the corpus score of pycocoevalcap (closest reference length) on every draw; 0 where
    no n-gram is right, which pycocoevalcap writes as some 1e-5 that depend on how many there are."""

    def scores_of(total: np.ndarray) -> dict[str, np.ndarray]:
        right, guessed = total[:, :4], total[:, 4:8]
        logs = np.cumsum(np.log((right + 1e-15) / (guessed + 1e-9)), 1) / np.arange(1, 5)
        ratio = (total[:, 8] + 1e-15) / (total[:, 9] + 1e-9)
        short = np.where(ratio < 1, 1 - 1 / ratio, 0.0)
        return {f"BLEU-{n + 1}": np.where(right[:, n] > 0, np.exp(logs[:, n] + short), 0.0) for n in range(4)}

    return of_sums([_bleu_counts(text, texts) for text, texts in zip(predicted, expected, strict=True)], scores_of)


def _bleu_counts(text: str, references: Sequence[str]) -> list[int]:
    """Right and guessed n-grams of each length 1..4, words of the text, words of the reference closest in length."""
    words, others = text.split(), [reference.split() for reference in references]
    right, guessed = [], []
    for n in range(1, 5):
        most: Counter = Counter()
        for other in others:
            most |= Counter(zip(*(other[k:] for k in range(n)), strict=False))
        found = Counter(zip(*(words[k:] for k in range(n)), strict=False))
        right.append((found & most).total())
        guessed.append(max(0, len(words) - n + 1))
    closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    return [*right, *guessed, len(words), closest]


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, empty), where=below > 0)
