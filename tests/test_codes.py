"""Sparse codes against dense NumPy: every operation gives what the same operation gives on the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sae.codes import Codes

SEEDS = st.integers(0, 2**32 - 1)
SIZES = (SEEDS, st.integers(0, 12), st.integers(1, 9))


def dense(seed: int, n: int, d_sae: int, share: float = 0.4) -> np.ndarray:
    """Signed codes with silent tokens and silent latents among them."""
    g = np.random.default_rng(seed)
    f = np.where(g.random((n, d_sae)) < share, g.standard_normal((n, d_sae)), 0)
    f[g.random(n) < 0.2] = 0
    f[:, g.random(d_sae) < 0.2] = 0
    return f.astype(np.float32)


def back(codes: Codes) -> np.ndarray:
    """The dense matrix, entry by entry, after checking that the form is as promised."""
    assert codes.indptr.dtype == np.int64 and codes.indices.dtype == np.int32 and codes.values.dtype == np.float32
    assert codes.indptr[0] == 0 and codes.indptr[-1] == len(codes.indices) == len(codes.values)
    assert np.all(codes.values != 0)
    out = np.zeros((codes.n, codes.d_sae), dtype=np.float32)
    for i in range(codes.n):
        at = codes.indices[codes.indptr[i] : codes.indptr[i + 1]]
        assert np.all(np.diff(at) > 0)
        for j, latent in enumerate(at):
            out[i, latent] = codes.values[codes.indptr[i] + j]
    return out


def test_form_by_hand() -> None:
    codes = Codes.from_dense(np.array([[0, 2, 0, -1], [0, 0, 0, 0], [3, 0, 0, 0]], dtype=np.float32))
    assert codes.indptr.tolist() == [0, 2, 2, 3]
    assert codes.indices.tolist() == [1, 3, 0]
    assert codes.values.tolist() == [2, -1, 3]
    assert (codes.n, codes.d_sae) == (3, 4)
    assert codes.l0().tolist() == [2, 0, 1]
    assert codes.firing_counts().tolist() == [1, 1, 0, 1]


@given(*SIZES)
def test_round_trip(seed: int, n: int, d_sae: int) -> None:
    f = dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    assert (codes.n, codes.d_sae) == f.shape
    assert np.array_equal(back(codes), f) and np.array_equal(codes.matrix.toarray(), f)
    rows, cols = np.nonzero(f)
    assert np.array_equal(back(Codes.from_parts(rows, cols, f[rows, cols], n, d_sae)), f)
    stored = {k: v.copy() for k, v in codes.arrays().items()}
    assert np.array_equal(back(Codes(**stored, d_sae=d_sae)), f)


@given(*SIZES)
def test_a_strided_matrix_is_read_as_it_looks(seed: int, n: int, d_sae: int) -> None:
    f = dense(seed, d_sae, max(n, 1)).T
    assert np.array_equal(back(Codes.from_dense(f)), f)


@given(*SIZES)
def test_counts(seed: int, n: int, d_sae: int) -> None:
    f = dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    assert codes.l0().tolist() == (f != 0).sum(1).tolist()
    assert codes.firing_counts().tolist() == (f != 0).sum(0).tolist()


@given(*SIZES, st.data())
def test_concat_undoes_a_split(seed: int, n: int, d_sae: int, data: st.DataObject) -> None:
    f = dense(seed, n, d_sae)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    joined = Codes.concat([Codes.from_dense(p) for p in np.split(f, cuts)])
    assert np.array_equal(back(joined), f)


@given(*SIZES, st.data())
def test_take(seed: int, n: int, d_sae: int, data: st.DataObject) -> None:
    f = dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=15)) if n else [], dtype=np.int64)  # repeats, any order
    assert np.array_equal(back(codes.take(mask)), f[mask])
    assert np.array_equal(back(codes.take(rows)), f[rows])


@given(*SIZES)
def test_scaled(seed: int, n: int, d_sae: int) -> None:
    g, f = np.random.default_rng(seed), dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    for factors in (g.uniform(-2, 2, d_sae), g.integers(0, 3, d_sae).astype(float), np.zeros(d_sae)):
        expected = f * factors.astype(np.float32)
        assert np.array_equal(back(codes.scaled(factors)), expected)
        assert np.array_equal(back(codes), f)  # the original is left as it was


@given(*SIZES)
def test_nothing_writes_into_stored_codes(seed: int, n: int, d_sae: int) -> None:
    f = dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    for array in codes.arrays().values():
        array.setflags(write=False)
    groups = np.arange(n) % 2
    codes.scaled(np.arange(d_sae).astype(float))
    codes.take(np.arange(n)[::-1].copy())
    codes.group_means(groups, 2)
    codes.pooled(groups, 2)
    codes.columns(np.arange(d_sae))
    assert np.array_equal(back(codes), f)


@given(*SIZES, st.integers(1, 5))
def test_group_means_equal_a_double_loop(seed: int, n: int, d_sae: int, n_groups: int) -> None:
    f = dense(seed, n, d_sae)
    groups = np.random.default_rng(seed).integers(-1, n_groups, n)  # −1 is left out; a group may be empty
    found = Codes.from_dense(f).group_means(groups, n_groups)
    expected = np.zeros((n_groups, d_sae))
    for group in range(n_groups):
        members = [i for i in range(n) if groups[i] == group]
        for i in members:
            for j in range(d_sae):
                expected[group, j] += float(f[i, j]) / len(members)
    assert found.dtype == np.float64 and found.shape == expected.shape
    assert found == pytest.approx(expected, abs=1e-12)


@given(*SIZES, st.integers(1, 5))
def test_pooled_equals_group_means(seed: int, n: int, d_sae: int, n_groups: int) -> None:
    g, f = np.random.default_rng(seed), dense(seed, n, d_sae)
    groups = g.integers(0, n_groups, n)
    codes = Codes.from_dense(f)
    pooled = codes.pooled(groups, n_groups)
    assert pooled.n == n_groups
    assert back(pooled) == pytest.approx(codes.group_means(groups, n_groups), abs=1e-6)
    order = g.permutation(n)
    assert back(codes.take(order).pooled(groups[order], n_groups)) == pytest.approx(back(pooled), abs=1e-6)


def test_codes_that_cancel_leave_no_code() -> None:
    f = np.array([[1, -2], [-1, 2], [3, 0]], dtype=np.float32)
    assert np.array_equal(back(Codes.from_dense(f).pooled(np.array([0, 0, 1]), 2)), [[0, 0], [3, 0]])


def test_group_means_keep_float64() -> None:
    f = np.array([[2.0**24], [1.0], [1.0], [1.0]], dtype=np.float32)
    assert Codes.from_dense(f).group_means(np.zeros(4, int), 1)[0, 0] == (2**24 + 3) / 4


@given(*SIZES, st.integers(1, 5))
def test_columns_and_blocks(seed: int, n: int, d_sae: int, rows: int) -> None:
    g, f = np.random.default_rng(seed), dense(seed, n, d_sae)
    codes = Codes.from_dense(f)
    latents = g.permutation(d_sae)[: g.integers(0, d_sae + 1)]
    assert np.array_equal(codes.columns(latents), f[:, latents])
    out, seen = np.full_like(f, np.nan), 0
    for at, block in codes.dense_blocks(rows):
        assert len(block) <= rows
        out[at], seen = block, seen + len(block)
    assert seen == n and np.array_equal(out, f)


@settings(max_examples=30)
@given(*SIZES)
def test_renaming_latents_renames_every_answer(seed: int, n: int, d_sae: int) -> None:
    g, f = np.random.default_rng(seed), dense(seed, n, d_sae)
    order, groups = g.permutation(d_sae), g.integers(0, 3, n)
    a, b = Codes.from_dense(f), Codes.from_dense(f[:, order])
    assert np.array_equal(b.l0(), a.l0())
    assert np.array_equal(b.firing_counts(), a.firing_counts()[order])
    assert np.array_equal(b.group_means(groups, 3), a.group_means(groups, 3)[:, order])
    assert np.array_equal(back(b.pooled(groups, 3)), back(a.pooled(groups, 3))[:, order])


def test_a_large_width_stays_sparse() -> None:
    cols = np.array([0, 10**6 - 1, 5])
    codes = Codes.from_parts(np.array([0, 0, 2]), cols, np.ones(3, np.float32), 3, 10**6)
    assert codes.l0().tolist() == [2, 0, 1]
    assert codes.firing_counts().sum() == 3
    pooled = codes.pooled(np.array([0, 0, 0]), 1)
    assert pooled.indices.tolist() == [0, 5, 10**6 - 1] and pooled.values == pytest.approx([1 / 3] * 3)
