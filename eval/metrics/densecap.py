"""Dense captioning: mean average precision over box overlaps and METEOR scores (Johnson, Karpathy, Fei-Fei, CVPR 2016).

Three steps, each a function: `match` gives every predicted box its ground truth, `score_captions` scores the matched
captions, `average_precisions` ranks everything at each pair of thresholds. `densecap_scores` is all three.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import statistics
from ..statistics import Resampling
from .base import CAPTION, Metric, Scoring
from .captions import CLEANING, meteor_scores, meteor_version

MERGE_IOU = 0.7  # ground-truth boxes that overlap so much are one object with several captions
MIN_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
MIN_METEORS = (0, 0.05, 0.1, 0.15, 0.2, 0.25)  # a caption must score more than this


@dataclass(frozen=True)
class Rules:
    """What differs between evaluators. pixels: added to a box's width and height when predictions are compared with
    the ground truth; recalls: gives the recalls at which precision is read; dtype: in which precision and recall are
    kept."""

    pixels: float
    recalls: Callable[[], np.ndarray]
    dtype: type


def torch_recalls() -> np.ndarray:
    """0, 0.01 ... 0.99 as torch has them: NumPy's differ in the last bit."""
    import torch

    return torch.arange(0, 1, 0.01).numpy()


RULES = {
    # the port that the papers since 2019 use; recalls below 1 and float32 throughout
    "python": Rules(0.0, torch_recalls, np.float32),
    # the evaluator of the paper, in Lua
    "lua": Rules(1.0, lambda: np.arange(101) / 100, np.float64),
}


@dataclass
class Boxes:
    """Captioned boxes of one image. boxes: (N, 4) xyxy pixels; captions: N texts; scores: (N,), of predictions only,
    higher = surer, where None counts as 1 each (ties rank in the order given)."""

    boxes: Sequence[Sequence[float]]
    captions: Sequence[str]
    scores: Sequence[float] | None = None


@dataclass
class Matches:
    """Predictions of all images, surest first within an image, and what they were matched to.

    images: ids, as the references list them; num_objects: (I,) merged ground-truth boxes of each; predicted: (I,) bool,
    the image has a prediction. Of each of N predictions: image (N,) its place in images; place (N,) among the image's
    predictions as they were given; score (N,); iou (N,) with the object that it overlaps most; first (N,) bool, it is
    that object's surest; captions: its text; references: its object's texts, none where it overlaps nothing. meteor:
    (N,), 0 until `score_captions`; ranking: (N,) places of all images' predictions, surest first.
    """

    images: list
    num_objects: np.ndarray
    predicted: np.ndarray
    image: np.ndarray
    place: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    first: np.ndarray
    captions: list[str]
    references: list[list[str]]
    meteor: np.ndarray = field(init=False)
    ranking: np.ndarray = field(init=False)

    def __post_init__(self):
        self.meteor = np.zeros(len(self.score))
        self.ranking = np.argsort(-self.score, kind="stable")  # (N,) places, surest first


Items = Boxes | Sequence[Mapping]  # or [{"box": [x1, y1, x2, y2], "caption": text, "score": number}, ...]


def densecap_scores(
    predictions: Mapping[Hashable, Items],
    references: Mapping[Hashable, Items],
    rules: str = "python",
    scorer: Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[float, list[float]]] = meteor_scores,
) -> tuple[dict[str, float], dict[str, float]]:
    """Dense captioning mAP, and each of the average precisions that it is the mean of.

    Args:
        predictions: image id -> predicted boxes with captions and scores, as `Boxes` or as a list of objects {"box"
            (xyxy), "caption", "score"}. An image without any is wrong.
        references: image id -> boxes with one caption each, in the same forms; those that overlap by MERGE_IOU become
            one object, their mean box with all their captions.
        rules: a row of RULES.
        scorer: captions and their references -> corpus score and score of each; METEOR 1.5 without tokenizer is the
            protocol.

    Returns:
        Scores {"dense mAP", "dense detection mAP" (boxes alone), "dense mAP (released)", "dense detection mAP
        (released)"}, where the released evaluators leave images without predictions out; and the parts of the first,
        {"iou_0.3_meteor_0": ..., 30 of them}. Fractions.

    Raises:
        ValueError: unknown rules, no ground truth, predictions for an unknown image, boxes, captions or scores that do
            not fit together or are not finite. RuntimeError: METEOR could not be computed.
    """
    matches = match(predictions, references, rules)
    score_captions(matches, scorer)
    detection, parts = average_precisions(matches, rules)
    scores = {"dense mAP": _mean(parts), "dense detection mAP": _mean(detection)}
    detection, released = average_precisions(matches, rules, matches.predicted.astype(int))
    scores["dense mAP (released)"], scores["dense detection mAP (released)"] = _mean(released), _mean(detection)
    return scores, parts


