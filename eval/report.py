"""One self-contained report.html: scores with intervals beside baselines and published numbers, curves, views, and
pictures with what was said.

    python -m eval.report --run runs/quickstart --task world
    python -m eval.run --predictions predictions.jsonl --task refcocog-a --report report.html

The first needs the files that `python -m eval.run --model RUN --task TASK --baselines` wrote. The loss curve of
RUN/log.jsonl and the sweep of `python -m eval.sweep` are shown where they are.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.data.record_files import open_records
from dynrefer.data.records import Region, RegionRecords, RegionResult
from dynrefer.errors import run_command
from dynrefer.files import atomic_path
from dynrefer.pages import outline, picture_uri, text

from .benchmarks import TASKS
from .evaluate import ITEMS, PREDICTIONS, SCORES, default_out
from .metrics.densecap import MIN_IOUS, MIN_METEORS
from .plots import averaged, bins_chart, by_size, calibration, chart
from .predict import read_predictions
from .sweep import best_settings, fixed_scale, lone_scale

HEADLINES = ("CIDEr", "METEOR", "dense mAP", "LVIS AP", "semantic similarity", "word IoU", "choice score", "tag mAP")
HEADLINES += ("attribute mAP", "category accuracy", "COCO mAP")
VIEW_SCORES = ("CIDEr", "tag mAP", "attribute mAP", "category accuracy")
RANKING = (
    "CIDEr",
    "ROUGE-L",
    "METEOR",
    "dense METEOR",
    "category accuracy",
)  # the first that regions have orders best and worst
MAX_SIZE_CHARTS = 4
PICTURE_PIXELS = 420  # longer side of an embedded picture
PICTURE_ASPECT = 4 / 3  # of the frame that a card's picture is fitted into, as in STYLE
MAX_LETTERS = 600  # of a caption on a card
MAX_ATTRIBUTES = 5  # predicted ones shown on a card


def report(
    path: str | os.PathLike,
    *,
    title: str,
    scores: Mapping[str, Any],
    records: RegionRecords,
    results: Mapping[str, RegionResult],
    items: Mapping[str, Mapping[str, float]] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    views: Mapping[str, Any] | None = None,
    notes: str = "",
    num_samples: int = 12,
    num_extremes: int = 4,
) -> Path:
    """Writes report.html: one file, pictures inside, nothing loaded from elsewhere. Returns its path.

    Args:
        scores: content of scores.json. records: the records that were scored, with their images on disk.
        results: {region id: prediction}. items: {region id: {score: value}}, content of items.json.
        log: rows of log.jsonl, {"step", "loss", "loss/captions", ...} and {"step", "eval/CIDEr", ...}.
        views: content of views.json. notes: a paragraph under the title.
        num_samples, num_extremes: cards in "samples", and in each of "best" and "worst".
    """
    items = items or {}
    cards = _Cards(records, results, items, scores["settings"].get("tag_threshold") or 0.0)
    ids = [region.id for region in records]
    rated = dict.fromkeys(name for row in items.values() for name in row if not name.startswith("BLEU"))
    rated = [name for name in RANKING if name in rated] + [name for name in rated if name not in RANKING]
    ranking = rated[0] if rated else None
    ranked = sorted((i for i in ids if ranking in items.get(i, {})), key=lambda i: -items[i][ranking])
    given = scores.get("boxes", "given") == "given"  # else predictions are no answers to regions
    samples = [ids[n * len(ids) // num_samples] for n in range(num_samples)] if len(ids) > num_samples else ids
    sections = [
        _headlines(scores["scores"]),
        _section("Scores", _score_table(scores, views), _parts(scores), _left_out(scores)),
        _published(scores),
        _section("Training", _training(log)) if log else "",
        _section("Which view serves which task", _views(views)) if views else "",
        _sizes(records, items, rated[:MAX_SIZE_CHARTS]),
        _calibration(records, results, scores),
    ]
    if given:
        sections.append(_section("Samples", cards.grid(samples), lead="Regions spread evenly over the file. " + LEGEND))
    if ranking:
        best, worst = _different(ranked, results, num_extremes), _different(ranked[::-1], results, num_extremes)
        sections.append(_section("Best regions", cards.grid(best), lead=f"Highest {ranking}."))
        sections.append(_section("Worst regions", cards.grid(worst), lead=f"Lowest {ranking}."))
    sections.append(_section("How this was measured", _details(scores)))
    lead = f"<p>{text(notes)}</p>" if notes else ""
    page = PAGE.format(title=text(title), style=STYLE, lead=lead, facts=_facts(scores), body="\n".join(sections))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # captions may hold half a character
    return Path(path)


# --- parts of the page ---------------------------------------------------------------------------------------------


def _section(title: str, *content: str, lead: str = "") -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{text(title)}</h2>{lead}{''.join(content)}</section>"


def _facts(scores: Mapping[str, Any]) -> str:
    facts = {
        "Model": scores["model"],
        "Task": scores["task"],
        "Regions": f"{scores['regions']:,}",
        "Date": scores["date"][:10],
    }
    return "".join(f"<span><b>{text(name)}</b> {text(value)}</span>" for name, value in facts.items())


def _headlines(corpus: Mapping[str, float]) -> str:
    names = [name for name in HEADLINES if name in corpus] or [name for name in corpus if "/" not in name][:4]
    tiles = (f'<div class="tile"><strong>{corpus[n]:.3f}</strong><span>{text(n)}</span></div>' for n in names)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _score_table(scores: Mapping[str, Any], views: Mapping[str, Any] | None) -> str:
    """A row a score; the model with its intervals, the same model on the crop alone, and the baselines. A bar behind
    each number, the same scale in a row."""
    columns: dict[str, Mapping[str, float]] = {"this model": scores["scores"]}
    alone = next((row for row in (views or {}).get("scores", {}).items() if fixed_scale(row[0]) == 0.0), None)
    if alone:
        few = f", first {views['regions']:,} regions" if views["regions"] != scores["regions"] else ""
        columns[f"the same model, crop alone (t = 0{few})"] = alone[1]
    for name, row in scores["baselines"].items():
        few = f" ({row['regions']:,} regions)" if row.get("regions", scores["regions"]) != scores["regions"] else ""
        columns[name + few] = row
    names = [n for n in dict.fromkeys(n for row in columns.values() for n in row) if "/" not in n and n != "regions"]
    body = ""
    for name in names:
        values = [row.get(name) for row in columns.values()]
        highest = _full_bar(values)
        cells = _own(scores, name, highest) + "".join(_cell(value, highest) for value in values[1:])
        body += f"<tr><th>{text(name)}</th>{cells}</tr>"
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    kinds: dict[str, dict[str, float]] = {}
    for name, value in scores["scores"].items():
        whole, slash, kind = name.partition("/")
        if slash:
            kinds.setdefault(whole, {})[kind] = value
    by_kind = "".join(_numbers(f"{whole} by kind", values) for whole, values in kinds.items())
    table = f'<div class="wide"><table class="scores"><tr><th></th>{head}</tr>{body}</table></div>'
    return _intervals_lead(scores) + table + by_kind


def _numbers(title: str, values: Mapping[str, float]) -> str:
    cells = "".join(f"<span><b>{value:.2f}</b> {text(name)}</span>" for name, value in values.items())
    return f'<p class="kinds">{text(title)}: {cells}</p>'


def _parts(scores: Mapping[str, Any]) -> str:
    """What scores are the mean of: the cells of dense captioning as a table, others in a line."""
    parts = dict(scores.get("parts", {}))
    dense, grid = parts.pop("densecap", {}), ""
    if dense:
        rows = {"boxes alone": [dense[f"iou_{iou}"] for iou in MIN_IOUS]}
        rows |= {f"METEOR above {m}": [dense[f"iou_{iou}_meteor_{m}"] for iou in MIN_IOUS] for m in MIN_METEORS}
        head = "".join(f"<th>IoU {iou}</th>" for iou in MIN_IOUS)
        body = "".join(
            f"<tr><th>{name}</th>{''.join(f'<td>{value:.3f}</td>' for value in row)}</tr>" for name, row in rows.items()
        )
        grid = f'<div class="wide"><table><tr><th>average precision</th>{head}</tr>{body}</table></div>'
    return grid + "".join(_numbers(metric, values) for metric, values in parts.items())


def _intervals_lead(scores: Mapping[str, Any]) -> str:
    sentences = []
    if scores.get("intervals"):
        drawn = scores.get("bootstrap", {}).get("drawn") or "regions"
        sentences.append(f"Small numbers: 95 % of the scores on bootstrap draws of {drawn}.")
    if caution := scores.get("bootstrap", {}).get("caution"):
        sentences.append(f"{caution[0].upper()}{caution[1:]}.")
    if seeds := scores.get("seeds"):
        sentences.append(f"The mean of {len(seeds)} seeds; ± is the standard deviation between them.")
    reasons: dict[str, list[str]] = {}
    for name, why in scores.get("no_interval", {}).items():
        reasons.setdefault(why, []).append(name)
    sentences += [f"No interval of {', '.join(names)}: {why}." for why, names in reasons.items()]
    return f'<p class="lead">{text(" ".join(sentences))}</p>' if sentences else ""


def _full_bar(values: Sequence[float | None]) -> float:
    """The value whose bar fills a cell; 1 at least where nothing stands beside the value to compare it with."""
    known = [value for value in values if value is not None]
    return max(known, default=0.0) if len(known) > 1 else max(1.0, *known, 0.0)


def _cell(value: float | None, highest: float, more: str = "", own: str = "") -> str:
    if value is None:
        return '<td class="none">–</td>'
    share = max(0.0, value) / highest if highest > 0 else 0.0
    return f'<td{own} style="--share:{share:.3f}">{value:.3f}{more}</td>'


def _own(scores: Mapping[str, Any], name: str, highest: float) -> str:
    """The model's cell: its score, the deviation between seeds, and the interval below."""
    more = f" ± {scores['deviation'][name]:.3f}" if name in scores.get("deviation", {}) else ""
    if low_high := scores.get("intervals", {}).get(name):
        more += f"<small>{low_high[0]:.3f} – {low_high[1]:.3f}</small>"
    return _cell(scores["scores"].get(name), highest, more, " class=own")


