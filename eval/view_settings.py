"""View settings of a sweep, such as fixed:0,0.3: what they are, which t they stand for, which one is best."""

from collections.abc import Mapping

STRATEGIES = ("phash", "joint", "task", "random")


def view_settings(num_views: int, steps: int = 10) -> list[str]:
    """View strategies to measure for a model with V views: fixed ones for each t, then those that choose.

    >>> view_settings(3, steps=2)[:3]
    ['fixed:0,0,0', 'fixed:0,0.5,0.5', 'fixed:0,1,1']

    With one view it is that view's own scale that grows: fixed:0, fixed:0.5, fixed:1. With several, every second t
    also stands alone, all views at it: fixed:1,1,1.
    """
    scales = [f"{step / steps:g}" for step in range(steps + 1)]
    if num_views == 1:
        return [f"fixed:{t}" for t in scales]
    fixed = [",".join(["0"] + [t] * (num_views - 1)) for t in scales]
    alone = [",".join([t] * num_views) for t in scales[2::2]]
    return [f"fixed:{text}" for text in (*fixed, *alone)] + list(STRATEGIES)


def fixed_scale(setting: str) -> float | None:
    """The t of "fixed:0,t,t" (or of the only view); None for other settings."""
    scales = _scales(setting)
    return scales[-1] if scales and (scales[0] == 0 or len(scales) == 1) else None


def lone_scale(setting: str) -> float | None:
    """The t of "fixed:t,t,t", where no view is the region's own unless t is 0; None for other settings."""
    scales = _scales(setting)
    return scales[0] if len(scales) > 1 and len(set(scales)) == 1 else None


def best_settings(rows: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """{score: the setting with the highest}, kinds of attributes included; the first of equals."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: max(rows, key=lambda setting, name=name: rows[setting].get(name, float("-inf"))) for name in names}


def _scales(setting: str) -> list[float]:
    name, _, values = setting.partition(":")
    return [float(t) for t in values.split(",")] if name == "fixed" else []
