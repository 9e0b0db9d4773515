"""One clip from its regions to checked captions and conversations; and all clips of a file, side by side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.chat_converter import chat_of_clip
from data_prep.counts import Tally
from data_prep.regvid import prompts
from data_prep.regvid.desk import Desk, Question, Refused, Stopped
from data_prep.regvid.prompts import Unreadable
from data_prep.regvid.settings import RegvidConfig
from data_prep.regvid.shots import bare_shots, marked_shots
from dynrefer.data.chats import Chat, Turn, named_regions
from dynrefer.data.clips import ClipRegion
from dynrefer.data.records import RegionRecords

Value = TypeVar("Value")
UNCLEAR = "the captioner cannot make them out"
ALL_DENIED = "nothing of their caption was left by the check"
REFUSED = "a model refused to answer"
UNREADABLE = "an answer could not be read"


@dataclass
class Told:
    """What became of a clip. captions, briefs: region id -> text; turns: of the conversation, whose <region0> is the
    first of the clip's regions; left_out: region id -> (why, what was said)."""

    captions: dict[str, str] = field(default_factory=dict)
    briefs: dict[str, str] = field(default_factory=dict)
    turns: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)


class Teller:
    """Works on one clip: its regions are captioned, the captions checked, and instructions made of them."""

    def __init__(self, desk: Desk, cfg: RegvidConfig):
        self.desk, self.cfg = desk, cfg

    def read(self, question: Question, reader: Callable[[str], Value]) -> Value:
        """An answer in the form that was asked for; where it has another, it is asked for once more."""
        try:
            return reader(self.desk.ask(question))
        except Unreadable:
            again = replace(question, parts=(*question.parts, prompts.ONLY_JSON))
            return reader(self.desk.ask(again))

    def tell(self, path: Path, clips: Sequence[ClipRegion]) -> Told:
        """path: where the video lies; clips: its regions of one span. Their numbers are their places."""
        told = Told()
        nouns: dict[int, str] = {}
        for number, clip in enumerate(clips):
            self.careful(told, [clip], lambda number=number, clip=clip: nouns.update({number: self.noun(clip)}))
        raw = self.captions(told, path, clips, nouns)
        shots = bare_shots(path, clips[0], self.cfg.check_frames, self.cfg.side) if self.cfg.check else []
        for number, caption in raw.items():
            clip = clips[number]

            def check(clip=clip, caption=caption, noun=nouns[number]) -> None:
                checked = self.checked(told, caption, noun, shots) if self.cfg.check else caption
                if checked is None:
                    told.left_out[clip.id] = ALL_DENIED, caption
                    return
                told.captions[clip.id] = checked

            self.careful(told, [clip], check)
        if self.cfg.instructions:
            self.instruct(told, clips)
        return told

    def careful(self, told: Told, clips: Sequence[ClipRegion], work: Callable[[], None]) -> None:
        """Regions whose questions are refused or answered in no readable form are left out, not the clip."""
        try:
            work()
        except Refused as error:
            told.left_out |= {clip.id: (REFUSED, str(error)) for clip in clips}
        except Unreadable as error:
            told.left_out |= {clip.id: (UNREADABLE, str(error)) for clip in clips}

    def noun(self, clip: ClipRegion) -> str:
        if clip.category:
            return clip.category
        if clip.captions:
            return self.read(prompts.noun_question(clip.captions), prompts.read_noun)
        return "object"

    def captions(self, told: Told, path: Path, clips: Sequence[ClipRegion], nouns: dict[int, str]) -> dict[int, str]:
        """Number -> caption as the captioner has it."""
        found: dict[int, str] = {}
        rng = np.random.default_rng([self.cfg.seed, *clips[0].id.encode()])
        numbers = sorted(nouns)
        for start in range(0, len(numbers), self.cfg.regions_at_once):
            some = numbers[start : start + self.cfg.regions_at_once]
            chosen = [clips[number] for number in some]
            shots = marked_shots(path, chosen, some, self.cfg.frames, self.cfg.side, rng)

            def caption(some=some, shots=shots) -> None:
                question = prompts.caption_question(shots, {n: nouns[n] for n in some}, self.cfg.words)
                for number, text in self.read(question, lambda said: prompts.read_captions(said, some)).items():
                    if text is None:
                        told.left_out[clips[number].id] = UNCLEAR, nouns[number]
                    else:
                        found[number] = text

            self.careful(told, chosen, caption)
        return found

    def checked(self, told: Told, caption: str, noun: str, shots: Sequence) -> str | None:
        """A caption without what the checker denies; None where nothing is left."""
        questions = self.read(prompts.split_question(caption), prompts.read_questions)
        denied = []
        for start in range(0, len(questions), self.cfg.questions_at_once):
            some = questions[start : start + self.cfg.questions_at_once]
            try:
                letters = self.read(
                    prompts.check_question(shots, some, first=not start),
                    lambda said, some=some: prompts.read_letters(said, len(some)),
                )
            except Unreadable:  # only a definite no takes a statement away
                told.counts["checks that could not be read"] += len(some)
                continue
            told.counts["statements checked"] += len(some)
            denied += [one for one, letter in zip(some, letters, strict=True) if letter == prompts.DENIED]
        told.counts["statements denied"] += len(denied)
        if len(denied) == len(questions):
            return None
        if not denied and not prompts.DRAWN.search(caption):
            return caption
        told.counts["captions written anew"] += 1
        return prompts.read_rewritten(self.desk.ask(prompts.rewrite_question(caption, noun, denied)))

    def instruct(self, told: Told, clips: Sequence[ClipRegion]) -> None:
        """A summary of each caption, and a conversation about all. What fails here leaves its caption as it is."""
        for region_id, caption in told.captions.items():
            try:
                told.briefs[region_id] = self.read(prompts.brief_question(caption), prompts.read_brief)
            except (Refused, Unreadable):
                told.counts["summaries left out: no usable answer"] += 1
        known = {n: told.captions[clip.id] for n, clip in enumerate(clips) if clip.id in told.captions}
        if not known:
            return
        try:
            told.turns, bad = self.read(prompts.talk_question(known), lambda said: prompts.read_talk(said, list(known)))
            told.counts["turns left out: no number of a region in the question, or one in the answer"] += bad
        except (Refused, Unreadable):
            told.counts["conversations left out: no usable answer"] += 1


