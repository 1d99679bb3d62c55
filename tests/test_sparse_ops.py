"""Selection against torch.topk, whatever the hint and the way of multiplying; gradients against differences; dense against sparse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines import compiled, ops
from baselines.nested import nested_error
from baselines.sparse import ByLatent, SparseBatch, above, batch_top, decode, token_top
from bench.kernels import arrays, encoding, products
from bench.kernels.orthogonality import nearest
from bench.kernels.products import Ways
from bench.kernels.screening import Pairs, Screen, lowest

SEEDS = st.integers(0, 2**32 - 1)
WAYS = {"torch": Ways(), "numpy": Ways(numpy=True), "screening": Ways(bfloat16=True), "both": Ways(numpy=True, bfloat16=True)}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernel has tests of its own."""
    monkeypatch.setenv(compiled.SWITCH, "off")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every way of multiplying, also for small matrices, in small blocks."""
    monkeypatch.setattr(products, "_SMALL", 0)
    monkeypatch.setattr(products, "_machine", lambda: WAYS[request.param])
    monkeypatch.setattr(encoding, "_FEW", 0)
    monkeypatch.setattr(encoding, "_CACHED", (16, 24))
    yield request.param


def draw(seed: int, n: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, encoder rows of all lengths, and a bias."""
    g = np.random.default_rng(seed)
    rows = g.standard_normal((m, d)) * g.uniform(0.1, 3, (m, 1))
    x = g.standard_normal((n, d)) * g.uniform(0.1, 3, (n, 1))
    return torch.tensor(x, dtype=dtype), torch.tensor(rows, dtype=dtype), torch.tensor(g.standard_normal(m) * 0.3, dtype=dtype)


