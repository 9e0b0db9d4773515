"""A small CLIP from nothing: `python -m train.stand_ins.clip --config configs/stand_ins/clip.yaml [key=value ...]`.

It sees whole pictures and reads their captions, never a region. A picture's caption names some of its regions, in any
order: their categories ("a photo of a cup and tree."), those with an attribute ("red cup, green tree"), or what their
own captions say ("a red cup left of the tree").

Every caption that is true of a picture counts as one of its own. With v_i a picture, t_j a caption, both of length 1,
s the learned scale and y_ij = 1 where caption j says only what picture i shows:

    loss = mean over i of -sum_j y_ij / |y_i.| log softmax_j(s v_i t_j), and the same over j, halved

It is a model of open_clip with a convolutional tower, which learns the kinds of objects in minutes where a small ViT
does not, and is written as open_clip writes its models: open_clip_config.json and open_clip_model.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dynrefer.config import load_config
from dynrefer.convert.clip_text import clip_tokenizer, import_open_clip
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.files import write_json
from train.stand_ins.fit import check_output, fit, fit_parser
from train.stand_ins.scenes import Scenes, read_scenes
from train.stand_ins.settings import CaptionConfig, ClipFitConfig

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LARGEST_SCALE = 100.0
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # as open_clip names them
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

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, S, S) as CLIP sees them."""
        pictures = torch.from_numpy(self.scenes.pixels[numbers]).permute(0, 3, 1, 2).float() / 255
        return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def loss(self, model: nn.Module, tokenizer, batch_size: int, rng: np.random.Generator) -> Tensor:
        numbers = rng.choice(len(self.scenes), batch_size)
        said = [
            caption(self.scenes.regions[number], self.sentences, self.cfg, rng)
            for number in numbers
            for _ in range(self.cfg.per_picture)
        ]
        true = torch.tensor([[words <= self.true[number] for _, words in said] for number in numbers]).float()
        ids = tokenize(tokenizer, [text for text, _ in said], model.context_length)
        cells = cells_of(model, self.pixels(numbers))  # (B, P, E)
        texts = F.normalize(model.encode_text(ids), dim=-1)  # (N, E)
        scale = model.logit_scale.exp()
        return contrast(scale * F.normalize(cells.mean(1), dim=-1) @ texts.T, true)

    def scores(self, model: nn.Module, tokenizer) -> dict[str, float]:
        """category_map: mean over categories of the average precision with which "a photo of a NAME." finds its
        pictures. box_accuracy: share of regions that the cells under their boxes name, on average, as what they are."""
        names = sorted({region.category for regions in self.scenes.regions for region in regions})
        ids = tokenize(tokenizer, [f"a photo of a {name}." for name in names], model.context_length)
        bank = F.normalize(model.encode_text(ids), dim=-1)
        cells = torch.cat(
            [cells_of(model, self.pixels(some)) for some in torch.arange(len(self.scenes)).split(PICTURES_AT_ONCE)]
        )
        scores = F.normalize(cells.mean(1), dim=-1) @ bank.T  # (N, C)
        shown = torch.tensor([[name in true for name in names] for true in self.true])
        ranked = shown.gather(0, scores.argsort(0, descending=True)).float()
        precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
        grid = int(cells.shape[1] ** 0.5)
        maps = (F.normalize(cells, dim=-1) @ bank.T).unflatten(1, (grid, grid))  # (N, g, g, C)
        right = [
            names[int(under(own, region).mean(0).argmax())] == region.category
            for own, regions in zip(maps, self.scenes.regions, strict=True)
            for region in regions
        ]
        return {
            "category_map": ((precision * ranked).sum(0) / ranked.sum(0)).mean().item(),
            "box_accuracy": sum(right) / len(right),
        }


def cells_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """pixels (B, 3, S, S) -> (B, P, E): each cell's share of the picture's vector, which is their mean."""
    cells = model.visual.trunk.forward_features(pixels.contiguous(memory_format=torch.channels_last))  # (B, D, g, g)
    return model.visual.head(cells.flatten(2).transpose(1, 2))


