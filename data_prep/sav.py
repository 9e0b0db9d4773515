r"""SA-V (Segment Anything Video: masklets, masks that follow a thing through a video) -> clip file.

    python -m data_prep.sav --masklets sav_train --videos sav_train --split train --out data/sav/train.jsonl
    python -m data_prep.sav --masks sav_val/Annotations_6fps --videos sav_val/JPEGImages_24fps --split val \
        --out data/sav/val.jsonl

From ai.meta.com/datasets/segment-anything-video-downloads, CC BY 4.0. The training set comes as archives of
sav_000/sav_000001.mp4 with sav_000001_manual.json and sav_000001_auto.json beside it; val and test as frames,
JPEGImages_24fps/VIDEO/00000.jpg, with a PNG a mask, Annotations_6fps/VIDEO/000/00000.png. Videos have 24 frames a
second, of which every fourth is annotated.

One record is one masklet: run lengths by frame, null where an annotated frame does not show it. It has no caption and
no category: SA-V says none. --kinds says which masklets of the training set to take. The prompt frame is the first with
the masklet, and the clip goes to the last. PUBLISHED holds the counts of the whole splits.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.counts import Tally, check_counts
from data_prep.video_converter import Videos, finish, mask_place, read_mask_picture, rle_place, video_arguments, write
from dynrefer.boxes import check_image_hw
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.json_files import read_object
from dynrefer.errors import run_command
from dynrefer.videos import open_video

SOURCE = "sa-v"
LICENCE = "CC BY 4.0 (Segment Anything Video)"
STEP = 4  # frames from one that is annotated to the next
FRAME_RATE = 24.0
KINDS = ("manual", "auto")
PUBLISHED = {
    "train": {"videos": 50583, "manual masklets": 190316, "auto masklets": 451720},
    "val": {"videos": 155, "masklets": 293},
    "test": {"videos": 150, "masklets": 278},
}


def clips_of_json(
    folder: Path, kinds: tuple[str, ...], videos: Videos, split: str, tally: Tally
) -> Iterator[ClipRegion]:
    """Records of VIDEO_manual.json and VIDEO_auto.json files below a folder, in the order of their names."""
    files = sorted(file for kind in kinds for file in folder.rglob(f"*_{kind}.json"))
    if not files:
        raise ValueError(f"--masklets {folder}: no file named VIDEO_{'.json, VIDEO_'.join(kinds)}.json in it")
    names = {path.stem: path.relative_to(videos.folder).as_posix() for path in videos.folder.rglob("*.mp4")}
    seen: set[str] = set()
    for file in files:
        kind = file.stem.rpartition("_")[2]
        video = read_object(file)
        try:
            vid, num_frames = str(video["video_id"]), int(video["video_frame_count"])
            frame_hw = check_image_hw((int(video["video_height"]), int(video["video_width"])))
            masklets, ids = video["masklet"], video["masklet_id"]
            if len(masklets) != -(-num_frames // STEP) or any(len(masks) != len(ids) for masks in masklets):
                raise ValueError(
                    f"{len(masklets)} annotated frames of {len(ids)} masklets, but {num_frames} frames, every {STEP}th "
                    "annotated"
                )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{file}: not masklets of SA-V ({type(error).__name__}: {error})") from error
        if vid not in names:
            raise ValueError(f"{file}: video {vid}.mp4 is not in {videos.folder}; is it the folder of this dataset?")
        tally["videos"] += vid not in seen
        seen.add(vid)
        videos.check(names[vid], num_frames, frame_hw, str(file))
        for k, masklet_id in enumerate(ids):
            tally[f"{kind} masklets"] += 1
            places = {
                STEP * row: rle_place(masks[k], frame_hw, f"{file}, masklet {masklet_id}")
                for row, masks in enumerate(masklets)
            }
            name = f"sav-{split}-{vid}-{kind}-{masklet_id}"
            yield from _record(name, videos.find(names[vid], str(file)), num_frames, frame_hw, places, split, tally)


def clips_of_pictures(folder: Path, videos: Videos, split: str, tally: Tally) -> Iterator[ClipRegion]:
    """Records of VIDEO/MASKLET/00000.png files in a folder, in the order of their names."""
    masklets = sorted(path for path in folder.glob("*/*") if path.is_dir())
    if not masklets:
        raise ValueError(f"--masks {folder}: no VIDEO/MASKLET/00000.png in it; name Annotations_6fps")
    tally["videos"] = len({path.parent for path in masklets})
    for path in masklets:
        vid = path.parent.name
        file = videos.find(vid, str(path))
        video = open_video(videos.folder / vid)
        position = {Path(name).stem: index for index, name in enumerate(video.names)}
        tally["masklets"] += 1
        places: dict[int, FrameRegion | None] = {}
        for picture in sorted(path.glob("*.png")):
            if picture.stem not in position:
                raise ValueError(f"{picture}: there is no frame of this name in {video.path}")
            places[position[picture.stem]] = mask_place(read_mask_picture(picture, video.frame_hw) != 0)
        name = f"sav-{split}-{vid}-{path.name}"
        yield from _record(name, file, video.num_frames, video.frame_hw, places, split, tally)


def _record(
    name: str,
    video: str,
    num_frames: int,
    frame_hw: tuple[int, int],
    places: dict[int, FrameRegion | None],
    split: str,
    tally: Tally,
) -> Iterator[ClipRegion]:
    shown = [index for index, at in places.items() if at is not None]
    if not shown:
        tally.leave_out("regions", "a masklet without a pixel", name)
        return
    first, last = min(shown), max(shown)
    yield ClipRegion(
        id=name,
        video=video,
        num_frames=num_frames,
        frame_hw=frame_hw,
        prompt_frame=first,
        frames={index: at for index, at in sorted(places.items()) if first <= index <= last},
        end_frame=last + 1,
        frame_rate=FRAME_RATE,
        source=SOURCE,
        licence=LICENCE,
        split=split,
    )


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("sav", __doc__.splitlines()[0], "folder of the .mp4 files, or JPEGImages_24fps")
    parser.add_argument("--split", required=True, choices=PUBLISHED)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--masklets", type=Path, help="folder of VIDEO_manual.json and VIDEO_auto.json")
    kind.add_argument("--masks", type=Path, help="folder Annotations_6fps")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of --masklets (default: both)")
    parser.add_argument("--subset", action="store_true", help="knowingly a part: counts may differ")
    return run_command("data_prep.sav", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)
    published = PUBLISHED[args.split]
    if args.masklets:
        found = clips_of_json(args.masklets, tuple(args.kinds), videos, args.split, tally)
        published = {key: n for key, n in published.items() if key.split()[0] in (*args.kinds, "videos", "masklets")}
    else:
        found = clips_of_pictures(args.masks, videos, args.split, tally)

    def checked() -> Iterator[ClipRegion]:
        yield from found
        check_counts(tally, published, f"SA-V {args.split}", args.subset)

    write(args.out, checked(), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
