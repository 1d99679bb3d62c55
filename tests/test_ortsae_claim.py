"""What OrtSAE is for: fewer composed and fewer absorbed features than its base, at equal L0, where the truth is known."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from baselines.batchtopk import BatchTopK
from baselines.ortsae import OrtSAE
from baselines.trainer import FitConfig, fit
from bench.adapters import Given, open_checkpoint
from bench.sae.canonical import Canonical
from bench.worlds import truth
from bench.worlds.planted import World, WorldSpec
from tests.worlds import training_set

ROOT = Path(__file__).resolve().parents[1]
SEEDS, D_SAE, K = (0, 1, 2), 160, 4
# 16 parents with four exclusive children each; 2.5 times as many features as dimensions, 3.7 of them active per token
WORLD = World(WorldSpec(160, 64, roots=16, branching=4, depth=1, child_share=0.9, zipf=0.3, p_max=0.2, p_min=0.005, noise=0.1))
BASE = BatchTopK(D_SAE, K)
METHODS = {"batchtopk": BASE, "ortsae": OrtSAE(base=BASE)}  # γ = 0.25, every fifth step


def train_all(root: str) -> None:
    """Both methods with every seed. Run in a process without the run-time type checks, which take longer than the steps."""
    data = training_set(torch.from_numpy(WORLD.sample(30_000, np.random.default_rng(0))[0]))
    for seed in SEEDS:
        for name, method in METHODS.items():
            config = FitConfig(steps=1000, batch=256, lr=2e-3, seed=seed)
            site = {"lm": "world:planted", "revision": "", "hook": "blocks.0.hook_resid_post"}
            fit(method, replace(data, seed=seed), config, Path(root) / f"{name}{seed}", site)


def measured(sae: Canonical) -> dict[str, float]:
    """The rates of the task `ground_truth` on tokens that no SAE was trained on."""
    x, true = WORLD.sample(8192, np.random.default_rng(5))
    codes, parent = sae.encode_sparse(x), WORLD.edges[:, 0]
    latent, cosine = truth.matched(WORLD.dictionary, sae.W_dec)
    shares, firings = truth.absorbed_share(true, codes, sae.W_dec, WORLD.dictionary, WORLD.edges, latent)
    judged = (firings >= 10) & (cosine[parent] >= 0.5)
    assert judged.mean() > 0.7
    absorbed, composed = shares[judged].mean(), truth.composed(sae.W_dec, WORLD.dictionary).mean()
    return {"l0": codes.l0().mean(), "absorbed": absorbed, "composed": composed, "mcc": cosine.mean()}


def test_ortsae_composes_and_absorbs_less_than_batchtopk_at_equal_l0(tmp_path: Path) -> None:
    program = f"from tests.test_ortsae_claim import train_all; train_all({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=800)
    found = {n: [measured(Canonical(open_checkpoint(tmp_path / f"{n}{s}", Given()).sae)) for s in SEEDS] for n in METHODS}
    base, ours = ({k: np.array([m[k] for m in found[n]]) for k in found[n][0]} for n in METHODS)
    print({k: (base[k].round(3).tolist(), ours[k].round(3).tolist()) for k in base})
    assert np.abs(ours["l0"] / base["l0"] - 1).max() < 0.02
    assert (ours["absorbed"] < base["absorbed"]).all() and ours["absorbed"].mean() < 0.75 * base["absorbed"].mean()
    assert (ours["composed"] < base["composed"]).all() and ours["composed"].mean() < 0.9 * base["composed"].mean()
    assert ours["mcc"].mean() > base["mcc"].mean() - 0.02
