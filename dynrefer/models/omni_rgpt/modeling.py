"""Omni-RGPT: a picture or the frames of a clip, a mark on each region, and the same mark where a text names it. The
walk reads from top to bottom."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText

from dynrefer.data.records import RegionResult

from ..card import About
from ..language import add_lora, check_generation, log_probability, most_positions
from ..saving import RegionModel
from .bases import feature_arguments, measure, part_of, picture_settings
from .batch import IGNORED, OmniRgptBatch, TextRows
from .configuration import OmniRgptConfig
from .marks import TokenMarks, soft_labels, spatial_marks
from .options import Options
from .other_regions import PooledRegions
from .packing import PackedRows, pack_rows, why_not

ROWS_AT_ONCE = 16  # texts that are answered together
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass
class SeenFrames:
    """What the base sees of a batch. features: N times the tokens (P, D) of frames with their marks; output: the vision
    encoder's; marks (M, D): what stands for each region in texts; starts: N, where each's begin among them."""

    features: list[list[Tensor]]
    output: object
    marks: Tensor
    starts: list[int]


class OmniRgptModel(RegionModel):
    """`forward` gives the losses, `predict` the answers; see models/family.py.

    `base` is a whole image and language model of transformers and stays one: marks are added to what its projector
    gives and to its word embeddings, from outside.
    """

    config_class = OmniRgptConfig
    base_model_prefix = "omni_rgpt"
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    Options = Options
    answers = frozenset({"caption"})
    joint = True
    prompts = frozenset({"masks"})
    clips = True
    BASE_PARTS = {"base": "base"}
    LANGUAGE_PART = "base"
    CARD = About(
        reads="the whole picture, or {num_frames} frames of a clip, with a mark on each region",
        asks='question="What is <region0>?"',
        paper="2501.08326",
    )

    def __init__(self, config: OmniRgptConfig, dtypes: Mapping[str, torch.dtype] | None = None):
        super().__init__(config, dtypes)
        self.base = AutoModelForImageTextToText.from_config(config.base_config, trust_remote_code=False)
        width = self.base.get_input_embeddings().embedding_dim
        self.marks = TokenMarks(config.num_marks, config.mark_width, width)
        self.pooled = PooledRegions(width) if config.regions == "pooled" else None
        self.guide_head = nn.Linear(width, config.num_marks + 1) if config.guide else None
        self.tasks = ("captions", "guide") if config.guide else ("captions",)
        if config.base_mode == "lora":
            self.add_lora()
        self.said_why = False  # texts are not packed
        measure(config, self.base)
        self.freeze()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TokenMarks) or module is self.guide_head:
            module.reset_parameters()

    def add_lora(self) -> None:
        add_lora(self.base, {"target_modules": LORA_TARGETS, **(self.config.base_lora or {})})

    def freeze(self) -> None:
        """Only what the config trains asks for gradients."""
        config = self.config
        trains = {"vision": config.vision_trainable, "projector": config.projector_trainable}
        trains["language"] = config.base_mode == "full"
        for name, parameter in self.base.named_parameters():
            learns = trains[part_of(name)] or config.base_mode == "lora" and "lora_" in name
            parameter.requires_grad_(learns and parameter.is_floating_point())
        self.marks.requires_grad_(config.marks_trainable and config.regions == "marks")
        self.marks.projection.requires_grad_(config.regions == "marks")

    def drop_guide(self) -> None:
        """Leaves the guide head out of what is saved: answers do not need it."""
        self.guide_head, self.config.guide = None, False
        self.tasks = tuple(task for task in self.tasks if task != "guide")

    # ------------------------------------------------------------------------------------------ the walk

    def see(self, batch: OmniRgptBatch) -> SeenFrames:
        """Every frame goes through the vision encoder once; marks are laid on it after the projector."""
        dtype = next(parameter for name, parameter in self.base.named_parameters() if part_of(name) == "vision").dtype
        pixels = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.pixels.items()}
        arguments = feature_arguments(self.config.base_config, pixels)
        output = self.base.base_model.get_image_features(**arguments, return_dict=True)
        features, marks, starts = [], [], [0]
        # asked once, also for no region: under ZeRO-3 every process asks a module equally often
        projected = self.marks(torch.cat([each.marks for each in batch.shown])).split(
            [len(each.marks) for each in batch.shown]
        )
        for each, numbers, own in zip(batch.shown, batch.frames, projected, strict=True):
            plain = [output.pooler_output[number] for number in numbers]
            own = own if self.pooled is None else self.pooled(plain[0], each.cover[:, 0])
            marks.append(own)
            starts.append(starts[-1] + len(own))
            features.append(plain)
            for t, frame in enumerate(plain):
                if len(own) and each.shown[t] and self.config.regions == "marks":
                    laid = spatial_marks(each.cover[:, t], own).to(frame)
                    rest = frame[len(laid) :]  # tokens that lie nowhere in the frame
                    plain[t] = torch.cat([frame[: len(laid)] + laid, rest])
        return SeenFrames(features, output, torch.cat(marks), starts)

    def read(
        self, batch: OmniRgptBatch, seen: SeenFrames, rows: TextRows | PackedRows, keep: Tensor | int = 0
    ) -> tuple[Tensor, Tensor]:
        """Texts with what they show -> logits and the last hidden states. keep: places of the tokens whose logits are
        wanted, (J,), or how many of the last ones; 0: all."""
        kept: dict[str, Tensor] = {}
        hook = self.base.base_model.register_forward_hook(lambda _, __, output: kept.update(hidden=output[0]))
        packed = {}
        if isinstance(rows, PackedRows):
            eager = self.base.config.get_text_config()._attn_implementation == "eager"
            mask = rows.mask(self.base.get_input_embeddings().weight.dtype if eager else None)
            rows, packed = rows.rows, {"attention_mask": mask, "position_ids": rows.positions}
        try:
            with self.named(rows, seen):
                inputs = self.inputs(batch, seen, rows) | packed
                output = self.base(**inputs, logits_to_keep=keep, use_cache=False)
        finally:
            hook.remove()
        return output.logits, kept["hidden"]

    def packed(self, batch: OmniRgptBatch, seen: SeenFrames) -> TextRows | PackedRows:
        """The batch's texts, those that are shown the same as one sequence; see packing.py."""
        rows = batch.rows
        if not self.config.packed or len(rows) == len(batch.shown):
            return rows
        if (why := why_not(self.base.config)) is not None:
            if not self.said_why:
                self.said_why = True
                warnings.warn(f"each text goes through the language model with its own frames: {why}", stacklevel=2)
            return rows
        positions = None
        if hasattr(self.base.base_model, "get_rope_index"):
            inputs = self.inputs(batch, seen, rows)
            known = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
            positions, _ = self.base.base_model.get_rope_index(**{name: inputs[name] for name in known})
        image_token = self.config.base_config.image_token_id
        return pack_rows(rows, positions, image_token) or rows

    def inputs(self, batch: OmniRgptBatch, seen: SeenFrames, rows: TextRows) -> dict:
        """What the base reads: tokens, and the frames of each row one after another."""
        shown = rows.shown.tolist()
        numbers = [number for each in shown for number in batch.frames[each]]
        output = copy.copy(seen.output)
        features = [frame for each in shown for frame in seen.features[each]]
        output.pooler_output = torch.stack(features) if isinstance(output.pooler_output, Tensor) else features
        if (layers := getattr(output, "deepstack_features", None)) is not None:
            output.deepstack_features = [[layer[number] for number in numbers] for layer in layers]
        inputs = {"input_ids": rows.ids, "attention_mask": rows.attention, "mm_encoder_outputs": {"image": output}}
        for name in batch.pixels.keys() - {"pixel_values"}:  # sizes, a row a frame
            inputs[name] = batch.pixels[name][numbers]
        if "mm_token_type_ids" in inspect.signature(self.base.forward).parameters:
            inputs["mm_token_type_ids"] = (rows.ids == self.config.base_config.image_token_id).long()
        return inputs

    @contextmanager
    def named(self, rows: TextRows, seen: SeenFrames) -> Iterator[None]:
        """Within it, tokens of `rows` that name regions are the regions' marks."""
        starts = torch.tensor(seen.starts, device=rows.ids.device)[rows.shown]
        places = rows.mentions >= 0
        vectors = seen.marks[(starts[:, None] + rows.mentions)[places]]  # one a mention, row by row

        def replace(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
            ids = arguments[0]
            if ids.ndim != 2 or ids.shape[1] != places.shape[1] or ids.shape[1] == 1:
                return None  # a token that was just written
            beams = len(ids) // len(places)
            each = torch.cat([own for own in vectors.split(places.sum(1).tolist()) for _ in range(beams)])
            where = places.repeat_interleave(beams, 0)
            return output.masked_scatter(where[..., None], each.to(output))

        hook = self.base.get_input_embeddings().register_forward_hook(replace) if len(vectors) else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    # ------------------------------------------------------------------------------------------ losses

    def forward(self, batch: OmniRgptBatch) -> dict[str, Tensor]:
        """The sums over this process's tokens, unweighted: of answers, and of frames for the guide head."""
        if not len(batch):
            return self.zero_sums()
        seen = self.see(batch)
        rows = self.packed(batch, seen)
        texts = rows.rows if isinstance(rows, PackedRows) else rows
        kept = (texts.labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]  # a token is told by the one before
        logits, hidden = self.read(batch, seen, rows, kept if len(kept) else 1)
        sums = {"captions": answer_loss(logits[:, : len(kept)], texts.labels[:, kept + 1])}
        if "guide" in self.tasks:
            sums["guide"] = self.guide_loss(batch, texts, hidden)
        zero = self.untouched()
        return {task: sums[task] + zero for task in self.tasks}

    def guide_loss(self, batch: OmniRgptBatch, rows: TextRows, hidden: Tensor) -> Tensor:
        """Soft cross-entropy of marks over the tokens of frames that say where their regions are; once a clip, however
        many texts show it."""
        count = self.config.num_marks
        states, labels = [hidden.new_zeros(0, hidden.shape[-1])], [hidden.new_zeros(0, count + 1, dtype=torch.float32)]
        for each, frames in zip(batch.shown, self.frame_states(batch, rows, hidden), strict=True):
            if each.known.any() and len(each.marks):
                states.append(frames[each.known].flatten(0, 2))
                labels.append(soft_labels(each.cover[:, each.known].float(), each.marks, count).flatten(0, 2))
        logits = self.guide_head(torch.cat(states)).float()  # (N, num_marks + 1); asked once, as the marks are
        return -(torch.cat(labels) * logits.log_softmax(-1)).sum()

    def frame_states(self, batch: OmniRgptBatch, rows: TextRows, hidden: Tensor) -> list[Tensor]:
        """Of each of the batch's ShownRegions the hidden states of its frames, (T, h, w, D), as the first row has them
        that shows them. hidden (K, T, D): of the rows."""
        found, owners = [], rows.shown.tolist()
        for n, numbers in enumerate(batch.frames):
            row = owners.index(n)
            visual = rows.ids[row] == self.config.base_config.image_token_id
            states = hidden[row][visual].split([batch.tokens[number] for number in numbers])
            grids = [batch.grids[number] for number in numbers]
            states = [own[: h * w].unflatten(0, (h, w)) for own, (h, w) in zip(states, grids, strict=True)]
            found.append(torch.stack(states))
        return found

    def untouched(self) -> Tensor:
        """Zero, by way of every trained weight that a batch may leave out: all but the language model's. Under ZeRO-3,
        which holds weights in parts, nothing waits for those that are left out."""
        parts = [p for name, p in self.base.named_parameters() if p.requires_grad and part_of(name) != "language"]
        own = (self.marks, self.pooled, self.guide_head)
        parts += [p for part in own if part is not None for p in part.parameters() if p.requires_grad]
        whole = (part for part in parts if not hasattr(part, "ds_id"))
        return sum((part.sum().float() * 0 for part in whole), torch.zeros((), device=self.device))

    # ------------------------------------------------------------------------------------------ answers

    def check_options(self, options: Options) -> None:
        settings = check_generation({**self.config.generation, **options.decoding()})
        limit = most_positions(self.config.base_config)
        if limit is not None and (new := settings.get("max_new_tokens", 0)) >= limit:
            raise ValueError(f"max_new_tokens {new}: the language model holds {limit:,} tokens in all; give fewer")
        if options.heat and self.guide_head is None:
            raise ValueError("heat: this model was saved without its guide head; leave heat out")

    def text_lengths(self, results: Sequence[RegionResult], options: Options) -> list[tuple[int, bool]]:
        longest = {**self.config.generation, **options.decoding()}.get("max_new_tokens", 20)
        ids = [self.processor.tokenizer(result.caption, add_special_tokens=False)["input_ids"] for result in results]
        return [(len(row), len(row) >= longest) for row in ids]

    @torch.no_grad()
    def predict(self, batch: OmniRgptBatch, options: Options | None = None) -> list[RegionResult]:
        """One result an id. Regions that one question names have its one answer."""
        if self.processor is None:
            raise ValueError("this model has no processor: dynrefer.load sets it, or set model.processor")
        options = options or Options()
        settings = check_generation({**self.config.generation, **options.decoding()})
        if not len(batch):
            return []
        was_training = self.training
        self.eval()
        seen = self.see(batch)
        choices = dict(zip(batch.answer_rows.tolist(), batch.choices, strict=True))
        wanted = sorted(row for row, among in choices.items() if row >= 0 and not among)
        answers: dict[int, tuple[str, float]] = {}
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[start : start + ROWS_AT_ONCE]
            answers |= dict(zip(some, self.answer(batch, seen, batch.rows.part(some), settings), strict=True))
        chosen = {row: self.choose(batch, seen, row, among) for row, among in choices.items() if among}
        heat = self.heat_maps(batch, seen) if options.heat else None
        self.train(was_training)
        results, asked = [], set()
        columns = (batch.ids, batch.boxes.tolist(), batch.answer_rows.tolist(), batch.places.tolist())
        for name, box, row, (number, place) in zip(*columns, strict=True):
            caption, score = answers.get(row, ("", 0.0))
            result = RegionResult(name, box, caption=caption, score=score)
            if row in chosen:
                result.extra["choices"] = chosen[row]
                best = max(chosen[row], key=lambda each: each["score"])
                result.caption, result.score = best["name"], best["score"]
            if row not in asked:  # a question that is asked once is read once
                asked.add(row)
                result.prompt_tokens = int(batch.rows.starts[row])
            if heat is not None and place >= 0:
                result.extra["heat"] = heat[number][place].tolist()
            if "heat" in result.extra or len(batch.shown[number].frames) > 1:
                result.extra["frames"] = batch.shown[number].frames
            results.append(result)
        return results

    def answer(
        self, batch: OmniRgptBatch, seen: SeenFrames, rows: TextRows, settings: Mapping
    ) -> list[tuple[str, float]]:
        """Of each row a text and its probability."""
        tokenizer = self.processor.tokenizer
        rows = rows.prompts(tokenizer.pad_token_id)
        ends = self.base.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        ends = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
        given = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, **settings}
        with self.named(rows, seen):
            output = self.base.generate(
                **self.inputs(batch, seen, rows), return_dict_in_generate=True, output_scores=True, **given
            )
        beams, penalty = settings.get("num_beams", 1), settings.get("length_penalty", 1.0)
        scores = log_probability(self.base, output, ends, beams, penalty).double().exp().tolist()
        texts = self.processor.texts.decode(output.sequences[:, rows.ids.shape[1] :])
        return list(zip(texts, scores, strict=True))

    def choose(self, batch: OmniRgptBatch, seen: SeenFrames, row: int, choices: Sequence[str]) -> list[dict]:
        """Choices with the probability of each among them: that the model would say just this, and end."""
        found = []
        for start in range(row, row + len(choices), ROWS_AT_ONCE):
            rows = batch.rows.part(range(start, min(start + ROWS_AT_ONCE, row + len(choices))))
            first = int(rows.starts.min()) - 1
            logits, _ = self.read(batch, seen, rows, keep=rows.ids.shape[1] - first)
            labels = rows.labels[:, first + 1 :]
            losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none")
            found.append(-losses.double().sum(1))  # ignored labels cost nothing
        shares = torch.cat(found).softmax(0).tolist()
        return [{"name": name, "score": share} for name, share in zip(choices, shares, strict=True)]

    def heat_maps(self, batch: OmniRgptBatch, seen: SeenFrames) -> list[Tensor]:
        """Of each of the batch's ShownRegions where the guide head sees its regions, probabilities (R, T, h, w)."""
        owners = batch.rows.shown.tolist()
        rows = batch.rows.part([owners.index(n) for n in range(len(batch.shown))])
        _, hidden = self.read(batch, seen, rows, keep=1)
        found = []
        for each, states in zip(batch.shown, self.frame_states(batch, rows, hidden), strict=True):
            probabilities = self.guide_head(states).float().softmax(-1)
            found.append(probabilities[..., each.marks].permute(3, 0, 1, 2))
        return found

    # ------------------------------------------------------------------------------------------ the base by itself

    @torch.no_grad()
    def fit_marks(self) -> None:
        """New marks as long as the base's word embeddings."""
        self.marks.fit(self.base.get_input_embeddings().weight, self.config.mark_scale)

    def save_base(self, folder: str | Path) -> None:
        """Writes the base as transformers' own model, with its tokenizer and how it takes pictures: what this model is
        without regions. LoRA layers are added to its weights."""
        state = self.merged(self.state_dict())
        own = {name.removeprefix("base."): value for name, value in state.items() if name.startswith("base.")}
        self.base.save_pretrained(folder, state_dict=own)
        self.processor.tokenizer.save_pretrained(folder)
        picture_settings(self.config).save_pretrained(folder)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood. logits (K, T, W) of the tokens before those of labels (K, T)."""
    kept = labels != IGNORED
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum")


AutoModel.register(OmniRgptConfig, OmniRgptModel, exist_ok=True)
