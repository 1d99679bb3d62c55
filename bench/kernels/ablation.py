"""What happens to linear probes on pooled activations when latents are set to zero.

An ablation keeps the SAE's error term: x' = x − Σ_{i∈S} f_i W_i. A probe reads the mean over tokens, so its logit
moves by −Σ_{i∈S} mean(f_i)·⟨w, W_i⟩ and nothing has to be encoded or decoded again. Exact wherever zeroing f_i takes
f_i W_i away, which is every linear decoder; where latents would be selected anew without S (matching pursuit), the
selection is frozen as it was.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Integer

from bench.kernels.logistic import many_logistic
from bench.kernels.probes import standardised


def raw_probes(
    x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n c"], c: float, weight: Float[np.ndarray, "n c"] | None = None
) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, " c"]]:
    """L2 logistic probes fitted on standardised columns, given back in the space of `x`: the logit is x·w + b.

    Args:
        x: [n, d] activations.
        y: [n, c] labels; both values present in every column.
        c: Inverse strength of the penalty on standardised weights.
        weight: [n, c] weights of the rows, 1 if not given.

    Returns:
        Weights [c, d] and intercepts [c], float64; a constant column has weight 0.
    """
    ends = np.stack([np.zeros(x.shape[1]), np.ones(x.shape[1])])
    train, (origin, one) = standardised(x.astype(np.float64), ends)
    w, b = many_logistic(train, y, c, weight)
    return w * (one - origin), b + w @ origin


def latent_effects(
    difference: Float[np.ndarray, " m"], w: Float[np.ndarray, " d"], decoder: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " m"]:
    """How far each latent moves a probe's logit between two groups of texts: difference of mean codes · ⟨w, W_i⟩.

    SCR ranks by its size; TPP clamps the difference at 0 from below and keeps the sign.

    Args:
        difference: [m] mean code on the positives less mean code on the negatives.
        w: [d] probe weights in activation space.
        decoder: [m, d] decoder rows.
    """
    return difference * (decoder @ w.astype(decoder.dtype))


def strongest(effects: Float[np.ndarray, " m"], most: int) -> Integer[np.ndarray, " k"]:
    """At most `most` latents from the largest effect down, ties by index; effects of exactly 0 are never among them.

    Example:
        >>> strongest(np.array([0.0, 2.0, -1.0, 3.0]), 3)
        array([3, 1, 2])
    """
    present = np.flatnonzero(effects)
    return present[np.argsort(-effects[present], kind="stable")[:most]]


def logit_shifts(f: Float[np.ndarray, "n k"], projections: Float[np.ndarray, "k c"], sizes: tuple[int, ...]) -> Float[np.ndarray, "s n c"]:
    """Change of c probes' logits on n pooled texts when the first N of k ranked latents are ablated, for every N at once.

    Args:
        f: [n, k] pooled codes of the ranked latents, strongest first.
        projections: [k, c] ⟨w_c, W_i⟩ of the same latents.
        sizes: Ascending N; one larger than k ablates all k.

    Returns:
        [len(sizes), n, c]; add it to the logits of the texts.
    """
    edges = np.minimum([0, *sizes], f.shape[1])
    parts = [f[:, a:b] @ projections[a:b] for a, b in pairwise(edges)]
    return -np.cumsum(np.stack(parts), axis=0)
