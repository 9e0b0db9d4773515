"""Vocabularies, prompts and losses: expected values that can be checked by eye."""

import json
import math

import numpy as np
import pytest
import torch

from dynrefer import losses, prompts, vocabulary
from dynrefer.vocabulary import Vocabulary, attribute_texts, read_attributes, read_words


def test_an_unknown_word_answers_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'lamp'"):
        Vocabulary(["cup", "lamp"], "tag").ids(["cup", "lmap"])


def test_a_word_stands_in_a_list_once():
    with pytest.raises(ValueError, match="'cup' stands in it 2 times"):
        Vocabulary(["cup", "lamp", "cup"], "tag")


def test_the_hash_follows_words_and_order():
    assert Vocabulary(["a", "b"]).hash != Vocabulary(["b", "a"]).hash != Vocabulary(["a", "c"]).hash


def test_attribute_texts_are_attributes_then_synonyms_then_templates():
    attributes = read_attributes(
        {
            "attributes": [
                {"name": "color:red/reddish", "type": "color", "is_has_att": "has"},
                {"name": "maturity:young/baby", "type": "maturity", "is_has_att": "is"},
                {"name": "tone:light", "type": "color tone", "is_has_att": "has"},
            ]
        }
    )
    texts, owners = attribute_texts(attributes)
    assert texts[:4] == ["the red color", "the  has red color", "the reddish color", "the  has reddish color"]
    assert texts[4:6] == ["the young", "the  is young"]
    assert "the toddler" in texts and owners[texts.index("the toddler")] == 1
    assert texts[-2:] == ["the light color", "the  has light color"]
    assert len(texts) == len(owners) and owners == sorted(owners)


def test_word_lists_are_read_from_text_and_json(tmp_path):
    (tmp_path / "tags.txt").write_text("cup\n\n lamp \n")
    (tmp_path / "names.json").write_text(
        json.dumps({"categories": [{"id": 1, "name": "Cup"}, {"id": 2, "name": "Car"}]})
    )
    assert read_words(tmp_path / "tags.txt") == ["cup", "lamp"]
    assert read_words(tmp_path / "names.json") == ["Cup", "Car"]
    with pytest.raises(ValueError, match="no such file"):
        read_words(tmp_path / "other.txt")


def test_control_words():
    assert prompts.parse_control(None, ["red", "cup"]) == ["red", "cup"]
    assert prompts.parse_control("", ["red"]) == []
    assert prompts.parse_control("blue, car", ["red"]) == ["blue", "car"]
    assert prompts.parse_control("blue,<tags>", ["red", "cup"]) == ["blue", "red", "cup"]
    assert prompts.parse_control(["blue", "<tags>", "old car"], ["red", "blue"]) == ["blue", "red", "old car"]
    assert prompts.parse_control([], ["red"]) == prompts.parse_control("|", ["red"]) == []
    assert prompts.parse_control(" dog ,, old  cat|", []) == ["dog", "old cat"]
    assert prompts.control_prompt([]) == "|"


def test_control_of_all_regions_or_of_each():
    assert prompts.region_controls(None, 2) == [None, None]
    assert prompts.region_controls("red,car", 2) == [["red,car"], ["red,car"]]
    assert prompts.region_controls(["red", "car"], 2) == [["red", "car"]] * 2, "a list of texts is a list of words"
    assert prompts.region_controls([["red"], None, "car"], 3) == [["red"], None, ["car"]]
    assert prompts.region_controls([], 1) == [[]]
    for wrong in (5, [["red"]], [["red"], 5], [["red"], [5]], b"red", {"red": 1}):
        with pytest.raises(ValueError, match="words are a text"):
            prompts.region_controls(wrong, 2)


def test_training_words_are_dropped_and_shuffled_as_told():
    words = [f"w{i}" for i in range(10)]
    drawn = [prompts.training_words(words, np.random.default_rng(seed), 0.5, 0.5) for seed in range(400)]
    assert drawn[0] == prompts.training_words(words, np.random.default_rng(0), 0.5, 0.5)
    assert 0.4 < sum(not d for d in drawn) / 400 < 0.6
    kept = [len(d) for d in drawn if d]
    assert 4.5 < sum(kept) / len(kept) < 5.5
    assert any(d != sorted(d) for d in drawn)


def test_asymmetric_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-2.0))
    negative = 1 - p + 0.05
    expected = -math.log(0.5) - math.log(negative) * (1 - negative) ** 7
    assert losses.asymmetric_loss(logits, torch.tensor([[1, 0]])).item() == pytest.approx(expected, rel=1e-5)
    assert losses.asymmetric_loss(torch.tensor([[-9.0]]), torch.tensor([[0]])).item() == 0, (
        "an easy negative counts nothing"
    )


def test_region_text_loss_by_hand_and_ignored_pairs():
    logits = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    positive = torch.eye(2, dtype=torch.bool)

    def nll(x):
        return math.log(1 + math.exp(-x))

    whole = nll(1) + nll(1) + nll(-0.5) + nll(2)
    assert losses.sigmoid_region_text_loss(logits, positive).item() == pytest.approx(whole, rel=1e-6)
    ignore = torch.tensor([[False, False], [True, False]])
    assert losses.sigmoid_region_text_loss(logits, positive, ignore).item() == pytest.approx(
        whole - nll(-0.5), rel=1e-6
    )


def test_unknown_attributes_and_categories_count_nothing():
    logits = torch.tensor([[0.0, 3.0, -3.0], [9.0, 9.0, 9.0]])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert losses.attribute_loss(logits, labels).item() == pytest.approx(math.log(2), rel=1e-6)
    assert losses.category_loss(logits, torch.tensor([-1, -1])).item() == 0
    assert losses.category_loss(logits, torch.tensor([-1, 1])).item() == pytest.approx(math.log(3), rel=1e-6)


def test_word_lists_of_records():
    class Record:
        def __init__(self, tags, category):
            self.tags, self.category = tags, category

    records = [Record(("cup", "red"), "cup"), Record(("cup",), None), Record(None, "lamp")]
    assert vocabulary.words_of_records(records, "tags", 2) == ["cup"]
    assert vocabulary.words_of_records(records, "category") == ["cup", "lamp"]
