"""A planted world with a planted language model behind it, so that tasks which splice activations can be audited.

Its unembedding reads the features: the logit of word i is a constant times ⟨x, W_i⟩. The next words are drawn from
the predictions on the true activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bench.context import Tokens
from bench.kernels.reconstruction import token_losses
from bench.rng import numpy_rng
from bench.worlds.context import WorldContext
from bench.worlds.planted import World

_GAIN = 4.0  # logit of a feature whose code is 1, beside 0 for a silent one
_BLOCK = 1024


@dataclass(frozen=True)
class PlantedSplicer:
    """Losses of the planted language model; the same methods as `bench.lm.splice.Splicer`.

    Args:
        world: The world.
        text: Its tokens.
    """

    world: World
    text: Tokens

    @property
    def scored(self) -> np.ndarray:
        """[n_tokens] kept tokens that have a next token in their row."""
        last = np.zeros(len(self.text.keep), dtype=bool)
        last[self.text.rows.offsets[1:] - 1] = True
        return self.text.keep & ~last

    def clean(self) -> Mapping[str, np.ndarray]:
        """Losses [scored] of the true activations."""
        return self.spliced(self.text.kept, "itself")

    def ablated(self, kind: str) -> Mapping[str, np.ndarray]:
        """Losses [scored] with kept activations set to `zero`, or to their `mean`."""
        kept = self.text.kept
        fill = np.zeros(kept.shape[1], np.float32) if kind == "zero" else kept.mean(0, dtype=np.float64).astype(np.float32)
        return self.spliced(np.broadcast_to(fill, kept.shape), kind)

    def spliced(self, new: np.ndarray, label: str) -> Mapping[str, np.ndarray]:
        """Losses [scored] with the kept activations replaced by `new` [kept, d]."""
        at = np.flatnonzero(self.scored[self.text.keep])
        x, unembedding = self.text.kept, torch.from_numpy(_GAIN * self.world.dictionary.T)
        draws = numpy_rng(self.world.spec.seed, "audit", "next word").random(len(at))
        parts: list[dict[str, np.ndarray]] = []
        for i in range(0, len(at), _BLOCK):
            rows = at[i : i + _BLOCK]
            clean = torch.from_numpy(np.ascontiguousarray(x[rows])) @ unembedding
            cumulative = torch.softmax(clean.double(), 1).cumsum(1)
            word = (cumulative < torch.from_numpy(draws[i : i + _BLOCK])[:, None]).sum(1).clamp(max=clean.shape[1] - 1)
            losses = token_losses(clean, torch.from_numpy(np.ascontiguousarray(new[rows])) @ unembedding, word)
            parts.append({k: v.numpy() for k, v in losses.items()})
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


class AuditContext(WorldContext):
    """A context of a world whose activations can be spliced, too."""

    has_lm: ClassVar[bool] = True

    def splicer(self, text: Tokens) -> Any:
        """Losses of the planted language model."""
        return PlantedSplicer(self.world, text)
