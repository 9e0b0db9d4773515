"""One record, one region: its checks, and reading and writing of record files (JSONL, Arrow, Parquet).

JSON lines are for people and for some hundred thousand regions: they are read as a whole. Arrow is for any number: the
file is memory-mapped, and one that `save_arrow` wrote opens without a look at its records.
"""

import errno
import gzip
import hashlib
import json
import math
import mmap
import os
import secrets
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import orjson

from dynrefer.boxes import check_boxes, check_image_hw
from dynrefer.data.index import (
    ImageGroups,
    column_groups,
    column_hashes,
    from_numpy,
    list_hashes,
    renumbered,
    repeated,
    to_numpy,
)
from dynrefer.masks import check_mask_record, mask_to_box, to_mask

CHECK_HINT = "`python -m data_prep.check FILE` lists every bad record"
REQUIRED = ("id", "image", "image_hw")
OPTIONAL = ("box", "mask", "captions", "tags", "attributes", "category", "source", "licence", "split")
KEYS = frozenset((*REQUIRED, *OPTIONAL))
ARROW_FILE = "data-00000-of-00001.arrow"  # as `datasets` names it
NUMBERS = frozenset((int, float))
ROWS = 8192  # of a batch in an Arrow file
PART = 512  # rows held as Python objects: with many more the garbage collector takes longer than the work


