"""Puts record files into the forms that are made for millions of regions: tar shards, or an Arrow folder.

    python -m data_prep.shard data/vg/train.jsonl --out data/vg_shards              # shard-000000.tar ..., index.json
    python -m data_prep.shard data/vg/train.jsonl --out data/vg_shards --shuffle 0  # images in a random order
    python -m data_prep.shard data/vg/train.jsonl --out data/vg/train --arrow       # records only, images stay in place

JSON lines are read as a whole by whatever opens them: with a million regions and more, make Arrow of them once, and
train on that where the images lie on a disk. Shards hold the images too, each file as it is, beside its regions: for
object stores and network file systems. Copy the folder to its place as it is (`aws s3 cp --recursive`, `rsync`) and
train with data.train=s3://bucket/vg_shards/index.json, or its path. `python -m data_prep.check` looks at records and
images before; here only their being there is checked. Records of any size are converted in constant memory.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.counts import tell
from dynrefer.data.arrow import is_table, save_arrow
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, record_root
from dynrefer.data.shards import MAX_BYTES, write_shards
from dynrefer.errors import Parser, run_command
from dynrefer.files import hidden_folder, read_jsonl


def regions(files: Sequence[Path], folder: Path, split: str | None = None) -> Iterator[Region]:
    """The regions of record files, one by one, with image paths as a record file in `folder` has them. ValueError for
    a bad record, and where there is none."""
    count = 0
    for file in files:
        prefix = os.path.relpath(record_root(file), folder.absolute())
        if is_table(file):
            found = iter(open_records(file))
        else:
            found = (Region.from_dict(d, f"{file}:{line}") for line, d in read_jsonl(file))
        for region in found:
            if split is None or region.split == split:
                moved = prefix != os.curdir and not os.path.isabs(region.image)
                yield replace(region, image=f"{prefix}/{region.image}") if moved else region
                count += 1
    if not count:
        raise ValueError(f"{', '.join(map(str, files))}: no records{f' of split {split!r}' if split else ''} in it")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.shard", description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="record files; several become one")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--arrow", action="store_true", help="an Arrow folder of the records instead of shards")
    parser.add_argument("--split", help="only records of this split")
    parser.add_argument("--max-mb", type=float, default=MAX_BYTES / 2**20, help="MB of a shard (default %(default).0f)")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="shards: images in a random order")
    args = parser.parse_args(argv)
    return run_command("data_prep.shard", command, args)


def command(args: argparse.Namespace) -> None:
    folder = args.out.absolute().parent
    if args.arrow and args.shuffle is not None:
        raise ValueError("--shuffle: Arrow is shuffled when it is read; it is for shards")
    if args.shuffle is not None and args.shuffle < 0:
        raise ValueError(f"--shuffle {args.shuffle}: expected a seed of 0 or more")
    folder.mkdir(parents=True, exist_ok=True)
    if args.arrow:
        tell(args.out, {"regions": save_arrow(args.out, regions(args.records, folder, args.split))})
        return
    with hidden_folder(folder, args.out.name) as hidden:
        # random access to the regions of an image, whatever their order in the files
        rows = hidden / "rows"
        save_arrow(rows, regions(args.records, rows.parent, args.split))
        tell(args.out, write_shards(args.out, open_records(rows), int(args.max_mb * 2**20), args.shuffle))


if __name__ == "__main__":
    sys.exit(main())
