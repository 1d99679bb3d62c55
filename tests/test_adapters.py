"""Every supported format and architecture against a formula written by hand; everything else is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import adapters
from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae.card import card
from bench.sae.checkpoint import Loaded

FIXTURES = Path(__file__).with_name("fixtures")
CASES = json.loads((FIXTURES / "manifest.json").read_text())["cases"]
D_IN, D_SAE, K, S = 12, 40, 5, 2.5
Arrays = dict[str, np.ndarray]


def weights() -> Arrays:
    """Float64 parts with decoder norms other than 1 and every bias in use; all are exact in float32."""
    g = np.random.default_rng(3)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)} | dict.fromkeys(
        ("b_enc", "b_gate", "b_mag", "r_mag"), (D_SAE,)
    )
    out = {n: 0.4 * g.standard_normal(s) for n, s in shapes.items()} | {"threshold": g.uniform(0.05, 0.6, D_SAE)}
    return {n: a.astype(np.float32).astype(np.float64) for n, a in out.items()}


P = weights()
N = np.linalg.norm(P["W_dec"], axis=1)
X = (np.random.default_rng(4).standard_normal((30, D_IN)) + 0.5).astype(np.float32).astype(np.float64)


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def top(a: np.ndarray, k: int = K) -> np.ndarray:
    """The k largest of each row, then ReLU, by a full sort."""
    out = np.zeros_like(a)
    for row, values in enumerate(a):
        for i in np.argsort(-values)[:k]:
            out[row, i] = max(values[i], 0)
    return out


def pre(x: np.ndarray, subtract: bool = True) -> np.ndarray:
    return (x - (P["b_dec"] if subtract else 0)) @ P["W_enc"] + P["b_enc"]


def decode(f: np.ndarray) -> np.ndarray:
    return f @ P["W_dec"] + P["b_dec"]


def jump(a: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.where((a > threshold) & (a > 0), a, 0)


def gate(x: np.ndarray, subtract: bool = True) -> np.ndarray:
    """The gated encoder as its paper has it: one decision, one magnitude."""
    p = (x - (P["b_dec"] if subtract else 0)) @ P["W_enc"]
    return (p + P["b_gate"] > 0) * relu(np.exp(P["r_mag"]) * p + P["b_mag"])


def tensors(*names: str, dtype: torch.dtype = torch.float32, **more: object) -> dict[str, torch.Tensor]:
    out = {n: torch.tensor(P[n], dtype=dtype) for n in names}
    return out | {n: v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=dtype).contiguous() for n, v in more.items()}


FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")
GATED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")


def lens(folder: Path, state: dict[str, torch.Tensor], **cfg: Any) -> Path:
    """SAELens v6; `meta` adds to the metadata."""
    meta = {"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post"} | cfg.pop("meta", {})
    base = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": meta,
    }
    return files(folder, state, base | cfg)


def legacy(folder: Path, state: dict[str, torch.Tensor], **cfg: Any) -> Path:
    """SAELens v1 to v5."""
    return files(folder, state, {"d_in": D_IN, "d_sae": D_SAE, "model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post"} | cfg)


def files(folder: Path, state: dict[str, torch.Tensor], cfg: dict[str, Any]) -> Path:
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def dl(folder: Path, dict_class: str, state: dict[str, Any], buffer: dict[str, Any] | None = None, **trainer: Any) -> Path:
    """dictionary_learning."""
    facts = {"dict_class": dict_class, "layer": 3, "lm_name": "pythia", "submodule_name": "resid_post_layer_3"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": facts, "buffer": buffer or {}}))
    torch.save(state, folder / "ae.pt")
    return folder


def sparsify(folder: Path, state: dict[str, torch.Tensor] | None = None, **cfg: Any) -> Path:
    folder = folder / "layers.3.mlp"
    folder.mkdir()
    plain = tensors("W_dec", "b_dec", **{"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"]})
    save_file(state or plain, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "num_latents": 0, "k": K, "d_in": D_IN} | cfg))
    return folder


def gemma(folder: Path, names: dict[str, str] | None = None) -> Path:
    arrays = {(names or {}).get(n, n): P[n].astype(np.float32) for n in (*FOUR, "threshold")}
    np.savez(folder / "params.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return folder


def linear(**more: object) -> dict[str, torch.Tensor]:
    return tensors(**{"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"], "decoder.weight": P["W_dec"].T}, **more)


def batch(threshold: float, **more: object) -> dict[str, torch.Tensor]:
    return linear(b_dec=P["b_dec"], threshold=torch.tensor(threshold), k=torch.tensor(K, dtype=torch.int32), **more)


def scaled(f: np.ndarray) -> np.ndarray:
    """What an SAE of s·x says of x."""
    return decode(f) / S


@dataclass(frozen=True)
class Case:
    """A checkpoint, its codes of X, and its reconstruction of codes."""

    write: Callable[[Path], Path]
    codes: Callable[[], np.ndarray]
    recon: Callable[[np.ndarray], np.ndarray] = decode
    given: Given = field(default_factory=Given)
    atol: float = 2e-5


SCALE = Given(norm_scale=S)
AVERAGE = {"normalize_activations": "expected_average_only_in"}
MATRYOSHKA = {"k": torch.tensor(K), "threshold": torch.tensor(0.25), "group_sizes": torch.tensor([10, 30])}
TRAINED = {"k": 5, "rescale_acts_by_decoder_norm": True}
T64 = torch.tensor(0.5, dtype=torch.float64)
AE_GATED = {"r_mag": P["r_mag"], "gate_bias": P["b_gate"], "mag_bias": P["b_mag"], "decoder_bias": P["b_dec"]}
SUPPORTED: dict[str, Case] = {
    "lens standard": Case(lambda d: lens(d, tensors(*FOUR), architecture="standard"), lambda: relu(pre(X))),
    "lens standard, b_dec kept": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", apply_b_dec_to_input=False), lambda: relu(pre(X, False))
    ),
    "lens standard, scaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", **AVERAGE), lambda: relu(pre(S * X)), scaled, SCALE
    ),
    "lens scaled, b_dec kept": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", apply_b_dec_to_input=False, **AVERAGE),
        lambda: relu(pre(S * X, False)),
        scaled,
        SCALE,
    ),
    "lens jumprelu": Case(lambda d: lens(d, tensors(*FOUR, "threshold"), architecture="jumprelu"), lambda: jump(pre(X), P["threshold"])),
    "lens jumprelu, scaled": Case(
        lambda d: lens(d, tensors(*FOUR, "threshold"), architecture="jumprelu", **AVERAGE),
        lambda: jump(pre(S * X), P["threshold"]),
        scaled,
        SCALE,
    ),
    "lens topk": Case(lambda d: lens(d, tensors(*FOUR), architecture="topk", k=K, rescale_acts_by_decoder_norm=False), lambda: top(pre(X))),
    "lens topk, k given": Case(lambda d: lens(d, tensors(*FOUR), architecture="topk"), lambda: top(pre(X), 3), given=Given(k=3)),
    "lens topk, rescaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="topk", **TRAINED), lambda: top(pre(X) * N), lambda f: decode(f / N)
    ),
    "lens topk, rescaled and scaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="topk", **TRAINED, **AVERAGE),
        lambda: top(pre(S * X) * N) / S,
        lambda f: decode(f * S / N) / S,
        SCALE,
    ),
    "lens gated": Case(lambda d: lens(d, tensors(*GATED), architecture="gated"), lambda: gate(X)),
    "lens gated, scaled": Case(lambda d: lens(d, tensors(*GATED), architecture="gated", **AVERAGE), lambda: gate(S * X), scaled, SCALE),
    "lens batchtopk": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="batchtopk", **TRAINED),
        lambda: jump(pre(X) * N, 0.5),
        lambda f: decode(f / N),
    ),
    "lens batchtopk, scaled": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="batchtopk", **TRAINED, **AVERAGE),
        lambda: jump(pre(S * X) * N, 0.5) / S,
        lambda f: decode(f * S / N) / S,
        SCALE,
    ),
    "lens matryoshka": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="matryoshka_batchtopk", k=5, rescale_acts_by_decoder_norm=False),
        lambda: jump(pre(X), 0.5),
    ),
    "legacy standard": Case(lambda d: legacy(d, tensors(*FOUR)), lambda: relu(pre(X))),
    "legacy ones": Case(lambda d: legacy(d, tensors(*FOUR, scaling_factor=np.ones(D_SAE))), lambda: relu(pre(X))),
    "legacy bool scale": Case(lambda d: legacy(d, tensors(*FOUR), normalize_activations=True), lambda: relu(pre(S * X)), scaled, SCALE),
    "legacy topk": Case(
        lambda d: legacy(d, tensors(*FOUR), architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": K}),
        lambda: top(pre(X)),
    ),
    "legacy topk, own name": Case(
        lambda d: legacy(d, tensors(*FOUR), architecture="topk", activation_fn="topk", activation_fn_kwargs={"k": K}),
        lambda: top(pre(X)),
    ),
    "legacy jumprelu": Case(
        lambda d: legacy(d, tensors(*FOUR, "threshold"), architecture="jumprelu", apply_b_dec_to_input=False),
        lambda: jump(pre(X, False), P["threshold"]),
    ),
    "legacy gated": Case(lambda d: legacy(d, tensors(*GATED), architecture="gated"), lambda: gate(X)),
    "dl AutoEncoder": Case(lambda d: dl(d, "AutoEncoder", linear(bias=P["b_dec"])), lambda: relu(pre(X))),
    "dl compiled": Case(
        lambda d: dl(d, "AutoEncoder", {f"_orig_mod.{k}": v for k, v in linear(bias=P["b_dec"]).items()}), lambda: relu(pre(X))
    ),
    "dl AutoEncoderNew": Case(lambda d: dl(d, "AutoEncoderNew", linear(**{"decoder.bias": P["b_dec"]})), lambda: relu(pre(X, False))),
    "dl GatedAutoEncoder": Case(
        lambda d: dl(d, "GatedAutoEncoder", {k: v for k, v in linear(**AE_GATED).items() if k != "encoder.bias"}), lambda: gate(X)
    ),
    "dl JumpReluAutoEncoder": Case(
        lambda d: dl(d, "JumpReluAutoEncoder", tensors(*FOUR, "threshold")), lambda: jump(pre(X, False), P["threshold"])
    ),
    "dl AutoEncoderTopK": Case(lambda d: dl(d, "AutoEncoderTopK", batch(0.3), k=K), lambda: top(relu(pre(X)))),
    "dl AutoEncoderTopK of 2024": Case(lambda d: dl(d, "AutoEncoderTopK", linear(b_dec=P["b_dec"]), k=K), lambda: top(relu(pre(X)))),
    "dl BatchTopKSAE": Case(lambda d: dl(d, "BatchTopKSAE", batch(0.25)), lambda: jump(relu(pre(X)), 0.25)),
    "dl BatchTopKSAE, given": Case(
        lambda d: dl(d, "BatchTopKSAE", batch(-1.0)), lambda: jump(relu(pre(X)), 0.3), given=Given(threshold=0.3)
    ),
    "dl MatryoshkaBatchTopKSAE": Case(
        lambda d: dl(d, "MatryoshkaBatchTopKSAE", tensors(*FOUR, **MATRYOSHKA)), lambda: jump(relu(pre(X)), 0.25)
    ),
    "sparsify topk": Case(sparsify, lambda: top(relu(pre(X)))),
    "sparsify of 2024": Case(lambda d: sparsify(d, signed=False, num_latents=D_SAE), lambda: top(relu(pre(X)))),
    "gemma": Case(gemma, lambda: jump(pre(X, False), P["threshold"])),
    "gemma, lower case": Case(lambda d: gemma(d, {"W_enc": "w_enc", "W_dec": "w_dec"}), lambda: jump(pre(X, False), P["threshold"])),
}


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


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_files_of_other_libraries_reproduce_their_numbers(case: dict[str, Any]) -> None:
    loaded = open_checkpoint(FIXTURES / case["path"], Given())
    expected = np.load(FIXTURES / case["expected"])
    x, acts, recon = (expected[case["keys"][k]] for k in ("x", "acts", "recon"))
    agree(loaded, x, acts, recon, case["atol"], case["rtol"])
    facts = card(loaded)
    if "model_name" in case:
        assert (facts["model"], facts["hook"].split()[0]) == (case["model_name"], case["hook_name"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_pointing_at_a_file_of_the_folder_is_the_same(case: dict[str, Any]) -> None:
    whole = open_checkpoint(FIXTURES / case["path"], Given())
    for file in (f for f in case["files"] if Path(f).parent == Path(case["path"])):
        assert open_checkpoint(FIXTURES / file, Given()).sae.sha256 == whole.sae.sha256


def test_exactly_one_adapter_takes_each_checkpoint(tmp_path: Path) -> None:
    for i, case in enumerate(SUPPORTED.values()):
        (tmp_path / str(i)).mkdir()
        path = case.write(tmp_path / str(i))
        assert sum(a.sniff(path) for a in ADAPTERS) == 1
    assert [a.FORMAT for a in ADAPTERS] == ["dictionary_learning", "gemma_scope", "ortsae-bench", "sae_lens", "sae_lens_legacy", "sparsify"]


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
    assert "bfloat16" in card(loaded)["oddities"]


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
        return loaded.hook, card(loaded)["hook"]

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


SKIP = {"W_skip": np.zeros((D_IN, D_IN))}


ENC = {"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"]}
REFUSED: dict[str, tuple[Callable[[Path], Path], Given, str, str]] = {
    name: (write, given, cause, remedy)
    for name, write, given, cause, remedy in [
        *[
            (a, lambda d, a=a: lens(d, tensors(*FOUR), architecture=a), Given(), a, "give")
            for a in ("abstopk", "matching_pursuit", "temporal", "transcoder", "skip_transcoder", "jumprelu_transcoder", "brand_new")
        ],
        *[
            (n, lambda d, n=n: lens(d, tensors(*FOUR), architecture="standard", normalize_activations=n), SCALE, n, "give")
            for n in ("layer_norm", "constant_norm_rescale", "covariance_whitening", "constant_scalar_rescale")
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
        ("tanh", lambda d: legacy(d, tensors(*FOUR), activation_fn_str="tanh-relu"), Given(), "tanh-relu", "relu"),
        (
            "finetuned",
            lambda d: legacy(d, tensors(*FOUR, scaling_factor=np.full(D_SAE, 1.5)), finetuning_scaling_factor=True),
            Given(),
            "scaling_factor",
            "W_dec",
        ),
        (
            "finetuned, own name",
            lambda d: legacy(d, tensors(*FOUR, finetuning_scaling_factor=np.full(D_SAE, 1.5))),
            Given(),
            "finetuning_scaling_factor",
            "W_dec",
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
        ("wrong width", lambda d: lens(d, tensors(*FOUR), architecture="standard", d_in=13), Given(), "d_in", "damaged"),
        ("groupmax", lambda d: sparsify(d, activation="groupmax"), Given(), "groupmax", "topk"),
        ("signed", lambda d: sparsify(d, signed=True), Given(), "signed", "unsigned"),
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
    with pytest.raises(CheckpointError, match="looked for dictionary_learning, gemma_scope"):
        open_checkpoint(tmp_path, Given())
    for i in range(7):
        shutil.copytree(FIXTURES / "sae_lens/standard/ckpt", tmp_path / f"deep/l{i}")
    with pytest.raises(CheckpointError, match=r"7 below it: deep/l0, deep/l1, deep/l2, deep/l3, deep/l4, …"):
        open_checkpoint(tmp_path, Given())


@pytest.mark.parametrize(
    ("files_there", "phrase"),
    [
        ({"params.safetensors": ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}, "Gemma Scope 2"),
        ({"sae_weights.safetensors": ("W_E", "b_E", "W_D", "b_D")}, "OpenMOSS"),
        ({"layer_1.safetensors": ("W_enc_1", "W_dec_1")}, "crosscoder"),
        ({"x.pt": ("pre_bias", "latent_bias", "encoder.weight")}, "OpenAI"),
        ({"x.pth": ("encoder_linear.weight", "decoder_linear.weight")}, "Goodfire"),
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


def test_the_card_says_what_decides_the_numbers(tmp_path: Path) -> None:
    facts = card(open_checkpoint(lens(tmp_path, tensors(*FOUR, "threshold"), architecture="jumprelu", **AVERAGE), SCALE))
    assert list(facts) == [
        *("format", "architecture", "d_in", "d_sae", "activation", "hook", "model", "normalisation"),
        *("decoder norms", "b_dec subtracted from input", "sha256", "oddities"),
    ]
    assert facts["activation"] == f"jumprelu, threshold {P['threshold'].min():.4g} to {P['threshold'].max():.4g}"
    assert "2.5" in facts["normalisation"]
    assert facts["decoder norms"].startswith(f"min {N.min() / S:.4g}")
    assert facts["b_dec subtracted from input"] == "yes"