@dataclass(frozen=True)
class Region:
    """One region of one image, with what is known about it.

    id: unique in its file. image: path, relative to the record file's folder. image_hw: (height, width) of the upright
    picture. box: (x1, y1, x2, y2) pixels, clipped to the image. mask: None, COCO run lengths or polygons.
    captions: reference captions, any number. tags: words that are true of it; None = not annotated (all others are
    false where they are). attributes: name -> 1 (has it) or -1 (has it not). category: one name or None.
    """

    id: str
    image: str
    image_hw: tuple[int, int]
    box: tuple[float, float, float, float]
    mask: dict | list | None = None
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] | None = None
    attributes: dict[str, int] = field(default_factory=dict)
    category: str | None = None
    source: str = ""
    licence: str = ""
    split: str = ""

    @classmethod
    def from_dict(cls, d: dict, where: str = "record") -> "Region":
        """A checked region. Only id, image, image_hw and box or mask are required; without a box it is the mask's.

        Raises ValueError, beginning with `where` ("FILE:LINE"), for unknown or missing keys, wrong types and bad boxes
        or masks.
        """
        try:
            return cls._from_dict(d)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; {CHECK_HINT}") from error

    @classmethod
    def _from_dict(cls, d: dict) -> "Region":
        if not isinstance(d, dict):
            raise ValueError(f"{type(d).__name__} instead of a record; a record is a JSON object with {list(REQUIRED)}")
        if not d.keys() <= KEYS:
            unknown = sorted(map(str, d.keys() - KEYS))
            raise ValueError(f"unknown key {unknown}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := [key for key in REQUIRED if d.get(key) is None]:
            raise ValueError(f"missing key {missing}; a record has at least {list(REQUIRED)} and box or mask")
        box, mask, tags = d.get("box"), d.get("mask"), d.get("tags")
        if box is None and mask is None:
            raise ValueError("neither box nor mask; a region has at least one of them")
        region_id, image_hw = _text(d, "id", empty=False), _image_hw(d["image_hw"])
        if mask is not None:
            check_mask_record(mask, image_hw)
        values = {
            "id": region_id,
            "image": _text(d, "image", empty=False),
            "image_hw": image_hw,
            "box": _mask_box(mask, image_hw) if box is None else _box(box, image_hw, region_id),
            "mask": mask,
            "captions": _texts(d.get("captions") or (), "captions"),
            "tags": None if tags is None else _texts(tags, "tags"),
            "attributes": _attributes(d.get("attributes") or {}),
            "category": None if d.get("category") is None else _text(d, "category", empty=False),
            "source": _text(d, "source"),
            "licence": _text(d, "licence"),
            "split": _text(d, "split"),
        }
        region = object.__new__(cls)
        object.__setattr__(region, "__dict__", values)  # a frozen dataclass sets field by field, which takes longer
        return region

    def to_dict(self) -> dict:
        """The record as JSON types, every key present; `Region.from_dict` reads it back."""
        return {
            "id": self.id,
            "image": self.image,
            "image_hw": list(self.image_hw),
            "box": list(self.box),
            "mask": self.mask,
            "captions": list(self.captions),
            "tags": None if self.tags is None else list(self.tags),
            "attributes": dict(self.attributes),
            "category": self.category,
            "source": self.source,
            "licence": self.licence,
            "split": self.split,
        }

    def to_mask(self) -> np.ndarray | None:
        """bool (H, W), or None where the region has only a box."""
        return None if self.mask is None else to_mask(self.mask, self.image_hw)


RESULT_TYPES = {"box": list, "caption": str, "tags": list, "attributes": list, "scales": list}


def is_number(value: object) -> bool:
    """Whether it is a finite number: True and False are none, nor is an integer that no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass
class RegionResult:
    """What a model says about one region. box: xyxy pixels; score: exp of the caption's summed log probabilities;
    tags, attributes: [{"name", "score"}], best first (attributes: all that were scored); category: {"name", "score"}
    or None; scales: the views' scales. All numbers are finite."""

    id: str
    box: list[float]
    caption: str = ""
    score: float = 0.0
    tags: list[dict] = field(default_factory=list)
    attributes: list[dict] = field(default_factory=list)
    category: dict | None = None
    scales: list[float] = field(default_factory=list)

    def to_dict(self) -> dict:
        """JSON types, one line of a prediction file."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, d: dict, where: str = "prediction") -> "RegionResult":
        """The result of one line of a prediction file; only id is required. ValueError begins with `where`."""
        if not isinstance(d, dict) or not isinstance(d.get("id"), str):
            raise ValueError(f"{where}: expected a JSON object with a text 'id', got {str(d)[:100]}")
        known = cls.__dataclass_fields__
        if unknown := d.keys() - known.keys():
            raise ValueError(f"{where}: unknown key {sorted(map(str, unknown))}; a prediction has {list(known)}")
        whose = f" of {d['id']}" if d["id"] else ""
        for key, kind in RESULT_TYPES.items():
            if key in d and not isinstance(d[key], kind):
                raise ValueError(f"{where}: {key} {d[key]!r}{whose}: expected {kind.__name__}")
        if not is_number(score := d.get("score", 0.0)):
            raise ValueError(f"{where}: score {score!r}{whose}: expected a finite number")
        for key in ("box", "scales"):
            values = d.get(key, [])
            if not all(map(is_number, values)) or (key == "box" and len(values) not in (0, 4)):
                rule = "four finite numbers" if key == "box" else "finite numbers"
                raise ValueError(f"{where}: {key} {values!r}{whose}: expected {rule}")
        category = d.get("category")
        for key, values in (
            *((k, d.get(k, [])) for k in ("tags", "attributes")),
            ("category", [] if category is None else [category]),
        ):
            for value in values:
                if not (
                    isinstance(value, dict) and isinstance(value.get("name"), str) and is_number(value.get("score"))
                ):
                    rule = '{"name": a text, "score": a finite number}'
                    raise ValueError(f"{where}: {key} {value!r}{whose}: expected {rule}")
        return cls(**{"box": [], **d})


class RegionRecords(Sequence):
    """Regions of one file, in its order. `root` is the folder that image paths are relative to."""

    def __init__(self, path: Path, regions: Sequence[Region]):
        self.path, self.root = Path(path), record_root(Path(path))
        self._regions = regions

    def __len__(self) -> int:
        return len(self._regions)

    def __getitem__(self, index: int) -> Region:
        return self._regions[index]

    def fetch(self, indices: Sequence[int]) -> list[tuple[Path, Region]]:
        """(where its image lies, the record) of every index."""
        return [(self.root / region.image, region) for region in (self[index] for index in indices)]

    def image_path(self, index: int) -> Path:
        """Where the image of one region lies."""
        return self.fetch([range(len(self))[index]])[0][0]

    def images(self) -> list[str]:
        """The image of every record, (N,), without reading the rest of them where the format allows it."""
        return [region.image for region in self._regions]

    def image_names(self) -> list[str]:
        """Every image once, in the order of `image_groups`."""
        return list(dict.fromkeys(self.images()))

    def image_groups(self) -> ImageGroups:
        """Indices that share an image, a list an image, in file order."""
        numbers: dict[str, int] = {}
        return ImageGroups.from_codes(
            np.array([numbers.setdefault(image, len(numbers)) for image in self.images()], np.int32)
        )

    def licences(self) -> Counter:
        """{(source, licence): number of its records}; what stands behind a colon in a source is left out."""
        return licences_of((region.source, region.licence) for region in self)

    def subset(self, indices: Sequence[int]) -> "RegionRecords":
        """Some of the records, in the order given."""
        return RegionRecords(self.path, [self[index] for index in indices])

    def _ids(self) -> tuple:
        """What `repeated` wants to know of the file's ids."""
        ids = [region.id for region in self._regions]
        return (lambda: list_hashes(ids)), len(ids), ids.__getitem__


class ArrowRecords(RegionRecords):
    """Regions of Arrow tables, memory-mapped; each is checked when it is read. Opened again in a worker process.

    rows: which rows of the file, None = all, or all of the split.
    """

    def __init__(self, path: Path, split: str | None = None, rows: np.ndarray | None = None):
        super().__init__(path, ())
        self._open()
        if rows is None:
            rows = range(self._table.num_rows) if split is None else self._rows_of(split)
        self._rows: range | np.ndarray = rows

    def _open(self) -> None:
        self._table, self._maps = _open_table(self.path)
        if unknown := set(self._table.column_names) - KEYS:
            raise ValueError(f"{self.path}: unknown column {sorted(unknown)}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := set(REQUIRED) - set(self._table.column_names):
            raise ValueError(f"{self.path}: missing column {sorted(missing)}; a record has at least {list(REQUIRED)}")
        self._batches = self._table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._release()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_table", "_maps", "_batches")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Region:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        return next(self._read(int(self._rows[index]), 1))

    def __iter__(self) -> Iterator[Region]:
        for start in range(0, len(self), PART):
            yield from (region for _, region in self.fetch(range(start, min(start + PART, len(self)))))

    def fetch(self, indices: Sequence[int]) -> list[tuple[Path, Region]]:
        """(where its image lies, the record) of every index; neighbours in the file are read together."""
        rows = self._select(np.asarray(indices, np.int64))
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        regions = [region for run in runs for region in self._read(int(run[0]), len(run))]
        self._release()
        paths = {image: self.root / image for image in {region.image for region in regions}}
        return [(paths[region.image], region) for region in regions]

    def _select(self, indices: np.ndarray) -> np.ndarray:
        return indices + self._rows.start if isinstance(self._rows, range) else self._rows[indices]

    def _read(self, first: int, count: int) -> Iterator[Region]:
        """Rows first ... first + count - 1."""
        while count:
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            batch = self._batches[number].slice(first - int(self._starts[number]), count)
            for row, d in enumerate(_to_dicts(batch, self.path, first), first):
                yield Region.from_dict(_from_row(d), f"{self.path}:row {row}")
            first, count = first + batch.num_rows, count - batch.num_rows

    def images(self) -> list[str]:
        column, rows = self._table.column("image"), self._rows
        chosen = column.slice(rows.start, len(rows)) if isinstance(rows, range) else column.take(from_numpy(rows))
        return chosen.to_pylist()

    def image_names(self) -> list[str]:
        firsts = self._select(self.image_groups().firsts())
        return self._table.column("image").take(from_numpy(firsts)).to_pylist()

    def image_groups(self) -> ImageGroups:
        groups = self._known_groups()
        if groups is None:
            import pyarrow as pa

            groups = column_groups(self._texts("image"))
            pa.default_memory_pool().release_unused()  # it keeps what it has for the next time, which does not come
        if len(self) == self._table.num_rows and isinstance(self._rows, range):
            return groups
        codes = groups.codes()
        rows = slice(self._rows.start, self._rows.stop) if isinstance(self._rows, range) else self._rows
        return ImageGroups.from_codes(renumbered(codes[rows]))

    def licences(self) -> Counter:
        if not isinstance(self._rows, range):
            return super().licences()
        names = [name for name in ("source", "licence") if name in self._table.column_names]
        if not names:
            return Counter({("", ""): len(self)})
        rows = self._table.select(names).slice(self._rows.start, len(self))
        found: Counter = Counter()
        for row in rows.group_by(names).aggregate([([], "count_all")]).to_pylist():
            (pair,) = licences_of([(row.get("source"), row.get("licence"))])
            found[pair] += row["count_all"]
        self._release()
        return found

    def subset(self, indices: Sequence[int]) -> "ArrowRecords":
        return ArrowRecords(self.path, rows=self._select(np.asarray(indices, np.int64)))

    def check_ids(self, name: str | os.PathLike | None = None) -> None:
        """ValueError, about the file of this name, where an id stands in two rows; `save_arrow` has seen to its own."""
        if self._known_groups() is None:
            if rows := repeated(*self._ids()):
                region_id = self._ids()[-1](rows[1])
                raise ValueError(
                    f"{name or self.path}:row {rows[1]}: id {region_id!r} stands in row {rows[0]} already; ids are "
                    "unique"
                )

    def _ids(self) -> tuple:
        column = self._table.column("id")
        return (lambda: column_hashes(self._texts("id"))), len(column), lambda row: column[row].as_py()

    def _rows_of(self, split: str) -> range | np.ndarray:
        import pyarrow.compute as pc

        if "split" not in self._table.column_names:
            raise ValueError(_no_split(self.path, split, []))
        masks = [to_numpy(pc.equal(texts, split)) for texts in self._texts("split", null="")]
        rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *masks]))
        if not len(rows):
            names = {name for texts in self._texts("split", null="") for name in texts.unique().to_pylist()}
            raise ValueError(_no_split(self.path, split, names))
        first, last = int(rows[0]), int(rows[-1]) + 1
        return range(first, last) if last - first == len(rows) else rows

    def _texts(self, name: str, null: str | None = None) -> Iterator:
        """A column of texts as string arrays without nulls, of a batch each."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for number, batch in enumerate(self._batches):
            texts = batch.column(name)
            if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
                try:
                    texts = texts.cast(pa.string())
                except pa.ArrowException as error:
                    raise ValueError(f"{self.path}: column {name}: expected text ({error})") from error
            if texts.null_count and null is None:
                row = int(self._starts[number]) + pc.index(pc.is_null(texts), True).as_py()
                raise ValueError(f"{self.path}:row {row}: missing key [{name!r}]; {CHECK_HINT}")
            yield texts.fill_null(null) if texts.null_count else texts
            if number % 64 == 63:
                self._release()
        self._release()

    def _known_groups(self) -> ImageGroups | None:
        """What `save_arrow` noted beside the rows; None in files of others, and where they wrote the folder anew."""
        if not self.path.is_dir():
            return None
        groups = ImageGroups.load(_groups_stem(self.path))
        if groups is not None and groups.starts[-1] != self._table.num_rows:
            raise ValueError(
                f"{self.path}: {self._table.num_rows} rows, {groups.starts[-1]} were written; write or copy it again"
            )
        return groups

    def _release(self) -> None:
        """What was read of the file counts as this process's memory until it is given back; it stays in the cache."""
        for mapped in self._maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


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

    def licences(self) -> Counter:
        if not isinstance(self._indices, range):
            return super().licences()
        return sum((part.licences() for part in self.parts), Counter())

    def subset(self, indices: Sequence[int]) -> "JoinedRecords":
        places = np.asarray(indices, np.int64)
        return JoinedRecords(self.parts, places if isinstance(self._indices, range) else self._indices[places])


