"""A dataset of the Hugging Face Hub, or a folder that `datasets` wrote -> record file, images beside it.

    python -m data_prep.hub --dataset cppe-5 --split train --boxes-column objects.bbox --box-format xywh \
        --category-column objects.category --out data/cppe5/train.jsonl
    python -m data_prep.hub --dataset saved/folder --split train --image-column photo --boxes-column box \
        --box-format xyxy-unit --captions-column text --out data/mine/train.jsonl

--dataset is a name on the Hub, a folder of `save_to_disk`, or a folder of Parquet files. A dot leads into `objects`,
whether it is a dict of lists or a list of dicts: objects.bbox. A row has one image and either one box or a list of
them; masks (run lengths, polygons or pictures), categories (numbers of a ClassLabel become names), captions (a text or
a list of texts a box) and ids go with the boxes. Images keep their bytes, under a name that is a hash of them, in
images/ beside the records; the same image in several rows is written once.
"""

import argparse
import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.box_formats import add_box_format
from data_prep.counts import Tally, Undecided
from data_prep.own_data import Found, own_arguments, write_found
from dynrefer.errors import run_command
from dynrefer.files import atomic_path
from dynrefer.images import DECODE_ERRORS, read_image_hw
from dynrefer.masks import mask_to_rle, to_mask

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def regions(
    rows: Iterable[dict], where: str, columns: dict[str, str], names: list[str] | None, folder: Path, counts: Tally
) -> Iterator[Found]:
    """Regions of a dataset's rows in its order.

    columns: "image" -> column, and of "boxes", "masks", "captions", "category" and "id" those there are; a dot leads
    inside. names: category names where they are numbers. folder: where images are written; it lies beside the records.
    """
    written: dict[bytes, tuple[str, tuple[int, int]]] = {}
    seen: dict[str, str] = {}
    for number, row in enumerate(rows):
        counts["rows"] += 1
        with counts.entries("rows"):
            place = f"{where}, row {number}"
            data = _image_bytes(_value(row, columns["image"], place), place)
            digest = hashlib.sha256(data).digest()
            if digest not in written:
                written[digest] = write_image(data, digest.hex()[:20], folder, place)
            file, image_hw = written[digest]
            values = {key: _value(row, column, place) for key, column in columns.items() if key != "image"}
            alone = _is_one(values)
            things = {key: [value] if alone else _each(value, key, place) for key, value in values.items()}
            total = max((len(things[key]) for key in ("boxes", "masks") if key in things), default=0)
            if uneven := [key for key, listed in things.items() if len(listed) != total]:
                raise ValueError(
                    f"{place}: {len(things[uneven[0]])} {uneven[0]} of {total} regions; expected one a region"
                )
            counts["rows left out: without a region"] += not total
            for k in range(total):
                thing = {key: listed[k] for key, listed in things.items()}
                there = f"{place}, region {k}"
                captions = thing.get("captions") or []
                captions = [captions] if isinstance(captions, str) else captions
                if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
                    raise ValueError(f"{there}: captions {captions!r}: expected a text or texts")
                keys = {
                    "id": f"{number}" if alone else f"{number}-{k}",
                    "image": f"{folder.name}/{file}",
                    "mask": _mask(thing.get("masks"), image_hw, there),
                    "category": _category(thing.get("category"), names, there),
                    "captions": list(dict.fromkeys(text.strip() for text in captions if text.strip())),
                }
                if "id" in thing:
                    keys["id"] = str(thing["id"])
                    if (first := seen.setdefault(keys["id"], there)) != there:
                        raise Undecided(f"{there}: id {keys['id']!r} stands in {first} already")
                yield thing.get("boxes"), image_hw, there, keys
    counts["images written"] = len(written)


def write_image(data: bytes, name: str, folder: Path, where: str) -> tuple[str, tuple[int, int]]:
    """Writes an encoded image as it is. Returns its file name and the upright (height, width)."""
    try:
        image_hw = read_image_hw(data)
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
    except (ValueError, *DECODE_ERRORS) as error:
        raise ValueError(f"{where}: {error}") from error
    name += SUFFIXES.get(kind or "", f".{str(kind).lower()}")
    if not (folder / name).is_file():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
    return name, image_hw


def _value(row: dict, column: str, where: str) -> Any:
    """What stands at a column, "objects.bbox", in a row, also where objects is a list of dicts."""
    value: Any = row
    for key in column.split("."):
        try:
            value = [entry[key] for entry in value] if isinstance(value, list) else value[key]
        except (KeyError, TypeError):
            there = value[0] if isinstance(value, list) and value else value
            known = sorted(there) if isinstance(there, dict) else type(there).__name__
            raise ValueError(f"{where}: no {key!r} of {column!r}; there is {known}") from None
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_one(values: dict[str, Any]) -> bool:
    """Whether a row has one region, not a list of them: its box is four numbers, or its mask is one."""
    boxes, masks = values.get("boxes"), values.get("masks")
    if boxes is not None:
        return isinstance(boxes, list) and len(boxes) > 0 and not isinstance(boxes[0], (list, tuple, np.ndarray))
    return isinstance(masks, (dict, bytes, Image.Image))


