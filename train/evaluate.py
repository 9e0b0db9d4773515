"""Periodic evaluation: losses and caption scores on a part of data.val, the same part each time."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator

from dynrefer.data.dataset import RegionDataset
from dynrefer.data.loader import DataConfig, RegionLoader
from dynrefer.data.records import RegionRecords
from dynrefer.errors import suggestion
from train import launch

CAPTION_METRICS = {"CIDEr": "cider", "BLEU-4": "bleu", "ROUGE-L": "rouge", "METEOR": "meteor"}


@dataclass(frozen=True)
class EvalConfig:
    metric: str = "CIDEr"  # decides which weights are best/: CIDEr, BLEU-4, ROUGE-L, METEOR (higher) or loss (lower)
    limit: int = 500  # regions of data.val, whole images evenly spread over the file; 0: all
    batch_size: int = 64  # regions at a time, over all processes
    tokenizer: str = "lower"  # "ptb" is what papers print and needs Java; "lower" is quick and ranks checkpoints alike
    generation: dict = field(default_factory=dict)  # settings of generation other than the model's own

    def __post_init__(self):
        known = [*CAPTION_METRICS, "loss"]
        if self.metric not in known:
            hint = suggestion(self.metric, known)
            raise ValueError(f"metric {self.metric!r} is not one of {', '.join(known)}.{hint}")
        if self.limit < 0 or self.batch_size < 1:
            raise ValueError(f"limit {self.limit} must be 0 or more and batch_size {self.batch_size} 1 or more")

    def is_better(self, score: float, best: float) -> bool:
        return score < best if self.metric == "loss" else score > best


@torch.no_grad()
def evaluate(
    model, records: RegionRecords, cfg: EvalConfig, data: DataConfig, losses: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """{"loss", "loss/<task>"..., and the caption metrics unless cfg.metric is "loss"} of the model as it is.

    model: unwrapped. Every process calls it and gets the same scores; each takes its share of the regions.
    """
    records = part_of(records, cfg.limit)
    alone = (0, 1)
    share = (accelerator.process_index, accelerator.num_processes)
    if len(records) < accelerator.num_processes:
        share = alone

    def batches(rank: int, world_size: int) -> Iterator:
        loader = RegionLoader(
            RegionDataset(records, model.processor, train=False, seed=0),
            batch_size_for(len(records), cfg.batch_size, world_size),
            shuffle=False,
            seed=0,
            num_workers=min(data.num_workers, 1),
            rank=rank,
            world_size=world_size,
        )
        for batch in loader.epoch(0):
            yield batch.to(accelerator.device)

    model.eval()
    tasks = [task for task, weight in losses.items() if weight > 0]
    sums, counts, captions = np.zeros(len(tasks)), np.zeros(len(tasks)), []
    for batch in batches(*share):
        with accelerator.autocast():
            task_sums = model(batch)
        sums += [float(task_sums[task]) for task in tasks]
        counts += [batch.counts().get(task, 0.0) for task in tasks]
    if cfg.metric != "loss":
        # ZeRO-3 brings weights together only where all processes run the same layers, and the length of a caption
        # decides how often: there every process describes all regions
        for batch in batches(*(alone if launch.zero_stage(accelerator) == 3 else share)):
            predict = functools.partial(model.predict, batch, generation=cfg.generation or None)
            with accelerator.autocast():
                results = launch.call_as_forward(accelerator, model, predict)
            captions += [(result.id, result.caption) for result in results]

    if share != alone:
        totals = launch.sum_over_processes(accelerator, [*sums, *counts])
        sums, counts = np.split(np.array(totals), 2)
        captions = launch.gather_lists(accelerator, captions)
    means = {task: float(sums[i] / counts[i]) for i, task in enumerate(tasks) if counts[i]}
    scores = {"loss": sum(losses[task] * mean for task, mean in means.items())}
    scores |= {f"loss/{task}": mean for task, mean in means.items()}
    if cfg.metric != "loss":
        scores |= caption_scores_of(dict(captions), records, cfg)
    return scores


def batch_size_for(num_regions: int, wanted: int, world_size: int) -> int:
    """The multiple of world_size nearest below `wanted`, or else above, that leaves no process without a region of the
    last batch."""
    start = max(wanted // world_size, 1)
    for size in (n * world_size for n in [*range(start, 0, -1), *range(start + 1, num_regions + 1)]):
        if num_regions % size == 0 or num_regions % size >= world_size:
            return size
    raise ValueError(f"{num_regions} regions cannot be shared among {world_size} processes")


def caption_scores_of(captions: dict[str, str], records: RegionRecords, cfg: EvalConfig) -> dict[str, float]:
    from eval.metrics.captions import caption_scores

    references = {region.id: list(region.captions) for region in records if region.captions}
    if not references:
        raise ValueError(f"eval.metric is {cfg.metric} but no region of data.val has a caption; use eval.metric=loss")
    wanted = {"cider", CAPTION_METRICS[cfg.metric]}
    captions = {region_id: caption for region_id, caption in captions.items() if region_id in references}
    scores = caption_scores(captions, references, metrics=sorted(wanted), tokenizer=cfg.tokenizer)
    return {name: scores[name] for name in CAPTION_METRICS if name in scores}


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
