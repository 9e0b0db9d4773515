"""The form of one record: whether it can be read, and what is wrong with its box, mask and captions."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dynrefer.boxes import box_iou
from dynrefer.data.arrow import is_table, read_rows
from dynrefer.data.chats import Chat
from dynrefer.data.clips import ClipRegion
from dynrefer.data.records import CHECK_HINT, Region
from dynrefer.files import parse_line, read_lines
from dynrefer.masks import mask_to_box, rle_to_box, to_mask

MAX_PROBLEMS = 100_000  # told one by one, the others are counted
BEYOND = 0.01  # pixels that a box may reach beyond its image: rounding
SMALL_POLYGON = 4  # pixels of its shorter side
NOT_JSON = object()  # a line that is told already


class Problems(list):
    """(line, text) of what is wrong; line 0: the file. Beyond MAX_PROBLEMS they are only counted."""

    num_more = 0

    def add(self, line: int, text: str) -> None:
        if len(self) < MAX_PROBLEMS:
            self.append((line, text))
        else:
            self.num_more += 1


def record_contents(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """(line, record as JSON types) of every line; what is not JSON, and a file cut off, joins `problems`."""
    line = 0
    rows = read_rows(path) if is_table(path) else read_lines(path)
    try:
        for line, content in tqdm(rows, desc=path.name, unit=" records", disable=None):
            if isinstance(content, bytes):
                try:
                    content = parse_line(content, "", unique_keys=True)
                except ValueError as error:
                    problems.add(line, str(error).removeprefix(": "))
                    content = NOT_JSON
            yield line, content
    except ValueError as error:  # the file itself: missing, or cut off after `line`
        problems.add(line, str(error).removeprefix(f"{path}:{line}: ").removeprefix(f"{path}: "))


def record_region(content: Any) -> tuple[Region | None, str | None]:
    """A record's region, and what is wrong with it."""
    if content is NOT_JSON:
        return None, None
    try:
        region = Region.from_dict(content)
    except ValueError as error:
        return None, str(error).removeprefix("record: ").removesuffix(f"; {CHECK_HINT}")
    problem = _mask_problem(region) or _box_problem(content, region) or _thin_problem(region)
    return region, problem or _caption_problem(region)


def record_chat(content: Any) -> tuple[Chat | None, str | None]:
    """A record's conversation, and what is wrong with it."""
    try:
        chat = Chat.from_dict(content)
    except ValueError as error:
        return None, str(error).removeprefix("record: ").removesuffix(f"; {CHECK_HINT}")
    for number, (entry, region) in enumerate(zip(content.get("regions") or (), chat.regions, strict=True)):
        if chat.is_clip:
            problem = next(place_problems(region), None)
        else:
            problem = _mask_problem(region) or _box_problem(entry, region) or _thin_problem(region)
        if problem:
            return chat, f"conversation {chat.id}, region {number}: {problem}"
    problem = _text_problem(chat.questions, "question") or _text_problem(chat.captions, "answer")
    return chat, problem and f"conversation {chat.id}: {problem}"


def place_problems(clip: ClipRegion) -> Iterator[str]:
    """What is wrong with where a region of a clip is in its frames."""
    for index, place in clip.frames.items():
        if place is not None and (thin := thin_box(place.box)):
            yield f"clip {clip.id}, frame {index}: {thin}"
        try:
            if place is not None and place.mask is not None:
                to_mask(place.mask, clip.frame_hw)
        except ValueError as error:
            yield f"clip {clip.id}, frame {index}: {error}"


def _mask_problem(region: Region) -> str | None:
    if region.mask is None:
        return None
    try:
        mask_box = _mask_box(region)
    except ValueError as error:
        return f"region {region.id}: {error}"
    if not box_iou([region.box], [mask_box])[0, 0] > 0:
        return f"region {region.id}: box {list(region.box)} and mask (its box is {mask_box.tolist()}) do not overlap"
    return None


def _mask_box(region: Region) -> np.ndarray:
    """About the box of a region's mask, decoded only where it matters: polygons of a few pixels may cover none."""
    if isinstance(region.mask, dict):
        if (box := rle_to_box(region.mask)) is None:
            raise ValueError("empty mask: no pixel is inside")
        return box
    corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in region.mask])
    height, width = region.image_hw
    box = np.array([*corners.min(axis=0), *corners.max(axis=0)]).clip(0, [width, height] * 2)
    if min(box[2:] - box[:2]) > SMALL_POLYGON and box_iou([region.box], [box])[0, 0] > 0:
        return box
    return mask_to_box(to_mask(region.mask, region.image_hw))


def _box_problem(content: dict, region: Region) -> str | None:
    box = content.get("box")
    if box is None or tuple(box) == region.box:
        return None
    beyond = max(abs(float(side) - clipped) for side, clipped in zip(box, region.box, strict=True))
    if beyond <= BEYOND:
        return None
    height, width = region.image_hw
    return f"region {region.id}: box {list(box)} reaches beyond its image, {width} wide and {height} high"


def _thin_problem(region: Region) -> str | None:
    if not (thin := thin_box(region.box)):
        return None
    unit = "; numbers of 0..1, which are no pixels?" if max(region.box) <= 1 and min(region.image_hw) > 1 else ""
    return f"region {region.id}: {thin}{unit}"


def thin_box(box: Sequence[float]) -> str | None:
    """What is wrong with a box of less than a pixel's width or height; None for others."""
    x1, y1, x2, y2 = box
    if min(x2 - x1, y2 - y1) >= 1 - 1e-6:
        return None
    return f"box {list(box)} is thinner than a pixel, {x2 - x1:.3g} wide and {y2 - y1:.3g} high"


def _caption_problem(region: Region) -> str | None:
    problem = _text_problem(region.captions, "caption")
    return problem and f"region {region.id}: {problem}"


def _text_problem(texts: Sequence[str], what: str) -> str | None:
    for text in texts:
        if not re.search(r"\w", text):
            return f"{what} {text!r} has no word in it"
        if "\ufffd" in text:
            return f"{what} {text!r} was read in another encoding than it was written in"
    return None


def box_numbers(box: Any) -> tuple | None:
    """A box's four numbers; None where it has not."""
    if isinstance(box, list | tuple) and len(box) == 4 and all(type(side) in (int, float) for side in box):
        return tuple(box)
    return None