def whole(seed: int, n: int, m: int, d: int, low: int, high: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Small whole numbers: pre-activations are exact in every order of summation, and many are equal."""
    g = np.random.default_rng(seed)
    shapes = (n, d), (m, d), (m,)
    return tuple(torch.tensor(g.integers(low, high + 1, s), dtype=dtype) for s in shapes)


def dense_codes(codes: SparseBatch, m: int) -> Tensor:
    return ops.scattered(codes.rows, codes.cols, codes.values.detach(), codes.n, m)


def batch_reference(pre: Tensor, k: int) -> Tensor:
    """The n·k largest positive entries; among equal ones the first."""
    kept = torch.zeros_like(pre).view(-1)
    order = torch.argsort(pre.reshape(-1), descending=True, stable=True)[: k * len(pre)]
    kept[order] = pre.reshape(-1)[order].clamp(min=0)
    return kept.view_as(pre)


def token_reference(pre: Tensor, k: int) -> Tensor:
    """The k largest of every row, then ReLU; among equal ones the first."""
    order = torch.argsort(pre, dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).clamp(min=0))


def is_sorted(codes: SparseBatch, m: int) -> bool:
    flat = codes.rows * m + codes.cols
    return bool((flat.diff() > 0).all()) and bool((codes.values > 0).all())


# selection


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.integers(1, 8), st.integers(1, 12))
def test_the_batch_selection_is_the_reference(seed: int, n: int, m: int, d: int, k: int) -> None:
    x, w, b = draw(seed, n, m, d)
    pre = x @ w.T + b
    codes = batch_top(x, w, b, k)
    assert torch.allclose(dense_codes(codes, m), batch_reference(pre, k), atol=1e-12) and is_sorted(codes, m)
    top = torch.relu(pre).view(-1).topk(min(k * n, n * m)).values
    assert torch.allclose(codes.values.sort(descending=True).values, top[: len(codes.values)], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.integers(1, 8), st.integers(1, 12))
def test_the_token_selection_is_the_reference(seed: int, n: int, m: int, d: int, k: int) -> None:
    x, w, b = draw(seed, n, m, d)
    codes = token_top(x, w, b, k)
    assert torch.allclose(dense_codes(codes, m), token_reference(x @ w.T + b, k), atol=1e-12) and is_sorted(codes, m)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 12))
def test_among_equal_pre_activations_the_first_are_taken(seed: int, n: int, m: int, k: int) -> None:
    x, w, b = whole(seed, n, m, 3, -2, 2)
    pre = x @ w.T + b
    assert torch.equal(dense_codes(batch_top(x, w, b, k), m), batch_reference(pre, k))
    assert torch.equal(dense_codes(token_top(x, w, b, k), m), token_reference(pre, k))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 12))
def test_mostly_negative_pre_activations_leave_fewer_codes(seed: int, n: int, k: int) -> None:
    x, w, b = draw(seed, n, 30, 4)
    b = b - 8
    pre = x @ w.T + b
    for codes, reference in ((batch_top(x, w, b, k), batch_reference), (token_top(x, w, b, k), token_reference)):
        assert torch.allclose(dense_codes(codes, 30), reference(pre, k), atol=1e-12)
        assert len(codes.values) == int((reference(pre, k) > 0).sum()) and 0 <= codes.floor < 100


def test_no_positive_pre_activation_leaves_no_code_and_no_gradient() -> None:
    x, w, b = draw(0, 5, 7, 3)
    w.requires_grad_()
    for codes in (batch_top(x, w, b - 100, 2), token_top(x, w, b - 100, 2)):
        assert len(codes.values) == 0 and codes.floor == 0
        xhat = decode(codes, w)
        assert torch.equal(xhat, torch.zeros_like(x))
        assert torch.equal(torch.autograd.grad(xhat.sum(), w)[0], torch.zeros_like(w))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 6), st.floats(1e-6, 20))
def test_the_hint_never_changes_the_batch_selection(seed: int, n: int, k: int, share: float) -> None:
    x, w, b = draw(seed, n, 25, 5)
    codes = batch_top(x, w, b, k)
    for floor in (codes.floor, codes.floor * share, 1e-9, 1e9):
        other = batch_top(x, w, b, k, floor=floor)
        assert torch.equal(other.rows, codes.rows) and torch.equal(other.cols, codes.cols)
        assert torch.allclose(other.values, codes.values, atol=1e-12) and other.floor == pytest.approx(codes.floor)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_the_hint_never_changes_the_token_selection(seed: int, n: int) -> None:
    x, w, b = draw(seed, n, 25, 5)
    codes = token_top(x, w, b, 3)
    for floor in (0.1, 1e9):
        assert torch.equal(token_top(x, w, b, 3, floor=floor).cols, codes.cols)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("m", [1, 23, 24, 25, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_and_ways_do_not_show(n: int, m: int, dtype: torch.dtype, way: str) -> None:
    x, w, b = whole(n * m, n, m, 6, -3, 3, dtype)
    pre = x @ w.T + b
    for k in (1, 4):
        assert torch.equal(dense_codes(batch_top(x, w, b, k), m), batch_reference(pre, k))
        assert torch.equal(dense_codes(token_top(x, w, b, k), m), token_reference(pre, k))
    bounds = torch.arange(m, dtype=dtype) % 7 - 1
    for bound in (0.0, 2.0, bounds):
        assert torch.equal(dense_codes(above(x, w, b, bound), m), torch.where((pre > bound) & (pre != 0), pre, 0))


def test_real_numbers_are_selected_the_same_way_by_all(way: str) -> None:
    x, w, b = draw(3, 90, 200, 16, torch.float32)
    exact = x.double() @ w.double().T + b.double()
    for codes, reference in ((batch_top(x, w, b, 5), batch_reference(exact, 5)), (token_top(x, w, b, 5), token_reference(exact, 5))):
        found = dense_codes(codes, 200).double()
        assert torch.equal(found > 0, reference > 0)
        assert torch.allclose(found, reference, atol=1e-5)


def test_the_centre_is_subtracted_first() -> None:
    x, w, b = draw(4, 30, 20, 5)
    centre = torch.arange(5.0, dtype=torch.float64)
    for select in (batch_top, token_top):
        assert torch.equal(dense_codes(select(x, w, b, 3, centre), 20), dense_codes(select(x - centre, w, b, 3), 20))


# screening


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 300), st.floats(-3, 3))
def test_a_screen_lets_every_entry_through_that_lies_above(seed: int, d: int, shift: float) -> None:
    x, w, b = draw(seed, 20, 30, d, torch.float32)
    exact = x.double() @ w.double().T
    limit = exact.float().median(0).values + shift * b  # near the products themselves
    screen = Screen.against(w, limit)
    scores = screen.multiply(screen.columns(x)[0], 0, torch.empty(30, 20, dtype=torch.bfloat16))
    assert bool((scores.T[exact > limit.double()] > 0).all())


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 300), st.integers(1, 6))
def test_a_screen_lets_the_largest_through(seed: int, d: int, k: int) -> None:
    x, w, b = draw(seed, 20, 30, d, torch.float32)
    exact = x.double() @ w.double().T + b.double()
    screen = Screen.scored(w, b)
    columns, lift = screen.columns(x)
    scores = screen.multiply(columns, 0, torch.empty(30, 20, dtype=torch.bfloat16)).T
    needed = lowest(scores.float().topk(k, dim=1).values[:, -1].bfloat16(), lift)
    assert bool((scores >= needed[:, None])[token_reference(exact, k) > 0].all())
    assert bool((needed >= 0).all())


def test_a_screen_is_no_sieve_without_holes() -> None:
    x, w, _ = draw(1, 50, 2000, 256, torch.float32)
    exact = x @ w.T
    limit = exact.quantile(0.99) * torch.ones(2000)
    screen = Screen.against(w, limit)
    scores = screen.multiply(screen.columns(x)[0], 0, torch.empty(2000, 50, dtype=torch.bfloat16))
    assert 0.01 < float((scores > 0).float().mean()) < 0.02


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 40), st.integers(2, 200))
def test_pairs_let_the_nearest_through(seed: int, n: int, d: int) -> None:
    v = torch.nn.functional.normalize(draw(seed, n, n, d, torch.float32)[0], dim=1)
    pairs = Pairs.of(v)
    scores = (pairs.rows @ pairs.rows.T).fill_diagonal_(-2)
    exact = (v.double() @ v.double().T).fill_diagonal_(-2).argmax(1)
    needed = pairs.needed(scores.max(1).values)
    assert bool((scores.gather(1, exact[:, None])[:, 0] >= needed)[needed > 0].all())


@pytest.mark.parametrize("n", [64, 65, 200])
def test_nearest_rows_are_the_same_by_screening(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    v = torch.nn.functional.normalize(draw(n, n, n, 12, torch.float32)[0], dim=1)
    value, at = nearest(v)
    monkeypatch.setattr(products, "_SMALL", 0)
    monkeypatch.setattr(products, "_machine", lambda: Ways(bfloat16=True))
    other, there = nearest(v)
    assert torch.allclose(other, value, atol=1e-6) and torch.equal(there, at)
    opposite = torch.cat([v[:1], -v[:1]])  # no positive cosine: nothing to screen with
    assert torch.allclose(nearest(opposite)[0], -torch.ones(2)) and nearest(opposite)[1].tolist() == [1, 0]


def test_the_processor_decides_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(cpu_name: str, **has: bool) -> Ways:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": cpu_name, **has}, raising=False)
        return products._machine.__wrapped__()

    mkl = torch.backends.mkl.is_available()
    assert told("AMD EPYC", avx512_bf16=True) == Ways(numpy=mkl, bfloat16=True)
    assert told("Intel(R) Xeon(R)", amx_bf16=True, avx512_bf16=False) == Ways(bfloat16=True)
    assert told("Apple M4") == Ways()
    assert products._machine() is products._machine()
    assert products.ways(torch.empty(10, 10), torch.empty(10, 10)) == Ways()
    assert products.ways(torch.empty(2000, 500).double(), torch.empty(1000, 500).double()) == Ways()


# gradients


def codes_of(x: Tensor, w: Tensor, b: Tensor, centre: Tensor, kind: str) -> SparseBatch:
    if kind == "above":
        return above(x, w, b, 0.1, centre)
    return (batch_top if kind == "batch" else token_top)(x, w, b, 2, centre)


@pytest.mark.parametrize("kind", ["batch", "token", "above"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gradients_equal_differences(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "DENSE_ABOVE", share)
    x, w, b = (t.requires_grad_() for t in draw(11, 4, 7, 3))
    w_dec, centre = (t.requires_grad_() for t in (draw(12, 4, 7, 3)[1], torch.full((3,), 0.1, dtype=torch.float64)))
    torch.autograd.gradcheck(lambda x, w, b, c, v: decode(codes_of(x, w, b, c, kind), v), (x, w, b, centre, w_dec))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_gradient_of_nested_errors_equals_differences(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "DENSE_ABOVE", share)
    x, w, b = draw(13, 6, 9, 4)
    w_dec = draw(14, 6, 9, 4)[1].requires_grad_()
    codes = token_top(x, w, b, 3)
    values, target = codes.values.clone().requires_grad_(), draw(15, 6, 9, 4)[0].requires_grad_()
    torch.autograd.gradcheck(lambda v, u, t: nested_error(codes.valued(v), u, t, (2, 5, 9))[0], (values, w_dec, target))


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(60, 70), st.lists(st.integers(1, 11), max_size=3, unique=True))
def test_nested_errors_are_those_of_prefixes_one_by_one(seed: int, n: int, cuts: list[int]) -> None:
    x, w, b = draw(seed, n, 12, 4)
    codes, sizes = batch_top(x, w, b, 3), (*sorted(cuts), 12)
    error, xhat = nested_error(codes, w, x, sizes)
    one_by_one = [(x - decode(codes.below(size), w)).square().sum() / n for size in sizes]
    assert torch.allclose(error, torch.stack(one_by_one).mean())
    assert torch.allclose(xhat, decode(codes, w))


# sparse and dense


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 5))
def test_dense_and_sparse_branches_are_equal(seed: int, n: int, m: int, d: int) -> None:
    g, w, _ = draw(seed, n, m, d)
    codes = batch_top(g, w, torch.zeros(m, dtype=torch.float64), 3)
    rows, cols, values = codes.rows, codes.cols, codes.values
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for share in (0.0, 1.0):
            patch.setattr(ops, "DENSE_ABOVE", share)
            assert ops.dense_is_cheaper(n * m, n, m) == (share == 0)
            found.append((ops.sums_of_rows(rows, cols, values, w, n), ops.dots_of_rows(rows, cols, g, w)))
    reference = ops.scattered(rows, cols, values, n, m) @ w, (g @ w.T)[rows, cols]
    for dense, thin, right in zip(*found, reference, strict=True):
        assert torch.allclose(dense, right, atol=1e-12) and torch.allclose(thin, right, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([5, 65_536, 65_537, 300_000]))
def test_the_order_of_latents_is_stable(seed: int, m: int) -> None:
    cols = torch.from_numpy(np.random.default_rng(seed).integers(max(0, m - 70_000), m, 500))
    order = ops.by_latent(cols, m)
    assert torch.equal(order, torch.argsort(cols, stable=True))
    assert torch.equal(ByLatent(cols, m).latents, cols.sort().values)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_the_largest_of_rows_by_hand(seed: int, n: int, width: int, k: int) -> None:
    table = torch.from_numpy(np.random.default_rng(seed).integers(-3, 9, (n, width)))
    ranked = table.sort(dim=1, descending=True).values
    if k <= width:
        assert torch.equal(arrays.kth_largest(table, k), ranked[:, k - 1])
    padded = torch.nn.functional.pad(table, (0, max(0, k - width))).sort(dim=1, descending=True).values
    assert torch.equal(arrays.largest(table, k).sort(dim=1, descending=True).values, padded[:, :k])


def test_both_gradients_share_one_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consequence that `ByLatent` exists for."""
    sorts, real = [], ops.by_latent
    monkeypatch.setattr(ops, "by_latent", lambda cols, m: (sorts.append(m), real(cols, m))[1])
    monkeypatch.setattr(ops, "DENSE_ABOVE", 1.0)
    x, w, b = draw(5, 20, 30, 4)
    decode(batch_top(x, w.requires_grad_(), b, 2), w).square().sum().backward()
    assert sorts == [30]
