"""What the converters of benchmarks that ask questions share: options, pictures and clips, labels, question files.

python -m data_prep.causal_vidqa     Causal-VidQA: six questions a clip
python -m data_prep.vcr              VCR: answers and their reasons
python -m data_prep.pope             POPE: is it there?
python -m data_prep.selection        RefCOCOg: which of the boxes is meant?
python -m data_prep.videorefer       VideoRefer-Bench and NL-Refer
python -m data_prep.gar_bench        GAR-Bench
python -m data_prep.vip_bench        ViP-Bench
python -m data_prep.vp_bench         VP-Bench, stage 2
python -m data_prep.inst_it          Inst-It Bench
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, nothing
from data_prep.video_converter import Videos
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.questions import Question, write_questions
from dynrefer.errors import Parser
from dynrefer.videos import open_video

LABEL = re.compile(r"\s*\(?([A-Za-z])[.):]\s*(?=\S)")


def question_arguments(name: str, description: str, scenes: str = "images") -> argparse.ArgumentParser:
    """The options that converters of questions share. scenes: "images" or "videos"."""
    parser = Parser(prog=f"python -m data_prep.{name}", description=description)
    parser.add_argument(f"--{scenes}", type=Path, required=True, help=f"folder of the {scenes}; records point into it")
    parser.add_argument("--out", type=Path, required=True, help="question file to write, .jsonl")
    parser.add_argument("--subset", action="store_true", help="the files are knowingly a part: counts may differ")
    parser.add_argument("--strict", action="store_true", help="a faulty question is an error, instead of left out")
    return parser


class PictureScenes:
    """Pictures in a folder, as question records name them."""

    def __init__(self, folder: Path, out: Path):
        self.images = ImageFolder(folder, out)
        self._known: dict[str, dict] = {}

    def of(self, name: str, where: str) -> dict[str, Any]:
        """{"image", "image_hw"}; BadEntry, beginning with `where`, for a picture that is not there or not readable."""
        if name not in self._known:
            path = self.images.path(name, where)
            self._known[name] = {"image": path, "image_hw": list(self.images.readable_hw(path, where))}
        return dict(self._known[name])


class ClipScenes:
    """Videos in a folder, as question records name them; each is opened once, for its length and size."""

    def __init__(self, folder: Path, out: Path):
        self.videos = Videos(folder, out)
        self._known: dict[str, dict] = {}

    def of(self, names: Sequence[str], where: str) -> dict[str, Any]:
        """{"video", "num_frames", "frame_hw", "frame_rate"} of the first of these names that is there. ValueError,
        beginning with `where`, where none is."""
        if names[0] not in self._known:
            found = next((name for name in names if (self.videos.folder / name).exists()), names[0])
            path = self.videos.find(found, where)
            video = open_video(self.videos.folder / found)
            scene = {"video": path, "num_frames": video.num_frames, "frame_hw": list(video.frame_hw)}
            self._known[names[0]] = scene | {"frame_rate": video.frame_rate}
        return dict(self._known[names[0]])


def write(out: Path, questions: Iterable[dict], tally: Tally) -> None:
    """Checks records, dicts as of a question file, and writes them, whole or not at all. A faulty one is left out and
    counted; ValueError where none is left."""
    if not out.name.endswith(".jsonl"):
        raise ValueError(f"--out {out}: expected a name that ends with .jsonl")

    def checked() -> Iterator[Question]:
        seen: set[str] = set()
        for d in questions:
            with tally.entries("questions"):
                question = Question._from_dict(d)
                if question.id in seen:
                    raise ValueError(f"question {question.id!r} is there twice; ids are unique")
                seen.add(question.id)
                tally["questions"] += 1
                tally["regions"] += len(question.regions)
                tally["questions without a region"] += not question.regions
                yield question
        if not seen:
            raise nothing(out, tally)

    write_questions(out, checked())


def without_labels(choices: Sequence[str]) -> list[str]:
    """Choices without the letters before them, where all have theirs in order.

    >>> without_labels(["(A) A helmet", "(B) A hat"]), without_labels(["A. red", "a dog"])
    (['A helmet', 'A hat'], ['A. red', 'a dog'])
    """
    found = [LABEL.match(choice) for choice in choices]
    letters = [match[1].upper() if match else "" for match in found]
    if letters != [chr(ord("A") + k) for k in range(len(choices))]:
        return [choice.strip() for choice in choices]
    return [choice[match.end() :].strip() for choice, match in zip(choices, found, strict=True) if match]


def place_of(label: Any, choices: Sequence[str], given: Sequence[str], where: str) -> int:
    """The place of the right answer, given as a letter, "(B) a hat", the text of a choice, or its number from 0 on.
    choices: with their letters, as the file has them; given: without. ValueError for what is none of these."""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return label
    text = str(label).strip()
    for place, choice in enumerate(choices):
        letter = chr(ord("A") + place)
        if text in (choice.strip(), given[place]) or re.fullmatch(rf"\(?{letter}[.):]?", text, re.IGNORECASE):
            return place
    if (match := LABEL.match(text)) and ord(match[1].upper()) - ord("A") < len(choices):
        return ord(match[1].upper()) - ord("A")
    raise ValueError(f"{where}: answer {str(label)[:60]!r}: expected one of its {len(choices)} choices or its letter")


def all_named(text: str, num_regions: int, tally: Tally) -> str:
    """A question that names all of its regions: those that it does not name are listed before it, and counted."""
    missing = [n for n in range(num_regions) if f"<region{n}>" not in text]
    if not missing:
        return text
    tally["questions that name not all of their regions, which are listed before them"] += 1
    return f"Regions: {', '.join(f'<region{n}>' for n in missing)}. {text}"
