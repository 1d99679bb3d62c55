"""With what a number was measured: explains a record, never defines it."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from bench import registry
from bench.judge.questions import Spending

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")
_OURS = ("bench", "tasks", "baselines")


@cache
def code_version() -> dict[str, str]:
    """Version, hash of the source files that can move a number, and the commit where there is one."""
    h = hashlib.sha256()
    for package in _OURS:
        folder = registry.package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            h.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return {
        "version": _version("ortsae-bench"),
        "sources_sha256": h.hexdigest(),
        "commit": _commit(registry.package_folder("bench").parent),
    }


def environment(device: str) -> dict[str, str]:
    """Interpreter, packages and machine."""
    facts = {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}}
    return {
        **facts,
        "device": _device_name(device),
        "threads": str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()),
        "platform": platform.system(),
    }


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform != "darwin" else peak // 2**20


def now() -> str:
    """UTC time, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _commit(folder: Path) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 and (folder / ".git").exists() else ""


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def judge(now: Spending, before: Spending) -> dict[str, object]:
    """What a judge cost between two moments; nothing where it was asked nothing that costs."""
    spent = {f: getattr(now, f) - getattr(before, f) for f in ("calls", "cached", "tokens_in", "tokens_out")}
    if not any(spent.values()):
        return {}
    return {"judge": {**spent, "usd": None if now.usd is None or before.usd is None else round(now.usd - before.usd, 6)}}
