import json
import pickle

import numpy as np
import pytest
from PIL import Image

from dynrefer.data import Region, open_records, write_records
from dynrefer.data import dataset as dataset_module
from dynrefer.data.clips import ClipRegion, FrameRegion, clip_frames, open_clips, read_clip, write_clips
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.loader import ExampleLoader
from dynrefer.data.packing import Piece
from dynrefer.data.shards import write_shards
from dynrefer.masks import mask_to_rle
from dynrefer.models.family import FamilyProcessor

HW = (48, 64)
SPOT = np.zeros(HW, dtype=bool)
SPOT[10:20, 30:50] = True


def record(name="7", **changes) -> dict:
    frames = {"2": {"box": [1, 2, 30, 40]}, "4": {"mask": mask_to_rle(SPOT)}, "6": None}
    d = {"id": name, "video": "frames", "num_frames": 10, "frame_hw": list(HW), "prompt_frame": 2, "frames": frames}
    return d | {"captions": ["a dog"], "split": "train"} | changes


def write_frames(folder):
    """Ten frames, each ten redder than the one before."""
    (folder / "frames").mkdir()
    for k in range(10):
        Image.new("RGB", HW[::-1], (10 * k, 0, 0)).save(folder / "frames" / f"{k:05d}.png")


def test_a_record_and_its_defaults():
    clip = ClipRegion.from_dict(record())
    assert clip.frames == {
        2: FrameRegion((1, 2, 30, 40)),
        4: FrameRegion((30, 10, 50, 20), mask_to_rle(SPOT)),
        6: None,
    }
    assert clip.end_frame == 10 and clip.frame_rate is None and clip.category is None and clip.captions == ("a dog",)
    assert (clip.to_mask(4) == SPOT).all() and clip.to_mask(2) is None and not clip.to_mask(6).any()
    full = record(end_frame=8, frame_rate=25, category="dog", source="mine", licence="CC0")
    assert ClipRegion.from_dict(full).frame_rate == 25.0
    assert ClipRegion.from_dict(json.loads(json.dumps(ClipRegion.from_dict(full).to_dict()))) == ClipRegion.from_dict(
        full
    )


def test_boxes_are_clipped_and_polygons_are_masks():
    frames = {"2": {"box": [-5, 2, 90, 40], "mask": [[1, 2, 30, 2, 30, 40]]}, "3": {"mask": [[1, 2, 30, 2, 30, 40]]}}
    clip = ClipRegion.from_dict(record(frames=frames))
    assert clip.frames[2].box == (0, 2, 64, 40) and clip.frames[2].mask == [[1, 2, 30, 2, 30, 40]]
    assert clip.frames[3].box == (1, 2, 30, 39)  # the pixels inside


PLACE = {"box": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"video": ""}, "video ''"),
        ({"frames": {}}, "frames {}: expected an object"),
        ({"frames": None}, "missing key \\['frames'\\]"),
        ({"frames": {"2": PLACE, "10": PLACE}}, "frame '10': expected a number from 0 to 9"),
        ({"frames": {"2": PLACE, "-1": PLACE}}, "frame '-1'"),
        ({"frames": {"2": PLACE, "03": PLACE}}, "frame '03'"),
        ({"frames": {"2": PLACE, "x": PLACE}}, "frame 'x'"),
        ({"frames": {"2": [1, 2, 3, 4]}}, "frame 2: .*expected box, mask or both"),
        ({"frames": {"2": {}}}, "frame 2: .*expected box, mask or both"),
        ({"frames": {"2": {"box": None}}}, "frame 2: neither box nor mask"),
        ({"frames": {"2": {"bbox": [1, 2, 3, 4]}}}, "frame 2: .*expected box, mask"),
        ({"frames": {"2": {"box": [30, 2, 1, 40]}}}, "frame 2: region 8: inverted box"),
        ({"frames": {"2": {"box": [1, 2, 3]}}}, "frame 2: box .*four numbers"),
        ({"frames": {"2": {"mask": mask_to_rle(~SPOT | SPOT) | {"size": [9, 9]}}}}, "frame 2: mask of size"),
        ({"frames": {"2": {"mask": mask_to_rle(SPOT & False)}}}, "frame 2: empty mask; say null"),
        ({"frames": {"2": PLACE, "6": None}, "prompt_frame": 6}, "nothing about prompt_frame 6"),
        ({"prompt_frame": 3}, "nothing about prompt_frame 3"),
        ({"prompt_frame": -1}, "prompt_frame -1: expected a whole number of at least 0"),
        ({"prompt_frame": True}, "prompt_frame True"),
        ({"end_frame": 2}, "prompt_frame 2, end_frame 2"),
        ({"end_frame": 11}, "end_frame 11, num_frames 10"),
        ({"num_frames": 2.5}, "num_frames 2.5"),
        ({"frame_hw": [48]}, "frame_hw .48.: expected two"),
        ({"frame_rate": 0}, "frame_rate 0"),
        ({"captions": "a dog"}, "captions 'a dog'"),
        ({"fps": 5}, "unknown key \\['fps'\\]"),
    ],
)
def test_a_bad_record_names_its_line_and_frame(tmp_path, change, rule):
    (tmp_path / "a.jsonl").write_text(json.dumps(record()) + "\n\n" + json.dumps(record("8", **change)) + "\n")
    if change.get("frames", 1) is not None:
        assert len(records := open_clips(tmp_path / "a.jsonl")) == 2
        with pytest.raises(ValueError, match=f"a.jsonl:3: .*{rule}.*data_prep.check FILE"):
            records[1]
    with pytest.raises(ValueError, match=rule):
        ClipRegion.from_dict(record("8", **change))


