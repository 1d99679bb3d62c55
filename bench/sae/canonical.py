"""The form every metric sees: unit decoder rows, codes scaled to match.

W_i ← W_i / n_i and f_i ← f_i · n_i with n_i = ‖W_i‖, so every metric is invariant to per-latent rescaling.
Codes are scaled after the SAE has selected them, so top-k selections stay what the SAE's author made them.
Where an SAE normalises tokens one by one, codes are also multiplied by the token's scale: they are in units of x, not of z.
Rows with n_i < 1e-8 are dead: their codes contribute nothing and are dropped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.sae.pursuit import PursuitSAE
from bench.store import array_sha256
from bench.types import SAE

MIN_NORM = 1e-8
_PROBE_ROWS = 64


@dataclass(frozen=True, eq=False)
class Canonical:
    """A view of any SAE in canonical form.

    Args:
        inner: The SAE as it is.
    """

    inner: SAE

    @property
    def d_in(self) -> int:
        return int(self.inner.W_dec.shape[1])

    @property
    def d_sae(self) -> int:
        return int(self.inner.W_dec.shape[0])

    @cached_property
    def norms(self) -> np.ndarray:
        """[d_sae] decoder row norms of the inner SAE; 0 for dead rows."""
        rows = _numpy(self.inner.W_dec)
        n = np.concatenate([np.linalg.norm(rows[at].astype(np.float64), axis=1) for at in _blocks(len(rows))])
        return np.where(n < MIN_NORM, 0.0, n)

    @cached_property
    def W_dec(self) -> np.ndarray:  # noqa: N802
        """[d_sae, d_in] float32 unit decoder rows; zero rows stay zero."""
        rows, n = _numpy(self.inner.W_dec), np.where(self.norms == 0, 1, self.norms)[:, None]
        out = np.empty(rows.shape, np.float32)
        for at in _blocks(len(rows)):
            out[at] = rows[at] / n[at]
        return out

    @cached_property
    def sha256(self) -> str:
        """Identity: the weights of a `DenseSAE` or `PursuitSAE`; for other objects, decoder rows and answers to fixed inputs."""
        if isinstance(self.inner, DenseSAE | PursuitSAE):
            return self.inner.sha256
        probe = np.random.default_rng(0).standard_normal((_PROBE_ROWS, self.d_in)).astype(np.float32)
        probe = np.concatenate([probe * scale for scale in (1, 10, 100, 1000)])  # a threshold must show whatever its size
        with torch.no_grad():
            codes = self.inner.encode(_like(probe, self.inner.W_dec))
            answers = (_numpy(codes), _numpy(self.inner.decode(codes)))
        state = self.inner.state_dict() if isinstance(self.inner, torch.nn.Module) else {}
        kept = [_numpy(v) for _, v in sorted(state.items()) if isinstance(v, torch.Tensor)]
        return hashlib.sha256(array_sha256(_numpy(self.inner.W_dec), *answers, *kept).encode()).hexdigest()

    @property
    def encode_flop(self) -> float:
        """Multiplications and additions for the codes of one token: one product with the encoder, unless the SAE says otherwise."""
        return float(getattr(self.inner, "encode_flop", 2 * self.d_in * self.d_sae))

    def encode_sparse(self, x: np.ndarray) -> Codes:
        """Canonical codes of [n, d_in] activations."""
        if isinstance(self.inner, DenseSAE | PursuitSAE):
            codes = self.inner.encode_sparse(x).scaled(self.norms)
            return codes if codes.frame is None else codes.scaled_rows(codes.frame[:, 1])
        blocks = [self._encode_block(x[i : i + 512]) for i in range(0, len(x), 512)]
        empty = Codes.from_dense(np.zeros((0, self.d_sae), dtype=np.float32))
        return Codes.concat(blocks or [empty]).scaled(self.norms)

    def reconstruct(self, codes: Codes) -> np.ndarray:
        """[n, d_in] float32 reconstructions from canonical codes."""
        raw = codes.scaled(1 / np.where(self.norms == 0, 1, self.norms))
        if raw.frame is not None:
            raw = raw.scaled_rows(1 / np.where(raw.frame[:, 1] == 0, 1, raw.frame[:, 1]))
        if isinstance(self.inner, DenseSAE | PursuitSAE):
            return self.inner.decode_sparse(raw)
        out = np.empty((codes.n, self.d_in), dtype=np.float32)
        with torch.no_grad():
            for at, block in raw.dense_blocks(512):
                out[at] = _numpy(self.inner.decode(_like(block, self.inner.W_dec)))
        return out

    @torch.no_grad()
    def _encode_block(self, x: np.ndarray) -> Codes:
        return Codes.from_dense(_numpy(self.inner.encode(_like(x, self.inner.W_dec))))


def _blocks(n: int) -> list[slice]:
    """Rows a few at a time, so that no second large matrix is held in float64."""
    return [slice(i, i + 1024) for i in range(0, n, 1024)]


def _like(x: np.ndarray, weights: torch.Tensor) -> torch.Tensor:
    """The array as a tensor on the device and in the type of the SAE's weights."""
    return torch.tensor(x, dtype=weights.dtype, device=weights.device)


def _numpy(t: object) -> np.ndarray:
    return t.detach().float().cpu().numpy() if isinstance(t, torch.Tensor) else np.asarray(t, dtype=np.float32)
