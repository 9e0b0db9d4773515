"""Many regions of several pictures in one call say what a call for each says, and what is alike is worked out once."""

import numpy as np
import pytest
import torch

from dynrefer.predictor import RegionPredictor
from tests import tiny_dynrefer as small

BOXES = [list(map(float, box)) for box in small.BOXES]
# a box again, the whole picture, a box that shows the same pixels
ASKED = [[*BOXES, BOXES[1], [0.0, 0, 100, 80]], [BOXES[2]], [], [BOXES[0], [4.2, 4.2, 40.2, 30.2], BOXES[3]]]


@pytest.fixture(scope="module", params=[small.LLAMA, small.T5], ids=["llama", "t5"])
def model(request):
    model, processor = small.model(language=request.param)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        seen = torch.cat([model.encode(small.batch_of(processor, each, small.BOXES)) for each in pictures()])
    center, spread, embed = seen.mean(0), seen.std(0), model.embed
    # random weights make regions look the same; a trained model's differ
    model.embed = lambda *given: (embed(*given) - center) / spread
    model.language.model.generation_config.eos_token_id = [1, *range(40, 52)]
    return model


@pytest.fixture
def counted(model, monkeypatch):
    """How many views the encoder has been given, and texts the text encoder."""
    counts = {"views": 0, "texts": 0}
    for name, part in (("views", model.vision), ("texts", model.text_encoder)):
        forward = part.forward

        def counting(rows, *given, forward=forward, name=name):
            counts[name] += len(rows)
            return forward(rows, *given)

        monkeypatch.setattr(part, "forward", counting)
    return counts


def pictures():
    return [small.picture(seed) for seed in range(4)]


@pytest.mark.parametrize("beams", [1, 3])
def test_one_call_for_all_says_what_a_call_for_each_region_says(model, beams):
    options = {"num_beams": beams, "max_new_tokens": 10, "categories": ["cup", "lamp", "dog"], "view_strategy": "phash"}
    together = RegionPredictor(model, max_regions=4)(pictures(), boxes=ASKED, **options)
    assert [[each.id for each in some] for some in together] == [
        [f"{image}:{region}" for region in range(len(boxes))] for image, boxes in enumerate(ASKED)
    ]
    lengths = set()
    for image, boxes, results in zip(pictures(), ASKED, together, strict=True):
        for box, result in zip(boxes, results, strict=True):
            (alone,) = RegionPredictor(model)(image, boxes=[box], **options)
            assert (result.caption, result.box) == (alone.caption, alone.box)
            assert result.score == pytest.approx(alone.score, rel=1e-4)
            assert [tag["name"] for tag in result.tags] == [tag["name"] for tag in alone.tags]
            for some, others in ((result.attributes, alone.attributes), (result.categories, alone.categories)):
                assert {o["name"]: o["score"] for o in some} == pytest.approx(
                    {o["name"]: o["score"] for o in others}, rel=1e-4
                )
            assert result.prompt_tokens == alone.prompt_tokens and result.extra == alone.extra
            lengths.add(len(result.caption.split()))
    assert len(lengths) > 1


def test_equal_views_are_encoded_once(model, counted):
    RegionPredictor(model)(pictures()[0], boxes=BOXES, view_strategy="fixed:0,0.4,1", max_new_tokens=2)
    assert counted["views"] == 4 * 2 + 1, "t = 1 is the picture, whatever the region"
    counted["views"] = 0
    RegionPredictor(model)(pictures(), boxes=ASKED, view_strategy="fixed:0,0.4,1", max_new_tokens=2)
    assert counted["views"] == (4 * 2 + 1) + 3 + (2 * 2 + 1), "an equal box, the whole picture, and pixels alike"


def test_pictures_do_not_share_views(model, counted):
    results = RegionPredictor(model)(pictures()[:2], boxes=[BOXES, BOXES], view_strategy="fixed:0,0.4,1")
    assert counted["views"] == 2 * 9
    assert results[0][0].score != results[1][0].score


def test_alike_regions_have_results_of_their_own(model):
    first, again, other = RegionPredictor(model)(
        pictures()[0], boxes=[BOXES[0], BOXES[0], BOXES[0]], control=[["red"], ["red"], ["dog"]], ids=["a", "b", "c"]
    )
    assert (first.id, again.id, other.id) == ("a", "b", "c")
    assert (first.caption, first.score) == (again.caption, again.score) and other.score != first.score
    again.categories[0]["name"], again.extra["scales"][0] = "changed", -1
    assert first.categories[0]["name"] != "changed" and first.extra["scales"][0] == 0


def test_drawn_captions_of_alike_regions_are_drawn_for_each(model):
    torch.manual_seed(0)
    results = RegionPredictor(model)(
        pictures()[0], boxes=[BOXES[0]] * 6, do_sample=True, temperature=3.0, max_new_tokens=8
    )
    assert len({result.caption for result in results}) > 1


def test_words_are_embedded_once_until_weights_may_change(model, counted):
    predictor, options = RegionPredictor(model, max_regions=2), {"categories": ["cup", "lamp"], "attributes": ["red"]}
    options["max_new_tokens"] = 2
    model.before_eval()
    counted["texts"] = 0
    before = predictor(pictures()[0], boxes=BOXES, **options)
    once = counted["texts"]
    predictor(pictures()[1], boxes=BOXES, **options)
    assert counted["texts"] == once > 0
    weight = model.text_encoder.model.get_input_embeddings().weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.add_(torch.from_numpy(np.random.default_rng(0).normal(size=weight.shape)).float())
    model.train()
    model.eval()
    after = predictor(pictures()[0], boxes=BOXES, **options)
    assert counted["texts"] > once and after[0].categories != before[0].categories
    with torch.no_grad():
        weight.copy_(saved)
    model.before_eval()
