r"""Says what is wrong with a record file, every problem with its line, before a run finds out on its third day.

    python -m data_prep.check data/flickr30k/train.jsonl --against data/flickr30k_dev/val.jsonl
    python -m data_prep.check data/lvis/train.jsonl --workers 8 --counts lvis:train
    python -m data_prep.check mine.jsonl --fix mine_fixed.jsonl

Looks at the form of every record, boxes and their convention, masks, captions and ids, and opens every image once:
whether it can be read and has the recorded size. --against: its pixels must not be in other files, nor the same picture
stored or scaled anew. Exit status 1 when there is a problem. Of files of video regions it checks the form of every
record, boxes and masks, and whether every video is as long and large as recorded.

--fix writes a copy without what can be put right without a doubt: boxes that reach beyond their image are clipped to
it, empty captions and tags are left out, and records that stand in the file twice, letter by letter, are kept once. All
else stays as it is and is told: a wrong size, an inverted box, an id of two regions may mean more than one thing.

Some 40 bytes a record are held, and each image's name once: files of millions of records are read as a stream.
"""

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_prep.box_formats import SAMPLE, box_convention_problem
from dynrefer.boxes import box_iou, check_image_hw
from dynrefer.data.arrow import is_table, read_rows
from dynrefer.data.image_groups import BLOCK, ImageGroups, hashes_of
from dynrefer.data.records import CHECK_HINT, Region, record_root
from dynrefer.errors import run_command
from dynrefer.files import atomic_path, parse_line, read_lines
from dynrefer.images import open_image
from dynrefer.masks import mask_to_box, rle_to_box, to_mask
from dynrefer.phash import grey, low_frequencies

NUM_LINES_SHOWN = 5  # of an image that many records share
MAX_PROBLEMS = 100_000  # told one by one, the others are counted
BEYOND = 0.01  # pixels that a box may reach beyond its image: rounding
SMALL_POLYGON = 4  # pixels of its shorter side
FEW_BOXES = 3  # fewer are told one by one: they make no convention
IMAGES_AT_ONCE = 32  # handed to a worker
NOT_JSON = object()  # a line that is told already
# The same picture: of the 63 lowest frequencies but the mean, so many may lie on the other side of their median, and
# they correlate so well. Measured on 247 photos: scaled to a half or 160 x 160, as JPEG of quality 30, or grey, at most
# 4 bits and at least 0.998; different photos at least 14 bits and at most 0.89.
NEAR_BITS, NEAR_CORRELATION = 6, 0.99


class Problems(list):
    """(line, text) of what is wrong; line 0: the file. Beyond MAX_PROBLEMS they are only counted."""

    num_more = 0

    def add(self, line: int, text: str) -> None:
        if len(self) < MAX_PROBLEMS:
            self.append((line, text))
        else:
            self.num_more += 1


@dataclass
class Report:
    """What `check_file` found: problems as (line, text), in the file's order, and counts for the last line. fixes: what
    the file that `fix` wrote has otherwise, (line, text); its problems are those left over."""

    path: Path
    problems: Problems = field(default_factory=Problems)
    fixes: list[tuple[int, str]] = field(default_factory=list)
    num_records: int = 0
    num_images: int = 0
    num_without_caption: int = 0
    pictures: str = "images"

    def lines(self) -> list[str]:
        """One text a fix, one a problem, "FILE:LINE: what", and one that sums up."""
        texts = [f"{self.path}:{line}: fixed: {text}" for line, text in self.fixes]
        texts += [f"{self.path}:{line}: {text}" if line else f"{self.path}: {text}" for line, text in self.problems]
        if self.problems.num_more:
            texts.append(f"{self.path}: {self.problems.num_more:,} problems more, not told")
        count = len(self.problems) + self.problems.num_more
        found = "no problems" if not count else "1 problem" if count == 1 else f"{count} problems"
        found = f"{len(self.fixes)} fixed, {found} left" if self.fixes else found
        silent = f", {self.num_without_caption} of them without a caption" if self.num_without_caption else ""
        return [*texts, f"{self.path}: {found}; {self.num_records} records{silent}, {self.num_images} {self.pictures}"]


