import json

import numpy as np
import pytest
from PIL import Image

from data_prep import ref_vos
from data_prep.check_clips import check_clips
from data_prep.ref_vos import main
from dynrefer.data.clips import open_clips
from dynrefer.masks import mask_to_rle

HW, COUNT = (48, 64), 4


def spot(x) -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    if x is not None:
        mask[10:20, x : x + 5] = True
    return mask


def rle(x):
    return None if x is None else mask_to_rle(spot(x))


FRAMES = [f"{5 * k:05d}" for k in range(COUNT)]
PLACES = {"1": [None, 5, None, 7], "2": [30, 31, 32, 33]}
MEVIS = {
    "videos": {
        "v1": {
            "vid_id": 7,
            "frames": FRAMES,
            "expressions": {
                "0": {"exp": "The bird  flying away", "obj_id": [0], "anno_id": [1]},
                "1": {"exp": "a bird that leaves", "obj_id": [0], "anno_id": [1]},
                "2": {"exp": "all birds", "obj_id": [0, 1], "anno_id": [2, 1]},
                "3": {"exp": "the cat", "obj_id": [], "anno_id": []},
            },
        }
    }
}
YOUTUBE = {
    "videos": {
        "v1": {
            "frames": FRAMES,
            "expressions": {"0": {"exp": "a bird", "obj_id": "1"}, "1": {"exp": "a cup", "obj_id": "2"}},
        }
    }
}
META = {
    "videos": {
        "v1": {"objects": {"1": {"category": "bird", "frames": FRAMES[1:]}, "2": {"category": "cup", "frames": FRAMES}}}
    }
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ref_vos, "PUBLISHED", {("mevis", "train"): {"videos": 1}})
    (tmp_path / "JPEGImages" / "v1").mkdir(parents=True)
    (tmp_path / "Annotations" / "v1").mkdir(parents=True)
    for k, name in enumerate(FRAMES):
        Image.new("RGB", HW[::-1]).save(tmp_path / "JPEGImages" / "v1" / f"{name}.jpg")
        values = spot(PLACES["1"][k]) * 1 + spot(PLACES["2"][k]) * 2
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
        picture.save(tmp_path / "Annotations" / "v1" / f"{name}.png")
    (tmp_path / "mevis.json").write_text(json.dumps(MEVIS))
    (tmp_path / "mask_dict.json").write_text(json.dumps({k: [rle(x) for x in xs] for k, xs in PLACES.items()}))
    (tmp_path / "youtube.json").write_text(json.dumps(YOUTUBE))
    (tmp_path / "meta.json").write_text(json.dumps(META))
    return tmp_path


def mevis(folder, *options):
    where = (
        ("--expressions", "mevis.json"),
        ("--masks", "mask_dict.json"),
        ("--videos", "JPEGImages"),
        ("--out", "out/a.jsonl"),
    )
    words = [word for name, path in where for word in (name, str(folder / path))]
    return main([*words, "--dataset", "mevis", "--split", "train", *options])


def youtube(folder, *options):
    where = (
        ("--expressions", "youtube.json"),
        ("--masks", "Annotations"),
        ("--objects", "meta.json"),
        ("--videos", "JPEGImages"),
    )
    words = [word for name, path in where for word in (name, str(folder / path))]
    return main(
        [*words, "--out", str(folder / "out/a.jsonl"), "--dataset", "ref-youtube-vos", "--split", "train", *options]
    )


def test_things_of_mevis_carry_all_expressions_that_mean_them_alone(folder, capsys):
    assert mevis(folder) == 0
    (bird,) = open_clips(folder / "out" / "a.jsonl")
    assert bird.id == "mevis-train-v1-1" and bird.captions == ("The bird flying away", "a bird that leaves")
    assert (
        bird.prompt_frame == 1 and bird.frames[2] is None and bird.end_frame == COUNT and list(bird.frames) == [1, 2, 3]
    )
    assert (bird.to_mask(3) == spot(7)).all() and bird.frames[3].box == (7, 10, 12, 20) and bird.frame_hw == HW
    printed = capsys.readouterr().out
    for line in (
        "4  expressions\n",
        "1  expressions left out: they mean several",
        "1  expressions left out: they mean nothing",
    ):
        assert line in printed
    assert check_clips(folder / "out" / "a.jsonl") == ([], 1, 1)


