"""overcomplete: state dicts of its classes, against the class they came from; a file does not say which class that is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench.adapters import Given
from tests.parity.shared import D_IN, D_SAE, EDGE, Case, K, P, Peer, Written, check, fill, refusal, tokens

pytestmark = pytest.mark.parity

PICKS = 4


def missing() -> str:
    """The library is optional."""
    return "" if "overcomplete" in sys.modules or find_spec("overcomplete") else "overcomplete is not installed"


def library() -> ModuleType:
    """`overcomplete.sae` alone: the package's own `__init__` imports image models, which need torchvision, timm and OpenCV."""
    if "overcomplete" not in sys.modules:
        spec = find_spec("overcomplete")
        assert spec and spec.submodule_search_locations
        bare = ModuleType("overcomplete")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["overcomplete"] = bare
    import overcomplete.sae as sae

    return sae


def ours(sae: Any) -> dict[str, Any]:
    """Our parameters by the library's names. It has no decoder bias; rows are of one norm, which its multiplier sets."""
    g = torch.Generator().manual_seed(13)
    mix = torch.rand(D_SAE, 2 * D_SAE, generator=g)
    values = {
        "encoder.final_block.0.weight": P["W_enc"].T,
        "encoder.final_block.0.bias": P["b_enc"],
        "encoder.weight": P["W_enc"].T,
        "encoder.bias": P["b_enc"],
        "dictionary._weights": P["W_dec"],
        "dictionary.W": mix / mix.sum(1, keepdim=True),
        "dictionary.Relax": 0.1 * P["W_dec"],
        "dictionary.multiplier": 0.3,
        "thresholds": P["threshold"].log(),
    }
    return {n: v for n, v in values.items() if n in sae.state_dict()}


def made(kinds: ModuleType, name: str, encoder: str, **options: Any) -> Any:
    """An object of a class, with the encoder that it makes itself or one of its two others."""
    sae = getattr(kinds, name)(D_IN, D_SAE, **options)
    return getattr(sae, encoder.rstrip("+"))(bias=encoder.endswith("+")) if encoder else sae


def saved(name: str, threshold: float | None = None, encoder: str = "", at: str = "", **options: Any) -> Callable[[Path], Written]:
    """`torch.save(state_dict)` after a forward pass in training mode, and what the class computes in evaluation mode.

    `encoder` is a method that exchanges the encoder: "tied" or "untied", with a bias where a "+" follows. `at` is the
    name of the file's folder, which is all that says whether it is an MpSAE or an OMPSAE.
    """

    def write(folder: Path) -> Written:
        kinds, folder = library(), folder / (at or name.lower())
        folder.mkdir(parents=True, exist_ok=True)
        points = {"points": torch.randn(2 * D_SAE, D_IN, generator=torch.Generator().manual_seed(14))} if name.startswith("RA") else {}
        sae = made(kinds, name, encoder, **points, **options)
        fill(sae, ours(sae))
        x = tokens(subtracted=False)
        if name == "QSAE":
            torch.save(sae.state_dict(), folder / "sae.pt")
            return Written(folder / "sae.pt", *(torch.zeros(1),) * 3)
        sae.train()
        sae(x)
        torch.save(sae.state_dict(), folder / "sae.pt")
        again = made(kinds, name, encoder, **points, **options)
        again.load_state_dict(torch.load(folder / "sae.pt", weights_only=True))
        again.train()  # its dictionary is worked out anew only when this is left
        again.dictionary.train()
        again.eval()
        if threshold is not None:
            again.running_threshold = torch.tensor(threshold)
        codes = again.encode(x)[1]
        return Written(folder / "sae.pt", x, codes, again.decode(codes))

    return write


def cases() -> Iterator[Case]:
    dictionary = {"dictionary_params": {"use_multiplier": True}}
    yield Case("SAE", "--threshold 0", saved("SAE", **dictionary), Given(threshold=0.0))
    for name in ("TopKSAE", "RATopKSAE"):
        case = Case(name, f"--k {K}", saved(name, top_k=K, **({} if name.startswith("RA") else dictionary)), Given(k=K), k=K)
        yield refusal(case, "have the same file")
        yield case
    yield Case("BatchTopKSAE", f"--threshold {EDGE:g}", saved("BatchTopKSAE", EDGE, top_k=400), Given(threshold=EDGE), edge="on")
    for name in ("JumpSAE", "RAJumpSAE"):
        yield Case(name, "no flag", saved(name), edge="on")
    for encoder in ("untied", "untied+", "tied", "tied+"):
        words = encoder.replace("+", " with a bias")
        yield Case("TopKSAE", f"{words}, --k {K}", saved("TopKSAE", encoder=encoder, top_k=K, **dictionary), Given(k=K))
        yield Case("JumpSAE", f"{words}, no flag", saved("JumpSAE", encoder=encoder), edge="on" if encoder == "untied+" else "")
    yield Case("RATopKSAE", f"tied with a bias, --k {K}", saved("RATopKSAE", encoder="tied+", top_k=K), Given(k=K))
    for blocks in ("mlp_ln_1", "mlp_bn_1"):
        case = saved("TopKSAE", top_k=K, encoder_module=blocks)
        yield Case("TopKSAE", f"encoder {blocks}", case, Given(k=K), refused="encoder.")
    yield Case("MpSAE", f"--k {PICKS}", saved("MpSAE", k=PICKS), Given(k=PICKS))
    yield refusal(Case("MpSAE", "state", saved("MpSAE", k=PICKS)), "give --k")
    yield Case("MpSAE", "in a folder of another name", saved("MpSAE", k=PICKS, at="run"), Given(k=PICKS), refused="which it is")
    yield Case("OMPSAE", "state", saved("OMPSAE", k=PICKS), Given(k=PICKS), refused="OMPSAE")
    yield Case("QSAE", "state", saved("QSAE", q=4), refused="QSAE rounds its codes")


PEER = Peer("overcomplete", [*cases()], missing)


@pytest.mark.parametrize("case", PEER.cases, ids=str)
def test_files_of_overcomplete(case: Case, tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    check(case, tmp_path)
