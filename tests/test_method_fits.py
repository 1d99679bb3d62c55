"""Every method trained on one planted world: its L0, what it recovers, controls that are what they say, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.activations import TrainingSet
from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R
from baselines.frozen_decoder import FrozenDecoder
from baselines.gated import Gated
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.parts import State, Trainer
from baselines.permuted import Permuted
from baselines.relu import ReLU
from baselines.soft_frozen_decoder import SoftFrozenDecoder
from baselines.sparsity import START, steered, strength
from baselines.topk import TopK
from baselines.trainer import FitConfig, fit
from bench import cli, registry
from bench.adapters import Given, open_checkpoint
from bench.adapters.native import FACTS
from bench.kernels.cosine import nearest_in
from bench.rng import torch_rng
from bench.sae.canonical import Canonical
from bench.sae.pursuit import PursuitSAE
from tests.worlds import dictionary, sparse_world, training_set

SITE = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}
D_SAE, K, D_IN = 64, 3, 24
UNTRAINED = {"random", "pca", "identity"}
CONTROLS = {*UNTRAINED, "frozen_decoder", "soft_frozen_decoder", "frozen_encoder", "permuted"}


def made(name: str) -> Trainer:
    """A method of this world's size, from its name alone: a new one is tested without a new line here."""
    cls = registry.methods()[name]
    own = {f.name for f in fields(cls)}
    return cls(base=BatchTopK(D_SAE, K)) if "base" in own else cls(**{n: v for n, v in (("d_sae", D_SAE), ("k", K)) if n in own})


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, TrainingSet, np.ndarray]:
    rows = dictionary(48, D_IN, seed=3)
    held_out = sparse_world(4000, rows, K, seed=99, noise=0.01).numpy()
    return rows, training_set(sparse_world(24_000, rows, K, noise=0.01)), held_out


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Canonical]:
    """Read back from their checkpoints."""
    root, config = tmp_path_factory.mktemp("fits"), FitConfig(steps=600, batch=128, lr=3e-3)
    methods = {name: made(name) for name in registry.methods()}
    methods |= {"covariance": FrozenDecoder(base=BatchTopK(D_SAE, K), start="covariance"), "both": C2R(base=OrtSAE(base=MP(D_SAE, K)))}
    for name, method in methods.items():
        fit(method, world[1], config, root / name, SITE)
    return {name: Canonical(open_checkpoint(root / name, Given()).sae) for name in methods}


def explained(sae: Canonical, x: np.ndarray) -> float:
    return 1 - float(np.square(x - sae.reconstruct(sae.encode_sparse(x))).sum() / np.square(x - x.mean(0)).sum())


def test_every_export_has_the_target_l0(fitted: dict[str, Canonical], world) -> None:
    l0 = {name: float(sae.encode_sparse(world[2]).l0().mean()) for name, sae in fitted.items()}
    assert {n: v for n, v in l0.items() if v != pytest.approx(K, rel=0.15)} == {}


def test_every_trained_method_recovers_the_dictionary_better_than_random_and_frozen(fitted: dict[str, Canonical], world) -> None:
    recovered = {name: float(nearest_in(world[0], torch.from_numpy(sae.W_dec)).mean()) for name, sae in fitted.items()}
    chance = max(recovered[n] for n in ("random", "frozen_decoder", "covariance"))
    assert {n: v for n, v in recovered.items() if n not in CONTROLS | {"covariance"} and v < chance + 0.1} == {}
    assert chance < 0.6


def test_the_stated_order_of_controls(fitted: dict[str, Canonical], world) -> None:
    ev = {name: explained(sae, world[2]) for name, sae in fitted.items()}
    assert ev["batchtopk"] > ev["soft_frozen_decoder"] > max(ev["frozen_decoder"], ev["frozen_encoder"]) > ev["random"]
    assert ev["permuted"] < ev["batchtopk"] - 0.4


def start_of(name: str, data: TrainingSet) -> torch.Tensor:
    """Decoder rows at the first step; the encoder is the same."""
    return made(name).init(data.moments[0], torch_rng(0, "init")).W_dec


def test_frozen_parts_are_where_they_started_and_the_others_are_not(fitted: dict[str, Canonical], world) -> None:
    start = start_of("batchtopk", world[1]).to(torch.float16).float()
    decoder, encoder, soft = (fitted[n].inner for n in ("frozen_decoder", "frozen_encoder", "soft_frozen_decoder"))
    assert torch.equal(decoder.W_dec, start) and not torch.equal(decoder.W_enc.T, start) and bool(decoder.b_enc.any())
    assert torch.equal(encoder.W_enc.T, start) and not bool(encoder.b_enc.any()) and not torch.equal(encoder.W_dec, start)
    cosine = (torch.nn.functional.normalize(soft.W_dec, dim=1) * start).sum(1)
    assert 0.799 < float(cosine.min()) < 0.81 and not torch.equal(soft.W_dec, start)


def test_a_decoder_frozen_at_the_data_s_covariance_explains_more(world, tmp_path: Path) -> None:
    """Where the data have few directions, rows that point there explain more than rows that point anywhere."""
    narrow = training_set(torch.randn(6000, 4, generator=torch.Generator().manual_seed(0)) @ dictionary(4, D_IN, seed=5))
    ev = {}
    for start in ("isotropic", "covariance"):
        method = FrozenDecoder(base=BatchTopK(D_SAE, K), start=start)
        sae = fit(method, narrow, FitConfig(steps=100, batch=128, lr=3e-3), tmp_path / start, SITE).sae
        ev[start] = explained(Canonical(sae), narrow.calibration().numpy())
    assert ev["covariance"] > ev["isotropic"] + 0.2