# ------------------------------------------------------------------------------------------------ all clips


def groups_of(records: RegionRecords, limit: int | None) -> list[list[int]]:
    """Numbers of the records of every clip: of one video, one span."""
    groups = records.example_groups()
    count = len(groups) if limit is None else min(limit, len(groups))
    return [[int(member) for member in groups.members(number)] for number in range(count)]


def tell_all(
    records: RegionRecords, groups: Sequence[Sequence[int]], desk: Desk, cfg: RegvidConfig
) -> Iterator[tuple[int, Told]]:
    """(number of a group, what became of it), as they are done, `clips_at_once` side by side. The first error stops all
    and is raised; questions that are on the way are answered first."""
    teller, order = Teller(desk, cfg), iter(range(len(groups)))

    def work(number: int) -> Told:
        paths, clips = zip(*records.fetch(groups[number]), strict=True)
        return teller.tell(paths[0], clips)

    pool = ThreadPoolExecutor(cfg.clips_at_once)
    running: dict[Future, int] = {}
    try:
        while True:
            while len(running) < cfg.clips_at_once and (number := next(order, None)) is not None:
                running[pool.submit(work, number)] = number
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                yield running.pop(future), future.result()
    except BaseException as error:
        desk.stop()
        raise cause_of(error, running) from None
    finally:
        desk.stop()
        pool.shutdown(cancel_futures=True)


def cause_of(error: BaseException, running: dict[Future, int]) -> BaseException:
    """The error that stopped the others, where `error` is only that they were."""
    if not isinstance(error, Stopped):
        return error
    wait(running)
    errors = [future.exception() for future in running if not future.cancelled()]
    return next((other for other in errors if other is not None and not isinstance(other, Stopped)), error)


# ------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Results:
    """What became of all clips, as records. groups, told: of each clip its records and what was told of them; prefix:
    what leads from the folder of the new files to that of the old one."""

    records: RegionRecords
    groups: Sequence[Sequence[int]]
    told: Sequence[Told]
    prefix: str = ""

    def clips(self) -> Iterator[tuple[list[ClipRegion], Told]]:
        for members, told in zip(self.groups, self.told, strict=True):
            found = self.records.fetch(members)
            yield [replace(clip, video=os.path.normpath(f"{self.prefix}/{clip.video}")) for _, clip in found], told

    def captioned(self) -> Iterator[ClipRegion]:
        """The regions with their checked captions in place of what was said of them before."""
        for clips, told in self.clips():
            for clip in clips:
                if clip.id in told.captions:
                    yield replace(clip, captions=(told.captions[clip.id],))

    def conversations(self, seed: int) -> Iterator[Chat]:
        """Of every region a detailed and a brief one, each with one of the ways of asking; of every clip a longer
        one."""
        for clips, told in self.clips():
            for clip in clips:
                rng = np.random.default_rng([seed, *clip.id.encode()])
                kinds = (
                    ("detailed", told.captions, prompts.DETAILED),
                    ("brief", told.briefs, prompts.BRIEF),
                )
                for kind, texts, ways in kinds:
                    way = ways[rng.integers(len(ways))]  # drawn for all, so that one does not change the other
                    if clip.id in texts:
                        turn = Turn(way.replace("<region>", "<region0>"), texts[clip.id])
                        yield chat_of_clip(f"{clip.id}-{kind}", [clip], [turn], kind)
            if told.turns:
                numbers, turns = named_regions([Turn(question, answer) for question, answer in told.turns])
                yield chat_of_clip(f"{clips[0].id}-conversation", [clips[n] for n in numbers], turns, "conversation")


def count_up(tally: Tally, told: Sequence[Told]) -> None:
    """What was left out, and other counts, in the order of the clips."""
    for one in told:
        for region_id, (why, said) in one.left_out.items():
            tally.leave_out("regions", why, region_id, f"{region_id}: {why} ({said[:100]})")
        for name, count in one.counts.items():
            tally[name] += count
