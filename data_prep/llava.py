r"""LLaVA-style JSON about regions (Osprey, ViP-LLaVA, GLaMM, RegionGPT and the like) -> record file.

    python -m data_prep.llava --json mine.json --images photos --box-format xyxy --out data/mine/train.jsonl
    python -m data_prep.llava --json osprey_short_form.json --images coco/train2017 --image-prefix COCO_train2014_ \
        --box-format xywh --first-region 1 --question 'describe|what is' --out data/osprey/train.jsonl

A list of entries, or one a line in .jsonl. Each has an image (`image`, `file_name`, `filename` or `img_file_name`) and
its regions: objects with bbox and segmentation in `annotation`, `annotations`, `regions`, `objects` or `refs`, or lists
of their own (`bboxes`, `segmentations`; also `bbox`, `masks`, `rle`). A mask is COCO run lengths or polygons. Texts are

    description     one for each region, with or without "<region1>: " before it (Osprey)
    sentence, caption, description, phrase, text or label of each region's object (RefCOCOg as GLaMM has it), or what
                    stands under --text-key
    groundings      phrase -> its run lengths (GLaMM's grounded conversations); masks of a phrase count as one region
    answer          where there is a single region (ViP-LLaVA)
    conversations   an answer to a question that names exactly one region: <region>, <mask>, <bbox> in the order of the
                    regions, or with a number, <region1>, of which --first-region says whether 0 or 1 comes first.
                    In a conversation about a single region that names none, all answers are about it.

Questions that name several regions, or none of several, say nothing about one: their answers are left out and counted.
With --chats whole conversations come out instead, about any number of regions or about the picture, each with the
regions that its questions name: <region0> is the first, and answers say [0] for it.
What boxes count in is for --box-format to say (Osprey and GLaMM xywh, ViP-LLaVA xyxy); regions with a mask alone need
none.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.box_formats import add_box_format
from data_prep.chat_records import PICTURE, FoundChat, add_chats, write_chats
from data_prep.conversations import IN_TEXT, IN_TEXT_STEP, read_questions, read_turns, writes_boxes
from data_prep.counts import BadEntry, Tally, Undecided
from data_prep.own_data import Found, OwnImages, own_arguments, read_entries, write_found
from data_prep.polygons import read_mask
from data_prep.texts import TEXT_KEY, TextKeys
from dynrefer.data.chats import Turn
from dynrefer.errors import run_command
from dynrefer.masks import mask_to_rle, to_mask

IMAGES = ("image", "file_name", "filename", "img_file_name", "image_path")
AS_SWIFT = "their pictures stand in `images`, as ms-swift has them"
SWIFT_STEP = "`python -m data_prep.swift` reads such files"
OBJECTS = ("annotation", "annotations", "regions", "objects", "refs")
BOXES, MASKS = ("bboxes", "boxes", "bbox", "box"), ("segmentations", "segmentation", "masks", "mask", "rles", "rle")
NO_TEXTS = ("id", "category", "label", "answer")  # of a region's object, or texts only where it has no other
PLACEHOLDER = re.compile(r"<(?:region|mask|bbox|box|object|obj)[ _]?(\d*)>", re.IGNORECASE)


def regions(
    path: Path,
    images: OwnImages,
    counts: Tally,
    first_region: int | None,
    question: str | None,
    text_keys: Sequence[str] = (),
) -> Iterator[Found]:
    """Regions of a file in its order, one after the other. first_region: the number of the first in <region1>-like
    placeholders. question: a regular expression; only answers to questions in which it is found are captions."""
    wanted, texts = _pattern(question), TextKeys(counts, text_keys, (*BOXES, *MASKS, *IMAGES, *NO_TEXTS))
    for number, (where, entry) in enumerate(read_entries(path, counts)):
        if len(entry) == 1 and isinstance(only := next(iter(entry.values())), dict):
            entry = only  # {image id: entry}
        counts["entries"] += 1
        with counts.entries("entries"):
            yield from _entry(entry, number, where, images, counts, first_region, wanted, texts)
    texts.check(str(path))


def _entry(
    entry: dict,
    number: int,
    where: str,
    images: OwnImages,
    counts: Tally,
    first_region: int | None,
    wanted: re.Pattern,
    own_texts: TextKeys,
) -> Iterator[Found]:
    if (name := _first(entry, IMAGES)) is None:
        if entry.get("images"):
            raise BadEntry(f"{where}: {AS_SWIFT}: {SWIFT_STEP}", AS_SWIFT)
        counts["entries left out: no image, only text"] += 1
        return
    recorded = (entry["height"], entry["width"]) if {"height", "width"} <= entry.keys() else None
    file, image_hw = images.find(name, where, recorded)
    found = _objects(entry, where, image_hw, counts, own_texts)
    if not found and writes_boxes(text for _, text in read_turns(entry, where)):
        raise BadEntry(f"{where}: {IN_TEXT_STEP}", IN_TEXT)
    counts["entries left out: without a region"] += not found
    captions = _captions(entry, found, where, counts, first_region, wanted) if found else []
    for k, ((box, mask, _), texts) in enumerate(zip(found, captions, strict=True)):
        texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        keys = {"id": f"{number}-{k}", "image": file, "mask": mask, "captions": texts}
        yield box, image_hw, f"{where}, region {k}", keys


def chats(path: Path, images: OwnImages, counts: Tally, first_region: int | None) -> Iterator[FoundChat]:
    """Conversations of a file in its order, about regions or whole pictures."""
    for number, (where, entry) in enumerate(read_entries(path, counts)):
        if len(entry) == 1 and isinstance(only := next(iter(entry.values())), dict):
            entry = only
        counts["entries"] += 1
        with counts.entries("entries"):
            if (name := _first(entry, IMAGES)) is None:
                counts["entries left out: no image, only text"] += 1
                continue
            questions = list(read_questions(read_turns(entry, where)))
            if not questions:
                counts["entries left out: without a conversation"] += 1
                continue
            recorded = (entry["height"], entry["width"]) if {"height", "width"} <= entry.keys() else None
            file, image_hw = images.find(name, where, recorded)
            found = _objects(entry, where, image_hw, counts, TextKeys(counts, (), (*BOXES, *MASKS, *IMAGES, *NO_TEXTS)))
            if not found and writes_boxes(text for pair in questions for text in pair):
                raise BadEntry(f"{where}: {IN_TEXT_STEP}", IN_TEXT)
            turns = _turns(questions, len(found), where, counts, first_region)
            yield FoundChat(where, str(number), file, image_hw, [(box, mask) for box, mask, _ in found], turns)


def _turns(
    questions: list[tuple[str, str]], num_regions: int, where: str, counts: Tally, first_region: int | None
) -> list[Turn]:
    """Questions and answers in which <region0> is the first region."""
    numbers = _numbers([question for question, _ in questions], num_regions, where, first_region)
    turns = []
    for (question, answer), named in zip(questions, numbers, strict=True):
        own, said = iter(named), PLACEHOLDER.findall(answer)
        question = PLACEHOLDER.sub(lambda _, own=own: f"<region{next(own)}>", PICTURE.sub(" ", question)).strip()
        if any(not number for number in said) and num_regions != 1:
            counts["answers left out: placeholders without a number in them"] += 1
            continue
        answer = PLACEHOLDER.sub(
            lambda match: f"<region{int(match[1]) - (first_region or 0) if match[1] else 0}>", answer
        )
        turns.append(Turn(question, answer.strip() or None))
    turns = [turn for turn in turns if turn.answer is not None and turn.question]
    if num_regions == 1 and turns and not any(numbers):
        turns[0] = replace(turns[0], question=f"About <region0>: {turns[0].question}")
    return turns


def _objects(
    entry: dict, where: str, image_hw: tuple[int, int], counts: Tally, own_texts: TextKeys
) -> list[tuple[list | None, Any, list[str]]]:
    """(box as it stands or None, mask or None, own texts) of every region of an entry."""
    if isinstance(groundings := entry.get("groundings"), dict):
        return [
            (None, _union(phrase, thing, where, image_hw), [phrase])
            for phrase, thing in groundings.items()
            if isinstance(thing, dict) and thing.get("rle_masks")
        ]
    listed = _first(entry, OBJECTS)
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(thing, dict) for thing in listed):
            raise ValueError(f"{where}: {_name(entry, OBJECTS)}: expected a list of objects with bbox or segmentation")
        things = [(_first(thing, BOXES), _first(thing, MASKS), _own_texts(thing, own_texts, where)) for thing in listed]
    else:
        boxes, masks = _several(_first(entry, BOXES)), _several(_first(entry, MASKS))
        if boxes and masks and len(boxes) != len(masks):
            raise ValueError(f"{where}: {len(boxes)} boxes but {len(masks)} masks; expected one of each a region")
        count = max(len(boxes), len(masks))
        things = [(boxes[k] if boxes else None, masks[k] if masks else None, []) for k in range(count)]
    return [(box or None, read_mask(mask, image_hw, where, counts), texts) for box, mask, texts in things]


def _several(value: Any) -> list:
    """Boxes or masks of several regions, also where one stands there alone."""
    several = isinstance(value, list) and not (value and _is_number(value[0]))
    return value if several else [] if value is None else [value]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _union(phrase: str, thing: dict, where: str, image_hw: tuple[int, int]) -> dict:
    masks = thing["rle_masks"]
    if not isinstance(masks, list):
        raise ValueError(f"{where}: rle_masks of {phrase!r}: expected a list of run lengths")
    if len(masks) == 1:
        return masks[0]
    try:
        return mask_to_rle(np.logical_or.reduce([to_mask(mask, image_hw) for mask in masks]))
    except ValueError as error:
        raise ValueError(f"{where}: masks of {phrase!r}: {error}") from error


def _own_texts(thing: dict, own_texts: TextKeys, where: str) -> list[str]:
    """Texts of a region's object; a label or an answer where there is no other."""
    if texts := own_texts.read(thing, where):
        return texts
    return [text for key in ("label", "answer") if isinstance(text := thing.get(key), str)][:1]


