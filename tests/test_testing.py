"""`check_sae`: every way to get the protocol wrong has its own clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.errors import CheckpointError
from bench.sae.activations import JumpReLU, ReLU, TopK
from bench.sae.dense import DenseSAE
from bench.testing import check_sae
from bench.types import SAE


class Plain:
    """A third party's SAE: nothing of ours."""

    def __init__(self, d_in: int = 6, d_sae: int = 10) -> None:
        g = torch.Generator().manual_seed(0)
        self.W_dec = torch.randn(d_sae, d_in, generator=g)
        self.W_enc = self.W_dec.T.clone()
        self.b = torch.randn(d_in, generator=g)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu((x - self.b) @ self.W_enc)

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + self.b


class BatchTopK(Plain):
    def encode(self, x: Tensor) -> Tensor:
        f = super().encode(x)
        return torch.where(f >= f.flatten().topk(3 * len(x)).values[-1], f, 0)


class Noisy(Plain):
    def encode(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().encode(x), 0.5)


class Wrong(Plain):
    """One function replaced."""

    def __init__(self, **replaced: Any) -> None:
        super().__init__()
        for name, value in replaced.items():
            setattr(self, name, value)


class InTraining(Plain):
    norm = torch.nn.BatchNorm1d(6)

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(self.norm(x))


class Forgetful(Plain):
    """Brings codes back with the last tokens' norms, once, as SAELens does."""

    def encode(self, x: Tensor) -> Tensor:
        self.last = x.norm(dim=1, keepdim=True)
        return super().encode(x / self.last)

    def decode(self, f: Tensor) -> Tensor:
        xhat = super().decode(f) * self.last
        del self.last
        return xhat


class Unready:
    encode = decode = abs

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        raise RuntimeError("not ready")


def without(name: str) -> object:
    class Less:
        pass

    for n in ("W_dec", "encode", "decode"):
        if n != name:
            setattr(Less, n, getattr(Plain(), n))
    return Less()


good = Plain()
BROKEN = {
    "W_dec transposed": (Wrong(W_dec=good.W_dec.T), r"encode cannot take \(8, 10\) float32"),
    "W_dec of a linear layer, square": (
        Wrong(W_dec=good.W_dec[:6].T, decode=lambda f: f @ good.W_dec[:6], encode=lambda x: x),
        "not codes",
    ),
    "W_dec is an array": (Wrong(W_dec=good.W_dec.numpy()), "W_dec is a ndarray, not a torch tensor"),
    "W_dec of three dimensions": (Wrong(W_dec=good.W_dec[None]), r"W_dec has shape \(1, 10, 6\)"),
    "W_dec of whole numbers": (Wrong(W_dec=good.W_dec.long()), "type int64"),
    "W_dec is NaN": (Wrong(W_dec=good.W_dec / 0 * 0), "W_dec holds NaN"),
    "codes that are bits": (Wrong(encode=lambda x: good.encode(x) > 0), "encode returned a Tensor of bool"),
    "a batch norm in training": (InTraining(), r"encode cannot take \(1, 6\) float32: ValueError"),
    "what decodes once": (Forgetful(), "decode takes no codes but those encode gave last: AttributeError"),
    "a property that fails": (Unready(), "W_dec cannot be read: RuntimeError: not ready"),
    "no numbers yet": (Wrong(W_dec=good.W_dec.to("meta")), "on the meta device"),
    "codes and more": (Wrong(encode=lambda x: (good.encode(x), x)), "encode returned a tuple, not one dense tensor"),
    "sparse codes": (Wrong(encode=lambda x: good.encode(x).to_sparse()), "not one dense tensor"),
    "reconstruction in a tuple": (Wrong(decode=lambda f: (good.decode(f),)), "decode returned a tuple"),
    "input changed": (Wrong(encode=lambda x: good.encode(x.mul_(2))), "encode changes its input"),
    "only three dimensions": (Wrong(encode=lambda x: torch.einsum("bsd,df->bsf", x, good.W_enc)), "encode cannot take"),
    "codes too narrow": (Wrong(encode=lambda x: good.encode(x)[:, :-1]), r"encode gave \(8, 9\), not \(8, 10\)"),
    "codes of one row": (Wrong(encode=lambda x: good.encode(x)[0]), r"encode gave \(10,\), not \(8, 10\)"),
    "codes are NaN": (Wrong(encode=lambda x: good.encode(x) * float("nan")), "encode gave NaN"),
    "noise": (Noisy(), "two answers"),
    "depends on the batch": (BatchTopK(), "depends on the rest of the batch"),
    "reconstruction too wide": (Wrong(decode=lambda f: torch.cat([good.decode(f)] * 2, 1)), r"decode gave \(8, 12\), not \(8, 6\)"),
    "reconstruction is infinite": (Wrong(decode=lambda f: good.decode(f) / 0), "decode gave NaN or infinity"),
    "decoder is not linear": (Wrong(decode=lambda f: torch.tanh(good.decode(f))), "decode is not codes"),
    "decoder uses other rows": (Wrong(W_dec=good.W_dec * 2, decode=good.decode), "decode is not codes"),
    "rows in another order": (Wrong(W_dec=good.W_dec.flip(0), decode=good.decode), "decode is not codes"),
}


