"""Every supported format and architecture against a formula written by hand, and against the library that wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.sae.card import card, facts_of
from bench.sae.checkpoint import Loaded
from tests.adapters_cases import SUPPORTED as FIRST
from tests.adapters_cases_more import MORE
from tests.adapters_layouts import (
    AVERAGE,
    D_IN,
    D_SAE,
    FOUR,
    SCALE,
    N,
    P,
    S,
    X,
    dl,
    gemma,
    legacy,
    lens,
    linear,
    sparsify,
    tensors,
)

FIXTURES = Path(__file__).with_name("fixtures")
SUPPORTED = FIRST | MORE
CASES = json.loads((FIXTURES / "manifest.json").read_text())["cases"]


def said(loaded: Loaded) -> dict[str, str]:
    """The lines of the card."""
    return {name: value for lines in card(facts_of(loaded)).values() for name, value in lines.items()}


def agree(loaded: Loaded, x: np.ndarray, codes: np.ndarray, recon: np.ndarray, atol: float, rtol: float) -> None:
    """Both ways of encoding and both ways of decoding give the expected numbers, and the same latents are active."""
    sae, x32 = loaded.sae, torch.tensor(x, dtype=torch.float32)
    dense, sparse = sae.encode(x32), sae.encode_sparse(x32.numpy())
    for got in (dense.numpy(), sparse.matrix.toarray()):
        np.testing.assert_allclose(got, codes, atol=atol, rtol=rtol)
        assert np.array_equal(got != 0, codes != 0)
    for got in (sae.decode(dense).numpy(), sae.decode_sparse(sparse)):
        np.testing.assert_allclose(got, recon, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_architectures_equal_their_formula(name: str, tmp_path: Path) -> None:
    case = SUPPORTED[name]
    codes = case.codes()
    assert 0 < (codes > 0).mean() < 1
    loaded = open_checkpoint(case.write(tmp_path), case.given)
    agree(loaded, X, codes, case.recon(codes), case.atol, 1e-4)
    assert (loaded.sae.d_in, loaded.sae.d_sae) == (D_IN, D_SAE)
    assert all(said(loaded).values())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_files_of_other_libraries_reproduce_their_numbers(case: dict[str, Any]) -> None:
    loaded = open_checkpoint(FIXTURES / case["path"], Given(**case.get("given", {})))
    expected = np.load(FIXTURES / case["expected"])
    x, acts, recon = (expected[case["keys"][k]] for k in ("x", "acts", "recon"))
    agree(loaded, x, acts, recon, case["atol"], case["rtol"])
    facts = facts_of(loaded)
    if "model_name" in case:
        assert (facts["model"], facts["hook"]) == (case["model_name"], case["hook_name"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_pointing_at_a_file_of_the_folder_is_the_same(case: dict[str, Any]) -> None:
    whole = open_checkpoint(FIXTURES / case["path"], Given(**case.get("given", {})))
    for file in (f for f in case["files"] if Path(f).parent == Path(case["path"])):
        assert open_checkpoint(FIXTURES / file, Given(**case.get("given", {}))).sae.sha256 == whole.sae.sha256


def test_exactly_one_adapter_takes_each_checkpoint(tmp_path: Path) -> None:
    for i, case in enumerate(SUPPORTED.values()):
        (tmp_path / str(i)).mkdir()
        path = case.write(tmp_path / str(i))
        assert sum(a.sniff(path) for a in ADAPTERS) == 1


def test_a_pre_activation_at_its_threshold_is_off(tmp_path: Path) -> None:
    state = tensors(*FOUR, "threshold")
    state["W_enc"][:, 0] = 0
    state["b_enc"][0] = state["threshold"][0]
    for architecture, cls in (("jumprelu", "lens"), ("JumpReluAutoEncoder", "dl")):
        (tmp_path / cls).mkdir()
        path = lens(tmp_path / cls, state, architecture=architecture) if cls == "lens" else dl(tmp_path / cls, architecture, state)
        assert not open_checkpoint(path, Given()).sae.encode_sparse(X.astype(np.float32)).columns(np.array([0])).any()


def test_half_precision_files_are_computed_in_float32_and_say_so(tmp_path: Path) -> None:
    loaded = open_checkpoint(lens(tmp_path, tensors(*FOUR, dtype=torch.bfloat16), architecture="standard", dtype="bfloat16"), Given())
    assert loaded.sae.W_enc.dtype == torch.float32
    assert any("bfloat16" in o for o in facts_of(loaded)["oddities"])


def test_a_saved_step_is_read_with_the_config_above_it(tmp_path: Path) -> None:
    dl(tmp_path, "AutoEncoder", linear(bias=P["b_dec"]))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints/ae_100.pt")
    loaded = open_checkpoint(tmp_path / "checkpoints/ae_100.pt", Given())
    assert loaded.name.endswith("-ae_100")
    assert loaded.hook == "resid_post_layer_3"


def test_where_a_file_belongs_is_read_and_never_guessed(tmp_path: Path) -> None:
    def hook(write: Callable[[Path], Path]) -> tuple[str, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        loaded = open_checkpoint(write(folder), Given())
        return loaded.hook, said(loaded)["hook"]

    state = linear(bias=P["b_dec"])
    assert hook(gemma)[0] == ""
    assert hook(sparsify) == ("layers.3.mlp", "blocks.3.hook_mlp_out (file: layers.3.mlp)")
    assert hook(lambda d: sparsify(d).rename(d / "mine"))[0] == ""
    assert hook(lambda d: dl(d, "AutoEncoder", state, submodule_name="resid_post"))[1].startswith("blocks.3.hook_resid_post")
    assert hook(lambda d: dl(d, "AutoEncoder", state, buffer={"io": "in"}))[0] == ""
    assert hook(lambda d: legacy(d, tensors(*FOUR), hook_name=None, hook_point="blocks.{layer}.hook_mlp_out", hook_point_layer=7)) == (
        "blocks.7.hook_mlp_out",
        "blocks.7.hook_mlp_out",
    )
    z = hook(lambda d: lens(d, tensors(*FOUR), architecture="standard", meta={"hook_name": "blocks.1.attn.hook_z"}))
    assert z[0] == "blocks.1.attn.hook_z"
    assert "--hook" in z[1]


def test_the_card_says_what_decides_the_numbers(tmp_path: Path) -> None:
    facts = said(open_checkpoint(lens(tmp_path, tensors(*FOUR, "threshold"), architecture="jumprelu", **AVERAGE), SCALE))
    assert facts["activation"] == f"jumprelu, threshold {P['threshold'].min():.4g} to {P['threshold'].max():.4g}"
    assert "2.5" in facts["normalisation"]
    assert facts["decoder norms"].startswith(f"{N.min() / S:.4g} to {N.max() / S:.4g}")
    assert facts["b_dec"] == "subtracted from the input"
