"""Omni-RGPT's invariants, on tiny random bases of every kind."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessor

import dynrefer
from dynrefer.boxes import check_boxes
from dynrefer.data.clips import ClipRegion
from dynrefer.data.example import Example
from dynrefer.masks import mask_to_rle
from dynrefer.mentions import check_all_named, split_mentions
from dynrefer.models.omni_rgpt.bases import patchify
from dynrefer.models.omni_rgpt.marks import EPSILON, coverage, rectangle, soft_labels, spatial_marks
from dynrefer.regions import regions_of
from tests.omni_rgpt import BASES, HW, batch, examples, new, picture, records, shared

KINDS = list(BASES)
BOXES = [(4, 6, 24, 30), (18, 20, 50, 36)]


def image() -> np.ndarray:
    return picture(BOXES, np.random.default_rng(3))


def ask(model, boxes=BOXES, **options):
    return dynrefer.RegionPredictor(model)(image(), boxes=[list(box) for box in boxes], **options)


def answers(results):
    return [result.caption for result in results], [pytest.approx(result.score, rel=1e-3) for result in results]


# --- marks ------------------------------------------------------------------------------------------------------------


def test_pooled_shares_are_the_papers_canvas():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(5, 48, 48, dtype=torch.bool)
    for n, (x1, y1, x2, y2) in enumerate(
        [(3, 5, 30, 40), (20, 0, 48, 21), (22, 9, 25, 12), (0, 0, 48, 48), (7, 7, 7, 9)]
    ):
        masks[n, y1:y2, x1:x2] = True
    marks = torch.randn(5, 16, generator=generator) * 0.02  # about as long as words
    projection = torch.randn(32, 16, generator=generator) / 4
    m = masks.float()
    canvas = torch.einsum("nhw,nc->chw", m, marks) / (EPSILON + m.sum(0))
    literal = F.adaptive_avg_pool2d(canvas, (6, 6)).flatten(1).T @ projection.T  # (36, 32)
    ours = spatial_marks(coverage(masks, (6, 6)), marks @ projection.T)
    assert (literal - ours).abs().max() < 1e-6


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_labels_of_a_cell_add_up_to_one(grid):
    masks = torch.rand(4, 40, 60, generator=torch.Generator().manual_seed(1)) < 0.4
    masks[3] = False  # out of sight
    cover = coverage(masks, grid)[:, None]
    labels = soft_labels(cover, torch.tensor([7, 2, 0, 5]), 9)
    assert labels.shape == (1, *grid, 10)
    assert torch.allclose(labels.sum(-1), torch.ones(1, *grid), atol=1e-6) and (labels >= 0).all()
    assert torch.equal(labels[..., [7, 2, 0, 5]], cover.permute(1, 2, 3, 0)) and not labels[..., 5].any()


def test_a_pixel_of_two_regions_is_half_of_each():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :6] = masks[1, :, 2:] = True
    cover = coverage(masks, (1, 4))[:, 0]
    assert torch.allclose(cover, torch.tensor([[1, 0.5, 0.5, 0], [0, 0.5, 0.5, 1]]), atol=1e-5)


def test_new_marks_are_as_long_as_words():
    model = shared()
    words = model.base.get_input_embeddings().weight
    marks = model.marks(torch.arange(12))
    assert marks.square().mean().item() == pytest.approx(words.square().mean().item(), rel=1e-3)
    assert torch.allclose(model.marks(torch.tensor([3])), marks[3:4]) and model.marks.projection.bias is None


def test_marks_are_drawn_by_the_example_not_by_the_order_of_examples():
    model = shared()
    one, other = batch(model), batch(model, examples(model)[::-1])
    assert [each.marks.tolist() for each in one.shown] == [each.marks.tolist() for each in other.shown[::-1]]
    assert len({tuple(each.marks.tolist()) for each in one.shown}) > 1
    assert all(len(set(each.marks.tolist())) == len(each.marks) for each in one.shown)


# --- the base stays what it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_regions_it_is_its_base(kind):
    model = shared(kind)
    example = Example.of_picture(image(), [])
    made = batch(model, [example], question="What is there?")
    rows = made.rows
    inputs = {"input_ids": rows.ids, "attention_mask": rows.attention, **made.pixels}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (rows.ids == model.config.base_config.image_token_id).long()
    if kind == "llava_onevision":
        inputs |= {"image_sizes": torch.tensor([[32, 32]]), "batch_num_images": [2]}
    with torch.no_grad():
        logits, _ = model.read(made, model.see(made), rows)
        assert torch.equal(logits, model.base(**inputs).logits)
    result = model.predict(made, model.Options(question="What is there?"))[0]
    if kind != "llava_onevision":  # whose generate drops what says that a picture is not cut into tiles
        written = model.base.generate(**inputs, max_new_tokens=12, pad_token_id=0, eos_token_id=1)
        assert result.caption == model.processor.texts.decode(written[:, rows.ids.shape[1] :])[0]
    assert result.id == "image" and result.box == [0, 0, HW[1], HW[0]]


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_the_base_is_saved_as_transformers_own(kind, tmp_path):
    model = new(kind)
    model.save_base(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(base) is type(model.base)
    state = model.base.state_dict()
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == model.processor.tokenizer.chat_template
    pictures = AutoImageProcessor.from_pretrained(tmp_path)(images=[image()], return_tensors="pt")["pixel_values"]
    ours = batch(model, [Example.of_picture(image(), [])], question="What?").pixels["pixel_values"]
    assert pictures.shape == ours.shape and (pictures - ours).abs().mean() < 0.02


def test_patches_are_qwens_own():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 48, 3)).astype(np.uint8)
    own = Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=1, max_pixels=10**6)
    expected = own(images=list(pixels), return_tensors="pt")
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.image_mean, own.image_std))
    patches, grid = patchify((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std, 4, 2, 2)
    assert torch.allclose(patches, expected["pixel_values"], atol=1e-5)
    assert expected["image_grid_thw"].tolist() == [[1, *grid]] * 2


# --- what regions do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_regions_changes_nothing(kind):
    model = shared(kind)
    one = batch(model)
    other = copy.deepcopy(one)
    for each in other.shown:  # the same regions the other way round
        each.marks, each.cover = each.marks.flip(0), each.cover.flip(0)
    last = torch.tensor([len(each.marks) - 1 for each in one.shown])[one.rows.shown][:, None]
    other.rows.mentions = torch.where(one.rows.mentions >= 0, last - one.rows.mentions, -1)
    with torch.no_grad():
        logits, hidden = model.read(one, model.see(one), one.rows)
        others, _ = model.read(other, model.see(other), other.rows)
        assert torch.allclose(logits, others, atol=1e-5)
        assert float(model(one)["guide"]) == pytest.approx(float(model(other)["guide"]), rel=1e-5)
        swapped = copy.deepcopy(one)
        for each in swapped.shown:
            each.cover = each.cover.flip(0)
        assert not torch.allclose(logits, model.read(swapped, model.see(swapped), swapped.rows)[0], atol=1e-4)


def test_a_box_is_its_rectangles_mask():
    model = shared()
    masks = [mask_to_rle(rectangle(box, HW)) for box in BOXES]
    assert [mask.sum() for mask in map(lambda box: rectangle(box, HW), BOXES)] == [480, 512]
    results = dynrefer.RegionPredictor(model)(image(), masks=masks)
    assert answers(results) == answers(ask(model)) and results[0].score == ask(model)[0].score
    assert rectangle((3.2, 4.1, 3.4, 4.2), HW).sum() == 1  # a thin one is a pixel
    assert rectangle(check_boxes([[59.9, 39.9, 60, 40]], HW)[0], HW)[39, 59]


def test_one_region_has_one_mark_wherever_it_is_named():
    model = shared()
    example = Example.of_picture(image(), regions_of(HW, BOXES))
    made = batch(model, [example], question="Is <region1> near <region0>, or <region1>?")
    rows, places = made.rows, (made.rows.mentions[0] >= 0).nonzero()[:, 0]
    assert rows.mentions[0][places].tolist() == [1, 0, 1]
    seen = model.see(made)
    with model.named(rows, seen), torch.no_grad():
        first, second, third = model.base.get_input_embeddings()(rows.ids)[0][places]
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert torch.equal(first, model.marks(made.shown[0].marks)[1])
    plain = model.base.get_input_embeddings()(rows.ids)[0][places]
    assert torch.equal(plain[0], plain[1])  # afterwards the embeddings are the base's again


def test_marks_lie_on_the_prompt_frame_alone():
    model = shared()
    clip = examples(model)[-1]
    made, everywhere = batch(model, [clip]), batch(model, [clip], tracklet=True)
    assert made.shown[0].frames == [0, 2, 5, 7]
    assert made.shown[0].shown.tolist() == [True, False, False, False] and everywhere.shown[0].shown.all()
    with torch.no_grad():
        seen, tracked = model.see(made), model.see(everywhere)
    plain = copy.deepcopy(made)
    plain.shown[0].shown[:] = False
    bare = model.see(plain).features
    assert [torch.equal(a, b) for a, b in zip(seen.features[0], bare[0], strict=True)] == [False, True, True, True]
    assert not any(torch.equal(a, b) for a, b in zip(tracked.features[0], bare[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_is_the_full_forward(kind):
    model = shared(kind)
    made = batch(model)
    never = model.config.base_config.image_token_id  # which a random model writes, and a trained one does not
    results = model.predict(made, model.Options(generation={"suppress_tokens": [never]}))
    seen, ends = model.see(made), model.processor.tokenizer.eos_token_id
    for row in (1, 4, 6):  # of two pictures and a clip
        rows = made.rows.part([row])
        start = int(rows.starts)
        rows.ids, rows.attention, rows.mentions = (v[:, :start] for v in (rows.ids, rows.attention, rows.mentions))
        written = []
        for _ in range(12):
            with torch.no_grad():
                logits = model.read(made, seen, rows, keep=1)[0][:, -1]
                logits[:, never] = -torch.inf
                token = logits.argmax(-1, keepdim=True)
            written.append(int(token))
            rows.ids = torch.cat([rows.ids, token], 1)
            rows.attention = torch.cat([rows.attention, torch.ones_like(token)], 1)
            rows.mentions = torch.cat([rows.mentions, torch.full_like(token, -1)], 1)
            if written[-1] == ends:
                break
        assert model.processor.texts.decode([written])[0] == results[row].caption


@pytest.mark.parametrize("kind", KINDS)
def test_others_of_a_batch_change_nothing(kind):
    model = shared(kind)
    together = model.predict(batch(model), model.Options(num_beams=2))
    alone = [r for e in examples(model) for r in model.predict(batch(model, [e]), model.Options(num_beams=2))]
    assert answers(together) == answers(alone)
    sums = model(batch(model))
    apart = [model(batch(model, [e])) for e in examples(model)]
    for task in model.tasks:
        assert float(sums[task].detach()) == pytest.approx(sum(float(a[task].detach()) for a in apart), rel=1e-4)


# --- the guide head ---------------------------------------------------------------------------------------------------


def test_the_guide_head_learns_annotated_frames_of_clips_only():
    model = shared()
    picture_batch, clip = batch(model, examples(model)[:1]), batch(model, examples(model)[-1:])
    assert picture_batch.counts()["guide"] == 0 and clip.counts()["guide"] == 4 * 16
    sums = model(picture_batch)
    assert float(sums["guide"].detach()) == 0 and sums["guide"].requires_grad  # a zero that touches the head
    regions = [clip_region(f"r{n}", {0: BOXES[n], 2: None, 5: BOXES[n]}) for n in range(2)]
    regions[0] = clip_region("r0", {0: BOXES[0], 2: None})  # 5 is known of the other one only
    made = batch(model, [Example("clip", regions, lambda numbers, _: np.stack([image()] * len(numbers or [0])))])
    shown = made.shown[0]
    assert shown.frames == [0, 2, 5, 7] and shown.known.tolist() == [True, True, False, False]
    labels = soft_labels(shown.cover[:, shown.known], shown.marks, 12)
    assert torch.equal(labels[1, ..., -1], torch.ones(4, 4))  # looked at, and nowhere
    made.leave_out(["masks"])
    assert made.counts()["guide"] == 0


def clip_region(name, frames, prompt=0, end=8):
    places = {str(t): None if box is None else {"box": list(box)} for t, box in frames.items()}
    record = {"id": name, "video": "v", "num_frames": 8, "frame_hw": list(HW), "prompt_frame": prompt, "frames": places}
    return ClipRegion.from_dict({**record, "end_frame": end, "captions": ["a square"]})


def test_training_takes_annotated_frames_where_there_are_enough():
    model = shared()
    many = clip_region("r", {t: BOXES[0] for t in (1, 3, 4, 6, 7)}, prompt=1)
    few = clip_region("r", {1: BOXES[0], 6: BOXES[0]}, prompt=1)
    assert model.processor.frame_numbers(Example("c", [many], None), [many], train=True) == [1, 3, 6, 7]
    assert model.processor.frame_numbers(Example("c", [many], None), [many], train=False) == [1, 3, 5, 7]
    assert model.processor.frame_numbers(Example("c", [few], None), [few], train=True) == [1, 3, 5, 7]


def test_heat_maps_say_where_the_guide_head_sees_a_region():
    model = shared()
    results = model.predict(batch(model), model.Options(heat=True))
    heat = torch.tensor(results[-1].extra["heat"])
    assert heat.shape == (4, 4, 4) and results[-1].extra["frames"] == [0, 2, 5, 7]
    assert (heat >= 0).all() and (heat <= 1).all()
    assert torch.tensor(results[0].extra["heat"]).shape == (1, 4, 4)
    json.dumps([result.to_dict() for result in results])


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_answers_alike(kind, tmp_path):
    model = new(kind)
    model.save_pretrained(tmp_path / "whole")
    loaded = dynrefer.load(tmp_path / "whole", device="cpu")
    expected = ask(model, heat=True)
    assert [r.to_dict() for r in ask(loaded, heat=True)] == [r.to_dict() for r in expected]
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == [
        name for name, p in model.named_parameters() if p.requires_grad
    ]
    model.drop_guide()
    model.save_pretrained(tmp_path / "small")
    small = dynrefer.load(tmp_path / "small", device="cpu")
    assert small.guide_head is None and small.tasks == ("captions",)
    assert answers(ask(small)) == answers(expected)
    with pytest.raises(ValueError, match="saved without its guide head"):
        ask(small, heat=True)


def test_lora_learns_beside_the_base(tmp_path):
    model = new(base={"mode": "lora", "lora": {"r": 4}})
    learnt = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("language_model" in name and "lora_A" in name for name in learnt)
    assert not any("lora_" in name and "vision" in name for name in learnt)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    assert answers(ask(dynrefer.load(tmp_path / "lora", device="cpu"))) == answers(ask(model))
    model.save_pretrained(tmp_path / "merged", adapters="merged")
    assert answers(ask(dynrefer.load(tmp_path / "merged", device="cpu"))) == answers(ask(model))
    model.save_base(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert not any("lora_" in name for name in base.state_dict())


# --- questions --------------------------------------------------------------------------------------------------------


def test_a_question_asked_once_is_read_once():
    model = shared()
    each, once = ask(model, question="What is <region>?"), ask(model, question="Is <region0> on <region1>?")
    tokens = [one.prompt_tokens for one in each]
    assert tokens[0] == tokens[1] > 16  # those of the picture among them
    assert once[0].prompt_tokens > 16 and once[1].prompt_tokens == 0


def test_a_question_names_its_regions():
    model = shared()
    both = ask(model, question="Is <region0> left of <region1>?")
    assert both[0].caption == both[1].caption and [r.id for r in both] == ["0:0", "0:1"]
    assert answers(both) == answers(ask(model, question="Is [0] left of [1]?"))
    each = ask(model, question="What is <region>?")
    assert len(each) == 2
    alone = ask(model, BOXES[:1], question="What is <region0> doing?")
    assert len(alone) == 1 and answers(alone) == answers(ask(model, BOXES[:1], question="What is <region> doing?"))
    assert len(ask(model, [], question="What is [1]?")) == 1 and ask(model, []) == []


def test_mentions_and_regions_fit_each_other():
    assert split_mentions("<region0><region2>", "abc") == [0, 2]
    assert split_mentions("[0] is <region0>", ["a"]) == ["[0] is ", 0]
    check_all_named([["what is ", 1], [0]], ["a", "b"])
    model = shared()
    for question, said in [
        ("Where is <region2>?", "<region2> without a region; there are <region0> to <region1>"),
        ("Where is [7] of [0] and [1]?", r"\[7\] without a region"),
        ("Where is <region1>?", "region '0:0' is never named; write <region0>"),
        ("Where is it?", "region '0:0' and 1 more is never named"),
        ("Where is <image> <region>?", "2 times '<image>' in the text, 1 expected"),
    ]:
        with pytest.raises(ValueError, match=said):
            ask(model, question=question)
    with pytest.raises(ValueError, match="<region0> without a region; no regions are given"):
        ask(model, [], question="Where is <region0>?")
    with pytest.raises(ValueError, match="empty text"):
        ask(model, question=" ")


def test_more_regions_than_marks():
    model = shared()
    boxes = [(x, y, x + 9, y + 9) for y in (0, 10, 20, 30) for x in (0, 10, 20, 30, 40)][:15]
    results = ask(model, boxes)
    assert [r.id for r in results] == [f"0:{n}" for n in range(15)]
    assert answers(results[:12]) == answers(ask(model, boxes[:12]))
    question = " ".join(f"<region{n}>" for n in range(15))
    with pytest.raises(ValueError, match="question of 0:0: 15 regions in one text, but this model has 12 marks"):
        ask(model, boxes, question=question)


def test_a_mask_that_vanishes_is_named():
    model = shared()
    mask = np.zeros((400, 600), bool)
    mask[0, 0] = True
    large = np.zeros((400, 600, 3), np.uint8)
    with pytest.warns(UserWarning, match="region 0:0: nothing of its mask is left where the picture becomes 32 x 32"):
        dynrefer.RegionPredictor(model)(large, masks=[mask])


def test_a_conversation_longer_than_the_context_is_refused():
    model = shared()
    with pytest.raises(ValueError, match="question of 0:0: .* tokens, 16 of them of 1 frames, .* holds 512"):
        ask(model, BOXES[:1], question="what " * 600 + "<region0>?")
    with pytest.raises(ValueError, match="max_new_tokens 600: the language model holds 512"):
        ask(model, max_new_tokens=600)


def test_a_clip_must_go_on_after_its_prompt_frame():
    model = shared()
    region = clip_region("r", {5: BOXES[0]}, prompt=5)
    object.__setattr__(region, "end_frame", 5)
    with pytest.raises(ValueError, match="record r: prompt_frame 5 of a clip that ends before frame 5 of 8"):
        batch(model, [Example("clip", [region], None)])


def test_texts_may_show_their_own_marks_only():
    model = new(marks="own")
    made = batch(model)
    assert len(made.shown) == 7 and [len(each.marks) for each in made.shown] == [1] * 7
    assert made.counts()["captions"] == batch(shared()).counts()["captions"]
    assert len(model.predict(made)) == 7 and made.ids == batch(shared()).ids


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_learns_records_by_heart(kind):
    model = new(kind, base={"mode": "full", "vision": True}, num_frames=2)
    made = batch(model)
    counts = made.counts()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3, weight_decay=0)
    model.train()
    first = last = None
    for _ in range(90):
        sums = model(made)
        losses = {task: sums[task] / counts[task] for task in sums}
        optimizer.zero_grad()
        (losses["captions"] + 0.05 * losses["guide"]).backward()
        optimizer.step()
        last = {task: float(loss.detach()) for task, loss in losses.items()}
        first = first or last
    model.eval()
    texts = [result.caption for result in model.predict(made, model.Options())]
    assert texts == [region.captions[0] for region in records()]
    assert last["guide"] < 0.7 * first["guide"]


def test_a_batch_without_targets_touches_every_trained_weight():
    model = new(base={"mode": "full", "vision": True})
    made = batch(model)
    made.leave_out(["captions", "masks"])
    for current in (made, model.processor.collate([])):
        model.zero_grad()
        sums = model(current)
        assert set(sums) == {"captions", "guide"} and all(float(s.detach()) == 0 for s in sums.values())
        sum(sums.values()).backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# ------------------------------------------------------------------------------------------ other ways to name a region


def test_a_region_in_words_is_its_box_in_the_question_and_nothing_on_the_frames():
    model = new(regions="words", guide=False)
    one = batch(model, examples(model)[:1], train=True)
    text = model.processor.tokenizer.decode(one.rows.ids[0])
    assert "[ 6 15 40 75 ]" in " ".join(text.split())  # (4, 6, 24, 30) of 60 x 40
    assert (one.rows.mentions == -1).all()
    plain = model.base.base_model.get_image_features(**one.pixels, return_dict=True).pooler_output
    assert all(torch.equal(seen, own) for seen, own in zip(model.see(one).features[0], plain, strict=True))


def test_a_pooled_region_is_the_mean_of_its_tokens_where_it_is_named():
    model = new(regions="pooled", guide=False)
    one = batch(model, examples(model)[:1])
    seen = model.see(one)
    cover = one.shown[0].cover[:, 0]
    assert cover.shape == (2, 4, 4)
    (tokens,) = seen.features[0]
    for region in range(2):
        share = cover[region].flatten()
        mean = sum(weight * token for weight, token in zip(share, tokens, strict=True)) / share.sum()
        assert torch.allclose(seen.marks[region], model.pooled.projection(mean), atol=1e-6)
    plain = model.base.base_model.get_image_features(**one.pixels, return_dict=True).pooler_output
    assert torch.equal(tokens, plain[0])
    model.train()
    model(batch(model, examples(model)[:1], train=True))["captions"].backward()
    assert model.pooled.projection.weight.grad.abs().sum() > 0 and model.marks.weight.grad is None


def test_without_marks_there_is_no_guide_head():
    with pytest.raises(ValueError, match="guide true, regions 'words': the guide head looks for marks"):
        new(regions="words")
