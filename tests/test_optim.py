import pytest
import torch
from torch import nn

from tests.tiny_squares import TinyModel
from train.optim import OptimConfig, WeightAverage, build_optimizer, lr_factor, parameter_groups, set_lr


def names_of(model: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_norms_biases_and_frozen_parameters_are_kept_out_of_decay():
    model = TinyModel()
    groups = names_of(model, parameter_groups(model, OptimConfig()))
    assert groups == {
        "rest/decay": {"head.0.weight", "word_embedding.weight", "words.weight", "tag_decoder.weight", "query"},
        "rest/no_decay": {
            "head.0.bias",
            "head.2.weight",
            "head.2.bias",
            "words.bias",
            "tag_decoder.bias",
            "logit_scale",
        },
    }  # vision is frozen: in no group


def test_embeddings_can_be_left_without_decay():
    model = TinyModel()
    groups = names_of(model, parameter_groups(model, OptimConfig(decay_embeddings=False)))
    assert "word_embedding.weight" in groups["rest/no_decay"]


def test_lr_scale_takes_whole_words_and_the_longest_prefix():
    model = TinyModel()
    groups = parameter_groups(model, OptimConfig(lr=1.0, lr_scale={"head": 0.1, "head.2": 0.5, "words": 2.0}))
    assert names_of(model, groups) == {
        "head/decay": {"head.0.weight"},
        "head/no_decay": {"head.0.bias"},
        "head.2/no_decay": {"head.2.weight", "head.2.bias"},
        "rest/decay": {"word_embedding.weight", "tag_decoder.weight", "query"},  # not "words"
        "rest/no_decay": {"tag_decoder.bias", "logit_scale"},
        "words/decay": {"words.weight"},
        "words/no_decay": {"words.bias"},
    }
    assert {group["name"]: group["lr"] for group in groups}["words/decay"] == 2.0


def test_a_prefix_without_parameters_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match="no parameter's name starts with 'tag_decodr'.*Did you mean 'tag_decoder'"):
        parameter_groups(TinyModel(), OptimConfig(lr_scale={"tag_decodr": 0.1}))


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(TinyModel().requires_grad_(False), OptimConfig())


def test_the_rate_warms_up_and_falls_on_a_cosine():
    factors = [lr_factor(step, total_steps=8, warmup_steps=4, min_lr_scale=0.0) for step in range(9)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5) and factors[8] == pytest.approx(0.0)
    assert lr_factor(8, 8, 4, 0.1) == pytest.approx(0.1) == lr_factor(99, 8, 4, 0.1)


def test_every_group_keeps_its_factor_at_every_step():
    model, cfg = TinyModel(), OptimConfig(lr=0.1, lr_scale={"head": 0.5}, warmup_steps=2)
    optimizer = build_optimizer(model, cfg)
    assert set_lr(optimizer, cfg, 0, 10) == pytest.approx(0.05)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["head/decay"] == pytest.approx(0.025) and rates["rest/decay"] == pytest.approx(0.05)


def test_the_weight_average_moves_slowly_and_gives_the_own_weights_back():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.5)
    nn.init.ones_(model.weight)
    average.update(model, step=1)  # decay min(0.5, 2/11): 9/11 of the way
    average.update(model, step=98)  # decay 0.5: half of the rest
    with average.applied(model):
        assert model.weight.item() == pytest.approx(1 - 2 / 11 / 2)
    assert model.weight.item() == 1.0


def test_an_average_of_other_parameters_is_refused():
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match="differ in \\['bias'\\]"):
        average.load_state_dict({"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("field", [{"lr": 0.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"min_lr_scale": 2.0}])
def test_settings_out_of_range_name_themselves(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        OptimConfig(**field)
