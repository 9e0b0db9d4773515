"""Events of a video with a box in their first frame and a sentence each (JSONL) -> clip file.

    python -m data_prep.video_events --events events.jsonl --videos frames --split train --out data/events/train.jsonl

A line is a video: {"video": "V_1", "annotations": [{"event_id": 1, "frames": ["00000.jpg", ...], "gt": "The man ...",
"box": [[x, y, width, height]]}, ...]}; its frames lie in VIDEOS/V_1. The boxes count in pixels of the first frame of
their event, several boxes are several persons or things that the sentence is about, one record each. The clip goes from
the event's first frame to its last. Frames that are not on disk are counted; an event whose first is missing is left
out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.box_formats import BoxReader
from data_prep.counts import Tally
from data_prep.video_converter import Videos, finish, video_arguments, write
from dynrefer.data.clips import ClipRegion
from dynrefer.errors import run_command
from dynrefer.files import read_jsonl
from dynrefer.videos import open_video


def clips(events: Path, videos: Videos, tally: Tally, **keys: str) -> Iterator[ClipRegion]:
    """Records of a file in its order. keys: source, licence and split of all records."""

    def found() -> Iterator[tuple]:
        for line, entry in read_jsonl(events):
            where = f"{events}:{line}"
            try:
                vid, listed = entry["video"], entry["annotations"]
                path = videos.find(vid, where)
                video = open_video(videos.folder / vid)
                position = {name: index for index, name in enumerate(getattr(video, "names", ()))}
                tally["videos"] += 1
                for event in listed:
                    place, names = f"{where}, event {event['event_id']}", event["frames"]
                    tally["events"] += 1
                    tally["frames that are not on disk"] += sum(name not in position for name in names)
                    if names[0] not in position:
                        tally.leave_out("events", "their first frame, which has the box, is not on disk", place)
                        continue
                    record = {
                        "video": path,
                        "num_frames": video.num_frames,
                        "frame_hw": list(video.frame_hw),
                        "prompt_frame": position[names[0]],
                        "end_frame": 1 + max(position[name] for name in names if name in position),
                        "captions": [event["gt"].strip()],
                        **keys,
                    }
                    for k, box in enumerate(event["box"]):
                        if box is None:
                            raise ValueError(f"{place}: box {k} is null; expected four numbers")
                        yield box, video.frame_hw, place, (place, {**record, "id": f"{vid}-{event['event_id']}-{k}"})
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{where}: expected video and annotations of event_id, frames, gt and box "
                    f"({type(error).__name__}: {error})"
                ) from error

    for box, (where, record) in BoxReader(str(events), "xywh", tally).read(found()):
        yield ClipRegion.from_dict({**record, "frames": {str(record["prompt_frame"]): {"box": list(box)}}}, where)


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("video_events", __doc__.splitlines()[0], "folder of the videos' folders of frames")
    parser.add_argument("--events", type=Path, required=True, help=".jsonl, one video a line")
    parser.add_argument("--split", default="", help="split that the records say")
    parser.add_argument("--source", default="events", help="where the data come from, for the records")
    parser.add_argument("--licence", default="", help="licence that the records say")
    return run_command("data_prep.video_events", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)
    found = clips(args.events, videos, tally, source=args.source, licence=args.licence, split=args.split)
    write(args.out, found, tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
