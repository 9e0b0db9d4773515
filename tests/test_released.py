"""Parity with the released program: what it computed with tiny weights, reproduced after conversion.

The recorded files lie beside the checkout (../shared/vectors/dynrefer) or where DYNREFER_VECTORS says.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dynrefer
from dynrefer import views as view_functions
from dynrefer.models.dynrefer import convert

VECTORS = Path(os.environ.get("DYNREFER_VECTORS", Path(__file__).parents[2] / "shared/vectors")) / "dynrefer"
pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason=f"recorded outputs of the released program: no {VECTORS}")
SCENES = [f"scene{i}" for i in range(4)]
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def convert_vectors(output, **changes):
    arguments = {
        "checkpoint": VECTORS / "vg1.2_5e.pth",
        "base": VECTORS / "blip2_hf",
        "text_encoder": VECTORS / "eva_clip_psz14.pt",
        "vocabulary": VECTORS / "tags.txt",
        "attributes": VECTORS / "attributes.json",
        "categories": VECTORS / "classes.json",
    }
    return convert.convert(**{**arguments, **changes}, output=output)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return convert_vectors(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def model(folder):
    return dynrefer.load(folder, device="cpu")


@pytest.fixture(scope="module")
def recorded():
    from safetensors.torch import load_file

    return load_file(VECTORS / "vectors.safetensors")


def read(name):
    return json.loads((VECTORS / name).read_text())


def scene(name):
    record = next(r for r in read("views.json") if r["image"] == f"{name}.png")
    image = np.asarray(Image.open(VECTORS / "images" / record["image"]).convert("RGB"))
    return image, np.array(record["boxes_xyxy"]), record


def batch_of(model, recorded, name):
    """The scene's regions with the recorded pixels: Pillow's versions differ by a grey level."""
    image, boxes, _ = scene(name)
    batch = model.processor.prepare(image, boxes, view_strategy="phash")
    batch.views = recorded[f"{name}.pixel_values"]
    return batch


@pytest.mark.parametrize("name", SCENES)
def test_hash_bits_scales_and_views(model, recorded, name):
    image, boxes, record = scene(name)
    candidates = torch.tensor((0.0, *view_functions.CANDIDATE_SCALES))
    grown = view_functions.view_boxes(torch.from_numpy(boxes).float(), image.shape[:2], candidates)
    bits = view_functions.perceptual_hash(view_functions.grey(image), grown.reshape(-1, 4).numpy())
    expected = [[bit == "1" for bit in row] for region in record["phash_bits_t0_to_t1"] for row in region]
    assert (bits == np.array(expected)).all()
    batch = model.processor.prepare(image, boxes, view_strategy="phash")
    np.testing.assert_allclose(batch.scales, record["selected_t"], atol=1e-6)
    assert (batch.view_boxes.numpy() == np.array(record["view_boxes_px"])).all()
    assert torch.equal(batch.region_boxes, recorded[f"{name}.roi_boxes"].float())
    assert (model.normalize(batch.views) - recorded[f"{name}.pixel_values"]).abs().max() <= 0.0151


@pytest.mark.parametrize("name", SCENES)
def test_every_tensor(model, recorded, name):
    batch = batch_of(model, recorded, name)
    with torch.no_grad():
        tokens = model.vision(batch.views.flatten(0, 1))
        features = model.region_encoder(tokens.unflatten(0, batch.views.shape[:2]), batch.region_boxes)
        embeds = model.encode(batch)
        found = {
            "vision_tokens": tokens,
            "region_tokens": features,
            "query_output": embeds,
            "tag_logits": model.tag_logits(embeds),
            "attribute_scores": model.attribute_scores(embeds),
            "category_logits": model.category_logits(embeds),
        }
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, recorded[f"{name}.{key}"], **TOLERANCE, msg=lambda m, key=key: f"{key}: {m}")


def test_text_banks(model, recorded):
    for ours, theirs in (("tag", "tags"), ("attribute", "attributes"), ("category", "categories")):
        torch.testing.assert_close(getattr(model, f"{ours}_texts"), recorded[f"text_embeds_{theirs}"], **TOLERANCE)


@pytest.mark.parametrize("name", SCENES)
def test_captions_and_scores_through_the_predictor(model, name):
    image, boxes, _ = scene(name)
    predictor = dynrefer.RegionPredictor(model)
    cases = [case for case in read("captions.json") if case["image"] == f"{name}.png"]
    assert len(cases) == 2
    for case in cases:
        for r, words in enumerate(case["control_words"]):
            result = predictor(image, boxes=boxes[r : r + 1], control=words.rstrip("|"))[0]
            assert result.caption == case["captions"][r]
            assert np.log(result.score) == pytest.approx(np.log(case["scores"][r]), rel=1e-3)


@pytest.mark.parametrize("case", read("losses.json") if VECTORS.is_dir() else [], ids=lambda case: case["image"])
def test_losses_and_gradients(model, recorded, case):
    batch = batch_of(model, recorded, case["image"].removesuffix(".png"))
    processor = model.processor
    words = [[w for w in text.rstrip("|").split(",") if w] for text in case["control_words"]]
    batch.prompt_ids, batch.prompt_mask = processor.encode_prompts(words)
    batch.caption_ids, batch.caption_mask = processor.encode_captions(case["captions"])
    batch.text_ids, batch.text_mask = processor.encode_texts(case["captions"])
    batch.tags = torch.zeros(len(batch), len(model.config.tags))
    for r, indices in enumerate(case["tag_indices"]):
        batch.tags[r, indices] = 1
    batch.tags_known = torch.ones(len(batch), dtype=torch.bool)
    model.zero_grad()
    tasks, model.tasks = model.tasks, ("captions", "tags", "region_text")
    sums = model(batch)  # in eval mode: recorded without dropout
    model.tasks = tasks
    weighted = (  # released: mean over tokens; summed over everything; summed over pairs / regions
        sums["captions"] / batch.counts()["captions"],
        0.01 * sums["tags"],
        0.5 * sums["region_text"] / len(batch),
    )
    for loss, key in zip(weighted, ("loss_language", "loss_tag", "loss_contrastive"), strict=True):
        assert loss.item() == pytest.approx(case[key], abs=1e-4)
    sum(weighted).backward()
    parameters = dict(model.named_parameters())
    assert case["grad_norms"]
    for name, norm in case["grad_norms"].items():
        assert parameters[convert.checkpoint_name(name)].grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    model.zero_grad()


def test_input_and_output_embeddings_stay_untied(folder, model):
    from safetensors.torch import load_file

    base = load_file(VECTORS / "blip2_hf" / "model.safetensors")
    language = model.language.model
    assert torch.equal(language.lm_head.weight, base["language_model.lm_head.weight"].float())
    assert torch.equal(language.shared.weight, base["language_model.shared.weight"].float())
    assert not torch.equal(language.lm_head.weight, language.shared.weight)


def test_exported_files_convert_back(model, tmp_path):
    path = convert.export(model, tmp_path / "exported.pth")
    released, exported = convert.read_torch(VECTORS / "vg1.2_5e.pth"), convert.read_torch(path)
    assert released.keys() == exported.keys()
    for name, tensor in released.items():
        assert torch.equal(tensor.float(), exported[name].float()), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("tag_fc.bias"), "missing tag_decoder.fc.bias"),
        (lambda t: t.update(stray=torch.zeros(1)), "unknown tensors, such as stray"),
        (lambda t: t.update(cem_memory=torch.zeros(7)), "language.control_memory is \\(7,\\), expected \\(48,\\)"),
        (lambda t: t["t5_model.encoder.embed_tokens.weight"].zero_(), "different base models"),
    ],
    ids=["missing", "unknown", "shape", "other base"],
)
def test_files_that_do_not_fit_are_named(tmp_path, change, message):
    tensors = convert.read_torch(VECTORS / "vg1.2_5e.pth")
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "changed.pth")
    with pytest.raises(ValueError, match=message):
        convert_vectors(tmp_path / "out", checkpoint=tmp_path / "changed.pth")
