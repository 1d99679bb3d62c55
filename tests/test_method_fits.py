"""Every method trained on one planted world: its L0, what it recovers, and controls that are what they say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.activations import TrainingSet
from baselines.batchtopk import BatchTopK
from baselines.frozen_decoder import FrozenDecoder
from baselines.mp import MP
from baselines.parts import Trainer
from baselines.permuted import Permuted
from baselines.relu import ReLU
from baselines.topk import TopK
from baselines.trainer import FitConfig, fit
from bench import registry
from bench.adapters import Given, open_checkpoint
from bench.kernels.cosine import nearest_in
from bench.rng import torch_rng
from bench.sae.canonical import Canonical
from tests.worlds import dictionary, sparse_world, training_set

ROOT = Path(__file__).resolve().parents[1]
SITE = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}
D_SAE, K, D_IN = 64, 3, 24
UNTRAINED = {"random", "pca", "identity"}
CONTROLS = {*UNTRAINED, "frozen_decoder", "soft_frozen_decoder", "frozen_encoder", "permuted"}


def made(name: str) -> Trainer:
    """A method of this world's size, from its name alone: a new one is tested without a new line here."""
    cls = registry.methods()[name]
    own = {f.name for f in fields(cls)}
    return cls(base=BatchTopK(D_SAE, K)) if "base" in own else cls(**{n: v for n, v in (("d_sae", D_SAE), ("k", K)) if n in own})


def world() -> tuple[torch.Tensor, TrainingSet]:
    rows = dictionary(48, D_IN, seed=3)
    return rows, training_set(sparse_world(24_000, rows, K, noise=0.01))


def train_all(root: str) -> None:
    """Every method into a folder of its own. Run in a process without the run-time type checks, which take longer than the steps."""
    for name in registry.methods():
        fit(made(name), world()[1], FitConfig(steps=600, batch=128, lr=3e-3), Path(root) / name, SITE)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Canonical]:
    """Read back from their checkpoints."""
    root = tmp_path_factory.mktemp("fits")
    program = f"from tests.test_method_fits import train_all; train_all({str(root)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=600)
    return {name: Canonical(open_checkpoint(root / name, Given()).sae) for name in registry.methods()}


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return sparse_world(4000, world()[0], K, seed=99, noise=0.01).numpy()


def explained(sae: Canonical, x: np.ndarray) -> float:
    return 1 - float(np.square(x - sae.reconstruct(sae.encode_sparse(x))).sum() / np.square(x - x.mean(0)).sum())


def test_every_export_has_the_target_l0(fitted: dict[str, Canonical], held_out: np.ndarray) -> None:
    l0 = {name: float(sae.encode_sparse(held_out).l0().mean()) for name, sae in fitted.items()}
    assert {n: v for n, v in l0.items() if v != pytest.approx(K, rel=0.15)} == {}


def test_every_trained_method_recovers_the_dictionary_better_than_random_and_frozen(
    fitted: dict[str, Canonical], held_out: np.ndarray
) -> None:
    recovered = {name: float(nearest_in(world()[0], torch.from_numpy(sae.W_dec)).mean()) for name, sae in fitted.items()}
    chance = max(recovered[n] for n in ("random", "frozen_decoder"))
    assert {n: v for n, v in recovered.items() if n not in CONTROLS and v < chance + 0.1} == {}
    assert chance < 0.6


def test_the_stated_order_of_controls(fitted: dict[str, Canonical], held_out: np.ndarray) -> None:
    ev = {name: explained(sae, held_out) for name, sae in fitted.items()}
    assert ev["batchtopk"] > ev["soft_frozen_decoder"] > max(ev["frozen_decoder"], ev["frozen_encoder"]) > ev["random"]
    assert ev["permuted"] < ev["batchtopk"] - 0.4


def start_of(name: str, data: TrainingSet) -> torch.Tensor:
    """Decoder rows at the first step; the encoder is the same."""
    return made(name).init(data.moments[0], torch_rng(0, "init")).W_dec


def test_frozen_parts_are_where_they_started_and_the_others_are_not(fitted: dict[str, Canonical], held_out: np.ndarray) -> None:
    start = start_of("batchtopk", world()[1]).to(torch.float16).float()
    decoder, encoder, soft = (fitted[n].inner for n in ("frozen_decoder", "frozen_encoder", "soft_frozen_decoder"))
    assert torch.equal(decoder.W_dec, start) and not torch.equal(decoder.W_enc.T, start) and bool(decoder.b_enc.any())
    assert torch.equal(encoder.W_enc.T, start) and not bool(encoder.b_enc.any()) and not torch.equal(encoder.W_dec, start)
    cosine = (torch.nn.functional.normalize(soft.W_dec, dim=1) * start).sum(1)
    assert 0.799 < float(cosine.min()) < 0.81 and not torch.equal(soft.W_dec, start)


def test_a_decoder_frozen_at_the_data_s_covariance_explains_more(tmp_path: Path) -> None:
    """Where the data have few directions, rows that point there explain more than rows that point anywhere."""
    narrow = training_set(torch.randn(6000, 4, generator=torch.Generator().manual_seed(0)) @ dictionary(4, D_IN, seed=5))
    ev = {}
    for start in ("isotropic", "covariance"):
        method = FrozenDecoder(base=BatchTopK(D_SAE, K), start=start)
        sae = fit(method, narrow, FitConfig(steps=100, batch=128, lr=3e-3), tmp_path / start, SITE).sae
        ev[start] = explained(Canonical(sae), narrow.calibration().numpy())
    assert ev["covariance"] > ev["isotropic"] + 0.1


def test_a_permutation_only_renames_dimensions(fitted: dict[str, Canonical]) -> None:
    base, shuffled = (fitted[n].inner for n in ("batchtopk", "permuted"))
    for name in ("W_dec", "b_dec"):
        a, b = (getattr(s, name).reshape(-1, D_IN) for s in (base, shuffled))
        assert torch.equal(a.sort(1).values, b.sort(1).values) and not torch.equal(a, b)
    assert not torch.equal(base.act.threshold, shuffled.act.threshold)


@pytest.mark.parametrize("base", [TopK(D_SAE, K), ReLU(D_SAE, K), MP(D_SAE, K)], ids=lambda m: m.name)
def test_a_permuted_sae_of_any_base_is_at_the_target_l0(base: Trainer, held_out: np.ndarray, tmp_path: Path) -> None:
    sae = fit(Permuted(base=base), world()[1], FitConfig(steps=60, batch=128, lr=3e-3), tmp_path, SITE).sae
    assert Canonical(sae).encode_sparse(held_out).l0().mean() == pytest.approx(K, rel=0.15)


def test_pca_with_all_directions_explains_everything(held_out: np.ndarray, tmp_path: Path) -> None:
    cls = registry.methods()["pca"]
    sae = fit(cls(k=D_IN), world()[1], FitConfig(steps=1, batch=128, dtype="float32"), tmp_path, SITE).sae
    assert sae.d_sae == 2 * D_IN and explained(Canonical(sae), held_out) == pytest.approx(1, abs=1e-5)
