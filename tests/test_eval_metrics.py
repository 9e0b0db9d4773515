"""Tag, attribute and category metrics on numbers that can be checked by eye."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.attributes import attribute_groups, attribute_map
from eval.categories import category_accuracy
from eval.tags import average_precision, tag_map

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"


def test_average_precision_of_small_rankings():
    assert average_precision([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0, 1], [0.9, 0.8]) == 0.5
    assert average_precision([1, 0, 0, 1], [0.5] * 4) == 0.5  # equal scores: the order of the regions says nothing
    assert average_precision([0, 0, 0, 1], [0.5] * 4) == average_precision([1, 0, 0, 0], [0.5] * 4) == 0.25
    with pytest.raises(ValueError, match="without a positive"):
        average_precision([0, 0], [1, 2])


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = generator.integers(0, 2, 50)
        labels[0] = 1
        scores = np.round(generator.random(50), 1)  # many equal ones
        expected = metrics.average_precision_score(labels, scores)
        assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_tag_scores():
    labels = [[1, 0, 0], [1, 1, 0]]
    scores = [[0.9, 0.8, 0.0], [0.6, 0.7, 0.75]]
    result = tag_map(labels, scores, threshold=0.7)
    assert result["tag mAP"] == pytest.approx((1 + 0.5) / 2)  # the third tag has no positive
    assert result["tag precision"] == 2 / 4
    assert result["tag recall"] == pytest.approx(2 / 3)
    assert result["tag F1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    nothing = tag_map(labels, np.zeros((2, 3)), threshold=0.0)
    assert nothing["tag precision"] == nothing["tag recall"] == nothing["tag F1"] == 0


def test_attribute_map_leaves_unknown_labels_and_attributes_without_positives_out():
    labels = [[1, 0, -1], [0, 0, 1], [-1, 0, 0]]
    scores = [[0.5, 0.9, 0.9], [0.4, 0.1, 0.5], [0.9, 0.2, 0.6]]
    assert attribute_map(labels, scores)["attribute mAP"] == pytest.approx((1 + 0.5) / 2)


def test_attribute_map_equals_the_released_evaluator_in_every_group():
    vector = np.load(FIXTURES / "ovad.npz")
    expected = json.loads((FIXTURES / "ovad_expected.json").read_text())
    attributes = json.loads((FIXTURES / "ovad_attributes.json").read_text())
    result = attribute_map(vector["labels"], vector["scores"], attributes)
    names = {name.removeprefix("PCt0.4_ap/"): value / 100 for name, value in expected.items()}
    assert len(names) == 25 and {"all", "head", "medium", "tail", "color", "single"} <= set(names)
    assert result.pop("attribute mAP") == pytest.approx(names.pop("all"), abs=1e-8)
    assert {name.removeprefix("attribute mAP/"): value for name, value in result.items()} == pytest.approx(
        names, abs=1e-8
    )


def test_attribute_groups_of_plain_names():
    assert attribute_groups([{"name": "color:red"}, {"name": "wet"}, {"name": "color:gray/grey", "type": "hue"}]) == {
        "color": [0],
        "hue": [2],
        "single": [0],
        "multiple": [2],
    }
    assert "attribute mAP/color" not in attribute_map([[0, 1]], [[0.1, 0.2]], [{"name": "color:red"}, {"name": "wet"}])
    with pytest.raises(ValueError, match="1 entries for 2 columns"):
        attribute_map([[0, 1]], [[0.1, 0.2]], [{"name": "color:red"}])


def test_category_accuracy_counts_a_missing_prediction_as_wrong():
    true = {"a": "cup", "b": "lamp", "c": None, "d": "cup"}
    assert category_accuracy({"a": "cup", "b": "cup", "c": "cup"}, true) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="the first for 'x'"):
        category_accuracy({"x": "cup"}, true)
    with pytest.raises(ValueError, match="no region has a category"):
        category_accuracy({}, {"a": None})


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([[1, 0]], [[0.1]], r"labels \(1, 2\) and scores \(1, 1\)"),
        ([[2]], [[0.1]], "label 2"),
        ([[1]], [[np.nan]], "score nan of region 0, name 0"),
        ([[0]], [[0.1]], "no region has any"),
    ],
)
def test_wrong_arrays_are_named(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        tag_map(labels, scores, 0.5)
    with pytest.raises(ValueError, match=message):
        attribute_map(labels, scores)
