"""What the later formats refuse, tell apart, and leave as it was."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.adapters.files import DAMAGED
from bench.errors import CheckpointError, UsageError
from bench.sae.activations import AbsTopK, GroupMax, JumpReLU, RankedTopK, ReLU, SignedTopK, TanhReLU, TopK
from bench.sae.canonical import Canonical
from bench.sae.checkpoint import Form, rounded, save
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.sae.greedy import Greedy, GreedySAE
from bench.sae.normalisation import PerToken
from bench.store import Store, array_sha256
from bench.types import Result
from bench.worlds.context import world_context
from bench.worlds.names import open_world
from tasks.ground_truth import GroundTruth
from tests.adapters_cases import SUPPORTED
from tests.adapters_cases_more import MORE
from tests.adapters_layouts import D_IN, D_SAE, FOUR, SCALE, K, P, X, dl, gemma, lens, linear, tensors
from tests.adapters_layouts_more import (
    EXACT_ROWS,
    LOG,
    archetypal,
    bart,
    deepseek,
    gemma2,
    goodfire,
    hypothesaes,
    llama_scope,
    lm_saes,
    moss,
    neel,
    openai,
    overcomplete,
    pt,
    qwen,
    saev,
)
from tests.test_adapters_malformed import mutate

MUTATIONS = 40
OUT = {"hook_point_out": "blocks.4.hook_resid_post"}
GIVEN_K = Given(k=K)
SKIP = {"affine_skip_connection": np.zeros((D_IN, D_IN))}
REFUSED: dict[str, tuple[Callable[[Path], Path], Given, str, str]] = {
    "moss crosscoder": (lambda d: moss(d, "relu", sae_type="crosscoder"), Given(), "crosscoder", "SAE"),
    "moss transcoder": (lambda d: moss(d, "relu", **OUT), Given(), "transcoder", "SAE"),
    "moss glu": (lambda d: moss(d, "relu", use_glu_encoder=True), Given(), "glu", "without"),
    "moss batch-wise": (lambda d: moss(d, "relu", norm_activation="batch-wise"), Given(), "batch-wise", "dataset-wise"),
    "moss no norm": (lambda d: moss(d, "relu", average=None), Given(), "never set", "--norm-scale"),
    "moss no threshold": (lambda d: moss(d, "batchtopk"), Given(), "never set", "--threshold"),
    "moss norms unknown": (lambda d: moss(d, "relu", sparsity_include_decoder_norm=None), Given(), "sparsity", "damaged"),
    "moss other act": (lambda d: moss(d, "gelu"), Given(), "gelu", "supported"),
    "moss other scale": (lambda d: moss(d, "relu"), SCALE, "--norm-scale is 2.5", "leave out"),
    "lm_saes transcoder": (lambda d: lm_saes(d, **OUT), Given(), "transcoder", "SAE"),
    "llama transcoder": (lambda d: llama_scope(d, **OUT), Given(), "transcoder", "SAE"),
    "llama no norm": (lambda d: llama_scope(d, dataset_average_activation_norm=None), Given(), "never set", "--norm-scale"),
    "llama no threshold": (lambda d: llama_scope(d, jump_relu_threshold=None), Given(), "jump_relu_threshold", "damaged"),
    "llama width": (lambda d: llama_scope(d, d_sae=41), Given(), "d_sae = 41", "damaged"),
    "gemma 2 transcoder": (lambda d: gemma2(d, hf_hook_point_out="model.layers.3.mlp.output"), Given(), "transcoder", "SAE"),
    "gemma 2 type": (lambda d: gemma2(d, type="clt"), Given(), "'clt'", "SAE"),
    "gemma 2 affine": (lambda d: gemma2(d, affine_connection=True), Given(), "affine", "SAE"),
    "gemma 2 skip": (lambda d: gemma2(d, SKIP, config=False), Given(), "affine_skip", "SAE"),
    "gemma 2 clt": (lambda d: gemma2(d, {"w_dec": np.zeros((2, D_SAE, D_IN))}), Given(), "cross-layer", "one site"),
    "gemma 2 act": (lambda d: gemma2(d, architecture="topk"), Given(), "topk", "jump_relu"),
    "openai act": (lambda d: openai(d, "Identity"), Given(), "Identity", "supported: ReLU, TopK"),
    "openai after": (lambda d: openai(d, after="GELU"), Given(), "GELU", "ReLU"),
    "openai k": (openai, Given(k=3), "k = 5", "leave out"),
    "bart type": (lambda d: bart(d, "quantile"), Given(), "quantile", "supported"),
    "bart threshold": (lambda d: bart(d, "batchtopk"), Given(), "never set", "--threshold"),
    "bart matryoshka": (lambda d: bart(d, "matryoshka", {"threshold": torch.tensor(0.0)}), Given(), "never set", "--threshold"),
    "bart experiment": (lambda d: bart(d, "topk", tied_weights=True), Given(), "tied_weights", "False"),
    "bart norm": (lambda d: bart(d, "topk", input_unit_norm=None), Given(), "input_unit_norm", "into the config"),
    "hypothesaes": (lambda d: hypothesaes(d, use_batch_topk=True), Given(), "never set", "--threshold"),
    "goodfire odd": (
        lambda d: pt(d, "x.pt", tensors(**{"encoder_linear.weight": P["W_enc"].T, "decoder.weight": P["W_dec"].T})),
        Given(),
        "decoder.weight",
        "variant",
    ),
    "qwen": (qwen, Given(), "k", "--k"),
    "neel width": (lambda d: neel(d, dict_size=41), Given(), "dict_size", "damaged"),
    "saev act": (lambda d: saev(d, "Gelu"), Given(), "Gelu", "supported"),
    "saev threshold": (lambda d: saev(d, "BatchTopK"), Given(), "never set", "--threshold"),
    "overcomplete": (overcomplete, Given(), "same file", "--k"),
    "overcomplete Q": (lambda d: overcomplete(d, Q=np.zeros(4)), GIVEN_K, "QSAE", "another"),
    "overcomplete rows": (lambda d: overcomplete(d, **{"dictionary._weights": P["W_dec"]}), GIVEN_K, "unit norm", "training"),
    "overcomplete tied to another": (
        lambda d: overcomplete(d, "tied", **{"encoder.tied_to._weights": -EXACT_ROWS}),
        GIVEN_K,
        "encoder.tied_to._weights is not the dictionary",
        "again",
    ),
    "overcomplete batch norm": (
        lambda d: overcomplete(d, **{"encoder.final_block.1.weight": P["b_enc"]}),
        GIVEN_K,
        "final_block.1",
        "variant",
    ),
    "lens pursuit": (
        lambda d: lens(d, tensors("W_dec", "b_dec"), architecture="matching_pursuit", residual_threshold=-1),
        Given(),
        "make no sense",
        DAMAGED,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write, given, cause, remedy = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(write(tmp_path), given)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    assert len(str(caught.value).splitlines()) == 1


def test_each_layout_is_one_format_among_all_others(tmp_path: Path) -> None:
    written: dict[str, Path] = {}
    for i, (name, case) in enumerate((SUPPORTED | MORE).items()):
        (tmp_path / f"{i:03}").mkdir()
        written[name] = case.write(tmp_path / f"{i:03}")
    for name, path in written.items():
        assert [a.FORMAT for a in ADAPTERS if a.sniff(path)] == [open_checkpoint(path, (SUPPORTED | MORE)[name].given).format]
    with pytest.raises(CheckpointError, match="holds no SAE itself"):
        open_checkpoint(tmp_path, Given())


def test_files_of_many_formats_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    wanted = {openai: "openai", goodfire: "goodfire", deepseek: "deepseek_r1", qwen: "qwen_scope", neel: "neel_style"}
    wanted |= {hypothesaes: "hypothesaes", overcomplete: "overcomplete", archetypal: "overcomplete"}
    wanted |= {lambda d: saev(d, "TopK"): "saev", lambda d: gemma(d) / "params.npz": "gemma_scope"}
    wanted |= {lambda d: gemma2(d, config=False) / "params.safetensors": "gemma_scope_2"}
    paths = {write(tmp_path): name for write, name in wanted.items()}
    for path, name in paths.items():
        assert [a.FORMAT for a in ADAPTERS if a.sniff(path)] == [name]
    assert sum(a.sniff(tmp_path / "absent.pt") for a in ADAPTERS) == 0


def test_a_folder_of_several_files_asks_for_one(tmp_path: Path) -> None:
    for i in range(3):
        openai(tmp_path).rename(tmp_path / f"{i}.pt")
    with pytest.raises(CheckpointError, match=r"holds no SAE itself but 3 below it: 0.pt, 1.pt, 2.pt"):
        open_checkpoint(tmp_path, Given())


def test_linear_layers_beside_a_config_or_under_another_librarys_name_are_not_guessed(tmp_path: Path) -> None:
    state = linear(**{"decoder.bias": P["b_dec"]})
    with pytest.raises(CheckpointError, match=r"without the config.json"):
        open_checkpoint(pt(tmp_path, "ae.pt", state), Given())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        open_checkpoint(pt(tmp_path, "x.pt", state), Given())


class Foreign:
    """Something that only its own code can read."""


def test_objects_are_named_and_never_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Python pickle"):
        open_checkpoint(pt(tmp_path, "sae_24.pt", {"cfg": Foreign(), "state_dict": tensors(*FOUR)}), Given())
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"cfg": Foreign()}))
    (tmp_path / "sae.pkl.gz").write_bytes(b"\x1f\x8b")
    for name in ("old.pt", "sae.pkl.gz"):
        with pytest.raises(CheckpointError, match="Python pickle"):
            open_checkpoint(tmp_path / name, Given())


def test_distributed_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(CheckpointError, match="save it as safetensors"):
        open_checkpoint(tmp_path, Given())


def test_sets_of_transcoders_and_unknown_types_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("feature_input_hook: hook_resid_mid\n")
    with pytest.raises(CheckpointError, match="feature_input_hook"):
        open_checkpoint(tmp_path, Given())


AT = 0.5
LOG_AT = np.where(np.arange(D_SAE) == 0, np.log(np.float32(AT)), LOG).astype(np.float32)
EDGE = {"W_enc": np.where(np.arange(D_SAE) == 0, 0, P["W_enc"]), "b_enc": np.where(np.arange(D_SAE) == 0, AT, P["b_enc"])}
VALUE = float(torch.tensor(LOG_AT[0]).exp())


@pytest.mark.parametrize("fires", [False, True])
def test_a_value_at_its_threshold(fires: bool, tmp_path: Path) -> None:
    edge = EDGE | {"b_enc": np.where(np.arange(D_SAE) == 0, VALUE, P["b_enc"])}
    if fires:
        encoder = {"encoder.final_block.0.weight": edge["W_enc"].T, "encoder.final_block.0.bias": edge["b_enc"]}
        path = overcomplete(tmp_path, thresholds=LOG_AT)
        path = pt(tmp_path, path.name, torch.load(path, weights_only=True) | tensors(**encoder))
    else:
        path = bart(tmp_path, "jumprelu", edge | {"jumprelu.log_threshold": LOG_AT}, input_unit_norm=False)
    sae = open_checkpoint(path, Given()).sae
    assert bool(sae.encode_sparse(X.astype(np.float32)).columns(np.array([0])).all()) == fires
    assert bool(sae.encode(torch.tensor(X, dtype=torch.float32))[:, 0].all()) == fires


def test_gemma_scope_2_is_strict(tmp_path: Path) -> None:
    path = gemma2(tmp_path, {"w_enc": EDGE["W_enc"], "b_enc": EDGE["b_enc"], "threshold": np.full(D_SAE, AT)})
    assert not open_checkpoint(path, Given()).sae.encode_sparse(X.astype(np.float32)).columns(np.array([0])).any()


G = torch.Generator().manual_seed(5)
PARTS = (torch.randn(6, 20, generator=G), torch.randn(20, generator=G), torch.randn(20, 6, generator=G), *torch.randn(2, 6, generator=G))
ACTS = [AbsTopK(3), SignedTopK(3), GroupMax(4), RankedTopK(3, PARTS[2].norm(dim=1)), TanhReLU()]
FORMS: list[Form] = [DenseSAE(*PARTS, act=a) for a in (*ACTS, ReLU(), TopK(3), JumpReLU(torch.full((20,), 0.2)))]
FORMS += [replace(f, norm=PerToken(k)) for f in FORMS if isinstance(f, DenseSAE) for k in ("layer_norm", "unit_norm")]
FORMS += [GreedySAE(PARTS[2], PARTS[3], 3, Greedy(3, *rule)) for rule in ((False, 0.0, False), (True, 0.4, True))]
TOKENS = torch.cat([torch.randn(40, 6, generator=G), torch.zeros(1, 6), torch.ones(1, 6)])


@pytest.mark.parametrize("sae", FORMS, ids=lambda f: f"{f.act.name}-{getattr(f, 'norm', None)}")
def test_every_form_is_the_same_sparse_saved_and_canonical(sae: Form, tmp_path: Path) -> None:
    f, codes = sae.encode(TOKENS), sae.encode_sparse(TOKENS.numpy())
    np.testing.assert_allclose(codes.matrix.toarray(), f.numpy(), atol=1e-5)
    np.testing.assert_allclose(sae.decode_sparse(codes), sae.decode(f).numpy(), atol=1e-4)
    view = Canonical(sae)
    seen = view.encode_sparse(TOKENS.numpy())
    again = Codes(**{**seen.arrays(), "d_sae": seen.d_sae})  # as the store gives them back
    np.testing.assert_allclose(view.reconstruct(again), sae.decode(f).numpy(), atol=1e-3)
    some = np.array([3, 41, 40, 7])
    np.testing.assert_allclose(view.reconstruct(seen.take(some)), sae.decode(f).numpy()[some], atol=1e-3)
    np.testing.assert_allclose(
        view.reconstruct(Codes.concat([seen.take(some), seen])), sae.decode(f).numpy()[[*some, *range(42)]], atol=1e-3
    )
    for dtype in (torch.float32, torch.bfloat16):
        save(sae, tmp_path, {"name": "x"}, dtype)
        loaded = open_checkpoint(tmp_path, Given()).sae
        assert loaded.sha256 == rounded(sae, dtype).sha256
        assert (loaded.sha256 == sae.sha256) == (dtype == torch.float32)
    assert sae.to("cpu").sha256 == sae.sha256


def test_the_raw_contributions_of_normalised_tokens_add_up() -> None:
    """Canonical codes are in units of x: taking a latent out changes the reconstruction by its code times its row."""
    view = Canonical(DenseSAE(*PARTS, act=ReLU(), norm=PerToken("layer_norm")))
    codes = view.encode_sparse(TOKENS.numpy())
    keep = np.arange(20) != 4
    difference = view.reconstruct(codes) - view.reconstruct(codes.scaled(keep.astype(np.float64)))
    np.testing.assert_allclose(difference, codes.columns(np.array([4])) * view.W_dec[4], atol=1e-4)


def test_frames_are_kept_with_stored_codes(tmp_path: Path) -> None:
    ctx, rows = world_context(open_world("world:tiny"), Store(tmp_path)), torch.randn(30, 48, generator=G)
    sae = DenseSAE(rows.T.contiguous(), torch.zeros(30), rows, torch.ones(48), torch.ones(48), TopK(4), PerToken("layer_norm"))
    x, wanted = torch.randn(50, 48, generator=G) + 2, []
    for _ in range(2):  # computed, then read back
        codes = ctx.codes(Canonical(sae), x.numpy(), {"made": "here"})
        wanted.append(Canonical(sae).reconstruct(codes))
    np.testing.assert_array_equal(*wanted)
    np.testing.assert_allclose(wanted[0], sae.decode(sae.encode(x)).numpy(), atol=1e-4)
    answer = GroundTruth(tokens=2_048).run(Canonical(sae), ctx)
    assert isinstance(answer, Result)


def test_codes_without_their_frames_are_not_decoded() -> None:
    sae = DenseSAE(*PARTS, act=ReLU(), norm=PerToken("layer_norm"))
    with pytest.raises(UsageError, match="do not decode alone"):
        sae.decode(torch.zeros(2, 20))
    with pytest.raises(UsageError, match="do not decode alone"):
        sae.decode_sparse(Codes.from_dense(np.zeros((2, 20), np.float32)))


def test_no_two_forms_share_an_identity_and_the_old_ones_keep_theirs() -> None:
    assert len({f.sha256 for f in FORMS}) == len(FORMS)
    for act, last in ((ReLU(), [0]), (TopK(3), [3])):
        numbers = (*PARTS[:4], PARTS[4], torch.tensor(last))
        assert DenseSAE(*PARTS, act=act).sha256 == array_sha256(*(t.float().numpy() for t in numbers))


def test_activations_of_ties_and_empty_rows() -> None:
    pre = torch.tensor([[2.0, -2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -3.0, -2.0, -4.0]])
    assert sorted(AbsTopK(2)(pre)[0].abs().tolist()) == [0, 0, 2, 2]
    assert AbsTopK(1)(pre)[2].tolist() == [0, 0, 0, -4]
    assert SignedTopK(2)(pre)[2].tolist() == [-1, 0, -2, 0]
    assert GroupMax(2)(pre)[0].tolist() == [2, 0, 2, 0]
    assert not GroupMax(2)(pre)[1:].any()
    assert RankedTopK(1, torch.tensor([1.0, 1.0, 2.0, 1.0]))(pre)[0].tolist() == [0, 0, 2, 0]
    assert TanhReLU()(pre)[0].tolist() == pytest.approx([math.tanh(2), 0, math.tanh(2), 0])


def damaged(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state with each tensor of weights left out, spoiled or of another shape."""
    out: list[dict[str, Any]] = []
    for name, t in state.items():
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or "average" in name:
            continue
        out += [state | {name: b} for b in (t[None, None], torch.full_like(t, float("nan")), torch.zeros(0), t.to(torch.int32))]
        out += [{k: v for k, v in state.items() if k != name}] if t.ndim == 2 or name.startswith(("b", "pre", "latent")) else []
    return out


