"""What converters of own conversations share: whole ones with `--chats`, not only what they say of single regions."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.box_formats import BoxReader
from data_prep.converter import write
from data_prep.counts import BadEntry, Tally, tell
from data_prep.polygons import mask_box, turn
from dynrefer.data.chats import Chat, Turn, named_regions
from dynrefer.images import read_orientation
from dynrefer.mentions import NUMBERED

PICTURE = re.compile(r"\s*<(?:image|video)>\s*")  # where the picture stands in a question: it always comes first
NOT_NAMED = "answers left out: they name a region that no question does, or one that has no place"


@dataclass
class FoundChat:
    """A conversation as a converter finds it. regions: (box as it stands or None, mask or None) of each; turns: with
    <region0> for the first of them, in answers too."""

    where: str
    id: str
    image: str
    image_hw: tuple[int, int]
    regions: Sequence[tuple[Any, Any]]
    turns: Sequence[Turn]


def add_chats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chats",
        action="store_true",
        help="write whole conversations, whose questions may name any number of regions, instead of captions",
    )


def write_chats(
    args: argparse.Namespace, file: Path, found: Iterable[FoundChat], tally: Tally, box_format: str | None
) -> None:
    """Reads the boxes, writes the conversations and prints what was counted. The file appears whole or not at all."""
    if not args.out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--out {args.out}: conversations go into a name that ends with .jsonl or .jsonl.gz")
    common = {"source": args.source or file.name, "licence": args.licence, "split": args.split}
    name = args.name or file.name.split(".")[0]

    def chats() -> Iterator[Chat]:
        for chat, places in placed(found, BoxReader(str(file), box_format, tally), tally):
            with tally.entries("conversations"):
                image_hw, orientation = chat.image_hw, 1
                if args.stored_pixels:
                    orientation = read_orientation(args.out.absolute().parent / chat.image)
                if orientation > 1:
                    turned = {
                        k: turn(box, mask, orientation, chat.image_hw) for k, (box, mask) in sorted(places.items())
                    }
                    places = {k: (box, mask) for k, (box, mask, _) in turned.items()}
                    image_hw = chat.image_hw[::-1] if orientation > 4 else chat.image_hw
                kept = [t for t in chat.turns if places.keys() >= set(map(int, NUMBERED.findall(t.question)))]
                named, turns = named_regions(kept)
                tally[NOT_NAMED] += len(chat.turns) - len(turns)
                if not turns:
                    continue
                record = {
                    "id": f"{name}-{chat.id}",
                    "image": chat.image,
                    "image_hw": list(image_hw),
                    "regions": [{"box": list(places[k][0]), "mask": places[k][1]} for k in named],
                    "turns": [vars(t) for t in turns],
                }
                made = Chat.from_dict({**record, **common}, chat.where)
                tally["conversations"] += 1
                tally["questions"] += len(turns)
                tally["regions"] += len(named)
                tally["conversations about whole pictures"] += not named
                yield made

    write(args.out, chats(), tally)
    tell(args.out, tally.told())


def placed(
    found: Iterable[FoundChat], reader: BoxReader, tally: Tally
) -> Iterator[tuple[FoundChat, dict[int, tuple[Any, Any]]]]:
    """Each conversation with the places, xyxy box and mask, of those of its regions that have one."""

    def rows() -> Iterator[tuple]:
        for chat in found:
            for number, (box, _) in enumerate(chat.regions):
                yield box, chat.image_hw, f"{chat.where}, region {number}", (chat, number)
            yield None, chat.image_hw, chat.where, (chat, None)

    places: dict[int, tuple[Any, Any]] = {}
    for box, (chat, number) in reader.read(rows()):
        if number is None:
            yield chat, places
            places = {}
            continue
        mask = chat.regions[number][1]
        with tally.entries("regions"):
            if box is None and mask is None:
                raise BadEntry(f"{chat.where}, region {number}: neither a box nor a mask", "neither a box nor a mask")
            box = mask_box(mask, chat.image_hw, chat.where) if box is None else box
            if box is None:
                tally.leave_out("masks", "nothing of them in the image", chat.where)
            else:
                places[number] = box, mask
