"""The forms of an SAE: sparse codes equal dense ones, and the canonical view is the same whoever implements the SAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.kernels import encoding, products
from bench.sae import dense as dense_module
from bench.sae.activations import Activation, JumpReLU, ReLU, TopK
from bench.sae.canonical import MIN_NORM, Canonical
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.types import SAE

SEEDS = st.integers(0, 2**32 - 1)
D_IN, D_SAE = 6, 20


@pytest.fixture(scope="module", autouse=True, params=["plain", "screened"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of encoding, also on machines where only one is fast, and for few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_SMALL", 0)
        patch.setattr(products, "_machine", lambda: products.Ways(bfloat16=request.param == "screened"))
        patch.setattr(encoding, "_FEW", 0)
        patch.setattr(encoding, "_CACHED", (16, 8))
        yield request.param


def random_threshold(seed: int) -> JumpReLU:
    return JumpReLU(torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 1, D_SAE).astype(np.float32)))


ACTIVATIONS: dict[str, Callable[[int], Activation]] = {
    "relu": lambda seed: ReLU(),
    "topk": lambda seed: TopK(4),
    "topk wide": lambda seed: TopK(D_SAE + 5),
    "jumprelu": random_threshold,
    "jumprelu scalar": lambda seed: JumpReLU(torch.tensor(0.3)),
}
KINDS = st.sampled_from(sorted(ACTIVATIONS))


def make(seed: int, act: Activation, b_enc: float = 0.0) -> DenseSAE:
    g = np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(g.standard_normal(shape).astype(np.float32))

    w_dec = draw(D_SAE, D_IN) * torch.from_numpy(10 ** g.uniform(-1, 1, (D_SAE, 1)).astype(np.float32))
    return DenseSAE(draw(D_IN, D_SAE), draw(D_SAE) * 0.3 + b_enc, w_dec, draw(D_IN), draw(D_IN), act)


def inputs(seed: int, n: int = 30) -> np.ndarray:
    return np.random.default_rng(seed + 1).standard_normal((n, D_IN)).astype(np.float32)


def identity(act: Activation, d: int) -> DenseSAE:
    """An SAE whose pre-activations are its inputs, exactly."""
    return DenseSAE(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d), torch.zeros(d), act)


class Plain:
    """A third party's SAE: the protocol and nothing more."""

    def __init__(self, inner: DenseSAE) -> None:
        self._inner = inner
        self.d_in, self.d_sae, self.W_dec = inner.d_in, inner.d_sae, inner.W_dec
        self.largest_batch = 0

    def encode(self, x: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(x))
        return self._inner.encode(x)

    def decode(self, f: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(f))
        return self._inner.decode(f)


class Module(nn.Module):
    """Another third party's: parameters with gradients, in float64, and inputs expected in the same type."""

    def __init__(self, inner: DenseSAE) -> None:
        super().__init__()
        self._inner = inner
        self.d_in, self.d_sae = inner.d_in, inner.d_sae
        self.W_dec = nn.Parameter(inner.W_dec.double())

    def encode(self, x: Tensor) -> Tensor:
        assert x.dtype == self.W_dec.dtype
        return self._inner.encode(x.float()).double()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + self._inner.b_dec


# activation functions


def test_activations_by_hand() -> None:
    pre = torch.tensor([[-1.0, 0.0, 0.5, 2.0]])
    assert ReLU()(pre).tolist() == [[0, 0, 0.5, 2]]
    assert TopK(1)(pre).tolist() == [[0, 0, 0, 2]]
    assert TopK(3)(pre).tolist() == TopK(9)(pre).tolist() == [[0, 0, 0.5, 2]]
    assert JumpReLU(torch.tensor(0.5))(pre).tolist() == [[0, 0, 0, 2]]
    assert JumpReLU(torch.tensor([-2.0, -1.0, 0.4, 3.0]))(pre).tolist() == [[0, 0, 0.5, 0]]


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 8), st.integers(1, 12), st.integers(1, 14))
def test_topk_equals_a_full_sort(seed: int, n: int, m: int, k: int) -> None:
    pre = np.random.default_rng(seed).standard_normal((n, m)).astype(np.float32)
    found = TopK(k)(torch.from_numpy(pre)).numpy()
    for row, values in enumerate(pre):
        kept = sorted(range(m), key=lambda i: -values[i])[:k]
        assert found[row].tolist() == [max(values[i], 0) if i in kept else 0 for i in range(m)]


