"""RegionSpot with other parts: SAM-HQ, SAM 2, SigLIP, models of open_clip; and the choices of the paper's ablations."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    Siglip2Config,
    SiglipConfig,
    SiglipModel,
)

import dynrefer
from dynrefer import RegionPredictor
from dynrefer.models.regionspot.build import build
from dynrefer.models.regionspot.clip import OpenClip, OpenClipConfig, make_clip
from dynrefer.models.regionspot.configuration import RegionSpotConfig
from dynrefer.models.regionspot.decoder import waves, with_waves
from dynrefer.models.regionspot.modeling import RegionSpotModel
from dynrefer.models.regionspot.processor import RegionSpotProcessor
from dynrefer.models.regionspot.sam import KINDS, Prompts, Sam, placed_hw
from dynrefer.models.tokenizer import train_tokenizer
from tests.regionspot import CLIP, NAMES, RECORDS, SAM, model, picture

PROMPT = {"hidden_size": 64, "image_size": 128, "patch_size": 16, "mask_input_channels": 16}
DECODER = {"hidden_size": 64, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 64}
VISION = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"output_channels": 64, "global_attn_indexes": [0, 1], "num_pos_feats": 32, "mlp_dim": 64, "window_size": 4}
HIERA = {"model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1, "image_size": [128, 128]}
HIERA |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128]}
HIERA |= {"num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 4, 4, 4]}
HIERA |= {"global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]}
SIZES = {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
SIZES |= {"model_type": "sam2_vision_model", "fpn_hidden_size": 64}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 400, "max_position_embeddings": 32, "projection_size": 32}
OPEN = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


CONVOLUTIONAL = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 96},
    "text_cfg": {**OPEN["text_cfg"], "context_length": 32},
}


def tiny_sam(kind):
    inner = {"prompt_encoder_config": PROMPT, "mask_decoder_config": DECODER}
    if kind == "sam2":
        return Sam2Config(vision_config={**SIZES, "backbone_config": HIERA}, **inner)
    if kind == "sam_hq":
        inner["mask_decoder_config"] = {**DECODER, "vit_dim": 32}
        inner["prompt_encoder_config"] = {**PROMPT, "image_embedding_size": 8}
        return SamHQConfig(vision_config=VISION, **inner)
    inner["prompt_encoder_config"] = {**PROMPT, "image_embedding_size": 8}
    return SamConfig(vision_config=VISION, **inner)


def tiny_clip(kind):
    if kind == "siglip":
        return SiglipConfig(vision_config={**TOWER, "patch_size": 16, "image_size": 64}, text_config=TEXT)
    if kind == "siglip2":
        return Siglip2Config(vision_config={**TOWER, "patch_size": 16, "num_patches": 16}, text_config=TEXT)
    return CLIPConfig(
        vision_config={**TOWER, "patch_size": 16, "image_size": 64},
        text_config={**TEXT, "eos_token_id": 1},
        projection_dim=24,
    )


def tiny_model(sam="sam", clip="clip", **settings):
    torch.manual_seed(0)
    config = RegionSpotConfig(
        sam_config=tiny_sam(sam), clip_config=tiny_clip(clip), templates=["a {}."], categories=NAMES, **settings
    )
    tokenizer = train_tokenizer([*NAMES, "a cup."], 200)
    made = RegionSpotModel(config)
    made.processor = RegionSpotProcessor(config, tokenizer)
    return made.eval()


def answers(made, **options):
    return RegionPredictor(made)(str(picture(RECORDS[0])), boxes=RECORDS[0]["boxes_xyxy"], **options)


# ------------------------------------------------------------------------------------------------ SAM


@pytest.mark.parametrize(("kind", "whole"), [("sam", SamModel), ("sam_hq", SamHQModel), ("sam2", Sam2Model)])
def test_the_token_of_every_sam_is_what_makes_its_mask(kind, whole):
    torch.manual_seed(0)
    sam = Sam(tiny_sam(kind)).eval()
    assert isinstance(sam.model, whole)
    pixels = sam.normalize(torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8), torch.tensor([[128, 90]] * 2))
    boxes = torch.tensor([[5.0, 5, 60, 70], [10, 20, 80, 100], [3, 3, 20, 20]])
    decoded = sam.decode(sam.image_features(pixels)[1], Prompts(boxes=boxes))
    expected = sam.model(pixel_values=pixels[1:], input_boxes=boxes[None], multimask_output=False)
    torch.testing.assert_close(decoded.masks, expected.pred_masks[0, :, 0])
    torch.testing.assert_close(decoded.quality, expected.iou_scores[0, :, 0])
    seen = []  # the mask's MLP takes the token
    sam.model.mask_decoder.output_hypernetworks_mlps[0].register_forward_hook(lambda m, given, out: seen.append(given))
    sam.model(pixel_values=pixels[1:], input_boxes=boxes[None], multimask_output=False)
    torch.testing.assert_close(decoded.tokens, seen[0][0][0])


def test_a_picture_keeps_its_shape_in_sam_and_not_in_sam_2():
    assert placed_hw((331, 203), 128, KINDS["sam"]) == (128, 79)
    assert placed_hw((331, 203), 128, KINDS["sam2"]) == (128, 128)
    assert placed_hw((4000, 1), 128, KINDS["sam"]) == (128, 1)


@pytest.mark.parametrize("sam", KINDS)
def test_every_sam_recognises_by_boxes_points_and_masks(sam):
    made, photo = tiny_model(sam), str(picture(RECORDS[0]))
    mask = np.zeros((331, 203), bool)
    mask[50:120, 40:100] = True
    for ways in ({"boxes": [[40, 50, 100, 120]] * 2}, {"points": [[50, 60]] * 2}, {"masks": [mask] * 2}):
        one, two = RegionPredictor(made)(photo, **ways)
        assert len(one.categories) == 5 and one.categories == two.categories


def test_the_picture_part_of_a_published_sam_2_is_taken(tmp_path):
    torch.manual_seed(0)
    sizes = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "memory_attention_feed_forward_hidden_size")
    sizes += ("mask_downsampler_embed_dim", "memory_fuser_embed_dim", "memory_fuser_intermediate_dim")
    inner = {"prompt_encoder_config": PROMPT, "mask_decoder_config": DECODER, **dict.fromkeys(sizes, 64)}
    inner |= {"memory_attention_num_layers": 1, "memory_encoder_output_channels": 16, "image_size": 128}
    video = Sam2VideoModel(Sam2VideoConfig(vision_config={**SIZES, "backbone_config": HIERA}, **inner))
    video.save_pretrained(tmp_path / "video")
    section = {"sam": {"name": str(tmp_path / "video")}, "clip": {"name": str(CLIP)}, "categories": NAMES}
    made, _ = build({**section, "templates": "one"}, [])
    theirs = video.state_dict()
    ours = made.sam.model.state_dict()
    assert isinstance(made.sam.model, Sam2Model)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ------------------------------------------------------------------------------------------------ CLIP


def test_siglip_gives_tokens_before_its_last_norm_and_adds_its_bias():
    clip = make_clip(tiny_clip("siglip"), 64).eval()
    with torch.no_grad():
        clip.model.logit_scale.fill_(1.0)
        clip.model.logit_bias.fill_(-3.0)
    pixels = torch.randn(2, 3, 64, 64)
    tokens = clip.image_tokens(pixels)  # (2, 1+16, D)
    assert isinstance(clip.model, SiglipModel) and tokens.shape == (2, 17, 32)
    tower = clip.model.vision_model
    torch.testing.assert_close(tower.post_layernorm(tokens[:, 1:]), tower(pixel_values=pixels).last_hidden_state)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))
    made = tiny_model(clip="siglip")
    with torch.no_grad():
        made.clip.model.logit_bias.fill_(-3.0)
    vectors = torch.eye(32)[:2]
    torch.testing.assert_close(made.logits(vectors, vectors), torch.eye(2) - 3)


@pytest.mark.parametrize(("sam", "clip"), [("sam", "clip"), ("sam_hq", "siglip"), ("sam2", "siglip2")])
def test_a_model_with_any_sam_and_clip_is_saved_and_loaded(sam, clip, tmp_path):
    made = tiny_model(sam, clip)
    made.save_pretrained(tmp_path / "model")
    loaded = dynrefer.load(tmp_path / "model", device="cpu")
    assert answers(loaded) == answers(made)


@pytest.fixture
def open_clip_name(tmp_path):
    """A model that open_clip knows, with weights in a file."""
    import open_clip

    for name, width in (("tiny-regionspot", 32), ("tiny-wider", 48)):
        settings = {**OPEN, "vision_cfg": {**OPEN["vision_cfg"], "width": width}}
        (tmp_path / f"{name}.json").write_text(json.dumps(settings))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(3)
    save_file(open_clip.create_model("tiny-regionspot").state_dict(), tmp_path / "weights.safetensors")
    return f"open_clip:tiny-regionspot:{tmp_path / 'weights.safetensors'}"


@pytest.mark.slow
def test_a_model_of_open_clip_gives_what_open_clip_gives(open_clip_name, tmp_path):
    import open_clip

    section = {"sam": {"name": str(SAM)}, "clip": {"name": open_clip_name}, "categories": NAMES, "templates": ["a {}."]}
    made, processor = build(section, [])
    made.eval()
    theirs = open_clip.create_model("tiny-regionspot", pretrained=open_clip_name.split(":")[2]).eval()
    texts = ["a dog.", "a yoke_(animal_equipment)."]
    expected = theirs.encode_text(open_clip.get_tokenizer("tiny-regionspot")(texts))
    torch.testing.assert_close(made.embed_texts(texts), expected)
    pixels = torch.randn(1, 3, 64, 64)
    tokens = made.clip.image_tokens(pixels)
    torch.testing.assert_close(theirs.visual.ln_post(tokens[:, 0]) @ theirs.visual.proj, theirs.encode_image(pixels))
    assert isinstance(made.clip, OpenClip) and tokens.shape == (1, 17, 32)
    torch.testing.assert_close(made.clip.scale_and_bias()[0], theirs.logit_scale.exp())
    before = answers(made)
    made.save_pretrained(tmp_path / "model")
    assert answers(dynrefer.load(tmp_path / "model", device="cpu")) == before
    made.save_pretrained(tmp_path / "small", save_trainable_only=True)
    assert not any(name.startswith("clip.") for name in _names(tmp_path / "small"))
    assert answers(dynrefer.load(tmp_path / "small", device="cpu")) == before
    larger, _ = build({**section, "image_size": 96}, [])
    assert larger.clip.grid == 6 and larger.config.image_size == 96


def _names(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_a_model_of_open_clip_that_is_none_is_told_in_one_line(open_clip_name):
    for name, told in (
        ("open_clip:ViT-B-61:openai", "clip 'ViT-B-61': not one of open_clip.list_models"),
        ("open_clip:ViT-B-16", "no weights; expected open_clip:ARCHITECTURE:TAG_OR_FILE"),
        ("open_clip:tiny-regionspot:laion", "'laion' is neither a file nor weights that open_clip knows"),
        (f"open_clip:tiny-wider:{open_clip_name.split(':')[2]}", "another model's"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            build({"sam": {"name": str(SAM)}, "clip": {"name": name}}, [])
        assert "\n" not in str(error.value)
    assert OpenClipConfig().image_size == 224


def convolutional_clip(folder):
    """A folder as open_clip writes one, of a convolutional model; the model."""
    import open_clip

    folder.mkdir()
    torch.manual_seed(3)
    theirs = open_clip.CustomTextCLIP(**{name: of for name, of in CONVOLUTIONAL.items() if name != "custom_text"})
    theirs.visual(torch.randn(4, 3, 96, 96))  # statistics of its normalizations
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONVOLUTIONAL, "preprocess_cfg": preprocess})
    )
    return theirs.eval()


def convolutional_model(folder, **settings):
    section = {"sam": {"name": str(SAM)}, "clip": {"name": f"open_clip:{folder}"}, "categories": NAMES}
    made, _ = build({**section, "templates": "one", "decoder_layers": 1, **settings}, [])
    return made.eval()


@pytest.mark.slow
def test_a_convolutional_model_of_open_clip_is_read_from_its_folder(tmp_path):
    theirs = convolutional_clip(tmp_path / "clip")
    made = convolutional_model(tmp_path / "clip", clip_positions="sine")
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        cells = theirs.visual.trunk.forward_features(pixels).flatten(2).transpose(1, 2)  # (2, 9, D)
        expected = theirs.encode_image(pixels)
    tokens = made.clip.image_tokens(pixels)
    torch.testing.assert_close(tokens[:, 1:], cells)
    torch.testing.assert_close(tokens[:, 0], cells.mean(1))  # there is no class token
    torch.testing.assert_close(made.clip.embed_images(pixels), expected)
    assert made.clip.grid == 3 and made.config.image_mean == [0.1, 0.2, 0.3] and made.config.image_std[0] == 0.4
    before = answers(made, attention=True)
    assert torch.tensor(before[0].extra["attention"]).shape == (3, 3)
    for settings in ({}, {"save_trainable_only": True}):
        made.save_pretrained(tmp_path / "model", **settings)
        loaded = dynrefer.load(tmp_path / "model", device="cpu")
        assert answers(loaded, attention=True) == before and loaded.config.clip_positions == "sine"


def test_open_clips_own_convolutions_are_maps_too():
    settings = {**OPEN, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}
    clip = make_clip(OpenClipConfig(architecture="RN50", model_cfg=settings), 64)
    assert clip.image_tokens(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 512) and clip.grid == 2


def test_a_folder_that_open_clip_has_not_written_is_told_in_one_line(tmp_path):
    convolutional_clip(tmp_path / "clip")
    config = tmp_path / "clip" / "open_clip_config.json"
    for content, told in (
        ("{", "open_clip_config.json"),
        ('{"model_cfg": {}}', "no model_cfg with embed_dim, vision_cfg and text_cfg"),
    ):
        config.write_text(content)
        with pytest.raises(ValueError, match=told) as error:
            convolutional_model(tmp_path / "clip")
        assert "\n" not in str(error.value)
    config.write_text(json.dumps({"model_cfg": CONVOLUTIONAL}))
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights in the folder; expected open_clip_model.safetensors or"):
        convolutional_model(tmp_path / "clip")


# ------------------------------------------------------------------------------------------------ the choices


def test_the_papers_choices_are_settings():
    section = {"sam": {"name": str(SAM)}, "clip": {"name": str(CLIP)}, "categories": NAMES}
    widths = {"prompt": 256, "transformer": 256, "mlp": 32}
    for token, width in widths.items():
        made, _ = build({**section, "token": token, "decoder_layers": 1, "templates": "one"}, [])
        assert made.to_clip.in_features == width and len(made.decoder.layers) == 1
        assert list(made.config.templates) == ["a photo of a {}."]
        assert len(answers(made.eval())) == 5
    for wrong, told in (
        ({"token": "first"}, "token 'first': expected one of prompt, transformer, mlp"),
        ({"templates": "two"}, "templates 'two': expected one of openai81, one"),
        ({"templates": ["a cup"]}, "sentences with one {} each"),
        ({"clip_positions": "rows"}, "clip_positions 'rows': expected one of none, sine"),
        ({"decoder_heads": 7}, "decoder_heads 7: CLIP's tokens are 64 wide"),
        ({"layers": 2}, "layers"),
    ):
        with pytest.raises(ValueError, match=told):
            build({**section, **wrong}, [])


def test_without_the_class_token_regions_see_patches_only():
    memory = torch.randn(1, 17, 64)
    other = memory.clone()
    other[:, 0] += 1
    tokens, present = torch.randn(2, 256), torch.ones(1, 2, dtype=torch.bool)
    made, _ = build(
        {"sam": {"name": str(SAM)}, "clip": {"name": str(CLIP)}, "categories": NAMES, "class_token": False}, []
    )
    made.eval()
    with torch.no_grad():
        assert torch.equal(made.recognise(tokens, memory, present), made.recognise(tokens, other, present))
        assert not torch.equal(model().recognise(tokens, memory, present), model().recognise(tokens, other, present))
    grid = answers(made, attention=True)[0].extra["attention"]
    assert torch.tensor(grid).shape == (4, 4) and abs(torch.tensor(grid).sum() - 1) < 1e-5


def test_every_place_of_the_grid_has_its_own_waves():
    places = waves(6, 98)
    assert places.shape == (36, 98) and not places[:, 96:].any()
    assert places.square().mean() == pytest.approx(96 / 98, abs=1e-5)
    distances = torch.cdist(places, places) + 100 * torch.eye(36)
    assert distances.min() > 0.5
    row, column = divmod(int(distances[14].argmin()), 6)
    assert abs(row - 14 // 6) + abs(column - 14 % 6) == 1  # a neighbour is the nearest
    assert waves(1, 8).isfinite().all()


def test_waves_are_as_strong_as_the_patches_of_their_own_picture():
    torch.manual_seed(0)
    memory = torch.randn(2, 10, 32)
    read = with_waves(memory, 3)
    assert torch.equal(read[:, 0], memory[:, 0])  # a summary has no place
    torch.testing.assert_close(with_waves(7 * memory, 3), 7 * read)
    torch.testing.assert_close(with_waves(memory[:1], 3), read[:1])


def test_with_waves_regions_know_where_a_patch_is():
    torch.manual_seed(0)
    memory, tokens, present = torch.randn(1, 17, 64), torch.randn(2, 256), torch.ones(1, 2, dtype=torch.bool)
    turned = torch.cat([memory[:, :1], memory[:, 1:].flip(1)], 1)  # the same patches elsewhere
    for positions, alike in (("none", True), ("sine", False)):
        section = {"sam": {"name": str(SAM)}, "clip": {"name": str(CLIP)}, "categories": NAMES}
        made, _ = build({**section, "clip_positions": positions}, [])
        with torch.no_grad():
            one, other = (made.eval().recognise(tokens, some, present) for some in (memory, turned))
        assert torch.allclose(one, other, atol=1e-5) == alike
