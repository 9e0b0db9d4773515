"""Turns of a conversation -> token ids, in the base's own chat format, with frames, mentions and what is learnt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from dynrefer.errors import cut, first_line
from dynrefer.mentions import Piece

from .bases import BaseKind
from .batch import IGNORED

REGION = "<|region|>"  # stands for a mention while a text becomes tokens; its embedding is never looked at

# of a base that brings none; as LLaVA's
TEMPLATE = """{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' }}\
{% for part in message.content %}{% if part.type == 'image' %}PICTURE{{ '\n' }}{% else %}{{ part.text }}{% endif %}\
{% endfor %}{{ ' ' }}{% else %}{{ 'ASSISTANT: ' }}{% for part in message.content %}{{ part.text }}{% endfor %}\
{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def chat_template(kind: BaseKind) -> str:
    return TEMPLATE.replace("PICTURE", "".join(kind.special))


@dataclass
class ChatTurn:
    """A question, words and regions in order, and its answer; None: it is still to be given."""

    question: Sequence[Piece]
    answer: str | None = None


@dataclass
class ChatText:
    """One conversation as tokens, lists of T numbers each; see `TextRows`. start: where the last answer begins."""

    ids: list[int]
    mentions: list[int]
    labels: list[int]
    start: int


class ChatWriter:
    """Writes conversations as a base was trained to read them.

    tokenizer: the base's, with its chat template; REGION is added to it, which changes no other token. image_token: id
    of the token that stands for a frame's tokens.
    """

    def __init__(self, tokenizer, image_token: int):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_tokens([REGION], special_tokens=True)
        self.tokenizer, self.image_token = tokenizer, image_token
        self.region_token = tokenizer.convert_tokens_to_ids(REGION)
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        self.begins = first if first == [tokenizer.bos_token_id] else []

    def text(self, turns: Sequence[ChatTurn], frame_tokens: Sequence[int]) -> ChatText:
        """Turns about some frames. frame_tokens: of each frame, how many tokens it has.

        ValueError for a text that holds a token of pictures or regions, and for a chat template that rewrites turns.
        """
        messages, written, found = [], "", ChatText([], [], [], 0)
        for number, turn in enumerate(turns):
            frames = list(frame_tokens) if number == 0 else []
            words = "".join(REGION if isinstance(piece, int) else piece for piece in turn.question)
            parts = [*({"type": "image"} for _ in frames), {"type": "text", "text": words}]
            messages.append({"role": "user", "content": parts})
            written = self.add(found, written, self.render(messages, True), turn, frames)
            found.start = len(found.ids)
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
                written = self.add_answer(found, written, self.render(messages, False))
        return found

    def render(self, messages: list[dict], question: bool) -> str:
        return self.tokenizer.apply_chat_template(
            copy.deepcopy(messages), tokenize=False, add_generation_prompt=question
        )

    def new_tokens(self, before: str, after: str) -> list[int]:
        """Tokens of what a conversation gained."""
        if not after.startswith(before):
            raise ValueError(
                f"chat template: it rewrites what was said before, {cut(before)!r} is no longer the beginning; set the "
                "tokenizer's chat_template to one that only adds turns"
            )
        ids = self.tokenizer(after[len(before) :], add_special_tokens=False, verbose=False)["input_ids"]
        return ids if before or ids[: len(self.begins)] == self.begins else self.begins + ids

    def add(self, text: ChatText, before: str, after: str, turn: ChatTurn, frames: list[int]) -> str:
        """A question's tokens; nothing of them is learnt."""
        ids, named = self.new_tokens(before, after), [piece for piece in turn.question if isinstance(piece, int)]
        for token, wanted in ((self.image_token, len(frames)), (self.region_token, len(named))):
            if ids.count(token) != wanted:
                word = self.tokenizer.convert_ids_to_tokens(token)
                raise ValueError(
                    f"question: {ids.count(token)} times {word!r} in the text, {wanted} expected; it stands for "
                    f"{'a picture' if token == self.image_token else 'a region'}, write it otherwise"
                )
        counts, regions = iter(frames), iter(named)
        for token in ids:
            repeated = next(counts) if token == self.image_token else 1
            text.ids += [self.tokenizer.pad_token_id if token == self.region_token else token] * repeated
            text.mentions += [next(regions) if token == self.region_token else -1] * repeated
            text.labels += [IGNORED] * repeated
        return after

    def add_answer(self, text: ChatText, before: str, after: str) -> str:
        """An answer's tokens, learnt up to the one that ends it."""
        ids, end = self.new_tokens(before, after), self.tokenizer.eos_token_id
        if self.region_token in ids or self.image_token in ids:
            raise ValueError(
                f"answer {cut(after[len(before) :])!r}: it holds a token of pictures or regions; leave it out"
            )
        if end not in ids:
            ids = [*ids, end]
        learnt = ids.index(end) + 1
        text.ids += ids
        text.mentions += [-1] * len(ids)
        text.labels += ids[:learnt] + [IGNORED] * (len(ids) - learnt)
        return after

    def decode(self, ids) -> list[str]:
        """Token ids (N, T) -> texts."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def check_template(tokenizer, what: str) -> None:
    """ValueError where a tokenizer's chat template cannot write a conversation."""
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], tokenize=False
        )
    except Exception as error:  # a template raises what its author wrote
        raise ValueError(f"{what}: its chat template cannot be used ({first_line(error)}); give it another") from error
