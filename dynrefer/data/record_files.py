"""Record files: opening JSON lines, Arrow and Parquet, several read as one, and writing.

JSON lines are for people and for some hundred thousand regions: they are read as a whole. Arrow is for any number.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dynrefer.data.arrow import ArrowRecords, is_table
from dynrefer.data.chats import Chat, chat_line
from dynrefer.data.clips import ClipRecords, ClipRegion, open_clips, region_of
from dynrefer.data.image_groups import ImageGroups, renumbered, repeated
from dynrefer.data.questions import Question
from dynrefer.data.records import Region, RegionRecords, no_split
from dynrefer.files import read_jsonl, write_lines

JSON_LINES = (".jsonl", ".jsonl.gz")
UNKNOWN_KIND = "unknown kind; expected .jsonl, .jsonl.gz, .arrow, .parquet or an Arrow folder"


class JoinedRecords(RegionRecords):
    """Several record files read as one, in the order given. indices: which of all their records, None = all."""

    def __init__(self, parts: Sequence[RegionRecords], indices: np.ndarray | None = None):
        self.parts = list(parts)
        self.path, self.root = self.parts[0].path, self.parts[0].root
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._indices = range(self._starts[-1]) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Region:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {len(self.parts)} files")
        part, place = self._find(int(self._indices[index]))
        return part[place]

    def _find(self, place: int) -> tuple[RegionRecords, int]:
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.parts[number], place - int(self._starts[number])

    def fetch(self, indices: Sequence[int]) -> list[tuple[Path, Region]]:
        """(where its image lies, the record) of every index."""
        places = [int(self._indices[index]) for index in indices]
        found = [self._find(place) for place in places]
        starts = [k for k in range(len(found)) if not k or found[k][0] is not found[k - 1][0]]
        return [
            pair
            for first, last in zip(starts, [*starts[1:], len(found)], strict=True)
            for pair in found[first][0].fetch([place for _, place in found[first:last]])
        ]

    def images(self) -> list[str]:
        images = [str(part.root / image) for part in self.parts for image in part.images()]
        return [images[place] for place in self._indices]

    def image_groups(self) -> ImageGroups:
        numbers: dict[str, int] = {}  # an image of two files is one
        codes = []
        for part in self.parts:
            own = [numbers.setdefault(str(part.root / name), len(numbers)) for name in part.image_names()]
            codes.append(np.array(own, np.int32)[part.image_groups().codes()])
        codes = np.concatenate(codes)
        if not isinstance(self._indices, range):
            codes = renumbered(codes[self._indices])
        return ImageGroups.from_codes(codes)

    def example_groups(self) -> ImageGroups:
        """An image of two files is one example, a clip is its file's."""
        numbers: dict[Any, int] = {}
        codes = []
        for number, part in enumerate(self.parts):
            groups = part.example_groups()
            keys = [part[int(first)].example for first in groups.firsts()] if has_clips(part) else part.image_names()
            keys = [str(part.root / key) if isinstance(key, str) else (number, *key) for key in keys]
            own = [numbers.setdefault(key, len(numbers)) for key in keys]
            codes.append(np.array(own, np.int32)[groups.codes()])
        codes = np.concatenate(codes)
        return ImageGroups.from_codes(codes if isinstance(self._indices, range) else renumbered(codes[self._indices]))

    def licences(self) -> Counter:
        if not isinstance(self._indices, range):
            return super().licences()
        return sum((part.licences() for part in self.parts), Counter())

    def subset(self, indices: Sequence[int]) -> "JoinedRecords":
        places = np.asarray(indices, np.int64)
        return JoinedRecords(self.parts, places if isinstance(self._indices, range) else self._indices[places])


def record_of(d: object, where: str) -> Region | ClipRegion | Chat | Question:
    """The checked record of a line: a conversation where it has turns, a question where it has one, a region of a clip
    where it names a video, else a region of a picture."""
    keys = d if isinstance(d, dict) else ()
    if "turns" in keys:
        return Chat.from_dict(d, where)
    return Question.from_dict(d, where) if "question" in keys else region_of(d, where)