def under(cells: Tensor, region: Region) -> Tensor:
    """cells (g, g, C) -> (n, C), those that a region's box touches."""
    grid, (height, width) = len(cells), region.image_hw
    x1, y1, x2, y2 = np.array(region.box) / (width, height, width, height) * grid
    return cells[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].flatten(0, 1)


def tokenize(tokenizer, texts: Sequence[str], length: int) -> Tensor:
    """(N, length), as open_clip's text towers want it."""
    settings = {"return_tensors": "pt", "padding": "max_length", "truncation": True}
    return tokenizer(list(texts), max_length=length, **settings)["input_ids"]


def squash(picture: np.ndarray, size: int) -> np.ndarray:
    """To a square, bilinear and not smoothed, as RegionSpot shows pictures to CLIP."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    return pixels[0].round().byte().permute(1, 2, 0).numpy()


def new_model(settings: dict) -> nn.Module:
    """From open_clip's `model_cfg`. ValueError where its picture's tower is not one of timm's with a linear head."""
    vision = settings.get("vision_cfg", {})
    if "timm_model_name" not in vision or vision.get("timm_proj", "linear") != "linear":
        raise ValueError(
            "model.vision_cfg: expected timm_model_name, a convolutional model of timm, and timm_proj linear, which "
            "makes the picture's vector the mean of those of its cells"
        )
    open_clip = import_open_clip()
    return open_clip.CustomTextCLIP(**{key: value for key, value in settings.items() if key != "custom_text"})


def main(cfg: ClipFitConfig) -> dict[str, float]:
    """Returns CaptionTask.scores of `cfg.val`. Raises ValueError for settings that do not fit."""
    check_output(cfg)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(cfg.seed)
    sentences = [sentence("{}") for sentence in import_open_clip().OPENAI_IMAGENET_TEMPLATES] + ["{}."]
    model = new_model(cfg.model).to(memory_format=torch.channels_last)
    tokenizer = clip_tokenizer(model.vocab_size)
    size = cfg.model["vision_cfg"]["image_size"]

    def task(path: str | list[str], limit: int | None, size: int = size) -> CaptionTask:
        scenes = read_scenes(path, lambda picture: squash(picture, size), limit)
        for regions in scenes.regions:
            for region in regions:
                if region.category is None or not region.captions:
                    raise ValueError(f"{path}: region {region.id} has no category or no caption; CLIP reads both")
        return CaptionTask(scenes, sentences, cfg.captions)

    train, held_out = task(cfg.train, cfg.train_limit), task(cfg.val, cfg.val_limit)
    easy = None if cfg.easy is None else task(cfg.easy.train, cfg.easy.train_limit, cfg.easy.image_size)
    steps = count(1)

    def loss_of(rng: np.random.Generator) -> Tensor:
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(LARGEST_SCALE))
        first = easy is not None and (next(steps) <= cfg.easy.steps or rng.random() < cfg.easy.share)
        return (easy if first else train).loss(model, tokenizer, cfg.batch_size, rng)

    def save(folder: Path) -> None:
        save_file({name: of.contiguous() for name, of in model.state_dict().items()}, folder / WEIGHTS)
        preprocess = {"size": [size, size], "mean": MEAN, "std": STD, "interpolation": "bilinear"}
        preprocess |= {"resize_mode": "squash"}
        write_json(folder / CONFIG, {"model_cfg": {"custom_text": True, **cfg.model}, "preprocess_cfg": preprocess})

    return fit(model, loss_of, cfg, evaluate=lambda: held_out.scores(model, tokenizer), save=save)


def command(argv: Sequence[str] | None = None) -> int:
    return run_command("train.stand_ins.clip", _run, fit_parser("clip", "CLIP", ClipFitConfig).parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(ClipFitConfig, args.config, args.settings)
    scores = main(cfg)
    print(
        f"{cfg.output}: mean average precision of categories in whole pictures {scores['category_map']:.3f}, "
        f"categories of boxes by their cells {scores['box_accuracy']:.3f}"
    )


if __name__ == "__main__":
    sys.exit(command())
