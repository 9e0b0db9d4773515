r"""VidSTG (sentences about things in VidOR's videos, with their boxes by frame) -> clip file.

    python -m data_prep.vidstg --split train --annotations train_annotations.json --vidor vidor/training \
        --videos vidor/video --out data/vidstg/train.jsonl

The sentences come from github.com/Guaranteer/VidSTG-Dataset: annotations/{train,val,test}_annotations.json. Videos and
boxes are VidOR's, from xdshang.github.io/docs/vidor.html: a JSON file a video, 1000/5159741010.json (training for
VidSTG's train and val, validation for its test), and 1000/5159741010.mp4 under --videos. VidOR's videos are Flickr's
of YFCC-100M under Creative Commons licences.

One record is one described thing of one annotation: its captions are the declarative sentences whose `target_id` it is,
its clip `temporal_gt` (the end is not part of it), its boxes those of the trajectory in the clip, null where VidOR has
none. The prompt frame is the first with a box. Questions are left out. PUBLISHED holds the sentences of each split.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.counts import Tally, check_counts
from data_prep.video_converter import Videos, finish, place, video_arguments, write
from dynrefer.boxes import check_image_hw
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.json_files import read_items, read_object
from dynrefer.errors import run_command

SOURCE = "vidstg"
LICENCE = "Annotations: VidSTG and VidOR, research use; videos: Flickr, Creative Commons as their owners chose"
PUBLISHED = {
    "train": {"declarative sentences": 36202},
    "val": {"declarative sentences": 3996},
    "test": {"declarative sentences": 4610},
}


def clips(annotations: Path, vidor: Path, videos: Videos, split: str, tally: Tally) -> Iterator[ClipRegion]:
    """Records of a split, video by video, in the order in which the file first names them."""
    files = vidor_files(vidor)
    rows: dict[str, list[tuple[int, dict]]] = {}
    for number, row in enumerate(read_items(annotations, "item")):
        rows.setdefault(_row(row, annotations, number)["vid"], []).append((number, row))
        tally["declarative sentences"] += len(row["captions"])
    for vid, numbered in rows.items():
        where = f"{annotations}: video {vid}"
        if vid not in files:
            raise ValueError(
                f"{where}: there is no {vid}.json in {vidor}; training is for train and val, validation for test"
            )
        yield from _video_clips(vid, numbered, files[vid], videos, split, tally, where)


def vidor_files(folder: Path) -> dict[str, Path]:
    """Video id -> VidOR's annotation file, of all folders below one."""
    if not folder.is_dir():
        raise ValueError(f"--vidor {folder}: no such folder; unpack VidOR's annotations first")
    files = {path.stem: path for path in folder.rglob("*.json")}
    if not files:
        raise ValueError(f"--vidor {folder}: no JSON files in it; expected 1000/5159741010.json and so on")
    return files


def _row(row: Any, path: Path, number: int) -> dict:
    try:
        good = (
            isinstance(row["vid"], str) and isinstance(row["captions"], list) and isinstance(row["temporal_gt"], dict)
        )
        good = good and all(isinstance(caption["description"], str) for caption in row["captions"])
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{path}: entry {number}: expected vid, temporal_gt and captions of description and target_id; is it an "
            "annotations file of VidSTG?"
        )
    return row


def _video_clips(
    vid: str, rows: list[tuple[int, dict]], path: Path, videos: Videos, split: str, tally: Tally, where: str
) -> Iterator[ClipRegion]:
    video = read_object(path)
    try:
        frame_hw = check_image_hw((video["height"], video["width"]))
        num_frames, rate, trajectories = int(video["frame_count"]), float(video["fps"]), video["trajectories"]
        categories = {thing["tid"]: thing["category"] for thing in video["subject/objects"]}
        name = video.get("video_path") or f"{vid}.mp4"
        boxes: dict[int, dict[int, list]] = {}  # trajectory -> frame -> box
        for index, frame in enumerate(trajectories):
            for thing in frame:
                corners = thing["bbox"]
                boxes.setdefault(thing["tid"], {})[index] = [corners[key] for key in ("xmin", "ymin", "xmax", "ymax")]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not an annotation of VidOR ({type(error).__name__}: {error})") from error
    file = videos.find(name, where)
    videos.check(name, num_frames, frame_hw, where)
    tally["videos"] += 1
    for number, row in rows:
        there = f"{where}, entry {number}"
        if (row.get("height"), row.get("width")) != frame_hw:
            raise ValueError(f"{there}: frames of {row.get('height')} x {row.get('width')}, but {path} says {frame_hw}")
        begin, end = (row["temporal_gt"].get(key) for key in ("begin_fid", "end_fid"))
        if type(begin) is not int or type(end) is not int or not 0 <= begin < end <= num_frames:
            raise ValueError(f"{there}: temporal_gt from {begin} to {end}, but {num_frames} frames")
        sentences: dict[int, list[str]] = {}
        for caption in row["captions"]:
            if type(caption.get("target_id")) is not int or caption["target_id"] not in categories:
                raise ValueError(f"{there}: target_id {caption.get('target_id')!r} is not in {path}")
            sentences.setdefault(caption["target_id"], []).append(caption["description"].strip())
        for tid, captions in sentences.items():
            known = boxes.get(tid, {})
            places: dict[int, FrameRegion | None] = {}
            for index in range(begin, end):
                if index not in known:
                    places[index] = None
                elif (at := place(known[index], frame_hw, tally, f"{there}, frame {index}")) is not None:
                    places[index] = at
            first = next((index for index, at in places.items() if at is not None), None)
            if first is None:
                tally.leave_out("regions", "no box in the clip that the sentence is about", f"{there}, target {tid}")
                continue
            yield ClipRegion(
                id=f"vidstg-{split}-{number}-{vid}-{tid}",
                video=file,
                num_frames=num_frames,
                frame_hw=frame_hw,
                prompt_frame=first,
                frames=places,
                end_frame=end,
                frame_rate=rate,
                captions=tuple(text for text in dict.fromkeys(captions) if text),
                category=categories[tid],
                source=SOURCE,
                licence=LICENCE,
                split=split,
            )


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("vidstg", __doc__.splitlines()[0], "VidOR's folder video")
    parser.add_argument("--split", required=True, choices=PUBLISHED)
    parser.add_argument("--annotations", type=Path, required=True, help="SPLIT_annotations.json of VidSTG")
    parser.add_argument(
        "--vidor", type=Path, required=True, help="folder of VidOR's annotations, training or validation"
    )
    parser.add_argument("--subset", action="store_true", help="the file is knowingly a part: counts may differ")
    return run_command("data_prep.vidstg", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)

    def checked() -> Iterator[ClipRegion]:
        yield from clips(args.annotations, args.vidor, videos, args.split, tally)
        check_counts(tally, PUBLISHED[args.split], f"VidSTG {args.split}", args.subset)

    write(args.out, checked(), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
