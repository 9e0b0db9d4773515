"""Examples and questions -> OmniRgptBatch, and token ids -> text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from dynrefer.data.clips import clip_frames
from dynrefer.data.example import Example
from dynrefer.masks import to_mask
from dynrefer.mentions import split_mentions

from ..language import most_positions
from ..saved_processor import SavedProcessor
from .bases import FrameReader, ReadFrames
from .batch import IGNORED, OmniRgptBatch, ShownRegions, TextRows
from .configuration import OmniRgptConfig
from .marks import coverage, draw_marks, rectangle, resize_mask, strengthen
from .options import Options
from .other_regions import place_in_words
from .sequences import Said, Seen, said_of, sequences
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

    reads_chats = True

    def samples(
        self, example: Example, options: Options, generators: Sequence[np.random.Generator], train: bool
    ) -> list[dict]:
        """One sample of the whole example: its frames, and sequences of texts with the regions that they show."""
        if not len(example) and options.question is None:
            return []
        seen = Seen.of(example, generators)
        texts = said_of(example, seen, options, generators, self.config.questions, train)
        numbers = self.frame_numbers(example, seen.regions, train)
        frames, size = self.frames(example, numbers)
        masks = RegionMasks(seen.regions, size, self.config.box_prompts, seen.generators if train else None)
        groups, answers, places, choices = [], {}, {}, {}
        for group in sequences(texts, self.config.num_marks, self.config.marks == "own"):
            shown = list(dict.fromkeys(number for text in group for number in text.regions))
            regions, local = [seen.regions[number] for number in shown], {n: k for k, n in enumerate(shown)}
            where = self.place(
                regions, [masks.of(number) for number in shown], frames, numbers, options.tracklet, example.clip
            )
            rows: list[ChatText] = []
            for text in group:
                for position in text.answers:
                    own = seen.positions[position][0] if position < len(example.regions) else None
                    places[position] = len(groups), -1 if own is None else local[own]
                    answers[position] = -1 if text.turns is None else (len(groups), len(rows))
                    choices[position] = list(text.choices)
                writes = None if train or text.choices else options
                for turns in text.answered:
                    turns = renumbered(turns, local)
                    rows.append(self.text(turns, frames.tokens, writes, text.what, regions))
            if not rows:  # the guide head learns of the frames all the same
                pieces = split_mentions(self.config.questions[0], [regions[0].id], own=0)
                rows.append(self.text([ChatTurn(pieces)], frames.tokens, None, group[0].what, regions))
            groups.append({**where, "marks": self.marks(len(shown), group[0]), "texts": rows})
        records = example.records
        ids, boxes = [record.id for record in records], [record.box for record in records]
        if not records:
            ids, boxes = [example.key], [(0, 0, *example.image.shape[1::-1])]
        order = range(len(ids))
        return [
            {
                "frames": frames,
                "numbers": numbers,
                "groups": groups,
                "ids": ids,
                "boxes": boxes,
                "answers": [answers[position] for position in order],
                "places": [places[position] for position in order],
                "choices": [choices[position] for position in order],
            }
        ]

    def results(self, example: Example, options: Options) -> int:
        """One a record; one of a question about a picture without regions."""
        return len(example) or int(options.question is not None)

    def marks(self, num_regions: int, first: Said) -> Tensor:
        """(R,) by the first text's generator: the same seed, epoch and record draw the same."""
        count, how = self.config.num_marks, self.config.mark_draw
        return torch.from_numpy(draw_marks(num_regions, count, how, first.generator, first.what))

    # ------------------------------------------------------------------------------------------ frames

    def frame_numbers(self, example: Example, regions: Sequence[Any], train: bool) -> list[int]:
        """Frames of a clip, from the prompt frame on; [0] of a picture. ValueError for a clip without frames."""
        clip, count = example.clip, self.config.num_frames
        if clip is None:
            return [0]
        if not clip.prompt_frame < clip.end_frame <= clip.num_frames:
            raise ValueError(
                f"record {clip.id}: prompt_frame {clip.prompt_frame} of a clip that ends before frame {clip.end_frame} "
                f"of {clip.num_frames}; regions are shown first, so give a clip that begins with them"
            )
        if train and self.config.annotated_frames and regions:
            known = set(regions[0].frames).intersection(*(other.frames for other in regions[1:]))
            known = sorted(index for index in known if clip.prompt_frame <= index < clip.end_frame)
            if len(known) >= count:
                return [known[int(place + 0.5)] for place in np.linspace(0, len(known) - 1, count).tolist()]
        return clip_frames(clip, count)

    def frames(self, example: Example, numbers: Sequence[int]) -> tuple[ReadFrames, tuple[int, int]]:
        """What the base reads of an example, and the (height, width) that its frames were resized to."""
        pictures = example.frames() if example.clip is None else example.frames(numbers)
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
        clip: Any,
    ) -> dict:
        """Where regions are on the frames: cover (R, T, h, w), shown (T,), known (T,)."""
        grid, clip = frames.grids[0], clip is not None
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

    # ------------------------------------------------------------------------------------------ texts

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
        """Samples of any examples -> one batch; of none: a batch without records."""
        frames = [sample["frames"] for sample in samples]
        names = frames[0].pixels if frames else {}
        texts, answers, places, shown, numbers, start = [], [], [], [], [], 0
        for sample in samples:
            before, stop = len(shown), start + len(sample["numbers"])
            first_rows = []
            for group in sample["groups"]:
                first_rows.append(len(texts))
                texts += [(text, len(shown)) for text in group["texts"]]
                known = group["known"].clone()
                shown.append(ShownRegions(group["marks"], group["cover"], group["shown"], known, sample["numbers"]))
                numbers.append(range(start, stop))
            answers += [-1 if answer == -1 else first_rows[answer[0]] + answer[1] for answer in sample["answers"]]
            places += [(before + group, position) for group, position in sample["places"]]
            start = stop
        boxes = [box for sample in samples for box in sample["boxes"]]
        return OmniRgptBatch(
            ids=[name for sample in samples for name in sample["ids"]],
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            pixels={name: torch.cat([each.pixels[name] for each in frames]) for name in names},
            grids=[grid for each in frames for grid in each.grids],
            tokens=[count for each in frames for count in each.tokens],
            shown=shown,
            frames=numbers,
            rows=self.rows(texts),
            answer_rows=torch.tensor(answers, dtype=torch.long),
            places=torch.tensor(places, dtype=torch.long).reshape(-1, 2),
            choices=[each for sample in samples for each in sample["choices"]],
        )

    def rows(self, texts: Sequence[tuple[ChatText, int]]) -> TextRows:
        """Texts with the numbers of what they show, padded to one length."""
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
            shown=torch.tensor([number for _, number in texts], dtype=torch.long),
        )


def renumbered(turns: Sequence[ChatTurn], numbers: Mapping[int, int]) -> list[ChatTurn]:
    """Turns whose mentions count only some of the regions."""
    return [
        ChatTurn([numbers[piece] if isinstance(piece, int) else piece for piece in turn.question], turn.answer)
        for turn in turns
    ]


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
