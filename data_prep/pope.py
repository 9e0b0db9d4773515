r"""POPE, "Is there a dog in the image?" -> question file.

    python -m data_prep.pope --questions coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json \
        --images coco/val2014 --out data/pope/test.jsonl

From github.com/RUCAIBox/POPE (output/coco): a line a question, {"question_id", "image", "text", "label"}. The kind of a
question is the last word of its file's name: random, popular, adversarial. Images are COCO's val2014.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.counts import Tally, tell
from data_prep.question_converter import PictureScenes, question_arguments, write
from dynrefer.errors import run_command
from dynrefer.files import read_jsonl

CHOICES = ["yes", "no"]


def questions(files: Sequence[Path], scenes: PictureScenes, tally: Tally) -> Iterator[dict]:
    """Records of all files, in order."""
    for file in files:
        kind = file.stem.split("_")[-1]
        for line, entry in read_jsonl(file):
            where = f"{file}:{line}"
            with tally.entries("questions"):
                if not isinstance(entry, dict) or entry.get("label") not in CHOICES or "question_id" not in entry:
                    raise ValueError(f"{where}: expected question_id, image, text and label, yes or no")
                tally[f"{kind} questions"] += 1
                yield scenes.of(entry["image"], where) | {
                    "id": f"pope-{kind}-{entry['question_id']}",
                    "question": entry["text"],
                    "choices": CHOICES,
                    "answer": CHOICES.index(entry["label"]),
                    "kinds": [kind],
                    "split": "test",
                    "source": "pope",
                    "licence": "Questions: POPE, MIT; photographs: COCO, their owners' terms (Flickr)",
                }


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("pope", __doc__.splitlines()[0])
    parser.add_argument("--questions", nargs="+", type=Path, required=True, metavar="FILE", help="coco_pope_*.json")
    return run_command("data_prep.pope", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    write(args.out, questions(args.questions, PictureScenes(args.images, args.out), tally), tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
