"""The metrics: a file each, with its functions of plain values, what it does in a benchmark, and what computed it.

A new one is such a file and a row of METRICS.
"""

from collections.abc import Iterable

from dynrefer.errors import suggestion

from ..task import Task
from .answers import ANSWERS
from .attributes import ATTRIBUTES
from .base import Metric
from .captions import CAPTIONS, CLEANING, TOKENIZERS
from .captions import METRICS as CAPTION_METRICS
from .categories import CATEGORIES
from .coco import COCO, SCORE_SOURCES
from .densecap import DENSECAP
from .detection import DETECTION
from .judge import JUDGE
from .judged import JUDGED, RUBRICS
from .lvis import LVIS
from .misses import MISSES
from .similarity import SIMILARITY
from .tags import TAGS
from .yes_no import YES_NO

METRICS: dict[str, Metric] = {
    "captions": CAPTIONS,
    "tags": TAGS,
    "attributes": ATTRIBUTES,
    "categories": CATEGORIES,
    "recognition": COCO,
    "detection": DETECTION,
    "densecap": DENSECAP,
    "lvis": LVIS,
    "similarity": SIMILARITY,
    "choices": JUDGE,
    "misses": MISSES,
    "answers": ANSWERS,
    "yes_no": YES_NO,
    "judged": JUDGED,
}
OF_QUESTIONS = frozenset(("answers", "yes_no"))  # metrics that read records of questions only


def check_task(task: Task) -> Task:
    """The task, once every row that it names is there; ValueError names the first that is not, and the nearest."""
    given = [(name, value) for name in ("clean", "tokenizer", "score_source") for value in [getattr(task, name)]]
    given += [(name, value) for name in ("metrics", "caption_metrics") for value in getattr(task, name)]
    given += [("rubric", task.rubric)] if "judged" in task.metrics else []
    rows = {"clean": CLEANING, "tokenizer": TOKENIZERS, "score_source": SCORE_SOURCES, "rubric": RUBRICS}
    rows |= {"metrics": METRICS, "caption_metrics": CAPTION_METRICS}
    for name, value in given:
        if value not in rows[name]:
            known = ", ".join(rows[name])
            raise ValueError(
                f"task {task.name}: unknown {name} {value!r}.{suggestion(value, rows[name])} Known: {known}."
            )
    if OF_QUESTIONS & {*task.metrics} and not task.asks:
        raise ValueError(f"task {task.name}: it scores answers to questions; say how they are asked, `asks: ...`")
    return task


def score_range(name: str) -> tuple[float, float]:
    """(least, most) that a score can be."""
    ranges = [(start, ends) for metric in METRICS.values() for start, ends in metric.ranges.items()]
    return next((ends for start, ends in ranges if name.startswith(start)), (0.0, 1.0))


def metric_versions(names: Iterable[str], task: Task, judge: str = "not named") -> dict[str, str]:
    """{score name: what computed it: program, version, rules}. Scores that differ in it do not compare, whatever they
    are called; parts of scores ("attribute mAP/color") are computed as the whole."""
    rows = [row for metric in METRICS.values() for row in metric.versions.items()]
    versions = {}
    for name in names:
        fitting = [version for start, version in rows if name.startswith(start)]
        assert fitting, f"score {name!r} has no row in the versions of a metric"
        if "/" not in name:
            versions[name] = fitting[0](task, judge)
    return versions
