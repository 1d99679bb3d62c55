"""What cannot be read exactly is refused by name, with one line of cause and one of remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import adapters
from bench.adapters import Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae.checkpoint import Loaded
from tests.adapters_layouts import (
    AVERAGE,
    D_IN,
    D_SAE,
    FOUR,
    SCALE,
    T64,
    K,
    P,
    batch,
    dl,
    gemma,
    legacy,
    lens,
    linear,
    sparsify,
    tensors,
)

FIXTURES = Path(__file__).with_name("fixtures")

SKIP = {"W_skip": np.zeros((D_IN, D_IN))}


ENC = {"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"]}
REFUSED: dict[str, tuple[Callable[[Path], Path], Given, str, str]] = {
    name: (write, given, cause, remedy)
    for name, write, given, cause, remedy in [
        *[
            (a, lambda d, a=a: lens(d, tensors(*FOUR), architecture=a), Given(), a, "give")
            for a in ("temporal", "transcoder", "skip_transcoder", "jumprelu_transcoder", "brand_new")
        ],
        *[
            (n, lambda d, n=n: lens(d, tensors(*FOUR), architecture="standard", normalize_activations=n), SCALE, n, "give")
            for n in ("covariance_whitening", "constant_scalar_rescale")
        ],
        ("no factor", lambda d: lens(d, tensors(*FOUR), architecture="standard", **AVERAGE), Given(), "expected_average", "--norm-scale"),
        ("no factor, legacy", lambda d: legacy(d, tensors(*FOUR), normalize_activations=True), Given(), "expected_average", "--norm-scale"),
        ("zero factor", lambda d: lens(d, tensors(*FOUR), architecture="standard", **AVERAGE), Given(norm_scale=0.0), "positive", "sqrt"),
        ("factor for nothing", lambda d: legacy(d, tensors(*FOUR)), SCALE, "--norm-scale", "leave out"),
        ("k for nothing", lambda d: legacy(d, tensors(*FOUR)), Given(k=3), "--k", "leave out"),
        ("threshold for nothing", gemma, Given(threshold=0.1), "--threshold", "leave out"),
        ("other k", lambda d: lens(d, tensors(*FOUR), architecture="topk", k=K), Given(k=3), "k = 5", "--k"),
        ("no k", lambda d: lens(d, tensors(*FOUR), architecture="topk"), Given(), "k", "give --k"),
        ("no k, dl", lambda d: dl(d, "AutoEncoderTopK", linear(b_dec=P["b_dec"])), Given(), "k", "give --k"),
        ("k too large", lambda d: sparsify(d, k=D_SAE + 1), Given(), "k = 41", "damaged"),
        ("k zero", lambda d: sparsify(d, k=0), Given(), "k = 0", "damaged"),
        ("threshold never set", lambda d: dl(d, "BatchTopKSAE", batch(-1.0)), Given(), "never set", "--threshold"),
        ("threshold absent", lambda d: dl(d, "BatchTopKSAE", linear(b_dec=P["b_dec"])), Given(), "never set", "--threshold"),
        (
            "matryoshka threshold",
            lambda d: dl(d, "MatryoshkaBatchTopKSAE", tensors(*FOUR, threshold=torch.tensor(-1.0))),
            Given(),
            "never set",
            "--threshold",
        ),
        ("other threshold", lambda d: dl(d, "BatchTopKSAE", batch(0.2)), Given(threshold=0.3), "threshold = 0.2", "--threshold"),
        (
            "training save too early",
            lambda d: lens(d, tensors(*FOUR, topk_threshold=0.0 * T64), architecture="batchtopk", k=5),
            Given(),
            "never set",
            "--threshold",
        ),
        ("gelu", lambda d: legacy(d, tensors(*FOUR), activation_fn_str="gelu"), Given(), "gelu", "relu"),
        (
            "finetuned",
            lambda d: legacy(d, tensors(*FOUR, scaling_factor=np.full(D_SAE, 1.5))),
            Given(),
            "scaling_factor",
            "without it",
        ),
        (
            "finetuned, own name",
            lambda d: legacy(d, tensors(*FOUR, finetuning_scaling_factor=np.full(D_SAE, 1.5))),
            Given(),
            "finetuning_scaling_factor",
            "without it",
        ),
        ("legacy unknown", lambda d: legacy(d, tensors(*FOUR), architecture="odd"), Given(), "odd", "supported"),
        ("skip tensor", lambda d: lens(d, tensors(*FOUR, **SKIP), architecture="standard"), Given(), "transcoder", "give"),
        (
            "second hook",
            lambda d: lens(d, tensors(*FOUR), architecture="standard", meta={"hook_name_out": "x"}),
            Given(),
            "hook_name_out",
            "SAE",
        ),
        ("second width", lambda d: lens(d, tensors(*FOUR), architecture="standard", d_out=7), Given(), "d_out", "give"),
        ("unread tensor", lambda d: lens(d, tensors(*FOUR, extra=np.ones(3)), architecture="standard"), Given(), "extra", "not supported"),
        (
            "neither yes nor no",
            lambda d: lens(d, tensors(*FOUR), architecture="standard", apply_b_dec_to_input="no"),
            Given(),
            "'no'",
            "damaged",
        ),
        ("wrong width", lambda d: lens(d, tensors(*FOUR), architecture="standard", d_in=13), Given(), "d_in", "damaged"),
        ("groupmax, uneven", lambda d: sparsify(d, activation="groupmax", k=7), Given(), "does not divide", "damaged"),
        ("groupmax, signed", lambda d: sparsify(d, activation="groupmax", signed=True), Given(), "with signs", "topk"),
        ("skip", lambda d: sparsify(d, skip_connection=True), Given(), "skip_connection", "without"),
        ("transcode", lambda d: sparsify(d, transcode=True), Given(), "transcoder", "SAE"),
        ("hidden skip", lambda d: sparsify(d, tensors("W_dec", "b_dec", **ENC, **SKIP)), Given(), "W_skip", "SAE"),
        ("CrossCoder", lambda d: dl(d, "CrossCoder", linear()), Given(), "CrossCoder", "AutoEncoder"),
        ("in and out", lambda d: dl(d, "AutoEncoder", linear(), buffer={"io": "in_and_out"}), Given(), "transcoder", "SAE"),
        (
            "backup",
            lambda d: dl(d, "AutoEncoder", {"step": 1, "ae": linear(), "optimizer": {}, "norm_factor": 2.0}),
            Given(),
            "backup",
            "finished",
        ),
        (
            "three dimensions",
            lambda d: lens(d, tensors(*FOUR[:2], "b_dec", W_dec=np.zeros((2, D_SAE, D_IN))), architecture="standard"),
            Given(),
            "crosscoder",
            "one site",
        ),
    ]
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write, given, cause, remedy = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(write(tmp_path), given)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    assert len(str(caught.value).splitlines()) == 1


def test_gemma_scope_folders_that_look_alike_are_refused(tmp_path: Path) -> None:
    for part, word in (("gemma-scope-2b-pt-transcoders/layer_1", "transcoder"), ("embedding/width_4k", "embedding")):
        folder = tmp_path / part
        folder.mkdir(parents=True)
        with pytest.raises(CheckpointError, match=word):
            open_checkpoint(gemma(folder), Given())


def test_nothing_one_of_several_and_unknown_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing at"):
        open_checkpoint(tmp_path / "absent", Given())
    with pytest.raises(CheckpointError, match="looked for bartbussmann, deepseek_r1"):
        open_checkpoint(tmp_path, Given())
    for i in range(7):
        shutil.copytree(FIXTURES / "sae_lens/standard/ckpt", tmp_path / f"deep/l{i}")
    with pytest.raises(CheckpointError, match=r"7 below it: deep/l0, deep/l1, deep/l2, deep/l3, deep/l4, …"):
        open_checkpoint(tmp_path, Given())


@pytest.mark.parametrize(
    ("files_there", "phrase"),
    [
        ({"sae_weights.safetensors": ("W_E", "b_E", "W_D", "b_D")}, "without the config.json"),
        ({"layer_1.safetensors": ("W_enc_1", "W_dec_1")}, "crosscoder"),
        ({"layer_1.safetensors": ("W_enc", "W_dec", "b_enc", "b_dec")}, "transcoder of a set"),
        ({"latest_ckpt.safetensors": ("D", "E", "b", "attn_layers.0")}, "whole sequences"),
        ({"x.safetensors": ("W_enc", "W_skip")}, "transcoder"),
        ({"ae.pt": ("encoder.weight",)}, "without the config.json"),
        ({"sae_weights.safetensors": ("W_enc",)}, "without the cfg.json"),
        ({"sae.pkl": ()}, "pickle"),
    ],
)
def test_known_but_unread_formats_are_named(files_there: dict[str, tuple[str, ...]], phrase: str, tmp_path: Path) -> None:
    for name, keys in files_there.items():
        state = {k: torch.zeros(2, 2) for k in keys}
        save_file(state, tmp_path / name) if name.endswith(".safetensors") else torch.save(state, tmp_path / name)
    for path in (tmp_path, tmp_path / next(iter(files_there))):
        with pytest.raises(CheckpointError, match=phrase):
            open_checkpoint(path, Given())


@dataclass(frozen=True)
class Point:
    """An entry point, as much of one as is used."""

    name: str
    target: object

    def load(self) -> object:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_plugins_are_used_and_broken_ones_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Plugin:
        FORMAT = "their/format"

        def sniff(self, path: Path) -> bool:
            return path.name == "theirs"

        def load(self, path: Path, given: Given) -> Loaded:
            raise KeyError("weights")

    points = [Point("a", ImportError("no module")), Point("b", object()), Point("c", Plugin())]
    monkeypatch.setattr(adapters, "entry_points", lambda group: points)
    adapters.plugins.cache_clear()
    (tmp_path / "theirs").mkdir()
    try:
        with pytest.raises(CheckpointError, match="their/format checkpoint"):
            open_checkpoint(tmp_path / "theirs", Given())
        assert open_checkpoint(FIXTURES / "sae_lens/standard/ckpt", Given()).format == "sae_lens"
    finally:
        adapters.plugins.cache_clear()
    assert capsys.readouterr().err.count("adapter plugin left out") == 2