def _published(scores: Mapping[str, Any]) -> str:
    """The model among published numbers of the same task; "" where there are none."""
    task = TASKS.get(scores["task"])
    if task is None or not task.published or task.version != scores["task_version"] or not scores["scores"]:
        return ""
    names = list(dict.fromkeys(name for row in task.published for name in row.scores))
    columns = {name: [scores["scores"].get(name)] + [p.scores.get(name) for p in task.published] for name in names}
    highest = {name: _full_bar(values) for name, values in columns.items()}
    own = "".join(_own(scores, name, highest[name]) for name in names)
    body = f"<tr><th class=own>this model</th>{own}<td class=source>measured here</td></tr>"
    for row in task.published:
        cells = "".join(_cell(row.scores.get(name), highest[name]) for name in names)
        body += f"<tr><th>{text(row.model)}</th>{cells}<td class=source>{text(row.source)}</td></tr>"
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    lead = "As others report them, with the place where they were read; they were not measured here."
    whole = scores.get("regions_of_task")
    if whole is None:
        lead += (
            f" <b>They compare with this model's if {text(scores['data'])} ({scores['regions']:,} regions) is the "
            "whole benchmark, whose number of regions nobody has published.</b>"
        )
    if deviations := scores.get("deviations"):
        lead += f" <b>This model's numbers do not compare: {text('; '.join(deviations))}.</b>"
    if (judge := scores["settings"].get("judge")) is not None:
        lead += f" <b>The judge here was {text(judge)}; numbers of other judges do not compare.</b>"
    table = f'<table class="scores"><tr><th></th>{head}<th class=source>source</th></tr>{body}</table>'
    return _section("Published numbers of the same protocol", f'<div class="wide">{table}</div>', lead=lead)


