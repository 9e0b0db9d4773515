"""How a processor cuts views: the released pixels to describe, quick ones to train, on a device where asked."""

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer import RegionPredictor
from dynrefer.data import Region, open_records, write_records
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.loader import ExampleLoader
from dynrefer.data.packing import Piece
from dynrefer.data.shards import open_shards, write_shards
from dynrefer.data.stream import ShardDataset, ShardLoader
from dynrefer.models.dynrefer import processor as processor_module
from dynrefer.models.dynrefer.options import Options
from dynrefer.views import crop_views
from tests import tiny_dynrefer as small

HW = (400, 600)
LARGE, MIDDLE, SMALL = (20.0, 30.0, 330.0, 340.0), (100.0, 80.0, 260.0, 239.0), (5.0, 5.0, 40.0, 60.0)
PHOTOS = {"large": (LARGE, LARGE), "middle": (LARGE, MIDDLE, LARGE), "mixed": (LARGE, SMALL, LARGE)}


@pytest.fixture(scope="module")
def tiny():
    return small.model()


@pytest.fixture
def processor():
    return small.model()[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A record file of three JPEG photos, smooth as photos are at this size."""
    folder, regions = tmp_path_factory.mktemp("photos"), []
    for name, boxes in PHOTOS.items():
        patches = np.random.default_rng(len(name)).integers(0, 255, (10, 15, 3), dtype=np.uint8)
        picture = Image.fromarray(patches).resize(HW[::-1], Image.Resampling.BICUBIC)
        picture.save(folder / f"{name}.jpg", quality=95)
        regions += [Region(f"{name}{k}", f"{name}.jpg", HW, box, captions=("a cup",)) for k, box in enumerate(boxes)]
    write_records(folder / "r.jsonl", regions)
    return folder / "r.jsonl"


@pytest.fixture
def decoded(monkeypatch):
    """Shapes of the images that samples are made of."""
    shapes = []
    original = processor_module.crop_views
    monkeypatch.setattr(
        processor_module,
        "crop_views",
        lambda image, *a, **k: (shapes.append(image.shape[:2]), original(image, *a, **k))[1],
    )
    return shapes


def data_set(path, processor, train=True, draft=False):
    return ExampleDataset(open_records(path), processor, Options(), train=train, seed=3, draft=draft)


def all_samples(data):
    return [s for n, count in enumerate(data.counts) for s in data.samples(data.example(Piece(n, range(count))), 0)]


def test_what_is_trained_on_is_cut_quickly_and_what_is_described_is_released(processor, monkeypatch):
    ways = []
    monkeypatch.setattr(
        processor_module,
        "crop_views",
        lambda *a, resize, **k: (ways.append(resize), crop_views(*a, resize=resize, **k))[1],
    )
    processor.config.train_view_strategy = processor.config.view_strategy
    picture, regions = small.picture(), small.regions()
    trained, tested = (small.samples(processor, picture, regions, small.generators(), train) for train in (True, False))
    described = small.batch_of(processor, picture, np.array(small.BOXES))
    assert ways == [processor_module.FASTEST, "pillow", "pillow"]
    for r, (one, other) in enumerate(zip(trained, tested, strict=True)):
        assert np.abs(one["views"].astype(int) - other["views"]).mean() < 1
        assert (other["views"] == described.views[r].numpy()).all()


def test_a_hash_sees_every_pixel_and_jitter_is_allowed_for(processor):
    regions = [Region("a", "a.jpg", (4000, 6000), (0.0, 0.0, 128.0, 200.0))]  # S = 32
    config = processor.config
    config.box_jitter = 0.0
    for strategy, factor in (("random", 2), ("fixed:0,0.4,1", 2), ("phash", 1), ("joint", 1)):
        config.train_view_strategy = strategy
        assert processor.reduction(regions) == factor
    config.train_view_strategy = "random"
    for jitter, box, factor in ((0.01, 128, 1), (0.01, 131, 2), (0.25, 255, 1), (0.25, 256, 2), (0.5, 4000, 1)):
        config.box_jitter = jitter
        region = Region("a", "a.jpg", (4000, 6000), (10.0, 0.0, 10.0 + box, 4000.0))
        assert processor.reduction([region]) == factor, (jitter, box)


def test_reduced_photos_give_the_same_samples_within_grey_levels(processor, photos, decoded):
    plain = all_samples(data_set(photos, processor))
    assert decoded == [HW] * 3
    decoded.clear()
    drafted = all_samples(data_set(photos, processor, draft=True))
    assert decoded == [(100, 150), (200, 300), HW], "as far as the smallest region of each photo allows"
    for one, other in zip(plain, drafted, strict=True):
        assert one["region"] == other["region"] and one["words"] == other["words"]
        for name in ("boxes", "scales", "view_boxes", "region_boxes"):
            assert (one[name] == other[name]).all()
        assert np.abs(one["views"].astype(int) - other["views"]).mean() < 2
        assert one["region"].image != "mixed.jpg" or (one["views"] == other["views"]).all()
    decoded.clear()
    all_samples(data_set(photos, processor, train=False, draft=True))
    assert decoded == [HW] * 3, "only training is content with less"


def test_a_sample_of_a_reduced_photo_depends_on_itself_alone(processor, photos, tmp_path):
    write_shards(tmp_path / "shards", open_records(photos))
    data = data_set(photos, processor, draft=True)
    together = all_samples(data)
    for index, number, position in ((7, 2, 2), (5, 2, 0), (2, 1, 0), (0, 0, 0)):
        (alone,) = data.samples(data.example(Piece(number, range(3))).part([position]), 0)
        assert (alone["views"] == together[index]["views"]).all()
    sharded = ShardDataset(open_shards(tmp_path / "shards"), processor, Options(), train=True, seed=3, draft=True)
    options = {"shuffle": False, "seed": 3, "num_workers": 0}
    for batch_size in (2, 3, 8):
        loaders = ExampleLoader(data, batch_size, **options), ShardLoader(sharded, batch_size, **options)
        batches = [[batch for step in loader.epoch(0) for batch in step] for loader in loaders]
        assert sum(map(len, batches[0])) == 8
        for one, other in zip(*batches, strict=True):
            assert one.ids == other.ids and torch.equal(one.views, other.views)
            for name, views in zip(one.ids, one.views, strict=True):
                sample = next(sample for sample in together if sample["region"].id == name)
                assert (views.numpy() == sample["views"]).all()


def test_a_reduced_photo_of_another_size_than_recorded_is_an_error(processor, photos, tmp_path):
    regions = [Region("a", "a.jpg", (399, 600), LARGE)]
    (tmp_path / "a.jpg").write_bytes((photos.parent / "large.jpg").read_bytes())
    write_records(tmp_path / "r.jsonl", regions)
    data = data_set(tmp_path / "r.jsonl", processor, draft=True)
    with pytest.raises(ValueError, match=r"region a: image_hw \(399, 600\) but .*a.jpg is \(400, 600\)"):
        all_samples(data)


def test_views_cut_on_the_device_give_the_same_answers(tiny, monkeypatch):
    model, _ = tiny
    images, boxes = [small.picture(), small.picture(1)], [list(small.BOXES), [[0, 0, 100, 80]]]
    plain = RegionPredictor(model, max_regions=3)(images, boxes=boxes, view_strategy="phash")
    devices, original = [], processor_module.crop_views_torch

    def crop(image, *arguments):
        devices.append(image.device)
        return original(image, *arguments)

    monkeypatch.setattr(processor_module, "crop_views_torch", crop)
    cut = RegionPredictor(model, max_regions=3, crop_on_device=True)(images, boxes=boxes, view_strategy="phash")
    assert devices == [model.device] * 3
    for one, other in zip(sum(plain, []), sum(cut, []), strict=True):
        assert one.id == other.id and other.score == pytest.approx(one.score, rel=0.05)


def test_a_batch_cut_on_a_device_differs_in_its_views_alone(processor):
    picture, boxes = small.picture(), np.array(small.BOXES)
    here, there = (small.batch_of(processor, picture, boxes, view_strategy="phash", crop_on=on) for on in (None, "cpu"))
    for name in ("ids", "boxes", "scales", "view_boxes", "region_boxes"):
        assert np.array_equal(getattr(here, name), getattr(there, name))
    assert here.views.dtype == there.views.dtype and here.views.shape == there.views.shape
    off = (here.views.int() - there.views.int()).abs()
    assert off.float().mean() < 0.1
