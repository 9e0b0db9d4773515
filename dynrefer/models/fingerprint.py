"""A short name for a model's weights: predictions and scores carry it, so that nothing is reported of other weights."""

from __future__ import annotations

import hashlib
from typing import Any

SAMPLED_VALUES = 64  # of each tensor


def model_fingerprint(model: Any, buffers: bool = False) -> str:
    """Sixteen hex digits that change when a model is trained on: its parameters' names, shapes and sampled
    values. buffers: those that are saved too. (Not otherwise: cached text embeddings are made anew now and then.)"""
    digest = hashlib.sha256()
    named = model.state_dict() if buffers else dict(model.named_parameters())
    for name, tensor in sorted(named.items()):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // SAMPLED_VALUES)].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]