def _left_out(scores: Mapping[str, Any]) -> str:
    return "".join(
        f'<p class="lead">Not computed: {text(name)}: {text(why)}.</p>' for name, why in scores["left_out"].items()
    )


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    curves = {}
    for name in dict.fromkeys(name for row in log for name in row if name == "loss" or name.startswith("loss/")):
        points = [(row["step"], row[name]) for row in log if name in row]
        curves[name] = averaged([(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)])
    figures = [chart({name: points}, title=name, x_title="step") for name, points in curves.items() if points]
    scored = [name for name in dict.fromkeys(n for row in log for n in row) if name.startswith("eval/")]
    for name in [name for name in scored if "loss" not in name]:
        points = [(row["step"], row[name]) for row in log if name in row]
        figures.append(
            chart({name: points}, title=f"{name.partition('/')[2]} on held-out regions", x_title="step", colour=1)
        )
    return f'<div class="charts">{"".join(figures)}</div>'


def _views(views: Mapping[str, Any]) -> str:
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
    columns = shown + [name for name in names if name.startswith("attribute mAP/")]
    best = best_settings(rows)
    head = "".join(f"<th>{text(name.replace('attribute mAP/', ''))}</th>" for name in columns)
    body = ""
    for setting, row in rows.items():
        cells = "".join(
            f"<td{' class=best' if best[name] == setting else ''}>{row[name]:.3f}</td>" if name in row else "<td></td>"
            for name in columns
        )
        body += f"<tr><th><code>{text(setting)}</code></th>{cells}</tr>"
    lone = _finding({s: row for s, row in rows.items() if lone_scale(s) is not None}, lone_scale)
    findings = f'<p class="finding"><b>The region and t.</b> {text(_finding(rows))}</p>' + (
        f'<p class="finding"><b>t alone,</b> without the region\'s own view. {text(lone)}</p>' if lone else ""
    )
    lead = (
        f'<p class="lead">The same weights, {views["regions"]:,} regions, other views: t = 0 is the crop alone, '
        "t = 1 the whole image. Full colour: the region's own view and one of scale t; faint: scale t alone; dashed: "
        "strategies that choose t by themselves. In the table the best setting of each score is marked; single kinds "
        "are attribute mAP.</p>"
    )
    table = f'<table class="views"><tr><th>views</th>{head}</tr>{body}</table>'
    return f'{lead}<div class="charts">{"".join(charts)}</div>{findings}<div class="wide">{table}</div>'


