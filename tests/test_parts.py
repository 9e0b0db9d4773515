"""Vision encoders and language models of many families, tiny and random, behind the same two interfaces."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, ResNetConfig
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.packing import Piece
from dynrefer.data.record_files import open_records, write_records
from dynrefer.models import build
from dynrefer.models.dynrefer.options import Options
from dynrefer.models.vision import StandardizedConv2d, VisionEncoder
from tests import tiny_dynrefer as small

VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {
    "blip_2_vision_model": {**VIT, "image_size": 32, "patch_size": 8, "initializer_range": 0.02},
    "clip_vision_model": {**VIT, "image_size": 32, "patch_size": 8},
    "siglip_vision_model": {**VIT, "image_size": 32, "patch_size": 8},
    "siglip2_vision_model": {**VIT, "num_patches": 16, "patch_size": 8},
    "dinov2": {**VIT, "image_size": 32, "patch_size": 8},
    "dinov3_vit": {**VIT, "image_size": 32, "patch_size": 8, "num_register_tokens": 4},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "convnextv2": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "open_clip_vision": {
        "model_cfg": {"embed_dim": 16, "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    },
}
CAUSAL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGE = {
    "llama": {**CAUSAL, "num_key_value_heads": 2},
    "qwen2": {**CAUSAL, "num_key_value_heads": 2},
    "qwen3": {**CAUSAL, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**CAUSAL, "num_key_value_heads": 2},
    "gemma3_text": {**CAUSAL, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "t5": small.T5["config"],
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
    },
}


@pytest.mark.parametrize("model_type", VISION)
def test_every_vision_encoder_gives_a_summary_and_a_square_map(model_type):
    if model_type == "open_clip_vision":
        pytest.importorskip("open_clip")
    torch.manual_seed(0)
    encoder = VisionEncoder(AutoConfig.for_model(model_type, **VISION[model_type]), image_size=32).eval()
    views = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder(views)
        assert tokens.shape == (3, 1 + encoder.grid**2, encoder.width)
        torch.testing.assert_close(encoder(views[1:2]), tokens[1:2], rtol=1e-4, atol=1e-5)
    assert tokens.std() > 0 and tokens.isfinite().all()


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_other_view_sizes_interpolate_positions(model_type):
    encoder = VisionEncoder(AutoConfig.for_model(model_type, **VISION[model_type]), image_size=48).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 48, 48)).shape == (1, 37, 32)


@pytest.mark.parametrize("model_type", VISION)
def test_patches_know_where_they_are(model_type):
    """A change in the upper right of the view changes the patches of that quarter most: row by row order."""
    if model_type == "open_clip_vision":
        pytest.importorskip("open_clip")
    torch.manual_seed(0)
    encoder = VisionEncoder(AutoConfig.for_model(model_type, **VISION[model_type]), image_size=32).eval()
    plain = torch.zeros(1, 3, 32, 32)
    corner = plain.clone()
    corner[:, :, :8, -8:] += 3.0
    with torch.no_grad():
        change = (encoder(corner) - encoder(plain))[0, 1:].norm(dim=-1).reshape(encoder.grid, encoder.grid)
    half = encoder.grid // 2
    quarters = [change[:half, :half], change[:half, half:], change[half:, :half], change[half:, half:]]
    assert max(range(4), key=lambda quarter: quarters[quarter].mean()) == 1


@pytest.mark.parametrize("model_type", LANGUAGE)
def test_every_language_model_trains_and_speaks(model_type):
    language = {"config": {"model_type": model_type, **LANGUAGE[model_type]}, "mode": "full"}
    model, processor = small.model(language=language)
    batch = processor.collate(small.samples(processor, small.picture(), small.regions(), small.generators(), False))
    model.train()
    model.tasks = ("captions",)
    loss = model(batch)["captions"] / batch.counts()["captions"]
    loss.backward()
    assert model.query_tokens.grad.abs().max() > 0
    assert abs(float(loss) - np.log(model.config.language_config.vocab_size)) < 3, (
        "untrained: about as good as guessing"
    )
    model.eval()
    inference = small.batch_of(processor, small.picture(), np.array(small.BOXES, np.float32))
    for beams in (1, 2):
        results = small.predict(model, inference, control="", generation={"num_beams": beams, "max_new_tokens": 4})
        assert len(results) == 4 and all(0 <= result.score <= 1 for result in results)


def test_groups_normalize_each_picture_by_itself_and_each_filter():
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    encoder, views = VisionEncoder(config, 32, norm="group").train(), torch.randn(3, 3, 32, 32)
    together = encoder(views)
    assert torch.allclose(torch.cat([encoder(view[None]) for view in views]), together, atol=1e-5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 4:
                parameter.mul_(2).add_(0.5)
    assert torch.allclose(encoder(views), together, atol=1e-3), "neither a filter's mean nor its size matters"


def test_standardized_filters_are_those_of_transformers_but_for_their_size():
    ours, theirs = StandardizedConv2d(8, 4, 3, padding=1, bias=False), WeightStandardizedConv2d(8, 4, 3, padding=None)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 5, 5)
    assert torch.allclose(ours(x) * 72**0.5, theirs(x), atol=1e-3)


def test_frozen_norms_of_a_new_encoder_have_the_statistics_of_training_views(tmp_path):
    regions = [region for number in range(3) for region in small.regions(f"{number}.png", 4 * number)]
    for number in range(3):
        Image.fromarray(small.picture(number)).save(tmp_path / f"{number}.png")
    write_records(tmp_path / "r.jsonl", regions)
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}
    section = {**small.SECTION, "vision": {"config": config, "norm": "frozen", "trainable": True}}
    model, processor = build(section, open_records(tmp_path / "r.jsonl"))
    again, _ = build(section, open_records(tmp_path / "r.jsonl"))
    norms = [module for module in model.vision.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(module.training for module in model.train().vision.modules() if module in norms)
    seen = []
    norms[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.patches(torch.stack(views_of(processor, tmp_path)))
    mean, std = seen[0].mean((0, 2, 3)), seen[0].std((0, 2, 3))
    assert mean.abs().max() < 0.5 and (std - 1).abs().max() < 0.5, "about 0 and 1 on views of the same pictures"
    assert norms[0].running_mean.abs().max() > 0.1 and set(norms[0].running_var.tolist()) != {1.0}
    with pytest.raises(ValueError, match="norm is 'frozen' and the vision encoder is new.*the training data is list"):
        build(section, regions)
    assert again.vision.state_dict().keys() == model.vision.state_dict().keys()


def views_of(processor, folder):
    dataset = ExampleDataset(open_records(folder / "r.jsonl"), processor, Options(), train=True, seed=1)
    examples = [dataset.example(Piece(number, np.arange(4))) for number in range(3)]
    return [torch.as_tensor(sample["views"]) for example in examples for sample in dataset.samples(example, 0)]
