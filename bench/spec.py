"""RunSpec: flags, a TOML file or Python keywords → one frozen description of a run."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench import registry
from bench.errors import UsageError
from bench.judge import JudgeSettings

if TYPE_CHECKING:
    from bench.sae.checkpoint import Loaded

DEFAULT_SUITE = "standard"
# what --limit caps, and its floor
_CAPPED = {"tokens": 128, "loss_tokens": 128, "rows": 1, "words": 20, "train": 20, "docs": 30, "fewest_active": 2, "latents": 10}


@dataclass(frozen=True)
class RunSpec(JudgeSettings):
    """Everything a run depends on; the same names as flags, TOML keys and keyword arguments.

    The judge of latents has the fields of `JudgeSettings`.

    Args:
        sae: References of the SAEs.
        suite: Suite name, or a path to a suite file.
        tasks: Task names; when given, only these run (with the suite's sizes where it names them).
        params: Task name → parameters, over the suite's.
        lm: Language model reference; "" takes the one in the checkpoint.
        hook: Hook; "" takes the one in the checkpoint.
        text: Unlabelled text to measure on.
        against: Reference of an SAE to compare dictionaries with.
        records: Folder of result records; "" means `$ORTSAE_RECORDS` or `./ortsae-results`.
        seed: Root of every random draw.
        limit: Caps every task's tokens, rows, words per letter and texts; 0 means no cap.
        device: Torch device; `auto` takes a GPU when there is one.
        dtype: Language model's precision.
        k: Fact a checkpoint may lack: active latents per token.
        threshold: Fact a checkpoint may lack: activation threshold.
        norm_scale: Fact a checkpoint may lack: input scale it was trained with; `estimate` takes it from activations.
    """

    sae: tuple[str, ...] = ()
    suite: str = DEFAULT_SUITE
    tasks: tuple[str, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lm: str = ""
    hook: str = ""
    text: str = "pypi:sae-probes"
    against: str = ""
    records: str = ""
    seed: int = 0
    limit: int = 0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    k: int | None = None
    threshold: float | None = None
    norm_scale: float | Literal["estimate"] | None = None

    @property
    def records_folder(self) -> Path:
        """Where this run's records go."""
        return Path(self.records or os.environ.get("ORTSAE_RECORDS") or "ortsae-results").expanduser()

    def placed(self, loaded: Loaded) -> Loaded:
        """A checkpoint with the model and hook of this run, where the run names them."""
        return replace(loaded, lm=self.lm or loaded.lm, hook=self.hook or loaded.hook)

    def suite_of(self) -> registry.Suite:
        """The suite this run takes its tasks and sizes from."""
        if self.suite.endswith(".toml"):
            return registry.read_suite(Path(self.suite).expanduser())
        return registry.pick("suite", self.suite, registry.suites())

    def built_tasks(self) -> list[Any]:
        """The tasks of this run, with parameters.

        Raises:
            UsageError: Unknown task, parameter or value.
        """
        known, suite = registry.tasks(), self.suite_of()
        if self.limit < 0:
            raise UsageError(f"--limit {self.limit} is negative", "give the most tokens and rows per task, or 0 for no cap")
        if not (self.tasks or suite.tasks):
            raise UsageError(f"suite {suite.name} names no task", "give --tasks, or another suite")
        for name in self.params:
            registry.pick("task", name, known)
        return [
            self._built(registry.pick("task", n, known), {**suite.tasks.get(n, {}), **self.params.get(n, {})})
            for n in self.tasks or suite.tasks
        ]

    def _built(self, cls: type, params: Mapping[str, Any]) -> Any:
        task = registry.build(cls, params)
        if self.limit <= 0:
            return task
        sizes = {f.name: getattr(task, f.name) for f in fields(task) if f.name in _CAPPED}
        capped = {name: max(_CAPPED[name], self.limit) for name, size in sizes.items() if size == 0 or size > self.limit}
        return replace(task, **capped)


def make_spec(values: Mapping[str, Any], config: Path | None = None) -> RunSpec:
    """A RunSpec from given values over those of a TOML file; both use the names of its fields.

    Raises:
        UsageError: Unknown name, unfit value, or a file that cannot be read.
    """
    base: dict[str, Any] = {}
    if config is not None:
        try:
            base = tomllib.loads(config.read_text(encoding="utf8"))
        except (OSError, ValueError) as e:
            raise UsageError(f"{config} cannot be read: {e}", 'write the run\'s flags as TOML keys, such as sae = ["demo:ortsae"]') from e
    given = {k: v for k, v in values.items() if v is not None}
    merged = {**base, **given}
    for name in ("sae", "tasks"):
        if isinstance(merged.get(name), str):
            merged[name] = tuple(p for p in merged[name].split(",") if p) if name == "tasks" else (merged[name],)
    return registry.build(RunSpec, merged)
