"""Training: exact gradients, the penalty, exported L0, resume, controls, and recovery of a planted dictionary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.activations import TrainingSet
from baselines.batchtopk import BatchTopK
from baselines.dead import dead_latent_loss
from baselines.frozen_decoder import FrozenDecoder
from baselines.ortsae import OrtSAE
from baselines.parts import Forward, State, Weights, describe, mse, tied_init
from baselines.random import Random
from baselines.sparse import SparseBatch, batch_top, decode
from baselines.trainer import RESUME, FitConfig, fit
from bench.adapters import Given, open_checkpoint
from bench.errors import UsageError, VerificationError
from bench.kernels.cosine import nearest_cosine, nearest_in
from tests.worlds import dictionary, sparse_world, training_set

SITE = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}


def weights(m: int, d: int, seed: int = 0) -> Weights:
    g = torch.Generator().manual_seed(seed)
    w = Weights(*(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((m, d), (m,), (m, d), (d,))))
    for t in w.named().values():
        t.requires_grad_(True)
    return w


def dense_loss(w: Weights, x: torch.Tensor, k: int) -> torch.Tensor:
    """Plain autograd: the batch's k·n largest positive pre-activations, everything dense."""
    pre = (x - w.b_dec) @ w.W_enc.T + w.b_enc
    keep = torch.zeros_like(pre).reshape(-1)
    keep[pre.detach().reshape(-1).topk(k * len(x)).indices] = 1
    f = torch.relu(pre) * keep.reshape(pre.shape)
    return (x - f @ w.W_dec - w.b_dec).square().sum() / len(x)


def test_sparse_path_equals_dense_autograd() -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = weights(10, 6), weights(10, 6)
    state = State(0, 10, torch.zeros(10, dtype=torch.long), 100)
    terms, _ = BatchTopK(d_sae=10, k=3).loss(a, x, state, torch.Generator())
    reference = dense_loss(b, x, 3)
    terms["mse"].backward()
    reference.backward()
    assert torch.allclose(terms["mse"], reference, atol=1e-12)
    for name, t in a.named().items():
        assert torch.allclose(t.grad, b.named()[name].grad, atol=1e-10), name


def test_dead_latent_loss_equals_dense_formula() -> None:
    w, x = weights(9, 5), torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    silent = torch.tensor([0, 500, 0, 500, 500, 0, 0, 500, 0])
    xhat = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = dead_latent_loss(w, x, xhat, State(0, 10, silent, 100), k_aux=2)
    dead, e = [1, 3, 4, 7], (x - xhat).numpy()
    pre = np.maximum((x - w.b_dec).detach().numpy() @ w.W_enc.detach().numpy()[dead].T + w.b_enc.detach().numpy()[dead], 0)
    for row in pre:
        row[np.argsort(row)[:2]] = 0
    left = e - pre @ w.W_dec.detach().numpy()[dead]
    assert float(found.detach()) == pytest.approx(np.square(left).sum() / np.square(e - e.mean(0)).sum())
    assert float(dead_latent_loss(w, x, xhat, State(0, 10, torch.zeros(9, dtype=torch.long), 100), 2)) == 0


def test_codes_and_decode_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    codes = batch_top(x, w, torch.zeros(3), k=1)  # pre = [1 0 1; 0 3 3] → the two largest are both in row 1
    assert codes.rows.tolist() == [1, 1] and codes.cols.tolist() == [1, 2] and codes.values.tolist() == [3, 3]
    assert decode(codes, w).tolist() == [[0, 0], [3, 6]]
    assert codes.below(2).cols.tolist() == [1]
    assert decode(SparseBatch(*(t[:0] for t in (codes.rows, codes.cols, codes.values)), 2), w).tolist() == [[0, 0], [0, 0]]


def test_mse_of_predicting_the_mean_is_one_on_scaled_data() -> None:
    data = training_set(sparse_world(4000, dictionary(30, 16), 4) + 3)
    mean, variance = data.moments
    x = data.gather(np.arange(data.n)) / np.sqrt(variance)
    assert float(mse(x, (mean / np.sqrt(variance)).expand_as(x))) == pytest.approx(1, abs=1e-3)


