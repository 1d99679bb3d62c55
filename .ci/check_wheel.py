"""Checks the built wheel, then runs the main job with it from a folder outside the clone.

Run by `tox -e package`, in an environment where the wheel is installed; tox names its path in TOX_PACKAGE.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 40 * 1000 * 1000
WANTED = {
    "code": ("bench/cli.py", "tasks/__init__.py", "baselines/__init__.py", "leaderboard/__init__.py"),
    "suites": ("leaderboard/suites/smoke.toml", "leaderboard/suites/standard.toml", "leaderboard/suites/paper.toml"),
    "templates": ("leaderboard/site/templates/latent.html", "leaderboard/site/templates/page.css"),
}
WANTED_UNDER = ("leaderboard/schema/", "bench/data/", "baselines/checkpoints/")
UNWANTED_UNDER = ("leaderboard/records/", "tests/", "docs/", "perf/", ".ci/")


def problems(wheel: Path) -> list[str]:
    """What is wrong with the wheel, one sentence each."""
    with zipfile.ZipFile(wheel) as z:
        names = [n for n in z.namelist() if not n.endswith("/")]
    found = []
    if wheel.stat().st_size > MAX_BYTES:
        found.append(f"it has {wheel.stat().st_size / 1e6:.1f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB")
    for kind, wanted in WANTED.items():
        found += [f"{kind}: {name} is missing" for name in wanted if name not in names]
    found += [f"nothing under {folder}" for folder in WANTED_UNDER if not any(n.startswith(folder) for n in names)]
    found += [f"{n} does not belong in it" for n in names if n.startswith(UNWANTED_UNDER)]
    return found


def run_outside() -> int:
    """Exit code of the main job, run from a new folder, with the installed packages and no others."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ORTSAE_RECORDS")}
    with tempfile.TemporaryDirectory(prefix="ortsae-wheel-") as folder:
        where = "import bench, tasks, baselines, leaderboard as l; print(*(m.__file__ for m in (bench, tasks, baselines, l)))"
        done = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, check=True, capture_output=True, text=True)
        if strangers := [p for p in done.stdout.split() if not Path(p).is_relative_to(sys.prefix)]:
            print(f"imported from elsewhere: {strangers}")
            return 1
        command = [sys.executable, "-m", "bench", "run", "--sae", "demo:ortsae", "--suite", "smoke"]
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    wheel = Path(os.environ["TOX_PACKAGE"])
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
    if found := problems(wheel):
        print(*found, sep="\n")
        return 1
    return run_outside()


if __name__ == "__main__":
    sys.exit(main())
