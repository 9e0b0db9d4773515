"""A table of boxes (CSV, TSV) -> record file.

    python -m data_prep.csv_boxes --csv mine.csv --images photos --box-format xyxy --out data/mine/train.jsonl
    python -m data_prep.csv_boxes --csv mine.csv --images photos --box-format xywh-unit --delimiter ';' \
        --image-column file --box-columns left top w h --caption-column text --out data/mine/train.jsonl

The first line names the columns: an image, four numbers of the box, and where there are such columns a caption, a
category, tags (parted by ;), an id and a split. A caption's column may also be called description, text, phrase or
sentence. Rows of the same box are one region with several captions; a row
without a caption is a region without one. UTF-8 with or without a byte order mark, UTF-16 with one, packed by gzip, or
what --encoding says.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from data_prep.box_formats import add_box_format
from data_prep.counts import Tally
from data_prep.own_data import Found, OwnImages, own_arguments, write_found
from data_prep.texts import TEXT_KEYS
from dynrefer.errors import run_command, suggestion
from dynrefer.packed import open_text, other_kind

BOX_COLUMNS = {
    "xyxy": ("x1", "y1", "x2", "y2"),
    "xywh": ("x", "y", "width", "height"),
    "cxcywh": ("cx", "cy", "width", "height"),
}
UTF8 = "utf-8-sig"
OPTIONAL = ("caption", "category", "tags", "id", "split")


def regions(
    path: Path, images: OwnImages, columns: dict, delimiter: str, encoding: str, counts: Tally
) -> Iterator[Found]:
    """Regions of a table in the order of their first rows; the captions of later rows of a box join the first's.

    columns: "image" -> name, "box" -> four names, and of `OPTIONAL` those that the table has. The whole table is read
    first, since rows of a box may stand anywhere.
    """
    used = {*columns["box"], *(name for key, name in columns.items() if key != "box")}
    merged: dict[tuple, list] = {}  # (image, box) -> [line, captions, category, tags, id, split]
    for line, row in read_rows(path, columns, delimiter, encoding, counts):
        counts["rows"] += 1
        for name in row.keys() - used:
            if any(map(str.isalpha, row[name])):
                counts[f"texts not read: column {name} (--caption-column {name} takes them)"] += 1
        where = f"{path}:{line}"
        box = None
        with counts.entries("rows"):
            box = tuple(_number(row[name], name, where) for name in columns["box"])
        if box is None:
            continue
        caption, category, tags, region_id, split = (row[columns[key]] if key in columns else "" for key in OPTIONAL)
        known = merged.setdefault((row[columns["image"]], box), [line, [], category, tags, region_id, split])
        if known[0] != line:
            for key, old, new in zip(OPTIONAL[1:], known[2:], (category, tags, region_id, split), strict=True):
                if old != new and key != "id":
                    raise ValueError(f"{where}: {key} {new!r}, but {old!r} in line {known[0]}, which is the same box")
        if caption.strip() and (caption := caption.strip()) not in known[1]:
            known[1].append(caption)
        counts["rows that repeat a box"] += known[0] != line
    lines: dict[str, int] = {}
    for (image, box), (line, captions, category, tags, region_id, split) in merged.items():
        where = f"{path}:{line}"
        if region_id and (first := lines.setdefault(region_id, line)) != line:
            raise ValueError(f"{where}: id {region_id!r} stands in line {first} already, at another box")
        with counts.entries("rows"):
            file, image_hw = images.find(image, where)
            keys = {"id": region_id or str(line), "image": file, "captions": captions, "category": category or None}
            if "tags" in columns:
                keys["tags"] = [tag.strip() for tag in tags.split(";") if tag.strip()]
            if split:
                keys["split"] = split
            yield list(box), image_hw, where, keys


def read_rows(
    path: Path, columns: dict, delimiter: str, encoding: str, counts: Tally
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a table whose first line names its columns. ValueError names file and line of what is wrong with
    the whole; rows of another number of cells are left out."""
    line = 1
    try:
        with _open(path, encoding) as file:
            table = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(table, [])]
            _check_header(header, columns, delimiter, path)
            for cells in table:
                line = table.line_num
                with counts.entries("rows"):
                    if len(cells) != len(header) and cells:
                        raise ValueError(
                            f"{path}:{line}: {len(cells)} cells, but {len(header)} columns; texts with {delimiter!r} "
                            "in them stand in quotation marks"
                        )
                    if cells:
                        yield line, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: behind line {line}: not {encoding.upper()} text ({error.reason}); save it as UTF-8, or say its "
            "--encoding (cp1252, latin-1, utf-16, ...)"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path}: behind line {line}: not a table, or cut off ({error})") from error
    except (OSError, LookupError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _check_header(header: list[str], columns: dict, delimiter: str, path: Path) -> None:
    if not any(header):
        raise ValueError(f"{path}: empty; expected a line that names the columns")
    for name in (columns["image"], *columns["box"], *(columns[key] for key in OPTIONAL if key in columns)):
        if name not in header:
            hint = f".{suggestion(name, header)}"
            if len(header) == 1 and (other := next((d for d in ",;\t|" if d != delimiter and d in header[0]), None)):
                hint = f"; are they parted by {other!r}? Say --delimiter"
            raise ValueError(f"{path}:1: no column {name!r}; there are {header}{hint}")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path}:1: two columns are called {twice!r}")