def test_ortsae_adds_only_the_penalty_and_only_every_few_steps() -> None:
    base, method = BatchTopK(d_sae=20, k=2), OrtSAE(base=BatchTopK(d_sae=20, k=2), gamma=0.5, every=3)
    w = tied_init(20, torch.zeros(8), torch.Generator().manual_seed(0))
    x, rng = torch.randn(10, 8, generator=torch.Generator().manual_seed(1)), torch.Generator()
    for step in range(4):
        state = State(step, 10, torch.zeros(20, dtype=torch.long), 100)
        terms, _ = method.loss(w, x, state, rng)
        assert torch.equal(terms["mse"], base.loss(w, x, state, rng)[0]["mse"])
        expected = 0.5 * 3 * float(nearest_cosine(w.W_dec).clamp(min=0).square().mean())
        assert ("orth" in terms) == (step % 3 == 0)
        if "orth" in terms:
            assert float(terms["orth"]) == pytest.approx(expected, rel=1e-5)


def test_rows_stay_unit_and_the_gradient_along_them_is_removed() -> None:
    method, w = BatchTopK(d_sae=12, k=2), tied_init(12, torch.zeros(6), torch.Generator().manual_seed(0))
    for t in w.named().values():
        t.requires_grad_(True)
    terms, _ = method.loss(w, torch.randn(20, 6), State(0, 10, torch.zeros(12, dtype=torch.long), 100), torch.Generator())
    terms["mse"].backward()
    method.project_grad(w)
    assert float((w.W_dec.grad * w.W_dec.detach()).sum(1).abs().max()) < 1e-6
    with torch.no_grad():
        w.W_dec.mul_(3)
    method.constrain(w)
    assert torch.allclose(w.W_dec.norm(dim=1), torch.ones(12), atol=1e-6)


def test_silence_is_counted_in_tokens() -> None:
    codes = SparseBatch(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.ones(2), 50)
    state = BatchTopK(d_sae=4).update(State(0, 9, torch.tensor([0, 90, 70, 200]), 100), Forward(codes, torch.zeros(50, 3)))
    assert state.silent.tolist() == [50, 140, 0, 250] and state.dead.tolist() == [1, 3] and state.step == 1


def test_schedule() -> None:
    c = FitConfig(steps=1000, lr=1.0)
    assert c.warmup == 50 and c.rate(0) == 1 / 50 and c.rate(49) == 1 and c.rate(799) == 1
    assert c.rate(900) == pytest.approx(0.5) and c.rate(999) == pytest.approx(1 / 200)
    assert FitConfig(steps=100_000).warmup == 1000


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, TrainingSet]:
    rows = dictionary(48, 24, seed=3)
    return rows, training_set(sparse_world(24_000, rows, 3, noise=0.01))


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = BatchTopK(d_sae=64, k=3)
    methods = {"batchtopk": base, "ortsae": OrtSAE(base=base), "frozen_decoder": FrozenDecoder(base=base), "random": Random(64, 3)}
    root = tmp_path_factory.mktemp("fits")
    for name, method in methods.items():
        fit(method, world[1], FitConfig(steps=600, batch=256, lr=3e-3, checkpoint_at=(0.5, 1.0)), root / name, SITE)
    return {name: root / name for name in methods}


def test_exported_l0_on_held_out_tokens_is_the_target(fitted: dict[str, Path], world) -> None:
    held_out = sparse_world(4000, world[0], 3, seed=99, noise=0.01).numpy()
    for name, path in fitted.items():
        l0 = open_checkpoint(path, Given()).sae.encode_sparse(held_out).l0().mean()
        assert l0 == pytest.approx(3, rel=0.1), name


def test_planted_dictionary_is_recovered_better_than_by_the_controls(fitted: dict[str, Path], world) -> None:
    recovered = {n: float(nearest_in(world[0], open_checkpoint(p, Given()).sae.W_dec).mean()) for n, p in fitted.items()}
    assert min(recovered["batchtopk"], recovered["ortsae"]) > 0.85
    assert max(recovered["random"], recovered["frozen_decoder"]) < 0.75


