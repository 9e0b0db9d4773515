"""Scores of a word list -> the words of every region, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def ranked(names: Sequence[str], scores: Tensor, above: float = -np.inf, most: int | None = None) -> list[list[dict]]:
    """Of each region [{"name", "score"}] of its scores above a bound, best first, at most so many; equal scores in the
    list's order. scores (R, K); NaN is above nothing. Only what lies above the bound is sorted, all regions at once.

    >>> import torch
    >>> [[word["name"] for word in row] for row in ranked("abc", torch.tensor([[1, 3, 2], [0, 0, 5]]), above=0.5)]
    [['b', 'c', 'a'], ['c']]
    """
    values = scores.cpu().numpy()
    kept = values > above
    if most is not None and most < values.shape[1]:  # of long lists only the best are sorted, and all that equal them
        known = np.where(kept, values, -np.inf)
        kept &= values >= np.partition(known, -most, axis=1)[:, -most, None]
    where = np.flatnonzero(kept)  # region by region, in the list's order
    rows, columns = np.divmod(where, max(values.shape[1], 1))
    chosen = values.reshape(-1)[where]
    order = np.lexsort((-chosen, rows))  # stable
    columns, chosen = columns[order].tolist(), chosen[order].tolist()
    ends = np.bincount(rows, minlength=len(values)).cumsum().tolist()
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True) if ends else ():
        span = slice(start, end if most is None else min(end, start + most))
        words = zip(columns[span], chosen[span], strict=True)
        found.append([{"name": names[column], "score": score} for column, score in words])
    return found
