"""One record, one conversation about a picture or a clip, whose questions name its regions.

A line of a record file (JSONL), with only the keys that are needed; <region0> is the first of `regions`:

    {"id": "7", "image": "a.jpg", "image_hw": [480, 640], "regions": [{"box": [40, 30, 180, 200]}, {"mask": {...}}],
     "turns": [{"question": "What does <region0> do?", "answer": "It sits on [1]."},
               {"question": "Is <region1> wet?", "answer": "No."}]}
    {"id": "8", "video": "a.mp4", "num_frames": 120, "frame_hw": [480, 640], "prompt_frame": 30,
     "regions": [{"frames": {"30": {"box": [40, 30, 180, 200]}, "34": null}}],
     "turns": [{"question": "What does <region0> do?", "answer": "It leaves."}]}

Without regions a conversation is about the whole picture or clip.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynrefer.data.clips import ClipRegion
from dynrefer.data.records import Checked, Region, text_of, whole_text
from dynrefer.errors import cut
from dynrefer.files import write_lines
from dynrefer.mentions import NUMBERED, check_all_named, renumbered, split_mentions

SAID = ("category", "source", "licence", "split")
OF_PICTURE = ("image", "image_hw")
OF_CLIP = ("video", "num_frames", "frame_hw", "prompt_frame", "end_frame", "frame_rate")
REGION_KEYS = {"image": ("id", "box", "mask", "category"), "video": ("id", "frames", "category")}


@dataclass(frozen=True)
class Turn:
    """A question, which names regions as <region0>, and its answer, words alone; [0] in it is the first region's number
    in words. None: not known, of a last turn."""

    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Chat(Checked):
    """A conversation about one picture or one clip.

    id: unique in its file. image: path of the picture, the video or the folder of frames, relative to the record file's
    folder. image_hw: (height, width). regions: those that its questions name, each at least once, in the order of their
    numbers; `Region`s of a picture, `ClipRegion`s of a clip. turns: at least one. num_frames, prompt_frame, end_frame,
    frame_rate: of a clip, as `ClipRegion` has them; a picture has the frame 0. category: which kind of conversation it
    is, where there are several. choices: answers to the last question, of which the likeliest is taken; () = one is
    written. Lines of conversations have none, questions of benchmarks do (questions.py).
    """

    id: str
    image: str
    image_hw: tuple[int, int]
    regions: tuple[Region, ...] | tuple[ClipRegion, ...]
    turns: tuple[Turn, ...]
    is_clip: bool = False
    num_frames: int = 1
    prompt_frame: int = 0
    end_frame: int = 1
    frame_rate: float | None = None
    category: str | None = None
    source: str = ""
    licence: str = ""
    split: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def _from_dict(cls, d: dict) -> "Chat":
        if not isinstance(d, dict):
            raise ValueError(f"{type(d).__name__} instead of a conversation; it is a JSON object with turns")
        kind = "video" if "video" in d else "image"
        own = OF_CLIP if kind == "video" else OF_PICTURE
        known = ("id", *own, "regions", "turns", *SAID)
        if unknown := d.keys() - {*known}:
            raise ValueError(f"unknown key {sorted(map(str, unknown))}; a conversation has {list(known)}")
        chat_id, turns = text_of(d, "id", empty=False), _turns(d.get("turns"))
        entries = d.get("regions") or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"regions {cut(str(entries))}: expected a list of objects, each with a box, mask or frames"
            )
        common = {key: d[key] for key in (*own, "source", "licence", "split") if d.get(key) is not None}
        regions = tuple(
            region_in(entry, common, f"{chat_id}/{n}", f"region {n}", REGION_KEYS[kind])
            for n, entry in enumerate(entries)
        )
        names = [region.id for region in regions]
        pieces = [split_mentions(turn.question, names, brackets=False) for turn in turns]
        check_all_named(pieces, names, "turns")
        if kind == "video":
            common.setdefault("prompt_frame", 0)
        first = regions[0] if regions else whole_of(common, chat_id)
        span = ("num_frames", "prompt_frame", "end_frame", "frame_rate") if kind == "video" else ()
        return cls(
            id=chat_id,
            image=first.image,
            image_hw=first.image_hw,
            regions=regions,
            turns=turns,
            is_clip=kind == "video",
            **{key: getattr(first, key) for key in span},
            category=None if d.get("category") is None else text_of(d, "category", empty=False),
            source=first.source,
            licence=first.licence,
            split=first.split,
        )

    def to_dict(self) -> dict:
        """The record as JSON types; `Chat.from_dict` reads it back."""
        place: dict[str, Any] = {"image": self.image, "image_hw": list(self.image_hw)}
        if self.is_clip:
            place = {"video": self.image, "num_frames": self.num_frames, "frame_hw": list(self.image_hw)}
            place |= {"prompt_frame": self.prompt_frame, "end_frame": self.end_frame, "frame_rate": self.frame_rate}
        keys = REGION_KEYS["video" if self.is_clip else "image"]
        rows = [{key: value for key, value in region.to_dict().items() if key in keys} for region in self.regions]
        return {
            "id": self.id,
            **place,
            "regions": rows,
            "turns": [dict(turn.__dict__) for turn in self.turns],
            **{key: getattr(self, key) for key in SAID},
        }

    @property
    def example(self) -> Any:
        """A conversation is read with the regions and conversations of the same picture or frames."""
        return (self.image, self.prompt_frame, self.end_frame) if self.is_clip else self.image

    # what a conversation is asked as a record among those of regions
    @property
    def box(self) -> tuple[float, float, float, float]:
        """The whole picture."""
        return 0.0, 0.0, float(self.image_hw[1]), float(self.image_hw[0])

    @property
    def captions(self) -> tuple[str, ...]:
        """Its answers."""
        return tuple(turn.answer for turn in self.turns if turn.answer is not None)

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(turn.question for turn in self.turns)

    @property
    def frame_hw(self) -> tuple[int, int]:
        return self.image_hw

    @property
    def video(self) -> str:
        return self.image

    @property
    def frames(self) -> Mapping[int, None]:
        """No frame of a conversation without regions is annotated."""
        return {}

    mask = tags = None

    @property
    def attributes(self) -> dict[str, int]:
        return {}

    def to_mask(self) -> None:
        return None


def write_chats(path: str | os.PathLike, chats: Iterable[Chat]) -> int:
    """Writes a record file (.jsonl), one conversation a line, and returns how many. It appears whole or not at all."""
    return write_lines(path, map(chat_line, chats))


def chat_line(chat: Chat) -> bytes:
    return (json.dumps(chat.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


def named_regions(turns: Sequence[Turn]) -> tuple[list[int], list[Turn]]:
    """Numbers of the regions that some turns' questions name, in order, and the turns with numbers that count only
    those. An answer names them in words, [0]; a turn whose answer names a region that no question does is left out.

    >>> named_regions([Turn("Is <region4> on <region2>?", "<region4> is."), Turn("Where?", "On <region7>.")])
    ([2, 4], [Turn(question='Is <region1> on <region0>?', answer='[1] is.')])
    """
    kept = list(turns)
    while True:
        named = {int(number) for turn in kept for number in NUMBERED.findall(turn.question)}
        fine = [turn for turn in kept if named.issuperset(map(int, NUMBERED.findall(turn.answer or "")))]
        if len(fine) == len(kept):
            break
        kept = fine
    places = {number: place for place, number in enumerate(sorted(named))}
    found = [
        Turn(
            renumbered(turn.question, places.__getitem__),
            None if turn.answer is None else renumbered(turn.answer, places.__getitem__, "[{}]"),
        )
        for turn in kept
    ]
    return sorted(named), found


def _turns(values: object) -> tuple[Turn, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"turns {cut(str(values))}: expected a list of objects with question and answer, at least one")
    turns = []
    for number, value in enumerate(values):
        if not isinstance(value, dict) or value.keys() - {"question", "answer"}:
            raise ValueError(f"turn {number}, {cut(str(value))}: expected an object with question and answer")
        try:
            question = text_of(value, "question", empty=False)
            answer = None if value.get("answer") is None else text_of(value, "answer", empty=False)
        except ValueError as error:
            raise ValueError(f"turn {number}: {error}") from None
        if answer is None and number < len(values) - 1:
            raise ValueError(f"turn {number}: no answer; only the last question may be without one")
        if answer is not None and (mention := NUMBERED.search(whole_text(answer, "answer"))):
            raise ValueError(
                f"turn {number}: answer {cut(answer)!r} names {mention[0]}, but a model writes words; write "
                f"[{mention[1]}]"
            )
        turns.append(Turn(question, answer))
    return tuple(turns)


def region_in(entry: dict, scene: dict, name: str, where: str, keys: Sequence[str]) -> Region | ClipRegion:
    """A region of a record that has several. scene: keys of a record that say what it lies in; name: its id; where:
    what errors begin with; keys: those that an entry may have."""
    if unknown := entry.keys() - {*keys}:
        raise ValueError(f"{where}: unknown key {sorted(map(str, unknown))}; it has {list(keys)}")
    kind = ClipRegion if "video" in scene else Region
    try:
        return kind._from_dict(
            {**scene, "id": name, **{key: value for key, value in entry.items() if value is not None}}
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def whole_of(scene: dict, name: str) -> Region | ClipRegion:
    """A region that fills the picture, or the prompt frame of a clip: what a record without regions is checked by."""
    size = scene.get("frame_hw" if "video" in scene else "image_hw")
    box = [0, 0, *size[::-1]] if isinstance(size, list | tuple) and len(size) == 2 else [0, 0, 1, 1]
    if "video" not in scene:
        return Region._from_dict({**scene, "id": name, "box": box})
    return ClipRegion._from_dict({**scene, "id": name, "frames": {str(scene.get("prompt_frame")): {"box": box}}})
