"""Hostile checkpoints by name: pickles that do something when they are read, and files that unpack to far more than they are."""

from __future__ import annotations

import functools
import importlib
import io
import json
import operator
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.adapters_layouts import D_IN, FOUR, dl, gemma, legacy, lens, linear, tensors
from tests.adapters_layouts_more import saev


class Calls:
    """Pickles as a call, made when the pickle is read."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles, each of which makes a file or folder at `marker` by another way."""
    at, touch, code = str(marker), f"touch '{marker}'", f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Calls(os.mkdir, at))
    calls: dict[str, object] = {
        "os.system": Calls(os.system, touch),
        "os.popen": Calls(os.popen, touch),
        "os.mkdir": Calls(os.mkdir, at),
        "os.spawnl": Calls(os.spawnl, os.P_WAIT, "/usr/bin/env", "env", "touch", at),
        "subprocess.run": Calls(subprocess.run, ["touch", at]),
        "subprocess.getoutput": Calls(subprocess.getoutput, touch),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, at, "w"),
        "io.FileIO": Calls(io.FileIO, at, "w"),
        "Path.touch": Calls(Path.touch, marker),
        "shutil.copy": Calls(shutil.copy, "/etc/hostname", at),
        "pickle.loads": Calls(pickle.loads, inner),
        "torch.load": Calls(functools.partial(torch.load, weights_only=False), Calls(io.BytesIO, _saved(Calls(os.mkdir, at)))),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, _saved(Calls(os.mkdir, at))),
        "torch.save": Calls(torch.save, {}, at),
        "numpy.save": Calls(np.save, at, np.zeros(1)),
        "numpy.memmap": Calls(np.memmap, at, "float32", "w+", 0, 4),
        "functools.partial": Calls(functools.partial(os.mkdir, at)),
        "operator.methodcaller": Calls(operator.methodcaller("touch"), marker),
        "map in list": Calls(list, Calls(map, os.mkdir, [at])),
        "timeit.timeit": Calls(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "runpy._run_code": Calls(runpy._run_code, code, {}),
        "importlib and getattr": Calls(Calls(getattr, Calls(importlib.import_module, "os"), "mkdir"), at),
        "zipfile.ZipFile": Calls(zipfile.ZipFile, at, "w"),
    }
    made = {name: pickle.dumps(call, 4) for name, call in calls.items() if name != "importlib and getattr"}
    made["importlib and getattr"] = (
        b"\x80\x02cbuiltins\ngetattr\ncimportlib\nimport_module\n"
        + _text("os")
        + b"\x85R"
        + _text("mkdir")
        + b"\x86R"
        + (_text(at) + b"\x85R.")
    )
    return made | _by_hand(at, touch)


