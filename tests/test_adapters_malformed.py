"""Damaged and hostile checkpoints: one `CheckpointError`, nothing executed, nothing large allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.adapters.files import finite
from bench.errors import CheckpointError

FIXTURES = Path(__file__).with_name("fixtures")
LENS = (FIXTURES / "sae_lens/standard/ckpt", "sae_weights.safetensors", "cfg.json")
SPARSIFY = (FIXTURES / "sparsify/topk/ckpt/layers.3", "sae.safetensors", "cfg.json")
DL = (FIXTURES / "dictionary_learning/batch_topk/ckpt/resid_post_layer_3/trainer_0", "ae.pt", "config.json")
GEMMA = (FIXTURES / "gemma_scope/res_npz/ckpt/layer_12/width_16k/average_l0_82", "params.npz", "")
ALL = {"lens": LENS, "sparsify": SPARSIFY, "dl": DL, "gemma": GEMMA}
MUTATIONS = 120


def copy(which: str, to: Path) -> Path:
    shutil.copytree(ALL[which][0], to, dirs_exist_ok=True)
    return to


def refused(path: Path) -> CheckpointError:
    """The error, which must have one line of cause and one of remedy."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, Given())
    assert caught.value.cause
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
    return caught.value


def state(which: str, folder: Path) -> dict[str, Any]:
    path = folder / ALL[which][1]
    if which == "gemma":
        with np.load(path) as z:
            return {k: torch.from_numpy(z[k]) for k in z.files}
    return torch.load(path, weights_only=True) if which == "dl" else load_file(path)


def write(which: str, folder: Path, tensors: dict[str, Any]) -> None:
    path = folder / ALL[which][1]
    if which == "gemma":
        np.savez(path, allow_pickle=False, **{k: v.numpy() for k, v in tensors.items()})
    elif which == "dl":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


@pytest.mark.parametrize("which", ALL)
def test_truncated_files_are_refused(which: str, tmp_path: Path) -> None:
    folder = copy(which, tmp_path)
    for name in filter(None, ALL[which][1:]):
        whole = (folder / name).read_bytes()
        for keep in (0, 1, 7, 8, 9, len(whole) // 3, len(whole) - 1):
            if name.endswith(".json") and whole[keep:].strip() == b"":
                continue
            (folder / name).write_bytes(whole[:keep])
            refused(folder)
        (folder / name).write_bytes(whole)
    open_checkpoint(folder, Given())


@pytest.mark.parametrize("which", ALL)
def test_each_tensor_is_needed_finite_and_of_its_shape(which: str, tmp_path: Path) -> None:
    folder = copy(which, tmp_path)
    good = state(which, folder)
    for name, t in good.items():
        if name == "k":
            continue  # a whole number that only AutoEncoderTopK reads
        flat = t.reshape(-1)
        broken: list[torch.Tensor] = [flat.repeat(2), t[None, None], t.to(torch.int32), torch.zeros(0), torch.full_like(t, float("nan"))]
        broken.append(torch.cat([flat[:-1], torch.tensor([float("inf")])]).reshape(t.shape))
        broken += [t.T.contiguous(), t[:, :-1].contiguous(), t[:-1].contiguous()] if t.ndim == 2 else []
        for replacement in broken:
            write(which, folder, good | {name: replacement})
            refused(folder)
        write(which, folder, {k: v for k, v in good.items() if k != name})
        refused(folder)


def mutate(data: bytes, g: np.random.Generator) -> bytes:
    """One of: flipped bits, a cut, zeros, a repeated or removed piece, random bytes; half of them near the start or end."""
    out = bytearray(data)
    edge = min(len(out), 600)
    at = int(g.choice([g.integers(edge), len(out) - 1 - g.integers(edge), g.integers(len(out)), g.integers(len(out))]))
    size = int(g.integers(1, 64))
    kind = int(g.integers(6))
    if kind == 0:
        for _ in range(int(g.integers(1, 6))):
            out[int(g.integers(at, min(at + 64, len(out))))] ^= 1 << int(g.integers(8))
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at : at + size] = bytes(min(size, len(out) - at))
    elif kind == 3:
        out[at:at] = out[at : at + size]
    elif kind == 4:
        del out[at : at + size]
    else:
        out[at : at + size] = g.bytes(min(size, len(out) - at))
    return bytes(out)


