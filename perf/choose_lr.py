"""Which peak learning rate: plain BatchTopK at the candidates of the recipe, judged by FVU on held-out text.

python perf/choose_lr.py --steps 3000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from baselines.activations import harvested
from baselines.batchtopk import BatchTopK
from baselines.trainer import FitConfig, fit
from bench.context import context_for
from bench.data.text import open_corpus
from bench.lm import open_lm
from bench.lm.hooks import parse_hook
from bench.sae.canonical import Canonical
from bench.store import Store

CANDIDATES = (2e-4, 5e-4, 1e-3)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--tokens", type=int, default=2_300_000)
    p.add_argument("--hook", default="blocks.7.hook_resid_post")
    a = p.parse_args()
    store, corpus, lm, hook = Store.default(), open_corpus(), open_lm("embedded:smollm2-135m-q4_1"), parse_hook(a.hook)
    text = context_for(lm, hook, corpus, store).text(16_384)
    data = harvested(lm, hook, corpus, a.tokens, store, seed=0)
    total = np.square(text.kept - text.kept.mean(0)).sum()
    for lr in CANDIDATES:
        with tempfile.TemporaryDirectory() as out:
            fitted = fit(BatchTopK(d_sae=4608, k=32), data, FitConfig(steps=a.steps, lr=lr), Path(out), {})
        sae = Canonical(fitted.sae)
        codes = sae.encode_sparse(text.kept)
        fvu = float(np.square(text.kept - sae.reconstruct(codes)).sum() / total)
        print(
            json.dumps({"lr": lr, "steps": a.steps, "heldout_fvu": round(fvu, 5), "heldout_l0": round(codes.l0().mean(), 3), **fitted.log}),
            flush=True,
        )


if __name__ == "__main__":
    main()
