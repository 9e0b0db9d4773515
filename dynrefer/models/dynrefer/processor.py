"""Images, regions and words -> RegionBatch, and token ids -> text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor

from dynrefer.data.example import Example
from dynrefer.data.records import Region
from dynrefer.errors import shown
from dynrefer.masks import mask_to_box
from dynrefer.prompts import (
    Control,
    check_text,
    control_prompt,
    each_control,
    parse_control,
    region_controls,
    training_words,
)
from dynrefer.resize import FASTEST, shared
from dynrefer.views import HASH_STRATEGIES, choose_scales, crop_views, crop_views_torch, place_views, reduction
from dynrefer.vocabulary import Vocabulary, attribute_texts, category_texts, read_attributes

from ..language import language_kind
from ..saved_processor import TEXT_TOKENIZER, SavedProcessor
from .batch import RegionBatch
from .configuration import DynReferConfig
from .options import Options

MAX_CAPTION_TOKENS = 64
SIDE_WORDS = ("left", "right")


class DynReferProcessor(SavedProcessor):
    """Everything between an example and a batch. Sizes, word lists and strategies come from the model's config.

    tokenizer: the language model's; text_tokenizer: the text encoder's.
    """

    config_class = DynReferConfig
    TOKENIZERS = {"tokenizer": "", "text_tokenizer": TEXT_TOKENIZER}

    def __init__(self, config: DynReferConfig, tokenizer, text_tokenizer):
        self.config, self.tokenizer, self.text_tokenizer = config, tokenizer, text_tokenizer
        self.tags = Vocabulary(config.tags, "tag")
        self.attributes = Vocabulary([attribute["name"] for attribute in config.attributes], "attribute")
        self.categories = Vocabulary(config.categories, "category")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.append_end = language_kind(config.language_config) == "causal"

    # ------------------------------------------------------------------------------------------ views

    def views(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        strategy: str,
        generators: Sequence[np.random.Generator],
        *,
        image_hw: tuple[int, int] | None = None,
        resize: str = "pillow",
        crop_on: torch.device | str | None = None,
    ) -> dict[str, np.ndarray | Tensor]:
        """image (H, W, 3) uint8; boxes (R, 4) xyxy pixels. Returns boxes, scales, views, view_boxes and region_boxes,
        rows as in RegionBatch. image_hw, resize: see crop_views; crop_on: the device on which views are cut instead,
        and stay."""
        size, truncate = self.config.image_size, self.config.truncate_region_boxes
        scales = choose_scales(strategy, image, boxes, self.config.num_views, generators)
        if crop_on is None:
            views, view_boxes, region_boxes = crop_views(
                image, boxes, scales, size, truncate_region_boxes=truncate, image_hw=image_hw, resize=resize
            )
        else:
            view_boxes, region_boxes = place_views(boxes, scales, image.shape[:2], size, truncate)
            views = crop_views_torch(shared(image).to(crop_on).permute(2, 0, 1), view_boxes, size)
        return {
            "boxes": np.asarray(boxes, np.float32),
            "scales": scales.astype(np.float32),
            "views": views,
            "view_boxes": view_boxes.astype(np.float32),
            "region_boxes": region_boxes,
        }

    # ------------------------------------------------------------------------------------------ samples

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample a region of this example, whose picture may have been decoded smaller by `reduction`. In training
        a caption and its control words are drawn at random, the views may be mirrored and are resized the fast way;
        otherwise the first caption stands, with the control words of the options."""
        regions = example.regions
        if not regions:
            return []
        boxes, image_hw = self.boxes(regions), regions[0].image_hw
        if train and self.config.box_jitter:
            boxes = jitter_boxes(boxes, self.config.box_jitter, image_hw, generators)
        strategy = self.config.train_view_strategy if train else options.view_strategy or self.config.view_strategy
        ways = {"resize": FASTEST if train else "pillow", "crop_on": None if train else options.crop_on}
        arrays = self.views(example.image, boxes, strategy, generators, image_hw=image_hw, **ways)
        if train and self.config.mirror:
            for r, (region, generator) in enumerate(zip(regions, generators, strict=True)):
                if generator.random() < self.config.mirror and not says_side(region.captions):
                    arrays["views"][r], arrays["region_boxes"][r] = mirrored(
                        arrays["views"][r], arrays["region_boxes"][r]
                    )
        controls = region_controls(options.control, len(regions))
        shows, samples = None if train else shown_pixels(arrays["view_boxes"]), []
        for r, (region, generator) in enumerate(zip(regions, generators, strict=True)):
            caption, words = "", []
            if region.captions:
                caption = region.captions[generator.integers(len(region.captions)) if train else 0]
            if train:
                known = [tag for tag in region.tags or () if tag in self.tags.index]
                words = training_words(known, generator, self.config.control_drop_all, self.config.control_keep)
            sample = {"region": region, "caption": caption, "words": words, "control": controls[r]}
            if shows is not None:
                sample["shows"] = shows[r]
            samples.append(sample | {k: v[r] for k, v in arrays.items()})
        return samples

    def reduction(self, regions: Sequence[Region]) -> int:
        """How many times smaller, 4, 2 or 1, an image may be decoded for training on all of these regions."""
        if self.config.train_view_strategy.partition(":")[0] in HASH_STRATEGIES:
            return 1  # a hash looks at every pixel
        left = 1 - 2 * self.config.box_jitter  # share of a side
        return reduction(left * self.boxes(regions), self.config.image_size)

    def boxes(self, regions: Sequence[Region]) -> np.ndarray:
        """(R, 4) float32, see `box`."""
        return np.array([self.box(region) for region in regions], np.float32)

    def box(self, region: Region) -> tuple[float, ...]:
        """The record's box; where a mask of pixels gave it, as this model takes boxes of masks."""
        if self.config.mask_box_last_index and isinstance(region.mask, dict):
            mask = region.to_mask()
            if tuple(mask_to_box(mask)) == tuple(region.box):
                return tuple(mask_to_box(mask, last_index=True))
        return region.box

    def collate(self, samples: list[dict]) -> RegionBatch:
        """Samples of any examples -> one batch."""
        if not samples:
            return self.empty_batch()
        regions = [sample["region"] for sample in samples]
        captions = [self.clean(sample["caption"]) for sample in samples]
        stacked = {
            name: torch.stack([torch.as_tensor(sample[name]) for sample in samples])
            for name in ("boxes", "scales", "views", "view_boxes", "region_boxes")
        }
        prompt_ids, prompt_mask = self.encode_prompts([sample["words"] for sample in samples])
        caption_ids, caption_mask = self.encode_captions(captions)
        text_ids, text_mask = self.encode_texts(captions) if any(captions) else (caption_ids, caption_mask)
        tags = torch.zeros(len(regions), len(self.tags))
        attributes = torch.zeros(len(regions), len(self.attributes), dtype=torch.int8)
        categories = torch.full((len(regions),), -1)
        for r, region in enumerate(regions):
            for tag in region.tags or ():
                if (index := self.tags.index.get(tag)) is not None:
                    tags[r, index] = 1
            for name, value in region.attributes.items():
                if (index := self.attributes.index.get(name)) is not None:
                    attributes[r, index] = value
            if region.category is not None:
                categories[r] = self.categories.index.get(region.category, -1)
        return RegionBatch(
            ids=[region.id for region in regions],
            controls=[sample["control"] for sample in samples],
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            caption_ids=caption_ids,
            caption_mask=caption_mask,
            text_ids=text_ids,
            text_mask=text_mask,
            tags=tags,
            tags_known=torch.tensor([region.tags is not None for region in regions]),
            attributes=attributes,
            categories=categories,
            shows=[s["shows"] for s in samples] if all("shows" in s for s in samples) else None,
            **stacked,
        )

    def empty_batch(self) -> RegionBatch:
        """Of no region."""
        views, size = self.config.num_views, self.config.image_size
        ids = torch.zeros(0, 1, dtype=torch.long)
        return RegionBatch(
            ids=[],
            controls=[],
            boxes=torch.zeros(0, 4),
            views=torch.zeros(0, views, 3, size, size, dtype=torch.uint8),
            scales=torch.zeros(0, views),
            view_boxes=torch.zeros(0, views, 4),
            region_boxes=torch.zeros(0, views, 4),
            **dict.fromkeys(("prompt_ids", "prompt_mask", "caption_ids", "caption_mask", "text_ids", "text_mask"), ids),
            tags=torch.zeros(0, len(self.tags)),
            tags_known=torch.zeros(0, dtype=torch.bool),
            attributes=torch.zeros(0, len(self.attributes), dtype=torch.int8),
            categories=torch.zeros(0, dtype=torch.long),
        )

    # ------------------------------------------------------------------------------------------ texts

    def clean(self, caption: str) -> str:
        """White space squeezed; lower case where the config says so."""
        caption = " ".join(caption.split())
        return caption.lower() if self.config.lowercase else caption

    def encode_prompts(self, words: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Control words of every region -> ids and mask (R, T), with the tokenizer's own special tokens."""
        encoded = self.tokenizer(
            [control_prompt(w) for w in words], padding=True, return_tensors="pt", padding_side="right"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Target captions -> ids and mask (R, T), an end token last; a region without a caption has an empty mask."""
        special = not self.append_end
        given = {"add_special_tokens": special, "truncation": True, "max_length": MAX_CAPTION_TOKENS}
        rows = [self.tokenizer(c, **given)["input_ids"] if c else [] for c in captions]
        if self.append_end:
            end = self.tokenizer.eos_token_id
            rows = [row[: MAX_CAPTION_TOKENS - 1] + [end] if c else [] for row, c in zip(rows, captions, strict=True)]
        return pad_rows(rows, self.tokenizer.pad_token_id)

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts for the text encoder -> ids and mask (N, T). Over-long ones are cut, the end token stays."""
        limit = self.config.text_config.max_position_embeddings
        rows = [self.text_tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
        return pad_rows(rows, self.text_tokenizer.pad_token_id or 0)

    def check_words(self, options: Options, room: int) -> None:
        """ValueError for control words, attributes or categories of the options that are no text or more than the
        models can hold. room: tokens that the language model has for control words."""
        controls = {",".join(c) if not isinstance(c, str) else c: c for c in each_control(options.control) if c}
        for text in controls:
            check_text(text, "control")
        words = [parse_control(control, []) for control in controls.values()]
        for some, tokens in zip(words, self.prompt_lengths(words), strict=True):
            if tokens > room:
                raise ValueError(
                    f"control {shown(','.join(some))}: {len(some):,} words are {tokens:,} tokens; the language model "
                    f"holds at most {room:,} of a prompt beside the region and the text; give fewer words"
                )
        for name in options.categories or ():
            check_text(name, "categories")
        attributes = read_attributes(options.attributes or [])
        for attribute in attributes:
            check_text(attribute["name"], "attributes")
        self.check_texts("category", category_texts(options.categories or ()), options.categories or ())
        texts, owners = attribute_texts(attributes)
        self.check_texts("attribute", texts, [attributes[owner]["name"] for owner in owners])

    def check_texts(self, kind: str, texts: Sequence[str], names: Sequence[str]) -> None:
        """ValueError where the text encoder would cut a text off; names: of what each of them says."""
        limit = self.config.text_config.max_position_embeddings
        for text, name in zip(texts, names, strict=True):
            if (
                surely_fits(text, limit)
                or (tokens := len(self.text_tokenizer(text, verbose=False)["input_ids"])) <= limit
            ):
                continue
            raise ValueError(
                f"{kind} {shown(name)}: {tokens:,} tokens; the text encoder holds at most {limit}; give a shorter name"
            )

    def prompt_lengths(self, words: Sequence[Sequence[str]]) -> list[int]:
        """Tokens of the prompts that these control words make."""
        if not words:
            return []
        encoded = self.tokenizer([control_prompt(some) for some in words], verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def fitting_words(self, control: Control, predicted: Sequence[str], room: int, name: str) -> list[str]:
        """Control words of one region, with as many of the predicted tags, the likeliest first, as the language model
        has room for; those left out are told of. ValueError where the user's own words are too many."""
        words, count = parse_control(control, predicted), len(predicted)
        if surely_fits(control_prompt(words), room):
            return words
        while (tokens := self.prompt_lengths([words])[0]) > room:
            if not count:
                raise ValueError(
                    f"region {name}: control of {len(words):,} words, {tokens:,} tokens; the language model holds at "
                    f"most {room:,} of a prompt beside the region and the text; give fewer words"
                )
            count = min(count - 1, count * max(room, 0) // tokens)
            words = parse_control(control, predicted[:count])
        if count < len(predicted):
            warnings.warn(
                f"region {name}: the prompt holds {count:,} of {len(predicted):,} predicted tags; a higher "
                "tag_threshold predicts less",
                stacklevel=2,
            )
        return words

    def decode(self, ids: Tensor) -> list[str]:
        """Generated token ids (R, T) -> texts."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def shown_pixels(view_boxes: np.ndarray) -> list[tuple]:
    """A key for the pixels that each view of one picture shows: R of V keys, which another picture's never equal."""
    picture = object()
    return [tuple((picture, *box) for box in row) for row in view_boxes.astype(int).tolist()]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids and mask (N, T), padded on the right; at least one column."""
    longest = max([1, *(len(row) for row in rows)])
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids, mask


def surely_fits(text: str, limit: int) -> bool:
    """Whether a text has at most so many tokens, without asking a tokenizer: but for start, end and the mark of a first
    word, a token is at least a byte.

    >>> surely_fits("red,cup|", 11), surely_fits("red,cup|", 10)
    (True, False)
    """
    return len(text.encode()) + 3 <= limit


def says_side(captions: Sequence[str]) -> bool:
    """Whether a caption speaks of left or right, which a mirrored picture would make a lie."""
    return any(word in SIDE_WORDS for caption in captions for word in caption.lower().split())


def mirrored(views: np.ndarray, region_boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views (V, 3, S, S) and the region's boxes in them (V, 4), left and right exchanged."""
    flipped = region_boxes.copy()
    flipped[:, [0, 2]] = views.shape[-1] - region_boxes[:, [2, 0]]
    return np.ascontiguousarray(views[..., ::-1]), flipped


def jitter_boxes(
    boxes: np.ndarray, amount: float, image_hw: tuple[int, int], generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Moves every side of each box by up to `amount` of the box's width or height, inside the image."""
    height, width = image_hw
    noise = np.stack([generator.uniform(-amount, amount, 4) for generator in generators])
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + noise * sizes
    return np.clip(moved, 0, [width, height, width, height]).astype(np.float32)


AutoProcessor.register(DynReferConfig, DynReferProcessor, exist_ok=True)