def test_files_are_written_whole_and_read_by_place(tmp_path):
    clips = [
        ClipRegion.from_dict(record(str(k), captions=["ein Hund ü"] * (k + 1), split="ab"[k % 2])) for k in range(5)
    ]
    assert write_clips(tmp_path / "sub" / "a.jsonl", clips) == 5
    records = open_clips(tmp_path / "sub" / "a.jsonl")
    assert list(records) == clips and records[-1] == clips[4] and records.video_path(0) == tmp_path / "sub" / "frames"
    assert [c.id for c in open_clips(tmp_path / "sub" / "a.jsonl", split="b")] == ["1", "3"]
    assert [c.id for c in pickle.loads(pickle.dumps(records.subset([3, 0])))] == ["3", "0"]
    with pytest.raises(IndexError):
        records[5]

    def breaking():
        yield clips[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_clips(tmp_path / "b.jsonl", breaking())
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "no records"),
        (json.dumps(record())[:-5], "a.jsonl:1: not a JSON line"),
        (json.dumps(record()) + "\n" + json.dumps(record()), "a.jsonl:2: id '7' stands in line 1 already"),
        ('{"id": "1", "image": "a.png"}', "a.jsonl:1: expected a record of a clip"),
        ("[1]", "a.jsonl:1: expected a record of a clip"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, text, rule):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rule):
        open_clips(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="expected .jsonl"):
        open_clips(tmp_path / "a.json")
    with pytest.raises(ValueError, match="cannot be read"):
        open_clips(tmp_path / "none.jsonl")


def test_an_unknown_split_names_those_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record()))
    with pytest.raises(ValueError, match="no records of split 'val'; it has \\['train'\\]"):
        open_clips(tmp_path / "a.jsonl", "val")


def test_frames_are_spread_from_the_prompt_frame_to_the_end():
    clip = ClipRegion.from_dict(record())
    assert clip_frames(clip, 4) == [2, 4, 7, 9] and clip_frames(clip, 1) == [2]
    assert clip_frames(clip, 8) == list(range(2, 10)) and clip_frames(clip, 10) == [2, 3, 4, 4, 5, 6, 7, 7, 8, 9]
    assert clip_frames(ClipRegion.from_dict(record(end_frame=3)), 3) == [2, 2, 2]
    assert clip_frames(clip, 3, annotated=True) == [2, 4, 6] and clip_frames(clip, 2, annotated=True) == [2, 6]
    with pytest.raises(ValueError, match="num_frames 0"):
        clip_frames(clip, 0)


def test_a_clip_is_read_only_from_a_video_of_its_own_size_and_length(tmp_path):
    clip = ClipRegion.from_dict(record())
    write_frames(tmp_path)
    frames = read_clip(tmp_path / clip.video, clip, clip_frames(clip, 3))
    assert frames.shape == (3, *HW, 3) and frames[:, 0, 0, 0].tolist() == [20, 60, 90]
    with pytest.raises(ValueError, match="clip 7: .* the record says .64, 48."):
        read_clip(tmp_path / "frames", ClipRegion.from_dict(record(frame_hw=[64, 48], frames={"2": PLACE})), [0])
    (tmp_path / "frames" / "00004.png").unlink()
    with pytest.raises(ValueError, match="clip 7: .* has 9 frames, the record says 10"):
        read_clip(tmp_path / "frames", clip, [0])


# ---------------------------------------------------------------------------------------------- examples

PICTURE = Region("p0", "0.png", HW, (1.0, 2.0, 30.0, 40.0))


class Processor(FamilyProcessor):
    """Samples that show what went into them: the region, the red of its frames, a random number."""

    def samples(self, example, options, generators, train):
        clip = isinstance(example.regions[0], ClipRegion)
        frames = example.frames(clip_frames(example.regions[0], 3) if clip else None)
        red = [int(frame[0, 0, 0]) for frame in frames]
        return [
            (region.id, red, int(example.image[0, 0, 0]), float(generator.random()))
            for region, generator in zip(example.regions, generators, strict=True)
        ]

    def collate(self, samples):
        return list(samples)


