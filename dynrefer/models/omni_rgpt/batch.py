"""OmniRgptBatch: what the loader hands to the model. Frames by example, regions by sequence, texts by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100  # label of a token that is not learnt


@dataclass
class TextRows:
    """K texts, one a row, T tokens with padding at the end.

    ids, attention   (K, T) tokens; 1 for a token, 0 for padding
    mentions         (K, T) position among what it shows of the region that a token names, -1: none
    labels           (K, T) the token itself where it is learnt, else IGNORED
    starts           (K,) where the last answer begins: what is read before a model answers
    shown            (K,) which of the batch's ShownRegions a row shows
    """

    ids: Tensor
    attention: Tensor
    mentions: Tensor
    labels: Tensor
    starts: Tensor
    shown: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TextRows:
        return TextRows(**{name: value.to(device) for name, value in vars(self).items()})

    def part(self, rows: Sequence[int]) -> TextRows:
        chosen = torch.as_tensor(rows, device=self.ids.device, dtype=torch.long)
        return TextRows(**{name: value[chosen] for name, value in vars(self).items()})

    def prompts(self, pad: int) -> TextRows:
        """What stands before the last answers, with the padding at the beginning, as generation wants it."""
        width = int(self.starts.max())
        places = torch.arange(width, device=self.ids.device) - (width - self.starts)[:, None]
        known, places = places >= 0, places.clamp(min=0)
        moved = {name: getattr(self, name).gather(1, places) for name in ("ids", "mentions")}
        return replace(
            self,
            ids=moved["ids"].masked_fill(~known, pad),
            attention=known.long(),
            mentions=moved["mentions"].masked_fill(~known, -1),
            labels=torch.full_like(moved["ids"], IGNORED),
        )


@dataclass
class ShownRegions:
    """Regions of one example on its T frames, those of texts that are shown the same.

    marks (R,)       which Token Mark is a region's
    cover            (R, T, h, w) share of each cell that is its own, where somebody said where it is
    shown, known     (T,) bool: frames on which marks are laid; frames that the guide head learns
    frames           numbers of the frames in their clip
    """

    marks: Tensor
    cover: Tensor
    shown: Tensor
    known: Tensor
    frames: list[int]

    def to(self, device: torch.device | str) -> ShownRegions:
        return ShownRegions(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})


@dataclass
class OmniRgptBatch:
    """Some examples with I ids, F frames, N times regions on frames and K texts in all.

    ids            I names: a region's, a conversation's, or a question's; boxes (I, 4) image pixels
    pixels         what the base's vision encoder reads of all frames, by name
    grids, tokens  F rows and columns of tokens; how many tokens each frame has
    shown, frames  N: regions; which of the F frames they are on
    rows           the texts
    answer_rows    (I,) the row that answers an id, -1: none, in training
    places         (I, 2) what an id's text shows, and the position of its region there, -1: none
    choices        I lists: of an id with choices, the answers of as many rows, from its answer row on; [] of others
    """

    ids: list[str]
    boxes: Tensor
    pixels: dict[str, Tensor]
    grids: list[tuple[int, int]]
    tokens: list[int]
    shown: list[ShownRegions]
    frames: list[range]
    rows: TextRows
    answer_rows: Tensor
    places: Tensor
    choices: list[list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> OmniRgptBatch:
        return replace(
            self,
            boxes=self.boxes.to(device),
            pixels={name: value.to(device) for name, value in self.pixels.items()},
            shown=[each.to(device) for each in self.shown],
            rows=self.rows.to(device),
        )

    def counts(self) -> dict[str, float]:
        guided = sum(int(each.known.sum()) * each.cover[0, 0].numel() for each in self.shown if len(each.cover))
        return {"captions": float((self.rows.labels != IGNORED).sum()), "guide": float(guided)}

    def leave_out(self, tasks: Sequence[str], rows: slice = slice(None)) -> None:
        """Takes "captions" of the texts that answer some ids, or "masks", by which the guide head learns, of their
        frames."""
        answers = self.answer_rows[rows]
        if "captions" in tasks:
            self.rows.labels[answers[answers >= 0]] = IGNORED
        if "masks" in tasks:
            for number in set(self.places[rows, 0].tolist()):
                self.shown[number].known[:] = False
