"""What all comparisons with SAEBench share: its SAE, its probe and its absorption scores, made from given arrays."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.sparse_probing import probe_training

Array = np.ndarray | torch.Tensor
Module = TypeVar("Module", bound=torch.nn.Module)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def filled(module: Module, **values: Array) -> Module:
    """The module with these arrays as its parameters."""
    for name, value in values.items():
        getattr(module, name).data = torch.as_tensor(value)
    return module


def their_sae(**weights: Array) -> JumpReluSAE:
    """SAEBench's own JumpReLU class; without a `threshold`, a ReLU SAE."""
    return filled(JumpReluSAE(*weights["W_enc"].shape, "none", 0, torch.device("cpu"), torch.float32), **weights)


def their_probe(w: np.ndarray, b: float = 0.0) -> probe_training.Probe:
    probe = probe_training.Probe(len(w), torch.float32)
    filled(probe.net, weight=w[None], bias=np.array([b], np.float32))
    return probe


class Lookup:
    """Stands for the language model, and for an SAE whose codes are known: gives the rows of the words asked for."""

    device = torch.device("cpu")

    def __init__(self, x: Array, f: Array, rows: Array) -> None:
        self.x, self.f, self.W_dec = torch.as_tensor(x), torch.as_tensor(f), torch.as_tensor(rows)
        self.asked = [0]

    def to_tokens(self, prompt: str) -> torch.Tensor:
        return torch.zeros(1, 1)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, torch.Tensor]]:
        self.asked = [int(p.split("w")[-1].split(":")[0]) for p in prompts]
        return None, {names_filter[0]: self.x[self.asked][:, None].expand(-1, 2, -1)}

    def encode(self, acts: torch.Tensor) -> torch.Tensor:
        return self.f[self.asked]


def their_absorption(
    model: Lookup, sae: object, letter: np.ndarray, directions: np.ndarray, main: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Absorption fraction, and full absorption, of every word the stand-in knows.

    Args:
        model: Stand-in that gives the words' activations.
        sae: What encodes them: the stand-in again, or an SAE.
        letter: [n] letter of each word.
        directions: [letters, d] probe directions.
        main: Main latents of each letter.
    """
    calculator = FeatureAbsorptionCalculator(model=model, icl_word_list=["w0", "w1"], max_icl_examples=0)
    fraction, full = np.zeros(len(letter)), np.zeros(len(letter), bool)
    for c, direction in enumerate(directions):
        at = np.flatnonzero(letter == c)
        asked = [f"w{i}" for i in at]
        found = calculator.calculate_absorption(sae, asked, torch.from_numpy(direction), list(main[c]), 0, False).word_results
        fraction[at], full[at] = [r.absorption_fraction for r in found], [r.is_full_absorption for r in found]
    return fraction, full
