"""Draws pictures of these pages: scenes of the embedded world, each object with what a model says of it.

    python docs/picture.py --model runs/quickstart --scenes 9 45 53 --out docs/quickstart.png
    python docs/picture.py --model runs/regionspot/spot --records data/regionspot/test.jsonl --scenes 9 \
        --out docs/regionspot.png attention=true

key=value: an option of the model. What is said is the model's own, mistakes included.
"""

from pathlib import Path

from PIL import Image

import dynrefer
from dynrefer.data.record_files import open_records
from dynrefer.errors import Parser
from dynrefer.models.options import make_options, parse_options

GAP = 24  # pixels between the scenes


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart")
    parser.add_argument("--records", type=Path, default=Path("data/world/test.jsonl"))
    parser.add_argument("--scenes", type=int, nargs="+", default=[9, 45, 53], help="numbers in the pictures' names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the model")
    args = parser.parse_args()
    model = dynrefer.load(args.model, device="cpu")
    options = make_options(model.Options, parse_options(model.Options, args.options))
    predictor = dynrefer.RegionPredictor(model)
    columns = []
    for number in args.scenes:
        regions = [region for region in open_records(args.records) if region.image.endswith(f"-{number:07}.png")]
        if not regions:
            parser.error(f"--scenes {number}: {args.records} has no picture with this number")
        path = args.records.parent / regions[0].image
        results = predictor(path, [region.box for region in regions], options=options)
        columns.append(dynrefer.draw_results(path, results))
    size = sum(part.width + GAP for part in columns) + GAP, max(part.height for part in columns) + GAP
    picture = Image.new("RGB", size, "white")
    for index, part in enumerate(columns):
        picture.paste(part, (GAP + index * (part.width + GAP), GAP))
    picture.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
