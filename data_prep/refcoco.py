r"""RefCOCO, RefCOCO+ and RefCOCOg (referring expressions of COCO objects) -> record files with masks.

    python -m data_prep.refcoco --dataset refcocog-umd --split val --refs "refcocog/refs(umd).p" \
        --instances refcocog/instances.json --images train2014 --out data/refcocog/val.jsonl
    python -m data_prep.refcoco --dataset refcocog-umd --split val --captions finetune_refcocog_val_captions.json \
        --per expression --images train2014 --out data/refcocog/val_expressions.jsonl
    python -m data_prep.refcoco --dataset refcocog-umd --split val --captions refcocog_val_coco_format.json \
        --images train2014 --out data/refcocog_asm/val.jsonl
    python -m data_prep.refcoco --dataset refcocog-lmms --split val --rows RefCOCOg/data/val-*.parquet \
        --images train2014 --out data/refcocog_lmms/val.jsonl
    python -m data_prep.refcoco --dataset refcocog-umd --split train --refs "refcocog/refs(umd).p" \
        --instances refcocog/instances.json --images train2014 --out data/refcocog/train.jsonl \
        --exclude data/refcoco/testA.jsonl data/refcoco/testB.jsonl

Where the files come from:

    refs          REFER (github.com/lichengunc/refer): refcoco.zip, refcoco+.zip and refcocog.zip, each with
                  instances.json and refs(unc).p, refs(umd).p or refs(google).p. The pickles are read without running
                  code from them
    captions      the same expressions as JSON, one "image" an expression: MDETR's finetune_refcocog_train.json and
                  so on, GLaMM's mdetr_annotations (with finetune_refcocog_val_captions.json), Osprey's
                  finetune_refcocog_val_with_mask.json (with masks); or one "image" a region, its box with it:
                  All-Seeing's refcocog_{val,test}_coco_format.json (huggingface.co/datasets/OpenGVLab/
                  Caption-Evaluation-Data). RefCOCOg is UMD's in all of them
    rows          lmms-eval's Parquet files of RefCOCOg: huggingface.co/datasets/lmms-lab/RefCOCOg, data/val-*.parquet
    images        cocodataset.org: train2014.zip (13 GB), or train2017 with its shorter names

What comes out, expressions / regions / images:

    refcoco          train 120,624 / 42,404 / 16,994   val 10,834 / 3,811 / 1,500
                     testA 5,657 / 1,975 / 750         testB 5,095 / 1,810 / 750
    refcoco+         train 120,191 / 42,278 / 16,992   val 10,758 / 3,805 / 1,500
                     testA 5,726 / 1,975 / 750         testB 4,889 / 1,798 / 750
    refcocog-umd     train 80,512 / 42,226 / 21,899    val 4,896 / 2,573 / 1,300    test 9,602 / 5,023 / 2,600
    refcocog-google  train 85,474 / 44,822 / 24,698    val 9,536 / 5,000 / 4,650 (the test set was never released)
    refcocog-lmms    regions: val 7,573 (as many as UMD's and Google's together)    test 5,023

A record is a region with all its expressions, or with --per expression a region and one of them: then a region with
two is captioned and scored twice, as in the protocol of GLaMM, Osprey, ControlCap and DynRefer (4,896 items on
RefCOCOg val).

The end of a record's id is what predictions of the file's users name: REFER's reference, the number of the expression
in the JSON files, All-Seeing's number of the region, and of lmms-eval's rows the place of the row. (A row's question_id
stands before it: it is the annotation's, which several rows of val may have.)

All of them use COCO's train2014 images: the train part of one has images of the others' val and test parts, and the two
parts of refcocog-google share images. --exclude leaves those out of a train part.

Licence: expressions for research, COCO's boxes and masks CC BY 4.0, photographs of their Flickr owners.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.box_formats import BoxReader
from data_prep.captioned_boxes import read_captioned_boxes
from data_prep.converter import arguments, excluded_images, image_keys, write
from data_prep.counts import Tally, check_counts, tell
from dynrefer.boxes import check_image_hw
from dynrefer.data.coco import coco_image_id
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items, read_list
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.masks import check_mask_record
from dynrefer.plain_pickle import read_plain_pickle

COUNTED = ("expressions", "regions", "images")
PUBLISHED = {  # REFER's files, which the JSON files were made of
    "refcoco": {
        "train": (120_624, 42_404, 16_994),
        "val": (10_834, 3_811, 1_500),
        "testA": (5_657, 1_975, 750),
        "testB": (5_095, 1_810, 750),
    },
    "refcoco+": {
        "train": (120_191, 42_278, 16_992),
        "val": (10_758, 3_805, 1_500),
        "testA": (5_726, 1_975, 750),
        "testB": (4_889, 1_798, 750),
    },
    "refcocog-umd": {
        "train": (80_512, 42_226, 21_899),
        "val": (4_896, 2_573, 1_300),
        "test": (9_602, 5_023, 2_600),
    },
    "refcocog-google": {"train": (85_474, 44_822, 24_698), "val": (9_536, 5_000, 4_650)},
}
ROWS = {"refcocog-lmms": {"val": 7_573, "test": 5_023}}  # regions in lmms-eval's files
PER = ("region", "expression")
LICENCE = "Expressions: RefCOCO's authors, research; boxes, masks: COCO, CC BY 4.0; photographs: their Flickr owners"
SHARED = "the val and test parts of RefCOCO, RefCOCO+ and RefCOCOg"


PER_ANNOTATION = re.compile(r"(\d{12})_\d+\.jpg$")  # REFER's names of pictures: COCO's, and the annotation's number


class Reference(NamedTuple):
    """A region with its expressions, before its box is read. key: of the region, in its dataset; expressions: (key,
    text) of each; numbers: xywh pixels; name: of the image file; image_hw: None = the picture's."""

    key: str
    expressions: tuple[tuple[str, str], ...]
    numbers: Any
    mask: Any
    category: str | None
    name: str
    image_hw: tuple[int, int] | None
    where: str


