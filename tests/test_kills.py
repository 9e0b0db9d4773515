"""Runs killed with -9 and resumed end as if nothing had happened, and what would make a resume inexact."""

import pytest
import torch

from bench.kills import CASES, compare_killed, draw_world
from dynrefer.models.family import ALIGNMENT
from tests import tiny_dynrefer as small

RESNET = {
    "config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 32], "depths": [1, 1]},
    "trainable": True,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return draw_world(tmp_path_factory.mktemp("kills") / "world")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_twice_ends_with_the_bytes_of_one_that_never_stopped(world, tmp_path, case):
    outcome = compare_killed(CASES[case], tmp_path, world, kills=2, steps=16)
    assert len(outcome.kills) == 2 and outcome.steps == 16
    assert outcome.different == []


@pytest.mark.parametrize("vision", [RESNET, small.SECTION["vision"]], ids=["resnet", "vit"])
def test_weights_lie_in_memory_alike_new_and_loaded(tmp_path, vision):
    import dynrefer

    new, processor = small.model(vision=vision)
    new.processor = processor
    new.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu")
    for model in (new, loaded):
        model.lay_out()
    strides = [{name: p.stride() for name, p in model.named_parameters()} for model in (new, loaded)]
    assert strides[0] == strides[1]
    convolutions = [p for p in loaded.vision.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert convolutions
    for weight in convolutions:
        assert weight.is_contiguous(memory_format=torch.channels_last) == (vision is RESNET)


def test_laying_out_changes_no_value_and_twice_is_once():
    model, _ = small.model(vision=RESNET)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lay_out()
    strides = [p.stride() for p in model.parameters()]
    model.lay_out()
    assert [p.stride() for p in model.parameters()] == strides
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def places(model):
    """Where the numbers of a model begin: bytes after the last place where torch would let them begin."""
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.data_ptr() % ALIGNMENT for tensor in tensors if tensor.is_floating_point()}


def test_weights_begin_in_memory_where_new_ones_do(tmp_path):
    """MKL's products of float32 are rounded by where their factors begin."""
    import dynrefer

    new, processor = small.model(vision=RESNET)
    new.processor = processor
    new.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu")
    assert places(loaded) == {0}
    for tensor in (*loaded.parameters(), *loaded.buffers()):  # as a part that was read from a file lies
        room = torch.empty(tensor.nbytes + ALIGNMENT, dtype=torch.uint8)
        tensor.data = room[8 : 8 + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    assert places(loaded) == {8}
    loaded.lay_out()
    assert places(loaded) == {0}
    state = new.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())