# DenseSAE


@settings(max_examples=60)
@given(SEEDS, KINDS, st.integers(1, 20))
def test_dense_codes_and_reconstruction_equal_a_double_loop(seed: int, kind: str, n: int) -> None:
    sae, x = make(seed, ReLU()), inputs(seed, n)
    act = ACTIVATIONS[kind](seed)
    f, w = (
        replace(sae, act=act).encode(torch.from_numpy(x)).numpy(),
        {k: getattr(sae, k).double().numpy() for k in ("W_enc", "b_enc", "b_pre")},
    )
    pre = np.zeros((n, D_SAE))
    for i in range(n):
        for j in range(D_SAE):
            pre[i, j] = sum((float(x[i, d]) - w["b_pre"][d]) * w["W_enc"][d, j] for d in range(D_IN)) + w["b_enc"][j]
    active = f > 0
    assert f[active] == pytest.approx(pre[active], abs=1e-5)
    if isinstance(act, TopK):
        assert active.sum(1).tolist() == np.minimum((pre > 0).sum(1), act.k).tolist()
        assert all(
            pre[i][active[i]].min(initial=np.inf) >= np.where(active[i], -np.inf, pre[i]).max(initial=0) - 1e-5
            or (pre[i] > 0).sum() <= act.k
            for i in range(n)
        )
    else:
        bound = np.maximum(act.threshold.numpy() if isinstance(act, JumpReLU) else 0, 0)
        clear = np.abs(pre - bound) > 1e-5
        assert np.array_equal(active[clear], (pre > bound)[clear])
    xhat = sae.decode(torch.from_numpy(f)).numpy()
    assert xhat == pytest.approx(f.astype(np.float64) @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy(), abs=1e-3)


@settings(max_examples=60)
@given(SEEDS, KINDS, st.integers(0, 40), st.sampled_from([-3.0, 0.0, 3.0]))
def test_sparse_equals_dense(seed: int, kind: str, n: int, b_enc: float) -> None:
    sae, x = make(seed, ACTIVATIONS[kind](seed), b_enc), inputs(seed, n)
    codes, f = sae.encode_sparse(x), sae.encode(torch.from_numpy(x))
    assert (codes.n, codes.d_sae) == (n, D_SAE)
    if isinstance(sae.act, TopK):
        assert codes.matrix.toarray() == pytest.approx(f.numpy(), abs=1e-5)
    else:  # another matrix product, so another rounding: at the threshold it may decide otherwise
        pre = sae.pre_activations(torch.from_numpy(x)).numpy()
        bound = np.maximum(sae.act.threshold.numpy() if isinstance(sae.act, JumpReLU) else 0, 0)
        same = np.isclose(codes.matrix.toarray(), f.numpy(), rtol=1e-5, atol=1e-5)
        assert (same | (np.abs(pre - bound) < 1e-5)).all()
    assert np.all(codes.values > 0)
    xhat = sae.decode_sparse(codes)
    assert xhat.dtype == np.float32 and xhat.shape == (n, D_IN)
    assert xhat == pytest.approx(sae.decode(f).numpy(), abs=1e-3)