@pytest.fixture
def clips(tmp_path):
    """A folder with a video of ten frames, a picture, and clips: two of the same frames, others that differ in one."""
    write_frames(tmp_path)
    Image.new("RGB", HW[::-1], (250, 0, 0)).save(tmp_path / "0.png")
    changes = {"a": {}, "b": {"end_frame": 7}, "c": {}, "d": {"prompt_frame": 4}, "e": {"end_frame": 7}}
    write_clips(
        tmp_path / "clips.jsonl", [ClipRegion.from_dict(record(name, **each)) for name, each in changes.items()]
    )
    return tmp_path


def groups_of(records):
    return [[records[index].id for index in group] for group in records.example_groups()]


def test_regions_of_the_same_frames_are_one_example(clips, monkeypatch):
    records = open_records(clips / "clips.jsonl")
    assert groups_of(records) == [["a", "c"], ["b", "e"], ["d"]]
    asked = []
    monkeypatch.setattr(dataset_module, "read_clip", lambda *args: (asked.append(args[-1]), read_clip(*args))[1])
    dataset = ExampleDataset(records, Processor(), train=True, seed=3)
    example = dataset.example(Piece(0, np.arange(2)))
    assert not asked and example.image[0, 0, 0] == 20 and example.image.shape == (*HW, 3)
    assert dataset.samples(example, 1) == [
        (name, [20, 60, 90], 20, np.random.default_rng([3, 1, number]).random())
        for name, number in (("a", 0), ("c", 2))
    ]
    dataset.samples(example.part([1]), 1)
    assert asked == [[2], [2, 6, 9]], "each frame once for all regions"


def test_clips_and_pictures_stand_in_one_file_in_any_order(clips):
    lines = (clips / "clips.jsonl").read_text().splitlines()
    picture = json.dumps(PICTURE.to_dict())
    another = json.dumps({**PICTURE.to_dict(), "id": "p1"})
    for order in ([picture, *lines, another], [*lines[:2], picture, another, *lines[2:]]):
        (clips / "mixed.jsonl").write_text("\n".join(order) + "\n")
        records = open_records(clips / "mixed.jsonl")
        assert [region.id for region in records] == [json.loads(line)["id"] for line in order]
        assert sorted(groups_of(records)) == [["a", "c"], ["b", "e"], ["d"], ["p0", "p1"]]
        dataset = ExampleDataset(records, Processor(), train=True, seed=3)
        for num_workers in (0, 1):
            loader = ExampleLoader(dataset, 4, shuffle=True, seed=3, num_workers=num_workers)
            found = {name: (red, shown) for step in loader.epoch(0) for batch in step for name, red, shown, _ in batch}
            assert found["a"] == found["c"] == ([20, 60, 90], 20) and found["b"] == found["e"] == ([20, 40, 60], 20)
            assert found["d"] == ([40, 70, 90], 40) and found["p0"] == found["p1"] == ([250], 250) and len(found) == 7


def test_files_read_as_one_share_their_pictures(clips):
    write_records(clips / "r.jsonl", [PICTURE])
    (clips / "mixed.jsonl").write_text(
        json.dumps({**PICTURE.to_dict(), "id": "p1"}) + "\n" + json.dumps(record("f")) + "\n"
    )
    records = open_records([clips / "clips.jsonl", clips / "r.jsonl", clips / "mixed.jsonl"])
    assert groups_of(records) == [["a", "c"], ["b", "e"], ["d"], ["p0", "p1"], ["f"]]
    assert groups_of(records.subset([7, 6, 5, 2, 0])) == [["f"], ["p1", "p0"], ["c", "a"]]
    assert [path.name for path, _ in records.fetch([0, 5])] == ["frames", "0.png"]
    with pytest.raises(ValueError, match="id 'a' stands in"):
        open_records([clips / "clips.jsonl", clips / "clips.jsonl"])


def test_clips_of_one_video_that_contradict_each_other_are_an_error(clips):
    write_clips(
        clips / "c.jsonl", [ClipRegion.from_dict(record("a")), ClipRegion.from_dict(record("b", num_frames=10))]
    )
    other = record("z", frame_hw=[9, 9], frames={"2": {"box": [1, 2, 8, 8]}})
    with open(clips / "c.jsonl", "a") as file:
        file.write(json.dumps(other) + "\n")
    dataset = ExampleDataset(open_records(clips / "c.jsonl"), Processor(), train=True, seed=3)
    with pytest.raises(ValueError, match="clip z: frame_hw .9, 9., num_frames 10, but .48, 64., 10 in clip a"):
        dataset.samples(dataset.example(Piece(0, np.arange(3))), 0)


def test_shards_are_for_pictures(clips):
    with pytest.raises(ValueError, match="record a: shards hold regions of pictures"):
        write_shards(clips / "s", open_records(clips / "clips.jsonl"))
    assert not (clips / "s").exists()
