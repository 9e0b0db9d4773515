"""A step's losses and gradient are the same for any number of processes and accumulated batches, for every
configuration in configs/ as it stands there, without dropout; models that they start from are small ones."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dynrefer.config import load_config
from dynrefer.data.record_files import open_records, write_records
from dynrefer.models import build
from tests import omni_rgpt, regionspot
from tests import tiny_dynrefer as small
from tests.launching import ROOT, TORCHRUN, launched
from train.run import RunConfig, main

# Two pictures with seven regions make a step, of which two processes or three passes cut the first; a picture with one
# region makes the next, in which all but one of them idle.
ONCE = (
    *("loop.precision=fp32", "loop.epochs=null", "loop.steps=3", "loop.eval_every=3", "loop.save_every=0"),
    *("loop.num_threads=1", "loop.cpu=true", "log.tensorboard=false", "eval.metric=loss"),
    *("data.batch_size=7", "data.shuffle=false", "data.num_workers=0"),
)
PASSES = "loop.accumulation=3"
NO_DROPOUT = "model.language.config.attention_dropout=0.0"
# words and tokenizer are those of the test's records
WORDS = (
    *(f"model.words.{kind}={{min_count: 1}}" for kind in ("tags", "attributes", "categories")),
    "model.tokenizer.vocab_size=120",
)
T5 = {"config": {**small.T5["config"], "dropout_rate": 0.0}, "mode": "frozen"}
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
NEW = {"quickstart", "flickr30k_pretrain"}  # the others start from a saved model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records, and the saved models that configurations start from: a new one, and a published recipe's in small."""
    folder = tmp_path_factory.mktemp("splits")
    regions = [region for number in range(3) for region in small.regions(f"{number}.png", 4 * number)]
    write_records(folder / "train.jsonl", regions[:7] + regions[8:9])
    for number in range(3):
        Image.fromarray(small.picture(number)).save(folder / f"{number}.png")
    frozen = {
        "vision": {"config": small.SECTION["vision"]["config"]},
        "text": {"config": small.SECTION["text"]["config"]},
    }
    for name, changes in (("finetune", {}), ("dynrefer_vg", {**frozen, "language": T5}), ("dynrefer_refcocog", {})):
        model, processor = small.model(**changes)
        model.save_pretrained(folder / f"init-{name}")
        processor.save_pretrained(folder / f"init-{name}")
    return folder


def settings(folder, config):
    """What a run of a configuration is told beside the YAML."""
    start = [f"init={folder}/init-{config}"]
    if config.startswith("regionspot"):
        names = sorted({region.category for region in open_records(folder / "train.jsonl")} - {None})
        small = "model={mirror: 0.5, decoder_heads: 8, decoder_mlp_width: 32, clip_positions: none}"
        start = [f"init={regionspot.small()}", small]
        start += [f"model.categories={json.dumps(names)}"]
    elif config.startswith("omni_rgpt"):
        start = ["loop.accumulation=1", "model.base.name=" + base_of(folder)]
        if config != "omni_rgpt_stage1":
            start = ["loop.accumulation=1", f"init={folder}/runs/omni_rgpt_stage1"]
            start += ["model.base.lora.lora_dropout=0"] * (config == "omni_rgpt_stage2_lora")
            if not (folder / "runs/omni_rgpt_stage1").exists():
                train(folder, "omni_rgpt_stage1")
    elif config == "omni_world":
        start = ["loop.accumulation=1"]
    elif config in NEW:
        start = ["init=null", NO_DROPOUT, *WORDS]
    elif config == "flickr30k_small":
        start = [f"init={folder}/runs/flickr30k_pretrain", NO_DROPOUT, *WORDS]
        if not (folder / "runs/flickr30k_pretrain").exists():
            train(folder, "flickr30k_pretrain")
    data = [f"data.{part}={folder}/train.jsonl" for part in ("train", "val")]
    return [*start, *data, f"output={folder}/runs", *ONCE]


def base_of(folder):
    """A small image and language model in Transformers' own form."""
    if not (folder / "base").exists():
        omni_rgpt.new().save_base(folder / "base")
    return str(folder / "base")


