"""One record, one question about a picture or a clip, and regions in it: what benchmarks that ask are made of.

A line of a question file (JSONL), with only the keys that are needed and some optional ones:

    {"id": "7", "image": "a.jpg", "image_hw": [480, 640], "question": "What does <region0> hold?",
     "regions": [{"box": [40, 30, 180, 200]}], "choices": ["a cup", "a pen"], "answer": 1}
    {"id": "8", "video": "a.mp4", "num_frames": 120, "frame_hw": [480, 640], "prompt_frame": 30,
     "question": "What does <region0> do?", "answers": ["it jumps"],
     "regions": [{"frames": {"30": {"box": [40, 30, 180, 200]}}}]}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynrefer.data.chats import OF_CLIP, OF_PICTURE, Chat, Turn, region_in, whole_of
from dynrefer.data.clips import ClipRegion
from dynrefer.data.records import Checked, Region, text_of, texts_of
from dynrefer.errors import cut
from dynrefer.files import write_lines
from dynrefer.mentions import check_all_named, split_mentions

OWN = ("id", "question", "regions", "choices", "answer", "answers", "kinds", "group", "source", "licence", "split")
OF_A_REGION = {False: ("box", "mask", "category"), True: ("frames", "category")}  # of a picture, of a clip


@dataclass(frozen=True)
class Clip:
    """The part of a video that a question is about, as of `ClipRegion`."""

    id: str
    video: str
    num_frames: int
    frame_hw: tuple[int, int]
    prompt_frame: int
    end_frame: int
    frame_rate: float | None = None


@dataclass(frozen=True)
class Question(Checked):
    """A question with what is known of its answer.

    id: unique in its file. image: path of the picture or video. image_hw: (height, width). regions: in the order in
    which texts name them, <region0>, <region1>, ...; none for a question about the whole. choices: answers to choose
    from, () where it is answered freely. answer: place of the right one, -1 where none is, None where nobody says.
    answers: right answers in words. kinds: what it asks for; scores of each kind stand beside the whole. group:
    questions that count together, such as an answer and its reason; "" for none. clip: None for a picture.
    """

    id: str
    image: str
    image_hw: tuple[int, int]
    question: str
    regions: tuple[Region | ClipRegion, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None
    answers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    group: str = ""
    clip: Clip | None = None
    source: str = ""
    licence: str = ""
    split: str = ""

    @classmethod
    def _from_dict(cls, d: dict) -> "Question":
        if not isinstance(d, dict):
            raise ValueError(f"{type(d).__name__} instead of a record; a record is a JSON object")
        of_clip = "video" in d
        keys = OF_CLIP if of_clip else OF_PICTURE
        known = {*OWN, *keys}
        if unknown := d.keys() - known:
            raise ValueError(f"unknown key {sorted(map(str, unknown))}; a question has {sorted(known)}")
        name = text_of(d, "id", empty=False)
        question = text_of(d, "question", empty=False)
        entries = d.get("regions") or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"regions {str(entries)[:60]}: expected a list of regions")
        scene = {key: d[key] for key in keys if d.get(key) is not None}
        whole = whole_of(scene, name)
        regions = tuple(
            region_in(entry, scene, f"{name}:{number}", f"region {name}:{number}", OF_A_REGION[of_clip])
            for number, entry in enumerate(entries)
        )
        choices = texts_of(d.get("choices") or (), "choices")
        answer = d.get("answer")
        if answer is not None and (type(answer) is not int or not -1 <= answer < len(choices)):
            raise ValueError(
                f"answer {cut(str(answer))}: expected the place of one of the {len(choices)} choices, from 0 on, or -1"
            )
        if len({choice.strip() for choice in choices}) < len(choices):
            raise ValueError(f"choices {cut(str(list(choices)))}: expected some that differ")
        return cls(
            id=name,
            image=whole.image,
            image_hw=whole.image_hw,
            question=question,
            regions=regions,
            choices=choices,
            answer=answer,
            answers=texts_of(d.get("answers") or (), "answers"),
            kinds=texts_of(d.get("kinds") or (), "kinds"),
            group=text_of(d, "group"),
            clip=Clip(name, *(getattr(whole, key) for key in OF_CLIP)) if of_clip else None,
            source=text_of(d, "source"),
            licence=text_of(d, "licence"),
            split=text_of(d, "split"),
        )

    def to_dict(self) -> dict:
        """The record as JSON types; `Question.from_dict` reads it back."""
        if self.clip is None:
            scene: dict[str, Any] = {"image": self.image, "image_hw": list(self.image_hw)}
        else:
            scene = {key: getattr(self.clip, key) for key in OF_CLIP}
            scene["frame_hw"] = list(self.clip.frame_hw)
        keys = OF_A_REGION[self.clip is not None]
        regions = [{key: value for key, value in region.to_dict().items() if key in keys} for region in self.regions]
        lists = {key: list(getattr(self, key)) for key in ("choices", "answers", "kinds")}
        texts = {key: getattr(self, key) for key in ("group", "source", "licence", "split")}
        own = {"id": self.id, "question": self.question, "regions": regions, "answer": self.answer}
        return {**own, **lists, **texts, **scene}

    @property
    def example(self) -> tuple[str, str]:
        """Every question is an example of its own."""
        return "question", self.id

    @property
    def chat(self) -> Chat:
        """What a model is asked. ValueError for a mention of a region that is not there, and a region that the question
        does not name."""
        names = [region.id for region in self.regions]
        try:
            check_all_named([split_mentions(self.question, names, brackets=False)], names)
        except ValueError as error:
            raise ValueError(f"question {self.id}: {error}") from error
        return self._chat(None, self.choices)

    @property
    def told(self) -> Chat | None:
        """What a model learns of it: the conversation with its right answer, which is yet to be checked; None where
        that is not known."""
        if self.choices:
            answer = None if self.answer is None or self.answer < 0 else self.choices[self.answer]
        else:
            answer = self.answers[0] if self.answers else None
        return None if answer is None else self._chat(answer)

    def _chat(self, answer: str | None, choices: tuple[str, ...] = ()) -> Chat:
        span = () if self.clip is None else ("num_frames", "prompt_frame", "end_frame", "frame_rate")
        return Chat(
            id=self.id,
            image=self.image,
            image_hw=self.image_hw,
            regions=self.regions,
            turns=(Turn(self.question, answer),),
            is_clip=self.clip is not None,
            **{key: getattr(self.clip, key) for key in span},
            source=self.source,
            licence=self.licence,
            split=self.split,
            choices=choices,
        )

    # what evaluation asks of a region
    @property
    def captions(self) -> tuple[str, ...]:
        return self.answers

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The whole picture."""
        return 0.0, 0.0, float(self.image_hw[1]), float(self.image_hw[0])

    @property
    def mask(self) -> None:
        return None

    @property
    def category(self) -> None:
        return None

    @property
    def tags(self) -> None:
        return None

    @property
    def attributes(self) -> dict[str, int]:
        return {}


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Writes a question file (.jsonl), one a line, and returns how many. It appears whole or not at all."""
    import orjson

    return write_lines(path, (orjson.dumps(q.to_dict(), option=orjson.OPT_APPEND_NEWLINE) for q in questions))