@pytest.mark.parametrize(("which", "file"), [(w, f) for w, (_, *fs) in ALL.items() for f in fs if f])
def test_mutated_files_load_or_are_refused(which: str, file: str, tmp_path: Path) -> None:
    folder = copy(which, tmp_path)
    whole, g = (folder / file).read_bytes(), np.random.default_rng([7, len(which), len(file)])
    x, outcomes = torch.ones(2, 32), {"refused": 0, "loaded": 0}
    for _ in range(MUTATIONS):
        (folder / file).write_bytes(mutate(whole, g))
        for adapter in ADAPTERS:
            adapter.sniff(folder)
        try:
            sae = open_checkpoint(folder, Given()).sae
        except CheckpointError as e:
            outcomes["refused"] += 1
            assert e.remedy
        else:
            outcomes["loaded"] += 1
            assert sae.encode(x).shape == (2, 128)
    assert outcomes["refused"] > MUTATIONS // 10


class Fires:
    """A pickle that calls something when it is read."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


def payloads(marker: Path) -> dict[str, object]:
    touch, text = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    calls: dict[str, object] = {
        "system": Fires(os.system, touch),
        "popen": Fires(os.popen, touch),
        "eval": Fires(eval, text),
        "exec": Fires(exec, text),
        "open": Fires(open, str(marker), "w"),
        "mkdir": Fires(os.mkdir, str(marker)),
        "path": Fires(Path.touch, marker),
        "load": Fires(pickle.loads, pickle.dumps(Fires(os.mkdir, str(marker)))),
        "allocate": Fires(bytearray, 2**36),
        "tensor": Fires(torch.Tensor, 2**20, 2**20),
    }
    return calls


def with_pickle(source: Path, to: Path, data: bytes) -> None:
    """A torch archive with another pickle inside."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", list(payloads(Path("x"))))
def test_pickles_that_do_something_are_never_run(name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "fired"
    payload = payloads(marker)[name]
    lens, dl, gemma = (copy(w, tmp_path / w) for w in ("lens", "dl", "gemma"))
    data = pickle.dumps({"encoder.weight": payload}, protocol)
    with_pickle(DL[0] / "ae.pt", dl / "ae.pt", data)
    assert "Python objects" in refused(dl).cause
    (dl / "ae.pt").write_bytes(data)
    refused(dl)
    (lens / LENS[1]).write_bytes(data)
    refused(lens)
    (gemma / GEMMA[1]).write_bytes(data)
    refused(gemma)
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    with np.load(GEMMA[0] / GEMMA[1]) as z:
        arrays = {k: z[k] for k in z.files if k != "W_enc"}
    np.savez(gemma / GEMMA[1], allow_pickle=False, **arrays)
    with zipfile.ZipFile(gemma / GEMMA[1], "a") as z:
        z.writestr("W_enc.npy", buffer.getvalue())
    assert "Python objects" in refused(gemma).cause
    assert not marker.exists()


def zipped(path: Path, members: dict[str, bytes], compress: bool = True) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as z:
        for name, data in members.items():
            z.writestr(name, data)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    dl, gemma, lens = (copy(w, tmp_path / w) for w in ("dl", "gemma", "lens"))
    zeros = bytes(100 * 2**20)
    zipped(gemma / GEMMA[1], {"W_enc.npy": zeros})
    zipped(dl / DL[1], {"ae/data.pkl": pickle.dumps({}, 2), "ae/data/0": zeros})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "declares 100 MiB" in refused(gemma).cause
    assert "compressed" in refused(dl).cause
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)})
    zipped(gemma / GEMMA[1], {"W_enc.npy": b"\x93NUMPY\x01\x00" + buffer.getvalue().removeprefix(b"\x93NUMPY\x01\x00")})
    assert "shorter than it says" in refused(gemma).cause
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    for length in (len(header), 2**60, 2**64 - 1):
        (lens / LENS[1]).write_bytes(struct.pack("<Q", length) + header)
        refused(lens)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_tensors_that_claim_more_than_is_stored_are_refused(tmp_path: Path) -> None:
    dl = copy("dl", tmp_path)
    good = state("dl", dl)
    write("dl", dl, good | {"encoder.bias": torch.zeros(1).expand(2**40)})
    assert "more numbers than are stored" in refused(dl).cause
    for strange in (torch.zeros(128, device="meta"), torch.zeros(128).to_sparse(), torch.zeros(128, dtype=torch.complex64)):
        write("dl", dl, good | {"encoder.bias": strange})
        refused(dl)