def test_topk_with_fewer_positives_than_k_has_fewer_codes() -> None:
    sae = identity(TopK(3), 5)
    x = np.array([[1, -1, 2, -3, 0], [-1, -1, -1, -1, -1], [5, 4, 3, 2, 1]], dtype=np.float32)
    codes = sae.encode_sparse(x)
    assert codes.l0().tolist() == [2, 0, 3]
    assert codes.indices.tolist() == [0, 2, 0, 1, 2]
    assert np.array_equal(codes.matrix.toarray(), sae.encode(torch.from_numpy(x)).numpy())


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 7))
def test_topk_with_ties_has_k_codes(seed: int, k: int) -> None:
    x = np.random.default_rng(seed).integers(-1, 3, (20, 7)).astype(np.float32)
    sae = identity(TopK(k), 7)
    codes = sae.encode_sparse(x)  # among equal ones any are taken
    assert np.array_equal(np.sort(codes.matrix.toarray(), axis=1), np.sort(sae.encode(torch.from_numpy(x)).numpy(), axis=1))
    assert codes.l0().tolist() == np.minimum((x > 0).sum(1), k).tolist()
    assert codes.matrix.sum(axis=1).ravel().tolist()[0] == np.sort(np.maximum(x, 0), axis=1)[:, -k:].sum(1).tolist()


