"""The views sweep and the page, with the model and the data of cups.py."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

import eval.report as report_module
import eval.run as run_module
import eval.sweep as views_module
from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords, RegionResult
from dynrefer.files import write_json
from eval.benchmarks import TASKS
from eval.evaluate import baseline_scores, evaluate, report_scores
from eval.metrics.densecap import MIN_IOUS, MIN_METEORS
from eval.plots import MAX_POINTS, by_size, calibration, ticks
from eval.report import read_log, report, report_run, sweep_page
from eval.report.cards import PICTURE_PIXELS
from eval.sweep import sweep
from eval.task import Published
from eval.view_settings import best_settings, fixed_scale, view_settings
from tests.cups import TASK, Model, namer, results_of


def test_view_settings_fit_the_number_of_views():
    assert view_settings(1)[:2] == ["fixed:0", "fixed:0.1"] and view_settings(1)[-1] == "fixed:1"
    assert view_settings(2)[3] == "fixed:0,0.3"
    assert view_settings(3)[10:13] == ["fixed:0,1,1", "fixed:0.2,0.2,0.2", "fixed:0.4,0.4,0.4"]
    assert view_settings(3)[15:] == ["fixed:1,1,1", "phash", "joint", "task", "random"]
    assert [fixed_scale(s) for s in ("fixed:0.3", "fixed:0,0.7,0.7", "phash")] == [0.3, 0.7, None]


def test_the_sweep_measures_every_setting_with_the_same_model(data):
    records = open_records(data / "test.jsonl")
    settings = ["phash", "fixed:0,0.5"]
    rows = sweep(Model(), replace(TASK, data=str(records.path)), records, data / "v", values=settings, num_workers=0)
    assert list(rows) == settings
    assert rows["phash"]["CIDEr"] > rows["fixed:0,0.5"]["CIDEr"]  # the fake model says its fixed views aloud
    assert rows["phash"]["category accuracy"] == rows["fixed:0,0.5"]["category accuracy"] == 1
    assert best_settings(rows)["CIDEr"] == "phash"


def test_the_sweep_command_writes_numbers_and_a_plot(data, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "tiny", replace(TASK, data=str(data / "test.jsonl")))
    monkeypatch.setattr(views_module, "load_model", lambda args: Model())
    options = ["--model", "m", "--task", "tiny", "--out", str(data / "v"), "--num-workers", "0", "--limit", "4"]
    assert views_module.main(options) == 0
    written = json.loads((data / "v/views.json").read_text())
    assert list(written["scores"]) == view_settings(2) and written["regions"] == 4
    page = Page((data / "v/views.html").read_text())
    assert "Which view serves which task" in page.words and "fixed:0.4,0.4" in page.words
    assert "best for CIDEr: phash" in capsys.readouterr().out
    assert views_module.main([*options[:2], "--task", "tine"]) == 2


def test_a_setting_that_does_not_fit_is_named_before_any_is_measured(data, monkeypatch, capsys):
    monkeypatch.setattr(views_module, "load_model", lambda args: Model(die_at=0))
    command = ["--model", "m", "--task", "flickr30k", "--data", str(data / "test.jsonl"), "--out", str(data / "out")]
    for setting, message in (("phsh", "did you mean 'phash'"), ("fixed:0,0,0", "expected 2 comma-separated scales")):
        assert views_module.main([*command, "--settings", "phash", setting]) == 2
        assert message in capsys.readouterr().err.replace("Did", "did")


def test_a_page_of_a_sweep_alone(tmp_path):
    views = {"task": "t", "model": "runs/m", "regions": 3}
    views["scores"] = {"phash": {"CIDEr": 1.0}, "joint": {"CIDEr": 1.0}, "random": {"CIDEr": 1.001}}
    text = sweep_page(tmp_path / "v.html", views).read_text()
    assert "m: views of t" in Page(text).words and text.count('<td class="best">1.001</td>') == 1
    views["scores"] |= {"fixed:0,0": {"CIDEr": 2.0}, "fixed:0,1": {"CIDEr": 3.0}}
    text = sweep_page(tmp_path / "v.html", views).read_text()
    chart = ElementTree.fromstring(re.search("<svg.*?</svg>", text, re.S).group())
    heights = [float(name.get("y")) for name in chart.iter("text") if name.get("class") == "level"]
    assert len(heights) == 3 and all(b - a >= 11 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[-1] <= 206, "the names stay on the chart, though all levels are at its lower edge"


def test_any_option_is_swept(data, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "tiny", replace(TASK, data=str(data / "test.jsonl")))
    models = [Model(), namer(), namer(), Model()]
    monkeypatch.setattr(views_module, "load_model", lambda args: models.pop(0))
    command = ["--model", "m", "--task", "tiny", "--out", str(data / "o"), "--num-workers", "0"]
    assert views_module.main([*command, "--option", "num_beams", "--values", "1", "5"]) == 0
    written = json.loads((data / "o/num_beams.json").read_text())
    assert list(written["scores"]) == ["1", "5"] and written["option"] == "num_beams"
    assert (data / "o/5/predictions.jsonl").exists()
    for options, said in (
        ([], "the model has no option 'view_strategy'; name one and its values: --option, of none"),
        (["--values", "phash"], "unknown option 'view_strategy'. Options of this model: none."),
        (["--option", "num_beams"], "option 'num_beams' is swept over --values"),
    ):
        capsys.readouterr()
        assert views_module.main([*command, *options]) == 2
        assert said in capsys.readouterr().err


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order; collects texts and pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.pictures, self.links = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        self.links += [value for name, value in attrs if name in ("href", "src") and not value.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture
def finished_run(data, monkeypatch):
    """A run folder with log, predictions, scores and views, of a model that is wrong about some regions."""
    task = replace(TASK, data=str(data / "test.jsonl"), name="tiny")
    records, train = open_records(data / "test.jsonl"), open_records(data / "train.jsonl")
    run = data / "run"
    run.mkdir()
    folder = run / "predictions/tiny"
    scores, _ = evaluate(Model(), task, records, folder, num_workers=0)
    baselines = baseline_scores(task, records, train)
    write_json(
        folder / "scores.json", report_scores(task, records, scores, model="m", settings={}, baselines=baselines)
    )
    write_json(folder / "items.json", scores.items)
    rows = {s: {"CIDEr": 1 - abs(0.3 - (fixed_scale(s) or 0)), "attribute mAP/color": 0.5} for s in view_settings(2)}
    write_json(run / "predictions/tiny-views/views.json", {"regions": 4, "scores": rows})
    lines = [{"step": n, "loss": 5 / n, "loss/captions": 4 / n} for n in range(1, 1000)]
    lines += [{"step": 500, "eval/CIDEr": 0.5, "eval/loss": 0.1}, {"step": 999, "eval/CIDEr": 0.7}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10')
    return run


def test_the_page_is_one_file_with_everything_inside(finished_run):
    path = report_run(finished_run, "tiny")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == finished_run / "report.html" and page.links == []
    words = " ".join(page.words)
    for expected in ("always 'a red cup'", "crop alone (t = 0, first 4 regions)", "one human against the others"):
        assert expected in words
    for expected in (
        "a green lamp",
        "the green lamp",
        "color:green",
        "Best regions",
        "Worst regions",
        "CIDEr on held-out",
    ):
        assert expected in words
    assert len(page.pictures) == 10 + 4 + 4  # samples, best, worst
    picture = Image.open(io.BytesIO(base64.b64decode(page.pictures[0].partition(",")[2])))
    assert picture.format == "JPEG" and picture.width == 2 * picture.height == PICTURE_PIXELS
    charts = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(charts) == 5  # loss, loss/captions, evaluation, views, calibration; all regions are of one size
    for chart in charts:
        numbers = [
            n
            for line in ElementTree.fromstring(chart).iter("polyline")
            for n in re.findall(r"[\d.]+", line.get("points"))
        ]
        assert 4 <= len(numbers) <= 2 * MAX_POINTS
        assert all(0 <= float(n) <= 340 for n in numbers)


def test_the_box_is_drawn_where_it_is(finished_run):
    text = report_run(finished_run, "tiny").read_text(encoding="utf-8")
    assert 'class="region" style="inset:0.00% 50.00% 0.00% 0.00%"' in text  # a cup, (0, 0, 8, 8) of 16 x 8
    assert 'class="view" style="inset:0.00% 35.00% 0.00% 0.00%"' in text  # and its view at t = 0.3


def test_texts_of_models_and_people_are_text_and_not_markup(finished_run, data):
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    records = open_records(data / "test.jsonl")
    results = results_of(list(records))
    results["test0cup"].caption = "<script>alert('x')</script> & \"more\""
    results["test0lamp"].tags = [{"name": "<b>", "score": 0.5}]
    results["test0lamp"].caption = "half a character \ud83d"
    text = report(data / "r.html", title="<run>", scores=scores, records=records, results=results).read_text()
    Page(text)
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;" in text and "&lt;run&gt;" in text


def test_a_page_without_log_views_or_some_predictions(finished_run, data):
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    records = open_records(data / "test.jsonl")
    result = RegionResult("test0cup", [])
    path = report(data / "r.html", title="t", scores=scores, records=records, results={"test0cup": result})
    assert "no prediction" in " ".join(Page(path.read_text()).words)


def test_a_page_without_pictures_on_disk(finished_run, data):
    for path in (data / "images").iterdir():
        path.unlink()
    page = Page(report_run(finished_run, "tiny").read_text(encoding="utf-8"))
    assert not page.pictures and "no picture" in page.words and "a green lamp" in page.words


def test_scores_have_intervals_and_a_row_each(finished_run):
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    assert scores["intervals"], "the page would have none to show"
    text = report_run(finished_run, "tiny").read_text(encoding="utf-8")
    table = re.search(r'<table class="scores">.*?</table>', text, re.S).group()
    rows = {row.split("</th>")[0]: row for row in table.split("<tr><th>")[2:]}
    assert list(rows) == [name for name in scores["scores"] if "/" not in name]
    for name, (low, high) in scores["intervals"].items():
        assert "/" in name or f"<small>{low:.3f} – {high:.3f}</small>" in rows[name]


def test_published_numbers_stand_beside_scores_of_their_protocol_only(finished_run, data, monkeypatch):
    rows = (Published("theirs", {"CIDEr": 9.876}, "their <paper>"), Published("others", {"SPICE": 0.5}, "a site"))
    task = replace(TASK, name="tiny", published=rows)
    monkeypatch.setitem(TASKS, "tiny", task)
    text = report_run(finished_run, "tiny").read_text(encoding="utf-8")
    section = text[text.index("Published numbers") :].split("</section>")[0]
    assert "9.876" in section and "their &lt;paper&gt;" in section and "do not compare" not in section
    assert "test.jsonl (10 regions) is the whole benchmark, whose number" in section
    assert section.count("–</td>") == 3  # no SPICE here or of theirs, no CIDEr of others

    scores_json = finished_run / "predictions/tiny/scores.json"
    write_json(scores_json, json.loads(scores_json.read_text()) | {"deviations": ["10 of 100 regions"]})
    assert "numbers do not compare: 10 of 100 regions." in report_run(finished_run, "tiny").read_text()
    monkeypatch.setitem(TASKS, "tiny", replace(task, version=2))
    assert "9.876" not in report_run(finished_run, "tiny").read_text(encoding="utf-8")


def test_a_page_of_another_task_shows_its_own_scores(finished_run, data):
    """Of regions with one score of an own name, and of boxes that predictions bring along."""
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    scores |= {"scores": {"word IoU": 0.625}, "regions_scored": {"similarity": 10}, "intervals": {}, "no_interval": {}}
    records = open_records(data / "test.jsonl")
    options = {"title": "t", "records": records, "results": results_of(list(records))}
    items = {region.id: {"word IoU": n / 10} for n, region in enumerate(records)}
    text = report(data / "r.html", scores=scores, items=items, **options).read_text(encoding="utf-8")
    assert "<strong>0.625</strong><span>word IoU</span>" in text and "Highest word IoU." in text
    assert "word IoU <b>0.90</b>" in text and "Calibration" not in text
    text = report(data / "r.html", scores=scores | {"boxes": "detected"}, **options).read_text(encoding="utf-8")
    assert "<article>" not in text and "0.625" in text


def test_parts_settings_and_long_captions_are_readable(finished_run, data):
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    cells = {f"iou_{iou}": 0.875 for iou in MIN_IOUS}
    cells |= {f"iou_{iou}_meteor_{m}": iou * m for iou in MIN_IOUS for m in MIN_METEORS}
    scores |= {"scores": {"choice score": 0.5, "choice score/positive": 0.25}, "intervals": {}, "no_interval": {}}
    scores |= {"parts": {"densecap": cells, "choices": {"answers that name no choice": 0.125}}, "regions_scored": {}}
    scores |= {"settings": {"generation": {"num_beams": 2}, "control": None, "judge": "a judge"}}
    records = open_records(data / "test.jsonl")
    results = {r.id: RegionResult(r.id, [], "cup " * 30_000, category=None) for r in records}
    text = report(data / "r.html", title="t", scores=scores, records=records, results=results).read_text()
    assert text.count("<td>0.875</td>") == len(MIN_IOUS) and "<td>0.175</td>" in text  # 0.7 x 0.25
    assert "<b>0.25</b> positive" in text and "<b>0.12</b> answers that name no choice" in text
    assert "<td>generation.num_beams 2, judge a judge</td>" in text and "Tokenizer of captions" not in text
    assert "… (120,000 letters)" in text and len(text) < 200_000
    assert "confidence" not in text  # the predictions came without scores


def test_scores_by_size_are_drawn_between_the_edges_of_the_bins(finished_run, data):
    scores = json.loads((finished_run / "predictions/tiny/scores.json").read_text())
    items = json.loads((finished_run / "predictions/tiny/items.json").read_text())
    records = open_records(data / "test.jsonl")
    sized = [replace(r, box=(0, 0, 4, 4) if n % 2 else (0, 0, 8, 8)) for n, r in enumerate(records)]
    sized = RegionRecords(records.path, sized)
    text = report(data / "r.html", title="t", scores=scores, records=sized, results={}, items=items).read_text()
    section = text[text.index("Score by region size") :].split("</section>")[0]
    assert section.count("<svg") == 3 and ">4</text>" in section


def region(name: str, side: float, tags=("red",), image: str | None = None) -> Region:
    return Region(name, image or f"{name}.png", (100, 100), (0, 0, side, side), tags=tags)


def test_scores_by_size_are_means_of_equally_many_regions():
    regions = [region(str(n), 10 + n) for n in range(12)]
    bins, edges = by_size(regions, {str(n): float(n >= 8) for n in range(12)})
    assert [b.count for b in bins] == [4, 4, 4] and [b.value for b in bins] == [0, 0, 1]
    assert edges[0] == 10 and edges[-1] == 21 and sorted(edges) == edges
    assert by_size([region(str(n), 10) for n in range(12)], {str(n): 1.0 for n in range(12)}) == ([], [])
    assert by_size(regions, {}) == by_size(regions, {"0": 1.0}) == ([], [])


def test_intervals_by_size_know_that_regions_of_an_image_are_alike():
    values = {str(n): float(n % 2) for n in range(80)}
    apart = by_size([region(str(n), 10 + n // 10) for n in range(80)], values)[0]
    together = by_size([region(str(n), 10 + n // 10, image=str(n % 4)) for n in range(80)], values)[0]
    for one, other in zip(apart, together, strict=True):
        assert one.value == other.value == 0.5 and other.high - other.low > one.high - one.low > 0


def test_calibration_is_the_share_of_true_tags_at_each_probability():
    regions = [region(str(n), 10, tags=("red",) if n < 6 else ("blue",)) for n in range(8)]
    results = {
        str(n): RegionResult(str(n), [], tags=[{"name": "red", "score": 0.95}, {"name": "blue", "score": 0.05}])
        for n in range(8)
    }
    bins, error = calibration([*regions, region("unlabelled", 10, tags=None)], results)
    assert [(b.count, round(b.x, 6), b.value) for b in bins] == [(8, 0.05, 0.25), (8, 0.95, 0.75)]
    assert error == pytest.approx(0.2)
    assert all(0 <= b.low < b.value < b.high <= 1 for b in bins)
    results["3"].tags[0]["score"] = 7.5
    assert calibration(regions, results) == (None, "a tag of 3 has the score 7.5, no probability")
    assert calibration(regions, {})[0] is None


def test_a_predictions_file_gets_a_page(finished_run, data, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "tiny", replace(TASK, name="tiny", data=str(data / "test.jsonl")))
    file = data / "theirs.jsonl"
    file.write_bytes((finished_run / "predictions/tiny/predictions.jsonl").read_bytes())
    options = ["--task", "tiny", "--out", str(data / "o"), "--report", str(data / "new/r.html")]
    assert run_module.main(["--predictions", str(file), *options]) == 0
    text = (data / "new/r.html").read_text(encoding="utf-8")
    assert "<h2>Scores</h2>" in text and "<h2>Worst regions</h2>" in text
    assert "<h2>Training</h2>" not in text and "Which view serves" not in text
    assert Page(text).links == []

    again = data / "again.jsonl"
    again.write_bytes(file.read_bytes().replace(b"0.8", b"0.75"))
    assert run_module.main(["--predictions", str(file), str(again), *options]) == 0  # two seeds
    text = (data / "new/r.html").read_text(encoding="utf-8")
    assert " ± 0.000" in text and "mean of 2 seeds" in text and f"are those of {again}" in text

    assert run_module.main(["--predictions", str(file), *options[:-1], str(data)]) == 2
    assert run_module.main(["--baselines", *options]) == 2
    errors = capsys.readouterr().err
    assert "is a folder" in errors and "give --model or --predictions" in errors


def test_missing_scores_are_answered_with_the_command(tmp_path, capsys):
    assert report_module.main(["--run", str(tmp_path), "--task", "world"]) == 2
    assert "python -m eval.run --model" in capsys.readouterr().err


def test_a_damaged_log_is_named_by_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="log.jsonl:2"):
        read_log(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("low", "high", "inside", "expected"),
    [
        (0, 1, True, [0, 0.25, 0.5, 0.75, 1]),
        (0.13, 0.58, False, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (0, 0, False, [0, 0.25]),
        (5, 5, False, None),
        (1, 900, True, [250, 500, 750]),
        (-3.2, 7.9, False, None),
    ],
)
def test_axes_have_round_numbers(low, high, inside, expected):
    found = ticks(low, high, inside)
    if expected:
        assert found == expected
    assert inside or (found[0] <= low and high <= found[-1] and len(found) > 1)


def test_a_run_that_is_scored_gets_a_page_with_its_curves(finished_run, data, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", replace(TASK, name="tiny", data=str(data / "test.jsonl")))
    monkeypatch.setattr(run_module, "load_model", lambda args: Model())
    options = ["--task", "tiny", "--num-workers", "0", "--overwrite", "--report", str(data / "r.html")]
    assert run_module.main(["--model", str(finished_run), *options]) == 0
    text = (data / "r.html").read_text(encoding="utf-8")
    assert "<h2>Training</h2>" in text and "<h2>Which view serves which task</h2>" in text
