"""Checkpoints as other programs really leave them: what must be read, what must be refused, and what the refusal must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.adapters import Given, open_checkpoint
from bench.errors import CheckpointError
from bench.sae.activations import JumpReLU
from bench.sae.checkpoint import Loaded
from tests.adapters_layouts import D_IN, D_SAE, FOUR, P, X, dl, gemma, lens, linear, pre, relu, tensors, top
from tests.adapters_layouts_more import archetypal, bart, gemma2, llama_scope, moss, neel, overcomplete, pt, qwen

CONST = tensors(*FOUR, threshold=np.full(D_SAE, 0.5))
MODEL = "model.safetensors"


def refusal(path: Path, given: Given | None = None) -> str:
    with pytest.raises(CheckpointError) as e:
        open_checkpoint(path, given or Given())
    return str(e.value)


def codes(loaded: Loaded) -> np.ndarray:
    return loaded.sae.encode_sparse(X.astype(np.float32)).matrix.toarray()


class Linears(torch.nn.Module):
    """Two linear layers; what `state_dict` returns also remembers the modules' names and versions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(D_IN, D_SAE), torch.nn.Linear(D_SAE, D_IN)


def test_a_modules_own_state_is_recognised(tmp_path: Path) -> None:
    state = Linears().state_dict()
    state.update(linear(**{"decoder.bias": P["b_dec"]}))  # pyright: ignore[reportArgumentType, reportCallIssue]
    for path in (pt(tmp_path, "r1-l19.pt", state), tmp_path):
        assert open_checkpoint(path, Given()).format == "deepseek_r1"
        np.testing.assert_allclose(codes(open_checkpoint(path, Given())), relu(pre(X, False)), atol=2e-6)


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    qwen(tmp_path)
    np.testing.assert_allclose(codes(open_checkpoint(tmp_path, Given(k=3))), top(pre(X, False), 3), atol=2e-6)


def test_a_bare_name_is_looked_up_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dl(tmp_path, "AutoEncoder", linear(bias=P["b_dec"]))
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints/ae_7.pt")
    monkeypatch.chdir(folder / "checkpoints")
    assert open_checkpoint(Path("ae_7.pt"), Given()).format == "dictionary_learning"


def test_a_config_whose_weights_are_not_there_is_not_taken_for_another_format(tmp_path: Path) -> None:
    folder = flat(tmp_path)
    (folder / "runner_cfg.json").write_text("{}")
    assert "no SAE checkpoint is recognised" in refusal(folder / "runner_cfg.json")


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_has_saved_steps_only_names_them(steps: int, tmp_path: Path) -> None:
    folder = dl(tmp_path, "AutoEncoder", linear(bias=P["b_dec"]))
    (folder / "checkpoints").mkdir()
    for i in range(steps):
        (folder / f"checkpoints/ae_{i}.pt").write_bytes((folder / "ae.pt").read_bytes())
    (folder / "ae.pt").unlink()
    for path in (folder, folder / "checkpoints"):
        assert "ae_0.pt" in refusal(path)


STANDS_IN = {
    "Git LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "HTML": "\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
    "is empty": "",
}
NAMES = ("sae_weights.safetensors", "cfg.json", MODEL, "params.npz", "x.pt", "layer3.sae.pt", "params.safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", STANDS_IN)
def test_what_failed_downloads_leave_is_named(what: str, name: str, tmp_path: Path) -> None:
    folder = lens(tmp_path, tensors(*FOUR), architecture="standard") if name in NAMES[:2] else tmp_path
    (folder / name).write_text(STANDS_IN[what])
    for path in (folder, folder / name):
        said = refusal(path, Given(k=3))
        assert what in said
        assert name in said


def test_pieces_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    (tmp_path / f"{MODEL}.index.json").write_text(json.dumps({"weight_map": {"W_enc": "model-00001-of-00002.safetensors"}}))
    save_file(tensors("W_enc"), tmp_path / "model-00001-of-00002.safetensors")
    for path in (tmp_path, *tmp_path.iterdir()):
        assert "sharded" in refusal(path)


FLAT = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.5.hook_resid_pre", "activation_fn_str": "relu"}


def flat(folder: Path, **cfg: object) -> Path:
    save_file(tensors(*FOUR), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(FLAT | cfg))
    return folder


def three(folder: Path) -> Path:
    return pt(
        folder, "v1.pt", {"W_enc": torch.zeros(2, 3, 4), "W_dec": torch.zeros(4, 2, 3), "b_enc": torch.zeros(4), "b_dec": torch.zeros(2, 3)}
    )


def neel_of_two_models(folder: Path) -> Path:
    neel(folder)
    return three(folder)


