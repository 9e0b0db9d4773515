import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer.data import Region, open_records, save_arrow, write_records
from dynrefer.data import dataset as dataset_module
from dynrefer.data.dataset import RegionDataset
from dynrefer.data.image_groups import ImageGroups
from dynrefer.data.loader import LANES, DataConfig, RegionLoader, Visits, parts_of_batch

HW = (20, 30)
REGIONS_AN_IMAGE = (3, 1, 5, 2, 4, 1, 2, 5)  # 23 regions


class Processor:
    """Samples that show what went into them: the region, the image's first pixel, a random number."""

    def samples(self, image, regions, generators, train):
        return [
            {"id": region.id, "pixel": int(image[0, 0, 0]), "draw": float(generator.random()), "train": train}
            for region, generator in zip(regions, generators, strict=True)
        ]

    def collate(self, samples):
        return {"samples": samples, "draws": torch.tensor([sample["draw"] for sample in samples])}


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


def make_loader(records, batch_size=8, *, cache_bytes=0, train=True, **options):
    options = {"shuffle": True, "seed": 3, "num_workers": 0, **options}
    return RegionLoader(RegionDataset(records, Processor(), train, options["seed"], cache_bytes), batch_size, **options)


class Planned:
    """So many regions, fifty an image, of which there is nothing but the plan."""

    def __init__(self, num_regions):
        self.num_regions = num_regions

    def __len__(self):
        return self.num_regions

    def image_groups(self):
        return ImageGroups(np.arange(0, self.num_regions + 1, 50))


def samples_of(batches):
    return [batch["samples"] for batch in batches]


def test_an_epoch_holds_every_region_once_and_keeps_images_together(record_file):
    records = open_records(record_file)
    loader = make_loader(records)
    batches = samples_of(loader.epoch(0))
    assert [len(batch) for batch in batches] == [8, 8, 7] and len(loader) == 3
    ids = [sample["id"] for batch in batches for sample in batch]
    assert sorted(ids) == sorted(region.id for region in records)
    images = [name.split("_")[0] for name in ids]
    runs = [image for k, image in enumerate(images) if k == 0 or images[k - 1] != image]
    assert len(runs) == len(set(runs)) == len(REGIONS_AN_IMAGE)
    for batch in batches:
        assert all(sample["pixel"] == 10 * int(sample["id"].split("_")[0]) for sample in batch)


def test_epochs_and_seeds_differ_and_the_same_one_repeats(record_file):
    records = open_records(record_file)
    loader = make_loader(records)
    assert loader.plan(0) == make_loader(records).plan(0) != loader.plan(1)
    assert loader.plan(0) != make_loader(records, seed=4).plan(0)
    assert samples_of(loader.epoch(1)) == samples_of(make_loader(records).epoch(1))


def test_unshuffled_is_the_files_order(record_file):
    records = open_records(record_file)
    loader = make_loader(records, shuffle=False, train=False)
    samples = [sample for batch in samples_of(loader.epoch(5)) for sample in batch]
    assert [sample["id"] for sample in samples] == [region.id for region in records]
    assert not any(sample["train"] for sample in samples)


def test_a_sample_depends_on_seed_epoch_and_index_alone(record_file):
    data = RegionDataset(open_records(record_file), Processor(), True, seed=3)
    both = data.samples([4, 17], epoch=2)
    assert data.samples([17, 4], epoch=2) == both[::-1]
    assert data.samples([17], epoch=2) == both[1:]
    draws = {data.samples([17], epoch=e)[0]["draw"] for e in (0, 1, 2)} | {both[0]["draw"]}
    assert len(draws) == 4


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
    assert samples_of(loader.epoch(2, start_batch=1)) == samples_of(plain.epoch(2))[1:]


def test_a_bad_image_is_a_value_error_from_a_worker_too(record_file):
    (record_file.parent / "2.png").write_bytes(b"\x89PNG")
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="region 2_0: image .*2.png"):
            list(make_loader(open_records(record_file), num_workers=num_workers).epoch(0))


