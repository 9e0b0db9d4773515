"""Records and predictions -> every score of a task: the metrics, and how each is computed on draws of the regions."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynrefer.data.records import Region, RegionResult
from dynrefer.images import open_image

from . import statistics
from .metrics.attributes import attribute_groups, attribute_precisions
from .metrics.captions import TOKENIZERS, lower_tokens, meteor_of, token_scores
from .metrics.categories import category_accuracy
from .metrics.coco import Objects, coco_map, lvis_ap, region_detections
from .metrics.densecap import Boxes, average_precisions, match, score_captions
from .metrics.judge import Judge, Question, choice_scores, judge_captions, shown_region
from .metrics.similarity import plain_name, similarity_scores
from .metrics.tags import tag_map
from .statistics import Resampling
from .versions import metric_versions

if TYPE_CHECKING:
    from .benchmarks import Task

CIDER_WORDS = "CIDEr: how rare a word is stays what it is in the references of all regions"
CLEANING = {  # what is done to predictions and references alike before the tokenizer
    "none": list,
    "words": lower_tokens,  # lower-case, punctuation removed
}


@dataclass
class Scores:
    """corpus: {score name: fraction}; regions: {metric: regions that it counts}; items: {region id: {name: score}};
    left_out: {metric: why it was not computed}; parts: {metric: {name: fraction}}, what a score is the mean of.
    counts: {what is wrong with predictions, for people: how many}. versions: {score name: what computed it}.
    groups: (N,) the image of every region; resamplings: how scores are computed on draws of the regions, and
    no_interval: {score name: why it has none}."""

    corpus: dict[str, float] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    resamplings: list[Resampling] = field(default_factory=list)
    no_interval: dict[str, str] = field(default_factory=dict)


@dataclass
class Scoring:
    """What a metric function reads, and `scores`, which it adds to.

    results: region id -> prediction; where a task's boxes are detected, prediction id -> prediction, and images:
    prediction id -> image of the records. names: word lists. annotations: the benchmark's own file. judge: of
    `choices`; encode: of `similarity`.
    """

    task: "Task"
    regions: Sequence[Region]
    results: Mapping[str, RegionResult]
    names: Mapping[str, Sequence | None]
    images: Mapping[str, str]
    annotations: str | None
    judge: Judge | None
    encode: Callable | None
    scores: Scores

    def places(self, regions: Iterable[Region]) -> np.ndarray:
        """Places of regions among all."""
        place = {region.id: n for n, region in enumerate(self.regions)}
        return np.array([place[region.id] for region in regions], int)

    @property
    def caption_is_answer(self) -> bool:
        """Whether a caption may name the category: where captions are not scored themselves."""
        return "captions" not in self.task.metrics

    def nothing_of(self, metric: str, key: str | None = None) -> bool:
        """Whether no prediction says anything that the metric is about; it is left out then."""
        nothing = bool(self.results) and not any(getattr(result, key or metric) for result in self.results.values())
        if nothing:
            self.scores.left_out[metric] = f"no prediction has {metric}"
        return nothing

    def spread(self, values: Mapping[str, float]) -> np.ndarray:
        """(N,) the values of region ids, nan for the others."""
        return np.array([values.get(region.id, np.nan) for region in self.regions])


def score(
    task: "Task",
    regions: Sequence[Region],
    results: Mapping[str, RegionResult],
    *,
    names: Mapping[str, Sequence | None] | None = None,
    images: Mapping[str, str] | None = None,
    annotations: str | None = None,
    judge: Judge | None = None,
    encode: Callable | None = None,
) -> Scores:
    """All metrics of a task. A region without a prediction is wrong in each; a region without the annotation of a
    metric is left out of that one; a metric that no region is annotated for is left out and named.

    names: word lists of "tags", "categories" and "attributes" (names, or OVAD's entries, which tell groups); the words
    that occur in the records where there is none.
    images: prediction id -> image, where the predictions bring their own boxes (task.boxes "detected").
    annotations: path of the benchmark's own file, over the task's. judge: answers the questions of `choices`. encode:
    texts -> embeddings of `similarity`, its own where not given.
    Raises ValueError for predictions of unknown regions or images and for scores that are not finite.
    """
    known = {region.id for region in regions}
    if len(known) != len(regions):
        raise ValueError(f"{len(regions)} regions with {len(known)} different ids; ids are unique")
    if task.boxes == "detected":
        if images is None:
            raise ValueError(
                f"task {task.name}: predictions bring their own boxes, but nothing says of which images; use a results "
                "list with image_id, bbox and score"
            )
        pictures = {region.image for region in regions}
        unknown = [images[i] for i in results if images[i] not in pictures]
    else:
        unknown = [region_id for region_id in results if region_id not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for regions that the records do not have, the first for {unknown[0]!r}; "
            "score a predictions file with the data it was made from"
        )
    for region_id, result in results.items():
        for what, value in _numbers(result):
            if not math.isfinite(value):
                raise ValueError(f"prediction for {region_id!r}: {what} is {value}; expected a finite number")
    scores = Scores(items={region.id: {} for region in regions}, groups=[region.image for region in regions])
    scoring = Scoring(
        task, regions, results, names or {}, images or {}, annotations or task.annotations, judge, encode, scores
    )
    for metric in task.metrics:
        METRICS[metric](scoring)
    scores.versions = metric_versions(scores.corpus, task, getattr(judge, "model", "not named"))
    return scores


def intervals(scores: Scores, seed: int = 0) -> dict[str, list[float]]:
    """{score name: [low, high]}, 95 % of the score on draws of the regions; see `eval.statistics`."""
    drawn = statistics.samples(scores.resamplings, scores.groups, seed)
    wanted = [name for name in scores.corpus if name in drawn and name not in scores.no_interval]
    found = {name: statistics.interval(drawn[name], scores.corpus[name]) for name in wanted}
    return {name: low_high for name, low_high in found.items() if low_high is not None}


def without_interval(scores: Scores, found: Mapping[str, Any]) -> dict[str, str]:
    """{score name: why it has no interval}."""
    unit = statistics.unit_of(scores.groups)
    reasons = {}
    for resampling in scores.resamplings:
        if (number := statistics.number_drawn(resampling, scores.groups)) < statistics.MIN_NUMBER:
            names = resampling.values(np.ones((1, len(scores.groups))))
            reasons |= dict.fromkeys(names, f"only {number} of the {unit} counts, and an interval needs two")
    return {
        name: scores.no_interval.get(name) or reasons.get(name, "computing it on draws takes too long")
        for name in scores.corpus
        if name not in found
    }


def _numbers(result: RegionResult):
    yield "its score", result.score
    yield from ((f"a coordinate of its box {result.box}", x) for x in result.box)
    for kind in ("tags", "attributes"):
        yield from ((f"the score of {item['name']!r} in its {kind}", item["score"]) for item in getattr(result, kind))
    if result.category:
        yield "its category's score", result.category["score"]


def _captions(s: Scoring) -> None:
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
    found = token_scores(predictions, references, s.task.caption_metrics)
    s.scores.corpus |= found.corpus
    s.scores.regions["captions"] = len(references)
    for region_id, values in found.items.items():
        s.scores.items[region_id] |= values
    places = s.places(described)
    names = [name for name in found.corpus if not name.startswith(("BLEU", "METEOR"))]
    if names:
        columns = {name: s.spread({i: found.items[i][name] for i in ids}) for name in names}
        s.scores.resamplings.append(statistics.means(columns, CIDER_WORDS if "CIDEr" in names else ""))
    if found.meteor is not None:
        part = statistics.of_sums(found.meteor, lambda sums: {"METEOR": meteor_of(sums)})
        s.scores.resamplings.append(_of_some(part, places))
    if "bleu" in s.task.caption_metrics:
        part = statistics.bleu(list(predictions.values()), list(references.values()))
        s.scores.resamplings.append(_of_some(part, places))
        for name, (value,) in part.values(np.ones((1, len(predictions)))).items():
            if not value:  # pycocoevalcap writes it as a small number
                what = "word is" if name == "BLEU-1" else f"{name[-1]} words in a row are"
                s.scores.no_interval[name] = f"no {what} right"


def _tags(s: Scoring) -> None:
    annotated = [region for region in s.regions if region.tags is not None]
    words = s.names.get("tags") or sorted({word for region in annotated for word in region.tags})
    labels = np.array([[word in region.tags for word in words] for region in annotated], int)
    if not labels.any():
        s.scores.left_out["tags"] = "no region has a tag"
        return
    if s.nothing_of("tags"):
        return
    table = _table(annotated, s.results, "tags", words)
    s.scores.corpus |= tag_map(labels, table, s.task.tag_threshold)
    s.scores.regions["tags"] = len(annotated)
    places = s.places(annotated)
    s.scores.resamplings.append(
        statistics.rankings({"tag mAP": range(len(words))}, labels, table, places, len(s.regions))
    )
    said = (table >= s.task.tag_threshold) & (table > 0)
    right, said, true = (labels * said).sum(1), said.sum(1), labels.sum(1)
    parts = {"tag precision": (right, said), "tag recall": (right, true), "tag F1": (2 * right, said + true)}
    s.scores.resamplings.append(_of_some(statistics.ratios(parts), places))


def _attributes(s: Scoring) -> None:
    annotated = [region for region in s.regions if region.attributes]
    entries = s.names.get("attributes") or sorted({name for region in annotated for name in region.attributes})
    entries = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in entries]
    words = [entry["name"] for entry in entries]
    # records say 1, -1 and nothing where the metric says 1, 0 and -1
    records_labels = np.array([[region.attributes.get(word, 0) for word in words] for region in annotated], int)
    if not (records_labels == 1).any():
        s.scores.left_out["attributes"] = "no region has an attribute"
        return
    labels = np.select([records_labels == 1, records_labels == -1], [1, 0], 0 if s.task.closed_attributes else -1)
    if not (labels == 0).any():
        s.scores.left_out["attributes"] = "no region is known to lack an attribute, so every ranking would be perfect"
        return
    if s.nothing_of("attributes"):
        return
    table = _table(annotated, s.results, "attributes", words)
    precisions = attribute_precisions(labels, table)
    columns = {"attribute mAP": list(range(len(words)))}
    groups = attribute_groups(entries)
    if "multiple" not in groups:  # a list without synonyms is not sorted by them
        groups.pop("single", None)
    columns |= {f"attribute mAP/{g}": ks for g, ks in groups.items() if not np.isnan(precisions[ks]).all()}
    for name, chosen in columns.items():
        s.scores.corpus[name] = float(np.nanmean(precisions[chosen]))
    s.scores.regions["attributes"] = len(annotated)
    s.scores.resamplings.append(statistics.rankings(columns, labels, table, s.places(annotated), len(s.regions)))


def _categories(s: Scoring) -> None:
    true = {region.id: region.category for region in s.regions}
    if not any(true.values()):
        s.scores.left_out["categories"] = "no region has a category"
        return
    if s.caption_is_answer:
        predicted = {i: found and found[0] for i, found in _named(s).items()}
    elif s.nothing_of("categories", "category"):
        return
    else:
        predicted = {i: result.category and result.category["name"] for i, result in s.results.items()}
    s.scores.corpus["category accuracy"] = category_accuracy(predicted, true)
    s.scores.regions["categories"] = sum(category is not None for category in true.values())
    right = {i: float(predicted.get(i) == category) for i, category in true.items() if category is not None}
    for region_id, value in right.items():
        s.scores.items[region_id]["category accuracy"] = value
    s.scores.resamplings.append(statistics.means({"category accuracy": s.spread(right)}))


def _named(s: Scoring, names: Collection[str] = ()) -> dict[str, tuple[str, float] | None]:
    """prediction id -> (category, score), None where it names none of the list: its category or, of one that has none,
    its caption, a score of 1. names: the list, the task's if empty."""
    names = names or s.names.get("categories") or sorted({region.category for region in s.regions if region.category})
    known = {_answer(name): name for name in names} | {name: name for name in names}
    named = {}
    for i, result in s.results.items():
        said, score = (result.category["name"], result.category["score"]) if result.category else (result.caption, 1)
        name = known.get(said) or known.get(_answer(said))
        named[i] = name and (name, float(score))
    if outside := sum(found is None for found in named.values()):
        s.scores.counts["predictions name no category of the list and count as wrong"] = outside
    return named


def _answer(text: str) -> str:
    """What counts of a category's name in words: "The Traffic_light." -> "traffic light"."""
    words = lower_tokens([plain_name(text)])[0].split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _recognition(s: Scoring) -> None:
    truth: dict[str, Objects] = {}
    for region in s.regions:
        if region.category:
            objects = truth.setdefault(region.image, Objects([], []))
            objects.boxes.append(region.box)
            objects.categories.append(region.category)
    if not truth:
        s.scores.left_out["recognition"] = "no region has a category"
        return
    names = list(s.names.get("categories") or sorted({name for o in truth.values() for name in o.categories}))
    boxes = {region.id: (region.image, region.box) for region in s.regions if region.category}
    named = {i: found for i, found in _named(s, names).items() if found and i in boxes}
    corpus = coco_map(region_detections(named, boxes, s.task.score_source), truth, names)
    s.scores.corpus |= corpus
    s.scores.regions["recognition"] = len(boxes)
    s.scores.no_interval |= dict.fromkeys(corpus, "COCO's matching would be repeated on every draw")


def _densecap(s: Scoring) -> None:
    truth: dict[str, Boxes] = {}
    found: dict[str, Boxes] = {}
    for region in s.regions:
        if not region.captions:
            raise ValueError(
                f"region {region.id!r} has no caption, and dense captions are scored against one of every region; "
                "records of a detector's boxes are no ground truth: name them with --boxes"
            )
        boxes = truth.setdefault(region.image, Boxes([], []))
        boxes.boxes.append(region.box)
        boxes.captions.append(region.captions[0])
    given = {region.id: region for region in s.regions} if s.task.boxes == "given" else {}
    unsure = all(result.score == 0 for result in s.results.values())  # no scores: all alike
    if empty := sum(not result.caption.strip() for result in s.results.values()):
        s.scores.counts["captions of boxes are empty and count as wrong"] = empty
    for i, result in s.results.items():
        boxes = found.setdefault(given[i].image if given else s.images[i], Boxes([], [], []))
        boxes.boxes.append(given[i].box if given else result.box)
        boxes.captions.append(CLEANING["words"]([result.caption])[0])
        boxes.scores.append(1.0 if unsure else result.score)
    matches = match(found, truth)
    score_captions(matches)
    detection, parts = average_precisions(matches)
    released_detection, released = average_precisions(matches, image_counts=matches.predicted.astype(int))
    mean = lambda part: sum(part.values()) / len(part)  # noqa: E731
    s.scores.corpus |= {
        "dense mAP": mean(parts),
        "dense detection mAP": mean(detection),
        "dense mAP (released)": mean(released),
        "dense detection mAP (released)": mean(released_detection),
    }
    s.scores.parts["densecap"] = detection | parts
    s.scores.regions["densecap"] = len(s.regions)
    if given:  # of regions whose object has a surer caption there is none
        ids: dict[str, list[str]] = {}
        for i in s.results:
            ids.setdefault(given[i].image, []).append(i)
        for region in s.regions:
            if region.id not in s.results:
                s.scores.items[region.id]["dense METEOR"] = 0.0
        for n in np.flatnonzero(matches.first):
            region_id = ids[matches.images[matches.image[n]]][matches.place[n]]
            s.scores.items[region_id]["dense METEOR"] = float(matches.meteor[n])
    if statistics.unit_of(s.scores.groups) == "regions":
        few = f"fewer than {statistics.MIN_GROUPS} images, and it is a score of images"
        s.scores.no_interval |= dict.fromkeys(s.scores.corpus, few)
        return
    place = {image: n for n, image in reversed(list(enumerate(s.scores.groups)))}  # a region of each image
    chosen = np.array([place[image] for image in matches.images])

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        draws = [average_precisions(matches, image_counts=row[chosen].astype(int)) for row in counts]
        return {
            "dense mAP": np.array([mean(parts) for _, parts in draws]),
            "dense detection mAP": np.array([mean(detection) for detection, _ in draws]),
        }

    s.scores.resamplings.append(Resampling(values_of, 30 * len(matches.score)))
    for name in ("dense mAP (released)", "dense detection mAP (released)"):
        s.scores.no_interval[name] = "see the score that counts all images"


def _lvis(s: Scoring) -> None:
    path = Path(s.annotations or "")
    if not s.annotations or not path.is_file():
        raise ValueError(
            f"LVIS AP needs to know which categories were looked for in an image, which records do not hold: no file "
            f"at {s.annotations!r}; name LVIS's lvis_v1_val.json with --annotations"
        )
    pictures = {Path(image).name: image for image in s.scores.groups}
    try:
        truth, frequencies = _lvis_objects(json.loads(path.read_bytes()), pictures)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error!r}; expected LVIS's lvis_v1_val.json, whole") from error
    if missing := pictures.keys() - {Path(image).name for image in truth}:
        raise ValueError(f"{path}: {len(missing)} images of the records are not in it, for instance {min(missing)}")
    if s.task.boxes == "given":
        boxes = {region.id: (region.image, region.box) for region in s.regions}
    else:
        boxes = {i: (s.images[i], result.box) for i, result in s.results.items()}
    named = {i: found for i, found in _named(s, frequencies).items() if found}
    corpus = lvis_ap(region_detections(named, boxes, s.task.score_source), truth, frequencies)
    s.scores.corpus |= corpus
    s.scores.regions["lvis"] = sum(len(objects.categories) for objects in truth.values())
    s.scores.no_interval |= dict.fromkeys(corpus, "LVIS's matching would be repeated on every draw")