def read_refer(refs: Path, instances: Path, dataset: str, split: str, subset: bool = False) -> Iterator[Reference]:
    """References of one split from REFER's files, in the order of instances.json, which is streamed."""
    by_annotation: dict[int, list[tuple[int, int, tuple]]] = {}  # (image, reference, its expressions)
    for ref in _refs(refs):
        if ref["split"] == split:
            expressions = tuple([(f"{ref['ref_id']}-{s['sent_id']}", s["sent"].strip()) for s in ref["sentences"]])
            by_annotation.setdefault(ref["ann_id"], []).append((ref["image_id"], ref["ref_id"], expressions))
    wanted = [entry for entries in by_annotation.values() for entry in entries]
    lacking = {image_id for image_id, _, _ in wanted}
    found = {"expressions": sum(len(expressions) for _, _, expressions in wanted), "regions": len(wanted)}
    check_counts({**found, "images": len(lacking)}, _published(dataset, split), f"{refs}, {dataset} {split}", subset)
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    for image in read_items(instances, "images.item"):
        image_id, name, height, width = _fields(image, ("id", "file_name", "height", "width"), instances)
        if image_id in lacking:
            images[image_id] = (str(name), check_image_hw((height, width)))
            lacking.remove(image_id)
            if not lacking:
                break  # the annotations are behind them
    if lacking:
        raise ValueError(f"{instances}: lacks {len(lacking)} images of {refs}, the first is {min(lacking)}; {_PAIR}")
    categories = dict(_fields(c, ("id", "name"), instances) for c in read_list(instances, "categories"))
    keys = ("image_id", "category_id", "bbox", "segmentation")
    for annotation in read_items(instances, "annotations.item"):
        (annotation_id,) = _fields(annotation, ("id",), instances)
        for ref_image_id, ref_id, expressions in by_annotation.pop(annotation_id, ()):
            image_id, category_id, numbers, mask = _fields(annotation, keys, instances)
            where = f"{instances}: annotation {annotation_id}"
            if image_id != ref_image_id:
                raise ValueError(f"{where} is of image {image_id}, but of {ref_image_id} in {refs}; {_PAIR}")
            category = categories.get(category_id)
            yield Reference(str(ref_id), expressions, numbers, mask, category, *images[image_id], where)
    if by_annotation:
        first = next(iter(by_annotation))
        raise ValueError(
            f"{instances}: lacks {len(by_annotation)} annotations of {refs}, the first is {first}; {_PAIR}"
        )


