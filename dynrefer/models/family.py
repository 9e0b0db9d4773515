"""The interface that every model family obeys, and all that data, training, evaluation, predictor and pages ask of one.

    example --processor.samples--> samples --processor.collate--> batch --model.forward--> one sum a task
                                                                        --model.predict--> one result a region

A family is a folder beside this file with `configuration.py`, `modeling.py`, `processor.py`, `batch.py`, `options.py`,
and a row in `models/__init__.py`; docs/new_family.md builds a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from .options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dynrefer.data.example import Example
    from dynrefer.data.records import RegionResult

    from .graphs import Graphs

# fields of a RegionResult that a family fills
ANSWERS = ("caption", "tags", "attributes", "categories", "mask", "answer")
# what records may be annotated with, and training may leave out
ANNOTATIONS = ("captions", "tags", "attributes", "categories", "masks")
ALIGNMENT = 64  # bytes; torch's own on CPU


class Batch(Protocol):
    """What loader, training and prediction look at of a family's batch; the rest is between its processor and model."""

    ids: list[str]  # one a result: a region's id, or a question's

    def __len__(self) -> int:
        """The number of ids."""
        ...

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device."""
        ...

    def counts(self) -> dict[str, float]:
        """The denominator of every task's sum: target tokens for captions, annotated regions for tags, ..."""
        ...

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        """Takes the targets of some of ANNOTATIONS from some rows (positions in `ids`); they do not count then."""
        ...


class Processor(Protocol):
    """Examples -> batches. Training, evaluation and prediction take the same two steps.

    It is pickled into loader workers; `save_pretrained` writes its files beside the model's.
    """

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """The samples of one example, in order: one a region, or, of a joint family, one of the whole example.

        options: the family's; generators: one a region, the only source of randomness; train: augmentation, random
        views. `example.image` or `example.frames(...)` opens the pixels. ValueError names the region at fault.
        """
        ...

    def collate(self, samples: Sequence[dict]) -> Batch:
        """Samples of any examples -> one batch; of none: a batch without regions."""
        ...

    def reduction(self, regions: Sequence[Any]) -> int:
        """How many times smaller, 8, 4, 2 or 1, an image with these regions may be decoded for training."""
        ...

    def variants(self) -> Sequence[str]:
        """Of data/features.py, those that training draws from: features of each are kept."""
        ...

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """What examples of so many regions each weigh in a batch of `data.batch_size`, (N,) -> (N,)."""
        ...

    def results(self, example: Example, options: Options) -> int:
        """How many results an example has: one a region, or one of a question about a picture without regions."""
        ...

    def save_pretrained(self, folder: str) -> None: ...


@dataclass(frozen=True)
class ImageText:
    """Encoders that name a whole picture. name: for people, such as "CLIP".

    pixels: a picture (H, W, 3) uint8 -> what the encoder reads of it, a tensor of one shape; it is sent to workers, so
    it holds no weights. logits: N such tensors, stacked, and C names -> (N, C), of which the softmax is taken.
    """

    name: str
    pixels: Callable[[np.ndarray], Tensor]
    logits: Callable[[Tensor, Sequence[str]], Tensor]


class FamilyProcessor:
    """What processors share: nothing is decoded smaller or mirrored, a region has one result and the same weight,
    conversations are not read."""

    reads_chats = False

    def reduction(self, regions: Sequence[Any]) -> int:
        return 1

    def variants(self) -> Sequence[str]:
        return ("plain",)

    def weights(self, counts: np.ndarray) -> np.ndarray:
        return counts

    def results(self, example: Example, options: Options) -> int:
        return len(example)


