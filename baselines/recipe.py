"""How long and how fast: the recipe every method shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from baselines.parts import Trainer


@dataclass(frozen=True)
class FitConfig:
    """Recipe of one SAE. Where 0 stands for a rule, the field holds its outcome.

    Args:
        steps: T.
        batch: Tokens per step B; 0: 2,048 if T ≥ 20,000, else 512.
        lr: Peak learning rate of Adam; 0: 2e-4 if T ≥ 50,000, else 1e-3.
        warmup: Steps in which the rate rises linearly; 0: min(1,000, 5 % of T).
        decay: Last share of the steps, in which the rate falls linearly to 0.
        clip: Largest gradient norm.
        dead_after: A latent silent for more tokens is dead; 0: 2 % of the run, at least 200,000 and at most 10,000,000.
        seed: Root of initialisation and the method's own draws; the root of the data order is the data's.
        log_every: Steps between log lines.
        save_every: Seconds between remembered states.
        checkpoint_at: Fractions of the run at which a stage is exported; the end always is.
        dtype: Type of the saved weight matrices.
        device: Where weights, optimiser and batches are.
    """

    steps: int
    batch: int = 0
    lr: float = 0.0
    warmup: int = 0
    decay: float = 0.2
    clip: float = 1.0
    dead_after: int = 0
    seed: int = 0
    log_every: int = 100
    save_every: float = 60.0
    checkpoint_at: tuple[float, ...] = ()
    dtype: str = "float16"
    device: str = "cpu"

    def __post_init__(self) -> None:
        batch = self.batch or usual_batch(self.steps)
        outcome = {
            "batch": batch,
            "lr": self.lr or (2e-4 if self.steps >= 50_000 else 1e-3),
            "warmup": self.warmup or max(1, min(1000, self.steps // 20)),
            "dead_after": self.dead_after or max(200_000, min(10_000_000, self.steps * batch // 50)),
        }
        for name, value in outcome.items():
            object.__setattr__(self, name, value)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant, then linear decay to 0."""
        left = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup, left)

    @property
    def identity(self) -> str:
        """Everything that can move a weight."""
        return repr(replace(self, log_every=0, save_every=0.0, checkpoint_at=(), device=""))

    @property
    def stages(self) -> set[int]:
        """Steps after which a stage is exported."""
        return {max(1, round(f * self.steps)) for f in self.checkpoint_at if f < 1}


@dataclass(frozen=True)
class Job:
    """One SAE to be trained: method, recipe, and the folder for everything that comes of it."""

    method: Trainer
    config: FitConfig
    out: Path

    @property
    def trains(self) -> bool:
        """Whether the method learns anything at all."""
        return getattr(self.method, "trains", True)


def usual_batch(steps: int) -> int:
    """Tokens per step for a run of this many steps at 2,048 tokens each."""
    return 2048 if steps >= 20_000 else 512


def steps_for(tokens: int, batch: int) -> tuple[int, int]:
    """Steps that see this many tokens, and tokens per step.

    Args:
        tokens: Seen in training, repetitions included.
        batch: Tokens per step, or 0 for the rule.
    """
    size = batch or usual_batch(tokens // 2048)
    return max(1, tokens // size), size
