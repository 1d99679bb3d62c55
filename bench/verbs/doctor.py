"""`doctor`: is this machine ready, and what would be fetched or could be built."""

from __future__ import annotations

import json
import platform
import shutil
from typing import Annotated

import typer

HELP = """Check this machine: versions, devices, cache, disk, compiler and training kernel, package clients, the embedded model.

Examples:

  python -m bench doctor

  python -m bench doctor --build-kernel
"""


def doctor(
    as_json: Annotated[bool, typer.Option("--json")] = False,
    build_kernel: Annotated[bool, typer.Option(help="Compile the training kernel for this CPU first, with $CXX or g++.")] = False,
) -> None:
    from baselines import compiled

    if build_kernel:
        compiled.build()
    facts = _facts()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    width = max(len(n) for n in facts)
    print("\n".join(f"{n.ljust(width)}  {v}" for n, v in facts.items()))


doctor.__doc__ = HELP


def _facts() -> dict[str, str]:
    import torch

    from baselines import compiled
    from bench import provenance, registry
    from bench.lm import embedded
    from bench.store import Store, cache_root

    store = Store.default()
    root = cache_root()
    existing = next(p for p in (root, *root.parents) if p.exists())
    converted = root / "models" / f"smollm2-{embedded.REVISION[:16]}" / "done.json"
    code = provenance.code_version()
    commit = f", commit {code['commit'][:12]}" if code["commit"] else ""
    used, free = sum(e.bytes for e in store.entries()) / 2**30, shutil.disk_usage(existing).free / 2**30
    return {
        "ortsae-bench": f"{code['version']} (sources {code['sources_sha256'][:12]}{commit})",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "cpu": provenance.environment("cpu")["device"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use",
        "cache": f"{root}, {used:.2f} of at most {store.max_bytes / 2**30:.0f} GiB, {free:.0f} GiB free on disk",
        "compiler": compiled.compiler_version(command) if (command := compiled.compiler()) else "none",
        "training kernel": compiled.status(),
        "embedded model": "ready" if converted.exists() else "not fetched yet (93 MB, on first use)",
        "package clients": ", ".join(f"{n} {'found' if shutil.which(n) else 'missing'}" for n in ("npm", "apt-get")),
        "tasks": ", ".join(registry.tasks()),
        "methods": ", ".join(registry.methods()),
        "demos": ", ".join(f"demo:{n}" for n in registry.demos()) or "none",
        "suites": ", ".join(registry.suites()),
    }
