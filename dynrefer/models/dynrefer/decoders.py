"""Tag decoder and region-text decoder: texts ask, region embeddings answer (DynRefer, section 3.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossLayer(nn.Module):
    """BERT's cross-attention and feed-forward, post-norm, without self-attention: texts do not see each other."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_output, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.intermediate, self.output = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, texts: Tensor, regions: Tensor) -> Tensor:
        """texts: (1 or R, N, W); regions: (R, Q, W). Returns (R, N, W)."""

        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (R, heads, tokens, W/heads)

        query = split(self.query(texts)).expand(regions.shape[0], -1, -1, -1)
        attended = F.scaled_dot_product_attention(
            query,
            split(self.key(regions)),
            split(self.value(regions)),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.attention_output(attended.transpose(1, 2).flatten(2))  # (R, N, W)
        texts = self.attention_norm(texts + self.dropout(attended))
        return self.output_norm(texts + self.dropout(self.output(F.gelu(self.intermediate(texts)))))


class ViewTextHead(nn.Module):
    """Cosine similarity of a view's summary token and a text, scaled and shifted for the sigmoid loss.

    width: D; text_width: D_text.
    """

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.proj = nn.Linear(width, text_width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-5.0))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: (R, D). Returns unit vectors (R, D_text)."""
        return F.normalize(self.proj(tokens).float(), dim=-1)

    def forward(self, views: Tensor, texts: Tensor) -> Tensor:
        """views: (R, D_text) unit vectors; texts: (N, D_text). Returns logits (R, N)."""
        similarity = views @ F.normalize(texts.float(), dim=-1).T
        return similarity * self.logit_scale.float().exp() + self.logit_bias.float()


class TextQueryDecoder(nn.Module):
    """Scores every text against every region.

    text_width: D_text; region_width: E; normalize: L2-normalize before the last linear layer (region-text decoder) and
    learn a scale and a bias for the sigmoid loss, exp(s) and b with s0 = ln 10, b0 = -10. gain: factor on the first
    weights; narrow decoders that start from scratch hear the region only above 1, about 3.
    """

    def __init__(
        self,
        text_width: int,
        region_width: int,
        *,
        width: int = 256,
        heads: int = 4,
        mlp_width: int = 1024,
        layers: int = 2,
        dropout: float = 0.1,
        normalize: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        self.text_proj, self.vision_proj = nn.Linear(text_width, width), nn.Linear(region_width, width)
        self.layers = nn.ModuleList(CrossLayer(width, heads, mlp_width, dropout) for _ in range(layers))
        self.fc = nn.Linear(width, 1)
        self.normalize = normalize
        if normalize:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        if gain != 1:
            with torch.no_grad():
                for parameter in self.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(gain)

    def forward(self, texts: Tensor, region_embeds: Tensor) -> Tensor:
        """texts: (N, D_text) for all regions; region_embeds: (R, Q, E). Returns raw scores (R, N)."""
        queries = self.text_proj(texts.to(self.text_proj.weight.dtype))[
            None
        ]  # (1, N, W): projected once for all regions
        regions = self.vision_proj(region_embeds)
        for layer in self.layers:
            queries = layer(queries, regions)  # (R, N, W)
        if self.normalize:
            queries = F.normalize(queries, dim=-1)
        return self.fc(queries).squeeze(-1)

    def similarity(self, raw: Tensor) -> Tensor:
        """Raw scores -> logits of the sigmoid region-text loss."""
        return self.scaled(raw) + self.logit_bias.float()

    def scaled(self, raw: Tensor) -> Tensor:
        """Raw scores times exp(s): what attributes and categories are trained on. Normalized texts keep raw scores
        small; their order is the same."""
        return raw.float() * self.logit_scale.float().exp()
