"""A small SAM from nothing: `python -m train.stand_ins.sam --config configs/stand_ins/sam.yaml [key=value ...]`.

Boxes of a record file are the prompts, its masks the targets. Only the mask that SAM gives for one clear prompt is
trained (`multimask_output=False`), and the score that says how good it is.

    loss = dice + weight * cross-entropy + (score - IoU)^2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from dynrefer.config import load_config
from dynrefer.errors import run_command
from dynrefer.masks import to_mask
from train.stand_ins.fit import check_output, fit, fit_parser
from train.stand_ins.scenes import Scenes, read_scenes
from train.stand_ins.settings import SamFitConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # SAM's


class MaskTask:
    """Scenes -> what SAM is asked, and how wrong its masks are. size: side of SAM's square picture."""

    def __init__(self, scenes: Scenes, size: int):
        self.scenes, self.size = scenes, size
        self.masks = [
            torch.from_numpy(np.stack([to_mask(region.mask, region.image_hw) for region in regions]))
            for regions in scenes.regions
        ]

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, S, S), zero where the picture ends."""
        pictures = torch.from_numpy(self.scenes.pixels[numbers]).permute(0, 3, 1, 2).float() / 255
        pictures = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return F.pad(pictures, (0, self.size - pictures.shape[-1], 0, self.size - pictures.shape[-2]))

    def boxes(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, R, 4) in pixels of SAM's picture, a picture's first box again where it has fewer; which count (B, R)."""
        boxes = []
        for number in numbers:
            height, width = self.scenes.pixels[number].shape[:2]
            full_height, full_width = self.scenes.regions[number][0].image_hw
            scale = torch.tensor([width / full_width, height / full_height] * 2)
            boxes.append(torch.tensor([region.box for region in self.scenes.regions[number]]) * scale)
        most = max(map(len, boxes))
        counts = torch.arange(most) < torch.tensor([[len(own)] for own in boxes])
        return torch.stack([torch.cat([own, own[:1].expand(most - len(own), 4)]) for own in boxes]), counts

    def targets(self, numbers: Sequence[int], side: int) -> Tensor:
        """(R, side, side): the share of each cell of SAM's low-resolution mask that the region covers."""
        targets = []
        for number in numbers:
            height, width = self.scenes.pixels[number].shape[:2]
            square = F.interpolate(self.masks[number][None].float(), (height, width), mode="area")
            square = F.pad(square, (0, self.size - width, 0, self.size - height))
            targets.append(F.interpolate(square, (side, side), mode="area")[0])
        return torch.cat(targets)

    def loss(self, model: SamModel, numbers: Sequence[int], cross_entropy: float) -> Tensor:
        boxes, counts = self.boxes(numbers)
        # get_image_embeddings, which SAM calls for pixels, takes no gradient
        embeddings = model.vision_encoder(self.pixels(numbers)).last_hidden_state
        output = model(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
        logits = output.pred_masks[:, :, 0][counts]  # (R, s, s)
        targets = self.targets(numbers, logits.shape[-1])
        masks = logits.sigmoid()
        dice = 1 - (2 * (masks * targets).sum((1, 2)) + 1) / (masks.sum((1, 2)) + targets.sum((1, 2)) + 1)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
        with torch.no_grad():
            overlap = iou(logits > 0, targets > 0.5)
        score = (output.iou_scores[..., 0][counts] - overlap) ** 2
        return (dice + cross_entropy * entropy + score).mean()

    def mean_iou(self, model: SamModel) -> float:
        """Over all regions, at the pictures' full size."""
        overlaps = []
        for number, masks in enumerate(self.masks):
            boxes, _ = self.boxes([number])
            output = model(pixel_values=self.pixels([number]), input_boxes=boxes, multimask_output=False)
            height, width = self.scenes.pixels[number].shape[:2]
            logits = F.interpolate(output.pred_masks[0], (self.size, self.size), mode="bilinear")
            logits = F.interpolate(logits[..., :height, :width], masks.shape[1:], mode="bilinear")
            overlaps.append(iou(logits[:, 0] > 0, masks))
        return torch.cat(overlaps).mean().item()


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """bool (R, H, W) each -> (R,)."""
    return (masks & others).sum((1, 2)) / (masks | others).sum((1, 2)).clamp(min=1)


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Its longest side becomes `size`, as SAM resizes pictures."""
    scale = size / max(picture.shape[:2])
    height, width = (int(side * scale + 0.5) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def start_anew(model: SamModel) -> None:
    """SAM's own starting weights. transformers' are made to be replaced by trained ones: so small that little of the
    picture comes through, and a point's random frequencies so high that neighbours have nothing in common."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            module.reset_parameters()
    model.shared_image_embedding.positional_embedding.requires_grad_(False).normal_()


def main(cfg: SamFitConfig) -> dict[str, float]:
    """Returns mask_iou on `cfg.val`. Raises ValueError for settings that do not fit."""
    check_output(cfg)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(cfg.seed)
    model = SamModel(SamConfig(**cfg.model))
    start_anew(model)
    size = model.config.vision_config.image_size

    task = MaskTask(read_scenes(cfg.train, lambda picture: shrink(picture, size), cfg.train_limit), size)
    held_out = MaskTask(read_scenes(cfg.val, lambda picture: shrink(picture, size), cfg.val_limit), size)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        low = 4 * size // model.config.vision_config.patch_size
        processor = SamImageProcessor(
            size={"longest_edge": size},
            mask_size={"longest_edge": low},
            pad_size={"height": size, "width": size},
            mask_pad_size={"height": low, "width": low},
        )
        SamProcessor(processor).save_pretrained(folder)

    return fit(
        model,
        lambda rng: task.loss(model, rng.choice(len(task.scenes), cfg.batch_size), cfg.cross_entropy),
        cfg,
        evaluate=lambda: {"mask_iou": held_out.mean_iou(model)},
        save=save,
    )


def command(argv: Sequence[str] | None = None) -> int:
    return run_command("train.stand_ins.sam", _run, fit_parser("sam", "SAM", SamFitConfig).parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(SamFitConfig, args.config, args.settings)
    scores = main(cfg)
    print(f"{cfg.output}: mean IoU of masks {scores['mask_iou']:.3f}")


if __name__ == "__main__":
    sys.exit(command())
