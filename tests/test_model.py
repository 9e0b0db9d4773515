"""The DynRefer model: what must hold whatever its weights are, and that it can learn."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import dynrefer
from dynrefer.models import adapt
from dynrefer.models.dynrefer.align import DeformableAlign
from dynrefer.models.dynrefer.batch import RegionBatch
from dynrefer.models.language import check_generation
from tests import tiny_dynrefer as small

NUMBERS = np.array(small.BOXES, np.float32)


@pytest.fixture(scope="module")
def tiny():
    return small.model()


def rows(batch, start, stop):
    """Some regions of a batch."""
    cut = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return RegionBatch(**{name: None if value is None else value[start:stop] for name, value in cut.items()})


def training_batch(processor, train=False):
    return processor.collate(small.samples(processor, small.picture(), small.regions(), small.generators(), train))


def test_regions_do_not_see_each_other(tiny):
    model, processor = tiny
    batch = small.batch_of(processor, small.picture(), NUMBERS)
    with torch.no_grad():
        together = model.encode(batch)
        apart = torch.cat([model.encode(rows(batch, r, r + 1)) for r in range(4)])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    whole = model.predict(batch)
    single = [model.predict(rows(batch, r, r + 1))[0] for r in range(4)]
    for one, other in zip(whole, single, strict=True):
        assert one.caption == other.caption and one.score == pytest.approx(other.score, rel=1e-3)


def test_moving_the_box_matters(tiny):
    model, processor = tiny
    with torch.no_grad():
        here, there = (
            model.encode(small.batch_of(processor, small.picture(), NUMBERS[:1] + shift)) for shift in (0.0, 20.0)
        )
    assert (here - there).abs().max() > 1e-3


@pytest.mark.parametrize("language", [small.T5, small.LLAMA], ids=["encoder-decoder", "decoder-only"])
def test_padding_changes_nothing(language):
    model, processor = small.model(language=language)
    batch = training_batch(processor)
    pad = processor.tokenizer.pad_token_id

    def padded(ids, mask, columns=5):
        more = ids.new_full((len(ids), columns), pad)
        return torch.cat([ids, more], 1), torch.cat([mask, torch.zeros_like(more)], 1)

    longer = dataclasses.replace(batch)
    for name in ("prompt", "caption", "text"):
        ids, mask = padded(getattr(batch, f"{name}_ids"), getattr(batch, f"{name}_mask"))
        setattr(longer, f"{name}_ids", ids)
        setattr(longer, f"{name}_mask", mask)
    assert longer.counts() == batch.counts()
    with torch.no_grad():
        short, long = model(batch), model(longer)
    for task in short:
        torch.testing.assert_close(short[task], long[task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("language", [small.T5, small.LLAMA], ids=["encoder-decoder", "decoder-only"])
def test_sums_of_a_batch_are_the_sums_of_its_parts(language):
    model, processor = small.model(language=language)
    model.tasks = ("captions", "tags", "attributes", "categories")  # region_text compares regions with each other
    batch = training_batch(processor)
    with torch.no_grad():
        whole, parts = model(batch), [model(rows(batch, 0, 1)), model(rows(batch, 1, 4))]
    for task in model.tasks:
        torch.testing.assert_close(whole[task], parts[0][task] + parts[1][task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("language", [small.T5, small.LLAMA], ids=["encoder-decoder", "decoder-only"])
def test_the_score_is_the_probability_of_the_caption(language):
    model, processor = small.model(language=language)
    batch = small.batch_of(processor, small.picture(), NUMBERS[:2])
    results = small.predict(model, batch, control="", generation={"max_new_tokens": 6})
    prompt_ids, prompt_mask = processor.encode_prompts([[], []])
    with torch.no_grad():
        embeds = model.encode(batch)
        ids, log_probability = model.language.generate(embeds, prompt_ids, prompt_mask, num_beams=1, max_new_tokens=6)
    for r in range(2):
        tokens = ids[r, 1:] if model.language.auto_class.__name__.endswith("Seq2SeqLM") else ids[r]
        ended = (tokens == processor.tokenizer.eos_token_id).nonzero()
        tokens = tokens[: int(ended[0]) + 1] if len(ended) else tokens  # the full forward, without a cache
        with torch.no_grad():
            loss = model.language.loss(
                embeds[r : r + 1],
                prompt_ids[r : r + 1],
                prompt_mask[r : r + 1],
                tokens[None],
                torch.ones_like(tokens)[None],
            )
        assert -float(loss) == pytest.approx(float(log_probability[r]), rel=1e-4)
        assert results[r].score == pytest.approx(float(log_probability[r].exp()), rel=1e-4)


def test_eight_regions_are_learnt_by_heart():
    model, processor = small.model(control_drop_all=1.0)
    pictures = [(small.picture(seed), small.regions(start=10 * seed)) for seed in (0, 1)]
    captions = iter([*small.CAPTIONS, "a green hat", "the old man", "three white boats", "water"])
    pictures = [
        (image, [dataclasses.replace(r, captions=(next(captions),)) for r in regions]) for image, regions in pictures
    ]
    samples = [
        s for image, regions in pictures for s in small.samples(processor, image, regions, small.generators(), False)
    ]
    batch = processor.collate(samples)
    batch.prompt_ids, batch.prompt_mask = processor.encode_prompts([[]] * 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    model.tasks = ("captions", "tags", "categories")
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20)
        losses, counts = model(batch), batch.counts()
        optimizer.zero_grad()
        sum(losses[task] / counts[task] for task in losses).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.before_eval()
    results = small.predict(model, batch, control="", tag_threshold=0.0, generation={"max_new_tokens": 24})
    for sample, result in zip(samples, results, strict=True):
        assert result.caption == sample["region"].captions[0]
        true = set(sample["region"].tags)
        assert {tag["name"] for tag in result.tags[: len(true)]} == true, "the best tags are the region's own"
        assert result.category["name"] == sample["region"].category


def test_predicted_tags_become_control_words(tiny, monkeypatch):
    model, processor = tiny
    prompts = []
    monkeypatch.setattr(
        processor,
        "encode_prompts",
        lambda words: prompts.append(words) or type(processor).encode_prompts(processor, words),
    )
    batch = small.batch_of(processor, small.picture(), NUMBERS[:1])
    prompts.clear()
    for control, threshold in ((None, 0.0), (None, 1.1), ("", 0.0), ("red, car", 0.0), ("x,<tags>", 1.1)):
        small.predict(model, batch, control=control, tag_threshold=threshold)
    assert set(prompts[0][0]) == set(model.config.tags)
    assert prompts[1:] == [[[]], [[]], [["red", "car"]], [["x"]]]


def test_a_prompt_is_its_words_and_the_regions_tokens(tiny):
    model, processor = tiny
    batch = small.batch_of(processor, small.picture(), small.BOXES[:2], control=[["red", "dog"], []])
    words = [len(processor.tokenizer(text)["input_ids"]) for text in ("red,dog|", "|")]
    assert words[0] > words[1]
    results = model.predict(batch)
    assert [one.prompt_tokens for one in results] == [small.SECTION["num_query_tokens"] + count for count in words]
    assert "prompt_tokens" not in results[0].to_dict()


def test_custom_names_replace_the_lists(tiny):
    model, processor = tiny
    batch = small.batch_of(processor, small.picture(), NUMBERS[:1])
    result = small.predict(model, batch, attributes=["color:red", "big"], categories=["cup", "zebra"])[0]
    assert {a["name"] for a in result.attributes} == {"color:red", "big"} and result.category["name"] in (
        "cup",
        "zebra",
    )
    nothing = small.predict(model, batch, attributes=[], categories=[])[0]
    assert nothing.attributes == [] and nothing.category is None


def test_generation_options_that_are_unknown_or_fixed_are_errors():
    with pytest.raises(ValueError, match="Did you mean 'num_beams'"):
        check_generation({"num_beam": 3})
    with pytest.raises(ValueError, match="num_return_sequences is fixed: there is one caption a region"):
        check_generation({"num_return_sequences": 2})


def test_saved_models_load_bit_by_bit(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu")
    for (name, one), (other_name, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(one, other), name
    batch = small.batch_of(processor, small.picture(), NUMBERS)
    answers = loaded.predict(small.batch_of(loaded.processor, small.picture(), NUMBERS)), model.predict(batch)
    for one, other in zip(*answers, strict=True):  # where a tensor lies in memory changes the order of a sum
        assert one.caption == other.caption and one.score == pytest.approx(other.score, rel=1e-4)


def test_frozen_parts_stay_frozen_after_loading(tmp_path):
    frozen_vision = {**small.SECTION["vision"], "trainable": False}
    language = {**small.LLAMA, "mode": "frozen"}
    model, processor = small.model(vision=frozen_vision, language=language)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for each in (model, dynrefer.load(tmp_path, device="cpu")):
        assert not any(p.requires_grad for p in [*each.vision.parameters(), *each.language.model.parameters()])
        assert each.language.projection.weight.requires_grad and each.query_tokens.requires_grad
    losses = model.train()(training_batch(processor, train=True))
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.vision.parameters())
    assert model.query_tokens.grad.abs().max() > 0
    assert not model.vision.training and not model.language.model.training


def test_lora_trains_only_its_own_layers_and_refuses_unknown_targets():
    lora = {**small.LLAMA, "mode": "lora", "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    model, _ = small.model(language=lora)
    trained = [name for name, p in model.language.model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    wrong = {**lora, "lora": {"target_modules": ["query"]}}
    with pytest.raises(ValueError, match="q_proj"):
        small.model(language=wrong)


def test_a_checkpoint_with_missing_or_extra_tensors_is_named(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "query_tokens"}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing keys.*query_tokens"):
        dynrefer.load(tmp_path)
    save_file({**tensors, "stray.weight": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unexpected keys.*stray.weight"):
        dynrefer.load(tmp_path)
    save_file({**tensors, "query_tokens": torch.zeros(1, 9, 32)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="query_tokens|do not fit"):
        dynrefer.load(tmp_path)


def test_text_embeddings_of_other_words_are_refused(tiny, tmp_path):
    import json

    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tags"] = [*config["tags"][:-1], "zebra"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="before_eval"):
        dynrefer.load(tmp_path)


def test_unknown_settings_answer_with_the_nearest():
    with pytest.raises(ValueError, match="model: unknown key 'num_vews'. Did you mean 'num_views'"):
        small.model(num_vews=2)
    with pytest.raises(ValueError, match="model.vision: unknown key 'trainble'. Did you mean 'trainable'"):
        small.model(vision={**small.SECTION["vision"], "trainble": True})
    with pytest.raises(ValueError, match="family 'dynrefr'.*'dynrefer'"):
        small.model(family="dynrefr")


def literal_align(module, view, reference):
    """The operator as its definition reads, one output at a time."""
    n, width, height, breadth = view.shape
    hidden = module.offset_mask_dw(torch.cat([view, reference], 1)).permute(0, 2, 3, 1)
    numbers = module.offset_mask(hidden)
    value = module.value_proj(view.permute(0, 2, 3, 1))
    share = width // module.groups
    out = torch.zeros(n, height, breadth, width)
    for b, y, x, g in np.ndindex(n, height, breadth, module.groups):
        own = numbers[b, y, x, g * 27 : (g + 1) * 27]
        for k in range(9):
            px, py = x + k // 3 - 1 + own[2 * k], y + k % 3 - 1 + own[2 * k + 1]
            for cx in (int(np.floor(px.item())), int(np.floor(px.item())) + 1):
                for cy in (int(np.floor(py.item())), int(np.floor(py.item())) + 1):
                    if 0 <= cx < breadth and 0 <= cy < height:
                        weight = own[18 + k] * (1 - (px - cx).abs()) * (1 - (py - cy).abs())
                        out[b, y, x, g * share : (g + 1) * share] += (
                            weight * value[b, cy, cx, g * share : (g + 1) * share]
                        )
    return module.output_proj(out).permute(0, 3, 1, 2)


def test_alignment_equals_its_definition():
    torch.manual_seed(1)
    module = DeformableAlign(8, groups=4)
    nn.init.normal_(module.offset_mask.weight)
    nn.init.normal_(module.offset_mask.bias, std=1.5)
    view, reference = torch.randn(2, 2, 8, 4, 5).unbind(0)
    with torch.no_grad():
        torch.testing.assert_close(
            module(view, reference), literal_align(module, view, reference), rtol=1e-4, atol=1e-4
        )


def test_alignment_starts_silent_or_reading_itself():
    torch.manual_seed(0)
    view, reference = torch.randn(2, 1, 8, 4, 4).unbind(0)
    silent, itself = DeformableAlign(8), DeformableAlign(8, start="centre")
    for module in (silent, itself):
        module.reset_parameters()
    with torch.no_grad():
        assert silent(view, reference).abs().max() == 0
        expected = itself.output_proj(itself.value_proj(view.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        torch.testing.assert_close(itself(view, reference), expected)


def test_same_captions_are_no_negatives_of_each_other(tiny):
    model, processor = tiny
    model.tasks = ("region_text",)
    regions = [dataclasses.replace(r, captions=("a red cup",)) for r in small.regions()[:2]]
    batch = processor.collate(small.samples(processor, small.picture(), regions, small.generators(2), False))
    with torch.no_grad():
        both = model(batch)["region_text"]
        alone = sum(model(rows(batch, r, r + 1))["region_text"] for r in range(2))
    model.tasks = type(model)(model.config).tasks
    torch.testing.assert_close(both, alone)


def test_zero_regions_are_no_results(tiny):
    model, processor = tiny
    assert model.predict(small.batch_of(processor, small.picture(), np.zeros((0, 4), np.float32))) == []


def test_all_tags_can_be_listed_while_control_words_keep_their_threshold(tiny, monkeypatch):
    model, processor = tiny
    prompts = []
    encode = type(processor).encode_prompts
    monkeypatch.setattr(processor, "encode_prompts", lambda words: prompts.append(words) or encode(processor, words))
    batch = small.batch_of(processor, small.picture(), NUMBERS[:1])
    result = small.predict(model, batch, tag_threshold=1.1, list_tags=0.0)[0]
    assert {tag["name"] for tag in result.tags} == set(model.config.tags) and prompts[1:] == [[[]]]
    scores = [tag["score"] for tag in result.tags]
    assert scores == sorted(scores, reverse=True)


def test_learnt_positions_tell_places_of_the_map_apart(tmp_path):
    model, processor = small.model(positions=True)
    same = torch.ones(2, 3, 17, model.vision.width)  # every place alike
    boxes = torch.tensor([0.0, 0, 32, 32]).expand(2, 3, 4)
    with torch.no_grad():
        features = model.region_encoder(same, boxes)
    assert features.shape == (2, 17, model.vision.width)
    assert torch.pdist(features[0]).min() > 0.1
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu")
    assert torch.equal(loaded.region_encoder.positions, model.region_encoder.positions)


def test_view_text_reads_view_0_alone_and_reaches_the_vision_encoder():
    model, processor = small.model(view_text=True)
    assert model.tasks[-1] == "view_text" and "view_text" not in small.model()[0].tasks
    model.tasks = ("view_text",)
    batch = training_batch(processor)
    before = model(batch)["view_text"]
    before.backward()
    assert model.vision.model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    assert model.query_tokens.grad is None
    batch.views = batch.views.clone()
    batch.views[:, 1:] = 0
    torch.testing.assert_close(model(batch)["view_text"], before)
    batch.views[:, 0] = 0
    assert abs(model(batch)["view_text"] - before) > 1e-3


def test_training_goes_on_with_other_views_but_not_with_another_model():
    from dynrefer.models import adapt

    model, _ = small.model()
    adapt(model, {**small.SECTION, "train_view_strategy": "fixed:0,0,0", "view_strategy": "fixed:0,0,0", "mirror": 0.5})
    assert (
        model.config.train_view_strategy == model.config.view_strategy == "fixed:0,0,0" and model.config.mirror == 0.5
    )
    with pytest.raises(ValueError, match="model.num_views is 2, but the model of `init` has 3"):
        adapt(model, {"num_views": 2})
    with pytest.raises(ValueError, match="model.vision.hidden_size is 64"):
        adapt(model, {"vision": {"config": {"hidden_size": 64}}})
    with pytest.raises(ValueError, match="Did you mean 'mirror'"):
        adapt(model, {"miror": 1})
    with pytest.raises(ValueError, match="family 'dynrefer'"):
        adapt(model, {"family": "regionspot"})


def test_views_that_a_second_run_asks_for_reach_its_samples_and_its_saved_folder(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    loaded = dynrefer.load(tmp_path / "first", device="cpu")
    adapt(loaded, {"train_view_strategy": "fixed:1,1,1", "view_strategy": "fixed:0,0,0"})
    for train, t in ((True, 1.0), (False, 0.0)):
        assert (training_batch(loaded.processor, train).scales == t).all()
    loaded.save_pretrained(tmp_path / "second")
    loaded.processor.save_pretrained(tmp_path / "second")
    config = dynrefer.load(tmp_path / "second", device="cpu").config
    assert (config.train_view_strategy, config.view_strategy) == ("fixed:1,1,1", "fixed:0,0,0")