def _finding(rows: Mapping[str, Mapping[str, float]], scale_of: Callable = fixed_scale, least: float = 0.02) -> str:
    """The sweep in one sentence: at which t a score is highest, and which scores change by less than `least`, as a
    share of the highest.

    >>> _finding({"fixed:0,0": {"CIDEr": 1.0, "tag mAP": 0.5}, "fixed:0,0.5": {"CIDEr": 2.0, "tag mAP": 0.5}})
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
    found = [f"Best at t = {scale:g}: {', '.join(names)}." for scale, names in sorted(scales.items())]
    return " ".join(found + [f"Changes by {100 * least:g} % at most: {', '.join(flat)}."] * bool(flat))


def _sizes(records: RegionRecords, items: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """Scores against region size; "" where all regions are about the same size or no score is one of regions."""
    charts = []
    for n, name in enumerate(names):
        bins, edges = by_size(records, {i: row[name] for i, row in items.items() if name in row})
        labels = {float(k): f"{edge:.0f}" if edge >= 10 else f"{edge:.2g}" for k, edge in enumerate(edges)}
        for point in bins:
            point.x += 0.5  # between its edges
        title = "square root of the box's area, pixels"
        charts.append(bins_chart(bins, title=name, x_title=title, x_labels=labels, colour=n) if bins else "")
    if not any(charts):
        return ""
    lead = "Means over regions, in bins of as many regions each; bars are 95 % intervals, an image is one draw."
    if "METEOR" in names:
        lead += " METEOR of all regions together is not the mean of theirs."
    return _section(
        "Score by region size",
        f'<div class="charts">{"".join(charts)}</div>',
        lead=lead,
    )


def _calibration(records: RegionRecords, results: Mapping[str, RegionResult], scores: Mapping[str, Any]) -> str:
    """The reliability curve of tags; "" where tags were not scored."""
    if "tags" not in scores["regions_scored"]:
        return ""
    bins, error = calibration(records, results)
    if bins is None:
        return _section("Calibration of tags", lead=f"Not shown: {text(error)}.")
    title = "predicted probability"
    curve = bins_chart(bins, title="share of tags that are true", x_title=title, diagonal=True)
    head = "<tr><th>mean probability</th><th>true</th><th>tags</th></tr>"
    rows = "".join(f"<tr><th>{b.x:.3f}</th><td>{b.value:.3f}</td><td>{b.count:,}</td></tr>" for b in bins)
    lead = (
        "A tag predicted with probability 0.8 should be true of 80 % of its regions: on the dashed line. Below it the "
        f"model is too sure. Expected calibration error {error:.3f}; bars are 95 % intervals, an image is one draw."
    )
    if (threshold := scores["settings"].get("tag_threshold")) is not None:
        lead += f" Tags count as said from {threshold:g}."
    return _section(
        "Calibration of tags",
        f'<div class="beside">{curve}<div class="wide"><table>{head}{rows}</table></div></div>',
        lead=lead,
    )


def _details(scores: Mapping[str, Any]) -> str:
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
    cells = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows.items() if value)
    return f'<table class="details">{cells}</table>'


def _settings(settings: Mapping[str, Any], within: str = "") -> list[str]:
    """ "generation.num_beams 2", ... of what is set."""
    found = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _settings(value, f"{within}{name}.")
        elif value not in (None, "", []):
            found.append(f"{within}{name} {value}")
    return found


def _computed(versions: Mapping[str, str]) -> list[str]:
    """ "METEOR, ...: what computed them"."""
    names: dict[str, list[str]] = {}
    for name, version in versions.items():
        names.setdefault(version, []).append(name)
    return [f"{', '.join(of)}: {version}" for version, of in names.items()]


LEGEND = (
    "The solid box is the region, dashed ones are the views. "
    '<span class="chip right">right</span> <span class="chip wrong">wrong</span> '
    '<span class="chip missed">missed</span> words, with their scores.'
)


class _Cards:
    """Pictures of regions with what people and the model say. Each picture is embedded once a card."""

    def __init__(
        self,
        records: RegionRecords,
        results: Mapping[str, RegionResult],
        items: Mapping[str, Mapping[str, float]],
        tag_threshold: float,
    ):
        self.records, self.results, self.items, self.tag_threshold = records, results, items, tag_threshold
        self.place = {region.id: index for index, region in enumerate(records)}
        self.sure = any(result.score for result in results.values())  # else the predictions came without scores

    def grid(self, ids: Sequence[str]) -> str:
        return f'<div class="cards">{"".join(map(self.card, ids))}</div>'

    def card(self, region_id: str) -> str:
        region = self.records[self.place[region_id]]
        result = self.results.get(region_id)
        said = '<p class="said none">no prediction</p>'
        if result is not None:
            answer = result.caption or (result.category["name"] if result.category else "")
            said = f'<p class="said">{_cut(answer) or "<i>nothing</i>"}</p>'
        values = {
            name: value
            for name, value in self.items.get(region_id, {}).items()
            if not name.startswith("BLEU") and name != "category accuracy"  # which its chip shows
        }
        if result is not None and self.sure:
            values["confidence"] = result.score
        numbers = "".join(f"<span>{text(name)} <b>{value:.2f}</b></span>" for name, value in values.items())
        references = "".join(f"<li>{_cut(caption)}</li>" for caption in region.captions)
        return (
            f'<article>{self.picture(region, result)}<div class="words">{said}<p class="numbers">{numbers}</p>'
            f"{f'<ul>{references}</ul>' if references else ''}{_chips(region, result, self.tag_threshold)}"
            f'<p class="id">{text(region_id)}</p></div></article>'
        )

    def picture(self, region: Region, result: RegionResult | None) -> str:
        """The whole image with the region's box and the boxes of its views, in per cent of the image."""
        height, width = region.image_hw
        boxes = []
        for scale in dict.fromkeys(result.scales if result else ()):
            whole = (0, 0, width, height)
            view = [b + scale * (w - b) for b, w in zip(region.box, whole, strict=True)]
            boxes.append(outline(view, region.image_hw, "view", f"t = {scale:.2g}") if scale > 0 else "")
        boxes.append(outline(region.box, region.image_hw, "region"))
        uri = _picture_uri(self.records.image_path(self.place[region.id]))
        shown = f'<img alt="" src="{uri}">' if uri else '<span class="none">no picture</span>'
        fit = "width" if width / height > PICTURE_ASPECT else "height"
        return (
            f'<div class="picture"><div style="aspect-ratio:{width}/{height};{fit}:100%">'
            f"{shown}{''.join(boxes)}</div></div>"
        )


