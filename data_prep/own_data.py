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
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.box_formats import BoxReader
from data_prep.converter import NUM_SIZES_CHECKED, ImageFolder, write
from data_prep.counts import tell
from data_prep.json_files import read_items
from data_prep.polygons import mask_box
from dynrefer.boxes import check_image_hw
from dynrefer.data.records import Region
from dynrefer.files import read_jsonl
from dynrefer.images import read_image_hw

NUM_SIZES = 65536  # image sizes remembered, in case the rows of an image do not stand together

# a region as a converter finds it: its box's numbers or None (the mask's box), image_hw, place in the file, and the
# other keys of its record
Found = tuple[list | None, tuple[int, int], str, dict]


def own_arguments(
    name: str, description: str, images: bool = True, images_required: bool = True
) -> argparse.ArgumentParser:
    """The options that converters of own data share. images: whether the pictures lie in a folder of their own."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{name}", description=description)
    if images:
        where = "folder of the images; records point into it"
        parser.add_argument("--images", type=Path, required=images_required, help=where)
        parser.add_argument("--image-prefix", default="", help="what to remove where an image's name begins with it")
    parser.add_argument("--out", type=Path, required=True, help="record file: .jsonl, .jsonl.gz, or an Arrow folder")
    parser.add_argument("--name", help="what the records' ids begin with (default: the input's name)")
    parser.add_argument("--split", default="", help="split that the records say (train, val, test)")
    parser.add_argument("--source", help="where the data come from, for the records (default: the input's name)")
    parser.add_argument("--licence", default="", help="licence that the records say")
    parser.add_argument("--strict", action="store_true", help="a region with nothing in its image is an error")
    return parser


def write_found(
    args: argparse.Namespace, file: str | Path, found: Iterable[Found], counts: Counter, box_format: str | None
) -> None:
    """Reads the boxes, writes the records and prints what was counted. The file appears whole or not at all.

    file: the input. found: the regions in it. The keys of a region are those of a record, without box, image_hw,
    source, licence and split; its id is unique in the input. box_format: one of `BOX_FORMATS`; None = only masks are
    expected.
    """
    file = Path(file)
    name = args.name or file.name.split(".")[0]
    common = {"source": args.source or file.name, "licence": args.licence, "split": args.split}
    reader = BoxReader(str(file), box_format, counts, args.strict)

    def regions() -> Iterator[Region]:
        for box, (where, image_hw, keys) in reader.read((b, hw, where, (where, hw, d)) for b, hw, where, d in found):
            if box is None and keys.get("mask") is None:
                raise ValueError(f"{where}: neither a box nor a mask")
            if box is None and (box := mask_box(keys["mask"], image_hw, where)) is None:
                if args.strict:
                    raise ValueError(f"{where}: the mask has no pixel in its image")
                counts["masks left out: nothing of them in the image"] += 1
                continue
            captions = keys.get("captions") or []
            counts["regions"] += 1
            counts["captions"] += len(captions)
            counts["regions without a caption"] += not captions
            counts["regions with a mask"] += keys.get("mask") is not None
            record = {**common, **keys, "id": f"{name}-{keys['id']}", "image_hw": list(image_hw), "box": box}
            yield Region.from_dict(record, where)

    write(args.out, regions())
    tell(args.out, {key: count for key, count in counts.items() if count or key in ("regions", "captions")})


class OwnImages:
    """Images in a folder as annotations name them: their path for a record, and their size from the file's header.

    prefix: what to remove where a name begins with it (a folder of another machine, "COCO_train2014_").
    """

    def __init__(self, folder: Path, out: Path, prefix: str = ""):
        self.folder, self.prefix = folder, prefix
        self._files = ImageFolder(folder, out)
        self._roots = [f"{root.as_posix()}/" for root in (folder, folder.absolute(), folder.resolve())]
        self._known: OrderedDict[str, tuple[str, tuple[int, int]]] = OrderedDict()
        self._unchecked = NUM_SIZES_CHECKED

    def find(self, name: Any, where: str, recorded_hw: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
        """(path relative to the record file, image_hw). recorded_hw: the size that the annotation says; it is compared
        with that of the first pictures, and then believed (`python -m data_prep.check` looks at all).

        Raises ValueError that begins with `where` for a name that leads out of the folder, a file that is not there or
        no image, and another size than recorded.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: image {name!r}: expected the name of a file")
        if name not in self._known:
            if len(self._known) >= NUM_SIZES:
                self._known.popitem(last=False)
            plain = not self.prefix and "./" not in name and "//" not in name  # the common case, without a look on disk
            inside = name if plain and self._files.find(name) else self._inside(name, where)
            path = self._files.path(inside, where)
            if recorded_hw is not None and self._unchecked <= 0:
                return path, check_image_hw(recorded_hw)
            self._unchecked -= 1
            try:
                self._known[name] = path, read_image_hw(f"{self.folder}/{inside}")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        path, image_hw = self._known[name]
        if recorded_hw is not None and tuple(recorded_hw) != image_hw:
            turned = " (turned by its EXIF orientation?)" if tuple(recorded_hw) == image_hw[::-1] else ""
            raise ValueError(
                f"{where}: image {name!r} is {image_hw}, the annotation says {tuple(recorded_hw)}, both (height, width)"
                f"{turned}; boxes count in the recorded size: give the images that were annotated"
            )
        return path, image_hw

    def _inside(self, name: str, where: str) -> str:
        """The name relative to the folder."""
        short = name.replace("\\", "/").removeprefix("file://").removeprefix(self.prefix)
        for root in self._roots:
            short = short.removeprefix(root)  # an absolute path of this machine
        path = PurePosixPath(short)
        outside = path.is_absolute() or ".." in path.parts or "://" in short
        if outside or not (self.folder / path).is_file():
            problem = f"{where}: image {name!r} does not lie in {self.folder}"
            if path.name != short and (self.folder / path.name).is_file():
                beginning = name.replace("\\", "/").removesuffix(path.name)
                raise ValueError(f"{problem}, but {path.name} does: say --image-prefix {beginning!r}")
            if outside:
                raise ValueError(f"{problem}; remove the beginning of such names with --image-prefix")
        return str(path)


def read_entries(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, entry) of a JSON list, or of JSON lines where the name ends with .jsonl (both also .gz); streamed."""
    lines = path.name.endswith((".jsonl", ".jsonl.gz"))
    entries = read_jsonl(path) if lines else enumerate(read_items(path, "item"))
    for number, entry in entries:
        where = f"{path}:{number}" if lines else f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {type(entry).__name__} instead of an object")
        yield where, entry
