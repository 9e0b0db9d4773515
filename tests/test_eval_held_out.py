"""Categories that training left out: who counts in which column, and what the table says."""

import numpy as np
import pytest

from data_prep import world
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from eval import held_out
from tests.regionspot import folder


def region(name, category):
    return Region(id=name, image="a.png", image_hw=(20, 20), box=(0, 0, 10, 10), category=category)


EXAMPLES = [("a.png", [region("1", "cup"), region("2", "tree")]), ("b.png", [region("3", "kite")])]


def test_a_region_counts_where_its_category_was_trained_or_held_out():
    ranking = {"1": ["cup", "kite", "tree"], "2": ["cup", "kite", "tree"], "3": ["cup", "kite", "tree"]}
    found = held_out.right(ranking, EXAMPLES, held_out=["kite"])
    np.testing.assert_equal(found[held_out.AMONG_ALL], [1, 0, np.nan])
    np.testing.assert_equal(found[held_out.HELD_OUT], [np.nan, np.nan, 0])  # "cup" comes first
    np.testing.assert_equal(found[held_out.AMONG_HELD_OUT], [np.nan, np.nan, 1])  # the first of the held-out names


def test_better_than_crops_is_marked_where_the_interval_says_so():
    examples = [(f"{n}.png", [region(f"{n}-1", "cup"), region(f"{n}-2", "kite")]) for n in range(40)]
    good, bad = ["cup", "kite"], ["kite", "cup"]
    rankings = {
        "model": {f"{n}-{k}": good if k == 1 else bad for n in range(40) for k in (1, 2)},
        held_out.CROPS: {f"{n}-{k}": good if n % 4 == 0 else bad for n in range(40) for k in (1, 2)},
    }
    table = held_out.score(rankings, examples, ["kite"])
    cell = table["model"][held_out.AMONG_ALL]
    assert (cell["accuracy"], cell["more_than_crops"]) == (1.0, 0.75) and cell["difference_interval"][0] > 0.5
    assert table["model"][held_out.HELD_OUT]["accuracy"] == 1.0  # "kite" comes first in `bad`
    assert "more_than_crops" not in table[held_out.CROPS][held_out.AMONG_ALL]
    lines = held_out.markdown(table, 2, 1).splitlines()
    assert lines[2] == "| chance | 0.500 | 0.500 | 1.000 |"
    assert lines[3].startswith("| model | 1.000 (") and " *" in lines[3]


def test_a_region_without_a_category_is_named(tmp_path):
    write_records(tmp_path / "bare.jsonl", [region("bare", None)])
    with pytest.raises(ValueError, match=r"bare.jsonl: region bare has no category"):
        held_out.examples_of(str(tmp_path / "bare.jsonl"))


def test_records_of_the_world_without_the_categories_that_are_held_out(tmp_path):
    path = world.write(tmp_path, 8, "train", image_hw=(192, 256), held_out=["cup", "kite", "car", "tree", "boat"])
    whole, seen = list(open_records(path)), list(open_records(tmp_path / "train-seen.jsonl"))
    names = (tmp_path / "seen.txt").read_text().split()
    kept = [record.category for record in seen if record.category is not None]
    assert kept and len(kept) < len(seen)
    assert kept == [record.category for record in whole if record.category in names]
    assert [record.box for record in seen] == [record.box for record in whole]


def test_a_world_of_single_objects(tmp_path):
    path = world.write(tmp_path, 5, "train", image_hw=(192, 256), most=1)
    assert [len(regions) for _, regions in held_out.examples_of(path)] == [1] * 5


def test_what_it_prints_for_a_model(tmp_path, capsys):
    world.write(tmp_path, 3, "test", image_hw=(192, 256))
    assert held_out.main(["--models", str(folder()), "--data", str(tmp_path / "test.jsonl"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "held out" in printed and held_out.CROPS in printed
