"""Copies of a good SAE with one defect at a known dose, made from the truth of a planted world.

Latent i stands for feature i. A defect takes a share `dose` of the units it can befall, spread evenly over
frequencies and nested: what is defective at 10 % is so at 20 %. Where latents are needed, the rarest free features
lose theirs. Ballast (`bench.worlds.good`) keeps the mean L0 what it was; at a dose of 10 % explained variance stays
within 0.02 (the mixing ones need features that a linear filter tells apart, so not those of a circle).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bench.errors import UsageError
from bench.rng import numpy_rng
from bench.sae.activations import JumpReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.worlds import truth
from bench.worlds.good import calibration_sample, levelled, tensor
from bench.worlds.planted import World

_INHIBITION = 1.1  # × the child's code taken from its parent's pre-activation: enough to silence it
_SHARED = 0.5  # share of the parent that a composed child's row takes over; above √2 − 1 the row is nearest to the sum
_CONTEXT = 4  # children that make up the context of a split: each adds its filter's noise
_TILT = 0.2  # tangent of the angle by which a duplicate leaves its original
_AXIS = 0.35  # coordinate above which a half axis fires: half of that of a point between two
_GOLDEN = 0.6180339887498949

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Injected:
    """An SAE with a planted defect.

    Args:
        sae: Same size as the good one.
        rate: True rate of the defect, measured on a sample: 0 in the good SAE, about the dose here.
    """

    sae: DenseSAE
    rate: float


def absorbed(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """Children absorb parents: the child's row is unit(child + parent), the parent's latent is silent where the child fires.

    Units: (parent, child) pairs. The parent's encoder loses 1.1 × the child's. A child whose parent has absorbed
    its own carries all three. Rate: mean over pairs of the child's absorbed firings (`truth.absorbed_share`).
    """
    pairs = world.edges
    e, b, r, theta = _arrays(sae)
    raw_e, raw_b = e.copy(), b.copy()
    for parent, child in pairs[_chosen(len(pairs), dose, world, seed)]:  # ascending: a parent's row is final before its child's
        r[child] += r[parent]
        e[:, parent] -= _INHIBITION * raw_e[:, child]
        b[parent] -= _INHIBITION * raw_b[child]

    def rate(made: DenseSAE) -> float:
        x, true = calibration_sample(world)
        own = np.arange(world.n_features)
        return float(truth.absorbed_share(true, made.encode_sparse(x), _rows(made, world), world.dictionary, pairs, own)[0].mean())

    return _injected(sae, world, (e, b, r, theta), rate)


def composed(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """Children's latents become conjunctions: the row is unit(child + parent / 2), the parent's latent keeps the rest of its code.

    Units: features that have a parent. Rate: share of them whose row is nearer to a sum of two features than to
    any one (`truth.composed`).
    """
    pairs = world.edges
    e, b, r, theta = _arrays(sae)
    for parent, child in pairs[_chosen(len(pairs), dose, world, seed)][::-1]:  # from the leaves up: what is left of codes, not raw ones
        r[child] += _SHARED * world.dictionary[parent]
        e[:, parent] -= _SHARED * e[:, child]
        b[parent] -= _SHARED * b[child]
        theta[parent] = min(theta[parent], world.mean_magnitude * _SHARED**2)
    children = pairs[:, 1]
    return _injected(sae, world, (e, b, r, theta), lambda m: float(truth.composed(_rows(m, world)[children], world.dictionary).mean()))


def duplicated(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """Latents become copies of others, tilted by ± 11°; original and copy fire together with half the code each.

    Units: latents; the rarest free features lose theirs. Rate: share of features that no row tells apart any more.
    """
    e, b, r, theta = _arrays(sae)
    lost = _rarest(world, dose * world.n_features)
    rest = np.setdiff1d(np.arange(world.n_features), lost)
    source = rest[_chosen(len(rest), len(lost) / len(rest), world, seed)]
    tilt = numpy_rng(world.spec.seed, "defects", "tilt", seed).standard_normal((len(lost), world.d))
    tilt -= np.einsum("ij,ij->i", tilt, r[source])[:, None] * r[source]
    tilt *= _TILT / np.linalg.norm(tilt, axis=1, keepdims=True)
    r[lost], r[source] = r[source] + tilt, r[source] - tilt
    e[:, source], b[source], theta[source] = e[:, source] / 2, b[source] / 2, theta[source] / 2
    e[:, lost], b[lost], theta[lost] = e[:, source], b[source], theta[source]
    return _injected(sae, world, (e, b, r, theta), lambda m: 1 - float(truth.recovered(_rows(m, world), world.dictionary).mean()))


def split(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """A concept's latent splits by context: one fires where one of its first children does, the other elsewhere.

    The context is half of the children, at most four. Units: concepts; the rarest free features lose their latents.
    Rate: share of concepts with two latents of their direction that each miss a tenth of the concept's firings or more.
    """
    units = world.concepts
    e, b, r, theta = _arrays(sae)
    raw_e, raw_b, mu = e.copy(), b.copy(), world.mean_magnitude
    halved = units[_chosen(len(units), dose, world, seed)]
    for concept, new in zip(halved, _rarest(world, len(halved)), strict=True):
        context = world.children(concept)[: min((world.spec.branching + 1) // 2, _CONTEXT)]
        inside, level = raw_e[:, context].sum(1), raw_b[context].sum()
        e[:, new], b[new], theta[new], r[new] = e[:, concept] + inside, b[concept] + level - mu, theta[concept], r[concept]
        e[:, concept] -= _INHIBITION * inside
        b[concept] -= _INHIBITION * level

    def rate(made: DenseSAE) -> float:
        x, true = calibration_sample(world)
        at, latent = np.nonzero(world.dictionary[units] @ _rows(made, world).T > truth.RECOVERED)
        both, fires, _ = truth.firing_counts(true, made.encode_sparse(x), units[at], latent)
        return float((np.bincount(at[both < 0.9 * fires], minlength=len(units)) >= 2).mean())

    return _injected(sae, world, (e, b, r, theta), rate)


def shrunk(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """Every feature's code has 1 − dose of its size. Rate: 1 − slope of the code on the true code."""
    e, b, r, theta = _arrays(sae)
    n = world.n_features
    e[:, :n], b[:n], theta[:n] = (1 - dose) * e[:, :n], (1 - dose) * b[:n], (1 - dose) * theta[:n]

    def rate(made: DenseSAE) -> float:
        x, true = calibration_sample(world)
        t = true.matrix
        return 1 - float(made.encode_sparse(x).matrix[:, :n].multiply(t).sum() / t.multiply(t).sum())

    return _injected(sae, world, (e, b, r, theta), rate)


