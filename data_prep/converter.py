"""What the converters of published data share: their options, images that tests need left out, and records and word
lists written beside their images."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.counts import Tally, nothing
from dynrefer.data.arrow import save_arrow
from dynrefer.data.coco import coco_image_id
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, check_whole, whole_text
from dynrefer.errors import Parser
from dynrefer.files import atomic_path, read_text


def image_keys(paths: Sequence[str | os.PathLike]) -> set[int | str]:
    """What tells the images of some record files from others: COCO ids, and bare file names where there is none."""
    names = {image for path in paths for image in open_records(path).image_names()}
    return {image_key(name) for name in names}


def image_key(name: str) -> int | str:
    """The COCO id of an image, or its bare file name."""
    coco_id = coco_image_id(name)
    return Path(name).name if coco_id is None else coco_id


def arguments(
    name: str, description: str, shared_with: str | None = None, images_required: bool = True
) -> argparse.ArgumentParser:
    """The options that converters share. shared_with: test sets whose images occur in this dataset's training part;
    --exclude is required then."""
    parser = Parser(prog=f"python -m data_prep.{name}", description=description)
    parser.add_argument(
        "--images", type=Path, required=images_required, help="folder of the images; records point into it"
    )
    parser.add_argument("--image-prefix", default="", help="what to remove where an image's name begins with it")
    parser.add_argument("--out", type=Path, required=True, help="record file: .jsonl, .jsonl.gz, or an Arrow folder")
    parser.add_argument("--subset", action="store_true", help="the files are knowingly a part: counts may differ")
    if shared_with:
        group = parser.add_mutually_exclusive_group()
        group.add_argument(
            "--exclude", nargs="+", type=Path, metavar="RECORDS", help=f"leave out images of these ({shared_with})"
        )
        group.add_argument("--keep-shared", action="store_true", help="do not leave any image out")
    return parser


def excluded_images(args: argparse.Namespace, shared_with: str) -> set[int | str]:
    """Keys of the images that --exclude names. Training records need it, or --keep-shared; ValueError otherwise."""
    if args.keep_shared:
        return set()
    if not args.exclude:
        raise ValueError(
            f"training images are shared with {shared_with}: convert those first and name them with --exclude, or say "
            "--keep-shared"
        )
    return image_keys(args.exclude)


def write(out: Path, regions: Iterable[Region], counts: Mapping[str, int]) -> int:
    """Writes records in the form that the name asks for (.jsonl, .jsonl.gz, or an Arrow folder); how many they are.
    The file appears whole or not at all. counts: what was counted while the regions came; when there are none, the
    ValueError names what was left out most."""
    if out.name.endswith((".jsonl", ".jsonl.gz")):
        return write_records(out, _some(regions, out, counts))
    if out.suffix:
        raise ValueError(f"--out {out}: expected a name that ends with .jsonl or .jsonl.gz, or without an ending")
    return save_arrow(out, _some(regions, out, counts))


def _some(regions: Iterable[Region], out: Path, counts: Mapping[str, int]) -> Iterator[Region]:
    tally = counts if isinstance(counts, Tally) else Tally(strict=True)
    written = whole = False
    for region in regions:
        with tally.entries("regions"):
            check_whole(region)
            written = whole = True
        if whole:
            yield region
            whole = False
    if not written:
        raise nothing(out, counts)


def write_list(path: Path, entries: Sequence[str] | Sequence[dict], check_only: bool = False) -> None:
    """A word list beside the records: one name a line, or JSON where the path ends so. ValueError where other words
    stand there already, of another dataset in the same folder. check_only: nothing is written."""
    for entry in entries:
        for word in entry.values() if isinstance(entry, dict) else [entry]:
            whole_text(str(word), f"a word for {path.name},")
    if path.suffix == ".json":
        text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"
    else:
        text = "".join(f"{entry}\n" for entry in entries)
    if path.is_file() and read_text(path) != text:
        raise ValueError(
            f"{path}: another list stands there; records with other words need a folder of their own (or delete it)"
        )
    if not check_only:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
