"""Tables of answers, as VLMEvalKit writes them: .xlsx and .tsv -> rows, each {column: text}.

A cell's text is taken as it stands, where a spreadsheet library would make numbers, dates or nothing ("NA") of it.
"""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

TABLES = (".xlsx", ".tsv")
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
TAG = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # a control character


def read_table(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, str]]]:
    """(row, {column: text}) of the rows below the first, which names the columns; counted from 1 as spreadsheets do.

    Raises ValueError that names the file: not a table, columns without names or of one name, a row of another length.
    """
    path = Path(path)
    try:
        rows = iter(_xlsx_rows(path) if path.suffix == ".xlsx" else _tsv_rows(path))
        columns = next(rows, [])
        if not columns or not all(columns) or len(set(columns)) != len(columns):
            raise ValueError(f"{path}: columns {columns}; expected names in the first row, each of its own")
        for number, row in enumerate(rows, 2):
            if len(row) > len(columns) or (len(row) < len(columns) and path.suffix == ".tsv"):
                raise ValueError(f"{path}: row {number} has {len(row)} cells for {len(columns)} columns")
            yield number, dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=True))
    except (csv.Error, BadZipFile, KeyError, IndexError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not a {path.suffix} table ({error}), or a damaged one") from error


def _tsv_rows(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(1 << 30)  # 128 KiB otherwise
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.reader(file, delimiter="\t", strict=True)


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
