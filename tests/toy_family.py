"""A whole model family in one small file, the example of docs/new_family.md: the regions of a picture or clip look at
each other, and each gets ranked categories and a mask. It has no views and no language model; it learns in seconds.

    python -m tests.toy_family --config run.yaml      train.run with this family
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from dynrefer.data.clips import ClipRegion, clip_frames
from dynrefer.data.example import Example
from dynrefer.data.records import RegionResult
from dynrefer.errors import check_keys, suggestion
from dynrefer.masks import mask_to_rle
from dynrefer.models import FamilyModule, options, register_family
from dynrefer.models.family import FamilyProcessor
from dynrefer.models.saving import RegionModel

# --- configuration.py: all sizes of the model, what `config.json` holds -----------------------------------------------


class ToyConfig(PreTrainedConfig):
    r"""
    categories (`list`): the names that regions are told apart by.
    num_frames, crop_side, mask_side (`int`): frames of a clip, pixels of a region's crop and of its mask.
    width (`int`): of the layers. licence, training, base_parts: as every family has them.
    """

    model_type = "toy"

    categories: list | tuple = ()
    num_frames: int = 3
    crop_side: int = 12
    mask_side: int = 12
    width: int = 48
    licence: str | None = None
    training: list | None = None
    base_parts: dict | None = None


# --- options.py: what a user may set when regions are described -------------------------------------------------------


@dataclass(frozen=True)
class Options(options.Options):
    categories_field = "top_k"

    categories: list[str] | None = None  # categories to choose from, some of the model's
    top_k: int = 3  # categories that are reported
    with_masks: bool = True  # report masks

    def __post_init__(self):
        if isinstance(self.categories, str):
            raise ValueError(f"categories: {self.categories!r} is one text; give a list of names")
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"top_k {self.top_k!r}: expected a number of categories, at least 1")


# --- batch.py: what the loader hands to the model ---------------------------------------------------------------------


@dataclass
class ToyBatch:
    """N examples with I regions in all, at most R each. S, M: sides of crops and masks; T frames.

    ids                 I names; boxes (I, 4) image pixels, image_hw (I, 2)
    pixels              (N, R, T, 3, S, S) in 0..1; places (N, R, 4) centres as shares, logarithms of sides
    present             (N, R) bool: True for a region, False for padding; there are I regions
    categories          (I,) index of the target, -1 where unknown
    masks, masks_known  (I, M, M) share of each cell that is inside; (I,) bool
    """

    ids: list[str]
    boxes: Tensor
    image_hw: Tensor
    pixels: Tensor
    places: Tensor
    present: Tensor
    categories: Tensor
    masks: Tensor
    masks_known: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> ToyBatch:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def counts(self) -> dict[str, float]:
        return {"categories": float((self.categories >= 0).sum()), "masks": float(self.masks_known.sum())}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        if "categories" in tasks:
            self.categories[rows] = -1
        if "masks" in tasks:
            self.masks_known[rows] = False


# --- processor.py: example -> sample -> batch -------------------------------------------------------------------------


class ToyProcessor(FamilyProcessor):
    def __init__(self, config: ToyConfig):
        self.config = config

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample of the whole example: its regions influence each other."""
        config, regions = self.config, example.regions
        first = regions[0]
        frames = clip_frames(first, config.num_frames) if isinstance(first, ClipRegion) else [0] * config.num_frames
        pictures = [Image.fromarray(frame) for frame in example.frames(frames)]  # T
        pixels = np.stack([[crop(picture, r.box, config.crop_side) for picture in pictures] for r in regions])
        pixels = pixels.transpose(0, 1, 4, 2, 3).astype(np.float32) / 255  # (R, T, 3, S, S)
        if train:  # a region's noise is its own generator's
            pixels += np.array([g.normal(0, 0.02) for g in generators], np.float32)[:, None, None, None, None]
        boxes = np.array([region.box for region in regions], np.float32)  # (R, 4)
        masks = np.zeros((len(regions), config.mask_side, config.mask_side), np.float32)
        for target, region in zip(masks, regions, strict=True):
            if region.mask is not None:
                target[:] = crop(Image.fromarray(region.to_mask().astype(np.float32)), region.box, config.mask_side)
        names = list(config.categories)
        sample = {
            "boxes": boxes,
            "image_hw": np.array([first.image_hw] * len(regions)),
            "pixels": pixels,
            "places": places(boxes, first.image_hw),
            "present": np.ones(len(regions), bool),
            "categories": np.array([names.index(r.category) if r.category in names else -1 for r in regions]),
            "masks": masks,
            "masks_known": np.array([region.mask is not None for region in regions]),
        }
        return [{"ids": [region.id for region in regions], **{k: torch.from_numpy(v) for k, v in sample.items()}}]

    def collate(self, samples: Sequence[dict]) -> ToyBatch:
        """What the model reads by example is padded; what answers and targets are is one row a region."""
        config = self.config
        crops = (config.num_frames, 3, config.crop_side, config.crop_side)
        padded = {"pixels": crops, "places": (4,), "present": ()}
        rows = {"boxes": (4,), "image_hw": (2,), "masks": (config.mask_side,) * 2}
        rows |= {"categories": (), "masks_known": ()}
        batch = {name: pad([sample[name] for sample in samples], shape) for name, shape in padded.items()}
        for name, shape in rows.items():
            parts = [sample[name] for sample in samples]
            batch[name] = torch.cat(parts) if parts else torch.zeros(0, *shape)
        return ToyBatch(ids=[name for sample in samples for name in sample["ids"]], **batch)

    def save_pretrained(self, folder: str | Path) -> None:
        """The class's name; the rest is in the model's config.json."""
        content = json.dumps({"processor_class": type(self).__name__}, indent=2)
        (Path(folder) / "processor_config.json").write_text(content + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, config: ToyConfig | None = None, **hub) -> ToyProcessor:
        return cls(config or AutoConfig.from_pretrained(name, **hub))