def test_several_things_together_are_one_region_on_request(folder):
    assert mevis(folder, "--several") == 0
    one, both = sorted(open_clips(folder / "out" / "a.jsonl"), key=lambda clip: clip.id)
    assert both.id == "mevis-train-v1-1+2" and both.captions == ("all birds",) and both.prompt_frame == 0
    assert (both.to_mask(1) == (spot(5) | spot(31))).all() and (both.to_mask(2) == spot(32)).all()
    assert one.captions == ("The bird flying away", "a bird that leaves")


def test_things_of_youtube_come_from_palette_pictures(folder):
    assert youtube(folder) == 0
    bird, cup = open_clips(folder / "out" / "a.jsonl")
    assert bird.id == "ref-youtube-vos-train-v1-1" and bird.category == "bird" and bird.captions == ("a bird",)
    assert bird.prompt_frame == 1 and bird.frames[2] is None and (bird.to_mask(1) == spot(5)).all()
    assert cup.category == "cup" and cup.prompt_frame == 0 and cup.frames[2].box == (32, 10, 37, 20)
    assert check_clips(folder / "out" / "a.jsonl") == ([], 2, 1)


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("mevis.json", json.dumps(MEVIS)[:-9], "mevis.json: not JSON"),
        ("mevis.json", json.dumps({"videos": {}}), "no videos in it"),
        ("mevis.json", json.dumps(YOUTUBE), "video v1: expected .* anno_id .*only splits with masks"),
        ("mevis.json", json.dumps(MEVIS).replace('"v1"', '"v2"'), "video 'v2' is not in"),
        ("mevis.json", json.dumps(MEVIS).replace('"v1"', '"../v1"'), "video '../v1': expected a name in"),
        ("mevis.json", json.dumps(MEVIS).replace("00015", "00016"), "frames that are not in"),
        ("mask_dict.json", json.dumps({"1": [rle(3)] * COUNT})[:-30], "mask_dict.json: not JSON"),
        ("mask_dict.json", json.dumps({"2": [rle(3)] * COUNT}), "no masks of '1' .video v1."),
        ("mask_dict.json", json.dumps({"1": [rle(3)]}), "mask_dict.json: 1: expected masks of 4 frames"),
        ("mask_dict.json", json.dumps({"1": [{"size": [5, 5], "counts": [25]}] * COUNT}), "1, frame 0: mask of size"),
        ("mask_dict.json", "[]", "no object with entries"),
    ],
)
def test_bad_files_are_refused_by_name(folder, capsys, file, content, rule):
    (folder / file).write_text(content)
    assert mevis(folder) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_bad_youtube_files_and_counts_are_refused(folder, capsys):
    (folder / "meta.json").write_text(json.dumps({"videos": {"v1": {"objects": {"1": {"category": "bird"}}}}}))
    assert youtube(folder) == 2 and "no object '2'" in capsys.readouterr().err
    (folder / "meta.json").write_text("{}")
    assert youtube(folder) == 2 and "is it meta.json?" in capsys.readouterr().err
    (folder / "meta.json").write_text(json.dumps(META))
    Image.fromarray(spot(1)[:9]).save(folder / "Annotations" / "v1" / "00000.png")
    assert youtube(folder) == 2 and "00000.png: mask of shape (9, 64)" in capsys.readouterr().err
    for path in (folder / "Annotations" / "v1").iterdir():
        path.unlink()
    assert youtube(folder) == 2 and "no PNG files" in capsys.readouterr().err
    assert mevis(folder, "--objects", "x") == 2 and "--objects" in capsys.readouterr().err
    ref_vos.PUBLISHED["mevis", "train"]["videos"] = 1662
    assert mevis(folder) == 2 and "1 videos, published 1,662" in capsys.readouterr().err
    assert mevis(folder, "--subset") == 0
