"""BenSMOT (persons in everyday videos, tracked, each with a caption) -> clip file.

    python -m data_prep.bensmot --videos BenSMOT/train --split train --out data/bensmot/train.jsonl

From github.com/Nathan-Li123/SMOTer (BenSMOT.md there says where to download). A sequence is a folder

    dancing_with_child/01Ss_Kfo6ag_0/imgs/001.jpg ...       its frames; numbers may be left out
                                     gt/gt.txt              MOTChallenge: frame, track, x, y, width, height, ...
                                     instance_captions.txt  "woman0: A woman in the red blouse ..."

One record is one track: its boxes by frame (null in frames where it is not), its caption, and as category the kind of
name that the captions give it (woman, man, child). The first caption belongs to the track of the smallest number, and
so on. Where a sequence has more tracks than captions, or fewer, nobody says which belong together: its tracks come
without captions, counted, unless --pair-uneven pairs them in order all the same. Rows marked to be ignored (seventh
number 0) and boxes in frames without a picture are left out and counted. The videos are YouTube's.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.counts import Tally
from data_prep.video_converter import Videos, finish, place, video_arguments, write
from dynrefer.boxes import to_xyxy
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.errors import run_command
from dynrefer.files import read_text
from dynrefer.videos import open_video

SOURCE = "bensmot"
LICENCE = "Annotations: BenSMOT, research use; videos: their YouTube owners"


def clips(videos: Videos, split: str, tally: Tally, pair_uneven: bool = False) -> Iterator[ClipRegion]:
    """Records of all sequences below a folder, in the order of their names."""
    files = sorted(videos.folder.glob("*/*/gt/gt.txt"))
    if not files:
        raise ValueError(f"--videos {videos.folder}: no ACTIVITY/SEQUENCE/gt/gt.txt in it; name BenSMOT/train or /test")
    for file in files:
        tally["sequences"] += 1
        yield from _sequence(file.parents[1], videos, split, tally, pair_uneven)


def _sequence(folder: Path, videos: Videos, split: str, tally: Tally, pair_uneven: bool) -> Iterator[ClipRegion]:
    name = folder.relative_to(videos.folder).as_posix()
    video = open_video(folder / "imgs")
    numbers = {}
    for position, file in enumerate(video.names):
        if not (digits := re.search(r"(\d+)\.\w+$", file)):
            raise ValueError(f"{folder / 'imgs'}: {file}: expected frames named by their number, 001.jpg")
        numbers[int(digits[1])] = position
    tracks = read_tracks(folder / "gt" / "gt.txt", numbers, video.frame_hw, tally)
    captions = read_captions(folder / "instance_captions.txt")
    tally["sequences without captions"] += not captions
    if captions and len(captions) != len(tracks):
        tally["sequences with more tracks than captions, or fewer"] += 1
        captions = captions if pair_uneven else []
    texts = dict(zip(sorted(tracks), captions, strict=False))
    for track, places in sorted(tracks.items()):
        name_of_one, caption = texts.get(track, ("", ""))
        first, last = min(places), max(places)
        yield ClipRegion(
            id=f"bensmot-{split}-{name}-{track}",
            video=videos.find(f"{name}/imgs", name),
            num_frames=video.num_frames,
            frame_hw=video.frame_hw,
            prompt_frame=first,
            frames={position: places.get(position) for position in range(first, last + 1)},
            end_frame=last + 1,
            captions=(caption,) if caption else (),
            category=name_of_one.rstrip("0123456789 _").lower() or None,
            source=SOURCE,
            licence=LICENCE,
            split=split,
        )


def read_tracks(
    path: Path, numbers: dict[int, int], frame_hw: tuple[int, int], tally: Tally
) -> dict[int, dict[int, FrameRegion]]:
    """Track -> frame's position -> place, of a MOTChallenge file. numbers: a frame's number -> its position."""
    tracks: dict[int, dict[int, FrameRegion]] = {}
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        where = f"{path}:{line}"
        try:
            frame, track, *box = (float(number) for number in text.split(",")[:6])
            ignored = float((text.split(",") + ["1"] * 7)[6]) == 0
            if len(box) != 4 or frame != int(frame) or track != int(track):
                raise ValueError("not frame, track, x, y, width, height")
            xyxy = to_xyxy([box], "xywh", frame_hw)[0].tolist()
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{where}: {text.strip()[:60]!r}: expected frame, track, x, y, width, height ({error})"
            ) from None
        if ignored:
            tally["boxes left out: marked to be ignored"] += 1
        elif int(frame) not in numbers:
            tally["boxes left out: no picture of their frame"] += 1
        else:
            places = tracks.setdefault(int(track), {})
            if (position := numbers[int(frame)]) in places:
                tally.leave_out("boxes", "the track has one in this frame already", where)
            elif (at := place(xyxy, frame_hw, tally, where)) is not None:
                places[position] = at
    return {track: places for track, places in tracks.items() if places}


def read_captions(path: Path) -> list[tuple[str, str]]:
    """(name, caption) of "woman0: A woman ..." lines; [] where there is no file."""
    if not path.is_file():
        return []
    captions = []
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        name, colon, caption = text.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{path}:{line}: {text.strip()[:60]!r}: expected 'woman0: caption'")
        captions.append((name.strip(), caption.strip()))
    return captions


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("bensmot", __doc__.splitlines()[0], "BenSMOT/train or BenSMOT/test")
    parser.add_argument("--split", required=True, help="split that the records say (train, test)")
    parser.add_argument("--pair-uneven", action="store_true", help="captions in order, where there are more tracks")
    return run_command("data_prep.bensmot", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)
    write(args.out, clips(videos, args.split, tally, args.pair_uneven), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