def check_file(
    path: str | Path,
    against: str | Path | Sequence[str | Path] | None = None,
    *,
    images: bool = True,
    workers: int = 0,
    counts: str | None = None,
    fix: str | Path | None = None,
) -> Report:
    """Every problem of a record file (JSONL, Arrow, Parquet).

    against: files that must not share an image with it. images: open them (needed for `against`). workers: processes
    that do, 0 = this one. counts: NAME:SPLIT of `published_counts`. fix: where to write the mended copy, a .jsonl or
    .jsonl.gz in the same folder. ValueError for settings that do not fit together.
    """
    path = Path(path)
    others = [Path(one) for one in ([against] if isinstance(against, str | Path) else against or [])]
    published = published_counts(counts) if counts else {}
    if others and not images:
        raise ValueError("--against compares images, --no-images opens none; give one of them")
    if fix is not None:
        fix = _fix_path(path, Path(fix))
    if _holds_clips(path):
        if others or counts or fix:
            raise ValueError(
                f"{path}: a file of video regions; --against, --counts and --fix are for regions of images"
            )
        return _check_clips(path)
    report, form = Report(path), Problems()
    seen = _read(path, report, form)
    convention = seen.convention_problem()
    if convention:
        report.problems.add(0, f"{convention}; records have xyxy pixels: convert again with the right --box-format")
    if not report.num_records:
        report.problems.add(0, "no records in it")
    repeated = seen.repeated_ids()
    _tell_repeated(path, repeated, report.problems)
    wrong_size: set[int] = set()
    if images:
        _check_images(path, seen, others, workers, report.problems, wrong_size)
    report.problems.extend((0, text) for text in seen.count_problems(report, published, counts))
    if fix is not None:
        form = _write_fixed(path, fix, report, form, repeated, None if convention else wrong_size)
    report.problems.extend(form)
    report.problems.num_more += form.num_more
    report.problems.sort(key=lambda problem: problem[0])
    return report


# --- the records ---------------------------------------------------------------------------------------------------


class _Seen:
    """What is held of the records: numbers in arrays, and the images' names."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.lines, self.codes = array("q"), array("i")  # of records whose image is known
        self.heights, self.widths = array("i"), array("i")
        self.id_lines, self.id_hashes = array("q"), array("Q")
        self.num_captions = 0
        self._ids: list[str] = []
        self._boxes: list[tuple] = []  # the first ones: numbers, height, width

    def add(self, line: int, content: Any) -> None:
        """Of any record what can be known, however wrong the rest of it is."""
        if not isinstance(content, dict):
            return
        region_id, image = content.get("id"), content.get("image")
        if isinstance(region_id, str):
            self.id_lines.append(line)
            self._ids.append(region_id)
            if len(self._ids) == BLOCK:
                self._hash_ids()
        try:
            height, width = check_image_hw(content.get("image_hw"))
        except ValueError:
            return
        if isinstance(image, str) and image:
            self.lines.append(line)
            self.codes.append(self.names.setdefault(image, len(self.names)))
            self.heights.append(height)
            self.widths.append(width)
        if len(self._boxes) < SAMPLE and (box := _numbers(content.get("box"))) and max(map(abs, box)) < 1e9:
            self._boxes.append((*box, height, width))

    def _hash_ids(self) -> None:
        self.id_hashes.frombytes(hashes_of(self._ids).tobytes())
        self._ids = []

    def convention_problem(self) -> str | None:
        rows = np.array(self._boxes, np.float64).reshape(-1, 6)
        return None if len(rows) < FEW_BOXES else box_convention_problem(rows[:, :4], rows[:, 4:])

    def repeated_ids(self) -> set[int]:
        """Lines whose id another line has too."""
        self._hash_ids()
        hashes = np.frombuffer(self.id_hashes, np.uint64)
        ordered = np.sort(hashes)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return set(np.frombuffer(self.id_lines, np.int64)[np.isin(hashes, repeated)].tolist())

    def count_problems(self, report: Report, published: dict[str, int], name: str | None) -> Iterator[str]:
        found = {"records": report.num_records, "images": report.num_images, "captions": self.num_captions}
        for key, count in published.items():
            if found[key] != count:
                yield f"{found[key]:,} {key}, published for {name} are {count:,} (also what was left out on purpose)"


def _read(path: Path, report: Report, form: Problems) -> _Seen:
    seen = _Seen()
    for line, content in _contents(path, form):
        report.num_records += 1
        seen.add(line, content)
        region, problem = _region(content)
        if problem:
            form.add(line, problem)
        if region is not None:
            report.num_without_caption += not region.captions
            seen.num_captions += len(region.captions)
    report.num_images = len(seen.names)
    return seen


def _contents(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """(line, record as JSON types) of every line; what is not JSON, and a file cut off, joins `problems`."""
    line = 0
    rows = read_rows(path) if is_table(path) else read_lines(path)
    try:
        for line, content in tqdm(rows, desc=path.name, unit=" records", disable=None):
            if isinstance(content, bytes):
                try:
                    content = parse_line(content, "")
                except ValueError as error:
                    problems.add(line, str(error).removeprefix(": "))
                    content = NOT_JSON
            yield line, content
    except ValueError as error:  # the file itself: missing, or cut off after `line`
        problems.add(line, str(error).removeprefix(f"{path}:{line}: ").removeprefix(f"{path}: "))


def _region(content: Any) -> tuple[Region | None, str | None]:
    """A record's region, and what is wrong with it."""
    if content is NOT_JSON:
        return None, None
    try:
        region = Region.from_dict(content)
    except ValueError as error:
        return None, str(error).removeprefix("record: ").removesuffix(f"; {CHECK_HINT}")
    return region, _mask_problem(region) or _box_problem(content, region) or _caption_problem(region)


