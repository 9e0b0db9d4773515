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

import numpy as np
from PIL import Image

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords
from dynrefer.errors import run_command
from dynrefer.files import atomic_path
from dynrefer.images import open_image
from dynrefer.pages import outline, picture_uri, text
from dynrefer.views import crop_views

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
    page = PAGE.format(
        title=text(records.path),
        style=STYLE,
        facts="".join(f"<span>{text(name)} <b>{text(value)}</b></span>" for name, value in facts.items()),
        cards="\n".join(_card(records.root / region.image, region) for region in regions),
    )
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


def _card(path: Path, region: Region) -> str:
    notes: list[str] = []
    try:
        image = open_image(path)
    except ValueError as error:
        image = None
        notes.append(str(error))
    pictures = '<div class="picture none">no picture</div>'
    if image is not None:
        if image.shape[:2] != region.image_hw:
            notes.append(f"the record says image_hw {region.image_hw}, the image has {image.shape[:2]}")
        pictures = _pictures(image, region, notes)
    height, width = (round(region.box[k + 2] - region.box[k], 1) for k in (1, 0))
    box = ", ".join(f"{side:g}" for side in np.round(region.box, 1))
    facts = {
        "box": f"{box} ({width:g} × {height:g})",
        "image": f"{region.image} ({region.image_hw[1]} × {region.image_hw[0]})",
        "source": region.source,
        "split": region.split,
        "licence": region.licence,
    }
    rows = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items() if value)
    category = f'<span class="category">{text(region.category)}</span>' if region.category is not None else ""
    problems = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    return (
        f'<article>{pictures}<div class="words"><header>{category}<code>{text(region.id)}</code></header>{problems}'
        f'{_captions(region.captions)}{_words(region)}<dl class="facts">{rows}</dl></div></article>'
    )


def _pictures(image: np.ndarray, region: Region, notes: list[str]) -> str:
    """The image with everything drawn on it, and the views as a model gets them."""
    height, width = region.image_hw
    mask = ""
    try:
        if (pixels := region.to_mask()) is not None:
            mask = f'<img class="mask" alt="" src="{_mask_uri(pixels)}">'
    except ValueError as error:
        notes.append(f"mask: {error}")
    scale = np.array(image.shape[1::-1] * 2) / (width, height, width, height)
    views, cropped, inner = crop_views(image, np.array([region.box]) * scale, np.array([SCALES]), VIEW_PIXELS)
    drawn, cells = "", ""
    for t, view, place, box in zip(SCALES, views[0], cropped[0], inner[0], strict=True):
        region_box = outline(box, (VIEW_PIXELS, VIEW_PIXELS), "region") if t else ""
        picture = f'<img alt="" src="{_jpeg_uri(view.transpose(1, 2, 0))}">'
        cells += f"<figure><div>{picture}{region_box}</div><figcaption>t = {t:g}</figcaption></figure>"
        drawn += outline(place, image.shape[:2], "view", f"t = {t:g}") if 0 < t < 1 else ""
    drawn += outline(region.box, region.image_hw, "region")
    return (
        f'<div class="picture"><div style="--aspect:{image.shape[1] / image.shape[0]:.4f}">'
        f'<img alt="" src="{_jpeg_uri(_shrunk(image))}">{mask}{drawn}</div></div><div class="views">{cells}</div>'
    )


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
    padded = np.pad(inside, 2)
    core = inside.copy()
    rows, columns = inside.shape
    for down, right in ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)):
        core &= padded[down : down + rows, right : right + columns]
    levels = np.where(core, 1, np.where(inside, 2, 0)).astype(np.uint8)
    result = Image.fromarray(levels).convert("P")
    result.putpalette([0, 0, 0, *MASK_COLOUR, *MASK_COLOUR])
    return picture_uri(result, "png", transparency=bytes([0, 84, 255]))


def _captions(captions: Sequence[str]) -> str:
    if not captions:
        return ""
    items = "".join(f"<li>{text(caption)}</li>" for caption in captions[:MAX_CAPTIONS])
    more = len(captions) - MAX_CAPTIONS
    return f"<ul>{items}</ul>" + (f'<p class="more">and {more} more</p>' if more > 0 else "")


def _words(region: Region) -> str:
    has = [name for name, value in region.attributes.items() if value == 1]
    has_not = [name for name, value in region.attributes.items() if value == -1]
    rows = [("tags", region.tags or (), ""), ("has", has, "has"), ("has not", has_not, "not")]
    lines = "".join(f"<dt>{name}</dt><dd>{_chips(words, kind)}</dd>" for name, words, kind in rows if words)
    if region.tags == ():
        lines = '<dt>tags</dt><dd class="none">none is true</dd>' + lines
    return f'<dl class="chips">{lines}</dl>' if lines else ""


