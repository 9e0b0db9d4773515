"""Two models on the same regions: is the difference of their scores more than chance?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .scoring import Scores
from .statistics import difference, samples

if TYPE_CHECKING:
    from .tasks import Task


def paired(a: Scores, b: Scores, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{score name: {"a", "b", "difference": a - b, "interval": [low, high], "p"}}; interval and p, over the same draws
    for both, are left out where the score has none. ValueError: scores of other regions."""
    if a.items.keys() != b.items.keys():
        raise ValueError(f"scores of {len(a.items)} and {len(b.items)} regions that are not the same; score both alike")
    of_a, of_b = (samples(scores.resamplings, scores.groups, seed) for scores in (a, b))
    rows: dict[str, dict[str, Any]] = {}
    for name in a.corpus:
        if name in b.corpus:
            rows[name] = {"a": a.corpus[name], "b": b.corpus[name], "difference": a.corpus[name] - b.corpus[name]}
            if name in of_a and name in of_b:
                draws = min(len(of_a[name]), len(of_b[name]))
                rows[name] |= difference(of_a[name][:draws], of_b[name][:draws], rows[name]["difference"]) or {}
    return rows


def other_protocol(path: str, task: "Task", data_sha256: str, scores_path: Path) -> list[str]:
    """What speaks against scoring a predictions file under this task, from the scores that stand beside it."""
    if not scores_path.is_file():
        return []
    before: Mapping[str, Any] = json.loads(scores_path.read_text(encoding="utf-8"))
    now = {"task": task.name, "task_version": task.version, "data_sha256": data_sha256}
    return [
        f"{path} was scored with {name} {before[name]!r}, not {value!r}"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def table(rows: Mapping[str, Mapping[str, Any]], a: str, b: str) -> str:
    """The rows of `paired` as text; parts of scores ("attribute mAP/color") are left out."""
    lines = [f"A {a}", f"B {b}", f"{'':24}{'A':>8}{'B':>8}{'A - B':>9}  95 % of draws          p"]
    for name, row in rows.items():
        if "/" not in name:
            line = f"{name:24}{row['a']:8.3f}{row['b']:8.3f}{row['difference']:+9.3f}"
            if "p" in row:
                line += f"  {row['interval'][0]:+.3f} ... {row['interval'][1]:+.3f}  {row['p']:7.3f}"
            lines.append(line)
    return "\n".join(lines)
