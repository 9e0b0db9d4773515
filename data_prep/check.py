"""Says what is wrong with a record file, every problem with its line, before a run finds out on its third day.

    python -m data_prep.check data/flickr30k/train.jsonl --against data/flickr30k_dev/val.jsonl

Looks at the form of every record, boxes, masks, captions and ids, opens every image once, compares its size with the
recorded one, and with --against also its pixels with those of another file. Exit status 1 when there is a problem.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.conventions import SAMPLE, box_convention_problem
from dynrefer.boxes import box_iou
from dynrefer.data.schema import CHECK_HINT, Region, is_table, parse_line, read_lines, read_rows, record_root
from dynrefer.images import open_image
from dynrefer.masks import mask_to_box, to_mask

NUM_LINES_SHOWN = 5  # of an image that many records share


@dataclass
class Report:
    """What `check_file` found: problems as (line, text), in the file's order, and counts for the last line."""

    path: Path
    problems: list[tuple[int, str]] = field(default_factory=list)
    num_records: int = 0
    num_images: int = 0
    num_without_caption: int = 0

    def lines(self) -> list[str]:
        """One text a problem, "FILE:LINE: what", and one that sums up."""
        texts = [f"{self.path}:{line}: {text}" if line else f"{self.path}: {text}" for line, text in self.problems]
        count = len(self.problems)
        found = "no problems" if not count else "1 problem" if count == 1 else f"{count} problems"
        silent = f", {self.num_without_caption} of them without a caption" if self.num_without_caption else ""
        return [*texts, f"{self.path}: {found}; {self.num_records} records{silent}, {self.num_images} images"]


def check_file(path: str | Path, against: str | Path | None = None) -> Report:
    """Every problem of a record file (JSONL, Arrow, Parquet). against: a file that must not share an image with it."""
    path = Path(path)
    report = Report(path)
    first_lines: dict[str, int] = {}
    by_image: dict[str, list[tuple[int, Region]]] = {}
    raw_boxes: list[list[float]] = []
    for line, region in _regions(path, report.problems, raw_boxes):
        report.num_records += 1
        if region is None:
            continue
        if (first := first_lines.setdefault(region.id, line)) != line:
            report.problems.append((line, f"id {region.id!r} stands in line {first} already; ids are unique"))
        if problem := _mask_problem(region):
            report.problems.append((line, problem))
        report.num_without_caption += not region.captions
        by_image.setdefault(region.image, []).append((line, region))
    if not report.num_records:
        report.problems.append((0, "no records in it"))
    raw = np.array(raw_boxes, dtype=np.float64).reshape(-1, 6)
    if problem := box_convention_problem(raw[:, :4], raw[:, 4:]):
        report.problems.append((0, f"{problem}; records have xyxy pixels: convert again with the right --box-format"))
    report.num_images = len(by_image)
    others = {} if against is None else _fingerprints(Path(against), report.problems)
    for image, users in by_image.items():
        report.problems.extend(_image_problems(record_root(path) / image, users, others, against))
    report.problems.sort(key=lambda problem: problem[0])
    return report


def _regions(
    path: Path, problems: list[tuple[int, str]], raw_boxes: list[list[float]] | None = None
) -> Iterator[tuple[int, Region | None]]:
    """(line, region) of every record, None where it is not one; what is wrong with it joins `problems`, and the first
    boxes as they stand, with height and width of their image, `raw_boxes`."""

    def tell(line: int, error: ValueError) -> None:
        text = str(error).removeprefix(f"{path}:{line}: ").removeprefix(f"{path}: ").removeprefix("record: ")
        problems.append((line, text.removesuffix(f"; {CHECK_HINT}")))

    line = 0
    try:
        for line, content in read_rows(path) if is_table(path) else read_lines(path):
            try:
                record = parse_line(content, f"{path}:{line}") if isinstance(content, bytes) else content
                if raw_boxes is not None and len(raw_boxes) < SAMPLE:
                    raw_boxes.extend(_raw_box(record))
                region = Region.from_dict(record)
            except ValueError as error:
                tell(line, error)
                region = None
            yield line, region
    except ValueError as error:  # the file itself: missing, or cut off after `line`
        tell(line, error)


def _raw_box(record: object) -> Iterator[list[float]]:
    """Box, height and width of a record as they stand, where they are numbers; a Region's box is clipped already."""
    if isinstance(record, dict) and isinstance(record.get("box"), list) and isinstance(record.get("image_hw"), list):
        numbers = [*record["box"], *record["image_hw"]]
        if (
            len(numbers) == 6
            and len(record["box"]) == 4
            and all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers)
        ):
            yield numbers


def _mask_problem(region: Region) -> str | None:
    if region.mask is None:
        return None
    try:
        mask = to_mask(region.mask, region.image_hw)
    except ValueError as error:
        return f"region {region.id}: {error}"
    mask_box = mask_to_box(mask)
    if not box_iou([region.box], [mask_box])[0, 0] > 0:
        return f"region {region.id}: box {list(region.box)} and mask (its box is {mask_box.tolist()}) do not overlap"
    return None


def _image_problems(
    path: Path, users: list[tuple[int, Region]], others: dict[str, str], against: str | Path | None
) -> Iterator[tuple[int, str]]:
    """Problems of one image, with the first line that names it, and of its recorded sizes."""
    lines = [line for line, _ in users]
    more = f" (also in lines {', '.join(map(str, lines[1 : NUM_LINES_SHOWN + 1]))}" if len(lines) > 1 else ""
    more += (", ...)" if len(lines) > NUM_LINES_SHOWN + 1 else ")") if more else ""
    try:
        pixels = open_image(path)
    except ValueError as error:
        yield lines[0], f"{error}{more}"
        return
    for line, region in users:
        if region.image_hw != (true_hw := pixels.shape[:2]):
            yield line, f"region {region.id}: image_hw {region.image_hw}, but {path} is {true_hw} (height, width)"
    if other := others.get(_fingerprint(pixels)):
        yield lines[0], f"image {path} is also in {against}, as {other}; the two files must not share images{more}"


def _fingerprint(pixels: np.ndarray) -> str:
    """The same for the same pixels, whatever the file's name, format or metadata."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _fingerprints(path: Path, problems: list[tuple[int, str]]) -> dict[str, str]:
    """Fingerprint -> image of another record file. What is wrong with that file is its own check's matter, except that
    an image that cannot be compared is told."""
    root, result = record_root(path), {}
    broken: list[tuple[int, str]] = []
    images = dict.fromkeys(region.image for _, region in _regions(path, broken) if region is not None)
    problems.extend((0, f"{path}:{line}: {text} (--against)") for line, text in broken)
    for image in images:
        try:
            result.setdefault(_fingerprint(open_image(root / image)), image)
        except ValueError as error:
            problems.append((0, f"{error} (--against {path})"))
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.check", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="record file: .jsonl, .jsonl.gz, .parquet, .arrow or an Arrow folder")
    parser.add_argument("--against", type=Path, help="another record file, which must not share images with this one")
    args = parser.parse_args(arguments)
    report = check_file(args.file, args.against)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
