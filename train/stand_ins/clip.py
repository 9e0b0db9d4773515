"""A small CLIP from nothing: `python -m train.stand_ins.clip --config configs/stand_ins/clip.yaml [key=value ...]`.

It sees whole pictures and reads their captions, never a region. A picture's caption names some of its regions, in any
order: their categories ("a photo of a cup and tree."), those with an attribute ("red cup, green tree"), or what their
own captions say ("a red cup left of the tree").

Every caption that is true of a picture counts as one of its own. With v_i a picture, t_j a caption, both of length 1,
s the learned scale and y_ij = 1 where caption j says only what picture i shows:

    loss = mean over i of -sum_j y_ij / |y_i.| log softmax_j(s v_i t_j), and the same over j, halved
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from dynrefer.config import load_config
from dynrefer.convert.clip_text import import_open_clip
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.models.tokenizer import train_tokenizer
from train.stand_ins.fit import check_output, fit, fit_parser
from train.stand_ins.scenes import Scenes, read_scenes
from train.stand_ins.settings import CaptionConfig, ClipFitConfig

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LARGEST_SCALE = 100.0
LENGTHS = 8  # texts are as long as a multiple of it, so that few shapes occur
WHITENED = 300  # pictures that starting weights are fitted to
PICTURES_AT_ONCE = 100  # without gradient


def with_attributes(region: Region, types: Sequence[str]) -> str:
    """ "red cup": what it is, after the values of its attributes of these types ("color:red")."""
    values = [
        name.partition(":")[2]
        for kind in types
        for name, holds in (region.attributes or {}).items()
        if holds == 1 and name.partition(":")[0] == kind
    ]
    return " ".join([*values, region.category])


def phrases(region: Region, types: Sequence[str]) -> frozenset[str]:
    """All that may be said of a region."""
    return frozenset({region.category, with_attributes(region, types), *region.captions})


def caption(
    regions: Sequence[Region], sentences: Sequence[str], cfg: CaptionConfig, rng: np.random.Generator
) -> tuple[str, frozenset[str]]:
    """A caption of the whole picture, and the phrases that it is made of."""
    count = 1 if rng.random() < cfg.single else int(rng.integers(1, len(regions) + 1))
    chosen = [regions[number] for number in rng.permutation(len(regions))[:count]]
    way = rng.random()
    if way < cfg.categories:
        said = [region.category for region in chosen]
    elif way < cfg.categories + cfg.attributes:
        said = [with_attributes(region, cfg.attribute_types) for region in chosen]
    else:
        said = [region.captions[int(rng.integers(len(region.captions)))] for region in chosen[: cfg.most_captions]]
    said = list(dict.fromkeys(said))
    text = (" and " if rng.random() < 0.5 else ", ").join(said)
    if rng.random() < cfg.templates:
        text = sentences[int(rng.integers(len(sentences)))].format(text)
    return text, frozenset(said)


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """logits, true (B pictures, N captions)."""
    by_picture = (logits.log_softmax(1) * true / true.sum(1, keepdim=True)).sum(1).mean()
    by_caption = (logits.log_softmax(0) * true / true.sum(0, keepdim=True)).sum(0).mean()
    return -(by_picture + by_caption) / 2


class CaptionTask:
    """Scenes and what is true of each -> the contrastive loss."""

    def __init__(self, scenes: Scenes, sentences: Sequence[str], cfg: CaptionConfig):
        self.scenes, self.sentences, self.cfg = scenes, sentences, cfg
        self.true = [
            frozenset().union(*(phrases(region, cfg.attribute_types) for region in regions))
            for regions in scenes.regions
        ]
        self.easy = np.array(
            [number for number, regions in enumerate(scenes.regions) if len(regions) <= cfg.easy_regions]
        )
        self.step = 0

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, S, S) as CLIP sees them."""
        pictures = torch.from_numpy(self.scenes.pixels[numbers]).permute(0, 3, 1, 2).float() / 255
        return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def texts(self, rng: np.random.Generator) -> list[str]:
        """A caption of every picture, for a tokenizer."""
        return [caption(regions, self.sentences, self.cfg, rng)[0] for regions in self.scenes.regions]

    def loss(self, model: CLIPModel, tokenizer, batch_size: int, rng: np.random.Generator) -> Tensor:
        self.step += 1
        if self.step == 1 and self.cfg.easy_steps and not len(self.easy):
            raise ValueError(
                f"captions.easy_steps: no picture has {self.cfg.easy_regions} regions or fewer; set it to 0"
            )
        pool = self.easy if self.step <= self.cfg.easy_steps else len(self.scenes)
        numbers = rng.choice(pool, batch_size)
        said = [
            caption(self.scenes.regions[number], self.sentences, self.cfg, rng)
            for number in numbers
            for _ in range(self.cfg.per_picture)
        ]
        true = torch.tensor([[words <= self.true[number] for _, words in said] for number in numbers]).float()
        tokens = tokenizer([text for text, _ in said], return_tensors="pt", padding=True, pad_to_multiple_of=LENGTHS)
        with torch.autocast("cpu", torch.bfloat16):
            vision = model.vision_model(pixel_values=self.pixels(numbers))
            patches = model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])
            pictures = model.visual_projection(torch.cat([vision.pooler_output[:, None], patches], 1))  # (B, 1+P, E)
            texts = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output  # (N, E)
        cosines = F.normalize(pictures.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # (B, 1+P, N)
        logits = model.logit_scale.exp() * cosines
        best = logits[:, 1:].logsumexp(1)  # (B, N)
        return contrast(logits[:, 0], true) + self.cfg.patches * contrast(best, true)

    def category_map(self, model: CLIPModel, tokenizer) -> float:
        """Mean over categories of the average precision with which "a photo of a NAME." finds its pictures."""
        names = sorted({region.category for regions in self.scenes.regions for region in regions})
        tokens = tokenizer([f"a photo of a {name}." for name in names], return_tensors="pt", padding=True)
        bank = F.normalize(model.get_text_features(input_ids=tokens["input_ids"]).pooler_output, dim=-1)
        pictures = torch.cat(
            [
                model.get_image_features(pixel_values=self.pixels(some)).pooler_output
                for some in torch.arange(len(self.scenes)).split(PICTURES_AT_ONCE)
            ]
        )
        scores = F.normalize(pictures, dim=-1) @ bank.T  # (N, C)
        shown = torch.tensor([[name in true for name in names] for true in self.true])
        ranked = shown.gather(0, scores.argsort(0, descending=True)).float()
        precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
        return ((precision * ranked).sum(0) / ranked.sum(0)).mean().item()


@torch.no_grad()
def whiten(model: CLIPModel, pixels: Tensor, least: float = 1e-3) -> None:
    """Starting weights with which the parts of a patch in which patches differ most come in equally strong, in random
    directions, and its place as strong as they: colours differ a thousand times as much as shapes do, which are learnt
    late without it, and places that come in weakly are not to be found in the tokens that go out.

    pixels (N, 3, S, S); least: relative to the strongest part, below which a part stays weaker.
    """
    embeddings = model.vision_model.embeddings
    kernel = embeddings.patch_embedding.weight  # (D, 3, p, p)
    size = kernel.shape[-1]
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)  # (N P, 3 p p)
    mean = patches.mean(0)
    variances, parts = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    variances, parts = variances.flip(0)[: len(kernel)], parts.flip(1)[:, : len(kernel)]
    turned, _ = torch.linalg.qr(torch.randn(len(kernel), len(variances)))
    weights = turned @ (parts / (variances + least * variances[0]).sqrt()).T  # (D, 3 p p)
    kernel.copy_(weights.view_as(kernel))
    positions = embeddings.position_embedding.weight  # (1+P, D)
    positions[1:] = waves(embeddings.image_size // size, len(kernel)) - weights @ mean


def waves(grid: int, width: int) -> Tensor:
    """(grid * grid, width): sines and cosines of each cell's row and column, as strong as whitened patches."""
    number = width // 4
    frequencies = math.pi * 2 ** torch.linspace(-1, math.log2(grid / 2), number)  # from half a wave a picture
    along = (torch.arange(grid) + 0.5)[:, None] / grid * frequencies  # (grid, width / 4)
    line = torch.cat([along.sin(), along.cos()], -1)  # (grid, width / 2)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return F.pad(torch.cat([columns, rows], -1).flatten(0, 1), (0, width - 4 * number))


def squash(picture: np.ndarray, size: int) -> np.ndarray:
    """To a square, bilinear and not smoothed, as RegionSpot shows pictures to CLIP."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    return pixels[0].round().byte().permute(1, 2, 0).numpy()


def main(cfg: ClipFitConfig) -> dict[str, float]:
    """Returns category_map on `cfg.val`. Raises ValueError for settings that do not fit."""
    check_output(cfg)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(cfg.seed)
    sentences = [sentence("{}") for sentence in import_open_clip().OPENAI_IMAGENET_TEMPLATES] + ["{}."]
    size = cfg.model["vision_config"]["image_size"]

    def task(path: str | list[str], limit: int | None) -> CaptionTask:
        scenes = read_scenes(path, lambda picture: squash(picture, size), limit)
        for regions in scenes.regions:
            for region in regions:
                if region.category is None or not region.captions:
                    raise ValueError(f"{path}: region {region.id} has no category or no caption; CLIP reads both")
        return CaptionTask(scenes, sentences, cfg.captions)

    train, held_out = task(cfg.train, cfg.train_limit), task(cfg.val, cfg.val_limit)
    tokenizer = train_tokenizer(train.texts(np.random.default_rng(cfg.seed)), cfg.vocab_size, start=True)
    text_config = {
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        "vocab_size": len(tokenizer),
        **cfg.model["text_config"],
    }
    config = CLIPConfig(**{**cfg.model, "text_config": text_config})
    model = CLIPModel._from_config(config, attn_implementation="eager")  # on CPU twice as fast in bfloat16 as sdpa
    whiten(model, train.pixels(range(min(len(train.scenes), WHITENED))))
    tokenizer.model_max_length = model.config.text_config.max_position_embeddings

    def loss_of(rng: np.random.Generator) -> Tensor:
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(LARGEST_SCALE))
        return train.loss(model, tokenizer, cfg.batch_size, rng)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        square = {"height": size, "width": size}
        CLIPImageProcessor(size=square, do_center_crop=False, resample=2).save_pretrained(folder)

    return fit(
        model, loss_of, cfg, evaluate=lambda: {"category_map": held_out.category_map(model, tokenizer)}, save=save
    )


def command(argv: Sequence[str] | None = None) -> int:
    return run_command("train.stand_ins.clip", _run, fit_parser("clip", "CLIP", ClipFitConfig).parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(ClipFitConfig, args.config, args.settings)
    scores = main(cfg)
    print(f"{cfg.output}: mean average precision of categories in whole pictures {scores['category_map']:.3f}")


if __name__ == "__main__":
    sys.exit(command())