def _cut(caption: str) -> str:
    return text(caption if len(caption) <= MAX_LETTERS else f"{caption[:MAX_LETTERS]}… ({len(caption):,} letters)")


def _picture_uri(path: Path) -> str | None:
    """The picture as a data: address, None where it cannot be read: a predictions file is scored without pictures."""
    from PIL import Image

    from dynrefer.images import open_image

    try:
        picture = Image.fromarray(open_image(path))
    except ValueError:
        return None
    factor = PICTURE_PIXELS / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    if factor < 1:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    elif factor > 1.2:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return picture_uri(picture)


def _chips(region: Region, result: RegionResult | None, tag_threshold: float) -> str:
    lines = ""
    if region.category is not None or (result and result.category):
        said = result.category if result else None
        right = said is not None and said["name"] == region.category
        kind = "right" if right else "open" if region.category is None else "wrong"
        chips = _chip(said["name"], kind, said["score"]) if said else ""
        chips += "" if right or region.category is None else _chip(region.category, "missed")
        lines += f"<dt>category</dt><dd>{chips}</dd>"
    tags = [tag for tag in result.tags if tag["score"] >= tag_threshold] if result else []  # a file lists them all
    if tags or region.tags:
        known = region.tags is not None
        chips = "".join(
            _chip(tag["name"], ("right" if tag["name"] in region.tags else "wrong") if known else "open", tag["score"])
            for tag in tags
        )
        said = {tag["name"] for tag in tags}
        chips += "".join(_chip(tag, "missed") for tag in dict.fromkeys(region.tags or ()) if tag not in said)
        lines += f"<dt>tags</dt><dd>{chips}</dd>"
    attributes = result.attributes if result else []
    true = [name for name, value in region.attributes.items() if value == 1]
    shown = attributes[: max(MAX_ATTRIBUTES, len(true))] if attributes else []
    if shown or true:
        kinds = {1: "right", -1: "wrong", None: "open"}
        chips = "".join(
            _chip(item["name"], kinds[region.attributes.get(item["name"])], item["score"]) for item in shown
        )
        said = {item["name"] for item in shown}
        chips += "".join(_chip(name, "missed") for name in true if name not in said)
        lines += f"<dt>attributes</dt><dd>{chips}</dd>"
    return f"<dl>{lines}</dl>" if lines else ""


