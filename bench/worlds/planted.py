"""Planted worlds: activations whose dictionary, firings and hierarchy are known.

x = Σ_j f_j W_j + noise. The first features are the roots of `roots` trees, level by level; a child fires only when
its parent does, and at most one of exclusive siblings. The rest are free. Frequencies follow a power law of the
index. Roots and free features are tied by a low-rank Gaussian copula; which children fire depends on the parent
alone, so every marginal probability is exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.special import erf, ndtri

from bench.errors import UsageError
from bench.rng import numpy_rng
from bench.sae.codes import Codes
from bench.store import digest

_BLOCK = 1024  # tokens drawn together; the only place where tokens × features is dense
_SPREADING = 50  # rounds that flatten the spectrum of more directions than dimensions
_MOST_SHARED = 0.99  # largest share of a feature's copula variance that the common factors take


@dataclass(frozen=True)
class WorldSpec:
    """All that a world depends on.

    Args:
        n_features: Features n.
        d: Dimensions; more features than dimensions is superposition.
        roots: Trees of the hierarchy.
        branching: Children per parent.
        depth: Levels below the roots.
        exclusive: At most one of a parent's children fires; otherwise they are independent given the parent.
        child_share: Largest share of a parent's firings that its exclusive children take together (each one, if not
            exclusive); children whose power-law frequency asks for more are scaled down.
        zipf: Exponent of the power law.
        p_max: Firing probability of feature 0.
        p_min: Firing probability of the last feature.
        rank: Common factors of the copula.
        strength: Standard deviation of a feature's loading on each factor.
        noise: Root mean square norm of the isotropic noise.
        magnitude: Mean of the normal whose absolute value is an active feature's code.
        magnitude_sd: Its standard deviation.
        directions: `random`, or `spread`: orthogonal when n ≤ d, else a frame with cosines near the lowest mean square.
        circles: The first so many roots' children lie evenly on a circle, each in a plane of its own.
        seed: Root of all draws.

    Raises:
        UsageError: A number is out of range, or the trees need more features than there are.
    """

    n_features: int
    d: int
    roots: int = 0
    branching: int = 0
    depth: int = 0
    exclusive: bool = True
    child_share: float = 0.6
    zipf: float = 0.5
    p_max: float = 0.2
    p_min: float = 0.001
    rank: int = 0
    strength: float = 0.0
    noise: float = 0.0
    magnitude: float = 1.0
    magnitude_sd: float = 0.15
    directions: Literal["random", "spread"] = "spread"
    circles: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = self.n_features >= 1 and self.d >= 2 and min(self.roots, self.depth, self.rank, self.circles) >= 0
        shares = 0 < self.p_min <= self.p_max < 1 and 0 < self.child_share <= 1 and self.zipf > 0
        scales = min(self.strength, self.noise, self.magnitude_sd) >= 0 and self.magnitude > 0
        if not (sizes and shares and scales) or self.circles > self.roots or (self.depth > 0 and self.branching < 1):
            raise UsageError(f"no such world: {self}", "see bench.worlds.planted.WorldSpec")
        if self.circles and (self.depth < 1 or self.branching < 2):
            raise UsageError("a circle needs children", "use depth ≥ 1 and branching ≥ 2")
        if self.in_trees > self.n_features:
            raise UsageError(f"the trees need {self.in_trees} features, there are {self.n_features}", "use fewer roots or levels")

    @property
    def in_trees(self) -> int:
        """Features that belong to a tree."""
        return self.roots * sum(self.branching**level for level in range(self.depth + 1))

    @property
    def sha256(self) -> str:
        """Identity of the world."""
        return digest(["planted world 1", asdict(self)])


@dataclass(frozen=True)
class World:
    """A world one can sample.

    Args:
        spec: What it is.
        name: Reference it was opened by, such as `world:small`.
    """

    spec: WorldSpec
    name: str = "world:unnamed"

    @property
    def n_features(self) -> int:
        return self.spec.n_features

    @property
    def d(self) -> int:
        return self.spec.d

    @cached_property
    def parents(self) -> np.ndarray:
        """[n] parent of each feature, −1 for roots and free features; children of one parent are consecutive."""
        out = np.full(self.n_features, -1)
        out[self.spec.roots : self.spec.in_trees] = (np.arange(self.spec.in_trees - self.spec.roots)) // max(self.spec.branching, 1)
        return out

    @cached_property
    def first_child(self) -> np.ndarray:
        """[n] first child of each feature, −1 where it has none."""
        out = np.full(self.n_features, -1)
        children = np.flatnonzero(self.parents >= 0)[:: max(self.spec.branching, 1)]
        out[self.parents[children]] = children
        return out

    def children(self, feature: int | np.integer) -> np.ndarray:
        """Children of a feature."""
        first = int(self.first_child[feature])
        return np.arange(first, first + self.spec.branching) if first >= 0 else np.zeros(0, np.int64)

    @property
    def concepts(self) -> np.ndarray:
        """Features that have children, the roots first."""
        return np.flatnonzero(self.first_child >= 0)

    @property
    def edges(self) -> np.ndarray:
        """[e, 2] (parent, child) pairs, ascending."""
        child = np.flatnonzero(self.parents >= 0)
        return np.stack([self.parents[child], child], 1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """[n] marginal firing probability of each feature, exact."""
        s = self.spec
        law = np.arange(1, s.n_features + 1, dtype=np.float64) ** -s.zipf
        p = s.p_min + (s.p_max - s.p_min) * (law - law[-1]) / max(law[0] - law[-1], 1e-300)
        for parent in self.concepts:  # parents come before their children
            kids = self.children(parent)
            most = s.child_share * p[parent]
            p[kids] *= min(1.0, most / p[kids].sum()) if s.exclusive else np.minimum(1.0, most / p[kids])
        return p

    @property
    def mean_l0(self) -> float:
        """Expected number of features that fire on a token."""
        return float(self.probabilities.sum())

    @cached_property
    def mean_magnitude(self) -> float:
        """Mean code of a feature that fires: that of |N(magnitude, magnitude_sd)|."""
        m, s = self.spec.magnitude, self.spec.magnitude_sd
        if s == 0:
            return m
        return float(s * np.sqrt(2 / np.pi) * np.exp(-((m / s) ** 2) / 2) + m * erf(m / s / np.sqrt(2)))

    @cached_property
    def variances(self) -> np.ndarray:
        """[n] variance of each feature's code."""
        p, square = self.probabilities, self.spec.magnitude**2 + self.spec.magnitude_sd**2
        return p * square - (p * self.mean_magnitude) ** 2

    @cached_property
    def mean(self) -> np.ndarray:
        """[d] expected activation."""
        return self.probabilities * self.mean_magnitude @ self.dictionary.astype(np.float64)

    @cached_property
    def dictionary(self) -> np.ndarray:
        """[n, d] float32 true directions, unit rows."""
        s = self.spec
        w = _unit(numpy_rng(s.seed, "world", "directions").standard_normal((s.n_features, s.d)))
        if s.directions == "spread":
            w = _spread(w)
        for root in range(s.circles):
            kids = self.children(root)
            plane = np.linalg.qr(w[kids[:2]].T)[0].T
            angle = 2 * np.pi * np.arange(len(kids)) / len(kids)
            w[kids] = np.stack([np.cos(angle), np.sin(angle)], 1) @ plane
        return w.astype(np.float32)

    @cached_property
    def _top(self) -> np.ndarray:
        """Roots and free features: those that no parent gates."""
        return np.flatnonzero(self.parents < 0)

    @cached_property
    def _copula(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[top, rank] loadings, [top] own standard deviation, [top] threshold of a standard normal."""
        s = self.spec
        f = s.strength * numpy_rng(s.seed, "world", "factors").standard_normal((len(self._top), s.rank))
        shared = np.square(f).sum(1)
        f *= np.sqrt(np.minimum(1.0, _MOST_SHARED / np.where(shared == 0, 1, shared)))[:, None]
        own = np.sqrt(1 - np.square(f).sum(1))
        return f.astype(np.float32), own.astype(np.float32), (-ndtri(self.probabilities[self._top])).astype(np.float32)

    @cached_property
    def _shares(self) -> np.ndarray:
        """[n, branching] probability of each child given its parent; zeros where there are no children."""
        out = np.zeros((self.n_features, max(self.spec.branching, 1)))
        parent, child = self.edges.T
        out[parent, child - self.first_child[parent]] = self.probabilities[child] / self.probabilities[parent]
        return out

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, Codes]:
        """Draw tokens.

        Args:
            n: How many.
            rng: Source of all randomness.

        Returns:
            ([n, d] float32 activations, true codes of the n features).
        """
        x, blocks = np.empty((n, self.d), np.float32), list[Codes]()
        for i in range(0, n, _BLOCK):
            codes = self._codes(min(_BLOCK, n - i), rng)
            x[i : i + codes.n] = codes.matrix @ self.dictionary
            if self.spec.noise > 0:
                x[i : i + codes.n] += rng.standard_normal((codes.n, self.d), np.float32) * np.float32(self.spec.noise / np.sqrt(self.d))
            blocks.append(codes)
        return x, Codes.concat(blocks or [Codes.from_dense(np.zeros((0, self.n_features), np.float32))])

    def _codes(self, n: int, rng: np.random.Generator) -> Codes:
        factors, own, threshold = self._copula
        z = rng.standard_normal((n, len(own)), np.float32) * own
        if self.spec.rank:
            z += rng.standard_normal((n, self.spec.rank), np.float32) @ factors.T
        rows, at = np.divmod(np.flatnonzero(z > threshold), len(own))
        cols = self._top[at]
        levels = [(rows, cols)]
        while len(rows) and (self.first_child[cols] >= 0).any():
            rows, cols = self._fire_children(rows, cols, rng)
            levels.append((rows, cols))
        rows, cols = (np.concatenate(part) for part in zip(*levels, strict=True))
        order = np.lexsort((cols, rows))
        values = np.abs(self.spec.magnitude + self.spec.magnitude_sd * rng.standard_normal(len(rows)))
        return Codes.from_parts(rows[order], cols[order], values, n, self.n_features)

    def _fire_children(self, rows: np.ndarray, cols: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(token, child) pairs that fire below the given (token, parent) pairs."""
        has = self.first_child[cols] >= 0
        rows, cols = rows[has], cols[has]
        shares = self._shares[cols]
        if self.spec.exclusive:
            chosen = (rng.random(len(rows))[:, None] >= shares.cumsum(1)).sum(1)
            fires = np.arange(shares.shape[1]) == chosen[:, None]
        else:
            fires = rng.random(shares.shape) < shares
        pair, child = np.nonzero(fires)
        return rows[pair], self.first_child[cols[pair]] + child


def _unit(w: np.ndarray) -> np.ndarray:
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def _spread(w: np.ndarray) -> np.ndarray:
    """Unit rows, orthogonal if they can be; else with a nearly flat spectrum, which minimises the sum of squared cosines."""
    if len(w) <= w.shape[1]:
        return np.linalg.qr(w.T)[0].T
    for _ in range(_SPREADING):
        values, vectors = np.linalg.eigh(w.T @ w)
        w = _unit(w @ (vectors / np.sqrt(values)) @ vectors.T)
    return w