def test_a_permutation_only_renames_dimensions(fitted: dict[str, Canonical]) -> None:
    base, shuffled = (fitted[n].inner for n in ("batchtopk", "permuted"))
    for name in ("W_dec", "b_dec"):
        a, b = (getattr(s, name).reshape(-1, D_IN) for s in (base, shuffled))
        assert torch.equal(a.sort(1).values, b.sort(1).values) and not torch.equal(a, b)
    assert not torch.equal(base.act.threshold, shuffled.act.threshold)


@pytest.mark.parametrize("base", [TopK(D_SAE, K), ReLU(D_SAE, K), MP(D_SAE, K)], ids=lambda m: m.name)
def test_a_permuted_sae_of_any_base_is_at_the_target_l0(base: Trainer, world, tmp_path: Path) -> None:
    sae = fit(Permuted(base=base), world[1], FitConfig(steps=60, batch=128, lr=3e-3), tmp_path, SITE).sae
    assert Canonical(sae).encode_sparse(world[2]).l0().mean() == pytest.approx(K, rel=0.15)


def test_pca_with_all_directions_explains_everything(world, tmp_path: Path) -> None:
    cls = registry.methods()["pca"]
    sae = fit(cls(k=D_IN), world[1], FitConfig(steps=1, batch=128, dtype="float32"), tmp_path, SITE).sae
    assert sae.d_sae == 2 * D_IN and explained(Canonical(sae), world[2]) == pytest.approx(1, abs=1e-5)


def test_a_pursuit_is_read_back_as_it_was(fitted: dict[str, Canonical]) -> None:
    assert isinstance(fitted["mp"].inner, PursuitSAE) and isinstance(fitted["both"].inner, PursuitSAE)


# going on after a stop

RESUMED: dict[str, Callable[[], Trainer]] = {
    "relu": lambda: ReLU(D_SAE, K),
    "gated": lambda: Gated(D_SAE, K),
    "jumprelu": lambda: JumpReLU(D_SAE, K),
    "mp": lambda: MP(D_SAE, K),
    "soft_frozen_decoder": lambda: SoftFrozenDecoder(base=JumpReLU(D_SAE, K)),
    "covariance": lambda: FrozenDecoder(base=BatchTopK(D_SAE, K), start="covariance"),
    "random prefixes": lambda: C2R(base=Matryoshka(D_SAE, K, prefixes="random")),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_training_goes_on_to_the_same_weights(name: str, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, real = FitConfig(steps=120, batch=128, lr=3e-3), TrainingSet.batch
    whole = fit(RESUMED[name](), world[1], config, tmp_path / "whole", SITE).sae

    def stops(self: TrainingSet, step: int, size: int) -> torch.Tensor:
        if step == 77:
            raise KeyboardInterrupt
        return real(self, step, size)

    monkeypatch.setattr(TrainingSet, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(RESUMED[name](), world[1], config, tmp_path / "stopped", SITE)
    monkeypatch.setattr(TrainingSet, "batch", real)
    assert fit(RESUMED[name](), world[1], config, tmp_path / "stopped", SITE).sae.sha256 == whole.sha256


# the controller of an L1 penalty


def simulated(total: int, target: float, drift: float) -> tuple[State, list[float]]:
    """A dictionary whose log L0 follows −log(strength) with a lag of 50 steps, and drifts; the strengths it was given."""
    state, level, given = State(0, total, torch.zeros(1), 1), 3.0, []
    for step in range(total):
        given.append(strength(state))
        level += (-np.log(max(strength(state), 1e-3)) + 2.0 - drift * step / total - level) / 50
        state = steered(replace(state, step=step + 1), float(np.exp(level)), target)
    return state, given


@pytest.mark.parametrize(("total", "target", "drift"), [(600, 3.0, 0.0), (2000, 30.0, 1.0), (20_000, 3.0, 1.0), (20_000, 60.0, 0.0)])
def test_the_strength_finds_the_target_and_is_frozen_for_the_last_fifth(total: int, target: float, drift: float) -> None:
    state, given = simulated(total, target, drift)
    assert state.extra["l0"] == pytest.approx(target, rel=0.1)
    assert len(set(given[int(0.8 * total) :])) == 1 and len(set(given[total // 10 : int(0.8 * total)])) > total // 2
    assert given[0] == 0 and given[total // 40] == pytest.approx(START / 2, rel=0.05)  # half of the warm-up


# the command line


def test_methods_without_sizes_and_wrappers_of_wrappers_train_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))
    site = ["--lm", "world:tiny", "--tokens", "2000", "--steps", "12", "--batch", "64", "--d-sae", "64", "--k", "2"]

    def trained(method: str, *more: str) -> tuple[dict[str, object], str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", method, *site, "--out", str(tmp_path / method), *more])
        assert stop.value.code in (0, None)
        return json.loads((tmp_path / method / FACTS).read_text()), capsys.readouterr().err

    facts, said = trained("pca")
    assert facts["method"] == {"method": "pca", "k": 2} and said.count("left out") == 1 and "d_sae" in said
    assert open_checkpoint(tmp_path / "pca", Given()).sae.d_sae == 96
    facts, said = trained("ortsae", "--param", "base=matryoshka", "--param", "prefixes=random", "--param", "gamma=0.5")
    assert facts["method"]["base"]["method"] == "matryoshka" and facts["method"]["base"]["prefixes"] == "random"
    assert facts["method"]["gamma"] == 0.5 and facts["method"]["base"]["d_sae"] == 64 and "left out" not in said
    facts, _ = trained("frozen_decoder", "--param", "start=covariance")
    assert facts["method"]["start"] == "covariance"
