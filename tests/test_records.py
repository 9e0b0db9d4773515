import errno
import gzip
import json
import os
import pickle

import numpy as np
import pytest

from dynrefer.data.arrow import save_arrow
from dynrefer.data.image_groups import column_hashes, hashes_of, repeated
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.files import atomic_path, read_jsonl
from dynrefer.masks import mask_to_rle

RECORD = {
    "id": "a_0",
    "image": "images/a.png",
    "image_hw": [20, 30],
    "box": [1, 2, 10.5, 12],
    "mask": [[1, 2, 10, 2, 10, 12]],
    "captions": ["a red cup", "the cup"],
    "tags": ["cup"],
    "attributes": {"red": 1, "wet": -1},
    "category": "cup",
    "source": "made up",
    "licence": "CC0",
    "split": "train",
}


def record(**changes) -> dict:
    return {key: value for key, value in {**RECORD, **changes}.items() if value != "absent"}


def regions(count: int = 5) -> list[Region]:
    return [
        Region.from_dict(
            record(
                id=f"r{k}",
                image=f"images/{'cab'[k % 3]}.png",
                mask=None if k % 2 else RECORD["mask"],
                tags=None if k == 1 else [] if k == 2 else ["cup"],
                attributes={} if k == 3 else RECORD["attributes"],
                category=None if k == 4 else "cup",
                split="val" if k == 4 else "train",
            )
        )
        for k in range(count)
    ]


def write_lines(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_a_record_goes_through_json_unchanged():
    region = Region.from_dict(RECORD)
    assert region.box == (1.0, 2.0, 10.5, 12.0) and region.image_hw == (20, 30)
    assert Region.from_dict(json.loads(json.dumps(region.to_dict()))) == region
    assert json.loads(json.dumps(region.to_dict())) == RECORD


def test_four_keys_are_enough_and_the_rest_has_plain_defaults():
    region = Region.from_dict({key: RECORD[key] for key in ("id", "image", "image_hw", "box")})
    assert region.captions == () and region.tags is None and region.attributes == {} and region.category is None
    assert region.mask is None and region.to_mask() is None
    assert Region.from_dict(region.to_dict()) == region


def test_without_a_box_it_is_the_masks():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:7, 4:9] = True
    region = Region.from_dict(record(box="absent", mask=mask_to_rle(mask)))
    assert region.box == (4, 3, 9, 7)
    assert (region.to_mask() == mask).all()
    assert Region.from_dict(record(box=None, mask=[[4, 3, 9, 3, 9, 7, 4, 7]])).box == (4, 3, 9, 7)


def test_a_box_partly_outside_is_clipped():
    assert Region.from_dict(record(box=[-5, 10, 100, 21])).box == (0, 10, 30, 20)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"id": "absent"}, r"missing key \['id'\]"),
        ({"id": ""}, "id ''"),
        ({"id": 7}, "id 7: expected text"),
        ({"image": None}, r"missing key \['image'\]"),
        ({"image_hw": [20]}, "image_hw"),
        ({"image_hw": [20.5, 30]}, "image_hw"),
        ({"box": "absent", "mask": "absent"}, "neither box nor mask"),
        ({"box": [1, 2, 3]}, "four numbers"),
        ({"box": "1 2 3 4"}, "four numbers"),
        ({"box": [1, 2, True, 4]}, "four numbers"),
        ({"box": [1, 2, float("nan"), 4]}, "region a_0: non-finite box"),
        ({"box": [1, 2, float("inf"), 4]}, "region a_0: non-finite box"),
        ({"box": [1, 2, 10**400, 4]}, "too large"),
        ({"box": [10, 2, 5, 12]}, "region a_0: inverted box"),
        ({"box": [5, 2, 5, 12]}, "region a_0: empty box"),
        ({"box": [30, 2, 40, 12]}, "region a_0: wholly outside box"),
        ({"mask": [[1, 2, 3, 4, 5]]}, "5 numbers"),
        ({"mask": {"size": [30, 20], "counts": [600]}}, r"\(30, 20\).*\(20, 30\)"),
        ({"mask": "m.png"}, "mask of type str"),
        ({"box": None, "mask": {"size": [20, 30], "counts": [600]}}, "empty mask"),
        ({"captions": "a cup"}, "captions 'a cup': expected a list"),
        ({"captions": ["a cup", " "]}, "captions: ' '"),
        ({"captions": [None]}, "captions: None"),
        ({"tags": "cup"}, "tags 'cup'"),
        ({"tags": [1]}, "tags: 1"),
        ({"attributes": ["red"]}, "attributes"),
        ({"attributes": {"red": 0}}, "attribute 'red': 0"),
        ({"attributes": {"red": True}}, "attribute 'red': True"),
        ({"attributes": {"red": 1.0}}, "attribute 'red': 1.0"),
        ({"category": ["cup"]}, "category"),
        ({"category": ""}, "category ''"),
        ({"licence": 3}, "licence 3"),
        ({"caption": "a cup"}, r"unknown key \['caption'\]"),
    ],
)
def test_a_bad_record_names_file_line_and_rule(changes, rule, tmp_path):
    with pytest.raises(ValueError, match=rule) as raised:
        Region.from_dict(record(**changes), "some.jsonl:3")
    assert str(raised.value).startswith("some.jsonl:3: ") and "data_prep.check" in str(raised.value)
    path = write_lines(tmp_path / "r.jsonl", record(), record(id="b"), record(**changes))
    with pytest.raises(ValueError, match=rf"r.jsonl:3: .*{rule}"):
        open_records(path)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_not_an_object_is_no_record(value):
    with pytest.raises(ValueError, match="instead of a record"):
        Region.from_dict(value)


