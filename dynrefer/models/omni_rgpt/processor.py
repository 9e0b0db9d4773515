"""Examples and questions -> OmniRgptBatch, and token ids -> text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from dynrefer.data.clips import ClipRegion, clip_frames
from dynrefer.data.example import Example
from dynrefer.masks import to_mask
from dynrefer.mentions import asks_each, check_all_named, split_mentions

from ..language import most_positions
from ..saved_processor import SavedProcessor
from .bases import FrameReader, ReadFrames
from .batch import IGNORED, OmniRgptBatch, ShownRegions, TextRows
from .configuration import OmniRgptConfig
from .marks import coverage, draw_marks, rectangle, resize_mask, strengthen
from .options import Options
from .other_regions import place_in_words
from .texts import ChatText, ChatTurn, ChatWriter

FrameMask = Callable[[int | None], np.ndarray | None]  # number of a frame, None of a picture -> a region in it
DEFAULT_TEXT = 20  # transformers' max_new_tokens


class OmniRgptProcessor(SavedProcessor):
    """Everything between an example and a batch. Sizes and questions come from the model's config.

    tokenizer: the base's, with its chat template.
    """

    config_class = OmniRgptConfig

    def __init__(self, config: OmniRgptConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.reader = FrameReader(config)
        self.texts = ChatWriter(tokenizer, config.base_config.image_token_id)

    # ------------------------------------------------------------------------------------------ samples

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample of the whole example; several of one that has more regions than there are marks, or where texts
        show the marks of their own regions only."""
        if not example.regions and options.question is None:
            return []
        numbers = self.frame_numbers(example.regions, train)
        frames, size = self.frames(example, numbers)
        masks = RegionMasks(example.regions, size, self.config.box_prompts, generators if train else None)
        found = []
        for group in self.groups(len(example.regions), options.question):
            regions = [example.regions[position] for position in group]
            drawn = [generators[position] for position in group]
            sample = self.place(regions, [masks.of(position) for position in group], frames, numbers, options.tracklet)
            sample |= {"marks": self.marks(len(group), drawn)}
            sample |= self.questions(example, regions, options, drawn, frames.tokens, train)
            found.append(sample | {"frames": frames, "numbers": numbers})
        return found

    def results(self, example: Example, options: Options) -> int:
        """One a region; one of a question about a picture without regions."""
        return len(example) or int(options.question is not None)

    def groups(self, num_regions: int, question: str | None) -> list[range]:
        """Positions of regions that are shown together."""
        if question is not None and not asks_each(question) or not num_regions:
            return [range(num_regions)]
        most = self.config.num_marks if self.config.marks == "all" else 1
        return [range(start, min(start + most, num_regions)) for start in range(0, num_regions, most)]

    def marks(self, num_regions: int, generators: Sequence[np.random.Generator]) -> Tensor:
        """(R,) by the first region's generator: the same seed, epoch and record draw the same."""
        config = self.config
        drawn = draw_marks(num_regions, config.num_marks, config.mark_draw, generators[0] if generators else None)
        return torch.from_numpy(drawn)

    # ------------------------------------------------------------------------------------------ frames

    def frame_numbers(self, regions: Sequence[Any], train: bool) -> list[int]:
        """Frames of a clip, from the prompt frame on; [0] of a picture. ValueError for a clip without frames."""
        if not regions or not isinstance(regions[0], ClipRegion):
            return [0]
        clip, count = regions[0], self.config.num_frames
        if not clip.prompt_frame < clip.end_frame <= clip.num_frames:
            raise ValueError(
                f"region {clip.id}: prompt_frame {clip.prompt_frame} of a clip that ends before frame {clip.end_frame} "
                f"of {clip.num_frames}; the region is shown first, so give a clip that begins with it"
            )
        if train and self.config.annotated_frames:
            known = set(clip.frames).intersection(*(other.frames for other in regions[1:]))
            known = sorted(index for index in known if clip.prompt_frame <= index < clip.end_frame)
            if len(known) >= count:
                return [known[int(place + 0.5)] for place in np.linspace(0, len(known) - 1, count).tolist()]
        return clip_frames(clip, count)

    def frames(self, example: Example, numbers: Sequence[int]) -> tuple[ReadFrames, tuple[int, int]]:
        """What the base reads of an example, and the (height, width) that its frames were resized to."""
        clip = example.regions and isinstance(example.regions[0], ClipRegion)
        pictures = example.frames(numbers) if clip else example.frames()
        size = self.reader.size(pictures.shape[1:3])
        resized = [
            np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC)) for picture in pictures
        ]
        return self.reader.read(resized), size

    def place(
        self,
        regions: Sequence[Any],
        masks: Sequence[FrameMask],
        frames: ReadFrames,
        numbers: list[int],
        tracklet: bool,
    ) -> dict:
        """Where regions are on the frames: cover (R, T, h, w), shown (T,), known (T,)."""
        grid, clip = frames.grids[0], bool(regions) and isinstance(regions[0], ClipRegion)
        cover = torch.zeros(len(regions), len(numbers), *grid)
        known = torch.zeros(len(numbers), dtype=torch.bool)
        shown = torch.zeros(len(numbers), dtype=torch.bool)
        for t, number in enumerate(numbers):
            found = [mask(number if clip else None) for mask in masks]
            prompt = t == 0
            said = bool(regions) and all(mask is not None for mask in found)
            shown[t] = prompt or tracklet and said
            known[t] = clip and said and (not prompt or self.config.guide_prompt_frame)
            if not said or not (shown[t] or known[t]):
                continue
            cover[:, t] = coverage(torch.from_numpy(np.stack(found)), grid)
            if prompt:
                for region, mask in zip(regions, found, strict=True):
                    if not mask.any():
                        warnings.warn(
                            f"region {region.id}: nothing of its mask is left where the picture becomes "
                            f"{mask.shape[0]} x {mask.shape[1]} pixels; its mark stands in the text only",
                            stacklevel=2,
                        )
        if self.config.least_coverage:
            cover = torch.stack([strengthen(each, self.config.least_coverage) for each in cover.unbind(1)], 1)
        return {"cover": cover, "shown": shown, "known": known}

    # ------------------------------------------------------------------------------------------ questions

    def questions(
        self,
        example: Example,
        regions: Sequence[Any],
        options: Options,
        generators: Sequence[np.random.Generator],
        frame_tokens: list[int],
        train: bool,
    ) -> dict:
        """Texts about a group of regions, and which of them answers which id."""
        names = [region.id for region in regions]
        asked, once = options.question, options.question is not None and not asks_each(options.question)
        if once:
            pieces = split_mentions(asked, names)
            check_all_named([pieces], names)
            boxes = [region.box for region in regions]
            if not names:
                names, boxes = [example.key], [(0, 0, *example.image.shape[1::-1])]
            rows = [self.text([ChatTurn(pieces)], frame_tokens, options, f"question of {names[0]}", regions)]
            places = range(len(regions)) if regions else [-1]
            return {"ids": names, "boxes": boxes, "texts": rows, "answers": [0] * len(names), "places": places}
        texts: list[ChatText] = []
        answers = []
        for position, (region, generator) in enumerate(zip(regions, generators, strict=True)):
            captions, kinds = region.captions, self.config.questions
            caption = captions[generator.integers(len(captions)) if train else 0] if captions else None
            if train and caption is None:
                answers.append(-1)
                continue
            text = asked or kinds[generator.integers(len(kinds)) if train else 0]
            pieces = split_mentions(text, names, own=position)
            answers.append(len(texts))
            turn = ChatTurn(pieces, None if asked else caption)
            texts.append(self.text([turn], frame_tokens, None if train else options, f"region {region.id}", regions))
        if not texts:  # the guide head learns of the frames all the same
            pieces = split_mentions(self.config.questions[0], names, own=0)
            texts.append(self.text([ChatTurn(pieces)], frame_tokens, None, f"region {names[0]}", regions))
        boxes, places = [region.box for region in regions], range(len(regions))
        return {"ids": names, "boxes": boxes, "texts": texts, "answers": answers, "places": places}

    def text(
        self,
        turns: Sequence[ChatTurn],
        frame_tokens: list[int],
        options: Options | None,
        what: str,
        regions: Sequence[Any] = (),
    ) -> ChatText:
        """ValueError for a conversation that the language model cannot hold. options: of a text that is answered;
        regions: those that its turns name."""
        if self.config.regions == "words":
            places = [place_in_words(region.box, region.image_hw) for region in regions]
            turns = [
                replace(turn, question=[places[piece] if isinstance(piece, int) else piece for piece in turn.question])
                for turn in turns
            ]
        text = self.texts.text(turns, frame_tokens)
        limit = most_positions(self.config.base_config)
        new = 0
        if options is not None:
            new = {**self.config.generation, **options.decoding()}.get("max_new_tokens", DEFAULT_TEXT)
        length = max(len(text.ids), text.start + new)
        if limit is not None and length > limit:
            raise ValueError(
                f"{what}: {len(text.ids):,} tokens, {sum(frame_tokens):,} of them of {len(frame_tokens)} frames, and "
                f"{new} for the answer, but the language model holds {limit:,}; give a shorter text, or a model with "
                "smaller or fewer frames"
            )
        return text

    # ------------------------------------------------------------------------------------------ batches

    def collate(self, samples: Sequence[dict]) -> OmniRgptBatch:
        """Samples of any examples -> one batch; of none: a batch without regions."""
        frames = [sample["frames"] for sample in samples]
        names = frames[0].pixels if frames else {}
        answers, start = [], 0
        for sample in samples:
            answers += [row + start if row >= 0 else -1 for row in sample["answers"]]
            start += len(sample["texts"])
        boxes = [box for sample in samples for box in sample["boxes"]]
        return OmniRgptBatch(
            ids=[name for sample in samples for name in sample["ids"]],
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            pixels={name: torch.cat([each.pixels[name] for each in frames]) for name in names},
            grids=[grid for each in frames for grid in each.grids],
            tokens=[count for each in frames for count in each.tokens],
            shown=[
                ShownRegions(
                    sample["marks"], sample["cover"], sample["shown"], sample["known"].clone(), sample["numbers"]
                )
                for sample in samples
            ],
            rows=self.rows([(text, n) for n, sample in enumerate(samples) for text in sample["texts"]]),
            answer_rows=torch.tensor(answers, dtype=torch.long),
            places=torch.tensor([place for sample in samples for place in sample["places"]], dtype=torch.long),
        )

    def rows(self, texts: Sequence[tuple[ChatText, int]]) -> TextRows:
        """Texts with the numbers of their examples, padded to one length."""
        width = max((len(text.ids) for text, _ in texts), default=0)
        fills = {"ids": self.tokenizer.pad_token_id, "attention": 0, "mentions": -1, "labels": IGNORED}
        arrays = {name: np.full((len(texts), width), fill) for name, fill in fills.items()}
        for row, (text, _) in enumerate(texts):
            values = {"ids": text.ids, "attention": 1, "mentions": text.mentions, "labels": text.labels}
            for name, value in values.items():
                arrays[name][row, : len(text.ids)] = value
        return TextRows(
            **{name: torch.from_numpy(array).long() for name, array in arrays.items()},
            starts=torch.tensor([text.start for text, _ in texts], dtype=torch.long),
            examples=torch.tensor([number for _, number in texts], dtype=torch.long),
        )


