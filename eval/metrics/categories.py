"""Categories (one name a region): accuracy."""

from collections.abc import Mapping


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