def has_clips(records: RegionRecords) -> bool:
    """Whether some of the records may be of clips."""
    if type(records) is not RegionRecords:
        return isinstance(records, ClipRecords)
    return any(isinstance(record, ClipRegion) or isinstance(record, Chat) and record.is_clip for record in records)


def open_records(path: str | os.PathLike | Sequence[str | os.PathLike], split: str | None = None) -> RegionRecords:
    """Records of a file, or of several read as one.

    path: .jsonl or .jsonl.gz (checked at once; errors name file and line; a line that names a video is one of a clip,
    one with turns a conversation, one with a question a `Question`, and a file that begins with a clip is read when its
    records are asked for), a folder of `datasets.save_to_disk`, or a .arrow or .parquet file (memory-mapped; each
    record checked when read). split: only records of this split.
    Raises ValueError for what is missing, damaged or of another format, bad records, ids that occur twice, no records.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _join([open_records(one, split) for one in path])
    path = Path(path)
    if not path.exists():
        raise ValueError(f"record file {path}: no such file or folder; `data_prep` writes them")
    if is_table(path):
        records = ArrowRecords(path, split)
        records.check_ids()
    elif path.name.endswith(JSON_LINES):
        regions, lines = [], {}
        for line, d in read_jsonl(path, unique_keys=True):
            clip = isinstance(d, dict) and "video" in d and "question" not in d
            if not regions and split is None and clip:
                # lines of clips may be long: they are read when they are asked for
                return open_clips(path, read=record_of)
            region = record_of(d, f"{path}:{line}")
            if (first := lines.setdefault(region.id, line)) != line:
                raise ValueError(f"{path}:{line}: id {region.id!r} stands in line {first} already; ids are unique")
            regions.append(region)
        if split is not None and regions:
            names = [region.split for region in regions]
            regions = [region for region in regions if region.split == split]
            if not regions:
                raise ValueError(no_split(path, split, names))
        records = RegionRecords(path, regions)
    else:
        raise ValueError(f"record file {path}: {UNKNOWN_KIND}")
    if not len(records):
        raise ValueError(f"record file {path}: no records in it")
    return records


def write_records(path: str | os.PathLike, regions: Iterable[Region | Chat]) -> int:
    """Writes .jsonl (or .jsonl.gz), one region or conversation a line, and returns how many. The file appears whole or
    not at all."""
    return write_lines(path, map(_json_line, regions), packed=Path(path).suffix == ".gz")


def detector_file(path: str | os.PathLike) -> Path:
    """Beside records of a detector's boxes the file of what the detector says of them: predictions with its scores."""
    path = Path(path)
    return path.with_name(f"{path.name.partition('.')[0]}_predictions.jsonl")


def _join(parts: list[RegionRecords]) -> RegionRecords:
    if not parts:
        raise ValueError("no record file given; name at least one")
    if len(parts) == 1:
        return parts[0]
    joined = JoinedRecords(parts)
    ids = [part._ids() for part in parts]  # of whole files, also where a split was asked for
    starts = np.cumsum([0, *(total for _, total, _ in ids)])

    def find(row: int) -> tuple[RegionRecords, str]:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[number], ids[number][2](row - int(starts[number]))

    if rows := repeated(
        lambda: chain.from_iterable(hashes() for hashes, _, _ in ids), int(starts[-1]), lambda row: find(row)[1]
    ):
        (first, _), (part, name) = map(find, rows)
        raise ValueError(f"{part.path}: id {name!r} stands in {first.path} already; ids are unique over all files")
    return joined


def _json_line(region: Region | Chat) -> bytes:
    if isinstance(region, Chat):
        return chat_line(region)
    try:
        line = orjson.dumps(region, option=orjson.OPT_APPEND_NEWLINE)
        nones = (region.mask is None) + (region.tags is None) + (region.category is None)
        if line.count(b"null") == nones:
            return line
    except TypeError:
        pass
    # json names a type that it does not know, and refuses NaN, of which orjson makes null
    return (json.dumps(region.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()