@pytest.mark.parametrize("sae", [Plain(), Plain(1, 1), Plain(33, 7)], ids=["6 × 10", "1 × 1", "33 × 7"])
def test_a_third_partys_object_passes(sae: Plain) -> None:
    assert isinstance(sae, SAE)
    check_sae(sae)
    check_sae(sae, torch.randn(3, sae.W_dec.shape[1]) * 100)


@pytest.mark.parametrize("act", [ReLU(), TopK(3), JumpReLU(torch.full((10,), 0.2))], ids=lambda a: a.name)
def test_ours_pass(act: Any) -> None:
    check_sae(DenseSAE(good.W_enc, torch.zeros(10), good.W_dec, torch.zeros(6), good.b, act))


@pytest.mark.parametrize("name", ["W_dec", "encode", "decode"])
def test_a_missing_member_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no '{name}'") as e:
        check_sae(without(name))
    assert "bench.types.SAE" in e.value.remedy


@pytest.mark.parametrize("how", BROKEN)
def test_each_mistake_has_its_own_message(how: str) -> None:
    sae, message = BROKEN[how]
    with pytest.raises(CheckpointError, match=message) as e:
        check_sae(sae)
    assert e.value.remedy and e.value.exit_code == 3 and "\n" not in str(e.value)


def test_no_gradient_is_left_behind() -> None:
    sae = Plain()
    sae.W_dec.requires_grad_(True)
    check_sae(sae)
    assert sae.W_dec.grad is None and torch.is_grad_enabled()


class Transposed:
    """Holds its decoder columns where rows belong."""

    W_dec = torch.zeros(4, 6)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 6)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f.new_zeros(len(f), 4)


def test_evaluate_refuses_an_unfit_object_with_the_same_words() -> None:
    import bench

    with pytest.raises(CheckpointError, match="W_dec is") as e:
        bench.evaluate(Transposed(), ["distinct_features"], lm="tiny:random", hook="blocks.1.hook_resid_post")
    assert "transposed" in e.value.remedy or "[d_sae, d_in]" in e.value.remedy


class Layers(torch.nn.Module):
    """Two linear layers, as many libraries hold them."""

    def __init__(self, d_in: int = 6) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(d_in, 10), torch.nn.Linear(10, d_in)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x))

    def decode(self, f: Tensor) -> Tensor:
        return self.decoder(f)


class WithRows(Layers):
    """The same with the property that its error asks for."""

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        return self.decoder.weight.T


def test_linear_layers_are_told_what_to_add() -> None:
    with pytest.raises(CheckpointError, match="no 'W_dec'") as e:
        check_sae(Layers())
    assert "decoder.weight.T" in e.value.remedy
    check_sae(WithRows())
    check_sae(WithRows().to(torch.bfloat16))


def test_an_object_of_three_members_is_evaluated(tmp_path: Path) -> None:
    import bench

    site = {"lm": "tiny:random", "hook": "blocks.1.hook_resid_post"}
    found = bench.evaluate(WithRows(32), ["distinct_features"], **site, limit=2048, records=str(tmp_path))
    assert not found.errors and found.records[0].subject.d_sae == 10


def test_flags_of_checkpoints_are_refused_for_objects() -> None:
    import bench
    from bench.errors import UsageError

    with pytest.raises(UsageError, match="facts of checkpoints"):
        bench.evaluate(WithRows(32), ["distinct_features"], lm="tiny:random", hook="blocks.1.hook_resid_post", k=3)


def test_an_object_that_leaves_its_scale_out_is_measured_with_a_warning(tmp_path: Path) -> None:
    from types import SimpleNamespace

    import bench

    sae = WithRows(32)
    sae.cfg = SimpleNamespace(normalize_activations="expected_average_only_in")
    site = {"lm": "tiny:random", "hook": "blocks.1.hook_resid_post"}
    found = bench.evaluate(sae, ["distinct_features"], **site, limit=2048, records=str(tmp_path))
    assert any("expected_average_only_in" in w for w in found.records[0].warnings)
