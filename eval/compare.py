"""Scores of scores.json files beside each other, of one protocol in a table.

    python -m eval.compare runs/a/predictions/world runs/b/predictions/world theirs/scores.json

Models, decoding and seeds may differ and are shown; what makes two numbers incomparable is refused, or marked with
--different-protocols. Whether a difference is more than chance is told by `python -m eval.run --compare` of two
prediction files (`eval/pair.py`).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.errors import Parser, run_command
from dynrefer.files import read_text

from .evaluate import SCORES

# Keys of scores.json that are the same where numbers compare.
PROTOCOL = ("task", "task_version", "prompt", "boxes", "score_source", "cleaning", "tokenizer", "split")
PROTOCOL += ("data_sha256", "regions", "annotations_sha256", "word_lists")
NO_FACTS = ("model", "records", "seed", "batch_size", "dtype")  # settings that explain no difference
MAX_MARKS = 12  # that are printed of one file
INTERVAL = "  95 % of draws"


def read_scores(path: str | Path) -> dict[str, Any]:
    """Content of a scores.json, or of the one in a folder; ValueError where there is none."""
    path = Path(path)
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no scores at {str(file)!r}; `python -m eval.run` writes scores.json")
    try:
        content = json.loads(read_text(file))
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


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input."""
    parser = Parser(prog="python -m eval.compare", description="Scores of several runs in a table.")
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
    settings = {k: v for k, v in settings.items() if k not in NO_FACTS and not isinstance(v, (list, Mapping))}
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
