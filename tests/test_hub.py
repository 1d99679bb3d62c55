"""SAEs, language models and text from the hub: huggingface_hub itself against a hub on the loopback. No public release is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.adapters import Given, open_checkpoint
from bench.errors import ResourceError, UnavailableError, UsageError
from bench.hub import parse, translated
from bench.hub_listing import candidates, needed
from bench.references import open_sae
from bench.sae.activations import TopK
from bench.sae.checkpoint import save
from bench.sae.dense import DenseSAE
from tests import adapters_layouts as layouts
from tests import adapters_layouts_more as more
from tests.hub_client import Client, environment_of
from tests.hub_server import Fault, Files, Hub, Repo, files_of, running

TEXT = "a document of the loopback, long enough to be worth reading "


def native(folder: Path, seed: int = 0, width: int = 16) -> Path:
    w = torch.randn(width, 8, generator=torch.Generator().manual_seed(seed))
    sae = DenseSAE(w.T.contiguous(), torch.zeros(width), w, torch.zeros(8), torch.zeros(8), TopK(3))
    save(sae, folder, {"lm": "tiny:random", "hook": "blocks.1.hook_resid_post"})
    return folder


def sha_of(path: Path, given: Given | None = None) -> str:
    return open_checkpoint(path, given or Given()).sae.sha256


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def saes(place: Path) -> list[Path]:
    return [native(place / f"sae{i}", i) for i in range(3)]


@pytest.fixture(scope="module")
def hub(saes: list[Path]) -> Iterator[Hub]:
    with running() as hub:
        hub.add("me/one", files_of(saes[0]) | {"README.md": b"#", "optimizer.pt": b"huge", "more/picture.png": b"huge"})
        hub.add("me/many", {n: b for i, s in enumerate(saes) for n, b in files_of(s, f"run/layer_{i}/").items()})
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, place: Path) -> Iterator[Client]:
    opened = Client(hub.url, place / "home")
    yield opened
    opened.close()


def refused(said: dict[str, Any], code: int, cause: str, remedy: str) -> None:
    assert (said["code"], cause in said.get("cause", ""), remedy in said.get("remedy", "")) == (code, True, True), said


# Listings: which files are one SAE


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["README.md", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "other.safetensors"], [""]),
        (["a/params.npz", "b/c/params.npz", "b/c/d/ae.pt"], ["a", "b/c", "b/c/d"]),
        (["layer0.sae.pt", "layer1.sae.pt"], ["layer0.sae.pt", "layer1.sae.pt"]),
        (["L0/hyperparams.json", "L0/checkpoints/final.safetensors", "L1/hyperparams.json", "L1/checkpoints/x.pt"], ["L0", "L1"]),
        (["t/config.json", "t/ae.pt", "t/checkpoints/ae_1.pt", "t/checkpoints/ae_2.pt"], ["t"]),
        (["t/config.json", "t/checkpoints/ae_1.pt", "t/checkpoints/ae_2.pt"], ["t/checkpoints/ae_1.pt", "t/checkpoints/ae_2.pt"]),
        (["README.md", "data.csv"], []),
    ],
)
def test_what_looks_like_an_sae(names: list[str], found: list[str]) -> None:
    assert candidates(names) == found


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ("", {"config.json", "notes.json"}),
        ("run/a", {"config.json", "run/config.json", "run/a/cfg.json", "run/a/sae.safetensors"}),
        ("run/a/sae.safetensors", {"config.json", "run/config.json", "run/a/cfg.json", "run/a/sae.safetensors"}),
        ("L", {"config.json", "L/hyperparams.json", "L/checkpoints/final.safetensors"}),
        ("L/checkpoints/final.safetensors", {"config.json", "L/hyperparams.json", "L/checkpoints/final.safetensors"}),
        ("n/v1.pt", {"config.json", "n/v1.pt", "n/v1_cfg.json"}),
    ],
)
def test_the_files_of_one_sae(chosen: str, wanted: set[str]) -> None:
    run = ["run/config.json", "run/a/cfg.json", "run/a/sae.safetensors", "run/a/trainer_state.pt", "run/a/x.png", "run/b/sae.safetensors"]
    scope = ["L/hyperparams.json", "L/checkpoints/final.safetensors", "L/notes.txt", "n/v1.pt", "n/v1_cfg.json", "n/v2.pt", "n/v2_cfg.json"]
    assert set(needed(["config.json", "notes.json", *run, *scope], chosen)) == wanted


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "/etc", "a\\..\\b", "a/..", "nul\0byte"])
def test_a_place_outside_the_repository_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="leaves the repository"):
        parse(f"hf:some/repo#{path}")


# SAEs


def test_the_top_of_a_repository(hub: Hub, client: Client, saes: list[Path]) -> None:
    said = client("hf:me/one")
    commit = hub.repos["models/me/one"].branches["main"]
    assert (said["sha256"], said["name"], said["lm"]) == (sha_of(saes[0]), "one", "tiny:random")
    assert said["facts"] == {"hub_repo": "me/one", "hub_commit": commit, "hub_path": ""}
    assert f"weights from hf:me/one@{commit}" in said["oddities"]
    fetched = {s.path.rpartition("/")[2] for s in hub.asked("/me/one/resolve/")}
    assert fetched == {"sae.json", "sae.safetensors"}


def test_a_folder_and_a_file(hub: Hub, client: Client, saes: list[Path]) -> None:
    said = client("hf:me/many#run/layer_1")
    assert (said["sha256"], said["name"]) == (sha_of(saes[1]), "layer_1")
    assert not hub.asked("layer_0") and not hub.asked("layer_2")
    assert client("hf:me/many#run/layer_1/")["sha256"] == said["sha256"]
    hub.add("me/file", {n.replace("goodfire", "deep/g"): b for n, b in files_of(more.goodfire(fresh(saes, "good")).parent).items()})
    assert client("hf:me/file#deep/g.pth")["format"] == "goodfire"
    assert client("hf:me/file#deep")["format"] == client("hf:me/file")["format"] == "goodfire"


def fresh(saes: list[Path], name: str) -> Path:
    """A new folder beside the SAEs."""
    folder = saes[0].parent / name
    folder.mkdir(parents=True)
    return folder


def test_several_saes_ask_for_one(hub: Hub, client: Client) -> None:
    before = len(hub.asked("/resolve/"))
    refused(client("hf:me/many"), 3, "holds 3 SAEs: run/layer_0, run/layer_1, run/layer_2", "hf:me/many#run/layer_0")
    refused(client("hf:me/many@main#run"), 3, "holds 3 SAEs", "hf:me/many@main#run/layer_0")
    hub.add("me/none", {"README.md": b"#", "data.csv": b"1"})
    refused(client("hf:me/none"), 3, "holds no weights", "")
    assert len(hub.asked("/resolve/")) == before


def test_revisions(hub: Hub, client: Client, saes: list[Path]) -> None:
    """A branch is what it is now; a commit stays what it was."""
    old = hub.add("me/moving", files_of(saes[0]))
    hub.repos["models/me/moving"].commit(files_of(saes[2]), "side/way")
    first = client("hf:me/moving")
    new = hub.add("me/moving", files_of(saes[1]))
    second, side, pinned = client("hf:me/moving"), client("hf:me/moving@side/way"), client(f"hf:me/moving@{old}")
    assert [s["facts"]["hub_commit"] for s in (first, second, pinned)] == [old, new, old]
    assert [s["sha256"] for s in (first, second, side, pinned)] == [sha_of(saes[i]) for i in (0, 1, 2, 0)]
    assert f"weights from hf:me/moving@{new}" in second["oddities"]


def test_private_and_gated(hub: Hub, client: Client, saes: list[Path]) -> None:
    hub.add("me/private", files_of(saes[0]))
    hub.repos["models/me/private"].token = "hf_secret"
    hub.repos["models/me/gated"] = Repo(gated=True)
    refused(client("hf:me/private"), 4, "no such repository, or it is private", "HF_TOKEN")
    refused(client("hf:me/gated"), 4, "gated", "HF_TOKEN")
    hub.faults["me/banned"] = [Fault(403), Fault(401, (("X-Error-Message", "Invalid credentials in Authorization header"),))]
    refused(client("hf:me/banned"), 4, "refuses access (403)", "HF_TOKEN")
    refused(client("hf:me/banned"), 4, "refuses access (401)", "HF_TOKEN")
    client("hf_secret", "token")
    assert client("hf:me/private")["sha256"] == sha_of(saes[0])
    refused(client("hf:me/nothing"), 4, "no such repository, or it is private", "check the name")
    client("", "token")


def test_what_is_missing_is_named(client: Client, hub: Hub, saes: list[Path]) -> None:
    refused(client("hf:me/nothing"), 4, "hf:me/nothing cannot be fetched: there is no such repository", "check the name")
    refused(client("hf:me/one@nowhere"), 4, "no such revision", "branch")
    refused(client("hf:me/one@" + "0" * 40), 4, "no such revision", "branch")
    refused(client("hf:me/many#run/layer_9"), 4, "no file or folder 'run/layer_9'", "run/layer_")
    hub.add("me/hole", files_of(saes[0]))
    hub.faults["HEAD /me/hole/resolve/" + hub.repos["models/me/hole"].branches["main"] + "/sae.json"] = [
        Fault(404, (("X-Error-Code", "EntryNotFound"),))
    ]
    refused(client("hf:me/hole"), 4, "no such file", "check the name")


def test_names_that_are_none(client: Client) -> None:
    for reference in ("hf:", "hf:a/b/c", "hf:../x", "hf:bad name", "hf:@", "hf:#x"):
        refused(client(reference), 2, f"{reference} cannot be fetched: it names no repository", "hf:OWNER/NAME")


def test_too_many_requests(client: Client, hub: Hub, saes: list[Path]) -> None:
    """huggingface_hub itself waits and asks again for a file; for a listing it does not."""
    hub.add("me/busy", files_of(saes[0]))
    hub.faults["/me/busy"] = [Fault(429, (("Retry-After", "17"),))]
    refused(client("hf:me/busy"), 4, "fewer requests (429)", "wait 17 s")
    hub.faults["GET sae.safetensors"] = [Fault(429, (("Retry-After", "0"),))]
    assert client("hf:me/busy")["sha256"] == sha_of(saes[0])
    assert [s.status for s in hub.asked("/me/busy/resolve/") if s.path.endswith("sae.safetensors")] == [429, 200]
    hub.faults["/me/one"] = [Fault(503)]
    refused(client("hf:me/one"), 4, "the hub answered 503", "later")


def test_a_cut_download_goes_on_where_it_was_cut(client: Client, hub: Hub, place: Path) -> None:
    sae = native(place / "wide", 7, 200_000)
    hub.add("me/cut", files_of(sae))
    hub.faults["GET sae.safetensors"] = [Fault(cut_after=12_000_000)]
    assert client("hf:me/cut")["sha256"] == sha_of(sae)
    # the client keeps whole pieces of 10 MiB
    asked = [(s.range, s.status) for s in hub.asked("/me/cut/resolve/") if s.path.endswith("sae.safetensors")]
    assert asked == [("", 200), (f"bytes={10 * 2**20}-", 206)]


def test_a_download_that_is_cut_for_good(client: Client, hub: Hub, place: Path) -> None:
    """The client gives up after five more tries without a byte; nothing half is left, and the next run is whole."""
    sae = native(place / "wider", 8, 2048)
    hub.add("me/torn", files_of(sae))
    hub.faults["GET sae.safetensors"] = [Fault(cut_after=1000), *[Fault(cut_after=0)] * 5]
    refused(client("hf:me/torn"), 4, "no whole answer from the hub", "network")
    assert not hub.faults["GET sae.safetensors"]
    assert not list((place / "home").rglob("*.incomplete"))
    assert client("hf:me/torn")["sha256"] == sha_of(sae)


def test_offline(client: Client, hub: Hub, saes: list[Path], place: Path, tmp_path: Path) -> None:
    commit = hub.add("me/kept", files_of(saes[0], "a/") | files_of(saes[1], "b/"))
    hub.add("me/kept-lm", files_of(saved_lm(tmp_path / "lm", 0)))
    hub.add("me/never", files_of(saes[0]))
    assert client("hf:me/kept#a")["code"] == client("hf:me/kept-lm", "lm")["code"] == 0
    asked = len(hub.log)
    away = Client(hub.url, place / "home", HF_HUB_OFFLINE="1")
    try:
        for reference in ("hf:me/kept#a", f"hf:me/kept@{commit}#a", "hf:me/kept@main#a"):
            assert away(reference)["sha256"] == sha_of(saes[0])
        refused(away("hf:me/never"), 4, "hf:me/never cannot be fetched: offline mode is on", "network")
        refused(away("hf:me/kept@other#a"), 4, "offline mode is on, and it was not fetched before", "HF_HUB_OFFLINE")
        refused(away("hf:me/kept#b"), 4, "what was fetched before has no file or folder 'b'", "a")
        refused(away("hf:me/never", "lm"), 4, "hf:me/never cannot be opened: offline mode is on", "network")
        assert away("hf:me/kept-lm", "lm")["revision"] == hub.repos["models/me/kept-lm"].branches["main"]
        (place / "home" / "hub" / "models--me--kept" / "snapshots" / commit / "a" / "sae.json").unlink()
        assert away("hf:me/kept#a")["code"] == 3
    finally:
        away.close()
    assert len(hub.log) == asked


def test_a_hub_that_cannot_be_reached(
    client: Client, hub: Hub, saes: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("me/left", files_of(saes[0]))
    assert client("hf:me/left")["code"] == 0
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "home" / "hub"))
    loaded = open_sae("hf:me/left").loaded
    assert (loaded.sae.sha256, loaded.facts["hub_commit"]) == (sha_of(saes[0]), commit)
    assert "taking what was fetched before" in capsys.readouterr().err
    with pytest.raises(UnavailableError, match=r"no whole answer from the hub \(ConnectError\)"):
        open_sae("hf:me/never-seen")


def test_a_full_disk() -> None:
    with pytest.raises(ResourceError, match="disk is full") as e, translated("hf:me/one"), Path("/dev/full").open("wb", buffering=0) as f:
        f.write(b"x")
    assert "HF_HOME" in e.value.remedy
    with pytest.raises(PermissionError), translated("hf:me/one"):
        raise PermissionError("something else")


# The names of public releases


def wide() -> dict[str, torch.Tensor]:
    """Qwen Scope's layout with more latents than the k of its releases."""
    w = torch.randn(80, 8, generator=torch.Generator().manual_seed(1))
    return {"W_enc": w, "W_dec": w.T.contiguous(), "b_enc": torch.zeros(80), "b_dec": torch.ones(8)}


