"""The native format keeps every number, and an SAE's identity does not depend on the file it came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.adapters import Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, ReLU, TopK
from bench.sae.checkpoint import FACTS, WEIGHTS, activation, rounded, save
from bench.sae.dense import DenseSAE

D_IN, D_SAE = 6, 20
G = torch.Generator().manual_seed(1)
PARTS = {
    "W_enc": torch.randn(D_IN, D_SAE, generator=G),
    "b_enc": torch.randn(D_SAE, generator=G),
    "W_dec": torch.randn(D_SAE, D_IN, generator=G),
    "b_dec": torch.randn(D_IN, generator=G),
}
THRESHOLD = torch.rand(D_SAE, generator=G)
X = torch.randn(40, D_IN, generator=G)
ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "topk": TopK(4),
    "jumprelu": JumpReLU(THRESHOLD),
    "scalar": JumpReLU(torch.tensor(0.3)),
}
MADE = {
    "name": "mine",
    "method": "ortsae",
    "lm": "hf:gpt2",
    "revision": "abc",
    "hook": "blocks.1.hook_resid_post",
    "training": {"tokens": 5},
}


def sae(act: Activation, subtract: bool = True) -> DenseSAE:
    return DenseSAE(**PARTS, b_pre=PARTS["b_dec"] if subtract else torch.zeros(D_IN), act=act)


def same(a: DenseSAE, b: DenseSAE) -> bool:
    return a.sha256 == b.sha256 and torch.equal(a.encode(X), b.encode(X)) and torch.equal(a.decode(a.encode(X)), b.decode(b.encode(X)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_read_back_is_what_was_rounded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    original = sae(ACTIVATIONS[name])
    save(original, tmp_path / "new", MADE, dtype)
    loaded = open_checkpoint(tmp_path / "new", Given())
    assert same(loaded.sae, rounded(original, dtype))
    assert same(loaded.sae, original) == (dtype == torch.float32)
    assert (loaded.format, loaded.architecture, loaded.name, loaded.lm, loaded.hook) == (
        *("ortsae-bench", "ortsae", "mine", "hf:gpt2", "blocks.1.hook_resid_post"),
    )
    assert loaded.facts == {"method": "ortsae", "revision": "abc", "training": {"tokens": 5}}
    assert loaded.oddities == ()  # float16 is how we save by default


def test_weights_that_do_not_fit_the_type_are_refused_and_leave_no_checkpoint(tmp_path: Path) -> None:
    big = sae(ACTIVATIONS["relu"])
    big.W_enc[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="W_enc is not finite in float16"):
        save(big, tmp_path, MADE, torch.float16)
    assert not (tmp_path / "sae.json").exists()


def test_tied_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    rows = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    tied = DenseSAE(rows, torch.zeros(5), rows, torch.zeros(5), torch.zeros(5), ACTIVATIONS["relu"])
    save(tied, tmp_path, MADE)
    assert open_checkpoint(tmp_path, Given()).sae.sha256 == tied.sha256


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(sae(TopK(4)), tmp_path / folder, MADE)
    for file in (WEIGHTS, FACTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_identity_is_the_function_and_not_the_file(tmp_path: Path) -> None:
    kept = sae(JumpReLU(THRESHOLD), subtract=False)
    for format_name in ("native", "gemma", "lens", "dl"):
        (tmp_path / format_name).mkdir()
    state = {**PARTS, "threshold": THRESHOLD}
    save(kept, tmp_path / "native", MADE)
    np.savez(tmp_path / "gemma/params.npz", allow_pickle=False, **{k: v.numpy() for k, v in state.items()})
    save_file(state, tmp_path / "lens/sae_weights.safetensors")
    (tmp_path / "lens/cfg.json").write_text(json.dumps({"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": {}}))
    torch.save(state, tmp_path / "dl/ae.pt")
    (tmp_path / "dl/config.json").write_text(json.dumps({"trainer": {"dict_class": "JumpReluAutoEncoder"}}))
    assert {open_checkpoint(p, Given()).sae.sha256 for p in tmp_path.iterdir()} == {kept.sha256}
    others = [sae(JumpReLU(THRESHOLD)), sae(ReLU(), False), sae(TopK(4), False), sae(TopK(5), False), sae(JumpReLU(THRESHOLD + 0.1), False)]
    assert len({o.sha256 for o in (kept, *others)}) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"format_version": 99},
        {"activation": None},
        {"activation": {"name": "gelu"}},
        {"activation": {"name": "topk"}},
        {"activation": {"name": "topk", "k": 0}},
        {"activation": {"name": "topk", "k": D_SAE + 1}},
        {"activation": {"name": "topk", "k": True}},
        {"activation": {"name": "jumprelu"}},
    ],
    ids=str,
)
def test_facts_that_make_no_sense_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    save(sae(ReLU()), tmp_path, MADE)
    (tmp_path / FACTS).write_text(json.dumps(json.loads((tmp_path / FACTS).read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path, Given())
    assert caught.value.remedy


def test_a_threshold_without_its_activation_is_not_ignored(tmp_path: Path) -> None:
    save(sae(ReLU()), tmp_path, MADE)
    save_file({**load_file(tmp_path / WEIGHTS), "threshold": THRESHOLD}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="threshold"):
        open_checkpoint(tmp_path, Given())


def test_activations_are_read_from_their_description() -> None:
    assert activation({"name": "relu"}, {}) == ReLU()
    assert activation({"name": "topk", "k": 3}, {}) == TopK(3)
    with pytest.raises(CheckpointError):
        activation({"name": "jumprelu"}, {})
