"""Boxes of clips become masks: in every frame by SAM, or followed from one frame on by SAM 2."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor

from data_prep.check import check_file
from data_prep.regvid import masklets
from data_prep.regvid.masklets import main
from dynrefer.data.clips import ClipRegion, FrameRegion, open_clips, write_clips
from dynrefer.masks import mask_to_rle, to_mask
from tests.regionspot import SAM
from tests.test_regionspot_parts import DECODER, HIERA, PROMPT, SIZES

HW, COUNT = (90, 120), 6


@pytest.fixture
def folder(tmp_path):
    """A clip of two tracklets and one box by itself; the second tracklet has a mask in a frame."""
    (tmp_path / "clip").mkdir()
    for t in range(COUNT):
        pixels = np.full((*HW, 3), 90, np.uint8)
        pixels[10:40, 20 + 5 * t : 60 + 5 * t] = (200, 30, 30)
        Image.fromarray(pixels).save(tmp_path / "clip" / f"{t}.png")
    inside = np.zeros(HW, bool)
    inside[50:60, 30:50] = True
    common = {"video": "clip", "num_frames": COUNT, "frame_hw": HW, "prompt_frame": 0, "end_frame": COUNT}
    moving = {t: FrameRegion((20 + 5 * t, 10, 60 + 5 * t, 40)) for t in (0, 2, 4)} | {5: None}
    masked = {0: FrameRegion((30, 50, 50, 60), mask_to_rle(inside)), 2: FrameRegion((30, 50, 50, 60))}
    clips = [
        ClipRegion(id="moving", frames=moving, captions=("it moves",), **common),
        ClipRegion(id="masked", frames=masked, **common),
        ClipRegion(id="alone", frames={0: FrameRegion((20, 10, 60, 40))}, **common),
    ]
    write_clips(tmp_path / "boxes.jsonl", clips)
    return tmp_path


@pytest.fixture(scope="module")
def video_sam(tmp_path_factory):
    torch.manual_seed(0)
    sizes = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "memory_attention_feed_forward_hidden_size")
    sizes += ("mask_downsampler_embed_dim", "memory_fuser_embed_dim", "memory_fuser_intermediate_dim")
    wide = 128  # its memory has 64 channels, which must be fewer
    inner = {"prompt_encoder_config": {**PROMPT, "hidden_size": wide}, **dict.fromkeys(sizes, wide)}
    inner |= {"mask_decoder_config": {**DECODER, "hidden_size": wide}, "memory_attention_rope_feat_sizes": [8, 8]}
    inner |= {"memory_attention_num_layers": 1, "memory_encoder_output_channels": 64, "image_size": 128}
    vision = {**SIZES, "fpn_hidden_size": wide, "backbone_config": HIERA}
    config = Sam2VideoConfig(vision_config=vision, **inner)
    folder = tmp_path_factory.mktemp("sam2")
    Sam2VideoModel(config).save_pretrained(folder)
    from transformers import Sam2ImageProcessor, Sam2VideoVideoProcessor

    size = {"height": 128, "width": 128}
    Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)
    return folder


def run(folder, *options):
    return main(
        ["--clips", str(folder / "boxes.jsonl"), "--out", str(folder / "masks.jsonl"), "--device", "cpu", *options]
    )


def test_every_box_becomes_a_mask(folder, capsys):
    before = list(open_clips(folder / "boxes.jsonl"))
    assert run(folder, "--sam", str(SAM)) == 0
    after = list(open_clips(folder / "masks.jsonl"))
    segmenter = masklets.BoxMasker(str(SAM), "cpu").segmenter
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.captions, new.frames.keys()) == (old.id, old.captions, old.frames.keys())
    assert after[0].frames[5] is None and after[1].frames[0] == before[1].frames[0]  # a mask stays
    image = np.asarray(Image.open(folder / "clip" / "2.png"))
    expected, _ = segmenter.box_masks(image, np.array([[30, 10, 70, 40], [30, 50, 50, 60]]))
    assert after[0].frames[2].mask == expected
    printed = capsys.readouterr().out
    assert "5  boxes that became masks" in printed and not (folder / "masks.jsonl.part").exists()
    assert not list(check_file(folder / "masks.jsonl").problems)


def test_a_single_box_is_followed(folder, video_sam, capsys):
    assert run(folder, "--video-sam", str(video_sam), "--sam", str(SAM), "--frames", "4") == 0
    moving, masked, alone = open_clips(folder / "masks.jsonl")
    assert list(moving.frames) == [0, 2, 4, 5] and list(masked.frames) == [0, 2]  # these know where they are
    assert list(alone.frames) == [0, 2, 3, 5] and alone.shown.mask  # spread evenly over the clip
    for place in alone.frames.values():
        assert place is None or to_mask(place.mask, HW).any()
    assert "1  regions that were followed" in capsys.readouterr().out


def test_a_killed_run_goes_on(folder, monkeypatch, capsys):
    assert run(folder, "--sam", str(SAM)) == 0
    whole = (folder / "masks.jsonl").read_bytes()
    (folder / "masks.jsonl").unlink()
    parts = [json.dumps(json.loads(line)) for line in whole.decode().splitlines()]
    (folder / "masks.jsonl.part").write_text("\n".join(parts) + '\n{"id": "to')
    monkeypatch.setattr(masklets.BoxMasker, "__call__", lambda *_: pytest.fail("asked again"))
    assert run(folder, "--sam", str(SAM)) == 0 and (folder / "masks.jsonl").read_bytes() == whole


def test_bad_settings_are_named(folder, tmp_path, capsys):
    for options, said in (
        ((), "neither --sam nor --video-sam"),
        (("--sam", "x", "--frames", "1"), "expected at least 2"),
        (("--sam", str(tmp_path / "no")), "no model folder or hub id"),
    ):
        assert run(folder, *options) == 2 and said in capsys.readouterr().err
    elsewhere = ["--clips", str(folder / "boxes.jsonl"), "--out", str(folder / "sub" / "a.jsonl"), "--sam", str(SAM)]
    assert main(elsewhere) == 2 and "in the folder of" in capsys.readouterr().err