@pytest.fixture(params=["r.jsonl", "r.jsonl.gz", "arrow", "r.arrow", "r.parquet"])
def record_file(request, tmp_path):
    path = tmp_path / request.param
    if "jsonl" in request.param:
        assert write_records(path, regions()) == 5
    elif request.param == "arrow":
        save_arrow(path, regions())
    else:
        save_arrow(tmp_path / "folder", regions())
        source = next((tmp_path / "folder").glob("*.arrow"))
        if request.param == "r.arrow":
            os.replace(source, path)
        else:
            pq = pytest.importorskip("pyarrow.parquet")
            pq.write_table(open_records(source)._table, path)
    return path


def test_every_format_gives_the_same_records(record_file):
    records = open_records(record_file)
    assert len(records) == 5 and list(records) == regions() and records[-1] == regions()[-1]
    assert records.root == record_file.parent
    assert records.image_path(1) == records.image_path(-1) == record_file.parent / "images" / "a.png"
    assert records.image_groups() == [[0, 3], [1, 4], [2]]
    with pytest.raises(IndexError):
        records[5]


def test_every_format_selects_a_split_and_a_subset_and_travels_to_a_worker(record_file):
    train = open_records(record_file, split="train")
    assert list(train) == regions()[:4] and train.image_groups() == [[0, 3], [1], [2]]
    assert list(open_records(record_file, split="val")) == regions()[4:]
    assert list(train.subset([3, 0])) == [regions()[3], regions()[0]]
    assert list(pickle.loads(pickle.dumps(train))) == regions()[:4]
    with pytest.raises(ValueError, match=r"'test'.*\['train', 'val'\]"):
        open_records(record_file, split="test")


def test_several_files_are_read_as_one(record_file, tmp_path):
    other = tmp_path / "elsewhere" / "more.jsonl"
    write_records(other, [Region.from_dict(record(id="x", image="c.png"))])
    records = open_records([record_file, other])
    assert [region.id for region in records] == ["r0", "r1", "r2", "r3", "r4", "x"] and records[-1].id == "x"
    assert records.image_path(5) == other.parent / "c.png" and records.image_path(0) == tmp_path / "images" / "c.png"
    assert records.image_groups() == [[0, 3], [1, 4], [2], [5]]  # c.png of two folders is two images
    assert [region.id for region in records.subset([5, 1])] == ["x", "r1"]
    with pytest.raises(ValueError, match="'r0' stands in .* already"):
        open_records([record_file, record_file])


