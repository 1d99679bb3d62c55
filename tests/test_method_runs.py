"""Methods in the training loop: going on after a stop, the controller of a penalty, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.activations import TrainingSet
from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R
from baselines.frozen_decoder import FrozenDecoder
from baselines.frozen_encoder import FrozenEncoder
from baselines.gated import Gated
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.over import Over
from baselines.parts import State, Trainer, descend
from baselines.relu import ReLU
from baselines.soft_frozen_decoder import SoftFrozenDecoder
from baselines.sparsity import START, steered, strength
from baselines.trainer import FitConfig, fit
from bench import cli
from bench.adapters import Given, open_checkpoint
from bench.sae.checkpoint import FACTS
from tests.worlds import dictionary, sparse_world, training_set

SITE = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}
D_SAE, K = 64, 3


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return training_set(sparse_world(6_000, dictionary(48, 24, seed=3), K, noise=0.01))


# going on after a stop

RESUMED: dict[str, Callable[[], Trainer]] = {
    "relu": lambda: ReLU(D_SAE, K),
    "gated": lambda: Gated(D_SAE, K),
    "jumprelu": lambda: JumpReLU(D_SAE, K),
    "mp": lambda: MP(D_SAE, K),
    "soft_frozen_decoder": lambda: SoftFrozenDecoder(base=JumpReLU(D_SAE, K)),
    "covariance": lambda: FrozenDecoder(base=BatchTopK(D_SAE, K), start="covariance"),
    "random prefixes": lambda: OrtSAE(base=Matryoshka(D_SAE, K, prefixes="random")),
    "wrappers": lambda: C2R(base=OrtSAE(base=MP(D_SAE, K))),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_training_goes_on_to_the_same_weights(
    name: str, data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = FitConfig(steps=60, batch=64, lr=3e-3), TrainingSet.batch
    whole = fit(RESUMED[name](), data, config, tmp_path / "whole", SITE).sae

    def stops(self: TrainingSet, step: int, size: int) -> torch.Tensor:
        if step == 37:
            raise KeyboardInterrupt
        return real(self, step, size)

    monkeypatch.setattr(TrainingSet, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(RESUMED[name](), data, config, tmp_path / "stopped", SITE)
    monkeypatch.setattr(TrainingSet, "batch", real)
    assert fit(RESUMED[name](), data, config, tmp_path / "stopped", SITE).sae.sha256 == whole.sha256


# the controller of an L1 penalty


def simulated(total: int, target: float, drift: float) -> tuple[State, list[float]]:
    """A dictionary whose log L0 follows −log(strength) with a lag of 50 steps, and drifts; all of it stops as the learning
    rate decays. Also the strengths it was given."""
    state, level, learned, given = State(0, total, torch.zeros(1), 1), 3.0, 0.0, []
    for step in range(total):
        given.append(strength(state))
        rate = min(1.0, (total - step) / (0.2 * total))
        learned += rate / total
        level += rate * (-np.log(max(strength(state), 1e-3)) + 2.0 - drift * learned - level) / 50
        state = steered(replace(state, step=step + 1), float(np.exp(level)), target)
    return state, given


@pytest.mark.parametrize(("total", "target", "drift"), [(600, 3.0, 0.0), (2000, 30.0, 1.0), (2000, 3.0, 2.0), (6000, 60.0, 1.0)])
def test_the_strength_finds_the_target_and_is_frozen_for_the_last_fifth(total: int, target: float, drift: float) -> None:
    state, given = simulated(total, target, drift)
    assert state.extra["l0"] == pytest.approx(target, rel=0.05)
    assert len(set(given[int(0.8 * total) :])) == 1 and len(set(given[total // 10 : int(0.8 * total)])) > total // 2
    assert given[0] == 0 and given[total // 40] == pytest.approx(START / 2, rel=0.1)  # half of the warm-up


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


@pytest.mark.parametrize("kind", [FrozenDecoder, FrozenEncoder, SoftFrozenDecoder])
@pytest.mark.parametrize("kernel", ["on", "off"])
def test_clipping_counts_the_gradients_that_move_something(kind: type[Over], kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_KERNEL", kernel)
    method, clip = kind(base=BatchTopK(D_SAE, K)), 1e-3
    x = sparse_world(64, dictionary(48, 24, seed=3), K, noise=0.01)
    w = method.init(x.mean(0), torch.Generator().manual_seed(0)).map(lambda t: t.requires_grad_(True))
    opt = torch.optim.Adam(list(w.named().values()), fused=True)
    state = State(0, 10, torch.zeros(D_SAE, dtype=torch.long), 1000)
    descend(method, w, opt, x, state, torch.Generator(), 1e-3, clip)
    moments = [opt.state[t]["exp_avg"] for t in w.named().values() if t in opt.state]
    assert float(torch.cat([m.flatten() for m in moments]).norm()) == pytest.approx(0.1 * clip, rel=1e-3)  # 1 − β₁ of the gradient
