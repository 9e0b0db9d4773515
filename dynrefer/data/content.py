"""What record files hold, as a hash: a run that goes on must find the records that it began with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynrefer.data.shards import REMOTE, Shards
from dynrefer.files import file_sha256

WHOLE = 1 << 30  # bytes of a file up to which all of it counts
BLOCK, BLOCKS = 1 << 16, 1024  # of a larger one: so many blocks, evenly spread, and its size


def content_of(records: Any) -> list[dict]:
    """[{"path", "regions", "hash"}] of every file, folder or list of shards that opened records come from, in order.

    JSON lines, Arrow and Parquet: of their bytes; larger files than 1 GiB by their size and 64 MiB of them. A folder of
    `datasets`: its fingerprint and its files' sizes. Shards: their index, and the sizes of those that lie here. Images
    beside the records do not count.
    """
    return [
        {
            "path": str(part.path),
            "regions": len(part),
            "hash": _shards_hash(part) if isinstance(part, Shards) else path_hash(Path(part.path)),
        }
        for part in _parts(records)
    ]


def _parts(records: Any) -> Iterator[Any]:
    for part in getattr(records, "parts", [records]):
        yield from _parts(part) if hasattr(part, "parts") else [part]


def path_hash(path: Path) -> str:
    """Of a file's bytes, or of a folder that `datasets` has saved."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.relative_to(path).as_posix()
        if file.suffix == ".arrow":
            digest.update(f"{name} {file.stat().st_size}\n".encode())
    state = path / "state.json"
    known = json.loads(state.read_text(encoding="utf-8")).get("_fingerprint") if state.is_file() else None
    if known is None:
        for file in sorted(path.rglob("*.arrow")):
            digest.update(file_hash(file).encode())
    digest.update(f"{known}".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    size = os.path.getsize(path)
    if size <= WHOLE:
        return file_sha256(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with open(path, "rb") as file:
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _shards_hash(shards: Shards) -> str:
    digest = hashlib.sha256(shards.counts.tobytes() + shards.first_image.tobytes())
    for url in shards.urls:
        size = "" if REMOTE.match(url) else os.path.getsize(url)
        digest.update(f"{Path(url).name} {size}\n".encode())
    return digest.hexdigest()
