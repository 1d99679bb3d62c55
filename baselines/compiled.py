"""The compiled kernel of a training step: built on request, kept in the cache, used on CPU tensors of float32.

`python -m bench doctor --build-kernel` compiles `kernel.cpp` with the machine's own compiler. A build is found again by
the SHA-256 of the source, the compiler's version and the CPU's features, so one made for another CPU is never loaded.
Without a build, or with ORTSAE_KERNEL=off, the same operations run in torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import progress
from bench.errors import ResourceError, UnavailableError, UsageError
from bench.store import cache_root, digest, file_sha256

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.cpp", "kernel_encode.h", "kernel_rows.h"))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
SWITCH = "ORTSAE_KERNEL"
_COMPILERS = ("g++", "clang++", "c++")
_WITHOUT = "install g++, or set CXX; training also works without the kernel, slower"
# Arguments of each function: pointer, size, threads.
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "t": ctypes.c_int}
_ARGUMENTS = {
    "screens": "",
    "encode": "ppppnnnnttp",
    "take": "pnpp",
    "sums_of_rows": "pppnpnnntp",
    "dots_of_rows": "ppnppnnntp",
    "by_latent": "pnnp",
    "across": "ppnntpp",
    "adam": "pppppnnpt",
}


class _Rates(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("step", "first", "second", "keep", "root", "epsilon", "clip")]


@dataclass(frozen=True)
class Kernel:
    """The operations of `baselines.ops`, and Adam, in compiled form; the same arguments and results.

    Args:
        library: Loaded build of `kernel.cpp`.
    """

    library: ctypes.CDLL

    @property
    def screens(self) -> bool:
        """Whether it can screen, and no other unit of this CPU multiplies bfloat16 much faster still."""
        return bool(self.library.screens())

    def encode_above(self, x: Tensor, w: Tensor, b: Tensor, bound: float | Tensor, screen: bool = False) -> tuple[Tensor, Tensor]:
        """As `ops.encode_above`; pre-activations exist in registers only.

        With `screen`, and where the CPU has instructions for it, they are products in bfloat16 first, and what can lie
        above the bound is worked out in float32.
        """
        return self._encode(x, w, b, bound, 0, screen)

    def encode_top(self, x: Tensor, w: Tensor, b: Tensor, k: int, screen: bool = False) -> tuple[Tensor, Tensor]:
        """As `ops.encode_top`; otherwise as `encode_above`."""
        return self._encode(x, w, b, 0.0, k, screen)

    def _encode(self, x: Tensor, w: Tensor, b: Tensor, bound: float | Tensor, k: int, screen: bool) -> tuple[Tensor, Tensor]:
        x, w, b, bounds, count = x.contiguous(), w.contiguous(), b.contiguous(), b.new_empty(len(w)), ctypes.c_int64()
        bounds[:] = bound
        inputs, (n, d), m = (_at(x), _at(w), _at(b), _at(bounds)), x.shape, len(w)
        found = self.library.encode(*inputs, k, n, d, m, screen and self.screens, _threads(), ctypes.byref(count))
        flat, values = torch.empty(count.value, dtype=torch.long), x.new_empty(count.value)
        self.library.take(found, m, _at(flat), _at(values))
        return flat, values

    def sums_of_rows(self, bags: Tensor, indices: Tensor, weights: Tensor, table: Tensor, n: int) -> Tensor:
        """As `ops.sums_of_rows`."""
        bags, indices, weights, table = bags.long().contiguous(), indices.long().contiguous(), weights.contiguous(), table.contiguous()
        out = table.new_empty(n, table.shape[1])
        inputs = _at(bags), _at(indices), _at(weights), len(bags), _at(table), *table.shape
        self.library.sums_of_rows(*inputs, n, _threads(), _at(out))
        return out

    def dots_of_rows(self, rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
        """As `ops.dots_of_rows`."""
        rows, cols, g, w = rows.long().contiguous(), cols.long().contiguous(), g.contiguous(), w.contiguous()
        out = g.new_empty(len(rows))
        self.library.dots_of_rows(_at(rows), _at(cols), len(rows), _at(g), _at(w), len(g), *w.shape, _threads(), _at(out))
        return out

    def by_latent(self, cols: Tensor, m: int) -> Tensor:
        """As `ops.by_latent`."""
        cols = cols.long().contiguous()
        order = torch.empty_like(cols)
        self.library.by_latent(_at(cols), len(cols), m, _at(order))
        return order

    @torch.no_grad()
    def adam(self, opt: torch.optim.Optimizer, unit: Tensor | None, clip: float) -> None:
        """Clip the gradients and do the optimiser's step, with its own state.

        Args:
            opt: Whose parameters move (see `steps`).
            unit: [m, d] parameter with unit rows: the gradient along them is removed first, and they are scaled back to
                unit norm after the step.
            clip: Largest norm of all gradients together.
        """
        moving = [p for p in opt.param_groups[0]["params"] if p.grad is not None]
        grads = [p.grad.contiguous() for p in moving]
        along = [p.new_empty(len(p)) if p is unit else None for p in moving]
        squares = [self._across(g, p, a) for g, p, a in zip(grads, moving, along, strict=True)]
        norm = float(torch.cat(squares).sum().sqrt())
        for p, g, a in zip(moving, grads, along, strict=True):
            state = opt.state[p]
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
            rates = _rates(opt.param_groups[0], float(state["step"]), min(1.0, clip / (norm + 1e-6)))
            moments = _at(state["exp_avg"]), _at(state["exp_avg_sq"])
            self.library.adam(_at(p), *moments, _at(g), _at(a), *_shape(p), ctypes.byref(rates), _threads())

    def _across(self, g: Tensor, p: Tensor, along: Tensor | None) -> Tensor:
        """Squared norm of every row of a gradient, without its component along a unit row where `along` takes that up."""
        rows, d = _shape(p)
        squares = torch.empty(rows, dtype=torch.float64)
        self.library.across(_at(g), _at(None if along is None else p), rows, d, _threads(), _at(along), _at(squares))
        return squares


def kernel(*tensors: Tensor) -> Kernel | None:
    """The kernel, where there is a build, it is not turned off, and it takes the given tensors; else None.

    Raises:
        UsageError: ORTSAE_KERNEL is neither `on` nor `off`.
    """
    fit = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return _loaded(str(cache_root())) if fit and enabled() else None


def steps(opt: torch.optim.Optimizer) -> bool:
    """Whether `Kernel.adam` does what the optimiser's own step does: Adam on contiguous tensors, without further options."""
    group = opt.param_groups[0]
    plain = type(opt) is torch.optim.Adam and not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
    return plain and len(opt.param_groups) == 1 and all(p.is_contiguous() for p in group["params"])


