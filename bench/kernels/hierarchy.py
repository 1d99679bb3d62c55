"""Hierarchy geometry: is what tells a child from its parent orthogonal to the parent? (Park et al. 2024, arXiv 2406.01506)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def hierarchy_cosines(
    means: Float[np.ndarray, "k d"], member: Bool[np.ndarray, "k p"], outside: Bool[np.ndarray, "k p"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Mean over a parent's children of cos(child − parent, parent), and the same with a random parent in its place.

    A parent's vector is the mean of its other children less the mean of all that are not its children; it is taken
    from two halves of the other children, one for each side of the cosine, so that noise in it does not pull the
    value below 0. The child's vector has the same origin.

    Args:
        means: [k, d] mean (decoded) activation of each child concept.
        member: [k, p] which children belong to which parent; at least 3 per parent.
        outside: [k, p] which do not; at least 2 per parent. A child that may belong is neither.
        rng: Draws the halves and the random parents.

    Returns:
        [p] value with the own parent, and [p] with a random parent that the child does not belong to (0 where every
        child belongs to every parent).
    """
    total, size = outside.T.astype(float) @ means, outside.sum(0)  # of all that are not a parent's children

    def cosine(child: int, p: int) -> float:
        origin = (total[p] - means[child]) / (size[p] - 1) if outside[child, p] else total[p] / size[p]
        rest = np.flatnonzero(member[:, p])
        rest = rng.permutation(rest[rest != child])
        one, two = (means[half].mean(0) - origin for half in (rest[::2], rest[1::2]))
        step = means[child] - origin - one
        norms = float(np.linalg.norm(step) * np.linalg.norm(two))
        return float(step @ two) / norms if norms > 0 else 0.0

    own, other = np.zeros(member.shape[1]), np.zeros(member.shape[1])
    for p in range(member.shape[1]):
        children = np.flatnonzero(member[:, p]).tolist()
        own[p] = np.mean([cosine(c, p) for c in children])
        strangers = [(c, int(rng.choice(np.flatnonzero(outside[c])))) for c in children if outside[c].any()]
        drawn = [cosine(c, q) for c, q in strangers]
        other[p] = np.mean(drawn) if drawn else 0.0
    return own, other
