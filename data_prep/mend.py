"""A copy of a record file in which what can be put right without a doubt is put right: `data_prep.check --fix`."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.record_form import Problems, box_numbers, record_region
from dynrefer.boxes import check_image_hw
from dynrefer.data.arrow import is_table, read_rows
from dynrefer.data.records import record_root
from dynrefer.files import atomic_path, parse_line, read_lines


def mended_path(path: Path, out: Path) -> Path:
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--fix {out}: expected a name that ends with .jsonl or .jsonl.gz")
    if record_root(out).resolve() != record_root(path).resolve():
        raise ValueError(f"--fix {out}: image paths count from {path.parent}; name a file in that folder")
    if out.resolve() == path.resolve():
        raise ValueError(f"--fix {out}: the file itself; name another one, and look at it first")
    return out


def write_mended(
    path: Path, out: Path, form: Problems, repeated: set[int], wrong_size: set[int] | None
) -> tuple[list[tuple[int, str]], set[int], Problems]:
    """Writes the copy. Returns what it has otherwise as (line, text), lines left out, and problems of form left over.

    repeated: lines whose ids stand in others too. wrong_size: lines whose image's size is not certain, None = of all.
    """
    fixes: list[tuple[int, str]] = []
    left, dropped = Problems(), set()
    before: dict[str, set[bytes]] = {}
    wrong = {line for line, _ in form}
    with atomic_path(out) as temporary:
        with gzip.open(temporary, "wb") if out.suffix == ".gz" else open(temporary, "wb") as file:
            rows = read_rows(path) if is_table(path) else read_lines(path)
            for line, raw in until_damaged(rows):
                content = raw
                if isinstance(raw, bytes):
                    if line in wrong or line in repeated:
                        content = parsed(raw)
                    raw = raw.rstrip(b"\r\n") + b"\n"
                else:
                    raw = _json_line(content)
                if line in repeated:
                    same = before.setdefault(content["id"], set())
                    if (text := _json_line(content, sort=True)) in same:
                        fixes.append((line, f"left out, the record {content['id']!r} stands above already"))
                        dropped.add(line)
                        continue
                    same.add(text)
                if line in wrong and isinstance(content, dict) and "turns" not in content:
                    record, changes = mended(content, may_clip=wrong_size is not None and line not in wrong_size)
                    if changes:
                        fixes.extend((line, text) for text in changes)
                        raw = _json_line(record)
                        if problem := record_region(record)[1]:
                            left.add(line, problem)
                        wrong.discard(line)
                file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    for line, text in form:
        if line in wrong and line not in dropped:
            left.add(line, text)
    left.num_more += form.num_more
    return fixes, dropped, left


def until_damaged(rows: Iterator) -> Iterator:
    """Rows as far as they can be read; that there are more was told while checking."""
    try:
        yield from rows
    except ValueError:
        return


def parsed(text: bytes) -> Any:
    try:
        return parse_line(text, "")
    except ValueError:
        return None


def _json_line(content: Any, sort: bool = False) -> bytes:
    return (json.dumps(content, ensure_ascii=False, sort_keys=sort) + "\n").encode("utf-8", "surrogatepass")


def mended(content: dict, may_clip: bool) -> tuple[dict, list[str]]:
    """A record without what is certainly a slip, and what was changed."""
    content, fixes = dict(content), []
    for key in ("captions", "tags"):
        texts = content.get(key)
        if isinstance(texts, list | tuple):
            kept = [text for text in texts if not isinstance(text, str) or text.strip()]
            if len(kept) < len(texts):
                content[key] = kept
                fixes.append(f"{len(texts) - len(kept)} empty {key} left out")
    box = box_numbers(content.get("box"))
    try:
        height, width = check_image_hw(content.get("image_hw"))
    except ValueError:
        may_clip = False
    if may_clip and box and np.isfinite(box).all():
        clipped = [min(max(side, 0), most) for side, most in zip(box, (width, height) * 2, strict=True)]
        if clipped != list(box) and clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            content["box"] = clipped
            fixes.append(f"box {list(box)} clipped to its image, {clipped}")
    return content, fixes