def _chip(name: str, kind: str, score: float | None = None) -> str:
    number = "" if score is None else f"<small>{score:.2f}</small>"
    return f'<span class="chip {kind}">{text(name)}{number}</span>'


def _different(ids: Sequence[str], results: Mapping[str, RegionResult], number: int) -> list[str]:
    """The first `number` ids of which the model says different things."""
    first: dict[tuple, str] = {}
    for region_id in ids:
        result = results.get(region_id, RegionResult(region_id, []))
        said = result.caption, result.category and result.category["name"]
        first.setdefault(said if any(said) else (region_id,), region_id)
    return list(first.values())[:number]


# --- the page --------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1>{lead}<p class="facts">{facts}</p></header>
<main>{body}</main></body></html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1d2129; --soft: #626b79; --line: #e1e5ea;
  --accent: #2f6fde; --bar: #2f6fde1c; --own: #2f6fde3d; --right: #157a4b; --right-bg: #dcf3e7; --wrong: #a8322a;
  --wrong-bg: #fbe4e1; --open-bg: #eceff3; --c0: #2f6fde; --c1: #d07a1c; --c2: #1f9163; --c3: #9250bd; --box: #ff3d6e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2027; --ink: #e6e9ee; --soft: #98a2b1;
  --line: #2d333d; --accent: #7aa7ff; --bar: #7aa7ff24; --own: #7aa7ff4a; --right: #7fdcb0; --right-bg: #17372a;
  --wrong: #ff9d93; --wrong-bg: #402220; --open-bg: #2a3039; --c0: #7aa7ff; --c1: #f0a558; --c2: #58c998;
  --c3: #c08fe6; --box: #ff5c86; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 8px 0 22px; color: var(--soft); font-size: 13.5px; }
