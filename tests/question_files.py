"""Small files in the layouts of benchmarks that ask, with pictures and clips."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from eval import run as eval_run

HW = (40, 60)


def picture(path: Path, image_hw=HW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*image_hw, 3), np.uint8)).save(path)
    return path


def clip(folder: Path, num_frames=6) -> Path:
    for number in range(num_frames):
        picture(folder / f"{number:03d}.png")
    return folder


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path: Path, entries) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def predictions(path: Path, said: dict[str, str]) -> Path:
    """A predictions file, {id: text}."""
    return write_json(path, said)


def scores_of(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def evaluated(*arguments) -> int:
    return eval_run.main([str(argument) for argument in arguments])
