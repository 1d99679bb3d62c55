"""Losses of the language model when a reconstruction replaces an activation; only the layers after the hook run.

Per site the clean losses, the clean input of the unembedding (d numbers per token, never the logits) and the
losses under zero and mean ablation are stored once; logits are computed again in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench import progress
from bench.data.text import Rows
from bench.kernels.reconstruction import token_losses
from bench.lm.harvest import Harvest, first_batch, halving, padded
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.store import Arrays, Store, array_sha256

_LOGIT_ROWS = 256
LOSSES = ("ce", "kl", "kl_reverse")


@dataclass(frozen=True)
class Splicer:
    """Loss measurements at one hook on one set of rows.

    Args:
        lm: Language model.
        hook: Place of the splice.
        rows: Token rows.
        x: [n_tokens, d] activations at the hook.
        keep: [n_tokens] tokens that are replaced and scored; the others keep their activation.
        store: Where site-level results are kept.
    """

    lm: LanguageModel
    hook: Hook
    rows: Rows
    x: np.ndarray
    keep: np.ndarray
    store: Store

    @property
    def scored(self) -> np.ndarray:
        """[n_tokens] kept tokens that have a next token in their row."""
        last = np.zeros(len(self.keep), dtype=bool)
        last[self.rows.offsets[1:] - 1] = True
        return self.keep & ~last

    def clean(self) -> Arrays:
        """`final` [n_tokens, d] clean input of the unembedding and `ce` [scored]; stored."""
        return self.store.get("losses", self._parts("clean"), self._run_clean)

    def ablated(self, kind: str) -> Arrays:
        """Losses [scored] with kept activations set to `zero`, or to their `mean`; stored."""
        fill = np.zeros(self.x.shape[1], np.float32) if kind == "zero" else self.x[self.keep].mean(0, dtype=np.float64).astype(np.float32)
        new = np.broadcast_to(fill, (int(self.keep.sum()), len(fill)))
        return self.store.get("losses", self._parts(kind), lambda: self.spliced(new, kind))

    def spliced(self, new: np.ndarray, label: str) -> Arrays:
        """Losses with the kept activations replaced.

        Args:
            new: [kept, d] replacements, in token order.
            label: What is spliced, for the progress bar.

        Returns:
            `ce`, `kl` and `kl_reverse`, each [scored].
        """
        final = self.clean()["final"]
        x = self.x.copy()
        x[self.keep] = new
        start = self._before()
        out = {name: np.zeros(len(self.keep), np.float32) for name in LOSSES}
        with progress.track(f"language model with {label} spliced in", len(self.rows.ids), "tokens") as advance:

            def work(batch: np.ndarray) -> None:
                flat, tail = self._tail(batch, start, x)
                self._score(out, flat, tail, torch.from_numpy(np.asarray(final[flat])))
                advance(len(flat))

            for batch in self._batches():
                halving(batch, work)
        return {name: values[self.scored] for name, values in out.items()}

    def _run_clean(self) -> Arrays:
        final = np.empty_like(self.x)
        ce = np.zeros(len(self.keep), np.float32)
        start = self._before()
        one = np.array([int(self.rows.lengths.argmax())])
        ids, real = padded(self.rows, one)
        at = self.rows.positions(one)
        self.lm.verify_tail(ids, self.hook, self._pad(start, at, real), self._pad(self.x, at, real))
        with progress.track("language model, untouched", len(self.rows.ids), "tokens") as advance:

            def work(batch: np.ndarray) -> None:
                flat, tail = self._tail(batch, start, self.x)
                final[flat] = tail.float().cpu().numpy()
                self._score({"ce": ce}, flat, tail, tail)
                advance(len(flat))

            for batch in self._batches():
                halving(batch, work)
        return {"final": final, "ce": ce[self.scored]}

    def _score(self, out: Arrays, flat: np.ndarray, new: Tensor, clean: Tensor) -> None:
        at = np.flatnonzero(self.scored[flat])
        for i in range(0, len(at), _LOGIT_ROWS):
            block = at[i : i + _LOGIT_ROWS]
            target = torch.from_numpy(self.rows.ids[flat[block] + 1].astype(np.int64)).to(self.lm.device)
            logits = self.lm.logits(new[block])
            losses = token_losses(logits if new is clean else self.lm.logits(clean[block]), logits, target)
            for name, values in out.items():
                values[flat[block]] = losses[name].float().cpu().numpy()

    def _tail(self, batch: np.ndarray, start: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Flat positions of some rows, and the input of the unembedding there when `x` stands at the hook."""
        ids, real = padded(self.rows, batch)
        flat = self.rows.positions(batch)
        tail = self.lm.tail(ids, self.hook, self._pad(start, flat, real), self._pad(x, flat, real))
        return flat, tail[real.to(tail.device)]

    def _before(self) -> np.ndarray:
        """Residual stream before the hook's block; `resid_post` and block 0 need none."""
        if self.hook.site == "resid_post" or self.hook.layer == 0:
            return self.x
        return Harvest(self.lm, Hook(self.hook.layer - 1), self.store).tokens(self.rows)

    def _pad(self, x: np.ndarray, flat: np.ndarray, real: Tensor) -> Tensor:
        out = torch.zeros(*real.shape, x.shape[1])
        out[real] = torch.from_numpy(np.asarray(x[flat]))
        return out.to(self.lm.device, getattr(torch, self.lm.dtype))

    def _batches(self) -> list[np.ndarray]:
        order = np.argsort(-self.rows.lengths, kind="stable")
        width = int(self.rows.lengths.max())
        return np.array_split(order, -(-len(order) * width // first_batch(self.lm)))

    def _parts(self, kind: str) -> dict[str, object]:
        lm = self.lm
        site = {"lm": lm.name, "revision": lm.revision, "lm_dtype": lm.dtype, "hook": str(self.hook)}
        return {**site, "rows": self.rows.sha256, "keep": array_sha256(self.keep), "kind": kind}
