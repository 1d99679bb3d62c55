"""Rules that hold for every test run. Fixtures live beside the tests that use them.

- A skip for a reason not listed in allowed_skips.txt fails the run.
- Types and shapes in annotations are checked at run time (jaxtyping with beartype, tests/typecheck.py), in tests only.
- Property tests are the same on every run.
- The cache of the user (`ORTSAE_CACHE`) is left as it is: the model tier fetches its model once.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

try:
    from jaxtyping import install_import_hook

    import tests.typecheck  # noqa: F401 — the hook looks it up as an attribute of the package
except ImportError:  # the checks are an extra; the tests hold without them
    pass
else:
    install_import_hook(["bench", "tasks", "baselines", "leaderboard"], "tests.typecheck.check")

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
MAX_THREADS = 2

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


def allowed_reasons() -> list[str]:
    """Patterns of the reasons that may skip a test."""
    lines = (line.strip() for line in ALLOWED_SKIPS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class SkipGate:
    """Collects skips whose reason is not listed and fails the run when there is one."""

    def __init__(self) -> None:
        self.allowed = allowed_reasons()
        self.refused: list[str] = []

    def _see(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in self.allowed):
            self.refused.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._see(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.refused and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skipped for a reason that tests/allowed_skips.txt does not list", red=True)
            for line in self.refused:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(), "skip-gate")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """The same number of threads everywhere, unless `OMP_NUM_THREADS` asks for another."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(MAX_THREADS, before))
    yield
    torch.set_num_threads(before)
