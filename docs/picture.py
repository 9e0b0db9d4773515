"""Draws the README's picture: scenes of the embedded world, each object with its box and the caption of a model.

    python docs/picture.py --model runs/quickstart --scenes 9 45 53 --out docs/quickstart.png

The captions are the model's own, mistakes included.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import dynrefer
from dynrefer.data.record_files import open_records

COLOURS = ("#e6194b", "#0072ff", "#f58231", "#008a4b", "#911eb4", "#5c4033")
TEXT, LABEL = ImageFont.load_default(24), ImageFont.load_default(19)
SCALE, GAP, LINE, CHIP = 2, 24, 40, 26  # pixels of the picture a pixel of a scene; others in pixels of the picture


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a text that are at most `width` pixels wide in the captions' letters."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if TEXT.getlength(longer) <= width else [*lines, word]
    return lines


def chip(draw: ImageDraw.ImageDraw, x: float, y: float, number: int) -> None:
    """A small filled square with the region's number."""
    draw.rounded_rectangle((x, y, x + CHIP, y + CHIP), 5, fill=COLOURS[number % len(COLOURS)])
    draw.text((x + CHIP / 2, y + CHIP / 2), str(number + 1), "white", LABEL, anchor="mm")


def column(scene: Image.Image, boxes: list, captions: list[str]) -> Image.Image:
    """One scene with its boxes above the captions."""
    width, height = scene.width * SCALE, scene.height * SCALE
    texts = [wrapped(caption, width - CHIP - 14) for caption in captions]
    picture = Image.new("RGB", (width, height + GAP + sum(LINE * len(lines) for lines in texts)), "white")
    picture.paste(scene.resize((width, height), Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(picture)
    y = height + GAP
    for number, (box, lines) in enumerate(zip(boxes, texts, strict=True)):
        corners = [edge * SCALE for edge in box]
        draw.rectangle(corners, outline="white", width=6)
        draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=4)
        chip(draw, corners[0], max(corners[1] - CHIP, 0), number)
        chip(draw, 0, y, number)
        for line in lines:
            draw.text((CHIP + 14, y + CHIP / 2), line, "#222222", TEXT, anchor="lm")
            y += LINE
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart")
    parser.add_argument("--records", type=Path, default=Path("data/world/test.jsonl"))
    parser.add_argument("--scenes", type=int, nargs="+", default=[9, 45, 53], help="numbers in the pictures' names")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    predictor = dynrefer.RegionPredictor(dynrefer.load(args.model, device="cpu"))
    columns = []
    for number in args.scenes:
        regions = [region for region in open_records(args.records) if region.image.endswith(f"-{number:07}.png")]
        if not regions:
            parser.error(f"--scenes {number}: {args.records} has no picture with this number")
        path, boxes = args.records.parent / regions[0].image, [region.box for region in regions]
        columns.append(column(Image.open(path), boxes, [result.caption for result in predictor(path, boxes)]))
    size = sum(part.width + GAP for part in columns) + GAP, max(part.height for part in columns) + 2 * GAP
    picture = Image.new("RGB", size, "white")
    for index, part in enumerate(columns):
        picture.paste(part, (GAP + index * (part.width + GAP), GAP))
    picture.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
