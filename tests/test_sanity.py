"""`sae check`: an SAE is at home where it was trained, and elsewhere the check says so and names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from bench.adapters.build import scale_folded
from bench.cli import app
from bench.data.text import open_corpus, tokenised
from bench.errors import UsageError
from bench.examining import examined
from bench.lm import open_lm, tiny
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook, parse_hook
from bench.references import open_sae
from bench.sae.activations import JumpReLU, ReLU, TopK
from bench.sae.canonical import Canonical
from bench.sae.card import card, facts_of, printable
from bench.sae.checkpoint import Loaded, save
from bench.sae.dense import DenseSAE
from bench.sanity import AS_IT_IS, Sanity, examine
from bench.spec import make_spec
from bench.store import Store

SITE = {"lm": "tiny:random", "hook": "blocks.1.hook_resid_post"}


def line(*argv: str) -> Result:
    return CliRunner().invoke(app, ["sae", *argv], catch_exceptions=False)


def identity(d: int = 32, scale: float = 1.0, idle: int = 96) -> DenseSAE:
    """x⁺ and x⁻ in two latents for each number: reconstructs everything, at any place; and latents that never fire."""
    w = torch.cat([torch.eye(d), -torch.eye(d), torch.eye(d)[torch.arange(idle) % d]]) * scale
    b_enc = torch.cat([torch.zeros(2 * d), torch.full((idle,), -1e6)])
    return DenseSAE(w.T.contiguous() / scale**2, b_enc, w, torch.zeros(d), torch.zeros(d), ReLU())


def at(folder: Path, sae: DenseSAE, **facts: str) -> Path:
    save(sae, folder, {"name": folder.name, "method": "tied", **facts})
    return folder


def tried(sae: DenseSAE, lm: LanguageModel, hook: Hook, tokens: int = 1024) -> Sanity:
    return examine(Canonical(sae), lm, hook, open_corpus(), Store.default(), tokens)


def test_numbers_against_numpy() -> None:
    lm, hook = tiny.load(), Hook(1)
    g = torch.Generator().manual_seed(3)
    w = torch.randn(40, 32, generator=g)
    sae = DenseSAE(w.T.contiguous() / 4, torch.zeros(40), w, torch.ones(32), torch.zeros(32), TopK(5))
    found = tried(sae, lm, hook)
    rows = tokenised(lm, open_corpus(), "eval", 1024, Store.default(), rows_per_document=1)
    each = [torch.tensor(rows.ids[a:b], dtype=torch.long)[None] for a, b in pairwise(rows.offsets)]
    x = np.concatenate([lm.read(row, [hook])[hook][0].double().numpy() for row in each])
    norms = np.linalg.norm(x, axis=1)
    x = x[~rows.special & (norms <= 5 * np.median(norms[~rows.special]))]
    pre = x @ w.double().numpy().T / 4
    f = np.where(pre >= np.sort(pre, 1)[:, [-5]], np.maximum(pre, 0), 0)
    xhat = f @ w.double().numpy() + 1
    assert found.tokens == len(x)
    assert found.ev == pytest.approx(1 - np.square(x - xhat).sum() / np.square(x - x.mean(0)).sum(), abs=1e-4)
    assert found.l0 == pytest.approx((f > 0).sum(1).mean(), abs=1e-3) and found.silent == int((f.max(0) == 0).sum())
    assert found.code == pytest.approx(np.median(f[f > 0]), rel=1e-3)
    scaled = (f * np.linalg.norm(w.double().numpy(), axis=1))[f > 0]
    assert found.code_canonical == pytest.approx(np.median(scaled), rel=1e-3)


def test_every_neighbour_is_tried_once() -> None:
    places = [t.hook for t in tried(identity(), tiny.load(), Hook(1)).trials if t.scaling == AS_IT_IS]
    assert places[0] == "blocks.1.hook_resid_post"
    others = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"]
    assert sorted(places[1:]) == sorted(others)
    with pytest.raises(UsageError, match="layers"):
        tried(identity(), tiny.load(), Hook(9))


def test_what_reconstructs_everywhere_is_at_home() -> None:
    found = tried(identity(), tiny.load(), Hook(1))
    assert found.ev == pytest.approx(1, abs=1e-5) and not found.warnings
    assert tried(identity(scale=3.0), tiny.load(), Hook(1)).code_canonical == pytest.approx(found.code_canonical, rel=1e-4)


def test_a_factor_on_the_activations_is_one_in_the_weights() -> None:
    lm, hook = tiny.load(), Hook(1)
    found = tried(replace(identity(), act=JumpReLU(torch.full((160,), 0.5))), lm, hook)
    trial = next(t for t in found.trials if "mean norm" in t.scaling and t.hook == str(hook))
    s = float(trial.scaling.split()[3])  # of four digits
    folded = tried(scale_folded(replace(identity(), act=JumpReLU(torch.full((160,), 0.5))), s), lm, hook)
    assert folded.trials[0].ev == pytest.approx(trial.ev, abs=1e-3) and abs(trial.ev - found.trials[0].ev) > 0.05


def test_an_sae_that_does_nothing_is_called_so() -> None:
    silent = replace(identity(), b_enc=torch.full((160,), -1e6))
    assert {w.split(":")[0].split(" is ")[0] for w in tried(silent, tiny.load(), Hook(1)).warnings} >= {"L0"}
    dense = replace(identity(), b_enc=torch.full((160,), 1e3))
    warnings = " ".join(tried(dense, tiny.load(), Hook(1)).warnings)
    assert "not sparse" in warnings and "explained variance -" in warnings


@pytest.fixture(scope="module")
def embedded() -> LanguageModel:
    return open_lm("embedded:smollm2-135m-q4_1")


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return open_sae("demo:batchtopk").loaded


@pytest.mark.model
def test_a_trained_sae_is_at_home_at_its_own_layer_only(embedded: LanguageModel, demo: Loaded) -> None:
    home = parse_hook(demo.hook)
    assert not tried(demo.sae, embedded, home).warnings
    for wrong in (Hook(home.layer - 1), Hook(home.layer + 2), Hook(home.layer, "mlp_out")):
        (warning,) = (w for w in tried(demo.sae, embedded, wrong).warnings if "explained variance" in w)
        assert "wrong layer" in warning and f"{home} gives 0.8" in warning, warning


@pytest.mark.model
def test_a_forgotten_input_scale_is_named(embedded: LanguageModel, demo: Loaded) -> None:
    home = parse_hook(demo.hook)
    s = next(float(t.scaling.split()[3]) for t in tried(demo.sae, embedded, home).trials if "mean norm" in t.scaling)
    normalised = scale_folded(demo.sae, 1 / s)  # of inputs that were brought to norm √d; the file lost the factor
    found = tried(normalised, embedded, home)
    assert found.ev < 0
    assert any("wrong input scaling" in w and f"{home} with the input times {s:.4g} (mean norm √d) gives 0.8" in w for w in found.warnings)
    twice = tried(scale_folded(demo.sae, s), embedded, home)
    assert any("that undone" in w and "gives 0.8" in w for w in twice.warnings), twice.warnings


def test_the_card_of_a_checkpoint(tmp_path: Path) -> None:
    path = at(tmp_path / "mine", identity(), **SITE)
    done = line("check", str(path), "--tokens", "1024")
    assert done.exit_code == 0
    for said in (
        "what it is",
        "160 latents of 32 numbers (5 ×)",
        "where it belongs",
        "tiny:random",
        "explained variance  1.000",
        "✓ it looks",
    ):
        assert said in done.stdout, done.stdout
    assert f"next: python -m bench run --sae {path} --suite smoke" in done.stdout
    found = json.loads(line("check", str(path), "--tokens", "1024", "--json").stdout)
    assert found["sanity"]["ev"] > 0.99 and found["not_tried"] is None and found["d_sae"] == 160
    facts = json.loads(line("info", str(path), "--json").stdout)
    assert facts == {k: v for k, v in found.items() if k not in ("sanity", "not_tried")}
    assert line("info", str(path)).stdout.splitlines() == done.stdout.split("\non 1")[0].rstrip("\n").splitlines()


def test_what_the_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = str(at(tmp_path / "bare", identity()))
    done = line("check", path)
    assert done.exit_code == 0 and "not tried on activations: the file names no language model — give --lm" in done.stdout
    assert "--lm NAME --hook HOOK --suite smoke" in done.stdout
    assert "names no hook" in line("check", path, "--lm", "tiny:random").stdout
    done = line("check", path, "--lm", "tiny:random", "--hook", "blocks.1.hook_resid_post", "--tokens", "1024")
    assert "explained variance  1.000" in done.stdout and "--lm tiny:random --hook blocks.1.hook_resid_post --suite" in done.stdout
    assert "--no-data" in line("check", path, "--no-data").stdout


def test_a_model_that_is_not_here_is_not_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = str(at(tmp_path / "far", identity(), lm="nobody/nothing", hook=SITE["hook"]))
    done = line("check", path)
    assert done.exit_code == 0 and "hf:nobody/nothing is not on this machine — add --data" in done.stdout
    world = str(at(tmp_path / "world", identity(), lm="world:small", hook=SITE["hook"]))
    assert "has no text" in line("check", world).stdout


def test_a_wrong_flag_is_an_error_and_what_the_file_says_stays_known(tmp_path: Path) -> None:
    path = str(at(tmp_path / "mine", identity(), lm="gpt2", hook="blocks.0.attn.hook_z"))
    with pytest.raises(UsageError, match="unknown hook 'nonsense'"):
        examined(make_spec({"sae": (path,), "lm": "tiny:random", "hook": "nonsense"}))
    found = examined(make_spec({"sae": (path,), **SITE}), 512)
    assert found.sanity and found.facts["hook_in_file"] == "blocks.0.attn.hook_z" and found.facts["model_in_file"] == "gpt2"
    where = card(found.facts)["where it belongs"]
    assert where == {"model": "tiny:random (file: gpt2)", "hook": "blocks.1.hook_resid_post (file: blocks.0.attn.hook_z)"}
    assert line("check", path, "--tokens", "0").exit_code == 2
    spaced = str(at(tmp_path / "a name", identity(), **SITE))
    assert f"--sae '{spaced}' --suite" in words(["check", spaced, "--no-data"])


def test_a_model_of_another_width_is_an_error_where_it_was_named(tmp_path: Path) -> None:
    path = at(tmp_path / "narrow", identity(16), **SITE)
    spec = {"sae": (str(path),)}
    assert "takes 16 numbers, tiny:random gives 32" in examined(make_spec(spec), 512).not_tried
    with pytest.raises(Exception, match="takes 16 numbers"):
        examined(make_spec({**spec, "lm": "tiny:random"}), 512)


def words(argv: Sequence[str]) -> str:
    return line(*argv).stdout


def test_a_files_own_words_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07name\nwith\u202elines"
    path = at(tmp_path / "evil", identity(), lm=evil, hook=evil)
    for argv in (["check", str(path)], ["info", str(path)]):
        assert not {c for c in words(argv) if not c.isprintable()} - {"\n"}
    assert printable("x" * 1000) == "x" * 300 + "…" and printable("é—√") == "é—√"
    shown = card(facts_of(replace(open_sae(str(path)).loaded, oddities=("a\tb",))))
    assert shown["worth knowing"]["1"] == "a\\x09b"


def test_converting_from_the_command_line(tmp_path: Path) -> None:
    path = at(tmp_path / "mine", identity())
    out = tmp_path / "lens"
    done = line("convert", str(path), str(out), "--to", "sae_lens", "--lm", "gpt2", "--hook", "transformer.h.5")
    assert done.exit_code == 0 and "reads back as the same SAE" in done.stdout
    facts = json.loads(line("info", str(out), "--json").stdout)
    assert (facts["model"], facts["hook"], facts["format"]) == ("gpt2", "blocks.5.hook_resid_post", "sae_lens")
    assert facts["sha256"] == json.loads(line("info", str(path), "--json").stdout)["sha256"]


def test_norms_and_thresholds_of_the_card() -> None:
    sae = replace(identity(), W_dec=identity().W_dec * torch.linspace(0, 3, 160)[:, None])
    facts = facts_of(Loaded(sae, "f", "a", "n"))
    assert facts["decoder_norm"] == {"low": 0, "median": pytest.approx(3 * 80 / 159), "high": 3, "dead_rows": 1}
    assert not facts["unit_decoder"] and facts_of(Loaded(identity(), "f", "a", "n"))["unit_decoder"]
    assert math.isfinite(facts["decoder_norm"]["median"]) and facts["k"] is None and facts["hook"] is None
