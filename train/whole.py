"""Whether a checkpoint is whole: hashes of its files, written when it is saved and compared before it is resumed."""

import hashlib
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dynrefer.files import file_sha256, write_json

LOOP_FILE = "loop.json"
NEEDED = ("step", "epoch", "seconds", "best", "best_step", "processes", "zero_stage", "settings")


def write_loop(checkpoint: Path, loop: dict) -> None:
    """Writes loop.json, the checkpoint's last file, with the hashes of all others and of its own content."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        found = zip(paths, pool.map(file_sha256, paths), strict=True)
        hashes = {path.relative_to(checkpoint).as_posix(): value for path, value in found}
    loop = json.loads(json.dumps(loop | {"files": hashes}))
    write_json(checkpoint / LOOP_FILE, loop | {"hash": _hash_of(loop)})


def read_loop(checkpoint: Path) -> dict:
    """loop.json; ValueError in one line where it is damaged."""
    path = checkpoint / LOOP_FILE
    try:
        loop = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: missing") from None
    except (ValueError, RecursionError) as error:
        size = path.stat().st_size
        raise ValueError(f"{path}: {'empty' if not size else f'no JSON ({error})'}") from None
    if not isinstance(loop, dict) or (missing := [name for name in NEEDED if name not in loop]):
        lacks = f"lacks {missing[0]!r}" if isinstance(loop, dict) else "is no object"
        raise ValueError(f"{path}: {lacks}")
    if "hash" in loop and loop["hash"] != _hash_of({name: v for name, v in loop.items() if name != "hash"}):
        raise ValueError(f"{path}: not what was written (its hash differs)")
    return loop


def faults(checkpoint: Path) -> list[str]:
    """["state/optimizer.pt: cut off or changed", ...]: the files that are not as they were saved; [] for a whole one.

    A checkpoint of version 0.3.0 has no hashes: of it loop.json and the archives of the state are looked at.
    """
    try:
        loop = read_loop(checkpoint)
    except (ValueError, OSError) as error:
        return [str(error).removeprefix(f"{checkpoint}/")]
    if "files" not in loop:
        archives = sorted(checkpoint.glob("state/*.pt"))
        return [f"{path.relative_to(checkpoint)}: damaged" for path in archives if not _whole_archive(path)]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda item: _fault(checkpoint / item[0], item[1]), loop["files"].items())
        return [f"{name}: {fault}" for name, fault in zip(loop["files"], found, strict=True) if fault]


def _fault(path: Path, expected: str) -> str | None:
    try:
        if not path.is_file():
            return "missing"
        if not path.stat().st_size:
            return "empty" if expected != hashlib.sha256(b"").hexdigest() else None
        return None if file_sha256(path) == expected else "not what was saved (its hash differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _whole_archive(path: Path) -> bool:
    """Of torch.save: a zip with check sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def _hash_of(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
