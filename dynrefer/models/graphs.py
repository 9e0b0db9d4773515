"""What a family exports: parts of a model that become graphs, and what to know to run them without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Shape = Sequence[int | str]  # a text is a size that may be any, the same wherever it stands


@dataclass(frozen=True)
class Graph:
    """One part of a model.

    name: of its file. module: takes the inputs in order, gives one tensor or a tuple. inputs, outputs: {name: shape}.
    example: sizes that may be any -> inputs of these sizes, random ones of the generator. about: {name: what it holds}.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    example: Callable[[Mapping[str, int], torch.Generator], tuple[Tensor, ...]]
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def free(self) -> list[str]:
        """The sizes that may be any, in the order of the inputs."""
        return list(dict.fromkeys(size for shape in self.inputs.values() for size in shape if isinstance(size, str)))


@dataclass(frozen=True)
class Graphs:
    """graphs: in the order in which they run. preprocessing: how a picture and its boxes become inputs; answers: how
    outputs become scores; words: the word lists that outputs count along; arrays: {name: what lies beside as .npy}."""

    graphs: Sequence[Graph]
    preprocessing: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Any]]
    words: Mapping[str, Sequence[str]]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
