"""SAELens 3 and 5, which cannot be installed beside 6: `tox.ini` puts each into a folder, and a subprocess imports it from there."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from bench.adapters import Given
from tests.parity.old_worker import DIVIDES_B_DEC, SCALE, SINCE_FIVE, VARIANTS
from tests.parity.shared import Case, K, Peer, Written, check, refusal

pytestmark = pytest.mark.parity

RELEASES = ("3.22.2", "5.11.0")
ROOT = Path(__file__).parents[2]


def home(release: str) -> Path:
    """Where tox.ini puts it."""
    return Path(sys.prefix) / "peers" / f"sae-lens-{release}"


def missing(release: str) -> str:
    return "" if (home(release) / "sae_lens").is_dir() else f"sae-lens {release} is not installed in a folder of its own"


def names(release: str) -> list[str]:
    """What this version can save and load with numbers to compare with."""
    without = (*SINCE_FIVE, DIVIDES_B_DEC) if release.startswith("3.") else ()
    return [n for n in VARIANTS if n not in without]


@cache
def all_written(release: str) -> tuple[Path, str]:
    """One run of the old library for all its cases, and why it failed."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(home(release)), str(ROOT)))}
    command = [sys.executable, "-m", "tests.parity.old_worker", folder.name, release, *names(release)]
    ran = subprocess.run(command, check=False, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return Path(folder.name), ran.stderr if ran.returncode else ""


def read(release: str, name: str) -> Callable[[Path], Written]:
    def write(_: Path) -> Written:
        folder, failed = all_written(release)
        assert not failed, failed
        path = folder / name
        return Written(path, **torch.load(path / "expected.pt", weights_only=True))

    return write


def cases(release: str) -> Iterator[Case]:
    for name in names(release):
        architecture, (variant, cfg) = name.split()[0], VARIANTS[name]
        k = K if "activation_fn_kwargs" in cfg else 0
        edge = "off" if architecture in ("gated", "jumprelu") else ""
        if cfg.get("normalize_activations") == "expected_average_only_in":
            case = Case(architecture, f"{variant}, --norm-scale {SCALE:g}", read(release, name), Given(norm_scale=SCALE))
            yield refusal(case, "give --norm-scale")
            yield case
        else:
            yield Case(architecture, variant, read(release, name), edge=edge, k=k)


PEERS = [Peer("sae-lens", [*cases(r)], lambda r=r: missing(r), r) for r in RELEASES]
ALL = [(peer, case) for peer in PEERS for case in peer.cases]


@pytest.mark.parametrize(("peer", "case"), ALL, ids=lambda v: v.release if isinstance(v, Peer) else str(v))
def test_files_of_old_sae_lens(peer: Peer, case: Case, tmp_path: Path) -> None:
    if why := peer.missing():
        pytest.skip(why)
    check(case, tmp_path)
