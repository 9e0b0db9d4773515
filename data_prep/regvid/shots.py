"""Frames of a clip as models see them: resized to a square, with every region outlined and numbered, or bare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dynrefer.data.clips import ClipRegion, FrameRegion, clip_frames, read_clip
from dynrefer.letters import Letters
from dynrefer.masks import to_mask
from dynrefer.paint import colour_of, ink_on, outline, paint_box

FORM = 1  # of the drawing; another one makes other pictures, about which is asked anew
LINE = 2  # pixels
LETTER = 15


@dataclass(frozen=True)
class Shot:
    """A frame that is read and drawn only when somebody looks at it. name: the same for the same picture."""

    path: Path
    clip: ClipRegion
    frame: int
    side: int
    marks: Mapping[int, FrameRegion] = field(default_factory=dict)  # number of a region -> where it is

    @property
    def name(self) -> str:
        places = [[number, place.box, place.mask] for number, place in sorted(self.marks.items())]
        drawn = hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16] if places else ""
        size = self.path.stat().st_size if self.path.is_file() else self.clip.num_frames
        return f"{self.clip.video}|{size}|{self.frame}|{self.side}|{FORM}|{drawn}"

    def pixels(self) -> np.ndarray:
        """(side, side, 3) uint8."""
        return draw_shot(read_clip(self.path, self.clip, [self.frame])[0], self.marks, self.side)


def marked_shots(
    path: Path, clips: Sequence[ClipRegion], numbers: Sequence[int], count: int, side: int, rng
) -> list[Shot]:
    """Frames drawn at random, the prompt frame among them, in which regions are outlined and numbered. clips: of one
    video and one span; numbers: theirs. rng: numpy's generator."""
    first = clips[0]
    known = {
        frame
        for clip in clips
        for frame, place in clip.frames.items()
        if place is not None and first.prompt_frame <= frame < first.end_frame
    }
    others = sorted(known - {first.prompt_frame})
    drawn = rng.choice(others, min(count - 1, len(others)), replace=False).tolist() if others else []
    shots = []
    for frame in sorted([first.prompt_frame, *drawn]):
        places = {n: clip.frames.get(frame) for n, clip in zip(numbers, clips, strict=True)}
        marks = {n: place for n, place in places.items() if place is not None}
        shots.append(Shot(path, first, frame, side, marks))
    return shots


def bare_shots(path: Path, clip: ClipRegion, count: int, side: int) -> list[Shot]:
    """Frames spread evenly over a clip, nothing drawn on them."""
    frames = dict.fromkeys(clip_frames(clip, count))
    return [Shot(path, clip, frame, side) for frame in frames]


def draw_shot(frame: np.ndarray, marks: Mapping[int, FrameRegion], side: int) -> np.ndarray:
    """frame (H, W, 3) uint8 -> (side, side, 3), each region outlined in a colour of its own, with its number in it."""
    image_hw = frame.shape[:2]
    pixels = np.array(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
    labels = []
    for number, place in marks.items():
        colour = colour_of(number)
        if place.mask is None:
            scale = np.array([side / image_hw[1], side / image_hw[0]] * 2)
            box = np.asarray(place.box) * scale
            paint_box(pixels, box, LINE, colour)
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        else:
            whole = Image.fromarray(to_mask(place.mask, image_hw)).resize((side, side), Image.Resampling.NEAREST)
            inside = np.asarray(whole, bool)
            if not inside.any():
                continue
            pixels[outline(inside, LINE)] = colour
            centre = centre_of(inside)
        labels.append((number, centre, colour))
    picture = Image.fromarray(pixels)
    draw, letters = ImageDraw.Draw(picture), Letters(LETTER)
    for number, (x, y), colour in labels:
        text = str(number)
        width, height = letters.length(text) + 4, LETTER + 3
        x, y = np.clip(x - width / 2, 0, side - width), np.clip(y - height / 2, 0, side - height)
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        letters.write(draw, (x + 2, y + height - 4), text, ink_on(colour))  # its base line
    return np.asarray(picture)


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the pixel of a mask that is nearest to its centre of mass: inside it, whatever its shape."""
    y, x = np.nonzero(mask)
    nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
    return float(x[nearest]), float(y[nearest])