def _captions(
    entry: dict,
    found: list,
    where: str,
    counts: Tally,
    first_region: int | None,
    wanted: re.Pattern,
) -> list[list[str]]:
    """Captions of every region of an entry."""
    captions = [list(texts) for _, _, texts in found]
    described = entry.get("description")
    if isinstance(described, list):
        if len(described) != len(found):
            raise ValueError(f"{where}: {len(described)} descriptions of {len(found)} regions")
        for texts, text in zip(captions, described, strict=True):
            texts.append(re.sub(r"^\s*<[^<>]*>\s*:\s*", "", str(text)))
    elif isinstance(answer := entry.get("answer", described), str) and len(found) == 1:
        captions[0].append(answer)
    turns = read_turns(entry, where)
    mentions = [match for speaker, text in turns if speaker == "user" for match in PLACEHOLDER.findall(text)]
    questions = list(read_questions(turns))
    numbers = _numbers([question for question, _ in questions], len(found), where, first_region, mentions)
    for (question, answer), named in zip(questions, numbers, strict=True):
        about = set(named) or ({0} if len(found) == 1 and not mentions else set())
        if len(about) != 1 or PLACEHOLDER.search(answer):
            counts["answers left out: not about one region"] += 1
        elif not wanted.search(question):
            counts["answers left out: to other questions than --question"] += 1
        else:
            captions[about.pop()].append(answer)
    return captions


