r"""Causal-VidQA, six questions a clip about what is, why, what comes next and what if -> question file.

    python -m data_prep.causal_vidqa --split val --texts QA --ids split/valid.pkl --videos causal_vidqa/videos \
        --regions regions.json --out data/causal_vidqa/val.jsonl

From github.com/bcmi/Causal-VidQA: "Text annotation" (QA.tar: a folder VIDEO a clip with text.json and answer.json) and
"Dataset Split" (a pickle with the videos of each split; a text file with one a line does as well). Videos are
Kinetics-700's: VIDEO.mp4, another ending, or a folder of frames, under --videos.

Texts name things in brackets, "[person_1]". Where they are in the frames comes with the download "Original Data", whose
layout is not documented. --regions takes it in a form of our own:

    {"VIDEO": {"person_1": {"0": {"box": [40, 30, 180, 200]}, "4": null}, "car_1": {"0": {"mask": {...}}}}}

frame -> where the thing is, as in a clip file; all of a video's are shown in one frame, the first in which all that a
question names have a place. Without the file, or for a thing that is not in it, its name stays in the text as words:
that is what models without regions are asked.

One record is one question of five choices. Its kinds: description, explanation, prediction answer, prediction reason,
counterfactual answer, counterfactual reason; an answer and its reason are of one group. A reason is asked with the
question alone, or, with --gold-answers, with the right answer too; nobody has published which of both they ask.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, tell
from data_prep.question_converter import ClipScenes, question_arguments, write
from dynrefer.data.json_files import read_object
from dynrefer.errors import run_command
from dynrefer.files import read_text
from dynrefer.plain_pickle import read_plain_pickle

KINDS = (  # short name, key of the files, "answer" or "reason", kind
    ("D", "descriptive", "answer", "description"),
    ("E", "explanatory", "answer", "explanation"),
    ("PA", "predictive", "answer", "prediction answer"),
    ("PR", "predictive", "reason", "prediction reason"),
    ("CA", "counterfactual", "answer", "counterfactual answer"),
    ("CR", "counterfactual", "reason", "counterfactual reason"),
)
REASON = "\nWhat is the reason for the answer?"
TAG = re.compile(r"\[(.+?)\]")
ENDINGS = (".mp4", "", ".mkv", ".webm", ".avi")
LICENCE = "Annotations: Causal-VidQA, research use; videos: Kinetics-700, their YouTube owners"


def questions(
    texts: Path,
    ids: Sequence[str],
    scenes: ClipScenes,
    regions: Mapping[str, Any],
    split: str,
    gold: bool,
    tally: Tally,
) -> Iterator[dict]:
    """Records of some videos, six each, in the order of the ids."""
    for video in ids:
        text, answer = (read_object(texts / video / name) for name in ("text.json", "answer.json"))
        with tally.entries("videos"):
            scene = scenes.of([f"{video}{ending}" for ending in ENDINGS], f"{texts / video}")
            tally["videos"] += 1
            for short, key, part, kind in KINDS:
                asked, choices, place = _entry(text, answer, key, part, texts / video)
                if part == "reason":
                    first = text[key]["answer"][answer[key]["answer"]] if gold else ""
                    asked += (
                        f"\nAnswer: {first}\nWhat is the reason?" if gold else "\nWhat is the reason for the answer?"
                    )
                named = regions.get(video) or {}
                record = {"id": f"causal-vidqa-{split}-{video}-{short}", "answer": place, "kinds": [kind]}
                record |= {"group": f"{video}-{key}", "split": split, "source": "causal-vidqa", "licence": LICENCE}
                yield record | scene | with_regions(asked, choices, named, tally)


def with_regions(asked: str, choices: Sequence[str], named: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """The question and choices with <region0>, <region1>, ... for the things that have a place, in the order in which
    the texts first name them, and these regions with the frame that shows them."""
    tags = list(dict.fromkeys(tag for text in (asked, *choices) for tag in TAG.findall(text)))
    there = [tag for tag in tags if isinstance(named.get(tag), dict)]
    frame = next((f for f in _frames(named[there[0]]) if all(_shown(named[t], f) for t in there)), None) if there else 0
    if frame is None:
        tally["questions whose things are in no frame together, which are asked with their names"] += 1
        there, frame = [], 0
    tally["names in brackets without a place, which stay words"] += len(tags) - len(there)

    def written(text: str) -> str:
        return TAG.sub(lambda m: f"<region{there.index(m[1])}>" if m[1] in there else _words(m[1]), text)

    found = [{"category": _words(tag), "frames": named[tag]} for tag in there]
    texts = [written(text) for text in (asked, *choices)]
    return {"question": texts[0], "choices": texts[1:], "regions": found, "prompt_frame": frame}


def _frames(places: Mapping[str, Any]) -> list[int]:
    """Frames in which a thing has a place."""
    return sorted(int(frame) for frame, place in places.items() if place is not None and frame.isdecimal())


def _shown(places: Mapping[str, Any], frame: int) -> bool:
    return places.get(str(frame)) is not None


def _words(tag: str) -> str:
    """ "person_1" -> "person"."""
    return re.sub(r"[_\s]*\d+$", "", tag).replace("_", " ").strip() or tag


def _entry(text: dict, answer: dict, key: str, part: str, where: Path) -> tuple[str, list[str], int]:
    try:
        asked, choices, place = text[key]["question"], text[key][part], answer[key][part]
        good = isinstance(asked, str) and isinstance(choices, list) and all(isinstance(c, str) for c in choices)
        if not good or type(place) is not int or not 0 <= place < len(choices):
            raise ValueError(f"{key}: {part} {place!r} of {str(choices)[:60]}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected text.json with {key}: question and {part} (choices), and answer.json with the place of "
            f"the right one under the same keys ({type(error).__name__}: {error})"
        ) from error
    return asked, choices, place


def read_ids(path: Path) -> list[str]:
    """Videos of a split: a pickled list, or one a line."""
    ids = read_plain_pickle(path) if path.suffix in (".pkl", ".pickle") else read_text(path).split()
    if not isinstance(ids, (list, tuple, set)) or not ids or not all(isinstance(name, str) for name in ids):
        raise ValueError(f"--ids {path}: expected a list of video names")
    return list(ids)


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("causal_vidqa", __doc__.splitlines()[0], "videos")
    parser.add_argument("--split", required=True, help="split that the records say (train, val, test)")
    parser.add_argument("--texts", type=Path, required=True, help="folder QA, with one folder a video")
    parser.add_argument("--ids", type=Path, required=True, metavar="FILE", help="videos of the split")
    parser.add_argument("--regions", type=Path, metavar="FILE", help="where things are, in the form told above")
    parser.add_argument("--gold-answers", action="store_true", help="ask for reasons with the right answer")
    return run_command("data_prep.causal_vidqa", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    regions = read_object(args.regions) if args.regions else {}
    scenes = ClipScenes(args.videos, args.out)
    found = questions(args.texts, read_ids(args.ids), scenes, regions, args.split, args.gold_answers, tally)
    write(args.out, found, tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
