"""Bootstrap intervals and paired differences against numbers known otherwise."""

import json
from dataclasses import replace

import numpy as np
import pytest

import eval.run as run
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionResult
from eval.benchmarks import TASKS, get_task
from eval.metrics import score_range
from eval.metrics.captions import caption_scores
from eval.metrics.tags import average_precision, tag_map
from eval.pair import paired as paired_scores
from eval.scoring import intervals, score, without_interval
from eval.statistics import (
    CHUNK,
    DRAWS,
    Draws,
    Resampling,
    bleu,
    caution,
    difference,
    draw_counts,
    interval,
    means,
    number_drawn,
    rankings,
    ratios,
    samples,
    unit_of,
)

ONE_EACH = [f"image {n}" for n in range(500)]


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(0.5, 0.2, 500)
    low, high = interval(samples([means({"x": values})], ONE_EACH)["x"], values.mean())
    error = 1.96 * values.std() / 500**0.5
    assert low == pytest.approx(values.mean() - error, abs=0.003)
    assert high == pytest.approx(values.mean() + error, abs=0.003)


def test_regions_of_one_image_are_drawn_together():
    """Ten regions that agree say no more than one: the interval is sqrt(10) times wider than theirs."""
    values = np.repeat(np.random.default_rng(0).normal(0.5, 0.2, 200), 10)
    wide = np.std(samples([means({"x": values})], np.repeat(np.arange(200), 10).tolist())["x"].values)
    narrow = np.std(samples([means({"x": values})], list(range(2000)))["x"].values)
    assert wide / narrow == pytest.approx(10**0.5, rel=0.1)
    assert unit_of(["a"] * 100) == "regions" and unit_of(ONE_EACH) == "images"


def test_every_draw_has_as_many_images_and_a_seed_repeats_it():
    counts = np.concatenate(list(draw_counts(ONE_EACH, 30)))
    assert counts.shape == (30, 500) and (counts.sum(1) == 500).all() and counts.max() > 1
    assert (counts[:7] == np.concatenate(list(draw_counts(ONE_EACH, 7)))).all()
    assert (counts != np.concatenate(list(draw_counts(ONE_EACH, 30, seed=1)))).any()


def test_draws_do_not_depend_on_how_many_are_held(monkeypatch):
    whole = samples([means({"x": np.arange(500.0)})], ONE_EACH)["x"].values
    monkeypatch.setattr("eval.statistics.CHUNK", 7 * 500)
    assert np.allclose(samples([means({"x": np.arange(500.0)})], ONE_EACH)["x"].values, whole)


def test_regions_without_a_score_are_left_out_of_the_mean():
    values = np.array([1.0, np.nan, 0.0])
    assert means({"x": values}).values(np.array([[1, 5, 1], [2, 0, 0], [0, 1, 0.0]]))["x"].tolist()[:2] == [0.5, 1]
    assert np.isnan(means({"x": values}).values(np.array([[0, 1.0, 0]]))["x"])


TEXTS = ["a red cup on a table", "the the the", "", "a man", "dog"]
REFERENCES = [["a red cup", "red cup on the table"], ["the cat the"], ["x y"], ["a man", "a tall man"], ["a dog runs"]]


def test_bleu_on_a_draw_is_the_corpus_score_of_that_draw():
    one = bleu(TEXTS, REFERENCES).values(np.ones((1, 5)))
    counts = np.array([[0, 3, 1, 0, 1.0]])
    drawn = bleu(TEXTS, REFERENCES).values(counts)
    for chosen, got in (([0, 1, 2, 3, 4], one), ([1, 1, 1, 2, 4], drawn)):
        texts = {str(n): TEXTS[i] for n, i in enumerate(chosen)}
        references = {str(n): REFERENCES[i] for n, i in enumerate(chosen)}
        expected = caption_scores(texts, references, ["bleu"], "tokens")
        expected = {name: value if value > 1e-4 else 0 for name, value in expected.items()}  # no 4-gram is right
        assert {name: value[0] for name, value in got.items()} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_rankings_on_a_draw_are_the_average_precision_of_that_draw():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(-1, 2, (40, 5)), rng.integers(0, 6, (40, 5)) / 5  # many ties
    labels[:, 4] = 0
    counts = rng.integers(0, 3, (3, 50)).astype(float)
    places = rng.permutation(50)[:40]
    got = rankings({"all": range(5), "one": [2]}, labels, scores, places, 50).values(counts)
    for draw in range(3):
        rows = np.repeat(np.arange(40), counts[draw, places].astype(int))
        expected = []
        for k in range(4):
            known = rows[labels[rows, k] >= 0]
            expected.append(average_precision(labels[known, k], scores[known, k]))
        assert got["all"][draw] == pytest.approx(np.mean(expected))
        assert got["one"][draw] == pytest.approx(expected[2])


