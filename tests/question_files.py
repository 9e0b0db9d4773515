"""Small files in the layouts of benchmarks that ask, with pictures and clips."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dynrefer.masks import mask_to_rle
from eval import run as eval_run

HW = (40, 60)


def mask(x1, y1, x2, y2) -> dict:
    """The run lengths of a rectangle."""
    pixels = np.zeros(HW, bool)
    pixels[y1:y2, x1:x2] = True
    return mask_to_rle(pixels)


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


def run(module, folder, **options) -> int:
    """Runs a converter; True is a flag. It writes FOLDER/out/test.jsonl."""
    words = []
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return module.main([*words, "--out", str(folder / "out" / "test.jsonl")])


def check_end_to_end(model, folder, task, asks=True) -> dict:
    """The scores of a model on what `run` has written, of all of its records."""
    places = ("--model", model, "--task", task, "--data", folder / "out" / "test.jsonl", "--out", folder / "scored")
    assert evaluated(*places, "--num-workers", 0, "--batch-size", 4, "max_new_tokens=4") == 0
    content = scores_of(folder / "scored")
    assert content["scores"] and bool(content["asks"]) == asks and content["regions_without_prediction"] == 0
    return content