class RegionMasks:
    """Masks of an example's regions in the size of its frames, made when they are asked for.

    box_prompts, generators: in training a region with a mask is its box instead, with this probability.
    """

    def __init__(
        self,
        regions: Sequence[Any],
        size: tuple[int, int],
        box_prompts: float,
        generators: Sequence[np.random.Generator] | None,
    ):
        self.regions, self.size = regions, size
        draw = generators is not None and box_prompts > 0
        self.as_box = [draw and generators[r].random() < box_prompts for r in range(len(regions))]

    def of(self, position: int) -> FrameMask:
        """A function: number of a frame, None of a picture -> bool (h, w) of a region in it, or None where nobody said
        where it is. The region is nowhere in a frame that was looked at without finding it."""
        region, as_box = self.regions[position], self.as_box[position]

        def mask(number: int | None) -> np.ndarray | None:
            place = region if number is None else region.frames.get(number, ...)
            if place is ...:
                return None
            if place is None:
                return np.zeros(self.size, bool)
            if place.mask is None or as_box:
                whole = rectangle(place.box, region.image_hw)
            else:
                whole = to_mask(place.mask, region.image_hw)
            return resize_mask(whole, self.size)

        return mask


AutoProcessor.register(OmniRgptConfig, OmniRgptProcessor, exist_ok=True)
