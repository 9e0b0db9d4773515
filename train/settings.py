"""What a run is told: the settings of a YAML and of the command line, each with its meaning and default."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynrefer.config import check_numbers
from dynrefer.data.loader import DataConfig
from train.evaluate import EvalConfig
from train.log import LogConfig
from train.optim import OptimConfig

MOST_SEEDS = 2**32  # NumPy takes no others


@dataclass(frozen=True)
class LoopConfig:
    steps: int | None = None  # optimizer steps of the run, which the cosine reaches its end with
    epochs: float | None = None  # the same as passes over the data; set one of the two
    minutes: float | None = None  # hard stop after so much training time; the schedule still aims at `steps`
    stop_at: int | None = None  # pause after this step: checkpoint and leave, to go on with loop.resume=true
    accumulation: int = 1  # forward passes that an optimizer step is dealt out to; its regions stay the same
    clip: float = 1.0  # largest global norm of the gradient; 0: not clipped
    # bf16: autocast, weights stay float32 (bf16 weights under DeepSpeed)
    # auto: bf16 where the device has instructions for it, else fp32
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    gradient_checkpointing: bool = False  # forget activations and compute them again in backward: less memory
    ema: float = 0.0  # decay of the averaged weights that are evaluated and go to best/; 0: off
    eval_every: int = 0  # steps between evaluations; 0: none
    save_every: int = 0  # steps between checkpoints; 0: only at the end
    keep_last: int = 2  # checkpoints kept; 0: all
    save: Literal["full", "trainable"] = "full"  # trainable: frozen parts are left out and fetched from their source
    resume: bool | str = False  # true: from the newest checkpoint; auto: where there is one; or a checkpoint's path
    overwrite: bool = False  # remove a run folder of this name first
    deepspeed: str | None = None  # DeepSpeed JSON, configs/accelerate/ds_zero2.json; None: what the launcher says
    processes: int | None = None  # number of processes you mean to have; another number is an error
    num_threads: int = 0  # CPU threads a process; 0: the machine's cores shared among its processes
    cpu: bool = False  # train on the CPU although there is a GPU
    compile: bool = False  # torch.compile

    def __post_init__(self):
        check_numbers(self)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}; set exactly one of them")
        for name in ("steps", "epochs", "minutes", "stop_at", "accumulation"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("clip", "eval_every", "save_every", "keep_last", "num_threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")


@dataclass(frozen=True)
class RunConfig:
    name: str  # the run's folder is output/name
    loop: LoopConfig
    output: str = "runs"
    seed: int = 0
    init: str | None = None  # run folder or hub id whose weights to start from; None: a new model
    model: dict = field(default_factory=dict)  # read by dynrefer.models.build, with init by dynrefer.models.adapt
    data: DataConfig = field(default_factory=DataConfig)
    losses: dict[str, float] = field(default_factory=lambda: {"captions": 1.0})  # task -> weight; 0: not trained
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        check_numbers(self)
        if not 0 <= self.seed < MOST_SEEDS:
            raise ValueError(f"seed is {self.seed}; it must lie in [0, {MOST_SEEDS})")
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; it names a folder, without slashes or a leading dot")
        if not any(weight > 0 for weight in self.losses.values()):
            raise ValueError(f"losses are {self.losses}; at least one task needs a weight above 0")
        if min(self.losses.values()) < 0:
            raise ValueError(f"losses are {self.losses}; weights must be 0 or more")
        if not self.data.train:
            raise ValueError("data.train is empty; name the record file to train on")
        if self.loop.eval_every and not self.data.val:
            raise ValueError("loop.eval_every is set but data.val is empty; name the record file to evaluate on")
        if self.log.samples_every and not self.data.val:
            raise ValueError("log.samples_every is set but data.val is empty; name the record file of the samples")
        if self.eval.patience and not self.loop.eval_every:
            raise ValueError(f"eval.patience is {self.eval.patience} but loop.eval_every is 0; set both, or neither")
