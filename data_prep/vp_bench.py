r"""VP-Bench stage 2, questions of six tasks about marked things -> question file.

    python -m data_prep.vp_bench --annotations vp_bench_stage_2_meta.parquet --images vp_bench_images \
        --out data/vp_bench/test.jsonl

From modelscope.cn/datasets/VP-Bench/VP-Bench-Stage-2: a row a question, with meta_source, image (a list of images),
meta_bbox and meta_polygon ({image: {"default": ...}}), question, A to D, answer. The makers say that a mark is to be
drawn and the words for it replaced by "<color> <vp>"; which words, they do not say. Here "<color> <vp>", "<red> <vp>"
and "<vp>" become the region's mention, and a question without any names the region before it. What an entry of `image`
is (a name, an encoded picture) is not documented either: names are looked for under --images, pictures in base64 are
written there. Rows of several images, or without an answer, are left out and counted. Kinds are the meta_source.
"""

import argparse
import base64
import binascii
import json
import re
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from data_prep.counts import BadEntry, Tally, tell
from data_prep.question_converter import PictureScenes, all_named, place_of, question_arguments, write
from dynrefer.errors import run_command
from dynrefer.files import atomic_path

MARK = re.compile(r"(?:<\w+>\s*)?<vp>")
COLUMNS = ("meta_source", "image", "meta_bbox", "meta_polygon", "question", "A", "B", "answer")


def questions(path: Path, folder: Path, scenes: PictureScenes, tally: Tally) -> Iterator[dict]:
    """Records in the order of the file."""
    for number, row in enumerate(read_table(path)):
        where = f"{path}: row {number}"
        with tally.entries("questions"):
            images = row["image"] if isinstance(row["image"], list) else [row["image"]]
            if len(images) != 1:
                raise BadEntry(f"{where}: {len(images)} images; one is shown to a model", "several images")
            if row["answer"] is None:
                raise BadEntry(f"{where}: no answer", "no answer is published")
            choices = [str(row[letter]) for letter in "ABCD" if row.get(letter)]
            name = picture_of(images[0], folder)
            regions = _regions(row, str(images[0]), where)
            asked, count = _mentions(str(row["question"]))
            if count > len(regions):
                raise ValueError(f"{where}: {count} marks in the question, {len(regions)} in meta_bbox")
            yield scenes.of(name, where) | {
                "id": f"vp-bench-{number}",
                "question": all_named(asked, len(regions), tally),
                "choices": choices,
                "answer": place_of(row["answer"], choices, choices, where),
                "kinds": [str(row["meta_source"])],
                "regions": regions,
                "split": "test",
                "source": "vp-bench",
                "licence": "VP-Bench, its sources' terms",
            }


def read_table(path: Path) -> Iterator[dict]:
    """Rows of a Parquet file. ValueError where it has not the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read as a Parquet file ({error})") from error
    if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
        raise ValueError(f"{path}: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    for batch in file.iter_batches(256):
        yield from batch.to_pylist()


def picture_of(entry: Any, folder: Path) -> str:
    """The name of a picture under --images; one that is encoded is written there first."""
    if isinstance(entry, dict):
        entry = entry.get("path") or entry.get("bytes")
    if isinstance(entry, str) and (len(entry) < 256 or (folder / entry[:255]).exists()):
        return entry
    try:
        text = str(entry).partition(",")[2] or str(entry)  # without data:image/png;base64,
        data = entry if isinstance(entry, bytes) else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {str(entry)[:40]!r}: neither a name nor a picture in base64 ({error})") from error
    name = f"encoded/{sha256(data).hexdigest()[:24]}.png"
    if not (folder / name).exists():
        (folder / name).parent.mkdir(exist_ok=True)
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
    return name


def _regions(row: dict, image: str, where: str) -> list[dict]:
    boxes, polygons = (_marks(row[key], image, f"{where}: {key}") for key in ("meta_bbox", "meta_polygon"))
    if not boxes:
        raise ValueError(f"{where}: meta_bbox {str(row['meta_bbox'])[:80]}: no box of the image")
    boxes = boxes if isinstance(boxes[0], list) else [boxes]
    if polygons and not isinstance(polygons[0][0], list):  # the points of one
        polygons = [polygons]
    regions = []
    for number, box in enumerate(boxes):
        region: dict[str, Any] = {"box": [float(c) for c in box]}
        if number < len(polygons) and len(polygons[number]) >= 3:
            region["mask"] = [[float(c) for point in polygons[number] for c in point]]
        regions.append(region)
    return regions


def _marks(value: Any, image: str, where: str) -> list:
    """Of {image: {"default": ...}}, as JSON types, JSON text or a list of such, what stands under "default"."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value, list):
            value = {name: each for one in value for name, each in one.items()}
        return (value.get(image) or next(iter(value.values())))["default"] if value else []
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise ValueError(f'{where} {str(value)[:80]}: expected {{image: {{"default": ...}}}}') from error


def _mentions(text: str) -> tuple[str, int]:
    count = 0

    def mention(match: re.Match) -> str:
        nonlocal count
        count += 1
        return f"<region{count - 1}>"

    return MARK.sub(mention, text), count


def main(argv: Sequence[str] | None = None) -> int:
    parser = question_arguments("vp_bench", __doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="vp_bench_stage_2_meta.parquet")
    return run_command("data_prep.vp_bench", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    write(args.out, questions(args.annotations, args.images, PictureScenes(args.images, args.out), tally), tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