def match(
    predictions: Mapping[Hashable, Items], references: Mapping[Hashable, Items], rules: str = "python"
) -> Matches:
    """Every prediction with the object that it overlaps most, which its surest prediction alone may have.

    A prediction whose object is taken gets no second choice. Arguments and errors as for `densecap_scores`.
    """
    if rules not in RULES:
        raise ValueError(f"unknown rules {rules!r}; known: {', '.join(RULES)}")
    unknown = [image_id for image_id in predictions if image_id not in references]
    if unknown:
        raise ValueError(
            f"{len(unknown)} images with predictions have no ground truth, the first is {unknown[0]!r}; "
            "score a predictions file with the data it was made from"
        )
    columns = {name: [] for name in ("image", "place", "score", "iou", "first", "captions", "references")}
    num_objects, predicted = [], []
    for n, (image_id, truth) in enumerate(references.items()):
        truth = _boxes(truth, f"ground truth of image {image_id}")
        target = _checked(truth, f"ground truth of image {image_id}")[0]
        if (target[:, 2:] <= target[:, :2]).any():
            bad = target[(target[:, 2:] <= target[:, :2]).any(1)][0].tolist()
            raise ValueError(f"ground truth of image {image_id}: empty box {bad}; boxes are xyxy, x1 < x2 and y1 < y2")
        groups = merge_groups(target)
        num_objects.append(len(groups))
        found = _boxes(predictions.get(image_id, ()), f"predictions of image {image_id}")
        predicted.append(len(found.captions) > 0)
        if not predicted[-1]:
            continue
        boxes, scores = _checked(found, f"predictions of image {image_id}")
        order = np.argsort(-scores, kind="stable")
        best, ious = np.zeros(len(boxes), int), np.zeros(len(boxes))
        if groups:
            objects = np.stack([target[group].mean(0) for group in groups])
            overlaps = _iou(boxes[order], objects, RULES[rules].pixels)  # (N, objects)
            best, ious = overlaps.argmax(1), overlaps.max(1)
        first = np.zeros(len(boxes), bool)
        touching = np.flatnonzero(ious > 0)
        first[touching[np.unique(best[touching], return_index=True)[1]]] = True
        columns["image"].append(np.full(len(boxes), n))
        columns["place"].append(order)
        columns["score"].append(scores[order])
        columns["iou"].append(ious)
        columns["first"].append(first)
        columns["captions"] += [found.captions[i] for i in order]
        columns["references"] += [
            [truth.captions[i] for i in groups[j]] if iou > 0 else [] for j, iou in zip(best, ious, strict=True)
        ]
    if not sum(num_objects):
        raise ValueError("no ground-truth boxes: there is nothing to score predictions against")
    for name, dtype in (("image", int), ("place", int), ("score", float), ("iou", float), ("first", bool)):
        columns[name] = np.concatenate([*columns[name], np.zeros(0)]).astype(dtype)
    return Matches(list(references), np.array(num_objects), np.array(predicted), **columns)


def score_captions(matches: Matches, scorer: Callable = meteor_scores) -> None:
    """Fills in `matches.meteor` of the predictions that can count: their object's first, at the lowest overlap."""
    chosen = np.flatnonzero(matches.first & (matches.iou >= min(MIN_IOUS)))
    if chosen.size:
        _, scores = scorer([matches.captions[i] for i in chosen], [matches.references[i] for i in chosen])
        matches.meteor[chosen] = scores


