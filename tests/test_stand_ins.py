"""Small SAM and CLIP from nothing: their losses fall, and their folders are read like real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamModel, SamProcessor

from data_prep import world
from dynrefer.config import load_config
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from train.stand_ins import clip, sam
from train.stand_ins.settings import CaptionConfig, ClipFitConfig, SamFitConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "stand_ins"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for split, number in (("train", 24), ("val", 6)):
        world.write(folder, number, split, image_hw=(192, 256))
    return folder


def settings(cls, name, drawn, output, *more):
    more = ("easy=null", *more) if name == "clip" else more
    files = [f"{split}={drawn}/{split}.jsonl" for split in ("train", "val")]
    return load_config(cls, CONFIGS / f"{name}.yaml", [f"output={output}", *files, *more])


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_sam_learns_masks_and_is_read_like_a_real_one(drawn, tmp_path):
    cfg = settings(SamFitConfig, "sam", drawn, tmp_path / "sam", "steps=8", "batch_size=4", "optim.warmup_steps=2")
    scores = sam.main(cfg)
    found = losses(tmp_path / "sam")
    assert len(found) == 8 and np.mean(found[-2:]) < 0.95 * found[0]
    model, processor = SamModel.from_pretrained(tmp_path / "sam"), SamProcessor.from_pretrained(tmp_path / "sam")
    region = open_records(drawn / "val.jsonl")[0]
    inputs = processor(world.scene(0, "val", (192, 256)).image, input_boxes=[[list(region.box)]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)
    with torch.no_grad():
        output = model(**inputs, multimask_output=False)
    [mask] = processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert mask.shape == (1, 1, 192, 256)
    assert 0 <= scores["mask_iou"] <= 1


def test_sam_sees_what_the_real_processor_makes(drawn, tmp_path):
    cfg = settings(SamFitConfig, "sam", drawn, tmp_path / "sam", "steps=1", "batch_size=1", "train_limit=1")
    sam.main(cfg)
    processor = SamProcessor.from_pretrained(tmp_path / "sam")
    regions = [region for region in open_records(drawn / "val.jsonl") if region.image.endswith("0000000.png")]
    scene = world.scene(0, "val", (192, 256))
    theirs = processor(scene.image, input_boxes=[[list(region.box) for region in regions]], return_tensors="pt")
    small = sam.shrink(scene.image, 128)
    task = sam.MaskTask(sam.Scenes(small[None], [regions]), 128)
    torch.testing.assert_close(task.pixels([0]), theirs["pixel_values"], atol=0.02, rtol=0)
    boxes, counts = task.boxes([0])
    torch.testing.assert_close(boxes, theirs["input_boxes"].float())
    assert counts.all()


def test_a_clip_learns_captions_and_is_read_by_open_clip(drawn, tmp_path):
    import open_clip

    more = ("steps=6", "batch_size=8", "optim.warmup_steps=2", "optim.lr=1e-3", "model.vision_cfg.image_size=128")
    cfg = settings(ClipFitConfig, "clip", drawn, tmp_path / "clip", *more)
    scores = clip.main(cfg)
    found = losses(tmp_path / "clip")
    assert len(found) == 6 and found[-1] < found[2]
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'clip'}")
    picture = preprocess(Image.fromarray(world.scene(0, "val", (192, 256)).image))[None]
    assert picture.shape == (1, 3, 128, 128)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")(["a photo of a cup.", "a tree"])
    with torch.no_grad():
        vectors = model.encode_image(picture)
        torch.testing.assert_close(clip.cells_of(model, picture).mean(1), vectors)
        assert model.encode_text(tokens).shape == (2, 64)
    ours = clip.tokenize(clip.clip_tokenizer(49408), ["a photo of a cup.", "a tree"], 32)
    assert torch.equal(ours[:, :4], tokens[:, :4])
    assert 0 < scores["category_map"] <= 1 and 0 <= scores["box_accuracy"] <= 1


def test_easy_pictures_come_first_and_later_in_a_share_of_the_steps(drawn, tmp_path, monkeypatch):
    world.write(tmp_path / "single", 6, "train", image_hw=(128, 170), most=1)
    seen = []

    def loss(task, model, tokenizer, batch_size, rng):
        seen.append(task.scenes.pixels.shape[1])
        return model.logit_scale * 1

    monkeypatch.setattr(clip.CaptionTask, "loss", loss)
    monkeypatch.setattr(clip.CaptionTask, "scores", lambda task, model, tokenizer: {"box_accuracy": 0.0})
    easy = f"easy={{train: {tmp_path / 'single'}/train.jsonl, image_size: 64, steps: 5, share: 0.5}}"
    clip.main(
        settings(ClipFitConfig, "clip", drawn, tmp_path / "clip", easy, "steps=45", "model.vision_cfg.image_size=96")
    )
    assert seen[:5] == [64] * 5 and set(seen) == {64, 96}
    assert 8 < seen[5:].count(64) < 32
    for wrong, told in (("share: 2", "easy.share is 2"), ("steps: -1", "easy.steps is -1")):
        with pytest.raises(ValueError, match=told):
            settings(ClipFitConfig, "clip", drawn, tmp_path, f"easy={{train: a.jsonl, image_size: 64, {wrong}}}")


def test_the_cells_that_a_box_touches():
    cells = torch.arange(16).view(4, 4, 1)
    region = Region(id="a", image="a.png", image_hw=(100, 200), box=(10, 30, 110, 50))
    assert clip.under(cells, region).flatten().tolist() == [4, 5, 6]


def test_a_tower_whose_cells_do_not_make_up_its_picture_is_refused():
    for vision in ({"layers": 2, "width": 32}, {"timm_model_name": "test_resnet", "timm_proj": "mlp"}):
        with pytest.raises(ValueError, match="model.vision_cfg: expected timm_model_name, a convolutional model"):
            clip.new_model({"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}})


def test_a_caption_says_what_is_true_of_the_whole_picture():
    regions = world.scene(3, "train", (192, 256)).regions("x.png")
    cfg, rng = CaptionConfig(), np.random.default_rng(0)
    true = frozenset().union(*(clip.phrases(region, cfg.attribute_types) for region in regions))
    made = [clip.caption(regions, ["a photo of {}."], cfg, rng) for _ in range(100)]
    assert all(said and said <= true for _, said in made)
    assert {len(said) for _, said in made} >= {1, 2}
    assert any(text.startswith("a photo of ") for text, _ in made)
    first = regions[0]
    colour = next(name.partition(":")[2] for name, holds in first.attributes.items() if holds == 1)
    assert clip.with_attributes(first, ("color",)) == f"{colour} {first.category}"


def test_a_caption_of_another_picture_counts_where_it_is_true():
    """Two pictures of a cup: "cup" is true of both, and a model that knows just that has no more to learn."""
    alike, all_true, own_only = torch.zeros(2, 2), torch.ones(2, 2), torch.eye(2)
    assert clip.contrast(alike, all_true).item() == pytest.approx(np.log(2))  # nothing is better than halves
    assert clip.contrast(20 * own_only, all_true) > 9
    assert clip.contrast(20 * own_only, own_only) < 1e-6


def test_an_output_that_exists_is_not_replaced_unasked(drawn, tmp_path):
    (tmp_path / "sam").mkdir()
    with pytest.raises(ValueError, match="it exists; name another folder, or set overwrite=true"):
        sam.main(settings(SamFitConfig, "sam", drawn, tmp_path / "sam"))


def test_records_without_categories_are_named(drawn, tmp_path):
    region = next(iter(open_records(drawn / "train.jsonl")))
    bare = type(region)(id="bare", image=str(drawn / region.image), image_hw=region.image_hw, box=region.box)
    write_records(tmp_path / "bare.jsonl", [bare])
    cfg = settings(ClipFitConfig, "clip", drawn, tmp_path / "clip", f"train={tmp_path}/bare.jsonl")
    with pytest.raises(ValueError, match=r"bare.jsonl: region bare has no category or no caption"):
        clip.main(cfg)


@pytest.mark.slow
def test_a_sam_of_some_hundred_steps_fits_objects(drawn, tmp_path):
    """On the scenes that it has seen; docs/results.md has the score on others."""
    more = ("steps=300", f"val={drawn}/train.jsonl")
    assert sam.main(settings(SamFitConfig, "sam", drawn, tmp_path / "sam", *more))["mask_iou"] > 0.6
