"""AdamW with parameter groups by module, the learning rate of each step, an average of the weights.

The schedule is a plain function of the step, so there is no scheduler state to save: a resumed run reads the same rate.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from dynrefer.config import check_numbers
from dynrefer.errors import suggestion


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-4  # peak learning rate
    weight_decay: float = 0.05  # not applied to biases, norms and other 1-D tensors
    decay_embeddings: bool = True  # weight decay on nn.Embedding tables
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_scale: dict[str, float] = field(default_factory=dict)  # parameter-name prefix -> factor on lr, {vision: 0.1}
    warmup_steps: int = 0  # optimizer steps of linear warm-up
    min_lr_scale: float = 0.0  # the cosine ends at lr * min_lr_scale

    def __post_init__(self):
        check_numbers(self)
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must lie in [0, 1)")
        if self.eps < 0:
            raise ValueError(f"eps is {self.eps}; it must be 0 or more")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if not 0 <= self.min_lr_scale <= 1:
            raise ValueError(f"min_lr_scale is {self.min_lr_scale}; it must lie in [0, 1]")
        for prefix, scale in self.lr_scale.items():
            if scale < 0:
                raise ValueError(f"lr_scale.{prefix} is {scale}; it must be 0 or more")


def parameter_groups(model: nn.Module, cfg: OptimConfig) -> list[dict]:
    """The trainable parameters as AdamW groups: one for each (lr_scale prefix, with or without weight decay).

    Frozen parameters are left out; a tensor used in two places is listed once. Each group carries `name`, `lr`,
    `lr_scale` and `weight_decay`. The longest prefix that fits a parameter's name (whole dotted words) counts.

    Raises ValueError for a prefix that fits no parameter and for a model without trainable parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in cfg.lr_scale:
        if not any(_has_prefix(name, prefix) for name in names):
            modules = [name for name, _ in model.named_modules() if name]
            raise ValueError(
                f"optim.lr_scale: no parameter's name starts with {prefix!r}.{suggestion(prefix, modules)} "
                f"Top modules: {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}."
            )

    not_decayed = _norms_and_embeddings(model, embeddings=not cfg.decay_embeddings)
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((p for p in cfg.lr_scale if _has_prefix(name, p)), key=len, default="")
        decay = parameter.ndim >= 2 and not name.endswith("bias") and id(parameter) not in not_decayed
        scale = cfg.lr_scale.get(prefix, 1.0)
        group = groups.setdefault(
            (prefix, decay),
            {
                "params": [],
                "name": f"{prefix or 'rest'}/{'decay' if decay else 'no_decay'}",
                "lr": cfg.lr * scale,
                "lr_scale": scale,
                "weight_decay": cfg.weight_decay if decay else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameter (all are frozen); unfreeze a part in `model:`")
    return list(groups.values())


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps)


def lr_factor(step: int, total_steps: int, warmup_steps: int, min_lr_scale: float) -> float:
    """Factor on the peak rate for optimizer step `step` (0-based): linear warm-up, then cosine to `min_lr_scale`.

    lr_factor(0, 10, 4, 0) = 0.25, lr_factor(3, 10, 4, 0) = lr_factor(4, 10, 4, 0) = 1, lr_factor(10, 10, 4, 0) = 0
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_scale + (1 - min_lr_scale) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer, cfg: OptimConfig, step: int, total_steps: int) -> float:
    """Sets every group's rate for this step; returns the rate of a group with factor 1."""
    lr = cfg.lr * lr_factor(step, total_steps, cfg.warmup_steps, cfg.min_lr_scale)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


class WeightAverage:
    """Exponential moving average of the trainable parameters, in float32: average = d * average + (1 - d) * weight.

    d = min(decay, (1 + step) / (10 + step)), so that the first steps do not linger.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Call after optimizer step number `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model carries the averaged weights; afterwards its own again, to the last bit."""
        parameters = {n: p for n, p in model.named_parameters() if n in self.average}
        own = {n: p.detach().clone() for n, p in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if state.keys() != self.average.keys():
            changed = sorted(state.keys() ^ self.average.keys())
            raise ValueError(
                f"the checkpoint's averaged weights and the model's trainable parameters differ in {changed[:5]} "
                f"({len(changed)} names); resume with the settings that wrote the checkpoint"
            )
        for name, tensor in state.items():
            self.average[name].copy_(tensor)


def _has_prefix(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _norms_and_embeddings(model: nn.Module, embeddings: bool) -> set[int]:
    """ids of the parameters that belong to norm layers and, when asked for, to embedding tables."""
    found = set()
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        if is_norm or (embeddings and isinstance(module, nn.Embedding)):
            found.update(id(parameter) for parameter in module.parameters(recurse=False))
    return found
