"""Texts token by token, greedy, drawn or by beam search, where a text that has ended leaves the batch.

The texts and their log probabilities are those of transformers' `generate`, which prepares all (`custom_generate`). The
loop is here: a prompt is read once whatever the beams, nothing is kept of the scores of other words, and the rows of a
text that can become no other are taken out of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel
from transformers import generation as hf
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

# Those that look at each row by itself and leave log probabilities at 0 or below.
ROW_BY_ROW = (
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.NoBadWordsLogitsProcessor,
    hf.NoRepeatNGramLogitsProcessor,
    hf.SuppressTokensLogitsProcessor,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.LogitNormalization,
    hf.InfNanRemoveLogitsProcessor,
)
BEAM_SETTINGS = ("num_beams", "length_penalty", "early_stopping")
OTHER_SETTINGS = ("num_beam_groups", "diversity_penalty", "penalty_alpha", "dola_layers", "constraints", "max_time")
DEAD = -1e9  # log probability of a beam that is none


class Unfit(Exception):
    """Settings, or a cache, that only transformers' own loop knows."""


def decode(model: PreTrainedModel, settings: Mapping[str, Any], **inputs: Any) -> tuple[Tensor, Tensor]:
    """Token ids (R, T) and the sum of log probabilities of each text, its end token included, (R,).

    settings: transformers' generation options; inputs: of its `generate`. Raises Unfit where its own loop is needed.
    """

    def of(name: str, default: Any) -> Any:
        value = settings.get(name, getattr(model.generation_config, name, None))
        return default if value is None else value

    beams, drawn = of("num_beams", 1), of("do_sample", False)
    if (beams > 1 and drawn) or not of("use_cache", True) or any(of(name, None) for name in OTHER_SETTINGS):
        raise Unfit
    search = Beams(beams, float(of("length_penalty", 1.0)), of("early_stopping", False)) if beams > 1 else Single(drawn)

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        known = (hf.MaxLengthCriteria, hf.EosTokenCriteria)
        others = [rule for rule in stopping_criteria if not isinstance(rule, known)]
        if others or any(type(one) not in ROW_BY_ROW for one in logits_processor):
            raise Unfit
        ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        ends = input_ids.new_empty(0) if ends is None else ends
        pad = 0 if pad is None else int(pad)
        rows = Rows(model, input_ids, logits_processor, kwargs)
        return search(rows, ends, pad, generation_config.max_length - input_ids.shape[1])

    given = {name: value for name, value in settings.items() if name not in BEAM_SETTINGS}
    # not among several processes, whose weights may be gathered for each layer and given back
    with nullcontext() if dist.is_available() and dist.is_initialized() else torch.inference_mode():
        ids, total = model.generate(**inputs, **given, num_beams=1, custom_generate=loop)
    return ids.clone(), total.clone()