def write(folder: Path, kind: str) -> Path:
    """A small checkpoint in the layout of one of SAELens' loaders; the file itself where the layout is one file."""
    folder.mkdir(parents=True)
    average = {"normalize_activations": "expected_average_only_in"}
    makers: dict[str, Callable[[], Path]] = {
        "sae_lens": lambda: layouts.legacy(folder, layouts.tensors(*layouts.FOUR)),
        "average": lambda: layouts.legacy(folder, layouts.tensors(*layouts.FOUR), **average),
        "gemma_2": lambda: layouts.gemma(folder),
        "gemma_3": lambda: more.gemma2(folder, config=False),
        "dictionary_learning_1": lambda: layouts.dl(folder, "BatchTopKSAE", layouts.batch(0.5), k=layouts.K),
        "qwen_scope": lambda: more.pt(folder, "layer3.sae.pt", wide()),
        "goodfire": lambda: more.goodfire(folder),
        "deepseek_r1": lambda: more.deepseek(folder),
        "llama_scope": lambda: more.llama_scope(folder),
        "llama_scope_r1_distill": lambda: more.lm_saes(folder),
        "connor_rob_hook_z": lambda: more.neel(folder),
    }
    return makers[kind]()


CASES = [
    ("sae_lens", "gpt2-small-res-jb/blocks.8.hook_resid_pre", "gpt2-small", "blocks.2.hook_resid_post", Given()),
    ("average", "gpt2-small-mlp-tm/blocks.3.hook_mlp_out", "gpt2-small", "blocks.2.hook_resid_post", Given(norm_scale=1.0)),
    ("gemma_2", "gemma-scope-2b-pt-res-canonical/layer_5/width_16k/canonical", "gemma-2-2b", "blocks.5.hook_resid_post", Given()),
    ("gemma_2", "gemma-scope-9b-pt-mlp/layer_20/width_16k/average_l0_41", "gemma-2-9b", "blocks.20.hook_mlp_out", Given()),
    ("gemma_3", "gemma-scope-2-4b-pt-res/layer_17_width_16k_l0_medium", "google/gemma-3-4b-pt", "blocks.17.hook_resid_post", Given()),
    (
        "dictionary_learning_1",
        "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.12.hook_resid_post__trainer_0",
        *("pythia", "resid_post_layer_3", Given()),
    ),
    ("qwen_scope", "qwen-scope-3-1.7b-base-w32k-l50/layer3", "Qwen/Qwen3-1.7B-Base", "blocks.3.hook_resid_post", Given(k=50)),
    ("goodfire", "goodfire-llama-3.1-8b-instruct/layer_19", "meta-llama/Llama-3.1-8B-Instruct", "blocks.19.hook_resid_post", Given()),
    (
        "deepseek_r1",
        "deepseek-r1-distill-llama-8b-qresearch/blocks.19.hook_resid_post",
        *("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "blocks.19.hook_resid_post", Given()),
    ),
    ("llama_scope", "llama_scope_lxr_8x/l3r_8x", "meta-llama/Llama-3.1-8B", "blocks.3.hook_resid_post", Given()),
    (
        "llama_scope_r1_distill",
        "llama_scope_r1_distill/l3r_800m_slimpajama",
        *("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "blocks.3.hook_resid_post", Given()),
    ),
    ("connor_rob_hook_z", "gpt2-small-hook-z-kk/blocks.3.hook_z", "gpt2", "blocks.3.attn.hook_z", Given()),
]


def published(hub: Hub, local: Path, name: str) -> Any:
    """Put a checkpoint where the list says that this release lies, with another SAE beside it; the list's entry."""
    from bench.releases import find

    entry = find(f"saelens:{name}")
    folder = local if local.is_dir() else local.parent
    stem, target = (local.stem, Path(entry.path).stem) if local.is_file() else ("", "")
    moved: Files = {}
    for file, body in files_of(folder).items():
        moved[f"{entry.path}/{file}" if local.is_dir() else file.replace(stem, target).replace(local.suffix, Path(entry.path).suffix)] = (
            body
        )
    hub.add(entry.repo, moved | {"other/params.npz": b"huge", "other/cfg.json": b"{}"})
    return entry


@pytest.mark.model  # the list lies in a package that is fetched once
@pytest.mark.parametrize(("kind", "name", "lm", "hook", "given"), CASES, ids=[f"{c[0]}-{c[1].partition('/')[0]}" for c in CASES])
def test_a_release(hub: Hub, client: Client, tmp_path: Path, kind: str, name: str, lm: str, hook: str, given: Given) -> None:
    local = write(tmp_path / "sae", kind)
    entry = published(hub, local, name)
    given = given if given.norm_scale is None else Given(norm_scale=entry.norm_scale)
    alone, said = open_checkpoint(local, given), client(f"saelens:{name}")
    assert said["code"] == 0, said
    assert (said["sha256"], said["format"]) == (alone.sae.sha256, alone.format)
    assert (said["lm"], said["hook"]) == (lm, hook)
    assert (said["facts"]["saelens_release"], said["facts"]["hub_repo"]) == (entry.release, entry.repo)
    assert f"weights from hf:{entry.repo}@{said['facts']['hub_commit']}#{entry.path}" in said["oddities"]
    assert not hub.asked(f"{entry.repo}/resolve/{said['facts']['hub_commit']}/other")
    told = [o for o in said["oddities"] if "from the list of pypi:sae-lens==" in o]
    lacking = (not alone.lm) + (not alone.hook) + (given.norm_scale is not None)
    assert len(told) == lacking, (told, alone)


@pytest.mark.model
def test_what_the_list_says_of_normalisation(hub: Hub, client: Client, tmp_path: Path) -> None:
    local = write(tmp_path / "sae", "average")
    entry = published(hub, local, "gpt2-small-mlp-tm/blocks.5.hook_mlp_out")
    said = client("saelens:gpt2-small-mlp-tm/blocks.5.hook_mlp_out")
    assert f"factor {entry.norm_scale:g} from the list" in said["normalisation"]
    assert any("center_writing_weights=True" in o for o in said["oddities"])
    mine = client("saelens:gpt2-small-mlp-tm/blocks.5.hook_mlp_out", norm_scale=2.0)
    assert mine["sha256"] == sha_of(local, Given(norm_scale=2.0)) != said["sha256"]
    plain = write(tmp_path / "mistral", "sae_lens")
    published(hub, plain, "mistral-7b-res-wg/blocks.8.hook_resid_pre")
    said = client("saelens:mistral-7b-res-wg/blocks.8.hook_resid_pre")
    assert "each token to norm sqrt(d_in)" in said["normalisation"] and "from the list" in said["normalisation"]
    assert said["sha256"] != sha_of(plain)


@pytest.mark.model
def test_releases_that_cannot_be_opened(hub: Hub, client: Client) -> None:
    before = len(hub.log)
    refused(client("saelens:gpt2-small-res-jp/x"), 2, "no release 'gpt2-small-res-jp'", "gpt2-small-res-jb")
    refused(client("saelens:gpt2-small-res-jb/blocks.80.hook_resid_pre"), 2, "no id", "blocks.8.hook_resid_pre")
    refused(client("saelens:qqq"), 2, "no release 'qqq'", "sae list --releases")
    refused(client("saelens:"), 2, "no release ''", "sae list --releases")
    for name, what in {
        "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76": "a transcoder",
        "mwhanna-qwen3-4b-transcoders/layer_0": "a transcoder",
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0": "cross-layer transcoder",
        "temporal-sae-gemma-2-2b/blocks.12.hook_resid_post": "temporal",
        "gemma-scope-2-4b-pt-transcoders-all/layer_0_width_16k_l0_big": "a transcoder",
        "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6": "embeddings",
    }.items():
        refused(client(f"saelens:{name}"), 3, what, "give an SAE")
    refused(client("saelens:qwen-scope-3-1.7b-base-w32k-l50/layer3", k=7), 3, "has k = 50 in its name", "leave out --k")
    assert len(hub.log) == before


@pytest.mark.model
def test_every_entry_of_the_list_is_understood() -> None:
    from bench import releases

    entries = [e for name, release in releases.releases().items() for e in releases._entries(name, release)]
    assert (len(releases.releases()), len(entries)) == (170, 13857)
    assert not [e for e in entries if "unknown" in e.other] and not [e for e in entries if ".." in e.path or "#" in e.path]
    silent = {e.loader for e in entries if not e.other and not releases._hook(e)}
    assert silent == {"llama_scope", "llama_scope_r1_distill", "dictionary_learning_1"}  # their files name the hook
    assert {e.overrides.get("normalize_activations") for e in entries if not e.other} == {None, "constant_norm_rescale"}
    assert all(e.repo.rpartition("-L0_")[2] == f"{e.l0:g}" for e in entries if e.loader == "qwen_scope")


@pytest.mark.model
def test_the_list_on_paper() -> None:
    from bench.releases import listing

    releases = list(listing())
    assert len(releases) == 170 and "cross-layer" in next(r for r in releases if "clt-as-per-layer" in r)
    lines = list(listing("GPT2-small-res-jb/"))
    assert len(lines) == 13
    assert (
        lines[0]
        == "saelens:gpt2-small-res-jb/blocks.0.hook_resid_pre  gpt2-small  jbloom/GPT2-Small-SAEs-Reformatted#blocks.0.hook_resid_pre"
    )
    assert not list(listing("no such text"))


# Language models and text


def saved_lm(folder: Path, seed: int) -> Path:
    from bench.lm import tiny

    lm = tiny.load(seed=seed, layers=1, d_model=16)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def test_a_language_model(hub: Hub, client: Client, tmp_path: Path) -> None:
    for seed in (0, 1):
        saved_lm(tmp_path / str(seed), seed)
    old = hub.add("me/lm", files_of(tmp_path / "0"))
    new = hub.add("me/lm", files_of(tmp_path / "1"))
    now, pinned = client("hf:me/lm", "lm"), client(f"hf:me/lm@{old}", "lm")
    assert (now["name"], now["revision"], pinned["revision"]) == ("hf:me/lm", new, old)
    assert now["sum"] == client(str(tmp_path / "1"), "lm")["sum"] != pinned["sum"]
    refused(client("hf:me/no-lm", "lm"), 4, "hf:me/no-lm cannot be opened: there is no such repository", "HF_TOKEN")
    refused(client("hf:me/lm@nowhere", "lm"), 4, "no such revision", "branch")
    hub.add("me/slow-lm", files_of(tmp_path / "0"))
    hub.faults["config.json"] = [Fault(403)] * 3
    refused(client("hf:me/slow-lm", "lm"), 4, "hf:me/slow-lm cannot be opened", "HF_TOKEN")
    hub.faults.clear()


def lines(*documents: str) -> bytes:
    return "".join(json.dumps({"text": d, "title": d[:3]}) + "\n" for d in documents).encode()


def test_text(hub: Hub, client: Client) -> None:
    pytest.importorskip("datasets")
    old = hub.add("me/text", {"train.jsonl": lines("one " + TEXT, "two " + TEXT), "test.jsonl": lines("three " + TEXT)}, "datasets")
    said = client("hf:me/text", "text")
    assert said["documents"] == ["one " + TEXT, "two " + TEXT] and old in said["identity"]
    assert client("hf:me/text#/test/title", "text")["documents"] == ["thr"]
    new = hub.add("me/text", {"train.jsonl": lines("four " + TEXT)}, "datasets")
    moved, pinned = client("hf:me/text", "text"), client(f"hf:me/text@{old}", "text")
    assert moved["documents"] == ["four " + TEXT] and new in moved["identity"]
    assert (pinned["documents"], pinned["identity"]) == (said["documents"], said["identity"].replace(new, old))
    refused(client("hf:me/no-text", "text"), 4, "no such repository", "HF_TOKEN")
    refused(client("hf:me/text@nowhere", "text"), 4, "no such revision", "branch")
    refused(client("hf:me/text#/nosplit", "text"), 4, "hf:me/text cannot be read", "split")
    refused(client("hf:me/text#/train/body", "text"), 4, "no column 'body'", "text, title")


# The command line


def test_sae_check(hub: Hub, client: Client, place: Path) -> None:
    """One command in a process of its own; the others in the client's, whose codes are those of the command line, too."""
    commit = hub.repos["models/me/one"].branches["main"]
    command = [sys.executable, "-m", "bench", "sae", "check", "hf:me/one"]
    done = subprocess.run(command, env=environment_of(hub.url, place / "cli"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and f"weights from hf:me/one@{commit}" in done.stdout, done.stderr
    cases = {
        "hf:me/one": (0, f"hf:me/one@{commit}"),
        "hf:me/one#../x": (2, "leaves the repository"),
        "hf:me/many": (3, "holds 3 SAEs"),
        "hf:me/absent": (4, "no such repository"),
    }
    for reference, (code, text) in cases.items():
        said = client(f"sae check {reference}", "cli")
        assert said["code"] == code and text in said["err" if code else "out"], said
