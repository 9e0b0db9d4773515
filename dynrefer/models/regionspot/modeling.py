"""RegionSpot: frozen SAM says where a region is, frozen CLIP what is in the picture, a small decoder brings them
together. The walk reads from top to bottom."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from dynrefer.data.records import RegionResult
from dynrefer.errors import shown
from dynrefer.losses import focal_loss
from dynrefer.masks import mask_to_rle, rle_to_box

from ..card import About
from ..family import ImageText
from ..fingerprint import model_fingerprint
from ..graphs import Graphs
from ..ranking import ranked
from ..saving import RegionModel
from .batch import Kept, RegionSpotBatch
from .clip import OpenClip, make_clip
from .configuration import RegionSpotConfig
from .decoder import Looks, make_decoder, present_of, spread, with_waves
from .graphs import graphs
from .options import Options
from .sam import Sam
from .text_bank import TextBanks, template_list

logger = logging.getLogger(__name__)

REGIONS_AT_ONCE = 64  # in SAM's decoder, and in ours where regions are independent
PICTURES_AT_ONCE = 16  # in CLIP's encoder
TINY = 1e-7  # beside a vector's length, as released


@dataclass
class Encoded:
    """What the frozen parts say of a batch. Regions: tokens (I, W), quality (I,) SAM's guess of its masks' IoU, masks
    as run lengths where they were asked for. Pictures: memory (N, 1+P, D), CLIP's tokens, the class token first."""

    tokens: Tensor
    memory: Tensor
    quality: Tensor
    masks: list[dict | None] = field(default_factory=list)