class Rows:
    """The rows of a batch that are still written, with their cache. `texts`: their ids so far (N, T)."""

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, processors: LogitsProcessorList, kwargs: dict[str, Any]
    ) -> None:
        self.model, self.texts, self.start, self.kwargs = model, ids, ids, kwargs
        self.processors, self.is_first = processors, True
        if getattr(model, "_reorder_cache", None) is not None:
            raise Unfit

    def logits(self) -> Tensor:
        """(N, W) float32 of what comes next."""
        length = {} if self.is_first else {"next_sequence_length": 1}
        inputs = self.model.prepare_inputs_for_generation(
            self.texts, is_first_iteration=self.is_first, **length, **self.kwargs
        )
        output = self.model(**inputs, return_dict=True)
        self.kwargs = self.model._update_model_kwargs_for_generation(
            output, self.kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        if self.is_first:
            self.kwargs.pop("inputs_embeds", None)
            if not _can_lose_rows(self.cache()):
                raise Unfit
        self.is_first = False
        return output.logits[:, -1].float()

    def cache(self) -> Cache:
        return next(value for value in self.kwargs.values() if isinstance(value, Cache))

    def add(self, tokens: Tensor) -> None:
        """tokens (N,): the next of each row."""
        self.texts = torch.cat([self.texts, tokens[:, None]], 1)

    def repeat(self, times: int) -> None:
        """Every row becomes so many, side by side."""
        self.texts = self.texts.repeat_interleave(times, 0)
        self.kwargs = _each(self.kwargs, lambda value: value.repeat_interleave(times, 0))
        self.cache().batch_repeat_interleave(times)

    def keep(self, places: Tensor) -> None:
        """Only these rows, in this order."""
        self.texts = self.texts[places]
        self.kwargs = _each(self.kwargs, lambda value: value[places])
        self.cache().batch_select_indices(places)

    def exchange(self, places: Tensor) -> None:
        """Each row goes on with the text of another of the same prompt."""
        if torch.equal(places, torch.arange(len(places), device=places.device)):
            return
        self.texts = self.texts[places]
        cache = self.cache()
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        own.batch_select_indices(places)


def _each(kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Keyword arguments of a model with every tensor of rows changed."""
    changed = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dim():
            changed[name] = change(value)
        elif name == "encoder_outputs":
            changed[name] = type(value)({k: change(v) for k, v in value.items() if isinstance(v, Tensor)})
    return changed


def _can_lose_rows(cache: Cache) -> bool:
    parts = (cache,)
    if isinstance(cache, EncoderDecoderCache):
        parts = (cache.self_attention_cache, cache.cross_attention_cache)
    return all(type(part) is DynamicCache and all(type(one) is DynamicLayer for one in part.layers) for part in parts)


class Single:
    """One text a row: the likeliest word after another, or words that are drawn."""

    def __init__(self, drawn: bool):
        self.drawn = drawn

    def __call__(self, rows: Rows, ends: Tensor, pad: int, longest: int) -> tuple[Tensor, Tensor]:
        start = rows.start
        texts = start.new_full((start.shape[0], longest), pad)
        total = torch.zeros(start.shape[0], device=start.device)
        live = torch.arange(start.shape[0], device=start.device)  # of each row that is left, which it was
        for step in range(longest):
            scores = rows.processors(rows.texts, rows.logits()).log_softmax(-1)
            if self.drawn:
                tokens = torch.multinomial(scores.exp(), 1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            total[live] += scores.gather(1, tokens[:, None]).squeeze(1)
            texts[live, step] = tokens
            rows.add(tokens)
            left = (~torch.isin(tokens, ends)).nonzero().squeeze(1)
            if not len(left):
                break
            if len(left) < len(live):
                live = live[left]
                rows.keep(left)
        return torch.cat([start, texts[:, : step + 1]], 1), total


class Beams:
    """Beam search as transformers does it, of which the best text alone is wanted.

    A row has ended where transformers lets no text of it be exchanged any more, and already where no beam can become
    better than the best text, whose log probability only falls: the two give the same text.
    """

    def __init__(self, beams: int, length_penalty: float, early_stopping: bool | str):
        self.beams, self.penalty, self.early = beams, length_penalty, early_stopping

    def __call__(self, rows: Rows, ends: Tensor, pad: int, longest: int) -> tuple[Tensor, Tensor]:
        beams, start = self.beams, rows.start
        count, prompt, device = start.shape[0], start.shape[1], start.device
        texts = start.new_full((count, longest), pad)
        total = torch.zeros(count, device=device)
        live = torch.arange(count, device=device)
        running = torch.full((count, beams), DEAD, device=device)
        running[:, 0] = 0
        ended = torch.full((count, beams), DEAD, device=device)  # scores of the best texts that ended, the best first
        kept = max(2, 1 + len(ends)) * beams
        most = 0
        for step in range(longest):
            log_probs = rows.logits().log_softmax(-1)
            log_probs = rows.processors(rows.texts, log_probs)
            if step == 0:
                rows.repeat(beams)
                log_probs = log_probs.repeat_interleave(beams, 0)
            words = log_probs.shape[-1]
            sums = (log_probs.unflatten(0, (-1, beams)) + running[..., None]).flatten(1)  # (N, beams * W)
            found, places = sums.topk(kept)
            tokens = places % words
            offset = torch.arange(len(live), device=device)[:, None] * beams
            parents = torch.div(places, words, rounding_mode="floor") + offset  # rows
            ends_here = torch.isin(tokens, ends) if step + 1 < longest else torch.ones_like(tokens, dtype=torch.bool)
            if ends_here[:, :beams].any():
                scores = (found / (step + 1) ** self.penalty)[:, :beams].masked_fill(~ends_here[:, :beams], DEAD)
                if self.early is True:
                    scores = scores.masked_fill((ended > DEAD / 2).all(1, keepdim=True), DEAD)
                best, which = scores.max(1)
                number = (best > ended[:, 0]).nonzero().squeeze(1)
                if len(number):
                    which, row = which[number], live[number]
                    texts[row] = pad
                    texts[row, :step] = rows.texts[parents[number, which], prompt:]
                    texts[row, step] = tokens[number, which]
                    total[row] = found[number, which]
                    most = step + 1
                ended = torch.cat([ended, scores], 1).topk(beams).values
            running, chosen = (found + ends_here * DEAD).topk(beams)  # (N, beams)
            parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
            # nothing is final before a text has ended
            left = (~self.is_final(running[:, 0], ended, step + 1, longest)).nonzero().squeeze(1) if most else None
            if step + 1 == longest or (left is not None and not len(left)):
                break
            if left is not None and len(left) < len(live):
                live, running, ended, tokens = live[left], running[left], ended[left], tokens[left]
                rows.keep(parents[left].flatten())
            else:
                rows.exchange(parents.flatten())
            rows.add(tokens.flatten())
        return torch.cat([start, texts[:, :most]], 1), total

    def is_final(self, running: Tensor, ended: Tensor, length: int, longest: int) -> Tensor:
        """Of each row (N,) whether its best text stays: running (N,) log probability of the best beam, ended (N, beams)
        scores."""
        at_best = longest if self.early == "never" and self.penalty > 0 else length
        closed = running / at_best**self.penalty <= ended[:, -1]  # transformers' rule
        if self.early is True:
            closed |= (ended > DEAD / 2).all(1)
        at_best = longest if self.penalty > 0 else length
        return closed | (running / at_best**self.penalty < ended[:, 0])
