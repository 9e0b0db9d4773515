"""What the sections of the page show: numbers, charts and sentences, which `page.html` lays out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynrefer.data.records import RegionRecords, RegionResult

from ..benchmarks import TASKS
from ..metrics.densecap import MIN_IOUS, MIN_METEORS
from ..plots import averaged, bins_chart, by_size, calibration, chart
from ..view_settings import best_settings, fixed_scale, lone_scale

HEADLINES = ("CIDEr", "METEOR", "dense mAP", "LVIS AP", "semantic similarity", "word IoU", "choice score", "tag mAP")
HEADLINES += ("attribute mAP", "category accuracy", "COCO mAP", "COCO box AP", "COCO mask AP")
VIEW_SCORES = ("CIDEr", "tag mAP", "attribute mAP", "category accuracy")


def headlines(corpus: Mapping[str, float]) -> dict[str, float]:
    """The scores that stand first, in large numbers."""
    names = [name for name in HEADLINES if name in corpus] or [name for name in corpus if "/" not in name][:4]
    return {name: corpus[name] for name in names}


# --- tables of scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number with a bar behind it. share: of the cell that the bar fills; own: of the model that the page is of, with
    the deviation between its seeds and its interval, where there are any."""

    value: float | None
    share: float = 0.0
    own: bool = False
    deviation: float | None = None
    interval: Sequence[float] | None = None


def _cell(value: float | None, highest: float, **options: Any) -> Cell:
    return Cell(value, max(0.0, value or 0.0) / highest if highest > 0 else 0.0, **options)


def _own(scores: Mapping[str, Any], name: str, highest: float) -> Cell:
    marks = {"deviation": scores.get("deviation", {}).get(name), "interval": scores.get("intervals", {}).get(name)}
    return _cell(scores["scores"].get(name), highest, own=True, **marks)


def _full_bar(values: Sequence[float | None]) -> float:
    """The value whose bar fills a cell; 1 at least where nothing stands beside the value to compare it with."""
    known = [value for value in values if value is not None]
    return max(known, default=0.0) if len(known) > 1 else max(1.0, *known, 0.0)