def test_a_value_at_its_threshold_is_inactive() -> None:
    sae = identity(JumpReLU(torch.tensor([0.5, 0.5, 0.0, -1.0])), 4)
    x = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0, 0], [0.25, 1, 1e-30, -0.5]], dtype=np.float32)
    codes = sae.encode_sparse(x)
    assert codes.indices.tolist() == [1, 1, 2]
    assert np.array_equal(codes.matrix.toarray(), sae.encode(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("n", [1, 16, 40])
def test_blocks_of_tokens_do_not_change_codes(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = make(5, ACTIVATIONS[kind](5)), inputs(5, n)
    whole = sae.encode_sparse(x)
    monkeypatch.setattr(dense_module, "_BLOCK_NUMBERS", 1)  # 16 tokens at a time
    parts = sae.encode_sparse(x)
    assert np.array_equal(parts.indptr, whole.indptr) and np.array_equal(parts.indices, whole.indices)
    assert parts.values == pytest.approx(whole.values, abs=1e-5)


def test_inputs_of_other_types_are_read_as_float32() -> None:
    sae, x = make(6, ReLU()), inputs(6).astype(np.float16)
    expected = sae.encode(torch.from_numpy(x.astype(np.float32))).numpy()
    for given_x in (x, x.astype(np.float64), np.asfortranarray(x.astype(np.float32)), np.repeat(x, 2, axis=0)[::2]):
        assert sae.encode_sparse(given_x).matrix.toarray() == pytest.approx(expected, abs=1e-6)


def test_identity_of_the_weights() -> None:
    sae = make(7, random_threshold(7))
    assert sae.sha256 == make(7, random_threshold(7)).sha256 == sae.to("cpu").sha256
    others = [replace(sae, **{k: getattr(sae, k) + 1e-3}) for k in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre")]
    others += [replace(sae, act=a) for a in (JumpReLU(torch.tensor(0.3)), TopK(3), TopK(4), ReLU())]
    assert len({s.sha256 for s in (sae, *others)}) == len(others) + 1
    assert replace(sae, act=JumpReLU(torch.tensor(0.3))).sha256 == replace(sae, act=JumpReLU(torch.full((D_SAE,), 0.3))).sha256


# Canonical


def rescaled(sae: DenseSAE, factor: np.ndarray) -> DenseSAE:
    """The same function with other decoder norms: rows × a, what produces the codes ÷ a."""
    a = torch.from_numpy(factor.astype(np.float32))
    act = JumpReLU(sae.act.threshold / a) if isinstance(sae.act, JumpReLU) else sae.act
    return replace(sae, W_enc=sae.W_enc / a, b_enc=sae.b_enc / a, W_dec=sae.W_dec * a[:, None], act=act)


def permuted(sae: DenseSAE, order: np.ndarray) -> DenseSAE:
    act = JumpReLU(sae.act.threshold.expand(D_SAE)[order]) if isinstance(sae.act, JumpReLU) else sae.act
    return replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order], act=act)


@settings(max_examples=40)
@given(SEEDS, KINDS)
def test_canonical_rows_are_unit_and_codes_carry_the_norm(seed: int, kind: str) -> None:
    sae, x = make(seed, ACTIVATIONS[kind](seed)), inputs(seed)
    view = Canonical(sae)
    norms = np.array([sum(float(v) ** 2 for v in row) ** 0.5 for row in sae.W_dec])
    assert view.norms == pytest.approx(norms)
    assert np.linalg.norm(view.W_dec, axis=1) == pytest.approx(np.ones(D_SAE), abs=1e-6)
    assert view.W_dec * norms[:, None] == pytest.approx(sae.W_dec.numpy(), rel=1e-5)
    f = sae.encode(torch.from_numpy(x))
    codes = view.encode_sparse(x)
    assert codes.matrix.toarray() == pytest.approx(f.numpy() * norms, rel=1e-5)
    assert view.reconstruct(codes) == pytest.approx(sae.decode(f).numpy(), abs=1e-3)
    assert codes.matrix @ view.W_dec + sae.b_dec.numpy() == pytest.approx(view.reconstruct(codes), abs=1e-3)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from(["relu", "jumprelu", "jumprelu scalar"]))
def test_rescaling_latents_changes_nothing(seed: int, kind: str) -> None:
    sae, x = make(seed, ACTIVATIONS[kind](seed)), inputs(seed)
    factor = 2.0 ** np.random.default_rng(seed).integers(-6, 7, D_SAE)  # exact, so that no value crosses its threshold
    a, b = Canonical(sae), Canonical(rescaled(sae, factor))
    codes, others = a.encode_sparse(x), b.encode_sparse(x)
    assert b.W_dec == pytest.approx(a.W_dec, abs=1e-7)
    assert b.norms == pytest.approx(factor * a.norms)
    assert np.array_equal(others.indptr, codes.indptr) and np.array_equal(others.indices, codes.indices)
    assert others.values == pytest.approx(codes.values, rel=1e-6)
    assert b.reconstruct(codes) == pytest.approx(a.reconstruct(codes), abs=1e-3)


@settings(max_examples=40)
@given(SEEDS, KINDS)
def test_permuting_latents_permutes_codes_and_rows(seed: int, kind: str) -> None:
    sae, x = make(seed, ACTIVATIONS[kind](seed)), inputs(seed)
    order = np.random.default_rng(seed).permutation(D_SAE)
    a, b = Canonical(sae), Canonical(permuted(sae, order))
    codes, others = a.encode_sparse(x), b.encode_sparse(x)
    assert np.array_equal(b.W_dec, a.W_dec[order]) and np.array_equal(b.norms, a.norms[order])
    assert others.matrix.toarray() == pytest.approx(codes.matrix.toarray()[:, order], abs=1e-4)
    assert b.reconstruct(others) == pytest.approx(a.reconstruct(codes), abs=1e-3)


@pytest.mark.parametrize("wrap", [lambda s: s, Plain], ids=["dense", "third party"])
@pytest.mark.parametrize("size", [0.0, MIN_NORM / 10])
def test_dead_rows_are_dropped(wrap: Callable[[DenseSAE], SAE], size: float) -> None:
    sae, x = make(8, ReLU(), 1.0), inputs(8)
    alive = np.arange(D_SAE) % 3 != 0
    w_dec = torch.where(torch.from_numpy(alive)[:, None], sae.W_dec, size * sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True))
    sae = replace(sae, W_dec=w_dec)
    view = Canonical(wrap(sae))
    codes, f = view.encode_sparse(x), sae.encode(torch.from_numpy(x))
    assert (f.numpy()[:, ~alive] > 0).any()  # they fire, and contribute nothing
    assert not codes.firing_counts()[~alive].any() and np.all(codes.values != 0)
    assert np.array_equal(codes.firing_counts()[alive], (f.numpy() > 0).sum(0)[alive])
    assert np.array_equal(view.norms == 0, ~alive)
    assert np.isfinite(view.W_dec).all() and np.abs(view.W_dec[~alive]).max() <= size
    assert view.reconstruct(codes) == pytest.approx(sae.decode(f).numpy(), abs=1e-4)


