"""What test modules share."""

import pytest


@pytest.fixture
def data(tmp_path):
    """A folder with train.jsonl, test.jsonl, images and word lists (`tests/cups.py`)."""
    from tests.cups import write_cups

    return write_cups(tmp_path)


@pytest.fixture
def tiny(monkeypatch, data):
    """A task called tiny, and one model whatever is named: (the folder of `data`, models that were loaded so far)."""
    import eval.run as run
    from eval.benchmarks import TASKS
    from eval.task import Task
    from tests.cups import TASK, Model

    monkeypatch.setitem(TASKS, "tiny", Task(**{**vars(TASK), "data": str(data / "test.jsonl")}))
    models = []
    monkeypatch.setattr(run, "load_model", lambda args: models.append(Model()) or models[-1])
    return data, models
