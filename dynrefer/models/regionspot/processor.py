"""Pictures, regions and names -> RegionSpotBatch and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoProcessor

from dynrefer.data.example import Example
from dynrefer.data.features import VARIANTS
from dynrefer.errors import shown, suggestion
from dynrefer.resize import shared
from dynrefer.vocabulary import Vocabulary

from ..saved_processor import SavedProcessor
from .batch import Kept, Pictures, RegionSpotBatch
from .clip import tidy_of
from .configuration import RegionSpotConfig
from .decoder import present_of
from .options import Options
from .prompts import box_prompts, user_prompts
from .sam import check_kind, mask_sides, sam_picture
from .text_bank import clean, template_list


class RegionSpotProcessor(SavedProcessor):
    """Everything between an example and a batch. Sizes and names come from the model's config.

    tokenizer: CLIP's.
    """

    config_class = RegionSpotConfig

    def __init__(self, config: RegionSpotConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.kind = check_kind(config.sam_config)
        self.sam_size, self.mask_hw = mask_sides(config.sam_config)
        self.tidy = tidy_of(config.clip_config)
        self.categories = Vocabulary(list(dict.fromkeys(config.categories)), "category")

    # ------------------------------------------------------------------------------------------ pictures

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample of the whole example: its regions influence each other."""
        if not example.regions:
            return []
        mirror = train and self.config.mirror > 0 and generators[0].random() < self.config.mirror
        sample = self.targets(example, generators[0] if train else None)
        if train and example.stored is not None:
            return [sample | self.kept(example, "mirrored" if mirror else "plain")]
        image, boxes = example.image, sample["boxes"].numpy()
        if mirror:
            image, boxes = mirrored(image, boxes)
        picture, inner_hw = sam_picture(image, self.sam_size, self.kind)
        height, width = image.shape[:2]
        scale = np.array([inner_hw[1] / width, inner_hw[0] / height] * 2, np.float32)
        prompts = box_prompts(boxes * scale)
        if example.prompts:
            sizes = inner_hw, self.sam_size, self.mask_hw
            prompts = user_prompts(example, boxes * scale, scale[:2], *sizes, options.mask_prompts)
        return [
            sample
            | {
                "boxes": torch.from_numpy(boxes),
                "sam_picture": torch.from_numpy(picture),
                "inner_hw": torch.tensor(inner_hw),
                "clip_pixels": self.clip_pixels(image),
                "prompts": prompts,
            }
        ]

    def variants(self) -> tuple[str, ...]:
        return VARIANTS if self.config.mirror else VARIANTS[:1]

    def kept(self, example: Example, variant: str) -> dict:
        """What the frozen parts have made of the example: tokens (R, W), memory (1+P, D)."""
        if variant not in example.variants:
            raise ValueError(
                f"{example.key}: model.mirror is {self.config.mirror}, but its features are not kept mirrored; run "
                "`python -m train.extract` into another folder, or set model.mirror=0"
            )
        return dict(example.stored(variant))

    def targets(self, example: Example, generator: np.random.Generator | None) -> dict:
        """Everything of a sample but what SAM and CLIP see. generator: draws the names that an example of a data set
        labelled in part is compared with; None: all of them count."""
        regions = example.regions
        names = self.categories if example.vocabulary is None else vocabulary(example.vocabulary)
        categories = [names.index.get(region.category, -1) for region in regions]
        for region, number in zip(regions, categories, strict=True):
            if number < 0 and region.category is not None and example.vocabulary is not None:
                raise ValueError(
                    f"region {region.id}: category {region.category!r} is not one of the {len(names)} of its data "
                    f"set's vocabulary.{suggestion(region.category, names.words)} Name another `vocabulary`, or mend "
                    "the records"
                )
        against = None
        if generator is not None and example.negatives is not None and example.negatives < len(names):
            drawn = generator.choice(len(names), example.negatives, replace=False)
            against = torch.from_numpy(np.union1d(drawn, [number for number in categories if number >= 0]))
        return {
            "ids": [region.id for region in regions],
            "boxes": torch.tensor([region.box for region in regions], dtype=torch.float32),
            "image_hw": torch.tensor([regions[0].image_hw] * len(regions)),
            "boxed": torch.tensor([prompt.box for prompt in example.prompts] or [True] * len(regions)),
            "categories": torch.tensor(categories),
            "names": names.words,
            "against": against,
        }

    def clip_pixels(self, image: np.ndarray) -> Tensor:
        """image (H, W, 3) uint8 -> (3, C, C) normalized: the whole picture, squashed to a square."""
        config = self.config
        pixels = shared(image).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(
            pixels, (config.image_size,) * 2, mode="bilinear", align_corners=False, antialias=config.antialias
        )[0]
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
        return (pixels - mean) / std

    def collate(self, samples: Sequence[dict]) -> RegionSpotBatch:
        """Samples of any examples -> one batch; of none: a batch without regions."""
        empty = {
            "boxes": torch.zeros(0, 4),
            "image_hw": torch.zeros(0, 2, dtype=torch.long),
            "categories": torch.zeros(0, dtype=torch.long),
            "boxed": torch.zeros(0, dtype=torch.bool),
        }
        rows = {name: torch.cat([none, *(sample[name] for sample in samples)]) for name, none in empty.items()}
        whats = {"tokens" in sample for sample in samples}
        if len(whats) > 1:
            raise ValueError(
                "a batch with features of some examples and pictures of others; keep features of all data sets, or set "
                "data.mix=batches"
            )
        names = list(dict.fromkeys(sample["names"] for sample in samples))
        return RegionSpotBatch(
            ids=[name for sample in samples for name in sample["ids"]],
            seen=Kept.of(samples) if whats == {True} else self.pictures(samples),
            present=present_of([len(sample["ids"]) for sample in samples]),
            vocabularies=names,
            vocabulary=torch.tensor([names.index(sample["names"]) for sample in samples], dtype=torch.long),
            against=[sample["against"] for sample in samples],
            **rows,
        )

    def pictures(self, samples: Sequence[dict]) -> Pictures:
        one = {
            "sam_picture": torch.zeros(0, 3, self.sam_size, self.sam_size, dtype=torch.uint8),
            "inner_hw": torch.zeros(0, 2, dtype=torch.long),
            "clip_pixels": torch.zeros(0, 3, self.config.image_size, self.config.image_size),
        }
        one = {name: torch.stack([s[name] for s in samples]) if samples else none for name, none in one.items()}
        return Pictures(one.pop("sam_picture"), **one, prompts=[sample["prompts"] for sample in samples])

    # ------------------------------------------------------------------------------------------ texts

    def encode_texts(self, texts: Sequence[str], max_tokens: int, full_length: bool) -> Tensor:
        """Texts -> ids (N, T). ValueError for one that is longer than CLIP reads."""
        rows = self.tokenizer([self.tidy(text) for text in texts], verbose=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > max_tokens:
                raise ValueError(
                    f"category: the text {shown(text)} has {len(row):,} tokens; CLIP's text encoder holds at most "
                    f"{max_tokens}; give a shorter name"
                )
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), max_tokens if full_length else lengths.max(initial=1)), pad)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate([[], *rows])
        return torch.from_numpy(ids)

    def check_names(self, names: Sequence[str], max_tokens: int) -> None:
        """ValueError for a name that CLIP's text encoder cannot hold in the longest of the templates."""
        templates = template_list(self.config.templates)
        lengths = [len(row) for row in self.tokenizer(templates, verbose=False)["input_ids"]]
        longest = templates[int(np.argmax(lengths))]
        texts = [longest.replace("{}", clean(name)) for name in names]
        for name, row in zip(names, self.tokenizer([*map(self.tidy, texts)], verbose=False)["input_ids"], strict=True):
            if len(row) > max_tokens:
                raise ValueError(
                    f"category {shown(name)}: {len(row):,} tokens in the sentence {longest!r}; CLIP's text encoder "
                    f"holds at most {max_tokens}; give a shorter name"
                )


@lru_cache(maxsize=64)
def vocabulary(names: tuple[str, ...]) -> Vocabulary:
    """Of one data set, made once."""
    return Vocabulary(names, "category")


def mirrored(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """image (H, W, 3) and boxes (R, 4) in it, left and right exchanged."""
    flipped = boxes.copy()
    flipped[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), flipped


AutoProcessor.register(RegionSpotConfig, RegionSpotProcessor, exist_ok=True)
