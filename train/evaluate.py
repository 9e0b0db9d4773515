"""Periodic evaluation: losses and scores on a part of data.val, the same part each time, by the code of eval/."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from dynrefer.data.loader import DataConfig
from dynrefer.data.records import RegionRecords, RegionResult
from dynrefer.errors import suggestion
from dynrefer.models.options import Options, make_options
from train import launch

CAPTION_METRICS = {"CIDEr": "cider", "ROUGE-L": "rouge", "METEOR": "meteor", "SPICE": "spice"}
CAPTION_METRICS |= {f"BLEU-{n}": "bleu" for n in (1, 2, 3, 4)}
# a score that may decide which weights are best/ -> the metric of eval/ that computes it
SCORES = dict.fromkeys(CAPTION_METRICS, "captions") | {
    "tag mAP": "tags",
    "attribute mAP": "attributes",
    "category accuracy": "categories",
}


@dataclass(frozen=True)
class EvalConfig:
    # decides which weights are best/: CIDEr, BLEU-1 to BLEU-4, ROUGE-L, METEOR, SPICE, tag mAP, attribute mAP, category
    # accuracy (higher), or loss, or loss/TASK (lower); null: CIDEr of a model that writes captions, else the first that
    # it has an answer for
    metric: str | None = None
    patience: int = 0  # evaluations in a row without a better score that end the run; 0: it goes to its last step
    limit: int = 500  # regions of data.val, whole images evenly spread over the file; 0: all
    batch_size: int = 64  # regions at a time, over all processes
    # "ptb" is what papers print and needs Java; "lower" is quick and ranks checkpoints alike
    tokenizer: Literal["lower", "ptb"] = "lower"
    options: dict = field(default_factory=dict)  # of the model's options other than its own, as {num_beams: 1}
    generation: dict = field(default_factory=dict)  # the same for text generation; the name of version 0.3.0

    def __post_init__(self):
        known = [*SCORES, "loss"]
        if self.metric is not None and self.metric not in known and not self.metric.startswith("loss/"):
            hint = suggestion(self.metric, known)
            raise ValueError(f"metric {self.metric!r} is not one of {', '.join(known)}, loss/TASK.{hint}")
        if self.limit < 0 or self.batch_size < 1 or self.patience < 0:
            raise ValueError(
                f"limit {self.limit} and patience {self.patience} must be 0 or more and batch_size {self.batch_size} 1 "
                "or more"
            )

    def decides(self, model: Any) -> str:
        """The score that decides which weights are best/. ValueError where the model has no answer for it."""
        has = {"captions": "caption"}
        fitting = [name for name, metric in SCORES.items() if has.get(metric, metric) in model.answers]
        if self.metric is None:
            return fitting[0] if fitting else "loss"
        losses = ["loss", *(f"loss/{task}" for task in model.tasks)]
        if self.metric not in (*losses, *fitting):
            raise ValueError(
                f"eval.metric is {self.metric!r}, but this model answers with {', '.join(sorted(model.answers))} and "
                f"learns {', '.join(model.tasks)}; choose one of {', '.join([*fitting, *losses])}"
            )
        return self.metric

    def check_programs(self, model: Any) -> None:
        """ValueError or RuntimeError where the scores of this model need what is not there, such as Java."""
        decides = self.decides(model)
        java = decides in ("METEOR", "SPICE")
        if java or (self.tokenizer == "ptb" and not is_loss(decides) and "caption" in model.answers):
            from eval.java import find_java

            find_java()
        if decides == "SPICE":
            from eval.metrics.captions import spice_missing

            if missing := spice_missing():
                raise ValueError(f"eval.metric is 'SPICE': {missing}")

    def is_better(self, decides: str, score: float, best: float) -> bool:
        return score < best if is_loss(decides) else score > best

    def options_of(self, model: Any) -> Options:
        given = dict(self.options) | ({"generation": self.generation} if self.generation else {})
        return make_options(model.Options, given)


def is_loss(score: str) -> bool:
    return score.partition("/")[0] == "loss"


@torch.no_grad()
def evaluate(
    model, records: RegionRecords, cfg: EvalConfig, data: DataConfig, losses: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """{"loss", "loss/<task>"..., and, unless the loss decides, the scores of what the model answers} of the model as it
    is.

    model: unwrapped. Every process calls it and gets the same scores; each takes its share of the regions.
    """
    from dynrefer.predictions import example_loader

    records, decides = part_of(records, cfg.limit), cfg.decides(model)
    options = cfg.options_of(model)
    model.eval()
    tasks = [task for task, weight in losses.items() if weight > 0]
    loader = example_loader(
        model,
        records,
        options,
        batch_size=cfg.batch_size,
        num_workers=min(data.num_workers, 1),
        seed=0,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        stand_in=launch.zero_stage(accelerator) == 3,
    )
    sums, counts = np.zeros(len(tasks)), np.zeros(len(tasks))
    for batches in loader.epoch(0):
        launch.before_step(model, batches)
        for batch in batches:
            with accelerator.autocast():
                task_sums = launch.sums_of(model, batch.to(accelerator.device))
            sums += [float(task_sums[task]) for task in tasks]
            counts += [batch.counts().get(task, 0.0) for task in tasks]
    totals = launch.sum_over_processes(accelerator, [*sums, *counts])
    sums, counts = np.split(np.array(totals), 2)
    means = {task: float(sums[i] / counts[i]) for i, task in enumerate(tasks) if counts[i]}
    scores = {"loss": sum(losses[task] * mean for task, mean in means.items())}
    scores |= {f"loss/{task}": mean for task, mean in means.items()}
    if not is_loss(decides):
        scores |= answer_scores(model, records, cfg, decides, data, accelerator)
    return scores


def answers(
    model, records: RegionRecords, cfg: EvalConfig, data: DataConfig, accelerator: Accelerator
) -> dict[str, RegionResult]:
    """{region id: what the model says of it}, in every process; each takes its share."""
    from dynrefer.predictions import predict_in_memory

    def call(batch, options):
        with accelerator.autocast():
            return launch.call_as_forward(accelerator, model, functools.partial(model.predict, batch, options))

    ways = {"batch_size": cfg.batch_size, "num_workers": min(data.num_workers, 1), "call": call}
    if launch.zero_stage(accelerator) == 3:
        # ZeRO-3 brings weights together only where all processes run the same layers, and the length of a caption
        # decides how often: there every process describes all regions
        return predict_in_memory(model, records, cfg.options_of(model), **ways)
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    results = predict_in_memory(model, records, cfg.options_of(model), **ways, **share)
    return {result.id: result for result in launch.gather_lists(accelerator, list(results.values()))}


def answer_scores(
    model, records: RegionRecords, cfg: EvalConfig, decides: str, data: DataConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Scores of what the model answers, by the metrics that serve its answers."""
    from eval.evaluate import score_some

    results = answers(model, records, cfg, data, accelerator)
    captions = sorted({"cider", CAPTION_METRICS.get(decides, "cider")})
    ways = {"caption_metrics": captions, "tokenizer": cfg.tokenizer, "answers": model.answers}
    scores = score_some(records, results, list(dict.fromkeys(SCORES.values())), **ways)
    if decides not in scores:
        raise ValueError(
            f"eval.metric is {decides!r}, but the records of data.val have nothing to compute it from; scores there: "
            f"{', '.join(scores) or 'none'}; or use eval.metric=loss"
        )
    return scores


def part_of(records: RegionRecords, limit: int) -> RegionRecords:
    """At most `limit` regions (0: all): whole images, evenly spread over the file, the last one cut if it must be."""
    if not limit or len(records) <= limit:
        return records
    groups = records.image_groups()
    # a low-discrepancy order over the file: the first n images are spread evenly for any n
    order = np.argsort((np.arange(len(groups)) * 0.6180339887498949) % 1.0, kind="stable")
    chosen: list[int] = []
    for number in order:
        chosen += groups[number][: limit - len(chosen)]
        if len(chosen) == limit:
            break
    return records.subset(sorted(chosen))
