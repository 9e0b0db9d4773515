"""Texts that show the same frames as one sequence: the frames once, and the texts behind them one after another.

    rows, one a text          packed
    f f f a a a               f f f a a a b b       positions 0 1 2 3 4 5 3 4
    f f f b b

No text attends to another, and each goes on counting positions from the frames, so that every token sees what it sees
in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .batch import IGNORED, TextRows

MASKED = ("sdpa", "eager")  # attention that takes any mask
PAD = 0  # any token but that of frames
MOST_TOKENS = 4096  # of texts in a sequence; attention grows with the square of it


@dataclass
class PackedRows:
    """rows: N sequences of L tokens, as rows of one text each; labels of the first token of a text are never learnt.

    segments   (N, L) 0: frames and what stands before them, 1, 2, ...: the texts, -1: padding
    positions  (N, L), or (3, N, L) of a base whose positions are rows and columns
    """

    rows: TextRows
    segments: Tensor
    positions: Tensor

    def mask(self, dtype: torch.dtype | None) -> Tensor:
        """(N, 1, L, L) which tokens a token attends to; dtype: as what is added to the scores, None: as bool."""
        of, by = self.segments[:, None, :], self.segments[:, :, None]
        length = self.segments.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=of.device).tril()
        allowed = before & ((of == 0) | (of == by)) & (of >= 0)
        allowed |= torch.eye(length, dtype=torch.bool, device=of.device)  # padding sees itself: of nothing comes NaN
        allowed = allowed[:, None]
        if dtype is None:
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=of.device).masked_fill(~allowed, torch.finfo(dtype).min)


def why_not(config: PreTrainedConfig) -> str | None:
    """What hinders a language model of this config from reading packed rows, None: nothing."""
    text = config.get_text_config()
    if text._attn_implementation not in MASKED:
        return f"attention {text._attn_implementation!r} takes no mask that keeps them apart; {' and '.join(MASKED)} do"
    layers = getattr(text, "layer_types", None)
    if any(kind != "full_attention" for kind in layers) if layers else getattr(text, "sliding_window", None):
        return "its attention looks through a window"
    return None


def pack_rows(rows: TextRows, positions: Tensor | None, image_token: int) -> PackedRows | None:
    """Rows as few sequences; None where nothing can be put together. positions (..., K, T): of rows that do not count
    from 0. Texts of a sequence have at most MOST_TOKENS tokens, or are one."""
    ends = frame_ends(rows, image_token)
    lengths = rows.attention.sum(1).tolist()
    groups = list(grouped(rows, ends, lengths))
    if len(groups) == len(rows):
        return None
    width = max(len(places) for places, _ in groups)
    device = rows.ids.device
    row, column = (torch.zeros(len(groups), width, dtype=torch.long) for _ in range(2))
    segments = torch.full((len(groups), width), -1)
    for n, (places, own) in enumerate(groups):
        row[n, : len(places)], column[n, : len(places)] = torch.tensor(places).T
        segments[n, : len(places)] = torch.tensor(own)
    row, column, segments = row.to(device), column.to(device), segments.to(device)
    known = segments >= 0
    packed = TextRows(
        ids=rows.ids[row, column].masked_fill(~known, PAD),
        attention=known.long(),
        mentions=rows.mentions[row, column].masked_fill(~known, -1),
        labels=rows.labels[row, column].masked_fill(~known, IGNORED),
        starts=known.sum(1),
        shown=rows.shown[row[:, 0]],
    )
    positions = column if positions is None else positions[..., row, column]
    return PackedRows(packed, segments, positions.masked_fill(~known, 0))


def frame_ends(rows: TextRows, image_token: int) -> list[int]:
    """Of each row the place behind the last token of its frames, (K,)."""
    visual = rows.ids == image_token
    places = torch.arange(1, visual.shape[1] + 1, device=visual.device)
    return (visual * places).amax(1).tolist()


def grouped(rows: TextRows, ends: list[int], lengths: list[int]) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """Of each sequence the (row, column) of its tokens and their segments."""
    waiting: dict[int, list[int]] = {}  # rows by what they show
    for number, shown in enumerate(rows.shown.tolist()):
        waiting.setdefault(shown, []).append(number)
    for numbers in waiting.values():
        first, places, segments, room = numbers[0], [], [], 0
        for number in numbers:
            end, length = ends[number], lengths[number]
            fits = places and length - end <= room and joins(rows, first, number, ends)
            if not fits:
                if places:
                    yield places, segments
                first, room = number, MOST_TOKENS
                places, segments = [(number, column) for column in range(end)], [0] * end
            places += [(number, column) for column in range(end, length)]
            segments += [segments[-1] + 1] * (length - end)
            room -= length - end
        yield places, segments


def joins(rows: TextRows, first: int, number: int, ends: list[int]) -> bool:
    """Whether a row begins as another one, and its text with a token that is not learnt."""
    end = ends[number]
    same = ends[first] == end and torch.equal(rows.ids[first, :end], rows.ids[number, :end])
    return same and bool(rows.labels[number, end] == IGNORED)
