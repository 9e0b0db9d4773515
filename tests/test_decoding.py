"""Texts whose rows leave the batch are those of transformers' own loops, with their log probabilities."""

import pytest
import torch

from dynrefer.models import language as language_module
from dynrefer.models.decoding import Rows, Unfit, decode
from dynrefer.models.language import by_length
from tests import tiny_dynrefer as small

KINDS = {"t5": small.T5, "llama": small.LLAMA}
WORDS = [["red", "cup"], [], ["dog"], ["two", "birds", "tree"], ["lamp"], ["blue", "cup", "dog", "two"], ["table"], []]
SETTINGS = [
    {"num_beams": 1, "max_new_tokens": 14},
    {"num_beams": 1, "max_new_tokens": 14, "min_new_tokens": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 1, "max_new_tokens": 1},
    {"num_beams": 2, "max_new_tokens": 14},
    {"num_beams": 3, "max_new_tokens": 14, "length_penalty": 0.0},
    {"num_beams": 3, "max_new_tokens": 14, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "max_new_tokens": 14, "length_penalty": -1.0},
    {"num_beams": 3, "max_new_tokens": 14, "early_stopping": True},
    {"num_beams": 3, "max_new_tokens": 14, "early_stopping": "never", "length_penalty": 1.5},
    {"num_beams": 2, "max_new_tokens": 1},
]


@pytest.fixture(scope="module", params=KINDS)
def adapter(request):
    """A language model whose texts end after different numbers of tokens, and prompts of different lengths."""
    torch.manual_seed(0)
    model, processor = small.model(language=KINDS[request.param])
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter += 0.6 * torch.randn_like(parameter)
        embeds = torch.randn(len(WORDS), model.config.num_query_tokens, model.config.qformer_config.hidden_size)
    return model.language, (embeds, *processor.encode_prompts(WORDS)), processor


def ends(processor):
    """More than one, so that texts of random weights end."""
    return [processor.tokenizer.eos_token_id, *range(40, 56)]


def lengths(ids, ends):
    return [next((i for i, word in enumerate(row[1:], 1) if word in ends), len(row)) for row in ids.tolist()]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_texts_and_scores_are_those_of_transformers_loop(adapter, settings, monkeypatch):
    language, inputs, processor = adapter
    settings = {**settings, "eos_token_id": ends(processor), "pad_token_id": 3}
    dropped = []
    keep = Rows.keep
    monkeypatch.setattr(Rows, "keep", lambda self, places: dropped.append(len(places)) or keep(self, places))
    with torch.no_grad():
        ids, score = language.generate(*inputs, **settings)

        def unfit(*given, **named):
            raise Unfit

        monkeypatch.setattr(language_module, "decode", unfit)
        expected, expected_score = language.generate(*inputs, **settings)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(score, expected_score, rtol=1e-5, atol=1e-5)
    assert len(set(map(tuple, ids.tolist()))) > 1, "the regions are described differently"
    if settings["max_new_tokens"] > 1 and not language.model.config.is_encoder_decoder:
        assert len(set(lengths(ids, ends(processor)))) > 2
        assert dropped and dropped == sorted(dropped, reverse=True)


def test_a_text_is_the_same_alone_and_among_others(adapter):
    language, inputs, processor = adapter
    for beams in (1, 3):
        settings = {"num_beams": beams, "max_new_tokens": 14, "eos_token_id": ends(processor), "pad_token_id": 3}
        with torch.no_grad():
            ids, score = language.generate(*inputs, **settings)
            for row in range(len(WORDS)):
                own, own_score = language.generate(*(part[row : row + 1] for part in inputs), **settings)
                assert own[0].tolist() == ids[row, : own.shape[1]].tolist() and (ids[row, own.shape[1] :] == 3).all()
                torch.testing.assert_close(own_score[0], score[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_prompts_of_very_different_lengths_are_batches_of_their_own(adapter, beams, monkeypatch):
    language, inputs, processor = adapter
    settings = {"num_beams": beams, "max_new_tokens": 14, "eos_token_id": ends(processor), "pad_token_id": 3}
    read = []
    plain = language.prompt
    monkeypatch.setattr(language, "prompt", lambda *given: read.append(given[1].shape) or plain(*given))
    with torch.no_grad():
        ids, score = language.generate(*inputs, **settings)
        monkeypatch.setattr(language_module, "by_length", lambda lengths: by_length(lengths, 0))
        parted, parted_score = language.generate(*inputs, **settings)
    assert len(read) == 1 + len(set(inputs[2].sum(1).tolist())) and sum(rows for rows, _ in read[1:]) == len(WORDS)
    assert torch.equal(ids, parted)
    torch.testing.assert_close(score, parted_score, rtol=1e-4, atol=1e-4)


def test_batches_make_the_least_work():
    lengths = [11] * 40 + [12] * 20 + [200] + [210] * 3
    assert by_length(lengths) == [list(range(60)), list(range(60, 64))]
    assert by_length([11, 14, 30] * 20) == [list(range(60))]
    assert by_length([]) == [[]]


def test_drawn_texts_are_likely_ones_and_repeat_with_the_seed(adapter):
    language, inputs, processor = adapter
    settings = {"do_sample": True, "top_k": 2, "max_new_tokens": 8, "eos_token_id": ends(processor), "pad_token_id": 3}
    with torch.no_grad():
        torch.manual_seed(1)
        ids, score = language.generate(*inputs, **settings)
        torch.manual_seed(1)
        again, again_score = language.generate(*inputs, **settings)
        others = [language.generate(*inputs, **settings)[0] for _ in range(3)]
    assert torch.equal(ids, again) and torch.equal(score, again_score)
    assert any(other.shape != ids.shape or not torch.equal(other, ids) for other in others)
    assert (score >= -8 * 20).all() and (score < 0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"num_beams": 2, "do_sample": True},
        {"max_time": 60.0},
        {"repetition_penalty": 1.3},
        {"exponential_decay_length_penalty": (2, 1.1)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_it_does_not_know_goes_to_transformers(adapter, settings):
    language, inputs, _ = adapter
    embeds, mask = language.arrange(*language.prompt(*inputs))
    with torch.no_grad():
        if settings != {"use_cache": False} or language.model.config.is_encoder_decoder:
            with pytest.raises(Unfit):
                decode(language.model, {"max_new_tokens": 3, **settings}, inputs_embeds=embeds, attention_mask=mask)
        ids, score = language.generate(*inputs, max_new_tokens=3, **settings)
    assert ids.shape[0] == len(WORDS) and score.shape == (len(WORDS),)
