"""What the converters of video regions share: their options, videos in a folder, places in frames, clip files.

python -m data_prep.vidstg         VidSTG on VidOR: boxes by frame, one sentence
python -m data_prep.bensmot        BenSMOT: persons in MOTChallenge's form, a caption each
python -m data_prep.sav            SA-V: masklets
python -m data_prep.ref_vos        MeViS and Refer-YouTube-VOS: masklets with referring expressions
python -m data_prep.video_events   events with a box in their first frame, a sentence each
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.check_clips import video_problems
from data_prep.counts import Tally, nothing, tell
from dynrefer.boxes import check_boxes
from dynrefer.data.clips import ClipRegion, FrameRegion, write_clips
from dynrefer.data.records import whole_text
from dynrefer.errors import Parser
from dynrefer.images import DECODE_ERRORS
from dynrefer.masks import mask_to_box, mask_to_rle, rle_to_box

NUM_VIDEOS_CHECKED = 20  # whose frames are looked at while converting; `data_prep.check` looks at all


class Videos:
    """Videos in a folder, files or folders of frames, and their paths relative to the clip file."""

    def __init__(self, folder: Path, out: Path):
        if not folder.is_dir():
            raise ValueError(f"--videos {folder}: no such folder; name where the videos were unpacked to")
        self.folder = folder
        self._prefix = os.path.relpath(folder.absolute(), out.absolute().parent)
        self._unchecked = NUM_VIDEOS_CHECKED

    def find(self, name: str, where: str) -> str:
        """The path of a video for a record. name: relative to the folder. ValueError begins with `where`."""
        if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{where}: video {name!r}: expected a name in {self.folder}")
        if not (self.folder / name).exists():
            raise ValueError(f"{where}: video {name!r} is not in {self.folder}; is it the folder of this dataset?")
        return f"{self._prefix}/{name}"

    def check(self, name: str, num_frames: int, frame_hw: tuple[int, int], where: str) -> None:
        """ValueError where a video is shorter or of another size than recorded. Looks into the first ones only."""
        if self._unchecked:
            self._unchecked -= 1
            for _, problem in video_problems(self.folder / name, [(0, num_frames, tuple(frame_hw))]):
                raise ValueError(f"{where}: {problem}; convert with the videos that were annotated")


def video_arguments(name: str, description: str, videos: str = "folder of the videos") -> argparse.ArgumentParser:
    """The options that converters of video regions share. videos: help of --videos."""
    parser = Parser(prog=f"python -m data_prep.{name}", description=description)
    parser.add_argument("--videos", type=Path, required=True, help=f"{videos}; records point into it")
    parser.add_argument("--out", type=Path, required=True, help="clip file to write, .jsonl")
    parser.add_argument("--strict", action="store_true", help="a faulty region is an error, instead of being left out")
    return parser


def write(out: Path, clips: Iterable[ClipRegion], tally: Tally) -> int:
    """Writes a clip file, whole or not at all. ValueError when there are no clips."""
    if not out.name.endswith(".jsonl"):
        raise ValueError(f"--out {out}: expected a name that ends with .jsonl")

    def counted() -> Iterator[ClipRegion]:
        for clip in clips:
            if wrong := [text for text in (*clip.captions, clip.category) if text is not None and not _is_text(text)]:
                raise ValueError(f"clip {clip.id}: caption or category {wrong[0]!r}: expected text that is not empty")
            for text in (clip.id, clip.video, *clip.captions, clip.category or ""):
                whole_text(text, f"clip {clip.id!r}: text")
            tally["regions"] += 1
            tally["captions"] += len(clip.captions)
            tally["regions without a caption"] += not clip.captions
            tally["frames with the region"] += sum(place is not None for place in clip.frames.values())
            yield clip
        if not tally["regions"]:
            raise nothing(out, tally)

    return write_clips(out, counted())


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def finish(out: Path, tally: Tally) -> None:
    """Prints what was counted."""
    tell(out, tally.told())


def place(box: list, frame_hw: tuple[int, int], tally: Tally, where: str) -> FrameRegion | None:
    """A box, xyxy pixels, as the place in one frame, clipped; None, counted, where there is nothing of it in the frame
    (an error when strict)."""
    try:
        x1, y1, x2, y2 = map(float, box)
        if 0 <= x1 < x2 <= frame_hw[1] and 0 <= y1 < y2 <= frame_hw[0]:  # the common case, without arrays
            return FrameRegion((x1, y1, x2, y2))
        clipped = FrameRegion(tuple(check_boxes([box], frame_hw)[0].tolist()))
    except (TypeError, ValueError, OverflowError) as error:
        tally.leave_out("boxes", "nothing of them in the frame", f"{where}: {error}")
        return None
    tally["boxes clipped to their frame"] += 1
    return clipped


def rle_place(rle: dict, frame_hw: tuple[int, int], where: str) -> FrameRegion | None:
    """COCO run lengths as the place in one frame; None where no pixel is inside. ValueError for damaged ones."""
    try:
        box = rle_to_box(rle)
        if tuple(rle["size"]) != tuple(frame_hw):
            raise ValueError(f"mask of size {rle['size']} for frames of {tuple(frame_hw)}, both (height, width)")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return None if box is None else FrameRegion(tuple(box.tolist()), rle)


def mask_place(inside: np.ndarray) -> FrameRegion | None:
    """A mask, bool (H, W), as the place in one frame; None where no pixel is inside."""
    return FrameRegion(tuple(mask_to_box(inside).tolist()), mask_to_rle(inside)) if inside.any() else None


def read_mask_picture(path: Path, frame_hw: tuple[int, int]) -> np.ndarray:
    """Values (H, W) of a PNG with one channel or a palette: 0 is outside, others tell things apart."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except DECODE_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as a mask ({error})") from error
    if values.shape != tuple(frame_hw):
        raise ValueError(f"{path}: mask of shape {values.shape} for frames of {tuple(frame_hw)}, (height, width)")
    return values