def _lvis_objects(document: Mapping, pictures: Mapping[str, str]) -> tuple[dict[str, Objects], dict[str, str]]:
    """({image: its objects and marks}, {category: "r", "c" or "f"}) of LVIS's file. pictures: file name -> image."""
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    frequencies = {entry["name"]: entry["frequency"] for entry in document["categories"]}
    truth, of_id = {}, {}
    for entry in document["images"]:
        name = Path(entry.get("file_name") or entry["coco_url"]).name
        if name in pictures:
            of_id[entry["id"]] = pictures[name]
            truth[pictures[name]] = Objects(
                [],
                [],
                areas=[],
                negative=[names[k] for k in entry["neg_category_ids"]],
                not_exhaustive=[names[k] for k in entry["not_exhaustive_category_ids"]],
            )
    for annotation in document["annotations"]:
        if annotation["image_id"] in of_id:
            objects, (x, y, width, height) = truth[of_id[annotation["image_id"]]], annotation["bbox"]
            objects.boxes.append([x, y, x + width, y + height])
            objects.categories.append(names[annotation["category_id"]])
            objects.areas.append(annotation["area"])
    return truth, frequencies


def _similarity(s: Scoring) -> None:
    true = {region.id: region.category for region in s.regions if region.category}
    if not true:
        s.scores.left_out["similarity"] = "no region has a category"
        return
    # an answer in words, or the best name of a classifier
    said = {i: r.caption or plain_name(r.category["name"] if r.category else "") for i, r in s.results.items()}
    said = {i: text for i, text in said.items() if i in true}
    corpus, items = similarity_scores(said, true, s.encode)
    s.scores.corpus |= corpus
    s.scores.regions["similarity"] = len(true)
    for region_id, values in items.items():
        s.scores.items[region_id] |= values
    s.scores.resamplings.append(
        statistics.means({name: s.spread({i: item[name] for i, item in items.items()}) for name in corpus})
    )


