"""RegionSpot: regions of a picture see each other and nothing else, however they are pointed at."""

import json
import zlib

import numpy as np
import pytest
import torch

import dynrefer
from dynrefer import RegionPredictor, cli
from dynrefer.data.records import RegionResult
from dynrefer.images import open_image
from dynrefer.masks import rle_to_box, to_mask
from dynrefer.models.regionspot import modeling, sam, text_bank
from dynrefer.models.regionspot.text_bank import TextBanks, template_list
from tests.regionspot import NAMES, RECORDS, batch, example, folder, model, picture, scores, small

FIRST, SECOND = RECORDS
BOXES = FIRST["boxes_xyxy"]


def recognised(boxes=BOXES, record=FIRST, **options):
    options = {"categories": NAMES, "top_k": len(NAMES), "with_masks": False, **options}
    return RegionPredictor(model())(str(picture(record)), boxes=boxes, **options)


def numbers(results):
    return scores(results, NAMES)


def close(found, expected, atol=2e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def apart(found, expected):
    return (found - expected).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------ who sees whom


def test_the_order_of_boxes_is_the_order_of_results_and_nothing_else():
    order = [3, 0, 4, 1, 2]
    close(numbers(recognised([BOXES[i] for i in order])), numbers(recognised())[order])


def test_another_box_even_a_repeated_one_changes_the_others_unless_they_are_independent():
    alone, more = recognised(BOXES[:2]), recognised([*BOXES[:2], BOXES[0]])
    assert apart(numbers(more)[:2], numbers(alone))
    alone, more = (recognised(boxes, independent=True) for boxes in (BOXES[:2], [*BOXES[:2], BOXES[0]]))
    close(numbers(more)[:2], numbers(alone))
    close(numbers(more)[2], numbers(alone)[0])


def test_an_independent_region_is_a_joint_one_that_stands_alone():
    alone = torch.cat([numbers(recognised([box])) for box in BOXES])
    close(numbers(recognised(independent=True)), alone)
    assert apart(numbers(recognised()), alone)


@pytest.mark.parametrize("independent", [False, True])
def test_chunks_of_any_size_give_the_same(independent, monkeypatch):
    whole = recognised(with_masks=True, independent=independent)
    monkeypatch.setattr(modeling, "REGIONS_AT_ONCE", 2)
    monkeypatch.setattr(sam, "MASKS_AT_ONCE", 1)
    small = RegionPredictor(model(), max_regions=1)
    parts = small(str(picture(FIRST)), boxes=BOXES, categories=NAMES, top_k=7, independent=independent)
    close(numbers(parts), numbers(whole))
    assert [part.mask for part in parts] == [one.mask for one in whole]


def test_other_pictures_in_a_batch_and_their_padding_change_nothing():
    pictures = [str(picture(record)) for record in (FIRST, SECOND, FIRST)]
    boxes = [BOXES, SECOND["boxes_xyxy"][:2], BOXES[:1]]
    together = RegionPredictor(model())(pictures, boxes=boxes, categories=NAMES, top_k=7, attention=True)
    for record, some, found in zip((FIRST, SECOND, FIRST), boxes, together, strict=True):
        alone = recognised(some, record, attention=True)
        close(numbers(found), numbers(alone))
        looks = (torch.tensor([one.extra["attention"] for one in results]) for results in (found, alone))
        close(*looks)


def test_a_picture_goes_through_the_encoders_once_however_many_regions_it_has(monkeypatch):
    calls = []
    for part, name in ((model().sam, "image_features"), (model().clip, "image_tokens")):
        plain = getattr(part, name)
        monkeypatch.setattr(part, name, lambda pixels, n=name, f=plain: calls.append(n) or f(pixels))
    recognised([[i % 90, i % 60, i % 90 + 50, i % 60 + 80] for i in range(200)])
    assert calls == ["image_tokens", "image_features"]


# ------------------------------------------------------------------------------------------------ scores and names


def test_softmax_is_over_the_names_given_and_sigmoid_is_not():
    few = NAMES[:3]
    shares, whole = (scores(recognised(categories=names), few) for names in (few, NAMES))
    close(shares.sum(1), torch.ones(5))
    assert (whole.sum(1) < 0.5).all()
    few, whole = (scores(recognised(categories=names, scores="sigmoid"), few) for names in (few, NAMES))
    close(few, whole)


def test_the_likeliest_names_come_first_and_a_weak_region_has_no_category():
    plain, unsure = recognised(top_k=2), recognised(top_k=2, unknown=0.62)
    for one, other in zip(plain, unsure, strict=True):
        assert len(one.categories) == 2 and one.categories[0]["score"] >= one.categories[1]["score"]
        assert other.categories == one.categories
        assert other.category == (one.category if one.category["score"] >= 0.62 else None)
    assert {one.category is None for one in unsure} == {True, False}
    assert RegionResult.from_dict(json.loads(json.dumps(unsure[0].to_dict()))) == unsure[0]


def test_a_name_that_is_given_twice_counts_once():
    assert recognised(categories=[*NAMES, *NAMES]) == recognised()


def test_one_name_has_all_of_softmax_and_is_told_of(caplog):
    assert [one.category["score"] for one in recognised(categories=["dog"])] == [1.0] * 5
    assert "only 'dog', so softmax gives every region 1.0 of it" in caplog.text
    caplog.clear()
    assert all(one.category["score"] < 1 for one in recognised(categories=["dog"], scores="sigmoid"))
    assert not caplog.text


def test_names_that_no_text_encoder_holds_and_options_that_are_none_are_refused_in_one_line():
    for options, told in (
        ({"categories": ["dog", "very " * 80 + "long"]}, "tokens in the sentence .* holds at most 77; give a shorter"),
        ({"categories": []}, "categories: no names"),
        ({"categories": ["dog", " "]}, "categories: ' ' among them"),
        ({"categories": None}, "none given, and this model has none of its own"),
        ({"top_k": 0}, "top_k 0"),
        ({"unknown": 2}, "unknown 2: expected a probability"),
        ({"scores": "best"}, "scores: expected"),
        ({"num_beams": 3}, "unknown option 'num_beams'"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            recognised(**options)
        assert "\n" not in str(error.value)


def test_without_names_there_are_vectors():
    results = recognised(categories=None, embedding=True)
    assert [one.category for one in results] == [None] * 5
    close(torch.tensor([one.extra["embedding"] for one in results]).norm(dim=-1), torch.ones(5))


def test_the_81_sentences_are_averaged_before_they_are_normalized():
    templates = template_list("openai81")
    assert len(templates) == len(set(templates)) == 81 and all(text.endswith(".") for text in templates)
    texts = [template.replace("{}", "red cup") for template in templates]
    embeds = model().embed_texts(texts)
    expected = torch.nn.functional.normalize(embeds.mean(0), dim=0)
    close(model().text_bank(["dog", "red cup"])[1], expected, 1e-6)
    assert (torch.nn.functional.normalize(embeds, dim=1).mean(0) - expected).abs().max() > 1e-3
    assert text_bank.clean("wall-other-merged") == "wall" and text_bank.clean("Traffic_light (red)") == (
        "Traffic_light (red)"
    )


def test_a_word_list_is_embedded_once_and_a_long_one_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNREFER_CACHE", str(tmp_path))
    monkeypatch.setattr(text_bank, "ON_DISK", 4)
    made = []

    def embed(texts):
        made.append(len(texts))
        return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

    names = ["cup", "plate", "fork", "knife"]
    banks = TextBanks(embed, ["{}."], "clip")
    assert torch.equal(banks.bank(names), banks.bank(list(names))) and made == [4]
    (path,) = (tmp_path / "text_banks").iterdir()
    again = TextBanks(embed, ["{}."], "clip")
    assert torch.equal(again.bank(names), banks.bank(names)) and made == [4]
    for other in (TextBanks(embed, ["a {}."], "clip"), TextBanks(embed, ["{}."], "another clip")):
        other.bank(names)
    again.bank(names[::-1])
    again.bank(names[:3])  # short ones are not kept there
    assert made == [4, 4, 4, 4, 3] and len(list((tmp_path / "text_banks").iterdir())) == 4
    path.write_bytes(path.read_bytes()[:50])
    TextBanks(embed, ["{}."], "clip").bank(names)
    assert made[-1] == 4  # a file that is cut off is made anew
    monkeypatch.setenv("DYNREFER_CACHE", "/proc/none")
    assert TextBanks(embed, ["{}."], "clip").bank(names).shape == (4, 2)


# ------------------------------------------------------------------------------------------------ pointing


MASK = np.zeros(open_image(picture(FIRST)).shape[:2], bool)
MASK[50:120, 40:100] = True
HOLLOW = MASK.copy()
HOLLOW[60:100, 50:90] = False


def pointed(**ways):
    return RegionPredictor(model())(str(picture(FIRST)), categories=NAMES, top_k=7, **ways)


def test_masks_that_are_given_are_seen_beside_their_boxes():
    full, hollow = pointed(masks=[MASK, HOLLOW], independent=True)
    assert full.box == hollow.box == [40, 50, 100, 120]
    assert apart(numbers([full]), numbers([hollow]))
    (boxed,) = pointed(boxes=[[40, 50, 100, 120]])
    by_box = pointed(masks=[MASK, HOLLOW], independent=True, mask_prompts=False)
    close(numbers(by_box), numbers([boxed, boxed]))


def test_masks_of_records_are_not_shown_to_sam():
    from dynrefer.data.example import Example
    from dynrefer.regions import regions_of

    image = open_image(picture(FIRST))
    regions = regions_of(image.shape[:2], None, masks=[HOLLOW])
    (result,) = model().predict(batch(Example.of_picture(image, regions)), model().Options(categories=NAMES, top_k=7))
    close(numbers([result]), numbers(pointed(boxes=[[40, 50, 100, 120]])))


def test_points_give_a_region_the_box_of_its_mask():
    one, two = pointed(points=[[50, 60], [[50, 60, 1], [150, 100, 0]]])
    for result in (one, two):
        assert result.box == rle_to_box(result.mask).tolist() and to_mask(result.mask, MASK.shape).any()
    assert apart(numbers([one]), numbers([two]))
    by_itself = pointed(points=[[50, 60]], with_masks=False, independent=True)[0]
    assert by_itself.mask is None and by_itself.box == one.box
    assert pointed(points=[[50, 60]], boxes=[[40, 50, 100, 120]])[0].box == [40, 50, 100, 120]


def test_points_of_a_family_without_them_and_those_that_are_none_are_refused(monkeypatch):
    for ways, told in (
        ({"points": [[50, 600]]}, r"points 0: \[50.0, 600.0\] is outside the image of 203 x 331"),
        ({"points": [[[50, 60, 0]]]}, "points 0: all are outside the object"),
        ({"points": [[50, 60, 3]]}, "points 0: .* 1 inside or 0 outside"),
        ({"points": [[50, 60]], "masks": [MASK]}, "points and masks: give one of them"),
        ({"points": [[50, 60]], "boxes": [[1, 1, 9, 9]] * 2}, "2 boxes but points of 1 regions"),
        ({"points": 5}, "points 5: expected one entry a region"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            pointed(**ways)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(modeling.RegionSpotModel, "prompts", frozenset())
    with pytest.raises(ValueError, match="points: this model's family takes none; give boxes or masks"):
        pointed(points=[[50, 60]])


def test_no_regions_and_boxes_partly_or_wholly_outside():
    assert pointed(boxes=[]) == pointed(points=[]) == []
    clipped, inside = pointed(boxes=[[-30, -30, 90, 90], [0, 0, 90, 90]], independent=True)
    assert clipped.box == inside.box
    names = [category["name"] for category in inside.categories]  # rows of one batch differ in the last digit
    assert torch.allclose(scores([clipped], names), scores([inside], names), atol=1e-6)
    with pytest.raises(ValueError, match="box 0"):
        pointed(boxes=[[300, 400, 310, 410]])


def test_a_thousand_boxes_are_joint_and_sam_has_a_few_of_them_at_a_time(monkeypatch):
    made, seen = dynrefer.load(small(), device="cpu"), []
    decode = type(made.sam).decode
    monkeypatch.setattr(
        type(made.sam),
        "decode",
        lambda own, features, prompts: seen.append(len(prompts.boxes)) or decode(own, features, prompts),
    )
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (999, 2)) * (150, 250)
    boxes = np.concatenate([corners, corners + rng.uniform(5, 50, (999, 2))], 1)
    boxes = [*boxes.tolist(), boxes[0].tolist()]
    options = {"categories": NAMES, "top_k": len(NAMES), "with_masks": False}
    results = RegionPredictor(made)(str(picture(FIRST)), boxes=boxes, **options)
    assert len(results) == sum(seen) == 1000 and max(seen) <= modeling.REGIONS_AT_ONCE
    assert [result.box for result in results] == [pytest.approx(box, abs=1e-3) for box in boxes]
    found = numbers(results)
    close(found[-1], found[0])  # the same box, in another chunk of SAM's
    fewer = numbers(RegionPredictor(made)(str(picture(FIRST)), boxes=boxes[:64], **options))
    assert (fewer - found[:64]).abs().max() > 1e-5  # those of all chunks see each other


def test_fourteen_thousand_names_are_embedded_a_few_at_a_time_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNREFER_CACHE", str(tmp_path))
    names = [f"{first}{second}" for first in "abcdefghij" for second in range(1400)]
    asked = []

    def embed(texts):  # as wide as CLIP's, another direction each text
        asked.append(len(texts))
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=24) for text in texts]
        return torch.tensor(np.stack(rows), dtype=torch.float32)

    def loaded():
        made = dynrefer.load(small(), device="cpu")
        monkeypatch.setattr(made, "embed_texts", embed)
        return made

    options = {"categories": names, "with_masks": False, "embedding": True}
    first = loaded()
    results = RegionPredictor(first)(str(picture(FIRST)), boxes=BOXES, **options)
    assert sum(asked) == len(names) and max(asked) <= text_bank.TEXTS_AT_ONCE
    bank = first.text_bank(names)
    for result in results:
        best = first.logits(torch.tensor([result.extra["embedding"]]), bank)[0].softmax(0).topk(5)
        assert [category["score"] for category in result.categories] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert result.categories[0]["name"] == names[best.indices[0]]
    asked.clear()
    assert RegionPredictor(loaded())(str(picture(FIRST)), boxes=BOXES, **options) == results and not asked


def test_masks_are_sams_own_at_the_size_of_the_image():
    results = recognised(with_masks=True)
    features = model().sam.image_features(model().sam.normalize(*(batch(example(FIRST)).seen.sam_pictures, _inner())))
    ((rows, prompts),) = batch(example(FIRST)).seen.prompts[0]
    decoded = model().sam.decode(features[0], prompts)
    low = decoded.masks[rows][:, None]
    large = torch.nn.functional.interpolate(low, (128, 128), mode="bilinear")[..., :128, :79]
    expected = torch.nn.functional.interpolate(large, MASK.shape, mode="bilinear")[:, 0] > 0
    for result, mask in zip(results, expected.numpy(), strict=True):
        assert np.array_equal(to_mask(result.mask, MASK.shape), mask)


def _inner():
    inner = batch(example(FIRST)).seen.inner_hw
    assert inner.tolist() == [[128, 79]]  # 331 x 203
    return inner


def test_the_command_takes_points_and_tells_of_those_it_cannot(capsys):
    command = ["describe", str(picture(FIRST)), "--model", str(folder()), "--device", "cpu", "categories=cup,dog"]
    assert cli.main([*command, "--point", "50", "60", "55", "65", "--point", "9", "9", "unknown=0.99"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0: unknown  (box") and any("mask:" in line for line in lines)
    assert cli.main([*command, "--point", "50"]) == 2
    assert "--point 50: a number without its other" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ learning, saving


def test_a_saved_model_answers_the_same(tmp_path):
    before = recognised()
    model().save_pretrained(tmp_path / "again")
    again = dynrefer.load(tmp_path / "again", device="cpu")
    after = RegionPredictor(again)(str(picture(FIRST)), boxes=BOXES, categories=NAMES, top_k=7, with_masks=False)
    assert after == before
