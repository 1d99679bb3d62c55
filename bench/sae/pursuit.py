"""Matching pursuit (Mallat & Zhang 1993; as an SAE, Costa et al. 2025, arXiv 2506.03093): latents are picked one after
the other, each by what those before left over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench.sae.codes import Codes
from bench.store import array_sha256

GRAM = 8192  # rows up to which all pairs of inner products are held: the one place with d_sae² numbers
SMALL = 1e-3  # share of a token's norm at which nothing more is picked for it
_NUMBERS = 2**20  # inner products held at a time: they stay in the cache


@dataclass(frozen=True)
class Pursuit:
    """k picks per token: latent j with the largest D_jᵀ r, f_j += D_jᵀ r, r −= (D_jᵀ r) D_j, from r = x − b_dec."""

    k: int
    name = "pursuit"


@dataclass(frozen=True, eq=False)
class PursuitSAE:
    """Codes by matching pursuit;  x̂ = f W_dec + b_dec.

    A latent that is picked twice has the sum as its code. Codes may be negative: the largest inner product is taken
    as it is, and it is negative where no row points towards what is left.

    Args:
        W_dec: [d_sae, d_in] unit rows D.
        b_dec: [d_in], subtracted from the input and added by the decoder.
        k: Picks per token; a token whose residual has become small stops sooner.
    """

    W_dec: Tensor
    b_dec: Tensor
    k: int

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def act(self) -> Pursuit:
        """What takes the place of an activation function."""
        return Pursuit(self.k)

    @property
    def b_pre(self) -> Tensor:
        """[d_in] subtracted from the input."""
        return self.b_dec

    @property
    def encode_flop(self) -> float:
        """Multiplications and additions for the codes of one token: without the Gram matrix k products with all rows."""
        per_pick = 2.0 * self.d_sae if self.d_sae <= GRAM else 2.0 * self.d_sae * self.d_in
        return 2.0 * self.d_sae * self.d_in + (self.k - 1) * per_pick

    @property
    def sha256(self) -> str:
        """Identity of the function: the float32 weights and k."""
        tensors = (self.W_dec, self.b_dec, torch.tensor([self.k]))
        return array_sha256(np.array([ord(c) for c in "pursuit"]), *(t.detach().float().cpu().numpy() for t in tensors))

    @cached_property
    def _gram(self) -> Tensor | None:
        return gram_of(self.W_dec.detach())

    def to(self, device: str) -> PursuitSAE:
        """The same SAE on another device."""
        return replace(self, W_dec=self.W_dec.to(device), b_dec=self.b_dec.to(device))

    def picks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, k] latents and [n, k] what each pick adds (0: no pick), in the order of picking."""
        return pursue(x - self.b_dec, self.W_dec, self.k, self._gram)[:2]

    def encode(self, x: Tensor) -> Tensor:
        """Dense codes [n, d_sae]."""
        cols, values = self.picks(x)
        return values.new_zeros(len(x), self.d_sae).scatter_add_(1, cols, values)

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction [n, d_in]."""
        return f @ self.W_dec + self.b_dec

    @torch.no_grad()
    def encode_sparse(self, x: np.ndarray) -> Codes:
        """Codes of [n, d_in] activations, computed in blocks of tokens so that memory stays bounded."""
        like = self.W_dec
        blocks = [self._block(torch.tensor(x[i : i + 1024], dtype=like.dtype, device=like.device)) for i in range(0, len(x), 1024)]
        return Codes.concat(blocks or [Codes.from_dense(np.zeros((0, self.d_sae), dtype=np.float32))])

    def _block(self, x: Tensor) -> Codes:
        cols, values = self.picks(x)
        flat, summed = summed_picks(cols, values, self.d_sae)
        flat, summed = flat[summed != 0], summed[summed != 0]
        rows = flat // self.d_sae
        return Codes.from_parts(rows.cpu().numpy(), (flat - rows * self.d_sae).cpu().numpy(), summed.cpu().numpy(), len(x), self.d_sae)

    def decode_sparse(self, codes: Codes) -> np.ndarray:
        """[n, d_in] float32 reconstructions of sparse codes."""
        return codes.matrix @ self.W_dec.detach().float().cpu().numpy() + self.b_dec.detach().float().cpu().numpy()


def gram_of(rows: Tensor) -> Tensor | None:
    """[m, m] inner products of all pairs of rows, or None above 8,192 rows."""
    return rows @ rows.T if len(rows) <= GRAM else None


@torch.no_grad()
def pursue(x: Tensor, rows: Tensor, k: int, gram: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pick k times for every token the row with the largest inner product with the residual, and take it out.

    Among equal inner products any is taken. Memory is O(n·k + n·d) beside one block of inner products.

    Args:
        x: [n, d] centred inputs.
        rows: [m, d] unit rows.
        k: Picks per token; none are made once the residual's norm is at most 10⁻³ of the input's.
        gram: `gram_of(rows)`. With it a pick costs m multiplications per token, without it m · d.

    Returns:
        [n, k] latents, [n, k] their inner products in the order of picking (0: no pick), [n, d] residuals.
    """
    cols, values, left = torch.empty(len(x), k, dtype=torch.long, device=x.device), x.new_empty(len(x), k), x.clone()
    block = max(16, _NUMBERS // len(rows))
    for i in range(0, len(x), block):
        r = left[i : i + block]
        small = SMALL**2 * r.square().sum(1)
        inner = r @ rows.T
        for t in range(k):
            at = _argmax(inner)
            best = inner.gather(1, at[:, None]).squeeze(1) * (r.square().sum(1) > small)
            cols[i : i + block, t], values[i : i + block, t] = at, best
            r.addcmul_(rows[at], best[:, None], value=-1)
            if t + 1 < k:
                inner = r @ rows.T if gram is None else inner.addcmul_(gram[at], best[:, None], value=-1)
    return cols, values, left


def summed_picks(cols: Tensor, values: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Codes of picks: a latent picked twice for a token has one code, the sum.

    Args:
        cols: [n, k] latents.
        values: [n, k] inner products, 0 where nothing was picked.
        m: Number of latents.

    Returns:
        Flat places (token · m + latent), ascending, and the codes there; some may be 0.
    """
    token = torch.arange(len(cols), device=cols.device)[:, None]
    flat, place = torch.unique(token * m + cols, return_inverse=True)
    return flat, values.new_zeros(len(flat)).index_add(0, place.reshape(-1), values.reshape(-1))


def _argmax(inner: Tensor) -> Tensor:
    if inner.device.type == "cpu":  # NumPy's argmax is ten times as fast as torch's here
        return torch.from_numpy(inner.numpy().argmax(1))
    return inner.argmax(1)