_PAIR = "both files come from the same archive"


def _fields(entry: Any, keys: Sequence[str], path: Path) -> tuple:
    try:
        return tuple([entry[key] for key in keys])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {str(entry)[:200]}: expected {', '.join(keys)}, as in COCO ({type(error).__name__}: {error})"
        ) from error


def _refs(path: Path) -> list[dict]:
    """The entries of REFER's pickle, checked for what is used of them."""
    refs = read_plain_pickle(path)
    try:
        for ref in refs:
            whole = all(type(ref[key]) is int for key in ("ref_id", "ann_id", "image_id"))
            texts = all(type(s["sent_id"]) is int and isinstance(s["sent"], str) for s in ref["sentences"])
            if not (whole and texts and isinstance(ref["split"], str)):
                raise ValueError("an id is no whole number, or an expression no text")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not REFER's list of references with ref_id, ann_id, image_id, split and sentences "
            f"({type(error).__name__}: {error})"
        ) from error
    return refs


def read_captions(path: Path, dataset: str, split: str, per: str, subset: bool = False) -> Iterator[Reference]:
    """References from MDETR's, GLaMM's or Osprey's file of one split. With `per` "region" the expressions of a box are
    brought together, which holds them all in memory."""
    if dataset == "refcocog-google":
        raise ValueError(f"{path}: these files hold UMD's split of RefCOCOg; say --dataset refcocog-umd")
    categories = dict(_fields(c, ("id", "name"), path) for c in read_list(path, "categories", required=False))
    found = {"expressions": 0}
    names: set[str] = set()
    regions: dict[tuple, Reference] = {}
    for annotation, image in read_captioned_boxes(path):
        where = f"{path}: annotation {annotation['id']}"
        if image.dataset and image.dataset != dataset.partition("-")[0]:
            raise ValueError(f"{where} is of {image.dataset}, but --dataset says {dataset}")
        found["expressions"] += 1
        names.add(image.name)
        key = f"e{annotation['id']}"
        reference = Reference(
            key,
            ((key, annotation["caption"].strip()),),
            annotation["bbox"],
            annotation.get("segmentation"),
            categories.get(annotation.get("category_id")),
            image.name,
            image.image_hw,
            where,
        )
        if per == "expression":
            yield reference
            continue
        box = (image.name, str(annotation["bbox"]))
        first = regions.setdefault(box, reference)
        if first is not reference:
            regions[box] = first._replace(expressions=first.expressions + reference.expressions)
    found["images"] = len(names)
    published = {key: count for key, count in _published(dataset, split).items() if key in found}
    check_counts(found, published, f"{path}, {dataset} {split}", subset)
    yield from regions.values()


def is_by_region(path: Path) -> bool:
    """Whether a captions file has an "image" a region, with its box, as All-Seeing's."""
    first = next(read_items(path, "images.item"))
    return isinstance(first, dict) and "bbox" in first