def licences_of(pairs: Iterable[tuple[str | None, str | None]]) -> Counter:
    return Counter(((source or "").partition(":")[0], licence or "") for source, licence in pairs)


def open_records(path: str | os.PathLike | Sequence[str | os.PathLike], split: str | None = None) -> RegionRecords:
    """Records of a file, or of several read as one.

    path: .jsonl or .jsonl.gz (checked at once; errors name file and line), a folder of `datasets.save_to_disk`, or a
    .arrow or .parquet file (memory-mapped; each record checked when read). split: only records of this split.
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
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        regions, lines = [], {}
        for line, d in read_jsonl(path):
            region = Region.from_dict(d, f"{path}:{line}")
            if (first := lines.setdefault(region.id, line)) != line:
                raise ValueError(f"{path}:{line}: id {region.id!r} stands in line {first} already; ids are unique")
            regions.append(region)
        if split is not None and regions:
            names = [region.split for region in regions]
            regions = [region for region in regions if region.split == split]
            if not regions:
                raise ValueError(_no_split(path, split, names))
        records = RegionRecords(path, regions)
    else:
        raise ValueError(
            f"record file {path}: unknown kind; expected .jsonl, .jsonl.gz, .arrow, .parquet or an Arrow folder"
        )
    if not len(records):
        raise ValueError(f"record file {path}: no records in it")
    return records


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """(line number, text) of every line that is not blank, of a text file or a .gz; ValueError names file and line."""
    line = 0
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            for line, text in enumerate(file, 1):  # noqa: B007 (the last line's number serves the error below)
                if text.strip():
                    yield line, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{line + 1}: damaged or cut off gzip ({error}); copy or download it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def parse_line(text: bytes, where: str) -> object:
    """The value of one JSON line; ValueError begins with `where`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # json reads some more, such as NaN, whose place in the record an error can then name
    try:
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON line ({error}); the file is damaged or cut off") from None


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, object]]:
    """(line number, value) of every line that is not blank, of .jsonl or .jsonl.gz; ValueError names file and line."""
    for line, text in read_lines(path):
        yield line, parse_line(text, f"{path}:{line}")


