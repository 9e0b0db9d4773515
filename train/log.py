"""What a run tells: a progress bar or plain lines, log.jsonl, TensorBoard, Weights & Biases and Trackio."""

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.files import atomic_path, naming


@dataclass(frozen=True)
class LogConfig:
    every: int = 10  # steps between plain progress lines and points of TensorBoard and others; log.jsonl has every step
    tensorboard: bool | None = None  # None: when the package is installed
    wandb_project: str | None = None  # Weights & Biases project; None: not used
    trackio_project: str | None = None  # Trackio project; None: not used
    samples_every: int = 0  # steps between pictures of data.val with the model's answers; 0: none
    samples: int = 4  # how many pictures

    def __post_init__(self):
        for name, least in (("every", 1), ("samples_every", 0), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.tensorboard and not _is_installed("tensorboard"):
            raise ValueError("tensorboard is not installed; `pip install tensorboard` or set log.tensorboard=false")
        for package, wanted in self.trackers().items():
            if wanted and not _is_installed(package):
                raise ValueError(
                    f"{package} is not installed; `pip install {package}` or set log.{package}_project=null"
                )
        if self.samples_every and not (self.has_tensorboard() or any(self.trackers().values())):
            raise ValueError(
                f"samples_every is {self.samples_every}, but nothing shows pictures; `pip install tensorboard`, or set "
                "log.wandb_project or log.trackio_project"
            )

    def has_tensorboard(self) -> bool:
        return _is_installed("tensorboard") if self.tensorboard is None else self.tensorboard

    def trackers(self) -> dict[str, str | None]:
        """{package: project}; the packages have one interface."""
        return {"wandb": self.wandb_project, "trackio": self.trackio_project}


class RunLog:
    """The main process's log of one run; on the other processes every call does nothing.

    log.jsonl has one JSON object a line: {"step", "epoch", "loss", "loss/<task>"..., "lr", "grad_norm",
    "regions_per_second", "seconds"} for each optimizer step and {"step", "eval/<metric>"...} for each evaluation.
    """

    def __init__(self, folder: Path, cfg: LogConfig, *, total_steps: int, start_step: int, settings: dict, main: bool):
        self.cfg, self.main, self.total_steps, self.first_step = cfg, main, total_steps, start_step
        self.writer = self.bar = self.file = None
        self.trackers: list[Any] = []
        if not main:
            return
        path = folder / "log.jsonl"
        if damaged := drop_lines_after(path, start_step):
            print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)
        self.file = path.open("a", encoding="utf-8")
        if cfg.has_tensorboard():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        for package, project in cfg.trackers().items():
            if project:
                tracker = importlib.import_module(package)
                own = {"dir": str(folder)} if package == "wandb" else {}
                tracker.init(project=project, name=folder.name, config=settings, resume="allow", **own)
                self.trackers.append(tracker)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total_steps, initial=start_step, desc=folder.name, unit="step", dynamic_ncols=True)
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        if not self.main:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def step(self, row: dict) -> None:
        """One optimizer step."""
        if not self.main:
            return
        self._write(row)
        step = row["step"]
        spoken = f"loss {row['loss']:.4f} | {row['regions_per_second']:.0f} regions/s"
        if self.bar is not None:
            self.bar.set_postfix_str(spoken, refresh=False)
            self.bar.update(1)
        if step % self.cfg.every == 0 or step in (1, self.total_steps):
            if self.bar is None:
                done = max(1, step - self.first_step)
                left = (time.perf_counter() - self.started) / done * (self.total_steps - step)
                print(f"step {step}/{self.total_steps} | {spoken} | {_minutes(left)} left", file=sys.stderr, flush=True)
            self._points(row, "train/")

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        if not self.main:
            return
        row = {"step": step} | {f"eval/{name}": value for name, value in scores.items()}
        self._write(row)
        self._points(row, "")
        shown = " | ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"step {step}: evaluation: {shown}")

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Samples with the model's answers, numbered in their order; their names are their captions."""
        if not self.main:
            return
        for number, (name, picture) in enumerate(pictures.items()):
            if self.writer is not None:
                with naming(self.writer.log_dir):
                    pixels = np.asarray(picture.convert("RGB"))
                    self.writer.add_image(f"samples/{number}", pixels, step, dataformats="HWC")
            for tracker in self.trackers:
                tracker.log({f"samples/{number}": tracker.Image(picture, caption=name)}, step=step)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            with naming(self.writer.log_dir):
                self.writer.close()
        for tracker in self.trackers:
            tracker.finish()
        self.main = False

    def _write(self, row: dict) -> None:
        with naming(self.file.name):
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def _points(self, row: dict, prefix: str) -> None:
        points = {prefix + name: value for name, value in row.items() if name != "step"}
        if self.writer is not None:
            with naming(self.writer.log_dir):
                for name, value in points.items():
                    self.writer.add_scalar(name, value, row["step"])
        for tracker in self.trackers:
            tracker.log(points, step=row["step"])


def drop_lines_after(path: Path, step: int) -> int:
    """Removes the lines of later steps, and a torn last line, from log.jsonl: a resumed run writes them again. Returns
    how many other lines could not be read; they are removed too."""
    if not path.exists():
        return 0
    kept, damaged = [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line if line.endswith(b"\n") else line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += line is not lines[-1]  # the last one was torn when the run was killed
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return damaged


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
