"""README, docs and packaging files agree with each other and with the code; their examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()
SET_UP = re.compile(r"^python3 -m venv \.venv && \.venv/bin/pip install \"tox==[\d.]+\" && \.venv/bin/tox run.*$", re.MULTILINE)
RUNNABLE = re.compile(r"^<!-- run -->\n```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def examples() -> list[object]:
    found = [(page, m[1], m[2]) for page in PAGES for m in RUNNABLE.finditer(page.read_text())]
    return [pytest.param(kind, code, id=f"{page.relative_to(ROOT)}-{i}-{kind}") for i, (page, kind, code) in enumerate(found)]


def test_quick_start_is_two_lines_and_ci_runs_the_second() -> None:
    demo, tests = SET_UP.findall(README)
    assert demo == tests + " -e demo"
    assert SET_UP.findall((ROOT / ".ci" / "run").read_text()) == [tests]
    assert f"`{tests}`" in (ROOT / "CONTRIBUTING.md").read_text()
    assert f'"tox=={pins()["tox"]}"' in tests
    assert f"requires = tox=={pins()['tox']}\n" in (ROOT / "tox.ini").read_text()


def test_exit_codes_are_those_of_the_code() -> None:
    assert {int(m[1]): m[2] for m in re.finditer(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE)} == EXIT_CODES


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


def test_constraints_are_exact_and_complete() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    pinned = {name(package) for package in pins()}
    assert len(pinned) == len(lines)
    assert not {p for p in pinned if p.startswith(("nvidia-", "triton", "torchvision"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["hub"],
        *project["build-system"]["requires"],
    ]
    wanted += [d for group in project["dependency-groups"].values() for d in group if isinstance(d, str)]
    assert not {name(re.split(r"[<>=!~\[ ]", d)[0]) for d in wanted} - pinned


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.docs
@pytest.mark.model
@pytest.mark.parametrize(("kind", "code"), examples())
def test_examples_run(kind: str, code: str, tmp_path: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = {k: v for k, v in os.environ.items() if k != "ORTSAE_RECORDS"}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": bin_folder + os.pathsep + os.environ["PATH"]}
    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
