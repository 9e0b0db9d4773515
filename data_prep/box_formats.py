"""Box conventions: the four numbers of a box mean what the user says they mean, and the images say whether it fits.

A convention is one of `BOX_FORMATS`: xyxy, xywh or cxcywh, in pixels, "-unit" (0 to 1) or "-1000" (thousandths). It is
never guessed; but boxes that mostly leave their images, or are a pixel wide, are refused with the one that would fit.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_prep.counts import Tally
from dynrefer.boxes import BOX_FORMATS, to_xyxy
from dynrefer.errors import cut

CHUNK = 1024  # boxes converted at once
SAMPLE = 16384  # boxes that the check looks at, the first of the file
SLACK = 0.02  # of the image's side that a sound box may reach beyond it: annotators draw past the edge
NUMBERS = frozenset((int, float))
_FULL = {"": None, "unit": 1.0, "1000": 1000.0}

Box = tuple[float, float, float, float]


def box_convention_problem(boxes: ArrayLike, image_hws: ArrayLike, box_format: str = "xyxy") -> str | None:
    """What is wrong with the convention of boxes, in one sentence with the one that fits; None when nothing is.

    boxes: (N, 4) numbers as the file has them. image_hws: (N, 2) height and width of each box's image. box_format: the
    convention they are said to be in. A box fits a convention when it lies in its image and is wider and higher than
    a pixel. A convention is wrong where less than half of the boxes fit it, or where a tenth does not and another
    layout fits all but a hundredth (xywh and cxcywh of small things are that alike).

        >>> box_convention_problem([[200, 300, 50, 60], [500, 90, 40, 80]], [[480, 640]] * 2)
        "100% of 2 boxes leave their image or are not a pixel wide when read as 'xyxy'; as 'xywh' or 'cxcywh' 100% fit"
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.asarray(image_hws, dtype=np.float64).reshape(-1, 2)
    if box_format not in BOX_FORMATS:
        raise ValueError(f"unknown box format {box_format!r}; choose one of {', '.join(BOX_FORMATS)}")
    if len(boxes) != len(sizes):
        raise ValueError(f"{len(boxes)} boxes but {len(sizes)} image sizes; give one size a box")
    known = np.isfinite(boxes).all(axis=1)
    boxes, sizes = boxes[known], sizes[known]
    if not len(boxes):
        return None
    share = {name: _fitting(boxes, sizes, name) for name in BOX_FORMATS}
    unit = box_format.partition("-")[2]
    here = share.pop(box_format)
    alike = [name for name in share if name.partition("-")[2] == unit]
    most = max(share[name] for name in alike)
    if here >= 0.5 and not (len(boxes) >= 50 and here < 0.9 and most >= 0.99):
        return None
    found = (
        f"{1 - here:.0%} of {len(boxes):,} boxes leave their image or are not a pixel wide when read as {box_format!r}"
    )
    # another layout first: pixels of any kind fit as thousandths
    candidates = alike if most >= 0.9 else list(share)
    most = max(share[name] for name in candidates)
    names = [name for name in candidates if share[name] >= max(0.9, most - 0.01)]
    fits = [f"as {' or '.join(map(repr, names))} {min(share[name] for name in names):.0%} fit"] if names else []
    exchanged = _fitting(boxes[:, [1, 0, 3, 2]], sizes, box_format)
    if exchanged >= 0.9:
        fits.append(f"with x and y (or the height and width of the images) exchanged {exchanged:.0%} fit")
    if fits:
        return f"{found}; {', '.join(fits)}"
    if len(boxes) < 20:
        return None  # a few odd boxes are not a convention
    return f"{found}, and none of {', '.join(BOX_FORMATS)} fits; are these the images that the boxes were drawn on?"