.facts b { font-weight: 600; color: var(--ink); }
section { margin: 34px 0; }
.lead { margin: 0 0 12px; color: var(--soft); max-width: 78ch; }
.finding { margin: 10px 0; max-width: 100ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.tile strong { display: block; font-size: 27px; line-height: 1.2; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; }
tr > th:first-child { text-align: left; font-weight: 500; white-space: normal; min-width: 130px; }
tr:first-child th { color: var(--soft); font-weight: 500; font-size: 12.5px; }
.scores td { background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 / calc(var(--share, 0) * 100%) 100%; }
.scores { table-layout: fixed; min-width: 520px; }
.scores th, .scores td { padding: 5px 12px; }
.scores tr:first-child th { white-space: normal; vertical-align: bottom; overflow-wrap: anywhere; }
.scores tr:first-child th:first-child { width: 190px; }
.scores tr:first-child th.source { width: 28%; }
.scores .own { font-weight: 650; }
.scores td.own { background-image: linear-gradient(var(--own), var(--own)); }
.scores td small { display: block; font-weight: 400; font-size: 11.5px; line-height: 1.25; color: var(--soft); }
.scores .source { background: none; text-align: left; color: var(--soft); white-space: normal; }
.beside { display: flex; flex-wrap: wrap; gap: 12px; align-items: start; margin-top: 10px; }
.beside svg { flex: 1 1 280px; max-width: 440px; } .beside .wide { flex: 1 1 300px; }
.beside .wide { margin: 0; } .beside td, .beside th { padding: 4px 12px; }
td.none { color: var(--soft); }
.views td.best { font-weight: 650; color: var(--right); background: var(--right-bg); }
.views th:first-child { min-width: 120px; }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.kinds { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--soft); font-size: 13.5px; margin: 10px 2px; }
.kinds b { color: var(--ink); }
.details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; border-collapse: separate;
  border-spacing: 0; margin-top: 10px; }
.details td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.details th { color: var(--soft); vertical-align: top; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 12px; margin-top: 10px; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 10px; width: 100%; height: auto;
  padding: 6px 4px 4px; }
