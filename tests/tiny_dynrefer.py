"""A tiny DynRefer model with random weights, and pictures with regions to feed it."""

from dataclasses import replace

import numpy as np
from PIL import Image

from dynrefer.data.example import Example
from dynrefer.data.records import Region
from dynrefer.models import build
from dynrefer.models.dynrefer.options import Options
from dynrefer.models.options import make_options
from dynrefer.prompts import region_controls

T5 = {
    "config": {"model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 1},
    "mode": "full",
}
LLAMA = {
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "mode": "full",
}
SECTION = {
    "family": "dynrefer",
    "image_size": 32,
    "num_query_tokens": 4,
    "align_start": "centre",
    "view_strategy": "fixed:0,0.4,1",
    "decoder_width": 32,
    "decoder_mlp_width": 64,
    "decoder_dropout": 0.0,
    "control_drop_all": 0.0,
    "generation": {"num_beams": 1, "max_new_tokens": 12},
    "vision": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "trainable": True,
    },
    "language": LLAMA,
    "text": {
        "config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 24,
            "max_position_embeddings": 24,
            "hidden_act": "gelu",
        },
        "trainable": True,
    },
    "qformer": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "tokenizer": {"vocab_size": 120},
}
BOXES = ((4, 4, 40, 30), (50, 10, 90, 60), (10, 40, 45, 75), (60, 55, 95, 78))
CAPTIONS = ("a red cup", "the blue lamp on a table", "a small dog", "two birds in a tree")
TAGS = (("cup", "red"), ("lamp", "blue"), ("dog",), ("bird", "tree"))


def picture(seed=0, height=80, width=100):
    """(H, W, 3) uint8: coloured patches, so that every region looks different."""
    patches = np.random.default_rng(seed).integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


def regions(image="0.png", start=0):
    """Four regions of one picture, with captions, tags, an attribute and a category."""
    return [
        Region.from_dict(
            {
                "id": f"{start + i}",
                "image": image,
                "image_hw": [80, 100],
                "box": list(box),
                "captions": [caption],
                "tags": list(tags),
                "attributes": {"color:red": 1 if "red" in tags else -1},
                "category": tags[0],
            }
        )
        for i, (box, caption, tags) in enumerate(zip(BOXES, CAPTIONS, TAGS, strict=True))
    ]


def model(**changes):
    """(model, processor) of SECTION with some entries changed."""
    import torch

    torch.manual_seed(0)
    built, processor = build({**SECTION, **changes}, regions())
    return built.eval(), processor


def generators(num=4):
    return [np.random.default_rng(i) for i in range(num)]


def batch_of(processor, image, boxes, **options):
    """Regions of a picture as a batch for inference. options: of the family."""
    image_hw = image.shape[:2]
    asked = [Region(str(r), "image", image_hw, tuple(map(float, box))) for r, box in enumerate(boxes)]
    example = Example.of_picture(image, asked)
    return processor.collate(processor.samples(example, Options(**options), example.generators(0, 0), train=False))


def samples(processor, image, regions, generators, train):
    """Samples of regions of a picture."""
    return processor.samples(Example.of_picture(image, regions), Options(), generators, train)


def predict(model, batch, control=None, **options):
    """Results of a batch. control: of all its regions, instead of their own."""
    batch = replace(batch, controls=region_controls(control, len(batch)))
    return model.predict(batch, make_options(Options, options))
