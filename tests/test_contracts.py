"""Every task and method found by its file keeps the contract that the rest relies on."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import parts
from baselines.parts import State
from bench import citations, registry
from bench.record import Record, subject_task
from bench.references import published_records
from bench.spec import RunSpec
from bench.store import Store
from tests.worlds import tiny_context

TASKS, METHODS = registry.tasks(), registry.methods()
PENALISED = ("relu", "jumprelu", "gated")  # their L0 is reached by training
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_frozen_dataclass_with_defaults_and_words(name: str, tmp_path: Path) -> None:
    cls = TASKS[name]
    task = cls()
    assert is_dataclass(cls) and cls.__dataclass_params__.frozen and cls.name == name and cls.version >= 1
    assert cls.caveats and cls.headline and set(cls.sources) <= set(citations.known())
    assert "Changes:" in cls.__doc__ and len({f.name for f in fields(cls)}) == len(fields(cls))
    assert subject_task(task).params == subject_task(registry.build(cls, subject_task(task).params)).params
    assert all(isinstance(v, str) and v for v in task.data(tiny_context(Store(tmp_path))).values())
    assert (ROOT / "tests" / "golden" / f"{name}@{cls.version}.json").exists(), "a task version needs its golden file"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_one_step_and_exports(name: str) -> None:
    cls = METHODS[name]
    own = {f.name for f in fields(cls)}
    sizes: dict[str, Any] = {"base": METHODS["batchtopk"](d_sae=24, k=4)} if "base" in own else {"d_sae": 24, "k": 4}
    method = cls(**{name: value for name, value in sizes.items() if name in own})
    assert cls.__dataclass_params__.frozen and cls.name == name and cls.__doc__
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=g)
    w = parts.prepared(method, method.init(x.mean(0), g), lambda: x, g)
    m = len(w.W_dec)
    assert m == (method.d_sae or 16)
    for t in w.named().values():
        t.requires_grad_(True)
    state = State(0, 10, torch.zeros(m, dtype=torch.long), 1000)
    terms, forward = method.loss(w, x, state, g)
    sum(terms.values()).backward()
    method.project_grad(w)
    method.constrain(w)
    assert method.update(state, forward).step == 1 and forward.xhat.shape == x.shape
    sae = method.export(w, 0.5, x)
    l0 = float((sae.encode(2 * x) != 0).sum(1).float().mean())
    assert sae.W_dec.shape == (m, 8) and 0 < l0 <= m
    assert name in PENALISED or l0 == pytest.approx(4, abs=0.1) or (name == "mp" and l0 <= 4), "L0 is set, not learned"


@pytest.mark.parametrize("suite", registry.suites())
def test_suites_hold_every_task_and_their_columns_exist(suite: str) -> None:
    found = registry.suites()[suite]
    assert set(found.tasks) == set(TASKS)
    built = {t.name: t for t in RunSpec(suite=suite).built_tasks()}
    for column in found.columns:
        assert column.partition(".")[0] in built


def test_the_published_schema_is_that_of_the_code() -> None:
    kept = json.loads((ROOT / "leaderboard" / "schema" / "record.schema.json").read_text())
    assert kept == Record.model_json_schema()


def test_published_records_are_whole_and_say_what_they_were_measured_with() -> None:
    good, bad = published_records().scan()
    assert not bad and {r.subject.name for r in good} >= {"batchtopk", "ortsae", "random"}
    for r in good:
        assert r.provenance["code"]["sources_sha256"] and r.provenance["environment"]["torch"] and r.units is not None