svg text { fill: var(--soft); font-size: 10.5px; }
svg text.name { fill: var(--ink); font-size: 12.5px; font-weight: 600; }
svg text.x { text-anchor: middle; } svg text.y { text-anchor: end; } svg text.level { font-size: 9.5px; }
svg line.grid { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg line.spread { stroke-width: 1.4; opacity: .6; } svg line.ideal { stroke: var(--soft); }
svg line.level { stroke-dasharray: 4 3; opacity: .75; }
svg .c0 { stroke: var(--c0); } svg .c1 { stroke: var(--c1); } svg .c2 { stroke: var(--c2); }
svg .c3 { stroke: var(--c3); } svg circle { fill: var(--card); stroke-width: 1.6; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(265px, 1fr)); gap: 14px; margin-top: 10px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.picture { background: var(--open-bg); aspect-ratio: 4/3; display: flex; align-items: center; justify-content: center; }
.picture > div { position: relative; flex: none; }
.picture .none { position: absolute; inset: auto 0 6px; text-align: center; color: var(--soft); font-size: 12.5px; }
.picture img { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture i { position: absolute; font-style: normal; }
.picture i.region { border: 2.5px solid var(--box); box-shadow: 0 0 0 1px #fffc, inset 0 0 0 1px #fffc; }
.picture i.view { border: 1.5px dashed #fff; filter: drop-shadow(0 0 1px #000); }
.picture small { position: absolute; left: 0; top: 100%; font-size: 10px; line-height: 1; padding: 2px 3px;
  background: #000a; color: #fff; }
.words { padding: 12px 14px 10px; }
.said { margin: 0; font-weight: 620; font-size: 15.5px; line-height: 1.35; overflow-wrap: anywhere; }
.said.none { color: var(--soft); }
.numbers { display: flex; flex-wrap: wrap; gap: 2px 12px; margin: 3px 0 6px; font-size: 12.5px; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.numbers b { color: var(--ink); font-weight: 600; }
ul { margin: 0 0 8px; padding: 0; list-style: none; color: var(--soft); font-size: 13px; }
li::before { content: "“"; } li::after { content: "”"; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 8px; margin: 8px 0 0; font-size: 12.5px; }
dt { color: var(--soft); padding-top: 1px; } dd { margin: 0; }
.chip { display: inline-block; border-radius: 5px; padding: 0 6px; margin: 1px 3px 2px 0; font-size: 12.5px;
  background: var(--open-bg); border: 1px solid transparent; line-height: 1.55; }
.chip small { opacity: .72; margin-left: 4px; font-size: 11px; font-variant-numeric: tabular-nums; }
.chip.right { background: var(--right-bg); color: var(--right); }
.chip.wrong { background: var(--wrong-bg); color: var(--wrong); }
.chip.missed { background: none; border: 1px dashed var(--soft); color: var(--soft); }
.id { margin: 8px 0 0; color: var(--soft); font-size: 11px; overflow-wrap: anywhere; }
@media print { section { break-inside: avoid-page; } article { break-inside: avoid; } }
"""


# --- the command -----------------------------------------------------------------------------------------------------


def read_log(path: str | os.PathLike) -> list[dict]:
    """Rows of a run's log.jsonl; a last line torn by a kill is left out. ValueError for any other damage."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON line ({error}); the log is damaged") from error
    return rows


def report_run(
    run: str | os.PathLike,
    task: str,
    *,
    data: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    views: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    title: str | None = None,
) -> Path:
    """RUN/report.html from the files in a run folder; returns its path.

    data: the records, where scores.json names them if not given; predictions: the folder with scores.json, views: the
    folder with views.json, where `eval.run` and `eval.sweep` put them if not given. ValueError names what is missing.
    """
    run = Path(run)
    folder = Path(predictions or default_out(str(run), task, None, None))
    if not (folder / SCORES).is_file():
        raise ValueError(
            f"no {folder / SCORES}; `python -m eval.run --model {run} --task {task} --baselines` writes it"
        )
    scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    results = read_predictions(folder / PREDICTIONS)
    items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    everything = open_records(data or scores["data"])
    records = everything.subset([n for n, region in enumerate(everything) if region.id in items])
    if len(records) != len(items):
        raise ValueError(f"{everything.path} lacks {len(items) - len(records)} of the regions scored; name --data FILE")
    return report_of(
        out or run / "report.html",
        str(run),
        scores,
        records,
        results,
        items,
        title=title or f"{run.name}: {task}",
        views=views,
    )


def report_of(
    path: str | os.PathLike,
    model: str | None,
    scores: Mapping[str, Any],
    records: RegionRecords,
    results: Mapping[str, RegionResult],
    items: Mapping[str, Mapping[str, float]],
    *,
    title: str | None = None,
    notes: str = "",
    views: str | os.PathLike | None = None,
) -> Path:
    """`report` with the loss curve and the sweep of views of a model, where it has them; model: a run folder, another
    model, or None for a predictions file, of which neither is known. views: as in `report_run`."""
    if views is None and model:
        views = default_out(model, f"{scores['task']}-views", None, None)
    sweep, log = views and Path(views) / "views.json", model and Path(model) / "log.jsonl"
    return report(
        path,
        title=title or f"{Path(scores['model']).name}: {scores['task']}",
        scores=scores,
        records=records,
        results=results,
        items=items,
        log=read_log(log) if log and log.is_file() else (),
        views=json.loads(sweep.read_text(encoding="utf-8")) if sweep and sweep.is_file() else None,
        notes=notes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description="Writes a run's report.html.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--task", required=True, help="the task whose scores are shown")
    parser.add_argument("--data", help="records; those that were scored where not given")
    parser.add_argument("--predictions", help="folder with scores.json; RUN/predictions/TASK where not given")
    parser.add_argument("--views", help="folder with views.json; RUN/predictions/TASK-views where not given")
    parser.add_argument("--out", help="file to write; RUN/report.html where not given")
    parser.add_argument("--title", help="heading of the page")
    return run_command("eval.report", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    path = report_run(
        args.run,
        args.task,
        data=args.data,
        predictions=args.predictions,
        views=args.views,
        out=args.out,
        title=args.title,
    )
    print(f"-> {path}")


if __name__ == "__main__":
    sys.exit(main())
