"""Composition: planted sums are found, controls stand beside, and the shared training pieces keep exact gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tasks.composition
from baselines import meta_sae, parts
from baselines.batchtopk import BatchTopK
from baselines.dead import dead_latent_loss
from baselines.parts import State, Weights, tied_init
from baselines.sparse import SparseBatch, batch_top, decode
from bench.context import Context
from bench.errors import UsageError, VerificationError
from bench.kernels.cosine import nearest_in, unit
from bench.sae.activations import ReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import NotApplicable, Result
from tasks.composition import Composition, nearly
from tests.worlds import dictionary, tied_sae, tiny_context

D = 32
QUICK = {"tokens": 900, "steps": 12, "seeds": 2, "min_alive": 32}


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(Store(tmp_path_factory.mktemp("store")))


def run(sae: DenseSAE, ctx: Context, **params: object) -> Result:
    answer = Composition(**{**QUICK, **params}).run(Canonical(sae), ctx)
    assert isinstance(answer, Result)
    return answer


def value(r: Result, name: str = "composition") -> float:
    return r.metrics[name].value


def composed(m: int, d: int, share: float, seed: int, base: int) -> Tensor:
    """Random unit rows; the first `share` of them are sums of two of `base` directions."""
    g = torch.Generator().manual_seed(seed)
    rows, directions, n = dictionary(m, d, seed), dictionary(base, d, seed + 1000), round(share * m)
    for i in range(n):
        rows[i] = directions[torch.randperm(base, generator=g)[:2]].sum(0)
    return unit(rows)


# the meta-SAE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_score_grows_with_the_planted_share_of_composed_rows(seed: int) -> None:
    shares = (0.0, 0.3, 0.6, 1.0)
    found = [meta_sae.explain(meta_sae.train(meta_sae.start(composed(96, 48, s, seed, base=20), 7), 120)).score for s in shares]
    assert found == sorted(found) and found[3] > found[0] + 0.1


def test_meta_latents_turn_to_the_planted_directions() -> None:
    truth, meta = dictionary(20, 48, 1000), meta_sae.start(composed(96, 48, 1.0, 0, base=20), 7)
    before = float(nearest_in(truth, meta.w.W_dec.detach()).median())
    after = float(nearest_in(truth, meta_sae.train(meta, 400).w.W_dec.detach()).median())
    assert before < 0.35 and after > 0.6


@pytest.mark.parametrize("n", [33, 64, 301])
def test_exactly_four_codes_a_row_however_rows_are_blocked(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dictionary(n, 12, 1)
    rows[n // 2] = rows[0]  # equal rows have equal pre-activations
    meta = meta_sae.train(meta_sae.start(rows, 0), 5)
    whole = meta_sae.explain(meta)
    assert len(whole.codes.values) == 4 * n and bool((whole.codes.values > 0).all())
    assert len(torch.unique(whole.codes.rows * 1000 + whole.codes.cols)) == 4 * n and bool((whole.codes.rows.diff() >= 0).all())
    monkeypatch.setattr(meta_sae, "_BLOCK", 7)
    pieces = meta_sae.explain(meta)
    assert torch.equal(whole.codes.cols, pieces.codes.cols) and pieces.score == pytest.approx(whole.score, abs=1e-6)


def test_score_equals_a_float64_reference() -> None:
    rows = dictionary(50, 12, 2)
    meta = meta_sae.train(meta_sae.start(rows, 0), 30)
    w_enc, b_enc, w_dec, b_dec = (t.detach().double().numpy() for t in meta.w.named().values())
    x = rows.double().numpy()
    x = x - x.mean(0)
    x /= np.sqrt(np.square(x).sum() / 50)
    assert np.allclose(meta.rows, x, atol=1e-6) and len(w_enc) == 13
    pre = (x - b_dec) @ w_enc.T + b_enc
    f = np.where(pre >= np.sort(pre, axis=None)[-200], pre, 0)
    left = x - f @ w_dec - b_dec
    score = 1 - np.square(left).sum() / np.square(x - x.mean(0)).sum()
    assert meta_sae.explain(meta).score == pytest.approx(score, abs=1e-6)
    assert np.allclose(meta_sae.explain(meta).error, np.square(left).sum(1), atol=1e-6)


def test_training_in_parts_is_training_at_once() -> None:
    rows = dictionary(40, 12, 3)
    once = meta_sae.train(meta_sae.start(rows, 5), 21)
    parts_of_it = meta_sae.start(rows, 5)
    for until in (4, 4, 15, 21):
        parts_of_it = meta_sae.train(parts_of_it, until)
    other = meta_sae.train(meta_sae.start(rows, 6), 21)
    assert torch.equal(once.w.W_dec, parts_of_it.w.W_dec) and once.state.step == 21
    assert not torch.equal(once.w.W_dec, other.w.W_dec)


def test_an_epoch_holds_each_row_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_sae, "BATCH", 8)
    seen: list[Tensor] = []
    real = parts.descend
    monkeypatch.setattr(parts, "descend", lambda m, w, o, x, *rest: (seen.append(x), real(m, w, o, x, *rest))[1])
    without = meta_sae.start(dictionary(35, 12, 3), 0)
    meta_sae.train(without, 8)
    assert all(len(torch.cat(seen[i : i + 4]).unique(dim=0)) == 32 for i in (0, 4))
    assert not torch.equal(seen[0], seen[4])  # the next epoch has another order
    seen.clear()
    meta_sae.train(meta_sae.start(dictionary(35, 12, 3), 0, replacement=True), 8)
    assert any(len(torch.cat(seen[i : i + 4]).unique(dim=0)) < 32 for i in (0, 4))


def test_meta_latents_count_as_dead_after_four_passes_and_never_without_the_loss() -> None:
    rows = dictionary(64, 12, 4)
    assert meta_sae.start(rows, 0).state.dead_after == 256
    plain = meta_sae.start(rows, 0, auxiliary=False)
    with torch.no_grad():
        plain.w.b_enc[:8] = -100.0
    assert len(meta_sae.train(plain, 12).state.dead) == 0
    revived = meta_sae.start(rows, 0)
    with torch.no_grad():
        revived.w.b_enc[:8] = -100.0
    assert meta_sae.train(revived, 12).state.dead.tolist() == list(range(8))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
        self.numel = max([self.numel, *(t.numel() for t in tensors)])
        return out


def test_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    sizes = []
    for n in (4096, 8192):
        meta = meta_sae.start(dictionary(n, 4, 0), 0)
        with Largest() as seen:
            meta_sae.train(meta, 2)
            assert len(meta_sae.explain(meta).codes.values) == 4 * n
        sizes.append(seen.numel)
    assert sizes == [1024 * 1024, 1024 * 2048]  # one block of 1,024 rows by n/4 meta-latents


# the task


def test_composed_dictionaries_score_higher_than_random_ones_and_than_the_control(ctx: Context) -> None:
    good, bad = (run(tied_sae(composed(96, D, s, 3, base=20)), ctx, steps=60, seeds=1) for s in (0.0, 1.0))
    assert value(bad) > value(good) + 0.1 and value(bad, "composition_minus_random") > 0.1 > abs(value(good, "composition_minus_random"))
    assert good.metrics["composition"].better == "lower"


def test_unit_table_gives_the_score_back_and_says_what_composes_a_latent(ctx: Context) -> None:
    r = run(tied_sae(dictionary(60, D, 5)), ctx)
    u = r.units
    assert 1 - u["error"].sum() / u["variance"].sum() == pytest.approx(value(r)) == pytest.approx(np.mean(r.details["per_seed"]))
    assert r.details["sd_over_seeds"] == pytest.approx(abs(np.diff(r.details["per_seed"])[0]) / np.sqrt(2))
    assert np.allclose(u["explained"], 1 - u["error"] / u["variance"]) and (np.diff(u["latent"]) > 0).all()
    named = [[(int(j), float(v)) for j, v in (p.split(":") for p in t.split())] for t in u["meta_latents"]]
    assert sum(map(len, named)) == r.counts["codes"] == 4 * r.counts["latents"] == 4 * r.metrics["composition"].n
    assert all(v == sorted(v, reverse=True) for v in ([c for _, c in t] for t in named))
    largest = r.details["largest_meta_latents"]
    serves = {j: [int(i) for i, t in zip(u["latent"], named, strict=True) if j in dict(t)] for j in range(r.counts["meta_latents"])}
    assert [e["serves"] for e in largest] == sorted(map(len, serves.values()), reverse=True)[: len(largest)]
    assert all(set(e["latents"]) <= set(serves[e["meta_latent"]]) and len(e["latents"]) == min(20, e["serves"]) for e in largest)
    assert r.counts["meta_latents_unused"] == sum(not v for v in serves.values())
    assert r.metrics["composition"].interval is None and r.metrics["composition"].spread is not None


def test_permuting_latents_changes_nothing_and_rescaling_next_to_nothing(ctx: Context) -> None:
    sae, g = tied_sae(dictionary(60, D, 5)), torch.Generator().manual_seed(0)
    order, a = torch.randperm(60, generator=g), 0.2 + 3 * torch.rand(60, generator=g)
    shuffled = DenseSAE(sae.W_enc[:, order].contiguous(), sae.b_enc[order], sae.W_dec[order], sae.b_dec, sae.b_pre, ReLU())
    scaled = DenseSAE(sae.W_enc / a, sae.b_enc / a, sae.W_dec * a[:, None], sae.b_dec, sae.b_pre, ReLU())
    one, two, three = (run(s, ctx) for s in (sae, shuffled, scaled))
    assert {k: m.value for k, m in one.metrics.items()} == {k: m.value for k, m in two.metrics.items()}
    assert value(one) == pytest.approx(value(three), abs=1e-4)
    back = np.argsort(order.numpy())
    assert [one.units["meta_latents"][i] for i in range(60)] == [two.units["meta_latents"][back[i]] for i in range(60)]


def test_a_score_that_still_moves_doubles_the_steps_once_and_is_limited(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = tied_sae(dictionary(60, D, 5))
    doubled = run(sae, ctx, steps=10)
    assert doubled.details["steps"] == 20 and any(w.startswith("limited: the score still moved") for w in doubled.warnings)
    monkeypatch.setattr(tasks.composition, "CONVERGED", 1.0)
    still = run(sae, ctx, steps=20)
    assert still.details["steps"] == 20 and still.warnings == ()
    assert still.metrics == doubled.metrics and still.details["half_way"] == doubled.details["half_way"]
    assert run(sae, ctx, steps=10).details["steps"] == 10


def test_the_random_control_is_shared_by_dictionaries_of_nearly_one_size(ctx: Context, tmp_path: Path) -> None:
    fresh = replace(ctx, store=Store(tmp_path))
    one, two = (run(tied_sae(dictionary(m, D, 5)), fresh) for m in (151, 152))
    kept = [e for e in fresh.store.entries() if e.kind == "random_composition"]
    assert len(kept) == 1 and kept[0].parts["m"] == one.metrics["composition_random"].n
    assert value(one, "composition_random") == value(two, "composition_random") and value(one) != value(two)
    run(tied_sae(dictionary(151, D, 5)), fresh, steps=13)
    run(tied_sae(dictionary(80, D, 5)), fresh)
    assert sum(e.kind == "random_composition" for e in fresh.store.entries()) == 3


@given(st.integers(1, 10**6))
def test_the_control_s_size_is_within_one_per_cent(m: int) -> None:
    assert abs(nearly(m) - m) <= 0.01 * m and nearly(nearly(m)) == nearly(m)


def test_the_incumbent_s_protocol_takes_all_rows_and_never_doubles(ctx: Context) -> None:
    w = dictionary(60, D, 5)
    sae = tied_sae(w)
    sae = DenseSAE(sae.W_enc, torch.where(torch.arange(60) < 20, -100.0, 0.0), sae.W_dec, sae.b_dec, sae.b_pre, ReLU())
    ours, theirs = run(sae, ctx), run(sae, ctx, protocol="saebench")
    assert ours.counts["latents"] <= 40 and theirs.counts["latents"] == 60
    assert (
        theirs.details["steps"] == 12
        and theirs.main == "saebench_composition"
        and set(theirs.metrics) == {f"saebench_composition{s}" for s in ("", "_random", "_minus_random")}
    )
    assert len(theirs.warnings) == 1 and "1,500" in theirs.warnings[0]


def test_too_few_latents_and_equal_rows_are_not_applicable(ctx: Context) -> None:
    few = Composition(tokens=900).run(Canonical(tied_sae(dictionary(60, D, 1))), ctx)
    assert isinstance(few, NotApplicable) and "60" in few.reason and "64" in few.reason
    silent = Composition(**QUICK).run(Canonical(tied_sae(dictionary(60, D, 1), bias=-100.0)), ctx)
    assert isinstance(silent, NotApplicable) and silent.reason.startswith("0 latents")
    same = tied_sae(dictionary(1, D, 1).repeat(60, 1) * torch.linspace(0.5, 2, 60)[:, None], bias=100.0)
    assert isinstance(Composition(**QUICK).run(Canonical(same), ctx), NotApplicable)


@pytest.mark.parametrize("bad", [{"steps": 1}, {"seeds": 0}, {"min_alive": 31}])
def test_unusable_parameters_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Composition(**bad)


# the training pieces it shares with every method


def double_weights(m: int, d: int, seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return Weights(*(torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_(True) for s in ((m, d), (m,), (m, d), (d,))))


@pytest.mark.parametrize("k_aux", [2, 100])
def test_gradient_of_the_dead_latent_loss_equals_autograd(k_aux: int) -> None:
    x, xhat = (torch.randn(7, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (2, 3))
    state = State(0, 10, torch.tensor([0, 500, 0, 500, 500, 0, 0, 500, 0]), 100)
    a, b, dead = double_weights(9, 5, 0), double_weights(9, 5, 0), [1, 3, 4, 7]
    found = dead_latent_loss(a, x, xhat, state, k_aux)
    pre = torch.relu((x - b.b_dec) @ b.W_enc[dead].T + b.b_enc[dead])
    if k_aux < len(dead):
        cut = pre.detach().sort(dim=1).values[:, -k_aux]
        pre = pre * (pre.detach() >= cut[:, None])
    e = x - xhat
    expected = (e - pre @ b.W_dec[dead]).square().sum() / (e - e.mean(0)).square().sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    (3 * found).backward()
    (3 * expected).backward()
    for name, t in a.named().items():
        assert torch.allclose(t.grad, b.named()[name].grad, atol=1e-12), name


def test_gradient_of_the_centre_is_that_of_the_centred_inputs() -> None:
    x, y = (torch.randn(16, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    one, two = double_weights(8, 5, 1), double_weights(8, 5, 1)
    for w, codes in ((one, batch_top(x, one.W_enc, one.b_enc, 2, one.b_dec)), (two, batch_top(x - two.b_dec, two.W_enc, two.b_enc, 2))):
        parts.mse(y, decode(codes, w.W_dec)).backward()
    for name, t in one.named().items():
        assert torch.allclose(t.grad, two.named()[name].grad, atol=1e-12), name


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_gradients_of_decoding_equal_a_dense_product(seed: int, entries: int) -> None:
    g = torch.Generator().manual_seed(seed)
    flat = torch.randperm(60, generator=g)[:entries].sort().values
    rows, cols = flat // 10, flat % 10
    values, w = (torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_(True) for s in ((entries,), (10, 3)))
    upstream = torch.randn(6, 3, generator=g, dtype=torch.float64)
    decode(SparseBatch(rows, cols, values, 6), w).backward(upstream)
    dense = torch.zeros(6, 10, dtype=torch.float64)
    dense[rows, cols] = values.detach()
    assert torch.allclose(values.grad, (upstream @ w.detach().T)[rows, cols], atol=1e-12)
    assert torch.allclose(w.grad, dense.T @ upstream, atol=1e-12)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_step_clips_as_torch_does(clip: float) -> None:
    x, method = dictionary(30, 6, 1), BatchTopK(d_sae=12, k=2)
    state, done = State(0, 9, torch.zeros(12, dtype=torch.long), 10**6), []
    for ours in (True, False):
        w = tied_init(12, torch.zeros(6), torch.Generator().manual_seed(0))
        for t in w.named().values():
            t.requires_grad_(True)
        opt = torch.optim.SGD(list(w.named().values()), lr=0.5)
        if ours:
            parts.descend(method, w, opt, x, state, torch.Generator(), 0.5, clip)
        else:
            sum(method.loss(w, x, state, torch.Generator())[0].values()).backward()
            method.project_grad(w)
            torch.nn.utils.clip_grad_norm_(list(w.named().values()), clip)
            opt.step()
            method.constrain(w)
        done.append(w)
    for a, b in zip(done[0].named().values(), done[1].named().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_loss_that_is_not_finite_stops() -> None:
    meta = meta_sae.start(dictionary(40, 12, 3), 5)
    with torch.no_grad():
        meta.w.W_dec.mul_(math.inf)
    with pytest.raises(VerificationError):
        meta_sae.train(meta, 1)