def _numbers(
    questions: list[str], num_regions: int, where: str, first_region: int | None, mentions: list[str] | None = None
) -> list[list[int]]:
    """Of each question the regions that it names, counted from 0. mentions: of all questions, also those without an
    answer. ValueError for what names no region, Undecided where nobody said which number is the first."""
    if mentions is None:
        mentions = [number for question in questions for number in PLACEHOLDER.findall(question)]
    plain = sum(not number for number in mentions)
    if plain and num_regions > 1 and plain != num_regions:
        raise ValueError(
            f"{where}: {plain} placeholders without a number in the questions, but {num_regions} regions; they are "
            "taken in order and must be as many"
        )
    if any(mentions) and first_region is None:
        raise Undecided(
            f"{where}: numbered placeholders like <region{next(filter(None, mentions))}>; say with --first-region "
            "whether 0 or 1 is the first"
        )
    passed, found = 0, []
    for question in questions:
        named = []
        for number in PLACEHOLDER.findall(question):
            named.append(int(number) - first_region if number else passed if num_regions > 1 else 0)
            passed += not number
        if outside := [k for k in named if not 0 <= k < num_regions]:
            raise ValueError(
                f"{where}: a question names region {outside[0] + (first_region or 0)}, but there are {num_regions} "
                f"regions, the first is {first_region or 0}"
            )
        found.append(named)
    return found


def _first(entry: dict, names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := entry.get(name)) is not None:
            return value
    return None


def _name(entry: dict, names: tuple[str, ...]) -> str:
    return next(name for name in names if entry.get(name) is not None)


def _pattern(question: str | None) -> re.Pattern:
    try:
        return re.compile(question or "", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--question {question!r}: not a regular expression ({error})") from error


def main(argv: list[str] | None = None) -> int:
    parser = own_arguments("llava", __doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help=".json or .jsonl, also .gz")
    add_box_format(parser, required=False)
    parser.add_argument("--first-region", type=int, choices=(0, 1), help="number of the first region in placeholders")
    parser.add_argument("--question", metavar="REGEX", help="only answers to questions with this in them are captions")
    add_chats(parser)
    parser.add_argument("--text-key", nargs="+", default=(), metavar="KEY", help=f"in a region's object, {TEXT_KEY}")
    return run_command("data_prep.llava", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    counts = Tally(args.strict)
    images = OwnImages(args.images, args.out, args.image_prefix, args.stored_pixels)
    if args.chats:
        if args.question or args.text_key:
            raise ValueError("--chats takes conversations whole; leave --question and --text-key out")
        write_chats(args, args.json, chats(args.json, images, counts, args.first_region), counts, args.box_format)
        return
    found = regions(args.json, images, counts, args.first_region, args.question, args.text_key)
    write_found(args, args.json, found, counts, args.box_format)


if __name__ == "__main__":
    sys.exit(main())
