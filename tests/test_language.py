"""Language models: LoRA goes where it is told, and generation with a cache is the full forward."""

import numpy as np
import pytest
import torch

from tests import tiny_dynrefer as small

TARGETS = {"t5": ["q", "wi"], "llama": ["q_proj", "down_proj"]}


def language(kind, lora):
    section = {"t5": small.T5, "llama": small.LLAMA}[kind]
    return {**section, "mode": "lora", "lora": {"r": 2, "target_modules": TARGETS[kind]}} if lora else section


def next_tokens(adapter, embeds, mask, ids):
    """What one forward over everything says comes after each of the ids (R, T), without a cache."""
    if adapter.model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], adapter.model.config.decoder_start_token_id)
        decoder_ids = torch.cat([start, ids[:, :-1]], 1)
        output = adapter.model(
            inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
        )
        return output.logits.argmax(-1)
    whole = torch.cat([embeds, adapter.model.get_input_embeddings()(ids)], 1)
    mask = torch.cat([mask, torch.ones_like(ids)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = adapter.model(inputs_embeds=whole, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits[:, embeds.shape[1] - 1 : -1].argmax(-1)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("kind", TARGETS)
def test_generation_with_a_cache_is_the_full_forward(kind, lora):
    model, processor = small.model(language=language(kind, lora))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        region_embeds = model.encode(small.batch_of(processor, small.picture(), np.array(small.BOXES, np.float32)))
    prompt = processor.encode_prompts([["red", "cup"], [], ["dog"], ["two", "birds", "tree"]])  # of different lengths
    settings = {"num_beams": 1, "max_new_tokens": 10}
    ids, score = model.language.generate(region_embeds, *prompt, use_cache=True, **settings)
    other_ids, other_score = model.language.generate(region_embeds, *prompt, use_cache=False, **settings)
    assert torch.equal(ids, other_ids)
    torch.testing.assert_close(score, other_score, rtol=1e-4, atol=1e-4)
    if kind == "t5":
        ids = ids[:, 1:]  # the start token
    with torch.no_grad():
        embeds, mask = model.language.arrange(*model.language.prompt(region_embeds, *prompt))
        expected = next_tokens(model.language, embeds, mask, ids)
    end = processor.tokenizer.eos_token_id
    for row, wanted in zip(ids.tolist(), expected.tolist(), strict=True):
        length = row.index(end) + 1 if end in row else len(row)
        assert row[:length] == wanted[:length]
    assert len(set(map(tuple, ids.tolist()))) > 1, "the regions are described differently"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, "no module is called 'qproj'.*Linear layers.*'q_proj'"),
        ({"target_modules": "q_proj"}, "Target modules q_proj not found.*one regular expression"),
        ({"target_modules": ["input_layernorm"]}, "LlamaRMSNorm.* is not supported"),
        ({"target_modules": ["q_proj"], "r": 0}, "`r` should be a positive integer"),
        ({"targets": ["q_proj"]}, "LoRA setting 'targets' is not one of PEFT's LoraConfig. Did you mean"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "only LoRA's own layers learn"),
        ({"target_modules": ["q_proj"], "bias": "all"}, "only LoRA's own layers learn"),
    ],
)
def test_lora_settings_that_do_not_fit_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        small.model(language={**small.LLAMA, "mode": "lora", "lora": settings})


@pytest.mark.parametrize(("targets", "layers"), [("all-linear", 14), (r".*\.1\..*_proj", 7), (["embed_tokens"], 1)])
def test_lora_targets_may_be_all_a_pattern_or_embeddings(targets, layers):
    model, _ = small.model(language={**small.LLAMA, "mode": "lora", "lora": {"r": 2, "target_modules": targets}})
    assert len([name for name, p in model.language.model.named_parameters() if p.requires_grad]) == 2 * layers
