"""A second family goes the whole way without a line outside its file: load, describe, train, resume, several processes,
evaluate, publish. It is joint, without views, and gives categories and masks; see docs/new_family.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dynrefer
from dynrefer import cli
from dynrefer.config import load_config
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.example import Example
from dynrefer.data.loader import ExampleLoader
from dynrefer.data.packing import Piece
from dynrefer.data.record_files import open_records, write_records
from dynrefer.masks import to_mask
from dynrefer.models import FAMILIES, build, register_family
from dynrefer.models.family import ANNOTATIONS
from eval.run import main as evaluate
from tests.launching import ROOT, TORCHRUN, launched
from tests.toy_family import ROW, Options, ToyModel
from tests.toy_shapes import CATEGORIES, HW, SIZES, write_shapes
from train.run import RunConfig, main

SETTINGS = [
    "model={family: toy}",
    "losses={categories: 1.0, masks: 1.0}",
    "data.batch_size=6",
    "data.num_workers=0",
    "optim.lr=0.005",
    "optim.weight_decay=0",
    "loop.num_threads=1",
    "log.tensorboard=false",
    "eval.metric=loss",
]


@pytest.fixture(autouse=True, scope="module")
def family():
    register_family("toy", ROW)
    yield
    del FAMILIES["toy"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A record file of pictures and a clip."""
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def records(path):
    return open_records(path)


@pytest.fixture(scope="module")
def run(path, tmp_path_factory) -> Path:
    """The folder of a run that has learnt its records."""
    places = [f"output={tmp_path_factory.mktemp('runs')}", f"data.train={path}", f"data.val={path}"]
    settings = ["name=learnt", *places, *SETTINGS, "loop.steps=300", "loop.eval_every=150", "loop.clip=0"]
    return main(load_config(RunConfig, None, settings)).folder


@pytest.fixture
def train(path, tmp_path):
    """Trains for some steps -> the losses, step by step."""

    def go(name: str, *more: str) -> list[float]:
        settings = [f"name={name}", f"output={tmp_path}", f"data.train={path}", *SETTINGS, *more]
        return losses_of(main(load_config(RunConfig, None, settings)).folder)

    return go


@pytest.fixture(scope="module")
def model(run) -> ToyModel:
    return dynrefer.load(run, device="cpu")


@pytest.fixture
def fresh(records) -> ToyModel:
    """Untrained."""
    torch.manual_seed(0)
    model, model.processor = build({"family": "toy"}, records)
    return model.eval()


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def examples_of(records, model) -> list[Example]:
    dataset = ExampleDataset(records, model.processor, train=False, seed=0)
    return [dataset.example(Piece(number, np.arange(count))) for number, count in enumerate(dataset.counts)]


def describe(model, examples: list[Example], max_regions: int = 64, **options) -> list:
    """One result a region, of all examples."""
    predictor = dynrefer.RegionPredictor(model, max_regions=max_regions)
    lists = predictor.describe((example, Options(**options)) for example in examples)
    return [result for results in lists for result in results]


def picture(records, number: int = 0) -> tuple[Path, list[list[float]]]:
    """A picture and its boxes."""
    regions = [region for region in records if region.image == f"shapes{number}.png"]
    return records.root / regions[0].image, [list(region.box) for region in regions]


def batch_of(model, examples: list[Example], train: bool = False):
    samples = [s for e in examples for s in model.processor.samples(e, Options(), e.generators(0, 0), train)]
    return model.processor.collate(samples)


def scores_of(results) -> list[list[float]]:
    """(R, C): of all categories, in alphabetical order."""
    return [[c["score"] for c in sorted(result.categories, key=lambda c: c["name"])] for result in results]


# --- load, describe ---------------------------------------------------------------------------------------------------


def test_learns_pictures_and_a_clip_by_heart(model, records):
    results = describe(model, examples_of(records, model))
    assert [result.id for result in results] == [region.id for region in records]
    assert [result.category["name"] for result in results] == [region.category for region in records]
    for region, result in zip(records, results, strict=True):
        truth, mask = region.to_mask(), to_mask(result.mask, region.image_hw)
        assert (truth & mask).sum() / (truth | mask).sum() > 0.8, region.id
        assert result.caption == "" and result.tags == [] and result.extra == {}
        scores = [category["score"] for category in result.categories]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3


def test_a_saved_model_gives_the_same_answers(fresh, records, tmp_path):
    fresh.save_pretrained(tmp_path / "model")
    again = dynrefer.load(tmp_path / "model", device="cpu")
    assert type(again) is ToyModel and again.config.categories == CATEGORIES
    assert describe(again, examples_of(records, again)) == describe(fresh, examples_of(records, fresh))


