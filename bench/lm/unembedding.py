"""What a direction of the residual stream does to the logits by itself: the way of the logit lens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.lm.hf import LanguageModel


@torch.no_grad()
def direct_logits(lm: LanguageModel, direction: np.ndarray) -> np.ndarray:
    """Direct effect of a direction on the logits: through the gains of the last norm, without the layers between.

    The last norm divides by the size of the whole residual stream, which depends on the token; so the effect is given in
    standard deviations over the vocabulary, and centred, because equal changes of all logits change nothing.

    Args:
        lm: Language model.
        direction: [d].

    Returns:
        [vocabulary] float32, mean 0 and standard deviation 1; all 0 for a direction without effect.
    """
    head: Any = lm.model.get_output_embeddings()
    weight: Tensor = head.weight[: len(lm.tokenizer)]  # some models have more rows than tokens
    x = torch.from_numpy(np.ascontiguousarray(direction, dtype=np.float32)).to(weight.device)
    if (norm := last_norm(lm)) is not None:
        one = x.to(weight.dtype)[None]
        x = (norm(one) - norm(torch.zeros_like(one)))[0].float()
    effect = weight.float() @ x
    effect = effect - effect.mean()
    return (effect / effect.std(correction=0).clamp(min=1e-12)).cpu().numpy()


def last_norm(lm: LanguageModel) -> nn.Module | None:
    """The norm before the unembedding: the last module outside the blocks with one gain per dimension; None if there is none."""
    inside = {id(m) for m in lm.blocks.modules()}
    found = [
        m
        for m in lm.model.base_model.modules()
        if id(m) not in inside and isinstance(w := getattr(m, "weight", None), Tensor) and tuple(w.shape) == (lm.d_model,)
    ]
    return found[-1] if found else None
