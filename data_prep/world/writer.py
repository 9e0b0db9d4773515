"""Scenes -> a folder that training reads: images, records and word lists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
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


def _write_scene(number: int, folder: Path, split: str, image_hw: tuple[int, int], most: int | None) -> list[Region]:
    """Draws one scene, saves its picture and returns its records."""
    drawn = scene(number, split, image_hw, most)
    path = folder / "images" / f"{split}-{number:07d}.png"
    with atomic_path(path) as temporary:
        Image.fromarray(drawn.image).save(temporary, format="PNG", compress_level=1)
    return drawn.regions(f"images/{path.name}")


def _records(
    folder: Path,
    numbers: range,
    split: str,
    image_hw: tuple[int, int],
    workers: int,
    most: int | None,
) -> Iterator[Region]:
    one = partial(_write_scene, folder=folder, split=split, image_hw=image_hw, most=most)
    if workers == 1:
        for number in numbers:
            yield from one(number)
        return
    with worker_pool(workers) as pool:
        with interrupts_held():
            drawn = pool.map(one, numbers, chunksize=16)
        for regions in drawn:
            yield from regions


def check_numbers(name: str, number: int, split: str, seed: int, workers: int) -> None:
    """ValueError for what no world can be drawn of. name: of `number`, how many scenes or clips."""
    if split not in SPLITS:
        raise ValueError(f"world split {split!r}: choose one of {', '.join(SPLITS)}")
    if not 1 <= number <= SCENES_PER_SEED:
        raise ValueError(f"world {name} {number}: between 1 and {SCENES_PER_SEED} for one seed")
    if workers < 1:
        raise ValueError(f"world workers {workers}: must be 1 or more")
    if seed < 0:
        raise ValueError(f"world seed {seed}: must be 0 or more")


def write(
    folder: str | os.PathLike,
    num_scenes: int,
    split: str,
    seed: int = 0,
    workers: int = 1,
    image_hw: tuple[int, int] = IMAGE_HW,
    most: int | None = None,
    held_out: Sequence[str] = (),
) -> Path:
    """Writes folder/images/*.png, folder/{split}.jsonl, tags.txt, categories.txt and attributes.json.

    most: objects in a scene, where there are to be fewer than usual. held_out: categories that a training is to leave
    out; {split}-seen.jsonl has the records again, without a category where it is one of them, and seen.txt the others.

    Returns the path of the records, which appear last and whole: a run that is killed leaves none. The same seed
    gives the same files for any number of workers. Raises ValueError for an unknown split or a bad number.
    """
    check_numbers("num_scenes", num_scenes, split, seed, workers)
    for name in held_out:
        if name not in CATEGORIES:
            raise ValueError(f"world held_out {name!r}: choose some of {', '.join(CATEGORIES)}")
    if most is not None and most < 1:
        raise ValueError(f"world most {most}: a scene has at least 1 object")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lists = {
        "tags.txt": "\n".join(TAGS) + "\n",
        "categories.txt": "\n".join(CATEGORIES) + "\n",
        "attributes.json": json.dumps({"attributes": list(ATTRIBUTE_LIST)}, indent=1) + "\n",
    }
    if held_out:
        lists["seen.txt"] = "\n".join(name for name in CATEGORIES if name not in held_out) + "\n"
    for name, text in lists.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    first = seed * SCENES_PER_SEED
    path = folder / f"{split}.jsonl"
    records = list(_records(folder, range(first, first + num_scenes), split, image_hw, workers, most))
    if held_out:
        seen = [replace(record, category=None) if record.category in held_out else record for record in records]
        write_records(folder / f"{split}-seen.jsonl", seen)
    write_records(path, records)
    return path
