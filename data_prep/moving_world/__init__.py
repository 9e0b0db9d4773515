"""The embedded world in motion: clips in which objects move, cross, hide and come back, with exact masklets, captions
and questions about what a region does.

    from data_prep import moving_world

    drawn = moving_world.clip(seed=5, split="train")
    drawn.frames                                    # RGB uint8 (10, 128, 128, 3)
    moving_world.regions(drawn, "clips/5")[0]       # ClipRegion(captions=("a white tree that moves ...", ...), ...)
    moving_world.questions(drawn)[0]                # Question(kind="start", movers=(0,), ...)
    moving_world.chats(drawn, "clips/5")[0]         # the same with its answer, to learn from
    moving_world.asked_of(drawn, "clips/5")[0]      # the same with choices, for evaluation
    moving_world.write("data/motion", num_clips=3000, split="train", seed=0, workers=2)

Objects, colours and splits are those of `data_prep.world`.
"""

from data_prep.moving_world.clips import Clip, Mover, clip
from data_prep.moving_world.records import asked_of, chats, regions
from data_prep.moving_world.texts import KINDS, Question, captions, questions
from data_prep.moving_world.writer import write

__all__ = [
    "KINDS",
    "Clip",
    "Mover",
    "Question",
    "asked_of",
    "captions",
    "chats",
    "clip",
    "questions",
    "regions",
    "write",
]