def read_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(row, record as JSON types) of an Arrow folder, .arrow or .parquet file, one row in memory at a time."""
    row = 0
    for batch in _open_table(Path(path))[0].to_batches(max_chunksize=PART):
        for d in _to_dicts(batch, path, row):
            yield row, _from_row(d)
            row += 1


def is_table(path: str | os.PathLike) -> bool:
    """Whether a record file is read as Arrow or Parquet rather than as JSON lines."""
    return Path(path).is_dir() or Path(path).suffix in (".arrow", ".parquet")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; it takes the name `path` when the block ends well and is
    removed when it does not. What stood at `path` stays whole until then.

    ValueError where something else stands, a device for instance. An OSError names `path`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file but a device, pipe or socket, which is not replaced; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    try:
        with naming(path, temporary):
            yield temporary
            if temporary.is_dir() and path.exists():
                os.replace(path, old)  # a folder cannot replace a full one
            os.replace(temporary, path)
    finally:
        for leftover in (temporary, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike, temporary: str | os.PathLike | None = None) -> Iterator[None]:
    """Within it an OSError that names no file, as that of a full disk, or the temporary one names `path`."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
        if unnamed or (temporary is not None and str(error.filename).startswith(str(temporary))):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_records(path: str | os.PathLike, regions: Iterable[Region]) -> int:
    """Writes .jsonl (or .jsonl.gz), one region a line, and returns how many. The file appears whole or not at all."""
    path = Path(path)
    count = 0
    with atomic_path(path) as temporary:
        with gzip.open(temporary, "wb") if path.suffix == ".gz" else open(temporary, "wb") as file:
            for region in regions:
                file.write(_json_line(region))
                count += 1
            file.flush()
            os.fsync(file.fileno())
    return count


