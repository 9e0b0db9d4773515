"""What all commands share: a mistake in input or settings is one line and exit status 2, not a traceback."""

import argparse
import contextlib
import difflib
import errno
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

MISTAKE = 2
INTERRUPTED = 130  # as a shell says of a command that Ctrl-C has ended
NEXT_STEP = {  # of the operating system's errors
    errno.ENOSPC: "make room, or write somewhere else",
    errno.EDQUOT: "make room, or write somewhere else",
    errno.EFBIG: "make room, raise the limit (`ulimit -f`), or write somewhere else",
    errno.EROFS: "write somewhere else",
    errno.EACCES: "change who may read and write there, or choose another path",
    errno.EPERM: "change who may read and write there, or choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
}
FULL = {  # the same in words that users search for
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full for this user (quota)",
    errno.EFBIG: "disk full or at its limit of a file's size",
}
# what other libraries' writers say of a full disk, in errors that are no OSError or carry no number
FULL_TEXTS = ("No space left on device", "os error 28)", "PytorchStreamWriter failed writing", "unexpected pos ")
KINDS = {"int": "a whole number", "float": "a number"}  # of an option's value: argparse's word -> ours
# errors of these kinds, but for those below, are a mistake of this program and keep their traceback
OWN_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)


def message(error: BaseException) -> str:
    """What a command says of an error; of the operating system's: the file, what is wrong and the next step; of one in
    a loader's worker process: what it would say in this one."""
    if isinstance(error, OSError) and error.errno in NEXT_STEP:
        file = "" if error.filename is None else f"{shown_path(error.filename)}: "
        return f"{file}{FULL.get(error.errno, error.strerror)}; {NEXT_STEP[error.errno]}"
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # by torch, in a loader's worker process
        return text.splitlines()[-1].partition(": ")[2]
    if not isinstance(error, ValueError) and any(part in text for part in FULL_TEXTS):
        return f"{FULL[errno.ENOSPC]} ({first_line(error)}); {NEXT_STEP[errno.ENOSPC]}"
    return text or type(error).__name__


def first_line(error: BaseException) -> str:
    """Of another library's error: its first line that is not blank, or its kind; at most 200 characters."""
    return cut(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__), 200)


def cut(text: str, length: int = 100) -> str:
    """
    >>> cut("a long value of a user's", 12)
    'a long va...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."


def shown(value: Any) -> str:
    """A value as Python writes it, at most 100 characters; a whole number of thousands of digits, which Python refuses
    to write, by its kind.

    >>> shown([10**5000])
    'a list with a number of thousands of digits'
    """
    try:
        return cut(repr(value))
    except ValueError:
        kind = type(value).__name__
        return "a number of thousands of digits" if kind == "int" else f"a {kind} with a number of thousands of digits"


def shown_path(path: Any) -> str:
    """A path as it stands, the middle of a very long one left out."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-60:]}"


def run_command(name: str, command: Callable[[Any], int | None], args: Any, stopped: str = "stopped") -> int:
    """The exit status of a command: its own (None = 0), 2 after a mistake, or 130 after Ctrl-C. Both are printed in a
    line (DYNREFER_DEBUG=1 shows where they came from); `stopped`: what is said after Ctrl-C. args: a namespace, or
    what else the command takes.

    A reader of the output that has read enough, as in `COMMAND | head`, ends the command with status 0.
    """
    if sys.stdout is None:  # `>&-`
        return _say(name, "error: standard output is closed; send it to a file, or to /dev/null")
    try:
        status = command(args) or 0
        with naming_output():
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _leave_at_once_when_interrupted_again()
        if os.environ.get("DYNREFER_DEBUG"):
            raise
        if os.environ.get("RANK", "0") == "0":  # Ctrl-C reaches all processes
            _say(name, stopped)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            _forget_output()
            return 0
        if os.environ.get("DYNREFER_DEBUG") or isinstance(error, OWN_MISTAKES):
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _forget_output()
        return _say(name, f"error: {' '.join(message(error).split())}")


@contextmanager
def naming_output() -> Iterator[None]:
    """Within it an OSError that names no file, as that of a full disk, names the standard output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _say(name: str, text: str) -> int:
    with contextlib.suppress(OSError):  # nobody listens
        if sys.stderr is not None:
            print(f"{name}: {text}", file=sys.stderr, flush=True)
    return MISTAKE


def _reader_has_left() -> bool:
    """Whether nobody reads the standard output any more; the broken pipe may be another one, to a server."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # an end without a reader is told in any case
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system
        return True


def _forget_output() -> None:
    """What is still to be written to the standard output goes nowhere, so that Python's exit does not try again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_at_once_when_interrupted_again() -> None:
    """A second Ctrl-C, while this process ends, must not print a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: Any) -> None:
    if "multiprocessing" in sys.modules:  # workers would wait for this process for ever
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()
    os._exit(INTERRUPTED)


def quiet_interrupts() -> None:
    """Ctrl-C while a command's modules are imported ends in a line too, where one is started by `python -m`."""
    if sys.argv[:1] != ["-m"]:  # what stands there until the module itself runs
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if kind is KeyboardInterrupt and not os.environ.get("DYNREFER_DEBUG"):
            _say("python", "stopped")
        else:
            before(kind, error, trace)

    sys.excepthook = hook


class Parser(argparse.ArgumentParser):
    """Of a command's arguments. A wrong one is told in a line, without the usage, and the status is 2."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, text: str) -> NoReturn:
        text = text.removeprefix("argument ")
        extra = text.partition("unrecognized arguments: ")[2]
        kind = re.fullmatch(r"(.+?): invalid (int|float) value: (.*)", text, re.DOTALL)
        unknown = self._unknown_option() or extra.split(" ")[0]
        if kind:
            text = f"{kind[1]} {cut(kind[3])}: expected {KINDS[kind[2]]}"
        elif unknown and "required" in text or extra.startswith("-"):
            text = f"unknown option {shown(unknown)}.{suggestion(unknown, self._option_string_actions)}"
        elif extra:
            text = f"unknown argument {shown(extra)}"
        text = " ".join(cut(text, 1000).rstrip(".").split())
        text += " " if text.endswith("?") else "; "
        self.exit(_say(self._name(), f"error: {text}`{self.prog} --help` shows the options"))

    def exit(self, status: int = 0, text: str | None = None) -> NoReturn:
        super().exit(status or run_command(self._name(), lambda _: None, None), text)  # what was printed is flushed

    def _print_message(self, text: str, file: Any = None) -> None:
        """argparse's one place for help and version, which forgives an output that cannot be written."""
        if file is not None and file is sys.stderr:
            super()._print_message(text, file)
        elif status := run_command(self._name(), lambda _: print(text, end="", file=file), None):
            super().exit(status)

    def _unknown_option(self) -> str:
        """The first given, which argparse does not tell where a required one is missing; or ""."""
        names = [word.partition("=")[0] for word in self._given if word.startswith("--") and word != "--"]
        return next((n for n in names if not any(o.startswith(n) for o in self._option_string_actions)), "")

    def _name(self) -> str:
        return self.prog.removeprefix("python -m ").split(" ")[0]


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
