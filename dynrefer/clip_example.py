"""A video that a user points into -> an example: regions in one frame of it, or none where all of it is asked about.

example = clip_example("clip.mp4", boxes=[[40, 30, 180, 200]], prompt_frame=30)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.data.chats import Chat, Turn
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.example import Example
from dynrefer.regions import regions_of
from dynrefer.videos import open_video

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


def is_video(source: Any) -> bool:
    """Whether a path names a video file, by its ending."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in VIDEOS


def clip_example(
    video: str | os.PathLike,
    boxes: Any = None,
    box_format: str = "xyxy",
    masks: Any = None,
    ids: Any = None,
    *,
    prompt_frame: int = 0,
    end_frame: int | None = None,
    turns: Sequence[tuple[str, str | None]] = (),
) -> Example:
    """A clip from `prompt_frame`, in which the boxes or masks are, to `end_frame`, which is behind its last one; None:
    the video's end. video: a file, or a folder of frames. turns: (question, answer) of a clip without regions.

    ValueError for a video that cannot be read, frames that it does not have, and bad boxes or masks.
    """
    opened = open_video(video)
    count = opened.num_frames
    end_frame = count if end_frame is None else end_frame
    if not 0 <= prompt_frame < count:
        raise ValueError(f"prompt_frame {prompt_frame}: {video} has the frames 0 to {count - 1}")
    if not prompt_frame < end_frame <= count:
        raise ValueError(
            f"end_frame {end_frame}: expected {prompt_frame + 1} to {count}, behind prompt_frame {prompt_frame} of "
            f"{video} and not behind its end"
        )
    name, frame_hw = str(video), opened.frame_hw
    span = {"num_frames": count, "prompt_frame": prompt_frame, "end_frame": end_frame}
    regions = [
        ClipRegion(
            id=region.id,
            video=name,
            frame_hw=frame_hw,
            frames={prompt_frame: FrameRegion(region.box, region.mask)},
            frame_rate=opened.frame_rate,
            **span,
        )
        for region in regions_of(frame_hw, boxes, box_format, masks, ids)
    ]
    chats = []
    if not regions and turns:
        asked = tuple(Turn(question, answer) for question, answer in turns)
        chats.append(Chat(name, name, frame_hw, (), asked, is_clip=True, frame_rate=opened.frame_rate, **span))

    def read(indices: Sequence[int] | None, reduce: int) -> np.ndarray:
        return opened.read([prompt_frame] if indices is None else indices)

    return Example(name, regions, read, chats=chats)
