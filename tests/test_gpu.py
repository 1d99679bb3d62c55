"""The GPU gives the CPU's numbers. Run with `-m gpu` on a machine that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.lm import tiny
from bench.lm.harvest import Harvest
from bench.lm.hooks import Hook
from bench.sae.canonical import Canonical
from bench.store import Store
from tests.test_lm import ragged
from tests.worlds import dictionary, tied_sae

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