def _open(path: Path, encoding: str) -> TextIO:
    """The table's text. Without --encoding a mark is read over, UTF-16 is known by its mark, and gzip is unpacked."""
    if encoding != UTF8:
        return open(path, encoding=encoding, newline="")
    if (kind := other_kind(path)) is not None:
        raise ValueError(f"{path}: {kind}")
    return io.TextIOWrapper(open_text(path), encoding="utf-8", newline="")


def _header(path: Path, delimiter: str, encoding: str) -> list[str]:
    try:
        with _open(path, encoding) as file:
            return [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
    except (OSError, ValueError, LookupError, csv.Error):
        return []  # `read_rows` says what is wrong


def _number(text: str, column: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        comma = "; numbers have a point, not a comma" if "," in text else ""
        raise ValueError(f"{where}: {column} {text!r}: expected a number{comma}") from None


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("csv_boxes", __doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True, help="the table")
    add_box_format(parser)
    parser.add_argument("--delimiter", default=",", help=r"between cells (default ,); \t or tab for a tab")
    parser.add_argument("--encoding", default=UTF8, help="of the text (default UTF-8, with or without a mark)")
    parser.add_argument("--image-column", default="image", metavar="NAME")
    parser.add_argument("--box-columns", nargs=4, metavar="NAME", help="x1 y1 x2 y2, x y width height, or cx cy ...")
    for key in OPTIONAL:
        parser.add_argument(f"--{key}-column", metavar="NAME", help=f"default: {key}, where there is such a column")
    return run_command("data_prep.csv_boxes", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    delimiter = {r"\t": "\t", "tab": "\t"}.get(args.delimiter, args.delimiter)
    if len(delimiter) != 1:
        raise ValueError(f"--delimiter {args.delimiter!r}: expected one character")
    encoding = UTF8 if args.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else args.encoding
    names = args.box_columns or BOX_COLUMNS[args.box_format.partition("-")[0]]
    columns = {"image": args.image_column, "box": list(names)}
    header = _header(args.csv, delimiter, encoding)
    for key in OPTIONAL:
        name = getattr(args, f"{key}_column")
        if name is not None or key in header:
            columns[key] = name or key
    if "caption" not in columns and (name := next((key for key in TEXT_KEYS if key in header), None)):
        columns["caption"] = name
    counts = Tally(args.strict)
    images = OwnImages(args.images, args.out, args.image_prefix, args.stored_pixels)
    found = regions(args.csv, images, columns, delimiter, encoding, counts)
    write_found(args, args.csv, found, counts, args.box_format)


if __name__ == "__main__":
    sys.exit(main())