def without(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def in_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "legacy transcoder": (lambda d: flat(d, is_transcoder=True), "is_transcoder"),
    "legacy output": (lambda d: flat(d, out_hook_point="blocks.5.hook_mlp_out", d_out=D_IN), "transcoder"),
    "crosscoder": (three, "crosscoder"),
    "crosscoder by its config": (neel_of_two_models, "crosscoder"),
    "crosscoder by its folder": (lambda d: gemma2(in_folder(d, "crosscoder/layer_16_22_width_65k"), config=False), "crosscoders"),
    "llama scope alone": (lambda d: without(llama_scope(d), "hyperparams.json"), "hyperparams.json"),
    "llama scope below 0": (lambda d: llama_scope(d, jump_relu_threshold=-0.1), "jump_relu_threshold"),
    "backup": (lambda d: dl(d, "AutoEncoder", {"step": 1, "ae": linear(bias=P["b_dec"]), "norm_factor": 2.0}), "backup"),  # pyright: ignore[reportArgumentType]
    "sizes as text": (lambda d: bart(d, "topk", act_size=str(D_IN + 1)), "act_size"),
    "no switch": (lambda d: bart(d, "topk", input_unit_norm=None), "true or false, into the config"),
    "half a k": (lambda d: lens(d, tensors(*FOUR), architecture="topk", k=2.5), "not a whole number"),
    "orthogonal pursuit": (lambda d: overcomplete(in_folder(d, "omp"), encoder=False), "OMPSAE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_read_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    write, why = REFUSED[name]
    assert why in refusal(write(tmp_path), Given(k=3) if name == "orthogonal pursuit" else None)


def test_the_expansion_of_sparsify_must_fit_where_it_decides_the_width(tmp_path: Path) -> None:
    state = tensors("W_dec", "b_dec") | {k: v for k, v in linear().items() if k.startswith("encoder.")}
    save_file(state, tmp_path / "sae.safetensors")
    for factor, width, fits in ((D_SAE / D_IN, 0, True), (2, 0, False), (2, D_SAE, True)):
        (tmp_path / "cfg.json").write_text(json.dumps({"k": 3, "d_in": D_IN, "num_latents": width, "expansion_factor": factor}))
        assert open_checkpoint(tmp_path, Given()) if fits else "expansion_factor" in refusal(tmp_path)


FLAGS: dict[str, tuple[Callable[[Path], Path], Given, str]] = {
    "other threshold": (lambda d: lens(d, CONST, architecture="jumprelu"), Given(threshold=3.0), "--threshold"),
    "thresholds of a folded BatchTopK": (
        lambda d: lens(d, tensors(*FOUR, threshold=P["threshold"]), architecture="jumprelu", meta={"training_architecture": "batchtopk"}),
        Given(threshold=3.0),
        "--threshold",
    ),
    "scale beside layer norm": (
        lambda d: lens(d, tensors(*FOUR), architecture="standard", normalize_activations="layer_norm"),
        Given(norm_scale=3.0),
        "--norm-scale",
    ),
    "scale beside token norm": (lambda d: moss(d, "relu", norm_activation="token-wise"), Given(norm_scale=3.0), "--norm-scale"),
    "k of a pursuit": (lambda d: lens(d, tensors("W_dec", "b_dec"), architecture="matching_pursuit", max_iterations=5), Given(k=3), "--k"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_changes_nothing_is_refused(name: str, tmp_path: Path) -> None:
    write, given, flag = FLAGS[name]
    path = write(tmp_path)
    assert open_checkpoint(path, Given())
    assert f"leave out {flag}" in refusal(path, given)


def test_a_threshold_that_is_the_files_own_is_accepted(tmp_path: Path) -> None:
    act = open_checkpoint(lens(tmp_path, CONST, architecture="jumprelu"), Given(threshold=0.5)).sae.act
    assert isinstance(act, JumpReLU) and float(act.threshold[0]) == 0.5
    assert open_checkpoint(moss(in_folder(tmp_path, "moss"), "batchtopk"), Given(threshold=0.4)).architecture == "batchtopk"


def test_a_folder_far_above_that_is_called_embedding_means_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "embedding/study/layer_5/width_16k/average_l0_7"
    folder.mkdir(parents=True)
    assert open_checkpoint(gemma(folder), Given()).format == "gemma_scope"


def test_archetypes_beyond_the_points_are_rows_of_zeros(tmp_path: Path) -> None:
    state = torch.load(archetypal(tmp_path), weights_only=True)
    state["dictionary.W"][30:] = 0
    sae = open_checkpoint(pt(tmp_path, "ra.pt", state), Given(k=3)).sae
    np.testing.assert_allclose(sae.W_dec[30:], state["dictionary.Relax"][30:] * np.exp(0.25), rtol=1e-6)
    state["dictionary.W"][0] /= 2
    assert "do not sum to 1" in refusal(pt(tmp_path, "ra.pt", state), Given(k=3))