def read_by_region(path: Path, dataset: str) -> Iterator[Reference]:
    """References from All-Seeing's file: an "image" is a region, its bbox xyxy, its captions are the annotations."""
    if dataset != "refcocog-umd":
        raise ValueError(f"{path}: these files hold UMD's split of RefCOCOg; say --dataset refcocog-umd")
    captions: dict[Any, list[str]] = {}
    for image in read_items(path, "images.item"):
        (key,) = _fields(image, ("id",), path)
        if key in captions:
            raise ValueError(f"{path}: image id {key!r} stands there twice")
        captions[key] = []
    for annotation in read_items(path, "annotations.item"):
        key, text = _fields(annotation, ("image_id", "caption"), path)
        if key not in captions or not isinstance(text, str):
            raise ValueError(f"{path}: {str(annotation)[:200]}: expected a caption, and image_id of `images`")
        captions[key].append(text.strip())
    for image in read_items(path, "images.item"):
        key, box = _fields(image, ("id", "bbox"), path)
        name = image.get("image", image.get("file_name"))
        where = f"{path}: image {key}"
        whole = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not isinstance(name, str) or not whole:
            raise ValueError(
                f"{where}: {str(image)[:200]}: expected `image`, the name of a file, and a bbox, x1 y1 x2 y2"
            )
        numbers = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        yield Reference(str(key), _numbered(str(key), captions[key]), numbers, None, None, name, None, where)


def read_rows(paths: Sequence[Path], dataset: str, split: str, subset: bool = False) -> Iterator[Reference]:
    """References from lmms-eval's Parquet files of one split, a region a row; their pictures are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["question_id", "answer", "bbox", "file_name"]
    number = 0
    for path in sorted(paths):
        try:
            for batch in pq.ParquetFile(path).iter_batches(columns=columns):
                for row in batch.to_pylist():
                    where = f"{path}: row {number}"
                    question, answers, box, name = _fields(row, columns, path)
                    if not name or not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
                        raise ValueError(f"{where}: {str(row)[:200]}: expected a list of answers, and a file_name")
                    key = f"{question}-{number}"
                    texts = [text.strip() for text in answers]
                    picture = PER_ANNOTATION.sub(r"\1.jpg", name)
                    yield Reference(key, _numbered(key, texts), box, None, None, picture, None, where)
                    number += 1
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not one of lmms-eval's Parquet files, or cut off ({error})") from error
    check_counts(
        {"regions": number}, {"regions": ROWS[dataset][split]}, f"{paths[0].parent}, {dataset} {split}", subset
    )


def _numbered(key: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple([(f"{key}-{k}", text) for k, text in enumerate(texts)])


def _published(dataset: str, split: str) -> dict[str, int]:
    return dict(zip(COUNTED, PUBLISHED[dataset][split], strict=True))


def regions(
    references: Iterable[Reference],
    images: ImageFolder,
    tally: Tally,
    *,
    name: str,
    dataset: str,
    split: str,
    per: str = "region",
    excluded: Set[int | str] = frozenset(),
) -> Iterator[Region]:
    """A record a reference, or one for each of its expressions. name: of the file, for messages. excluded: COCO ids of
    images to leave out."""
    if per not in PER:
        raise ValueError(f"per {per!r}: expected one of {', '.join(PER)}")

    def found() -> Iterator[tuple]:
        for reference in references:
            if coco_image_id(reference.name) in excluded:
                tally["regions left out: of images in a part that --exclude names"] += 1
                continue
            path = _picture(images, reference)
            with tally.entries("regions"):
                if reference.image_hw is None:
                    reference = reference._replace(image_hw=images.readable_hw(path, reference.where))
                else:
                    images.check_size(path, reference.image_hw, reference.where)
                yield reference.numbers, reference.image_hw, reference.where, (reference, path)

    used: set[str] = set()
    num_expressions = num_empty = num_masks = num_records = 0
    for box, (reference, path) in BoxReader(name, "xywh", tally).read(found()):
        expressions = [(key, text) for key, text in reference.expressions if text]
        num_expressions += len(expressions)
        num_empty += len(reference.expressions) - len(expressions)
        used.add(path)
        mask = _mask(reference, tally)
        if per == "region":
            records = [(reference.key, tuple([text for _, text in expressions]))]
        else:
            records = [(key, (text,)) for key, text in expressions]
        num_records += len(records)
        num_masks += len(records) * (mask is not None)
        for key, captions in records:
            yield Region(
                id=f"{dataset}-{split}-{key}",
                image=path,
                image_hw=reference.image_hw,
                box=box,
                mask=mask,
                captions=captions,
                category=reference.category,
                source=dataset,
                licence=LICENCE,
                split=split,
            )
    tally.update({f"{split} records": num_records, f"{split} expressions": num_expressions})
    tally.update({f"{split} images": len(used), "records with a mask": num_masks})
    tally.update({"expressions left out: empty": num_empty})


def _picture(images: ImageFolder, reference: Reference) -> str:
    """The image's path for a record: as in train2014, or as train2017 names it."""
    base = reference.name.rpartition("/")[2]
    path = images.find(reference.name, base, base.rpartition("_")[2])
    if path is None:
        raise ValueError(
            f"{reference.where}: image {reference.name!r} is not in {images.folder}, also not as "
            f"{base.rpartition('_')[2]!r}; name the folder of COCO's train2014 (or train2017)"
        )
    return path