@settings(max_examples=25)
@given(SEEDS, KINDS, st.sampled_from([0, 1, 30, 512, 700]))
def test_a_third_party_gives_the_same_answers(seed: int, kind: str, n: int) -> None:
    sae, x = make(seed, ACTIVATIONS[kind](seed)), inputs(seed, n)
    ours = Canonical(sae)
    codes = ours.encode_sparse(x)
    for other in (Plain(sae), Module(sae)):
        assert isinstance(other, SAE)
        theirs = Canonical(other)
        assert (theirs.d_in, theirs.d_sae) == (D_IN, D_SAE)
        assert np.array_equal(theirs.W_dec, ours.W_dec) and np.array_equal(theirs.norms, ours.norms)
        found = theirs.encode_sparse(x)
        assert (found.n, found.d_sae) == (n, D_SAE)
        assert found.matrix.toarray() == pytest.approx(codes.matrix.toarray(), abs=1e-4)
        assert theirs.reconstruct(codes) == pytest.approx(ours.reconstruct(codes), abs=1e-3)
        if isinstance(other, Plain):
            assert other.largest_batch <= 512  # memory stays bounded


def test_a_third_party_has_an_identity() -> None:
    sae = make(9, ReLU())
    found = Canonical(Plain(sae)).sha256
    assert found == Canonical(Plain(make(9, ReLU()))).sha256
    changed = [replace(sae, **{k: getattr(sae, k) + 0.01}) for k in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre")]
    assert len({found, *(Canonical(Plain(s)).sha256 for s in changed)}) == 6
    assert Canonical(sae).sha256 == sae.sha256


def test_signed_codes_of_a_third_party_are_kept() -> None:
    class Linear(Plain):
        def encode(self, x: Tensor) -> Tensor:
            return self._inner.pre_activations(x)

    sae, x = make(10, ReLU()), inputs(10)
    view = Canonical(Linear(sae))
    codes = view.encode_sparse(x)
    assert (codes.values < 0).any() and (codes.values > 0).any()
    assert codes.matrix.toarray() == pytest.approx(sae.pre_activations(torch.from_numpy(x)).numpy() * view.norms, rel=1e-5)


def test_reconstruction_of_silence_is_the_bias() -> None:
    sae = make(11, ReLU())
    silent = Codes.from_dense(np.zeros((3, D_SAE), dtype=np.float32))
    for inner in (sae, Plain(sae)):
        assert np.array_equal(Canonical(inner).reconstruct(silent), np.tile(sae.b_dec.numpy(), (3, 1)))
        assert Canonical(inner).reconstruct(silent.take(np.zeros(0, np.int64))).shape == (0, D_IN)


def test_identity_of_a_foreign_object_sees_any_threshold() -> None:
    class Foreign:
        def __init__(self, threshold: float) -> None:
            self.d_in = self.d_sae = 4
            self.W_dec = torch.eye(4)
            self.threshold = threshold

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x > self.threshold)

        def decode(self, f: torch.Tensor) -> torch.Tensor:
            return f

    assert len({Canonical(Foreign(t)).sha256 for t in (0.5, 8.0, 30.0, 200.0)}) == 4


def test_unit_rows_of_a_large_decoder_are_those_of_a_small_one() -> None:
    rows = torch.randn(2500, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(2500)[:, None]  # worked out in blocks
    sae = DenseSAE(rows.T, torch.zeros(2500), rows, torch.zeros(7), torch.zeros(7), ReLU())
    view, each = Canonical(sae), np.linalg.norm(rows.double().numpy(), axis=1)
    np.testing.assert_array_equal(view.norms, each)
    unit = rows.double().numpy() / np.where(each == 0, 1, each)[:, None]
    np.testing.assert_array_equal(view.W_dec, unit.astype(np.float32))
