"""How strongly, on what and beside whom a latent fires."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer


def histogram(strength: Float[np.ndarray, " f"], bins: int) -> tuple[Float[np.ndarray, " edges"], Integer[np.ndarray, " bins"]]:
    """Firings by strength, in equal bins from 0 to the strongest.

    Args:
        strength: [f] positive, f ≥ 1.
        bins: How many.

    Returns:
        [bins + 1] edges and [bins] counts; the counts sum to f. A bin holds its lower edge, the last one both.

    Example:
        >>> histogram(np.array([1.0, 3.9, 4.0]), 4)
        (array([0., 1., 2., 3., 4.]), array([0, 1, 0, 2]))
    """
    counts, edges = np.histogram(strength.astype(np.float64), bins, range=(0.0, float(strength.max())))
    return edges, counts


def joint_counts(
    indptr: Integer[np.ndarray, " rows_and_end"], indices: Integer[np.ndarray, " nnz"], rows: Integer[np.ndarray, " f"], m: int
) -> Integer[np.ndarray, " m"]:
    """On how many of some tokens each latent fires.

    Args:
        indptr: [n + 1] start of each token's active latents.
        indices: [nnz] active latents.
        rows: [f] tokens, no two the same.
        m: Latents.

    Example:
        >>> joint_counts(np.array([0, 2, 3, 3]), np.array([0, 2, 2]), np.array([0, 2]), 3)
        array([1, 0, 1])
    """
    sizes = indptr[rows + 1] - indptr[rows]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.bincount(indices[np.repeat(indptr[rows], sizes) + within], minlength=m)


def overlap(joint: Integer[np.ndarray, " k"], own: int, theirs: Integer[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Jaccard index of the tokens on which one latent and others fire; 0 where neither fires.

    Args:
        joint: [k] tokens on which both fire.
        own: Tokens on which the latent fires.
        theirs: [k] tokens on which each other fires.

    Example:
        >>> overlap(np.array([2, 0]), 4, np.array([2, 5]))
        array([0.5, 0. ])
    """
    return joint / np.maximum(own + theirs - joint, 1)


def by_group(
    group: Integer[np.ndarray, " f"], strength: Float[np.ndarray, " f"], groups: int
) -> tuple[Integer[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """[groups] firings and their mean strength in each group; 0 in an empty one.

    Example:
        >>> by_group(np.array([0, 2, 0]), np.array([1.0, 5.0, 3.0]), 3)
        (array([2, 0, 1]), array([2., 0., 5.]))
    """
    counts = np.bincount(group, minlength=groups)
    return counts, np.bincount(group, strength, groups) / np.maximum(counts, 1)
