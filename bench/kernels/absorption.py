"""Feature absorption: which part of a concept's projection other latents carry where its own latents are silent.

Chanin et al. 2024 (arXiv 2409.14507); fraction and full scores as in SAEBench (arXiv 2503.09532), except that a zero
projection scores 0 instead of dividing by it. Codes and decoder rows are canonical (unit rows).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Integer

from bench.kernels.logistic import class_weights, l1_logistic, many_logistic
from bench.kernels.probes import nested_logistic, standardised
from bench.kernels.rankings import width

ABSORBER_COSINE = 0.1  # of a latent that takes part in the fraction score
ABSORBERS = 3
FULL_COSINE = 0.025  # of the latent that replaces the main ones in the full score
SHARE = 0.4  # of the projection that absorbers must carry
SILENT = 1e-8
CANDIDATES = 10
SPLIT_GAIN = 0.03  # rise of F1 that makes a further latent a main latent
_CS = (0.01, 0.1, 1.0)
_LOOSE = 1e-4  # gradient at which a probe's direction no longer moves in its third digit


@dataclass(frozen=True)
class Absorbed:
    """Scores of items that hold a concept.

    Args:
        fraction: [n] share of the projection carried by absorbers, in [0, 1].
        full: [n] whether one other latent carries it alone while every main latent is silent.
        without_main: [n] items scored 1 because the main latents do not carry any of it.
        zero_projection: [n] items whose projection is 0; they score 0.
    """

    fraction: Float[np.ndarray, " n"]
    full: Bool[np.ndarray, " n"]
    without_main: Bool[np.ndarray, " n"]
    zero_projection: Bool[np.ndarray, " n"]


def absorbed(
    f: sp.csr_matrix,
    projection: Float[np.ndarray, " n"],
    concept: Integer[np.ndarray, " n"],
    cosine: Float[np.ndarray, "m c"],
    main: Bool[np.ndarray, "m c"],
) -> Absorbed:
    """Absorption of every item at once, from its sparse codes.

    With p the projection on the concept's unit probe direction d̂ and c_i = f_i · cos(W_i, d̂): M = Σ c_i over main
    latents, A = Σ of the three largest positive c_i over other latents with cosine ≥ 0.1. The fraction is 0 if
    M ≥ p or A < 0.4 p, 1 if M ≤ 0, else a / (a + M) with a = min(A, p − M).

    Args:
        f: [n, m] codes.
        projection: [n] x · d̂ of each item's concept.
        concept: [n] concept of each item.
        cosine: [m, c] cosine of each decoder row with each concept's direction.
        main: [m, c] main latents of each concept.
    """
    n, p = len(projection), projection.astype(np.float64)
    row = np.repeat(np.arange(n), np.diff(f.indptr))
    cos, is_main = cosine[f.indices, concept[row]], main[f.indices, concept[row]]
    part = f.data.astype(np.float64) * cos
    carried = np.bincount(row[is_main], part[is_main], minlength=n)
    others = np.flatnonzero(~is_main & (cos >= ABSORBER_COSINE) & (part > 0))
    others = others[np.lexsort((-part[others], row[others]))]
    first = np.searchsorted(row[others], row[others])
    top = others[np.arange(len(others)) - first < ABSORBERS]
    taken = np.bincount(row[top], part[top], minlength=n)
    none = (carried >= p) | (taken < SHARE * p) | (p <= 0)
    absorber = np.minimum(taken, p - carried)
    whole = np.where(none | (carried <= 0), 1.0, absorber + carried)
    fraction = np.where(none, 0.0, np.where(carried <= 0, 1.0, np.clip(absorber / whole, 0, 1)))
    return Absorbed(fraction, _full(f, row, part, cos, is_main, p), ~none & (carried <= 0), p == 0)


def _full(f: sp.csr_matrix, row: np.ndarray, part: np.ndarray, cos: np.ndarray, is_main: np.ndarray, p: np.ndarray) -> np.ndarray:
    """[n] items whose main latents are all silent and whose largest contribution comes from one latent alone."""
    n = len(p)
    silent = np.bincount(row[is_main & (np.abs(f.data) >= SILENT)], minlength=n) == 0
    order = np.lexsort((-part, row))
    best = order[np.unique(row[order], return_index=True)[1]]
    full = np.zeros(n, dtype=bool)
    full[row[best]] = (cos[best] >= FULL_COSINE) & (part[best] >= SHARE * p[row[best]])
    return full & silent & (p > 0)


def concept_probes(
    x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"], part: Integer[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Ground-truth probes: L2 logistic on standardised activations, balanced, strength by each concept's validation F1.

    Args:
        x: [n, d] activations.
        y: [n, c] concepts.
        known: [n, c] which items count for which concept; the others are neither examples nor counter-examples.
        part: [n] 0 training, 1 validation, 2 test.

    Returns:
        Directions [c, d] and intercepts [c] on raw activations, and test F1 [c].
    """
    train = part == 0
    mean, scale = x[train].mean(0, dtype=np.float64), x[train].std(0, dtype=np.float64)
    scale = np.where(scale > 0, scale, np.inf)
    z = (x - mean) / scale
    best = np.full(y.shape[1], -1.0)
    w, b = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    start = None
    for c in _CS:
        found, intercept = many_logistic(z[train], y[train], c, class_weights(y[train], known[train]), start, _LOOSE)
        start = np.concatenate([found, intercept[:, None]], axis=1)
        score = f1(y[part == 1], z[part == 1] @ found.T + intercept > 0, known[part == 1])
        better = score > best
        best[better], w[better], b[better] = score[better], found[better], intercept[better]
    w = w / scale
    b = b - w @ mean
    return w, b, f1(y[part == 2], x[part == 2] @ w.T + b > 0, known[part == 2])