def crop(picture: Image.Image, box: Sequence[float], side: int) -> np.ndarray:
    """The box of a picture as (side, side) or (side, side, 3)."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX, box=tuple(box)))


def places(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(R, 4): centres as shares of the image, logarithms of the sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([(boxes[:, :2] + sides / 2) / np.array(image_hw[::-1], np.float32), np.log(sides)], 1)


def pad(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """N tensors (R, *shape) of different R -> (N, largest R, *shape), zeros at the end."""
    kind = parts[0].dtype if parts else torch.float32
    padded = torch.zeros(len(parts), max(map(len, parts), default=0), *shape, dtype=kind)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded


# --- modeling.py: batch -> one sum a task, or one result a region -----------------------------------------------------


class ToyModel(RegionModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    main_input_name = "batch"
    Options = Options
    answers = frozenset({"categories", "mask"})
    joint = True

    def __init__(self, config: ToyConfig, dtypes: Mapping[str, torch.dtype] | None = None):
        super().__init__(config, dtypes)
        self.tasks = ("categories", "masks")
        width = config.width
        self.embed = nn.Linear(config.num_frames * 3 * config.crop_side**2, width)
        self.embed_places = nn.Linear(4, width)
        self.attend = nn.Linear(width, 3 * width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.category_head = nn.Linear(width, len(config.categories))
        self.mask_head = nn.Linear(width, config.mask_side**2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()

    def encode(self, batch: ToyBatch) -> Tensor:
        """Regions look at the present ones of their example -> region_embeds (I, D)."""
        pixels, place = (tensor.to(self.embed.weight.dtype) for tensor in (batch.pixels.flatten(2), batch.places))
        embeds = (self.embed(pixels) + self.embed_places(place)).relu()  # (N, R, D)
        query, key, value = self.attend(embeds).chunk(3, -1)
        embeds = embeds + F.scaled_dot_product_attention(query, key, value, attn_mask=batch.present[:, None])
        return self.mix(embeds[batch.present])  # (I, D)

    def mask_logits(self, region_embeds: Tensor) -> Tensor:
        """(I, M, M)."""
        return self.mask_head(region_embeds).unflatten(-1, (self.config.mask_side,) * 2)

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        """One sum a task over this process's regions."""
        if not len(batch):
            return self.zero_sums()
        region_embeds, sums = self.encode(batch), {}
        if "categories" in self.tasks:
            logits = self.category_head(region_embeds).float()
            sums["categories"] = F.cross_entropy(logits, batch.categories, ignore_index=-1, reduction="sum")
        if "masks" in self.tasks:
            logits = self.mask_logits(region_embeds).float()
            losses = F.binary_cross_entropy_with_logits(logits, batch.masks, reduction="none").mean((1, 2))
            sums["masks"] = (losses * batch.masks_known).sum()
        return sums

    def check_options(self, options: Options) -> None:
        for name in options.categories or ():
            if name not in self.config.categories:
                known = ", ".join(self.config.categories)
                hint = suggestion(name, self.config.categories)
                raise ValueError(f"categories: {name!r} is none of this model's.{hint} Its categories: {known}.")

    @torch.no_grad()
    def predict(self, batch: ToyBatch, options: Options | None = None) -> list[RegionResult]:
        """One result a region, in the order of batch.ids."""
        options = options or Options()
        self.check_options(options)
        names = list(self.config.categories)
        chosen = [names.index(name) for name in (options.categories or names)]
        region_embeds = self.encode(batch)
        scores = self.category_head(region_embeds)[:, chosen].float().softmax(-1).cpu()  # (I, C)
        masks = self.mask_logits(region_embeds).float().cpu()
        results = []
        for i, (box, image_hw) in enumerate(zip(batch.boxes.tolist(), batch.image_hw.tolist(), strict=True)):
            best = scores[i].argsort(descending=True, stable=True)[: options.top_k].tolist()
            categories = [{"name": names[chosen[c]], "score": float(scores[i, c])} for c in best]
            mask = mask_to_rle(paste(masks[i].numpy(), box, image_hw)) if options.with_masks else None
            results.append(RegionResult(batch.ids[i], box, categories=categories, mask=mask))
        return results


