"""DynRefer as graphs: views -> region embeddings -> tags, attributes, categories. Captions stay with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynrefer.views import CANDIDATE_SCALES
from dynrefer.vocabulary import attribute_texts, category_texts, read_attributes

from ..graphs import Graph, Graphs
from ..saving import RegionModel
from .options import Options


class ViewsToEmbeds(nn.Module):
    """views (R, V, 3, S, S) uint8 and region_boxes (R, V, 4) in view pixels -> region_embeds (R, Q, E)."""

    def __init__(self, model: RegionModel):
        super().__init__()
        self.model = model

    def forward(self, views: Tensor, region_boxes: Tensor) -> Tensor:
        return self.model.embed(self.model.patches(views), region_boxes)


class EmbedsToLogits(nn.Module):
    """region_embeds (R, Q, E) -> logits of each word list, those that have words."""

    def __init__(self, model: RegionModel, attributes: list[dict], categories: list[str]):
        super().__init__()
        self.model, self.attributes = model, attributes
        self.has_tags, self.has_categories = bool(model.config.tags), bool(categories)
        self.register_buffer("attribute_texts", model.embed_texts(attribute_texts(attributes)[0]))
        self.register_buffer("category_texts", model.embed_texts(category_texts(categories)))

    def forward(self, region_embeds: Tensor) -> tuple[Tensor, ...]:
        model, decoder = self.model, self.model.region_text_decoder
        found = [model.tag_logits(region_embeds)] if self.has_tags else []
        if self.attributes:
            found.append(model.attribute_maximum(decoder(self.attribute_texts, region_embeds), self.attributes))
        if self.has_categories:
            found.append(decoder.scaled(decoder(self.category_texts, region_embeds)))
        return tuple(found)


def graphs(model: RegionModel, options: Options) -> Graphs:
    """ValueError for a model without words."""
    config = model.config
    attributes = config.attributes if options.attributes is None else read_attributes(options.attributes)
    words = {
        "tags": list(config.tags),
        "attributes": [attribute["name"] for attribute in attributes],
        "categories": list(config.categories if options.categories is None else options.categories),
    }
    words = {name: some for name, some in words.items() if some}
    if not words:
        raise ValueError("this model has no word list; give one with --categories FILE or --attributes FILE")
    num_views, side = config.num_views, config.image_size
    embeds = ("R", config.num_query_tokens, config.qformer_config.hidden_size)

    def example_views(sizes: Mapping[str, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        views = torch.randint(0, 256, (sizes["R"], num_views, 3, side, side), generator=generator, dtype=torch.uint8)
        corners = torch.rand(sizes["R"], num_views, 2, 2, generator=generator).sort(2).values * side
        return views, corners.flatten(2)

    def example_embeds(sizes: Mapping[str, int], generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(sizes["R"], *embeds[1:], generator=generator),)

    encoder = Graph(
        "encoder",
        ViewsToEmbeds(model),
        {"views": ("R", num_views, 3, side, side), "region_boxes": ("R", num_views, 4)},
        {"region_embeds": embeds},
        example_views,
        {"views": "RGB, 0..255", "region_boxes": "the region in each view, x1 y1 x2 y2 in pixels of the view"},
    )
    outputs = {"tags": "tag_logits", "attributes": "attribute_logits", "categories": "category_logits"}
    heads = Graph(
        "heads",
        EmbedsToLogits(model, list(attributes), words.get("categories", [])),
        {"region_embeds": embeds},
        {outputs[name]: ("R", len(some)) for name, some in words.items()},
        example_embeds,
    )
    scores = {"tags": "sigmoid", "attributes": "sigmoid", "categories": "softmax"}
    answers = {name: {"graph": "heads", "output": outputs[name], "score": scores[name]} for name in words}
    if "tags" in answers:
        answers["tags"]["above"] = config.tag_threshold
    if "categories" in answers:
        answers["categories"]["most"] = options.num_categories
    preprocessing = {
        "kind": "views",
        "picture": "RGB uint8, turned upright as EXIF says",
        "num_views": num_views,
        "view_size": side,
        "scales": config.view_strategy,
        "candidate_scales": list(CANDIDATE_SCALES),
        "view_box": "box + scale * (whole picture - box), float32, cut to whole pixels towards zero",
        "resize": "bicubic with antialiasing to view_size x view_size, the shape squashed (Pillow's BICUBIC)",
        "region_box": "(box in whole pixels - corner of the view box) * view_size / side of the view box",
        "truncate_region_boxes": config.truncate_region_boxes,
        "mean": list(config.image_mean),
        "std": list(config.image_std),
        "normalization": "in the graph: (value / 255 - mean) / std",
    }
    return Graphs([encoder, heads], preprocessing, answers, words)
