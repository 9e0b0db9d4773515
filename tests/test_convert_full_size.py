"""The published sizes on the meta device: names, shapes and numbers of parameters, without a byte of weights.

The released layout comes from released_layout.py, which is written from its description, the base models from
transformers and open_clip; `expected` numbers were counted there.
"""

import pytest
import torch
import transformers
from transformers import LlamaConfig, T5Config

from dynrefer import DynReferConfig, DynReferModel
from dynrefer.convert.blip2 import BASE_NAMES
from dynrefer.models.dynrefer import convert
from tests.released_layout import Sizes, released_shapes, text_shapes

FLAN_T5_XL = T5Config(
    vocab_size=32128,
    d_model=2048,
    d_kv=64,
    d_ff=5120,
    num_layers=24,
    num_heads=32,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
VICUNA_7B = LlamaConfig(vocab_size=32001)
VISION, QFORMER, TEXT_TOWER = 985_952_256, 105_137_664, 123_846_912
WORDS = {
    "tags": [f"tag {i}" for i in range(4585)],
    "attributes": [{"name": f"kind:attribute {i}", "type": "kind", "is_has_att": "is"} for i in range(117)],
    "categories": [f"category {i}" for i in range(80)],
}


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def count(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def full_size(name, language, sizes):
    """The model that the converter would make of full-size files, and what it would put in. The base's word embeddings
    count once, as in its file."""
    config = getattr(transformers, f"{name}Config")(text_config=language)
    with torch.device("meta"):
        base = getattr(transformers, f"{name}ForConditionalGeneration")(config).state_dict()
    base = {name: tensor for name, tensor in base.items() if "coder.embed_tokens" not in name}
    base = convert.rename_all(base, lambda name: convert.rename(name, BASE_NAMES), name)
    trained, copies = convert.split_released(meta(released_shapes(sizes)), "checkpoint")
    texts = convert.text_tensors(meta(text_shapes()))
    model = DynReferModel.skeleton(
        DynReferConfig(
            **convert.released_sizes(trained, base, config),
            **convert.released_settings(),
            query_tokens_trainable=False,
            language_config=convert.part_settings(config.text_config),
            text_config=convert.text_sizes(texts, None),
            **WORDS,
        )
    )
    convert.check_fit(model, convert.all_tensors(trained, base, texts), computed=convert.TEXT_BANKS.values())
    return model, copies


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_4_2b_model():
    sizes = Sizes()
    model, copies = full_size("Blip2", FLAN_T5_XL, sizes)
    shapes = released_shapes(sizes)
    assert set(copies) == {name for name in shapes if name.endswith(("position_ids", "embed_tokens.weight"))}
    assert parameters(model.vision) == VISION and parameters(model.qformer) == QFORMER
    assert parameters(model.language.model) == 2_783_959_040 + 32128 * 2048, "transformers counts a tied output matrix"
    assert parameters(model.text_encoder) == TEXT_TOWER
    assert model.language.model.lm_head.weight is not model.language.model.shared.weight
    learned = count({name: shape for name, shape in shapes.items() if name not in copies})
    frozen = VISION + parameters(model.language.model) + TEXT_TOWER + 32 * 768
    assert parameters(model) == learned + frozen
    embedding = 32128 * 2048
    assert parameters(model) == 4_082_458_612
    assert round((parameters(model) + 2 * embedding) / 1e9, 1) == 4.2, "published: T5's embedding counted three times"
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == learned
    assert model.tag_texts.shape == (4585, 1024) and model.category_texts.shape == (80, 1024)
    assert len({owner.item() for owner in model.attribute_owner(model.config.attributes, torch.device("cpu"))}) == 117
    exported = convert.released_tensors(model)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == shapes
    for name in shapes.keys() - copies.keys():
        assert model.state_dict()[convert.checkpoint_name(name)].shape == shapes[name]
    config = model.config
    assert (config.num_views, config.align_groups, config.decoder_heads, config.vision_shape) == (3, 4, 4, [1408, 16])
    assert (config.text_config.num_attention_heads, config.qformer_config.num_attention_heads) == (12, 12)


def test_the_vicuna_model():
    """InstructBLIP's Q-Former has a text branch, which DynRefer does not read."""
    sizes = Sizes(prefix="llm", language=4096, text_branch=30522)
    model, copies = full_size("InstructBlip", VICUNA_7B, sizes)
    assert parameters(model.vision) == VISION and parameters(model.qformer) == QFORMER
    assert parameters(model.language.model) == 6_738_423_808
    shapes = released_shapes(sizes)
    branch = {name: shapes[name] for name in copies if not name.endswith("position_ids")}
    assert count(branch) == 185_659_392 - QFORMER, "InstructBLIP's Q-Former without what BLIP-2's has"
    exported = convert.released_tensors(model)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == {
        name: shape for name, shape in shapes.items() if name not in branch
    }


def test_the_text_tower_is_open_clips():
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config("EVA01-g-14")
    with torch.device("meta"):
        tower = open_clip.model._build_text_tower(config["embed_dim"], config["text_cfg"])
    found = {f"text.{name}": tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    assert found == {name: shape for name, shape in text_shapes().items() if name != "text.logit_scale"}
    assert parameters(tower) == TEXT_TOWER
    assert convert.open_clip_settings("EVA01-g-14") == {"known_heads": 12, "hidden_act": "gelu"}
