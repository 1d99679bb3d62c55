"""`sae convert`: what is written is the same SAE to the last bit, in every format that can hold it, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.adapters import Given, open_checkpoint
from bench.convert import TARGETS, convert
from bench.errors import CheckpointError, ResourceError, UsageError
from bench.sae.activations import AbsTopK, Activation, GroupMax, JumpReLU, RankedTopK, ReLU, SignedTopK, TanhReLU, TopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE
from bench.sae.greedy import Greedy, GreedySAE
from bench.sae.normalisation import PerToken
from bench.sae.pursuit import PursuitSAE

D_IN, D_SAE = 6, 12
G = torch.Generator().manual_seed(0)
W = torch.randn(D_SAE, D_IN, generator=G)
B = torch.randn(D_IN, generator=G)
EACH = torch.rand(D_SAE, generator=G)
HOOK = "blocks.3.hook_mlp_out"


def dense(act: Activation, b_pre: torch.Tensor = B, norm: PerToken | None = None) -> DenseSAE:
    return DenseSAE(torch.randn(D_IN, D_SAE, generator=G), torch.randn(D_SAE, generator=G), W, B, b_pre, act, norm)


def loaded(sae: Any) -> Loaded:
    return Loaded(sae, "somewhere", "batchtopk", "mine", "gpt2", HOOK, facts={"training": {"seed": 3}, "k": 5})


ZERO, ONE = torch.zeros(D_IN), JumpReLU(torch.full((D_SAE,), 0.25))
ROWS = W / W.norm(dim=1, keepdim=True)
FORMS: dict[str, tuple[Any, str, str]] = {  # what SAELens and dictionary_learning call it; "" where they cannot hold it
    "relu": (dense(ReLU()), "standard", "AutoEncoder"),
    "relu, not subtracted": (dense(ReLU(), ZERO), "standard", "AutoEncoderNew"),
    "topk": (dense(TopK(3)), "topk", "AutoEncoderTopK"),
    "topk, not subtracted": (dense(TopK(3), ZERO), "topk", ""),
    "one threshold": (dense(ONE), "jumprelu", "BatchTopKSAE"),
    "thresholds": (dense(JumpReLU(EACH)), "jumprelu", ""),
    "thresholds, not subtracted": (dense(JumpReLU(EACH), ZERO), "jumprelu", "JumpReluAutoEncoder"),
    "negative threshold": (dense(JumpReLU(torch.full((D_SAE,), -0.5))), "jumprelu", ""),
    "abstopk": (dense(AbsTopK(3)), "abstopk", ""),
    "layer norm": (dense(ReLU(), norm=PerToken("layer_norm")), "standard", ""),
    "unit norm": (dense(TopK(2), norm=PerToken("unit_norm")), "topk", ""),
    "another vector": (dense(ReLU(), B + 1), "", ""),
    "group max": (dense(GroupMax(3)), "", ""),
    "signed topk": (dense(SignedTopK(3)), "", ""),
    "ranked topk": (dense(RankedTopK(3, EACH)), "", ""),
    "tanh": (dense(TanhReLU()), "", ""),
    "pursuit": (PursuitSAE(ROWS, B, 3), "", ""),
    "greedy": (GreedySAE(W, B, 4, Greedy(4, True, 0.01, True)), "matching_pursuit", ""),
    "greedy, not subtracted": (GreedySAE(W, ZERO, 4, Greedy(4, True, 0.3, False)), "matching_pursuit", ""),
    "greedy, signed": (GreedySAE(W, B, 4, Greedy(4)), "", ""),
}
CASES = [(name, to) for name in FORMS for to in TARGETS]


@pytest.mark.parametrize(("name", "to"), CASES)
def test_the_same_sae_or_a_refusal(name: str, to: str, tmp_path: Path) -> None:
    sae, lens, dictionary = FORMS[name]
    called = {"native": "any", "sae_lens": lens, "dictionary_learning": dictionary}[to]
    out = tmp_path / "out"
    if not called:
        with pytest.raises(CheckpointError) as e:
            convert(loaded(sae), out, to)
        assert e.value.remedy == "choose --to native" and not out.exists() and not list(tmp_path.iterdir())
        return
    assert convert(loaded(sae), out, to) == sae.sha256
    back = open_checkpoint(out, Given())
    assert back.sae.sha256 == sae.sha256 and back.lm == "gpt2"
    x = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(1)) * 3
    assert torch.equal(back.sae.encode(x), sae.encode(x))
    if to == "sae_lens":
        assert json.loads((out / "cfg.json").read_text())["architecture"] == lens and back.hook == HOOK
    if to == "dictionary_learning":
        assert json.loads((out / "config.json").read_text())["trainer"]["dict_class"] == dictionary
        assert back.hook == "mlp_out_layer_3"
    if to == "native":
        assert back.facts["training"] == {"seed": 3} and (back.name, back.architecture) == ("mine", "batchtopk")


@given(st.permutations(["sae_lens", "dictionary_learning", "native"]), st.sampled_from(["relu", "topk", "one threshold"]))
@settings(max_examples=12, deadline=None)
def test_results_move_between_tools(tmp_path_factory: pytest.TempPathFactory, order: list[str], name: str) -> None:
    folder, sae = tmp_path_factory.mktemp("chain"), FORMS[name][0]
    at = loaded(sae)
    for i, to in enumerate(order):
        convert(at, folder / str(i), to, k=5)
        at = open_checkpoint(folder / str(i), Given())
    assert at.sae.sha256 == sae.sha256


@pytest.mark.parametrize("to", TARGETS)
def test_what_a_record_must_say_outlives_conversion(to: str, tmp_path: Path) -> None:
    said = "input scale 0.5 estimated from 8,192 tokens"
    source = replace(loaded(FORMS["relu"][0]), oddities=(said,), normalisation="dataset-wise: factor 0.5")
    convert(source, tmp_path / "a", to)
    back = open_checkpoint(tmp_path / "a", Given())
    assert back.oddities == (said, "input normalisation before conversion: dataset-wise: factor 0.5")
    convert(back, tmp_path / "b", "native")
    assert open_checkpoint(tmp_path / "b", Given()).oddities == back.oddities and "remarks" not in back.facts


def test_a_missing_k_is_asked_for(tmp_path: Path) -> None:
    without = replace(loaded(FORMS["one threshold"][0]), facts={})
    with pytest.raises(CheckpointError, match="stores the k") as e:
        convert(without, tmp_path / "a", "dictionary_learning")
    assert e.value.remedy == "give --trained-k"
    convert(without, tmp_path / "b", "dictionary_learning", k=7)
    assert int(torch.load(tmp_path / "b/ae.pt", weights_only=True)["k"]) == 7
    nested = replace(without, facts={"method": {"method": "ortsae", "base": {"k": 9}}})
    convert(nested, tmp_path / "c", "dictionary_learning")
    assert int(torch.load(tmp_path / "c/ae.pt", weights_only=True)["k"]) == 9


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    sae = loaded(FORMS["relu"][0])
    for taken in (tmp_path / "full", tmp_path / "full/notes.txt"):
        with pytest.raises(UsageError, match="not empty"):
            convert(sae, taken, "native")
    (tmp_path / "empty").mkdir()
    convert(sae, tmp_path / "empty", "native")
    with pytest.raises(UsageError, match="unknown format"):
        convert(sae, tmp_path / "x", "sparsify")
    with pytest.raises(ResourceError):
        convert(sae, tmp_path / "full/notes.txt/below", "native")


@pytest.mark.parametrize("demo", ["ortsae", "batchtopk"])
@pytest.mark.parametrize("to", ["sae_lens", "dictionary_learning"])
def test_demos_move_to_other_libraries_and_back(demo: str, to: str, tmp_path: Path) -> None:
    from bench.references import open_sae

    there = open_sae(f"demo:{demo}").loaded
    convert(there, tmp_path / "there", to)
    convert(open_checkpoint(tmp_path / "there", Given()), tmp_path / "back", "native")
    assert open_checkpoint(tmp_path / "back", Given()).sae.sha256 == there.sae.sha256
