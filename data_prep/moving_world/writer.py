"""Clips -> a folder that training reads: frames, records of regions, and words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from data_prep.moving_world.clips import Clip, clip
from data_prep.moving_world.records import asked_of, chats, regions
from data_prep.world.writer import SCENES_PER_SEED, check_numbers
from dynrefer.data.chats import Chat, write_chats
from dynrefer.data.clips import ClipRegion, write_clips
from dynrefer.data.questions import Question, write_questions
from dynrefer.files import atomic_path
from dynrefer.processes import interrupts_held, worker_pool

Records = tuple[list[ClipRegion], list[Chat], list[Question]]


def _write_clip(number: int, folder: Path, split: str) -> Records:
    """Draws one clip, saves its frames and returns its records."""
    drawn = clip(number, split)
    save_frames(drawn, folder / "clips" / drawn.name)
    video = f"clips/{drawn.name}"
    return regions(drawn, video), chats(drawn, video), asked_of(drawn, video)


def save_frames(drawn: Clip, folder: Path) -> None:
    """The frames as PNG files, whose names are their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(drawn.frames):
        with atomic_path(folder / f"{number:02d}.png") as temporary:
            Image.fromarray(frame).save(temporary, format="PNG", compress_level=1)


def _drawn(folder: Path, numbers: range, split: str, workers: int) -> Iterator[Records]:
    one = partial(_write_clip, folder=folder, split=split)
    if workers == 1:
        yield from map(one, numbers)
        return
    with worker_pool(workers) as pool:
        with interrupts_held():
            drawn = pool.map(one, numbers, chunksize=16)
        yield from drawn


def write(folder: str | os.PathLike, num_clips: int, split: str, seed: int = 0, workers: int = 1) -> Path:
    """Writes folder/clips/SPLIT-NUMBER/*.png and three record files: {split}.jsonl has the regions with captions,
    {split}-chats.jsonl conversations of one question each, {split}-questions.jsonl the same as questions with choices.

    Returns the path of the regions. Records appear last and whole: a run that is killed leaves none. The same seed
    gives the same files for any number of workers. Raises ValueError for an unknown split or a bad number.
    """
    check_numbers("num_clips", num_clips, split, seed, workers)
    folder = Path(folder)
    first = seed * SCENES_PER_SEED
    path = folder / f"{split}.jsonl"
    captioned, told, asked = zip(*_drawn(folder, range(first, first + num_clips), split, workers), strict=True)
    write_chats(folder / f"{split}-chats.jsonl", chain(*told))
    write_questions(folder / f"{split}-questions.jsonl", chain(*asked))
    write_clips(path, chain(*captioned))
    return path
