"""What computed a score: program, version, rules. Scores that differ in it do not compare, whatever they are called."""

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .metrics.captions import METEOR_JAR, METEOR_WORDS, PTB_JAR, SPICE_JAR, jar_path
from .metrics.similarity import ENCODER

if TYPE_CHECKING:
    from .benchmarks import Task

TOKENIZERS = {
    "ptb": lambda: f"PTB tokenizer {_jar(PTB_JAR)}",
    "lower": lambda: "lower-case tokenizer 1",
    "tokens": lambda: "tokens as given",
}
# Start of a score's name -> what computes it. Our own rules have a number, which grows when a score may change.
VERSIONS: dict[str, Callable[["Task", str], str]] = {
    "BLEU": lambda task, judge: f"{package('pycocoevalcap')}; {TOKENIZERS[task.tokenizer]()}",
    "ROUGE-L": lambda task, judge: (
        f"{package('pycocoevalcap')}, an empty caption scores 0; {TOKENIZERS[task.tokenizer]()}"
    ),
    "CIDEr": lambda task, judge: f"{package('pycocoevalcap')}, CIDEr-D; {TOKENIZERS[task.tokenizer]()}",
    "METEOR": lambda task, judge: f"{_meteor()}; {TOKENIZERS[task.tokenizer]()}",
    "SPICE": lambda task, judge: f"SPICE 1.0 {_jar(SPICE_JAR)}; {TOKENIZERS[task.tokenizer]()}",
    "tag mAP": lambda task, judge: "tags 1",
    "tag ": lambda task, judge: f"tags 1, threshold {task.tag_threshold:g}",
    "attribute mAP": lambda task, judge: "attributes 1",
    "category accuracy": lambda task, judge: "categories 2",
    "COCO mAP": lambda task, judge: f"{package('faster-coco-eval')}; categories 2",
    "LVIS AP": lambda task, judge: f"{package('faster-coco-eval')}; federation 2, categories 2",
    "dense detection mAP": lambda task, judge: "densecap 1, rules of the Python port",
    "dense mAP": lambda task, judge: f"densecap 1, rules of the Python port; {_meteor()}, no tokenizer",
    "semantic similarity": lambda task, judge: f"similarity 2; {ENCODER}",
    "word IoU": lambda task, judge: "similarity 2",
    "choice ": lambda task, judge: f"choices 1; judge {judge}",
}


def metric_versions(names: Iterable[str], task: "Task", judge: str = "not named") -> dict[str, str]:
    """{score name: what computed it}; parts of scores ("attribute mAP/color") are computed as the whole."""
    found = {}
    for name in names:
        rows = [row for start, row in VERSIONS.items() if name.startswith(start)]
        assert rows, f"score {name!r} has no row in VERSIONS"
        if "/" not in name:
            found[name] = rows[0](task, judge)
    return found


def package_version(name: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package(name: str) -> str:
    return f"{name} {package_version(name)}"


def _meteor() -> str:
    return f"METEOR 1.5 -l en -norm {_jar(METEOR_JAR)}, a caption of more than {METEOR_WORDS:,} words scores 0"


@cache
def _jar(name: str) -> str:
    path = jar_path(name)
    return f"({path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
