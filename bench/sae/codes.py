"""Sparse codes of n tokens: compressed rows, never n × d_sae."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Codes:
    """Codes in CSR form.

    Args:
        indptr: [n + 1] int64.
        indices: [nnz] int32 latent of each active code, ascending within a row.
        values: [nnz] float32, non-zero; may be negative for methods with signed codes.
        d_sae: Number of latents.
        frame: [n, 2] shift and scale of each token, where the SAE normalises tokens one by one; needed to decode.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    d_sae: int
    frame: np.ndarray | None = None

    @classmethod
    def from_dense(cls, f: np.ndarray) -> Codes:
        """Codes of one dense block [n, d_sae]."""
        flat = np.flatnonzero(f)
        rows, cols = np.divmod(flat, f.shape[1])
        return cls.from_parts(rows, cols, f.reshape(-1)[flat], *f.shape)

    @classmethod
    def from_parts(cls, rows: np.ndarray, cols: np.ndarray, values: np.ndarray, n: int, d_sae: int) -> Codes:
        """Codes from (row, latent, value) triples sorted by row, then latent."""
        indptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
        return cls(indptr, cols.astype(np.int32), values.astype(np.float32), d_sae)

    @classmethod
    def concat(cls, blocks: list[Codes]) -> Codes:
        """Blocks of tokens, one after the other."""
        sizes = np.cumsum([0, *(len(b.values) for b in blocks)])
        indptr = np.concatenate([np.zeros(1, dtype=np.int64), *(b.indptr[1:] + s for b, s in zip(blocks, sizes, strict=False))])
        frames = [b.frame for b in blocks if b.frame is not None]
        frame = np.concatenate(frames) if len(frames) == len(blocks) else None
        return cls(indptr, np.concatenate([b.indices for b in blocks]), np.concatenate([b.values for b in blocks]), blocks[0].d_sae, frame)

    @property
    def n(self) -> int:
        """Number of tokens."""
        return len(self.indptr) - 1

    @property
    def matrix(self) -> sp.csr_matrix:
        """The same memory as a SciPy matrix [n, d_sae]."""
        return sp.csr_matrix((self.values, self.indices, self.indptr), shape=(self.n, self.d_sae))

    @property
    def rows(self) -> np.ndarray:
        """[nnz] token of each active code."""
        return np.repeat(np.arange(self.n), np.diff(self.indptr))

    def take(self, rows: np.ndarray) -> Codes:
        """Codes of some tokens, by index or boolean mask."""
        return replace(_from_matrix(self.matrix[rows], self.d_sae), frame=None if self.frame is None else self.frame[rows])

    def scaled(self, factors: np.ndarray) -> Codes:
        """Each latent's codes times its factor; latents with factor 0 vanish."""
        return self._with(self.values * factors[self.indices].astype(np.float32), bool(np.all(factors != 0)))

    def scaled_rows(self, factors: np.ndarray) -> Codes:
        """Each token's codes times its factor; those of tokens with factor 0 vanish."""
        return self._with(self.values * factors.astype(np.float32)[self.rows], bool(np.all(factors != 0)))

    def _with(self, values: np.ndarray, whole: bool) -> Codes:
        """Other values at the same places; unless all are kept, zeros vanish."""
        if whole:
            return replace(self, values=values)
        m = sp.csr_matrix((values, self.indices, self.indptr), shape=(self.n, self.d_sae), copy=True)  # the next line works in place
        m.eliminate_zeros()
        return replace(_from_matrix(m, self.d_sae), frame=self.frame)

    def l0(self) -> np.ndarray:
        """[n] number of active latents per token."""
        return np.diff(self.indptr)

    def firing_counts(self) -> np.ndarray:
        """[d_sae] number of tokens on which each latent is active."""
        return np.bincount(self.indices, minlength=self.d_sae)

    def group_means(self, groups: np.ndarray, n_groups: int) -> np.ndarray:
        """[n_groups, d_sae] mean code per group of tokens, zeros counted; float64.

        Args:
            groups: [n] group of each token, or −1 to leave it out.
            n_groups: Number of groups; an empty group has mean 0.
        """
        sizes = np.bincount(groups[groups >= 0], minlength=n_groups)
        group = groups[self.rows]
        inside = slice(None) if np.all(groups >= 0) else group >= 0
        flat = group[inside] * self.d_sae + self.indices[inside]
        sums = np.bincount(flat, self.values[inside], n_groups * self.d_sae).reshape(n_groups, self.d_sae)
        return sums / np.maximum(sizes, 1)[:, None]

    def pooled(self, groups: np.ndarray, n_groups: int) -> Codes:
        """Codes of groups of tokens: the mean over each group's tokens, zeros counted; an empty group has none."""
        sizes = np.maximum(np.bincount(groups, minlength=n_groups), 1)
        member = sp.csr_matrix((1 / sizes[groups], (groups, np.arange(self.n))), shape=(n_groups, self.n))
        return _from_matrix(sp.csr_matrix(member @ self.matrix), self.d_sae)

    def columns(self, latents: np.ndarray) -> np.ndarray:
        """[n, len(latents)] dense codes of a few latents, no two the same."""
        place, wanted = np.zeros(self.d_sae, dtype=np.int64), np.zeros(self.d_sae, dtype=bool)
        place[latents], wanted[latents] = np.arange(len(latents)), True
        some = np.flatnonzero(wanted[self.indices])
        row = np.searchsorted(self.indptr, some, side="right") - 1
        out = np.zeros((self.n, len(latents)), dtype=np.float32)
        out[row, place[self.indices[some]]] = self.values[some]
        return out

    def dense_blocks(self, rows: int = 1024) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (slice of tokens, dense block), for SAEs that can only decode dense codes."""
        m = self.matrix
        for i in range(0, self.n, rows):
            at = slice(i, min(i + rows, self.n))
            yield at, m[at].toarray()

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for the store."""
        frame = {} if self.frame is None else {"frame": self.frame}
        return {"indptr": self.indptr, "indices": self.indices, "values": self.values, **frame}


def _from_matrix(m: sp.csr_matrix, d_sae: int) -> Codes:
    m.sort_indices()
    return Codes(
        m.indptr.astype(np.int64, copy=False), m.indices.astype(np.int32, copy=False), m.data.astype(np.float32, copy=False), d_sae
    )
