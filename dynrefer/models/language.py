"""Language models behind two calls, `loss` and `generate`: encoder-decoder (T5 family) and decoder-only.

Both read [region embeddings projected, control words]; the control words' embeddings gain one learned vector.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, T5ForConditionalGeneration

from dynrefer.errors import first_line, shown, suggestion

from .decoding import Unfit, decode
from .folder_check import never_run

MODES = ("frozen", "lora", "full")
BATCH_PRICE = 4096  # prompt tokens that are read in the time that one more batch takes to write its texts


def token_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Summed negative log-likelihood of the target tokens. logits (R, T, W); targets, mask (R, T)."""
    kept = mask.bool()
    return F.cross_entropy(logits[kept].float(), targets[kept], reduction="sum")


def log_probability(model, output, end_ids: list[int], num_beams: int = 1, length_penalty: float = 1.0) -> Tensor:
    """Sum of the log probabilities of each generated text, its first end token included: (R,).

    output: of `model.generate` with return_dict_in_generate and output_scores; end_ids, num_beams, length_penalty:
    as it was called with.
    """
    if num_beams > 1:
        # sequences_scores is the sum of log probabilities / length ** length_penalty
        if length_penalty == 0:
            return output.sequences_scores
        scores = model.compute_transition_scores(
            output.sequences, output.scores, output.beam_indices, normalize_logits=False
        )
        return scores.nan_to_num(neginf=0).sum(-1)
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    steps = output.sequences[:, -scores.shape[1] :]
    is_end = torch.isin(steps, torch.tensor(end_ids, device=steps.device))
    finished = is_end.cumsum(1) - is_end.long() > 0  # strictly after the first end token
    return scores.masked_fill(finished, 0).sum(-1)


class UntiedT5(T5ForConditionalGeneration):
    """T5 1.1 and Flan-T5: encoder and decoder share one embedding, the output layer has a matrix of its own.

    Transformers' class knows only all of them tied or none, and files hold the shared embedding once.
    """

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        stacks = {"encoder": self.encoder.embed_tokens, "decoder": self.decoder.embed_tokens}
        inner = {name: "base_layer." if hasattr(layer, "base_layer") else "" for name, layer in stacks.items()}  # LoRA
        return {f"{name}.embed_tokens.{layer}weight": "shared.weight" for name, layer in inner.items()}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        return self._tied_weights_keys


def add_lora(model: nn.Module, settings: Mapping) -> None:
    """Puts LoRA layers into a language model, in place. ValueError for unknown settings and where a target does not
    exist in the model."""
    from peft import LoraConfig, inject_adapter_in_model

    known = [field.name for field in dataclasses.fields(LoraConfig)]
    for name in settings:
        if name not in known:
            raise ValueError(f"LoRA setting {name!r} is not one of PEFT's LoraConfig.{suggestion(name, known)}")
    if settings.get("modules_to_save") or settings.get("bias", "none") != "none":
        raise ValueError("LoRA with modules_to_save or bias: only LoRA's own layers learn; mode full trains all")
    targets = settings.get("target_modules")
    modules = dict(model.named_modules())
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in modules.items() if type(module) is nn.Linear})
    try:
        if not isinstance(targets, str | None):  # PEFT is content when one of several exists
            for target in targets:
                if not any(name == target or name.endswith(f".{target}") for name in modules):
                    raise ValueError(f"no module is called {target!r}")
        inject_adapter_in_model(LoraConfig(**{"r": 64, "lora_alpha": 128, "lora_dropout": 0.05, **settings}), model)
    except ValueError as error:
        raise ValueError(
            f"LoRA targets {targets}: {error}; give a list of names, or one regular expression for whole paths. "
            f"Linear layers of this model: {linear}"
        ) from error


def by_length(lengths: Sequence[int], price: int = BATCH_PRICE) -> list[list[int]]:
    """Positions of prompts in as many batches as make the least work: tokens read, padding among them, and `price` for
    each batch, whose texts are written by themselves.

    >>> by_length([3, 900, 4, 3], price=1000), by_length([3, 9, 4, 3], price=1000)
    ([[0, 2, 3], [1]], [[0, 1, 2, 3]])
    """
    sizes = sorted(set(lengths))
    counts = [sum(length == size for length in lengths) for size in sizes]
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n sizes: least work, and where the last batch begins
    for end in range(1, len(sizes) + 1):
        options, rows = [], 0
        for start in range(end - 1, -1, -1):
            rows += counts[start]
            options.append((best[start][0] + rows * sizes[end - 1] + price, start))
        best.append(min(options))
    groups, end = [], len(sizes)
    while end:
        start = best[end][1]
        within = set(sizes[start:end])
        groups.append([row for row, length in enumerate(lengths) if length in within])
        end = start
    return groups[::-1] or [[]]


