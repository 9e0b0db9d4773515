"""A clip as records: its regions with captions, and its questions, to learn from and to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_prep.moving_world.clips import FRAME_HW, Clip
from data_prep.moving_world.texts import KINDS, Question, captions, questions
from data_prep.world.scenes import LICENCE
from dynrefer.data import questions as asked
from dynrefer.data.chats import Chat
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.masks import mask_to_box, mask_to_rle

SOURCE = "moving world"
FRAME_RATE = 5.0


def place(mask: np.ndarray) -> FrameRegion | None:
    """Where an object is in a frame; None where nothing of it is to be seen."""
    if not mask.any():
        return None
    return FrameRegion(tuple(float(edge) for edge in mask_to_box(mask)), mask_to_rle(mask))


def regions(clip: Clip, video: str) -> list[ClipRegion]:
    """One record an object, with captions. `video` is written into the records as it is."""
    return [
        ClipRegion(
            id=f"motion-{clip.split}-{clip.seed}-{number}",
            video=video,
            num_frames=len(clip.frames),
            frame_hw=FRAME_HW,
            prompt_frame=0,
            frames={t: place(mask) for t, mask in enumerate(mover.masks)},
            end_frame=len(clip.frames),
            frame_rate=FRAME_RATE,
            captions=captions(clip, number),
            category=mover.thing.kind,
            source=SOURCE,
            licence=LICENCE,
            split=clip.split,
        )
        for number, mover in enumerate(clip.movers)
    ]


def chats(clip: Clip, video: str) -> list[Chat]:
    """One conversation a question, with its answer: what training reads. Its category is the question's kind."""
    return [replace(record.told, category=record.kinds[0]) for record in asked_of(clip, video)]


def asked_of(clip: Clip, video: str) -> list[asked.Question]:
    """One record a question, whose regions are the objects that it names: what evaluation asks."""
    own = regions(clip, video)
    return [_record(own, question, number) for number, question in enumerate(questions(clip))]


def _record(own: Sequence[ClipRegion], question: Question, number: int) -> asked.Question:
    first, named, answers = own[0], sorted(set(question.movers)), KINDS[question.kind][1]
    name = f"{first.id.rpartition('-')[0]}-question-{number}"
    span = (first.num_frames, first.frame_hw, first.prompt_frame, first.end_frame, first.frame_rate)
    return asked.Question(
        id=name,
        image=first.video,
        image_hw=first.frame_hw,
        question=question.named({mover: place for place, mover in enumerate(named)}),
        regions=tuple(replace(own[mover], captions=()) for mover in named),
        choices=answers,
        answer=answers.index(question.answer),
        kinds=(question.kind,),
        clip=asked.Clip(name, first.video, *span),
        source=first.source,
        licence=first.licence,
        split=first.split,
    )
