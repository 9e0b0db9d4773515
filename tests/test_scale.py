"""The bench of scale runs: every section prints its rows, also for a few images."""

import pytest

from bench import scale


@pytest.mark.slow
def test_a_section_prints_its_rows(capsys):
    scale.main(["open", "--images", "40"])
    printed = capsys.readouterr().out
    for row in ("floor", "pycocotools' index", "folder of save_arrow: opened", "its rows alone: opened", "in a worker"):
        assert row in printed
    assert printed.startswith("open: ") and "2,000 regions, ids known to be unique" in printed


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        scale.main(["opne"])
    assert "no section 'opne'; there are open, pass, convert" in capsys.readouterr().err