def _each(value: Any, key: str, where: str) -> list:
    value = [] if value is None else value
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} {value!r:.80}: expected a list, one entry a box")
    return [entry.tolist() if isinstance(entry, np.ndarray) else entry for entry in value]


def _image_bytes(value: Any, where: str) -> bytes:
    """The encoded image of a cell: bytes, {"bytes", "path"} as `datasets` has it, or a path."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, bytes):
        return value
    try:
        return Path(value).read_bytes()
    except (TypeError, OSError) as error:
        raise ValueError(f"{where}: image {value!r:.80}: expected bytes or the path of a file ({error})") from error


def _mask(mask: Any, image_hw: tuple[int, int], where: str) -> dict | list | None:
    """Run lengths and polygons as they are, pictures as run lengths."""
    if isinstance(mask, dict) and "counts" in mask:
        counts = mask["counts"]
        return {"size": list(mask["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    if isinstance(mask, (dict, bytes, Image.Image)):
        try:
            picture = mask if isinstance(mask, Image.Image) else Image.open(io.BytesIO(_image_bytes(mask, where)))
            return mask_to_rle(to_mask(picture, image_hw))
        except (ValueError, *DECODE_ERRORS) as error:
            raise ValueError(f"{where}: mask: {error}") from error
    return mask or None


def _category(value: Any, names: list[str] | None, where: str) -> str | None:
    if value is None or value == "" or (names is not None and value == -1):  # -1: a ClassLabel that is not known
        return None
    if names is None or isinstance(value, str):
        return str(value)
    if type(value) is not int or not 0 <= value < len(names):
        raise ValueError(f"{where}: category {value!r}: expected a number from 0 to {len(names) - 1}")
    return names[value]


def open_dataset(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
    """A split of a dataset of the Hub or on disk. ValueError says what cannot be opened."""
    import datasets

    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            dataset = datasets.load_from_disk(name)
            if not isinstance(dataset, datasets.DatasetDict):
                return dataset
            if split not in dataset:
                raise ValueError(f"no split {split!r}, it has {sorted(dataset)}")
            return dataset[split]
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise ValueError(f"--dataset {name}, split {split!r}: cannot be opened ({error})") from error


def category_names(features: Any, column: str) -> list[str] | None:
    """Names of the ClassLabel at a column ("objects.category"); None where it is none."""
    feature = features
    for key in column.split("."):
        feature = _inside(feature)
        feature = feature.get(key) if isinstance(feature, dict) else None
    return getattr(_inside(feature), "names", None)


def _inside(feature: Any) -> Any:
    """What a list's feature is a list of."""
    while hasattr(feature, "feature") or (isinstance(feature, list) and feature):
        feature = feature.feature if hasattr(feature, "feature") else feature[0]
    return feature


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("hub", __doc__.splitlines()[0], images=False)
    parser.set_defaults(split="train")
    parser.add_argument("--dataset", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--config", help="of a dataset that has several")
    parser.add_argument("--streaming", action="store_true", help="do not download the whole dataset first")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--boxes-column", help="for instance objects.bbox")
    parser.add_argument("--masks-column")
    parser.add_argument("--captions-column")
    parser.add_argument("--category-column")
    parser.add_argument("--id-column")
    add_box_format(parser, required=False)
    return run_command("data_prep.hub", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    import datasets

    dataset = open_dataset(args.dataset, args.config, args.split, args.streaming)
    given = {"image": args.image_column, "boxes": args.boxes_column, "masks": args.masks_column}
    given |= {"captions": args.captions_column, "category": args.category_column, "id": args.id_column}
    columns = {key: column for key, column in given.items() if column}
    if not {"boxes", "masks"} & columns.keys():
        raise ValueError(f"say where the boxes or masks are, with --boxes-column or --masks-column; {_known(dataset)}")
    features = dataset.features or {}
    for key, column in columns.items():
        if features and column.partition(".")[0] not in features:
            raise ValueError(f"no column {column!r} for {key}; {_known(dataset)}")
    if isinstance(features.get(columns["image"]), datasets.Image):
        dataset = dataset.cast_column(columns["image"], datasets.Image(decode=False))  # its bytes are kept as they are
    if isinstance(_inside(features.get(columns.get("masks"))), datasets.Image):
        several = isinstance(features[columns["masks"]], datasets.List)
        raw = datasets.Image(decode=False)
        dataset = dataset.cast_column(columns["masks"], datasets.List(raw) if several else raw)
    names = category_names(features, columns["category"]) if "category" in columns else None
    name = Path(args.dataset).name
    args.source = args.source or args.dataset
    args.licence = args.licence or (dataset.info.license or "" if dataset.info else "")
    counts = Tally(args.strict)
    found = regions(dataset, args.dataset, columns, names, args.out.absolute().parent / "images", counts)
    write_found(args, name, found, counts, args.box_format)


def _known(dataset: Any) -> str:
    return f"its columns are {', '.join(f'{name} ({feature})' for name, feature in (dataset.features or {}).items())}"


if __name__ == "__main__":
    sys.exit(main())