def _mask_problem(region: Region) -> str | None:
    if region.mask is None:
        return None
    try:
        mask_box = _mask_box(region)
    except ValueError as error:
        return f"region {region.id}: {error}"
    if not box_iou([region.box], [mask_box])[0, 0] > 0:
        return f"region {region.id}: box {list(region.box)} and mask (its box is {mask_box.tolist()}) do not overlap"
    return None


def _mask_box(region: Region) -> np.ndarray:
    """About the box of a region's mask, decoded only where it matters: polygons of a few pixels may cover none."""
    if isinstance(region.mask, dict):
        if (box := rle_to_box(region.mask)) is None:
            raise ValueError("empty mask: no pixel is inside")
        return box
    corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in region.mask])
    height, width = region.image_hw
    box = np.array([*corners.min(axis=0), *corners.max(axis=0)]).clip(0, [width, height] * 2)
    if min(box[2:] - box[:2]) > SMALL_POLYGON and box_iou([region.box], [box])[0, 0] > 0:
        return box
    return mask_to_box(to_mask(region.mask, region.image_hw))


def _box_problem(content: dict, region: Region) -> str | None:
    box = content.get("box")
    if box is None or tuple(box) == region.box:
        return None
    beyond = max(abs(float(side) - clipped) for side, clipped in zip(box, region.box, strict=True))
    if beyond <= BEYOND:
        return None
    height, width = region.image_hw
    return f"region {region.id}: box {list(box)} reaches beyond its image, {width} wide and {height} high"


def _caption_problem(region: Region) -> str | None:
    for caption in region.captions:
        if not re.search(r"\w", caption):
            return f"region {region.id}: caption {caption!r} has no word in it"
        if "\ufffd" in caption:
            return f"region {region.id}: caption {caption!r} was read in another encoding than it was written in"
    return None


def _numbers(box: Any) -> tuple | None:
    """A box's four numbers; None where it has not."""
    if isinstance(box, list | tuple) and len(box) == 4 and all(type(side) in (int, float) for side in box):
        return tuple(box)
    return None


def _tell_repeated(path: Path, lines: set[int], problems: Problems) -> None:
    first: dict[str, int] = {}
    for line, content in _contents(path, Problems()) if lines else ():
        if line in lines and (before := first.setdefault(content["id"], line)) != line:
            problems.add(line, f"id {content['id']!r} stands in line {before} already; ids are unique")


