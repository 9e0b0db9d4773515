"""Scores beside each other: scores.json files of one protocol in a table, and two models on the same regions.

    python -m eval.compare runs/a/predictions/world runs/b/predictions/world theirs/scores.json
    python -m eval.run --compare ours/predictions.jsonl theirs.json --task refcocog-a

Models, decoding and seeds may differ and are shown; what makes two numbers incomparable is refused, or marked with
--different-protocols. Whether a difference is more than chance is what the second command tells, of two prediction
files: over the same draws of the regions for both.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.errors import run_command

from .evaluate import SCORES, scores_beside
from .metrics.base import Scores
from .predict import file_sha256
from .statistics import difference, samples
from .task import Task

# Keys of scores.json that are the same where numbers compare.
PROTOCOL = ("task", "task_version", "prompt", "boxes", "score_source", "cleaning", "tokenizer", "split")
PROTOCOL += ("data_sha256", "regions", "annotations_sha256", "word_lists")
MAX_MARKS = 12  # that are printed of one file
INTERVAL = "  95 % of draws"


def read_scores(path: str | Path) -> dict[str, Any]:
    """Content of a scores.json, or of the one in a folder; ValueError where there is none."""
    path = Path(path)
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no scores at {str(file)!r}; `python -m eval.run` writes scores.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict) or "task" not in content:
        raise ValueError(f"{file}: no scores with their task in it; expected the scores.json of `python -m eval.run`")
    return content


def protocol_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why the numbers of two scores.json do not compare, "KEY A, not B" each; what one of them does not say differs."""
    reasons = [f"{key} {b.get(key)!r}, not {a.get(key)!r}" for key in PROTOCOL if a.get(key) != b.get(key)]
    boxes = [(content.get("settings", {}).get("boxes") or {}).get("sha256") for content in (a, b)]
    if boxes[0] != boxes[1]:
        reasons.append(f"boxes of sha256 {boxes[1]}, not {boxes[0]}")
    judges = [content.get("settings", {}).get("judge") for content in (a, b)]
    if judges[0] != judges[1]:
        reasons.append(f"judge {judges[1]!r}, not {judges[0]!r}")
    versions = [content.get("metric_versions", {}) for content in (a, b)]
    for name in [name for name in a["scores"] if name in b["scores"] and "/" not in name]:
        first, second = (of.get(name) for of in versions)
        if first != second or first is None:
            reasons.append(f"{name} by {second or 'what it does not say'}, not {first or 'what it does not say'}")
    return reasons


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
                rows[name] |= difference(of_a[name], of_b[name], rows[name]["difference"]) or {}
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


# --- tables ----------------------------------------------------------------------------------------------------------


def table(
    rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> str:
    """Rows of scores as text, from {row: {score}}; parts of scores ("attribute mAP/color") are left out. intervals:
    {row: {score: (low, high)}}, each below its row."""
    names = [n for n in dict.fromkeys(n for row in rows.values() for n in row) if "/" not in n and n != "regions"]
    lines = []
    for row, values in rows.items():
        lines.append((row, [f"{values[n]:.3f}" if n in values else "-" for n in names]))
        if of := (intervals or {}).get(row):
            shown = [f"{of[n][0]:.3f}-{of[n][1]:.3f}" if n in of else "-" for n in names]
            lines.append((INTERVAL, shown))
    widths = [max(len(name), *(len(cells[k]) for _, cells in lines)) for k, name in enumerate(names)]
    width = max(len(row) for row, _ in lines) + 2
    head = " " * width + "  ".join(name.rjust(w) for name, w in zip(names, widths, strict=True))
    return "\n".join(
        [head]
        + [row.ljust(width) + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) for row, cells in lines]
    )


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


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description="Scores of several runs in a table.")
    parser.add_argument("scores", nargs="+", metavar="FILE", help="scores.json files, or the folders that hold them")
    parser.add_argument(
        "--different-protocols", action="store_true", help="show what is not comparable with the first, and mark it"
    )
    return run_command("eval.compare", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    files = {path: read_scores(path) for path in args.scores}
    if len(files) < 2:
        raise ValueError("one file of scores; give at least two that are to stand beside each other")
    first = next(iter(files.values()))
    marks = {path: protocol_differences(first, content) for path, content in files.items() if content is not first}
    marks = {path: reasons for path, reasons in marks.items() if reasons}
    if marks and not args.different_protocols:
        path, reasons = next(iter(marks.items()))
        raise ValueError(
            f"{path} differs from {args.scores[0]} in {'; '.join(map(_short, reasons))}: numbers of different "
            "protocols do not compare; --different-protocols shows them all the same and marks them"
        )
    names = dict(zip(files, _names(files), strict=True))
    rows = {("* " if path in marks else "") + names[path]: content for path, content in files.items()}
    print(f"{first['task']}, {first['regions']} regions of {first['data']}")
    print(
        table(
            {row: content["scores"] for row, content in rows.items()},
            {row: content.get("intervals", {}) for row, content in rows.items()},
        )
    )
    for path, content in files.items():
        print(f"{names[path]}: {', '.join(_facts(content))}")
        for deviation in content.get("deviations", ()):
            print(f"{names[path]}: not the benchmark: {deviation}")
    for path, reasons in marks.items():
        print(f"* DIFFERENT PROTOCOLS: {names[path]}: {'; '.join(map(_short, reasons[:MAX_MARKS]))}")


def _names(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row's name: the model, with the file where several have the same."""
    models = [str(content.get("model", path)) for path, content in files.items()]
    return [m if models.count(m) == 1 else f"{m} ({path})" for m, path in zip(models, files, strict=True)]


def _facts(content: Mapping[str, Any]) -> list[str]:
    """What may differ and explains a difference."""
    settings = {name: value for name, value in content.get("settings", {}).items() if value not in (None, {}, [])}
    generation = settings.pop("generation", {})
    settings = {k: settings[k] for k in ("view_strategy", "control", "tag_threshold", "judge") if k in settings}
    facts = [f"{name}={value}" for name, value in {**generation, **settings}.items()] or ["decoding not known"]
    if "seeds" in content:
        facts.append(f"mean of {len(content['seeds'])} seeds")
    if missing := content.get("regions_without_prediction"):
        facts.append(f"{missing} regions without a prediction")
    return [*facts, str(content.get("date", ""))[:10]]


def _short(reason: str) -> str:
    return reason if len(reason) < 300 else f"{reason[:300]} ..."


if __name__ == "__main__":
    sys.exit(main())
