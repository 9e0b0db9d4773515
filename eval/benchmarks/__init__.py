"""The benchmarks: a YAML file each, named as the benchmark, with the fields of `Task` that differ from its defaults.

A new one is such a file and, where no metric fits, a file in `eval/metrics`. `base: other.yaml` starts from another;
names with _ in front are such bases and no benchmarks themselves.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dynrefer.config import from_dict, read_yaml
from dynrefer.errors import suggestion

from ..metrics import check_task
from ..task import Task


def load_task(path: str | Path) -> Task:
    """The task of a file; ValueError names the file and its fault."""
    path = Path(path)
    fields = read_yaml(path)
    if "name" in fields:
        raise ValueError(f"{path}: name {fields['name']!r}: a benchmark is named as its file; leave the key out")
    task = from_dict(Task, fields | {"name": path.stem}, str(path))
    try:
        return check_task(task)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_tasks(folder: str | Path) -> dict[str, Task]:
    """{name: task} of a folder, in the order of names."""
    paths = sorted(path for path in Path(folder).glob("*.yaml") if not path.name.startswith("_"))
    return {path.stem: load_task(path) for path in paths}


TASKS = load_tasks(Path(__file__).parent)


def get_task(name: str, **changes: Any) -> Task:
    """The task of this name, with some fields replaced; ValueError with the nearest name for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}.{suggestion(name, TASKS)} Known: {', '.join(TASKS)}.")
    return check_task(replace(TASKS[name], **{key: value for key, value in changes.items() if value is not None}))
