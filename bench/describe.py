"""Regions described in one call beside a call for each region, which opens its picture again.

    python -m bench.describe                                 tables by regions a picture, batch and stage, and the floor
    python -m bench.describe --model runs/quickstart         of a trained model
    python -m bench.describe --baseline ../dynrefer-0.3.0    beside the one call of another checkout, in turns
    python -m bench.describe --quick                         one turn each: shows that all runs

Without --model it is that of configs/quickstart.yaml with random weights, whose language model has learnt captions of
the embedded world by heart: they are as long as real ones. The captions of all ways are compared. One CPU thread.
This file is also what the process of another checkout runs, so its first imports are none of this project's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve()
REGIONS, PICTURES = 32, 4
AN_IMAGE = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VARIANTS = {
    "as the model has it: 2 beams": {},
    "1 beam": {"generation": {"num_beams": 1}},
    "5 beams": {"generation": {"num_beams": 5}},
    "the picture as second view": {"view_strategy": "fixed:0,1"},
    "80 categories of a user": {"categories": [f"thing {number}" for number in range(80)]},
}
STEPS, RATE = 80, 3e-3  # of learning captions by heart


@dataclass(frozen=True)
class Work:
    """Pictures, as paths, and the boxes of each."""

    paths: list[str]
    boxes: list[list[list[float]]]

    @property
    def regions(self) -> int:
        return sum(map(len, self.boxes))

    def spread(self, an_image: int) -> "Work":
        """As many regions again, so many a picture, of copies of these pictures."""
        count = self.regions // an_image
        paths = [self.paths[n % len(self.paths)] for n in range(count)]
        flat = [box for boxes in self.boxes for box in boxes]
        return Work(paths, [flat[n * an_image : (n + 1) * an_image] for n in range(count)])


def together(predictor: Any, work: Work, **options: Any) -> list:
    """One call for all."""
    return [result for results in predictor(work.paths, boxes=work.boxes, **options) for result in results]


def an_image_a_call(predictor: Any, work: Work) -> list:
    return [r for path, boxes in zip(work.paths, work.boxes, strict=True) for r in predictor(path, boxes=boxes)]


def a_region_a_call(predictor: Any, work: Work, **options: Any) -> list:
    """The plain way: each region is a call, which opens its picture."""
    pairs = [(path, box) for path, boxes in zip(work.paths, work.boxes, strict=True) for box in boxes]
    return [predictor(path, boxes=[box], **options)[0] for path, box in pairs]


def predictor_of(model: Any, batch: int = 64) -> Any:
    from dynrefer.predictor import RegionPredictor

    return RegionPredictor(model, max_regions=batch)


# ---------------------------------------------------------------------------------------------- model and pictures


@cache
def by_heart(norm: str) -> tuple[str, Work]:
    """(folder of a model, pictures and boxes), for as long as this process runs. norm: of its vision encoder."""
    import atexit

    import numpy as np
    import torch
    import yaml

    from data_prep import world
    from dynrefer.data.example import Example
    from dynrefer.data.record_files import open_records
    from dynrefer.images import open_image
    from dynrefer.models import build
    from dynrefer.regions import regions_of

    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    folder = Path(place.name)
    records = open_records(world.write(folder / "world", 3 * PICTURES, "train", seed=0))
    section = yaml.safe_load((HERE.parents[1] / "configs/quickstart.yaml").read_text())["model"]
    section["words"] = {name: str(folder / "world" / Path(path).name) for name, path in section["words"].items()}
    section["vision"]["norm"] = norm
    torch.manual_seed(0)
    model, processor = build(section, records)
    model.eval()
    rng, each = np.random.default_rng(0), REGIONS // PICTURES
    low = rng.uniform(0, 1, (PICTURES, each, 2)) * [250, 150]
    boxes = np.concatenate([low, low + rng.uniform(20, 130, low.shape)], 2).round(1).tolist()
    paths = [str(folder / "world" / image) for image in sorted({region.image for region in records})[:PICTURES]]
    captions, samples = iter(region.captions[:1] for region in records), []
    for path, own in zip(paths, boxes, strict=True):
        image = open_image(path)
        regions = [replace(region, captions=next(captions)) for region in regions_of(image.shape[:2], own)]
        example = Example.of_picture(image, regions)
        samples += processor.samples(example, model.Options(), example.generators(0), train=False)
    batch = processor.collate(samples)
    with torch.no_grad():
        embeds = model.encode(batch)
    learnt = model.language.train()
    optimizer = torch.optim.AdamW(learnt.parameters(), RATE)
    for _ in range(STEPS):
        texts = (batch.prompt_ids, batch.prompt_mask, batch.caption_ids, batch.caption_mask)
        optimizer.zero_grad()
        (learnt.loss(embeds, *texts) / batch.caption_mask.sum()).backward()
        optimizer.step()
    model.eval().before_eval()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return str(folder / "model"), Work(paths, boxes)


def check_same(what: str, ours: Sequence, others: Sequence) -> None:
    """RuntimeError where captions or scores differ."""
    for one, other in zip(ours, others, strict=True):
        if one.caption != other.caption or abs(one.score - other.score) > 1e-3 * max(other.score, 1e-3):
            raise RuntimeError(f"{what}: {one.caption!r} ({one.score}) and {other.caption!r} ({other.score})")


# ---------------------------------------------------------------------------------------------- another checkout


def serve(model: str) -> None:
    """For each line, pictures with boxes and options, the captions."""
    import torch

    import dynrefer

    torch.set_num_threads(1)
    predictor = predictor_of(dynrefer.load(model, device="cpu"))
    for line in sys.stdin:
        asked = json.loads(line)
        results = together(predictor, Work(asked["paths"], asked["boxes"]), **asked["options"])
        print(json.dumps([result.caption for result in results]), flush=True)


class Checkout:
    """A checkout's predictor, in a process of its own; called, it describes all in one call."""

    def __init__(self, path: Path, model: str):
        environment = os.environ | {"PYTHONPATH": str(path.resolve()), "PYTHONSAFEPATH": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, str(HERE), "--serve", model]
        self.path, self.process = path, subprocess.Popen(command, env=environment, cwd=path, **pipes)

    def __call__(self, work: Work, **options: Any) -> list[str]:
        self.process.stdin.write(json.dumps({"paths": work.paths, "boxes": work.boxes, "options": options}) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the predictor of {self.path} ended with exit status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------------------------------------- where the time goes


@dataclass
class Stages:
    """Seconds and floating-point operations of each stage, while `watched`."""

    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    counting: bool = False

    def timed(self, name: str, call: Callable) -> Callable:
        from torch.utils.flop_counter import FlopCounterMode

        def wrapped(*given: Any, **named: Any) -> Any:
            counter = FlopCounterMode(display=False)
            began = time.perf_counter()
            with ExitStack() as stack:
                if self.counting:
                    stack.enter_context(counter)
                answer = call(*given, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.flops[name] = self.flops.get(name, 0.0) + counter.get_total_flops()
            return answer

        return wrapped

    @contextmanager
    def watched(self, model: Any) -> Iterator[None]:
        from dynrefer import predictor

        processor = sys.modules[type(model.processor).__module__]
        parts = [
            ("pictures opened", predictor, "open_image"),
            ("views chosen", processor, "choose_scales"),
            ("views cut", processor, "crop_views"),
            ("batch made", model.processor, "collate"),
            ("vision encoder", model, "patches"),
            ("views fused, Q-Former", model, "embed"),
            ("tags", model, "tag_logits"),
            ("attributes", model, "attribute_scores"),
            ("categories", model, "category_logits"),
            ("captions", model.language, "generate"),
        ]
        with ExitStack() as stack:
            for name, owner, attribute in parts:
                stack.enter_context(patch.object(owner, attribute, self.timed(name, getattr(owner, attribute))))
            yield


def stage_table(model: Any, work: Work, turns: int) -> Iterator[str]:
    """Of one call for all: ms and GFLOP of each stage, and the floor, its operations at the rate of a large product."""
    from .views import product

    model.requires_grad_(False)  # which counting asks for
    predictor, counted, timed = predictor_of(model), Stages(counting=True), Stages()
    with counted.watched(model):
        together(predictor, work)
    whole, rates, multiply = 0.0, [], product()
    for _ in range(turns):
        with timed.watched(model):
            began = time.perf_counter()
            together(predictor, work)
            whole += time.perf_counter() - began
        began = time.perf_counter()
        rates.append(multiply() / (time.perf_counter() - began))
    peak = max(rates)
    timed.seconds["the rest"] = whole - sum(timed.seconds.values())
    yield "| stage | ms | share | GFLOP | floor, ms |"
    yield "|---|---|---|---|---|"
    rows = [(name, spent, counted.flops.get(name, 0.0)) for name, spent in timed.seconds.items()]
    for name, spent, flops in [*rows, ("all", whole, sum(counted.flops.values()))]:
        floor = f"{flops / 1e9:.2f} | {1e3 * flops / peak:.1f}" if flops else "|"
        yield f"| {name} | {1e3 * spent / turns:.1f} | {spent / whole:.0%} | {floor} |"
    yield f"floor: at {peak / 1e9:.0f} GFLOP/s, a large float32 product in the same run; what is read and"
    yield f"written is not counted, such as {sum(p.numel() for p in model.parameters()) * 4 / 1e6:.1f} MB of weights"


# ---------------------------------------------------------------------------------------------- in turns


def describe(budget: Any) -> Any:
    """32 regions in 4 pictures of the world by the quickstart's model, a call each against one call, one thread"""
    import torch

    import dynrefer

    from .timing import Result, compare

    torch.set_num_threads(1)
    folder, work = by_heart("group")
    predictor = predictor_of(dynrefer.load(folder, device="cpu"))
    check_same("describe", together(predictor, work), a_region_a_call(predictor, work))
    ways = {"a call a region": a_region_a_call, "a call a picture": an_image_a_call, "one call": together}
    rates = compare({name: lambda way=way: len(way(predictor, work)) for name, way in ways.items()}, budget)
    return Result(rates, "regions/s", ["equal captions and scores"])


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--serve"]:
        serve(*given[1:])
        return 0
    from dynrefer.errors import Parser, run_command  # which version 0.3.0 has not

    parser = Parser(prog="python -m bench.describe", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's folder (default: one that knows captions by heart)")
    parser.add_argument("--baseline", type=Path, metavar="PATH", help="another checkout, of version 0.3.0 or later")
    parser.add_argument("--turns", type=int, default=7, help="of each way, of which the median counts (default 7)")
    parser.add_argument("--quick", action="store_true", help="one turn each and few rows: shows that all runs")
    args = parser.parse_args(given)
    if args.baseline is not None and not (args.baseline / "dynrefer" / "predictor.py").is_file():
        parser.error(
            f"--baseline {args.baseline}: no checkout with dynrefer/predictor.py; `git worktree add` makes one"
        )
    return run_command("bench.describe", run, args)


def run(args: argparse.Namespace) -> None:
    import torch

    import dynrefer

    from .timing import Budget, compare

    torch.set_num_threads(1)
    budget, many = (Budget(0, 1), 2) if args.quick else (Budget(0, args.turns), None)
    # version 0.3.0 knows batch normalization alone
    folder, work = by_heart("batch" if args.baseline else "group")
    folder = args.model or folder
    model = dynrefer.load(folder, device="cpu")
    predictor = predictor_of(model)

    def rates(work: Work, **ways: Callable[[Work], list]) -> dict[str, float]:
        return compare({name: lambda way=way: len(way(work)) for name, way in ways.items()}, budget)

    plain, ours = (lambda w: a_region_a_call(predictor, w)), (lambda w: together(predictor, w))
    check_same("one call and a call a region", ours(work), plain(work))
    if args.baseline:
        before = Checkout(args.baseline, folder)
        print(f"{work.regions} regions in {len(work.paths)} pictures\n")
        print(
            "| options | a call a region, regions/s | one call, before | one call | to plain | to before | captions |"
        )
        print("|---|---|---|---|---|---|---|")
        try:
            for name, options in list(VARIANTS.items())[:many]:
                same = before(work, **options) == [result.caption for result in together(predictor, work, **options)]
                found = rates(
                    work,
                    plain=lambda w, o=options: a_region_a_call(predictor, w, **o),
                    before=lambda w, o=options: before(w, **o),
                    ours=lambda w, o=options: together(predictor, w, **o),
                )
                ratios = [found["ours"] / found["plain"], found["ours"] / found["before"]]
                cells = [*(f"{rate:.0f}" for rate in found.values()), *(f"{ratio:.2f}" for ratio in ratios)]
                print(f"| {' | '.join([name, *cells, 'equal' if same else 'others'])} |", flush=True)
        finally:
            before.close()
        return
    tokens = sorted(length for length, _ in model.text_lengths(ours(work), model.Options()))
    print(f"captions of {tokens[0]} to {tokens[-1]} tokens, {sum(tokens) / len(tokens):.1f} in the mean")
    print(f"\n{work.regions} regions\n\n| regions a picture | a call a region, regions/s | one call | ratio |")
    print("|---|---|---|---|")
    for count in AN_IMAGE[:many]:
        spread = work.spread(count)
        check_same(f"{count} regions a picture", ours(spread), plain(spread))
        found = rates(spread, plain=plain, ours=ours)
        print(
            f"| {count} | {found['plain']:.0f} | {found['ours']:.0f} | {found['ours'] / found['plain']:.1f} |",
            flush=True,
        )
    twice = Work(work.paths * 2, work.boxes * 2)
    print(f"\n{twice.regions} regions in {len(twice.paths)} pictures\n\n| regions a batch | regions/s | ratio |")
    print("|---|---|---|")
    predictors = {str(size): predictor_of(model, size) for size in BATCHES[:many]}
    found = rates(twice, **{size: lambda w, one=one: together(one, w) for size, one in predictors.items()})
    for size, rate in found.items():
        print(f"| {size} | {rate:.0f} | {rate / found['1']:.1f} |", flush=True)
    print(f"\nwhere the time of one call goes, {work.regions} regions in {len(work.paths)} pictures\n")
    for line in stage_table(model, work, budget.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