# --- the images ----------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What opening an image showed. exact: the same for the same pixels; low: (63,) what the whole looks like, or None
    for a flat picture. Both empty where nothing is compared."""

    error: str
    image_hw: tuple[int, int]
    exact: bytes
    low: np.ndarray | None


def look(path: Path, compare: bool) -> Look:
    """Opens one image. compare: also what tells it from others."""
    try:
        pixels = open_image(path)
    except ValueError as error:
        return Look(str(error), (0, 0), b"", None)
    image_hw = pixels.shape[:2]
    if not compare:
        return Look("", image_hw, b"", None)
    exact = hashlib.blake2b(repr(image_hw).encode() + pixels.tobytes(), digest_size=16).digest()
    height, width = image_hw
    low = low_frequencies(grey(pixels), np.array([[0, 0, width, height]]))[0].reshape(-1)[1:]  # without the mean
    size = float(np.linalg.norm(low))
    return Look("", image_hw, exact, low / size if size > 1 else None)


class Pictures:
    """Pictures of other files, to find one again: by its pixels, or the same picture stored or scaled anew."""

    def __init__(self) -> None:
        self._exact: dict[bytes, int] = {}
        self._names: list[str] = []
        self._low: list[np.ndarray] = []  # float16, of pictures that are not flat
        self._places = array("q")  # their names
        self._bits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, seen: Look) -> None:
        """Adds a picture that could be opened."""
        self._exact.setdefault(seen.exact, len(self._names))
        if seen.low is not None:
            self._low.append(seen.low.astype(np.float16))
            self._places.append(len(self._names))
        self._names.append(name)
        self._bits = None

    def find(self, seen: Look) -> tuple[str, bool] | None:
        """(name, whether its pixels are the same) of the picture that this one is, or None."""
        if (place := self._exact.get(seen.exact)) is not None:
            return self._names[place], True
        if seen.low is None or not self._low:
            return None
        if self._bits is None:
            self._bits = np.array([_bits(low.astype(np.float32)) for low in self._low], np.uint64)
        near = np.flatnonzero(np.bitwise_count(self._bits ^ _bits(seen.low)) <= NEAR_BITS)
        likeness = [float(self._low[k].astype(np.float32) @ seen.low) for k in near]
        if not likeness or max(likeness) < NEAR_CORRELATION:
            return None
        return self._names[self._places[int(near[int(np.argmax(likeness))])]], False


def _bits(low: np.ndarray) -> np.uint64:
    return np.packbits(np.append(low > np.median(low), False)).view(np.uint64)[0]


def look_at(paths: Iterable[Path], compare: bool, workers: int = 0) -> Iterator[Look]:
    """`look` of every path, in order. workers: processes that open them, 0 = this one."""
    paths = iter(paths)
    if not workers:
        yield from (look(path, compare) for path in paths)
        return
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            waiting: deque = deque()
            while part := list(islice(paths, IMAGES_AT_ONCE)):
                waiting.append(pool.submit(_look_at_part, part, compare))
                if len(waiting) > 3 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"one of {workers} processes that open images ended early (out of memory?); try fewer --workers, or none"
        ) from None


def _look_at_part(paths: list[Path], compare: bool) -> list[Look]:
    return [look(path, compare) for path in paths]


def _check_images(
    path: Path, seen: _Seen, others: list[Path], workers: int, problems: Problems, wrong_size: set[int]
) -> None:
    """Problems of the images, each with the first line that names it, and of the recorded sizes. wrong_size: gets the
    lines whose size is not certain."""
    pictures = Pictures()
    for other in others:
        _add_pictures(other, pictures, workers, problems)
    groups = ImageGroups.from_codes(np.frombuffer(seen.codes, np.int32))
    lines = np.frombuffer(seen.lines, np.int64)
    sizes = np.stack([np.frombuffer(seen.heights, np.int32), np.frombuffer(seen.widths, np.int32)], axis=1)
    root, names = record_root(path), list(seen.names)
    looks = look_at((root / name for name in names), bool(others), workers)
    for number, picture in enumerate(tqdm(looks, "images", len(names), unit=" images", disable=None)):
        users, image = groups.members(number), root / names[number]
        if picture.error:
            problems.add(int(lines[users[0]]), f"{picture.error}{_also_in(lines[users])}")
            wrong_size.update(lines[users].tolist())
            continue
        for user in users[(sizes[users] != picture.image_hw).any(axis=1)].tolist():
            recorded = tuple(sizes[user].tolist())
            problems.add(int(lines[user]), f"image_hw {recorded}, but {image} is {picture.image_hw} (height, width)")
            wrong_size.add(int(lines[user]))
        if found := pictures.find(picture) if others else None:
            name, same = found
            how = "the same pixels" if same else "the same picture stored or scaled anew, by its looks"
            problems.add(
                int(lines[users[0]]),
                f"image {image} is also in {name} ({how}); the two files must not share images{_also_in(lines[users])}",
            )


def _also_in(lines: np.ndarray) -> str:
    if len(lines) == 1:
        return ""
    more = ", ...)" if len(lines) > NUM_LINES_SHOWN + 1 else ")"
    return f" (also in lines {', '.join(map(str, lines[1 : NUM_LINES_SHOWN + 1].tolist()))}{more}"


def _add_pictures(path: Path, pictures: Pictures, workers: int, problems: Problems) -> None:
    """Adds the pictures of another record file. What is wrong with that file is its own check's matter, except that an
    image that cannot be compared is told."""
    root, broken = record_root(path), Problems()
    names: dict[str, None] = {}
    for line, content in _contents(path, broken):
        region, problem = _region(content)
        if region is not None:
            names.setdefault(region.image)
        elif problem:
            broken.add(line, problem)
    for line, text in broken:
        problems.add(0, f"{path}:{line}: {text} (--against)")
    looks = look_at((root / name for name in names), True, workers)
    for name, picture in zip(names, tqdm(looks, path.name, len(names), unit=" images", disable=None), strict=True):
        if picture.error:
            problems.add(0, f"{picture.error} (--against {path})")
        else:
            pictures.add(f"{path}, as {name}", picture)


# --- published counts ----------------------------------------------------------------------------------------------

COUNTED_AS = {
    **{name: "records" for name in ("annotations", "regions", "boxes")},
    **{name: "captions" for name in ("captions", "expressions")},
}


def published_counts(name: str) -> dict[str, int]:
    """Records, images and captions of "DATASET:SPLIT" ("coco:val") that its makers publish, as the converters have
    them. ValueError names those that are known."""
    known = _published()
    if name not in known:
        raise ValueError(f"--counts {name}: no published counts of that name; known are {', '.join(sorted(known))}")
    return known[name]


def _published() -> dict[str, dict[str, int]]:
    from data_prep import coco, openimages, refcoco, visual_genome

    found: dict[str, dict[str, int]] = {}
    for dataset, row in coco.DATASETS.items():
        found.update({f"{dataset}:{split}": dict(counts) for split, counts in row.published.items()})
    found.update({f"openimages:{split}": dict(counts) for split, counts in openimages.PUBLISHED.items()})
    for dataset, splits in refcoco.PUBLISHED.items():
        found.update(
            {f"{dataset}:{split}": dict(zip(refcoco.COUNTED, row, strict=True)) for split, row in splits.items()}
        )
    found.update({f"visual-genome-{name}:{split}": row for (name, split), row in visual_genome.CAPTIONED.items()})
    return {name: counts for name, row in found.items() if (counts := _of_records(row))}


def _of_records(published: dict[str, int]) -> dict[str, int]:
    """The counts that records have too. A photo without annotations has no record."""
    counts = {COUNTED_AS[key]: count for key, count in published.items() if key in COUNTED_AS}
    if images := published.get("images with annotations", published.get("images")):
        counts["images"] = images
    return counts


# --- a mended copy -------------------------------------------------------------------------------------------------


def _fix_path(path: Path, out: Path) -> Path:
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--fix {out}: expected a name that ends with .jsonl or .jsonl.gz")
    if record_root(out).resolve() != record_root(path).resolve():
        raise ValueError(f"--fix {out}: image paths count from {path.parent}; name a file in that folder")
    if out.resolve() == path.resolve():
        raise ValueError(f"--fix {out}: the file itself; name another one, and look at it first")
    return out


def _write_fixed(
    path: Path, out: Path, report: Report, form: Problems, repeated: set[int], wrong_size: set[int] | None
) -> Problems:
    """Writes the copy, adds to the report what it has otherwise, and returns the problems of form that are left.

    repeated: lines whose ids stand in others too. wrong_size: lines whose image's size is not certain, None = of all.
    """
    left, dropped = Problems(), set()
    before: dict[str, set[bytes]] = {}
    wrong = {line for line, _ in form}
    with atomic_path(out) as temporary:
        with gzip.open(temporary, "wb") if out.suffix == ".gz" else open(temporary, "wb") as file:
            rows = read_rows(path) if is_table(path) else read_lines(path)
            for line, raw in _until_damaged(rows):
                content = raw
                if isinstance(raw, bytes):
                    if line in wrong or line in repeated:
                        content = _parsed(raw)
                    raw = raw.rstrip(b"\r\n") + b"\n"
                else:
                    raw = _json_line(content)
                if line in repeated:
                    same = before.setdefault(content["id"], set())
                    if (text := _json_line(content, sort=True)) in same:
                        report.fixes.append((line, f"left out, the record {content['id']!r} stands above already"))
                        dropped.add(line)
                        continue
                    same.add(text)
                if line in wrong and isinstance(content, dict):
                    mended, fixes = _mended(content, may_clip=wrong_size is not None and line not in wrong_size)
                    if fixes:
                        report.fixes.extend((line, text) for text in fixes)
                        raw = _json_line(mended)
                        if problem := _region(mended)[1]:
                            left.add(line, problem)
                        wrong.discard(line)
                file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    report.problems[:] = [problem for problem in report.problems if problem[0] not in dropped]
    for line, text in form:
        if line in wrong and line not in dropped:
            left.add(line, text)
    left.num_more += form.num_more
    return left


def _until_damaged(rows: Iterator) -> Iterator:
    """Rows as far as they can be read; that there are more was told while checking."""
    try:
        yield from rows
    except ValueError:
        return


def _parsed(text: bytes) -> Any:
    try:
        return parse_line(text, "")
    except ValueError:
        return None


def _json_line(content: Any, sort: bool = False) -> bytes:
    return (json.dumps(content, ensure_ascii=False, sort_keys=sort) + "\n").encode("utf-8", "surrogatepass")


def _mended(content: dict, may_clip: bool) -> tuple[dict, list[str]]:
    """A record without what is certainly a slip, and what was changed."""
    content, fixes = dict(content), []
    for key in ("captions", "tags"):
        texts = content.get(key)
        if isinstance(texts, list | tuple):
            kept = [text for text in texts if not isinstance(text, str) or text.strip()]
            if len(kept) < len(texts):
                content[key] = kept
                fixes.append(f"{len(texts) - len(kept)} empty {key} left out")
    box = _numbers(content.get("box"))
    try:
        height, width = check_image_hw(content.get("image_hw"))
    except ValueError:
        may_clip = False
    if may_clip and box and np.isfinite(box).all():
        clipped = [min(max(side, 0), most) for side, most in zip(box, (width, height) * 2, strict=True)]
        if clipped != list(box) and clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            content["box"] = clipped
            fixes.append(f"box {list(box)} clipped to its image, {clipped}")
    return content, fixes


# --- clips, and the command ------------------------------------------------------------------------------------------


def _holds_clips(path: Path) -> bool:
    if not path.is_file() or is_table(path):
        return False
    first = next(_until_damaged(read_lines(path)), (0, b""))[1]
    content = _parsed(first)
    return isinstance(content, dict) and "video" in content and "image" not in content


def _check_clips(path: Path) -> Report:
    from data_prep.check_clips import check_clips

    problems, num_records, num_videos = check_clips(path)
    return Report(path, Problems(problems), num_records=num_records, num_images=num_videos, pictures="videos")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.check", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="record file: .jsonl, .jsonl.gz, .parquet, .arrow or an Arrow folder")
    parser.add_argument(
        "--against", type=Path, nargs="+", metavar="FILE", help="record files that must not share images with this one"
    )
    parser.add_argument("--counts", metavar="NAME:SPLIT", help="published counts to compare with, such as coco:val")
    parser.add_argument("--no-images", action="store_true", help="do not open the images")
    parser.add_argument("--workers", type=int, default=0, help="processes that open images (default: this one does)")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a copy in which what is safe to mend is mended")
    return run_command("data_prep.check", _run, parser.parse_args(arguments))


def _run(args: argparse.Namespace) -> int:
    if args.workers < 0:
        raise ValueError(f"--workers {args.workers}: expected 0 or more")
    report = check_file(
        args.file,
        args.against,
        images=not args.no_images,
        workers=args.workers,
        counts=args.counts,
        fix=args.fix,
    )
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
