"""One record, one region of a video: where it is in which frames, and what is said of it.

A line of a clip file (JSONL), with only the keys that are needed and the optional captions:

    {"id": "7", "video": "videos/a.mp4", "num_frames": 120, "frame_hw": [480, 640], "prompt_frame": 30,
     "frames": {"30": {"box": [40, 30, 180, 200]}, "34": {"mask": {"size": [480, 640], "counts": "..."}}, "38": null},
     "captions": ["a dog that jumps"]}
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dynrefer.boxes import check_image_hw
from dynrefer.data.image_groups import list_hashes
from dynrefer.data.records import CHECK_HINT, Checked, Region, RegionRecords, box_of, mask_box, text_of, texts_of
from dynrefer.files import parse_line, write_lines
from dynrefer.masks import check_mask_record, rle_to_box, to_mask
from dynrefer.videos import VideoFolder, open_video

REQUIRED = ("id", "video", "num_frames", "frame_hw", "prompt_frame", "frames")
OPTIONAL = ("end_frame", "frame_rate", "captions", "category", "source", "licence", "split")


@dataclass(frozen=True)
class FrameRegion:
    """Where a region is in one frame. box: xyxy pixels, clipped. mask: None, COCO run lengths or polygons."""

    box: tuple[float, float, float, float]
    mask: dict | list | None = None


@dataclass(frozen=True)
class ClipRegion(Checked):
    """One region of one video, with what is known about it.

    id: unique in its file. video: path of a video file or of a folder of frames, relative to the record file's folder.
    num_frames: of the whole video; frames count from 0, those of a folder in the order of their names. frame_hw:
    (height, width) of the upright frames. frames: frame -> where the region is, None where the frame was looked at and
    the region is not in it; frames that are not named were not annotated. prompt_frame: the frame in which a model is
    shown the region; it is one of them. end_frame: where what the captions tell ends, the first frame behind it, of the
    whole video where nobody says; the clip goes from prompt_frame to there. frame_rate: frames a second, None where
    nobody knows. Boxes are clipped, and a frame without a box has its mask's.
    """

    id: str
    video: str
    num_frames: int
    frame_hw: tuple[int, int]
    prompt_frame: int
    frames: Mapping[int, FrameRegion | None]
    end_frame: int
    frame_rate: float | None = None
    captions: tuple[str, ...] = ()
    category: str | None = None
    source: str = ""
    licence: str = ""
    split: str = ""

    @classmethod
    def _from_dict(cls, d: dict) -> "ClipRegion":
        if not isinstance(d, dict):
            raise ValueError(f"{type(d).__name__} instead of a record; a record is a JSON object with {list(REQUIRED)}")
        if unknown := d.keys() - {*REQUIRED, *OPTIONAL}:
            raise ValueError(f"unknown key {sorted(map(str, unknown))}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := [key for key in REQUIRED if d.get(key) is None]:
            raise ValueError(f"missing key {missing}; a record has at least {list(REQUIRED)}")
        region_id, frame_hw = text_of(d, "id", empty=False), _frame_hw(d["frame_hw"])
        num_frames = _whole(d, "num_frames", 1)
        end_frame = num_frames if d.get("end_frame") is None else _whole(d, "end_frame", 1)
        prompt_frame = _whole(d, "prompt_frame", 0)
        if not prompt_frame < end_frame <= num_frames:
            raise ValueError(
                f"prompt_frame {prompt_frame}, end_frame {end_frame}, num_frames {num_frames}: expected "
                "prompt_frame < end_frame <= num_frames"
            )
        frames = _frames(d["frames"], num_frames, frame_hw, region_id)
        if frames.get(prompt_frame) is None:
            raise ValueError(
                f"frames say nothing about prompt_frame {prompt_frame}; there the region must have a place"
            )
        rate = d.get("frame_rate")
        if rate is not None and (type(rate) not in (int, float) or not 0 < rate < 1e6):
            raise ValueError(f"frame_rate {rate!r}: expected frames a second, or nothing")
        return cls(
            id=region_id,
            video=text_of(d, "video", empty=False),
            num_frames=num_frames,
            frame_hw=frame_hw,
            prompt_frame=prompt_frame,
            frames=frames,
            end_frame=end_frame,
            frame_rate=None if rate is None else float(rate),
            captions=texts_of(d.get("captions") or (), "captions"),
            category=None if d.get("category") is None else text_of(d, "category", empty=False),
            source=text_of(d, "source"),
            licence=text_of(d, "licence"),
            split=text_of(d, "split"),
        )

    def to_dict(self) -> dict:
        """The record as JSON types; `ClipRegion.from_dict` reads it back."""
        frames = {
            str(index): None
            if place is None
            else {"box": list(place.box)} | ({} if place.mask is None else {"mask": place.mask})
            for index, place in self.frames.items()
        }
        return {
            **self.__dict__,
            "frame_hw": list(self.frame_hw),
            "frames": frames,
            "captions": list(self.captions),
        }

    @property
    def shown(self) -> FrameRegion:
        """Where the region is in the frame that a model is shown it in."""
        return self.frames[self.prompt_frame]

    @property
    def example(self) -> tuple[str, int, int]:
        """Regions of the same frames of one video, shown in the same frame, are read as one."""
        return self.video, self.prompt_frame, self.end_frame

    # what a family that reads one picture asks of a region, in the frame that it is shown in
    @property
    def image(self) -> str:
        return self.video

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.frame_hw

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.shown.box

    @property
    def mask(self) -> dict | list | None:
        return self.shown.mask

    @property
    def tags(self) -> None:
        """Records of clips have none."""
        return None

    @property
    def attributes(self) -> dict[str, int]:
        """Records of clips have none."""
        return {}

    def to_mask(self, index: int | None = None) -> np.ndarray | None:
        """bool (H, W) of one frame, of the prompt frame where none is named; None where it has only a box.

        KeyError for a frame that is not annotated, an empty mask where the region is not in it.
        """
        place = self.frames[self.prompt_frame if index is None else index]
        if place is None:
            return np.zeros(self.frame_hw, dtype=bool)
        return None if place.mask is None else to_mask(place.mask, self.frame_hw)


def clip_frames(clip: ClipRegion, num_frames: int, annotated: bool = False) -> list[int]:
    """Frames spread evenly over a clip: the first is the prompt frame, the last the clip's last one. A clip of fewer
    frames repeats some. annotated: only frames that `clip.frames` names.

    >>> place = FrameRegion((0, 0, 5, 5))
    >>> clip = ClipRegion("7", "a.mp4", 100, (9, 9), 10, {0: place, 10: place, 14: None, 18: place}, end_frame=41)
    >>> clip_frames(clip, 4), clip_frames(clip, 4, annotated=True)
    ([10, 20, 30, 40], [10, 14, 14, 18])
    """
    if num_frames < 1:
        raise ValueError(f"num_frames {num_frames}: expected at least 1")
    span = range(clip.prompt_frame, clip.end_frame)
    known = sorted(index for index in clip.frames if index in span) if annotated else span
    # rounded half up, so that the same clip gives the same frames everywhere
    return [known[int(place + 0.5)] for place in np.linspace(0, len(known) - 1, num_frames).tolist()]


def read_clip(path: str | os.PathLike, clip: ClipRegion, indices: Sequence[int]) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a clip's video, which lies at `path`, in the order of `indices`.

    ValueError for a video that is missing, damaged, of another size than recorded, or a folder with more or fewer
    frames: their numbers would mean others.
    """
    video = open_video(path)
    if isinstance(video, VideoFolder) and video.num_frames != clip.num_frames:
        raise ValueError(f"clip {clip.id}: {path} has {video.num_frames} frames, the record says {clip.num_frames}")
    frames = video.read(indices)
    if frames.shape[1:3] != clip.frame_hw:
        raise ValueError(
            f"clip {clip.id}: frames of {path} are {frames.shape[1:3]}, the record says {clip.frame_hw} (height, width)"
        )
    return frames


