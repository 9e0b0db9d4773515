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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub that huggingface_hub and transformers talk to, and an empty cache."""
    import shutil

    import transformers
    from huggingface_hub import constants

    from tests.hub_server import Hub

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        hub.forget = lambda: shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        yield hub