class FamilyModel:
    """A model of any family, ours or of others.

    Options: the class of `options`. answers: the fields of a result that it fills, some of ANSWERS. joint: the regions
    of an example influence each other, so an example is never cut. tasks: those whose sums `forward` gives. prompts:
    what a user may point with beside boxes, and masks that give boxes: "points", or "masks" that are looked at. clips:
    whether it looks at more frames of a clip than the one that its regions are shown in; a result's `extra` has them
    under "frames".
    """

    Options: ClassVar[type[Options]] = Options
    answers: ClassVar[frozenset[str]] = frozenset()
    joint: ClassVar[bool] = False
    prompts: ClassVar[frozenset[str]] = frozenset()
    clips: ClassVar[bool] = False
    tasks: Sequence[str] = ()
    processor: Any = None

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """One scalar a task in `tasks`: the sum over this process's regions or tokens, unweighted.

        `batch.counts()` are the denominators; weights and backward stand in train/run.py. A batch without regions
        gives `zero_sums`.
        """
        raise NotImplementedError

    def before_step(self, batches: Sequence[Any]) -> None:
        """Notes in a step's batches what they need of each other, so that the sums of all passes of all processes are
        those of one pass over the whole step. Every process calls it with its own batches, one a pass, before them all.
        """

    def depends_on_split(self) -> list[str]:
        """What makes the losses of a step depend on the number of processes and passes that it is dealt to, each with
        the setting that changes it; [] where they are the same for any. Dropout is not named."""
        return []

    def predict(self, batch: Any, options: Options) -> list[RegionResult]:
        """One result an id of the batch, in order. ValueError for options that do not fit the model.

        A family with a language model sets its results' `prompt_tokens`.
        """
        raise NotImplementedError

    def frozen_features(self, batch: Any) -> list[dict[str, Tensor]]:
        """What frozen parts make of each example of a batch, by name, each (rows, ...) with as many rows as it has.

        `train.extract` keeps them, and the processor finds them in `example.stored(variant)`. ValueError where the
        family has none to keep.
        """
        raise ValueError(f"{type(self).__name__}: no features to keep, its views are drawn anew at every step")

    def frozen_key(self) -> str:
        """A short name of the frozen parts and of the settings that their features depend on."""
        raise ValueError(f"{type(self).__name__}: no features to keep; leave out `features`")

    def image_text(self) -> ImageText | None:
        """The encoders of pictures and names that this model is built on, None where it has none that fit each other.
        `eval.run --baselines` names each region's crop with them, beside the model."""
        return None

    def after_load(self) -> None:
        """Checks what a saved model brought along, when its processor is set. ValueError where it does not fit."""

    def lay_out(self) -> None:
        """Lays the weights in memory for training: row by row, but where a module has its own `lay_out`.

        A gradient's last digits depend on how weights lie, and a loaded model's may lie otherwise than a new one's.
        After this they lie alike, whatever made or loaded them.
        """
        lay_row_by_row(self)
        align(self)
        for module in self.modules():
            if module is not self and hasattr(module, "lay_out"):
                module.lay_out()

    def before_eval(self) -> None:
        """Brings what is kept for inference, such as embedded word lists, up to the present weights."""

    def check_options(self, options: Options) -> None:
        """ValueError for options that do not fit this model; asked before anything is opened or written."""

    def settings(self, options: Options) -> dict[str, Any]:
        """What the answers depend on beside weights and records, as JSON types: for scores.json, and to go on with a
        file of predictions."""
        from dataclasses import asdict

        return asdict(options)

    def text_lengths(self, results: Sequence[RegionResult], options: Options) -> list[tuple[int, bool]]:
        """Of each result's caption: how many tokens it is, and whether it ended because it may not be longer.

        Words are counted, of a family without tokens.
        """
        return [(len(result.caption.split()), False) for result in results]

    def graphs(self, options: Options) -> Graphs:
        """The parts of this model that run without PyTorch, for `dynrefer export`. options: those of its word lists
        count. ValueError where its family has none, or for options that do not fit."""
        raise ValueError(
            f"models of the family {self.config.model_type!r} have no graphs to export; use them with dynrefer.load, "
            "or write the family's `graphs` (docs/new_family.md)"
        )

    def zero_sums(self) -> dict[str, Tensor]:
        """A sum of zero a task that touches every trained weight: what a process without a region takes part with."""
        touched = [parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
        zero = sum(part.float() for part in touched)
        return {task: zero for task in self.tasks}


def align(model: torch.nn.Module) -> None:
    """Weights and buffers on a CPU begin where torch lets its tensors begin. Those of a file begin anywhere, elsewhere
    in each process, and MKL's products of float32 are rounded otherwise there."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def lay_row_by_row(model: torch.nn.Module) -> None:
    """Every weight row by row in memory; contiguous() would leave a 1 x 1 convolution as it is."""
    for parameter in model.parameters():
        parameter.data = parameter.data.reshape(-1).view(parameter.shape)
