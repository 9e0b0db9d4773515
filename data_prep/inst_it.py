r"""Inst-It Bench, questions about numbered things in pictures and videos -> question file.

    python -m data_prep.inst_it --part choices --annotations image_multi_choices.json --images images_raw \
        --regions image_regions.json --out data/inst_it_image/test.jsonl
    python -m data_prep.inst_it --part open --annotations video_open_ended.json --videos videos_raw \
        --regions video_regions.json --out data/inst_it_video_open/test.jsonl

From huggingface.co/datasets/Inst-IT/Inst-It-Bench: {image,video}_multi_choices.json and _open_ended.json, lists of
{"question_id", "image_path" or "video_path", "question", "answer", "options": {"A": ...}}; the dataset's own form, with
choice_a to choice_d, is read too. Texts name things by the numbers that are drawn on images_vpt and videos_vpt: "[3]".

Models with regions are asked about the plain pictures, images_raw and videos_raw, and must be told where [3] is. The
release has {image,video}_instance_captions_masks.json, whose layout is not documented; --regions takes it in a form of
our own: {question's image or video id, or its path's last part: {"3": {"box": [...]}}} of pictures, and {"3": {frame:
{"box": [...]}}} of videos, as in a clip file. A number without a place stays a number in brackets. Without --regions
all do: then give the pictures with drawn numbers, which are what others are asked about.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.counts import Tally, tell
from data_prep.question_converter import ClipScenes, PictureScenes, place_of, write
from dynrefer.data.json_files import read_items, read_object
from dynrefer.errors import Parser, run_command

NUMBER = re.compile(r"\[(\d+)\]")
LICENCE = "Annotations: Inst-It Bench, research use; pictures and videos: their owners' terms"


def questions(
    path: Path, part: str, scenes: PictureScenes | ClipScenes, named: Mapping[str, Any], tally: Tally
) -> Iterator[dict]:
    """Records in the order of the file."""
    of_clips = isinstance(scenes, ClipScenes)
    kind = "video" if of_clips else "image"
    for number, entry in enumerate(read_items(path, "item")):
        where = f"{path}: entry {number}"
        with tally.entries("questions"):
            keys = (f"{kind}_path", "question", "answer", "question_id")
            if not isinstance(entry, dict) or (missing := [key for key in keys if not isinstance(entry.get(key), str)]):
                lacking = missing[0] if isinstance(entry, dict) else "object"
                raise ValueError(f"{where}: no {lacking}; is it a {kind} file of Inst-It Bench?")
            name = PurePosixPath(entry[f"{kind}_path"]).name
            scene = scenes.of([name], where) if isinstance(scenes, ClipScenes) else scenes.of(name, where)
            places = named.get(name) or named.get(str(entry.get(f"{kind}_id"))) or {}
            choices = _choices(entry, where) if part == "choices" else []
            texts, regions, frame = with_regions([entry["question"], *choices], places, of_clips, tally)
            record = {"id": f"inst-it-{kind}-{part}-{entry['question_id']}", "split": "test", "licence": LICENCE}
            record |= scene | {"source": "inst-it", "question": texts[0], "choices": texts[1:], "regions": regions}
            record |= {"prompt_frame": frame} if of_clips else {}
            if part == "choices":
                yield record | {"answer": place_of(entry["answer"], choices, choices, where)}
            else:
                yield record | {"answers": [entry["answer"]]}


def with_regions(
    texts: Sequence[str], places: Mapping[str, Any], of_clips: bool, tally: Tally
) -> tuple[list[str], list[dict], int]:
    """Texts with <region0>, ... for the numbers that have a place, these regions, and the frame that shows them all."""
    numbers = list(dict.fromkeys(n for text in texts for n in NUMBER.findall(text)))
    there = [n for n in numbers if places.get(n)]
    frame = 0
    if of_clips and there:
        known = [{int(f) for f, at in places[n].items() if at is not None} for n in there]
        together = sorted(set.intersection(*known))
        tally["questions whose things are in no frame together, which stay numbers"] += not together
        there, frame = (there, together[0]) if together else ([], 0)
    tally["numbers without a place, which stay numbers"] += len(numbers) - len(there)
    written = [NUMBER.sub(lambda m: f"<region{there.index(m[1])}>" if m[1] in there else m[0], text) for text in texts]
    return written, [{"frames": places[n]} if of_clips else dict(places[n]) for n in there], frame


def _choices(entry: dict, where: str) -> list[str]:
    options = entry.get("options") or {letter: entry.get(f"choice_{letter.lower()}") for letter in "ABCD"}
    choices = [text for text in options.values() if isinstance(text, str) and text.strip()]
    if len(choices) < len(options) or len(choices) < 2:
        raise ValueError(f"{where}: options {str(options)[:80]}: expected texts, A to D")
    return choices


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.inst_it", description=__doc__.splitlines()[0])
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--images", type=Path, help="folder of the pictures; records point into it")
    folder.add_argument("--videos", type=Path, help="folder of the videos' folders of frames")
    parser.add_argument("--part", required=True, choices=("choices", "open"))
    parser.add_argument("--annotations", type=Path, required=True, help="the questions' JSON")
    parser.add_argument("--regions", type=Path, metavar="FILE", help="where things are, in the form told above")
    parser.add_argument("--out", type=Path, required=True, help="question file to write, .jsonl")
    parser.add_argument("--strict", action="store_true", help="a faulty question is an error, instead of left out")
    return run_command("data_prep.inst_it", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    named = read_object(args.regions) if args.regions else {}
    scenes = ClipScenes(args.videos, args.out) if args.videos else PictureScenes(args.images, args.out)
    write(args.out, questions(args.annotations, args.part, scenes, named, tally), tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
