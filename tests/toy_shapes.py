"""Records for tests of whole examples: pictures of coloured discs and bars, and a clip of three frames, drawn in a
moment. The largest region of each is of the category "biggest", whatever its colour: one region alone cannot tell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dynrefer.data.clips import ClipRegion
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from dynrefer.masks import mask_to_rle

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
CATEGORIES = ["biggest", "blue", "green", "red"]
HW = (32, 64)
SIZES = (3, 2, 4, 2, 3)  # regions of each picture


def write_shapes(
    folder: Path, sizes: tuple[int, ...] = SIZES, seed: int = 0, name: str = "shapes", clip: bool = True
) -> Path:
    """FOLDER/NAME.jsonl: a picture with so many regions for each of `sizes`, at most 4, and a clip with two."""
    generator, records = np.random.default_rng(seed), []
    for number, size in enumerate(sizes):
        image, masks, names = draw(generator, size)
        Image.fromarray(image).save(folder / f"{name}{number}.png")
        for place, (mask, category) in enumerate(zip(masks, names, strict=True)):
            record = {"id": f"{name}{number}-{place}", "image": f"{name}{number}.png", "image_hw": list(HW)}
            said = {"category": category, "captions": [f"shape {place} of {size}"]}
            records.append(Region.from_dict({**record, "mask": mask_to_rle(mask), **said}))
    if clip:
        records += write_clip(folder, generator, name)
    write_records(folder / f"{name}.jsonl", records)
    return folder / f"{name}.jsonl"


def write_clip(folder: Path, generator: np.random.Generator, name: str) -> list[ClipRegion]:
    """A folder of three frames, in which everything moves down by two pixels each; shown in the first."""
    image, masks, names = draw(generator, 2)
    (folder / f"{name}-clip").mkdir()
    for frame in range(3):
        moved = np.roll(image, 2 * frame, axis=0)
        Image.fromarray(moved).save(folder / f"{name}-clip" / f"{frame}.png")
    clip = {"video": f"{name}-clip", "num_frames": 3, "frame_hw": list(HW), "prompt_frame": 0}
    return [
        ClipRegion.from_dict(
            {
                "id": f"{name}-clip-{place}",
                "frames": {str(t): {"mask": mask_to_rle(np.roll(mask, 2 * t, axis=0))} for t in range(3)},
                "category": category,
                **clip,
            }
        )
        for place, (mask, category) in enumerate(zip(masks, names, strict=True))
    ]


def draw(generator: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """A picture (H, W, 3) of `size` shapes side by side, their masks and categories."""
    image = np.full((*HW, 3), 90, np.uint8)
    y, x = np.mgrid[: HW[0], : HW[1]]
    radii, masks, names = generator.permutation([3, 4, 5, 7])[:size], [], []
    for place, radius in enumerate(radii):
        across, down = abs(x - (16 * place + 8)), abs(y - int(generator.integers(radius, HW[0] - radius - 5)))
        disc = generator.random() < 0.5
        mask = across**2 + down**2 < radius**2 if disc else (across < radius) & (down < radius / 2)
        color = str(generator.choice(list(COLORS)))
        image[mask] = COLORS[color]
        masks.append(mask)
        names.append("biggest" if radius == radii.max() else color)
    return image, masks, names
