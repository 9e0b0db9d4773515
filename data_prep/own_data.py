"""What the converters of users' own data share: their options, images named in any way and measured by their headers,
and entries of JSON and JSONL files.

    python -m data_prep.csv_boxes      a table: image, box, caption
    python -m data_prep.llava          conversations about <region>s (Osprey, GLaMM, ViP-LLaVA and the like)
    python -m data_prep.swift          ms-swift's grounding lines (objects: ref, bbox)
    python -m data_prep.label_studio   Label Studio's JSON export
    python -m data_prep.cvat           "CVAT for images 1.1"
    python -m data_prep.hub            a dataset of the Hub, or a folder of `datasets`
    python -m data_prep.coco           COCO JSON
    python -m data_prep.yolo           YOLO label files and their data.yaml
"""

import argparse
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.box_formats import BoxReader
from data_prep.converter import write
from data_prep.counts import BadEntry, Tally, Undecided, tell
from data_prep.polygons import mask_box, turn
from dynrefer.boxes import check_image_hw
from dynrefer.data.image_folder import NUM_SIZES_CHECKED, OTHER_SIZE, STORED_PIXELS, ImageFolder
from dynrefer.data.json_files import read_items
from dynrefer.data.records import Region
from dynrefer.errors import Parser
from dynrefer.files import read_jsonl
from dynrefer.images import read_orientation

NUM_SIZES = 65536  # image sizes remembered, in case the rows of an image do not stand together

# a region as a converter finds it: its box's numbers or None (the mask's box), image_hw, place in the file, and the
# other keys of its record
Found = tuple[list | None, tuple[int, int], str, dict]


def own_arguments(
    name: str, description: str, images: bool = True, images_required: bool = True
) -> argparse.ArgumentParser:
    """The options that converters of own data share. images: whether the pictures lie in a folder of their own."""
    parser = Parser(prog=f"python -m data_prep.{name}", description=description)
    if images:
        where = "folder of the images; records point into it"
        parser.add_argument("--images", type=Path, required=images_required, help=where)
        parser.add_argument("--image-prefix", default="", help="what to remove where an image's name begins with it")
        parser.add_argument("--stored-pixels", action="store_true", help=STORED_PIXELS)
    parser.add_argument("--out", type=Path, required=True, help="record file: .jsonl, .jsonl.gz, or an Arrow folder")
    parser.add_argument("--name", help="what the records' ids begin with (default: the input's name)")
    parser.add_argument("--split", default="", help="split that the records say (train, val, test)")
    parser.add_argument("--source", help="where the data come from, for the records (default: the input's name)")
    parser.add_argument("--licence", default="", help="licence that the records say")
    parser.add_argument("--strict", action="store_true", help="what would be left out as faulty is an error")
    return parser


def write_found(
    args: argparse.Namespace, file: str | Path, found: Iterable[Found], tally: Tally, box_format: str | None
) -> None:
    """Reads the boxes, writes the records and prints what was counted. The file appears whole or not at all.

    file: the input. found: the regions in it. The keys of a region are those of a record, without box, image_hw,
    source, licence and split; its id is unique in the input. box_format: one of `BOX_FORMATS`; None = only masks are
    expected.
    """
    file = Path(file)
    name = args.name or file.name.split(".")[0]
    common = {"source": args.source or file.name, "licence": args.licence, "split": args.split}
    reader = BoxReader(str(file), box_format, tally)
    root, stored = args.out.absolute().parent, getattr(args, "stored_pixels", False)

    def regions() -> Iterator[Region]:
        for box, (where, image_hw, keys) in reader.read((b, hw, where, (where, hw, d)) for b, hw, where, d in found):
            with tally.entries("regions"):
                mask = keys.get("mask")
                if box is None and mask is None:
                    raise BadEntry(f"{where}: neither a box nor a mask", "neither a box nor a mask")
                if box is None and (box := mask_box(mask, image_hw, where)) is None:
                    tally.leave_out("masks", "nothing of them in the image", where)
                    continue
                if stored and (orientation := read_orientation(root / keys["image"])) > 1:
                    box, mask, image_hw = turn(box, mask, orientation, image_hw)
                    tally["regions turned with their pictures"] += 1
                captions = keys.get("captions") or []
                record = {**common, **keys, "id": f"{name}-{keys['id']}", "image_hw": list(image_hw), "box": box}
                region = Region.from_dict({**record, "mask": mask}, where)
                tally["regions"] += 1
                tally["captions"] += len(captions)
                tally["regions without a caption"] += not captions
                tally["regions with a mask"] += mask is not None
                yield region

    write(args.out, regions(), tally)
    tell(args.out, {key: count for key, count in tally.items() if count or key in ("regions", "captions")})


