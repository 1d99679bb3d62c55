"""Hostile checkpoints: each way in that was found, the promises at 1 % of their figures, and in full by `-m soak`."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.adapters.files import names_in, peek_keys, read_json, read_npz, read_pt
from bench.errors import BenchError, CheckpointError, one_line
from tests.adapters_layouts import FOUR, dl, gemma, legacy, lens, linear, tensors
from tests.adapters_layouts_more import llama_scope, neel, qwen, saev
from tests.fuzz import KINDS, LEGAL, LIMIT_MIB, LIMIT_S, REFUSED, in_child, opened, started
from tests.hostile import BOMBS, carriers, lying, npy, payloads, repickled, with_members
from tests.test_adapters_malformed import refused

SLOW = ("npz, zeros", "npz, bz2", "npz, lzma", "npz, deflate", "pt, bz2", "pt, deflated", "pt, 60,000", "safetensors, 10^6", "folder")
QUICK = [n for n in BOMBS if not n.startswith(SLOW)]
STATE = linear(bias=tensors("b_dec")["b_dec"])


def ae(folder: Path) -> Path:
    return dl(folder, "AutoEncoder", STATE) / "ae.pt"


def check_fuzzed(n: int, kinds: tuple[str, ...]) -> None:
    """All outcomes are legal; several of them occur, so the files are neither all broken nor all untouched."""
    for found in started("fuzz", n, 0, *kinds):
        total = sum((Counter(c) for c in found["counts"].values()), Counter[str]())
        assert sum(total.values()) == n
        assert set(total) <= set(LEGAL), found
        assert total[REFUSED] > n // 4
        assert n - total[REFUSED] > n // 100
        assert found["slowest_s"] < LIMIT_S
        assert found["peak_mib"] < LIMIT_MIB


def check_bombs(names: list[str]) -> None:
    found = started("bombs", *names)
    assert [b["name"] for b in found] == names
    for b in found:
        assert b["outcome"] == REFUSED, b
        assert b["peak_mib"] < LIMIT_MIB, b
        assert b["seconds"] < LIMIT_S, b


def check_payloads(names: list[str]) -> None:
    for p in started("payloads", *names):
        assert p["live"], f"{p['name']} does nothing, so it proves nothing"
        assert set(p["outcomes"]) <= {REFUSED, "loads"}, p
        assert p["outcomes"]["loads"] <= 2, p  # those that carry it where no reader looks


def test_fuzzed_checkpoints_load_or_are_refused() -> None:
    check_fuzzed(100, KINDS)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_fuzzed_checkpoints_of_each_kind(kind: str) -> None:
    check_fuzzed(10_000, (kind,))


def test_bombs_take_little_memory_and_time() -> None:
    assert len(QUICK) >= 20
    check_bombs(QUICK)


@pytest.mark.soak
def test_every_bomb() -> None:
    check_bombs(list(BOMBS))


def test_payloads_are_live_and_never_fire() -> None:
    check_payloads(["os.system", "INST"])


@pytest.mark.soak
def test_every_payload() -> None:
    names = list(payloads(Path("x")))
    assert len(names) >= 25
    check_payloads(names)


def test_no_payload_fires_from_any_container(tmp_path: Path) -> None:
    marker = tmp_path / "fired"
    for i, (name, data) in enumerate(payloads(marker).items()):
        made = carriers(tmp_path / str(i), data)
        for path in (made[c] for c in ("archive", "archive, twin in capitals", "torch of 2019 before the archive", "headed")):
            with pytest.raises(CheckpointError):
                open_checkpoint(path, Given())
        assert not marker.exists(), name


TRICKS: dict[str, Callable[[bytes], bytes]] = {
    "data before": lambda d: b"\x80\x02}." + d,
    "data behind": lambda d: d + b"x",
    "comment": lambda d: d[:-2] + struct.pack("<H", 3) + b"abc",
    "comment that is an archive": lambda d: d[:-2] + struct.pack("<H", len(d)) + d,
    "two archives": lambda d: d + d,
    "fewer members than the directory has": lambda d: d[:-14] + struct.pack("<HH", 1, 1) + d[-10:],
    "flag of encryption": lambda d: _patched(d, 8, b"\1\0"),
    "other compression": lambda d: _patched(d, 10, b"\x0c\0"),
    "other name in the local header": lambda d: d.replace(b"data.pkl", b"data.pkx", 1),
    "other compression in the local header": lambda d: d[:8] + b"\x08\0" + d[10:],
    "capitals": lambda d: with_members(d, {_first(d).replace("data.pkl", "DATA.PKL"): b"x"}),
    "backslash": lambda d: with_members(d, {"a\\..\\b": b"x"}),
    "escape code": lambda d: with_members(d, {"a\x1b[2J": b"x"}),
    "not ASCII": lambda d: with_members(d, {"ä": b"x"}),
    "NUL in a name": lambda d: d.replace(b"/version", b"/versio\0"),
    "absolute": lambda d: with_members(d, {"/etc/x": b"x"}),
}


def _first(data: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return z.namelist()[0]


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    """A field of the first entry of the directory."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        begin = z.start_dir + at
    return data[:begin] + value + data[begin + len(value) :]


