"""Which windows of a latent are shown to a judge: the protocols of `autointerp`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.context import Context
from bench.examples import Firings, Reader, neighbours, spread_out, strongest
from bench.kernels import windows
from bench.sae.canonical import Canonical

_CONTRAST = 40  # windows without the latent, for a judge that counts tokens
_DRAWN = 50  # candidates drawn for each window that is wanted
_FEWEST_HARD = 0.5  # share of the hard negatives wanted that must be there
_NONE = np.empty(0, dtype=np.int64)
Inside = Callable[[np.ndarray, bool], np.ndarray]  # those of some tokens that are for the explanation, or for the test


@dataclass(frozen=True)
class Protocol:
    """How many windows of each kind.

    Args:
        firings: Fewest firings of a latent that is looked at.
        top: Strongest windows to explain by, and to test on.
        weighted: Likewise, windows drawn with probability ∝ activation².
        deciles: Test windows from each tenth of the strengths.
        negatives: Inactive windows of each kind.
        spare: Active windows to explain by that must exist, whether or not they are used.
        together: Test windows are judged as one list; else one at a time.
        apart: Explanation and test use different documents.
    """

    firings: int
    top: tuple[int, int]
    weighted: tuple[int, int]
    deciles: int
    negatives: int
    spare: int
    together: bool
    apart: bool


PROTOCOLS = {
    "saebench": Protocol(16, (10, 2), (5, 2), 0, 10, 0, together=True, apart=False),
    "ortsae": Protocol(65, (10, 0), (0, 0), 5, 50, 15, together=False, apart=True),
}


@dataclass(frozen=True)
class Examples:
    """Windows of one latent, by their centres.

    Args:
        latent: Which.
        firings: How often it is active.
        explain: Active ones for the explanation.
        test: Active ones to be detected, with their kind.
        negatives: Inactive ones by list: `random`, `hard` (another latent with a similar decoder row is active).
        contrast: More random inactive ones.
    """

    latent: int
    firings: Firings
    explain: np.ndarray
    test: list[tuple[str, int]]
    negatives: dict[str, np.ndarray]
    contrast: np.ndarray


def examples_of(p: Protocol, reader: Reader, sae: Canonical, latent: int, alive: np.ndarray, ctx: Context) -> Examples | None:
    """Windows of a latent; None where there are too few for the protocol."""
    rng, firings = ctx.rng("autointerp", "latent", int(reader.keys[latent])), reader.firings(latent)
    halves = ctx.rng("autointerp", "documents").random(int(reader.tokens.rows.document.max()) + 1) < 0.5

    def inside(at: np.ndarray, explaining: bool) -> np.ndarray:
        return at[halves[reader.documents(at)] == explaining] if p.apart else at

    active = _active(p, reader, firings, inside, rng)
    if active is None:
        return None
    explain, test = active
    used = np.concatenate([explain, [t for _, t in test]]).astype(np.int64)

    def inactive(at: np.ndarray, count: int, explaining: bool, avoid: np.ndarray) -> np.ndarray:
        at, drawn = inside(at, explaining), _DRAWN * count
        while True:
            some = rng.choice(at, min(len(at), drawn), replace=False)
            found = windows.apart(reader.layout, windows.silent(reader.layout, firings.at, some), count, avoid)
            if len(found) == count or drawn >= len(at):
                return found
            drawn *= 8

    random = inactive(reader.kept, p.negatives, False, used)
    if len(random) < p.negatives:
        return None
    hard = _NONE
    for near in neighbours(sae.W_dec, np.array([latent]), alive)[0][0]:  # the nearest as far as it goes, then the next
        theirs = inactive(reader.firings(int(near)).at, p.negatives - len(hard), False, np.concatenate([used, random, hard]))
        hard = np.concatenate([hard, theirs])
        if len(hard) == p.negatives:
            break
    contrast = inactive(reader.kept, _CONTRAST, True, np.concatenate([used, random, hard]))
    if not len(contrast):
        return None
    enough = len(hard) >= _FEWEST_HARD * p.negatives
    return Examples(latent, firings, explain, test, {"random": random} | ({"hard": hard} if enough else {}), contrast)


def _active(
    p: Protocol, reader: Reader, firings: Firings, inside: Inside, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[str, int]]] | None:
    """Centres to explain by, the strongest first, and to test on with their kind."""
    text, ordered = reader.layout, strongest(firings)
    strength = firings.strength[np.searchsorted(firings.at, ordered)]
    top = windows.apart(text, inside(ordered, True), max(sum(p.top), p.spare), _NONE)
    weighted = windows.apart(text, ordered[windows.by_importance(strength, rng)], sum(p.weighted), top)
    if len(top) < max(sum(p.top), p.spare) or len(weighted) < sum(p.weighted):
        return None
    top, weighted = rng.permutation(top[: sum(p.top)]), rng.permutation(weighted)  # the later drawn are the weaker
    explain = np.concatenate([top[: p.top[0]], weighted[: p.weighted[0]]])
    explain = explain[np.argsort(-firings.strength[np.searchsorted(firings.at, explain)], kind="stable")]
    test = [("top", int(t)) for t in top[p.top[0] :]] + [("weighted", int(t)) for t in weighted[p.weighted[0] :]]
    if p.deciles:
        rest = windows.apart(text, inside(spread_out(firings, rng), False), len(ordered), explain)
        if len(rest) < 10 * p.deciles:
            return None
        chosen = windows.by_decile(firings.strength[np.searchsorted(firings.at, rest)], p.deciles, rng)
        test += [(f"decile {i // p.deciles + 1}", int(rest[c])) for i, c in enumerate(chosen)]
    return explain, test