def paste(logits: np.ndarray, box: Sequence[float], image_hw: Sequence[int]) -> np.ndarray:
    """Logits (M, M) of a box -> the image's pixels in which they are above 0, bool (H, W)."""
    x1, y1 = (int(side) for side in box[:2])
    x2, y2 = (int(np.ceil(side)) for side in box[2:])
    mask = np.zeros(image_hw, bool)
    mask[y1:y2, x1:x2] = np.asarray(Image.fromarray(logits).resize((x2 - x1, y2 - y1))) > 0
    return mask


# --- __init__.py: a new model from a YAML's `model:` section, and the row in the table of families --------------------

SETTINGS = ("categories", "num_frames", "crop_side", "mask_side", "width")


def build(section: Mapping, records: Sequence) -> tuple[ToyModel, ToyProcessor]:
    """A new model with the section's sizes; its categories are the records' own where the section names none."""
    check_keys(section, SETTINGS, "model")
    categories = section.get("categories") or sorted({r.category for r in records if r.category is not None})
    config = ToyConfig(**{**section, "categories": categories})
    return ToyModel(config), ToyProcessor(config)


def adapt(model: ToyModel, section: Mapping) -> None:
    """Nothing of a saved model may change."""
    check_keys(section, SETTINGS, "model")
    for name, value in section.items():
        if value != (saved := getattr(model.config, name)):
            raise ValueError(f"model.{name} is {value!r}, but the model of `init` has {saved!r}; leave it out")


AutoConfig.register("toy", ToyConfig, exist_ok=True)
AutoModel.register(ToyConfig, ToyModel, exist_ok=True)

ROW = FamilyModule("tests.toy_family", "ToyConfig", "ToyModel", "ToyProcessor")

if __name__ == "__main__":
    import sys

    from train.run import command

    register_family("toy", ROW)
    sys.exit(command())
