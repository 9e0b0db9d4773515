r"""Folders of COCO JSON, as Roboflow and ODinW have them -> records, a folder each.

    python -m data_prep.coco_folders odinw/Aquarium odinw/PascalVOC --split test --out data/odinw
    python -m data_prep.coco_folders Aerial=odinw/AerialMaritimeDrone/large --split valid --out data/odinw

Where the files come from: ODinW (github.com/microsoft/GLIP, odinw_35) and exports of Roboflow. A folder holds
_annotations.coco.json beside its pictures, or such folders as train, valid and test, also further down: --split says
which. ODinW's annotations_without_background.json are read first, as published numbers come from them. A JSON file may
stand for its folder. NAME=FOLDER names a set; its folder's name is taken otherwise.

What comes out: OUT/NAME/SPLIT.jsonl with its categories.txt, by `python -m data_prep.coco --dataset own`, and beside it
the JSON itself as SPLIT.json: it has the pictures without an object, and the crowds. `eval.folders` scores them.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep import coco
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path

FILES = ("annotations_without_background.json", "new_annotations_without_background.json", "_annotations.coco.json")


def sets_of(folders: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name, folder or file) of what the command line names; ValueError for one that is not there, or a name twice."""
    names: dict[str, Path] = {}
    for text in folders:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        name = name if equals else path.absolute().name
        if not path.exists():
            raise ValueError(f"{path}: no such folder; name one that holds {FILES[-1]}, or NAME=FOLDER")
        if name in names:
            raise ValueError(f"{path}: {names[name]} is called {name!r} too; write NAME=FOLDER for one of them")
        names[name] = path
        yield name, path


def annotations_of(path: Path, split: str) -> Path:
    """The JSON of a set: the file itself, one in the folder, one in its folder `split`, or the only one in such a
    folder further down. ValueError where there is none or are several."""
    if path.is_file():
        return path
    for folder in (path, path / split):
        if found := _in_folder(folder):
            return found
    below = sorted(folder for folder in path.rglob(split) if folder.is_dir() and _in_folder(folder))
    if len(below) == 1:
        return _in_folder(below[0])
    if below:
        raise ValueError(f"{path}: several sets, {', '.join(map(str, below))}; name them apart, as NAME=FOLDER")
    others = sorted({file.parent.name for name in FILES for file in path.rglob(name)})
    has = f"it has {', '.join(others)}" if others else f"it has none; expected {FILES[-1]} beside the pictures"
    raise ValueError(f"{path}: no annotations of split {split!r}; {has}")


def _in_folder(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = Parser(prog="python -m data_prep.coco_folders", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="one set each, or NAME=FOLDER")
    parser.add_argument("--split", default="test", help="test (default), valid or train")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where a folder a set is written")
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as faulty")
    return run_command("data_prep.coco_folders", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    sets = [(name, annotations_of(path, args.split)) for name, path in sets_of(args.folders)]
    for name, path in sets:
        out = args.out / name / f"{args.split}.jsonl"
        words = ["--dataset", "own", "--name", name, "--source", name, "--box-format", "xywh", "--split", args.split]
        words += ["--annotations", path, "--images", path.parent, "--out", out, *["--strict"] * args.strict]
        if status := coco.main([*map(str, words)]):
            return status
        with atomic_path(out.with_suffix(".json")) as temporary:
            shutil.copyfile(path, temporary)
    print(f"{len(sets)} sets -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
