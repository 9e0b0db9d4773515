"""Every example in a docstring gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("dynrefer", "eval", "train", "data_prep", "bench")
MODULES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for room in ROOMS
    for path in sorted((REPOSITORY / room).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_examples_are_found():
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted, "its examples stand where doctest does not look: only docstrings count"
    assert not result.failed