def region_of(d: object, where: str) -> Region | ClipRegion:
    """The checked record of a line: of a clip where it names a video, else of a picture."""
    clip = isinstance(d, dict) and "video" in d
    return ClipRegion.from_dict(d, where) if clip else Region.from_dict(d, where)


Read = Callable[[object, str], Any]


class ClipRecords(RegionRecords):
    """Records of a clip file in its order; each is read and checked when it is asked for. `root` is the folder that
    video paths are relative to. lines, offsets, ids: of the records, (N,); read: makes a record of a line's content."""

    def __init__(self, path: Path, lines: np.ndarray, offsets: np.ndarray, ids: Sequence[str], read: Read):
        super().__init__(path, ())
        self._lines, self._offsets, self._names, self._read = lines, offsets, list(ids), read

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Region | ClipRegion:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        where = f"{self.path}:{self._lines[index]}"
        try:
            with open(self.path, "rb") as file:
                file.seek(int(self._offsets[index]))
                text = file.readline()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error})") from error
        return self._read(parse_line(text, where), where)

    def images(self) -> list[str]:
        return [region.image for region in self]

    def video_path(self, index: int) -> Path:
        """Where the video of one record lies."""
        return self.root / self[index].video

    def subset(self, indices: Sequence[int]) -> "ClipRecords":
        chosen = np.asarray(indices, dtype=np.int64)
        return ClipRecords(
            self.path, self._lines[chosen], self._offsets[chosen], [self._names[i] for i in chosen], self._read
        )

    def _ids(self) -> tuple:
        return (lambda: list_hashes(self._names)), len(self._names), self._names.__getitem__


