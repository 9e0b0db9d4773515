import json

import numpy as np
import pytest
from PIL import Image

from data_prep import sav
from data_prep.check_clips import check_clips
from data_prep.sav import main
from dynrefer.data.clips import clip_frames, open_clips, read_clip
from dynrefer.masks import mask_to_rle

av = pytest.importorskip("av")
HW, COUNT = (48, 64), 10  # annotated frames: 0, 4, 8


def spot(x) -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    if x is not None:
        mask[10:20, x : x + 5] = True
    return mask


def masklets(*things, **changes) -> dict:
    """A file of masklets: for every thing its place in every annotated frame, None where it is not."""
    return {
        "video_id": "sav_000001",
        "video_duration": COUNT / 24,
        "video_frame_count": float(COUNT),
        "video_height": float(HW[0]),
        "video_width": float(HW[1]),
        "video_split": "train",
        "masklet": [[mask_to_rle(spot(thing[row])) for thing in things] for row in range(3)],
        "masklet_id": list(range(len(things))),
        "masklet_num": len(things),
        **changes,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sav,
        "PUBLISHED",
        {"train": {"videos": 1, "manual masklets": 2, "auto masklets": 1}, "val": {"videos": 1, "masklets": 2}},
    )
    place = tmp_path / "sav_train" / "sav_000"
    place.mkdir(parents=True)
    with av.open(str(place / "sav_000001.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = HW[1], HW[0], "yuv420p"
        for _ in range(COUNT):
            frame = av.VideoFrame.from_ndarray(np.zeros((*HW, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (place / "sav_000001_manual.json").write_text(json.dumps(masklets((None, 5, None), (1, None, 9))))
    (place / "sav_000001_auto.json").write_text(json.dumps(masklets((20, 21, 22))))
    return tmp_path


def run(folder, *options):
    where = ("--masklets", "sav_train"), ("--videos", "sav_train"), ("--out", "out/train.jsonl")
    return main([word for name, path in where for word in (name, str(folder / path))] + ["--split", "train", *options])


def test_masklets_become_clips_of_every_fourth_frame(folder, capsys):
    assert run(folder) == 0
    records = open_clips(folder / "out" / "train.jsonl")
    late, gone, auto = sorted(records, key=lambda clip: clip.id, reverse=False)[1:] + [
        sorted(records, key=lambda c: c.id)[0]
    ]
    assert [clip.id for clip in (late, gone, auto)] == [
        "sav-train-sav_000001-manual-0",
        "sav-train-sav_000001-manual-1",
        "sav-train-sav_000001-auto-0",
    ]
    assert late.prompt_frame == 4 and list(late.frames) == [4] and late.end_frame == 5
    assert gone.prompt_frame == 0 and list(gone.frames) == [0, 4, 8] and gone.frames[4] is None and gone.end_frame == 9
    assert auto.frames[8].box == (22, 10, 27, 20) and (auto.to_mask(8) == spot(22)).all()
    assert auto.num_frames == COUNT and auto.frame_hw == HW and auto.frame_rate == 24 and auto.captions == ()
    assert auto.video == "../sav_train/sav_000/sav_000001.mp4"
    assert clip_frames(auto, 3, annotated=True) == [0, 4, 8]
    assert read_clip(records.video_path(0), auto, [0, 9]).shape == (2, *HW, 3)
    assert "3  regions without a caption" in capsys.readouterr().out
    assert check_clips(folder / "out" / "train.jsonl") == ([], 3, 1)
    assert run(folder, "--kinds", "auto") == 0 and len(open_clips(folder / "out" / "train.jsonl")) == 1


def test_pictures_of_masks_become_clips(folder):
    frames, masks = folder / "JPEGImages_24fps" / "v1", folder / "Annotations_6fps" / "v1"
    frames.mkdir(parents=True)
    for index in range(COUNT):
        Image.new("RGB", HW[::-1]).save(frames / f"{index:05d}.jpg")
    for thing, places in {"000": (3, None, 5), "001": (None, 7, 8)}.items():
        (masks / thing).mkdir(parents=True)
        for row, x in enumerate(places):
            Image.fromarray(spot(x).astype(np.uint8) * 255).save(masks / thing / f"{4 * row:05d}.png")
    where = ("--masks", "Annotations_6fps"), ("--videos", "JPEGImages_24fps"), ("--out", "out/val.jsonl")
    arguments = [word for name, path in where for word in (name, str(folder / path))] + ["--split", "val"]
    assert main(arguments) == 0
    first, second = open_clips(folder / "out" / "val.jsonl")
    assert first.id == "sav-val-v1-000" and first.frames[4] is None and first.frames[8].box == (5, 10, 10, 20)
    assert second.prompt_frame == 4 and (second.to_mask(8) == spot(8)).all() and second.num_frames == COUNT
    assert check_clips(folder / "out" / "val.jsonl") == ([], 2, 1)
    Image.fromarray(spot(1)[:9]).save(masks / "000" / "00000.png")
    assert main(arguments) == 2
    Image.fromarray(spot(1)).save(masks / "000" / "00000.png")
    Image.fromarray(spot(1)).save(masks / "000" / "00044.png")
    assert main(arguments) == 2


def test_other_counts_than_published_are_refused(folder, capsys):
    (folder / "sav_train" / "sav_000" / "sav_000001_auto.json").unlink()
    assert run(folder) == 2
    assert "0 auto masklets, published 1" in capsys.readouterr().err and not list(folder.glob("out/*"))
    assert run(folder, "--subset") == 0 and run(folder, "--kinds", "manual") == 0


def test_the_published_masklets_add_up():
    assert sav.PUBLISHED["train"]["manual masklets"] + sav.PUBLISHED["train"]["auto masklets"] == 642036


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (json.dumps(masklets((1, 2, 3)))[:-9], "auto.json: not JSON"),
        (json.dumps({"info": 1}), "auto.json: not masklets of SA-V"),
        (
            json.dumps(masklets((1, 2, 3), video_frame_count=20.0)),
            "3 annotated frames .* 20 frames, every 4th annotated",
        ),
        (json.dumps(masklets((1, 2, 3), masklet_id=[0, 1])), "not masklets of SA-V"),
        (json.dumps(masklets((1, 2, 3), video_id="sav_9")), "video sav_9.mp4 is not in"),
        (json.dumps(masklets((1, 2, 3), video_height=96.0)), "frame_hw .96, 64., but frames"),
        (json.dumps(masklets((1, 2, 3), masklet=[[{"size": [9, 9], "counts": [81]}]] * 3)), "masklet 0: mask of size"),
        (json.dumps(masklets((1, 2, 3), masklet=[[{"size": list(HW), "counts": "~"}]] * 3)), "masklet 0: mask counts"),
    ],
)
def test_bad_files_are_refused_by_name(folder, capsys, content, rule):
    (folder / "sav_train" / "sav_000" / "sav_000001_auto.json").write_text(content)
    assert run(folder) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_a_masklet_without_a_pixel_is_left_out_or_an_error(folder, capsys):
    path = folder / "sav_train" / "sav_000" / "sav_000001_auto.json"
    path.write_text(json.dumps(masklets((None, None, None))))
    assert run(folder) == 0
    assert "1  regions left out: a masklet without a pixel" in capsys.readouterr().out
    assert run(folder, "--strict") == 2
