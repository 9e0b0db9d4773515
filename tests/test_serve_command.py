"""`dynrefer serve`: what is wrong with its arguments is one line, before anything is loaded."""

import socket

import pytest

from dynrefer import cli
from tests import tiny_dynrefer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_dynrefer.model()
    model.processor = processor
    folder = str(tmp_path_factory.mktemp("tiny") / "tiny")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capsys, folder, monkeypatch):
    """The line that a command ends with."""
    import dynrefer

    monkeypatch.setattr(dynrefer, "load", lambda *args, **kwargs: pytest.fail("nothing may be loaded"))

    def run(*arguments, model=folder):
        assert cli.main(["serve", *arguments, "--model", model]) == 2
        line = capsys.readouterr().err
        assert line.startswith("dynrefer: error: ") and line.count("\n") == 1
        return line

    return run


def test_a_port_in_use_is_named(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be listened on (Address already in use)" in refused("--port", port)
    assert "port 70000: expected 0 to 65535" in refused("--port", "70000")
    assert "nowhere.invalid:8000 cannot be listened on" in refused("--host", "nowhere.invalid")


def test_limits_that_do_not_fit_are_named(refused):
    assert "max-regions 1000 of a request are more than max-queue 10" in refused("--max-queue", "10")
    assert "max-batch 0: expected more than 0" in refused("--max-batch", "0")
    assert "timeout nan: expected a number of at least 0" in refused("--timeout", "nan")


def test_an_empty_key_is_no_open_door(refused, monkeypatch):
    monkeypatch.setenv("DYNREFER_API_KEY", "")
    assert "api-key is empty" in refused()
    assert "api-key is empty" in refused("--api-key", " ")


def test_models_and_their_options_are_checked_first(refused, folder):
    assert "unknown option 'num_beamz'. Did you mean 'num_beams'?" in refused("num_beamz=2")
    assert "expected key=value" in refused("photo.jpg")
    assert "no run folder, model folder or hub id" in refused(model=f"{folder}/nothing")


def test_a_missing_package_is_named_with_the_extra(refused, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "dynrefer serve needs uvicorn: pip install 'dynrefer[serve]'" in refused()
