"""Tables of answers, as VLMEvalKit, pandas and spreadsheets write them: .xlsx, .tsv and .csv -> rows, each {column:
value}.

A cell's text is taken as it stands, where a spreadsheet library would make numbers, dates or nothing ("NA") of it; only
scores, boxes and what else is no text are read as what they are, and such a cell that is empty is none.
"""

import ast
import csv
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from dynrefer.packed import open_text

DELIMITERS = {".tsv": "\t", ".csv": ",;\t"}  # those of a .csv: of which the first row has most
VALUES = ("score", "bbox", "box", "segmentation", "category_id", "categories", "tags", "attributes")
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
TAG = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # a control character


def is_table(path: Path) -> bool:
    return _kind(path) in (".xlsx", *DELIMITERS)


def _kind(path: Path) -> str:
    """The ending, of a packed file the one before it."""
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def read_table(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, {column: value}) of the rows below the first, which names the columns; counted from 1 as spreadsheets do.

    Raises ValueError that names the file: not a table, columns without names or of one name, a row of another length.
    """
    path = Path(path)
    try:
        rows = iter(_xlsx_rows(path) if _kind(path) == ".xlsx" else _text_rows(path, DELIMITERS[_kind(path)]))
        columns = next(rows, [])
        if not columns or not all(columns) or len(set(columns)) != len(columns):
            raise ValueError(f"{path}: columns {columns}; expected names in the first row, each of its own")
        for number, row in enumerate(rows, 2):
            if len(row) > len(columns) or (len(row) < len(columns) and _kind(path) != ".xlsx"):
                raise ValueError(f"{path}: row {number} has {len(row)} cells for {len(columns)} columns")
            cells = dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=True))
            yield (
                number,
                {c: _value(cell) if c in VALUES else cell for c, cell in cells.items() if cell or c not in VALUES},
            )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {error.encoding.upper()} text at byte {error.start}; save it as UTF-8"
        ) from error
    except (csv.Error, BadZipFile, KeyError, IndexError, EOFError, zlib.error, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not a {_kind(path)} table ({error}), or a damaged one; write it anew") from error


def _value(cell: str) -> Any:
    """A number, a list or an object as JSON or Python writes it, or the text."""
    try:
        value = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return value if isinstance(value, int | float | list | dict) else cell


def _text_rows(path: Path, delimiters: str) -> Iterator[list[str]]:
    csv.field_size_limit(1 << 30)  # 128 KiB otherwise
    with open_text(path) as file:
        text = file.read().decode("utf-8")
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(delimiters, key=first.count), strict=True)
    yield from (row for row in rows if row)


def _xlsx_rows(path: Path) -> Iterator[list[str]]:
    """The cells of each row of the first sheet; empty ones at a row's end are left out."""
    with ZipFile(path) as archive:
        strings = []
        if STRINGS in archive.namelist():
            strings = [_text(item) for item in ElementTree.fromstring(archive.read(STRINGS)).iter(f"{TAG}si")]
        for row in ElementTree.fromstring(archive.read(SHEET)).iter(f"{TAG}row"):
            cells: list[str] = []
            for cell in row.iter(f"{TAG}c"):
                place = _column(cell.get("r")) if cell.get("r") else len(cells)
                cells += [""] * (place - len(cells)) + [_cell(cell, strings)]
            yield cells


def _cell(cell: ElementTree.Element, strings: list[str]) -> str:
    value, formula = cell.findtext(f"{TAG}v") or "", cell.findtext(f"{TAG}f")
    if formula is not None:  # what an answer that begins with "=" becomes
        return f"={_unescaped(formula)}"
    if cell.get("t") == "s":
        return strings[int(value)]
    return _text(cell) if cell.get("t") == "inlineStr" else _unescaped(value)


def _text(item: ElementTree.Element) -> str:
    return _unescaped("".join(part.text or "" for part in item.iter(f"{TAG}t")))


def _unescaped(text: str) -> str:
    return ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _column(cell: str) -> int:
    """Columns count from 0: "A1" -> 0, "AB7" -> 27."""
    number = 0
    for letter in cell.rstrip("0123456789"):
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