def test_the_interval_of_a_ranking_with_rare_classes_holds_its_score():
    """Draws alone would not: a class of one region is drawn twice or not at all, and then its precision is higher."""
    labels, scores = np.eye(60, dtype=int), np.zeros((60, 60))
    found = samples([rankings({"mAP": range(60)}, labels, scores, np.arange(60), 60)], list(range(60)))["mAP"]
    assert found.values.min() > 1 / 60
    low, high = interval(found, 1 / 60)
    assert low < 1 / 60 < high


def test_an_interval_holds_its_score_and_stays_where_scores_can_be():
    one_bad_draw = np.array([1.0] * 99 + [0.0])
    assert interval(Draws(one_bad_draw, 500), 1.0)[1] == 1.0, "not 1.01, where the draws lie once they are moved"
    assert interval(Draws(np.array([0.0, 0.0, 0.1, 0.4]), 500), 0.05)[0] == 0.0
    low, high = interval(Draws(np.array([1.5, 2.0, 2.5]), 500), 2.2)
    assert low < 2.2 < high and high > 2.5  # CIDEr
    assert interval(Draws(np.array([np.nan]), 500), 0.5) is None


def test_ratios_are_precision_and_recall():
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    scores = np.array([[0.9, 0.8], [0.9, 0.1], [0.0, 0.9]])
    predicted = scores >= 0.5
    parts = {"precision": ((labels * predicted).sum(1), predicted.sum(1))}
    drawn = ratios(parts).values(np.array([[1, 1, 1], [2, 0, 1.0]]))["precision"]
    assert drawn[0] == tag_map(labels, scores, 0.5)["tag precision"]
    assert drawn[1] == 3 / 5


def test_a_difference_that_is_always_there_is_found_and_chance_is_not():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    a, b = hard + 0.01 + rng.normal(0, 0.01, 500), hard
    of = {name: samples([means({"x": v})], ONE_EACH)["x"] for name, v in {"a": a, "b": b}.items()}
    low, high = interval(of["a"], a.mean())
    assert low < np.mean(b) < high  # alone, neither is sure
    found = difference(of["a"], of["b"], a.mean() - b.mean())
    assert 2 / (DRAWS + 1) < found["p"] < 0.0022 and 0.008 < found["interval"][0] < found["interval"][1] < 0.012
    assert difference(of["a"], of["a"], 0.0) == {"interval": [0, 0], "p": 1.0}
    assert difference(Draws(np.array([np.nan]), 500), Draws(np.array([1.0]), 500), 0.0) is None


def paired(a, b, groups, seed=0):
    one, other = (samples([means({"x": np.array(v, float)})], groups, seed)["x"] for v in (a, b))
    return difference(one, other, np.mean(a) - np.mean(b))


@pytest.mark.parametrize("different", [1, 2, 3])
def test_a_few_regions_of_sixty_are_no_difference(different):
    """One in 37 % of the draws is not drawn: there is no difference on these, which speaks for neither side."""
    a = [1] * different + [0] * (60 - different)
    never_drawn = (1 - different / 60) ** 60
    for seed in range(10):
        found = paired(a, [0] * 60, list(range(60)), seed)
        assert found["p"] == pytest.approx(min(1, 2 * never_drawn), abs=0.09) and found["p"] > 0.05
        assert found["interval"][0] == 0


