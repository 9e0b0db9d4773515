"""Scores side by side: what computed them, tables of one protocol, and refusals of others."""

import json

import pytest

import eval.run as run
from dynrefer.data.record_files import open_records
from dynrefer.files import file_sha256
from eval import compare, java
from eval.benchmarks import TASKS, get_task
from eval.metrics import METRICS, metric_versions
from eval.metrics.captions import METEOR_JAR, PTB_JAR, jar_path
from tests.cups import predictions_of


def test_every_score_tells_what_computed_it():
    names = ["BLEU-4", "CIDEr", "METEOR", "dense mAP (released)", "attribute mAP", "attribute mAP/head"]
    versions = metric_versions(names, get_task("refcocog-a"))
    meteor, tokenizer = (file_sha256(jar_path(jar))[:16] for jar in (METEOR_JAR, PTB_JAR))
    assert meteor in versions["METEOR"] and tokenizer in versions["METEOR"] and tokenizer in versions["CIDEr"]
    assert "pycocoevalcap 1." in versions["BLEU-4"] and "CIDEr-D" in versions["CIDEr"]
    assert meteor in versions["dense mAP (released)"] and tokenizer not in versions["dense mAP (released)"]
    assert versions["attribute mAP"] == "attributes 1" and "attribute mAP/head" not in versions
    assert metric_versions(["tag F1", "tag mAP"], get_task("world")) == {
        "tag F1": "tags 1, threshold 0.9",
        "tag mAP": "tags 1",
    }
    assert metric_versions(["choice score"], get_task("dlc-bench"), "llama") == {
        "choice score": "choices 1; judge llama"
    }
    with pytest.raises(AssertionError, match="'wmd' has no row"):
        metric_versions(["wmd"], get_task("world"))
    rows = [row for metric in METRICS.values() for row in metric.versions.values()]
    assert rows and all(row(task, "") for row in rows for task in TASKS.values())


@pytest.fixture
def scored(tiny, monkeypatch):
    """{name: folder with a scores.json} of two models on the same regions, and one on fewer."""
    folder, _ = tiny
    records = open_records(folder / "test.jsonl")
    folders = {}
    for name, caption, limit in (("good", 0, []), ("better", 1, []), ("few", 1, ["--limit", "4"])):
        path = predictions_of(folder / f"{name}.json", records, lambda n, r, k=caption: r.captions[k] if n else "")
        folders[name] = str(folder / name)
        options = ["--predictions", path, "--task", "tiny", "--out", folders[name], "--model-name", name]
        assert run.main([*options, *limit]) == 0
    return folders


def written(folder):
    return json.loads((compare.Path(folder) / "scores.json").read_text())


def test_scores_of_one_protocol_stand_in_a_table_with_intervals(scored, capsys):
    content = written(scored["good"])
    assert content["metric_versions"].keys() == {name for name in content["scores"] if "/" not in name}
    assert content["versions"]["java"] == java.java_in_use()
    capsys.readouterr()
    assert compare.main([scored["good"], scored["better"] + "/scores.json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("tiny, 10 regions of ") and [line.split()[0] for line in out[2:6:2]] == ["good", "better"]
    low, high = content["intervals"]["CIDEr"]
    assert f"{content['scores']['CIDEr']:.3f}" in out[2] and f"{low:.3f}-{high:.3f}" in out[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "world"}, "task 'world', not 'tiny'"),
        ({"task_version": 2}, "task_version 2, not 1"),
        ({"data_sha256": "00"}, "data_sha256 '00', not '"),
        ({"tokenizer": "ptb"}, "tokenizer 'ptb', not 'lower'"),
        ({"score_source": "one"}, "score_source 'one', not 'model'"),
        ({"regions": 9}, "regions 9, not 10"),
        ({"annotations_sha256": "00"}, "annotations_sha256 '00', not None"),
        ({"word_lists": {}}, "word_lists {}, not {'tags': '"),
        ({"settings": {"judge": "llama"}}, "judge 'llama', not None"),
        ({"metric_versions": {"ROUGE-L": "mine 2"}}, "ROUGE-L by mine 2, not pycocoevalcap"),
        ({"metric_versions": {}}, "CIDEr by what it does not say, not pycocoevalcap"),
    ],
)
def test_other_protocols_are_refused_or_marked(scored, capsys, change, message):
    path = compare.Path(scored["better"]) / "scores.json"
    path.write_text(json.dumps(written(scored["better"]) | change))
    capsys.readouterr()
    assert compare.main([scored["good"], str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "--different-protocols" in error
    assert compare.main([scored["good"], str(path), "--different-protocols"]) == 0
    out = capsys.readouterr().out
    assert "\n* better " in out and "* DIFFERENT PROTOCOLS: better: " in out and message in out


def test_other_models_and_decoding_are_shown_and_not_refused(scored, capsys):
    path = compare.Path(scored["better"]) / "scores.json"
    changed = {"settings": {"generation": {"num_beams": 5}}, "date": "2020-01-01", "seeds": {"a": {}, "b": {}}}
    path.write_text(json.dumps(written(scored["better"]) | changed))
    capsys.readouterr()
    assert compare.main([scored["good"], scored["better"]]) == 0
    assert "better: num_beams=5, mean of 2 seeds, 2020-01-01" in capsys.readouterr().out


def test_scores_that_are_not_the_benchmark_s_are_marked(scored, capsys):
    path = compare.Path(scored["better"]) / "scores.json"
    path.write_text(json.dumps(written(scored["better"]) | {"deviations": ["10 of the benchmark's 12 regions"]}))
    capsys.readouterr()
    assert compare.main([scored["good"], scored["better"]]) == 0
    out = capsys.readouterr().out
    assert "better: not the benchmark: 10 of the benchmark's 12 regions" in out and "good: not" not in out


def test_a_part_of_the_regions_is_another_protocol(scored, capsys):
    assert compare.main([scored["good"], scored["few"]]) == 2
    assert "regions 4, not 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no scores at '"), ("{", "not JSON"), ("[1]", "no scores with their task"), ('{"scores": 1}', "no scores")],
)
def test_files_without_scores_are_named(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    assert compare.main([str(tmp_path), "b"]) == 2
    assert message in capsys.readouterr().err


def test_one_file_is_not_compared(scored, capsys):
    assert compare.main([scored["good"], scored["good"]]) == 2
    assert "give at least two" in capsys.readouterr().err
