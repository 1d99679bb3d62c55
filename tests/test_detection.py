"""Scores of verdicts, and agreement of judges, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from bench.kernels.detection import cohens_kappa, verdicts


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_scores_equal_scikit_learns(seed: int, n: int) -> None:
    r = np.random.default_rng(seed)
    active = r.permutation(np.arange(n) < r.integers(1, n))
    score = r.integers(0, 5, n) / 4
    found = verdicts(active, score > 0.5, score)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(active, score > 0.5))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(active, score > 0.5))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(active, score))


def test_always_none_scores_the_share_of_negatives_and_one_half() -> None:
    active, none = np.arange(14) < 4, np.zeros(14, dtype=bool)
    assert verdicts(active, none, np.zeros(14)) == pytest.approx({"accuracy": 10 / 14, "balanced_accuracy": 0.5, "auc": 0.5})


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_kappa_equals_scikit_learns(seed: int, n: int) -> None:
    r = np.random.default_rng(seed)
    a, b = r.random(n) < 0.5, r.random(n) < 0.5
    found = cohens_kappa(a, b)
    if found is None:
        assert len(set(a) | set(b)) == 1
    else:
        assert found == pytest.approx(metrics.cohen_kappa_score(a, b))
        assert cohens_kappa(b, a) == found and cohens_kappa(~a, ~b) == pytest.approx(found)


def test_kappa_of_nothing_is_none() -> None:
    assert cohens_kappa(np.empty(0, dtype=bool), np.empty(0, dtype=bool)) is None
