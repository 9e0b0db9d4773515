r"""VideoRefer-Bench and NL-Refer: objects of videos described, and questions about them -> clip or question file.

    python -m data_prep.videorefer --bench D --annotations VideoRefer-Bench-D.json --videos Panda-70M-part \
        --out data/videorefer_d/test.jsonl
    python -m data_prep.videorefer --bench Q --annotations VideoRefer-Bench-Q.json --videos VideoRefer-Bench-Q \
        --out data/videorefer_q/test.jsonl
    python -m data_prep.videorefer --bench Q --by-text --annotations refined-VideoRefer-Bench-Q.json \
        --videos VideoRefer-Bench-Q --out data/nl_refer_q/test.jsonl

From huggingface.co/datasets/DAMO-NLP-SG/VideoRefer-Bench (videos: its Panda-70M part; MeViS valid_u and DAVIS, as the
`video` of an entry names them), and huggingface.co/datasets/BBBBCHAN/NL-Refer (bench/, the same items with objects
named in words instead of masks, CC BY-NC 4.0).

D: 400 entries {"id", "video", "caption", "frame_idx", "annotation": [{frame: {"segmentation": run lengths}}]}; a record
is a clip with its description. Q: 1,000 entries {"Question", "options", "Answer", "type", ...}; a record is a question
with four choices, "<object3><region>" and later "<object3>" one region. An object is shown in frame_idx, as in
single-frame mode; the masks of other frames are kept too, for models that take them. Where an object has no mask in
that frame, the frame in which most objects have one is shown, and the nearest mask of those that lack it; both are
counted.

--by-text: entries of NL-Refer, whose Question, or first of two `conversations` (the second is the description), names
the object between <ins> and </ins>. Records are questions without regions about the whole clip.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, check_counts, tell
from data_prep.question_converter import ClipScenes, place_of, question_arguments, without_labels, write
from data_prep.video_converter import write as write_clip_file
from dynrefer.data.clips import ClipRegion
from dynrefer.data.json_files import read_items
from dynrefer.errors import run_command

NUMBERS = {"D": 400, "Q": 1000}
OBJECT = re.compile(r"<object(\d+)>\s*<region>|<region>|<object(\d+)>")
LICENCE = {
    False: "Annotations: VideoRefer-Bench, research use; videos: Panda-70M, MeViS, DAVIS",
    True: "Annotations: NL-Refer, CC BY-NC 4.0; videos: Panda-70M, MeViS, DAVIS",
}


def clips(path: Path, scenes: ClipScenes, tally: Tally) -> Iterator[ClipRegion]:
    """Records of the D part, in the order of the file."""
    for number, entry in enumerate(read_items(path, "item")):
        where = f"{path}: entry {number}"
        tally["entries"] += 1
        with tally.entries("entries"):
            caption, annotation = _texts(entry, ("caption",), where)[0], _annotation(entry, 1, where)
            scene, regions = shown(entry, annotation, scenes.of([entry["video"]], where), where, tally)
            record = {"id": f"videorefer-d-{entry.get('id', number)}", **scene, **regions[0], "captions": [caption]}
            record |= {"split": "test", "source": "videorefer-d", "licence": LICENCE[False]}
            yield ClipRegion.from_dict(record, where)


def questions(path: Path, scenes: ClipScenes, bench: str, by_text: bool, tally: Tally) -> Iterator[dict]:
    """Records of the Q part, or of NL-Refer's items, in the order of the file."""
    name = f"{'nl-refer' if by_text else 'videorefer'}-{bench.lower()}"
    for number, entry in enumerate(read_items(path, "item")):
        where = f"{path}: entry {number}"
        tally["entries"] += 1
        with tally.entries("entries"):
            record = {"id": f"{name}-{entry.get('id', number)}", "source": name, "licence": LICENCE[by_text]}
            record |= {"split": "test"}
            if bench == "D":
                asked, answer = _conversation(entry, where)
                found: dict[str, Any] = {"question": asked, "answers": [answer]}
            else:
                asked, label, kind = _texts(entry, ("Question", "Answer", "type"), where)
                options = entry.get("options")
                if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
                    raise ValueError(f"{where}: options {str(options)[:60]}: expected a list of texts")
                choices = without_labels(options)
                found = {"question": asked, "choices": choices, "kinds": [kind]}
                found["answer"] = place_of(label, options, choices, where)
            scene = scenes.of([entry["video"]], where)
            if by_text:
                found["question"] = re.sub(r"</?ins>|<region>|<video>\n?", "", found["question"])
                yield record | found | scene | {"prompt_frame": 0, "regions": []}
                continue
            texts, count = named([found["question"], *found["choices"]])
            scene, regions = shown(entry, _annotation(entry, count, where), scene, where, tally)
            yield record | found | scene | {"question": texts[0], "choices": texts[1:], "regions": regions}


