"""Draws the README's picture: scenes of the embedded world, each object with its box and the caption of a model.

    python docs/picture.py --model runs/quickstart --scenes 9 45 53 --out docs/quickstart.png

The captions are the model's own, mistakes included.
"""

from pathlib import Path

from PIL import Image

import dynrefer
from dynrefer.data.record_files import open_records
from dynrefer.errors import Parser

GAP = 24  # pixels between the scenes


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
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
        path = args.records.parent / regions[0].image
        columns.append(dynrefer.draw_results(path, predictor(path, [region.box for region in regions])))
    size = sum(part.width + GAP for part in columns) + GAP, max(part.height for part in columns) + GAP
    picture = Image.new("RGB", size, "white")
    for index, part in enumerate(columns):
        picture.paste(part, (GAP + index * (part.width + GAP), GAP))
    picture.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
