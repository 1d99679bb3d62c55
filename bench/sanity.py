"""Does an SAE look at home where it is said to belong? Reconstruction on a few thousand tokens, and what its neighbours give.

One pass through the language model reads the SAE's own hook and the places it could be mistaken for: two layers down,
two up, and the other sites of its layer. At each the SAE is tried as it is, and at its own hook with the input scalings
that libraries use. The best is named; what it means is for the reader to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bench import progress
from bench.adapters.build import in_frames
from bench.data.text import Corpus, Rows, tokenised
from bench.errors import UsageError
from bench.kernels.reconstruction import document_sums
from bench.lm.harvest import NORM_FACTOR, first_batch, keep_mask, padded
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken
from bench.store import Store

TOKENS = 4096
_TRIED = 1024  # tokens on which other places and scalings are tried
_CLEARLY = 0.03  # explained variance by which another place must be better to be named; noise on 1,024 tokens is below it
_POOR = 0.5  # below this, scalings are tried at other places too
_SITES = ("resid_post", "mlp_out", "attn_out")
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Trial:
    """Explained variance at one place with one input scaling."""

    hook: str
    scaling: str
    ev: float

    def __str__(self) -> str:
        return self.hook + ("" if self.scaling == AS_IT_IS else f" with {self.scaling}")


@dataclass(frozen=True)
class Sanity:
    """How an SAE does on a few thousand tokens of the evaluation text.

    Args:
        tokens: Tokens that count.
        ev: Explained variance, 1 − Σ‖x − x̂‖² / Σ‖x − mean‖².
        l0: Mean number of active latents per token.
        silent: Latents that fire on none of these tokens.
        code: Median absolute active code, as the file has it.
        code_canonical: The same with unit decoder rows, as metrics see it.
        trials: Other places and scalings, best first; the first is the SAE's own, on the same tokens.
        warnings: Sentences for the user.
    """

    tokens: int
    ev: float
    l0: float
    silent: int
    code: float
    code_canonical: float
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]


def examine(sae: Canonical, lm: LanguageModel, hook: Hook, corpus: Corpus, store: Store, tokens: int = TOKENS) -> Sanity:
    """Measure an SAE at its hook and try what else it could belong to.

    Raises:
        UsageError: The model has no such hook, or no token counts.
    """
    lm.module(hook)
    rows = tokenised(lm, corpus, "eval", tokens, store, rows_per_document=1)
    places = [hook, *_neighbours(lm, hook)]
    x = {place: _kept(rows, values) for place, values in _read(lm, rows, places).items()}
    if len(x[hook]) < 2:
        raise UsageError("the text has no two tokens that count", "give more --tokens or another --text")
    codes = sae.encode_sparse(x[hook])
    trials = list(_trials(sae, hook, {place: values[:_TRIED] for place, values in x.items()}))
    best_first = (trials[0], *sorted(trials[1:], key=lambda t: -t.ev))
    ev, fired = _ev(sae, x[hook], codes), codes.firing_counts()
    silent = int((fired == 0).sum())
    raw = codes.scaled(1 / np.where(sae.norms == 0, 1, sae.norms))
    l0 = float(codes.l0().mean())
    warnings = tuple(_warnings(ev, l0, silent, sae.d_sae, hook, best_first))
    return Sanity(len(x[hook]), ev, l0, silent, _middle(raw), _middle(codes), best_first, warnings)


def _neighbours(lm: LanguageModel, hook: Hook) -> list[Hook]:
    near = [Hook(hook.layer + d, hook.site) for d in (-1, 1, -2, 2)] + [Hook(hook.layer, s) for s in _SITES if s != hook.site]

    def readable(place: Hook) -> bool:
        try:
            lm.module(place)
        except UsageError:
            return False
        return True

    return [h for h in near if readable(h)]


def _read(lm: LanguageModel, rows: Rows, places: list[Hook]) -> Mapping[Hook, np.ndarray]:
    """[n_tokens, d] activations at several places from one pass each row."""
    out = {h: np.empty((len(rows.ids), lm.d_model), np.float32) for h in places}
    size = max(1, first_batch(lm) // int(rows.lengths.max()))
    with progress.track(f"activations around {places[0]}", len(rows.ids), "tokens") as advance:
        for batch in np.array_split(np.arange(len(rows.lengths)), math.ceil(len(rows.lengths) / size)):
            ids, real = padded(rows, batch)
            for place, x in lm.read(ids, places).items():
                out[place][rows.positions(batch)] = x.float().cpu()[real].numpy()
            advance(int(rows.lengths[batch].sum()))
    return out


def _kept(rows: Rows, x: np.ndarray) -> np.ndarray:
    """Tokens that count: the suite's rule, with these tokens' own median norm."""
    cut = NORM_FACTOR * float(np.median(np.linalg.norm(x[~rows.special], axis=1))) if (~rows.special).any() else 0.0
    return x[keep_mask(rows, x, cut)]


def _trials(sae: Canonical, hook: Hook, x: Mapping[Hook, np.ndarray]) -> Iterator[Trial]:
    found = [Trial(str(place), AS_IT_IS, _ev(sae, values)) for place, values in x.items()]
    yield from found
    for place, values in x.items():
        if place == hook or max(t.ev for t in found) < _POOR:
            for scaling, scaled, s in _scalings(sae, values):
                yield Trial(str(place), scaling, _ev(scaled, values * np.float32(s)))


def _scalings(sae: Canonical, x: np.ndarray) -> Iterator[tuple[str, Canonical, float]]:
    """The input normalisations that a library may have trained the SAE with and not written down: the SAE behind each, and a factor.

    A fixed factor is put on the activations: explained variance is that of the factor in the weights, without a copy of them.
    """
    inner = sae.inner
    if not isinstance(inner, DenseSAE) or inner.norm is not None:
        return
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    if not norms.all():
        return
    to_root = math.sqrt(sae.d_in) / norms.mean()
    factors = {"mean norm √d": to_root, "that undone": 1 / to_root, "mean square 1": 1 / math.sqrt(np.square(norms).mean())}
    for said, s in factors.items():
        yield f"the input times {s:.4g} ({said})", sae, float(s)
    for norm, said in ((PerToken("layer_norm"), "layer norm of each token"), (PerToken("unit_norm"), "each token to norm √d")):
        yield said, Canonical(in_frames(inner, norm)[0]), 1.0


@torch.no_grad()
def _ev(sae: Canonical, x: np.ndarray, codes: Codes | None = None) -> float:
    xhat = sae.reconstruct(codes or sae.encode_sparse(x))
    sums = document_sums(x, xhat, np.zeros(len(x), np.int64), x.mean(0, dtype=np.float64))
    return float(1 - sums["error"][0] / sums["total"][0]) if sums["total"][0] > 0 else 0.0


def _middle(codes: Codes) -> float:
    return float(np.median(np.abs(codes.values))) if len(codes.values) else 0.0


def _warnings(ev: float, l0: float, silent: int, d_sae: int, hook: Hook, trials: tuple[Trial, ...]) -> Iterator[str]:
    own, others = trials[0], trials[1:]
    best = others[0] if others else own
    if best.ev > max(own.ev + _CLEARLY, 0):
        what = "layer or hook" if best.scaling == AS_IT_IS else "layer or unscaled input" if best.hook != own.hook else "input scaling"
        yield f"explained variance {ev:.2f} at {hook}: wrong {what}? {best} gives {best.ev:.2f}"
    elif ev < 0:
        yield f"explained variance {ev:.2f}: worse than the mean; wrong layer or unscaled input? nothing tried nearby does better"
    elif ev < _POOR:
        yield f"explained variance {ev:.2f} is low; no neighbouring layer or scaling does better"
    if l0 < 1:
        yield f"L0 is {l0:.2g}: almost nothing fires; is the threshold or the input scale wrong?"
    elif l0 > d_sae / 4:
        yield f"L0 is {l0:.0f} of {d_sae} latents: not sparse; is the threshold missing?"
    if silent > 0.9 * d_sae:
        yield f"{silent} of {d_sae} latents are silent on these tokens"
