"""One way to open a video: frames of a file or of a folder of pictures, by number, RGB uint8 as a viewer shows them."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from dynrefer.images import open_image, read_image_hw

SEEKABLE = ("mov,mp4", "matroska")  # FFmpeg's names of containers that store the time at which a frame is shown
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def open_video(path: str | os.PathLike) -> "VideoFolder | VideoFile":
    """Frames of a video file, or of a folder of pictures (numbered 0, 1, ... in the order of their names).

    Both have num_frames, frame_hw (height, width), frame_rate (frames a second; None for pictures) and
    read(indices) -> (T, H, W, 3) uint8. ValueError, naming the path, for what is missing, damaged or without frames.
    """
    path = Path(path)
    if path.is_dir():
        return VideoFolder(path)
    if not path.is_file():
        raise ValueError(f"video {path}: no such file or folder")
    return VideoFile(path)


def natural_order(name: str) -> list:
    """Sorts numbers in names by their value: frame2 before frame10."""
    return [(int(part), part) if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


class VideoFolder:
    """Pictures of a folder as frames."""

    frame_rate = None

    def __init__(self, path: Path):
        self.path = path
        self.names = sorted((n for n in os.listdir(path) if n.lower().endswith(PICTURES)), key=natural_order)
        if not self.names:
            raise ValueError(f"video {path}: no picture in the folder; expected frames as {', '.join(PICTURES)}")

    @property
    def num_frames(self) -> int:
        return len(self.names)

    @cached_property
    def frame_hw(self) -> tuple[int, int]:
        """(height, width) of the first frame; all others must have it, too."""
        return read_image_hw(self.path / self.names[0])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames (T, H, W, 3) in the order of `indices`, which may repeat."""
        wanted = _checked(indices, self.num_frames, self.path)
        frames = {index: open_image(self.path / self.names[index]) for index in sorted(set(wanted))}
        for index, frame in frames.items():
            if frame.shape[:2] != self.frame_hw:
                raise ValueError(
                    f"video {self.path}: frame {self.names[index]} is {frame.shape[:2]}, the first one {self.frame_hw} "
                    "(height, width); frames of a video are of one size"
                )
        return np.stack([frames[index] for index in wanted])


class VideoFile:
    """Frames of a video file in the order they are shown. Its packets are listed once, without decoding them, so that
    a frame's number means the same however the file is read."""

    def __init__(self, path: Path):
        self.path = path
        with self._opened() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            self.frame_rate = float(rate) if rate else None
            times, keys = [], []
            for packet in container.demux(stream) if container.format.name.startswith(SEEKABLE) else ():
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
                    keys.append(packet.is_keyframe)
        # without times of their own frames can only be counted from the first on
        self._times = self._keys = None
        if times and None not in times and len(set(times)) == len(times):
            order = np.argsort(times)
            self._times, self._keys = np.array(times)[order], np.flatnonzero(np.array(keys)[order])
            self.num_frames = len(times)
        else:
            self.num_frames = sum(1 for _ in self._from_the_first())
        if not self.num_frames:
            raise ValueError(f"video {path}: no frame in it")

    @cached_property
    def frame_hw(self) -> tuple[int, int]:
        """(height, width) of the upright first frame."""
        return self.read([0]).shape[1:3]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames (T, H, W, 3) in the order of `indices`, which may repeat."""
        wanted = _checked(indices, self.num_frames, self.path)
        targets = sorted(set(wanted))
        found = self._counted(targets) if self._times is None else self._sought(targets)
        frames = dict(zip(targets, found, strict=False))
        if len(frames) < len(targets):
            raise ValueError(f"video {self.path}: frame {targets[len(frames)]} cannot be decoded; the file is damaged")
        if len({frame.shape for frame in frames.values()}) > 1:
            raise ValueError(f"video {self.path}: frames of several sizes; frames of a video are of one size")
        return np.stack([frames[index] for index in wanted])

    def _from_the_first(self) -> Iterator:
        with self._opened() as (container, stream):
            yield from container.decode(stream)

    def _counted(self, targets: list[int]) -> Iterator[np.ndarray]:
        wanted = set(targets)
        for number, frame in enumerate(self._from_the_first()):
            if number in wanted:
                yield _pixels(frame)
            if number >= targets[-1]:
                return

    def _sought(self, targets: list[int]) -> Iterator[np.ndarray]:
        """Frames by their times; decoding begins at the key frame before each, or goes on from the frame before."""
        times = [int(self._times[index]) for index in targets]
        with self._opened() as (container, stream):
            decoded, now = iter(()), None
            for index, time in zip(targets, times, strict=True):
                before = self._keys[self._keys <= index]
                start = int(self._times[before[-1]]) if before.size else int(self._times[0])
                if now is None or now < start:
                    container.seek(start, stream=stream, backward=True)
                    decoded = container.decode(stream)
                for frame in decoded:
                    now = frame.pts
                    if now is not None and now >= time:
                        break
                if now != time:
                    return
                yield _pixels(frame)

    @contextmanager
    def _opened(self) -> Iterator[tuple]:
        try:
            import av
        except ImportError as error:
            raise ImportError(f'video {self.path}: files need PyAV, `pip install -e ".[data]"`') from error
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"video {self.path}: no video stream in it, only sound or subtitles")
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1  # readers work side by side, one a process
                yield container, stream
        except av.FFmpegError as error:
            raise ValueError(f"video {self.path}: cannot be read, truncated or damaged ({error})") from error


def _pixels(frame) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame, turned as its display matrix says (telephones film sideways)."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # both count anticlockwise


def _checked(indices: Sequence[int], num_frames: int, path: Path) -> list[int]:
    wanted = [int(index) for index in indices]
    if bad := [index for index in wanted if not 0 <= index < num_frames]:
        raise ValueError(f"video {path}: frame {bad[0]}, but there are {num_frames}, 0 to {num_frames - 1}")
    return wanted