def test_regions_of_an_example_influence_each_other(fresh, records):
    image, boxes = picture(records)
    predictor = dynrefer.RegionPredictor(fresh)
    together, alone = predictor(image, boxes=boxes, top_k=4), predictor(image, boxes=boxes[:1], top_k=4)
    assert np.abs(np.array(scores_of(together[:1])) - scores_of(alone)).max() > 1e-3


@pytest.mark.parametrize("max_regions", [1, 3, 5, 64])
def test_other_examples_of_a_batch_and_padding_change_nothing(fresh, records, max_regions):
    examples = examples_of(records, fresh)
    expected = [result for example in examples for result in describe(fresh, [example], top_k=4)]
    results = describe(fresh, examples, max_regions=max_regions, top_k=4)
    np.testing.assert_allclose(scores_of(results), scores_of(expected), atol=1e-6)
    assert [result.mask for result in results] == [result.mask for result in expected]


def test_options_are_the_familys_own(model, records):
    image, boxes = picture(records)
    predictor = dynrefer.RegionPredictor(model)
    for result in predictor(image, boxes=boxes, categories=["red", "green"], top_k=1, with_masks=False):
        assert result.categories == [result.category] and result.category["name"] in ("red", "green")
        assert result.mask is None
    with pytest.raises(ValueError, match="unknown option 'view_strategy'.*categories, top_k, with_masks"):
        predictor(image, boxes=boxes, view_strategy="phash")
    with pytest.raises(ValueError, match="'gren' is none of this model's. Did you mean 'green'"):
        predictor(image, boxes=boxes, categories=["gren"])
    with pytest.raises(ValueError, match="top_k 0: expected a number of categories, at least 1"):
        predictor(image, boxes=boxes, top_k=0)