def _mask(reference: Reference, tally: Tally) -> list | dict | None:
    """COCO polygons or run lengths; None where there are none, or damaged ones."""
    mask = reference.mask
    if not mask:
        return None
    if isinstance(mask, dict):
        mask = {key: mask[key] for key in ("size", "counts") if key in mask}
    try:
        check_mask_record(mask, reference.image_hw)
    except ValueError as error:
        tally.leave_out("masks", "damaged", f"{reference.where}: {error}")
        return None
    return mask


def main(argv: list[str] | None = None) -> int:
    parser = arguments("refcoco", "RefCOCO, RefCOCO+, RefCOCOg -> record files", SHARED)
    parser.add_argument("--dataset", choices=(*PUBLISHED, *ROWS), required=True)
    parser.add_argument("--split", required=True, help="train, val, test, testA or testB, as the dataset has it")
    parser.add_argument("--refs", type=Path, metavar="FILE", help="REFER's refs(unc).p, refs(umd).p or refs(google).p")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="the instances.json beside it")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="MDETR's, GLaMM's ... JSON instead")
    parser.add_argument("--rows", type=Path, nargs="+", metavar="FILE", help="lmms-eval's Parquet files instead")
    parser.add_argument("--per", choices=PER, default="region", help="what a record is (default: region)")
    parser.add_argument("--strict", action="store_true", help="a faulty box or mask is an error")
    return run_command("data_prep.refcoco", convert, parser.parse_args(argv))


def convert(args: argparse.Namespace) -> None:
    """Writes the records that the command line asks for and prints what was counted."""
    splits = (PUBLISHED | ROWS)[args.dataset]
    if args.split not in splits:
        raise ValueError(f"--split {args.split}: {args.dataset} has {', '.join(splits)}")
    if (args.refs is None) != (args.instances is None) or sum(map(bool, (args.refs, args.captions, args.rows))) != 1:
        raise ValueError("give --refs with --instances (REFER's files), --captions (a JSON file) or --rows (Parquet)")
    if bool(args.rows) != (args.dataset in ROWS):
        raise ValueError(f"--dataset {args.dataset}: --rows goes with {', '.join(ROWS)}, and only with it")
    excluded = excluded_images(args, SHARED) if args.split == "train" or args.exclude else set()
    for path in args.exclude or ():
        if not any(isinstance(key, int) for key in image_keys([path])):
            raise ValueError(
                f"--exclude {path}: none of its images has a COCO name (COCO_train2014_000000000009.jpg or "
                "000000000009.jpg), so it cannot be told which are shared"
            )
    tally = Tally(args.strict)
    if args.refs:
        references = read_refer(args.refs, args.instances, args.dataset, args.split, args.subset)
    elif args.rows:
        references = read_rows(args.rows, args.dataset, args.split, args.subset)
    elif is_by_region(args.captions):
        references = read_by_region(args.captions, args.dataset)
    else:
        references = read_captions(args.captions, args.dataset, args.split, args.per, args.subset)
    records = regions(
        references,
        ImageFolder(args.images, args.out, args.image_prefix),
        tally,
        name=str(args.instances or args.captions or args.rows[0]),
        dataset=args.dataset,
        split=args.split,
        per=args.per,
        excluded=excluded,
    )
    write(args.out, records, tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
