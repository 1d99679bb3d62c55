"""What a zip archive and the pickle in it must be before anything reads them: small, and with one meaning for every reader.

Two programs read the same `.pt` file here, Python's `zipfile` and torch's own reader. Where they can disagree (data before the
archive, names that differ in case or behind a NUL, headers that contradict the directory), one of them would be shown
something harmless and the other something else. So such archives are refused; nobody writes them by accident.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from bench.errors import CheckpointError

DAMAGED = "the file is damaged or not what its name says: fetch or save it again"
PLAIN = "save the state dict alone: torch.save(sae.state_dict(), path)"
_MAX_MEMBERS, _MAX_DIRECTORY = 4096, 2**20
_MAX_PICKLE, _MAX_OPS, _MAX_TUPLES = 2**18, 2**14, 2**11  # a state dict's pickle holds names and shapes only
STORED = (zipfile.ZIP_STORED,)
_LOCAL, _END, _END64, _LOCATOR = b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"
_FLAGS = 0x080E  # levels of deflate, sizes behind the data, names in UTF-8; the others encrypt or patch
_NOT_NAMES = frozenset({"storage", "cpu", "cuda:0"})  # words that every pickle of tensors holds
_GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {t}Storage" for t in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")}
)
_PLAIN_OPS = """PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE GLOBAL REDUCE BUILD BINPERSID
EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET"""
_OPS = frozenset(_PLAIN_OPS.split())


@dataclass(frozen=True)
class Words:
    """What a file of tensors mentions, as far as one can see without reading it.

    Args:
        names: Its tensors; for a pickle all its strings, without those that every such pickle holds.
        foreign: What a pickle would import or do that no state dict needs; imports first.
        ranks: Numbers of dimensions of its tensors, where they are easily seen.
    """

    names: frozenset[str] = frozenset()
    foreign: tuple[str, ...] = ()
    ranks: frozenset[int] = frozenset()


@contextmanager
def archive(name: str, file: IO[bytes], start: int = 0, methods: tuple[int, ...] = STORED) -> Generator[zipfile.ZipFile]:
    """A zip archive that every reader understands alike.

    Args:
        name: For messages.
        file: Open and seekable.
        start: Where in the file the archive begins; it ends where the file does.
        methods: Ways of compression that are allowed. Others than deflate unpack without a limit.

    Raises:
        CheckpointError: It is not.
    """
    members, directory = _directory(name, file, start)
    with zipfile.ZipFile(file) as z:
        if len(z.infolist()) != members:
            raise CheckpointError(f"the directory of {name} does not hold the {members} members it says", DAMAGED)
        _check_names(name, [m.orig_filename for m in z.infolist()], [m.filename for m in z.infolist()])
        end = start
        for m in sorted(z.infolist(), key=lambda m: m.header_offset):
            if m.compress_type not in methods or m.flag_bits & ~_FLAGS or (m.compress_type == 0 and m.compress_size != m.file_size):
                raise CheckpointError(f"{name} is compressed or encrypted in a way that its format never is", DAMAGED)
            begin, end = end, _end_of(file, m)
            if m.header_offset < begin or not m.header_offset < end <= directory:
                raise CheckpointError(f"members of {name} overlap or contradict its directory", DAMAGED)
        yield z


def _directory(name: str, file: IO[bytes], start: int) -> tuple[int, int]:
    """Number of members and place of the central directory, if it lies where all readers look for it."""
    size = file.seek(0, 2)
    file.seek(max(start, size - 98))
    tail = file.read(98)
    file.seek(start)
    problem = CheckpointError(f"{name} is not one zip archive from its beginning to its end", DAMAGED)
    if file.read(4) != _LOCAL or len(tail) < 98 or tail[-22:-18] != _END:
        raise problem
    *disks, here, members, length, offset, comment = struct.unpack("<4H2IH", tail[-18:])
    behind = 22
    if tail[-42:-38] == _LOCATOR:
        _, at, _ = struct.unpack("<IQI", tail[-38:-22])
        many, _, long, far = struct.unpack("<4Q", tail[-74:-42])
        if tail[:4] != _END64 or at != size - 98 - start:
            raise problem
        if (members, length, offset) != (min(many, 0xFFFF), min(long, 0xFFFFFFFF), min(far, 0xFFFFFFFF)):
            raise problem
        here, members, length, offset, behind = min(here, many), many, long, far, 98
    if any(disks) or comment or start + offset + length + behind != size:
        raise problem
    if members > _MAX_MEMBERS or length > _MAX_DIRECTORY:
        raise CheckpointError(f"{name} holds {members} members, more than a checkpoint has", DAMAGED)
    return members, start + offset


def _check_names(name: str, stored: list[str], read: list[str]) -> None:
    """Readers stop at a NUL, take backslashes for slashes, or do not tell cases apart; here none of it can matter."""
    odd = any(not n.isascii() or not n.isprintable() or "\\" in n or n.startswith("/") or ".." in n.split("/") for n in stored)
    if odd or stored != read or len({n.lower() for n in stored}) != len(stored):
        raise CheckpointError(f"{name} holds members with repeated names or names that leave the archive", DAMAGED)


def _end_of(file: IO[bytes], m: zipfile.ZipInfo) -> int:
    """Where a member's data end by its own header; -1 where that header contradicts the directory."""
    file.seek(m.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != _LOCAL:
        return -1
    flags, method, named, extra = *struct.unpack("<2H", header[6:10]), *struct.unpack("<2H", header[26:])
    same = method == m.compress_type and not flags & ~_FLAGS and file.read(named) == m.orig_filename.encode()
    return m.header_offset + 30 + named + extra + m.compress_size if same else -1


def check_npy(z: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """NumPy allocates what the header says before it reads; so the header is compared with the member's size first."""
    with z.open(member) as f:
        version = np.lib.format.read_magic(f)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(f)
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > member.file_size:
        raise CheckpointError(f"array {member.filename} holds Python objects or is shorter than it says", DAMAGED)
    if dtype.kind not in "biuf":
        raise CheckpointError(f"array {member.filename} holds {dtype}, not numbers", DAMAGED)


def pickled(z: zipfile.ZipFile) -> Words:
    """What the pickle of a `torch.save` archive mentions; nothing of it is run.

    Raises:
        CheckpointError: There is none, or it is larger than one of names and shapes can be. Deep tuples are among
            that: Python takes their hash by recursion in C and without a limit.
    """
    sizes = {m.filename: m.file_size for m in z.infolist()}
    roots = {n.split("/")[0] for n in sizes}
    member = f"{min(roots)}/data.pkl" if len(roots) == 1 else ""
    if f"{min(roots)}/constants.pkl" in sizes:
        raise CheckpointError("the file is a TorchScript archive, which is a program", PLAIN)
    if sizes.get(member, _MAX_PICKLE + 1) > _MAX_PICKLE:
        raise CheckpointError("the file is no torch.save archive with one small data.pkl", PLAIN)
    with z.open(member) as f:
        return _words(pickletools.genops(f.read(_MAX_PICKLE)))


def _words(operations: Iterable[tuple[pickletools.OpcodeInfo, object, int | None]]) -> Words:
    names: set[str] = set()
    imports: set[str] = set()
    others: set[str] = set()
    tuples = 0
    for n, (op, arg, _) in enumerate(operations):
        tuples += op.name.startswith("TUPLE")
        if n > _MAX_OPS or tuples > _MAX_TUPLES:
            raise CheckpointError("the file's data.pkl holds far more than the names and shapes of an SAE", PLAIN)
        if op.name == "GLOBAL":
            imports.add(str(arg))
        elif op.name not in _OPS:
            others.add(op.name)
        if isinstance(arg, str) and op.name != "GLOBAL" and arg not in _NOT_NAMES and not arg.isdigit():
            names.add(arg.removeprefix("_orig_mod."))
    return Words(frozenset(names), (*sorted(imports - _GLOBALS), *sorted(others)))