def enabled() -> bool:
    """Whether ORTSAE_KERNEL leaves the kernel on."""
    switch = os.environ.get(SWITCH) or "on"
    if switch not in ("on", "off"):
        raise UsageError(f"{SWITCH} is {switch!r}", "set it to on or off")
    return switch == "on"


def announce() -> None:
    """Say in the log which path training takes."""
    progress.note("compiled kernel", state=status())


def status() -> str:
    """One line for the reader: used, turned off, or how to get it."""
    if not enabled():
        return f"off ({SWITCH})"
    if _loaded(str(cache_root())) is None:
        return "not built: plain path (python -m bench doctor --build-kernel makes training faster)"
    return "in use"


def compiler() -> tuple[str, ...] | None:
    """Command of the C++ compiler: $CXX, else the first that is installed; None without one."""
    named = os.environ.get("CXX", "").split()
    found = [command for command in ([named] if named else [[c] for c in _COMPILERS]) if shutil.which(command[0])]
    return tuple(found[0]) if found else None


def compiler_version(command: Sequence[str]) -> str:
    """First line of what the compiler says of itself."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or "unknown").splitlines()[0]


def build() -> Path:
    """Compile the kernel and keep it in the cache; from then on it is used.

    Raises:
        UnavailableError: There is no compiler, it cannot compile the file, or the build cannot be loaded.
        ResourceError: The cache cannot be written.
    """
    command = compiler()
    if command is None:
        raise UnavailableError("there is no C++ compiler: neither CXX nor " + ", ".join(_COMPILERS), _WITHOUT)
    folder = _folder(cache_root())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "kernel.so"
            done = subprocess.run([*command, *FLAGS, str(SOURCES[0]), "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
                raise UnavailableError(f"{shlex.join(command)} cannot compile {SOURCES[0].name}: {said[0]}", _WITHOUT)
            kept = made.rename(folder / f"{_key(command)}-{file_sha256(made)[:16]}.so")
    except OSError as e:
        raise ResourceError(f"cannot keep the kernel in {folder}: {e.strerror}", "set ORTSAE_CACHE to a writable folder") from e
    _loaded.cache_clear()
    if _loaded(str(cache_root())) is None:
        raise UnavailableError(f"{kept} was built, but cannot be loaded", "set ORTSAE_CACHE to a folder from which programs may run")
    return kept


@functools.lru_cache(maxsize=4)
def _loaded(root: str) -> Kernel | None:
    """The build that a cache holds for this machine, loaded once; a damaged one counts as none."""
    folder, command = _folder(Path(root)), compiler()
    if command is None or not folder.is_dir():
        return None
    for path in sorted(folder.glob(f"{_key(command)}-*.so")):
        with suppress(OSError):  # such as a folder from which nothing may be executed
            if path.stem.endswith(f"-{file_sha256(path)[:16]}"):
                return Kernel(_typed(ctypes.CDLL(str(path))))
    return None


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, letters in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = [_TYPES[letter] for letter in letters]
        function.restype = {"encode": ctypes.c_void_p, "screens": ctypes.c_int}.get(name)
    return library


def _folder(root: Path) -> Path:
    return root / "kernels"


def _key(command: Sequence[str]) -> str:
    """What a build depends on."""
    return digest([[path.read_text() for path in SOURCES], list(FLAGS), compiler_version(command), _cpu()])[:40]


def _cpu() -> str:
    """The CPU's features, as far as the system tells them."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{platform.machine()} {found.group() if found else platform.processor()}"


def _rates(group: dict[str, Any], step: float, clip: float) -> _Rates:
    first, second = group["betas"]
    return _Rates(group["lr"] / (1 - first**step), 1 - first, 1 - second, second, (1 - second**step) ** 0.5, group["eps"], clip)


def _shape(p: Tensor) -> tuple[int, int]:
    """Rows and their length; a vector is one row."""
    return (p.shape[0], p.shape[1]) if p.ndim == 2 else (1, p.numel())


def _at(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _threads() -> int:
    return torch.get_num_threads()