def _fitting(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> float:
    """Share of the boxes (N, 4) that lie in their images of height and width `sizes` (N, 2) in this convention."""
    xyxy = _pixels(boxes, sizes, box_format)
    scale = sizes[:, [1, 0]]
    inside = (xyxy[:, :2] >= -SLACK * scale - 1) & (xyxy[:, 2:] <= (1 + SLACK) * scale + 1)
    return float((inside & (xyxy[:, 2:] - xyxy[:, :2] > 1)).all(axis=1).mean())


def _pixels(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> np.ndarray:
    """Boxes (N, 4) as xyxy pixels, each in its own image: (N, 2) height and width. Neither checked nor clipped."""
    layout, _, unit = box_format.partition("-")
    xyxy = to_xyxy(boxes, layout, (1, 1))  # a layout is the same in every unit
    return xyxy if _FULL[unit] is None else xyxy * sizes[:, [1, 0, 1, 0]] / _FULL[unit]


class BoxReader:
    """Boxes of one file as clipped xyxy pixels, whatever its convention, with an eye on whether it is the right one.

    name: the file, for messages. box_format: one of `BOX_FORMATS`; None: the file should have no boxes, only masks.
    tally: where is counted what was clipped and left out: boxes with nothing in their image, and what is not four
    finite numbers; when it is strict, such a box is an error.
    """

    def __init__(self, name: str, box_format: str | None, tally: Tally):
        if box_format not in (*BOX_FORMATS, None):
            raise ValueError(f"unknown box format {box_format!r}; choose one of {', '.join(BOX_FORMATS)}")
        self.name, self.box_format, self._tally = str(name), box_format, tally
        self._sample: list[np.ndarray] = []  # (N, 6): box, height, width
        self._seen = 0

    def read(self, items: Iterable[tuple[Any, tuple[int, int], str, Any]]) -> Iterator[tuple[Box | None, Any]]:
        """(box, payload) of every (numbers, image_hw, where, payload), lazily and in order, without the empty boxes.
        Numbers that are None stay None.

        Raises ValueError that begins with the file for a convention that does not fit: after the first thousand boxes,
        and at the end.
        """
        items = iter(items)
        while chunk := list(islice(items, CHUNK)):
            yield from self._convert(chunk)
        self._check()

    def _convert(self, chunk: list[tuple]) -> Iterator[tuple[Box | None, Any]]:
        boxed = [item for item in chunk if item[0] is not None]
        if boxed and self.box_format is None:
            raise ValueError(
                f"{boxed[0][2]}: there are boxes; say what their numbers are with --box-format, for instance xywh"
            )
        chunk = [item for item in chunk if item[0] is None or self._is_sound(item[0], item[2])]
        boxed = [item for item in chunk if item[0] is not None]
        boxes = np.array([numbers for numbers, *_ in boxed], dtype=np.float64).reshape(-1, 4)
        sizes = np.array([image_hw for _, image_hw, *_ in boxed], dtype=np.float64).reshape(-1, 2)
        first = not self._seen
        if self._seen < SAMPLE:
            self._sample.append(np.hstack([boxes, sizes]))
        self._seen += len(boxed)
        if first:
            self._check()
        xyxy = _pixels(boxes, sizes, self.box_format or "xyxy")
        clipped = np.clip(xyxy, 0.0, sizes[:, [1, 0, 1, 0]])
        self._tally["boxes clipped to their image"] += int((clipped != xyxy).any(axis=1).sum())
        empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1).tolist()
        rows = iter(zip(clipped.tolist(), empty, strict=True))
        for numbers, image_hw, where, payload in chunk:
            if numbers is None:
                yield None, payload
                continue
            box, is_empty = next(rows)
            if is_empty:
                self._leave_out(list(numbers), image_hw, where)
            else:
                yield tuple(box), payload

    def _leave_out(self, numbers: list, image_hw: tuple[int, int], where: str) -> None:
        why, rule = "nothing of them in the image", "covers nothing of its image"
        if str(self.box_format).partition("-")[0] != "xyxy" and min(numbers[2:]) < 0:
            why, rule = "a side is negative", "has a negative side in an image"
        text = f"{where}: box {numbers} ({self.box_format}) {rule}, {image_hw[1]} wide and {image_hw[0]} high"
        self._tally.leave_out("boxes", why, where, text)

    def _is_sound(self, numbers: Any, where: str) -> bool:
        """Whether a box is four numbers that are finite; left out otherwise."""
        why = _number_problem(numbers)
        if why is not None:
            text = f"{where}: box {cut(repr(numbers), 200)}: {why}; a box is four finite numbers"
            self._tally.leave_out("boxes", why, where, text)
        return why is None

    def _check(self) -> None:
        if self._seen:
            sample = np.concatenate(self._sample)
            if problem := box_convention_problem(sample[:, :4], sample[:, 4:], self.box_format):
                raise ValueError(f"{self.name}: {problem}")


def _number_problem(numbers: Any) -> str | None:
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 4 or not all(type(n) in NUMBERS for n in numbers):
        return "not four numbers"
    # far below what overflows: no image is that large
    return None if all(abs(number) < 1e9 for number in numbers) else "a number is not finite, or far too large"


def add_box_format(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The option that names a file's convention; without a default, since nothing in a file tells it for sure."""
    parser.add_argument(
        "--box-format",
        choices=BOX_FORMATS,
        required=required,
        help="what the numbers of a box are; '-unit' counts 0 to 1, '-1000' in thousandths of the image, else pixels",
    )