@pytest.mark.parametrize("outcome", ["0.5 %", "1 %", "30 %", "skewed"])
@pytest.mark.parametrize("number", [20, 150])
def test_two_equal_models_seldom_differ_and_the_interval_says_the_same_as_p(outcome, number, monkeypatch):
    monkeypatch.setattr("eval.statistics.DRAWS", 400)
    rng = np.random.default_rng(number)

    def outcomes():
        if outcome == "skewed":
            return np.exp(1.2 * rng.normal(size=number))
        return (rng.random(number) < float(outcome.split()[0]) / 100).astype(float)

    found = [paired(outcomes(), outcomes(), list(range(number)), seed) for seed in range(150)]
    assert np.mean([one["p"] < 0.05 for one in found]) <= 0.09  # of 150: 0.05, and two standard errors
    assert np.mean([one["p"] < 0.01 for one in found]) <= 0.03
    for one in found:
        if not 0.04 < one["p"] < 0.06:  # of 400 draws one more or less is on the end
            assert (one["p"] < 0.05) == (one["interval"][0] > 0 or one["interval"][1] < 0)


def test_few_images_are_a_caution():
    many, few = (means({"x": np.ones(number)}) for number in (50, 49))
    assert caution([many], list(range(50))) == caution([], []) == ""
    assert caution([few], list(range(49))).startswith("only 49 images are drawn: intervals are too narrow")
    some = means({"x": np.where(np.arange(50) < 12, 1.0, np.nan), "y": np.full(50, np.nan)})
    assert caution([many, some], list(range(50))).startswith("only 12 images")
    assert caution([few], ["a"] * 49).startswith("only 49 regions")
    assert caution([means({"x": np.ones(1)})], ["a"]) == "", "it has no interval"


def test_rounding_is_no_difference():
    values = np.random.default_rng(0).random(500)
    one, other = Draws(values, 500), Draws(values * (1 + 2e-16), 500)
    assert difference(one, other, 1e-17)["p"] == 1.0


def test_no_right_4_gram_on_either_side_is_no_difference():
    references = [["a red cup on a table"], ["a man with a dog"]] * 10
    one, other = bleu(["a red cup"] * 20, references), bleu(["the dog of a man at home"] * 20, references)
    one, other = (samples([part], list(range(20)))["BLEU-4"] for part in (one, other))
    found = difference(one, other, 2e-5)
    assert found["p"] == 1.0 and found["interval"] == pytest.approx([-0.15, 0.15], abs=1e-4)  # three of 20 may differ


def test_right_texts_are_as_sure_as_their_number_by_bleu_too():
    texts = [f"a cup of the colour {word} on it" for word in "abcdefghijklmnopqrst"]
    draws = samples([bleu(texts, [[text] for text in texts])], list(range(20)))["BLEU-4"]
    low, high = interval(draws, 1 - 1e-11)
    assert abs(low - 0.85) < 1e-6 and abs(high - 1) < 1e-9


def test_what_is_alike_for_every_image_is_as_sure_as_their_number():
    """The rule of three: of 60 images without a mistake at most 3 in 60 of all are wrong, 95 times of 100."""
    images = [f"{n // 2}.jpg" for n in range(120)]
    names = {"right": np.ones(120), "wrong": np.zeros(120), "half": np.full(120, 0.5)}
    found = samples([means(names)], images)
    assert interval(found["right"], 1.0) == pytest.approx([0.95, 1])
    assert interval(found["wrong"], 0.0) == pytest.approx([0, 0.05])
    assert interval(found["half"], 0.5) == pytest.approx([0.475, 0.525])
    assert interval(found["wrong"], 0.0, 0.0, 10.0) == pytest.approx([0, 0.5])  # CIDEr
    assert interval(found["wrong"], 0.0, -1.0, 1.0) == pytest.approx([-0.05, 0.05])
    assert interval(Draws(np.ones(1000), 2), 1.0) == [0, 1]
    assert difference(found["right"], found["wrong"], 1.0)["interval"] == pytest.approx([0.9, 1])
    assert difference(found["right"], found["right"], 0.0) == {"interval": pytest.approx([-0.05, 0.05]), "p": 1.0}
    assert score_range("CIDEr") == (0, 10) and score_range("choice score/positive") == (-1, 1)
    assert score_range("category accuracy") == score_range("METEOR") == (0, 1)


