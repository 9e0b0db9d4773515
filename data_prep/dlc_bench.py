r"""DLC-Bench, detailed captions judged by questions -> records with masks, and the questions.

    python -m data_prep.dlc_bench --annotations DLC-Bench/annotations.json --images DLC-Bench/images \
        --out data/dlc_bench/test.jsonl

Where the files come from: huggingface.co/datasets/nvidia/DLC-Bench: annotations.json (COCO form), class_names.json and
qa.json beside it, images/. Licence: CC BY-NC-SA 4.0; photographs (Objects365): their owners' terms (Flickr).

The judge of `dlc-bench` reads texts alone: to score a predictions file, --images may be left out; the records then name
images/ beside the annotations. A model that describes the regions needs the images, as `dlc-bench-shown` does.

What must come out: 100 regions of 77 images, 392 questions about what is there and 500 about what is not. A region's id
ends with its annotation's, by which predictions {annotation id: text} name it. Beside the records: questions.json,
{region id: [{"text", "choices": [[text, points], ...], "kind"}]}, which evaluation asks a judge. Its first question
about each region is not in qa.json: whether the description is of a thing of this class. The released evaluator makes
it from class_names.json as well; ours is worded anew.

It is a test set: name these records with --exclude when you convert training data.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.coco import Converter
from data_prep.coco_datasets import PHOTOS, Dataset
from data_prep.converter import arguments, write
from data_prep.counts import check_counts, tell
from dynrefer.data.image_folder import AbsentImages, ImageFolder
from dynrefer.data.json_files import read_object
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.files import atomic_path

QUESTIONS = "questions.json"
POINTS = {"positive": (1, 0.5, 0, -1), "negative": (1, 0, -1)}
RECOGNITION = (
    "Is the described thing, or are the described things, probably of this kind or of a similar one: {name}? An exact "
    "match is not needed."
)


def image_names(image: dict) -> tuple[str, ...]:
    """Names of an image under --images, which may be `images` or the folder that holds it."""
    return (image["file_name"], f"images/{image['file_name']}")


DLC_BENCH = Dataset(
    "dlc-bench",
    f"annotations: CC BY-NC-SA 4.0, DLC-Bench; {PHOTOS}",
    {"test": {"images": 77, "annotations": 100}},
    names=image_names,
)
NUM_QUESTIONS = {"positive questions": 392, "negative questions": 500}


def described(converter: Converter, class_names: Mapping[str, str], path: Path) -> dict[str, Region]:
    """Annotation id -> record; its category is the name in class_names.json, which `path` is. ValueError for a region
    without a mask or a name."""
    records = {}
    for region in converter.regions():
        key = region.id.removeprefix(f"{converter.name}-{converter.split}-")
        name = class_names.get(key)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: no class name for annotation {key}, but {name!r}; is it of the same download?")
        if region.mask is None:
            raise ValueError(f"{converter.path}: annotation {key} has no mask; DLC-Bench's regions are masks")
        records[key] = replace(region, category=name.strip())
    return records


def questions(records: Mapping[str, Region], qa: Mapping[str, Any], path: Path) -> dict[str, list[dict]]:
    """Region id -> its questions, whether the right thing is described at first. records: by annotation id; qa: of
    qa.json, which `path` is. ValueError for a region without questions and for one of another form."""
    found = {}
    for key, region in records.items():
        entries = qa.get(key)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{path}: no questions about annotation {key}; is it of the same download?")
        text = RECOGNITION.format(name=region.category)
        found[region.id] = [{"text": text, "choices": [["Yes", 1], ["No", 0]], "kind": "recognition"}]
        found[region.id] += [_question(entry, f"{path}: annotation {key}") for entry in entries]
    return found


def _question(entry: Any, where: str) -> dict:
    try:
        text, kind, choices = (
            entry["question"],
            entry["type"],
            [[choice, points] for choice, points in entry["choices"]],
        )
        allowed = POINTS[kind]
        whole = all(isinstance(t, str) and t.strip() for t in (text, *(choice for choice, _ in choices)))
        if not whole or len(choices) < 2 or not all(points in allowed for _, points in choices):
            raise ValueError(f"points of {kind} choices are {', '.join(map(str, allowed))}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {str(entry)[:200]}: expected a question with its type, positive or negative, and choices of a "
            f"text and points ({type(error).__name__}: {error})"
        ) from error
    return {"text": text, "choices": choices, "kind": kind}


def dlc_arguments(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """The options of a release that is laid out as DLC-Bench is. options: of `arguments`."""
    parser = arguments(name, description, **options)
    parser.add_argument("--annotations", type=Path, required=True, help="annotations.json")
    parser.add_argument("--qa", type=Path, metavar="FILE", help="qa.json (default: the one beside the annotations)")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="class_names.json (default: likewise)")
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as damaged")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = dlc_arguments("dlc_bench", __doc__.splitlines()[0], images_required=False)
    return run_command("data_prep.dlc_bench", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    qa_path = args.qa or args.annotations.with_name("qa.json")
    names_path = args.class_names or args.annotations.with_name("class_names.json")
    qa, class_names = read_object(qa_path), read_object(names_path)
    options = {"keep_crowd": True, "subset": args.subset, "strict": args.strict}
    if args.images is None:
        images: ImageFolder = AbsentImages(args.annotations.with_name("images"), args.out)
    else:
        images = ImageFolder(args.images, args.out, args.image_prefix)
    converter = Converter(
        "dlc-bench",
        DLC_BENCH,
        "test",
        args.annotations,
        images,
        **options,
    )
    records = described(converter, class_names, names_path)
    asked = questions(records, qa, qa_path)
    kinds = [f"{entry['kind']} questions" for entries in asked.values() for entry in entries]
    counts = {name: kinds.count(name) for name in NUM_QUESTIONS}
    check_counts(counts, NUM_QUESTIONS, str(qa_path), args.subset)
    converter.counts["records"] = write(args.out, records.values(), converter.counts)
    with atomic_path(args.out.absolute().parent / QUESTIONS) as temporary:
        temporary.write_text(json.dumps(asked, indent=1, ensure_ascii=False), encoding="utf-8")
    converter.counts["images not looked at, since --images names no folder"] = args.images is None and len(
        {region.image for region in records.values()}
    )
    tell(args.out, {name: count for name, count in {**converter.counts, **counts}.items() if count})


if __name__ == "__main__":
    sys.exit(main())
