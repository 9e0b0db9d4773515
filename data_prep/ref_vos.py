r"""Referring video segmentation (MeViS, Refer-YouTube-VOS: masklets with expressions that name them) -> clip file.

    python -m data_prep.ref_vos --dataset mevis --split train --expressions mevis/train/meta_expressions.json \
        --masks mevis/train/mask_dict.json --videos mevis/train/JPEGImages --out data/mevis/train.jsonl
    python -m data_prep.ref_vos --dataset ref-youtube-vos --split train \
        --expressions rvos/meta_expressions/train/meta_expressions.json --objects rvos/train/meta.json \
        --masks rvos/train/Annotations --videos rvos/train/JPEGImages --out data/ref_youtube_vos/train.jsonl

MeViS (henghuiding.github.io/MeViS): frames, meta_expressions.json and mask_dict.json, the run lengths of every thing in
every frame; train (1,662 videos) and valid_u (50 videos) have masks, valid has none. Refer-YouTube-VOS
(youtube-vos.org/dataset/rvos): frames, expressions, meta.json with the categories, and Annotations/VIDEO/00000.png,
palette pictures whose values are the things' numbers; only train has masks. Both are for research.

One record is one thing: its masks by frame (null where a frame does not show it), and as captions all expressions that
mean it alone. Expressions that mean several things are left out and counted, or with --several make one more record,
of their masks together; those that mean nothing in the video are left out. The prompt frame is the first with the
thing, and the clip goes to the video's last frame.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.counts import Tally, check_counts
from data_prep.video_converter import Videos, finish, mask_place, read_mask_picture, rle_place, video_arguments, write
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.json_files import read_object, read_pairs
from dynrefer.errors import run_command
from dynrefer.masks import to_mask
from dynrefer.videos import VideoFolder

PUBLISHED = {("mevis", "train"): {"videos": 1662}, ("mevis", "valid_u"): {"videos": 50}}
LICENCES = {
    "mevis": "MeViS, research use",
    "ref-youtube-vos": "Refer-YouTube-VOS and YouTube-VOS, research use; videos: their YouTube owners",
}


@dataclass
class Meant:
    """What one or more expressions mean: things of a video. places: frame -> where, as far as masks have been read."""

    vid: str
    video: VideoFolder
    things: tuple[str, ...]
    texts: list[str]
    category: str | None = None
    masks: dict[str, list] = field(default_factory=dict)  # thing -> run lengths by frame
    places: dict[int, FrameRegion | None] = field(default_factory=dict)


def meant_things(expressions: Path, key: str, videos: Videos, several: bool, tally: Tally) -> Iterator[Meant]:
    """What the expressions of a file mean, video by video. key: where they name things, "anno_id" or "obj_id".
    several: also expressions that mean several things together."""
    listed = read_object(expressions).get("videos")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{expressions}: no videos in it; is it meta_expressions.json?")
    for vid, entry in listed.items():
        where = f"{expressions}: video {vid}"
        videos.find(vid, where)
        video = VideoFolder(videos.folder / vid)
        tally["videos"] += 1
        try:
            known = {str(name) for name in entry["frames"]}
            texts: dict[tuple[str, ...], list[str]] = {}
            for expression in entry["expressions"].values():
                things = expression[key] if isinstance(expression[key], list) else [expression[key]]
                things = tuple(sorted({str(thing) for thing in things}, key=lambda thing: (len(thing), thing)))
                texts.setdefault(things, []).append(" ".join(expression["exp"].split()))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where}: expected frames and expressions with exp and {key} ({type(error).__name__}: {error}); only "
                "splits with masks can be converted"
            ) from error
        if not known <= {Path(name).stem for name in video.names}:
            raise ValueError(f"{where}: frames that are not in {video.path}: {', '.join(sorted(known)[:3])}, ...")
        for things, said in texts.items():
            tally["expressions"] += len(said)
            if not things:
                tally["expressions left out: they mean nothing in the video"] += len(said)
            elif len(things) > 1 and not several:
                tally["expressions left out: they mean several things"] += len(said)
            else:
                yield Meant(vid, video, things, [text for text in dict.fromkeys(said) if text])


def mevis_clips(
    expressions: Path, masks: Path, videos: Videos, split: str, several: bool, tally: Tally
) -> Iterator[ClipRegion]:
    """Records of MeViS in the order of the masks; one of several things comes when the last one's have been read."""
    waiting: dict[str, list[Meant]] = {}
    for meant in meant_things(expressions, "anno_id", videos, several, tally):
        for thing in meant.things:
            waiting.setdefault(thing, []).append(meant)
    for thing, rles in read_pairs(masks):
        where = f"{masks}: {thing}"
        for meant in waiting.pop(thing, []):
            if not isinstance(rles, list) or len(rles) != meant.video.num_frames:
                raise ValueError(
                    f"{where}: expected masks of {meant.video.num_frames} frames, those of {meant.video.path}"
                )
            meant.masks[thing] = rles
            if len(meant.masks) == len(meant.things):
                for index, parts in enumerate(zip(*meant.masks.values(), strict=True)):
                    meant.places[index] = _together(parts, meant.video.frame_hw, f"{where}, frame {index}")
                meant.masks = {}
                yield from _record("mevis", meant, videos, split, tally)
    if waiting:
        raise ValueError(
            f"{masks}: no masks of {next(iter(waiting))!r} (video {next(iter(waiting.values()))[0].vid}) and of "
            f"{len(waiting) - 1} more things; cut off, or of another split?"
        )


