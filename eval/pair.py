"""Two prediction files on the same regions: each score's difference, its interval and its p-value, over the same draws
of the regions for both. `python -m eval.run --compare A B --task NAME` is the command.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.data.records import RegionRecords
from dynrefer.files import file_sha256, write_json

from . import statistics
from .compare import read_scores
from .evaluate import scores_beside
from .metrics import score_range
from .metrics.base import Scores
from .statistics import difference, samples
from .task import Task


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
                rows[name] |= difference(of_a[name], of_b[name], rows[name]["difference"], *score_range(name)) or {}
    return rows


def other_protocol(path: str, task: Task, data_sha256: str) -> list[str]:
    """What speaks against scoring a predictions file under this task: how the scores of this very file that stand
    beside it were computed, if none were as they would be now."""
    now = {"task": task.name, "task_version": task.version, "data_sha256": data_sha256}
    if "tags" in task.metrics:
        now["tag_threshold"] = task.tag_threshold
    sha256, marks = file_sha256(path) if Path(path).is_file() else None, []
    for scores_path in scores_beside(path):
        try:
            before = read_scores(scores_path)
        except ValueError:  # of another program
            continue
        if sha256 in [of.get("sha256") for of in before.get("predictions", ())]:
            before |= {"tag_threshold": before.get("settings", {}).get("tag_threshold")}
            found = {name: before.get(name) for name, value in now.items() if before.get(name) != value}
            marks.append([f"{path} was scored with {name} {old!r}, not {now[name]!r}" for name, old in found.items()])
    return min(marks, key=len, default=[])


def protocol_marks(paths: Sequence[str], task: Task, records: RegionRecords, allowed: bool) -> list[str]:
    """What speaks against comparing the files under this task; ValueError with it unless it is allowed."""
    sha256 = file_sha256(records.path)
    marks = [mark for path in paths for mark in other_protocol(path, task, sha256)]
    if marks and not allowed:
        raise ValueError(
            f"{'; '.join(marks)}: numbers of different protocols do not compare; --different-protocols does it all the "
            "same and marks them"
        )
    return marks


def print_pair(
    paths: Sequence[str],
    task: Task,
    records: RegionRecords,
    a: Scores,
    b: Scores,
    marks: Sequence[str],
    out: str | None = None,
) -> None:
    """Prints the differences of two files' scores, and writes them into compare.json of a folder. marks: as of
    `protocol_marks`."""
    sha256 = file_sha256(records.path)
    rows = paired(a, b)
    first, second = paths
    print(f"{task.name}, {len(records)} regions of {records.path}")
    print(paired_table(rows, first, second))
    if caution := statistics.caution([*a.resamplings, *b.resamplings], a.groups):
        print(caution)
    for deviation in task.deviations(records, sha256):
        print(f"not the benchmark: {deviation}")
    for mark in marks:
        print(f"DIFFERENT PROTOCOLS: {mark}")
    if out:
        content = {"task": task.name, "task_version": task.version, "protocol": task.protocol, "data_sha256": sha256}
        content |= {"a": first, "b": second, "regions": len(records), "different_protocols": marks, "scores": rows}
        write_json(Path(out) / "compare.json", content)
        print(f"-> {Path(out) / 'compare.json'}")


def paired_table(rows: Mapping[str, Mapping[str, Any]], a: str, b: str) -> str:
    """The rows of `paired` as text; parts of scores ("attribute mAP/color") are left out."""
    lines = [f"A {a}", f"B {b}", f"{'':24}{'A':>8}{'B':>8}{'A - B':>9}  95 % of draws          p"]
    for name, row in rows.items():
        if "/" not in name:
            line = f"{name:24}{row['a']:8.3f}{row['b']:8.3f}{row['difference']:+9.3f}"
            if "p" in row:
                line += f"  {row['interval'][0]:+.3f} ... {row['interval'][1]:+.3f}  {row['p']:7.3f}"
            lines.append(line)
    return "\n".join(lines)
