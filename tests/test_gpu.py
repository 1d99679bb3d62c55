"""The GPU gives the CPU's numbers. Run with `-m gpu` on a machine that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.parts import Trainer
from baselines.topk import TopK
from baselines.trainer import FitConfig, fit
from bench.lm import tiny
from bench.lm.harvest import Harvest
from bench.lm.hooks import Hook
from bench.sae.canonical import Canonical
from bench.store import Store
from tests.test_lm import ragged
from tests.worlds import dictionary, sparse_world, tied_sae, training_set

pytestmark = pytest.mark.gpu


def test_activations_and_codes_equal_the_cpus(tmp_path) -> None:
    assert torch.cuda.is_available(), "the gpu tier needs a GPU"
    here, there = tiny.load(), tiny.load("cuda")
    rows = ragged(here, (30, 5, 12))
    a, b = (Harvest(lm, Hook(1), Store(tmp_path / lm.device)).tokens(rows) for lm in (here, there))
    assert np.allclose(a, b, atol=1e-4)
    sae = tied_sae(dictionary(64, 32))
    one, two = Canonical(sae).encode_sparse(a), Canonical(sae.to("cuda")).encode_sparse(a)
    assert np.allclose(one.matrix.toarray(), two.matrix.toarray(), atol=1e-4)


M, K = 2048, 8
BASE = BatchTopK(M, K)
METHODS: list[Trainer] = [BASE, TopK(M, K), JumpReLU(M, K), Matryoshka(M, K), OrtSAE(base=BASE, every=2), C2R(base=BASE, every=2), MP(M, K)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_training_goes_the_same_way(method: Trainer, tmp_path) -> None:
    x = sparse_world(8192, dictionary(512, 128), 6)
    found = []
    for device in ("cpu", "cuda"):
        config = FitConfig(steps=10, batch=1024, lr=1e-3, warmup=1, dead_after=2000, dtype="float32", device=device)
        site = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}
        found.append(fit(method, training_set(x), config, tmp_path / device, site))
    assert found[0].log["ev"] == pytest.approx(found[1].log["ev"], abs=2e-3)
    a, b = (f.sae.W_dec for f in found)
    assert float((a - b).norm(dim=1).median()) < 1e-3
