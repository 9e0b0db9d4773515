"""Versions of what computes scores: packages, and files by their content."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version(name: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package(name: str) -> str:
    """ "NAME VERSION" of a package."""
    return f"{name} {package_version(name)}"


@cache
def file_version(path: Path) -> str:
    """ "(NAME sha256 ...)" of a file."""
    return f"({path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
