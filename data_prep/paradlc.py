r"""ParaDLC-Bench, several masks a picture, described in parallel and judged by questions -> records, and the questions.

    python -m data_prep.paradlc --annotations annotations/annotations.json --images annotations/images \
        --out data/paradlc/test.jsonl

From github.com/MSALab-PKU/PerceptionDLM, evaluation/ParaDLC-Bench/annotations (Apache 2.0): annotations.json, a list of
pictures {"image_id", "file_name", "height", "width", "annotations": [{"index", "mask_rle"}]}, class_names.json and
qa.json by IMAGE_INDEX; the pictures are Objects365's, from huggingface.co/datasets/MSALab/ParaDLC-Bench.

Only masks that qa.json asks about are records: 299 of 100 pictures, with 2,345 questions; some are about other things
in the picture, whose traits a description must not borrow. Questions are those of DLC-Bench (`data_prep.dlc_bench`),
with whether the right thing is described as the first. All masks of a picture are described in one run; the seconds are
part of the benchmark and stand in `scores.json`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.converter import write
from data_prep.counts import Tally, check_counts, tell
from data_prep.dlc_bench import QUESTIONS, dlc_arguments
from data_prep.dlc_bench import questions as dlc_questions
from dynrefer.boxes import check_image_hw
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items, read_object
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.files import atomic_path

NUMBERS = {"images": 100, "regions": 299, "questions": 2345}
LICENCE = "Annotations: Apache 2.0, ParaDLC-Bench; photographs: Objects365, their owners' terms (Flickr)"


def records(
    path: Path, qa: Mapping[str, Any], names: Mapping[str, Any], images: ImageFolder, tally: Tally
) -> Iterator[tuple[str, Region]]:
    """(key in qa.json, record) of every mask that is asked about, in the file's order."""
    for picture in read_items(path, "item"):
        try:
            key, image_hw = str(picture["image_id"]), check_image_hw((picture["height"], picture["width"]))
            masks = {f"{key}_{each['index']}": each["mask_rle"] for each in picture["annotations"]}
            name = picture["file_name"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {str(picture)[:80]}: not an entry of ParaDLC-Bench ({error!r})") from error
        asked = [each for each in masks if each in qa]
        tally["images"] += bool(asked)
        tally["masks that no question is about left out"] += len(masks) - len(asked)
        for each in asked:
            where = f"{path}: {each}"
            if not isinstance(names.get(each), str):
                raise ValueError(f"{where}: no class name; is class_names.json of the same download?")
            record = {"id": f"paradlc-{each}", "image": images.path(name, where), "image_hw": list(image_hw)}
            record |= {"mask": {"size": list(image_hw), "counts": masks[each]["counts"]}, "category": names[each]}
            yield each, Region.from_dict(record | {"source": "paradlc", "licence": LICENCE, "split": "test"}, where)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("data_prep.paradlc", _run, dlc_arguments("paradlc", __doc__.splitlines()[0]).parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally, images = Tally(args.strict), ImageFolder(args.images, args.out, args.image_prefix)
    qa_path = args.qa or args.annotations.with_name("qa.json")
    qa = read_object(qa_path)
    names = read_object(args.class_names or args.annotations.with_name("class_names.json"))
    found = dict(records(args.annotations, qa, names, images, tally))
    if missing := [key for key in qa if key not in found]:
        raise ValueError(f"{qa_path}: {missing[0]!r} is no mask of {args.annotations}; is it of the same download?")
    asked = dlc_questions(found, qa, qa_path)
    tally["regions"] = len(found)
    tally["questions"] = sum(len(each) - 1 for each in asked.values())
    check_counts(tally, NUMBERS, str(args.annotations), args.subset)
    write(args.out, found.values(), tally)
    with atomic_path(args.out.absolute().parent / QUESTIONS) as temporary:
        temporary.write_text(json.dumps(asked, indent=1, ensure_ascii=False), encoding="utf-8")
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