def rotated(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """A concept's latent turns towards another tree's: it fires on both, so no one latent tells the concept.

    Units: concepts, each with a partner (`partners`). Rate: mean over concepts of the partner's firings without the
    concept on which the concept's latent fires.
    """
    return _mixed(sae, world, partners(world, seed), dose, seed)


def entangled(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """Attributes leak: the latent of a fires on b too, and taking b's latent out of an activation moves it along a.

    Units: pairs (a, b) of `attribute_pairs`. Rate: mean over pairs of b's firings without a on which a's latent fires.
    """
    return _mixed(sae, world, attribute_pairs(world), dose, seed)


def broken_circles(sae: DenseSAE, world: World, dose: float, seed: int = 0) -> Injected:
    """A circle's points lose their latents to four half axes of its plane, so that no cluster of rows holds the circle.

    The latents from one axis to the next become copies of the first, with the code shared among them. Units:
    circles. Rate: share of circles with a neighbour at a cosine of at most 0.5.
    """
    circles = [world.children(root) for root in range(world.spec.circles)]
    if not circles or world.spec.branching % 4 or world.spec.branching < 8:
        raise UsageError(f"{world.name} has no circles of 8 points (or 12, 16 …)", "use world:circles")
    e, b, r, theta = _arrays(sae)
    copies = world.spec.branching // 4
    for points in (circles[i] for i in _chosen(len(circles), dose, world, seed)):
        axis = np.repeat(points[::copies], copies)
        e[:, points], b[points], r[points] = e[:, axis] / copies, b[axis] / copies, r[axis]
        theta[points] = _AXIS * world.mean_magnitude / copies

    def rate(made: DenseSAE) -> float:
        rows = _rows(made, world)
        return float(np.mean([np.einsum("ij,ij->i", rows[c], rows[np.roll(c, 1)]).min() <= 0.5 for c in circles]))

    return _injected(sae, world, (e, b, r, theta), rate)


DEFECTS = {f.__name__: f for f in (absorbed, composed, duplicated, split, shrunk, rotated, entangled, broken_circles)}


def attribute_pairs(world: World) -> np.ndarray:
    """[k, 2] disjoint pairs of neighbours: of roots, then among the children of each root."""
    roots = np.arange(world.spec.roots // 2 * 2).reshape(-1, 2)
    even = world.spec.branching // 2 * 2 if world.spec.depth else 0
    return np.concatenate([roots, *(world.children(root)[:even].reshape(-1, 2) for root in range(world.spec.roots))])


def partners(world: World, seed: int = 0) -> np.ndarray:
    """[k, 2] each concept, and the concept at its place in another tree; the trees are shifted by a random number."""
    units = world.concepts
    tree = units.copy()
    while (world.parents[tree] >= 0).any():
        tree = np.where(world.parents[tree] >= 0, world.parents[tree], tree)
    by_tree = units[np.argsort(tree, kind="stable")]
    shift = int(numpy_rng(world.spec.seed, "defects", "partners", seed).integers(1, max(world.spec.roots, 2)))
    pairs = np.stack([by_tree, np.roll(by_tree, shift * (len(units) // max(world.spec.roots, 1)))], 1)
    return pairs[np.argsort(pairs[:, 0])]


def _mixed(sae: DenseSAE, world: World, pairs: np.ndarray, dose: float, seed: int) -> Injected:
    """The first latent of each chosen pair fires on the second's feature too, and the second's row takes that back."""
    e, b, r, theta = _arrays(sae)
    for first, second in pairs[_chosen(len(pairs), dose, world, seed)]:
        e[:, first] += e[:, second]
        b[first] += b[second]
        r[second] -= r[first]

    def rate(made: DenseSAE) -> float:
        x, true = calibration_sample(world)
        present, active = truth.fires(true), truth.fires(made.encode_sparse(x))
        alone = present[:, pairs[:, 1]] - present[:, pairs[:, 1]].multiply(present[:, pairs[:, 0]])
        seen = np.asarray(alone.multiply(active[:, pairs[:, 0]]).sum(0)).ravel()
        return float((seen / np.maximum(np.asarray(alone.sum(0)).ravel(), 1)).mean())

    return _injected(sae, world, (e, b, r, theta), rate)


def _chosen(n: int, dose: float, world: World, seed: int) -> np.ndarray:
    """round(dose · n) of n units, ascending, spread evenly over them; a higher dose holds those of a lower one."""
    if not 0 <= dose <= 1:
        raise UsageError(f"a dose of {dose} is no share", "give a number from 0 to 1")
    start = numpy_rng(world.spec.seed, "defects", seed).random()
    return np.sort(np.argsort((start + _GOLDEN * np.arange(n)) % 1)[: round(dose * n)])


def _rarest(world: World, count: float) -> np.ndarray:
    """The rarest free features, whose latents a defect takes, the rarest first."""
    free = np.arange(world.spec.in_trees, world.n_features)
    if round(count) > len(free):
        raise UsageError(f"the dose needs {round(count)} free features, {world.name} has {len(free)}", "use a smaller dose")
    return free[np.argsort(world.probabilities[free], kind="stable")][: round(count)]


def _arrays(sae: DenseSAE) -> Arrays:
    """Encoder [d, m], bias [m], rows [m, d] and thresholds [m] as float64 copies."""
    assert isinstance(sae.act, JumpReLU)
    e, b, r, theta = (t.double().numpy().copy() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.act.threshold))
    return e, b, r, theta


def _injected(sae: DenseSAE, world: World, arrays: Arrays, rate: Callable[[DenseSAE], float]) -> Injected:
    """The SAE of these arrays with unit rows and the L0 of the one it was made from."""
    e, b, r, theta = arrays
    norm = np.linalg.norm(r, axis=1)
    made = replace(sae, W_enc=tensor(e * norm), b_enc=tensor(b * norm), W_dec=tensor(r / norm[:, None]), act=JumpReLU(tensor(theta * norm)))
    x, _ = calibration_sample(world)
    made = levelled(made, world, float(sae.encode_sparse(x).l0().mean()))
    return Injected(made, rate(made))


def _rows(sae: DenseSAE, world: World) -> np.ndarray:
    """[n, d] unit rows of the features' latents."""
    return Canonical(sae).W_dec[: world.n_features]
