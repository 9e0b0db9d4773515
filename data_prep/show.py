"""Draws samples of a record file into one HTML page: boxes, masks, views and texts, to see whether the data are right.

    python -m data_prep.show data/coco/val.jsonl --out page.html
    python -m data_prep.show data/vg/train --out page.html --num 60 --seed 3 --category dog --split train
    python -m data_prep.show data/vg/train.jsonl --out page.html --ids vg-2407890 vg-2407891

The page holds its pictures and needs no server and no network. Each card: the image with the region's box (solid), its
mask (tinted) and the views (dashed); below it the views as a model gets them, squared; then what the record says. What
cannot be drawn is said on its card. Samples are drawn at random from the records that the filters leave, in the file's
order; the same seed gives the same page.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path
from dynrefer.images import open_image
from dynrefer.pages import inset, picture_uri, render
from dynrefer.paint import outline
from dynrefer.views import crop_views

PAGE = Path(__file__).with_name("show_page") / "page.html"
SCALES = (0.0, 0.4, 1.0)  # of the views that are shown
PICTURE_PIXELS = 720  # longer side of an embedded picture
VIEW_PIXELS = 168
MAX_CAPTIONS = 6  # of a card, and of words of a kind; the others are counted
MAX_WORDS = 24
MASK_COLOUR = (255, 176, 0)


def show(
    records: RegionRecords,
    path: str | Path,
    *,
    num: int = 24,
    seed: int = 0,
    category: str | None = None,
    split: str | None = None,
    ids: Sequence[str] = (),
) -> list[str]:
    """Writes the page and returns the ids that are on it. ValueError where the filters leave nothing, and for an id
    that no record has."""
    if num < 1:
        raise ValueError(f"--num {num}: expected 1 or more")
    found = _chosen(records, category, split, set(ids))
    drawn = found
    if len(found) > num and not ids:
        drawn = sorted(np.random.default_rng(seed).choice(found, num, replace=False).tolist())
    regions = [region for _, region in records.fetch(drawn)]
    filters = {"category": category, "split": split}
    facts = {
        "records": f"{len(records):,}",
        **{name: value for name, value in filters.items() if value is not None},
        **({"left by the filters": f"{len(found):,}"} if len(found) < len(records) else {}),
        "shown": f"{len(drawn):,}",
        **({"seed": seed} if len(drawn) < len(found) else {}),
    }
    cards = [_card(records.root / region.image, region) for region in regions]
    page = render(PAGE, title=str(records.path), facts=facts, cards=cards)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return [region.id for region in regions]


def _chosen(records: RegionRecords, category: str | None, split: str | None, ids: set[str]) -> Sequence[int]:
    """Indices of the records that the filters leave."""
    if category is None and split is None and not ids:
        return range(len(records))
    found, missing = [], set(ids)
    names: tuple[set, set] = set(), set()
    for index, region in enumerate(records):
        names[0].add(region.category)
        names[1].add(region.split)
        fits = category in (None, region.category) and split in (None, region.split)
        if fits and (not ids or region.id in ids):
            found.append(index)
            missing.discard(region.id)
    if missing:
        raise ValueError(f"--ids: {records.path} has no record {sorted(missing)[0]!r} that the other filters leave")
    if not found:
        known = [sorted(map(str, kind - {None}))[:20] for kind in names]
        raise ValueError(
            f"{records.path}: no record has category {category!r} and split {split!r}; among its categories are "
            f"{known[0]}, its splits are {known[1]}"
        )
    return found


# --- a card --------------------------------------------------------------------------------------------------------


def _card(path: Path, region: Region) -> dict[str, Any]:
    """What page.html shows of a region; notes: what is wrong with it."""
    notes: list[str] = []
    try:
        image = open_image(path)
    except ValueError as error:
        image = None
        notes.append(str(error))
    picture = None
    if image is not None:
        if image.shape[:2] != region.image_hw:
            notes.append(f"the record says image_hw {region.image_hw}, the image has {image.shape[:2]}")
        picture = _picture(image, region, notes)
    height, width = (round(region.box[k + 2] - region.box[k], 1) for k in (1, 0))
    box = ", ".join(f"{side:g}" for side in np.round(region.box, 1))
    facts = {
        "box": f"{box} ({width:g} × {height:g})",
        "image": f"{region.image} ({region.image_hw[1]} × {region.image_hw[0]})",
        "source": region.source,
        "split": region.split,
        "licence": region.licence,
    }
    return {
        "id": region.id,
        "category": region.category,
        "notes": notes,
        "picture": picture,
        "box": region.box,
        "image_hw": region.image_hw,
        "captions": region.captions[:MAX_CAPTIONS],
        "more_captions": len(region.captions) - MAX_CAPTIONS,
        "no_tags": region.tags == (),
        "words": _words(region),
        "facts": {name: value for name, value in facts.items() if value},
    }


def _picture(image: np.ndarray, region: Region, notes: list[str]) -> dict[str, Any]:
    """The image with its mask, and the views as a model gets them."""
    height, width = region.image_hw
    mask_uri = None
    try:
        if (pixels := region.to_mask()) is not None:
            mask_uri = _mask_uri(pixels)
    except ValueError as error:
        notes.append(f"mask: {error}")
    scale = np.array(image.shape[1::-1] * 2) / (width, height, width, height)
    pixels, view_boxes, region_boxes = crop_views(
        image, np.array([region.box]) * scale, np.array([SCALES]), VIEW_PIXELS
    )
    views = [
        {
            "t": t,
            "uri": _jpeg_uri(view.transpose(1, 2, 0)),
            "inset": inset(view_box, image.shape[:2]),
            "region_inset": inset(region_box, (VIEW_PIXELS, VIEW_PIXELS)) if t else None,
        }
        for t, view, view_box, region_box in zip(SCALES, pixels[0], view_boxes[0], region_boxes[0], strict=True)
    ]
    aspect = image.shape[1] / image.shape[0]
    return {"uri": _jpeg_uri(_shrunk(image)), "aspect": aspect, "mask_uri": mask_uri, "views": views}


def _shrunk(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _jpeg_uri(pixels: np.ndarray) -> str:
    return picture_uri(Image.fromarray(np.ascontiguousarray(pixels)))


def _mask_uri(mask: np.ndarray) -> str:
    """A mask (H, W) as a picture to lay over the image: tinted, with an outline."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.BOX)
    inside = np.asarray(picture) > 127
    levels = inside.astype(np.uint8) + outline(inside, 2, inside=True)  # 1 inside, 2 on the line
    result = Image.fromarray(levels).convert("P")
    result.putpalette([0, 0, 0, *MASK_COLOUR, *MASK_COLOUR])
    return picture_uri(result, "png", transparency=bytes([0, 84, 255]))


def _words(region: Region) -> list[dict[str, Any]]:
    """Lines of words, of which the first MAX_WORDS are shown."""
    has = [name for name, value in region.attributes.items() if value == 1]
    has_not = [name for name, value in region.attributes.items() if value == -1]
    lines = [("tags", region.tags or (), ""), ("has", has, "has"), ("has not", has_not, "not")]
    return [
        {"name": name, "words": words[:MAX_WORDS], "kind": kind, "more": len(words) - MAX_WORDS}
        for name, words, kind in lines
        if words
    ]


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.show", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="record file: .jsonl, .jsonl.gz, .parquet, .arrow or an Arrow folder")
    parser.add_argument("--out", type=Path, required=True, help="the page, an .html file")
    parser.add_argument("--num", type=int, default=24, help="how many samples (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (default %(default)s)")
    parser.add_argument("--category", help="only records of this category")
    parser.add_argument("--split", help="only records of this split")
    parser.add_argument("--ids", nargs="+", default=(), metavar="ID", help="exactly these records")
    return run_command("data_prep.show", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    options = {name: getattr(args, name) for name in ("num", "seed", "category", "split", "ids")}
    drawn = show(open_records(args.file), args.out, **options)
    print(f"{len(drawn)} regions -> {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main())