def rows_of(run):
    """The log's rows with the numbers that must not differ."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(("loss", "eval/loss", "grad_norm"))} for row in rows]


def train(folder, config, *more, name=None):
    """The rows of a run in this process, made once."""
    run = folder / "runs" / (name or config)
    if not run.exists():
        cfg = load_config(
            RunConfig, ROOT / f"configs/{config}.yaml", [*settings(folder, config), f"name={run.name}", *more]
        )
        main(cfg)
    return rows_of(run)


def launch(folder, config, name, *more):
    """The rows of a run in two processes."""
    program = ("-m", "train.run", "--config", f"configs/{config}.yaml")
    done = launched(*TORCHRUN, *program, *settings(folder, config), f"name={name}", *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows_of(folder / "runs" / name), done.stdout + done.stderr


def assert_equal(rows, others):
    assert len(rows) == len(others) == 4  # three steps and an evaluation
    for number, (row, other) in enumerate(zip(rows, others, strict=True)):
        assert row.keys() == other.keys() and len(row) > 1
        close = 5e-5 if number else 1e-5  # Adam makes much of what rounding leaves of gradients that are 0
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=close, abs=1e-7), name


def test_there_are_configurations():
    assert len(CONFIGS) >= 6


@pytest.mark.parametrize("config", CONFIGS)
def test_accumulated_batches_change_no_loss(folder, config):
    assert_equal(train(folder, config), train(folder, config, PASSES, name=f"{config}-3"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "model.vision.norm=batch",
            "normalizes by each batch's statistics (model.vision.norm=frozen or group does not)",
        ),
        ("model.pair_over=batch", "region_text and view_text pair within a batch (model.pair_over=step does not)"),
    ],
)
def test_losses_that_depend_on_the_number_of_passes_are_told_at_the_start(folder, capsys, setting, said):
    name, line = setting.split(".")[-1], "losses depend on the number of processes and accumulated batches: "
    rows = train(folder, "quickstart", setting, name=name)
    assert line not in capsys.readouterr().err
    others = train(folder, "quickstart", setting, PASSES, name=f"{name}-3")
    told = [row for row in capsys.readouterr().err.splitlines() if line in row]
    assert len(told) == 1 and told[0].endswith(said)
    assert abs(others[0]["loss"] / rows[0]["loss"] - 1) > 1e-3


def test_statistics_of_a_saved_model_can_be_frozen(folder):
    """A model of version 0.3.0 has batch normalization, and a config that does not say so."""
    train(folder, "quickstart", "model.vision.norm=batch", name="norm=batch")
    saved = folder / "runs" / "norm=batch" / "best"
    config = json.loads((saved / "config.json").read_text())
    assert config.pop("vision_norm") == "batch" and config.pop("pair_over") == "step"
    (saved / "config.json").write_text(json.dumps(config))
    start = [f"init={saved}", "model.vision.norm=frozen"]
    assert_equal(*(train(folder, "quickstart", *start, *more, name=f"frozen{len(more)}") for more in ([], [PASSES])))
    before, after = (load_file(path / "model.safetensors") for path in (saved, folder / "runs/frozen0/best"))
    statistics = [name for name in before if "running" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    with pytest.raises(ValueError, match="model.vision.norm is 'group', but the model of `init` has 'batch'"):
        train(folder, "quickstart", start[0], "model.vision.norm=group", name="group")


def test_a_pretrained_encoder_keeps_its_normalization():
    with pytest.raises(ValueError, match="model.vision.norm is 'group', but microsoft/resnet-18 was trained with"):
        build({"vision": {"name": "microsoft/resnet-18", "norm": "group"}}, small.regions())
    vision = {**small.SECTION["vision"], "norm": "layer"}
    with pytest.raises(ValueError, match="vision_norm 'layer': expected one of batch, frozen, group"):
        small.model(vision=vision)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_two_processes_change_no_loss(folder, config):
    rows, said = launch(folder, config, f"{config}-two", "loop.processes=2")
    assert_equal(train(folder, config), rows)
    assert "losses depend on the number" not in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [[PASSES], [2], [3]], ids=["ddp", "zero2", "zero3"])
def test_two_processes_with_three_passes_each_change_no_loss(folder, more):
    if more[0] in (2, 3):
        pytest.importorskip("deepspeed")
        more = [f"loop.deepspeed=configs/accelerate/ds_zero{more[0]}.json", "loop.accumulation=2"]
    rows, _ = launch(folder, "quickstart", f"all-{len(more)}-{more[0][-6]}", "loop.processes=2", *more)
    assert_equal(train(folder, "quickstart"), rows)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_omni_rgpt_in_zero_has_the_losses_of_one_process(folder, stage):
    pytest.importorskip("deepspeed")
    more = [f"loop.deepspeed=configs/accelerate/ds_zero{stage}.json", "loop.processes=2"]
    rows, _ = launch(folder, "omni_rgpt_stage2", f"omni-zero{stage}", *more)
    assert_equal(train(folder, "omni_rgpt_stage2"), rows)
