"""ms-swift's grounding data (JSONL with `objects`) -> record file.

    python -m data_prep.swift --jsonl mine.jsonl --images photos --out data/mine/train.jsonl

A line: {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>Find <ref-object>"}, {"role":
"assistant", "content": "<bbox><bbox>"}], "objects": {"ref": ["a sheep"], "bbox": [[x1, y1, x2, y2], ...], "bbox_type":
"real", "image_id": [0, 0]}}; `query` and `response` instead of messages, too. The format itself says what boxes are:
xyxy pixels, or as `bbox_type` says norm1 (0 to 1) or norm1000 (thousandths). `image_id` is the image of each box.

Placeholders stand for the entries of `ref` and `bbox` in their order. A box's captions are

    the ref before it           "<ref-object><bbox>", "<ref-object>: <bbox><bbox>"
    one of several before it    "Find <ref-object> and <ref-object>" ... "<bbox>, <bbox>", where they are as many
    the answer                  to a question that names this box alone; a <ref-object> in it says its text

With --chats whole conversations come out instead, each with the boxes that its questions name: <region0> is the first,
and answers say [0] for it. An answer that names a box that no question does is left out.

Boxes of which the text says nothing of the kind are regions without a caption. With --refs categories, refs are their
categories as well. Entries of bbox with two numbers are points: left out and counted.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.chat_records import PICTURE, FoundChat, add_chats, write_chats
from data_prep.conversations import IN_TEXT, IN_TEXT_STEP, read_questions, read_turns, writes_boxes
from data_prep.counts import BadEntry, Tally
from data_prep.own_data import Found, OwnImages, own_arguments, read_entries, write_found
from dynrefer.boxes import to_xyxy
from dynrefer.data.chats import Turn
from dynrefer.errors import run_command

REF, BOX = "<ref-object>", "<bbox>"
PLACEHOLDER = re.compile(f"({REF}|{BOX})")
BOX_TYPES = {"real": "xyxy", "norm1": "xyxy-unit", "norm1000": "xyxy-1000"}


def regions(path: Path, images: OwnImages, counts: Tally, categories: bool = False) -> Iterator[Found]:
    """Regions of a file in its order; their boxes are xyxy pixels. categories: refs are categories as well."""
    for number, (where, entry) in enumerate(read_entries(path, counts)):
        counts["entries"] += 1
        with counts.entries("entries"):
            yield from _entry(entry, number, where, images, counts, categories)


def _entry(entry: dict, number: int, where: str, images: OwnImages, counts: Tally, categories: bool) -> Iterator[Found]:
    refs, boxes, image_ids, box_format = _objects(entry, where)
    turns = read_turns(entry, where)
    if not boxes and writes_boxes(text for _, text in turns):
        raise BadEntry(f"{where}: {IN_TEXT_STEP}", IN_TEXT)
    if not boxes:
        counts["entries left out: without a box"] += 1
        return
    pictures = _images(entry, where)
    named, captions = _texts(turns, refs, len(boxes), where)
    for k, (box, image_id) in enumerate(zip(boxes, image_ids, strict=True)):
        if isinstance(box, list) and len(box) == 2:
            counts["points left out"] += 1
            continue
        with counts.entries("boxes"):
            if not isinstance(box, list) or len(box) != 4:
                raise BadEntry(f"{where}: bbox {k}, {box!r:.80}: expected four numbers, or two of a point")
            if not isinstance(image_id, int) or not 0 <= image_id < len(pictures):
                raise BadEntry(f"{where}: image_id {image_id!r} of box {k}, but there are {len(pictures)} images")
            file, image_hw = images.find(pictures[image_id], where)
            texts = list(dict.fromkeys(text.strip() for text in captions[k] if text.strip()))
            keys: dict[str, Any] = {"id": f"{number}-{k}", "image": file, "captions": texts}
            if categories and named[k]:
                keys["category"] = named[k]
            try:
                pixels = to_xyxy([box], box_format, image_hw)[0].tolist()
            except ValueError as error:
                raise BadEntry(f"{where}: bbox {k}, {entry['objects'].get('bbox_type', 'real')!r}: {error}") from error
            yield pixels, image_hw, f"{where}, bbox {k}", keys


def chats(path: Path, images: OwnImages, counts: Tally) -> Iterator[FoundChat]:
    """Conversations of a file in its order, about boxes or whole pictures; their boxes are xyxy pixels."""
    for number, (where, entry) in enumerate(read_entries(path, counts)):
        counts["entries"] += 1
        with counts.entries("entries"):
            refs, boxes, image_ids, box_format = _objects(entry, where)
            turns = read_turns(entry, where)
            if not boxes and writes_boxes(text for _, text in turns):
                raise BadEntry(f"{where}: {IN_TEXT_STEP}", IN_TEXT)
            pictures = _images(entry, where)
            if len(pictures) > 1:
                counts["entries left out: several pictures"] += 1
                continue
            _check_counts(turns, refs, len(boxes), where)
            file, image_hw = images.find(pictures[0], where)
            pixels = []
            for k, box in enumerate(boxes):
                if isinstance(box, list) and len(box) == 4:
                    try:
                        box = to_xyxy([box], box_format, image_hw)[0].tolist()
                    except ValueError as error:
                        raise BadEntry(f"{where}: bbox {k}: {error}") from error
                pixels.append((box, None))
            # a box that stands there again is the same region
            values = {REF: iter(refs), BOX: (f"<region{boxes.index(box)}>" for box in boxes)}
            said = [(speaker, _filled(text, values)) for speaker, text in turns]
            questions = [
                Turn(PICTURE.sub(" ", question).strip(), answer.strip()) for question, answer in read_questions(said)
            ]
            questions = [turn for turn in questions if turn.question and turn.answer]
            yield FoundChat(where, str(number), file, image_hw, pixels, questions)


def _filled(text: str, values: dict[str, Iterator[str]]) -> str:
    return PLACEHOLDER.sub(lambda match: next(values[match[0]]), text)


def _objects(entry: dict, where: str) -> tuple[list[str], list, list, str]:
    """(refs, boxes, the image of every box, box format) of an entry."""
    objects = entry.get("objects") or {}
    if not isinstance(objects, dict):
        raise ValueError(f"{where}: objects of type {type(objects).__name__}: expected ref, bbox and bbox_type")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not isinstance(refs, list) or not isinstance(boxes, list) or not all(isinstance(ref, str) for ref in refs):
        raise ValueError(f"{where}: objects: expected ref, a list of texts, and bbox, a list of boxes")
    kind = objects.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in BOX_TYPES:
        raise ValueError(f"{where}: bbox_type {kind!r}: expected one of {', '.join(BOX_TYPES)}")
    image_ids = objects.get("image_id")
    image_ids = [0] * len(boxes) if image_ids is None else image_ids
    if not isinstance(image_ids, list) or len(image_ids) != len(boxes):
        raise ValueError(f"{where}: image_id {image_ids!r} for {len(boxes)} boxes; expected one a box")
    return refs, boxes, image_ids, BOX_TYPES[kind]


def _images(entry: dict, where: str) -> list:
    """Names of an entry's images, also where they are {"path": name}."""
    images = entry.get("images", entry.get("image"))
    images = [images] if isinstance(images, (str, dict)) else images
    if not isinstance(images, list) or not images:
        raise ValueError(f"{where}: images {images!r}: expected a list of file names")
    return [image.get("path") if isinstance(image, dict) else image for image in images]