class RegionSpotModel(RegionModel):
    """`forward` gives the loss, `predict` the answers; see models/family.py.

    Between pixels and answers are two steps. `encode` is all that frozen parts do, so it can be kept;
    `recognise` is what learns.
    """

    config_class = RegionSpotConfig
    base_model_prefix = "regionspot"
    main_input_name = "batch"
    _supports_sdpa = True
    _no_split_modules = ["TransformerDecoderLayer"]
    Options = Options
    answers = frozenset({"categories", "mask"})
    joint = True
    prompts = frozenset({"points", "masks"})
    BASE_PARTS = {"sam": "sam.model", "clip": "clip.model"}
    CARD = About(
        reads="the whole picture, squashed to {image_size} x {image_size} pixels for CLIP, and as SAM reads it",
        asks='categories=["cup", "plate"]',
        paper="2311.01373",
    )

    def __init__(self, config: RegionSpotConfig, dtypes: Mapping[str, torch.dtype] | None = None):
        super().__init__(config, dtypes)
        self.tasks = ("categories",)
        self.sam = Sam(config.sam_config, config.token)
        self.clip = make_clip(config.clip_config, config.image_size)
        width = self.clip.width
        self.to_clip = nn.Linear(self.sam.width, width)
        self.decoder = make_decoder(
            width, config.decoder_layers, config.decoder_heads, config.decoder_mlp_width, config.decoder_dropout
        )
        self.projector = nn.Linear(width, self.clip.text_width)
        self._banks: TextBanks | None = None
        self.freeze()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            module._reset_parameters()

    def freeze(self) -> None:
        self.sam.requires_grad_(False)
        self.clip.requires_grad_(False)
        if isinstance(self.clip, OpenClip):  # loading forgets what no file holds, too
            self.clip.reset_buffers()

    def train(self, mode: bool = True) -> RegionSpotModel:
        """The frozen parts stay as they are for inference."""
        super().train(mode)
        self.sam.eval()
        self.clip.eval()
        return self

    # ------------------------------------------------------------------------------------------ the walk

    @torch.no_grad()
    def encode(self, batch: RegionSpotBatch, with_masks: bool = False) -> Encoded:
        """Pictures and boxes -> what the frozen parts say of them. Each picture goes through the encoders once; not at
        all where features were kept."""
        seen = batch.seen
        if isinstance(seen, Kept):
            return Encoded(seen.tokens, seen.memory, seen.tokens.new_zeros(len(seen.tokens)))
        memory = torch.cat([self.clip.image_tokens(some) for some in seen.clip_pixels.split(PICTURES_AT_ONCE)])
        none = torch.zeros(0, self.sam.width, dtype=next(self.sam.parameters()).dtype, device=memory.device)
        counts = batch.present.sum(1).tolist()
        tokens, quality, masks = [], [], []
        for n, count in enumerate(counts):
            picture, inner_hw = seen.sam_pictures[n : n + 1], seen.inner_hw[n : n + 1]
            features = self.sam.image_features(self.sam.normalize(picture, inner_hw))[0]
            image_hw = batch.image_hw[sum(counts[:n])].tolist()
            own_tokens, own_quality = none.new_zeros(count, self.sam.width), none.new_zeros(count)
            own_masks = [None] * count  # None: no pixel is inside
            for positions, prompts in seen.prompts[n]:
                for start in range(0, len(positions), REGIONS_AT_ONCE):
                    rows = positions[start : start + REGIONS_AT_ONCE]
                    decoded = self.sam.decode(features, prompts.part(slice(start, start + REGIONS_AT_ONCE)))
                    own_tokens[rows], own_quality[rows] = decoded.tokens, decoded.quality
                    if with_masks:
                        found = self.sam.masks(decoded.masks, image_hw, inner_hw[0].tolist())
                        for row, mask in zip(rows, found, strict=True):
                            own_masks[row] = mask_to_rle(mask) if mask.any() else None
            tokens.append(own_tokens)
            quality.append(own_quality)
            masks += own_masks
        quality = torch.cat([none[:, 0], *quality])
        return Encoded(torch.cat([none, *tokens]), memory, quality, masks if with_masks else [])

    def recognise(self, tokens: Tensor, memory: Tensor, present: Tensor) -> Tensor:
        """SAM's tokens (I, W) of the regions of N pictures and CLIP's tokens (N, 1+P, D) -> region_embeds (I, E) of
        length 1. present (N, R): where each picture's regions are, others are padding that nothing looks at."""
        dtype = self.to_clip.weight.dtype
        queries = spread(self.to_clip(tokens.to(dtype)), present)  # (N, R, D)
        memory = self.as_read(memory.to(dtype))
        hidden = self.decoder(queries, memory, tgt_key_padding_mask=None if present.all() else ~present)
        return self.embed(hidden[present])

    def as_read(self, memory: Tensor) -> Tensor:
        """CLIP's tokens (N, 1+P, D) -> what the decoder reads of them (N, M, D)."""
        if self.config.clip_positions == "sine":
            memory = with_waves(memory, self.clip.grid)
        return memory if self.config.class_token else memory[:, 1:]

    def embed(self, hidden: Tensor) -> Tensor:
        """What the decoder gives, (I, D) -> region_embeds (I, E) of length 1."""
        embeds = self.projector(hidden).float()
        return embeds / (embeds.norm(dim=-1, keepdim=True) + TINY)

    def recognise_each(self, tokens: Tensor, memory: Tensor, present: Tensor) -> Tensor:
        """As `recognise`, but no region sees another."""
        owners = present.nonzero()[:, 0]
        embeds = [tokens.new_zeros(0, self.clip.text_width, dtype=torch.float32)]
        for rows in torch.arange(len(tokens), device=tokens.device).split(REGIONS_AT_ONCE):
            embeds.append(self.recognise(tokens[rows], memory[owners[rows]], present.new_ones(len(rows), 1)))
        return torch.cat(embeds)

    def logits(self, region_embeds: Tensor, bank: Tensor) -> Tensor:
        """region_embeds (I, E) and a text bank (C, E), both of length 1 -> (I, C)."""
        scale, bias = self.clip.scale_and_bias()
        return scale * (region_embeds.float() @ bank.to(region_embeds.device).T) + bias

    def forward(self, batch: RegionSpotBatch) -> dict[str, Tensor]:
        """The sum over this process's regions, unweighted."""
        if not len(batch):
            return self.zero_sums()
        encoded = self.encode(batch)
        region_embeds = self.recognise(encoded.tokens, encoded.memory, batch.present)
        return {"categories": self.category_loss(region_embeds, batch)}

    def category_loss(self, region_embeds: Tensor, batch: RegionSpotBatch) -> Tensor:
        """Sigmoid focal loss against the names of each region's data set, or those that its example is compared with,
        summed over names and regions. Regions of an unknown category count nothing."""
        owners = batch.present.nonzero()[:, 0]  # (I,): the example of each region
        loss = region_embeds.sum() * 0  # also where no category is known
        for number, names in enumerate(batch.vocabularies):
            rows = ((batch.vocabulary[owners] == number) & (batch.categories >= 0)).nonzero()[:, 0]
            if not len(rows):
                continue
            logits = self.logits(region_embeds[rows], self.text_bank(names))  # (r, C)
            targets = torch.zeros_like(logits)
            targets[torch.arange(len(rows)), batch.categories[rows]] = 1
            counted = None
            if any(batch.against[n] is not None for n in owners[rows].tolist()):
                counted = torch.ones_like(logits, dtype=torch.bool)
                for row, owner in zip(counted, owners[rows].tolist(), strict=True):
                    if batch.against[owner] is not None:
                        row.fill_(False)[batch.against[owner].to(row.device)] = True
            loss = loss + focal_loss(logits, targets, self.config.focal_alpha, self.config.focal_gamma, counted)
        return loss

    # ------------------------------------------------------------------------------------------ kept features

    def frozen_features(self, batch: RegionSpotBatch) -> list[dict[str, Tensor]]:
        """Of each example tokens (R, W) and memory (1+P, D)."""
        encoded = self.encode(batch)
        tokens = encoded.tokens.split(batch.present.sum(1).tolist())
        return [{"tokens": own, "memory": memory} for own, memory in zip(tokens, encoded.memory, strict=True)]

    def frozen_key(self) -> str:
        config = self.config
        ways = (config.image_size, config.antialias, config.token, list(config.image_mean), list(config.image_std))
        parts = [model_fingerprint(part, buffers=True) for part in (self.sam, self.clip)]
        return hashlib.sha256(f"{ways} {parts}".encode()).hexdigest()[:16]

    # ------------------------------------------------------------------------------------------ names

    def text_bank(self, names: Sequence[str]) -> Tensor:
        """(C, E) of length 1, made once a word list."""
        return self.banks.bank(names, self.device)

    @property
    def banks(self) -> TextBanks:
        if self._banks is None:
            templates = template_list(self.config.templates)
            self._banks = TextBanks(self.embed_texts, templates, model_fingerprint(self.clip))
        return self._banks

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, E), not normalized, on the model's device."""
        ids = self.processor.encode_texts(texts, self.clip.max_tokens, self.clip.full_length)
        return self.clip.embed_texts(ids.to(self.device))

    def names(self, options: Options) -> list[str]:
        """What regions are told apart by, each name once."""
        return list(dict.fromkeys(self.config.categories if options.categories is None else options.categories))

    def check_options(self, options: Options) -> None:
        names = self.names(options)
        if not names and not options.embedding:
            raise ValueError(
                "categories: none given, and this model has none of its own; give names, such as categories=cup,plate"
            )
        if self.processor is not None and names and names not in self.banks:
            self.processor.check_names(names, self.clip.max_tokens)
        if len(names) == 1 and options.scores == "softmax":
            logger.warning(
                f"categories: only {shown(names[0])}, so softmax gives every region 1.0 of it; give more names, or "
                "scores=sigmoid"
            )

    def image_text(self) -> ImageText:
        return ImageText("CLIP", self.processor.clip_pixels, self.picture_logits)

    @torch.no_grad()
    def picture_logits(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Pictures (N, 3, C, C) as CLIP reads them, or crops of them -> (N, names), by CLIP alone."""
        embeds = F.normalize(self.clip.embed_images(pixels).float(), dim=-1)
        return self.logits(embeds, self.text_bank(names))

    def graphs(self, options: Options) -> Graphs:
        if self.processor is not None:
            self.processor.check_names(self.names(options), self.clip.max_tokens)
        return graphs(self, options)

    # ------------------------------------------------------------------------------------------ answers

    @torch.no_grad()
    def predict(self, batch: RegionSpotBatch, options: Options | None = None) -> list[RegionResult]:
        """One result a region, in the order of batch.ids."""
        if self.processor is None:
            raise ValueError("this model has no processor: dynrefer.load sets it, or set model.processor")
        options = options or Options()
        if not len(batch):
            return []
        was_training = self.training
        self.eval()
        names = self.names(options)
        encoded = self.encode(batch, options.with_masks or not batch.boxed.all())
        step = self.recognise_each if options.independent else self.recognise
        with Looks(self.decoder) if options.attention else nullcontext() as looks:
            region_embeds = step(encoded.tokens, encoded.memory, batch.present)  # (I, E)
        categories = self.ranked_categories(region_embeds, names, options)
        self.train(was_training)
        results = []
        for i, (name, box) in enumerate(zip(batch.ids, batch.boxes.tolist(), strict=True)):
            result = RegionResult(name, box, categories=categories[i])
            if not batch.boxed[i] and encoded.masks[i] is not None:
                result.box = rle_to_box(encoded.masks[i]).tolist()
            if options.unknown is not None and not (categories[i] and categories[i][0]["score"] >= options.unknown):
                result.category = None
            if options.with_masks:
                result.mask = encoded.masks[i]
                result.extra["mask_iou"] = [float(encoded.quality[i])]
            if options.embedding:
                result.extra["embedding"] = region_embeds[i].tolist()
            results.append(result)
        if looks is not None:
            present = present_of([1] * len(batch), self.device) if options.independent else batch.present
            for result, grid in zip(results, looks.grids(present, self.clip.grid), strict=True):
                result.extra["attention"] = grid.float().tolist()
        return results

    def ranked_categories(self, region_embeds: Tensor, names: Sequence[str], options: Options) -> list[list[dict]]:
        """Of each region its likeliest names with their scores."""
        if not names:
            return [[] for _ in region_embeds]
        bank, found = self.text_bank(names), []
        for some in region_embeds.split(REGIONS_AT_ONCE):
            logits = self.logits(some, bank)  # (n, C)
            scores = logits.softmax(-1) if options.scores == "softmax" else logits.sigmoid()
            found += ranked(names, scores, most=options.top_k)
        return found


AutoModel.register(RegionSpotConfig, RegionSpotModel, exist_ok=True)