def test_the_command_describes_and_names_the_options_that_there_are(run, records, capsys):
    image, boxes = picture(records)
    places = [word for box in boxes for word in ("--box", *map(str, box))]
    command = ["describe", str(image), "--model", str(run), "--device", "cpu", *places]
    assert cli.main([*command, "--json", "top_k=2", "with_masks=false"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [region.category for region in records if region.image == image.name]
    assert [result["category"]["name"] for result in results] == expected
    assert all(len(result["categories"]) == 2 and result["mask"] is None for result in results)
    assert cli.main([*command, "categories=red,green"]) == 0
    assert "red" in capsys.readouterr().out
    assert cli.main([*command, "view_strategy=phash"]) == 2
    assert "'view_strategy'" in (error := capsys.readouterr().err) and "categories, top_k, with_masks" in error
    assert len(error.splitlines()) == 1
    assert cli.main(["describe", "--help", "--model", str(run)]) == 0
    assert "report masks" in capsys.readouterr().out  # the comment beside the field


def test_the_command_tells_what_the_model_is(run, capsys):
    assert cli.main(["info", str(run)]) == 0
    assert "toy" in capsys.readouterr().out


# --- from records to batches ------------------------------------------------------------------------------------------


def test_a_clip_is_one_example_of_its_frames(fresh, records):
    example = examples_of(records, fresh)[-1]
    assert [region.id for region in example.regions] == ["shapes-clip-0", "shapes-clip-1"]
    assert example.frames([0, 1, 2]).shape == (3, *HW, 3)
    moving, still = batch_of(fresh, [example]), batch_of(fresh, examples_of(records, fresh)[:1])
    assert not torch.equal(moving.pixels[0, 0, 0], moving.pixels[0, 0, 2])
    assert torch.equal(still.pixels[0, 0, 0], still.pixels[0, 0, 2])


def test_a_picture_has_one_frame_as_often_as_it_is_asked_for():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    example = Example.of_picture(image, [])
    assert example.frames([0, 0]).tolist() == [image.tolist()] * 2 and example.image.tolist() == image.tolist()
    with pytest.raises(ValueError, match="frame 2: a picture has the frame 0 only"):
        example.frames([0, 2])


def test_examples_are_never_cut(fresh, records):
    """An image with more regions than data.batch_size is a step of its own, and one pass."""
    dataset = ExampleDataset(records, fresh.processor, train=True, seed=0)
    for places in ({}, {"world_size": 2, "rank": 0}, {"world_size": 2, "rank": 1}, {"accumulation": 2}):
        loader = ExampleLoader(dataset, 2, shuffle=True, seed=0, num_workers=0, joint=True, **places)
        batches = [batch for step in loader.epoch(0) for batch in step if len(batch)]
        sizes = sorted(int(count) for batch in batches for count in batch.present.sum(1))
        assert loader.num_steps(0) == len(SIZES) + 1
        assert all(size in SIZES for size in sizes)
        if not places.get("world_size"):
            assert sizes == sorted([*SIZES, 2])


def test_sums_do_not_depend_on_what_else_is_in_the_batch(fresh, records):
    examples = examples_of(records, fresh)
    whole, parts = batch_of(fresh, examples, True), [batch_of(fresh, [example], True) for example in examples]
    for task in fresh.tasks:
        assert whole.counts()[task] == sum(part.counts()[task] for part in parts) == len(records)
        total = sum(float(fresh(part)[task].detach()) for part in parts)
        assert float(fresh(whole)[task].detach()) == pytest.approx(total, rel=1e-5)


def test_what_is_left_out_counts_nothing_and_stays_in_the_graph(fresh, records):
    batch = batch_of(fresh, examples_of(records, fresh)[:2])
    batch.leave_out(["masks"], slice(0, 2))
    assert batch.counts() == {"categories": 5, "masks": 3}
    batch.leave_out(ANNOTATIONS)
    nothing = fresh.processor.collate([])
    assert len(nothing) == 0 and set(nothing.counts().values()) == {0}
    for one in (batch, nothing):
        sums = fresh(one)
        assert {task: float(value.detach()) for task, value in sums.items()} == {"categories": 0, "masks": 0}
        fresh.zero_grad()
        sum(sums.values()).backward()
        assert all(p.grad is not None and not p.grad.any() for p in fresh.parameters())


# --- train ------------------------------------------------------------------------------------------------------------


def test_the_run_evaluates_and_notes_what_it_was(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"loss/categories", "loss/masks", "eval/loss"} <= {key for row in rows for key in row}
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["model_type"] == "toy" and config["training"][0]["run"] == "learnt"


def test_the_harness_decides_which_weights_are_best(train, path, tmp_path):
    more = ["loop.steps=20", "loop.eval_every=10", f"data.val={path}", "eval.metric=category accuracy"]
    train("accuracy", *more)
    rows = [json.loads(line) for line in (tmp_path / "accuracy" / "log.jsonl").read_text().splitlines()]
    scores = [row["eval/category accuracy"] for row in rows if "eval/category accuracy" in row]
    assert len(scores) == 2 and 0 < max(scores) <= 1


def test_three_steps_a_stop_and_three_more_are_six(train, tmp_path):
    same = ["loop.steps=6", "loop.accumulation=2", "loop.ema=0.9"]
    straight = train("straight", *same)
    train("stopped", *same, "loop.stop_at=3")
    assert train("stopped", *same, "loop.resume=true") == straight and len(straight) == 6
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("straight", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_workers_and_accumulation_change_no_loss(train):
    whole = train("whole", "loop.steps=6")
    assert train("workers", "loop.steps=6", "data.num_workers=1") == whole
    assert train("cut", "loop.steps=6", "loop.accumulation=3") == pytest.approx(whole, rel=1e-5)


def test_pictures_and_clips_of_two_files_are_the_same_run(train, records):
    pictures = [region for region in records if not hasattr(region, "video")]
    clips = [region for region in records if hasattr(region, "video")]
    for name, regions in (("pictures", pictures), ("clips", clips)):
        write_records(records.root / f"{name}.jsonl", regions)
    files = ", ".join(str(records.root / f"{name}.jsonl") for name in ("pictures", "clips"))
    assert train("two", "loop.steps=4", f"data.train=[{files}]") == train("one", "loop.steps=4")


def test_annotations_of_a_data_set_may_be_left_out(train, path, tmp_path):
    mixed = f"data.train=[{{path: {path}, tasks: [categories]}}]"
    train("named", "loop.steps=2", mixed)
    rows = [json.loads(line) for line in (tmp_path / "named" / "log.jsonl").read_text().splitlines()]
    assert all(row["loss"] == row["loss/categories"] and "loss/masks" not in row for row in rows)
    with pytest.raises(ValueError, match="none of its .* regions has a target for masks"):
        train("none", "loop.steps=2", mixed, "losses.categories=0")


def test_training_goes_on_from_a_model(run, train):
    assert train("on", "loop.steps=2", f"init={run}", "model={}")[0] < 0.6 < train("new", "loop.steps=1")[0]
    with pytest.raises(ValueError, match="model.width is 7, but the model of `init` has 48"):
        train("other", "loop.steps=2", f"init={run}", "model={family: toy, width: 7}")
    with pytest.raises(ValueError, match="model: unknown key 'widht'. Did you mean 'width'"):
        train("wrong", "loop.steps=2", "model={family: toy, widht: 7}")


@pytest.fixture
def launch(path, tmp_path):
    """Starts train.run with this family in its own processes -> the losses."""

    def go(name: str, *more: str, launcher: list[str]) -> list[float]:
        (tmp_path / "run.yaml").write_text(f"name: {name}\noutput: {tmp_path}\nloop: {{steps: 6}}\n")
        settings = ["--config", str(tmp_path / "run.yaml"), f"data.train={path}", *SETTINGS, *more]
        done = launched(*launcher, "-m", "tests.toy_family", *settings)
        assert done.returncode == 0, done.stderr[-3000:]
        return losses_of(tmp_path / name)

    return go


ZERO2 = f"loop.deepspeed={ROOT}/configs/accelerate/ds_zero2.json"
ZERO3 = f"loop.deepspeed={ROOT}/configs/accelerate/ds_zero3.json"


@pytest.mark.slow
@pytest.mark.parametrize("more", [["loop.accumulation=2"], [ZERO2], [ZERO3]], ids=["ddp", "zero2", "zero3"])
def test_two_processes_have_the_losses_of_one(launch, train, more):
    if more[0].startswith("loop.deepspeed"):
        pytest.importorskip("deepspeed")
    losses = launch("two", "loop.processes=2", *more, launcher=TORCHRUN)
    assert losses == pytest.approx(train("one", "loop.steps=6"), rel=1e-5) and len(losses) == 6


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [ZERO2], [ZERO3]], ids=["ddp", "zero2", "zero3"])
def test_a_process_without_an_image_takes_part(launch, train, tmp_path, more):
    """One image, two processes: its regions belong together, so one process has nothing to do in any step."""
    if more:
        pytest.importorskip("deepspeed")
    alone = f"data.train={write_shapes(tmp_path, sizes=(4,), name='alone', clip=False)}"
    losses = launch("two", alone, "loop.processes=2", *more, launcher=TORCHRUN)
    assert losses == pytest.approx(train("one", alone, "loop.steps=6"), rel=1e-5) and losses[-1] < losses[0]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_harness_scores_what_the_family_answers_and_says_what_is_left_out(run, path, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--model", str(run), "--task", "world", "--data", str(path), "--out", str(out), "--num-workers", "0"]
    assert evaluate([*command, "--device", "cpu"]) == 0
    content = json.loads((out / "scores.json").read_text())
    assert content["scores"]["category accuracy"] == 1.0
    assert set(content["left_out"]) == {"captions", "tags", "attributes"}
    assert content["left_out"]["captions"] == "this model gives categories, mask only"
    assert not any(name.startswith(("CIDEr", "METEOR", "BLEU")) for name in content["scores"])
    assert "not computed: captions" in (printed := capsys.readouterr().out) and "empty captions" not in printed
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(open_records(path)) and all(json.loads(line)["mask"] for line in lines)
    assert evaluate([*command, "--device", "cpu", "view_strategy=phash"]) == 2
    assert "categories, top_k, with_masks" in capsys.readouterr().err


# --- publish ----------------------------------------------------------------------------------------------------------


def test_a_pushed_model_comes_back_with_its_card(run, model, records, hub):
    assert cli.main(["push", str(run), "me/toy", "--licence", "mit"]) == 0
    again = dynrefer.load("me/toy", device="cpu")
    assert describe(again, examples_of(records, again)) == describe(model, examples_of(records, model))
    repository = hub.repositories["me/toy"]
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert "Model family `toy`" in card and "license: mit" in card
    assert "for each region a mask and a category." in card and "caption" not in card
    assert "a mask and a category" in card and "pipeline_tag: mask-generation" in card
    assert "weights of the tasks' losses: categories 1, masks 1" in card


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_this_family(path):
    page = (ROOT / "docs" / "new_family.md").read_text(encoding="utf-8")
    source = (ROOT / "tests" / "toy_family.py").read_text(encoding="utf-8")
    blocks = [block.partition("\n")[2] for block in page.split("```python")[1:]]
    blocks = [block.partition("```")[0] for block in blocks]
    shown = [block.partition("\n")[2] for block in blocks if block.startswith("# sketch: tests/toy_family.py\n")]
    assert len(shown) == 4
    for block in shown:
        for part in block.split("    ...\n"):
            assert part.strip("\n") in source, part