def test_ortsae_rows_are_less_alike(fitted: dict[str, Path]) -> None:
    alike = {n: float(nearest_cosine(open_checkpoint(p, Given()).sae.W_dec).mean()) for n, p in fitted.items()}
    assert alike["ortsae"] < alike["batchtopk"]


def test_frozen_decoder_does_not_move(fitted: dict[str, Path], world) -> None:
    a, b = (open_checkpoint(fitted[n], Given()).sae.W_dec for n in ("frozen_decoder", "random"))
    assert torch.equal(a, b)  # same seed, same random rows, neither moved


def test_stages_and_facts_are_kept(fitted: dict[str, Path]) -> None:
    facts = json.loads((fitted["ortsae"] / "sae.json").read_text())
    assert facts["method"]["base"] == {"method": "batchtopk", "d_sae": 64, "k": 3, "aux_weight": 1 / 32}
    assert facts["training"]["steps_done"] == 600 and facts["hook"] == SITE["hook"]
    stage = open_checkpoint(fitted["ortsae"] / "stage-300", Given())
    assert stage.facts["training"]["steps_done"] == 300
    assert not (fitted["ortsae"] / RESUME).exists()
    lines = [json.loads(line) for line in (fitted["ortsae"] / "train.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 600 and {"mse", "aux", "ev", "l0", "dead"} <= lines[-1].keys()


def test_interrupted_training_goes_on_to_the_same_weights(
    world, fitted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = OrtSAE(base=BatchTopK(d_sae=64, k=3)), FitConfig(steps=600, batch=256, lr=3e-3)
    real = TrainingSet.batch

    def stops(self: TrainingSet, step: int, size: int) -> torch.Tensor:
        if step == 333:
            raise KeyboardInterrupt
        return real(self, step, size)

    monkeypatch.setattr(TrainingSet, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(method, world[1], config, tmp_path, SITE)
    monkeypatch.setattr(TrainingSet, "batch", real)
    with pytest.raises(UsageError):
        fit(method, world[1], replace(config, lr=1e-3), tmp_path, SITE)
    again = fit(method, world[1], config, tmp_path, SITE).sae
    assert torch.equal(again.W_dec, open_checkpoint(fitted["ortsae"], Given()).sae.W_dec)


def test_data_order_is_the_seed_s_alone(world) -> None:
    data = world[1]
    again = TrainingSet(data.shards, data.kept, data.sha256, 0.0, data.seed)
    steps = [0, 92, 93, 200]
    forwards, backwards = [data.batch(s, 256) for s in steps], [again.batch(s, 256) for s in reversed(steps)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    epoch = torch.cat([data.batch(s, 256) for s in range(data.n // 256)])
    assert len(epoch.unique(dim=0)) == len(epoch)  # no token twice within an epoch


def test_masked_tokens_never_train() -> None:
    x = np.arange(40, dtype=np.float16).reshape(20, 2)
    data = TrainingSet((x[:12], x[12:]), (np.array([0, 5, 7]), np.array([1, 2])), "x", 0.75, 0)
    assert sorted(data.gather(np.arange(5))[:, 0].tolist()) == [0, 10, 14, 26, 28]
    assert data.n == 5
    mean, variance = data.moments
    kept = x[[0, 5, 7, 13, 14]].astype(np.float64)
    assert np.allclose(mean, kept.mean(0)) and variance == pytest.approx(np.square(kept - kept.mean(0)).sum() / 5)


def test_a_diverging_run_and_too_few_tokens_are_typed_errors(world, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        fit(BatchTopK(d_sae=64, k=3), world[1], FitConfig(steps=60, batch=256, lr=float("inf")), tmp_path / "a", SITE)
    with pytest.raises(UsageError):
        fit(BatchTopK(d_sae=64, k=3), world[1], FitConfig(steps=5, batch=10**6), tmp_path / "b", SITE)


def test_describe_names_nested_methods() -> None:
    assert describe(FrozenDecoder(base=OrtSAE()))["base"]["base"]["method"] == "batchtopk"
