"""RegionSpot learns: from pictures and from kept features alike, against the names of each data set, by any number of
processes, and after a kill."""

import json
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import dynrefer
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.features import VARIANTS, FeatureStore
from dynrefer.data.record_files import open_records
from dynrefer.losses import focal_loss
from dynrefer.vocabulary import Vocabulary
from tests import regionspot
from tests.toy_shapes import CATEGORIES, write_shapes
from train.extract import _whole, extract
from train.extract import main as extract_main
from train.run import command

ROOT = Path(__file__).parent.parent


@cache
def loaded():
    return dynrefer.load(regionspot.small(), device="cpu")


@pytest.fixture
def model():
    return deepcopy(loaded())


@pytest.fixture
def records(tmp_path):
    return open_records(write_shapes(tmp_path, sizes=(2, 3, 1), clip=False))


def batch_of(model, records, train=True, **known):
    dataset = ExampleDataset(records, model.processor, train=train, seed=0, **known)
    samples = [s for n in range(len(dataset.counts)) for s in dataset.samples(dataset.example(_whole(dataset, n)), 0)]
    return model.processor.collate(samples)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model.train()(batch)["categories"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_kept_features_give_the_loss_and_the_gradients_of_pictures(model, records, tmp_path, mirror):
    model.config.mirror = mirror
    extract(model, records, tmp_path / "kept", dtype="float32", num_workers=0, images_per_file=2, progress=False)
    store = FeatureStore(tmp_path / "kept")
    assert store.variants == list(VARIANTS[: 1 + bool(mirror)])
    known = {"vocabulary": CATEGORIES}
    loss, gradients = loss_and_gradients(model, batch_of(model, records, **known))
    kept_loss, kept_gradients = loss_and_gradients(model, batch_of(model, records, features=store, **known))
    assert torch.allclose(loss, kept_loss, rtol=1e-5)
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, kept_gradients[name], rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name


def test_a_mirrored_example_is_another_one(model, records, tmp_path):
    model.config.mirror = 1.0
    other = batch_of(model, records)
    model.config.mirror = 0.0
    plain = batch_of(model, records)
    assert torch.equal(other.seen.clip_pixels, plain.seen.clip_pixels.flip(-1)) and not torch.equal(
        model.encode(other).tokens, model.encode(plain).tokens
    )


def test_features_that_lack_what_training_draws_are_refused(model, records, tmp_path):
    extract(model, records, tmp_path / "kept", num_workers=0, progress=False)
    model.config.mirror = 1.0
    with pytest.raises(ValueError, match="shapes0.png: model.mirror is 1.0, but its features are not kept mirrored"):
        batch_of(model, records, features=FeatureStore(tmp_path / "kept"))


@pytest.mark.parametrize("change", [{"image_size": 48}, {"antialias": True}, {"token": "mlp"}, "sam", "clip"])
def test_features_of_another_model_are_refused(model, records, tmp_path, change):
    extract(model, records, tmp_path / "kept", num_workers=0, progress=False)
    store = FeatureStore(tmp_path / "kept")
    store.check_made_with(model)
    if isinstance(change, dict):
        model.config.update(change)
    else:
        with torch.no_grad():
            next(getattr(model, change).parameters()).add_(0.5)
    with pytest.raises(ValueError, match="made by other frozen parts"):
        store.check_made_with(model)


def test_each_data_set_has_negatives_of_its_own(model, tmp_path):
    one = open_records(write_shapes(tmp_path, sizes=(2, 3), clip=False, name="one"))
    two = open_records(write_shapes(tmp_path, sizes=(3,), clip=False, name="two", seed=1))
    more = [*CATEGORIES, "cup", "lamp"]
    samples = []
    for records, names in ((one, CATEGORIES), (two, more)):
        dataset = ExampleDataset(records, model.processor, train=True, seed=0, vocabulary=names)
        samples += [
            s for n in range(len(dataset.counts)) for s in dataset.samples(dataset.example(_whole(dataset, n)), 0)
        ]
    together = model.processor.collate(samples)
    assert together.vocabularies == [tuple(CATEGORIES), tuple(more)] and together.vocabulary.tolist() == [0, 0, 1]
    model.eval()
    got = model.forward(together)["categories"]
    want = sum(model.forward(model.processor.collate([sample]))["categories"] for sample in samples)
    assert torch.allclose(got, want, rtol=1e-5)
    last = model.processor.collate(samples[2:])
    encoded = model.encode(last)
    logits = model.logits(
        model.recognise(encoded.tokens, encoded.memory, last.present), model.text_bank(more)
    )  # (3, 6)
    targets = torch.nn.functional.one_hot(torch.tensor([more.index(region.category) for region in two]), 6)
    assert torch.allclose(model.forward(last)["categories"], focal_loss(logits, targets), rtol=1e-5)


def test_names_that_are_not_compared_with_count_nothing():
    logits, targets = torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    kept = torch.tensor([[True, False, True]])
    half = 0.25 * 0.25 * np.log(2)  # alpha (1 - p)^2 -log p at p = 0.5
    p = 1 / (1 + np.exp(2))
    assert abs(float(focal_loss(logits, targets, counted=kept)) - (half - 0.75 * p**2 * np.log(1 - p))) < 1e-6


def test_a_set_labelled_in_part_is_compared_with_some_names_drawn_anew(model, records):
    names = [*CATEGORIES, *(f"word{n}" for n in range(60))]
    ways = {"vocabulary": names, "negatives": 5}
    dataset = ExampleDataset(records, model.processor, train=True, seed=0, **ways)
    example = dataset.example(_whole(dataset, 1))
    (first,), (again,), (other,) = (dataset.samples(example, epoch) for epoch in (0, 0, 1))
    assert set(first["categories"].tolist()) <= set(first["against"].tolist()) and 5 <= len(first["against"]) <= 8
    assert torch.equal(first["against"], again["against"]) and not torch.equal(first["against"], other["against"])
    with torch.no_grad():
        model.clip.model.logit_scale.zero_()  # so that no name is surely wrong
    some, whole = (
        model.forward(batch_of(model, records, **known))["categories"] for known in (ways, {"vocabulary": names})
    )
    assert 0 < some < whole
    assert batch_of(model, records, train=False, **ways).against == [None] * 3


def test_a_set_without_names_of_its_own_is_compared_with_the_models_evenly(model, records):
    names = [*CATEGORIES, *(f"word{n}" for n in range(20 - len(CATEGORIES)))]
    model.processor.categories = Vocabulary(names, "category")
    dataset = ExampleDataset(records, model.processor, train=True, seed=0, negatives=4)
    example = dataset.example(_whole(dataset, 2))  # of one region
    samples = [dataset.samples(example, epoch)[0] for epoch in range(200)]
    assert all(sample["names"] == tuple(names) for sample in samples)
    counts = np.bincount(torch.cat([sample["against"] for sample in samples]), minlength=20)
    own = samples[0]["categories"].item()
    assert counts[own] == 200  # its own name is always there
    assert np.abs(np.delete(counts, own) - 200 * 4 / 20).max() < 25  # deviation 5.7


def test_a_category_that_the_vocabulary_lacks_is_named(model, records):
    with pytest.raises(ValueError, match="category 'biggest' is not one of the 2 of its data set's vocabulary"):
        batch_of(model, records, vocabulary=["bigest", "blue"])


def test_features_of_some_and_pictures_of_others_are_no_batch(model, records, tmp_path):
    extract(model, records, tmp_path / "kept", num_workers=0, progress=False)
    store = FeatureStore(tmp_path / "kept")
    samples = []
    for known in ({}, {"features": store}):
        dataset = ExampleDataset(records, model.processor, train=True, seed=0, **known)
        samples += dataset.samples(dataset.example(_whole(dataset, 0)), 0)
    with pytest.raises(ValueError, match="features of some examples and pictures of others"):
        model.processor.collate(samples)


# --- the whole way -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Two data sets of other names, and the configuration of a run that reads features of both."""
    folder = tmp_path_factory.mktemp("run")
    for name, words in (("one", CATEGORIES), ("two", [*CATEGORIES, "cup"])):
        (folder / name).mkdir()
        write_shapes(folder / name, sizes=(2, 3, 1, 2), clip=False, name=name, seed=len(words))
        (folder / name / "categories.txt").write_text("\n".join(words))
    sets = [
        {"path": str(folder / name / f"{name}.jsonl"), "features": str(folder / "kept" / name), **more}
        for name, more in (("one", {}), ("two", {"negatives": 3}))
    ]
    config = {
        "name": "regionspot",
        "output": str(folder / "runs"),
        "init": str(regionspot.small()),
        "model": {"mirror": 0.5, "decoder_dropout": 0.0},
        "data": {"train": sets, "batch_size": 4, "num_workers": 0},
        "losses": {"categories": 1.0},
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "loop": {"steps": 6, "cpu": True, "num_threads": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert extract_main(["--config", str(folder / "run.yaml"), "--images-per-file", "3", "--workers", "0"]) == 0
    return folder


def trained_by_two(folder, *settings):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["-m", "train.run", "--config", str(folder / "run.yaml"), *settings]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def losses_of(folder, name):
    rows = [json.loads(line) for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_features_are_extracted_and_trained_from_by_the_commands(run_folder, capsys):
    assert extract_main(["--config", str(run_folder / "run.yaml"), "--images-per-file", "3", "--workers", "0"]) == 0
    assert "0 files made, 3 were whole already" in capsys.readouterr().out
    for picture in run_folder.glob("*/*.png"):
        picture.rename(picture.with_suffix(".away"))  # training reads features alone
    try:
        assert command(["--config", str(run_folder / "run.yaml")]) == 0
    finally:
        for picture in run_folder.glob("*/*.away"):
            picture.rename(picture.with_suffix(".png"))
    losses = losses_of(run_folder, "regionspot")
    assert len(losses) == 6 and losses[-1] < losses[0]
    frozen, before = (
        {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name.startswith("sam.")}
        for folder in (run_folder / "runs" / "regionspot" / "best", regionspot.small())
    )
    assert frozen and all(torch.equal(frozen[name], before[name]) for name in before)


def test_a_run_that_paused_ends_with_the_same_bytes(run_folder):
    assert command(["--config", str(run_folder / "run.yaml"), "name=whole"]) == 0
    assert command(["--config", str(run_folder / "run.yaml"), "name=paused", "loop.stop_at=3"]) == 0
    assert command(["--config", str(run_folder / "run.yaml"), "name=paused", "loop.resume=true"]) == 0
    whole, paused = (
        run_folder / "runs" / name / "checkpoints" / "step-00000006" / "model" / "model.safetensors"
        for name in ("whole", "paused")
    )
    assert whole.read_bytes() == paused.read_bytes()


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(run_folder):
    assert command(["--config", str(run_folder / "run.yaml"), "name=one"]) == 0
    trained_by_two(run_folder, "name=ddp")
    trained_by_two(run_folder, "name=zero2", "loop.deepspeed=configs/accelerate/ds_zero2.json")
    one = losses_of(run_folder, "one")
    for name in ("ddp", "zero2"):
        assert len(one) == 6 and np.allclose(one, losses_of(run_folder, name), rtol=1e-4), name


@pytest.mark.slow
def test_an_extraction_that_was_killed_goes_on(run_folder):
    words = [sys.executable, "-m", "train.extract", "--config", str(run_folder / "run.yaml"), "--images-per-file", "1"]
    words += [f"data.train=[{{path: {run_folder / 'one' / 'one.jsonl'}, features: {run_folder / 'killed'}}}]"]
    running = subprocess.Popen(
        [*words, "--workers", "0"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while running.poll() is None and len(list((run_folder / "killed").glob("features-*"))) < 3:
        pass
    running.kill()
    running.wait()
    made = len(list((run_folder / "killed").glob("features-*")))
    assert 3 <= made < 8
    done = subprocess.run([*words, "--workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert f"{8 - made} files made, {made} were whole already" in done.stdout, done.stderr
    store, other = FeatureStore(run_folder / "killed"), FeatureStore(run_folder / "kept" / "one")
    for regions in _regions_of_images(run_folder / "one" / "one.jsonl"):
        for variant in VARIANTS:
            one, two = store.read(regions, variant), other.read(regions, variant)
            assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=1e-2) for k in one)


def _regions_of_images(path):
    records = open_records(path)
    return [[records[i] for i in group] for group in records.example_groups()]
