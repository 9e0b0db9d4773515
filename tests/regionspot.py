"""The vectors of the released RegionSpot, and the tiny model that they were made with, converted once a session."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file
from transformers import SamModel

import dynrefer
from dynrefer.data.example import Example
from dynrefer.images import open_image
from dynrefer.models.regionspot.build import build
from dynrefer.models.regionspot.convert import convert
from dynrefer.regions import regions_of

FIXTURES = Path(__file__).parent / "fixtures" / "regionspot"
IMAGES = Path(__file__).parent / "fixtures" / "dynrefer" / "images"
CHECKPOINT, SAM, CLIP = (FIXTURES / name for name in ("regionspot_tiny.pth", "sam_hf", "clip_hf"))
VECTORS = load_file(FIXTURES / "vectors.safetensors")
RECORDED = json.loads((FIXTURES / "regionspot.json").read_text())
RECORDS = [record for record in RECORDED if (IMAGES / record["image"]).is_file()]
# the others' pictures lie beside the checkout, where there are some
MORE = Path(__file__).parents[2] / "shared" / "vectors" / "dynrefer" / "images"
ALL = RECORDS + [record for record in RECORDED if record not in RECORDS and (MORE / record["image"]).is_file()]
NAMES = RECORDS[0]["names"]


@cache
def folder() -> Path:
    return convert(CHECKPOINT, SAM, CLIP, Path(mkdtemp()) / "model")


@cache
def lively_sam() -> str:
    """A folder of a SAM whose masks differ from point to point; those of the fixture are alike, it is not trained."""
    sam, generator = SamModel.from_pretrained(str(SAM), dtype=torch.float32), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if any(part in name for part in ("hypernetworks", "upscale", "prompt_encoder", "shared_image")):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.4
    sam.save_pretrained(folder := mkdtemp())
    return folder


@cache
def small() -> Path:
    """A folder of a new model whose SAM reads 64 x 64 pixels: training and extraction in a moment."""
    sides = {"image_size": 64, "patch_size": 8}
    torch.manual_seed(0)
    vision = {**sides, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    vision |= {"global_attn_indexes": [0], "output_channels": 16, "window_size": 4, "num_pos_feats": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {**sides, "hidden_size": 16, "image_embedding_size": 8}
    sam = {"model_type": "sam", "vision_config": vision, "prompt_encoder_config": prompts}
    sam["mask_decoder_config"] = decoder
    section = {"sam": {"config": sam}, "clip": {"name": str(CLIP)}, "decoder_mlp_width": 32, "decoder_dropout": 0.0}
    model, processor = build({**section, "categories": ["cup"], "templates": "one"}, [])
    folder = Path(mkdtemp()) / "small"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def model():
    """Shared by tests, which leave it as it is."""
    return dynrefer.load(folder(), device="cpu")


def picture(record) -> Path:
    return (IMAGES if record in RECORDS else MORE) / record["image"]


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
