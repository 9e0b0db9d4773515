"""Draws where Omni-RGPT's guide head sees a region, frame by frame, with what the model answers.

    python docs/motion_picture.py --model runs/motion/main --clips 5 12 --out docs/omni_motion.png

A row is one clip of the embedded world in motion: its frames, the marked region outlined in the first, below them the
same with the heat map. The answers are the model's own, mistakes included.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import dynrefer
from data_prep import moving_world
from dynrefer.data.example import Example
from dynrefer.errors import Parser
from dynrefer.paint import colour_of, outline, paint_heat, spread, tint

SIDE, GAP, TEXT = 192, 8, 26  # pixels of a frame, between frames, of a line of text


def strip(model, number: int, split: str) -> Image.Image:
    """A row of the picture: of the clip's object to which most happens, or of its first."""
    drawn = moving_world.clip(number, split)
    hiding = drawn.plan.hiding or (0, "")
    questions = [q for q in moving_world.questions(drawn) if q.movers == (hiding[0],) and q.kind in ("motion", "box")]
    region = moving_world.regions(drawn, "clip")[hiding[0]]
    example = Example("clip", [region], lambda indices, reduce: drawn.frames[list(indices or [0])].copy())
    said = []
    for question in questions:
        options = model.Options(question=question.named({hiding[0]: 0}), heat=True)
        samples = model.processor.samples(example, options, example.generators(0, number), False)
        (result,) = model.predict(model.processor.collate(samples), options)
        said.append(f"{question.text.format('the region')}  {result.caption}")
    numbers = result.extra["frames"]
    width = len(numbers) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, 2 * (SIDE + GAP) + GAP + TEXT * len(said)), "white")
    for column, (t, grid) in enumerate(zip(numbers, result.extra["heat"], strict=True)):
        frame = np.asarray(Image.fromarray(drawn.frames[t]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)).copy()
        heat = frame.copy()
        paint_heat(heat, np.clip(spread(np.array(grid), (SIDE, SIDE)), 0, 1))
        if column == 0:
            mask = Image.fromarray(region.to_mask(t)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            tint(frame, outline(np.asarray(mask), 2), colour_of(0), 1)
        for row, pixels in enumerate((frame, heat)):
            sheet.paste(Image.fromarray(pixels), (GAP + column * (SIDE + GAP), GAP + row * (SIDE + GAP)))
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(said):
        pen.text((GAP, 2 * (SIDE + GAP) + GAP + line * TEXT), text, fill="black", font_size=16)
    return sheet


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/motion/main")
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[5, 12], help="numbers of clips, see data_prep.moving_world"
    )
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = dynrefer.load(args.model, device="cpu")
    rows = [strip(model, number, args.split) for number in args.clips]
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        picture.paste(row, (0, sum(other.height for other in rows[:number])))
    picture.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
