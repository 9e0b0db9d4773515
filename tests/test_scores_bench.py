"""The bench of scoring runs on a few captions and images."""

import re

import pytest

from bench import scores


@pytest.mark.slow
def test_commands_and_the_loop_are_measured(capsys):
    scores.main(["--captions", "60", "--images", "12"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^ {2,4}(\S.*?) {2,}([\d.]+) (?:s|ms an image) ", printed, re.MULTILINE)
    names = ["60 captions", "12 images of 50 boxes: matching and AP", "the plain loop", "with METEOR", "the command"]
    assert [name for name, _ in rows] == names
    assert all(float(value) > 0 for name, value in rows if name in ("60 captions", "the command"))
    assert printed.count("GB at most, load ") == 2
    assert "largest difference of the 30 average precisions 0" in printed


def test_sentences_have_the_lengths_of_visual_genomes_and_repeat():
    texts = scores.Sentences(0)(2000)
    lengths = [len(text.split()) for text in texts]
    assert 4.5 < sum(lengths) / 2000 < 6 and max(lengths) > 15 and min(lengths) >= 1
    assert scores.Sentences(0)(2000) == texts and len({word for text in texts for word in text.split()}) > 1000
    said = scores.Sentences(1).nearly(texts)
    same = [a == b for x, y in zip(texts, said, strict=True) for a, b in zip(x.split(), y.split(), strict=True)]
    assert 0.4 < sum(same) / len(same) < 0.7