@dataclass(frozen=True)
class MainLatents:
    """Latents that stand for each concept.

    Args:
        main: [m, c] which latents are main for which concept.
        f1: [c, 10] validation F1 of the probe on the 1 … 10 best candidates.
        candidates: [c] number of latents with a positive weight, at most 10.
    """

    main: Bool[np.ndarray, "m c"]
    f1: Float[np.ndarray, "c _"]
    candidates: Integer[np.ndarray, " c"]

    @property
    def split(self) -> np.ndarray:
        """[c] number of main latents (split latents)."""
        return self.main.sum(0)


def main_latents(
    f: sp.csr_matrix, y: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"], part: Integer[np.ndarray, " n"]
) -> MainLatents:
    """Main latents of every concept: candidates by L1, then as many as keep raising validation F1 by more than 0.03.

    Args:
        f: [n, m] codes.
        y: [n, c] concepts.
        known: [n, c] which items count for which concept; the others are neither examples nor counter-examples.
        part: [n] 0 training, 1 validation, 2 test.
    """
    train = part == 0
    l1 = l1_logistic(f[train], y[train], known[train])
    main = np.zeros((width(f), y.shape[1]), dtype=bool)
    scores, found = np.zeros((y.shape[1], CANDIDATES)), np.zeros(y.shape[1], np.int64)
    for c in range(y.shape[1]):
        best = np.argsort(-l1[c], kind="stable")[:CANDIDATES]
        best = best[l1[c, best] > 0]
        found[c] = len(best)
        if len(best) == 0:
            continue
        by_k = _nested_f1(f[:, best], y[:, c], known[:, c], part)
        scores[c, : len(best)] = by_k
        small = np.flatnonzero(by_k[1:] <= by_k[:-1] + SPLIT_GAIN)
        main[best[: int(small[0]) + 1 if len(small) else len(best)], c] = True
    return MainLatents(main, scores, found)


