r"""Says what is wrong with a record file, every problem with its line, before a run finds out on its third day.

    python -m data_prep.check data/flickr30k/train.jsonl --against data/flickr30k_dev/val.jsonl
    python -m data_prep.check data/lvis/train.jsonl --workers 8 --counts lvis:train
    python -m data_prep.check mine.jsonl --fix mine_fixed.jsonl

Looks at the form of every record, boxes and their convention, masks, captions and ids, and opens every image once:
whether it can be read and has the recorded size. --against: its pixels must not be in other files, nor the same picture
stored or scaled anew. Exit status 1 when there is a problem. Of files of video regions it checks the form of every
record, boxes and masks, and whether every video is as long and large as recorded. Conversations may stand among both:
their questions must name every one of their regions, and no other.

--fix writes a copy without what can be put right without a doubt: boxes that reach beyond their image are clipped to
it, empty captions and tags are left out, and records that stand in the file twice, letter by letter, are kept once. All
else stays as it is and is told: a wrong size, an inverted box, an id of two regions may mean more than one thing.

Some 40 bytes a record are held, and each image's name once: files of millions of records are read as a stream.
"""

import argparse
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.box_formats import SAMPLE, box_convention_problem
from data_prep.check_clips import check_clips
from data_prep.mend import mended_path, parsed, until_damaged, write_mended
from data_prep.pictures import Pictures, look_at
from data_prep.published import published_counts
from data_prep.record_form import Problems, box_numbers, record_chat, record_contents, record_region
from data_prep.word_lists import Words
from dynrefer.boxes import check_image_hw
from dynrefer.data.arrow import is_table
from dynrefer.data.image_groups import BLOCK, ImageGroups, hashes_of
from dynrefer.data.record_files import JSON_LINES, UNKNOWN_KIND
from dynrefer.data.records import record_root
from dynrefer.errors import Parser, run_command
from dynrefer.files import read_lines

NUM_LINES_SHOWN = 5  # of an image that many records share
FEW_BOXES = 3  # fewer are told one by one: they make no convention


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
    num_chats: int = 0  # conversations among them
    num_clips: int = 0  # records of clips among those of pictures
    num_videos: int = 0

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
        clips = f", {self.num_videos} videos" if self.num_clips else ""
        chats = f", {self.num_chats} of them conversations" if self.num_chats else ""
        counts = f"{self.num_records} records{chats}{silent}, {self.num_images} {self.pictures}{clips}"
        return [*texts, f"{self.path}: {found}; {counts}"]


def check_file(
    path: str | Path,
    against: str | Path | Sequence[str | Path] | None = None,
    *,
    images: bool = True,
    workers: int = 0,
    counts: str | None = None,
    fix: str | Path | None = None,
) -> Report:
    """Every problem of a record file (JSONL, Arrow, Parquet), which may have clips among its pictures.

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
        fix = mended_path(path, Path(fix))
    if _holds_clips(path):
        if others or counts or fix:
            raise ValueError(
                f"{path}: a file of video regions; --against, --counts and --fix are for regions of images"
            )
        return _check_clips(path)
    report, form = Report(path), Problems()
    if path.exists() and not is_table(path) and not path.name.endswith(JSON_LINES):
        report.problems.add(0, f"training refuses it for its name: {UNKNOWN_KIND}; rename it")
    seen = _read(path, report, form)
    if report.num_clips:
        if fix is not None:
            raise ValueError(
                f"{path}: {report.num_clips} records of clips among those of pictures; --fix mends pictures"
            )
        clip_problems, _, report.num_videos = check_clips(path, mixed=True)
        report.problems.extend(clip_problems)
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
    report.problems.extend(seen.words.problems(path))
    if fix is not None:
        report.fixes, dropped, form = write_mended(path, fix, form, repeated, None if convention else wrong_size)
        report.problems[:] = [problem for problem in report.problems if problem[0] not in dropped]
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
        self.words = Words()
        self._ids: list[str] = []
        self._boxes: list[tuple] = []  # the first ones: numbers, height, width

    def add(self, line: int, content: Any) -> None:
        """Of any record what can be known, however wrong the rest of it is."""
        if not isinstance(content, dict):
            return
        region_id, image = content.get("id"), content.get("image")
        if isinstance(region_id, str) and (region_id.isascii() or _is_whole(region_id)):
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
        if len(self._boxes) < SAMPLE and (box := box_numbers(content.get("box"))) and max(map(abs, box)) < 1e9:
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


def _is_whole(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _read(path: Path, report: Report, form: Problems) -> _Seen:
    seen = _Seen()
    for line, content in record_contents(path, form):
        report.num_records += 1
        seen.add(line, content)
        if isinstance(content, dict) and "video" in content and "image" not in content:
            report.num_clips += 1  # see check_clips
            report.num_without_caption += not content.get("captions")
            continue
        if isinstance(content, dict) and "turns" in content:
            chat, problem = record_chat(content)
            report.num_chats += 1
            report.num_without_caption += chat is not None and not chat.captions
            if problem:
                form.add(line, problem)
            continue
        region, problem = record_region(content)
        if problem:
            form.add(line, problem)
        if region is not None:
            report.num_without_caption += not region.captions
            seen.num_captions += len(region.captions)
            seen.words.add(line, region)
    report.num_images = len(seen.names)
    return seen


def _tell_repeated(path: Path, lines: set[int], problems: Problems) -> None:
    first: dict[str, int] = {}
    for line, content in record_contents(path, Problems()) if lines else ():
        if line in lines and (before := first.setdefault(content["id"], line)) != line:
            problems.add(line, f"id {content['id']!r} stands in line {before} already; ids are unique")


# --- the images ----------------------------------------------------------------------------------------------------


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
    for line, content in record_contents(path, broken):
        chat = isinstance(content, dict) and "turns" in content
        region, problem = (record_chat if chat else record_region)(content)
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


# --- clips, and the command ------------------------------------------------------------------------------------------


def _holds_clips(path: Path) -> bool:
    if not path.is_file() or is_table(path):
        return False
    lines = (text for _, text in until_damaged(read_lines(path)))
    return _is_clip(next(lines, b"")) and not any(b'"image"' in text and not _is_clip(text) for text in lines)


def _is_clip(text: bytes) -> bool:
    content = parsed(text)
    return isinstance(content, dict) and "video" in content and "image" not in content


def _check_clips(path: Path) -> Report:
    problems, num_records, num_videos = check_clips(path)
    return Report(path, Problems(problems), num_records=num_records, num_images=num_videos, pictures="videos")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.check", description=__doc__.splitlines()[0])
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
