"""Packing: whole examples up to a step's size, dealt out evenly, the same whoever takes part."""

from collections import Counter

import numpy as np
import pytest

from dynrefer.data.packing import Piece, Plan, deal, kept_counts, num_passes, pack

CASES = [  # batch_size, processes, accumulation
    (64, 1, 1), (64, 2, 1), (64, 2, 2), (64, 8, 1), (16, 4, 4), (16, 3, 2), (8, 8, 1), (7, 2, 3), (1, 1, 1), (2, 4, 1)
]  # fmt: skip


def plan(counts, batch_size=8, *, seed=3, epoch=0, shuffle=True, most=None):
    return Plan(np.array(counts), batch_size, seed=seed, epoch=epoch, shuffle=shuffle, most=most)


def pieces(*counts):
    return [Piece(number, np.arange(count)) for number, count in enumerate(counts)]


def dealt(counts, batch_size, processes=1, accumulation=1, joint=False):
    """The regions of each pass of every process: [[[(number, positions), ...], ...], ...]."""
    passes = num_passes(sum(counts), batch_size, accumulation, joint)
    places = {"processes": processes, "passes": passes, "accumulation": accumulation, "joint": joint}
    shares = deal(pieces(*counts), counts, batch_size, **places)
    return [[[(piece.number, piece.positions.tolist()) for piece in one] for one in share] for share in shares]


def sizes(shares):
    """Regions of each pass of every process."""
    return [[sum(len(positions) for _, positions in one) for one in share] for share in shares]


def steps_of(plan):
    return [[(piece.number, piece.positions.tolist()) for piece in step] for step in plan]


def random_counts(seed, size=200):
    """Mostly few regions, here and there a hundred."""
    generator = np.random.default_rng(seed)
    return np.maximum(1, generator.lognormal(1.5, 1.0, size).astype(int))


# ---------------------------------------------------------------------------------------------- steps


def test_neighbours_share_a_step_while_they_fit():
    assert pack(np.array([3, 5, 2, 4, 1, 9, 6, 2]), 8).tolist() == [0, 2, 5, 6, 8]
    assert pack(np.array([9, 9, 1]), 8).tolist() == [0, 1, 2, 3] and pack(np.array([8, 8]), 8).tolist() == [0, 1, 2]
    assert pack(np.array([0.5, 0.25, 0.5]), 0.75).tolist() == [0, 2, 3]
    assert pack(np.zeros(0), 8).tolist() == [0]


def test_a_step_has_the_neighbours_of_the_files_order():
    assert steps_of(plan([3, 5, 9, 2], shuffle=False)) == [
        [(0, [0, 1, 2]), (1, [0, 1, 2, 3, 4])],
        [(2, list(range(9)))],
        [(3, [0, 1])],
    ]


def test_every_region_comes_once_in_steps_that_are_full_or_one_example():
    for seed in range(5):
        counts = random_counts(seed)
        for batch_size in (1, 8, 64):
            epoch = plan(counts, batch_size, seed=seed)
            steps = list(epoch)
            assert sorted(piece.number for step in steps for piece in step) == list(range(len(counts)))
            assert all(piece.positions.tolist() == list(range(counts[piece.number])) for s in steps for piece in s)
            held = [sum(map(len, step)) for step in steps]
            assert all(size <= batch_size or len(step) == 1 for size, step in zip(held, steps, strict=True))
            for size, after in zip(held[:-1], steps[1:], strict=True):
                assert size + len(after[0]) > batch_size, "the next example would have had room"


def test_epochs_and_seeds_differ_and_the_same_one_repeats():
    counts = random_counts(0)
    assert steps_of(plan(counts)) == steps_of(plan(counts)) != steps_of(plan(counts, epoch=1))
    assert steps_of(plan(counts)) != steps_of(plan(counts, seed=4))
    assert steps_of(plan(counts, shuffle=False)) == steps_of(plan(counts, shuffle=False, epoch=1))


def test_a_plan_is_a_list_that_is_worked_out_where_it_is_looked_at():
    epoch = plan([5, 6, 7])
    assert len(epoch) == 3 and steps_of([epoch[-1]]) == steps_of([epoch[2]]) == steps_of(epoch)[2:]
    with pytest.raises(IndexError, match="step 3 of 3"):
        epoch[3]


def test_at_most_so_many_regions_of_an_example_and_others_in_the_next_epoch():
    counts = [3, 1, 5]
    assert kept_counts(np.array(counts), 2).tolist() == [2, 1, 2]
    assert steps_of(plan(counts, most=2, shuffle=False)) == [[(0, [0, 1]), (1, [0]), (2, [0, 1])]]
    seen = Counter()
    for epoch in range(30):
        (step,) = plan(counts, most=2, epoch=epoch)
        assert sorted((piece.number, len(piece)) for piece in step) == [(0, 2), (1, 1), (2, 2)]
        assert all(sorted(set(piece.positions)) == piece.positions.tolist() for piece in step)
        seen.update((piece.number, int(position)) for piece in step for position in piece.positions)
    assert len(seen) == 9, "all regions had their turn"