def _by_hand(at: str, touch: str) -> dict[str, bytes]:
    """The same done with the operations that no pickler writes by itself any more."""
    path = _text(at)
    harmless = pickle.dumps({}, 2)
    return {
        "GLOBAL": b"\x80\x02cos\nmkdir\n" + path + b"\x85R.",
        "INST": b"(S'" + touch.replace("'", "\\'").encode() + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cio\nFileIO\n" + path + _text("w") + b"o.",
        "STACK_GLOBAL": b"\x80\x04" + _text("os") + _text("mkdir") + b"\x93" + path + b"\x85R.",
        "NEWOBJ": b"\x80\x02czipfile\nZipFile\n)\x81}(" + _text("x") + b"K\x01ub0cio\nFileIO\n" + path + _text("w") + b"\x86R.",
        "memo": b"\x80\x02cos\nmkdir\nq\x000h\x00" + path + b"\x85R.",
        "hidden by POP": b"\x80\x02cos\nmkdir\n" + path + b"\x85R0}.",
        "as a key": b"\x80\x02}cos\nmkdir\n" + path + b"\x85RK\x01s.",
        "in a persistent id": b"\x80\x02("
        + _text("storage")
        + b"cos\nmkdir\n"
        + path
        + b"\x85R"
        + _text("0")
        + _text("cpu")
        + b"K\x01t0}.",
        "as OrderedDict's items": b"\x80\x02ccollections\nOrderedDict\ncbuiltins\nmap\ncos\nmkdir\n" + path + b"\x85\x86R\x85R.",
        "as hooks": b"\x80\x02ccollections\nOrderedDict\n)R}" + _text("h") + b"cos\nmkdir\n" + path + b"\x85Rsb.",
        "protocol 0": b"cos\nmkdir\n(V" + at.encode() + b"\ntR.",
        "protocol 5": b"\x80\x05\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nmkdir\n" + path + b"\x85R.",
        "harmless first": harmless[:-1] + b"0cos\nmkdir\n" + path + b"\x85R.",
    }


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def carriers(folder: Path, data: bytes) -> dict[str, Path]:
    """Checkpoints of every container kind with a pickle wherever one can be; each must be opened, none may run it."""
    made: dict[str, Path] = {}

    def place(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    def in_dl(name: str, change: Callable[[bytes], bytes]) -> None:
        made[name] = dl(place(name), "AutoEncoder", linear(bias=tensors("b_dec")["b_dec"]))
        (made[name] / "ae.pt").write_bytes(change((made[name] / "ae.pt").read_bytes()))

    magic = b"".join(pickle.dumps(v, 2) for v in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    in_dl("archive", lambda old: repickled(old, lambda _: data))
    in_dl("archive, behind STOP", lambda old: repickled(old, lambda p: p + data))
    in_dl("archive, twin in capitals", lambda old: with_members(old, {_root(old) + "/DATA.PKL": data}))
    in_dl("archive, TorchScript", lambda old: with_members(old, {_root(old) + "/constants.pkl": data}))
    in_dl("archive, further member", lambda old: with_members(old, {_root(old) + "/code.pkl": data}))
    in_dl("bare pickle", lambda _: data)
    in_dl("before the archive", lambda old: data + old)
    in_dl("torch of 2019", lambda _: magic + data + pickle.dumps([], 2))
    in_dl("torch of 2019 before the archive", lambda old: magic + data + pickle.dumps([], 2) + old)
    in_dl("second archive behind", lambda old: old + repickled(old, lambda _: data))
    in_dl("second archive before", lambda old: repickled(old, lambda _: data) + old)
    in_dl("comment", lambda old: old[:-2] + struct.pack("<H", len(data)) + data)
    made["headed"] = saev(place("headed"), "Relu")
    head, _, rest = made["headed"].read_bytes().partition(b"\n")
    made["headed"].write_bytes(head + b"\n" + repickled(rest, lambda _: data))
    made["npz"] = gemma(place("npz"))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n"
    (made["npz"] / "params.npz").write_bytes(with_members((made["npz"] / "params.npz").read_bytes(), {"extra.npy": header + data}))
    made["safetensors"] = lens(place("safetensors"), tensors(*FOUR), architecture="standard")
    (made["safetensors"] / "sae_weights.safetensors").write_bytes(data)
    made["config"] = lens(place("config"), tensors(*FOUR), architecture="standard")
    (made["config"] / "cfg.json").write_bytes(data)
    made["single file"] = place("single file") / "layer_3.sae.pt"
    made["single file"].write_bytes(repickled(_saved(tensors(*FOUR)), lambda _: data))
    made["pkl"] = place("pkl") / "sae.pkl"
    made["pkl"].write_bytes(data)
    return made


def _root(data: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return z.namelist()[0].split("/")[0]


def repickled(data: bytes, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch archive with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("/data.pkl") else old.read(name))
    return buffer.getvalue()


def with_members(data: bytes, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with further members, which replace those of the same name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in (n for n in old.namelist() if n not in members):
            new.writestr(name, old.read(name))
        for name, more in members.items():
            new.writestr(name, more, method)
    return buffer.getvalue()


def lying(data: bytes, member: str, says: int) -> bytes:
    """An archive whose headers say that a member unpacks to so many bytes."""
    out = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        info, directory = z.getinfo(member), z.start_dir
    out[info.header_offset + 22 : info.header_offset + 26] = struct.pack("<I", says)
    at = out.index(member.encode(), directory) - 46
    out[at + 24 : at + 28] = struct.pack("<I", says)
    return bytes(out)


def shared_dicts(depth: int, width: int = 2) -> bytes:
    """Dictionaries that hold the one before several times: few bytes, width^depth paths."""
    body = b"}q\x00"
    for i in range(1, depth):
        body = body + b"}q" + bytes([i]) + b"(" + b"".join(_text(str(j)) + b"h" + bytes([i - 1]) for j in range(width)) + b"u"
    return b"\x80\x02" + body + b"."


def shared_lists(depth: int) -> bytes:
    """Items of a dictionary: `l1` is ten times `l0`, and so on. Few bytes, and `postact_fn` takes 10^depth to print."""
    items = (_text(f"l{i}") + b"]q" + bytes([i]) + b"(" + (b"h" + bytes([max(i - 1, 0)])) * (10 if i else 0) + b"es" for i in range(depth))
    return b"".join(items) + _text("postact_fn") + b"h" + bytes([depth - 1]) + b"s"


def npy(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _zeros() -> bytes:
    return npy(f"({LARGE // 4},)") + bytes(LARGE)


def _npz(member: Callable[[], bytes], method: int = zipfile.ZIP_DEFLATED, says: int | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = gemma(folder) / "params.npz"
        data = with_members(path.read_bytes(), {"W_enc.npy": member()}, method)
        path.write_bytes(data if says is None else lying(data, "W_enc.npy", says))
        return folder

    return write


def _dl(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        dl(folder, "AutoEncoder", linear(bias=tensors("b_dec")["b_dec"]))
        (folder / "ae.pt").write_bytes(change((folder / "ae.pt").read_bytes()))
        return folder

    return write


def _single(data: Callable[[], bytes], name: str = "layer_3.sae.pt") -> Callable[[Path], Path]:
    """A pickle in an archive whose name alone makes a reader open it."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(repickled(_saved({}), lambda _: data()))
        return folder / name

    return write


def _text_file(name: str, text: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lens(folder, tensors(*FOUR), architecture="standard")
        (folder / name).write_bytes(text())
        return folder

    return write


def _header(header: Callable[[], bytes], length: int | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lens(folder, tensors(*FOUR), architecture="standard")
        text = header()
        (folder / "sae_weights.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
        return folder

    return write


def _sparse(name: str, size: int, write: Callable[[Path], object], start: Callable[[int], bytes] | None = None) -> Callable[[Path], Path]:
    """A file that is a hole of that size behind what was there or another start."""

    def made(folder: Path) -> Path:
        write(folder)
        with (folder / name).open("r+b") as f:
            if start:
                f.write(start(size))
            f.truncate(size)
        return folder

    return made


def _one_tensor(size: int) -> bytes:
    """The start of a safetensors file of `size` bytes that holds one tensor in all the rest."""
    rest = size - 8 - 256
    return struct.pack("<Q", 256) + json.dumps({"b_dec": {"dtype": "U8", "shape": [rest], "data_offsets": [0, rest]}}).encode().ljust(256)


def _many_tensors(n: int) -> bytes:
    return json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n)}).encode()


def _many_members(n: int) -> Callable[[bytes], bytes]:
    return lambda old: with_members(old, {f"{_root(old)}/data/x{i}": b"" for i in range(n)})


def _stretched(folder: Path) -> Path:
    return dl(folder, "AutoEncoder", linear(bias=tensors("b_dec")["b_dec"]) | {"encoder.bias": torch.zeros(1).expand(2**40)})


def _overlapping(folder: Path) -> Path:
    """Every entry of the directory points at the same 30 MiB of data."""
    path = gemma(folder) / "params.npz"
    one = io.BytesIO()
    with zipfile.ZipFile(one, "w") as z:
        z.writestr("W_enc.npy", npy("(7864320,)") + bytes(30 * 2**20))
    data = one.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        start = z.start_dir
    entry, end = data[start:-22], data[-22:]
    names = [b"W_enc.npy", b"W_dec.npy", b"b_enc.npy", b"b_dec.npy"]
    entries = b"".join(entry.replace(b"W_enc.npy", n) for n in names)
    end = end[:8] + struct.pack("<HHI", len(names), len(names), len(entries)) + end[16:]
    path.write_bytes(data[:start] + entries + end)
    return folder


def _config_bomb(folder: Path) -> Path:
    lens(folder, tensors(*FOUR), architecture="standard")
    (folder / "config.yaml").write_bytes(b"")
    with (folder / "config.yaml").open("r+b") as f:
        f.truncate(4 * 2**30)
    (folder / "cfg.json").unlink()
    return folder


def _crowd(folder: Path) -> Path:
    for i in range(100_000):
        (folder / f"{i}.pt").touch()
    return folder


def _tree(folder: Path) -> Path:
    for i in range(20_000):
        (folder / str(i)).mkdir()
    return folder


def _openai_lists(folder: Path) -> Path:
    """A `postact_fn` that an error message would print."""
    names = {"pre_bias": (D_IN,), "latent_bias": (40,), "encoder.weight": (40, D_IN), "decoder.weight": (D_IN, 40)}
    state = {n: torch.ones(shape) for n, shape in names.items()} | {"activation": "TopK"}
    more = _text("activation_state_dict") + b"}" + _text("k") + b"K\x05s" + shared_lists(12) + b"s"
    (folder / "3.pt").write_bytes(repickled(_saved(state), lambda p: p[:-1] + more + b"."))
    return folder / "3.pt"


GIB = 2**30
LARGE = 640 * 2**20
BOMBS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "npz, zeros, deflated": (_npz(_zeros), LARGE),
    "npz, zeros, bz2": (_npz(_zeros, zipfile.ZIP_BZIP2), LARGE),
    "npz, bz2 behind a false size": (_npz(_zeros, zipfile.ZIP_BZIP2, 4096), LARGE),
    "npz, lzma behind a false size": (_npz(_zeros, zipfile.ZIP_LZMA, 4096), LARGE),
    "npz, deflate behind a false size": (_npz(_zeros, zipfile.ZIP_DEFLATED, 4096), LARGE),
    "npz, half precision within the allowance": (_npz(lambda: npy("(31457280,)", "<f2") + bytes(60 * 2**20)), 60 * 2**20),
    "npz, header of 4 TiB": (_npz(lambda: npy("(1048576, 1048576)")), 2**42),
    "npz, empty strings": (_npz(lambda: npy("(1099511627776,)", "|S0")), 2**40),
    "npz, negative lengths": (_npz(lambda: npy("(-1048576, -1048576)")), 2**42),
    "npz, overlapping members": (_overlapping, 4 * 30 * 2**20),
    "pt, deflated pickle behind a false size": (
        _dl(lambda old: lying(repickled(old, lambda p: p + bytes(LARGE), zipfile.ZIP_DEFLATED), _root(old) + "/data.pkl", 4096)),
        LARGE,
    ),
    "pt, bz2 pickle behind a false size": (
        _dl(lambda old: lying(repickled(old, lambda p: p + bytes(LARGE), zipfile.ZIP_BZIP2), _root(old) + "/data.pkl", 4096)),
        LARGE,
    ),
    "pt, deflated storage": (_dl(lambda old: with_members(old, {_root(old) + "/data/0": bytes(LARGE)}, zipfile.ZIP_DEFLATED)), LARGE),
    "pt, 60,000 members": (_dl(_many_members(60_000)), 0),
    "pt, tensor of stride 0": (_stretched, 2**42),
    "pt, bytearray of 64 GiB": (_single(lambda: pickle.dumps({"W_enc": Calls(bytearray, 2**36)}, 2)), 2**36),
    "pt, tensor of 4 EiB": (
        _single(lambda: b"\x80\x02}" + _text("W_enc") + b"ctorch\nTensor\nJ\x00\x00\x00\x40J\x00\x00\x00\x40\x86Rs."),
        2**62,
    ),
    "pt, 200,000 nested tuples as a key": (_single(lambda: b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."), 0),
    "pt, memo of 2^31 places": (_single(lambda: b"\x80\x02}r\xff\xff\xff\x7f."), 0),
    "pt, number of 200,000 bytes": (
        _single(lambda: b"\x80\x02}" + _text("k") + b"\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000 + b"s."),
        0,
    ),
    "pt, 2^60 shared dictionaries": (_single(lambda: shared_dicts(60)), 0),
    "pt, dictionaries as wide as deep": (_single(lambda: shared_dicts(5, 1500)), 0),
    "pt, lists that take for ever to print": (_openai_lists, 0),
    "safetensors, header of 2^60": (_header(lambda: b"{}", 2**60), 2**60),
    "safetensors, 10^6 tensors": (_header(lambda: _many_tensors(10**6)), 0),
    "safetensors, tensor of 4 TiB": (
        _header(lambda: json.dumps({"W_enc": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()),
        2**42,
    ),
    "safetensors, 15 GiB of hole": (
        _sparse("sae_weights.safetensors", 15 * GIB, lambda d: lens(d, tensors(*FOUR), architecture="standard"), _one_tensor),
        15 * GIB,
    ),
    "safetensors, 20 GiB of hole": (
        _sparse("sae_weights.safetensors", 20 * GIB, lambda d: lens(d, tensors(*FOUR), architecture="standard")),
        20 * GIB,
    ),
    "headed pt, 15 GiB of hole": (_sparse("sae.pt", 15 * GIB, lambda d: saev(d, "Relu")), 15 * GIB),
    "pt, 15 GiB of hole": (_sparse("ae.pt", 15 * GIB, lambda d: dl(d, "AutoEncoder", linear(bias=tensors("b_dec")["b_dec"]))), 15 * GIB),
    "config, 16 MB of brackets": (_text_file("cfg.json", lambda: b"[" * 2**24), 0),
    "config, 16 MB of empty lists": (_text_file("cfg.json", lambda: b'{"metadata": [' + b"[]," * (2**24 // 3) + b"[]]}"), 0),
    "config, number of 900,000 digits": (_text_file("cfg.json", lambda: b'{"metadata": {}, "k": ' + b"9" * 900_000 + b"}"), 0),
    "config, hole of 8 GiB": (_sparse("cfg.json", 8 * GIB, lambda d: legacy(d, tensors(*FOUR))), 8 * GIB),
    "config.yaml of 4 GiB": (_config_bomb, 4 * GIB),
    "folder of 100,000 files": (_crowd, 0),
    "folder of 20,000 folders": (_tree, 0),
}
