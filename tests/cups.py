"""Cups and lamps of some colour, a task on them, and a model that sees what they are: what tests of eval share."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.models import options as family_options
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.models.options import TextOptions
from dynrefer.views import choose_scales
from eval.task import Task

TASK = Task("tiny", "test.jsonl", "a test", caption_metrics=("rouge", "cider"), tokenizer="lower")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def regions_of(split: str, colours: list[str]) -> list[Region]:
    """Two regions an image: a cup of some colour at the left and the same lamp at the right."""
    regions = []
    for n, colour in enumerate(colours):
        for kind, box in (("cup", (0, 0, 8, 8)), ("lamp", (8, 0, 16, 8))):
            regions.append(
                Region(
                    id=f"{split}{n}{kind}",
                    image=f"images/{split}{n}.png",
                    image_hw=(8, 16),
                    box=box,
                    captions=(f"A {colour} {kind}.", f"the {colour} {kind}"),
                    tags=(colour, kind),
                    attributes={f"color:{name}": 1 if name == colour else -1 for name in COLOURS},
                    category=kind,
                    split=split,
                )
            )
    return regions


def write_cups(folder: Path) -> Path:
    """A folder with train.jsonl, test.jsonl, images and word lists."""
    (folder / "images").mkdir()
    splits = {"train": ["red", "red", "blue"], "test": ["red", "green", "blue", "blue", "red"]}
    for split, colours in splits.items():
        for n, colour in enumerate(colours):
            Image.new("RGB", (16, 8), COLOURS[colour]).save(folder / f"images/{split}{n}.png")
        write_records(folder / f"{split}.jsonl", regions_of(split, colours))
    (folder / "tags.txt").write_text("red\ngreen\nblue\ncup\nlamp\n")
    (folder / "categories.txt").write_text("cup\nlamp\n")
    (folder / "attributes.json").write_text(json.dumps([{"name": f"color:{name}"} for name in COLOURS]))
    return folder


@dataclass(frozen=True)
class Options(TextOptions):
    control: str | None = None
    tag_threshold: float | None = None
    list_tags: float | None = None
    attributes: list[str] | None = None
    categories: list[str] | None = None
    view_strategy: str | None = None  # how the views are chosen


class Batch(dict):
    def to(self, device):
        return self

    def __len__(self):
        return len(self["ids"])


class Processor(FamilyProcessor):
    def samples(self, example, options, generators, train):
        assert not train
        colour = next(name for name, rgb in COLOURS.items() if tuple(example.image[0, 0]) == rgb)
        noise = [generator.random() for generator in generators]
        kinds = ["cup" if region.box[0] == 0 else "lamp" for region in example.regions]
        strategy = options.view_strategy or "phash"
        return [
            {"id": r.id, "box": r.box, "text": f"a {colour} {kind}", "noise": x, "strategy": strategy}
            for r, kind, x in zip(example.regions, kinds, noise, strict=True)
        ]

    def collate(self, samples):
        return Batch({"ids": [s["id"] for s in samples], "samples": samples})


class Model(FamilyModel, nn.Module):
    """Says what it sees; stops with a KeyboardInterrupt before batch number `die_at`."""

    Options = Options
    answers = frozenset({"caption", "tags", "attributes", "categories"})

    def __init__(self, die_at: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0))
        self.processor, self.device = Processor(), torch.device("cpu")
        self.config = type("Config", (), {"attributes": [], "categories": ["lamp", "cup"], "num_views": 2})()
        self.die_at, self.calls = die_at, []

    def before_eval(self):
        self.ready = True

    def check_options(self, options):
        if options.view_strategy is not None:
            choose_scales(options.view_strategy, np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4)), 2, ())

    def settings(self, options):
        names = ("control", "tag_threshold", "attributes", "categories", "view_strategy")
        return {name: getattr(options, name) for name in names} | {"generation": options.decoding()}

    def predict(self, batch, options):
        assert self.ready
        if len(self.calls) == self.die_at:
            raise KeyboardInterrupt
        lists = {"attributes": options.attributes, "categories": options.categories}
        self.calls.append({"ids": batch["ids"], **lists, **options.decoding()})
        results = []
        for sample in batch["samples"]:
            _, colour, kind = sample["text"].split()
            results.append(
                RegionResult(
                    sample["id"],
                    list(sample["box"]),
                    caption=sample["text"] + (f" {sample['strategy']}" if ":" in sample["strategy"] else ""),
                    score=sample["noise"],
                    tags=[{"name": colour, "score": 0.9}, {"name": kind, "score": 0.8}],
                    attributes=[{"name": f"color:{name}", "score": float(name == colour)} for name in COLOURS],
                    categories=[{"name": kind, "score": 0.9}],
                    extra={"scales": [0.0, 0.3]},
                )
            )
        return results


class Namer(Model):
    """Knows names only, and has no options."""

    Options = family_options.Options
    answers = frozenset({"categories"})

    def settings(self, options):
        return {}

    def check_options(self, options):
        pass

    def predict(self, batch, options):
        assert options == family_options.Options()
        kinds = [sample["text"].split()[-1] for sample in batch["samples"]]
        return [
            RegionResult(s["id"], list(s["box"]), categories=[{"name": kind, "score": 0.9}])
            for s, kind in zip(batch["samples"], kinds, strict=True)
        ]


class NamerProcessor(Processor):
    def samples(self, example, options, generators, train):
        return super().samples(example, Options(), generators, train)


def namer():
    model = Namer()
    model.processor = NamerProcessor()
    return model


def results_of(regions: list[Region]) -> dict[str, RegionResult]:
    """What a perfect model would say."""
    return {
        r.id: RegionResult(
            r.id,
            list(r.box),
            caption=r.captions[0],
            tags=[{"name": tag, "score": 0.9} for tag in r.tags],
            attributes=[{"name": name, "score": (value + 1) / 2} for name, value in r.attributes.items()],
            category={"name": r.category, "score": 1.0},
        )
        for r in regions
    }


def predictions_of(path, records, caption):
    """A file in another project's format."""
    path.write_text(json.dumps([{"image_id": r.id, "caption": caption(n, r)} for n, r in enumerate(records)]))
    return str(path)
