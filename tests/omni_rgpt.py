"""Tiny random Omni-RGPT models on bases of every kind, in their real formats, and scenes for them: pictures and a clip
in which a square moves. Made once a session."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image

from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.example import Example
from dynrefer.data.packing import Piece
from dynrefer.data.record_files import open_records
from dynrefer.models import build
from dynrefer.models.omni_rgpt import OmniRgptModel

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SQUARE = {**VISION, "image_size": 32, "patch_size": 8}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
BASES = {
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **SQUARE},
    },
    "llava_onevision": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **SQUARE, "vision_use_head": False},
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**SQUARE, "image_size": [32, 32], "patch_size": [4, 4]},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "head_dim": 8, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    },
}
SETTINGS = {"frame_pixels": [16 * 16, 32 * 32], "mark_width": 16, "num_marks": 12, "generation": {"max_new_tokens": 12}}
HW, UPRIGHT = (40, 60), (56, 28)
CHATS = [
    {  # about the first picture's squares, which its records describe too, and a third place
        "id": "chat",
        "image": "scene0.png",
        "image_hw": HW,
        "regions": [{"box": [18, 20, 50, 36]}, {"box": [4, 6, 24, 30]}, {"box": [10, 10, 30, 30]}],
        "turns": [
            {"question": "Is <region0> right of <region1> and <region2>?", "answer": "it is"},
            {"question": "And <region1>?", "answer": "it is left"},
        ],
    },
    {
        "id": "whole",
        "image": "scene0.png",
        "image_hw": HW,
        "turns": [{"question": "What is there?", "answer": "two squares"}],
    },
    {
        "id": "moving",
        "video": "clip",
        "num_frames": 8,
        "frame_hw": HW,
        "prompt_frame": 0,
        "regions": [{"frames": {str(t): {"box": [2 + 4 * t, 4, 14 + 4 * t, 20]} for t in range(8) if t != 3}}],
        "turns": [{"question": "What does <region0> do?", "answer": "it moves right"}],
    },
]


@cache
def saved() -> Path:
    """The folder of a saved tiny model."""
    folder = Path(mkdtemp())
    new().save_pretrained(folder)
    return folder


@cache
def scenes() -> Path:
    """A record file: two pictures with two overlapping squares each, an upright one with one, a clip of 8 frames with
    two."""
    folder = Path(mkdtemp())
    rng = np.random.default_rng(0)
    records = []
    places = [[(4, 6, 24, 30), (18, 20, 50, 36)], [(30, 2, 58, 22), (40, 10, 54, 30)]]
    said = [["a red square", "a blue square"], ["the green one", "the yellow one"]]
    for n, (boxes, texts) in enumerate(zip(places, said, strict=True)):
        Image.fromarray(picture(boxes, rng)).save(folder / f"scene{n}.png")
        for r, (box, text) in enumerate(zip(boxes, texts, strict=True)):
            records.append({"id": f"{n}-{r}", "image": f"scene{n}.png", "image_hw": HW, "box": box, "captions": [text]})
    Image.fromarray(picture([(5, 9, 20, 40)], rng, UPRIGHT)).save(folder / "scene2.png")
    upright = {"id": "2-0", "image": "scene2.png", "image_hw": UPRIGHT, "box": (5, 9, 20, 40)}
    records.append({**upright, "captions": ["a tall red thing"]})
    (folder / "clip").mkdir()
    tracks = [[(2 + 4 * t, 4, 14 + 4 * t, 20) for t in range(8)], [(20, 22, 40, 38)] * 8]
    for t in range(8):
        Image.fromarray(picture([track[t] for track in tracks], rng)).save(folder / "clip" / f"{t}.png")
    for r, (track, text) in enumerate(zip(tracks, ["it moves", "it stays"], strict=True)):
        frames = {str(t): {"box": box} for t, box in enumerate(track) if t != 3}
        clip = {
            "id": f"clip-{r}",
            "video": "clip",
            "num_frames": 8,
            "frame_hw": HW,
            "prompt_frame": 0,
            "frames": frames,
        }
        records.append({**clip, "captions": [text]})
    (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder / "scenes.jsonl"


def picture(boxes, rng, image_hw=HW) -> np.ndarray:
    image = rng.integers(0, 60, (*image_hw, 3)).astype(np.uint8)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, n] = 220
    return image


@cache
def records():
    return open_records(scenes())


def new(kind: str = "llava", **settings) -> OmniRgptModel:
    """A new model that nobody else has."""
    torch.manual_seed(0)
    base = {"config": {"model_type": kind, **BASES[kind]}, **settings.pop("base", {})}
    model, _ = build({"family": "omni_rgpt", "base": base, **SETTINGS, **settings}, records())
    return model.eval()


@cache
def shared(kind: str = "llava") -> OmniRgptModel:
    """One that tests leave as it is."""
    return new(kind)


def examples(model) -> list[Example]:
    dataset = ExampleDataset(records(), model.processor, train=False, seed=0)
    return [dataset.example(Piece(number, np.arange(count))) for number, count in enumerate(dataset.counts)]


def batch(model, chosen=None, train=False, **options):
    own = model.Options(**options)
    chosen = examples(model) if chosen is None else chosen
    return model.processor.collate(
        [sample for e in chosen for sample in model.processor.samples(e, own, e.generators(0, 0), train)]
    )
