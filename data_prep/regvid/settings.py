"""What a run of the pipeline is told: the models behind their addresses, their prices, frames and lengths."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dynrefer.config import check_numbers
from dynrefer.endpoint import Endpoint

ROLES = ("captioner", "editor", "checker", "writer")


@dataclass(frozen=True)
class Role:
    """A model behind an address that speaks the chat completions protocol."""

    url: str = ""  # up to and with /v1
    model: str = ""  # the name under which it is served
    key: str = ""  # name of the environment variable that holds its key; empty: none is sent
    price: tuple[float, float] = (0.0, 0.0)  # of a million tokens that it reads, and of a million that it writes
    picture_tokens: int = 255  # of a frame, for the estimate; Qwen-VL's: (side / 28) squared
    max_tokens: int = 1500  # of an answer
    parallel: int = 8  # questions that it is asked at once
    timeout: float = 120.0  # seconds
    attempts: int = 6  # where it is busy or cannot be reached

    def __post_init__(self):
        check_numbers(self)
        if bool(self.url) != bool(self.model):
            raise ValueError(f"url {self.url!r} and model {self.model!r}: a model is named by both")
        for name in ("picture_tokens", "max_tokens", "parallel", "timeout", "attempts"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected a number above 0")
        if min(self.price) < 0:
            raise ValueError(f"price {list(self.price)}: expected numbers that are not negative")

    def endpoint(self, name: str) -> Endpoint:
        """ValueError where the environment lacks its key."""
        key = os.environ.get(self.key) if self.key else None
        if self.key and not key:
            raise ValueError(f"{name}.key: the environment has no {self.key}; `export {self.key}=...`, or leave it out")
        limits = {"timeout": self.timeout, "max_tokens": self.max_tokens, "attempts": self.attempts}
        return Endpoint(self.url, self.model, key, **limits)

    def cost(self, tokens: tuple[int, int]) -> float:
        return (self.price[0] * tokens[0] + self.price[1] * tokens[1]) / 1e6


@dataclass(frozen=True)
class RegvidConfig:
    clips: str  # clip file, best with masks (`python -m data_prep.regvid.masklets`)
    out: str  # folder for answers.jsonl, captions.jsonl and chats.jsonl
    captioner: Role = field(default_factory=Role)  # sees frames with numbered regions; published: GPT-4o
    # turns a caption into questions, and writes it anew without what is denied; none: the writer. Published: Llama 3.1
    # with 8B
    editor: Role = field(default_factory=Role)
    checker: Role = field(default_factory=Role)  # answers the questions from frames; published: Qwen2-VL 7B
    writer: Role = field(default_factory=Role)  # sees texts only; published: GPT-4
    check: bool = True  # false: captions are believed
    instructions: bool = True  # false: captions only
    frames: int = 16  # that the captioner sees, drawn at random
    check_frames: int = 8  # that the checker sees, evenly spread
    side: int = 334  # pixels of a frame's sides
    words: int = 90  # that a caption is asked to have
    regions_at_once: int = 8  # of a clip that the captioner is asked about together
    questions_at_once: int = 1  # that the checker is asked together
    clips_at_once: int = 16  # that are worked on side by side
    limit: int | None = None  # clips that are worked on; null: all
    budget: float | None = None  # the most that all answers of the folder may cost; null: whatever they cost
    seed: int = 0

    def __post_init__(self):
        check_numbers(self)
        for name in ("frames", "check_frames", "words", "regions_at_once", "questions_at_once", "clips_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.side < 28 or (self.limit is not None and self.limit < 1) or self.seed < 0:
            raise ValueError(
                f"side {self.side}, limit {self.limit}, seed {self.seed}: expected a side of at least 28 pixels, a "
                "limit of at least 1 or null, a seed that is not negative"
            )
        for name in sorted(self.asked(), key=lambda name: name == "editor"):
            if not self.role(name).url:
                raise ValueError(f"{name}: nobody is named; give {name}.url and {name}.model")

    def role(self, name: str) -> Role:
        role = getattr(self, name)
        return self.writer if name == "editor" and not role.url else role

    def asked(self) -> tuple[str, ...]:
        """Roles that a run needs."""
        return tuple(
            name for name in ROLES if name == "captioner" or self.check or name == "writer" and self.instructions
        )
