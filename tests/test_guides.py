"""The files shown in the guides work as they stand."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from baselines.parts import describe
from baselines.trainer import FitConfig, fit
from bench.adapters import Given, open_checkpoint
from bench.sae.canonical import Canonical
from bench.store import Store
from tests.worlds import dictionary, sparse_world, tied_sae, tiny_context, training_set

DOCS = Path(__file__).parents[1] / "docs"


def shown(page: str, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The Python block of a guide as a module."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    code = re.search(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    exec(compile(code[1], page, "exec"), module.__dict__)
    return module


def test_the_task_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = shown("add_a_task.md", "guide_task", monkeypatch).TokenL0(tokens=600)
    ctx = tiny_context(Store(tmp_path))
    found = task.run(Canonical(tied_sae(dictionary(40, 32), -0.05)), ctx)
    metric = found.metrics["relative_spread"]
    assert metric.value > 0 and metric.interval is not None and metric.n == len(found.units["spread"])
    assert task.work(ctx).read and task.data(ctx)


def test_the_method_of_the_guide_trains_and_wraps_any_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.batchtopk import BatchTopK
    from baselines.ortsae import OrtSAE

    cheap = shown("add_a_method.md", "guide_method", monkeypatch).Cheap
    data = training_set(sparse_world(3000, dictionary(32, 16), 3))
    for i, base in enumerate((BatchTopK(d_sae=40, k=3), OrtSAE(base=BatchTopK(d_sae=40, k=3)))):
        fitted = fit(
            cheap(base=base, weight=0.1), data, FitConfig(steps=40, batch=128), tmp_path / str(i), {"lm": "x", "revision": "", "hook": "h"}
        )
        assert "cost" in fitted.log and describe(cheap(base=base))["base"]["method"] == base.name
        assert torch.equal(open_checkpoint(tmp_path / str(i), Given()).sae.W_dec, fitted.sae.W_dec)
