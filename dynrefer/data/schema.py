"""One record, one region: its checks, and reading and writing of record files (JSONL, Arrow, Parquet)."""

import gzip
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynrefer.boxes import check_boxes, check_image_hw
from dynrefer.masks import check_mask_record, mask_to_box, to_mask

CHECK_HINT = "`python -m data_prep.check FILE` lists every bad record"
REQUIRED = ("id", "image", "image_hw")
OPTIONAL = ("box", "mask", "captions", "tags", "attributes", "category", "source", "licence", "split")


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
        if unknown := d.keys() - {*REQUIRED, *OPTIONAL}:
            raise ValueError(f"unknown key {sorted(map(str, unknown))}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := [key for key in REQUIRED if d.get(key) is None]:
            raise ValueError(f"missing key {missing}; a record has at least {list(REQUIRED)} and box or mask")
        if d.get("box") is None and d.get("mask") is None:
            raise ValueError("neither box nor mask; a region has at least one of them")
        region_id = _text(d, "id", empty=False)
        image_hw = check_image_hw(d["image_hw"])
        mask = d.get("mask")
        box = d.get("box")
        if box is None:
            box = tuple(mask_to_box(to_mask(_mask_form(mask, image_hw), image_hw)).tolist())
        else:
            if mask is not None:
                _mask_form(mask, image_hw)
            box = _box(box, image_hw, region_id)
        tags = d.get("tags")
        return cls(
            id=region_id,
            image=_text(d, "image", empty=False),
            image_hw=image_hw,
            box=box,
            mask=mask,
            captions=_texts(d.get("captions") or (), "captions"),
            tags=None if tags is None else _texts(tags, "tags"),
            attributes=_attributes(d.get("attributes") or {}),
            category=None if d.get("category") is None else _text(d, "category", empty=False),
            source=_text(d, "source"),
            licence=_text(d, "licence"),
            split=_text(d, "split"),
        )

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


@dataclass
class RegionResult:
    """What a model says about one region. box: xyxy pixels; score: exp of the caption's summed log probabilities;
    tags, attributes: [{"name", "score"}], best first (attributes: all that were scored); category: {"name", "score"}
    or None; scales: the views' scales."""

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
        types = {"box": list, "caption": str, "tags": list, "attributes": list, "scales": list}
        for key, kind in types.items():
            if key in d and not isinstance(d[key], kind):
                raise ValueError(f"{where}: {key} {d[key]!r} of {d['id']}: expected {kind.__name__}")
        if isinstance(score := d.get("score", 0.0), bool) or not isinstance(score, (int, float)):
            raise ValueError(f"{where}: score {score!r} of {d['id']}: expected a number")
        category = d.get("category")
        for key, values in (
            *((k, d.get(k, [])) for k in ("tags", "attributes")),
            ("category", [category] if category else []),
        ):
            if bad := [v for v in values if not isinstance(v, dict) or not {"name", "score"} <= v.keys()]:
                raise ValueError(f"{where}: {key} {bad[0]!r} of {d['id']}: expected " + '{"name": ..., "score": ...}')
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

    def image_path(self, index: int) -> Path:
        """Where the image of one region lies."""
        return self.root / self[index].image

    def images(self) -> list[str]:
        """The image of every record, (N,), without reading the rest of them where the format allows it."""
        return [region.image for region in self._regions]

    def image_groups(self) -> list[list[int]]:
        """Indices that share an image, a list an image, in file order."""
        groups: dict[str, list[int]] = {}
        for index, image in enumerate(self.images()):
            groups.setdefault(image, []).append(index)
        return list(groups.values())

    def subset(self, indices: Sequence[int]) -> "RegionRecords":
        """Some of the records, in the order given."""
        return RegionRecords(self.path, [self[index] for index in indices])


class ArrowRecords(RegionRecords):
    """Regions of Arrow tables, memory-mapped; each is checked when it is read. Opened again in a worker process."""

    def __init__(self, path: Path, split: str | None = None, indices: np.ndarray | None = None):
        super().__init__(path, ())
        self._split, self._indices = split, indices
        self._open()

    def _open(self) -> None:
        self._table = _open_table(self.path)
        if unknown := set(self._table.column_names) - {*REQUIRED, *OPTIONAL}:
            raise ValueError(f"{self.path}: unknown column {sorted(unknown)}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := set(REQUIRED) - set(self._table.column_names):
            raise ValueError(f"{self.path}: missing column {sorted(missing)}; a record has at least {list(REQUIRED)}")
        if self._indices is None and self._split is not None:
            names = self._table.column("split").to_pylist() if "split" in self._table.column_names else []
            self._indices = np.flatnonzero([name == self._split for name in names])
            if not self._indices.size:
                raise ValueError(_no_split(self.path, self._split, names))

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._table.num_rows if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> Region:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        row = index % len(self) if self._indices is None else int(self._indices[index])
        return Region.from_dict(_from_row(self._table.slice(row, 1).to_pylist()[0]), f"{self.path}:row {row}")

    def images(self) -> list[str]:
        column = self._table.column("image")
        return (column if self._indices is None else column.take(self._indices)).to_pylist()

    def subset(self, indices: Sequence[int]) -> "ArrowRecords":
        rows = np.asarray(indices, dtype=np.int64)
        return ArrowRecords(self.path, None, rows if self._indices is None else self._indices[rows])


class JoinedRecords(RegionRecords):
    """Several record files read as one, in the order given. indices: which of all their records, None = all."""

    def __init__(self, parts: Sequence[RegionRecords], indices: np.ndarray | None = None):
        self.parts = list(parts)
        self.path, self.root = self.parts[0].path, self.parts[0].root
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._indices = np.arange(self._starts[-1]) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def _find(self, index: int) -> tuple[RegionRecords, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {len(self.parts)} files")
        place = int(self._indices[index])
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.parts[part], place - int(self._starts[part])

    def __getitem__(self, index: int) -> Region:
        part, index = self._find(index)
        return part[index]

    def image_path(self, index: int) -> Path:
        part, index = self._find(index)
        return part.image_path(index)

    def images(self) -> list[str]:
        images = [str(part.root / image) for part in self.parts for image in part.images()]
        return [images[place] for place in self._indices]

    def subset(self, indices: Sequence[int]) -> "JoinedRecords":
        return JoinedRecords(self.parts, self._indices[np.asarray(indices, dtype=np.int64)])


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
        _check_unique(records._table.column("id").to_pylist(), path)
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
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON line ({error}); the file is damaged or cut off") from None


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, object]]:
    """(line number, value) of every line that is not blank, of .jsonl or .jsonl.gz; ValueError names file and line."""
    for line, text in read_lines(path):
        yield line, parse_line(text, f"{path}:{line}")


def read_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(row, record as JSON types) of an Arrow folder, .arrow or .parquet file, one row in memory at a time."""
    table = _open_table(Path(path))
    for row in range(table.num_rows):
        yield row, _from_row(table.slice(row, 1).to_pylist()[0])


def is_table(path: str | os.PathLike) -> bool:
    """Whether a record file is read as Arrow or Parquet rather than as JSON lines."""
    return Path(path).is_dir() or Path(path).suffix in (".arrow", ".parquet")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; it takes the name `path` when the block ends well and is
    removed when it does not. What stood at `path` stays whole until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    try:
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


def write_records(path: str | os.PathLike, regions: Iterable[Region]) -> int:
    """Writes .jsonl (or .jsonl.gz), one region a line, and returns how many. The file appears whole or not at all."""
    path = Path(path)
    count = 0
    with atomic_path(path) as temporary:
        opened = (
            gzip.open(temporary, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else open(temporary, "w", encoding="utf-8")
        )
        with opened as file:
            for region in regions:
                file.write(json.dumps(region.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
    return count


def save_arrow(path: str | os.PathLike, regions: Iterable[Region]) -> None:
    """Writes an Arrow folder that `open_records` and `datasets.load_from_disk` read. Image paths stay relative to the
    folder that holds it. Masks are JSON text, attributes a list of {name, value}."""
    import datasets
    import pyarrow as pa

    rows = [_to_row(region) for region in regions]
    table = pa.Table.from_pylist(rows, schema=_arrow_schema())
    noisy = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with atomic_path(path) as temporary:
            datasets.Dataset(table).save_to_disk(str(temporary))
    finally:
        if noisy:
            datasets.enable_progress_bars()


def record_root(path: Path) -> Path:
    """The folder that image paths in a record file are relative to: the one it lies in."""
    return path.absolute().parent


def _join(parts: list[RegionRecords]) -> RegionRecords:
    if not parts:
        raise ValueError("no record file given; name at least one")
    if len(parts) == 1:
        return parts[0]
    seen: dict[str, Path] = {}
    for part in parts:
        names = part._table.column("id").to_pylist() if isinstance(part, ArrowRecords) else [r.id for r in part]
        for name in names:
            if name in seen:
                raise ValueError(
                    f"{part.path}: id {name!r} stands in {seen[name]} already; ids are unique over all files"
                )
        seen.update(dict.fromkeys(names, part.path))
    return JoinedRecords(parts)


def _check_unique(ids: list[str], path: Path) -> None:
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if seen.setdefault(name, row) != row:
            raise ValueError(f"{path}:row {row}: id {name!r} stands in row {seen[name]} already; ids are unique")


def _no_split(path: Path, split: str, names: Iterable[str]) -> str:
    return f"record file {path}: no records of split {split!r}; it has {sorted(set(map(str, names)))}"


def _text(d: dict, key: str, empty: bool = True) -> str:
    value = "" if d.get(key) is None else d[key]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{key} {value!r}: expected text" + ("" if empty else " that is not empty"))
    return value


def _texts(values: object, key: str) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{key} {values!r}: expected a list of texts")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key}: {value!r} among them; expected texts that are not empty")
    return tuple(values)


def _attributes(values: object) -> dict[str, int]:
    if not isinstance(values, dict):
        raise ValueError(f"attributes {values!r}: expected an object, name -> 1 (has it) or -1 (has it not)")
    for name, value in values.items():
        if not name.strip() or type(value) is not int or value not in (1, -1):
            raise ValueError(f"attribute {name!r}: {value!r}; expected a name with 1 (has it) or -1 (has it not)")
    return dict(values)


def _box(box: object, image_hw: tuple[int, int], region_id: str) -> tuple[float, float, float, float]:
    numbers = box if isinstance(box, (list, tuple)) else ()
    if len(numbers) != 4 or not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"box {box!r} of region {region_id}: expected four numbers, [x1, y1, x2, y2] in pixels")
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError:
        raise ValueError(f"box of region {region_id}: a number is too large") from None
    if 0 <= x1 < x2 <= image_hw[1] and 0 <= y1 < y2 <= image_hw[0]:  # the common case, without arrays
        return x1, y1, x2, y2
    return tuple(check_boxes([numbers], image_hw, [region_id])[0].tolist())


def _mask_form(mask: object, image_hw: tuple[int, int]) -> object:
    check_mask_record(mask, image_hw)
    return mask


def _arrow_schema():
    import pyarrow as pa

    texts = pa.list_(pa.string())
    types = {"image_hw": pa.list_(pa.int32()), "box": pa.list_(pa.float64()), "captions": texts, "tags": texts}
    types["attributes"] = pa.list_(pa.struct([("name", pa.string()), ("value", pa.int8())]))
    return pa.schema([(name, types.get(name, pa.string())) for name in (*REQUIRED, *OPTIONAL)])


def _to_row(region: Region) -> dict:
    row = region.to_dict()
    row["mask"] = None if region.mask is None else json.dumps(region.mask)
    row["attributes"] = [{"name": name, "value": value} for name, value in region.attributes.items()]
    return row


def _from_row(row: dict) -> dict:
    """A table's row as a record: also tables of others, with attributes as a struct and masks as such."""
    if isinstance(mask := row.get("mask"), str):
        try:
            row["mask"] = json.loads(mask)
        except json.JSONDecodeError as error:
            raise ValueError(f"mask of {row.get('id')!r}: not JSON text ({error})") from None
    attributes = row.get("attributes")
    if isinstance(attributes, list):
        row["attributes"] = {entry["name"]: entry["value"] for entry in attributes}
    elif isinstance(attributes, dict):  # a struct column has every name in every row
        row["attributes"] = {name: value for name, value in attributes.items() if value is not None}
    return row


def _open_table(path: Path):
    """A pyarrow Table over memory-mapped files."""
    import pyarrow as pa

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path, memory_map=True)
        if path.is_file():
            return _map_arrow(path)
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            raise ValueError(f"{path}: holds several splits; name one of {[str(path / name) for name in splits]}")
        if not (path / "state.json").is_file():
            raise ValueError(f"{path}: not a folder written by `datasets.save_to_disk` (no state.json in it)")
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return pa.concat_tables([_map_arrow(path / entry["filename"]) for entry in files])
    except (pa.ArrowException, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as Arrow or Parquet ({error}); write or download it again") from error


def _map_arrow(path: Path):
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()  # what `datasets` writes
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()
