r"""Ref-L4, boxes of COCO and Objects365 with long descriptions -> records.

    python -m data_prep.ref_l4 --split val --annotations Ref-L4/ref-l4-val.parquet --images Ref-L4/images \
        --out data/ref_l4/val.jsonl
    python -m data_prep.ref_l4 --split val --annotations ref-l4-val.json --short refl4_gt.json --images Ref-L4/images \
        --out data/ref_l4/val_short.jsonl

Where the files come from:

    annotations   huggingface.co/datasets/JierunChen/Ref-L4: ref-l4-val.parquet, ref-l4-test.parquet; also as JSON lines
                  (PixelRefer's ref-l4-val.json)
    images        the same place: images.tar.gz (3.5 GB) unpacked; names as in COCO's train2014 and in Objects365
    short         descriptions shortened to a phrase by a language model: PixelRefer's refl4_gt.json
                  (huggingface.co/datasets/CircleRadon/referring_evaluation), or your own {annotation id: phrase}

Licence: annotations CC BY-NC 4.0; photographs: their owners' terms (Flickr).

What must come out: val 13,420 and test 31,921 regions, each with one description of about 24 words. The set was mended
after its release; a file of another version than the latest is converted, and told. With --short the phrases are the
captions, of the regions that have one. refl4_gt.json numbers them by their place in ref-l4-val.json among the images of
Objects365, which are all that PixelRefer's evaluation takes; these numbers end the records' ids then, since predictions
come with them. That a phrase belongs to its description is checked by their words.

It is a test set: name these records with --exclude when you convert training data (COCO's train2014 images are in it).
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.box_formats import BoxReader
from data_prep.converter import arguments, write
from data_prep.counts import Tally, check_counts, tell
from data_prep.own_data import read_entries
from dynrefer.boxes import check_image_hw
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_json
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.files import read_jsonl

NUM_REGIONS = {"val": 13_420, "test": 31_921}
SHA256 = {  # of the parquet files since June 2024
    "val": "7aef079b3fa1ec5de7548774ae6206f375f4b189fd5acecae86741a452da1926",
    "test": "6af2bcac60d0aff5f78c0a0c834377e43ceb17d1e11cbaacdf4eda5f9a9e0068",
}
COLUMNS = ("id", "caption", "bbox", "height", "width", "file_name")
LICENCE = "Annotations: CC BY-NC 4.0, Ref-L4; photographs: COCO, Objects365, their owners' terms (Flickr)"
MIN_SHARED = 0.3  # of the phrases' longer words that stand in their descriptions; in others' hardly any do


def read_annotations(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, entry) of a Parquet file, a JSON list or JSON lines. ValueError for a damaged file and for an entry
    without what is needed; `id` may be missing."""
    for where, entry in _read_parquet(path) if path.suffix == ".parquet" else _read_json(path):
        if lacking := [key for key in COLUMNS[1:] if entry.get(key) is None]:
            raise ValueError(f"{where}: {str(entry)[:200]}: no {', '.join(lacking)}; expected {', '.join(COLUMNS)}")
        if not isinstance(entry["caption"], str) or not isinstance(entry["file_name"], str):
            raise ValueError(f"{where}: {str(entry)[:200]}: caption and file_name are texts")
        yield where, entry


def _read_parquet(path: Path) -> Iterator[tuple[str, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = [name for name in (*COLUMNS, "split") if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for entry in batch.to_pylist():
                yield f"{path}: row {number}", entry
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error}); download it again") from error


def _read_json(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            is_list = file.read(4096).lstrip()[:1] == "["
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if is_list:
        yield from read_entries(path)
        return
    for line, entry in read_jsonl(path):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}:{line}: {type(entry).__name__} instead of an object")
        yield f"{path}:{line}", entry


def read_short(path: Path) -> tuple[dict[str, str], bool]:
    """(phrases by id, whether the ids are places). In COCO's form of captions they are places among the regions, in
    {annotation id: phrase} they are not."""
    document = read_json(path)
    places = isinstance(document, dict) and isinstance(document.get("annotations"), list)
    try:
        pairs = document.items()
        if places:
            pairs = [(entry["image_id"], entry["caption"]) for entry in document["annotations"]]
        phrases = {str(key): text.strip() for key, text in pairs}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected COCO's form, annotations of image_id and caption, or {{annotation id: phrase}} "
            f"({type(error).__name__}: {error})"
        ) from error
    if len(phrases) != len(pairs) or not all(phrases.values()) or not phrases:
        raise ValueError(f"{path}: expected one phrase a region, and none empty")
    return phrases, places