def save_arrow(path: str | os.PathLike, regions: Iterable[Region]) -> int:
    """Writes an Arrow folder that `open_records` and `datasets.load_from_disk` read, and returns how many regions.

    Image paths stay relative to the folder that holds it. Masks are JSON text, attributes a list of {name, value}. The
    regions are taken one by one, in constant memory; the folder appears whole or not at all. ValueError for an id that
    comes twice.
    """
    import pyarrow as pa

    stream, count, schema = iter(regions), 0, _arrow_schema()
    values = attrgetter(*schema.names)  # a region itself is more for the garbage collector to look through

    def tables() -> Iterator:
        nonlocal count
        waiting = []
        while rows := list(map(values, islice(stream, PART))):
            waiting.append(_to_batch(rows, schema))
            count += len(rows)
            if len(waiting) == ROWS // PART:
                yield pa.Table.from_batches(waiting).combine_chunks()
                waiting = []
        if waiting:
            yield pa.Table.from_batches(waiting).combine_chunks()

    save_tables(path, tables())
    return count


def save_tables(path: str | os.PathLike, tables: Iterable) -> None:
    """The same from pyarrow Tables of `save_arrow`'s columns, whose rows are taken as they are."""
    import datasets
    import pyarrow as pa

    features = datasets.Features.from_arrow_schema(_arrow_schema())
    with atomic_path(path) as temporary:
        temporary.mkdir()
        with open(temporary / ARROW_FILE, "w+b") as file:
            with pa.ipc.new_stream(file, features.arrow_schema) as writer:
                for table in tables:
                    writer.write_table(table.cast(features.arrow_schema))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        datasets.DatasetInfo(features=features).write_to_directory(str(temporary))
        state = {"_data_files": [{"filename": ARROW_FILE}], "_fingerprint": fingerprint, "_format_columns": None}
        state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
        (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        written = ArrowRecords(temporary)
        written.check_ids(path)
        written.image_groups().save(_groups_stem(temporary))


def detector_file(path: str | os.PathLike) -> Path:
    """Beside records of a detector's boxes the file of what the detector says of them: predictions with its scores."""
    path = Path(path)
    return path.with_name(f"{path.name.partition('.')[0]}_predictions.jsonl")


def record_root(path: Path) -> Path:
    """The folder that image paths in a record file are relative to: the one it lies in."""
    return path.absolute().parent


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


def _no_split(path: Path, split: str, names: Iterable[str]) -> str:
    return f"record file {path}: no records of split {split!r}; it has {sorted(set(map(str, names)))}"


def _text(d: dict, key: str, empty: bool = True) -> str:
    value = d.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str) or not (empty or (value and not value.isspace())):
        raise ValueError(f"{key} {value!r}: expected text" + ("" if empty else " that is not empty"))
    return value


