"""Clip files: a check of what is in them, and what the converters of video regions share.

    python -m data_prep.video data/vidstg/train.jsonl

Says what is wrong with every record and every video, with its line: the form of records, boxes and masks, videos that
are missing, damaged, of another size or shorter than recorded. Exit status 1 when there is a problem. The converters:

    python -m data_prep.vidstg         VidSTG on VidOR: boxes by frame, one sentence
    python -m data_prep.bensmot        BenSMOT: persons in MOTChallenge's form, a caption each
    python -m data_prep.sav            SA-V: masklets
    python -m data_prep.ref_vos        MeViS and Refer-YouTube-VOS: masklets with referring expressions
    python -m data_prep.video_events   events with a box in their first frame, a sentence each
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.sources import tell
from data_prep.tally import Tally
from dynrefer.boxes import check_boxes
from dynrefer.data.clips import CHECK_HINT, ClipRegion, FrameRegion, write_clips
from dynrefer.data.records import record_root
from dynrefer.files import parse_line, read_lines
from dynrefer.images import DECODE_ERRORS
from dynrefer.masks import mask_to_box, mask_to_rle, rle_to_box, to_mask
from dynrefer.videos import VideoFolder, open_video

NUM_VIDEOS_CHECKED = 20  # whose frames are looked at while converting; the check above looks at all


def check_clips(path: str | Path) -> tuple[list[tuple[int, str]], int, int]:
    """(problems as (line, text), number of records, number of videos) of a clip file."""
    path = Path(path)
    problems: list[tuple[int, str]] = []
    lines: dict[str, int] = {}
    by_video: dict[str, list[tuple[int, int, tuple[int, int]]]] = {}  # -> (line, num_frames, frame_hw)
    line = 0
    try:
        for line, text in read_lines(path):
            try:
                clip = ClipRegion.from_dict(parse_line(text, f"{path}:{line}"))
            except ValueError as error:
                problems.append((line, str(error).removeprefix(f"{path}:{line}: ").removeprefix("record: ")))
                continue
            if (first := lines.setdefault(clip.id, line)) != line:
                problems.append((line, f"id {clip.id!r} stands in line {first} already; ids are unique"))
            by_video.setdefault(clip.video, []).append((line, clip.num_frames, clip.frame_hw))
            problems.extend((line, text) for text in _mask_problems(clip))
    except ValueError as error:  # the file itself
        problems.append((line, str(error)))
    for video, users in by_video.items():
        problems.extend(_video_problems(record_root(path) / video, users))
    problems = [(line, text.removesuffix(f"; {CHECK_HINT}")) for line, text in sorted(problems)]
    return problems or ([] if lines else [(0, "no records in it")]), len(lines), len(by_video)


def _mask_problems(clip: ClipRegion) -> Iterator[str]:
    for index, place in clip.frames.items():
        try:
            if place is not None and place.mask is not None:
                to_mask(place.mask, clip.frame_hw)
        except ValueError as error:
            yield f"clip {clip.id}, frame {index}: {error}"


def _video_problems(path: Path, users: list[tuple[int, int, tuple[int, int]]]) -> Iterator[tuple[int, str]]:
    try:
        video = open_video(path)
        frame_hw = video.frame_hw
    except ValueError as error:
        yield users[0][0], f"{error} ({len(users)} records)"
        return
    for line, num_frames, recorded_hw in users:
        if num_frames > video.num_frames or (isinstance(video, VideoFolder) and num_frames != video.num_frames):
            yield line, f"num_frames {num_frames}, but {path} has {video.num_frames}"
        if recorded_hw != frame_hw:
            yield line, f"frame_hw {recorded_hw}, but frames of {path} are {frame_hw} (height, width)"


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
            for _, problem in _video_problems(self.folder / name, [(0, num_frames, tuple(frame_hw))]):
                raise ValueError(f"{where}: {problem}; convert with the videos that were annotated")


def arguments(name: str, description: str, videos: str = "folder of the videos") -> argparse.ArgumentParser:
    """The options that converters of video regions share. videos: help of --videos."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{name}", description=description)
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
            tally["regions"] += 1
            tally["captions"] += len(clip.captions)
            tally["regions without a caption"] += not clip.captions
            tally["frames with the region"] += sum(place is not None for place in clip.frames.values())
            yield clip
        if not tally["regions"]:
            raise ValueError(f"{out}: no regions came out; look at the input, --split and --subset")

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


def read_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a file's JSON object one after the other, the file never in memory as a whole; ValueError for a
    file that is missing, cut off or something else."""
    import ijson

    count = 0
    try:
        with open(path, "rb") as file:
            for key, value in ijson.kvitems(file, "", use_float=True):
                count += 1
                yield key, value
    except (ijson.JSONError, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path}: not JSON from its first to its last byte ({error}), damaged behind entry {count}; download it "
            "again"
        ) from error
    if not count:
        raise ValueError(f"{path}: no object with entries; is it the right file?")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.video", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="clip file, .jsonl")
    args = parser.parse_args(argv)
    problems, num_records, num_videos = check_clips(args.file)
    for line, text in problems:
        print(f"{args.file}:{line}: {text}" if line else f"{args.file}: {text}")
    found = "no problems" if not problems else "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{args.file}: {found}; {num_records} records, {num_videos} videos")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
