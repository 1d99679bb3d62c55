"""The step of a GPU is torch's own: here on the CPU, as it stands and as torch traces it. tests/test_gpu.py compiles it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from baselines import fused, parts
from baselines.parts import Weights
from tests.worlds import dictionary

Form = tuple[Callable, Callable]


@pytest.fixture(scope="module", params=["as it stands", "traced"])
def form(request: pytest.FixtureRequest) -> Form:
    if request.param == "as it stands":
        return fused._look, fused._move
    look, move = (torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager") for f in (fused._look, fused._move))
    return look, move


def moving(m: int, d: int) -> tuple[Weights, torch.optim.Adam]:
    g = torch.Generator().manual_seed(m)
    w = Weights(torch.randn(m, d, generator=g), torch.randn(m, generator=g), dictionary(m, d), torch.randn(d, generator=g))
    w = w.map(lambda t: t.requires_grad_(True))
    return w, torch.optim.Adam(list(w.named().values()), lr=0.01)


@pytest.mark.parametrize("m", [33, 40, 48, 64, 100])  # of one process, all by the same compiled code
@pytest.mark.parametrize("clip", [1e-2, float("inf")])
@pytest.mark.parametrize("unit", [True, False])
def test_the_step_is_torch_s(form: Form, clip: float, unit: bool, m: int) -> None:
    (a, ours), (b, theirs) = moving(m, 20), moving(m, 20)
    g = torch.Generator().manual_seed(0)
    for i in range(12):
        for name, (mine, other) in enumerate(zip(a.named().values(), b.named().values(), strict=True)):
            rests = name == 1 and i % 3 == 0  # a parameter without a gradient stays as it is
            mine.grad = None if rests else torch.randn(mine.shape, generator=g)
            other.grad = None if mine.grad is None else mine.grad.clone()
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.01 / (i + 1)
        fused._adam(*form, ours, a.W_dec if unit else None, clip)
        if unit:
            parts.remove_parallel_gradient(b)
        torch.nn.utils.clip_grad_norm_(list(b.named().values()), clip)
        theirs.step()
        if unit:
            parts.unit_rows(b)
    for name, t in a.named().items():
        other = b.named()[name]
        assert torch.allclose(t, other, rtol=1e-4, atol=1e-6), name
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.allclose(ours.state[t][key], theirs.state[other][key], rtol=1e-4, atol=1e-7), (name, key)


def test_only_gpus_take_it() -> None:
    assert not fused.takes(torch.zeros(1))
