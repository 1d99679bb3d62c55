"""What the libraries' files share: a case, planted parameters and tokens, and the comparison.

Parameters are random and untied, with every bias in use and decoder rows of norms other than 1. Latent 0 is planted: it reads
input 0 alone, with numbers that are exact in binary, so that its pre-activation is exactly `EDGE` on the tokens of `AT` in
any order of summation. No other pre-activation of these tokens lies within rounding of a boundary and none tie, so that the
active latents must be the same without exception.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.adapters import Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae.checkpoint import Loaded
from tests.adapter_table import measured

D_IN, D_SAE, K, N = 16, 96, 8, 48
RTOL = 1e-5  # of the largest number of the token
EDGE, SHIFT, START = 1.0, 0.25, 0.5  # threshold, bias taken from input 0, bias of the encoder
AT = (3, 17, 30)
FEW, NEAR_ZERO = 5, 6  # tokens at which nearly all pre-activations are their biases, which are mostly negative
NOTHING = Given()
HOOK, LM = "blocks.2.hook_resid_post", "gpt2-small"


def _parameters() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(11)
    p = {"W_enc": 0.4 * torch.randn(D_IN, D_SAE, generator=g), "W_dec": torch.randn(D_SAE, D_IN, generator=g)}
    p["W_dec"] *= (torch.rand(D_SAE, 1, generator=g) + 0.5) / p["W_dec"].norm(dim=1, keepdim=True)
    p["b_dec"] = 0.3 * torch.randn(D_IN, generator=g)
    p["b_enc"] = -0.2 - 0.5 * torch.rand(D_SAE, generator=g)
    p["b_enc"][10:13] = 0.4  # the only ones above 0, with latent 0: fewer than K
    p |= {n: 0.4 * torch.randn(D_SAE, generator=g) for n in ("b_gate", "b_mag", "r_mag")}
    p["threshold"] = 0.2 + 0.8 * torch.rand(D_SAE, generator=g)
    p["W_enc"][:, 0], p["W_dec"][0] = 0.0, 0.0
    p["W_enc"][0, 0], p["W_dec"][0, 1], p["b_dec"][0], p["b_enc"][0], p["threshold"][0] = 1.0, 2.0, SHIFT, START, EDGE
    p["b_gate"][0], p["b_mag"][0], p["r_mag"][0] = START - EDGE, START, 0.0
    return p


P = _parameters()


def tokens(subtracted: bool = True, s: float = 1.0) -> Tensor:
    """[N, D_IN] activations of non-zero mean, for an SAE of s·x (s a power of two) that subtracts b_dec or does not."""
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(12)) + 0.7
    x[FEW], x[NEAR_ZERO] = P["b_dec"], 1e-3
    x[list(AT), 0] = EDGE - START + (SHIFT if subtracted else 0.0)
    x[AT[0] + 1, 0] = x[AT[0], 0] + 2.0**-10
    return x / s


@dataclass(frozen=True)
class Written:
    """A checkpoint, and what the library that wrote it computes.

    Args:
        path: What `--sae` is given.
        x: [n, d_in] activations.
        codes: [n, d_sae] of the library.
        recon: [n, d_in] of the library.
        given: Facts that are found only by training, e.g. the threshold that a later step would have.
    """

    path: Path
    x: Tensor
    codes: Tensor
    recon: Tensor
    given: Given | None = None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        architecture: The library's word.
        variant: What is special about it.
        write: Saves with the library's own code into an empty folder.
        given: Facts that the file lacks.
        refused: Where the checkpoint must be refused: words of the cause.
        edge: "off" or "on": what latent 0 is where its pre-activation equals its threshold; "": it has none that could be met exactly.
        k: Codes of a token, where there is a fixed number; one token then has fewer.
    """

    architecture: str
    variant: str
    write: Callable[[Path], Written]
    given: Given = NOTHING
    refused: str = ""
    edge: str = ""
    k: int = 0

    def __str__(self) -> str:
        return f"{self.architecture}, {self.variant}"


@dataclass(frozen=True)
class Peer:
    """A library and its cases.

    Args:
        name: Its distribution's name.
        cases: Its rows.
        missing: "" where it is installed, or required and so must not be asked; else why its rows are left out.
        release: Its version, where it is not the one of this environment.
    """

    name: str
    cases: list[Case]
    missing: Callable[[], str] = str
    release: str = ""

    @property
    def version(self) -> str:
        return self.release or version(self.name)


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings are errors in tests; those of other libraries' own code are theirs."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def fill(module: torch.nn.Module, values: dict[str, Any]) -> None:
    """Set parameters and buffers of a library's object by name, in their own type."""
    state = module.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(torch.as_tensor(value))


def opened(case: Case, folder: Path) -> tuple[Written, Loaded]:
    """The case, saved by its library and read by us."""
    with quiet():
        w = case.write(folder)
    return w, open_checkpoint(w.path, w.given or case.given)


def check(case: Case, folder: Path) -> None:
    """Refused by name, or the same latents and numbers as the library's."""
    if case.refused:
        with pytest.raises(CheckpointError) as caught:
            opened(case, folder)
        assert case.refused in str(caught.value)
        assert caught.value.remedy
        return
    w, loaded = opened(case, folder)
    strong(case, w)
    dense, sparse = loaded.sae.encode(w.x), loaded.sae.encode_sparse(w.x.numpy())
    for codes in (dense, torch.tensor(sparse.matrix.toarray())):
        assert torch.equal(codes != 0, w.codes != 0)
        close(codes, w.codes)
    for recon in (loaded.sae.decode(dense), torch.tensor(loaded.sae.decode_sparse(sparse))):
        close(recon, w.recon)


def strong(case: Case, w: Written) -> None:
    """The case can fail: some latents are active and some not, edges are met, and a token has fewer than k."""
    active = w.codes != 0
    assert torch.isfinite(w.codes).all()
    assert 0 < active.float().mean() < 0.9
    assert (w.recon - w.recon[:1]).abs().max() > 0.1
    if case.edge:
        assert (active[list(AT), 0] == (case.edge == "on")).all()
        assert active[AT[0] + 1, 0]
    if case.k:
        assert active.sum(1).min() < case.k == active.sum(1).max()


def close(ours: Tensor, theirs: Tensor) -> None:
    """Each number within RTOL of the largest of its token."""
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() <= RTOL * theirs.abs().amax(1, keepdim=True)).all()


def row(case: Case, folder: Path) -> tuple[str, float | None, float | None]:
    """Outcome, and largest absolute differences of codes and reconstructions."""
    check(case, folder / "checked")
    try:
        w, loaded = opened(case, folder / "measured")
    except CheckpointError as e:
        return f"refused: {str(e).replace(str(folder), '…')}", None, None
    same = torch.equal(loaded.sae.encode(w.x) != 0, w.codes != 0)
    errors = measured(loaded, w.x.numpy(), w.codes.numpy(), w.recon.numpy())
    return "equal" if same else "DIFFERENT LATENTS", *errors


def refusal(case: Case, words: str) -> Case:
    """The same checkpoint without the facts that it lacks."""
    return replace(case, variant=f"{case.variant}, nothing given", given=NOTHING, refused=words, edge="", k=0)
