"""Text encoder: CLIP-style tower, texts -> one vector each."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection


class TextEncoder(nn.Module):
    """CLIP text tower with its projection. Pooling at the end-of-text token."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        if config.eos_token_id == 2:
            raise ValueError(
                "text_config.eos_token_id 2: transformers' CLIP then pools at a text's largest token id, not its end; "
                "give the end token another id (OpenAI's files: set it to vocab_size - 1, which is the same there)"
            )
        self.model = CLIPTextModelWithProjection(config)
        self.width = config.projection_dim

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """text_ids, text_mask: (N, T). Returns (N, D_text), not normalized.

        The tower is causal and pools at the end token, so padding after it changes nothing; no mask is needed.
        """
        if not len(text_ids):  # a batch without captions; the tower stays in the graph, as DDP wants it
            return self.model(input_ids=text_ids.new_ones(1, 1)).text_embeds[:0]
        return self.model(input_ids=text_ids).text_embeds
