"""Matching pursuit: picks, signed codes through every form that codes take, and the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.mp import MP
from baselines.ortsae import OrtSAE
from bench.adapters import Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae import pursuit
from bench.sae.canonical import Canonical
from bench.sae.card import facts_of
from bench.sae.checkpoint import FACTS, rounded, save
from bench.sae.codes import Codes
from bench.sae.pursuit import GRAM, PursuitSAE
from bench.testing import check_sae
from tests.worlds import tied_sae

M, D, K = 7, 4, 6
G = torch.Generator().manual_seed(2)
ROWS = torch.nn.functional.normalize(torch.randn(M, D, generator=G), dim=1)
X = torch.randn(60, D, generator=G)
MADE = {"name": "mine", "method": {"method": "mp"}, "lm": "x", "revision": "", "hook": "blocks.1.hook_resid_post"}


def sae(k: int = K) -> PursuitSAE:
    return PursuitSAE(ROWS, torch.arange(D) / 10, k)


def one_by_one(x: Tensor, rows: Tensor, k: int) -> tuple[np.ndarray, int]:
    """Codes of one token by the definition, and how often a latent was picked that had a code already."""
    r, f, again = x.double().numpy(), np.zeros(len(rows)), 0
    d = rows.double().numpy()
    for _ in range(k):
        if np.linalg.norm(r) <= 1e-3 * np.linalg.norm(x.double().numpy()):
            break
        j = int(np.argmax(d @ r))
        again += int(f[j] != 0)
        f[j] += d[j] @ r
        r = r - (d[j] @ r) * d[j]
    return f, again


def test_codes_are_those_of_the_definition_and_sums_of_several_picks() -> None:
    found = [one_by_one(x, ROWS, K) for x in X - sae().b_dec]
    assert sum(again for _, again in found) > 10
    assert np.allclose(sae().encode(X).numpy(), np.stack([f for f, _ in found]), atol=1e-5)


def test_picks_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    x = torch.tensor([[3.0, 1.0], [2.0, 1.9], [0.0, 0.0], [-1.0, -4.0]])
    for gram in (pursuit.gram_of(rows), None):
        codes, left = pursuit.pursue(x, rows, 2, gram)[1:]
        assert codes[0].tolist() == [3, 1] and codes[1].tolist() == pytest.approx([3.9 * 0.5**0.5, 0.05], abs=1e-6)
        assert codes[2].tolist() == [0, 0] and codes[3].tolist() == [-1, 0]  # the largest product, as it is
        assert torch.allclose(left, torch.tensor([[0, 0], [0, -0.05], [0, 0], [0, -4.0]]), atol=1e-6)


def test_nothing_is_picked_once_the_residual_is_small() -> None:
    x = torch.tensor([[5.0, 0.004, 0.0], [5.0, 0.01, 0.003]])
    assert pursuit.pursue(x, torch.eye(3), 3, None)[1].tolist() == [[5, 0, 0], [5, pytest.approx(0.01), 0]]


def test_blocks_and_the_matrix_of_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sae().encode(X)
    monkeypatch.setattr(pursuit, "_NUMBERS", 1)
    assert torch.allclose(sae().encode(X), whole, atol=1e-5)
    monkeypatch.setattr(pursuit, "GRAM", M - 1)
    assert sae()._gram is None and torch.allclose(sae().encode(X), whole, atol=1e-5)


def test_the_residual_falls_with_every_pick_and_scale_does_not_matter() -> None:
    error = [float((X - sae(k).decode(sae(k).encode(X))).square().sum()) for k in range(1, 7)]
    assert all(b < a for a, b in pairwise(error))
    larger = replace(sae(), b_dec=3 * sae().b_dec)
    assert torch.allclose(larger.encode(3 * X), 3 * sae().encode(X), atol=1e-4)


def test_costs_by_hand_and_what_is_slow_is_said() -> None:
    assert Canonical(sae()).encode_flop == 2 * M * D + (K - 1) * 2 * M  # one product, then k − 1 picks from the matrix of products
    wide = PursuitSAE(torch.zeros(GRAM + 1, D), torch.zeros(D), K)
    assert wide.encode_flop == K * 2 * (GRAM + 1) * D
    assert Canonical(tied_sae(ROWS)).encode_flop == 2 * M * D
    assert "6 times what topk costs" in OrtSAE(base=MP(GRAM + 1, 6)).remark and not MP(GRAM, 6).remark


def test_signed_codes_come_through_every_form() -> None:
    """A dictionary that points away from the data: every code is negative."""
    away = PursuitSAE(torch.nn.functional.normalize(-ROWS.abs(), dim=1), torch.zeros(D), 1)
    x = X.abs()
    f = away.encode(x).numpy()
    assert (f <= 0).all() and (f < 0).sum() == len(x)
    for codes in (away.encode_sparse(x.numpy()), Canonical(away).encode_sparse(x.numpy()), Codes.from_dense(f)):
        assert np.allclose(codes.matrix.toarray(), f, atol=1e-6) and codes.l0().tolist() == [1] * len(x)
    codes, groups = away.encode_sparse(x.numpy()), np.arange(len(x)) % 5
    assert np.allclose(codes.group_means(groups, 5), [f[groups == g].mean(0) for g in range(5)], atol=1e-6)
    assert np.allclose(codes.pooled(groups, 5).matrix.toarray(), codes.group_means(groups, 5), atol=1e-6)
    assert np.allclose(codes.columns(np.arange(3)), f[:, :3]) and codes.firing_counts().sum() == len(x)
    assert np.allclose(codes.scaled(np.full(M, 2.0)).values, 2 * codes.values)
    assert np.allclose(Canonical(away).reconstruct(codes), away.decode(torch.from_numpy(f)), atol=1e-5)


def test_sparse_codes_and_the_canonical_view_are_the_dense_ones() -> None:
    check_sae(sae())
    canonical, f = Canonical(sae()), sae().encode(X)
    codes = canonical.encode_sparse(X.numpy())
    assert np.allclose(codes.matrix.toarray(), f, atol=1e-5) and bool((codes.values != 0).all())
    assert all(np.all(np.diff(codes.indices[a:b]) > 0) for a, b in pairwise(codes.indptr))
    assert np.allclose(canonical.reconstruct(codes), sae().decode(f), atol=1e-5)
    assert canonical.sha256 == sae().sha256 != sae(K - 1).sha256 and sae().to("cpu").sha256 == sae().sha256
    assert sae().encode_sparse(np.zeros((0, D), np.float32)).n == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_read_back_is_what_was_rounded(dtype: torch.dtype, tmp_path: Path) -> None:
    save(sae(), tmp_path, MADE, dtype)
    loaded = open_checkpoint(tmp_path, Given())
    assert loaded.sae.sha256 == rounded(sae(), dtype).sha256 and (loaded.sae.sha256 == sae().sha256) == (dtype == torch.float32)
    assert loaded.architecture == "mp" and loaded.sae.k == K and (facts_of(loaded)["activation"], facts_of(loaded)["k"]) == ("pursuit", K)


@pytest.mark.parametrize("k", [None, 0, M + 1, "3"])
def test_a_file_without_a_usable_k_is_refused(k: object, tmp_path: Path) -> None:
    save(sae(), tmp_path, MADE)
    facts = json.loads((tmp_path / FACTS).read_text())
    facts["activation"]["k"] = k
    (tmp_path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path, Given())


def test_rows_that_are_not_unit_and_flags_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    save(PursuitSAE(1.1 * ROWS, torch.zeros(D), K), tmp_path / "long", MADE)
    save(sae(), tmp_path / "good", MADE)
    for folder, given in (("long", Given()), ("good", Given(threshold=0.5)), ("good", Given(k=K + 1))):
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / folder, given)