@pytest.mark.parametrize("name", TRICKS)
def test_archives_that_readers_could_read_differently_are_refused(name: str, tmp_path: Path) -> None:
    path = ae(tmp_path)
    with zipfile.ZipFile(path) as z:
        z.testzip()
    plain = with_members(path.read_bytes(), {})  # written by Python: the tricks know its layout
    path.write_bytes(plain)
    read_pt(tmp_path, "ae.pt")
    changed = TRICKS[name](plain)
    assert changed != plain
    path.write_bytes(changed)
    cause = refused(tmp_path).cause
    words = ("one zip archive", "members", "compressed or encrypted", "overlap", "does not hold")
    assert any(w in cause for w in words), cause


def test_sizes_that_lie_unpack_to_no_more_than_they_say(tmp_path: Path) -> None:
    gemma(tmp_path)
    path = tmp_path / "params.npz"
    data = with_members(path.read_bytes(), {"x.npy": bytes(2**22)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(lying(data, "x.npy", 200))
    refused(tmp_path)


@pytest.mark.parametrize(
    ("shape", "descr"), [("(2,)", "|O"), ("(-2, -3)", "<f4"), ("(1099511627776,)", "|S0"), ("(3,)", "<U1"), ("(3,)", "<c8")]
)
def test_arrays_of_no_plain_numbers_are_refused(shape: str, descr: str, tmp_path: Path) -> None:
    path = gemma(tmp_path) / "params.npz"
    path.write_bytes(with_members(path.read_bytes(), {"W_enc.npy": npy(shape, descr) + bytes(64)}))
    with pytest.raises(CheckpointError, match=r"Python objects or is shorter|not numbers"):
        read_npz(tmp_path, "params.npz")


def test_a_pickle_is_refused_for_more_than_a_state_dict_needs(tmp_path: Path) -> None:
    path = ae(tmp_path)
    whole = path.read_bytes()
    bodies = {
        "far more than": b"\x80\x02})" + b"\x85" * 5000 + b"K\x01s.",
        "one small data.pkl": b"\x80\x02}" + b"N0" * 200_000 + b".",
        "LONG4": b"\x80\x02}" + b"X\x01\x00\x00\x00k\x8b" + struct.pack("<i", 9) + b"\x7f" * 9 + b"s.",
        "Python objects": b"\x80\x04}\x94.",
        "no dictionary": b"\x80\x02].",
    }
    for cause, body in bodies.items():
        path.write_bytes(repickled(whole, lambda _, b=body: b))
        with pytest.raises(CheckpointError, match=cause):
            read_pt(tmp_path, "ae.pt")


def test_values_that_are_no_state_stand_for_themselves(tmp_path: Path) -> None:
    """Shared, nested and endless values become something small; tensors, numbers and words stay."""
    inner: dict[str, object] = {"a": torch.ones(2)}
    loop: dict[str, object] = {"x": 1}
    loop["me"] = loop
    deep: object = 1
    for _ in range(8):
        deep = {"d": deep}
    odd: dict[str, object] = {"lists": [[1], [2]], "ints": {0: 1}, "inner": inner, "again": inner, "list": [1, "a", None]}
    odd |= {"loop": loop, "deep": deep, "big": 2**63}
    torch.save(odd, tmp_path / "x.pt")
    found = read_pt(tmp_path, "x.pt")
    assert found["inner"] is found["again"]
    assert torch.equal(found["inner"]["a"], torch.ones(2))
    assert found["list"] == [1, "a", None]
    assert {n: found[n].kind for n in ("lists", "ints", "big")} == {"lists": "list", "ints": "dict", "big": "int"}
    assert found["loop"]["me"].kind == "dict"
    assert len(repr(found)) < 1500
    torch.save({"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="twice"):
        read_pt(tmp_path, "x.pt")


def test_holes_count_as_nothing(tmp_path: Path) -> None:
    folder = legacy(tmp_path, tensors(*FOUR))
    path = folder / "sae_weights.safetensors"
    rest = 2**28
    header = json.dumps({"b_dec": {"dtype": "U8", "shape": [rest - 264], "data_offsets": [0, rest - 264]}}).encode().ljust(256)
    path.write_bytes(struct.pack("<Q", 256) + header)
    os.truncate(path, rest)
    if path.stat().st_blocks * 512 < rest // 8:  # a file system that has holes
        assert "declares 256 MiB in a file of 0 MiB" in refused(folder).cause


def test_every_file_of_a_checkpoint_stays_in_its_folder(tmp_path: Path) -> None:
    """Also the folder between, and what is only looked into."""
    outside, folder = tmp_path / "outside", tmp_path / "ckpt"
    outside.mkdir()
    folder.mkdir()
    llama_scope(folder)
    (folder / "checkpoints").rename(outside / "checkpoints")
    (folder / "checkpoints").symlink_to(outside / "checkpoints")
    assert "leaves its folder" in refused(folder).cause
    alone = qwen(outside)
    (folder / "layer3.sae.pt").symlink_to(alone)
    assert peek_keys(alone)
    assert not peek_keys(folder / "layer3.sae.pt")
    assert "leaves its folder" in refused(folder / "layer3.sae.pt").cause
    neel(outside)
    (folder / "v1.pt").symlink_to(outside / "v1.pt")
    assert "leaves its folder" in refused(folder / "v1.pt").cause


def test_only_the_hubs_own_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    for name, works in (("models--a--b", True), ("downloads", False)):
        snapshot = tmp_path / name / "snapshots/abc"
        snapshot.mkdir(parents=True)
        lens(snapshot, tensors(*FOUR), architecture="standard")
        (tmp_path / name / "blobs").mkdir()
        (snapshot / "cfg.json").rename(tmp_path / name / "blobs/x")
        (snapshot / "cfg.json").symlink_to("../../blobs/x")
        if works:
            open_checkpoint(snapshot, Given())
        else:
            assert "leaves its folder" in refused(snapshot).cause


def test_things_that_are_no_files_are_refused_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Callable[[Path], object]] = {"fifo": os.mkfifo, "dir": Path.mkdir, "loop": lambda p: p.symlink_to(p)}
    made["zero"] = lambda p: p.symlink_to("/dev/zero")
    for name, make in made.items():
        for file in ("sae_weights.safetensors", "ae.pt", "params.npz", "layer3.sae.pt", "cfg.json", "config.yaml"):
            folder = tmp_path / name / file
            folder.mkdir(parents=True)
            lens(folder, tensors(*FOUR), architecture="standard")
            (folder / file).unlink(missing_ok=True)
            make(folder / file)
            for adapter in ADAPTERS:
                adapter.sniff(folder)
                adapter.sniff(folder / file)
            refused(folder / file)
            if file in ("sae_weights.safetensors", "cfg.json"):
                refused(folder)
    with socket.socket(socket.AF_UNIX) as s:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        s.bind("ae.pt")
        refused(tmp_path / "ae.pt")
    for path in (Path("/dev/zero"), Path("/dev/stdin"), Path("/proc/self/mem")):
        refused(path)


def test_texts_from_a_file_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2J\x07\nb\u202ec\x9b31m" + "x" * 5000
    folder, strange = tmp_path / "na\x1b[2Jme", tmp_path / "na\x1b[2Jme\udcff"
    folder.mkdir()
    strange.mkdir()
    assert open_checkpoint(gemma(strange), Given()).name == "na\\x1b[2Jme\\udcff"
    lens(folder, tensors(*FOUR), architecture="standard", meta={"model_name": evil, "hook_name": evil, "revision": evil})
    loaded = open_checkpoint(folder, Given())
    texts = [loaded.name, loaded.lm, loaded.hook, loaded.normalisation, *loaded.oddities, loaded.facts["revision"]]
    assert all(t.isprintable() and len(t) <= 250 for t in texts)
    assert loaded.lm.startswith("a\\x1b[2J\\x07 b\\u202ec\\x9b31mx")
    legacy(folder, tensors(*FOUR), architecture=evil, apply_b_dec_to_input=evil)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, Given())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 4500
    torch.save(STATE | {evil: torch.ones(1)}, ae(tmp_path).with_name("ae.pt"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path, Given())
    assert str(caught.value).isprintable()
    str(caught.value).encode()


def test_one_line_keeps_what_can_be_read() -> None:
    assert one_line("  Zürich →\n日本 \t x ") == "Zürich → 日本 x"
    assert one_line("\x00\x1b\u200b\ud800") == "\\x00\\x1b\\u200b\\ud800"
    assert one_line("a" * 100 + "z", 40) == "a" * 20 + " … " + "a" * 9 + "z"
    error = BenchError("a\x1bb\nc", "d\u202e")
    assert (error.cause, error.remedy, error.args) == ("a\\x1bb c", "d\\u202e", ("a\\x1bb c",))


def test_configs_are_small_and_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"x": "y" * 2**20}))
    with pytest.raises(CheckpointError, match="larger than 1 MiB"):
        read_json(tmp_path, "a.json")
    (tmp_path / "a.json").write_bytes(json.dumps({"x": 1}).encode("utf-16"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path, "a.json")


def test_a_crowded_folder_is_looked_at_within_bounds(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:04}.pt").touch()
        (tmp_path / f"d{i:04}").mkdir()
    assert names_in(tmp_path, (".pt",), 7) == sorted(names_in(tmp_path, (".pt",), 7))
    assert len(names_in(tmp_path, (".pt",), 7)) == 7
    assert "0000.pt is empty" in refused(tmp_path).cause


def test_a_headed_file_is_checked_before_it_is_taken_into_memory(tmp_path: Path) -> None:
    path = saev(tmp_path, "Relu")
    path.write_bytes(path.read_bytes() + b"\0")
    assert "one zip archive" in refused(path).cause
    path.write_bytes(b"[1]\nPK")
    refused(path)


def test_numbers_of_another_byte_order_are_refused(tmp_path: Path) -> None:
    path = gemma(tmp_path) / "params.npz"
    with np.load(path) as z:
        arrays = {n: z[n].astype(">f4") for n in z.files}
    np.savez(path, allow_pickle=False, **arrays)
    refused(tmp_path)


def test_files_that_may_not_be_read_are_refused() -> None:
    """In a process that is not allowed to; the administrator would be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)

        def look() -> dict[str, object]:
            if os.getuid() == 0:
                os.setuid(65534)
            return opened(folder)

        for secret in ("cfg.json", "sae_weights.safetensors"):
            legacy(folder, tensors(*FOUR))
            (folder / secret).chmod(0)
            found = in_child(look)
            assert found["outcome"] == REFUSED, found
            assert "PermissionError" in found["why"]
            (folder / secret).unlink()