def _texts(values: object, key: str) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{key} {values!r}: expected a list of texts")
    for value in values:
        if not isinstance(value, str) or not value or value.isspace():
            raise ValueError(f"{key}: {value!r} among them; expected texts that are not empty")
    return tuple(values)


def _attributes(values: object) -> dict[str, int]:
    if not isinstance(values, dict):
        raise ValueError(f"attributes {values!r}: expected an object, name -> 1 (has it) or -1 (has it not)")
    for name, value in values.items():
        if not name or name.isspace() or type(value) is not int or value not in (1, -1):
            raise ValueError(f"attribute {name!r}: {value!r}; expected a name with 1 (has it) or -1 (has it not)")
    return dict(values)


def _image_hw(value: object) -> tuple[int, int]:
    if type(value) is list and len(value) == 2:  # the common case, without a call
        height, width = value
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
    return check_image_hw(value)


def _box(box: object, image_hw: tuple[int, int], region_id: str) -> tuple[float, float, float, float]:
    numbers = box if isinstance(box, (list, tuple)) else ()
    if len(numbers) != 4 or not NUMBERS.issuperset(map(type, numbers)):
        raise ValueError(f"box {box!r} of region {region_id}: expected four numbers, [x1, y1, x2, y2] in pixels")
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError:
        raise ValueError(f"box of region {region_id}: a number is too large") from None
    if 0 <= x1 < x2 <= image_hw[1] and 0 <= y1 < y2 <= image_hw[0]:  # the common case, without arrays
        return x1, y1, x2, y2
    return tuple(check_boxes([numbers], image_hw, [region_id])[0].tolist())


