"""`--norm-scale estimate`: an input scale that a checkpoint does not hold, from the activations of its language model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bench.adapters import Given
from bench.data.text import Corpus, tokenised
from bench.lm.harvest import CALIBRATION_TOKENS, Harvest, keep_mask, norm_cut
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.store import Store

ESTIMATE = "estimate"


def estimated(given: Given, lm: LanguageModel, hook: Hook, corpus: Corpus, store: Store) -> Given:
    """The same facts with the factor √d / E‖x‖ as their scale: normalised activations have norm √d on average.

    The mean is over 8,192 tokens of the training part, without special tokens, first tokens of rows and tokens of
    outlying norm. Libraries that estimate it in training may count those in, which makes their factor smaller.
    """
    rows = tokenised(lm, corpus, "train", CALIBRATION_TOKENS, store)
    x = Harvest(lm, hook, store).tokens(rows)
    kept = x[keep_mask(rows, x, norm_cut(lm, hook, corpus, store))]
    s = math.sqrt(lm.d_model) / float(np.linalg.norm(kept.astype(np.float64), axis=1).mean())
    return replace(given, norm_scale=s, scale_source=f"estimated from {len(kept):,} tokens of {corpus.name} at {hook}")
