r"""GAR-Bench, questions about several masks of a picture -> question file.

    python -m data_prep.gar_bench --part vqa --annotations GAR-Bench-VQA.json --images annotations \
        --out data/gar_vqa/test.jsonl
    python -m data_prep.gar_bench --part simple --annotations GAR-Bench-Caption-Simple.json --images annotations \
        --out data/gar_simple/test.jsonl

From github.com/Haochen-Wang409/Grasp-Any-Region, evaluation/GAR-Bench/annotations (Apache 2.0): a list of {"image",
"question", "choices", "answer", "type", "mask_rles"}; texts name the masks <Prompt0>, <Prompt1>, ... In the captions
that are detailed there are subject_name, predicate_name and object_name instead, and every question is the same; the
right answer is then these three words.

What must come out of vqa: 424 questions, color 69, shape 64, texture/pattern 29, material 36, ordering 64, mirror 61,
relation 101. Of the captions nobody publishes how many there are.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.counts import Tally, check_counts, tell
from data_prep.question_converter import (
    PictureScenes,
    all_named,
    place_of,
    question_arguments,
    without_labels,
    write,
)
from dynrefer.data.json_files import read_items
from dynrefer.errors import run_command

NUMBERS = {"color": 69, "shape": 64, "texture/pattern": 29, "material": 36, "ordering": 64, "mirror": 61}
NUMBERS |= {"relation": 101}
DETAILED = "Describe <Prompt0> in detail, including the relationship with <Prompt1>."
LICENCE = "Annotations: GAR-Bench, Apache 2.0; photographs: their owners' terms"


def questions(path: Path, part: str, scenes: PictureScenes, tally: Tally) -> Iterator[dict]:
    """Records in the order of the file."""
    for number, entry in enumerate(read_items(path, "item")):
        where = f"{path}: entry {number}"
        with tally.entries("questions"):
            if not isinstance(entry, dict) or not isinstance(entry.get("mask_rles"), list) or "image" not in entry:
                raise ValueError(f"{where}: expected image, question and mask_rles; is it a file of GAR-Bench?")
            masks = entry["mask_rles"]
            asked = DETAILED if part == "detailed" else str(entry.get("question", ""))
            record = scenes.of(entry["image"], where) | {"id": f"gar-{part}-{number}", "split": "test"}
            record |= {"source": f"gar-{part}", "licence": LICENCE, "regions": [{"mask": mask} for mask in masks]}
            if part == "vqa":
                choices = without_labels(entry.get("choices") or [])
                record["answer"] = place_of(entry.get("answer"), entry["choices"], choices, where)
                record |= {"choices": [_mentions(choice) for choice in choices], "kinds": [str(entry["type"])]}
                tally[str(entry["type"])] += 1
            else:
                keys = ("subject_name", "predicate_name", "object_name") if part == "detailed" else ("answer",)
                words = [str(entry[key]).strip() for key in keys if entry.get(key)]
                if len(words) < len(keys):
                    raise ValueError(f"{where}: no {' or '.join(keys)}, which the judge compares with")
                record["answers"] = [" ".join(words)]
            yield record | {"question": all_named(_mentions(asked), len(masks), tally)}


def _mentions(text: str) -> str:
    return re.sub(r"<Prompt(\d+)>", r"<region\1>", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("gar_bench", __doc__.splitlines()[0])
    parser.add_argument("--part", required=True, choices=("vqa", "simple", "detailed"))
    parser.add_argument("--annotations", type=Path, required=True, help="GAR-Bench-*.json")
    return run_command("data_prep.gar_bench", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    write(args.out, questions(args.annotations, args.part, PictureScenes(args.images, args.out), tally), tally)
    if args.part == "vqa":
        check_counts(tally, NUMBERS, str(args.annotations), args.subset)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