def open_clips(path: str | os.PathLike, split: str | None = None, read: Read = region_of) -> ClipRecords:
    """Records of a clip file (.jsonl). split: only records of this split. read: (content, place) of a line -> a record.

    Every line must be JSON with an id of its own; the rest of a record is checked when it is read. Raises ValueError
    for what is missing, cut off, no clip file, ids that occur twice, no records.
    """
    path = Path(path)
    if not path.name.endswith(".jsonl"):
        raise ValueError(f"clip file {path}: expected .jsonl; records are read by their place in it")
    seen: dict[str, int] = {}
    lines, offsets, ids, splits = [], [], [], set()
    for line, offset, text in _numbered_lines(path):
        where = f"{path}:{line}"
        d = parse_line(text, where, unique_keys=True)
        if (
            not isinstance(d, dict)
            or not isinstance(d.get("id"), str)
            or not ("frames" in d or "turns" in d or seen and "image" in d)
        ):
            raise ValueError(f"{where}: expected a record of a clip, with id and frames; {CHECK_HINT}")
        if (first := seen.setdefault(d["id"], line)) != line:
            raise ValueError(f"{where}: id {d['id']!r} stands in line {first} already; ids are unique")
        splits.add(str(d.get("split")))
        if split is None or d.get("split") == split:
            lines.append(line)
            offsets.append(offset)
            ids.append(d["id"])
    if not lines:
        hint = f" of split {split!r}; it has {sorted(splits)}" if seen else ""
        raise ValueError(f"clip file {path}: no records{hint}")
    return ClipRecords(path, np.array(lines), np.array(offsets), ids, read)


def write_clips(path: str | os.PathLike, clips: Iterable[ClipRegion]) -> int:
    """Writes a clip file (.jsonl), one record a line, and returns how many. It appears whole or not at all."""
    return write_lines(path, map(_json_line, clips))


def _json_line(clip: ClipRegion) -> bytes:
    try:
        return orjson.dumps(clip.to_dict(), option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # json names a type that it does not know, and encoding a text that is none
        return (json.dumps(clip.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _numbered_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number, place of its first byte, text) of every line that is not blank."""
    offset = 0
    try:
        with open(path, "rb") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, offset, text
                offset += len(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _frames(
    frames: object, num_frames: int, frame_hw: tuple[int, int], region_id: str
) -> dict[int, FrameRegion | None]:
    """Checked places in the frames' order."""
    if not isinstance(frames, dict) or not frames:
        raise ValueError(f"frames {str(frames)[:60]}: expected an object, frame number -> box or mask, or null")
    result: dict[int, FrameRegion | None] = {}
    for key, place in frames.items():
        if not str(key).isdecimal() or str(int(key)) != str(key) or int(key) >= num_frames:
            raise ValueError(f"frame {key!r}: expected a number from 0 to {num_frames - 1}")
        try:
            result[int(key)] = None if place is None else _place(place, frame_hw, region_id)
        except ValueError as error:
            raise ValueError(f"frame {key}: {error}") from error
    return dict(sorted(result.items()))


def _place(place: object, frame_hw: tuple[int, int], region_id: str) -> FrameRegion:
    if not isinstance(place, dict) or place.keys() - {"box", "mask"} or not place:
        raise ValueError(f"{str(place)[:60]}: expected box, mask or both")
    box, mask = place.get("box"), place.get("mask")
    if mask is not None:
        check_mask_record(mask, frame_hw)
    if box is not None:
        return FrameRegion(box_of(box, frame_hw, region_id), mask)
    if mask is None:
        raise ValueError("neither box nor mask; say null where the region is not in the frame")
    tight = rle_to_box(mask) if isinstance(mask, dict) else mask_box(mask, frame_hw)
    if tight is None:
        raise ValueError("empty mask; say null where the region is not in the frame")
    return FrameRegion(tuple(map(float, tight)), mask)


def _frame_hw(value: object) -> tuple[int, int]:
    try:
        return check_image_hw(value)
    except ValueError:
        raise ValueError(f"frame_hw {value!r}: expected two positive integers, (height, width) in pixels") from None


def _whole(d: dict, key: str, least: int) -> int:
    if type(d[key]) is not int or d[key] < least:
        raise ValueError(f"{key} {d[key]!r}: expected a whole number of at least {least}")
    return d[key]
