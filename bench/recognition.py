"""Recognition with frozen SAM and CLIP, beside other orders of the same work; weights are drawn at random."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dynrefer.data.example import Example
from dynrefer.predictor import RegionPredictor
from dynrefer.regions import regions_of

from .timing import Budget, Result, compare

PICTURES, REGIONS, IMAGE_HW = 4, 16, (480, 640)
NAMES = [f"thing {number}" for number in range(80)]
SIDES = {"image_size": 512, "patch_size": 16}
SAM = {
    "model_type": "sam",
    "vision_config": {
        **SIDES,
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "global_attn_indexes": [1, 3],
    },
    "prompt_encoder_config": {**SIDES, "image_embedding_size": 32},
}
CLIP = {
    "model_type": "clip",
    "vision_config": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
    "text_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "projection_dim": 128,
}


@cache
def model():
    import torch

    from dynrefer.data.record_files import open_records, write_records
    from dynrefer.data.records import Region
    from dynrefer.models import build

    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        region = Region("0", "0.png", (9, 9), (0.0, 0.0, 9.0, 9.0), captions=(" ".join(NAMES),), category=NAMES[0])
        write_records(Path(folder) / "texts.jsonl", [region])
        section = {"family": "regionspot", "sam": {"config": SAM}, "clip": {"config": CLIP}, "categories": NAMES}
        model, _ = build(section, open_records(Path(folder) / "texts.jsonl"))
    return model.eval()


def recognition(budget: Budget) -> Result:
    """80 names for 16 regions in each of 4 pictures, encoders of 5 and 7 million parameters, regions/s, one thread"""
    import torch

    from eval.crops import CropNamer

    torch.set_num_threads(1)
    recogniser = model()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*IMAGE_HW, 3), dtype=np.uint8) for _ in range(PICTURES)]
    low = rng.uniform(0, 1, (PICTURES, REGIONS, 2)) * [IMAGE_HW[1] - 200, IMAGE_HW[0] - 200]
    boxes = np.concatenate([low, low + rng.uniform(20, 200, low.shape)], 2).tolist()
    predictor = RegionPredictor(recogniser)
    crops = RegionPredictor(CropNamer(recogniser, recogniser.image_text()))

    def one_by_one(with_masks: bool = False) -> float:
        for image, own in zip(images, boxes, strict=True):
            predictor(image, boxes=own, categories=NAMES, with_masks=with_masks)
        return PICTURES * REGIONS

    def region_by_region() -> float:
        for image, own in zip(images, boxes, strict=True):
            for box in own:
                predictor(image, boxes=[box], categories=NAMES, with_masks=False)
        return PICTURES * REGIONS

    def together() -> float:
        predictor(images, boxes=boxes, categories=NAMES, with_masks=False)
        return PICTURES * REGIONS

    def named_crops() -> float:
        crops(images, boxes=boxes, categories=NAMES)
        return PICTURES * REGIONS

    pictures = torch.zeros(1, 3, SIDES["image_size"], SIDES["image_size"])
    seen = torch.zeros(1, 3, recogniser.config.image_size, recogniser.config.image_size)

    @torch.no_grad()
    def encoders() -> float:
        for _ in images:
            recogniser.sam.image_features(pictures)
            recogniser.clip.image_tokens(seen)
        return PICTURES * REGIONS

    processor = recogniser.processor
    samples = []
    for image, own in zip(images, boxes, strict=True):
        example = Example.of_picture(image, regions_of(image.shape[:2], own))
        samples += processor.samples(example, recogniser.Options(), example.generators(0), train=False)
    batch = processor.collate(samples)

    def frozen() -> float:
        recogniser.encode(batch)
        return PICTURES * REGIONS

    ways = {
        "a picture at a time": one_by_one,
        "the same with masks": lambda: one_by_one(True),
        "a region at a time": region_by_region,
        "CLIP on each crop": named_crops,
        "all pictures together": together,
        "frozen parts alone": frozen,
        "image encoders alone": encoders,
    }
    rates = compare(ways, budget)
    ours, bound, encoded = (rates[name] for name in list(ways)[-3:])
    notes = [
        "released order: a picture at a time, SAM's and CLIP's image encoders once for it",
        f"bound: the frozen parts, image encoders and SAM's decoder of prompts; all together reach {ours / bound:.0%} "
        f"of it, and {ours / encoded:.0%} of the image encoders alone",
    ]
    return Result(rates, "regions/s", notes)
