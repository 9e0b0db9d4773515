"""Words of a list by their scores: the plain way's lists, ties included."""

import pytest
import torch

from dynrefer.models.ranking import ranked

NAMES = list("abcdefgh")


def plainly(scores, above, most):
    """One region at a time: sorted as Python does, which keeps equal scores in the list's order."""
    found = []
    for row in scores.tolist():
        best = sorted((i for i, score in enumerate(row) if score > above), key=lambda i: -row[i])[:most]
        found.append([{"name": NAMES[i], "score": row[i]} for i in best])
    return found


@pytest.mark.parametrize("above", [-torch.inf, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("most", [None, 0, 3])
def test_lists_are_the_plain_ways_and_equal_scores_keep_the_order_of_the_words(above, most):
    few = torch.randint(0, 4, (50, 8), generator=torch.Generator().manual_seed(0)) / 4 - 0.25  # many ties
    assert ranked(NAMES, few, above, most) == plainly(few, above, most)
    any_score = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert ranked(NAMES, any_score, above, most) == plainly(any_score, above, most)


def test_ties_by_eye():
    rows = ranked(NAMES[:4], torch.tensor([[0.5, 0.9, 0.9, 0.5], [0.1, 0.1, 0.1, 0.1]]), above=0.2, most=3)
    assert [[word["name"] for word in row] for row in rows] == [["b", "c", "a"], []]


def test_no_region_no_word_and_no_number():
    assert ranked(NAMES, torch.zeros(0, 8)) == []
    assert ranked([], torch.zeros(2, 0)) == [[], []]
    assert ranked(NAMES[:2], torch.tensor([[torch.nan, 1.0]])) == [[{"name": "b", "score": 1.0}]]


def test_the_best_of_a_long_list_are_the_first_of_the_whole_list_also_where_scores_are_equal():
    few = torch.randint(0, 4, (6, 50), generator=torch.Generator().manual_seed(0)).float()
    few[2, :40], few[3] = torch.nan, torch.nan
    names = [str(number) for number in range(50)]
    for above in (-torch.inf, 1):
        whole = ranked(names, few, above)
        assert ranked(names, few, above, most=7) == [row[:7] for row in whole]
