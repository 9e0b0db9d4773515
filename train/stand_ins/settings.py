"""What the trainings of stand-ins are told: the settings of a YAML and of the command line."""

from dataclasses import dataclass, field

from dynrefer.config import check_numbers
from train.optim import OptimConfig


@dataclass(frozen=True)
class FitConfig:
    output: str  # the folder to write
    train: str | list[str]  # record file, or several read as one
    val: str  # record file of pictures that are not trained on
    model: dict  # the sizes: a config of transformers, of CLIP the `model_cfg` of open_clip
    steps: int
    batch_size: int  # pictures a step
    optim: OptimConfig = field(default_factory=OptimConfig)
    log_every: int = 50  # steps between printed lines; log.jsonl has every step
    eval_every: int = 0  # steps between evaluations; 0: at the end only
    seed: int = 0
    num_threads: int | None = None  # of PyTorch; None: its own choice
    train_limit: int | None = None  # the first pictures only
    val_limit: int | None = None
    overwrite: bool = False

    def __post_init__(self):
        check_numbers(self)
        for name in ("steps", "batch_size", "log_every", "num_threads", "train_limit", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


@dataclass(frozen=True)
class SamFitConfig(FitConfig):
    cross_entropy: float = 5.0  # its weight beside dice


@dataclass(frozen=True)
class CaptionConfig:
    per_picture: int = 4  # captions of each picture in a step
    categories: float = 0.4  # share of captions that name categories only
    attributes: float = 0.4  # share that put an attribute of `attribute_types` before each category
    attribute_types: tuple[str, ...] = ("color",)
    single: float = 0.2  # share that name one region; others name one to all of them
    templates: float = 0.7  # share that stand in one of OpenAI's sentences for ImageNet
    most_captions: int = 2  # regions named by their own captions in one caption, where no share above takes it


@dataclass(frozen=True)
class EasyConfig:
    """Pictures of few objects, drawn as large as in the others: the objects of smaller pictures fill more of them."""

    train: str  # record file
    image_size: int  # the side that they are squashed to
    steps: int = 0  # the first steps see only them
    share: float = 0.0  # of the later steps, that see only them
    train_limit: int | None = None

    def check(self) -> None:
        check_numbers(self)
        for name in ("image_size", "train_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"easy.{name} is {value}; it must be 1 or more")
        if self.steps < 0:
            raise ValueError(f"easy.steps is {self.steps}; it must be 0 or more")
        if not 0 <= self.share <= 1:
            raise ValueError(f"easy.share is {self.share}; it must lie in [0, 1]")


@dataclass(frozen=True)
class ClipFitConfig(FitConfig):
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    easy: EasyConfig | None = None  # pictures that are seen first; None: there are none

    def __post_init__(self):
        super().__post_init__()
        if self.easy is not None:
            self.easy.check()