def average_precisions(
    matches: Matches, rules: str = "python", image_counts: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Average precision of boxes alone, {"iou_0.3": ...}, and of boxes with captions, {"iou_0.3_meteor_0": ...}.

    image_counts: (I,) how often each image counts (0 = left out; draws of a bootstrap); once each if None.
    """
    counts = np.ones(len(matches.images), int) if image_counts is None else np.asarray(image_counts)
    weights = counts[matches.image[matches.ranking]]
    order, weights = matches.ranking[weights > 0], weights[weights > 0]
    ranks = np.cumsum(weights)
    num_objects = int(counts @ matches.num_objects)
    # Precision only falls from one right prediction to the next, so it is the right ones' that is looked at.
    right = np.flatnonzero(matches.first[order] & (matches.iou[order] >= min(MIN_IOUS)))
    weights, ranks = weights[right], ranks[right]
    iou, meteor = matches.iou[order[right]], matches.meteor[order[right]]

    def precision(right: np.ndarray) -> float:
        return _average_precision(np.cumsum(weights[right]), ranks[right], num_objects, RULES[rules])

    detection, parts = {}, {}
    for min_iou in MIN_IOUS:
        found = iou >= min_iou
        detection[f"iou_{min_iou}"] = precision(found)
        for min_meteor in MIN_METEORS:
            parts[f"iou_{min_iou}_meteor_{min_meteor}"] = precision(found & (meteor > min_meteor))
    return detection, parts


def merge_groups(boxes: np.ndarray) -> list[np.ndarray]:
    """Places of boxes (N, 4) that are one object: the box that most others overlap by MERGE_IOU with those, and so on.

    The first in the list wins a tie; what a group has taken is gone for the next.
    """
    close = _iou(boxes, boxes) >= MERGE_IOU  # (N, N)
    groups = []
    while close.any():
        sizes = close.sum(0)
        largest = int(sizes.argmax())
        if sizes[largest] == 1:  # only single boxes are left, in their order
            return groups + [np.array([i]) for i in np.flatnonzero(sizes)]
        groups.append(np.flatnonzero(close[largest]))
        close[groups[-1]] = False
        close[:, groups[-1]] = False
    return groups


def _average_precision(right: np.ndarray, ranks: np.ndarray, num_objects: int, rules: Rules) -> float:
    """Mean over recalls of the best precision at that recall or more; right, ranks: (N,) how many are right, and how
    many there are, down to each right prediction."""
    if not right.size or not num_objects:
        return 0.0
    recall = right.astype(rules.dtype) / rules.dtype(num_objects)
    precision = right.astype(rules.dtype) / ranks.astype(rules.dtype)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    recalls = rules.recalls().astype(rules.dtype)
    places = np.searchsorted(recall, recalls)
    return float(np.append(best_from_here, 0.0)[places].astype(np.float64).sum() / len(recalls))


def _iou(a: np.ndarray, b: np.ndarray, pixels: float = 0.0) -> np.ndarray:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4), of which each side is `pixels` longer."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low + pixels, 0, None).prod(2)  # (N, M)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2] + pixels).prod(1) for boxes in (a, b))
    union = areas_a[:, None] + areas_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _boxes(found: Items, what: str) -> Boxes:
    if isinstance(found, Boxes):
        return found
    for item in found:
        if not isinstance(item, Mapping) or not {"box", "caption"} <= item.keys():
            raise ValueError(f'{what}: {str(item)[:80]!r}; expected {{"box": [x1, y1, x2, y2], "caption", "score"}}')
    scored = ["score" in item for item in found]
    if any(scored) and not all(scored):
        raise ValueError(f"{what}: {sum(scored)} of {len(scored)} boxes have a score; expected all or none")
    scores = [item["score"] for item in found] if scored and all(scored) else None
    return Boxes([item["box"] for item in found], [item["caption"] for item in found], scores)


def _checked(found: Boxes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and scores (N,) as float64; ValueError where they do not fit together."""
    number = len(found.captions)
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4) if number or len(found.boxes) else np.zeros((0, 4))
    scores = np.ones(number) if found.scores is None else np.asarray(found.scores, np.float64)
    if len(boxes) != number or scores.shape != (number,):
        raise ValueError(
            f"{what}: {len(boxes)} boxes, {number} captions, {scores.size} scores; expected as many of each"
        )
    if not np.isfinite(boxes).all():
        raise ValueError(f"{what}: box {boxes[~np.isfinite(boxes).all(1)][0].tolist()}; expected four finite numbers")
    if not np.isfinite(scores).all():
        raise ValueError(f"{what}: score {scores[~np.isfinite(scores)][0]}; expected a finite number")
    return boxes, scores


def _mean(parts: Mapping[str, float]) -> float:
    return sum(parts.values()) / len(parts)


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    truth: dict[str, Boxes] = {}
    predicted: dict[str, Boxes] = {}
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
        boxes = predicted.setdefault(given[i].image if given else s.images[i], Boxes([], [], []))
        boxes.boxes.append(given[i].box if given else result.box)
        boxes.captions.append(CLEANING["words"]([result.caption])[0])
        boxes.scores.append(1.0 if unsure else result.score)
    matches = match(predicted, truth)
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
    first = {image: n for n, image in reversed(list(enumerate(s.scores.groups)))}  # a region of each image
    chosen = np.array([first[image] for image in matches.images])

    def values_of(counts: np.ndarray) -> dict[str, np.ndarray]:
        draws = [average_precisions(matches, image_counts=row[chosen].astype(int)) for row in counts]
        return {
            "dense mAP": np.array([mean(parts) for _, parts in draws]),
            "dense detection mAP": np.array([mean(detection) for detection, _ in draws]),
        }

    s.scores.resamplings.append(Resampling(values_of, 30 * len(matches.score)))
    for name in ("dense mAP (released)", "dense detection mAP (released)"):
        s.scores.no_interval[name] = "see the score that counts all images"


DENSECAP = Metric(
    CAPTION,
    add_scores,
    {
        "dense detection mAP": lambda task, judge: "densecap 1, rules of the Python port",
        "dense mAP": lambda task, judge: f"densecap 1, rules of the Python port; {meteor_version()}, no tokenizer",
    },
)