def test_intervals_of_few_images_are_wide_enough(monkeypatch):
    """Plain percentiles of 12 images hold the mean 91 times of 100."""
    monkeypatch.setattr("eval.statistics.DRAWS", 400)
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        values = rng.normal(size=12)
        low, high = interval(samples([means({"x": values})], list(range(12)), seed)["x"], values.mean())
        held += low <= 0 <= high
    assert 0.93 <= held / 400 <= 0.97


def test_one_region_or_image_has_no_interval_and_the_rest_is_counted():
    alone = np.full(40, np.nan)
    alone[3] = 0.5
    assert samples([means({"x": alone})], list(range(40))) == {}
    assert samples([means({"x": np.array([0.5])})], ["a"]) == {}
    alone[20:30] = 0.7
    assert number_drawn(means({"x": alone}), list(range(40))) == 11
    assert number_drawn(means({"x": alone}), np.repeat(np.arange(10), 4).tolist()) == 4  # 0, 5, 6, 7
    assert samples([means({"x": alone})], list(range(40)))["x"].number == 11


def test_what_takes_too_long_has_fewer_draws_or_none():
    assert Resampling(dict, 1e7).draws == 400
    assert Resampling(dict, 1e9).draws == 0
    assert samples([Resampling(lambda counts: {"x": counts.sum(1)}, 1e9)], ONE_EACH) == {}


def test_a_score_is_computed_for_many_draws_at_once_and_few_counts_are_held():
    asked = []
    counted = Resampling(lambda counts: (asked.append(counts.shape), {"x": counts.sum(1)})[1], work=1.0)
    assert samples([counted], list(range(5000)))["x"].values.tolist() == [5000] * DRAWS
    assert asked == [(800, 5000), (200, 5000)] and 800 * 5000 <= CHUNK


def test_scores_of_one_region_name_the_reason_why_they_have_no_interval():
    regions = [Region(f"{n}", "0.jpg", (9, 9), (0, 0, 9, 9), captions=("a cup",)) for n in range(3)]
    regions[1] = replace(regions[1], category="cup")
    results = {
        region.id: RegionResult(region.id, [0, 0, 9, 9], text) for region, text in zip(regions, "abc", strict=True)
    }
    task = replace(get_task("world"), metrics=("captions", "categories"), caption_metrics=("rouge",), tokenizer="lower")
    results["1"] = replace(results["1"], category={"name": "cup", "score": 0.5})
    scores = score(task, regions, results)
    assert scores.corpus.keys() == {"ROUGE-L", "category accuracy"}
    found = intervals(scores)
    assert found.keys() == {"ROUGE-L"}
    reason = "only 1 of the regions counts, and an interval needs two"
    assert without_interval(scores, found) == {"category accuracy": reason}
    assert "interval" not in paired_scores(scores, scores)["category accuracy"]


def test_the_command_says_that_intervals_of_few_images_are_too_narrow(tmp_path, monkeypatch, capsys):
    task = replace(get_task("world"), name="few", metrics=("captions",), caption_metrics=("cider",), tokenizer="lower")
    monkeypatch.setitem(TASKS, "few", task)
    said = {}
    for number in (12, 60):
        regions = [
            Region(f"{n}", f"{n}.jpg", (9, 9), (0, 0, 9, 9), captions=(f"a {'red' * (n % 2)} cup",))
            for n in range(number)
        ]
        records, predictions = tmp_path / f"{number}.jsonl", tmp_path / f"{number}.json"
        write_records(records, regions)
        predictions.write_text(json.dumps([{"id": region.id, "caption": "a red cup"} for region in regions]))
        options = ["--task", "few", "--data", str(records), "--predictions", str(predictions)]
        assert run.main([*options, "--out", str(tmp_path / "out")]) == 0
        written = json.loads((tmp_path / "out/scores.json").read_text())["bootstrap"]
        assert "how rare a word is stays" in written["approximate"][0]
        said[number] = written["caution"]
        assert said[number] in capsys.readouterr().out
        assert run.main([*options[:-2], "--compare", str(predictions), str(predictions)]) == 0
        assert said[number] in capsys.readouterr().out
    assert said[12].startswith("only 12 images are drawn") and said[60] == ""