def _mask_box(mask: object, image_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    return tuple(mask_to_box(to_mask(mask, image_hw)).tolist())


def _json_line(region: Region) -> bytes:
    try:
        line = orjson.dumps(region, option=orjson.OPT_APPEND_NEWLINE)
        nones = (region.mask is None) + (region.tags is None) + (region.category is None)
        if line.count(b"null") == nones:
            return line
    except TypeError:
        pass
    # json names a type that it does not know, and refuses NaN, of which orjson makes null
    return (json.dumps(region.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _arrow_schema():
    import pyarrow as pa

    texts = pa.list_(pa.string())
    types = {"image_hw": pa.list_(pa.int32()), "box": pa.list_(pa.float64()), "captions": texts, "tags": texts}
    types["attributes"] = pa.list_(pa.struct([("name", pa.string()), ("value", pa.int8())]))
    return pa.schema([(name, types.get(name, pa.string())) for name in (*REQUIRED, *OPTIONAL)])


def _json_text(mask: dict | list) -> str:
    try:
        text = orjson.dumps(mask).decode()
        if "null" not in text:  # see _json_line
            return text
    except TypeError:
        pass
    return json.dumps(mask, allow_nan=False)


def _to_batch(rows: list[tuple], schema):
    import pyarrow as pa

    columns: dict[str, Sequence] = dict(zip(schema.names, zip(*rows, strict=True), strict=True))
    columns["mask"] = [None if mask is None else _json_text(mask) for mask in columns["mask"]]
    columns["attributes"] = [
        [{"name": name, "value": value} for name, value in attributes.items()] for attributes in columns["attributes"]
    ]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _to_dicts(batch, path: str | os.PathLike, first: int) -> list[dict]:
    """Rows of a pyarrow RecordBatch; `first` is the number of its first one."""
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: row {first} or one of the {batch.num_rows - 1} behind it: {error}") from error
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _from_row(row: dict) -> dict:
    """A table's row as a record: also tables of others, with attributes as a struct and masks as such."""
    if isinstance(mask := row.get("mask"), str):
        try:
            row["mask"] = orjson.loads(mask)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"mask of {row.get('id')!r}: not JSON text ({error})") from None
    attributes = row.get("attributes")
    if isinstance(attributes, list):
        row["attributes"] = {entry["name"]: entry["value"] for entry in attributes}
    elif isinstance(attributes, dict):  # a struct column has every name in every row
        row["attributes"] = {name: value for name, value in attributes.items() if value is not None}
    return row


def _open_table(path: Path) -> tuple:
    """A pyarrow Table over memory-mapped files, and the maps. Parquet is decompressed into memory instead."""
    import pyarrow as pa

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path), []
        if path.is_file():
            table, mapped = _map_arrow(path)
            return table, [mapped]
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            raise ValueError(f"{path}: holds several splits; name one of {[str(path / name) for name in splits]}")
        if not (path / "state.json").is_file():
            raise ValueError(
                f"{path}: not a folder written by `datasets.save_to_disk` (no state.json in it); shards serve only as "
                "data.train"
            )
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
        tables, maps = zip(*(_map_arrow(path / entry["filename"]) for entry in files), strict=True)
        return pa.concat_tables(tables), list(maps)
    except (pa.ArrowException, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as Arrow or Parquet ({error}); write or download it again") from error


def _map_arrow(path: Path) -> tuple:
    """(table, map) of one Arrow file."""
    import pyarrow as pa

    if not path.stat().st_size:
        raise OSError(f"{path.name} is empty")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = pa.BufferReader(pa.py_buffer(mapped))
    try:
        return pa.ipc.open_stream(source).read_all(), mapped  # what `datasets` writes
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all(), mapped


def _groups_stem(folder: Path) -> str:
    """Where `save_arrow` notes which rows share an image. The name carries the folder's fingerprint, which whoever
    writes the folder anew changes: what was noted of former rows is not found then."""
    fingerprint = json.loads((folder / "state.json").read_text(encoding="utf-8")).get("_fingerprint")
    return str(folder / f"groups-{fingerprint}")
