"""Mixtures: every data set has its share, trains its tasks and no others, and everybody agrees on who comes when."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
import yaml
from PIL import Image

from dynrefer.config import load_config
from dynrefer.data import Region, open_records, save_arrow, write_records
from dynrefer.data.loader import DataConfig, DataSource, ExampleLoader, StandIn
from dynrefer.data.mixture import MixLoader, Mixture, counts_after, draws, open_training, training_loader
from dynrefer.data.shards import Shards, write_shards
from dynrefer.data.stream import ShardLoader
from dynrefer.models.dynrefer.batch import RegionBatch
from dynrefer.models.dynrefer.modeling import TASKS
from dynrefer.models.family import ANNOTATIONS, FamilyProcessor
from dynrefer.models.options import Options
from tests import tiny_dynrefer as small
from tests.tiny_squares import load_tiny, tiny_family, write_squares
from train.run import RunConfig, main

HW = (20, 30)
SIZES = {"a": 40, "b": 25, "c": 60}  # regions; images of one to three


class Processor(FamilyProcessor):
    """Samples that name their region and a random number, as a RegionBatch with every annotation."""

    def samples(self, example, options, generators, train):
        return [
            {"id": region.id, "draw": float(generator.random())}
            for region, generator in zip(example.regions, generators, strict=True)
        ]

    def collate(self, samples):
        count = len(samples)
        return RegionBatch(
            controls=[None] * count,
            ids=[f"{sample['id']}:{sample['draw']:.6f}" for sample in samples],
            **{name: torch.zeros(count) for name in ("boxes", "views", "scales", "view_boxes", "region_boxes")},
            caption_mask=torch.ones(count, 3, dtype=torch.long),
            tags_known=torch.ones(count, dtype=torch.bool),
            attributes=torch.ones(count, 2, dtype=torch.int8),
            categories=torch.zeros(count, dtype=torch.long),
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.jsonl, an Arrow folder b, and shards c."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in SIZES.items():
        regions, image = [], 0
        while len(regions) < size:
            Image.new("RGB", HW[::-1]).save(folder / f"{name}{image}.png")
            for _ in range(min(image % 3 + 1, size - len(regions))):
                regions.append(Region(f"{name}_{len(regions)}", f"{name}{image}.png", HW, (1.0, 2.0, 10.0, 12.0)))
            image += 1
        write_records(folder / f"{name}.jsonl", regions)
    save_arrow(folder / "b", open_records(folder / "b.jsonl"))
    write_shards(folder / "c", open_records(folder / "c.jsonl"), max_bytes=20_000)
    return folder


def sources(folder, **tasks):
    return [
        DataSource(str(folder / "a.jsonl"), 2.0, tasks.get("a")),
        DataSource(str(folder / "b"), 1.0, tasks.get("b")),
        DataSource(str(folder / "c"), 1.0, tasks.get("c")),
    ]


def make_loader(train, batch_size=8, seed=3, places=None, **data):
    data = DataConfig(train=train, batch_size=batch_size, **{"num_workers": 0, "streams": 2, "buffer": 6, **data})
    return training_loader(open_training(data.train), Processor(), Options(), data, seed=seed, **places or {})


def ids(steps):
    """Of each step: the names in its passes."""
    return [[batch.ids for batch in step] for step in steps]


def in_step(step):
    """The names of a step, its passes together, in order."""
    return sorted(name for batch in step for name in batch)


def kinds(step):
    return Counter(name[0] for batch in step for name in batch)


# ---------------------------------------------------------------------------------------------- who comes when


def test_draws_keep_to_the_weights_at_every_length():
    for weights in ([1], [1, 1], [3, 1], [2.0, 1.0, 1.0], [0.7, 0.2, 0.1], [5, 0.01], [1 / 3, 1 / 7, 1e-3, 2]):
        counts, total, turns = [0] * len(weights), sum(map(Fraction, weights)), draws(weights, [0] * len(weights))
        for number in range(400):
            assert counts_after(weights, number) == counts
            for count, weight in zip(counts, weights, strict=True):
                assert abs(count - number * Fraction(weight) / total) <= 1
            counts[next(turns)] += 1
    assert counts_after([3, 1], 10**12) == [3 * 10**12 // 4, 10**12 // 4]


# ---------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("mix", ["batches", "regions"])
@pytest.mark.parametrize("batch_size", [4, 8, 20])
def test_the_regions_seen_go_by_weight_and_each_data_set_through_its_own(folder, mix, batch_size):
    loader = make_loader(sources(folder), batch_size, mix=mix)
    total = sum(SIZES.values())
    assert loader.num_regions == total
    seen = {name: [] for name in SIZES}
    for epoch in range(6):
        steps = ids(loader.epoch(epoch))
        assert len(steps) == loader.num_steps(epoch) == loader.num_steps(0)
        for step in steps:
            assert len(kinds(step)) == 1 if mix == "batches" else kinds(step)
            for name in sorted(in_step(step)):
                seen[name[0]].append(name.split(":")[0])
    num_seen = sum(map(len, seen.values()))
    assert num_seen == pytest.approx(6 * total, rel=0.1)
    shares = [len(found) / num_seen for found in seen.values()]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.04)  # steps of so few regions differ from epoch to epoch
    for name, found in seen.items():
        times = Counter(found).values()
        assert len(times) == SIZES[name] and max(times) - min(times) <= 1, "epoch by epoch"


def test_a_mixed_step_has_regions_of_nearly_all(folder):
    steps = ids(make_loader(sources(folder), 20, mix="regions").epoch(0))
    assert sum(len(kinds(step)) for step in steps) >= 2.5 * len(steps)
    assert all(kinds(step)["a"] <= 10 and kinds(step)["b"] <= 5 for step in steps)


@pytest.mark.parametrize("mix", ["batches", "regions"])
def test_workers_processes_and_restarts_change_nothing(folder, mix):
    plain = [ids(make_loader(sources(folder), mix=mix).epoch(epoch)) for epoch in range(3)]
    assert plain[0] != plain[1]
    loader = make_loader(sources(folder), mix=mix, num_workers=2)
    assert [ids(loader.epoch(epoch)) for epoch in range(3)] == plain
    for start in range(len(plain[2])):
        assert ids(make_loader(sources(folder), mix=mix).epoch(2, start_step=start)) == plain[2][start:]
    for world_size, accumulation in ((2, 1), (4, 1), (2, 2), (3, 1)):
        places = {"world_size": world_size, "accumulation": accumulation}
        shares = [
            ids(make_loader(sources(folder), places={"rank": rank, **places}, mix=mix).epoch(1))
            for rank in range(world_size)
        ]
        for step, expected in zip(zip(*shares, strict=True), plain[1], strict=True):
            assert in_step(batch for share in step for batch in share) == in_step(expected)
            assert len({len(share) for share in step}) == 1, "as many passes in every process"
    assert ids(make_loader(sources(folder), seed=4, mix=mix).epoch(0)) != plain[0]


@pytest.mark.parametrize("mix", ["batches", "regions"])
def test_something_stands_in_only_where_a_pass_is_empty(folder, mix):
    every = Counter()
    for rank in range(4):
        places = {"rank": rank, "world_size": 4}
        plain = make_loader(sources(folder), places=places, mix=mix).epoch(0)
        filled = make_loader(sources(folder), places={**places, "stand_in": True}, mix=mix).epoch(0)
        for one, other in zip(plain, filled, strict=True):
            for own, shown in zip(one, other, strict=True):
                every[bool(own.ids)] += 1
                assert own.ids == shown.ids and isinstance(shown, StandIn) == (not own.ids)
                if not own.ids:
                    assert len(shown.shown) == 1
                    counts = shown.shown.counts()
                    assert not any(count for task, count in counts.items() if task != "view_text")
    assert every[True] and every[False]


def test_a_step_of_one_data_set_trains_its_tasks_only(folder):
    loader = make_loader(sources(folder, a=["captions", "tags"], b=["categories"]), mix="batches")
    met = Counter()
    for step in loader.epoch(0):
        for batch in step:
            (kind,), n = {name[0] for name in batch.ids}, len(batch)
            met[kind] += 1
            counts = {task: count for task, count in batch.counts().items() if count}
            assert (
                counts
                == {
                    "a": {"view_text": n, "captions": 3 * n, "region_text": n, "tags": n},
                    "b": {"view_text": n, "categories": n},
                    "c": {
                        **{"view_text": n, "captions": 3 * n, "region_text": n, "tags": n},
                        **{"attributes": n, "categories": n},
                    },
                }[kind]
            )
    assert met.keys() == SIZES.keys()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_a_mixed_step_each_region_trains_the_tasks_of_its_data_set(folder, num_workers, accumulation):
    tasks = {"a": ["captions"], "b": ["attributes", "categories"], "c": []}
    loader = make_loader(
        sources(folder, **tasks), places={"accumulation": accumulation}, mix="regions", num_workers=num_workers
    )
    met = Counter()
    for batch in (batch for step in loader.epoch(0) for batch in step):
        for row, name in enumerate(batch.ids):
            known = {
                "captions": batch.caption_mask[row].any(),
                "tags": batch.tags_known[row],
                "attributes": batch.attributes[row].any(),
                "categories": batch.categories[row] >= 0,
            }
            met[name[0]] += 1
            assert [task for task, found in known.items() if found] == tasks[name[0]]
    assert met.keys() == SIZES.keys()


@pytest.mark.parametrize("left_out", [["captions"], ["captions", "tags", "attributes"], list(ANNOTATIONS)])
def test_a_real_model_trains_on_a_batch_whose_other_targets_are_left_out(left_out):
    model, processor = small.model(view_text=True)
    model.tasks = TASKS
    model.train()

    def without_gradient(losses):
        model.zero_grad()
        sum(losses.values()).backward()
        return [name for name, parameter in model.named_parameters() if parameter.grad is None]

    batch = processor.collate(small.samples(processor, small.picture(), small.regions(), small.generators(), True))
    words, unused = batch.prompt_ids.clone(), without_gradient(model(batch))
    batch.leave_out(left_out)
    counts = batch.counts()
    losses = model(batch)
    assert all((counts[task] > 0) == (float(losses[task].detach()) > 0) for task in TASKS if task != "view_text")
    assert without_gradient(losses) == unused  # nothing drops out of the graph, as DDP wants it
    assert torch.equal(batch.prompt_ids, words)


def test_only_what_has_a_weight_is_mixed(folder):
    a, b, c = (source.path for source in sources(folder))
    assert isinstance(make_loader(a), ExampleLoader) and isinstance(make_loader(c), ShardLoader)
    assert len(open_training([a, b])) == SIZES["a"] + SIZES["b"]  # read as one
    assert isinstance(open_training([c]), Shards)
    mixture = open_training([a, DataSource(b, 3.0), DataSource(c)])
    assert isinstance(mixture, Mixture) and [source.weight for source in mixture.sources] == [1.0, 3.0, 1.0]
    assert len(mixture) == sum(SIZES.values()) == len(list(mixture)) == mixture.licences()["", ""]
    assert isinstance(make_loader([a, DataSource(b, 3.0)]), MixLoader)
    with pytest.raises(ValueError, match="a.jsonl: a record file among shards; give each a weight"):
        open_training([a, c])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"batch_size": 2, "mix": "regions"}, "none of 2 regions"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder, change, rule):
    with pytest.raises(ValueError, match=rule):
        make_loader(sources(folder), **change)


# ---------------------------------------------------------------------------------------------- settings


def test_the_yaml_says_paths_or_weights(tmp_path):
    def load(train, **more):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": train, **more}))
        return load_config(DataConfig, tmp_path / "c.yaml")

    assert load("a").train == "a" and load(["a", "b"]).train == ["a", "b"]
    mixed = load([{"path": "a", "weight": 2, "tasks": ["captions"]}, {"path": ["b", "c"]}, "d"], mix="regions")
    assert mixed.train == [DataSource("a", 2.0, ["captions"]), DataSource(["b", "c"]), "d"] and mixed.mix == "regions"
    for entry, rule in (
        ({"path": "a", "weight": 0}, "weight 0.* of a: expected a number above 0"),
        ({"path": "a", "weight": -1}, "weight -1"),
        ({"path": "a", "weight": float("inf")}, "weight inf"),
        ({"path": "a", "tasks": ["captoins"]}, "'captoins' of a: expected some of captions"),
        ({"path": "a", "wieght": 1}, "Did you mean 'weight'"),
        ({"path": ""}, "path is empty"),
        ({"weight": 1.0}, "path"),
    ):
        with pytest.raises(ValueError, match=rule):
            load([entry])
    with pytest.raises(ValueError, match="mix"):
        load("a", mix="rows")


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["shards", "mixture"])
def test_training_goes_on_exactly_where_it_stopped(tmp_path, kind):
    one, two = write_squares(tmp_path, 30), write_squares(tmp_path, 20, seed=1, prefix="t")
    write_shards(tmp_path / "shards", open_records(one), max_bytes=20_000)
    train = {
        "shards": str(tmp_path / "shards"),
        "mixture": [DataSource(str(tmp_path / "shards"), 2.0), DataSource(str(two))],
    }

    def run(name, **loop):
        settings = {
            "name": name,
            "output": str(tmp_path / "runs"),
            "loop": {"steps": 14, "cpu": True, "num_threads": 1, **loop},
            "data": {"train": "x", "batch_size": 8, "num_workers": 0, "streams": 3, "buffer": 9},
            "log": {"tensorboard": False},
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
        cfg = load_config(RunConfig, tmp_path / "c.yaml")
        object.__setattr__(cfg.data, "train", train[kind])
        result = main(cfg, build=tiny_family, load=load_tiny)
        return load_tiny(str(result.folder / "checkpoints" / f"step-{result.step:08d}" / "model")).state_dict()

    whole = run("whole")
    run("cut", stop_at=5)
    resumed = run("cut", resume=True)
    learnt = [name for name in whole if name != "bank"]  # which counts how often the model was saved
    assert all(torch.equal(whole[name], resumed[name]) for name in learnt)
    short = run("short", stop_at=1)
    assert not all(torch.equal(whole[name], short[name]) for name in learnt)
