"""Dense captioning mAP: the released evaluator's digits, the plain loop's matches, cases that can be checked by eye."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.metrics import densecap_loop
from eval.metrics.densecap import (
    Boxes,
    average_precisions,
    densecap_scores,
    match,
    merge_groups,
    score_captions,
)

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"


def exact(captions, references):
    """Stands in for METEOR: 1 where the caption is one of the references."""
    scores = [float(caption in texts) for caption, texts in zip(captions, references, strict=True)]
    return float(np.mean(scores)), scores


def test_scores_equal_the_released_evaluator_both_ways_of_counting():
    vector = json.loads((FIXTURES / "densecap.json").read_text())
    assert len(vector["images"]) == 30

    def boxes(items):
        return Boxes([i["box"] for i in items], [i["caption"] for i in items], [i.get("score", 1.0) for i in items])

    references = {image["image_id"]: boxes(image["ground_truth"]) for image in vector["images"]}
    predictions = {image["image_id"]: boxes(image["predictions"]) for image in vector["images"]}
    scores, parts = densecap_scores(predictions, references)
    counted, released = vector["expected_counting_images_without_predictions"], vector["expected_released_code"]
    assert parts == pytest.approx(counted["ap"], abs=1e-6) and len(parts) == 30
    assert scores == pytest.approx(
        {
            "dense mAP": counted["map"],
            "dense detection mAP": counted["detmap"],
            "dense mAP (released)": released["map"],
            "dense detection mAP (released)": released["detmap"],
        },
        abs=1e-6,
    )
    without_empty = {image_id: found for image_id, found in predictions.items() if found.captions}
    matches = match(without_empty, {image_id: references[image_id] for image_id in without_empty})
    score_captions(matches)
    assert average_precisions(matches)[1] == pytest.approx(released["ap"], abs=1e-6)


def random_images(generator, number):
    references, predictions = {}, {}
    for n in range(number):
        corner = generator.integers(0, 60, (generator.integers(1, 9), 2))
        truth = np.hstack([corner, corner + generator.integers(5, 50, corner.shape)]).astype(float)
        truth = np.vstack([truth, truth[:2] + generator.integers(-1, 2, truth[:2].shape)])  # some to merge
        references[n] = Boxes(truth, [f"thing {i % 3}" for i in range(len(truth))])
        if n % 5:
            chosen = generator.integers(0, len(truth), 12)
            found = truth[chosen] + generator.integers(-2, 3, (12, 4))
            texts = [f"thing {i}" for i in generator.integers(0, 3, 12)]
            predictions[n] = Boxes(found, texts, np.round(generator.random(12), 1))  # many equal scores
    return predictions, references


@pytest.mark.parametrize("rules", ["python", "lua"])
def test_the_vectorised_metric_equals_the_plain_loop(rules):
    for seed in range(5):
        predictions, references = random_images(np.random.default_rng(seed), 20)
        _, parts = densecap_scores(predictions, references, rules, scorer=exact)
        expected = densecap_loop(predictions, references, rules, exact)
        assert 0.05 < sum(expected.values()) / 30 < 0.9
        assert parts == pytest.approx(expected, abs=1e-12)


def test_boxes_that_overlap_are_one_object_with_all_captions():
    truth = Boxes([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 11]], ["a cup", "a dog", "one cup"])
    assert [group.tolist() for group in merge_groups(np.array(truth.boxes, float))] == [[0, 2], [1]]
    matches = match({"i": Boxes([[0, 0, 10, 10.5]], ["a cup"])}, {"i": truth})
    assert matches.num_objects.tolist() == [2]
    assert matches.iou.tolist() == [1.0] and matches.references == [["a cup", "one cup"]]


def test_an_object_is_found_once_by_its_surest_box_and_there_is_no_second_choice():
    truth = {"i": Boxes([[0, 0, 10, 10], [6, 0, 16, 10]], ["left", "right"])}
    found = {"i": Boxes([[1, 0, 11, 10], [0, 0, 10, 10]], ["left", "left"], [0.9, 0.5])}
    matches = match(found, truth)
    assert matches.first.tolist() == [True, False] and matches.captions == ["left", "left"]
    scores, _ = densecap_scores(found, truth, scorer=exact)
    assert scores["dense detection mAP"] == pytest.approx(0.51)  # recall 0.5 at precision 1: points 0 to 0.50


def test_an_image_without_predictions_is_wrong_and_beside_it_as_released():
    references = {n: Boxes([[0, 0, 10, 10]], ["a cup"]) for n in range(2)}
    scores, _ = densecap_scores({0: Boxes([[0, 0, 10, 10]], ["a cup"], [0.3])}, references, scorer=exact)
    assert scores["dense mAP"] == pytest.approx(0.51) and scores["dense mAP (released)"] == 1.0
    nothing, parts = densecap_scores({}, references, scorer=exact)
    assert set(nothing.values()) == {0.0} and set(parts.values()) == {0.0}


def test_only_captions_that_can_count_are_scored():
    truth = {"i": Boxes([[0, 0, 10, 10], [50, 50, 60, 60]], ["a cup", "a dog"])}
    boxes = [[0, 0, 10, 10], [0, 0, 9, 10], [58, 58, 70, 70], [80, 80, 90, 90], [5, 5, 5, 5]]
    asked = []
    densecap_scores(
        {"i": Boxes(boxes, ["a cup"] * 5, [0.9, 0.8, 0.7, 0.6, 0.5])},
        truth,
        scorer=lambda captions, references: (asked.extend(references), exact(captions, references))[1],
    )
    assert asked == [["a cup"]]


def test_drawing_images_counts_them_as_often():
    predictions, references = random_images(np.random.default_rng(7), 6)
    counts = [2, 1, 0, 1, 3, 0]
    drawn = [n for n, count in enumerate(counts) for _ in range(count)]
    matches = match(predictions, references)
    score_captions(matches, exact)
    copies = {k: references[n] for k, n in enumerate(drawn)}
    expected = match({k: predictions[n] for k, n in enumerate(drawn) if n in predictions}, copies)
    score_captions(expected, exact)
    counted, copied = average_precisions(matches, "lua", counts)[1], average_precisions(expected, "lua")[1]
    assert counted == pytest.approx(copied, abs=0.02)  # equal scores stand in another order
    assert counted != pytest.approx(average_precisions(matches, "lua")[1], abs=0.02)


def test_lists_of_objects_are_boxes():
    predictions, references = random_images(np.random.default_rng(3), 8)

    def items(found):
        columns = {"box": found.boxes, "caption": found.captions}
        columns |= {} if found.scores is None else {"score": found.scores}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    listed = ({n: items(found) for n, found in side.items()} for side in (predictions, references))
    expected = densecap_scores(predictions, references, scorer=exact)
    assert densecap_scores(*listed, scorer=exact) == expected and 0 < expected[0]["dense mAP"] < 1


BOX = [[0, 0, 10, 10]]


@pytest.mark.parametrize(
    ("found", "truth", "rules", "message"),
    [
        ({"x": Boxes(BOX, ["a"])}, {"i": Boxes(BOX, ["a"])}, "python", "the first is 'x'"),
        ({}, {"i": Boxes(BOX, ["a"])}, "torch", "unknown rules 'torch'; known: python, lua"),
        ({}, {}, "python", "no ground-truth boxes"),
        ({}, {"i": Boxes([[4, 4, 4, 9]], ["a"])}, "python", "ground truth of image i: empty box"),
        ({"i": Boxes(BOX, ["a"], [np.nan])}, {"i": Boxes(BOX, ["a"])}, "python", "image i: score nan"),
        ({"i": Boxes([[0, 0, np.inf, 1]], ["a"])}, {"i": Boxes(BOX, ["a"])}, "python", "image i: box .*inf"),
        ({}, {"i": [{"bbox": BOX[0], "caption": "a"}]}, "python", "ground truth of image i: .*bbox.*expected"),
        (
            {"i": [{"box": BOX[0], "caption": "a", "score": 1}, {"box": BOX[0], "caption": "a"}]},
            {"i": Boxes(BOX, ["a"])},
            "python",
            "1 of 2 boxes have a score",
        ),
        ({"i": Boxes(BOX, ["a", "b"])}, {"i": Boxes(BOX, ["a"])}, "python", "1 boxes, 2 captions, 2 scores"),
    ],
)
def test_wrong_input_is_named(found, truth, rules, message):
    with pytest.raises(ValueError, match=message):
        densecap_scores(found, truth, rules, scorer=exact)
