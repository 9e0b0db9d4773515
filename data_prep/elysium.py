r"""ElysiumTrack, one thing of a video with a box in every frame and a short description -> clip file.

    python -m data_prep.elysium --annotations ElysiumTrack-val500.json --split test --videos ElysiumTrack-val500 \
        --out data/elysium/test.jsonl

From huggingface.co/datasets/sty-yyj/ElysiumTrack-1M: JSON lines {"id", "vid", "frames":
["frames/1025983634/000000.jpg", ...], "object_class", "box": [[x1, y1, x2, y2], ...], "object_description",
"frame_size": [width, height]}; boxes are shares of width and height, one a frame of `frames`.

One record is one line: a clip of the folder that its frames lie in, with a box in each, and the description as its
caption. Frames that the line does not name have no place. A box of no extent means that the thing is not in the frame.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data_prep.counts import Tally
from data_prep.video_converter import Videos, finish, place, video_arguments, write
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.errors import run_command
from dynrefer.files import read_jsonl
from dynrefer.videos import VideoFolder, open_video

LICENCE = "Annotations: ElysiumTrack-1M, its makers' terms; videos: WebVid, their owners'"
KEYS = ("id", "frames", "box", "object_description")


def clips(path: Path, videos: Videos, split: str, tally: Tally) -> Iterator[ClipRegion]:
    """Records in the order of the lines."""
    opened: dict[str, VideoFolder] = {}
    for line, entry in read_jsonl(path):
        where = f"{path}:{line}"
        with tally.entries("regions"):
            if not isinstance(entry, dict) or (missing := [key for key in KEYS if not entry.get(key)]):
                lacking = missing[0] if isinstance(entry, dict) else "object"
                raise ValueError(f"{where}: no {lacking}; is it a file of ElysiumTrack?")
            names, boxes = [PurePosixPath(name) for name in entry["frames"]], entry["box"]
            if len(names) != len(boxes) or len({name.parent for name in names}) != 1:
                raise ValueError(f"{where}: {len(names)} frames, {len(boxes)} boxes; expected one a frame of a folder")
            folder = str(names[0].parent)
            file = videos.find(folder, where)
            if folder not in opened:
                video = open_video(videos.folder / folder)
                assert isinstance(video, VideoFolder)
                opened = {folder: video}
            video = opened[folder]
            number = {name: n for n, name in enumerate(video.names)}
            height, width = video.frame_hw
            places: dict[int, FrameRegion | None] = {}
            for name, box in zip(names, boxes, strict=True):
                if name.name not in number:
                    raise ValueError(f"{where}: frame {name} is not there")
                x1, y1, x2, y2 = (float(c) * side for c, side in zip(box, (width, height) * 2, strict=True))
                there = x1 < x2 and y1 < y2
                places[number[name.name]] = place([x1, y1, x2, y2], (height, width), tally, where) if there else None
            first = next((index for index, at in sorted(places.items()) if at is not None), None)
            if first is None:
                tally.leave_out("regions", "no box in any frame", where)
                continue
            yield ClipRegion(
                id=f"elysium-{split}-{entry['id']}",
                video=file,
                num_frames=video.num_frames,
                frame_hw=(height, width),
                prompt_frame=first,
                frames=dict(sorted(places.items())),
                end_frame=max(places) + 1,
                captions=(str(entry["object_description"]).strip(),),
                category=str(entry["object_class"]).strip() or None if entry.get("object_class") else None,
                source="elysium",
                licence=LICENCE,
                split=split,
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = video_arguments("elysium", __doc__.splitlines()[0], "folder that holds `frames`")
    parser.add_argument("--annotations", type=Path, required=True, help="ElysiumTrack's JSON lines")
    parser.add_argument("--split", required=True, help="split that the records say (train, test)")
    return run_command("data_prep.elysium", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    write(args.out, clips(args.annotations, Videos(args.videos, args.out), args.split, tally), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
