"""The table of benchmarks, and what each kind of task scores."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dynrefer.data.records import Region, RegionResult
from eval.benchmarks import TASKS, get_task, load_tasks
from eval.metrics import check_task
from eval.metrics.captions import CLEANING, caption_scores
from eval.metrics.coco import SCORE_SOURCES
from eval.scoring import intervals, score, without_interval
from eval.task import Published, Task


def test_the_table_has_the_benchmarks_and_each_row_says_what_it_is():
    wanted = "world flickr30k refcocog-a refcocog-b-val refcocog-d-test vg-v1 vg-v2 ovad coco-recognition lvis-boxes"
    wanted += " lvis-proposals lvis-similarity paco-similarity dlc-bench ref-l4"
    wanted += "".join(f" densecap-{d}{kind}" for d in ("vg1.0", "vg1.2", "vgcoco") for kind in ("", "-detected"))
    assert set(wanted.split()) <= set(TASKS)
    for name, task in TASKS.items():
        assert task.name == name and len(task.protocol) > 50 and task.protocol.endswith("."), name
        assert task.score_source in SCORE_SOURCES
        for row in task.published:
            assert row.source and row.scores and all(0 < value < 3 for value in row.scores.values()), (name, row)


def test_published_numbers_of_one_protocol_stand_in_one_row():
    best = max(get_task("refcocog-a").published, key=lambda row: row.scores["CIDEr"])
    assert (best.model, best.scores) == ("DynRefer 4.2B", {"METEOR": 0.181, "CIDEr": 1.153})
    assert not get_task("refcocog-d-test").published and not get_task("densecap-vg1.2-detected").published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ("caption",)}, "unknown metrics 'caption'. Did you mean 'captions'. Known: captions, "),
        ({"clean": "vg"}, "unknown clean 'vg'. Known: none, words."),
        ({"prompt": "point"}, "prompt 'point'"),
        ({"caption_metrics": ("spider",)}, "unknown caption_metrics 'spider'."),
        ({"score_source": "two"}, "unknown score_source 'two'. Known: model, one."),
    ],
)
def test_a_row_with_a_mistake_is_refused(change, message):
    with pytest.raises(ValueError, match=f"task t: {message}"):
        check_task(Task(**{"name": "t", "data": "", "protocol": ""} | change))
    if "prompt" not in change:  # the same where a task is made of another, and where it is scored
        with pytest.raises(ValueError, match=f"task world: {message}"):
            get_task("world", **change)
        with pytest.raises(ValueError, match=f"task t: {message}"):
            score(Task(**{"name": "t", "data": "", "protocol": ""} | change), [], {})


def test_a_benchmark_is_one_file(tmp_path):
    (tmp_path / "_shared.yaml").write_text("split: test\nmetrics: [captions]\n")
    text = (
        "base: _shared.yaml\ndata: cups.jsonl\nprotocol: Cups.\npublished: [{model: a, scores: {CIDEr: 1}, source: b}]"
    )
    (tmp_path / "cups.yaml").write_text(text)
    published = (Published("a", {"CIDEr": 1.0}, "b"),)
    cups = Task("cups", "cups.jsonl", "Cups.", split="test", metrics=("captions",), published=published)
    assert load_tasks(tmp_path) == {"cups": cups}
    for line, message in (
        ("splits: val", "unknown key 'splits'. Did you mean 'split'?"),
        ("name: mugs", "a benchmark is named as its file"),
        ("metrics: [caption]", "task cups: unknown metrics 'caption'. Did you mean 'captions'?"),
        ("boxes: found", "task cups: boxes 'found'; one of given, detected"),
        ("num_regions: many", "num_regions: expected int, got 'many'"),
    ):
        (tmp_path / "cups.yaml").write_text(f"{text}\n{line}\n")
        with pytest.raises(ValueError, match=rf"cups\.yaml: .*{re.escape(message)}"):
            load_tasks(tmp_path)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'refcoco-a'. Did you mean 'refcocog-a'. Known: "):
        get_task("refcoco-a")


# --- what is scored --------------------------------------------------------------------------------------------------


def regions_of(number: int, **fields) -> list[Region]:
    """Two regions an image."""
    return [
        Region(f"set-test-{n}", f"images/{n // 2}.jpg", (100, 100), (10.0 + 50 * (n % 2), 10, 40 + 50 * (n % 2), 60))
        if not fields
        else Region(
            f"set-test-{n}",
            f"images/{n // 2}.jpg",
            (100, 100),
            (10.0 + 50 * (n % 2), 10, 40 + 50 * (n % 2), 60),
            **{key: value(n) for key, value in fields.items()},
        )
        for n in range(number)
    ]


def said(regions, caption, **fields) -> dict[str, RegionResult]:
    return {
        region.id: RegionResult(
            region.id, list(region.box), caption=caption(n), **{key: value(n) for key, value in fields.items()}
        )
        for n, region in enumerate(regions)
    }


COLOURS = ("red", "green", "blue")


def test_captions_are_cleaned_alike_and_have_intervals_around_the_scores():
    regions = regions_of(60, captions=lambda n: (f"A {COLOURS[n % 3]} cup, on a table!",))
    results = said(regions, lambda n: f"a {COLOURS[n % 3]} CUP on a table" if n % 4 else "the dog?")
    task = Task("t", "", "", metrics=("captions",), caption_metrics=("bleu", "rouge", "cider"), tokenizer="lower")
    scores = score(replace(task, clean="words"), regions, results)
    assert scores.corpus == score(task, regions, results).corpus
    found = intervals(scores)
    assert found.keys() == scores.corpus.keys() and not without_interval(scores, found)
    for name, value in scores.corpus.items():
        low, high = found[name]
        assert low < value < high and high - low < 0.6 * max(1, value), name
    assert intervals(scores) == found and intervals(scores, seed=1) != found
    assert CLEANING["words"](["A  man's, hat!"]) == ["a mans hat"]


def test_bleu_without_a_right_run_of_words_has_no_interval():
    regions = regions_of(24, captions=lambda n: (f"a {COLOURS[n % 3]} cup",))
    scores = score(get_task("vg-v1"), regions, said(regions, lambda n: f"a {COLOURS[n % 2]} cup"))
    found = intervals(scores)
    assert 0 < scores.corpus["BLEU-4"] < 0.02 and "BLEU-3" in found and "BLEU-4" not in found
    assert without_interval(scores, found)["BLEU-4"] == "no 4 words in a row are right"


def test_meteor_on_a_draw_is_the_corpus_score_of_that_draw():
    regions = regions_of(30, captions=lambda n: ("a red cup on the table", "cup"))
    results = said(regions, lambda n: "a red cup" if n % 4 < 2 else "on the red table")
    task = Task("t", "", "", metrics=("captions",), caption_metrics=("meteor",))
    scores = score(task, regions, results)
    references = {region.id: list(region.captions) for region in regions}
    assert scores.corpus == caption_scores({i: r.caption for i, r in results.items()}, references, ["meteor"])
    low, high = intervals(scores)["METEOR"]
    assert low < scores.corpus["METEOR"] < high
    counts = np.random.default_rng(0).integers(0, 3, 30)
    drawn = [f"{copy} {id_}" for id_, count in zip(references, counts, strict=True) for copy in range(count)]
    texts = {name: results[name.split()[1]].caption for name in drawn}
    expected = caption_scores(texts, {name: references[name.split()[1]] for name in drawn}, ["meteor"])["METEOR"]
    (resampling,) = scores.resamplings
    assert resampling.values(counts[None].astype(float))["METEOR"] == pytest.approx([expected], abs=1e-9)
    assert resampling.approximate == ""


def test_what_no_prediction_says_anything_about_is_left_out_and_named():
    fields = {"captions": lambda n: ("a cup",), "tags": lambda n: ("cup",), "category": lambda n: "cup"}
    regions = regions_of(20, **fields)
    task = Task("t", "", "", caption_metrics=("rouge",), tokenizer="lower")
    scores = score(task, regions, said(regions, lambda n: "cup"))
    assert set(scores.corpus) == {"ROUGE-L"}
    assert scores.left_out["tags"] == "no prediction has tags"
    assert scores.left_out["categories"] == "no prediction has categories"
    assert score(task, regions, {}).corpus["category accuracy"] == 0


def test_names_are_recognised_from_categories_or_from_words():
    regions = regions_of(40, category=lambda n: ("traffic light", "cup")[n % 2])
    names = {"categories": ["traffic light", "cup", "dog"]}
    task = get_task("coco-recognition")
    category = {"category": lambda n: {"name": "cup", "score": n / 40}}
    scores = score(task, regions, said(regions, lambda n: "", **category), names=names)
    assert scores.corpus["category accuracy"] == 0.5
    low, high = intervals(scores)["category accuracy"]
    assert (low, high) == pytest.approx((0.5 - 0.5 * 3 / 20, 0.5 + 0.5 * 3 / 20))  # one of two in all 20 images
    assert 0 < scores.corpus["COCO mAP"] < 0.5
    assert "COCO mAP" in without_interval(scores, intervals(scores))

    text = get_task("coco-recognition-text")
    results = said(regions, lambda n: ("Traffic light.", "a cup of tea")[n % 2])
    scores = score(text, regions, results, names=names)
    assert scores.corpus["category accuracy"] == scores.corpus["COCO mAP"] == 0.5
    del results["set-test-0"]
    assert score(text, regions, results, names=names).corpus["category accuracy"] == 19 / 40


@pytest.mark.parametrize("answer", ["a cup", "A cup.", "Cup.", "the CUP", " cup ", "an cup!"])
def test_articles_and_punctuation_of_an_answer_do_not_count(answer):
    regions = regions_of(2, category=lambda n: ("cup", "traffic_light")[n])
    results = said(regions, lambda n: (answer, "The traffic light.")[n])
    scores = score(get_task("coco-recognition-text"), regions, results)
    assert scores.corpus["category accuracy"] == 1 and not scores.counts
    for region in regions:  # as a category, which has a score
        results[region.id].category = {"name": results[region.id].caption, "score": 0.5}
    assert score(get_task("coco-recognition"), regions, results).corpus["COCO mAP"] == pytest.approx(1)


def test_names_that_are_not_in_the_list_are_wrong_and_counted(tmp_path):
    regions = regions_of(4, category=lambda n: ("cup", "dog")[n % 2])
    names = {"categories": ["cup", "dog"]}
    category = {"category": lambda n: {"name": "a mug" if n == 0 else ("cup", "dog")[n % 2], "score": 1}}
    results = said(regions, lambda n: "", **category)
    scores = score(get_task("coco-recognition"), regions, results, names=names)
    assert scores.corpus["category accuracy"] == 0.75 and 0 < scores.corpus["COCO mAP"] < 1
    assert scores.counts == {"predictions name no category of the list and count as wrong": 1}
    results = said(regions, lambda n: "a", category=lambda n: None)
    scores = score(get_task("coco-recognition-text"), regions, results, names=names)
    assert scores.corpus["category accuracy"] == scores.corpus["COCO mAP"] == 0
    assert list(scores.counts.values()) == [4]


def test_categories_spelt_unlike_the_word_list_are_told_with_names_and_numbers():
    regions = regions_of(40, category=lambda n: ("Table", "table ", "table", "lamp_post")[n % 4])
    names = {"categories": ["table", "lamp post"]}
    results = said(regions, lambda n: "", category=lambda n: {"name": ("table", "Lamp post")[n % 4 == 3], "score": 1})
    task = replace(get_task("world"), metrics=("captions", "categories"))
    scores = score(task, regions, results, names=names)
    assert scores.corpus["category accuracy"] == 0.25
    of_records, of_predictions = scores.notes
    assert of_records.startswith("30 regions have a category that the word list does not have, which counts as wrong: ")
    for each in ("'Table' (10; the list has 'table')", "'table ' (10; ", "'lamp_post' (10; the list has 'lamp post')"):
        assert each in of_records
    assert "10 predictions name a category" in of_predictions and "'Lamp post' (10; the list" in of_predictions
    foreign = regions_of(4, category=lambda n: f"thing {n}")
    (note,) = score(task, foreign, {}, names={"categories": ["cup"]}).notes
    assert "'thing 0' (1), 'thing 1' (1)" in note
    with pytest.raises(ValueError, match=r"30 regions have a category that .*'Table' \(10; the list has 'table'\)"):
        score(get_task("coco-recognition"), regions, results, names=names)  # its matching needs one list
    assert not score(
        task, regions, results, names={"categories": ["Table", "table ", "table", "lamp_post", "Lamp post"]}
    ).notes


@pytest.mark.parametrize(
    ("captions", "said_of_it"),
    [
        (["a red cup"], "CIDEr of a single region is 0 by definition"),
        (["a red cup", "a red cup"], "CIDEr of regions that all have the same references is 0 by definition"),
        (
            ["红色的杯子", "一只黑猫", "a dog"],
            "4 of 6 captions and references are written without spaces between words",
        ),
        (["赤いカップです", "a cup", "a dog"], "2 of 6 captions"),
        (["แก้วสีแดงบนโต๊ะ", "a cup", "a dog"], "2 of 6 captions"),
        (["红色 的 杯子", "コンピューター", "a dog"], None),
        (["a red cup", "two dogs"], None),
    ],
)
def test_scores_of_captions_that_say_little_say_so(captions, said_of_it):
    regions = regions_of(len(captions), captions=lambda n: (captions[n],))
    task = replace(get_task("world"), metrics=("captions",), tokenizer="lower", caption_metrics=("rouge", "cider"))
    notes = score(task, regions, said(regions, lambda n: captions[n])).notes
    assert [said_of_it in note for note in notes] == [True] if said_of_it else not notes


def test_dense_captions_of_given_and_of_detected_boxes():
    regions = regions_of(24, captions=lambda n: (f"a {COLOURS[n % 3]} cup",))
    results = said(regions, lambda n: f"A {COLOURS[n % 3]} cup.", score=lambda n: 0.5)
    scores = score(get_task("densecap-vg1.2"), regions, results)
    assert scores.corpus["dense mAP"] == scores.corpus["dense mAP (released)"] == pytest.approx(1)
    assert intervals(scores)["dense mAP"] == pytest.approx([1 - 3 / 12, 1])
    assert len(scores.parts["densecap"]) == 35
    images = {region.id: region.image for region in regions}
    half = {i: results[i] for i in list(results)[:12]}
    scores = score(get_task("densecap-vg1.2-detected"), regions, half, images=images)
    assert scores.corpus["dense mAP"] == pytest.approx(0.5, abs=0.02)
    assert scores.corpus["dense mAP (released)"] == pytest.approx(1)
    assert not any(scores.items.values())  # there are no predictions of regions
    wrong = said(regions[:12], lambda n: f"A {COLOURS[n % 3 if n else 1]} cup.", score=lambda n: n)
    items = score(get_task("densecap-vg1.2"), regions, wrong).items
    right, missing = items[regions[1].id]["dense METEOR"], items[regions[20].id]["dense METEOR"]
    assert 0 == missing < items[regions[0].id]["dense METEOR"] < right == pytest.approx(1)
    with pytest.raises(ValueError, match="predictions bring their own boxes"):
        score(get_task("densecap-vg1.2-detected"), regions, half)
    with pytest.raises(ValueError, match="the first for 'other.jpg'"):
        score(get_task("densecap-vg1.2-detected"), regions, half, images=images | {"set-test-0": "other.jpg"})


def test_dense_captions_need_a_caption_of_every_region():
    regions = regions_of(4, captions=lambda n: ("a cup",) if n else ())
    results = said(regions, lambda n: "a cup")
    images = {region.id: region.image for region in regions}
    for task in ("densecap-vg1.2", "densecap-vg1.2-detected"):
        with pytest.raises(ValueError, match="region 'set-test-0' has no caption"):
            score(get_task(task), regions, results, images=images)


def test_lvis_needs_its_marks(tmp_path):
    regions = regions_of(20, category=lambda n: ("cup", "dog")[n % 2])
    document = {
        "categories": [
            {"id": 1, "name": "cup", "frequency": "f"},
            {"id": 2, "name": "dog", "frequency": "r"},
        ],
        "images": [
            {"id": k, "coco_url": f"x/{k}.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []}
            for k in range(10)
        ],
        "annotations": [
            {"image_id": n // 2, "category_id": n % 2 + 1, "bbox": [r.box[0], r.box[1], 30, 50], "area": 1500}
            for n, r in enumerate(regions)
        ],
    }
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    results = said(regions, lambda n: "", category=lambda n: {"name": ("cup", "cup")[n % 2], "score": 0.5 - n % 2 / 4})
    scores = score(get_task("lvis-boxes"), regions, results, annotations=str(path))
    assert scores.corpus["LVIS APf"] == pytest.approx(1) and scores.corpus["LVIS APr"] == 0
    images = {region.id: region.image for region in regions}
    detected = score(get_task("lvis-proposals"), regions, results, images=images, annotations=str(path))
    assert detected.corpus == scores.corpus
    with pytest.raises(ValueError, match="name LVIS's lvis_v1_val.json with --annotations"):
        score(get_task("lvis-boxes"), regions, results, annotations=str(tmp_path / "none.json"))
    for damaged in (path.read_text()[:-9], "[]", json.dumps(document | {"categories": [{"id": 1}]})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="lvis.json: .*expected LVIS's lvis_v1_val.json, whole"):
            score(get_task("lvis-boxes"), regions, results, annotations=str(path))


def test_lvis_counts_a_name_in_an_image_that_is_marked_as_without_it(tmp_path):
    """As every file of LVIS has it: a category is negative in an image that holds other objects."""
    regions = regions_of(4, category=lambda n: "cup" if n < 3 else "dog")
    marks = {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    document = {
        "categories": [{"id": 1, "name": "cup", "frequency": "f"}, {"id": 2, "name": "dog", "frequency": "r"}],
        "images": [{"id": 0, "coco_url": "x/0.jpg", **marks}, {"id": 1, "coco_url": "x/1.jpg", **marks}],
        "annotations": [
            {"image_id": n // 2, "category_id": 1 + (n == 3), "bbox": [*r.box[:2], 30, 50], "area": 1400.0}
            for n, r in enumerate(regions)
        ],
    }
    document["images"][1]["neg_category_ids"] = []
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    category = {"category": lambda n: {"name": "dog" if n in (0, 3) else "cup", "score": 1 - n / 10}}
    found = score(
        get_task("lvis-boxes"), regions, said(regions, lambda n: "", **category), annotations=str(path)
    ).corpus
    assert found["LVIS APr"] == pytest.approx(0.5)  # the dog, behind the one that is known not to be there
    assert found["LVIS APf"] == pytest.approx(67 / 101)


def test_similarity_takes_words_or_the_best_name():
    def encode(texts):
        return np.array([[len(text), 1.0] for text in texts])

    regions = regions_of(30, category=lambda n: "dog_collar")
    results = said(regions, lambda n: "dog" if n % 3 else "", category=lambda n: {"name": "dog collar", "score": 1})
    scores = score(get_task("lvis-similarity"), regions, results, encode=encode)
    assert scores.corpus["word IoU"] == pytest.approx(1 / 3 + 2 / 3 / 2)
    assert intervals(scores).keys() == {"semantic similarity", "word IoU"}


def test_a_judge_is_needed_and_its_answers_are_resampled(tmp_path):
    regions = regions_of(40)
    positive = {"text": "Which colour?", "choices": [["red", 1], ["blue", -1]], "kind": "positive"}
    negative = {"text": "Is there a handle?", "choices": [["it says so", -1], ["no", 1]], "kind": "negative"}
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({region.id: [positive, negative] for region in regions}))
    task, results = get_task("dlc-bench"), said(regions, lambda n: "red" if n % 4 else "a cup")

    def judge(prompt: str) -> str:
        return "A" if "Description:\nred" in prompt else "B"

    scores = score(task, regions, results, judge=judge, annotations=str(path))
    assert scores.corpus["choice score/positive"] == 0.5 and scores.corpus["choice score/negative"] == -0.5
    found = intervals(scores)
    assert found["choice score"] == pytest.approx([-3 / 20, 3 / 20])  # what the one gains the other loses
    assert found["choice score/positive"][0] < 0.5 < found["choice score/positive"][1]
    assert "--judge" in score(task, regions, results, annotations=str(path)).left_out["choices"]
    with pytest.raises(ValueError, match="no questions at"):
        score(task, regions, results, judge=judge, annotations=str(tmp_path / "none"))
    path.write_text(json.dumps({"set-test-0": [{"text": "?"}]}))
    with pytest.raises(ValueError, match="region 'set-test-0': KeyError"):
        score(task, regions, results, judge=judge, annotations=str(path))


@pytest.mark.parametrize(
    "bad",
    [
        {"score": lambda n: float("nan")},
        {"category": lambda n: {"name": "cup", "score": float("inf")}},
        {"tags": lambda n: [{"name": "cup", "score": float("nan")}]},
    ],
)
def test_scores_that_are_not_finite_are_refused(bad):
    regions = regions_of(4, category=lambda n: "cup")
    with pytest.raises(ValueError, match="prediction for 'set-test-0': .*expected a finite number"):
        score(get_task("coco-recognition"), regions, said(regions, lambda n: "", **bad))
