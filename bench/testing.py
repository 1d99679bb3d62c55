"""Conformance checks, shipped for third parties: can this object be evaluated, and is it consistent?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.errors import CheckpointError
from bench.sae.dense import DenseSAE

_ROWS = 8
_ROWS_OF_DECODE = "W_dec must hold the rows that decode uses; an SAE that normalises each token can be given as a checkpoint"
_MEMBERS = ("W_dec", "encode", "decode")


def check_sae(sae: Any, x: Tensor | None = None) -> None:
    """Raise unless the object does what `bench.types.SAE` asks.

    Args:
        sae: Any object with `W_dec` [d_sae, d_in], `encode` and `decode`.
        x: [n, d_in] activations to try; random ones by default.

    Raises:
        CheckpointError: A member is missing, or has a wrong shape, type or value; the cause names it.
    """
    for name in _MEMBERS:
        _expect(_has(sae, name), f"the SAE has no {name!r}", _missing(sae, name))
    _check_rows(sae.W_dec)
    d_in = sae.W_dec.shape[1]
    if x is None:
        x = torch.randn(_ROWS, d_in, generator=torch.Generator().manual_seed(0)).to(sae.W_dec)
    with torch.no_grad():
        f = _check_encode(sae, x)
        if not isinstance(sae, DenseSAE) or sae.norm is None:  # with one, no other codes are decoded than those of encode
            _check_decode(sae, f, x)


def _has(sae: object, name: str) -> bool:
    """Whether there is such a member; a property of somebody else's class can raise anything."""
    try:
        return hasattr(sae, name)
    except Exception as e:
        cause = f"{name} cannot be read: {type(e).__name__}: {str(e)[:160]}"
        raise CheckpointError(cause, f"give an object whose {name} can be read") from e


def _missing(sae: object, name: str) -> str:
    if name == "W_dec" and hasattr(getattr(sae, "decoder", None), "weight"):
        return "add a property W_dec that returns decoder.weight.T, one decoder row per latent"
    return f"give an object with {', '.join(_MEMBERS)}: see bench.types.SAE"


def _check_rows(W_dec: object) -> None:
    kind = type(W_dec).__name__
    _expect(isinstance(W_dec, Tensor), f"W_dec is a {kind}, not a torch tensor", "give an instance whose W_dec is a tensor [d_sae, d_in]")
    assert isinstance(W_dec, Tensor)
    _expect(
        W_dec.ndim == 2 and W_dec.numel() > 0 and W_dec.is_floating_point(),
        f"W_dec has shape {tuple(W_dec.shape)} and type {_short(W_dec.dtype)}, not [d_sae, d_in] and floating point",
        "one decoder row per latent",
    )
    _expect(W_dec.device.type != "meta", "W_dec is on the meta device: it holds no numbers", "load the weights")
    _expect(bool(torch.isfinite(W_dec).all()), "W_dec holds NaN or infinity", "check the weights")


def _check_encode(sae: Any, x: Tensor) -> Tensor:
    """Codes, once their shape and consistency hold."""
    d_sae, before = len(sae.W_dec), x.clone()
    f = _called(sae, "encode", x)
    _expect(
        tuple(f.shape) == (len(x), d_sae),
        f"encode gave {tuple(f.shape)}, not {(len(x), d_sae)}, from {tuple(x.shape)}; W_dec is {tuple(sae.W_dec.shape)}",
        "encode maps [n, d_in] to [n, d_sae], and W_dec is [d_sae, d_in]",
    )
    _expect(bool(torch.isfinite(f).all()), "encode gave NaN or infinity", "check the weights")
    _expect(torch.equal(x, before), "encode changes its input", "work on a copy")
    _expect(torch.equal(f, _called(sae, "encode", x)), "encode gave two answers to one input", "switch off dropout and noise: call .eval()")
    parts = torch.cat([_called(sae, "encode", row[None]) for row in x])
    _expect(_close(f, parts), "encode depends on the rest of the batch", "use the inference form, e.g. BatchTopK's threshold")
    return f


def _check_decode(sae: Any, f: Tensor, x: Tensor) -> None:
    """Shape, finiteness, and that decoding is linear in the rows of `W_dec`."""
    xhat = _called(sae, "decode", f)
    _expect(
        tuple(xhat.shape) == tuple(x.shape),
        f"decode gave {tuple(xhat.shape)}, not {tuple(x.shape)}",
        "decode maps [n, d_sae] to [n, d_in]",
    )
    _expect(bool(torch.isfinite(xhat).all()), "decode gave NaN or infinity", "check the weights")
    try:
        linear = sae.decode(torch.zeros_like(f)) + f @ sae.W_dec.to(f.dtype)
    except Exception as e:  # SAELens forgets the last tokens' norms once it has used them
        raise CheckpointError(
            f"decode takes no codes but those encode gave last: {type(e).__name__}: {str(e)[:160]}", _ROWS_OF_DECODE
        ) from e
    _expect(_close(xhat, linear), "decode is not codes · W_dec + bias", _ROWS_OF_DECODE)


def _called(sae: Any, name: str, given: Tensor) -> Tensor:
    """What a method returns for a tensor, which must be a tensor."""
    try:
        out = getattr(sae, name)(given)
    except Exception as e:  # somebody else's code: whatever it raises is the answer
        raise CheckpointError(
            f"{name} cannot take {tuple(given.shape)} {_short(given.dtype)}: {type(e).__name__}: {str(e)[:160]}",
            "encode maps [n, d_in] to [n, d_sae], decode maps it back, and W_dec is [d_sae, d_in]: is it transposed?",
        ) from e
    _expect(
        isinstance(out, Tensor) and out.layout == torch.strided and out.is_floating_point(),
        f"{name} returned {_what(out)}, not one dense tensor of floating-point numbers",
        "return the codes alone, [n, d_sae] with zeros" if name == "encode" else "return the reconstruction alone, [n, d_in]",
    )
    return out


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to what the order of additions does in this precision."""
    share = max(1e-3, 8 * torch.finfo(a.dtype).eps)
    return torch.allclose(a.float(), b.float(), rtol=share, atol=0.1 * share * (float(a.abs().max()) + 1e-6))


def _what(out: object) -> str:
    kind = f" of {_short(out.dtype)}" if isinstance(out, Tensor) else ""
    return f"a {type(out).__name__}{kind}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _expect(condition: bool, cause: str, remedy: str) -> None:
    if not condition:
        raise CheckpointError(cause, remedy)
