"""Frozen features: extraction that a kill does not harm, and a store that gives back what was kept, or says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.features import FEATURES_FILE, VARIANTS, FeatureStore, example_key, mirrored
from dynrefer.data.loader import DataConfig, DataSource
from dynrefer.data.mixture import open_training, training_loader, vocabulary_of
from dynrefer.data.record_files import open_records, write_records
from tests.toy_family import Options, ToyConfig, ToyProcessor
from tests.toy_shapes import write_shapes
from train.extract import extract


class Frozen:
    """What extraction asks of a model, with features that a hand can check: mean colours, places."""

    Options = Options

    def __init__(self, key: str = "k1"):
        self.processor, self.key, self.calls = ToyProcessor(ToyConfig(categories=["a"])), key, 0

    def frozen_key(self) -> str:
        return self.key

    def frozen_features(self, batch):
        self.calls += len(batch.pixels)
        return [
            {
                "means": pixels[here].mean((1, 3, 4)),
                "places": places[here],
                "all": pixels[here].mean((0, 1, 3, 4))[None],
            }
            for pixels, places, here in zip(batch.pixels, batch.places, batch.present, strict=True)
        ]

    def to(self, device):
        return self

    def eval(self):
        return self


@pytest.fixture
def records(tmp_path):
    return open_records(write_shapes(tmp_path))


def pieces(records):
    dataset = ExampleDataset(records, None, train=False, seed=0)
    from train.extract import _whole

    return [dataset.example(_whole(dataset, number)) for number in range(len(dataset.counts))]


def kept(model, records, folder, **ways):
    ways = {"dtype": "float32", "images_per_file": 2, "num_workers": 0, "progress": False, **ways}
    return extract(model, records, folder, **ways)


def test_what_is_kept_comes_back_for_every_example(records, tmp_path):
    model, folder = Frozen(), tmp_path / "features"
    assert kept(model, records, folder) == (3, 0)  # 5 pictures and a clip, two a file
    store = FeatureStore(folder)
    assert len(store) == 6 and store.variants == ["plain"]
    for example in pieces(records):
        batch = model.processor.collate(model.processor.samples(example, Options(), [None] * len(example), False))
        want, got = model.frozen_features(batch)[0], store.of(example).stored()
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert [tensor.dtype for tensor in got.values()] == [torch.float32] * 3 and got["all"].shape == (1, 3)


def test_a_type_of_half_the_size_rounds_and_refuses_what_it_does_not_hold(records, tmp_path):
    assert kept(Frozen(), records, tmp_path / "half", dtype="float16") == (3, 0)
    example = pieces(records)[0]
    assert FeatureStore(tmp_path / "half").read(example.regions)["means"].dtype == torch.float16

    class Large(Frozen):
        def frozen_features(self, batch):
            return [{"x": torch.full((1, 2), 1e6)} for _ in batch.pixels]

    with pytest.raises(ValueError, match="features x: numbers that torch.float16 does not hold; --dtype bfloat16"):
        kept(Large(), records, tmp_path / "large", dtype="float16")


def test_a_second_start_makes_only_what_is_not_whole(records, tmp_path):
    folder = tmp_path / "features"
    kept(Frozen(), records, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    second = folder / "features-00001.safetensors"
    (folder / FEATURES_FILE).unlink()  # as a kill leaves it
    torn = bytearray(second.read_bytes())
    torn[-3] ^= 1
    second.write_bytes(torn)
    with pytest.raises(ValueError, match=r"is unfinished \(no features.json\); run `python -m train.extract`"):
        FeatureStore(folder)
    model = Frozen()
    assert kept(model, records, folder) == (1, 2) and model.calls == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_mirrored_picture_has_mirrored_boxes_and_pixels(tmp_path):
    records = open_records(write_shapes(tmp_path, clip=False))
    example = pieces(records)[0]
    turned = mirrored(example)
    (x1, y1, x2, y2), width = example.regions[0].box, example.regions[0].image_hw[1]
    assert turned.regions[0].box == (width - x2, y1, width - x1, y2)
    assert np.array_equal(turned.image, example.image[:, ::-1]) and mirrored(turned).regions[0].box == (x1, y1, x2, y2)
    model = Frozen()
    model.processor.variants = lambda: VARIANTS
    kept(model, records, tmp_path / "features")
    store = FeatureStore(tmp_path / "features")
    plain, other = (store.of(example).stored(variant) for variant in store.of(example).variants)
    assert torch.allclose(plain["means"], other["means"], atol=0.02)  # the same pixels, resampled from the other side
    centres = torch.tensor([[(box[0] + box[2]) / 2 / width for box in [region.box]] for region in example.regions])
    assert torch.allclose(plain["places"][:, :1], centres) and torch.allclose(other["places"][:, :1], 1 - centres)


def test_a_clip_is_not_mirrored(records):
    with pytest.raises(ValueError, match="of a clip, which is not mirrored; set model.mirror=0"):
        mirrored(pieces(records)[-1])


def test_a_mirrored_twin_of_other_bytes_is_another_example(records):
    keys = {example_key(example.regions, variant) for example in pieces(records) for variant in ("plain", "mirrored")}
    assert len(keys) == 12


def damage(folder: Path, what: str) -> None:
    path = folder / "features-00000.safetensors"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif what == "gone":
        path.unlink()
    elif what == "bit":
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    elif what == "index":
        (folder / "index.safetensors").write_bytes(b"12")
    else:
        content = json.loads((folder / FEATURES_FILE).read_text())
        (folder / FEATURES_FILE).write_text(json.dumps(content | {"format": 9}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", "features file .*features-00000.safetensors': of .* bytes, expected"),
        ("gone", "features-00000.safetensors': missing; run `python -m train.extract`"),
        ("bit", "features-00000.safetensors': those of 'shapes1.png' are damaged .their hash differs"),
        ("index", "index.safetensors': "),
        ("format", "format 9, expected 1"),
    ],
)
def test_damaged_features_are_named(records, tmp_path, what, said):
    folder = tmp_path / "features"
    kept(Frozen(), records, folder)
    damage(folder, what)
    with pytest.raises(ValueError, match=said):
        store = FeatureStore(folder)
        for example in pieces(records):
            store.read(example.regions)


def test_features_of_another_model_and_of_changed_records_are_refused(records, tmp_path):
    kept(Frozen(), records, tmp_path / "features")
    store = FeatureStore(tmp_path / "features")
    store.check_made_with(Frozen())
    with pytest.raises(ValueError, match=r"made by other frozen parts \(k1\) than this model's \(k2\); run"):
        store.check_made_with(Frozen("k2"))
    with pytest.raises(ValueError, match="made with other settings .*k1.* now .*k2.*; name another folder, or remove"):
        kept(Frozen("k2"), records, tmp_path / "features")
    regions = pieces(records)[0].regions
    with pytest.raises(ValueError, match="none of 'shapes0.png' with its 2 regions, as they stand in the records now"):
        store.read(regions[:2])


def test_records_that_grow_keep_what_is_whole(tmp_path):
    folder = tmp_path / "features"
    path = write_shapes(tmp_path, sizes=(2, 1, 3), clip=False)
    records = list(open_records(path))
    write_records(path, records[:3])
    assert kept(Frozen(), open_records(path), folder) == (1, 0)
    write_records(path, records)
    assert kept(Frozen(), open_records(path), folder) == (1, 1) and len(FeatureStore(folder)) == 3
    write_records(path, records[:3])
    assert kept(Frozen(), open_records(path), folder) == (0, 1)
    assert [file.name for file in sorted(folder.glob("features-*"))] == ["features-00000.safetensors"]


def test_a_loader_hands_features_vocabulary_and_negatives_to_the_processor(tmp_path):
    path = write_shapes(tmp_path, clip=False)
    (tmp_path / "categories.txt").write_text("biggest\nblue\nblue\n")
    kept(Frozen(), open_records(path), tmp_path / "features")
    for number in range(5):  # training does not open them
        Image.new("RGB", (9, 9)).save(tmp_path / f"shapes{number}.png")
    seen = []

    class Reader(ToyProcessor):
        def samples(self, example, options, generators, train):
            seen.append((example.stored()["means"].shape[0], len(example), example.vocabulary, example.negatives))
            return []

    source = DataSource(str(path), features=str(tmp_path / "features"), negatives=2)
    data = DataConfig(train=[source], batch_size=8, num_workers=0)
    loader = training_loader(open_training(data.train), Reader(ToyConfig()), None, data, seed=0, joint=True)
    for _ in loader.epoch(0):
        pass
    assert sorted(size for size, *_ in seen) == [2, 2, 3, 3, 4] and all(size == own for size, own, *_ in seen)
    assert {more for _, _, *more in map(tuple, seen) for more in [tuple(more)]} == {(("biggest", "blue"), 2)}
    other = tmp_path / "names.txt"
    other.write_text("x\n")
    assert vocabulary_of(DataSource(str(path), vocabulary=str(other))) == ["x"]
