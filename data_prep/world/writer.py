"""Scenes -> a folder that training reads: images, records and word lists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from data_prep.world.grammar import ATTRIBUTE_LIST, CATEGORIES, TAGS
from data_prep.world.objects import SPLITS
from data_prep.world.scenes import IMAGE_HW, scene
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from dynrefer.files import atomic_path
from dynrefer.processes import interrupts_held, worker_pool

SCENES_PER_SEED = 1_000_000


def _write_scene(number: int, folder: Path, split: str, image_hw: tuple[int, int]) -> list[Region]:
    """Draws one scene, saves its picture and returns its records."""
    drawn = scene(number, split, image_hw)
    path = folder / "images" / f"{split}-{number:07d}.png"
    with atomic_path(path) as temporary:
        Image.fromarray(drawn.image).save(temporary, format="PNG", compress_level=1)
    return drawn.regions(f"images/{path.name}")


def _records(folder: Path, numbers: range, split: str, image_hw: tuple[int, int], workers: int) -> Iterator[Region]:
    one = partial(_write_scene, folder=folder, split=split, image_hw=image_hw)
    if workers == 1:
        for number in numbers:
            yield from one(number)
        return
    with worker_pool(workers) as pool:
        with interrupts_held():
            drawn = pool.map(one, numbers, chunksize=16)
        for regions in drawn:
            yield from regions


def write(
    folder: str | os.PathLike,
    num_scenes: int,
    split: str,
    seed: int = 0,
    workers: int = 1,
    image_hw: tuple[int, int] = IMAGE_HW,
) -> Path:
    """Writes folder/images/*.png, folder/{split}.jsonl, tags.txt, categories.txt and attributes.json.

    Returns the path of the records, which appear last and whole: a run that is killed leaves none. The same seed
    gives the same files for any number of workers. Raises ValueError for an unknown split or a bad number.
    """
    if split not in SPLITS:
        raise ValueError(f"world split {split!r}: choose one of {', '.join(SPLITS)}")
    if not 1 <= num_scenes <= SCENES_PER_SEED:
        raise ValueError(f"world num_scenes {num_scenes}: between 1 and {SCENES_PER_SEED} for one seed")
    if workers < 1:
        raise ValueError(f"world workers {workers}: must be 1 or more")
    if seed < 0:
        raise ValueError(f"world seed {seed}: must be 0 or more")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lists = {
        "tags.txt": "\n".join(TAGS) + "\n",
        "categories.txt": "\n".join(CATEGORIES) + "\n",
        "attributes.json": json.dumps({"attributes": list(ATTRIBUTE_LIST)}, indent=1) + "\n",
    }
    for name, text in lists.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    first = seed * SCENES_PER_SEED
    path = folder / f"{split}.jsonl"
    write_records(path, list(_records(folder, range(first, first + num_scenes), split, image_hw, workers)))
    return path