def named(texts: Sequence[str]) -> tuple[list[str], int]:
    """Texts with <region0>, ... for every "<object3><region>", "<region>" and later "<object3>"; how many regions.

    >>> named(["Is <object3><region> by <object1><region>?", "<object3> left", "The dog<region>"])
    (['Is <region0> by <region1>?', '<region0> left', 'The dog <region2>'], 3)
    """
    numbers: dict[str, int] = {}
    count = 0

    def mention(match: re.Match) -> str:
        nonlocal count
        if match[2] is not None:  # an object, named again
            return f"<region{numbers[match[2]]}>" if match[2] in numbers else match[0]
        if match[1] is not None:
            numbers[match[1]] = count
        count += 1
        blank = " " if match[1] is None and match.start() and not match.string[match.start() - 1].isspace() else ""
        return f"{blank}<region{count - 1}>"

    return [OBJECT.sub(mention, text) for text in texts], count


def shown(entry: dict, annotation: list[dict], scene: dict, where: str, tally: Tally) -> tuple[dict, list[dict]]:
    """The clip with the frame that shows its objects, and these with their masks by frame."""
    places = [
        {int(frame): {"mask": each["segmentation"]} for frame, each in one.items() if each.get("segmentation")}
        for one in annotation
    ]
    if not all(places):
        raise ValueError(f"{where}: an object without a mask in any frame")
    frame = int(entry["frame_idx"])
    if not all(frame in one for one in places):
        tally["entries that show another frame than theirs, in which an object has no mask"] += 1
        every = sorted({number for one in places for number in one})
        frame = max(every, key=lambda number: (sum(number in one for one in places), -abs(number - frame)))
        for one in places:
            if frame not in one:
                tally["objects shown by the nearest mask"] += 1
                one[frame] = one[min(one, key=lambda number: abs(number - frame))]
    regions = [{"frames": {str(number): one[number] for number in sorted(one)}} for one in places]
    return scene | {"prompt_frame": frame}, regions


def _annotation(entry: dict, count: int, where: str) -> list[dict]:
    annotation = entry.get("annotation")
    good = isinstance(annotation, list) and len(annotation) == count and str(entry.get("frame_idx", "")).isdecimal()
    if not good or not all(
        isinstance(one, dict) and all(isinstance(each, dict) and key.isdecimal() for key, each in one.items())
        for one in annotation
    ):
        raise ValueError(
            f"{where}: expected frame_idx, and an annotation of {count} objects, each frame -> segmentation; is it "
            "VideoRefer-Bench? (--by-text is for NL-Refer)"
        )
    return annotation


def _texts(entry: Any, keys: Sequence[str], where: str) -> list[str]:
    for key in (*keys, "video"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise ValueError(f"{where}: no text {key!r}; expected an entry of VideoRefer-Bench")
    return [entry[key] for key in keys]


def _conversation(entry: Any, where: str) -> tuple[str, str]:
    try:
        asked, answer = (turn["value"] for turn in entry["conversations"][:2])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected `conversations`, a question and its description ({error!r})") from error
    return asked, answer


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("videorefer", __doc__.splitlines()[0], "videos")
    parser.add_argument("--bench", required=True, choices=NUMBERS, help="D, descriptions, or Q, questions")
    parser.add_argument("--annotations", type=Path, required=True, help="VideoRefer-Bench-D.json or -Q.json")
    parser.add_argument("--by-text", action="store_true", help="NL-Refer's: objects are named in words")
    return run_command("data_prep.videorefer", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally, scenes = Tally(args.strict), ClipScenes(args.videos, args.out)
    if args.bench == "D" and not args.by_text:
        write_clip_file(args.out, clips(args.annotations, scenes, tally), tally)
    else:
        write(args.out, questions(args.annotations, scenes, args.bench, args.by_text, tally), tally)
    check_counts(tally, {"entries": NUMBERS[args.bench]}, str(args.annotations), args.subset)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