def test_ids_are_unique_in_every_format(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_records(tmp_path / "r.jsonl", [*regions(2), *regions(1)])
    with pytest.raises(ValueError, match="r.jsonl:3: id 'r0' stands in line 1"):
        open_records(tmp_path / "r.jsonl")
    save_arrow(tmp_path / "arrow", regions(2))
    rows = datasets.load_from_disk(str(tmp_path / "arrow"))
    datasets.concatenate_datasets([rows, rows.select([0])]).save_to_disk(str(tmp_path / "twice"))
    with pytest.raises(ValueError, match="twice:row 2: id 'r0' stands in row 0"):
        open_records(tmp_path / "twice")
    # what we write ourselves is checked before it takes its name, also where the two are far apart
    many = [*regions(2), *(Region(**{**regions(1)[0].__dict__, "id": f"x{k}"}) for k in range(1000)), *regions(1)]
    with pytest.raises(ValueError, match="/none:row 1002: id 'r0' stands in row 0"):
        save_arrow(tmp_path / "none", many)
    assert not list(tmp_path.glob("*none*"))


def test_an_arrow_folder_knows_its_images_without_reading_rows(tmp_path, monkeypatch):
    """What `save_arrow` notes is what a look at every row finds, together or not."""
    together = [r for image in ("a.png", "b.png", "c.png") for r in regions() if r.image == f"images/{image}"]
    for name, rows in (("mixed", regions(5)), ("together", together), ("one", regions(1))):
        assert save_arrow(tmp_path / name, iter(rows)) == len(rows)
        noted = open_records(tmp_path / name)
        assert noted.image_names() == list(dict.fromkeys(region.image for region in rows))
        with monkeypatch.context() as patch:
            patch.setattr(noted, "_texts", None)  # would read the column
            noted.check_ids()
            groups = noted.image_groups()
        looked = open_records(next((tmp_path / name).glob("*.arrow"))).image_groups()
        expected = {image: [k for k, r in enumerate(rows) if r.image == image] for image in noted.image_names()}
        assert groups == looked == list(expected.values())
        assert all(k in groups[groups.number(k)] for k in range(len(rows)))
    assert open_records(tmp_path / "together").image_groups().order is None


def test_what_was_noted_of_former_rows_is_not_believed(tmp_path):
    datasets = pytest.importorskip("datasets")
    save_arrow(tmp_path / "arrow", regions())
    turned = datasets.load_from_disk(str(tmp_path / "arrow")).select([4, 3, 2, 1, 0])
    turned.save_to_disk(str(tmp_path / "turned"))
    for file in (tmp_path / "turned").iterdir():  # as a writer does that leaves other files where they are
        os.replace(file, tmp_path / "arrow" / file.name)
    assert open_records(tmp_path / "arrow").image_groups() == [[0, 3], [1, 4], [2]]
    assert open_records(tmp_path / "arrow").image_names() == ["images/a.png", "images/c.png", "images/b.png"]
    save_arrow(tmp_path / "cut", regions())
    (rows,) = (tmp_path / "cut").glob("*.arrow")
    save_arrow(tmp_path / "short", regions(2))
    os.replace(next((tmp_path / "short").glob("*.arrow")), rows)
    with pytest.raises(ValueError, match="2 rows, 5 were written"):
        open_records(tmp_path / "cut")


def test_rows_are_the_same_however_they_are_asked_for(tmp_path):
    many = [Region(**{**regions(5)[k % 5].__dict__, "id": f"{k}"}) for k in range(2000)]
    pa = pytest.importorskip("pyarrow")
    save_arrow(tmp_path / "arrow", many)
    table = open_records(tmp_path / "arrow")._table
    with pa.OSFile(str(tmp_path / "small.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    for path in (tmp_path / "arrow", tmp_path / "small.arrow"):
        records = open_records(path)
        assert list(records) == many and [records[k] for k in (0, 6, 7, 1999, -1)] == [
            many[k] for k in (0, 6, 7, -1, -1)
        ]
        asked = [5, 6, 7, 8, 30, 29, 28, 1999, 0, 0]
        assert records.fetch(asked) == [(tmp_path / many[k].image, many[k]) for k in asked]
        assert records.subset(range(100, 200)).fetch([5, 6]) == records.fetch([105, 106])
        assert [len(group) for group in records.image_groups()] == [800, 800, 400]
        val = open_records(path, split="val")  # every fifth row
        assert len(val) == 400 and val[1] == many[9] and val.image_groups()[0] == list(range(400))


def test_files_that_share_images_are_read_as_one_and_repeat_no_id(tmp_path):
    save_arrow(tmp_path / "arrow", regions())
    write_records(
        tmp_path / "more.jsonl", [Region.from_dict(record(id=f"x{k}", image=f"images/{k}.png")) for k in "ad"]
    )
    records = open_records([tmp_path / "arrow", tmp_path / "more.jsonl"])
    assert records.image_groups() == [[0, 3], [1, 4, 5], [2], [6]]  # a.png of both files is one image
    asked = [6, 0, 1, 5]
    assert [region.id for _, region in records.fetch(asked)] == ["xd", "r0", "r1", "xa"]
    assert records.subset(asked).image_groups() == [[0], [1], [2, 3]]
    write_records(tmp_path / "again.jsonl", regions(1))
    with pytest.raises(ValueError, match="again.jsonl: id 'r0' stands in .*arrow already"):
        open_records([tmp_path / "arrow", tmp_path / "more.jsonl", tmp_path / "again.jsonl"])


def test_a_writer_that_fails_leaves_no_arrow_folder(tmp_path):
    def broken():
        yield from regions()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_arrow(tmp_path / "arrow", broken())
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_refused_by_every_writer(tmp_path):
    for changes in ({"box": (0.0, 1.0, float("nan"), 2.0)}, {"mask": [[0.0, 1.0, float("inf"), 2.0, 3.0, 4.0]]}):
        bad = Region(**{**regions(1)[0].__dict__, **changes})
        with pytest.raises(ValueError, match="JSON compliant"):
            write_records(tmp_path / "r.jsonl", [bad])
    null = Region(**{**regions(1)[0].__dict__, "captions": ("null",)})
    write_records(tmp_path / "r.jsonl", [null])
    assert list(open_records(tmp_path / "r.jsonl")) == [null]


def test_text_that_is_not_utf8_in_a_table_is_an_error_that_names_the_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    save_arrow(tmp_path / "arrow", regions())
    table = open_records(tmp_path / "arrow")._table.combine_chunks()
    broken = pa.array([b"ok", b"\xff\xfe", b"ok", b"ok", b"ok"]).view(pa.string())
    table = table.set_column(table.column_names.index("source"), "source", broken)
    with pa.OSFile(str(tmp_path / "bad.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    records = open_records(tmp_path / "bad.arrow")
    assert records[0].id == "r0"
    with pytest.raises(ValueError, match="bad.arrow: row 1"):
        records[1]


def test_the_same_text_has_the_same_hash_and_others_have_others():
    """Whatever its length and whatever stands before and behind it."""
    texts = [("x" * n)[:k] + "y" * (n - k) for n in range(30) for k in (0, n // 2, n)] + ["tasse où", "tasse ou", ""]
    alone = {text: int(hashes_of([text])[0]) for text in texts}
    assert len(set(alone.values())) == len(alone)
    assert hashes_of(texts).tolist() == [alone[text] for text in texts]
    pa = pytest.importorskip("pyarrow")
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(["before", *texts], kind).slice(1)
        assert np.concatenate(list(column_hashes([array]))).tolist() == [alone[text] for text in texts]
    assert repeated(lambda: iter([hashes_of(texts)]), len(texts), texts.__getitem__) == [0, 1]  # "" of length 0, thrice


def test_a_bad_row_of_a_table_is_told_when_it_is_read(tmp_path):
    good = regions(1)[0]
    save_arrow(tmp_path / "arrow", [good, Region(**{**good.__dict__, "id": "bad", "box": (5.0, 5.0, 1.0, 9.0)})])
    records = open_records(tmp_path / "arrow")
    assert records[0] == good
    with pytest.raises(ValueError, match="arrow:row 1: region bad: inverted box"):
        records[1]


def test_tables_of_others_with_struct_attributes_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        {**record(id=name, mask=None), "attributes": attributes}
        for name, attributes in (("a", {"red": 1}), ("b", {"wet": -1}))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    assert [region.attributes for region in open_records(tmp_path / "r.parquet")] == [{"red": 1}, {"wet": -1}]


def test_unreadable_files_are_errors_that_name_them(tmp_path):
    write_records(tmp_path / "good.jsonl.gz", regions())
    data = (tmp_path / "good.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(RECORD))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "r.csv").touch()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "bad.arrow").write_bytes(b"ARROW")
    (tmp_path / "folder").mkdir()
    write_lines(tmp_path / "torn.jsonl", record(), '{"id": "b", "ima')
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "\xff"}\n')
    for name, rule in (
        ("missing.jsonl", "no such file"),
        ("cut.jsonl.gz", "cut off"),
        ("plain.jsonl.gz", "gzip"),
        ("empty.jsonl", "no records"),
        ("r.csv", "unknown kind"),
        ("bad.parquet", "cannot be read"),
        ("bad.arrow", "cannot be read"),
        ("folder", "state.json"),
        ("torn.jsonl", ":2: not a JSON line"),
        ("bytes.jsonl", ":1: not a JSON line"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{rule}"):
            open_records(tmp_path / name)


def test_blank_lines_count_as_lines_but_not_as_records(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", "\n", record(), "   \n", record(id="b"))
    assert [line for line, _ in read_jsonl(path)] == [2, 4]
    assert len(open_records(path)) == 2


def test_a_killed_writer_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, regions())
    before = path.read_bytes()

    def interrupted():
        yield from regions(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    save_arrow(tmp_path / "arrow", regions())
    save_arrow(tmp_path / "arrow", regions(2))
    assert len(open_records(tmp_path / "arrow")) == 2 and [p.name for p in tmp_path.iterdir()] == ["arrow"]
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "arrow") as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert len(open_records(tmp_path / "arrow")) == 2 and [p.name for p in tmp_path.iterdir()] == ["arrow"]


def test_a_device_or_socket_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/full")
    for name in ("pipe", "link"):
        before = os.lstat(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is no file but a device, pipe or socket"):
            write_records(tmp_path / name, regions(2))
        assert os.lstat(tmp_path / name) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_of_writing_names_the_file_that_was_to_appear(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        with pytest.raises(OSError) as error:
            write_records(tmp_path / "r.jsonl", regions(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(tmp_path / "r.jsonl") and error.value.errno == errno.EFBIG
    with pytest.raises(PermissionError) as error, atomic_path(tmp_path / "r.jsonl") as temporary:
        raise PermissionError(errno.EACCES, "no", str(temporary))
    assert error.value.filename == str(tmp_path / "r.jsonl")
    with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "r.jsonl"):
        open(tmp_path / "other")
    assert error.value.filename == str(tmp_path / "other")
    assert not list(tmp_path.iterdir())


def test_gzip_is_real_and_text_stays_readable(tmp_path):
    write_records(tmp_path / "r.jsonl.gz", [Region.from_dict(record(captions=["une tasse où"]))])
    with gzip.open(tmp_path / "r.jsonl.gz", "rt", encoding="utf-8") as file:
        assert "où" in file.read()


def test_datasets_reads_what_we_save(tmp_path):
    datasets = pytest.importorskip("datasets")
    save_arrow(tmp_path / "arrow", regions())
    assert datasets.load_from_disk(str(tmp_path / "arrow"))["id"][:2] == ["r0", "r1"]


def test_results_go_through_json_unchanged():
    result = RegionResult(
        id="a",
        box=[1.0, 2.0, 3.0, 4.0],
        caption="a cup",
        score=0.5,
        tags=[{"name": "cup", "score": 0.9}],
        attributes=[{"name": "red", "score": 0.8}, {"name": "wet", "score": 0.1}],
        categories=[{"name": "cup", "score": 0.7}, {"name": "jug", "score": 0.2}],
        mask={"size": [4, 4], "counts": "04L0"},
        extra={"scales": [0.0, 0.3]},
    )
    assert result.category == {"name": "cup", "score": 0.7} and result.scales == [0.0, 0.3]
    assert RegionResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert RegionResult.from_dict({"id": "a"}).caption == ""


def test_results_of_version_0_3_0_are_read():
    line = {"id": "a", "box": [1, 2, 3, 4], "category": {"name": "cup", "score": 0.7}, "scales": [0.0, 0.3]}
    result = RegionResult.from_dict(line)
    assert result.extra == {"scales": [0.0, 0.3]} and result.categories == [result.category] == [line["category"]]
    assert RegionResult.from_dict(line | {"category": None}).categories == []


def test_a_region_of_no_category_keeps_its_ranking():
    unknown = RegionResult("a", [], category=None, categories=[{"name": "cup", "score": 0.1}])
    again = RegionResult.from_dict(unknown.to_dict())
    assert again.category is None and again.categories == [{"name": "cup", "score": 0.1}]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ({"caption": "x"}, "'id'"),
        (["a"], "JSON object"),
        ({"id": "a", "captions": []}, "unknown key"),
        ({"id": "a", "caption": None}, "caption None"),
        ({"id": "a", "score": "high"}, "score 'high'"),
        ({"id": "a", "tags": ["cup"]}, "tags 'cup'"),
        ({"id": "a", "category": "cup"}, "category 'cup'"),
        ({"id": "a", "category": {"name": "cup", "score": "0.5"}}, "category .*a finite number"),
        ({"id": "a", "category": {"name": ["cup"], "score": 0.5}}, "category .*a text"),
        ({"id": "a", "tags": [{"name": "cup", "score": "x"}]}, "tags .*a finite number"),
        ({"id": "a", "attributes": [{"name": "wet", "score": float("nan")}]}, "attributes .*a finite number"),
        ({"id": "a", "box": ["a", 1, 2, 3]}, "box .*four finite numbers"),
        ({"id": "a", "box": [0, 1, 2]}, "box .*four finite numbers"),
        ({"id": "a", "scales": [True]}, "scales .*finite numbers"),
        ({"id": "a", "score": 10**400}, "a finite number"),
    ],
)
def test_bad_predictions_name_their_line(line, rule):
    with pytest.raises(ValueError, match=f"p.jsonl:4: .*{rule}"):
        RegionResult.from_dict(line, "p.jsonl:4")
