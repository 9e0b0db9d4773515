r"""Boxes of clips -> masks, by a SAM of Transformers: clip file -> clip file.

    python -m data_prep.regvid.masklets --clips data/hcstvg/train.jsonl --sam facebook/sam-vit-huge \
        --out data/hcstvg/masklets.jsonl
    python -m data_prep.regvid.masklets --clips data/events/train.jsonl --video-sam facebook/sam2.1-hiera-large \
        --out data/events/masklets.jsonl

--sam puts a mask into every box of a tracklet, frame by frame. --video-sam follows each region from its prompt frame to
the end of its clip, of which at most --frames are looked at; regions that say where they are in more frames keep that,
unless both are given: then each gets what fits it. Masks that are there already stay. Where SAM finds nothing, a box
stays a box and is counted. A killed run goes on with OUT.part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.counts import Tally
from data_prep.video_converter import finish, mask_place, write
from dynrefer.data.clips import ClipRegion, FrameRegion, clip_frames, open_clips, read_clip
from dynrefer.errors import Parser, run_command
from dynrefer.files import read_jsonl

STOPPED = "stopped; the same command goes on"


class BoxMasker:
    """A mask for every box of a frame. name: folder or hub id of a SAM."""

    def __init__(self, name: str, device: str = "auto"):
        from dynrefer.segment import Segmenter

        self.segmenter = Segmenter(name, device=device)

    def __call__(self, path: Path, clips: Sequence[ClipRegion], tally: Tally) -> list[ClipRegion]:
        """Regions of one video with masks in the frames in which they have boxes only."""
        frames = [dict(clip.frames) for clip in clips]
        for index in sorted({index for own in frames for index, place in own.items() if bare(place)}):
            places = [(own, own[index]) for own in frames if bare(own.get(index))]
            image = read_clip(path, clips[0], [index])[0]
            masks = self.segmenter.box_masks(image, np.array([place.box for _, place in places]))
            for (own, place), mask in zip(places, masks, strict=True):
                if mask is None:
                    tally["boxes that stay: SAM finds nothing in them"] += 1
                else:
                    own[index] = replace(place, mask=mask)
                    tally["boxes that became masks"] += 1
        return [replace(clip, frames=own) for clip, own in zip(clips, frames, strict=True)]


class Follower:
    """Follows regions through a clip from one box. name: folder or hub id of a SAM 2 with its video part."""

    def __init__(self, name: str, num_frames: int, device: str = "auto"):
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        from dynrefer.models.auto import model_folder, pick_device
        from dynrefer.models.base_parts import check_source
        from dynrefer.models.folder_check import reading

        with reading(f"SAM {name!r}", "no SAM 2 with a video part that can be read"):
            check_source(model_folder(name))
            self.model = Sam2VideoModel.from_pretrained(
                model_folder(name), trust_remote_code=False, weights_only=True
            ).float()
            self.processor = Sam2VideoProcessor.from_pretrained(model_folder(name), trust_remote_code=False)
        self.model = self.model.to(pick_device(device)).eval()
        self.num_frames = num_frames

    def __call__(self, path: Path, clips: Sequence[ClipRegion], tally: Tally) -> list[ClipRegion]:
        """Regions of one span of a video, in frames spread evenly over it, None where one is not seen."""
        import torch

        numbers = list(dict.fromkeys(clip_frames(clips[0], self.num_frames)))
        pictures = read_clip(path, clips[0], numbers)
        device, image_hw = self.model.device, clips[0].frame_hw
        session = self.processor.init_video_session(video=list(pictures), inference_device=device)
        boxes = [[list(clip.box) for clip in clips]]
        ids = list(range(len(clips)))
        frames: list[dict[int, FrameRegion | None]] = [{} for _ in clips]
        with torch.inference_mode():
            self.processor.add_inputs_to_inference_session(
                inference_session=session, frame_idx=0, obj_ids=ids, input_boxes=boxes
            )
            self.model(inference_session=session, frame_idx=0)
            for output in self.model.propagate_in_video_iterator(session, start_frame_idx=0):
                masks = self.processor.post_process_masks([output.pred_masks], [image_hw], binarize=True)[0]
                for own, mask in zip(frames, masks[:, 0].cpu().numpy().astype(bool), strict=True):
                    own[numbers[output.frame_idx]] = mask_place(mask)
        found = []
        for clip, own in zip(clips, frames, strict=True):
            if own[clip.prompt_frame] is None:
                tally["boxes that stay: SAM finds nothing in them"] += 1
                found.append(clip)
            else:
                tally["regions that were followed"] += 1
                found.append(replace(clip, frames=own))
        return found


def bare(place: FrameRegion | None) -> bool:
    return place is not None and place.mask is None


def single(clip: ClipRegion) -> bool:
    """Whether a region says where it is in its prompt frame only, and that by a box."""
    return bare(clip.shown) and len(clip.frames) == 1


def with_masks(
    path: Path, clips: Sequence[ClipRegion], masker: BoxMasker | None, follower: Follower | None, tally: Tally
) -> list[ClipRegion]:
    """Regions of one span of a video, in their order."""
    alone = [clip for clip in clips if follower is not None and (single(clip) or masker is None and bare(clip.shown))]
    boxed = [] if masker is None else [clip for clip in clips if clip not in alone]
    done = {clip.id: clip for clip in follower(path, alone, tally)} if alone else {}
    done |= {clip.id: clip for clip in masker(path, boxed, tally)} if boxed else {}
    return [done.get(clip.id, clip) for clip in clips]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.regvid.masklets", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="clip file, of boxes")
    parser.add_argument("--sam", help="folder or hub id of a SAM that makes masks of boxes")
    parser.add_argument("--video-sam", help="folder or hub id of a SAM 2 that follows regions with a single box")
    parser.add_argument("--frames", type=int, default=32, help="frames of a clip in which a region is followed (32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, required=True, help="clip file to write, .jsonl, in the same folder")
    return run_command("data_prep.regvid.masklets", _run, parser.parse_args(argv), STOPPED)


def _run(args: argparse.Namespace) -> None:
    if not (args.sam or args.video_sam):
        raise ValueError("neither --sam nor --video-sam: name one of them, or both")
    if args.frames < 2:
        raise ValueError(f"--frames {args.frames}: expected at least 2")
    if args.out.absolute().parent != args.clips.absolute().parent:
        raise ValueError(f"--out {args.out}: expected it in the folder of {args.clips}, to which videos are relative")
    tally = Tally(strict=True)
    records = open_clips(args.clips)
    groups = [group for group in records.example_groups()]
    masker = BoxMasker(args.sam, args.device) if args.sam else None
    follower = Follower(args.video_sam, args.frames, args.device) if args.video_sam else None
    part = args.out.with_name(f"{args.out.name}.part")
    done = finished(part)

    def found() -> Iterator[ClipRegion]:
        with open(part, "a", encoding="utf-8") as file:
            for members in tqdm(groups, desc="masklets", unit="clip", disable=None):
                paths, clips = zip(*records.fetch(members), strict=True)
                if any(clip.id not in done for clip in clips):
                    for clip in with_masks(paths[0], clips, masker, follower, tally):
                        done[clip.id] = clip.to_dict()
                        file.write(json.dumps(done[clip.id]) + "\n")
                    file.flush()
                yield from (ClipRegion.from_dict(done.pop(clip.id)) for clip in clips)

    write(args.out, found(), tally)
    part.unlink()
    finish(args.out, tally)


def finished(part: Path) -> dict[str, dict[str, Any]]:
    """Records that a killed run has written, by id; a torn last line is dropped."""
    if not part.is_file():
        return {}
    whole = part.read_bytes().rpartition(b"\n")
    part.write_bytes(whole[0] + whole[1])
    return {record["id"]: record for _, record in read_jsonl(part)}


if __name__ == "__main__":
    sys.exit(main())
