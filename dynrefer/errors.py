"""What all commands share: a mistake in input or settings is one line and exit status 2, not a traceback."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

MISTAKE = 2
INTERRUPTED = 130  # as a shell says of a command that Ctrl-C has ended
NEXT_STEP = {  # of the operating system's errors
    errno.ENOSPC: "make room, or write somewhere else",
    errno.EDQUOT: "make room, or write somewhere else",
    errno.EFBIG: "raise the limit (`ulimit -f`), or write somewhere else",
    errno.EROFS: "write somewhere else",
    errno.EACCES: "change who may read and write there, or choose another path",
    errno.EPERM: "change who may read and write there, or choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def message(error: BaseException) -> str:
    """What a command says of an error; of the operating system's: the file, what is wrong and the next step; of one in
    a loader's worker process: what it would say in this one."""
    if isinstance(error, OSError) and error.errno in NEXT_STEP:
        file = "" if error.filename is None else f"{error.filename}: "
        return f"{file}{error.strerror}; {NEXT_STEP[error.errno]}"
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # by torch, in a loader's worker process
        return text.splitlines()[-1].partition(": ")[2]
    return text


def first_line(error: BaseException) -> str:
    """Of another library's error: its first line that is not blank, or its kind; at most 200 characters."""
    return cut(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__), 200)


def cut(text: str, length: int = 100) -> str:
    """
    >>> cut("a long value of a user's", 12)
    'a long va...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."


def run_command(name: str, command: Callable[[Any], int | None], args: Any, stopped: str = "stopped") -> int:
    """The exit status of a command: its own (None = 0), 2 after a mistake, or 130 after Ctrl-C. Both are printed in a
    line (DYNREFER_DEBUG=1 shows where they came from); `stopped`: what is said after Ctrl-C. args: a namespace, or
    what else the command takes."""
    try:
        return command(args) or 0
    except BrokenPipeError:  # `COMMAND | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, ValueError, RuntimeError, OSError, ImportError) as error:
        if os.environ.get("DYNREFER_DEBUG"):
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        if not interrupted or os.environ.get("RANK", "0") == "0":  # Ctrl-C reaches all processes
            said = stopped if interrupted else f"error: {' '.join(message(error).split())}"
            print(f"{name}: {said}", file=sys.stderr)
        return INTERRUPTED if interrupted else MISTAKE


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'lr'?" where a known name is close to `name`, else ""."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_keys(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """ValueError that names the first unknown key, the nearest known one and all known ones; it starts with `what`."""
    known = list(known)
    for key in given:
        if key not in known:
            names = ", ".join(sorted(map(str, known))) or "none"
            raise ValueError(f"{what}: unknown key {key!r}.{suggestion(key, known)} Known keys: {names}.")
