r"""Record files and predictions -> COCO JSON, YOLO label files, Label Studio tasks.

    python -m data_prep.export data/mine/train.jsonl --to coco --out mine.json
    python -m data_prep.export data/mine/train.jsonl --to yolo --out mine_yolo
    python -m data_prep.export predictions.jsonl --records data/mine/test.jsonl --to coco --out results.json
    python -m data_prep.export predictions.jsonl --records data/mine/test.jsonl --to label-studio --out tasks.json

What becomes of a region:

                 records                                 predictions
    coco         a document: a caption in `caption` and  the list of results that COCO's evaluators read, with
                 `attributes.caption`, boxes xywh,       scores; --whole: a document, for labelling tools
                 masks as they are
    yolo         labels/SPLIT/NAME.txt and data.yaml,    the same; --confidence adds the scores
                 the images linked (or --pictures)
    label-studio tasks with annotations, and the         tasks with predictions
                 interface beside them as .xml

Predictions say neither image nor size: --records names the records that they are of. Categories have the ids of
categories.json or the order of categories.txt beside the records, others follow; a region without one is called
"object" where the form asks for one. Image names are relative to the folder that holds all images, which is printed.
What a form has no place for (tags, attributes, in YOLO captions) is left out and counted.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.counts import tell
from dynrefer.data.clips import ClipRegion
from dynrefer.data.export import (
    LOCAL_FILES,
    NO_CATEGORY,
    Exported,
    category_names,
    coco_document,
    coco_results,
    exported,
    image_names,
    label_studio_config,
    label_studio_tasks,
    write_coco,
    write_label_studio,
    write_yolo,
)
from dynrefer.data.json_files import read_json
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.errors import Parser, cut, run_command, suggestion
from dynrefer.files import read_jsonl
from dynrefer.vocabulary import read_words

FORMS = ("coco", "yolo", "label-studio")


def read_predicted(path: Path, regions: dict[str, Region], counts: Counter) -> list[Exported]:
    """Predictions in the file's order, with the images of their records. ValueError for one of no record."""
    shown, seen = [], set()
    for line, entry in read_jsonl(path):
        where = f"{path}:{line}"
        result = RegionResult.from_dict(entry, where)
        if result.id not in regions:
            raise ValueError(
                f"{where}: no record has the id {cut(result.id)!r}; name the records that it is of with --records."
                f"{suggestion(result.id, list(regions)[:1000])}"
            )
        if result.id in seen:
            raise ValueError(f"{where}: a second prediction of {cut(result.id)!r}")
        seen.add(result.id)
        shown.append(exported(regions[result.id], result))
    if not shown:
        raise ValueError(f"{path}: no predictions in it")
    counts["records without a prediction, left out"] = len(regions) - len(shown)
    return shown


def known_categories(named: Path | None, records: Path) -> dict[str, int]:
    """{name: id} of a word list or of COCO's categories; by default of the one beside the records, if there is one."""
    beside = [records.absolute().parent / name for name in ("categories.json", "categories.txt")]
    path = named or next((one for one in beside if one.is_file()), None)
    if path is None:
        return {}
    entries = read_json(path) if path.suffix == ".json" else None
    entries = entries.get("categories") if isinstance(entries, dict) else entries
    names = [name.strip() for name in read_words(path)]
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in entries or ()]
    if not ids or not all(type(number) is int for number in ids) or len(set(ids)) < len(ids):
        ids = range(1, len(names) + 1)
    return dict(zip(names, ids, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.export", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="record file, or with --records a predictions file")
    parser.add_argument("--to", choices=FORMS, required=True, help="the form to write")
    parser.add_argument("--out", type=Path, required=True, help="coco, label-studio: a .json file; yolo: a folder")
    parser.add_argument("--records", type=Path, help="of predictions: the records that they are of")
    parser.add_argument("--split", help="only records of this split")
    parser.add_argument("--categories", type=Path, help="names in order, or COCO's categories (default: those beside)")
    parser.add_argument("--whole", action="store_true", help="coco, predictions: a document instead of results")
    parser.add_argument("--shapes", choices=("boxes", "polygons"), help="yolo (default: polygons where all have masks)")
    parser.add_argument("--confidence", action="store_true", help="yolo, predictions: scores at the lines' ends")
    parser.add_argument(
        "--pictures", choices=("link", "copy", "none"), default="link", help="yolo: into the folder (default link)"
    )
    parser.add_argument(
        "--image-prefix", default=LOCAL_FILES, help="label-studio: what stands before image names (default %(default)s)"
    )
    return run_command("data_prep.export", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    is_folder = args.to == "yolo"
    if not is_folder and args.out.suffix != ".json":
        raise ValueError(f"--out {args.out}: expected a name that ends with .json")
    if is_folder and args.out.suffix:
        raise ValueError(f"--out {args.out}: expected the name of a folder, without an ending")
    if args.whole and not (args.records and args.to == "coco"):
        raise ValueError("--whole: it is for predictions (--records) as COCO")
    if args.confidence and not (args.records and is_folder):
        raise ValueError("--confidence: it is for predictions (--records) as YOLO")
    if args.records is None and _is_predictions(args.file):
        raise ValueError(f"{args.file}: predictions, which name no image; name the records they are of with --records")
    records = open_records(args.records or args.file, args.split)
    counts: Counter[str] = Counter()
    regions = {region.id: region for region in records}
    if any(isinstance(region, ClipRegion) for region in regions.values()):
        raise ValueError(f"{records.path}: regions of videos, for which these forms have no place")
    recorded = [exported(region) for region in regions.values()]
    if args.records is None:
        shown = recorded
        counts["tags left out"] = sum(len(region.tags or ()) for region in regions.values())
        counts["attributes left out"] = sum(len(region.attributes) for region in regions.values())
    else:
        shown = read_predicted(args.file, regions, counts)
    images = [region.image for region in regions.values()]
    known = known_categories(args.categories, records.path)
    for name in category_names(recorded, list(known)):  # so that predictions have the ids that their records have
        known.setdefault(name, max(known.values(), default=0) + 1)
    counts["regions"] = len(shown)
    counts["images"] = len({region.image for region in shown})
    if args.to == "coco":
        document = coco_document(shown, known, root=records.root, images=images)
        counts["categories"] = len(document["categories"])
        counts[f"regions without a category, called {NO_CATEGORY!r}"] = sum(not region.category for region in shown)
        write_coco(args.out, document if args.records is None or args.whole else coco_results(document))
    elif is_folder:
        polygons = None if args.shapes is None else args.shapes == "polygons"
        options = {"polygons": polygons, "pictures": args.pictures, "confidence": args.confidence}
        counts |= write_yolo(args.out, shown, list(known), root=records.root, **options)
    else:
        tasks = label_studio_tasks(shown, root=records.root, prefix=args.image_prefix)
        names = [name for name in category_names(shown, list(known)) if name != NO_CATEGORY]
        beside = write_label_studio(args.out, tasks, label_studio_config(names))
        print(f"labelling interface: {beside}")
    print(f"images: {image_names(images, records.root)[0]}")
    tell(args.out, {name: count for name, count in counts.items() if count})


def _is_predictions(path: Path) -> bool:
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    _, first = next(read_jsonl(path), (0, None))
    return isinstance(first, dict) and "image" not in first and "video" not in first and "caption" in first


if __name__ == "__main__":
    sys.exit(main())