def _nested_f1(f: sp.csr_matrix, y: np.ndarray, known: np.ndarray, part: np.ndarray) -> np.ndarray:
    """[p] validation F1 of balanced probes on the first 1 … p columns."""
    rows, held = (part == 0) & known, (part == 1) & known
    codes, labels = f[rows].toarray().astype(np.float64), y[rows]
    a, b = standardised(codes, f[held].toarray().astype(np.float64))
    weight = class_weights(labels[:, None], np.ones((len(labels), 1), bool))[:, 0]
    kept, mass = _merged(~codes.any(1), labels, weight)
    w, bias = nested_logistic(a[kept], labels[kept].astype(np.int64), tuple(range(1, width(f) + 1)), weight=mass)
    truth = np.repeat(y[held][:, None], width(f), 1)
    return f1(truth, b @ w.T + bias > 0, np.ones_like(truth))


def _merged(alike: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep and their weights when all `alike` rows of one label are one row: most words have no code here at all."""
    first = [int(found[0]) for label in (True, False) if len(found := np.flatnonzero(alike & (y == label)))]
    mass = weight.copy()
    for i in first:
        mass[i] = weight[alike & (y == y[i])].sum()
    kept = np.append(np.flatnonzero(~alike), first).astype(np.int64)
    return kept, mass[kept]


def f1(y: Bool[np.ndarray, "n c"], said: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, " c"]:
    """F1 of the positive class over the known rows, per column; 0 where nothing is positive and nothing is said."""
    both = 2.0 * (y & said & known).sum(0)
    return both / np.maximum((y & known).sum(0) + (said & known).sum(0), 1)


@dataclass(frozen=True)
class Measured:
    """Absorption of the test items of one or more splits.

    Args:
        item: [t] item that holds the concept and whose probe fires.
        concept: [t] its concept.
        absorbed: Scores [t].
        probe_f1: [c] test F1 of the ground-truth probe.
        k1_f1: [c] validation F1 of the best single latent.
        split: [c] number of main latents.
    """

    item: Integer[np.ndarray, " t"]
    concept: Integer[np.ndarray, " t"]
    absorbed: Absorbed
    probe_f1: Float[np.ndarray, " c"]
    k1_f1: Float[np.ndarray, " c"]
    split: Float[np.ndarray, " c"]


def measure(
    x: Float[np.ndarray, "n d"],
    y: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    part: Integer[np.ndarray, " n"],
    probes: tuple[np.ndarray, np.ndarray, np.ndarray],
    f: sp.csr_matrix,
    w_dec: Float[np.ndarray, "m d"],
) -> Measured:
    """Absorption on the test part: find main latents, then score every true positive of every concept.

    Args:
        x: [n, d] activations.
        y: [n, c] concepts.
        known: [n, c] which items count for which concept; the others are neither examples nor counter-examples.
        part: [n] 0 training, 1 validation, 2 test.
        probes: What `concept_probes` found.
        f: [n, m] codes.
        w_dec: [m, d] unit decoder rows.
    """
    w, b, probe_f1 = probes
    found = main_latents(f, y, known, part)
    direction = w / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300)
    item, concept = np.nonzero((part == 2)[:, None] & y & known & (x @ w.T + b > 0))
    projection = np.einsum("td,td->t", x[item].astype(np.float64), direction[concept])
    scores = absorbed(f[item], projection, concept, w_dec @ direction.T, found.main)
    return Measured(item, concept, scores, probe_f1, found.f1[:, 0], found.split.astype(np.float64))


def pooled(folds: list[Measured]) -> Measured:
    """Several splits as one: items together, F1 and numbers of latents averaged."""
    scores = [m.absorbed for m in folds]
    cat = np.concatenate
    together = Absorbed(
        cat([s.fraction for s in scores]),
        cat([s.full for s in scores]),
        cat([s.without_main for s in scores]),
        cat([s.zero_projection for s in scores]),
    )
    means = [np.mean([getattr(m, name) for m in folds], axis=0) for name in ("probe_f1", "k1_f1", "split")]
    return Measured(cat([m.item for m in folds]), cat([m.concept for m in folds]), together, *means)
