import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer.data import Region, open_records, save_arrow, write_records
from dynrefer.data import dataset as dataset_module
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.image_groups import ImageGroups
from dynrefer.data.loader import DataConfig, ExampleLoader, StandIn
from dynrefer.data.packing import Piece
from dynrefer.models.family import ANNOTATIONS, FamilyProcessor

HW = (20, 30)
REGIONS_AN_IMAGE = (3, 1, 5, 2, 4, 1, 2, 5)  # 23 regions
FIRSTS = np.cumsum((0, *REGIONS_AN_IMAGE))


class Samples(list):
    """A batch that is the list of its samples."""

    left_out = None

    def leave_out(self, tasks, rows=slice(None)):
        self.left_out = (tuple(tasks), rows)

    def to(self, device):
        return self


class Processor(FamilyProcessor):
    """Samples that show what went into them: the region, the image's first pixel, a random number."""

    def samples(self, example, options, generators, train):
        return [
            {"id": region.id, "pixel": int(example.image[0, 0, 0]), "draw": float(generator.random()), "train": train}
            for region, generator in zip(example.regions, generators, strict=True)
        ]

    def collate(self, samples):
        torch.tensor([sample["draw"] for sample in samples])  # as all batches are made of tensors
        return Samples(samples)


@pytest.fixture
def record_file(tmp_path):
    regions = []
    for k, count in enumerate(REGIONS_AN_IMAGE):
        Image.fromarray(np.full((*HW, 3), 10 * k, dtype=np.uint8)).save(tmp_path / f"{k}.png")
        regions += [Region(f"{k}_{j}", f"{k}.png", HW, (1.0, 2.0, 10.0, 12.0)) for j in range(count)]
    write_records(tmp_path / "r.jsonl", regions)
    return tmp_path / "r.jsonl"


@pytest.fixture
def opened(monkeypatch):
    """Counts how often each image is opened."""
    counts = Counter()
    original = dataset_module.open_image

    def open_image(source, reduce=1):
        counts[source.name] += 1
        return original(source, reduce)

    monkeypatch.setattr(dataset_module, "open_image", open_image)
    return counts


def make_dataset(records, train=True, seed=3, **options):
    return ExampleDataset(records, Processor(), train=train, seed=seed, **options)


def make_loader(records, batch_size=8, *, cache_bytes=0, train=True, **options):
    options = {"shuffle": True, "seed": 3, "num_workers": 0, **options}
    dataset = make_dataset(records, train, options["seed"], cache_bytes=cache_bytes)
    return ExampleLoader(dataset, batch_size, **options)


class Planned:
    """So many regions, fifty an image, of which there is nothing but the plan."""

    def __init__(self, num_regions):
        self.num_regions = num_regions

    def __len__(self):
        return self.num_regions

    def example_groups(self):
        return ImageGroups(np.arange(0, self.num_regions + 1, 50))


def samples_of(steps):
    """Of each step: its passes as lists of samples."""
    return [[list(batch) for batch in step] for step in steps]


def in_step(step):
    """The samples of a step's passes together, in the order of their names."""
    return sorted((sample for batch in step for sample in batch), key=lambda sample: sample["id"])


def ids_of(steps):
    return [sample["id"] for step in steps for batch in step for sample in batch]


def images_of(names):
    return [name.split("_")[0] for name in names]


def every_id():
    return sorted(f"{k}_{j}" for k, count in enumerate(REGIONS_AN_IMAGE) for j in range(count))


def whole(number):
    """All regions of one image."""
    return Piece(number, np.arange(REGIONS_AN_IMAGE[number]))


# ---------------------------------------------------------------------------------------------- steps


def test_an_epoch_holds_every_region_once_and_whole_images(record_file):
    loader = make_loader(open_records(record_file))
    steps = samples_of(loader.epoch(0))
    assert len(steps) == loader.num_steps(0) and all(len(step) == 1 for step in steps)
    assert sorted(ids_of(steps)) == every_id()
    for (batch,) in steps:
        assert len(batch) <= 8
        for image, count in Counter(images_of(sample["id"] for sample in batch)).items():
            assert count == REGIONS_AN_IMAGE[int(image)]
        assert all(sample["pixel"] == 10 * int(sample["id"].split("_")[0]) for sample in batch)


