"""Shards: what is written is what is read, in any number of workers and processes, and nothing damaged passes."""

import functools
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import shard
from dynrefer.data import Region, open_records, save_arrow, write_records
from dynrefer.data import dataset as dataset_module
from dynrefer.data import shards as shards_module
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.loader import ExampleLoader, StandIn
from dynrefer.data.packing import Piece
from dynrefer.data.shards import is_shards, open_shards, write_shards
from dynrefer.data.stream import ShardDataset, ShardLoader
from dynrefer.models.family import FamilyProcessor

HW = (20, 30)
COUNTS = tuple(int(n) for n in np.random.default_rng(5).integers(1, 12, 40))  # regions of each of 40 images
TOTAL = sum(COUNTS)


class Samples(list):
    """A batch that is the list of its samples."""

    def leave_out(self, tasks, rows=slice(None)):
        pass


class Processor(FamilyProcessor):
    """Samples that show what went into them: the region, the image's first pixel, a random number."""

    def samples(self, example, options, generators, train):
        return [
            {"id": region.id, "pixel": int(example.image[0, 0, 0]), "draw": float(generator.random())}
            for region, generator in zip(example.regions, generators, strict=True)
        ]

    def collate(self, samples):
        torch.tensor([sample["draw"] for sample in samples])  # as all batches are made of tensors
        return Samples(samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images with their records, and the same as shards of about five images each."""
    folder = tmp_path_factory.mktemp("data")
    regions = []
    for k, count in enumerate(COUNTS):
        Image.fromarray(np.full((*HW, 3), 5 * k, dtype=np.uint8)).save(folder / f"{k}.png")
        regions += [
            Region(
                *(f"{k}_{j}", f"{k}.png", HW, (1.0, 2.0, 10.0, 12.0)),
                captions=("a tasse où",),
                source=f"made up:{j}",
                licence="CC0" if k else "",
            )
            for j in range(count)
        ]
    write_records(folder / "r.jsonl", regions)
    written = write_shards(folder / "shards", open_records(folder / "r.jsonl"), max_bytes=31_000)
    assert written["regions"] == TOTAL and written["images"] == 40 and 5 <= written["shards"] <= 12
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the shards that a test may damage."""
    for file in (folder / "shards").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(shards_module, "PAUSE", 0)


def make_loader(source, batch_size=16, cache_bytes=0, **options):
    options = {"shuffle": True, "seed": 3, "num_workers": 0, "streams": 4, "buffer": 24, **options}
    dataset = ShardDataset(open_shards(source), Processor(), train=True, seed=options["seed"], cache_bytes=cache_bytes)
    return ShardLoader(dataset, batch_size, **options)


def samples_of(steps):
    """Of each step: its passes as lists of samples."""
    return [[list(batch) for batch in step] for step in steps]


def in_step(step):
    """The samples of a step's passes together, in the order of their names."""
    return sorted((sample for batch in step for sample in batch), key=lambda sample: sample["id"])


def ids_of(steps):
    return [sample["id"] for step in steps for batch in step for sample in batch]


def every_id(folder):
    return sorted(region.id for region in open_records(folder / "r.jsonl"))


def counted(loader, monkeypatch):
    """How often a loader reads each image."""
    read, original = Counter(), loader.shards.read
    counting = lambda images: ((read.update([number]) or number, encoded) for number, encoded in original(images))  # noqa: E731
    monkeypatch.setattr(loader.shards, "read", counting)
    return read


# ---------------------------------------------------------------------------------------------- files


def test_what_is_written_is_what_is_read(folder):
    records, opened = open_records(folder / "r.jsonl"), open_shards(folder / "shards")
    assert len(opened) == TOTAL and opened.counts.tolist() == list(COUNTS)
    assert (
        opened.licences() == records.licences() == {("made up", "CC0"): TOTAL - COUNTS[0], ("made up", ""): COUNTS[0]}
    )
    for before, after in zip(records, opened, strict=True):
        assert {**before.to_dict(), "image": None} == {**after.to_dict(), "image": None}
    for number, encoded in opened.read(range(40)):
        assert encoded.image == (folder / f"{number}.png").read_bytes()
    index = json.loads((folder / "shards" / "index.json").read_text())
    assert all(entry["bytes"] <= 31_000 for entry in index["shards"])


def test_webdataset_and_tar_read_the_shards_too(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, (folder / "shards").glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 40 and {"png", "json"} <= found[0].keys()
    assert [len(json.loads(sample["json"])["regions"]) for sample in found] == list(COUNTS)
    with tarfile.open(urls[0]) as tar:
        tar.extractall(tmp_path, filter="data")
    first = json.loads(min(tmp_path.glob("*.json")).read_text())["regions"]
    write_records(tmp_path / "r.jsonl", [Region.from_dict(record) for record in first])  # images lie beside it
    beside = ExampleDataset(open_records(tmp_path / "r.jsonl"), Processor(), train=False, seed=0)
    assert beside.samples(beside.example(Piece(0, np.arange(1))), 0)[0]["pixel"] == 0


def test_the_same_records_make_the_same_bytes_and_a_seed_turns_the_images(folder, tmp_path):
    records = open_records(folder / "r.jsonl")
    write_shards(tmp_path / "again", records, max_bytes=31_000)
    for file in (folder / "shards").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    write_shards(tmp_path / "turned", records, seed=1)
    turned = [region.id for region in open_shards(tmp_path / "turned")]
    assert sorted(turned) == sorted(r.id for r in records) and turned != [r.id for r in records]


def test_images_are_gathered_from_all_over_the_file(folder, tmp_path):
    records = open_records(folder / "r.jsonl")
    write_shards(tmp_path / "s", records.subset(np.random.default_rng(0).permutation(TOTAL)))
    assert sorted(open_shards(tmp_path / "s").counts) == sorted(COUNTS)


def test_a_writer_that_stops_leaves_nothing_that_looks_whole(folder, tmp_path):
    class Broken:
        def __init__(self, records):
            self.records = records

        def image_groups(self):
            return self.records.image_groups()

        def fetch(self, members):
            if members[0] > TOTAL // 2:
                raise OSError(28, "No space left on device")
            return self.records.fetch(members)

    with pytest.raises(OSError, match="No space"):
        write_shards(tmp_path / "s", Broken(open_records(folder / "r.jsonl")), max_bytes=5000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "r.jsonl").write_bytes((folder / "r.jsonl").read_bytes())
    with pytest.raises(ValueError, match="region 0_0: image .*0.png: No such file"):
        write_shards(tmp_path / "s", open_records(tmp_path / "r.jsonl"))


def test_shards_are_named_in_many_ways(folder, monkeypatch):
    place = folder / "shards"
    whole = open_shards(place)
    last = len(whole.urls) - 1
    for source in (
        str(place),
        place / "index.json",
        f"{place}/shard-{{000000..{last:06d}}}.tar",
        f"{place}/*.tar",
        [f"{place}/shard-000000.tar", f"{place}/shard-{{000001..{last:06d}}}.tar"],
        f"file://{place}/index.json",
        f"pipe:cat {place}/index.json",
        f"pipe:cat '{place}/shard-{{000000..{last:06d}}}.tar'",
    ):
        assert is_shards(source), source
        opened = open_shards(source)
        assert opened.counts.tolist() == whole.counts.tolist()
        assert [region.id for region in opened] == [region.id for region in whole]
    part = open_shards([f"{place}/shard-000002.tar", f"{place}/shard-000000.tar"])
    assert part.counts.tolist() == [
        *whole.counts[whole.first_image[2] : whole.first_image[3]],
        *whole.counts[: whole.first_image[1]],
    ]
    for other in (folder / "r.jsonl", "data/train.arrow", [str(folder / "r.jsonl")], "", []):
        assert not is_shards(other)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("none/*.tar", "no such file"),
        ("shards/shard-999999.tar", "does not list shard-999999.tar"),
        (["shards/shard-000000.tar", "shards"], "named twice"),
        ("index.json", "no index of shards"),
        ("pipe:cat nothing", "no NAME.tar"),
        ("pipe:cat none/shard-000000.tar", "no index of shards"),
        ("xyz://host/index.json", "no index of shards"),
    ],
)
def test_addresses_without_shards_are_errors(folder, monkeypatch, source, rule):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=rule):
        open_shards(source)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"format": "x"}, "format 'x'"),
        ({"shards": 3}, "no index"),
        ({"name": "../shard-000000.tar"}, "'../shard-000000.tar'"),
        ({"bytes": "1"}, "of '1' bytes"),
        ({"regions": [1, 0]}, "at least 1"),
        ({"regions": []}, "at least 1"),
        ({"regions": [1.5]}, "whole numbers"),
        ({"licences": 3}, "no index"),
        ({"regions": [True]}, "whole numbers"),
        ({"regions": [10**30]}, "whole numbers"),
    ],
)
def test_a_bad_index_is_an_error(copied, change, rule):
    index = json.loads((copied / "index.json").read_text())
    (index if change.keys() & index.keys() else index["shards"][0]).update(change)
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rule):
        open_shards(copied)


