"""Kernels about single latents: strengths, firings together, both ends of the cosines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.cosine import both_ends
from bench.kernels.firings import by_group, histogram, joint_counts, overlap
from bench.sae.codes import Codes

SEEDS = st.integers(0, 2**32 - 1)


def sparse(seed: int, n: int = 40, m: int = 9) -> tuple[np.ndarray, Codes]:
    """[n, m] dense codes and the same in rows."""
    g = np.random.default_rng(seed)
    dense = ((g.random((n, m)) < 0.3) * g.uniform(0.5, 2, (n, m))).astype(np.float32)
    return dense, Codes.from_dense(dense)


def test_histogram_by_hand() -> None:
    edges, counts = histogram(np.array([1.0, 1.0, 2.5, 10.0]), 5)
    assert edges.tolist() == [0, 2, 4, 6, 8, 10] and counts.tolist() == [2, 1, 0, 0, 1]


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 200), st.integers(1, 40), st.floats(1e-3, 1e3))
def test_a_histogram_holds_every_firing_and_ignores_order_and_scale(seed: int, n: int, bins: int, scale: float) -> None:
    g = np.random.default_rng(seed)
    x = g.integers(1, 1000, n) / 8.0
    edges, counts = histogram(x, bins)
    assert counts.sum() == n and len(edges) == bins + 1
    assert counts.tolist() == histogram(g.permutation(x), bins)[1].tolist()
    assert counts.sum() == histogram(x * scale, bins)[1].sum()


@settings(max_examples=40)
@given(SEEDS)
def test_joint_counts_equal_a_double_loop(seed: int) -> None:
    dense, codes = sparse(seed)
    for a in range(dense.shape[1]):
        rows = np.flatnonzero(dense[:, a])
        slow = [sum(1 for t in rows if dense[t, b] > 0) for b in range(dense.shape[1])]
        found = joint_counts(codes.indptr, codes.indices, rows, codes.d_sae)
        assert found.tolist() == slow
        share = overlap(found, len(rows), codes.firing_counts())
        sets = [set(np.flatnonzero(dense[:, b])) for b in range(dense.shape[1])]
        assert share.tolist() == pytest.approx([len(sets[a] & s) / max(len(sets[a] | s), 1) for s in sets])


def test_joint_counts_of_no_firing() -> None:
    _, codes = sparse(0)
    assert not joint_counts(codes.indptr, codes.indices, np.zeros(0, dtype=np.int64), codes.d_sae).any()


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 60))
def test_groups_equal_a_loop(seed: int, n: int) -> None:
    g = np.random.default_rng(seed)
    group, x = g.integers(0, 5, n), g.random(n)
    counts, means = by_group(group, x, 6)
    assert counts.tolist() == [int((group == i).sum()) for i in range(6)]
    assert means.tolist() == pytest.approx([float(x[group == i].mean()) if (group == i).any() else 0.0 for i in range(6)])


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 20), st.integers(0, 9), st.integers(0, 9))
def test_both_ends_equal_a_sorted_loop(seed: int, m: int, nearest: int, opposite: int) -> None:
    g = np.random.default_rng(seed)
    w = g.standard_normal((m, 4)).astype(np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    among = np.flatnonzero(g.random(m) < 0.8)
    near, away, cosines = both_ends(w, 0, among, nearest, opposite)
    slow = sorted((-float(w[0].astype(float) @ w[j].astype(float)), int(j)) for j in among if j != 0)
    assert [cosines[j] for j in near] == pytest.approx([-c for c, _ in slow[:nearest]], abs=1e-6)
    assert [cosines[j] for j in away] == pytest.approx([-c for c, _ in slow[::-1][:opposite] if c > 0], abs=1e-6)
    order = g.permutation(m)
    again = both_ends(w[order], int(np.flatnonzero(order == 0)[0]), np.flatnonzero(np.isin(order, among)), nearest, opposite)
    assert order[again[0]].tolist() == near.tolist() and order[again[1]].tolist() == away.tolist()
