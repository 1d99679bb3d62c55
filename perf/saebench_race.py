"""What the comparison with SAEBench needs on both sides: the clock, SAEs of equal weights, and the machine's rates."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from transformers import LlamaConfig, LlamaModel

from bench.sae.activations import JumpReLU
from bench.sae.dense import DenseSAE
from perf.saebench_common import filled, silence, their_sae

D_IN, TOKENS, LETTERS = 576, 128, 20
_LEAN, _PER_LETTER = 0.5, 3  # rows that lean towards a letter's direction, and how many beside its main latent


def race(*candidates: Callable[[], object], repeats: int = 2) -> list[float]:
    """Least CPU seconds of each candidate; they take turns, so that all see the same state of the machine."""
    best = [np.inf] * len(candidates)
    with silence():
        for _ in range(repeats):
            for i, candidate in enumerate(candidates):
                torch.set_grad_enabled(False)  # SAEBench's probe training switches it on for good
                start = time.process_time()
                candidate()
                best[i] = min(best[i], time.process_time() - start)
    return best


def peak_mib(call: Callable[[], object]) -> float:
    """Memory that a call takes at its peak beyond what was there before; it is called twice, so that nothing is the first time."""
    call()
    before = _memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
    result = call()
    found = _memory_mib("VmHWM") - before
    del result
    return found


def _memory_mib(field: str) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


@dataclass(frozen=True)
class Size:
    """One dictionary size, and both sides' SAE with the same weights."""

    d_sae: int
    l0: int

    @cached_property
    def rows(self) -> np.ndarray:
        """Unit decoder rows; the first ones are the directions of letters, the next lean towards them."""
        w = np.random.default_rng(self.d_sae).standard_normal((self.d_sae, D_IN)).astype(np.float32)
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        near = slice(LETTERS, LETTERS * (1 + _PER_LETTER))
        w[near] = _LEAN * np.tile(w[:LETTERS], (_PER_LETTER, 1)) + np.sqrt(1 - _LEAN**2) * w[near]
        return w / np.linalg.norm(w, axis=1, keepdims=True)

    @cached_property
    def threshold(self) -> float:
        pre = gaussian(256) @ self.rows.T
        return float(np.partition(pre.ravel(), -256 * self.l0)[-256 * self.l0])

    @cached_property
    def ours(self) -> DenseSAE:
        w, zero = torch.from_numpy(self.rows), torch.zeros(D_IN)
        return DenseSAE(w.T.contiguous(), torch.zeros(self.d_sae), w, zero, zero, JumpReLU(torch.full((self.d_sae,), self.threshold)))

    @cached_property
    def theirs(self) -> JumpReluSAE:
        return their_sae(**self._weights)

    @cached_property
    def lens(self) -> JumpReLUSAE:
        return filled(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=self.d_sae)), **self._weights)

    @property
    def _weights(self) -> dict[str, torch.Tensor]:
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        return {**{n: getattr(self.ours, n) for n in names}, "threshold": self.ours.act.threshold}


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, D_IN)).astype(np.float32)


def gemm_rate() -> float:
    """Best multiply-add rate, FLOP/s, of torch and NumPy at the encoder's shape."""
    a, b = gaussian(512), gaussian(16384).T.copy()
    return 2 * 512 * D_IN * 16384 / min(race(lambda: torch.from_numpy(a) @ torch.from_numpy(b), lambda: a @ b, repeats=5))


def lm_rate() -> float:
    """Tokens per CPU second through half of a model of 135M parameters (random weights, 8 rows of 128 tokens)."""
    shape = {"hidden_size": D_IN, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152}
    model = LlamaModel(LlamaConfig(num_hidden_layers=15, **shape)).eval()
    ids = torch.arange(8 * TOKENS).reshape(8, TOKENS)
    return 8 * TOKENS / race(lambda: model(ids))[0]


def row(
    stage: str,
    s: Size,
    seconds: tuple[float, float],
    goal: str,
    note: str,
    calls: tuple[Callable[[], object], Callable[[], object]] | None = None,
) -> None:
    """One line of the table: SAEBench's seconds, ours, their ratio; and the memory of both at its peak where the calls are given."""
    theirs, ours = seconds
    with silence():
        peaks = [f"{peak_mib(call):,.1f}" for call in calls] if calls else ["", ""]
    line = [stage, f"{s.d_sae:,}", f"{theirs:,.3g}", f"{ours:,.3g}", f"**{theirs / ours:.3g}×**", goal, *peaks, note]
    print(f"| {' | '.join(line)} |", flush=True)