def _texts(
    turns: list[tuple[str, str]], refs: list[str], num_boxes: int, where: str
) -> tuple[list[str | None], list[list[str]]]:
    """What the text says of every box: the ref that names it, or None, and its captions."""
    _check_counts(turns, refs, num_boxes, where)
    named: list[str | None] = [None] * num_boxes
    captions: list[list[str]] = [[] for _ in named]
    values = {REF: iter(refs), BOX: iter(range(num_boxes))}
    for exchange in _exchanges(turns):
        # (placeholder, its ref or the number of its box), and (text, text) between them
        parts = [
            [(word, next(values.get(word, iter([word])))) for word in PLACEHOLDER.split(text)] for text in exchange
        ]
        for names, boxes in _runs(part for text in parts for part in text):
            if len(names) in (1, len(boxes)):
                for place, box in enumerate(boxes):
                    named[box] = names[place if len(names) > 1 else 0]
                    captions[box].append(named[box])
        question, answer = parts[0], [part for text in parts[1:] for part in text]
        asked = [word for word, _ in question if word in values]
        if asked == [BOX] and answer and all(word != BOX for word, _ in answer):
            box = next(value for word, value in question if word == BOX)
            captions[box].append("".join(text for _, text in answer))
    return named, captions


def _check_counts(turns: list[tuple[str, str]], refs: list[str], num_boxes: int, where: str) -> None:
    words = [word for _, text in turns for word in PLACEHOLDER.findall(text)]
    for placeholder, count in ((REF, len(refs)), (BOX, num_boxes)):
        if words.count(placeholder) != count:
            raise ValueError(
                f"{where}: {words.count(placeholder)} {placeholder} in the text, but {count} in `objects`; they are "
                "taken in order and must be as many"
            )


def _exchanges(turns: list[tuple[str, str]]) -> Iterator[list[str]]:
    """A question with its answers, one after the other; what begins a conversation without a question is its own."""
    exchange: list[str] = []
    for speaker, text in turns:
        if speaker != "assistant" and exchange:
            yield exchange
            exchange = []
        exchange.append(text)
    if exchange:
        yield exchange


def _runs(parts: Iterable[tuple[str, Any]]) -> Iterator[tuple[list[str], list[int]]]:
    """(refs, boxes): refs that follow one another, and the boxes behind them up to the next ref."""
    refs: list[str] = []
    boxes: list[int] = []
    for word, value in parts:
        if word == REF:
            if boxes:
                yield refs, boxes
                refs, boxes = [], []
            refs.append(value)
        elif word == BOX:
            boxes.append(value)
    yield refs, boxes


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("swift", __doc__.splitlines()[0])
    parser.add_argument("--jsonl", type=Path, required=True, help=".jsonl or .json, also .gz")
    parser.add_argument("--refs", choices=("captions", "categories"), default="captions", help="what refs are, too")
    add_chats(parser)
    return run_command("data_prep.swift", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    counts = Tally(args.strict)
    images = OwnImages(args.images, args.out, args.image_prefix, args.stored_pixels)
    if args.chats:
        write_chats(args, args.jsonl, chats(args.jsonl, images, counts), counts, "xyxy")
        return
    found = regions(args.jsonl, images, counts, args.refs == "categories")
    write_found(args, args.jsonl, found, counts, "xyxy")


if __name__ == "__main__":
    sys.exit(main())
