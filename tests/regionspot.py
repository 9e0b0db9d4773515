"""The vectors of the released RegionSpot, and the tiny model that they were made with, converted once a session."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file

import dynrefer
from dynrefer.data.example import Example
from dynrefer.images import open_image
from dynrefer.models.regionspot.convert import convert
from dynrefer.predictor import regions_of

FIXTURES = Path(__file__).parent / "fixtures" / "regionspot"
IMAGES = Path(__file__).parent / "fixtures" / "dynrefer" / "images"
CHECKPOINT, SAM, CLIP = (FIXTURES / name for name in ("regionspot_tiny.pth", "sam_hf", "clip_hf"))
VECTORS = load_file(FIXTURES / "vectors.safetensors")
RECORDS = [
    record for record in json.loads((FIXTURES / "regionspot.json").read_text()) if (IMAGES / record["image"]).is_file()
]
NAMES = RECORDS[0]["names"]


@cache
def folder() -> Path:
    return convert(CHECKPOINT, SAM, CLIP, Path(mkdtemp()) / "model")


@cache
def model():
    """Shared by tests, which leave it as it is."""
    return dynrefer.load(folder(), device="cpu")


def picture(record) -> Path:
    return IMAGES / record["image"]


def example(record, boxes=None):
    image = open_image(picture(record))
    return Example.of_picture(image, regions_of(image.shape[:2], record["boxes_xyxy"] if boxes is None else boxes))


def batch(*examples):
    processor = model().processor
    samples = [s for e in examples for s in processor.samples(e, model().Options(), e.generators(0), train=False)]
    return processor.collate(samples)


def vector(record, name) -> torch.Tensor:
    return VECTORS[f"{Path(record['image']).stem}.{name}"]


def scores(results, names) -> torch.Tensor:
    """(R, C) in the order of the names."""
    return torch.tensor([[{c["name"]: c["score"] for c in r.categories}[name] for name in names] for r in results])
