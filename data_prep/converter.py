"""What the converters of published data share: their options, images in a folder, images that tests need left out, and
records and word lists written beside their images."""

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dynrefer.data.arrow import save_arrow
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from dynrefer.files import atomic_path, read_text
from dynrefer.images import read_image_hw

NUM_SIZES_CHECKED = 1000  # pictures of a folder whose headers are compared with the recorded size
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpg$")


def coco_image_id(name: str) -> int | None:
    """The COCO id in an image's file name; None for a name of another form.

    >>> coco_image_id("train2014/COCO_train2014_000000581857.jpg"), coco_image_id("val2017/000000000139.jpg")
    (581857, 139)
    """
    match = COCO_NAME.search(str(name))
    return int(match[1]) if match else None


def image_keys(paths: Sequence[str | os.PathLike]) -> set[int | str]:
    """What tells the images of some record files from others: COCO ids, and bare file names where there is none."""
    names = {image for path in paths for image in open_records(path).image_names()}
    return {image_key(name) for name in names}


def image_key(name: str) -> int | str:
    """The COCO id of an image, or its bare file name."""
    coco_id = coco_image_id(name)
    return Path(name).name if coco_id is None else coco_id


def arguments(name: str, description: str, shared_with: str | None = None) -> argparse.ArgumentParser:
    """The options that converters share. shared_with: test sets whose images occur in this dataset's training part;
    --exclude is required then."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{name}", description=description)
    parser.add_argument("--images", type=Path, required=True, help="folder of the images; records point into it")
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


class ImageFolder:
    """Images on disk, listed once, and their paths relative to the record file.

    Raises ValueError when there is no such folder, and for each image that is not in it.
    """

    def __init__(self, folder: Path, out: Path):
        if not folder.is_dir():
            raise ValueError(f"image folder {folder}: no such folder; name where the images were unpacked to")
        self.folder = folder
        self._prefix = os.path.relpath(folder.absolute(), out.absolute().parent)
        self._listed: dict[str, frozenset[str]] = {}
        self._unchecked = NUM_SIZES_CHECKED

    def path(self, name: str, where: str) -> str:
        """`name` (relative to the folder, with forward slashes) as a record says it; `where` begins an error."""
        found = self.find(name)
        if found is None:
            raise ValueError(f"{where}: image {name!r} is not in {self.folder}; is it the folder of this dataset?")
        return found

    def find(self, *names: str) -> str | None:
        """The first of these names that is in the folder, as a record says it; None where none is."""
        for name in names:
            parent, _, base = name.rpartition("/")
            if name.startswith("/") or ".." in parent.split("/"):
                continue
            if parent not in self._listed:
                place = self.folder / parent
                self._listed[parent] = frozenset(os.listdir(place)) if place.is_dir() else frozenset()
            if base in self._listed[parent]:
                return f"{self._prefix}/{name}"
        return None

    def image_hw(self, path: str) -> tuple[int, int]:
        """The (height, width) of a picture, from its header. path: as `path` and `find` give it."""
        return read_image_hw(self.folder / path[len(self._prefix) + 1 :])

    def check_size(self, path: str, image_hw: tuple[int, int], where: str) -> None:
        """ValueError where a picture has another size than recorded. path: as `path` and `find` give it. Looks at the
        headers of the first pictures only; `python -m data_prep.check` looks at all."""
        if self._unchecked:
            self._unchecked -= 1
            true_hw = self.image_hw(path)
            if true_hw != tuple(image_hw):
                raise ValueError(
                    f"{where}: the annotations say {tuple(image_hw)}, but image {path!r} is {true_hw} (height, width); "
                    "convert with the images that were annotated, not resized ones"
                )


def write(out: Path, regions: Iterable[Region]) -> int:
    """Writes records in the form that the name asks for (.jsonl, .jsonl.gz, or an Arrow folder); how many they are.
    The file appears whole or not at all. ValueError when there are none."""
    if out.name.endswith((".jsonl", ".jsonl.gz")):
        return write_records(out, _some(regions, out))
    if out.suffix:
        raise ValueError(f"--out {out}: expected a name that ends with .jsonl or .jsonl.gz, or without an ending")
    return save_arrow(out, _some(regions, out))


def _some(regions: Iterable[Region], out: Path) -> Iterator[Region]:
    region = None
    for region in regions:
        yield region
    if region is None:
        raise ValueError(f"{out}: no regions came out; look at the splits and the excluded images")


def write_list(path: Path, entries: Sequence[str] | Sequence[dict], check_only: bool = False) -> None:
    """A word list beside the records: one name a line, or JSON where the path ends so. ValueError where other words
    stand there already, of another dataset in the same folder. check_only: nothing is written."""
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
