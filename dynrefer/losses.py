"""Losses of the tasks. Every one returns a sum; the training loop divides by the global count, so that one process and
many, and any accumulation, give the same mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, gamma_negative: float = 7.0, gamma_positive: float = 0.0, clip: float = 0.05
) -> Tensor:
    """Asymmetric loss for multi-label tags (Ben-Baruch et al. 2021, equation 7), summed. logits, targets: (R, K)."""
    probability = torch.sigmoid(logits.float())
    negative = (1 - probability + clip).clamp(max=1)  # shifted: easy negatives count nothing
    targets = targets.float()
    log_likelihood = targets * probability.clamp(min=1e-8).log() + (1 - targets) * negative.clamp(min=1e-8).log()
    with torch.no_grad():  # the released program lets no gradient through the focusing weight
        kept = probability * targets + negative * (1 - targets)
        weight = (1 - kept) ** (gamma_positive * targets + gamma_negative * (1 - targets))
    return -(log_likelihood * weight).sum()


def sigmoid_region_text_loss(logits: Tensor, positive: Tensor, ignore: Tensor | None = None) -> Tensor:
    """SigLIP loss over regions x texts, summed. logits: (R, N); positive, ignore: bool (R, N), ignored pairs count 0.

    Averaging both directions of the same matrix is the matrix itself: one sum (Zhai et al. 2023, algorithm 1).
    """
    sign = positive.to(logits.dtype) * 2 - 1
    loss = -F.logsigmoid(logits.float() * sign)
    return (loss if ignore is None else loss.masked_fill(ignore, 0)).sum()


def attribute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of labelled attributes, mean over a region's labels, summed over regions.

    logits: (R, A); labels: (R, A) with 1 (has it), -1 (has it not), 0 (unknown, counts nothing)."""
    known = labels != 0
    loss = F.binary_cross_entropy_with_logits(logits.float(), (labels > 0).float(), reduction="none") * known
    return (loss.sum(-1) / known.sum(-1).clamp(min=1)).sum()


def category_loss(logits: Tensor, categories: Tensor) -> Tensor:
    """Cross-entropy over the categories, summed over regions. logits (R, C); categories (R,) long, -1 = unknown."""
    return F.cross_entropy(logits.float(), categories, ignore_index=-1, reduction="sum")


def focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, counted: Tensor | None = None
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, equation 5), summed. logits, targets 0 or 1: (R, C); counted: bool (R, C),
    what is not counts nothing."""
    logits, targets = logits.float(), targets.float()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = torch.where(targets > 0, 1 - logits.sigmoid(), logits.sigmoid())  # 1 - p of the truth
    weight = torch.where(targets > 0, alpha, 1 - alpha)
    loss = weight * missed**gamma * loss
    return (loss if counted is None else loss * counted).sum()