def _choices(s: Scoring) -> None:
    if s.judge is None:
        s.scores.left_out["choices"] = "it needs a judge; --judge URL --judge-model NAME names one"
        return
    path = Path(s.annotations or "")
    if not path.is_file():
        raise ValueError(f"task {s.task.name}: no questions at {str(path)!r}; name the file with --annotations")
    questions = read_questions(path)
    if missing := [region.id for region in s.regions if region.id not in questions]:
        raise ValueError(f"{path}: no questions about {len(missing)} regions, the first is {missing[0]!r}")
    questions = {region.id: questions[region.id] for region in s.regions}
    captions = {i: result.caption for i, result in s.results.items()}
    pictures = _shown_regions(s) if s.task.judge_sees == "region" else None
    answers = judge_captions(captions, questions, s.judge, pictures)
    places = [place for chosen in answers.values() for place in chosen]
    s.scores.parts["choices"] = {"answers that name no choice": sum(p is None for p in places) / max(1, len(places))}
    corpus, items = choice_scores(answers, questions)
    s.scores.corpus |= corpus
    s.scores.regions["choices"] = len(questions)
    for region_id, values in items.items():
        s.scores.items[region_id] |= values
    columns = {name: s.spread({i: item[name] for i, item in items.items() if name in item}) for name in corpus}
    both = [name for name in columns if name.startswith("choice score/")]
    resampling = statistics.means({name: column for name, column in columns.items() if name != "choice score"})

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = resampling.values(counts)
        return found | {"choice score": sum(found[name] for name in both) / len(both)}

    s.scores.resamplings.append(replace(resampling, values=values_of))