class LanguageModel(nn.Module):
    """What both kinds share: the projection of region embeddings, the control vector, and freezing.

    config: the language model's own config; region_width: E; mode: "frozen", "lora" or "full"; lora: PEFT's LoraConfig
    fields (r, lora_alpha, lora_dropout, target_modules).
    """

    auto_class: type

    def __init__(self, config: PreTrainedConfig, region_width: int, mode: str = "frozen", lora: dict | None = None):
        super().__init__()
        untied = config.model_type == "t5" and not config.tie_word_embeddings
        self.model = (
            UntiedT5._from_config(config) if untied else self.auto_class.from_config(config, trust_remote_code=False)
        )
        width = self.model.get_input_embeddings().embedding_dim
        self.projection = nn.Linear(region_width, width)
        self.control_memory = nn.Parameter(torch.zeros(width))
        self.mode = mode
        if mode == "lora":
            add_lora(self.model, lora or {})
        self.freeze()

    def set_mode(self, mode: str, lora: Mapping | None = None) -> None:
        """Another mode than it was built with. Errors as `add_lora`."""
        if mode == "lora" and self.mode != "lora":
            add_lora(self.model, lora or {})
        self.mode = mode
        self.freeze()

    def freeze(self) -> None:
        """Only what the mode trains asks for gradients."""
        for name, parameter in self.model.named_parameters():
            trained = self.mode == "full" or (self.mode == "lora" and "lora_" in name)
            parameter.requires_grad_(trained and parameter.is_floating_point())  # quantized weights stay as they are

    def prompt(self, region_embeds: Tensor, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """region_embeds (R, Q, E); prompt_ids, prompt_mask (R, T). Returns embeddings (R, Q+T, d) and mask (R, Q+T)."""
        words = self.embed_words(prompt_ids)
        regions = self.projection(region_embeds).to(
            words
        )  # number type, and device where parts are spread over several
        embeds = torch.cat([regions, words + self.control_memory.to(words)], 1)
        return embeds, torch.cat([prompt_mask.new_ones(regions.shape[:2]), prompt_mask], 1)

    def embed_words(self, ids: Tensor) -> Tensor:
        """Token ids (R, T) -> the embeddings (R, T, d) that the prompt is made of."""
        return self.model.get_input_embeddings()(ids)

    def generate(
        self, region_embeds: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, **settings
    ) -> tuple[Tensor, Tensor]:
        """Captions and their log-probabilities. settings: transformers' generation options.

        Returns token ids (R, T) and the sum of log probabilities of each (R,). Prompts of very different lengths are
        read in batches of their own, see `by_length`.
        """
        groups = by_length(prompt_mask.sum(1).tolist())
        if len(groups) == 1:
            return self._generate(region_embeds, prompt_ids, prompt_mask, settings)
        parts = []
        for rows in groups:
            longest = int(prompt_mask[rows].sum(1).max())
            parts.append(
                self._generate(region_embeds[rows], prompt_ids[rows, :longest], prompt_mask[rows, :longest], settings)
            )
        longest = max(ids.shape[1] for ids, _ in parts)
        padded = [F.pad(ids, (0, longest - ids.shape[1]), value=self.pad_id(settings)) for ids, _ in parts]
        back = torch.tensor([row for rows in groups for row in rows], device=region_embeds.device).argsort()
        return torch.cat(padded)[back], torch.cat([score for _, score in parts])[back]

    def _generate(
        self, region_embeds: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, settings: Mapping
    ) -> tuple[Tensor, Tensor]:
        embeds, mask = self.arrange(*self.prompt(region_embeds, prompt_ids, prompt_mask))
        inputs = {"inputs_embeds": embeds, "attention_mask": mask}
        try:
            with suppress(Unfit):
                return decode(self.model, settings, **inputs)
            output = self.model.generate(**inputs, return_dict_in_generate=True, output_scores=True, **settings)
        except ValueError as error:
            raise never_run(error, f"generation {settings}") from error
        ends = self.end_ids(settings)
        return output.sequences, log_probability(
            self.model, output, ends, settings.get("num_beams", 1), settings.get("length_penalty", 1.0)
        )

    def end_ids(self, settings: Mapping) -> list[int]:
        end = settings.get("eos_token_id", self.model.generation_config.eos_token_id)
        return [] if end is None else end if isinstance(end, list) else [end]

    def pad_id(self, settings: Mapping) -> int:
        """The token behind a text that has ended."""
        pad = settings.get("pad_token_id", self.model.generation_config.pad_token_id)
        return pad if pad is not None else next(iter(self.end_ids(settings)), 0)

    def arrange(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where generation wants the padding; as it comes, for an encoder."""
        return embeds, mask


class Seq2SeqLM(LanguageModel):
    """Encoder-decoder: the prompt goes into the encoder, the caption is the decoder's target."""

    auto_class = AutoModelForSeq2SeqLM

    def embed_words(self, ids: Tensor) -> Tensor:
        return self.model.get_encoder().get_input_embeddings()(ids)  # its own LoRA layer, if any, takes part

    def loss(
        self, region_embeds: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, caption_ids: Tensor, caption_mask: Tensor
    ) -> Tensor:
        """Summed negative log-likelihood of the caption tokens. Shapes as in RegionBatch."""
        embeds, mask = self.prompt(region_embeds, prompt_ids, prompt_mask)
        labels = caption_ids.masked_fill(~caption_mask.bool(), -100)
        decoder_ids = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoder_ids).logits
        return token_loss(logits, caption_ids, caption_mask)


class CausalLM(LanguageModel):
    """Decoder-only: [regions, control words, caption] in one row; the loss counts the caption only."""

    auto_class = AutoModelForCausalLM

    def arrange(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Moves the padding of every row to its left end: generation continues at the right end."""
        order = mask.argsort(dim=1, stable=True)  # zeros first, order kept
        return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)

    def loss(
        self, region_embeds: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, caption_ids: Tensor, caption_mask: Tensor
    ) -> Tensor:
        """Summed negative log-likelihood of the caption tokens. Shapes as in RegionBatch."""
        embeds, mask = self.arrange(*self.prompt(region_embeds, prompt_ids, prompt_mask))
        captions = self.model.get_input_embeddings()(caption_ids)
        mask = torch.cat([mask, caption_mask.to(mask)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            inputs_embeds=torch.cat([embeds, captions], 1), attention_mask=mask, position_ids=positions
        ).logits  # (R, Q+T+T, W)
        start = embeds.shape[1] - 1  # the last prompt position predicts the first caption token
        return token_loss(logits[:, start : start + caption_ids.shape[1]], caption_ids, caption_mask)


LANGUAGE_MODELS = {"seq2seq": Seq2SeqLM, "causal": CausalLM}


def language_kind(config: PreTrainedConfig) -> str:
    """ "seq2seq" or "causal"."""
    return "seq2seq" if config.is_encoder_decoder else "causal"


FIXED_GENERATION = ("num_return_sequences", "return_dict_in_generate", "output_scores")
# generation options that are numbers: least, greatest, whether whole; the least itself is refused where OPEN
GENERATION_NUMBERS = {
    "num_beams": (1, math.inf, True),
    "num_beam_groups": (1, math.inf, True),
    "max_new_tokens": (1, math.inf, True),
    "min_new_tokens": (0, math.inf, True),
    "max_length": (1, math.inf, True),
    "min_length": (0, math.inf, True),
    "top_k": (0, math.inf, True),
    "no_repeat_ngram_size": (0, math.inf, True),
    "encoder_no_repeat_ngram_size": (0, math.inf, True),
    "temperature": (0, math.inf, False),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "typical_p": (0, 1, False),
    "repetition_penalty": (0, math.inf, False),
    "encoder_repetition_penalty": (0, math.inf, False),
    "length_penalty": (-math.inf, math.inf, False),
    "diversity_penalty": (-math.inf, math.inf, False),
    "max_time": (0, math.inf, False),
}
MOST = 10**9
OPEN = ("repetition_penalty", "encoder_repetition_penalty", "max_time", "typical_p")
GENERATION_FLAGS = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")


def check_generation(settings: Mapping | None) -> dict:
    """A user's generation options, without those that are None.

    ValueError for one that is fixed, for a value that generation cannot work with, and with the nearest name for an
    unknown one.
    """
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    for name in settings or {}:
        if name not in known:
            raise ValueError(
                f"generation option {name!r} is not one of transformers' GenerationConfig.{suggestion(name, known)}"
            )
        if name in FIXED_GENERATION:
            raise ValueError(f"generation option {name} is fixed: there is one caption a region, with its score")
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    for name, value in given.items():
        if name in GENERATION_NUMBERS:
            _check_number(name, value)
        elif name in GENERATION_FLAGS and not isinstance(value, bool):
            raise ValueError(f"generation option {name}={shown(value)}: expected true or false")
    if given.get("do_sample") and given.get("temperature") == 0:
        raise ValueError("generation option temperature=0: above 0 with do_sample; leave do_sample out for no draws")
    try:
        GenerationConfig(**given).validate()
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"generation options {shown(given)}: {first_line(error)}") from error
    return given


def _check_number(name: str, value: Any) -> None:
    least, greatest, whole = GENERATION_NUMBERS[name]
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    within = is_number and abs(value) < MOST and least <= value <= greatest  # also refuses what is not finite
    fits = within and not (name in OPEN and value == least)
    if not fits:
        above = f" above {least}" if name in OPEN else f" of at least {least}" if math.isfinite(least) else ""
        below = f", at most {greatest}" if math.isfinite(greatest) else f", below {MOST:,}" if is_number else ""
        kind = "whole number" if whole else "number"
        raise ValueError(f"generation option {name}={shown(value)}: expected a {kind}{above}{below}")


def most_positions(config: PreTrainedConfig) -> int | None:
    """Of tokens, that a language model holds, by its config; None where it says nothing, as T5's."""
    config = config.get_text_config()
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((count for count in found if isinstance(count, int) and count > 0), None)