def test_the_choice_of_an_examples_regions_does_not_depend_on_the_step():
    counts = random_counts(1)
    chosen = [sorted(sum(steps_of(plan(counts, size, most=3, epoch=2)), [])) for size in (3, 8, 64)]
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_hundred_thousand_examples_are_planned_as_numbers():
    counts = np.full(108_000, 50)
    epoch = plan(counts, 64)
    assert len(epoch) == 108_000 and len(epoch[50_000]) == 1
    held = epoch.order.nbytes + epoch.starts.nbytes + epoch.weights.nbytes
    assert held < 3e6


# ---------------------------------------------------------------------------------------------- shares


def test_whole_examples_go_to_where_the_least_is():
    assert dealt([2, 4, 1], 8, 2) == [[[(1, [0, 1, 2, 3])]], [[(0, [0, 1]), (2, [0])]]]
    assert dealt([3, 5], 8) == [[[(0, [0, 1, 2]), (1, [0, 1, 2, 3, 4])]]]  # one process: as they stand
    assert sizes(dealt([3, 3, 3, 3], 12, 2, 2)) == [[3, 3], [3, 3]]


def test_what_is_larger_than_a_share_is_cut_into_equal_parts():
    assert dealt([6, 2], 8, 2) == [[[(0, [0, 1, 2]), (1, [0, 1])]], [[(0, [3, 4, 5])]]]
    assert sizes(dealt([50], 64, 2)) == [[25], [25]], "nobody is idle"
    assert sizes(dealt([50], 64, 4)) == [[13], [13], [12], [12]]
    assert sizes(dealt([50], 64, 1, 2)) == [[25, 25]]
    assert sizes(dealt([50], 64, 2, 2)) == [[13, 12], [13, 12]]
    assert sizes(dealt([30], 64, 2, 2)) == [[15, 0], [15, 0]], "more than a share of 16"
    assert sizes(dealt([2], 8, 8)) == [[1], [1]] + [[0]] * 6, "a part has a region at least"


def test_an_example_larger_than_a_step_takes_more_passes():
    assert num_passes(64, 64) == 1 and num_passes(65, 64) == 2 and num_passes(129, 64, 2) == 6
    assert num_passes(1, 64, 4) == 4 and num_passes(0, 64, 2) == 2 and num_passes(129, 64, 2, joint=True) == 2
    assert sizes(dealt([100], 64)) == [[50, 50]]
    assert sizes(dealt([100], 64, 2)) == [[25, 25], [25, 25]]


def test_what_belongs_together_is_never_cut():
    assert dealt([6, 2], 8, 2, joint=True) == [[[(0, [0, 1, 2, 3, 4, 5])]], [[(1, [0, 1])]]]
    assert sizes(dealt([100], 64, 2, 2, joint=True)) == [[100, 0], [0, 0]]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("batch_size", "processes", "accumulation"), CASES)
def test_shares_are_disjoint_complete_and_even(batch_size, processes, accumulation, joint):
    for seed in range(4):
        counts = random_counts(seed)
        for step in plan(counts, batch_size, seed=seed):
            counts_of = [len(piece) for piece in step]
            shares = dealt(counts_of, batch_size, processes, accumulation, joint)
            passes = num_passes(sum(counts_of), batch_size, accumulation, joint)
            assert [len(share) for share in shares] == [passes] * processes
            every = Counter((n, k) for share in shares for one in share for n, own in one for k in own)
            assert every == Counter((n, k) for n, count in enumerate(counts_of) for k in range(count))
            room, loads = batch_size / processes / accumulation, sizes(shares)
            for number, count in enumerate(counts_of):
                parts = [[own for one in share for n, own in one if n == number] for share in shares]
                if joint or count <= room:
                    assert sum(map(len, parts)) == 1, "whole"
                for share in shares:
                    mine = [len(own) for one in share for n, own in one if n == number]
                    assert joint or not mine or max(mine) - min(mine) <= 1
            if joint:
                continue
            if len(step) == 1:  # dealt out evenly
                totals = [total for total in map(sum, loads) if total]
                assert max(totals) - min(totals) <= 1
                shares_full = -(-counts_of[0] * processes * accumulation // batch_size)
                assert len(totals) == min(processes, counts_of[0], shares_full), "nobody is idle who could help"
            assert max(map(max, loads)) <= max(2 * room, 1), "memory is bounded"


def test_the_regions_of_a_step_do_not_depend_on_who_shares_it():
    counts = random_counts(7)
    for step in plan(counts, 32):
        counts_of = [len(piece) for piece in step]
        every = [
            sorted((n, k) for share in dealt(counts_of, 32, *places) for one in share for n, own in one for k in own)
            for places in ((1, 1), (2, 1), (3, 2), (8, 4))
        ]
        assert all(one == every[0] for one in every)
