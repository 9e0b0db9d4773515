"""The bench: ways timed in turns, rows with ratios, and a word about what is not installed."""

import re
import sys

import pytest

from bench import describe, kills, loading, regions, run, scale, scores, serve
from bench.timing import Budget, Result, compare


def bench(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench.run", *arguments])
    assert run.main() == 0
    return capsys.readouterr().out


def test_ways_take_turns_after_a_warm_up():
    calls = []
    ways = {"plain": lambda: calls.append("plain") or 1, "ours": lambda: calls.append("ours") or 2}
    rates = compare(ways, Budget(seconds=0, rounds=3))
    assert calls == ["plain", "ours"] * 4 and list(rates) == ["plain", "ours"]


def test_rows_show_the_ratio_to_the_first():
    lines = run.report("speed", "of things", Result({"plain": 50.0, "ours": 1000.0}, "things/s", ["a note"])).split(
        "\n"
    )
    assert lines[0] == "speed: of things" and lines[3] == "  a note"
    assert lines[1].split() == ["plain", "50", "things/s", "x1.00"]
    assert lines[2].split() == ["ours", "1,000", "things/s", "x20.00"]


@pytest.mark.slow
def test_view_selection_is_measured_against_opencv(monkeypatch, capsys):
    pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    lines = bench(monkeypatch, capsys, "views", "transform", "--quick").split("\n")
    assert [line.split(":")[0] for line in lines if not line.startswith("  ")] == ["views", "transform", ""]
    assert sum(line.startswith("  floor: ") for line in lines) == 2
    assert [line.split()[0] for line in lines if line.startswith("  dynrefer.")] == ["dynrefer.views", "dynrefer.phash"]
    (bits,) = re.findall(r"^  ([\d,]+) of 45,056 hash bits differ$", "\n".join(lines), re.MULTILINE)
    assert int(bits.replace(",", "")) < 45, "one bit in a thousand, from sums in another order"
    (largest,) = re.findall(r"^  largest difference ([\d.]+)$", "\n".join(lines), re.MULTILINE)
    assert float(largest) < 0.1, "of coefficients in the thousands"


@pytest.mark.slow
def test_view_construction_is_measured_against_an_array_a_crop(monkeypatch, capsys):
    lines = bench(monkeypatch, capsys, "crops", "--quick").split("\n")
    ratios = {line[2:24].rstrip(): float(line.split("x")[-1]) for line in lines[1:4]}
    assert list(ratios) == ["an array a crop", "dynrefer.views", "decode and copy"] and min(ratios.values()) > 0
    (mean,) = re.findall(r"pixels ([\d.]+) grey levels from the plain way's in the mean", lines[4])
    assert float(mean) < 0.1


@pytest.mark.slow
def test_recognition_is_measured_beside_other_orders_of_the_same_work(monkeypatch, capsys):
    lines = bench(monkeypatch, capsys, "recognition", "--quick").split("\n")
    assert lines[0].startswith("recognition: 80 names for 16 regions") and len(lines) == 11
    assert [line[2:24].strip() for line in lines[1:8]] == [
        "a picture at a time",
        "the same with masks",
        "a region at a time",
        "CLIP on each crop",
        "all pictures together",
        "frozen parts alone",
        "image encoders alone",
    ]
    assert re.search(r"^  bound: .* reach \d+% of it, and \d+% of the image encoders alone$", lines[9])


@pytest.mark.slow
def test_one_call_for_all_regions_is_measured_beside_a_call_for_each(capsys):
    assert describe.main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows[:6]] == ["regions a picture", "1", "2", "regions a batch", "1", "2"]
    assert [row[0] for row in rows[6:]][-2:] == ["the rest", "all"] and rows[-1][2] == "100%"
    assert float(rows[-1][1]) > 0 and float(rows[-1][4]) > 0
    assert describe.main(["--quick", "--baseline", str(describe.HERE.parents[1])]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[-1] for row in rows] == ["captions |", "equal |", "equal |"]


@pytest.mark.slow
def test_ranking_is_measured_beside_region_by_region(monkeypatch, capsys):
    lines = bench(monkeypatch, capsys, "tags", "--quick").split("\n")
    assert lines[0].startswith("tags: ") and len(lines) == 7 and lines[3].startswith("  equal lists, ")
    assert [line.split("  ")[1] for line in lines[1:3]] == ["region by region", "dynrefer.models"]


def test_a_missing_package_is_named_and_the_others_run(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(run.BENCHMARKS, "loader", loader := lambda budget: Result({"plain": 1.0}, "samples/s"))
    loader.__doc__ = "A stand-in."
    printed = bench(monkeypatch, capsys, "views", "loader", "--quick")
    assert "views: not measured: the plain way needs OpenCV" in printed
    assert "pip install opencv-python-headless" in printed and "loader: A stand-in." in printed


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        bench(monkeypatch, capsys, "view")
    assert "no benchmark 'view'; there are views, views-large, transform" in capsys.readouterr().err


@pytest.mark.slow
def test_loaders_of_two_checkouts_are_timed_in_turns(capsys):
    loading.main(["--small", "--scenes", "4", "--images", "4", "--before", str(loading.HERE.parents[1])])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith("  ")] == ["world"] * 2 + ["photos"] * 2
    assert [line[2:24].rstrip() for line in lines if line.startswith("  ")] == ["before", "this checkout"] * 4
    assert "200 regions of 4 photos, 2 workers" in lines[-3]


def test_the_time_of_many_regions_of_a_picture_is_a_table(capsys):
    regions.main(["--regions", "3", "70"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["regions of one picture", "---|---|---|---|---", "3", "70"]
    assert all(float(cell) >= 0 for cell in rows[-1])


def test_a_folder_without_a_predictor_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        describe.main(["--baseline", str(tmp_path)])
    assert "no checkout with dynrefer/predictor.py" in capsys.readouterr().err


def test_a_folder_without_a_loader_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        loading.main(["--before", str(tmp_path)])
    assert "no checkout with dynrefer/data/loader.py" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_is_loaded_in_batches_and_region_by_region(capsys):
    serve.main(["--clients", "1", "4", "--seconds", "1", "--requests", "20", "--regions", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| \d", line)]
    assert [row[:2] for row in rows] == [[n, way] for way in serve.WAYS for n in ("1", "4")]
    assert all(int(row[5].replace(",", "")) > 0 for row in rows)
    assert re.fullmatch(r"MB of the server after each fifth of 20 requests: ([\d,]+, ){4}[\d,]+", lines[-1])


@pytest.mark.parametrize("module", [run, describe, kills, regions, scale, scores, serve])
def test_a_mistake_in_any_benchmark_is_a_line(monkeypatch, capsys, module):
    def fails(args):
        raise ValueError("a folder\nthat is none")

    monkeypatch.setattr(module, "run", fails)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert module.main() == 2
    assert capsys.readouterr().err == f"{module.__name__}: error: a folder that is none\n"


def test_a_folder_that_is_none_is_told_by_the_benchmarks_that_write(tmp_path, capsys):
    for main in (scale.main, scores.main):
        assert main(["--folder", str(tmp_path / "none")]) == 2
        assert str(tmp_path / "none") in capsys.readouterr().err


def test_the_served_part_of_the_loading_benchmark_needs_nothing_that_an_old_checkout_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "dynrefer.errors", None)
    monkeypatch.setattr(loading, "serve", lambda *given: served.append(given))
    served = []
    assert loading.main(["--serve", "r.jsonl", "Boxes", "2"]) == 0 and served == [("r.jsonl", "Boxes", "2")]
    assert not any(line.startswith("from dynrefer") for line in loading.HERE.read_text().splitlines())
