"""One run of a name at a time: whoever trains holds a lock on the run's folder, which ends with the process.

with held(folder, accelerator):
    ...
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from train import launch

FILE = "lock"  # in the run's folder while it is held; it names the process for others
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what file systems without locks say


@contextlib.contextmanager
def held(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Within it this run alone works in `folder`, which is made; removed again where nothing was put into it.

    Every process calls it, the main one holds the lock. A kill releases it too. ValueError on every process where
    another run holds the folder; an OSError for a folder that cannot be made or written.
    """
    lock: list[int] = []
    launch.on_main(accelerator, lambda: lock.append(_take(folder)))
    try:
        yield
    finally:
        for file in lock:
            _release(folder, file)


def entries(folder: Path) -> list[Path]:
    """What stands in a run's folder, the lock aside; nothing where there is no folder."""
    return [path for path in folder.iterdir() if path.name != FILE] if folder.exists() else []


def _take(folder: Path) -> int:
    """The open lock file."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(path)
            os.close(file)
            raise ValueError(
                f"run folder {str(folder)!r} is held by {holder}, which trains there now; wait for it or stop it, or "
                "choose another name=..."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(file)
                raise
            print(
                f"{folder}: this file system has no locks; make sure that no other run of this name is at work",
                file=sys.stderr,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):
                break
        os.close(file)  # of a run that has just ended and removed it
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(file, 0)
    os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode() + b"\n")
    # a loader's worker that outlives a killed run for some seconds must not go on holding its folder
    os.register_at_fork(after_in_child=lambda: _close(folder, file))
    _HELD.add((folder, file))
    return file


_HELD: set[tuple[Path, int]] = set()


def _close(folder: Path, file: int) -> None:
    if (folder, file) in _HELD:
        _HELD.remove((folder, file))
        os.close(file)


def _release(folder: Path, file: int) -> None:
    with contextlib.suppress(OSError):  # a disk that has become read-only; the lock ends with the file's closing
        (folder / FILE).unlink(missing_ok=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    _close(folder, file)


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']} (since {known['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is just writing it
        return "another process"