class OwnImages:
    """Images in a folder as annotations name them: their path for a record, and their size from the file's header."""

    def __init__(self, folder: Path, out: Path, prefix: str = "", stored: bool = False):
        self.folder, self.prefix = folder, prefix.replace("\\", "/")
        self._files = ImageFolder(folder, out, prefix, stored)
        self._unchecked: float = NUM_SIZES_CHECKED
        self._paths: OrderedDict[str, str] = OrderedDict()  # of names, and the sizes of paths
        self._sizes: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._meant: dict[str, str] = {}

    def find(self, name: Any, where: str, recorded_hw: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
        """(path relative to the record file, image_hw). recorded_hw: the size that the annotation says; it is compared
        with that of the first pictures, and then believed (`python -m data_prep.check` looks at all).

        Raises BadEntry that begins with `where` for a name that leads out of the folder, a file that is not there or
        no image, and another size than recorded.
        """
        if not isinstance(name, str) or not name.strip():
            raise BadEntry(f"{where}: image {name!r}: expected the name of a file")
        if name not in self._paths:
            self._remember(self._paths, name, self._files.path(name, where))
        return self.sized(self._paths[name], name, where, recorded_hw)

    def sized(
        self, path: str, name: str, where: str, recorded_hw: tuple[int, int] | None = None
    ) -> tuple[str, tuple[int, int]]:
        """`find` of a path that `first` has given, of a picture that the annotation calls `name`."""
        if path not in self._sizes:
            if recorded_hw is not None and self._unchecked <= 0:
                return path, check_image_hw(recorded_hw)
            self._unchecked -= 1
            self._remember(self._sizes, path, self._files.readable_hw(path, where))
        image_hw = self._sizes[path]
        if recorded_hw is not None and tuple(recorded_hw) != image_hw:
            self._unchecked = float("inf")  # from now on all are looked at
            text = self._files.other_size(path, image_hw, recorded_hw)
            raise BadEntry(f"{where}: image {name!r} {text}", OTHER_SIZE)
        return path, image_hw

    def _remember(self, known: OrderedDict, key: str, value: object) -> None:
        if len(known) >= NUM_SIZES:
            known.popitem(last=False)
        known[key] = value

    def first(self, *names: str) -> str | None:
        """The first of these names that is in the folder, as a record says it; None where none is."""
        return self._files.find(*names)

    def meant_once(self, path: str, name: str, where: str) -> None:
        """Undecided where another name has led to this picture before: two pictures of one name in different folders,
        jobs or subsets. name: the whole name, of which a part was found."""
        if (first := self._meant.setdefault(path, name)) != name:
            raise Undecided(
                f"{where}: image {name!r} would be {path}, and so would {first!r}: put the pictures into folders as "
                "these names have them, or convert one part at a time"
            )


def read_entries(path: Path, tally: Tally | None = None) -> Iterator[tuple[str, dict]]:
    """(place, entry) of a JSON list, or of JSON lines where the name ends with .jsonl (both also .gz); streamed. What
    is no object is left out with a tally, and a ValueError without."""
    lines = path.name.endswith((".jsonl", ".jsonl.gz"))
    entries = read_jsonl(path) if lines else enumerate(read_items(path, "item"))
    for number, entry in entries:
        where = f"{path}:{number}" if lines else f"{path}: entry {number}"
        if isinstance(entry, dict):
            yield where, entry
        elif tally is None:
            raise ValueError(f"{where}: {type(entry).__name__} instead of an object")
        else:
            tally.leave_out("entries", "no object", where, f"{where}: {type(entry).__name__} instead of an object")
