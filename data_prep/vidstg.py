r"""VidSTG (sentences about things in VidOR's videos, with their boxes by frame) -> clip file.

    python -m data_prep.vidstg --split train --annotations train_annotations.json --vidor vidor/training \
        --videos vidor/video --out data/vidstg/train.jsonl

The sentences come from github.com/Guaranteer/VidSTG-Dataset: annotations/{train,val,test}_annotations.json. Videos and
boxes are VidOR's, from xdshang.github.io/docs/vidor.html: a JSON file a video, 1000/5159741010.json (training for
VidSTG's train and val, validation for its test), and 1000/5159741010.mp4 under --videos. VidOR's videos are Flickr's
of YFCC-100M under Creative Commons licences.

One record is one described thing of one annotation: its captions are the declarative sentences whose `target_id` it is,
its clip `temporal_gt` (the end is not part of it), its boxes those of the trajectory in the clip, null where VidOR has
none. The prompt frame is the first with a box. PUBLISHED holds the sentences of each split.

    python -m data_prep.vidstg --selection --split train --annotations train_annotations.json --vidor vidor/training \
        --videos vidor/video --out data/vidstg/selection.jsonl

--selection writes conversations instead: which of the things in the prompt frame is it? Every question is asked as it
stands ("who is behind the child?"), every sentence as a description; the answer is the number of its `target_id` among
all things that have a box in that frame, in an order of chance. What is alone there is left out. Of a clip's frames at
most 32 are kept, evenly spread.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chat_converter import chat_of_clip, selection_turn, write_conversations
from data_prep.counts import Tally, check_counts
from data_prep.video_converter import Videos, finish, place, video_arguments, write
from dynrefer.boxes import check_image_hw
from dynrefer.data.chats import Chat
from dynrefer.data.clips import ClipRegion, FrameRegion
from dynrefer.data.json_files import read_items, read_object
from dynrefer.errors import run_command

SOURCE = "vidstg"
LICENCE = "Annotations: VidSTG and VidOR, research use; videos: Flickr, Creative Commons as their owners chose"
MOST_FRAMES = 32  # of a conversation's clip
PUBLISHED = {
    "train": {"declarative sentences": 36202, "questions": 44482},
    "val": {"declarative sentences": 3996, "questions": 4960},
    "test": {"declarative sentences": 4610, "questions": 5693},
}


@dataclass(frozen=True)
class Video:
    """A video with its things. file: its path for a record; boxes: thing -> frame -> corners; categories: thing -> its
    name."""

    file: str
    num_frames: int
    frame_hw: tuple[int, int]
    rate: float
    boxes: dict[int, dict[int, list]]
    categories: dict[int, str]

    def places(self, thing: int, frames: Iterable[int], tally: Tally, where: str) -> dict[int, FrameRegion | None]:
        """Frame -> where a thing is, None where VidOR has it not; a faulty box is left out, counted."""
        known, places = self.boxes.get(thing, {}), {}
        for index in frames:
            if index not in known:
                places[index] = None
            elif (at := place(known[index], self.frame_hw, tally, f"{where}, frame {index}")) is not None:
                places[index] = at
        return places

    def region(
        self, name: str, thing: int, places: dict[int, FrameRegion | None], prompt_frame: int, end_frame: int
    ) -> ClipRegion:
        """A thing as a record, without captions."""
        return ClipRegion(
            id=name,
            video=self.file,
            num_frames=self.num_frames,
            frame_hw=self.frame_hw,
            prompt_frame=prompt_frame,
            frames=places,
            end_frame=end_frame,
            frame_rate=self.rate,
            category=self.categories[thing],
            source=SOURCE,
            licence=LICENCE,
        )


def clips(annotations: Path, vidor: Path, videos: Videos, split: str, tally: Tally) -> Iterator[ClipRegion]:
    """Records of a split, video by video, in the order in which the file first names them."""
    for video, where, rows in _by_video(annotations, vidor, videos, tally):
        for number, row in rows:
            there = f"{where}, entry {number}"
            begin, end = _span(row, video, there)
            for thing, captions in _sentences(row["captions"], video, there).items():
                frames = video.places(thing, range(begin, end), tally, there)
                first = next((index for index, at in frames.items() if at is not None), None)
                if first is None:
                    tally.leave_out(
                        "regions", "no box in the clip that the sentence is about", f"{there}, target {thing}"
                    )
                    continue
                region = video.region(f"vidstg-{split}-{number}-{row['vid']}-{thing}", thing, frames, first, end)
                yield replace(region, captions=tuple(text for text in dict.fromkeys(captions) if text), split=split)


def selections(annotations: Path, vidor: Path, videos: Videos, split: str, seed: int, tally: Tally) -> Iterator[Chat]:
    """Conversations of a split, in the same order: one a question or sentence."""
    for video, where, rows in _by_video(annotations, vidor, videos, tally):
        for number, row in rows:
            there = f"{where}, entry {number}"
            begin, end = _span(row, video, there)
            for kind in ("questions", "captions"):
                asked = _sentences(row[kind], video, there)
                for count, (thing, text) in enumerate((thing, text) for thing, own in asked.items() for text in own):
                    name = f"vidstg-{split}-{number}-{row['vid']}-{kind[0]}{count}"
                    span = range(begin, end)
                    chat = _selection(name, video, thing, text, span, kind == "questions", seed, tally, there)
                    if chat is not None:
                        yield replace(chat, split=split)


def _selection(
    name: str, video: Video, thing: int, text: str, span: range, asks: bool, seed: int, tally: Tally, where: str
) -> Chat | None:
    first = next((index for index in span if index in video.boxes.get(thing, {})), None)
    if first is None:
        tally.leave_out("conversations", "no box in the clip that the sentence is about", f"{where}, target {thing}")
        return None
    spread = np.linspace(first, span.stop - 1, min(MOST_FRAMES, span.stop - first))
    frames = [int(index + 0.5) for index in spread.tolist()]
    things = [other for other in video.categories if first in video.boxes.get(other, {})]
    regions = []
    for other in np.random.default_rng([seed, *name.encode()]).permutation(things).tolist():
        places = video.places(other, frames, tally, where)
        if places.get(first) is None:
            continue
        regions.append(video.region(f"{name}/{other}", other, places, first, span.stop))
    place_of = next((k for k, region in enumerate(regions) if region.id == f"{name}/{thing}"), None)
    if place_of is None or len(regions) < 2:
        why = "alone in its frame" if place_of is not None else "no box in the frame that shows it"
        tally[f"conversations left out: {why}"] += 1
        return None
    return chat_of_clip(name, regions, [selection_turn(text, len(regions), place_of, asks)], "selection")


def _by_video(
    annotations: Path, vidor: Path, videos: Videos, tally: Tally
) -> Iterator[tuple[Video, str, list[tuple[int, dict]]]]:
    """(video, what errors begin with, its entries with their numbers)."""
    files = vidor_files(vidor)
    rows: dict[str, list[tuple[int, dict]]] = {}
    for number, row in enumerate(read_items(annotations, "item")):
        rows.setdefault(_row(row, annotations, number)["vid"], []).append((number, row))
        tally["declarative sentences"] += len(row["captions"])
        tally["questions"] += len(row["questions"])
    for vid, numbered in rows.items():
        where = f"{annotations}: video {vid}"
        if vid not in files:
            raise ValueError(
                f"{where}: there is no {vid}.json in {vidor}; training is for train and val, validation for test"
            )
        tally["videos"] += 1
        yield _video(vid, files[vid], videos, where), where, numbered


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
        good = isinstance(row["vid"], str) and isinstance(row["temporal_gt"], dict)
        good = good and all(isinstance(row[kind], list) for kind in ("captions", "questions"))
        sentences = [*row["captions"], *row["questions"]]
        good = good and all(isinstance(sentence["description"], str) for sentence in sentences)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{path}: entry {number}: expected vid, temporal_gt, captions and questions of description and target_id; "
            "is it an annotations file of VidSTG?"
        )
    return row


def _video(vid: str, path: Path, videos: Videos, where: str) -> Video:
    video = read_object(path)
    try:
        frame_hw = check_image_hw((video["height"], video["width"]))
        num_frames, rate, trajectories = int(video["frame_count"]), float(video["fps"]), video["trajectories"]
        categories = {thing["tid"]: thing["category"] for thing in video["subject/objects"]}
        name = video.get("video_path") or f"{vid}.mp4"
        boxes: dict[int, dict[int, list]] = {}
        for index, frame in enumerate(trajectories):
            for thing in frame:
                corners = thing["bbox"]
                boxes.setdefault(thing["tid"], {})[index] = [corners[key] for key in ("xmin", "ymin", "xmax", "ymax")]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not an annotation of VidOR ({type(error).__name__}: {error})") from error
    file = videos.find(name, where)
    videos.check(name, num_frames, frame_hw, where)
    return Video(file, num_frames, frame_hw, rate, boxes, categories)


def _span(row: dict, video: Video, where: str) -> tuple[int, int]:
    if (row.get("height"), row.get("width")) != video.frame_hw:
        raise ValueError(
            f"{where}: frames of {row.get('height')} x {row.get('width')}, but VidOR says {video.frame_hw}"
        )
    begin, end = (row["temporal_gt"].get(key) for key in ("begin_fid", "end_fid"))
    if type(begin) is not int or type(end) is not int or not 0 <= begin < end <= video.num_frames:
        raise ValueError(f"{where}: temporal_gt from {begin} to {end}, but {video.num_frames} frames")
    return begin, end


def _sentences(entries: list[dict], video: Video, where: str) -> dict[int, list[str]]:
    """Thing -> what is said or asked of it."""
    sentences: dict[int, list[str]] = {}
    for entry in entries:
        thing = entry.get("target_id")
        if type(thing) is not int or thing not in video.categories:
            raise ValueError(f"{where}: target_id {thing!r} is no thing of the video in VidOR")
        sentences.setdefault(thing, []).append(entry["description"].strip())
    return sentences


def main(argv: list[str] | None = None) -> int:
    parser = video_arguments("vidstg", __doc__.splitlines()[0], "VidOR's folder video")
    parser.add_argument("--split", required=True, choices=PUBLISHED)
    parser.add_argument("--annotations", type=Path, required=True, help="SPLIT_annotations.json of VidSTG")
    parser.add_argument(
        "--vidor", type=Path, required=True, help="folder of VidOR's annotations, training or validation"
    )
    parser.add_argument("--selection", action="store_true", help="conversations: which of the things is it?")
    parser.add_argument("--seed", type=int, default=0, help="of the order of things (0)")
    parser.add_argument("--subset", action="store_true", help="the file is knowingly a part: counts may differ")
    return run_command("data_prep.vidstg", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    videos = Videos(args.videos, args.out)

    def checked(records: Iterator) -> Iterator:
        yield from records
        check_counts(tally, PUBLISHED[args.split], f"VidSTG {args.split}", args.subset)

    given = (args.annotations, args.vidor, videos, args.split)
    if args.selection:
        write_conversations(args.out, checked(selections(*given, args.seed, tally)), tally)
    else:
        write(args.out, checked(clips(*given, tally)), tally)
    finish(args.out, tally)


if __name__ == "__main__":
    sys.exit(main())
