"""Several SAEs on one pass over the activations: the settings they share, and the file that lists them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from baselines.parts import Trainer
from baselines.recipe import FitConfig, Job, steps_for
from baselines.stream import BUFFER
from bench import registry
from bench.device import pick_device
from bench.errors import UsageError

_LEAST: Mapping[str, float] = {"d_sae": 2, "k": 1, "tokens": 1000, "steps": 0, "batch": 0, "lr": 0, "buffer": 1, "save_every": 0}
_HELP = "see python -m bench train --help"

Build = Callable[[str, dict[str, Any]], Trainer]


@dataclass(frozen=True)
class Member:
    """One SAE of a sweep.

    Args:
        name: Of its folder.
        method: What is trained.
        own: Fields of its recipe that differ from the shared settings: `seed`, `lr`.
    """

    name: str
    method: Trainer
    own: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all SAEs of one command share; the names are those of the flags, with _ for -.

    Args:
        d_sae: Number of latents, where an SAE's own table says nothing else.
        k: Target L0, likewise.
        lm: Language model or planted world; "" for the default.
        hook: Place; "" for the default.
        text: Text; "" for the default.
        tokens: Distinct tokens to harvest.
        steps: Training steps; 0: two passes over the tokens, or about one with `stream`.
        batch: Tokens per step; 0 for the rule.
        lr: Peak learning rate; 0 for the rule.
        seed: Root of initialisation and the methods' own draws.
        data_seed: Root of the data order; the same as `seed` unless given.
        checkpoint_at: Fractions of the run at which stages are kept.
        dtype: Type of the saved weights.
        device: Where the language model runs and SAEs train.
        stream: Harvest while training, and keep no activations on disk.
        buffer: Tokens of the stream's shuffle buffer.
        save_every: Seconds between remembered states.
    """

    d_sae: int = 4608
    k: int = 32
    lm: str = ""
    hook: str = ""
    text: str = ""
    tokens: int = 2_300_000
    steps: int = 0
    batch: int = 0
    lr: float = 0.0
    seed: int = 0
    data_seed: int | None = None
    checkpoint_at: tuple[float, ...] = ()
    dtype: str = "float16"
    device: str = "auto"
    stream: bool = False
    buffer: int = BUFFER
    save_every: float = 60.0
    name: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        _bounded({name: getattr(self, name) for name in _LEAST})
        if self.batch == 1:
            raise UsageError("--batch 1 has no variance to explain", "use a larger --batch")
        if self.dtype not in ("float16", "float32"):
            raise UsageError(f"--dtype {self.dtype} is not a type of weights", "use float16 or float32")
        if not all(0 < f <= 1 for f in self.checkpoint_at):
            raise UsageError(f"--checkpoint-at {list(self.checkpoint_at)} are not fractions in (0, 1]", "write --checkpoint-at 0.1,0.3,1.0")

    @property
    def order_seed(self) -> int:
        """Root of the data order."""
        return self.seed if self.data_seed is None else self.data_seed

    def member(self, table: Mapping[str, Any], build: Build) -> Member:
        """An SAE from its table: `method`, and if wished `name`, `seed`, `lr`, `d_sae`, `k` and parameters of the method.

        Raises:
            UsageError: No method, or a name that is no folder's.
        """
        rest = {"d_sae": self.d_sae, "k": self.k, **table}
        _bounded({name: rest[name] for name in ("d_sae", "k", "lr") if isinstance(rest.get(name), int | float)})
        method = rest.pop("method", None)
        name = rest.pop("name", method)
        if not isinstance(method, str) or not isinstance(name, str) or Path(name).name != name:
            raise UsageError(
                f"an SAE's table needs a method and a name that can be a folder's: {dict(table)}", 'write method = "batchtopk"'
            )
        own = {n: rest.pop(n) for n in ("seed", "lr") if n in rest}
        registry.build(FitConfig, {"steps": 1, **own})  # refuse a wrong value before hours of harvesting
        return Member(name, build(method, rest), own)

    def job(self, member: Member, n: int, out: Path) -> Job:
        """What to train.

        Args:
            member: The SAE.
            n: Kept tokens there are.
            out: Its folder.
        """
        steps, batch = (self.steps, self.batch) if self.steps else steps_for(n if self.stream else 2 * n, self.batch)
        shared = {name: getattr(self, name) for name in ("lr", "seed", "save_every", "checkpoint_at", "dtype")}
        values = {"steps": steps, "batch": batch, "device": pick_device(self.device), **shared, **member.own}
        return Job(member.method, registry.build(FitConfig, values), out)


def _bounded(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not value >= _LEAST[name]:
            raise UsageError(f"--{name.replace('_', '-')} {value} is less than {_LEAST[name]}", _HELP)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Shared settings and one table per SAE of a sweep file.

    Raises:
        UsageError: The file cannot be read, or lists no SAE, or two of one name.
    """
    try:
        shared = tomllib.loads(path.read_text(encoding="utf8"))
        tables = shared.pop("sae")
        if not tables or not all(isinstance(t, dict) for t in tables):
            raise TypeError("there is no [[sae]] table")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path} is not a sweep: {e}", _HELP) from e
    names = [t.get("name", t.get("method")) for t in tables]
    if twice := sorted({str(n) for n in names if names.count(n) > 1}):
        raise UsageError(f"{path} has two SAEs named {', '.join(twice)}", "give each [[sae]] a name of its own")
    return shared, tables


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from plain values.

    Raises:
        UsageError: Unknown name or unfit value.
    """
    return registry.build(Settings, values)