def test_local_shards_of_another_size_are_noticed_at_once(copied):
    data = (copied / "shard-000001.tar").read_bytes()
    (copied / "shard-000001.tar").write_bytes(data[:-512])
    with pytest.raises(ValueError, match=f"shard-000001.tar: {len(data) - 512} bytes, its index says {len(data)}"):
        open_shards(copied)
    (copied / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match="shard-000001.tar: no such file"):
        open_shards(copied)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("keep", ["half", "one sample", "nothing"])
def test_a_truncated_shard_is_an_error_that_names_it(copied, local, keep):
    """Whether the cut goes through a file or between two."""
    path = copied / "shard-000001.tar"
    with tarfile.open(path) as tar:
        second = tar.getmembers()[2].offset
    data = path.read_bytes()
    data = data[: {"half": len(data) // 2 + 100, "one sample": second, "nothing": 0}[keep]]
    path.write_bytes(data)
    index = json.loads((copied / "index.json").read_text())
    index["shards"][1]["bytes"] = len(data)  # as if it had been cut before the index was made
    (copied / "index.json").write_text(json.dumps(index))
    opened = open_shards(copied if local else f"pipe:cat {copied}/index.json")
    with pytest.raises(ValueError, match="shard-000001.tar: truncated, damaged or out of reach"):
        list(opened)
    with pytest.raises(ValueError, match="shard-000001.tar: truncated"):
        list(make_loader(copied if local else f"pipe:cat {copied}/index.json").epoch(0))


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("/etc/passwd.png", None, "relative names"),
        ("../a.png", None, "relative names"),
        ("a/../../b.png", None, "relative names"),
        ("a.png", tarfile.SYMTYPE, "a link"),
        ("a.png", tarfile.LNKTYPE, "a link"),
        ("a.png", tarfile.FIFOTYPE, "special file"),
        ("a.png", tarfile.GNUTYPE_SPARSE, "special file"),
    ],
)
def test_hostile_members_are_refused(tmp_path, name, kind, rule):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        if kind is not None:
            info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info, io.BytesIO(b""))
    size = (tmp_path / "shard-000000.tar").stat().st_size
    entry = {"name": "shard-000000.tar", "bytes": size, "regions": [1], "licences": []}
    (tmp_path / "index.json").write_text(json.dumps({"format": "dynrefer-shards-1", "shards": [entry]}))
    with pytest.raises(ValueError, match=f"shard-000000.tar: .*{rule}"):
        list(open_shards(tmp_path))


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"png": b"", "json": b"{"}, 'expected {"regions"'),
        ({"png": b"", "json": b"[]"}, 'expected {"regions"'),
        ({"png": b"", "json": b'{"regions": []}'}, "not the 1 regions"),
        ({"png": b"", "json": b'{"regions": [{"id": "a"}]}'}, r"shard-000000.tar:0.json:0: missing key"),
        ({"json": b'{"regions": [1]}'}, "an image and a .json"),
        ({"png": b""}, "an image and a .json"),
        ({"png": b"", "jpg": b"", "json": b""}, "an image and a .json"),
    ],
)
def test_samples_of_another_form_are_errors(tmp_path, files, rule):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for ending, data in files.items():
            info = tarfile.TarInfo(f"0.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    size = (tmp_path / "shard-000000.tar").stat().st_size
    entry = {"name": "shard-000000.tar", "bytes": size, "regions": [1], "licences": []}
    (tmp_path / "index.json").write_text(json.dumps({"format": "dynrefer-shards-1", "shards": [entry]}))
    with pytest.raises(ValueError, match=rule):
        list(open_shards(tmp_path))


class Server(http.server.SimpleHTTPRequestHandler):
    breaks_off: Counter = Counter()

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = Path(self.path).name
        data = (Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.breaks_off[name] += 1
        self.wfile.write(data[: len(data) // 3] if self.breaks_off[name] == 1 and name.endswith(".tar") else data)


@pytest.mark.skipif(not any((Path(p) / "curl").exists() for p in os.get_exec_path()), reason="no curl")
def test_a_download_that_breaks_off_goes_on(folder):
    pytest.importorskip("webdataset")
    Server.breaks_off.clear()
    handler = functools.partial(Server, directory=folder / "shards")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/index.json"
        found = [region.id for region in open_shards(url)]
        server.shutdown()
    assert found == [region.id for region in open_records(folder / "r.jsonl")]
    assert sum(count == 2 for count in Server.breaks_off.values()) >= 4  # the last one is short


def test_s3_goes_through_the_aws_command(folder, tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    program = tmp_path / "aws"
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec cat "{folder}/shards/$(basename "$3")"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert len(list(open_shards("s3://bucket/some where/index.json"))) == TOTAL


# ---------------------------------------------------------------------------------------------- steps


def test_an_epoch_holds_every_region_once(folder):
    for options in ({}, {"streams": 1}, {"streams": 50, "buffer": 1}, {"shuffle": False}, {"batch_size": 300}):
        loader = make_loader(folder / "shards", **options)
        steps = samples_of(loader.epoch(0))
        assert len(steps) == loader.num_steps(0)
        assert sorted(ids_of(steps)) == every_id(folder)
        for step in steps:
            found = Counter(int(sample["id"].split("_")[0]) for batch in step for sample in batch)
            assert all(COUNTS[image] == count for image, count in found.items()), "whole images"
            room = loader.batch_size / loader.streams
            assert found.total() <= sum(max(room, 11) for _ in range(loader.streams))
            assert all(sample["pixel"] == 5 * int(sample["id"].split("_")[0]) for batch in step for sample in batch)
    one = samples_of(make_loader(folder / "shards", 16, streams=1).epoch(0))
    assert all(len(batch) <= 16 for (batch,) in one)


def test_a_pack_larger_than_its_room_takes_more_passes(folder):
    loader = make_loader(folder / "shards", 8, streams=2)  # a room of four, images of up to eleven regions
    steps = samples_of(loader.epoch(0))
    assert {len(step) for step in steps} == {1, 2, 3}
    assert 8 < max(sum(map(len, step)) for step in steps) <= 22
    assert max(len(batch) for step in steps for batch in step) < 12, "of 22 in three passes"


def test_epochs_and_seeds_differ_and_the_same_one_repeats(folder):
    loader = make_loader(folder / "shards")
    first = ids_of(loader.epoch(0))
    assert first == ids_of(make_loader(folder / "shards").epoch(0)) == ids_of(loader.epoch(0))
    assert first != ids_of(loader.epoch(1)) and first != ids_of(make_loader(folder / "shards", seed=4).epoch(0))
    plain = make_loader(folder / "shards", shuffle=False)
    assert ids_of(plain.epoch(0)) == ids_of(plain.epoch(1)) == [r.id for r in open_records(folder / "r.jsonl")]


def test_the_buffer_mixes_images_of_a_stream_and_holds_no_more(folder):
    ordered = make_loader(folder / "shards", streams=1, buffer=1)
    images = [int(name.split("_")[0]) for name in ids_of(ordered.epoch(0))]
    shards = np.searchsorted(ordered.shards.first_image, images, side="right")
    assert (np.diff([k for k, image in enumerate(images) if k == 0 or images[k - 1] != image]) > 0).all()
    assert len([1 for a, b in zip(shards, shards[1:], strict=False) if a != b]) == len(ordered.shards.urls) - 1
    (mixed,) = make_loader(folder / "shards", 1, streams=1, buffer=10).plan(0)
    assert 3 <= np.abs(np.arange(40) - mixed.places).max() < 10


def test_streams_share_the_regions_evenly_and_none_needs_one(folder):
    for streams in (2, 3, 4):
        plan = make_loader(folder / "shards", streams=streams).plan(0)
        assert sorted(np.concatenate([stream.images for stream in plan])) == list(range(40))
        held = [sum(COUNTS[image] for image in stream.images) for stream in plan]
        assert len(plan) == streams and max(held) - min(held) <= 2 * 11


def test_more_streams_than_images_leave_some_empty(tmp_path):
    Image.new("RGB", HW[::-1]).save(tmp_path / "0.png")
    regions = [Region(f"{j}", "0.png", HW, (1.0, 2.0, 10.0, 12.0)) for j in range(9)]
    write_records(tmp_path / "r.jsonl", regions)
    for k in (0, 1):
        write_shards(tmp_path / f"s{k}", open_records(tmp_path / "r.jsonl"))
    both = [tmp_path / "s0", tmp_path / "s1"]
    every = [make_loader(both, 16, streams=2, rank=rank, world_size=2, stand_in=True) for rank in (0, 1)]
    assert [[[len(batch) for batch in step] for step in loader.epoch(0)] for loader in every] == [[[5, 4]], [[5, 4]]]
    alone = [make_loader(tmp_path / "s0", 16, rank=rank, world_size=2, stand_in=True) for rank in (0, 1)]
    assert [[[len(batch) for batch in step] for step in loader.epoch(0)] for loader in alone] == [[[5]], [[4]]]


def test_samples_are_those_of_the_record_file(folder):
    records = ExampleDataset(open_records(folder / "r.jsonl"), Processor(), train=True, seed=3)
    steps = ExampleLoader(records, 16, shuffle=True, seed=3, num_workers=0).epoch(2)
    expected = in_step(batch for step in steps for batch in step)
    found = make_loader(folder / "shards").epoch(2)
    assert in_step(batch for step in found for batch in step) == expected and len(expected) == TOTAL


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(folder, num_workers):
    plain, loader = make_loader(folder / "shards"), make_loader(folder / "shards", num_workers=num_workers)
    for epoch in (0, 1):  # the second epoch meets the workers of the first
        assert samples_of(loader.epoch(epoch)) == samples_of(plain.epoch(epoch))
    stopped = loader.epoch(2)
    next(stopped)
    assert samples_of(loader.epoch(2, start_step=5)) == samples_of(plain.epoch(2))[5:]


def test_any_number_of_processes_shares_the_same_steps_and_reads_its_part(folder, monkeypatch):
    plain = [in_step(step) for step in make_loader(folder / "shards").epoch(1)]
    read = {}
    for world_size, accumulation in ((1, 1), (1, 2), (2, 1), (4, 1), (4, 2), (8, 1), (3, 1)):
        shares = []
        for rank in range(world_size):
            loader = make_loader(folder / "shards", rank=rank, world_size=world_size, accumulation=accumulation)
            read[world_size, accumulation, rank] = counted(loader, monkeypatch)
            shares.append(samples_of(loader.epoch(1)))
        for step, expected in zip(zip(*shares, strict=True), plain, strict=True):
            assert in_step(batch for share in step for batch in share) == expected
            assert len({len(share) for share in step}) == 1
    assert read[1, 1, 0] == Counter(range(40))
    for places in ((2, 1), (4, 1), (4, 2)):  # four streams: each process reads its own, and no other
        assert sum((read[*places, rank] for rank in range(places[0])), Counter()) == Counter(range(40))
    assert sum(read[8, 1, rank].total() for rank in range(8)) == 2 * 40  # two processes share a stream


def test_a_later_start_gives_the_rest_and_decodes_nothing_else(folder, monkeypatch):
    loader = make_loader(folder / "shards")
    whole = samples_of(loader.epoch(0))
    opened, original = Counter(), dataset_module.open_image
    monkeypatch.setattr(dataset_module, "open_image", lambda *args: (opened.update(args[:1]), original(*args))[1])
    for start in (0, 1, 7, len(whole) - 1):
        opened.clear()
        assert samples_of(loader.epoch(0, start_step=start)) == whole[start:]
        assert len(opened) == len({name.split("_")[0] for name in ids_of(whole[start:])})
    assert list(loader.epoch(0, start_step=len(whole))) == []
    with pytest.raises(ValueError, match=f"start_step {len(whole) + 1}"):
        next(loader.epoch(0, start_step=len(whole) + 1))


def test_stand_ins_are_the_same_after_a_restart(folder):
    places = {"world_size": 4, "stand_in": True, "max_regions_per_image": 3, "batch_size": 8}

    def steps(loader, start):
        return [
            [(isinstance(batch, StandIn), list(batch.shown if isinstance(batch, StandIn) else batch)) for batch in step]
            for step in loader.epoch(0, start_step=start)
        ]

    idle = 0
    for rank in range(4):
        loader = make_loader(folder / "shards", rank=rank, **places)
        whole = steps(loader, 0)
        assert all(batch for step in whole for _, batch in step)
        idle += sum(stands for step in whole for stands, _ in step)
        for start in range(len(whole)):
            assert steps(loader, start) == whole[start:]
    assert idle, "some streams end before others"


def test_every_image_is_decoded_once_however_many_passes_it_takes(folder, monkeypatch):
    opened, original = Counter(), dataset_module.open_image
    monkeypatch.setattr(dataset_module, "open_image", lambda *args: (opened.update(args[:1]), original(*args))[1])
    for batch_size, streams, accumulation in ((16, 4, 1), (4, 4, 2), (4, 1, 1), (1, 1, 1)):
        opened.clear()
        list(make_loader(folder / "shards", batch_size, streams=streams, accumulation=accumulation).epoch(0))
        assert opened.total() == 40


def test_the_encoded_images_that_are_held_are_few(folder, monkeypatch):
    """What was read and not yet given out is in the buffer."""
    for batch_size, streams, buffer in ((1, 1, 8), (8, 1, 20), (16, 4, 12)):
        loader = make_loader(folder / "shards", batch_size, streams=streams, buffer=buffer)
        read = counted(loader, monkeypatch)
        given, most = set(), 0
        for key in loader._keys_of(0, 0):
            given |= {piece.number for items, _ in key for _, _, piece in items}
            most = max(most, read.total() - len(given))
        assert 0 < most <= buffer and len(given) == 40


def test_at_most_so_many_regions_of_an_image(folder):
    loader = make_loader(folder / "shards", 8, max_regions_per_image=3)
    dataset = ExampleDataset(open_records(folder / "r.jsonl"), Processor(), train=True, seed=3)
    records = ExampleLoader(dataset, 8, shuffle=True, seed=3, num_workers=0, max_regions_per_image=3)
    assert loader.num_regions == sum(min(count, 3) for count in COUNTS) == records.num_regions
    for epoch in (0, 1):  # the choice is that of the record file
        assert sorted(ids_of(loader.epoch(epoch))) == sorted(ids_of(records.epoch(epoch)))
    assert sorted(ids_of(loader.epoch(0))) != sorted(ids_of(loader.epoch(1)))


def test_a_bad_image_is_a_value_error_that_names_its_sample(folder, tmp_path):
    for k in range(40):
        (tmp_path / f"{k}.png").write_bytes((folder / f"{k}.png").read_bytes())
    (tmp_path / "7.png").write_bytes(b"\x89PNG")
    (tmp_path / "r.jsonl").write_bytes((folder / "r.jsonl").read_bytes())
    write_shards(tmp_path / "s", open_records(tmp_path / "r.jsonl"))
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="region 7_.*shard-000000.tar:000000007"):
            list(make_loader(tmp_path / "s", num_workers=num_workers).epoch(0))


def test_readers_end_with_their_epoch(folder):
    loader = make_loader(folder / "shards")
    for _ in range(5):
        next(loader.epoch(0))
    list(loader.epoch(1))
    for thread in [thread for thread in threading.enumerate() if thread.name == "shards"]:
        thread.join(timeout=5)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"streams": 0}, "streams 0"),
        ({"buffer": 0}, "buffer 0"),
        ({"max_regions_per_image": 0}, "max_regions_per_image 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder, options, rule):
    with pytest.raises(ValueError, match=rule):
        make_loader(folder / "shards", **options)


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_makes_shards_and_arrow_elsewhere(folder, tmp_path, capsys):
    assert shard.main([str(folder / "r.jsonl"), "--out", str(tmp_path / "s"), "--max-mb", str(31_000 / 2**20)]) == 0
    assert f"{TOTAL}  regions" in capsys.readouterr().out
    for file in (folder / "shards").iterdir():
        assert (tmp_path / "s" / file.name).read_bytes() == file.read_bytes()
    assert shard.main([str(folder / "r.jsonl"), "--out", str(tmp_path / "deep" / "arrow"), "--arrow"]) == 0
    records = open_records(tmp_path / "deep" / "arrow")
    assert len(records) == TOTAL and records.image_path(0).resolve() == (folder / "0.png").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "s"]  # nothing temporary stays
    save_arrow(folder / "train", [Region("t", "0.png", HW, (0.0, 0.0, 3.0, 3.0), split="train")])
    files = [str(folder / "r.jsonl"), str(folder / "train")]
    assert shard.main([*files, "--out", str(tmp_path / "both"), "--arrow"]) == 0
    assert len(open_records(tmp_path / "both")) == TOTAL + 1
    assert shard.main([*files, "--out", str(tmp_path / "one"), "--arrow", "--split", "train"]) == 0
    assert len(open_records(tmp_path / "one")) == 1


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["none.jsonl"], "cannot be read"),
        (["empty.jsonl"], "no records"),
        (["r.jsonl", "--split", "x"], "no records of split 'x'"),
        (["r.jsonl", "--arrow", "--shuffle", "1"], "--shuffle"),
        (["r.jsonl", "--shuffle", "-1"], "--shuffle -1"),
        (["r.jsonl", "r.jsonl"], "id '0_0'"),
        (["torn.jsonl"], "torn.jsonl:1: not a JSON line"),
    ],
)
def test_the_command_explains_its_mistakes_and_leaves_nothing(folder, tmp_path, capsys, monkeypatch, arguments, rule):
    monkeypatch.chdir(folder)
    (folder / "empty.jsonl").touch()
    (folder / "torn.jsonl").write_text('{"id": "b", "ima')
    assert shard.main([*arguments, "--out", str(tmp_path / "s")]) == 2
    assert rule in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_that_is_killed_leaves_nothing_that_looks_whole(folder, tmp_path):
    code = (
        "import os, sys; from dynrefer.data import shards; real = shards._sample; left = [20]\n"
        "def dying(*a):\n    left[0] -= 1\n    return real(*a) if left[0] else os._exit(9)\n"
        "shards._sample = dying; from data_prep import shard; sys.exit(shard.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(folder / "r.jsonl"), "--out", str(tmp_path / "s")]
    assert subprocess.run(command, timeout=120).returncode == 9
    assert not (tmp_path / "s").exists() and not list(tmp_path.rglob("index.json"))
