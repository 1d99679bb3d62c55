"""Lets several tox environments share one virtual environment.

tox 4 writes the environment's name into its folder and rebuilds the folder when the name differs, so a shared
`env_dir` would reinstall torch at every switch. This runner writes the folder's name instead; everything else that
tox compares (Python version, dependencies, constraints) still triggers a rebuild. Environments that share a folder
must not run in parallel.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedInfo(Info):
    """What tox remembers of an environment, under the folder's name."""

    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Generator[tuple[bool, Any], None, None]:
        if section == "ToxEnv":
            value = {**value, "name": self._path.parent.name}
        with super().compare(value, section, sub_section) as found:
            yield found


class SharedRunner(VirtualEnvRunner):
    """A virtual environment that other tox environments use too."""

    @staticmethod
    def id() -> str:
        return "virtualenv-shared"

    @property
    def cache(self) -> Info:
        return SharedInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(SharedRunner)
