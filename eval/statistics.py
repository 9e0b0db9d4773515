"""How sure a score is: bootstrap intervals of one model's scores, paired differences of two models' scores.

A draw takes as many images as there are, some twice and some not at all, each with all its regions: regions of one
image are not independent of each other. (Of fewer than MIN_GROUPS images, regions are drawn one by one.) Scores are
computed anew on 1,000 draws; 95 % of them lie in the interval, which is moved to lie around the score. Draws follow
from a seed: two models are scored on the same ones, so their difference is paired.

A score on a draw is a function of counts (D, N), how often each of N regions is in each of D draws: see `means`,
`bleu`, `rankings`, `ratios`.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, MIN_DRAWS, MIN_GROUPS = 1000, 200, 10
LEVEL = 0.95
WORK = 4e9  # operations that the draws of one metric may take, some seconds; fewer draws where it is not enough
CHUNK = 4_000_000  # counts held at a time


@dataclass(frozen=True)
class Resampling:
    """Scores on draws. values: counts (D, N) -> {score name: (D,)}; work: rough operations a draw; approximate: what
    keeps it from being the score computed anew, "" where it is."""

    values: Callable[[np.ndarray], dict[str, np.ndarray]]
    work: float
    approximate: str = ""

    @property
    def draws(self) -> int:
        """How many draws are affordable; 0 where they would be too few for an interval."""
        draws = int(min(DRAWS, WORK // max(1.0, self.work)))
        return draws if draws >= MIN_DRAWS else 0


def draw_counts(groups: Sequence[Hashable], draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of N regions is drawn, (D, N) float arrays that make up all draws; groups: (N,) what is drawn
    together, the image of every region. The first draws are the same for any number of draws."""
    _, places = np.unique(np.asarray(groups), return_inverse=True)
    if unit_of(groups) == "regions":
        places = np.arange(len(groups))
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


def samples(resamplings: Sequence[Resampling], groups: Sequence[Hashable], seed: int = 0) -> dict[str, np.ndarray]:
    """{score name: (D,) its values on the draws}; scores whose draws are not affordable are left out."""
    found: dict[str, np.ndarray] = {}
    for resampling in resamplings:
        parts = [resampling.values(counts) for counts in draw_counts(groups, resampling.draws, seed)]
        for name in parts[0] if parts else ():
            found[name] = np.concatenate([part[name] for part in parts])
    return found


def interval(values: np.ndarray, score: float) -> list[float] | None:
    """[low, high] between which LEVEL of the values lie, once these are moved so that their mean is the score: draws
    of rankings are too good where few regions are right, since a right one that is drawn twice is found twice. The
    score is within it, and nothing below 0 or above 1 where no draw is. Draws without a value (nan) do not count; None
    without any."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = _moved(values, score)
    least, most = (0.0 if values.min() >= 0 else -np.inf), (1.0 if values.max() <= 1 else np.inf)
    return [float(min(score, max(low, least))), float(max(score, min(high, most)))]


def _moved(values: np.ndarray, score: float) -> tuple[float, float]:
    low, high = np.quantile(values + (score - values.mean()), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(a: np.ndarray, b: np.ndarray, score: float) -> dict[str, float | list[float]] | None:
    """Interval and two-sided p-value of a difference of scores, from the same draws (D,) of both: {"interval": [low,
    high], "p"}, None without a draw that has both. p is twice the share of draws on the rarer side of 0, at least
    2 / (D + 1)."""
    both = (a - b)[np.isfinite(a - b)]
    if not both.size:
        return None
    moved = both + (score - both.mean())  # as in `interval`
    rarer = min(np.sum(moved <= 0), np.sum(moved >= 0))
    return {"interval": list(_moved(both, score)), "p": float(min(1.0, 2 * (rarer + 1) / (both.size + 1)))}


# --- scores on draws -------------------------------------------------------------------------------------------------


def means(values: Mapping[str, np.ndarray], approximate: str = "") -> Resampling:
    """Scores that are means of the regions' scores, {name: (N,), nan = not counted}, or nearly so: see `Resampling`."""
    names = list(values)
    table = np.stack([np.asarray(values[name], np.float64) for name in names], 1)  # (N, K)
    counted = ~np.isnan(table)
    table, counted = np.where(counted, table, 0.0), counted.astype(np.float64)

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, _ratio(counts @ table, counts @ counted).T, strict=True))

    return Resampling(values_of, 4 * table.size, approximate)


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

    return Resampling(values_of, 10 * labels.size + num_regions)


def _average_precisions(counts: np.ndarray, order: np.ndarray, right: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(D,) average precision of a ranking whose entries count so often; nan without a positive."""
    if not right.any():
        return np.full(len(counts), np.nan)
    weights = counts[:, order]  # (D, n)
    hits, ranks = np.cumsum(weights * right, 1)[:, last], np.cumsum(weights, 1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0)
    return _ratio((steps * _ratio(hits, ranks, 0.0)).sum(1), hits[:, -1])


def bleu(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> Resampling:
    """BLEU-1..4 of tokenized texts, the corpus score of pycocoevalcap (closest reference length) on every draw."""
    sums = np.array([_bleu_counts(text, texts) for text, texts in zip(predicted, expected, strict=True)], np.float64)

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        total = counts @ sums  # (D, 10)
        right, guessed = total[:, :4], total[:, 4:8]
        logs = np.cumsum(np.log((right + 1e-15) / (guessed + 1e-9)), 1) / np.arange(1, 5)
        ratio = (total[:, 8] + 1e-15) / (total[:, 9] + 1e-9)
        short = np.where(ratio < 1, 1 - 1 / ratio, 0.0)
        return {f"BLEU-{n + 1}": np.exp(logs[:, n] + short) for n in range(4)}

    return Resampling(values_of, 4 * sums.size)


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
