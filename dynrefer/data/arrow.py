"""Records as Arrow or Parquet tables, for any number of them: the file is memory-mapped, and one that `save_arrow`
wrote opens without a look at its records."""

import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import orjson

from dynrefer.data.image_groups import (
    ImageGroups,
    column_groups,
    column_hashes,
    from_numpy,
    renumbered,
    repeated,
    to_numpy,
)
from dynrefer.data.records import CHECK_HINT, KEYS, OPTIONAL, REQUIRED, Region, RegionRecords, licences_of, no_split
from dynrefer.files import atomic_path

ARROW_FILE = "data-00000-of-00001.arrow"  # as `datasets` names it
ROWS = 8192  # of a batch in an Arrow file
PART = 512  # rows held as Python objects: with many more the garbage collector takes longer than the work


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

    def example_groups(self) -> ImageGroups:
        return self.image_groups()

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
            raise ValueError(no_split(self.path, split, []))
        masks = [to_numpy(pc.equal(texts, split)) for texts in self._texts("split", null="")]
        rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *masks]))
        if not len(rows):
            names = {name for texts in self._texts("split", null="") for name in texts.unique().to_pylist()}
            raise ValueError(no_split(self.path, split, names))
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
