"""docs/benchmarks.md: every task's records can be made, with a command that the converter accepts."""

import re
from pathlib import Path

import pytest

from data_prep.dlc_bench import QUESTIONS
from data_prep.ref_l4 import SHA256
from eval.tasks import TASKS
from tests.test_readme import parse_only, read_commands

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
COMMANDS = read_commands(PAGE)


def rows() -> dict[str, tuple[str, str]]:
    """task -> (records, regions) of the table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if "| `" in line]
    table = {row[0].strip("`"): (row[2].strip("`"), row[3]) for row in cells if len(row) == 5}
    assert len(table) == sum(len(row) == 5 for row in cells), "a task stands there twice"
    return table


def option(command, name: str) -> str | None:
    words = command.arguments
    return words[words.index(name) + 1] if name in words else None


def written(command) -> list[str]:
    """The record files that a command writes."""
    out = option(command, "--out")
    if out.endswith(".jsonl"):
        return [out]
    splits = [option(command, "--split")] if option(command, "--split") else ["train", "val", "test"]
    return [f"{out}/{split}.jsonl" for split in splits]


def test_every_task_has_its_row_and_a_command_that_writes_its_records():
    assert rows().keys() == TASKS.keys()
    records = {path for command in COMMANDS for path in written(command)}
    for name, task in TASKS.items():
        path, regions = rows()[name]
        assert path == task.data and path in records, name
        assert regions == ("-" if task.num_regions is None else f"{task.num_regions:,}"), name


def test_a_tasks_annotations_are_written_or_are_what_a_converter_reads():
    written_beside = {str(Path(option(c, "--out")).parent / QUESTIONS) for c in COMMANDS if "dlc_bench" in c.module}
    read = {option(command, "--annotations") for command in COMMANDS}
    wanted = {task.annotations for task in TASKS.values() if task.annotations}
    assert wanted and wanted <= written_beside | read
    assert all(f"`{path}`" in PAGE for path in wanted)


def test_a_command_says_the_split_that_its_task_scores():
    scored = {task.data: task.split for task in TASKS.values()}
    for command in COMMANDS:
        for path in written(command):
            split = option(command, "--split")
            if scored.get(path) and split:
                assert split == scored[path], str(command)


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{c.module} {option(c, '--out')}" for c in COMMANDS])
def test_converters_accept_their_commands(command, monkeypatch):
    parse_only(command, monkeypatch)


def test_hashes_are_the_converters():
    assert set(SHA256.values()) <= set(re.findall(r"\b[0-9a-f]{64}\b", PAGE))