def _chips(words: Sequence[str], kind: str) -> str:
    chips = "".join(f'<span class="chip {kind}">{text(word)}</span>' for word in words[:MAX_WORDS])
    more = len(words) - MAX_WORDS
    return chips + (f'<span class="more">and {more:,} more</span>' if more > 0 else "")


# --- the page ------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><header class="top"><h1>{title}</h1><p>{facts}</p>
<p class="legend"><span><i class="key region"></i>region</span><span><i class="key mask"></i>mask</span>
<span><i class="key view"></i>view at t = 0.4</span><span>below: views as a model gets them, squared</span></p></header>
<main>{cards}</main></body></html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1c2027; --soft: #666f7d; --line: #e2e6eb;
  --chip: #edf0f4; --has: #157a4b; --has-bg: #dcf3e7; --note: #9b3b12; --note-bg: #fdebdd; --box: #ff2f68;
  --mask: #ffb000; }
@media (prefers-color-scheme: dark) { :root { --page: #13161b; --card: #1b1f26; --ink: #e7eaef; --soft: #98a2b1;
  --line: #2c323c; --chip: #2a303a; --has: #7fdcb0; --has-bg: #17372a; --note: #ffb48a; --note-bg: #43260f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.top, main { max-width: 1320px; margin: 0 auto; padding: 0 24px; }
.top { padding-top: 32px; }
h1 { font-size: 24px; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 4px; overflow-wrap: anywhere; }
.top p { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 0; color: var(--soft); font-size: 13.5px; }
.top b { color: var(--ink); font-weight: 600; }
.top .legend { margin: 8px 0 20px; align-items: center; }
.key { display: inline-block; width: 15px; height: 11px; margin-right: 6px; vertical-align: -1px; border-radius: 2px; }
.key.region { border: 2px solid var(--box); }
.key.mask { background: #ffb00060; border: 1.5px solid var(--mask); }
.key.view { border: 1.5px dashed var(--soft); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); gap: 18px;
  padding-bottom: 48px; }
article { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; overflow: hidden;  box-shadow: 0 1px 2px #0000000a; }
.picture { background: #0c0e12; height: 300px; display: flex; align-items: center; justify-content: center;
  container-type: size; }
.picture.none { color: #98a2b1; }
.picture > div { position: relative; flex: none; width: min(100cqw, 100cqh * var(--aspect));
  aspect-ratio: var(--aspect); }
.picture img { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture i, figure i { position: absolute; }
.picture i.region { border: 2.5px solid var(--box); box-shadow: 0 0 0 1px #fffb, inset 0 0 0 1px #fffb; }
.picture i.view { border: 1.5px dashed #fff; filter: drop-shadow(0 0 1px #000); }
i.view small { position: absolute; left: 0; top: 0; font: 10px/1 system-ui, sans-serif; padding: 2px 4px;
  background: #000a; color: #fff; }
.views { display: grid; grid-template-columns: repeat(3, 1fr); gap: 2px; background: #0c0e12; padding-top: 2px; }
figure { margin: 0; position: relative; }
figure > div { position: relative; aspect-ratio: 1; }
figure img { position: absolute; inset: 0; width: 100%; height: 100%; }
figure i.region { border: 2px solid var(--box); box-shadow: 0 0 0 .5px #fff9; }
figcaption { position: absolute; left: 6px; bottom: 6px; font-size: 11px; line-height: 1; padding: 3px 6px;
  border-radius: 9px; background: #000a; color: #fff; font-variant-numeric: tabular-nums; }
.words { padding: 12px 16px 12px; }
.words header { display: flex; align-items: baseline; justify-content: space-between; gap: 12px; }
.category { font-weight: 650; font-size: 17px; overflow-wrap: anywhere; }
code { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--soft); overflow-wrap: anywhere; }
ul { margin: 6px 0 8px; padding: 0; list-style: none; }
li { overflow-wrap: anywhere; padding: 2px 0; line-height: 1.4; }
li + li { border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 10px; margin: 8px 0 4px; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.chip { display: inline-block; max-width: 100%; border-radius: 6px; padding: 0 7px; margin: 0 4px 4px 0;
  font-size: 13px;  background: var(--chip); overflow-wrap: anywhere; }
.chip.has { background: var(--has-bg); color: var(--has); }
.chip.not { background: none; border: 1px solid var(--line); color: var(--soft); text-decoration: line-through; }
.more, .none { color: var(--soft); font-size: 13px; margin: 0; }
.note { margin: 8px 0; padding: 6px 10px; border-radius: 8px; font-size: 13px; background: var(--note-bg);
  color: var(--note); overflow-wrap: anywhere; }
.words { display: flex; flex-direction: column; flex: 1; }
dl.facts { font-size: 12px; color: var(--soft); border-top: 1px solid var(--line); padding-top: 8px; margin-top: auto;
  row-gap: 1px; }
@media print { article { break-inside: avoid; } }
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.show", description=__doc__.splitlines()[0])
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
