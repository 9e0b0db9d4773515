r"""HC-STVG (persons in scenes of films, each with a sentence and boxes by frame) -> clip file.

    python -m data_prep.hcstvg --split train --annotations train_v2.json --videos hcstvg2 --out data/hcstvg/train.jsonl

From github.com/tzhhhh123/HC-STVG, version 1 and 2: a JSON object of videos, {"55_vfjywN5CN0Y.mp4": {"bbox": [[x, y,
width, height], ...], "st_frame": 268, "img_num": 600, ...}}, with `caption`, `width` and `height` in version 1,
`English` and `img_size` (height, width) in version 2; the videos lie under --videos, also in folders of their own
(version 2 comes in ten). The scenes are films', research use.

One record is one person. The first box belongs to frame `st_frame`, which counts from 1; one follows a frame. The clip
is as long as there are boxes: what the sentence tells. Frames count as in the authors' list of pictures, img_num of 20
seconds; a video file with another number of frames is left out, or, with --resample, its frame of the same time is
taken.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.counts import BadEntry, Tally, check_counts
from data_prep.video_converter import Videos, finish, place, video_arguments, write
from dynrefer.boxes import check_image_hw, to_xyxy
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.json_files import read_pairs
from dynrefer.errors import cut, run_command
from dynrefer.videos import open_video

LICENCE = "Annotations: HC-STVG, research use; videos: films, their owners"
PUBLISHED = {"v1": {"train": 4500, "test": 1160}, "v2": {"train": 10131, "val": 2000}}  # annotations
FORM = "expected bbox (lists of x, y, width, height), st_frame, img_num, a sentence and the frames' size"


def clips(annotations: Path, videos: Videos, split: str, resample: bool, tally: Tally) -> Iterator[ClipRegion]:
    """Records of a file in its order. ValueError for a file of another kind; a faulty entry is left out."""
    places = video_places(videos.folder)
    for name, entry in read_pairs(annotations):
        where = f"{annotations}: {cut(name)}"
        tally["annotations"] += 1
        with tally.entries("annotations"):
            yield _clip(name, entry, places, videos, split, resample, tally, where)


def video_places(folder: Path) -> dict[str, str]:
    """Name of a video -> its path in a folder; those in folders below it too."""
    return {path.name: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.suffix}


def _clip(
    name: str,
    entry: Any,
    places: Mapping[str, str],
    videos: Videos,
    split: str,
    resample: bool,
    tally: Tally,
    where: str,
) -> ClipRegion:
    start, boxes, count, frame_hw, sentence = _entry(entry, where)
    if name not in places:
        raise BadEntry(f"{where}: there is no such video in {videos.folder}", "their video is not there")
    file = videos.find(places[name], where)
    video = open_video(videos.folder / places[name])
    if video.frame_hw != frame_hw:
        raise BadEntry(f"{where}: frames of {frame_hw}, but the video's are {video.frame_hw}", "another size of frames")
    # the pictures of a file may be one more or fewer than its frames: the decoder's last
    step = video.num_frames / count
    if abs(video.num_frames - count) > 1 and not resample:
        raise BadEntry(
            f"{where}: img_num {count}, but the video has {video.num_frames} frames; --resample takes those of the "
            "same time",
            "another number of frames",
        )
    frames: dict[int, FrameRegion | None] = {}
    for offset, box in enumerate(boxes):
        index = start + offset if abs(video.num_frames - count) <= 1 else int((start + offset + 0.5) * step)
        if index < video.num_frames and (at := place(box, frame_hw, tally, f"{where}, frame {index}")) is not None:
            frames.setdefault(index, at)
    if not frames:
        raise BadEntry(f"{where}: no box within the video's frames", "no box in any frame")
    tally["frames of the same time taken"] += abs(video.num_frames - count) > 1
    return ClipRegion(
        id=f"hcstvg-{split}-{name.rpartition('.')[0]}",
        video=file,
        num_frames=video.num_frames,
        frame_hw=frame_hw,
        prompt_frame=min(frames),
        frames=frames,
        end_frame=max(frames) + 1,
        frame_rate=video.frame_rate,
        captions=(sentence,),
        category="person",
        source="hcstvg",
        licence=LICENCE,
        split=split,
    )


def _entry(entry: Any, where: str) -> tuple[int, list, int, tuple[int, int], str]:
    """(first frame from 0 on, boxes as xyxy, number of frames, (height, width), sentence)."""
    try:
        hw = entry["img_size"] if "img_size" in entry else (entry["height"], entry["width"])
        start, boxes, count = entry["st_frame"], entry["bbox"], entry["img_num"]
        sentence = entry.get("English") or entry["caption"]
        good = type(start) is int and start >= 1 and type(count) is int and count >= 1 and isinstance(boxes, list)
        if not good or not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"st_frame {cut(str(start))}, img_num {cut(str(count))}, sentence {cut(str(sentence))!r}")
        frame_hw = check_image_hw(hw)
        return start - 1, to_xyxy(boxes, "xywh", frame_hw).tolist(), count, frame_hw, " ".join(sentence.split())
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {FORM} ({type(error).__name__}: {error})") from error


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("hcstvg", __doc__.splitlines()[0])
    parser.add_argument("--split", required=True, choices=("train", "val", "test"))
    parser.add_argument("--annotations", type=Path, required=True, help="train_v2.json, val_v2.json, train.json ...")
    parser.add_argument("--resample", action="store_true", help="frames by time, where a video has another number")
    parser.add_argument("--subset", action="store_true", help="the file is knowingly a part: counts may differ")
    return run_command("data_prep.hcstvg", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)

    def checked() -> Iterator[ClipRegion]:
        yield from clips(args.annotations, videos, args.split, args.resample, tally)
        known = [counts[args.split] for counts in PUBLISHED.values() if args.split in counts]
        nearest = min(known, key=lambda count: abs(count - tally["annotations"]))
        check_counts(tally, {"annotations": nearest}, f"HC-STVG {args.split}", args.subset)

    write(args.out, checked(), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