WRITERS: list[Callable[[Path], Path]] = [openai, goodfire, deepseek, qwen, neel, lambda d: overcomplete(d, thresholds=LOG), archetypal]


@pytest.mark.parametrize("write", WRITERS)
def test_damaged_single_files_are_refused(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    whole, given = path.read_bytes(), GIVEN_K if write in (qwen, archetypal) else Given()
    open_checkpoint(path, given)
    for state in damaged(torch.load(path, weights_only=True)):
        torch.save(state, path)
        with pytest.raises(CheckpointError):
            open_checkpoint(path, given)
    for keep in (0, 1, 9, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:keep])
        assert not [a for a in ADAPTERS if a.sniff(path) and a.FORMAT not in ("qwen_scope", "neel_style")]
        with pytest.raises(CheckpointError):
            open_checkpoint(path, given)


@pytest.mark.parametrize("name", [n for n in MORE if n.split()[0] in ("moss", "lm_saes", "llama", "gemma", "bart", "saev", "hypothesaes")])
def test_damaged_folders_are_refused(name: str, tmp_path: Path) -> None:
    case = MORE[name]
    path = case.write(tmp_path)
    files = [f for f in sorted(tmp_path.rglob("*")) if f.is_file() and f.name != "lm_config.json"]
    for file in files:
        whole = file.read_bytes()
        for keep in (0, 1, 9, len(whole) // 3, len(whole) - 1):
            file.write_bytes(whole[:keep])
            with pytest.raises(CheckpointError):
                open_checkpoint(path, case.given)
        file.write_bytes(whole)
    open_checkpoint(path, case.given)


FUZZED = {n: MORE[n] for n in ("moss jumprelu", "lm_saes jumprelu", "llama scope", "gemma 2", "bart jumprelu", "hypothesaes topk")}
FUZZED |= {n: MORE[n] for n in ("openai topk", "goodfire", "deepseek", "qwen", "neel", "saev topk", "overcomplete topk", "lens abstopk")}


@pytest.mark.parametrize("name", FUZZED)
def test_mutated_files_load_or_are_refused(name: str, tmp_path: Path) -> None:
    path, g = FUZZED[name].write(tmp_path), np.random.default_rng([11, len(name)])
    refused = 0
    for file in [f for f in sorted(tmp_path.rglob("*")) if f.is_file()]:
        whole = file.read_bytes()
        for _ in range(MUTATIONS):
            file.write_bytes(mutate(whole, g))
            for adapter in ADAPTERS:
                adapter.sniff(path)
            try:
                sae = open_checkpoint(path, FUZZED[name].given).sae
            except CheckpointError as e:
                refused += 1
                assert e.remedy
            else:
                assert sae.encode(torch.ones(2, sae.d_in)).shape == (2, sae.d_sae)
        file.write_bytes(whole)
    assert refused > MUTATIONS // 5


def test_every_format_and_case_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs/formats.md").read_text()
    assert not [a.FORMAT for a in ADAPTERS if f"`{a.FORMAT}`" not in text]
    assert not [name for name in SUPPORTED | MORE if f"| {name} |" not in text]


def test_dictionary_learning_backups_and_saved_steps_are_no_single_files(tmp_path: Path) -> None:
    folder = dl(tmp_path, "AutoEncoderNew", linear(**{"decoder.bias": P["b_dec"]}))
    assert [a.FORMAT for a in ADAPTERS if a.sniff(folder / "ae.pt")] == ["dictionary_learning"]