def _shown_regions(s: Scoring) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Region id -> what a judge sees of it."""
    root = getattr(s.regions, "root", None)
    if root is None:
        raise ValueError(f"task {s.task.name}: the judge sees the regions; score records of a file, with their images")
    regions = {region.id: region for region in s.regions}

    def pictures(region_id: str) -> tuple[np.ndarray, np.ndarray]:
        region = regions[region_id]
        mask = region.to_mask()
        if mask is None:
            raise ValueError(f"region {region_id} has no mask to show the judge")
        return shown_region(open_image(root / region.image), mask)

    return pictures


def read_questions(path: str | Path) -> dict[str, list[Question]]:
    """Questions of a JSON file {region id: [{"text", "choices": [[text, points], ...], "kind"}]}; ValueError names the
    region of what is not of this form."""
    document = json.loads(Path(path).read_bytes())
    questions = {}
    for region_id, entries in document.items() if isinstance(document, dict) else ():
        try:
            questions[region_id] = [
                Question(
                    entry["text"], [(str(t), float(p)) for t, p in entry["choices"]], entry.get("kind", "positive")
                )
                for entry in entries
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: region {region_id!r}: {error!r}; a question has text, choices, kind") from error
    if not questions:
        raise ValueError(f'{path}: expected {{region id: [{{"text", "choices", "kind"}}]}}')
    return questions


METRICS: dict[str, Callable[[Scoring], None]] = {
    "captions": _captions,
    "tags": _tags,
    "attributes": _attributes,
    "categories": _categories,
    "recognition": _recognition,
    "densecap": _densecap,
    "lvis": _lvis,
    "similarity": _similarity,
    "choices": _choices,
}


def _of_some(resampling: Resampling, places: np.ndarray) -> Resampling:
    """A resampling of some of the regions, (M,) places among all, as one of all."""
    return replace(resampling, values=lambda counts: resampling.values(counts[:, places]), places=places)


def _table(regions: Sequence[Region], results: Mapping[str, RegionResult], kind: str, words: Sequence[str]):
    """(N, K) scores of the words; a word that a prediction does not list ranks behind all that any does."""
    place = {word: k for k, word in enumerate(words)}
    table = np.full((len(regions), len(words)), np.nan)
    for n, region in enumerate(regions):
        for item in getattr(results[region.id], kind) if region.id in results else ():
            if item["name"] in place:
                table[n, place[item["name"]]] = item["score"]
    lowest = min(0.0, np.nanmin(table, initial=0.0) - 1.0) if kind == "attributes" else 0.0
    return np.where(np.isnan(table), lowest, table)
