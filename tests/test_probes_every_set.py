"""The batched probes equal scikit-learn's on every set of the probing benchmark, at every k."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from bench.data.labelled import catalogue, load_set
from bench.kernels.folds import stratified_sample
from bench.kernels.probes import nested_logistic, rank_by_difference, standardised

KS = (1, 2, 5, 10, 20, 50, 100)
ROWS = 240


@pytest.mark.model  # the sets lie in a package that is fetched once
@pytest.mark.parametrize("name", catalogue())
def test_probes_equal_scikit_learn(name: str) -> None:
    """Counts of hashed words stand for codes: sparse, non-negative, of every scale."""
    full = load_set(name)
    at = stratified_sample(full.labels, ROWS, np.random.default_rng(0))
    y = full.labels[at].astype(np.int64)
    words = HashingVectorizer(n_features=512, norm=None, alternate_sign=False)
    f = words.transform([full.texts[i] for i in at]).toarray()
    order = rank_by_difference(np.stack([f[y == c].mean(0) for c in (0, 1)]))[: max(KS)]
    x, _ = standardised(f[:, order], f[:0, order])
    w, b = nested_logistic(x, y, KS)
    for k in KS:
        i = KS.index(k)
        reference = LogisticRegression(C=1.0, tol=1e-9, max_iter=5_000).fit(x[:, :k], y)
        assert np.abs(w[i, :k] - reference.coef_[0]).max() < 1e-4 and not w[i, k:].any(), k
        assert b[i] == pytest.approx(reference.intercept_[0], abs=1e-4)