def shortened(entries: list[tuple[str, dict]], path: Path) -> list[tuple[str, dict]]:
    """The entries that have a phrase in the file at `path`, with it for their caption; their `id` becomes "short-N"
    where the phrases are numbered by place. ValueError where phrases and descriptions do not fit together."""
    phrases, places = read_short(path)
    if places:
        taken = [entry for entry in entries if "objects365" in entry[1]["file_name"]]
        taken = entries if len(phrases) == len(entries) else taken
        keys = [str(place) for place in range(len(taken))]
        if set(keys) != phrases.keys():
            raise ValueError(
                f"{path}: {len(phrases):,} phrases, but {len(entries):,} regions, {len(taken):,} of them of "
                "Objects365; phrases are numbered by their place there: take the annotations that they were made of"
            )
    else:
        taken = [entry for entry in entries if str(entry[1].get("id")) in phrases]
        keys = [str(entry["id"]) for _, entry in taken]
        if unknown := phrases.keys() - set(keys):
            raise ValueError(
                f"{path}: {len(unknown)} phrases are for unknown annotations, the first is {min(unknown)!r}"
            )
    pairs = [(phrases[key], entry["caption"]) for key, (_, entry) in zip(keys, taken, strict=True)]
    if (shared := shared_words(pairs)) < MIN_SHARED:
        raise ValueError(
            f"{path}: only {shared:.0%} of the phrases' words stand in the descriptions of the same regions; are they "
            "of these annotations, in this order?"
        )
    return [
        (where, {**entry, "caption": phrases[key], "id": f"short-{key}" if places else entry["id"]})
        for key, (where, entry) in zip(keys, taken, strict=True)
    ]


def shared_words(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of the words in (phrase, description)s' phrases that stand in their description, of words longer than
    three letters, which say what it is about.

    >>> shared_words([("a white mug", "A white cup that stands there"), ("the old lamp", "Beside it, an old lamp.")])
    1.0
    """
    there = [(_words(phrase), _words(description)) for phrase, description in pairs]
    number = sum(len(phrase) for phrase, _ in there)
    return sum(len(phrase & description) for phrase, description in there) / number if number else 1.0


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def regions(
    entries: Sequence[tuple[str, dict]],
    images: ImageFolder,
    counts: Tally,
    *,
    name: str,
    split: str,
    subset: bool = False,
) -> Iterator[Region]:
    """A record an entry of `read_annotations`. name: of the file, for messages; subset: leave out, and count, what has
    no image in the folder."""
    seen: set[str] = set()

    def found() -> Iterator[tuple]:
        for where, entry in entries:
            if entry.get("split", split) != split:
                raise ValueError(f"{where} is of split {entry['split']!r}, but --split says {split}")
            key = str(entry.get("id"))
            if entry.get("id") is None or key in seen:
                raise ValueError(f"{where}: id {entry.get('id')!r}: expected an id of its own")
            seen.add(key)
            image_hw = check_image_hw((entry["height"], entry["width"]))
            file = entry["file_name"]
            path = images.find(file, f"images/{file}", f"train2014/{file}")
            if path is None and subset:
                counts["regions left out: their image is not in the folder"] += 1
                continue
            path = path or images.whole(file, where)
            with counts.entries("regions"):
                images.check_size(path, image_hw, where)
                yield entry["bbox"], image_hw, where, (key, entry["caption"].strip(), path, image_hw)

    used: set[str] = set()
    for box, (key, caption, path, image_hw) in BoxReader(name, "xywh", counts).read(found()):
        used.add(path)
        counts[f"{split} regions"] += 1
        yield Region(
            id=f"ref-l4-{split}-{key}",
            image=path,
            image_hw=image_hw,
            box=box,
            captions=(caption,) if caption else (),
            source="ref-l4",
            licence=LICENCE,
            split=split,
        )
    counts["images"] = len(used)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("ref_l4", __doc__.splitlines()[0])
    parser.add_argument("--split", choices=tuple(NUM_REGIONS), required=True)
    parser.add_argument("--annotations", type=Path, required=True, help="ref-l4-SPLIT.parquet, or the same as JSON")
    parser.add_argument("--short", type=Path, metavar="FILE", help="refl4_gt.json, or {annotation id: phrase}")
    parser.add_argument("--strict", action="store_true", help="a box with nothing in its image is an error")
    return run_command("data_prep.ref_l4", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    images = ImageFolder(args.images, args.out, args.image_prefix)
    entries = list(read_annotations(args.annotations))
    check_counts({"regions": len(entries)}, {"regions": NUM_REGIONS[args.split]}, str(args.annotations), args.subset)
    if args.annotations.suffix == ".parquet" and not args.subset:
        with open(args.annotations, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != SHA256[args.split]:
            print(f"{args.annotations}: not the latest version: sha256 {sha256}, expected {SHA256[args.split]}")
    counts = Tally(args.strict)
    if args.short:
        entries = shortened(entries, args.short)
    options = {"split": args.split, "subset": args.subset}
    write(args.out, regions(entries, images, counts, name=str(args.annotations), **options), counts)
    tell(args.out, {name: count for name, count in counts.items() if count})


if __name__ == "__main__":
    sys.exit(main())
