"""DynRefer: nested views of a region -> caption, tags, attributes, category. The walk reads from top to bottom."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, Blip2QFormerModel

from dynrefer.data.records import RegionResult
from dynrefer.losses import asymmetric_loss, attribute_loss, category_loss, sigmoid_region_text_loss
from dynrefer.processes import gather_rows
from dynrefer.views import choose_scales
from dynrefer.vocabulary import attribute_texts, category_texts, read_attributes, text_hash

from ..auto import pick_device
from ..card import About
from ..graphs import Graphs
from ..language import LANGUAGE_MODELS, check_generation, language_kind, most_positions
from ..ranking import ranked
from ..saving import RegionModel
from ..text_encoder import TextEncoder
from ..vision import VisionEncoder, batch_norms
from .align import DeformableAlign
from .batch import RegionBatch
from .configuration import DynReferConfig
from .decoders import TextQueryDecoder, ViewTextHead
from .graphs import graphs
from .options import Options
from .region_encoder import RegionEncoder

TASKS = ("captions", "tags", "region_text", "attributes", "categories", "view_text")
PROMPT_TOKENS = 512  # of a language model that holds any number, as T5 does: what it was trained with
DEFAULT_TEXT = 20  # transformers' max_new_tokens
TEXT_CHUNK = 512  # texts embedded at once when a word list is set
VIEWS_IN_CACHE = 16  # that a CPU encodes at once: what a layer makes of them is still in its cache for the next
GIVEN_LISTS = 8  # of users' words, whose embeddings are kept


class DynReferModel(RegionModel):
    """One model, several tasks. `forward` gives their losses, `predict` the answers; see models/family.py.

    `processor` is set by `dynrefer.load` and by training: predicted tags must become prompt tokens.
    """

    config_class = DynReferConfig
    base_model_prefix = "dynrefer"
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["RegionEncoder", "TextQueryDecoder", "ViewTextHead"]
    Options = Options
    answers = frozenset({"caption", "tags", "attributes", "categories"})
    BASE_PARTS = {"vision": "vision.model", "language": "language.model", "text": "text_encoder.model"}
    LANGUAGE_PART = "language"
    CARD = About(
        reads="{num_views} views of {image_size} x {image_size} pixels around each region",
        paper="2405.16071",
    )

    def __init__(self, config: DynReferConfig, dtypes: Mapping[str, torch.dtype] | None = None):
        super().__init__(config, dtypes)
        shape = None if config.vision_shape is None else tuple(config.vision_shape)
        self.vision = VisionEncoder(config.vision_config, config.image_size, shape, config.vision_norm)
        config.vision_shape = [self.vision.width, self.vision.grid]
        config.qformer_config.encoder_hidden_size = self.vision.width
        self.region_encoder = RegionEncoder(
            self.vision.width,
            config.num_views,
            config.image_size,
            config.grid or self.vision.grid,
            align_groups=config.align_groups,
            align_start=config.align_start,
            roi_aligned=config.roi_aligned,
            positions=config.positions,
        )
        region_width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, region_width))
        self.qformer = Blip2QFormerModel(config.qformer_config)
        self.text_encoder = TextEncoder(config.text_config)
        decoder = {
            "width": config.decoder_width,
            "heads": config.decoder_heads,
            "mlp_width": config.decoder_mlp_width,
            "layers": config.decoder_layers,
            "dropout": config.decoder_dropout,
            "gain": config.decoder_gain,
        }
        self.tag_decoder = TextQueryDecoder(self.text_encoder.width, region_width, **decoder)
        self.region_text_decoder = TextQueryDecoder(self.text_encoder.width, region_width, **decoder, normalize=True)
        self.view_text_head = ViewTextHead(self.vision.width, self.text_encoder.width) if config.view_text else None
        self.language = LANGUAGE_MODELS[language_kind(config.language_config)](
            config.language_config, region_width, config.language_mode, config.language_lora
        )
        for name, texts in self.bank_texts().items():
            self.register_buffer(f"{name}_texts", torch.zeros(len(texts), self.text_encoder.width))
        self.tasks = TASKS if config.view_text else TASKS[:-1]  # those whose losses forward computes
        self._bank_ids: dict[str, tuple[Tensor, Tensor]] = {}
        self._given_texts: dict[tuple, Tensor] = {}
        self.freeze()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DeformableAlign | RegionEncoder):
            module.reset_parameters()
        elif module is self:
            self.query_tokens.normal_(std=self.config.qformer_config.initializer_range)

    def freeze(self) -> None:
        """Only what the config trains asks for gradients."""
        self.query_tokens.requires_grad_(self.config.query_tokens_trainable)
        self.vision.requires_grad_(self.config.vision_trainable)
        self.text_encoder.requires_grad_(self.config.text_trainable)
        self.language.freeze()

    def train(self, mode: bool = True) -> DynReferModel:
        """Frozen towers stay in eval mode: no dropout, no moving averages."""
        super().train(mode)
        if mode:
            self._given_texts.clear()
        if not self.config.vision_trainable:
            self.vision.eval()
        if not self.config.text_trainable:
            self.text_encoder.eval()
        if self.config.language_mode == "frozen":
            self.language.model.eval()
        return self

    # ------------------------------------------------------------------------------------------ the walk

    def encode(self, batch: RegionBatch) -> Tensor:
        """Views of R regions -> region_embeds (R, Q, E)."""
        return self.embed(self.patches(batch.views, batch.shows), batch.region_boxes)

    def patches(self, views: Tensor, shows: Sequence[tuple] | None = None) -> Tensor:
        """views (R, V, 3, S, S) -> patches (R, V, 1+P, D). shows: see RegionBatch; equal views are encoded once."""
        flat, where = views.flatten(0, 1), None  # (R*V, 3, S, S)
        if shows is not None:
            first: dict[tuple, int] = {}
            rows = [first.setdefault(key, n) for n, key in enumerate(key for keys in shows for key in keys)]
            if len(first) < len(rows):
                own, where = torch.tensor(rows, device=views.device).unique(return_inverse=True)
                flat = flat[own]  # (N, 3, S, S), the different ones
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.vision_trainable):
            few = not self.training and flat.device.type == "cpu" and not torch.compiler.is_compiling()
            parts = flat.split(VIEWS_IN_CACHE) if few and len(flat) else [flat]
            patches = torch.cat([self.vision(self.normalize(part)) for part in parts])  # (R*V or N, 1+P, D)
        return (patches if where is None else patches[where]).unflatten(0, views.shape[:2])

    def embed(self, patches: Tensor, region_boxes: Tensor) -> Tensor:
        """patches (R, V, 1+P, D), region_boxes (R, V, 4) in view pixels -> region_embeds (R, Q, E)."""
        features = self.region_encoder(patches, region_boxes)  # (R, 1+G*G, D)
        queries = self.query_tokens.expand(patches.shape[0], -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state  # (R, Q, E)

    def normalize(self, views: Tensor) -> Tensor:
        """uint8 views -> what the vision encoder was trained on; floating-point views are taken as normalized."""
        dtype = next(self.vision.parameters()).dtype
        if views.is_floating_point():
            return views.to(dtype)
        mean = torch.tensor(self.config.image_mean, device=views.device)[:, None, None]
        std = torch.tensor(self.config.image_std, device=views.device)[:, None, None]
        return ((views.float() / 255 - mean) / std).to(dtype)

    def before_step(self, batches: Sequence[RegionBatch]) -> None:
        """Gathers the captions that the step's regions are compared with, as token ids: every pass embeds all of them,
        so that the gradient needs no gathering (DynRefer, section 3.3)."""
        if self.config.pair_over == "batch" or not {"region_text", "view_text"} & set(self.tasks):
            return
        captioned = [batch.caption_mask.any(-1) for batch in batches]
        own = [batch.text_ids[some] for batch, some in zip(batches, captioned, strict=True)]
        pad, length = self.config.text_config.pad_token_id or 0, max(texts.shape[1] for texts in own)
        own = torch.cat([F.pad(texts, (0, length - texts.shape[1]), value=pad) for texts in own])
        texts, row = gather_rows(own.to(self.device), pad)
        for batch, some in zip(batches, captioned, strict=True):
            batch.step_texts, batch.text_rows = texts, row + some.cumsum(0) - 1
            row += int(some.sum())

    def depends_on_split(self) -> list[str]:
        found = []
        if name := next((name for name, module in batch_norms(self) if module.training), None):
            found.append(f"{name} normalizes by each batch's statistics (model.vision.norm=frozen or group does not)")
        if self.config.pair_over == "batch" and (pairing := {"region_text", "view_text"} & set(self.tasks)):
            found.append(f"{' and '.join(sorted(pairing))} pair within a batch (model.pair_over=step does not)")
        return found

    def forward(self, batch: RegionBatch) -> dict[str, Tensor]:
        """One scalar a task in `self.tasks`: the sum over this process's regions or tokens, unweighted.

        `batch.counts()` are the denominators; weights and backward stand in train/run.py.
        """
        if not len(batch):
            return self.zero_sums()
        if tuple(self.tasks) == ("view_text",):  # pretraining of the two towers: view 0 is enough
            return {"view_text": self.view_text_loss(batch, self.patches(batch.views[:, :1]))}
        patches = self.patches(batch.views)  # (R, V, 1+P, D)
        region_embeds = self.embed(patches, batch.region_boxes)  # (R, Q, E)
        losses = {}
        if "view_text" in self.tasks:
            losses["view_text"] = self.view_text_loss(batch, patches)
        if "captions" in self.tasks:
            losses["captions"] = self.language.loss(
                region_embeds, batch.prompt_ids, batch.prompt_mask, batch.caption_ids, batch.caption_mask
            )
        if "tags" in self.tasks and len(self.config.tags):
            known = batch.tags_known
            logits = self.tag_decoder(self.word_texts("tag"), region_embeds[known])
            losses["tags"] = asymmetric_loss(logits, batch.tags[known])
        if "region_text" in self.tasks:
            losses["region_text"] = self.region_text_loss(batch, region_embeds)
        if "attributes" in self.tasks and len(self.config.attributes):
            raw = self.region_text_decoder(self.word_texts("attribute"), region_embeds)
            raw = self.region_text_decoder.scaled(self.attribute_maximum(raw))
            losses["attributes"] = attribute_loss(raw, batch.attributes)
        if "categories" in self.tasks and len(self.config.categories):
            raw = self.region_text_decoder(self.word_texts("category"), region_embeds)
            losses["categories"] = category_loss(self.region_text_decoder.scaled(raw), batch.categories)
        return losses

    def paired(self, batch: RegionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """What the batch's regions with a caption, R of them, are compared with: texts (N, D_text), which of them is a
        region's own and which have its words, both bool (R, N)."""
        captioned = batch.caption_mask.any(-1)
        if batch.step_texts is None:
            text_ids, rows = batch.text_ids[captioned], torch.arange(int(captioned.sum()), device=captioned.device)
        else:
            text_ids, rows = batch.step_texts, batch.text_rows[captioned]
        own = rows[:, None] == torch.arange(len(text_ids), device=rows.device)
        same = (text_ids[rows][:, None] == text_ids).all(-1)
        return self.text_encoder(text_ids, None), own, same

    def region_text_loss(self, batch: RegionBatch, region_embeds: Tensor) -> Tensor:
        """This batch's regions against the captions of the whole step (DynRefer, section 3.3)."""
        texts, own, same = self.paired(batch)
        raw = self.region_text_decoder(texts, region_embeds[batch.caption_mask.any(-1)])  # (R, N)
        ignore = same & ~own if self.config.mask_same_caption else None
        return sigmoid_region_text_loss(self.region_text_decoder.similarity(raw), own, ignore)

    def view_text_loss(self, batch: RegionBatch, patches: Tensor) -> Tensor:
        """What view 0's summary token says by itself, before any query: its captions, tags and category among all.

        A direct path from words to a vision encoder that starts from nothing; not part of the published model. Captions
        and tags by the sigmoid loss, categories by cross-entropy, summed over this batch's regions.
        """
        views = self.view_text_head.embed(patches[:, 0, 0])  # (R, D_text)
        captioned, known = batch.caption_mask.any(-1), batch.tags_known
        texts, _, same = self.paired(batch)
        loss = sigmoid_region_text_loss(self.view_text_head(views[captioned], texts), same)
        if len(self.config.tags):
            logits = self.view_text_head(views[known], self.word_texts("tag"))
            loss = loss + sigmoid_region_text_loss(logits, batch.tags[known].bool())
        if len(self.config.categories):
            logits = self.view_text_head(views, self.word_texts("category"))
            loss = loss + category_loss(logits, batch.categories)
        return loss

    # ------------------------------------------------------------------------------------------ word lists

    def bank_texts(self) -> dict[str, list[str]]:
        """The texts of every word list, from the config."""
        return {
            "tag": list(self.config.tags),
            "attribute": attribute_texts(self.config.attributes)[0],
            "category": category_texts(self.config.categories),
        }

    def word_texts(self, name: str) -> Tensor:
        """Text embeddings of a word list (K, D_text): cached, or made anew while the text encoder learns."""
        if not (self.training and self.config.text_trainable):
            return getattr(self, f"{name}_texts")
        if name not in self._bank_ids:
            self._bank_ids[name] = self.processor.encode_texts(self.bank_texts()[name])
        ids, mask = (tensor.to(self.device) for tensor in self._bank_ids[name])
        return self.text_encoder(ids, mask)

    def given_texts(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings of a user's words (N, D_text), made once for the calls that follow each other: they last
        until weights may change, as those of the model's own word lists do."""
        key = (tuple(texts), self.tag_texts.device, self.tag_texts.dtype)
        if key not in self._given_texts:
            if len(self._given_texts) >= GIVEN_LISTS:
                self._given_texts.clear()
            self._given_texts[key] = self.embed_texts(texts)
        return self._given_texts[key]

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D_text) on the model's device."""
        parts = [self.tag_texts[:0]]
        for start in range(0, len(texts), TEXT_CHUNK):
            ids, mask = self.processor.encode_texts(texts[start : start + TEXT_CHUNK])
            parts.append(self.text_encoder(ids.to(self.device), mask.to(self.device)))
        return torch.cat(parts)

    def before_eval(self) -> None:
        """Refreshes the cached text embeddings: after the text encoder or a word list changed, and before save."""
        training = self.training
        self.eval()
        self._given_texts.clear()
        for name, texts in self.bank_texts().items():
            getattr(self, f"{name}_texts").copy_(self.embed_texts(texts))
        self.config.text_bank_hash = self.bank_hash()
        self.train(training)

    def bank_hash(self) -> str:
        return text_hash([text for texts in self.bank_texts().values() for text in ("", *texts)])

    def after_load(self) -> None:
        """ValueError when the cached embeddings belong to other word lists than the config's."""
        if self.config.text_bank_hash != self.bank_hash():
            raise ValueError(
                f"text embeddings were made from word lists with hash {self.config.text_bank_hash}, the config's have "
                f"{self.bank_hash()}: call model.before_eval() with the processor set to make them anew"
            )

    @staticmethod
    def attribute_owner(attributes: Sequence[dict], device: torch.device) -> Tensor:
        return torch.tensor(attribute_texts(attributes)[1], device=device)

    def attribute_maximum(self, raw: Tensor, attributes: Sequence[dict] | None = None) -> Tensor:
        """Raw scores of all attribute texts (R, N) -> of the attributes (R, A): the best text of each."""
        attributes = self.config.attributes if attributes is None else attributes
        owner = self.attribute_owner(attributes, raw.device).expand(raw.shape[0], -1)
        start = raw.new_full((raw.shape[0], len(attributes)), -torch.inf)
        return start.scatter_reduce(1, owner, raw, "amax")

    # ------------------------------------------------------------------------------------------ answers

    def tag_logits(self, region_embeds: Tensor) -> Tensor:
        """(R, K)."""
        return self.tag_decoder(self.tag_texts, region_embeds)

    def attribute_scores(self, region_embeds: Tensor, attributes: Sequence[dict] | None = None) -> Tensor:
        """Best sigmoid over an attribute's texts, (R, A); the config's attributes when None."""
        texts = self.attribute_texts if attributes is None else self.given_texts(attribute_texts(attributes)[0])
        return self.attribute_maximum(self.region_text_decoder(texts, region_embeds), attributes).float().sigmoid()

    def category_logits(self, region_embeds: Tensor, categories: Sequence[str] | None = None) -> Tensor:
        """Raw scores (R, C); the config's categories when None."""
        texts = self.category_texts if categories is None else self.given_texts(category_texts(categories))
        return self.region_text_decoder(texts, region_embeds).float()

    def check_options(self, options: Options) -> None:
        room = self.prompt_room(check_generation({**self.config.generation, **options.decoding()}))
        self.processor.check_words(options, room)
        if options.crop_on is not None:
            pick_device(options.crop_on)
        if options.view_strategy is not None:
            no_boxes = np.zeros((0, 4), np.float32)
            choose_scales(options.view_strategy, np.zeros((1, 1, 3), np.uint8), no_boxes, self.config.num_views, ())

    def text_lengths(self, results: Sequence[RegionResult], options: Options) -> list[tuple[int, bool]]:
        """Of each caption: its tokens, and whether it ended because it may not be longer, see `FamilyModel`."""
        longest = {**self.config.generation, **options.decoding()}.get("max_new_tokens", DEFAULT_TEXT)
        ids = [self.processor.tokenizer(result.caption, add_special_tokens=False)["input_ids"] for result in results]
        return [(len(row), len(row) >= longest) for row in ids]

    def prompt_room(self, settings: Mapping) -> int:
        """Tokens of a prompt that the language model holds beside the region's and, of a decoder, those of the text.
        settings: of generation. ValueError where the text leaves none."""
        config = self.config.language_config
        limit = min(most_positions(config) or PROMPT_TOKENS, self.processor.tokenizer.model_max_length)
        text = settings.get("max_new_tokens", DEFAULT_TEXT) if language_kind(config) == "causal" else 0
        room = limit - self.config.num_query_tokens - text
        if room < 1:
            raise ValueError(
                f"max_new_tokens {text}: the language model holds {limit:,} tokens, {self.config.num_query_tokens} of "
                "them the region's; nothing is left for a prompt, give a smaller max_new_tokens"
            )
        return room

    def graphs(self, options: Options) -> Graphs:
        self.check_options(options)
        return graphs(self, options)

    def settings(self, options: Options) -> dict:
        strategy = options.view_strategy or self.config.view_strategy
        names = ("control", "tag_threshold", "list_tags", "attributes", "categories", "num_categories")
        given = {name: getattr(options, name) for name in names}
        return given | {"view_strategy": strategy, "generation": options.decoding()}

    @torch.no_grad()
    def predict(self, batch: RegionBatch, options: Options | None = None) -> list[RegionResult]:
        """One result a region. ValueError for unknown generation options. Regions that are alike, see
        `RegionBatch.alike`, are described once, but where captions are drawn."""
        if self.processor is None:
            raise ValueError("this model has no processor: dynrefer.load sets it, or set model.processor")
        options = options or Options()
        settings = check_generation({**self.config.generation, **options.decoding()})
        room = self.prompt_room(settings)
        threshold = self.config.tag_threshold if options.tag_threshold is None else options.tag_threshold
        attributes, categories = options.attributes, options.categories
        if not len(batch):
            return []
        asked, alike = batch, list(range(len(batch))) if settings.get("do_sample") else batch.alike()
        if len(own := sorted(set(alike))) < len(batch):
            batch, alike = batch.part(own), [bisect_left(own, row) for row in alike]
        was_training = self.training
        if was_training:
            self.eval()
        region_embeds = self.encode(batch)  # (R, Q, E)
        tags = self.tag_logits(region_embeds).float().sigmoid().cpu()  # (R, K)
        named_attributes = None if attributes is None else read_attributes(attributes)
        attribute_names = [a["name"] for a in (self.config.attributes if attributes is None else named_attributes)]
        attribute_scores = self.attribute_scores(region_embeds, named_attributes).cpu()  # (R, A)
        category_names = list(self.config.categories if categories is None else categories)
        category_scores = self.region_text_decoder.scaled(self.category_logits(region_embeds, categories))
        category_scores = category_scores.softmax(-1).cpu()  # (R, C)
        predicted = listed = ranked(self.config.tags, tags, above=threshold)
        if options.list_tags is not None:
            listed = ranked(self.config.tags, tags, above=options.list_tags)
        attributes = ranked(attribute_names, attribute_scores)
        categories = ranked(category_names, category_scores, most=options.num_categories)
        words = [
            self.processor.fitting_words(control, [tag["name"] for tag in found], room, name)
            for control, found, name in zip(batch.controls, predicted, batch.ids, strict=True)
        ]
        prompt_ids, prompt_mask = (tensor.to(self.device) for tensor in self.processor.encode_prompts(words))
        ids, log_probability = self.language.generate(region_embeds, prompt_ids, prompt_mask, **settings)
        captions = self.processor.decode(ids)
        if was_training:
            self.train()
        score, lengths = log_probability.double().exp().tolist(), prompt_mask.sum(1).tolist()
        results = [
            RegionResult(
                id=asked.ids[r],
                box=asked.boxes[r].tolist(),
                caption=captions[k],
                score=score[k],
                tags=[*map(dict, listed[k])],  # of each region its own
                attributes=[*map(dict, attributes[k])],
                categories=[*map(dict, categories[k])],
                extra={"scales": [round(t, 6) for t in asked.scales[r].tolist()]},
            )
            for r, k in enumerate(alike)
        ]
        for result, k in zip(results, alike, strict=True):
            result.prompt_tokens = self.config.num_query_tokens + lengths[k]
        return results


AutoModel.register(DynReferConfig, DynReferModel)
