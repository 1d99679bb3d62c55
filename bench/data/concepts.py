"""Items with activations and concepts: what absorption is measured on, wherever the items come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Concepts:
    """Items (words, sentences, planted tokens) with one activation each, and which concepts hold for them.

    Args:
        x: [n, d] float32 activations.
        labels: [n, c] bool, which concepts hold; several may (a dog is an animal and a mammal).
        names: [c] names of the concepts.
        group: [n] integers; items of one group (one word, one child concept) stay on one side of every split.
        identity: What the activations are, beyond the site; keys the codes in the store.
        counts: What was used and left out, by name.
        known: [n, c] bool; where it is False an item is neither an example of a concept nor a counter-example.
        part: [n] 0 training, 1 validation, 2 test, where the items come with a split.
    """

    x: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    group: np.ndarray
    identity: Mapping[str, object]
    counts: Mapping[str, int]
    known: np.ndarray
    part: np.ndarray | None = None

    def where(self, keep: np.ndarray) -> Concepts:
        """Some of the items, by boolean mask."""
        if keep.all():
            return self
        part = None if self.part is None else self.part[keep]
        return replace(self, x=self.x[keep], labels=self.labels[keep], group=self.group[keep], known=self.known[keep], part=part)
