"""Every method's loss against plain automatic differentiation of its formula, and its export against its training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines import ops
from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R, norms, redundancy
from baselines.frozen_decoder import FrozenDecoder, covariance_rows
from baselines.frozen_encoder import FrozenEncoder
from baselines.gated import Gated
from baselines.identity import Identity
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.parts import State, Trainer, Weights
from baselines.pca import PCA
from baselines.permuted import Permuted
from baselines.random import Random
from baselines.relu import ReLU
from baselines.soft_frozen_decoder import SoftFrozenDecoder, within
from baselines.sparse import SparseBatch
from baselines.topk import TopK
from bench import registry
from bench.kernels.orthogonality import chunks_of
from bench.sae import activations, pursuit
from bench.sae.dense import DenseSAE

N, D, M, K = 16, 6, 10, 3
DEAD = (1, 2, 4, 7, 9)  # more than k_aux = 3
STATE = State(5, 200, torch.tensor([500 * (i in DEAD) for i in range(M)]), 100, extra={"strength": 0.3})
WARM = 0.5  # step 5 of the 10 that are 5 % of 200
BASE = BatchTopK(d_sae=M, k=K)
METHODS: dict[str, Trainer] = {
    "batchtopk": BASE,
    "topk": TopK(M, K),
    "relu": ReLU(M, K),
    "jumprelu": JumpReLU(M, K, weight=0.7, bandwidth=0.5),
    "gated": Gated(M, K),
    "matryoshka": Matryoshka(M, K),
    "matryoshka random": Matryoshka(M, K, prefixes="random", drawn=6),
    "ortsae": OrtSAE(base=BASE, gamma=0.4, chunk_size=4),
    "ortsae one chunk": OrtSAE(base=BASE, every=1),
    "c2r": C2R(base=BASE, chunk_size=4),
    "c2r alpha": C2R(base=BASE, alpha=0.5, every=1),
    "mp": MP(M, 4),
    "ortsae over matryoshka": OrtSAE(base=Matryoshka(M, K)),
    "c2r over ortsae": C2R(base=OrtSAE(base=BASE, chunk_size=5)),
    "c2r over mp": C2R(base=MP(M, 4)),
    "soft_frozen_decoder": SoftFrozenDecoder(base=BASE),
    "frozen_encoder": FrozenEncoder(base=BASE),
    "frozen_decoder": FrozenDecoder(base=BASE),
    "permuted": Permuted(base=BASE),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(method: Trainer, dtype: torch.dtype = torch.float64) -> Weights:
    """Random numbers in the places that the method has, decoder rows unit."""
    g = generator(7)

    def draw(name: str, t: Tensor) -> Tensor:
        value = torch.randn(t.shape, generator=g, dtype=dtype) * {"b_enc": 0.3, "log_scale": 0.3, "b_mag": 0.3}.get(name, 1.0)
        value = value.abs() * 0.3 * torch.arange(len(value)).clamp(max=1) if name == "threshold" else value  # the first is 0
        return value / value.norm(dim=1, keepdim=True) if name == "W_dec" else value

    named = {n: draw(n, t).requires_grad_(True) for n, t in method.init(torch.zeros(D), g).named().items()}
    return Weights(*(named.pop(n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")), extra=named)


def inputs(dtype: torch.dtype = torch.float64, n: int = N) -> Tensor:
    return torch.randn(n, D, generator=generator(8), dtype=dtype)


# the formulas, everything dense, derivatives by autograd: (loss, codes [n, m])

Reference = tuple[Tensor, Tensor]


def squared(x: Tensor, xhat: Tensor) -> Tensor:
    return (x - xhat).square().sum(1).mean()


def aux(w: Weights, x: Tensor, xhat: Tensor) -> Tensor:
    e, dead = (x - xhat).detach(), list(DEAD)
    pre = torch.relu((x - w.b_dec) @ w.W_enc[dead].T + w.b_enc[dead])
    rank = pre.detach().argsort(1, descending=True).argsort(1)
    ehat = (pre * (rank < D // 2)) @ w.W_dec[dead]
    return (e - ehat).square().sum() / (e - e.mean(0)).square().sum() / 32


def top_codes(method: Trainer, w: Weights, x: Tensor) -> Tensor:
    pre = (x - w.b_dec) @ w.W_enc.T + w.b_enc
    flat = pre.detach() if isinstance(method, TopK) else pre.detach().reshape(1, -1)
    kept = flat.argsort(1, descending=True).argsort(1) < K * (1 if isinstance(method, TopK) else len(x))
    return torch.relu(pre) * kept.reshape(pre.shape)


def of_top(method: Trainer, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    f = top_codes(method, w, x)
    xhat = f @ w.W_dec + w.b_dec
    return squared(x, xhat) + aux(w, x, xhat), f


def of_matryoshka(method: Matryoshka, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    if method.prefixes == "fixed":
        sizes = {round(M * share / 32) for share in (1, 3, 7, 15, 32)} - {0}
    else:  # P(size ≤ s) = (1 − s^−½) / (1 − m^−½)
        u = torch.rand(method.drawn - 1, generator=g, dtype=torch.float64)
        sizes = {M, *(int((1 - p * (1 - M**-0.5)) ** -2) for p in u.tolist())}
    f = top_codes(method, w, x)
    error = sum(squared(x, f[:, :s] @ w.W_dec[:s] + w.b_dec) for s in sizes) / len(sizes)
    return error + aux(w, x, f @ w.W_dec + w.b_dec), f


def of_relu(method: ReLU, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    f = torch.relu((x - w.b_dec) @ w.W_enc.T + w.b_enc)
    return squared(x, f @ w.W_dec + w.b_dec) + 0.3 * WARM * f.sum(1).mean(), f


def of_jumprelu(method: JumpReLU, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    pre, theta, width = (x - w.b_dec) @ w.W_enc.T + w.b_enc, w.extra["threshold"], method.bandwidth
    on, near = (pre > theta).double(), ((pre - theta).abs() < width / 2).double()
    moved = theta - theta.detach()  # 0, with gradient 1
    f = pre * on - (theta / width * near).detach() * moved
    l0 = (on - near / width * moved).sum(1).mean()
    return squared(x, f @ w.W_dec + w.b_dec) + 0.7 * WARM * (l0 / K - 1).square(), pre * on


def of_gated(method: Gated, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    projection = (x - w.b_dec) @ w.W_enc.T
    gate = projection + w.b_enc
    f = (gate > 0) * torch.relu(projection * w.extra["log_scale"].exp() + w.extra["b_mag"])
    open_gate = torch.relu(gate)
    by_gate = open_gate @ w.W_dec.detach() + w.b_dec.detach()
    return squared(x, f @ w.W_dec + w.b_dec) + 0.3 * WARM * open_gate.sum(1).mean() + squared(x, by_gate), f


def of_mp(method: MP, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    r, f = x - w.b_dec, x.new_zeros(len(x), M)
    for _ in range(method.k):
        j = (r @ w.W_dec.T).detach().argmax(1)
        c = (r * w.W_dec[j]).sum(1)
        r, f = r - c[:, None] * w.W_dec[j], f + torch.nn.functional.one_hot(j, M) * c[:, None]
    return r.square().sum(1).mean(), f


def nearest_cosines(w: Tensor, chunk: list[int]) -> list[tuple[int, int, Tensor]]:
    """(i, its nearest j, their cosine) for each row of a chunk, by a double loop."""
    found = []
    for i in chunk:
        cosines = {j: w[i] @ w[j] / (w[i].norm() * w[j].norm()) for j in chunk if j != i}
        j = max(cosines, key=lambda j: float(cosines[j].detach()))
        found.append((i, j, cosines[j]))
    return found


def of_ortsae(method: OrtSAE, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    loss, f = reference(method.base, w, x, g)
    chunks = [c.tolist() for c in chunks_of(M, method.chunk_size, g)]
    means = [torch.stack([cosine.clamp(min=0) ** 2 for _, _, cosine in nearest_cosines(w.W_dec, c)]).mean() for c in chunks]
    return loss + method.gamma * method.every * torch.stack(means).mean(), f


def of_c2r(method: C2R, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    loss, f = reference(method.base, w, x, g)
    norm = [f[:, i].norm() if bool(f[:, i].any()) else f.new_zeros(()) for i in range(M)]
    scale = 5 * math.sqrt(2048 / len(x)) * math.sqrt(M / 65536) * method.every
    for chunk in chunks_of(M, method.chunk_size, g):
        for i, j, cosine in nearest_cosines(w.W_dec, chunk.tolist()):
            used = norm[i] + norm[j]
            if bool(used.detach() > 0):
                loss = loss + scale / M * used**method.alpha * cosine.clamp(min=0) ** 2
    return loss, f


def reference(method: Trainer, w: Weights, x: Tensor, g: torch.Generator) -> Reference:
    kinds = {ReLU: of_relu, JumpReLU: of_jumprelu, Gated: of_gated, Matryoshka: of_matryoshka, MP: of_mp, OrtSAE: of_ortsae, C2R: of_c2r}
    if type(method) in kinds:
        return kinds[type(method)](method, w, x, g)
    return reference(method.base, w, x, g) if hasattr(method, "base") else of_top(method, w, x, g)


@pytest.mark.parametrize("dense_above", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_the_formula(name: str, dense_above: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "DENSE_ABOVE", dense_above)
    method, x = METHODS[name], inputs()
    a, b = weights(method), weights(method)
    terms, forward = method.loss(a, x, STATE, generator(3))
    expected, codes = reference(method, b, x, generator(3))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    expected.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert torch.allclose(dense(forward.codes), codes.detach(), atol=1e-10)
    for n, t in a.named().items():
        want = b.named()[n].grad
        assert torch.allclose(t.grad if t.grad is not None else torch.zeros_like(t), want if want is not None else 0 * t, atol=1e-9), n


def dense(codes: SparseBatch) -> Tensor:
    return ops.scattered(codes.rows, codes.cols, codes.values.detach(), codes.n, M)


def test_every_method_with_a_loss_is_compared() -> None:
    untrained = {"random", "pca", "identity"}
    assert set(registry.methods()) - untrained <= {n.split(" ")[0] for n in METHODS}


# pieces


def test_random_prefixes_follow_a_truncated_pareto_distribution() -> None:
    method = Matryoshka(4096, 3, prefixes="random", drawn=10)
    drawn = [method.sizes(generator(i)) for i in range(400)]
    assert all(s[-1] == 4096 and s[0] >= 1 and len(s) <= 10 and list(s) == sorted(set(s)) for s in drawn)
    above = np.mean([sum(16 < size < 4096 for size in sizes) for sizes in drawn])  # few of these are drawn twice
    assert above == pytest.approx(9 * (17**-0.5 - 4096**-0.5) / (1 - 4096**-0.5), abs=0.25)


def test_norms_by_hand_and_the_gradient_of_a_silent_latent_is_zero() -> None:
    values = torch.tensor([3.0, 4.0, 2.0], requires_grad=True)
    found = norms(SparseBatch(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), values, 2), 4)
    assert found.tolist() == [5, 0, 2, 0]
    found.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.6, 0.8, 1])
    w, none = torch.randn(4, 3, generator=generator(0), requires_grad=True), torch.zeros(4, requires_grad=True)
    redundancy(w, none, (torch.arange(4),), 0.5).backward()
    assert none.grad.tolist() == [0] * 4 and not bool(w.grad.any())
    assert float(redundancy(w.detach(), torch.ones(4), tuple(torch.arange(4).split(1)), 1.0)) == 0  # nobody to be near to


def test_c2r_does_not_depend_on_the_size_of_the_batch() -> None:
    x, method = inputs(n=64), C2R(base=ReLU(M, K), chunk_size=M)
    one, four = (float(method.loss(weights(method), data, STATE, generator(0))[0]["c2r"].detach()) for data in (x, x.repeat(4, 1)))
    assert one == pytest.approx(four) and one > 0


@pytest.mark.parametrize("cosine_", [0.5, 0.8])
def test_projection_keeps_rows_unit_and_near(cosine_: float) -> None:
    g = generator(0)
    start, rows = (torch.nn.functional.normalize(torch.randn(200, 5, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    rows[0], rows[1] = -start[0], start[1]
    found = within(rows, start, cosine_)
    assert torch.allclose(found.norm(dim=1), torch.ones(200, dtype=torch.float64)) and bool(
        ((found * start).sum(1) > cosine_ - 1e-12).all()
    )
    kept = (rows * start).sum(1) >= cosine_
    assert kept.sum() > 3 and torch.equal(found[kept], rows[kept])
    moved = ~kept & (torch.arange(200) > 0)
    plane = (found * rows).sum(1) - cosine_ * (start * rows).sum(1)  # the nearest lies between row and start
    assert bool((plane[moved] > 0).all()) and torch.allclose((found * start).sum(1)[moved], torch.tensor(cosine_, dtype=torch.float64))


def test_covariance_rows_have_the_covariance_of_the_data() -> None:
    x = torch.randn(4000, 3, generator=generator(1)) * torch.tensor([3.0, 1.0, 0.0]) + 5
    rows = covariance_rows(x, 5000, generator(2))
    assert torch.allclose(rows.norm(dim=1), torch.ones(5000), atol=1e-5) and float(rows[:, 2].abs().max()) < 1e-3
    assert float((rows[:, 0].abs() > rows[:, 1].abs()).float().mean()) == pytest.approx(2 / math.pi * math.atan(3), abs=0.02)


# exports


@pytest.mark.parametrize("name", [*METHODS, "random", "identity"])
def test_exported_codes_are_those_of_training(name: str) -> None:
    method = {**METHODS, "random": Random(M, K), "identity": Identity(K)}[name]
    w, x, scale = weights(method, torch.float32), inputs(torch.float32, 300), 0.5
    w = w if name != "identity" else method.init(w.b_dec.detach(), generator(0))
    codes = method.loss(w, x, replace(STATE, silent=0 * STATE.silent), generator(0))[1].codes
    trained = ops.scattered(codes.rows, codes.cols, codes.values.detach(), codes.n, len(w.W_dec))
    sae = method.export(w, scale, inputs(torch.float32, 900)[300:])
    unshuffled = (x / scale)[:, _permutation(method)] if name == "permuted" else x / scale
    exported = scale * sae.encode(unshuffled)
    if isinstance(sae, DenseSAE) and isinstance(sae.act, activations.JumpReLU) and not isinstance(method, JumpReLU | Gated):
        theta, least = scale * float(sae.act.threshold[0]), float(codes.values.detach().min())
        differ = ((trained != 0) != (exported != 0)).nonzero(as_tuple=True)
        values = trained[differ] + exported[differ]
        assert bool(((values > min(theta, least) - 1e-5) & (values < max(theta, least) + 1e-5)).all())
        trained[differ] = exported[differ] = 0
        assert len(differ[0]) < 0.2 * len(codes.values)
    assert torch.allclose(trained, exported, atol=1e-5) and bool((trained != 0).any())


def _permutation(method: Permuted) -> Tensor:
    """Where the export looks for each dimension of what the base was trained on: the exported rows say so."""
    w = weights(method, torch.float32)
    rows = method.export(w, 1.0, inputs(torch.float32)).W_dec
    found = torch.tensor([next(j for j in range(D) if torch.equal(rows[:, j], w.W_dec.detach()[:, i])) for i in range(D)])
    assert sorted(found.tolist()) == list(range(D)) and found.tolist() != list(range(D))
    return torch.argsort(found)


def test_principal_directions_alone_reconstruct_everything_and_the_first_most() -> None:
    x = (
        inputs(torch.float32, 500)
        * torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.2])
        @ torch.linalg.qr(torch.randn(D, D, generator=generator(4))).Q
    )
    mean = x.mean(0)

    def unexplained(k: int) -> float:
        sae = PCA(k).export(PCA(k).init(mean, generator(0)), 1.0, x)
        assert sae.W_dec.shape == (2 * D, D)
        return float((x - sae.decode(sae.encode(x))).square().sum() / (x - mean).square().sum())

    values = torch.linalg.eigvalsh(torch.cov(x.T))
    assert unexplained(D) < 1e-10 and unexplained(1) < 1 - float(values[-1] / values.sum())  # each token its own largest
    identity = Identity(D).export(Identity(D).init(mean, generator(0)), 1.0, x)
    assert torch.allclose(identity.decode(identity.encode(x)), x, atol=1e-5)


def test_a_pursuit_without_the_matrix_of_products_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for most in (pursuit.GRAM, 0):
        monkeypatch.setattr(pursuit, "GRAM", most)
        w = weights(METHODS["mp"])
        METHODS["mp"].loss(w, inputs(), STATE, generator(0))[0]["mse"].backward()
        grads.append(w)
    assert pursuit.gram_of(grads[0].W_dec) is None
    assert all(torch.allclose(getattr(grads[0], n).grad, getattr(grads[1], n).grad, atol=1e-12) for n in ("W_dec", "b_dec"))
