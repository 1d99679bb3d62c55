"""Sums per document from which every reconstruction score follows, and the losses of spliced language models."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

Sums = dict[str, np.ndarray]


def document_sums(
    x: Float[np.ndarray, "n d"], xhat: Float[np.ndarray, "n d"], document: Integer[np.ndarray, " n"], mean: Float[np.ndarray, " d"]
) -> Sums:
    """Per document: tokens, squared error, centred sum of squares, and three shape sums.

    With `error` = Σ‖x − x̂‖² and `total` = Σ‖x − μ‖² summed over all documents, FVU = error / total (one global
    ratio: a mean of ratios is biased); `cross` = Σ⟨x − μ, x̂ − μ⟩ gives the shrinkage slope cross / total.

    Args:
        x: [n, d] activations of kept tokens.
        xhat: [n, d] reconstructions.
        document: [n] document index of each token, from 0.
        mean: [d] mean of `x` over the whole evaluation set.

    Returns:
        Arrays [documents]: tokens, error, total, cross, cosine, norm_ratio (the last two are sums over tokens).
    """
    out: Sums = {k: np.zeros(int(document.max()) + 1) for k in ("tokens", "error", "total", "cross", "cosine", "norm_ratio")}
    for i in range(0, len(x), 4096):
        a, b = x[i : i + 4096].astype(np.float64), xhat[i : i + 4096].astype(np.float64)
        norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        both = np.where(norm_a * norm_b == 0, 1, norm_a * norm_b)
        rows = {
            "tokens": np.ones(len(a)),
            "error": np.square(a - b).sum(1),
            "total": np.square(a - mean).sum(1),
            "cross": ((a - mean) * (b - mean)).sum(1),
            "cosine": (a * b).sum(1) / both,
            "norm_ratio": norm_b / np.where(norm_a == 0, 1, norm_a),
        }
        for name, values in rows.items():
            out[name] += np.bincount(document[i : i + 4096], values, minlength=len(out[name]))
    return out


def token_losses(clean: Float[Tensor, "n v"], new: Float[Tensor, "n v"], target: Int64[Tensor, " n"]) -> dict[str, Tensor]:
    """Cross-entropy of the next token, and both KL divergences to the clean prediction, in nats.

    Args:
        clean: [n, vocabulary] logits of the untouched model.
        new: [n, vocabulary] logits of the changed model.
        target: [n] next token.

    Returns:
        `ce` [n], `kl` = KL(clean ‖ new) [n] and `kl_reverse` = KL(new ‖ clean) [n]; all from log-softmax, so no
        probability underflows.
    """
    p, q = torch.log_softmax(clean, -1), torch.log_softmax(new, -1)
    ce = -q.gather(-1, target[:, None]).squeeze(-1)
    gap = p - q  # from here on in place: a block of logits is 50 MB, and fresh memory costs more than the arithmetic
    return {"ce": ce, "kl": p.exp_().mul_(gap).sum(-1).clamp(min=0), "kl_reverse": -q.exp_().mul_(gap).sum(-1).clamp(max=0)}