def test_epochs_and_seeds_differ_and_the_same_one_repeats(record_file):
    records = open_records(record_file)
    loader = make_loader(records)
    first = samples_of(loader.epoch(0))
    assert first == samples_of(loader.epoch(0)) == samples_of(make_loader(records).epoch(0))
    assert ids_of(first) != ids_of(loader.epoch(1)) and ids_of(first) != ids_of(make_loader(records, seed=4).epoch(0))
    assert samples_of(loader.epoch(1)) == samples_of(make_loader(records).epoch(1))


def test_unshuffled_is_the_files_order(record_file):
    records = open_records(record_file)
    steps = samples_of(make_loader(records, shuffle=False, train=False).epoch(5))
    assert ids_of(steps) == [region.id for region in records]
    assert [len(batch) for (batch,) in steps] == [4, 7, 7, 5]  # 3 1 | 5 2 | 4 1 2 | 5
    assert not any(sample["train"] for (batch,) in steps for sample in batch)


def test_a_sample_depends_on_seed_epoch_and_record_alone(record_file):
    data = make_dataset(open_records(record_file))
    example = data.example(whole(4))
    both = data.samples(example, epoch=2)
    assert [sample["id"] for sample in both] == ["4_0", "4_1", "4_2", "4_3"]
    assert data.samples(example.part([2]), epoch=2) == both[2:3]
    assert data.samples(data.example(whole(4)).part([3, 1]), epoch=2) == [both[3], both[1]]
    draws = {data.samples(example, epoch=e)[2]["draw"] for e in (0, 1, 2)} | {both[3]["draw"]}
    assert len(draws) == 4
    # by seed, epoch and the record's place in the file, as it has always been
    assert both[2]["draw"] == np.random.default_rng([3, 2, FIRSTS[4] + 2]).random()


