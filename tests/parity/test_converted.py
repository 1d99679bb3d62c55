"""What `sae convert` writes, opened by the libraries themselves: their codes and reconstructions are ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.convert import convert
from bench.references import open_sae
from bench.sae.checkpoint import Loaded
from tests.parity.shared import quiet, tokens
from tests.test_convert import FORMS, loaded

pytestmark = pytest.mark.parity
X = tokens()[:, :6].clone()


def by_sae_lens(path: Path) -> Any:
    from sae_lens import SAE

    sae = SAE.load_from_disk(path)
    assert sae.cfg.metadata.hook_name and sae.cfg.metadata.model_name
    return sae


def by_dictionary_learning(path: Path) -> Any:
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(path), "cpu")[0]


OPEN: dict[str, Callable[[Path], Any]] = {"sae_lens": by_sae_lens, "dictionary_learning": by_dictionary_learning}
HELD = [(name, to) for name, (_, lens, dictionary) in FORMS.items() for to, held in zip(OPEN, (lens, dictionary), strict=True) if held]


def compare(at: Loaded, to: str, x: torch.Tensor, folder: Path) -> None:
    convert(at, folder, to)
    with quiet():
        theirs = OPEN[to](folder)
        codes = theirs.encode(x)
        recon, ours = theirs.decode(codes), at.sae.encode(x)
        if to == "dictionary_learning" and type(theirs).__name__ == "AutoEncoder":  # its loader brings decoder rows to norm 1
            ours = ours * at.sae.W_dec.norm(dim=1)
        assert torch.equal(codes != 0, ours != 0)
        torch.testing.assert_close(codes, ours, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(recon, at.sae.decode(at.sae.encode(x)), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "to"), HELD)
def test_every_form_that_a_library_can_hold(name: str, to: str, tmp_path: Path) -> None:
    compare(loaded(FORMS[name][0]), to, X, tmp_path / "out")


@pytest.mark.parametrize("demo", ["ortsae", "batchtopk"])
@pytest.mark.parametrize("to", [*OPEN])
def test_the_demos(demo: str, to: str, tmp_path: Path) -> None:
    there = open_sae(f"demo:{demo}").loaded
    compare(there, to, 5 * torch.randn(64, there.sae.d_in, generator=torch.Generator().manual_seed(2)), tmp_path / "out")