@pytest.mark.parametrize("name", ["../W_enc.npy", "/tmp/W_enc.npy", "a/../../W_enc.npy", "..\\W_enc.npy"])
def test_names_that_leave_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    dl, gemma = copy("dl", tmp_path / "dl"), copy("gemma", tmp_path / "gemma")
    for path in (dl / DL[1], gemma / GEMMA[1]):
        with zipfile.ZipFile(path, "a") as z:
            z.writestr(name, b"x")
        assert "leave the archive" in refused(path.parent).cause


def test_links_out_of_the_folder_are_refused_but_the_hub_cache_works(tmp_path: Path) -> None:
    source, weights, config = LENS
    outside = tmp_path / "outside"
    for link in (weights, config):
        folder = copy("lens", tmp_path / f"linked-{link}")
        outside.mkdir(exist_ok=True)
        (folder / link).rename(outside / link)
        (folder / link).symlink_to(outside / link)
        assert "leaves its folder" in refused(folder).cause
    blobs, snapshot = tmp_path / "models--x/blobs", tmp_path / "models--x/snapshots/abc/layer_1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (weights, config):
        shutil.copy(source / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(Path("../../../blobs") / f"hash-{name}")
    assert open_checkpoint(snapshot, Given()).format == "sae_lens"
    (tmp_path / "alias").symlink_to(source)
    assert open_checkpoint(tmp_path / "alias", Given()).format == "sae_lens"


@pytest.mark.parametrize(
    "text", ["[]", "3", '"x"', "null", "{", "[" * 100_000, '{"metadata": 3}', '{"metadata": null}', "\xff\x00", "9" * 5000]
)
def test_configs_of_another_kind_are_refused(text: str, tmp_path: Path) -> None:
    for which in ("lens", "sparsify", "dl"):
        folder = copy(which, tmp_path / which)
        (folder / ALL[which][2]).write_text(text, encoding="latin-1")
        refused(folder)


@pytest.mark.parametrize("which", ["lens", "sparsify", "dl"])
def test_config_values_of_the_wrong_kind_load_or_are_refused(which: str, tmp_path: Path) -> None:
    folder = copy(which, tmp_path)
    path = folder / ALL[which][2]
    good = json.loads(path.read_text())
    sections = [(good, k) for k in good] + [(v, k) for v in good.values() if isinstance(v, dict) for k in v]
    for section, key in sections:
        before = section[key]
        for strange in (None, [], {}, "x", -1, 1e308, True):
            section[key] = strange
            path.write_text(json.dumps(good))
            try:
                open_checkpoint(folder, Given())
            except CheckpointError as e:
                assert e.remedy
        section[key] = before


def test_paths_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    os.mkfifo(tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text("{}")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "sae_weights.safetensors", Path("a\0b"), Path("x" * 300)):
        refused(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 500, -1])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(bad: float, at: int) -> None:
    t = torch.randn(10, 101, generator=torch.Generator().manual_seed(0))
    assert finite(t) and finite(torch.full((3,), torch.finfo(torch.float32).max)) and finite(torch.tensor(0.0))
    t.view(-1)[at] = bad
    assert not finite(t) and not finite(t.view(-1)[at])