def score_table(scores: Mapping[str, Any], views: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row a score; the model with its intervals, the same model on the crop alone, and the baselines. Bars have the
    same scale in a row."""
    columns: dict[str, Mapping[str, float]] = {"this model": scores["scores"]}
    alone = next((row for row in (views or {}).get("scores", {}).items() if fixed_scale(row[0]) == 0.0), None)
    if alone:
        few = f", first {views['regions']:,} regions" if views["regions"] != scores["regions"] else ""
        columns[f"the same model, crop alone (t = 0{few})"] = alone[1]
    for name, row in scores["baselines"].items():
        few = f" ({row['regions']:,} regions)" if row.get("regions", scores["regions"]) != scores["regions"] else ""
        columns[name + few] = row
    rows = {}
    for name in dict.fromkeys(name for row in columns.values() for name in row):
        if "/" not in name and name != "regions":
            values = [row.get(name) for row in columns.values()]
            highest = _full_bar(values)
            rows[name] = [_own(scores, name, highest), *(_cell(value, highest) for value in values[1:])]
    kinds: dict[str, dict[str, float]] = {}
    for name, value in scores["scores"].items():
        whole, slash, kind = name.partition("/")
        if slash:
            kinds.setdefault(f"{whole} by kind", {})[kind] = value
    return {"columns": list(columns), "rows": rows, "kinds": kinds}


def parts(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What scores are the mean of: the cells of dense captioning as a table, others in a line."""
    others = dict(scores.get("parts", {}))
    dense, rows = others.pop("densecap", {}), {}
    if dense:
        rows = {"boxes alone": [dense[f"iou_{iou}"] for iou in MIN_IOUS]}
        rows |= {f"METEOR above {m}": [dense[f"iou_{iou}_meteor_{m}"] for iou in MIN_IOUS] for m in MIN_METEORS}
    return {"columns": [f"IoU {iou}" for iou in MIN_IOUS], "rows": rows, "others": others}


def intervals_lead(scores: Mapping[str, Any]) -> str:
    """What to know of the intervals and of scores without one."""
    sentences = []
    if scores.get("intervals"):
        drawn = scores.get("bootstrap", {}).get("drawn") or "regions"
        sentences.append(f"Small numbers: 95 % of the scores on bootstrap draws of {drawn}.")
    if caution := scores.get("bootstrap", {}).get("caution"):
        sentences.append(f"{caution[0].upper()}{caution[1:]}.")
    sentences += [f"{note[0].upper()}{note[1:]}." for note in scores.get("notes", ())]
    if seeds := scores.get("seeds"):
        sentences.append(f"The mean of {len(seeds)} seeds; ± is the standard deviation between them.")
    reasons: dict[str, list[str]] = {}
    for name, why in scores.get("no_interval", {}).items():
        reasons.setdefault(why, []).append(name)
    sentences += [f"No interval of {', '.join(names)}: {why}." for why, names in reasons.items()]
    return " ".join(sentences)


def published(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model among published numbers of the same task; None where there are none."""
    task = TASKS.get(scores["task"])
    if task is None or not task.published or task.version != scores["task_version"] or not scores["scores"]:
        return None
    names = list(dict.fromkeys(name for row in task.published for name in row.scores))
    columns = {name: [scores["scores"].get(name)] + [p.scores.get(name) for p in task.published] for name in names}
    highest = {name: _full_bar(values) for name, values in columns.items()}
    rows = [("this model", [_own(scores, name, highest[name]) for name in names], "measured here")]
    for row in task.published:
        rows.append((row.model, [_cell(row.scores.get(name), highest[name]) for name in names], row.source))
    cautions = []
    if scores.get("regions_of_task") is None:
        cautions.append(
            f"They compare with this model's if {scores['data']} ({scores['regions']:,} regions) is the whole "
            "benchmark, whose number of regions nobody has published."
        )
    if deviations := scores.get("deviations"):
        cautions.append(f"This model's numbers do not compare: {'; '.join(deviations)}.")
    if (judge := scores["settings"].get("judge")) is not None:
        cautions.append(f"The judge here was {judge}; numbers of other judges do not compare.")
    return {"columns": names, "rows": rows, "cautions": cautions}


# --- curves ----------------------------------------------------------------------------------------------------------


def training(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Charts of losses and of scores on held-out regions."""
    charts = []
    for name in dict.fromkeys(name for row in log for name in row if name == "loss" or name.startswith("loss/")):
        points = [(row["step"], row[name]) for row in log if name in row]
        points = averaged([(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)])
        if points:
            charts.append(chart({name: points}, title=name, x_title="step"))
    scored = [name for name in dict.fromkeys(n for row in log for n in row) if name.startswith("eval/")]
    for name in [name for name in scored if "loss" not in name]:
        points = [(row["step"], row[name]) for row in log if name in row]
        title = f"{name.partition('/')[2]} on held-out regions"
        charts.append(chart({name: points}, title=title, x_title="step", colour=1))
    return charts


def sweep(views: Mapping[str, Any]) -> dict[str, Any]:
    """Charts, sentences and the table of a sweep of view settings; views: content of views.json."""
    rows = views["scores"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    shown = [name for name in VIEW_SCORES if name in names]
    charts = []
    for n, name in enumerate(shown):
        points = sorted((fixed_scale(s), row[name]) for s, row in rows.items() if fixed_scale(s) is not None)
        lines = {"region and t": points}
        if lone := sorted((lone_scale(s), row[name]) for s, row in rows.items() if lone_scale(s) is not None):
            lines["t alone"] = lone
        chosen = {s: row[name] for s, row in rows.items() if not s.startswith("fixed:") and name in row}
        charts.append(chart(lines, title=name, x_title="t of the outer view", levels=chosen, colour=n))
    return {
        "regions": views["regions"],
        "charts": charts,
        "finding": finding(rows),
        "lone": finding({s: row for s, row in rows.items() if lone_scale(s) is not None}, lone_scale),
        "columns": shown + [name for name in names if name.startswith("attribute mAP/")],
        "rows": rows,
        "best": best_settings(rows),
    }


def finding(rows: Mapping[str, Mapping[str, float]], scale_of: Callable = fixed_scale, least: float = 0.02) -> str:
    """The sweep in one sentence: at which t a score is highest, and which scores change by less than `least`, as a
    share of the highest.

    >>> finding({"fixed:0,0": {"CIDEr": 1.0, "tag mAP": 0.5}, "fixed:0,0.5": {"CIDEr": 2.0, "tag mAP": 0.5}})
    'Best at t = 0.5: CIDEr (2, lowest 1). Changes by 2 % at most: tag mAP.'
    """
    fixed = {setting: row for setting, row in rows.items() if scale_of(setting) is not None}
    scales: dict[float, list[str]] = {}
    flat = []
    for name, setting in best_settings(fixed).items() if fixed else ():
        if name in VIEW_SCORES or name.startswith("attribute mAP/"):
            high, low = fixed[setting].get(name, 0.0), min(row[name] for row in fixed.values() if name in row)
            short = name.removeprefix("attribute mAP/")
            if high - low <= least * high:
                flat.append(short)
            else:
                scales.setdefault(scale_of(setting), []).append(f"{short} ({high:.3g}, lowest {low:.3g})")
    best = [f"Best at t = {scale:g}: {', '.join(names)}." for scale, names in sorted(scales.items())]
    return " ".join(best + [f"Changes by {100 * least:g} % at most: {', '.join(flat)}."] * bool(flat))


def sizes(
    records: RegionRecords, items: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, Any] | None:
    """Scores against region size; None where all regions are about the same size or no score is one of regions."""
    charts = []
    for n, name in enumerate(names):
        bins, edges = by_size(records, {i: row[name] for i, row in items.items() if name in row})
        labels = {float(k): f"{edge:.0f}" if edge >= 10 else f"{edge:.2g}" for k, edge in enumerate(edges)}
        for point in bins:
            point.x += 0.5  # between its edges
        title = "square root of the box's area, pixels"
        charts.append(bins_chart(bins, title=name, x_title=title, x_labels=labels, colour=n) if bins else "")
    return {"charts": charts, "meteor": "METEOR" in names} if any(charts) else None


def reliability(
    records: RegionRecords, results: Mapping[str, RegionResult], scores: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The reliability curve of tags, or why it is "missing"; None where tags were not scored."""
    if "tags" not in scores["regions_scored"]:
        return None
    bins, error = calibration(records, results)
    if bins is None:
        return {"missing": error}
    title = "share of tags that are true"
    curve = bins_chart(bins, title=title, x_title="predicted probability", diagonal=True)
    threshold = scores["settings"].get("tag_threshold")
    return {"missing": None, "curve": curve, "bins": bins, "error": error, "threshold": threshold}


# --- how it was measured ---------------------------------------------------------------------------------------------


def details(scores: Mapping[str, Any]) -> dict[str, Any]:
    """{what: its value} of everything that makes a number comparable; what is not known is left out."""
    rows = {
        "Protocol": scores["protocol"],
        "Differs from the benchmark": "; ".join(scores.get("deviations", ())),
        "Task version": scores["task_version"],
        "Tokenizer of captions": scores["tokenizer"] if "captions" in scores["regions_scored"] else "",
        "Data": f"{scores['data']} (sha256 {scores['data_sha256'][:16]}…)",
        "Regions scored": ", ".join(f"{count:,} {metric}" for metric, count in scores["regions_scored"].items()),
        "Settings": ", ".join(_settings(scores["settings"])),
        "Computed by": "; ".join(_computed(scores.get("metric_versions", {}))),
        "Versions": ", ".join(f"{name} {number}" for name, number in scores["versions"].items() if number),
        "Written": scores["date"],
    }
    return {name: value for name, value in rows.items() if value}


def _settings(settings: Mapping[str, Any], within: str = "") -> list[str]:
    """ "generation.num_beams 2", ... of what is set."""
    shown = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            shown += _settings(value, f"{within}{name}.")
        elif value not in (None, "", []):
            shown.append(f"{within}{name} {value}")
    return shown


def _computed(versions: Mapping[str, str]) -> list[str]:
    """ "METEOR, ...: what computed them"."""
    names: dict[str, list[str]] = {}
    for name, version in versions.items():
        names.setdefault(version, []).append(name)
    return [f"{', '.join(of)}: {version}" for version, of in names.items()]
