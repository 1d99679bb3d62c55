"""Names → tasks, methods, suites, demo checkpoints. A file is its own registration; plugins come by entry point."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from bench import progress
from bench.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Suite:
    """A named list of tasks with their sizes.

    Args:
        name: e.g. `standard`.
        description: One line.
        tasks: Task name → parameters that differ from the task's defaults.
        columns: `task.metric` columns of its table.
    """

    name: str
    description: str
    tasks: Mapping[str, Mapping[str, Any]]
    columns: tuple[str, ...]


def tasks() -> dict[str, type]:
    """Every task by name: `tasks/*.py`, then plugins of the group `ortsae_bench.tasks`."""
    return _found("tasks", "run", "ortsae_bench.tasks")


def methods() -> dict[str, type]:
    """Every training method and control by name: `baselines/*.py`, then `ortsae_bench.methods`."""
    return _found("baselines", "loss", "ortsae_bench.methods")


def package_folder(package: str) -> Path:
    """Where one of the suite's packages lies."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the package {package!r} is not installed", "install ortsae-bench again")
    return Path(next(iter(spec.submodule_search_locations)))


def suites() -> dict[str, Suite]:
    """Suites found in `leaderboard/suites/`."""
    return {p.stem: read_suite(p) for p in sorted((package_folder("leaderboard") / "suites").glob("*.toml"))}


def read_suite(path: Path) -> Suite:
    """One suite file.

    Raises:
        UsageError: The file is not a suite.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf8"))
        if not all(isinstance(params, dict) for params in raw["tasks"].values()):
            raise TypeError("each of its tasks must be a table of parameters")
        return Suite(path.stem, raw["description"], raw["tasks"], tuple(raw["columns"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{path} is not a suite: {e}", "see leaderboard/suites/standard.toml") from e


def demos() -> dict[str, Path]:
    """Bundled checkpoints by name (`demo:NAME`)."""
    folder = package_folder("baselines") / "checkpoints"
    return {p.parent.name: p.parent for p in sorted(folder.glob("*/sae.json"))}


def pick(what: str, name: str, known: Mapping[str, T]) -> T:
    """The entry of that name.

    Raises:
        UsageError: Unknown name; the remedy holds the nearest ones.
    """
    if name in known:
        return known[name]
    raise UsageError(f"unknown {what} {name!r}", did_you_mean(name, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known words, or all of them."""
    near = difflib.get_close_matches(name, list(known), 3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def build(cls: type, params: Mapping[str, Any]) -> Any:
    """A task or method from plain parameters, types checked.

    Raises:
        UsageError: Unknown parameter or unfit value.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {f.name: f for f in fields(cls)}
    for name in params:
        if name not in known:
            raise UsageError(f"{getattr(cls, 'name', cls.__name__)} has no parameter {name!r}", did_you_mean(name, known))
    checked: dict[str, Any] = {}
    for name, value in params.items():
        try:
            checked[name] = TypeAdapter(_annotation(cls, name)).validate_python(value)
        except ValidationError as e:
            reason = e.errors()[0]["msg"]
            raise UsageError(
                f"{getattr(cls, 'name', cls.__name__)}.{name} = {value!r}: {reason}",
                f"see python -m bench {_shown_by(cls)}",
            ) from None
    return cls(**checked)


def _shown_by(cls: type) -> str:
    if hasattr(cls, "run"):
        return f"tasks show {getattr(cls, 'name', '')}"
    return "train --help" if hasattr(cls, "loss") or cls.__module__.startswith("baselines.") else "run --help"


def default_of(f: Any) -> Any:
    """A dataclass field's default."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _annotation(cls: type, name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(cls)[name]


def _found(package: str, function: str, group: str) -> dict[str, type]:
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules([str(package_folder(package))]):
        if cls := _own_class(importlib.import_module(f"{package}.{module.name}"), module.name, function):
            found[module.name] = cls
    for point in metadata.entry_points(group=group):
        try:
            if "/" not in point.name:
                raise UsageError(f"plugin name {point.name!r} lacks a '/'", "name it owner/name")
            found[point.name] = point.load()
        except Exception as e:  # a broken plugin is somebody else's code: report it and go on
            progress.note("plugin could not be loaded", plugin=point.name, group=group, reason=str(e))
    return found


def _own_class(module: Any, name: str, function: str) -> type | None:
    for value in vars(module).values():
        if isinstance(value, type) and value.__dict__.get("name") == name and hasattr(value, function):
            return value
    return None
