r"""VCR (visual commonsense reasoning): questions about film stills, their answers and the reasons -> question file.

    python -m data_prep.vcr --split val --annotations vcr1annots/val.jsonl --images vcr1images --out data/vcr/val.jsonl

From visualcommonsense.com: vcr1annots.zip (train.jsonl, val.jsonl, test.jsonl) and vcr1images.zip, whose pictures have
their objects beside them: NAME.json with boxes, polygons and names, `metadata_fn` of an annotation. Licence: VCR's own,
for research; films: their owners'.

Texts are lists of words, in which a list of numbers stands for objects. One annotation is two records of one group:
"Q->A", the question with four answers, and "QA->R", the question with its right answer and four reasons. Only objects
that a record names are its regions, <region0> the one that it names first. Masks are the polygons of `segms`; an object
without any is its box. Region mentions can be asked with or without the object's name before them (tasks vcr and
vcr-names).
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, tell
from data_prep.question_converter import PictureScenes, question_arguments, write
from dynrefer.data.json_files import read_object
from dynrefer.errors import cut, run_command
from dynrefer.files import read_jsonl

LICENCE = "Annotations: VCR, research use; film stills: their owners"
NO_BLANK_BEFORE = re.compile(r" (?=[.,;:?!)]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)")


def questions(annotations: Path, folder: Path, scenes: PictureScenes, split: str, tally: Tally) -> Iterator[dict]:
    """Two records an annotation, in the order of the file."""
    for line, entry in read_jsonl(annotations):
        where = f"{annotations}:{line}"
        with tally.entries("annotations"):
            names, parts = _entry(entry, where)
            scene = scenes.of(entry["img_fn"], where)
            objects = read_object(folder / entry["metadata_fn"])
            tally["annotations"] += 1
            common = scene | {"split": split, "source": "vcr", "licence": LICENCE, "group": entry["annot_id"]}
            asked, answers, place, reasons, reason = parts
            for kind, end, texts, right in (
                ("Q->A", "answer", [asked, *answers], place),
                ("QA->R", "reason", [[*asked, "\n", *(answers[place] if place is not None else [])], *reasons], reason),
            ):
                if kind == "QA->R" and place is None:
                    tally["reasons left out: the right answer is not public"] += 1
                    continue
                written, regions = with_regions(texts, names, objects, where)
                record = {"id": f"vcr-{split}-{entry['annot_id']}-{end}", "kinds": [kind], "answer": right}
                yield common | record | {"question": written[0], "choices": written[1:], "regions": regions}


def with_regions(
    texts: Sequence[Sequence], names: Sequence[str], objects: dict, where: str
) -> tuple[list[str], list[dict]]:
    """Texts with <region0>, ... for the objects that they name, numbered by their first mention, and these regions."""
    order: dict[int, int] = {}
    written = []
    for text in texts:
        words = []
        for word in text:
            if isinstance(word, list):
                for number in word:
                    if type(number) is not int or not 0 <= number < len(names):
                        raise ValueError(f"{where}: object {number!r} of {len(names)}")
                    order.setdefault(number, len(order))
                words.append(" and ".join(f"<region{order[number]}>" for number in word))
            else:
                words.append(str(word))
        written.append(NO_BLANK_BEFORE.sub("", " ".join(words)).replace(" \n ", "\nAnswer: ").strip())
    return written, [_region(objects, number, names, where) for number in order]


def _region(objects: dict, number: int, names: Sequence[str], where: str) -> dict[str, Any]:
    try:
        box, polygons = objects["boxes"][number][:4], objects["segms"][number]
        flat = [[float(c) for point in polygon for c in point] for polygon in polygons]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: object {number}: expected boxes and segms in the picture's JSON ({error!r})"
        ) from error
    region: dict[str, Any] = {"box": [float(c) for c in box], "category": names[number]}
    if flat := [polygon for polygon in flat if len(polygon) >= 6]:
        region["mask"] = flat
    return region


def _entry(entry: Any, where: str) -> tuple[list[str], tuple]:
    keys = ("objects", "question", "answer_choices", "rationale_choices", "img_fn", "metadata_fn", "annot_id")
    if not isinstance(entry, dict) or (missing := [key for key in keys if key not in entry]):
        lacking = missing[0] if isinstance(entry, dict) else "object"
        raise ValueError(f"{where}: no {lacking}; is it an annotation file of VCR?")
    places = []
    for choices, label in (("answer_choices", "answer_label"), ("rationale_choices", "rationale_label")):
        place = entry.get(label)
        if place is not None and (type(place) is not int or not 0 <= place < len(entry[choices])):
            raise ValueError(f"{where}: {label} {cut(str(place))}: expected the place of one of {choices}")
        places.append(place)
    parts = (entry["question"], entry["answer_choices"], places[0], entry["rationale_choices"], places[1])
    return list(entry["objects"]), parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("vcr", __doc__.splitlines()[0])
    parser.add_argument("--split", required=True, choices=("train", "val", "test"))
    parser.add_argument("--annotations", type=Path, required=True, help="SPLIT.jsonl of vcr1annots")
    return run_command("data_prep.vcr", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    scenes = PictureScenes(args.images, args.out)
    write(args.out, questions(args.annotations, args.images, scenes, args.split, tally), tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
