r"""MotionAtlas-Bench, how a masked thing of a video moves -> clip file, and the questions about its descriptions.

    python -m data_prep.motionatlas --mcqs motionatlas-bench/mcqs.jsonl --videos motionatlas-bench \
        --masks motionatlas-bench/target_masks.jsonl.gz --out data/motionatlas/test.jsonl

From huggingface.co/datasets/maxLWSv2/motionatlas-bench (behind a form): mcqs.jsonl, a line a question with id,
sample_id, video_path, video_type, question, options, answer_index; target_masks.jsonl.gz, {"sample_id", "masks":
{frame: run lengths}}; the videos, files or folders of frames.

One record is one masked thing, described once; beside the records: questions.json, what a judge answers from the
description. A choice that says that the description does not tell, or that the thing cannot be seen, has 0 points, the
right one 1, the others -1, and -1 each where the right one is itself such; told apart by their words, as the released
evaluator does. What must come out: 2,073 questions about 107 videos.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, check_counts, tell
from data_prep.dlc_bench import QUESTIONS
from data_prep.question_converter import ClipScenes
from data_prep.video_converter import video_arguments, write
from dynrefer.data.clips import ClipRegion
from dynrefer.errors import run_command
from dynrefer.files import atomic_path, parse_line, read_jsonl

NUMBERS = {"questions": 2073, "videos": 107}
NOT_TOLD = ("does not mention", "not mention", "unclear", "not visible", "obscured", "indistinct")
KEYS = ("sample_id", "video_path", "question", "options", "answer_index")


def read_questions(path: Path, tally: Tally) -> dict[int, tuple[str, list[dict]]]:
    """Sample -> its video, and its questions as a judge is asked them."""
    found: dict[int, tuple[str, list[dict]]] = {}
    for line, entry in read_jsonl(path):
        where = f"{path}:{line}"
        if not isinstance(entry, dict) or (missing := [key for key in KEYS if key not in entry]):
            lacking = missing[0] if isinstance(entry, dict) else "object"
            raise ValueError(f"{where}: no {lacking}; is it mcqs.jsonl of MotionAtlas-Bench?")
        options, right = entry["options"], entry["answer_index"]
        if not isinstance(options, list) or type(right) is not int or not 0 <= right < len(options):
            raise ValueError(f"{where}: answer_index {right!r} of options {str(options)[:60]}")
        sample, video = int(entry["sample_id"]), str(entry["video_path"])
        if found.setdefault(sample, (video, []))[0] != video:
            raise ValueError(f"{where}: sample {sample} is in {found[sample][0]} and in {video}")
        found[sample][1].append({"text": entry["question"], "choices": points(options, right), "kind": "positive"})
        tally["questions"] += 1
    tally["videos"] = len({video for video, _ in found.values()})
    return found


def points(options: Sequence[str], right: int) -> list[list]:
    """Choices with their points.

    >>> points(["left", "right", "The caption does not mention it"], 0)
    [['left', 1], ['right', -1], ['The caption does not mention it', 0]]
    >>> points(["left", "It is not visible"], 1)
    [['left', -1], ['It is not visible', 1]]
    """
    silent = [any(words in " ".join(str(option).lower().split()) for words in NOT_TOLD) for option in options]
    missing = 0 if not silent[right] else -1
    return [[str(option), 1 if n == right else missing if silent[n] else -1] for n, option in enumerate(options)]


def read_masks(path: Path) -> dict[int, Mapping[str, Any]]:
    """Sample -> {frame: run lengths}."""
    found: dict[int, Mapping[str, Any]] = {}
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    try:
        with opened as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    entry = parse_line(text, f"{path}:{line}")
                    if not isinstance(entry, dict) or not isinstance(entry.get("masks"), dict) or not entry["masks"]:
                        raise ValueError(f"{path}:{line}: expected sample_id and masks, frame -> run lengths")
                    found[int(entry["sample_id"])] = entry["masks"]
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return found


def clips(
    samples: Mapping[int, tuple[str, list[dict]]], masks: Mapping[int, Mapping], scenes: ClipScenes, path: Path
) -> Iterator[ClipRegion]:
    """One record a sample, in order. The clip is shown from the first frame with a mask on."""
    for sample, (video, _) in sorted(samples.items()):
        if sample not in masks:
            raise ValueError(f"{path}: no masks of sample {sample}; is it of the same download?")
        frames = {frame: {"mask": mask} for frame, mask in masks[sample].items()}
        scene = scenes.of([video], f"{path}: sample {sample}")
        record = {"id": f"motionatlas-{sample}", "prompt_frame": min(map(int, frames)), "frames": frames, **scene}
        record |= {"split": "test", "source": "motionatlas", "licence": "MotionAtlas-Bench, its makers' terms"}
        yield ClipRegion.from_dict(record, f"{path}: sample {sample}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = video_arguments("motionatlas", __doc__.splitlines()[0], "the release's folder")
    parser.add_argument("--mcqs", type=Path, required=True, help="mcqs.jsonl")
    parser.add_argument("--masks", type=Path, required=True, help="target_masks.jsonl.gz")
    parser.add_argument("--subset", action="store_true", help="the files are knowingly a part: counts may differ")
    return run_command("data_prep.motionatlas", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    samples = read_questions(args.mcqs, tally)
    check_counts(tally, NUMBERS, str(args.mcqs), args.subset)
    write(args.out, clips(samples, read_masks(args.masks), ClipScenes(args.videos, args.out), args.masks), tally)
    asked = {f"motionatlas-{sample}": questions for sample, (_, questions) in sorted(samples.items())}
    with atomic_path(args.out.absolute().parent / QUESTIONS) as temporary:
        temporary.write_text(json.dumps(asked, indent=1, ensure_ascii=False), encoding="utf-8")
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