@pytest.mark.parametrize(
    ("num_workers", "mp_context"), [(1, "fork"), (2, None), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_any_number_of_workers_gives_the_same_batches(record_file, num_workers, mp_context):
    records = open_records(record_file)
    if mp_context is None:
        save_arrow(record_file.parent / "arrow", records)
        records = open_records(record_file.parent / "arrow")
    plain = make_loader(open_records(record_file))
    loader = make_loader(records, num_workers=num_workers, mp_context=mp_context)
    for epoch in (0, 1):  # the second epoch meets the workers of the first
        assert samples_of(loader.epoch(epoch)) == samples_of(plain.epoch(epoch))
    stopped = loader.epoch(2)
    next(stopped)
    assert samples_of(loader.epoch(2, start_step=1)) == samples_of(plain.epoch(2))[1:]


def test_a_bad_image_is_a_value_error_from_a_worker_too(record_file):
    (record_file.parent / "2.png").write_bytes(b"\x89PNG")
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="region 2_0: image .*2.png"):
            list(make_loader(open_records(record_file), num_workers=num_workers).epoch(0))


def test_a_later_start_gives_the_rest_and_opens_nothing_else(record_file, opened):
    loader = make_loader(open_records(record_file))
    every = samples_of(loader.epoch(0))
    opened.clear()
    last = len(every) - 1
    assert samples_of(loader.epoch(0, start_step=last)) == every[last:]
    assert set(opened) == {f"{image}.png" for image in images_of(ids_of(every[last:]))}
    assert list(loader.epoch(0, start_step=last + 1)) == []
    with pytest.raises(ValueError, match=f"start_step {last + 2}: expected 0..{last + 1}, the steps of epoch 0"):
        next(loader.epoch(0, start_step=last + 2))


def test_the_global_torch_generator_is_left_alone(record_file):
    loader = make_loader(open_records(record_file))
    before = torch.random.get_rng_state()
    list(loader.epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_processes_and_passes_share_each_step(record_file, batch_size):
    records = open_records(record_file)
    plain = [in_step(step) for step in make_loader(records, batch_size).epoch(1)]
    for world_size, accumulation in ((1, 2), (2, 1), (2, 2), (4, 1), (3, 2)):
        places = {"world_size": world_size, "accumulation": accumulation}
        loaders = [make_loader(records, batch_size, rank=rank, **places) for rank in range(world_size)]
        shares = [samples_of(loader.epoch(1)) for loader in loaders]
        for number, step in enumerate(zip(*shares, strict=True)):
            assert in_step(batch for share in step for batch in share) == plain[number]
            assert len({len(share) for share in step}) == 1 <= len(step[0]) / accumulation


def test_a_process_without_a_region_gets_an_empty_batch(record_file):
    records = open_records(record_file)
    loaders = [make_loader(records, 8, shuffle=False, rank=rank, world_size=8) for rank in range(8)]
    sizes = [[len(batch) for (batch,) in loader.epoch(0)] for loader in loaders]
    steps = [sorted(step, reverse=True) for step in zip(*sizes, strict=True)]
    assert steps == [[1] * 4 + [0] * 4, [1] * 7 + [0], [1] * 7 + [0], [1] * 5 + [0] * 3]


def test_where_nobody_may_be_idle_something_stands_in(record_file):
    records = open_records(record_file)
    for rank in range(8):
        plain = make_loader(records, 8, rank=rank, world_size=8).epoch(0)
        stand_ins = make_loader(records, 8, rank=rank, world_size=8, stand_in=True).epoch(0)
        for (one,), (other,) in zip(plain, stand_ins, strict=True):
            if one:
                assert one == other
                continue
            assert isinstance(other, StandIn) and len(other) == 0 and other.ids == [] and other.counts() == {}
            assert len(other.shown) == 1 and other.shown.left_out == (ANNOTATIONS, slice(None))
            assert isinstance(other.to("cpu"), StandIn)


def test_a_joint_example_is_never_cut_nor_its_stand_in(record_file):
    records = open_records(record_file)
    for stand_in in (False, True):
        loaders = [
            make_loader(records, 4, rank=rank, world_size=2, accumulation=2, joint=True, stand_in=stand_in)
            for rank in range(2)
        ]
        shares = [list(loader.epoch(0)) for loader in loaders]
        steps = [[batch for share in step for batch in share] for step in zip(*shares, strict=True)]
        assert sorted(ids_of([[b for b in step if not isinstance(b, StandIn)] for step in steps])) == every_id()
        assert any(isinstance(batch, StandIn) for step in steps for batch in step) == stand_in
        for step in steps:
            assert len(step) == 4
            for batch in step:
                batch = batch.shown if isinstance(batch, StandIn) else batch
                for image, count in Counter(images_of(sample["id"] for sample in batch)).items():
                    assert count == REGIONS_AN_IMAGE[int(image)]


def test_a_family_says_what_its_examples_weigh(record_file):
    class Heavy(Processor):
        def weights(self, counts):
            return np.full(len(counts), 4)

    dataset = ExampleDataset(open_records(record_file), Heavy(), train=True, seed=3)
    steps = samples_of(ExampleLoader(dataset, 8, shuffle=True, seed=3, num_workers=0, joint=True).epoch(0))
    assert [len(set(images_of(sample["id"] for sample in batch))) for (batch,) in steps] == [2, 2, 2, 2]


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_a_pass_opens_every_image_once_however_many_passes_it_takes(record_file, opened, batch_size):
    for accumulation in (1, 3):
        opened.clear()
        assert sorted(ids_of(make_loader(open_records(record_file), batch_size, accumulation=accumulation).epoch(0)))
        assert set(opened.values()) == {1} and len(opened) == len(REGIONS_AN_IMAGE)


def test_an_image_is_opened_by_each_process_that_has_a_part_of_it(record_file, opened):
    every = Counter()
    for rank in range(2):
        opened.clear()
        list(make_loader(open_records(record_file), 8, rank=rank, world_size=2).epoch(0))
        assert set(opened.values()) == {1}
        every += opened
    assert every == {f"{k}.png": 1 + (count > 4) for k, count in enumerate(REGIONS_AN_IMAGE)}


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_open_every_image_once_too(tmp_path, num_workers, monkeypatch):
    regions = []
    for k in range(100):
        Image.new("RGB", HW[::-1]).save(tmp_path / f"{k}.png")
        regions += [Region(f"{k}_{j}", f"{k}.png", HW, (1.0, 2.0, 10.0, 12.0)) for j in range(7)]
    write_records(tmp_path / "r.jsonl", regions)
    count, original = torch.zeros(1, dtype=torch.long).share_memory_(), dataset_module.open_image
    lock = torch.multiprocessing.Lock()

    def open_image(*source):
        with lock:
            count.add_(1)
        return original(*source)

    monkeypatch.setattr(dataset_module, "open_image", open_image)
    loader = make_loader(open_records(tmp_path / "r.jsonl"), 4, num_workers=num_workers, mp_context="fork")
    assert len(set(ids_of(loader.epoch(0)))) == 700 and count == 100


def test_with_a_cache_an_image_is_opened_once_a_run(record_file, opened):
    plain = samples_of(make_loader(open_records(record_file)).epoch(1))
    loader = make_loader(open_records(record_file), cache_bytes=8 * 20 * 30 * 3)
    opened.clear()
    list(loader.epoch(0))
    assert samples_of(loader.epoch(1)) == plain
    assert len(opened) == 8 and set(opened.values()) == {1}


def test_the_cache_keeps_within_its_bytes(record_file, opened):
    data = make_dataset(open_records(record_file), cache_bytes=2 * 20 * 30 * 3 + 100)
    for _ in range(3):
        for number in range(8):
            data.samples(data.example(whole(number)), epoch=0)
    assert sum(image.nbytes for image in data._cache.values()) <= data.cache_bytes
    assert sorted(opened.values()) == [1, 1, 3, 3, 3, 3, 3, 3]
    assert not data.__getstate__()["_cache"]


def test_an_image_of_another_size_than_recorded_is_an_error(record_file):
    Image.new("RGB", (31, 20)).save(record_file.parent / "0.png")
    data = make_dataset(open_records(record_file))
    with pytest.raises(ValueError, match=r"region 0_0: image_hw \(20, 30\).*\(20, 31\)"):
        data.samples(data.example(whole(0)), epoch=0)


def test_a_picture_that_a_family_gets_is_read_only(record_file):
    data = make_dataset(open_records(record_file), cache_bytes=10**6)
    for _ in range(2):  # opened, and from the cache
        with pytest.raises(ValueError, match="read-only"):
            data.example(whole(0)).image[0] = 1


def test_at_most_so_many_regions_of_an_image(record_file):
    loader = make_loader(open_records(record_file), batch_size=4, max_regions_per_image=2)
    assert loader.num_regions == sum(min(count, 2) for count in REGIONS_AN_IMAGE) == 14
    epochs = [ids_of(loader.epoch(e)) for e in range(12)]
    for ids in epochs:
        assert len(ids) == len(set(ids)) == 14
        assert max(Counter(images_of(ids)).values()) == 2
    assert sorted({name for ids in epochs for name in ids}) == every_id()
    first = make_loader(open_records(record_file), 14, shuffle=False, max_regions_per_image=2)
    assert ids_of(first.epoch(3))[:4] == ["0_0", "0_1", "1_0", "2_0"]


# ---------------------------------------------------------------------------------------------- size, settings


def test_five_million_regions_are_planned_in_arrays():
    """Neither time nor memory of an epoch's start goes with the number of regions."""
    tracemalloc.start()
    loader = make_loader(Planned(5_400_000), 64)
    ((((number, epoch, piece),), stand_in),) = next(loader.keys(0, 80_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loader.num_regions == 5_400_000 and loader.num_steps(0) == 108_000 and peak < 20e6
    assert (number, epoch, len(piece), stand_in) == (0, 0, 50, False)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"accumulation": 0}, "accumulation 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"max_regions_per_image": 0}, "max_regions_per_image 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(record_file, options, rule):
    with pytest.raises(ValueError, match=rule):
        make_loader(open_records(record_file), **options)


def test_config_refuses_what_the_loader_would():
    assert DataConfig().batch_size == 64
    for bad in (
        *({"batch_size": 0}, {"num_workers": -1}, {"max_regions_per_image": 0}, {"cache_mb": -1}),
        *({"streams": 0}, {"buffer": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DataConfig(**bad)
