"""The bench of scale runs: every section prints its rows, also for a few images."""

import re

import pytest

from bench import scale


@pytest.mark.slow
def test_a_section_prints_its_rows(capsys):
    scale.main(["open", "--images", "40"])
    printed = capsys.readouterr().out
    assert printed.startswith("open: ")
    rows = re.findall(r"^ {2,4}(\S.*?) {2,}([\d,.]+) (?:s|us|/s) +(\S.*)$", printed, re.MULTILINE)
    opened = [("ready for batches", "images known, first step planned"), ("a step planned", "50 regions, an image")]
    opened.append(("records read", "image by image, in random order"))
    assert [(name, note.split("   ")[-1]) for name, _, note in rows] == [
        ("floor: the file read through", "0.00 GB, in the system's cache"),
        ("pycocotools' index: made", "2,000 regions"),
        ("folder of save_arrow: opened", "2,000 regions, ids known to be unique"),
        *opened,
        ("its rows alone: opened", "2,000 regions, ids known to be unique"),
        *opened,
    ]
    assert all(float(value.replace(",", "")) > 0 for name, value, _ in rows if name == "records read")
    assert printed.count("in a worker") == 2


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        scale.main(["opne"])
    assert "no section 'opne'; there are open, pass, convert" in capsys.readouterr().err
