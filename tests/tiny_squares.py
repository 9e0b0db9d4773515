"""A tiny model family for tests of training: coloured squares, one word each; learns in seconds on a CPU."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionResult
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.models.options import TextOptions

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}
WORDS = ["<pad>", "<end>", "a", "big", "square", *COLORS]
SIDE = 6


def write_squares(folder: Path, num_images: int, seed: int = 0, prefix: str = "s") -> Path:
    """A record file of images with one to three squares each: captions of different lengths, tags for some."""
    generator = np.random.default_rng(seed)
    regions = []
    for number in range(num_images):
        image = np.full((32, 48, 3), 90, np.uint8)
        for place in range(int(generator.integers(1, 4))):
            color = str(generator.choice(list(COLORS)))
            big = bool(generator.random() < 0.5)
            side = 12 if big else 7
            x, y = 16 * place + 1, int(generator.integers(0, 32 - side))
            image[y : y + side, x : x + side] = COLORS[color]
            regions.append(
                Region.from_dict(
                    {
                        "id": f"{prefix}{number}-{place}",
                        "image": f"{prefix}{number}.png",
                        "image_hw": [32, 48],
                        "box": [x, y, x + side, y + side],
                        "captions": [f"a big {color} square" if big else f"{color} square"],
                        "tags": [color] if generator.random() < 0.7 else None,
                    }
                )
            )
        Image.fromarray(image).save(folder / f"{prefix}{number}.png")
    path = folder / f"{prefix}.jsonl"
    write_records(path, regions)
    return path


@dataclass
class TinyBatch:
    ids: list[str]
    boxes: Tensor  # (R, 4)
    pixels: Tensor  # (R, 3, SIDE, SIDE)
    words: Tensor  # (R, T)
    words_mask: Tensor  # (R, T)
    tags: Tensor  # (R, K)
    tags_known: Tensor  # (R,)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device) -> "TinyBatch":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def leave_out(self, tasks, rows=slice(None)) -> None:
        for task in tasks:
            if task in ("captions", "tags"):
                (self.words_mask if task == "captions" else self.tags_known)[rows] = 0

    def counts(self) -> dict[str, float]:
        return {"captions": float(self.words_mask.sum()), "tags": float(self.tags_known.sum())}


class TinyProcessor(FamilyProcessor):
    def samples(self, example, options, generators, train) -> list[dict]:
        image, regions, samples = example.image, example.regions, []
        for region, generator in zip(regions, generators, strict=True):
            x1, y1, x2, y2 = (int(v) for v in region.box)
            crop = Image.fromarray(image[y1:y2, x1:x2]).resize((SIDE, SIDE))
            pixels = np.asarray(crop, np.float32).transpose(2, 0, 1) / 255
            if train:
                pixels = pixels + generator.normal(0, 0.05, pixels.shape).astype(np.float32)
            samples.append({"region": region, "pixels": pixels})
        return samples

    def collate(self, samples: list[dict]) -> TinyBatch:
        regions = [sample["region"] for sample in samples]
        rows = [[WORDS.index(word) for word in region.captions[0].split()] + [1] for region in regions]
        words = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.long)
        for i, row in enumerate(rows):
            words[i, : len(row)] = torch.tensor(row)
        tags = torch.zeros(len(regions), len(COLORS))
        for region, row in zip(regions, tags, strict=True):
            row[:] = torch.tensor([float(color in (region.tags or ())) for color in COLORS])
        return TinyBatch(
            ids=[region.id for region in regions],
            boxes=torch.tensor([region.box for region in regions]).reshape(-1, 4),
            pixels=torch.tensor(np.array([sample["pixels"] for sample in samples])).reshape(-1, 3, SIDE, SIDE),
            words=words,
            words_mask=(words > 0).float(),
            tags=tags,
            tags_known=torch.tensor([region.tags is not None for region in regions], dtype=torch.bool),
        )

    def save_pretrained(self, folder) -> None:
        (Path(folder) / "processor.json").write_text("{}")


class TinyModel(FamilyModel, nn.Module):
    """A frozen random `vision`, a trained `head`, a word-by-word captioner and a tag decoder."""

    Options = TextOptions
    answers = frozenset({"caption", "tags"})

    def __init__(self, width: int = 24, dropout: float = 0.0):
        super().__init__()
        self.width, self.dropout = width, dropout
        self.vision = nn.Linear(3 * SIDE * SIDE, width).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Dropout(dropout))
        self.word_embedding = nn.Embedding(len(WORDS), width)
        self.words = nn.Linear(2 * width, len(WORDS))
        self.tag_decoder = nn.Linear(width, len(COLORS))
        self.query = nn.Parameter(torch.zeros(1, width))  # of no module of its own, and a scalar: both hard for ZeRO
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("bank", torch.zeros(1))
        self.tasks = ("captions", "tags")
        self.checkpointing = False
        self.processor = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None) -> None:
        self.checkpointing = True

    def before_eval(self) -> None:
        self.bank.add_(1)

    def encode(self, batch: TinyBatch) -> Tensor:
        features = self.vision(batch.pixels.flatten(1).to(self.vision.weight.dtype))  # (R, D)
        features = features + self.query.expand(len(batch), -1)
        if self.checkpointing and self.training:
            return torch.utils.checkpoint.checkpoint(self.head, features, use_reentrant=False)
        return self.head(features)

    def next_word(self, embeds: Tensor, before: Tensor) -> Tensor:
        """embeds (R, D), words before (R, T) -> logits (R, T, W)."""
        words = self.word_embedding(before)
        return self.words(torch.cat([embeds[:, None].expand_as(words), words], -1))

    @property
    def device(self) -> torch.device:
        return self.query.device

    def forward(self, batch: TinyBatch) -> dict[str, Tensor]:
        if not len(batch):
            return self.zero_sums()
        embeds = self.encode(batch)
        losses = {}
        if "captions" in self.tasks:
            before = F.pad(batch.words, (1, 0))[:, :-1]
            logits = self.next_word(embeds, before).float()
            token_losses = F.cross_entropy(logits.flatten(0, 1), batch.words.flatten(), reduction="none")
            losses["captions"] = (token_losses * batch.words_mask.flatten()).sum()
        if "tags" in self.tasks:
            known = batch.tags_known
            logits = self.tag_decoder(embeds[known]).float() * self.logit_scale
            losses["tags"] = F.binary_cross_entropy_with_logits(logits, batch.tags[known], reduction="sum")
        return losses

    @torch.no_grad()
    def predict(self, batch: TinyBatch, options=None) -> list[RegionResult]:
        embeds, before = self.encode(batch), torch.zeros(len(batch), 1, dtype=torch.long)
        for _ in range(5):
            before = torch.cat([before, self.next_word(embeds, before)[:, -1:].argmax(-1)], 1)
        results = []
        for region_id, box, row in zip(batch.ids, batch.boxes.tolist(), before[:, 1:].tolist(), strict=True):
            row = row[: row.index(1)] if 1 in row else row
            results.append(RegionResult(region_id, box, " ".join(WORDS[i] for i in row), 1.0))
        return results

    def save_pretrained(self, folder, state_dict=None) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in (state_dict or self.state_dict()).items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"width": self.width, "dropout": self.dropout}))


def tiny_family(section: dict, records) -> tuple[TinyModel, TinyProcessor]:
    return TinyModel(**section), TinyProcessor()


def load_tiny(path: str) -> TinyModel:
    path = Path(path) / "best" if (Path(path) / "best").is_dir() else Path(path)
    model = TinyModel(**json.loads((path / "config.json").read_text()))
    model.load_state_dict(load_file(path / "model.safetensors"))
    model.processor = TinyProcessor()
    return model


if __name__ == "__main__":  # python -m tests.tiny_squares --config ...: train.run with this family
    import sys

    from train.run import command

    sys.exit(command(build=tiny_family, load=load_tiny))