def youtube_clips(
    expressions: Path, objects: Path, masks: Path, videos: Videos, split: str, several: bool, tally: Tally
) -> Iterator[ClipRegion]:
    """Records of Refer-YouTube-VOS, video by video. objects: meta.json, with the things' categories."""
    categories = _categories(objects)
    by_video: dict[str, list[Meant]] = {}
    for meant in meant_things(expressions, "obj_id", videos, several, tally):
        if unknown := [thing for thing in meant.things if (meant.vid, thing) not in categories]:
            raise ValueError(f"{objects}: video {meant.vid}: no object {unknown[0]!r}, which an expression names")
        kinds = {categories[meant.vid, thing] for thing in meant.things}
        meant.category = kinds.pop() if len(kinds) == 1 else None
        by_video.setdefault(meant.vid, []).append(meant)
    for vid, things in by_video.items():
        video = things[0].video
        position = {Path(name).stem: index for index, name in enumerate(video.names)}
        pictures = sorted((masks / vid).glob("*.png"))
        if not pictures:
            raise ValueError(f"{masks / vid}: no PNG files; only train has masks, name its Annotations with --masks")
        for picture in pictures:
            if picture.stem not in position:
                raise ValueError(f"{picture}: there is no frame of this name in {video.path}")
            values = read_mask_picture(picture, video.frame_hw)
            for meant in things:
                inside = np.isin(values, [int(thing) for thing in meant.things])
                meant.places[position[picture.stem]] = mask_place(inside)
        for meant in things:
            yield from _record("ref-youtube-vos", meant, videos, split, tally)


def _categories(objects: Path) -> dict[tuple[str, str], str]:
    """(video, thing) -> category, of meta.json."""
    try:
        return {
            (vid, str(int(thing))): entry["category"]
            for vid, video in read_object(objects)["videos"].items()
            for thing, entry in video["objects"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{objects}: expected videos of objects with a category ({type(error).__name__}: {error}); is it meta.json?"
        ) from error


def _together(rles: tuple, frame_hw: tuple[int, int], where: str) -> FrameRegion | None:
    """The place of masks together, None where all are null or empty."""
    places = [place for rle in rles if rle is not None and (place := rle_place(rle, frame_hw, where)) is not None]
    if len(places) < 2:
        return places[0] if places else None
    return mask_place(np.logical_or.reduce([to_mask(place.mask, frame_hw) for place in places]))


def _record(dataset: str, meant: Meant, videos: Videos, split: str, tally: Tally) -> Iterator[ClipRegion]:
    name = f"{dataset}-{split}-{meant.vid}-{'+'.join(meant.things)}"
    shown = [index for index, place in meant.places.items() if place is not None]
    if not shown:
        tally.leave_out("regions", "no frame shows it", name)
        return
    first = min(shown)
    yield ClipRegion(
        id=name,
        video=videos.find(meant.vid, name),
        num_frames=meant.video.num_frames,
        frame_hw=meant.video.frame_hw,
        prompt_frame=first,
        frames={index: place for index, place in sorted(meant.places.items()) if index >= first},
        end_frame=meant.video.num_frames,
        captions=tuple(meant.texts),
        category=meant.category,
        source=dataset,
        licence=LICENCES[dataset],
        split=split,
    )
    meant.places = {}


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("ref_vos", __doc__.splitlines()[0], "folder JPEGImages")
    parser.add_argument("--dataset", required=True, choices=LICENCES)
    parser.add_argument("--split", required=True, help="split that the records say (train, valid_u)")
    parser.add_argument("--expressions", type=Path, required=True, help="meta_expressions.json")
    parser.add_argument("--masks", type=Path, required=True, help="mask_dict.json of MeViS, or folder Annotations")
    parser.add_argument("--objects", type=Path, help="meta.json of Refer-YouTube-VOS")
    parser.add_argument("--several", action="store_true", help="also expressions that mean several things together")
    parser.add_argument("--subset", action="store_true", help="knowingly a part: counts may differ")
    return run_command("data_prep.ref_vos", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if (args.dataset == "mevis") != (args.objects is None):
        raise ValueError("--objects meta.json is for ref-youtube-vos, which needs it")
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)
    if args.dataset == "mevis":
        found = mevis_clips(args.expressions, args.masks, videos, args.split, args.several, tally)
    else:
        found = youtube_clips(args.expressions, args.objects, args.masks, videos, args.split, args.several, tally)

    def checked() -> Iterator[ClipRegion]:
        yield from found
        check_counts(tally, PUBLISHED.get((args.dataset, args.split), {}), f"{args.dataset} {args.split}", args.subset)

    write(args.out, checked(), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