def test_processes_share_each_batch(record_file):
    records = open_records(record_file)
    whole = samples_of(make_loader(records).epoch(1))
    for world_size in (2, 4):
        shares = [samples_of(make_loader(records, rank=r, world_size=world_size).epoch(1)) for r in range(world_size)]
        assert [[s for share in batch for s in share] for batch in zip(*shares, strict=True)] == whole
        assert all(len(batch) == 8 // world_size for share in shares for batch in share[:2])
        last = [len(share[-1]) for share in shares]  # of 7 regions
        assert sum(last) == 7 and max(last) - min(last) == 1


def test_a_later_start_gives_the_rest_and_opens_nothing_else(record_file, opened):
    loader = make_loader(open_records(record_file))
    whole = samples_of(loader.epoch(0))
    opened.clear()
    assert samples_of(loader.epoch(0, start_batch=2)) == whole[2:]
    assert set(opened) == {f"{sample['id'].split('_')[0]}.png" for sample in whole[2]}
    assert list(loader.epoch(0, start_batch=3)) == []
    with pytest.raises(ValueError, match="start_batch 4"):
        next(loader.epoch(0, start_batch=4))


def test_an_image_is_opened_once_a_batch_and_with_a_cache_once_a_run(record_file, opened):
    data = RegionDataset(open_records(record_file), Processor(), True, seed=3)
    data.samples([0, 4, 1, 2, 5], epoch=0)
    assert opened == {"0.png": 1, "2.png": 1}
    opened.clear()
    loader = make_loader(open_records(record_file), cache_bytes=8 * 20 * 30 * 3)
    plain = samples_of(make_loader(open_records(record_file)).epoch(1))
    opened.clear()
    list(loader.epoch(0))
    assert samples_of(loader.epoch(1)) == plain
    assert len(opened) == 8 and set(opened.values()) == {1}


def test_a_pass_opens_every_image_once_although_batches_end_within_images(record_file, opened):
    for batch_size in (1, 2, 8):
        for world_size in (1, 2):
            if batch_size % world_size:
                continue
            opened.clear()
            rest = {"drop_last": world_size > 1, "world_size": world_size}
            loader = make_loader(open_records(record_file), batch_size, **rest)
            list(loader.epoch(0))
            assert set(opened.values()) == {1}, (batch_size, world_size)
            assert world_size > 1 or len(opened) == len(REGIONS_AN_IMAGE)


def test_an_epoch_is_visited_in_lanes_and_leaves_nothing_out():
    assert Visits(8, lanes=2, block=8).order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert Visits(8, lanes=3, block=6).order.tolist() == [0, 2, 4, 1, 3, 5, 6, 7]  # a shorter block at the end
    assert Visits(3, lanes=8, block=8).order.tolist() == [0, 1, 2] and not len(Visits(0, 8, 8).order)
    for total in (1, 23, 24, 25, 383, 384, 385, 1000):
        visits = Visits(total, LANES, block=16 * LANES)
        assert sorted(visits.order) == list(range(total))
        assert (visits.order[visits.turn] == np.arange(total)).all()
        # a worker of any number that divides the lanes meets nearly all neighbours of what it has itself
        for num_workers in (1, 2, 3, 4, 6, 8, 12, 24):
            own = visits.turn % num_workers
            apart = sum(own[k] != own[k + 1] for k in range(total - 1))
            assert total < LANES or apart <= LANES * -(-total // (16 * LANES)) + LANES


@pytest.mark.parametrize("num_workers", [1, 2])
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
    ids = [sample["id"] for batch in samples_of(loader.epoch(0)) for sample in batch]
    assert len(set(ids)) == 700 and 100 <= count <= 100 + LANES  # one where a lane ends; else 175 and more


def test_large_batches_come_from_several_places():
    """Processes that share a batch then have images of their own, and no other batches than one process."""
    assert [parts_of_batch(size) for size in (1, 64, 127, 128, 192, 512, 516)] == [1, 1, 1, 2, 2, 8, 4]
    records = Planned(400_000)
    whole = make_loader(records, 512, drop_last=True).plan(0)
    assert len({k for batch in whole for k in batch}) == 400_000 // 512 * 512
    images = []
    for rank in range(8):
        loader = make_loader(records, 512, rank=rank, world_size=8, drop_last=True)
        keys = [indices.tolist() for ((_, (indices, _, _)),) in loader.keys(0, 0)]
        assert keys == [batch[64 * rank : 64 * rank + 64] for batch in whole]
        images.append({k // 50 for indices in keys for k in indices})
    assert sum(map(len, images)) <= 8000 + 16 * LANES  # were batches taken from one place, it would be some 14,000


def test_the_cache_keeps_within_its_bytes(record_file, opened):
    data = RegionDataset(open_records(record_file), Processor(), True, seed=3, cache_bytes=2 * 20 * 30 * 3 + 100)
    for _ in range(3):
        data.samples(range(23), epoch=0)
    assert data._cached_bytes <= data.cache_bytes and sorted(opened.values()) == [1, 1, 3, 3, 3, 3, 3, 3]
    assert not data.__getstate__()["_cache"]


def test_an_image_of_another_size_than_recorded_is_an_error(record_file):
    Image.new("RGB", (31, 20)).save(record_file.parent / "0.png")
    data = RegionDataset(open_records(record_file), Processor(), True, seed=3)
    with pytest.raises(ValueError, match=r"region 0_0: image_hw \(20, 30\).*\(20, 31\)"):
        data.samples([0], epoch=0)


def test_at_most_so_many_regions_of_an_image(record_file):
    loader = make_loader(open_records(record_file), batch_size=4, max_regions_per_image=2)
    assert loader.num_regions == sum(min(count, 2) for count in REGIONS_AN_IMAGE) == 14
    epochs = [[s["id"] for batch in samples_of(loader.epoch(e)) for s in batch] for e in range(12)]
    for ids in epochs:
        assert len(ids) == len(set(ids)) == 14
        assert max(Counter(name.split("_")[0] for name in ids).values()) == 2
    assert {name for ids in epochs for name in ids} == {region.id for region in open_records(record_file)}


def test_an_image_that_batches_cut_keeps_its_choice_of_regions(record_file):
    records = open_records(record_file)
    whole = make_loader(records, 14, max_regions_per_image=2).plan(3)[0]
    for batch_size in (1, 2, 4):
        assert [
            k for batch in make_loader(records, batch_size, max_regions_per_image=2).plan(3) for k in batch
        ] == whole
    first = make_loader(records, 14, shuffle=False, max_regions_per_image=2).plan(3)[0]
    assert [records[k].id for k in first[:4]] == ["0_0", "0_1", "1_0", "2_0"]


def test_a_plan_is_a_list_that_is_worked_out_where_it_is_looked_at(record_file):
    plan = make_loader(open_records(record_file)).plan(0)
    assert len(plan) == 3 and plan[-1] == plan[2] == list(plan)[2] and plan[1:] == [plan[1], plan[2]]
    assert all(type(index) is int for batch in plan for index in batch)
    with pytest.raises(IndexError, match="batch 3 of 3"):
        plan[3]


def test_five_million_regions_are_planned_in_arrays():
    """Neither time nor memory of an epoch's start goes with the number of regions."""

    tracemalloc.start()
    loader = make_loader(Planned(5_400_000), 64)
    keys = loader.keys(0, 80_000)
    ((_, (indices, epoch, _)),) = next(keys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loader.num_regions == 5_400_000 and len(indices) == 64 and epoch == 0
    assert indices.tolist() == loader.plan(0)[80_000] and peak < 10e6


def test_drop_last_leaves_the_short_batch_out(record_file):
    loader = make_loader(open_records(record_file), drop_last=True)
    assert [len(batch) for batch in samples_of(loader.epoch(0))] == [8, 8] and len(loader) == 2


def test_the_global_torch_generator_is_left_alone(record_file):
    loader = make_loader(open_records(record_file))
    before = torch.random.get_rng_state()
    list(loader.epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 9, "world_size": 2}, "batch_size 9 for 2 processes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"max_regions_per_image": 0}, "max_regions_per_image 0"),
        ({"batch_size": 24, "drop_last": True}, "23 regions do not fill"),
        ({"batch_size": 22, "world_size": 2}, "last batch has 1 regions for 2 processes"),
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
