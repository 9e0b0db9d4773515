"""What a visitor has opened: a picture, or a clip at one of its frames. Whatever is wrong is a ValueError of a line."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.example import Example, Prompt
from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.images import open_image, read_image_hw
from dynrefer.serve.settings import Settings
from dynrefer.videos import VideoFile

LIMITS = Settings("demo")  # a page's visitor may ask for what a server's client may
SHOWN_AS_THEY_ARE = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")  # by every browser
CLIPS_TAKEN = "open a JPEG, PNG or WebP, or take a picture of a frame"


@dataclass(frozen=True)
class Opened:
    """name: as the visitor knows it. pixels: (H, W, 3) uint8, of a clip the frame on which regions are drawn. video,
    frame: of a clip."""

    name: str
    pixels: np.ndarray
    video: VideoFile | None = None
    frame: int = 0

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.pixels.shape[:2]

    def example(self, regions: Sequence[Region], prompts: Sequence[Prompt]) -> Example:
        """As a model takes it; a clip goes from the frame of its regions to the end."""
        if self.video is None or not regions:
            return Example.of_picture(self.pixels, regions, self.name, prompts)
        last = self.video.num_frames
        of_clip = [
            ClipRegion(
                id=region.id,
                video=self.name,
                num_frames=last,
                frame_hw=self.image_hw,
                prompt_frame=self.frame,
                frames={self.frame: FrameRegion(region.box, region.mask)},
                end_frame=last,
                frame_rate=self.video.frame_rate,
            )
            for region in regions
        ]
        return Example(self.name, of_clip, lambda indices, reduce: self.frames(indices), prompts=prompts)

    def frames(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """(T, H, W, 3) uint8; the shown one where none is named."""
        if indices is None or self.video is None:
            return self.pixels[None]
        return self.video.read(indices)


def uploaded(record: Any, folder: Path) -> Path:
    """The file of {"path"}; it must lie in the folder of uploads."""
    path = record.get("path") if isinstance(record, dict) else None
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("no picture; open, paste or take one first")
    found = Path(path).resolve()
    if not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise ValueError("the picture is no longer there; open it again")
    return found


def name_of(record: Any) -> str:
    name = record.get("name") if isinstance(record, dict) else None
    return Path(name[:200]).name or "picture" if isinstance(name, str) else "picture"


def is_clip(name: str) -> bool:
    return (mimetypes.guess_type(name)[0] or "").startswith("video/")


def open_uploaded(record: Any, folder: Path, clips: bool) -> Opened:
    """Of {"path", "name", "frame"}; clips: whether a model takes such. Errors begin with the visitor's name of it."""
    path, name = uploaded(record, folder), name_of(record)
    try:
        if is_clip(name):
            return _clip(path, name, record.get("frame"), clips)
        _check_size(*read_image_hw(path))
        return Opened(name, open_image(path))
    except (ValueError, ImportError) as error:
        text = str(error).removeprefix(f"image {path}: ").removeprefix(f"video {path}: ")
        raise ValueError(f"{name}: {text.replace(str(path), name)}") from None


def _clip(path: Path, name: str, frame: Any, clips: bool) -> Opened:
    if not clips:
        raise ValueError(f"a clip, but this model looks at pictures; {CLIPS_TAKEN}")
    video, number = VideoFile(path), 0 if frame is None else frame
    if type(number) is not int or not 0 <= number < video.num_frames:
        raise ValueError(f"frame {shown(frame)}; expected 0 to {video.num_frames - 1}")
    pixels = video.read([number])[0]
    _check_size(*pixels.shape[:2])
    return Opened(name, pixels, video, number)


def _check_size(height: int, width: int) -> None:
    if height * width > LIMITS.max_pixels:
        raise ValueError(
            f"{width:,} x {height:,} are {height * width:,} pixels; at most {LIMITS.max_pixels:,}, make it smaller"
        )


def prepare(record: Any, folder: Path, clips: bool) -> dict[str, Any]:
    """{"shown", "width", "height"} of an uploaded picture: the path of one that every browser shows. Of a clip also
    {"frames", "rate"}, how many it has and how many a second; record's "frame" is the one that is shown. {"error"} for
    what cannot be opened."""
    try:
        opened, path = open_uploaded(record, folder, clips), uploaded(record, folder)
    except ValueError as error:
        return {"error": " ".join(str(error).split())}
    if opened.video is not None:
        path = path.with_name(f"{path.stem or 'clip'}-frame{opened.frame}.png")
    elif path.suffix.lower() not in SHOWN_AS_THEY_ARE:
        path = path.with_name(f"{path.stem or 'picture'}-shown.png")
    if not path.exists():
        Image.fromarray(opened.pixels).save(path, compress_level=1)
    found = {"shown": str(path), "width": opened.image_hw[1], "height": opened.image_hw[0]}
    if opened.video is not None:
        found |= {"frames": opened.video.num_frames, "rate": opened.video.frame_rate}
    return found
