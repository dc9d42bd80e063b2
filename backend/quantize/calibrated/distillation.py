"""Distillation: what an original says at windows of text is kept, and how far a model is from it can be trained.

Of each token the likeliest next ones are kept, and all others count as one more class: KL divergence between such
classes is at most that between all tokens, and at 16 bit hardly less.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

LIKELIEST = 128
"""Next tokens of which the original's probabilities are kept."""

ROWS = 256
"""Tokens whose logits are compared at a time."""

TINY = 1e-9
"""Added to probabilities: some are 0 in float32."""


class Said(NamedTuple):
    """What the original says at a window.

    Attributes:
        ids: Of the window, int64 [length].
        likeliest: Next tokens, int32 [length, LIKELIEST].
        shares: Their probabilities, float32 [length, LIKELIEST].
    """

    ids: Any
    likeliest: Any
    shares: Any


def listen(model: Any, ids: Any) -> Said:
    """Have the original read a window.

    Args:
        model: Of transformers.
        ids: int64 [length].
    """
    shares, tokens = [], []
    with torch.no_grad():
        logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0]
        for rows in logits.split(ROWS):
            top = rows.float().softmax(-1).topk(min(LIKELIEST, rows.shape[-1]))
            shares.append(top.values.cpu())
            tokens.append(top.indices.int().cpu())
    return Said(ids, torch.cat(tokens), torch.cat(shares))


def divergence(model: Any, windows: Sequence[Said]) -> Any:
    """Return the mean KL divergence of a model from the original at windows of one length, in nats a token."""
    ids, likeliest, shares = (torch.stack(parts).to(model.device) for parts in zip(*windows, strict=True))
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return _Divergence.apply(logits, likeliest.flatten(0, 1).long(), shares.flatten(0, 1))  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    """Mean KL divergence; its gradient is found beside it, so that no probabilities are kept in float32.

    With p of the original and q of the model, r the sum over all tokens but the likeliest, the gradient of a logit is
    q - p of the likeliest ones, and q · (1 - p_r / q_r) of others.
    """

    @staticmethod
    def forward(ctx: Any, logits: Any, likeliest: Any, shares: Any) -> Any:
        """Return the mean, float32."""
        found, gradient = logits.new_zeros((), dtype=torch.float32), torch.empty_like(logits)
        parts = (tensor.split(ROWS) for tensor in (logits, gradient, likeliest, shares))
        for rows, slope, tokens, p in zip(*parts, strict=True):
            q = rows.float().softmax(-1)
            likely = q.gather(1, tokens)
            p_rest, q_rest = ((1 - each.sum(1, keepdim=True)).clamp(min=TINY) for each in (p, likely))
            found += (p * ((p + TINY) / (likely + TINY)).log()).sum() + (p_rest * (p_rest / q_rest).log()).sum()
            slope.copy_(q.mul_(1 - p_rest / q_rest).scatter_(1, tokens, likely - p))
        ctx.save_for_backward(gradient)
        return found / len(logits)

    @staticmethod
    def backward(ctx: Any, outer: Any) -> Any:
        """Return the gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * (outer / len(gradient)), None, None
