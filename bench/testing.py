"""Conformance checks, shipped for third parties: can this object be evaluated, and is it consistent?"""

from __future__ import annotations

import torch

from bench.errors import CheckpointError
from bench.sae.dense import DenseSAE
from bench.types import SAE

_ROWS = 8


def check_sae(sae: SAE, x: torch.Tensor | None = None) -> None:
    """Raise unless the object does what `bench.types.SAE` asks.

    Args:
        sae: Any object with `d_in`, `d_sae`, `W_dec`, `encode`, `decode`.
        x: [n, d_in] activations to try; random ones by default.

    Raises:
        CheckpointError: A member is missing, or has a wrong shape, type or value; the cause names it.
    """
    for name in ("d_in", "d_sae", "W_dec", "encode", "decode"):
        if not hasattr(sae, name):
            raise CheckpointError(f"the SAE has no {name!r}", "see bench.types.SAE")
    _expect(
        tuple(sae.W_dec.shape) == (sae.d_sae, sae.d_in),
        f"W_dec has shape {tuple(sae.W_dec.shape)}, not (d_sae, d_in) = {(sae.d_sae, sae.d_in)}",
        "one decoder row per latent",
    )
    if x is None:
        x = torch.randn(_ROWS, sae.d_in, generator=torch.Generator().manual_seed(0)).to(sae.W_dec)
    with torch.no_grad():
        f = _check_encode(sae, x)
        if not isinstance(sae, DenseSAE) or sae.norm is None:  # with one, no other codes are decoded than those of encode
            _check_decode(sae, f, x)


def _check_encode(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """Codes, once their shape and consistency hold."""
    f = sae.encode(x)
    _expect(
        tuple(f.shape) == (len(x), sae.d_sae),
        f"encode gave {tuple(f.shape)}, not {(len(x), sae.d_sae)}",
        "encode maps [n, d_in] to [n, d_sae]",
    )
    _expect(bool(torch.isfinite(f).all()), "encode gave NaN or infinity", "check the weights")
    _expect(torch.equal(f, sae.encode(x)), "encode gave two answers to one input", "switch off dropout and noise: call .eval()")
    parts = torch.cat([sae.encode(row[None]) for row in x])
    _expect(
        torch.allclose(f, parts, rtol=1e-3, atol=1e-4),
        "encode depends on the rest of the batch",
        "use the inference form, e.g. BatchTopK's threshold",
    )
    return f


def _check_decode(sae: SAE, f: torch.Tensor, x: torch.Tensor) -> None:
    """Shape, finiteness, and that decoding is linear in the rows of `W_dec`."""
    xhat = sae.decode(f)
    _expect(
        tuple(xhat.shape) == tuple(x.shape),
        f"decode gave {tuple(xhat.shape)}, not {tuple(x.shape)}",
        "decode maps [n, d_sae] to [n, d_in]",
    )
    _expect(bool(torch.isfinite(xhat).all()), "decode gave NaN or infinity", "check the weights")
    bias = sae.decode(torch.zeros_like(f))
    linear = bias + f @ sae.W_dec.to(f.dtype)
    scale = float(xhat.abs().max()) + 1e-6
    _expect(
        torch.allclose(xhat, linear, rtol=1e-3, atol=1e-4 * scale),
        "decode is not codes · W_dec + bias",
        "W_dec must hold the rows that decode uses",
    )


def _expect(condition: bool, cause: str, remedy: str) -> None:
    if not condition:
        raise CheckpointError(cause, remedy)
