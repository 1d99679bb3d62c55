"""The compiled kernel: every operation equals the plain one, training goes the same way, and builds are found or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baselines import compiled, ops, parts
from baselines.batchtopk import BatchTopK
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.ortsae import OrtSAE
from baselines.over import Over
from baselines.parts import State, Trainer, Weights
from baselines.topk import TopK
from bench.cli import main
from bench.errors import UnavailableError, UsageError
from tests.worlds import dictionary, sparse_world

QUICK = tuple("-O0" if flag == "-O3" else flag for flag in compiled.FLAGS)  # compiles in half the time
VARIANTS = {  # flags that leave out instructions which this CPU may have
    "all": compiled.FLAGS,
    "without bfloat16": (*QUICK, "-O1", "-mno-avx512bf16"),
    "without AVX-512": (*QUICK, "-O1", "-mno-avx512f"),
}
RELATIVE = 2e-6  # of the sum of absolute products: float32 sums of up to 600 terms in another order
SHAPES = ((1, 1, 1), (1, 576, 100), (7, 5, 3), (13, 19, 33), (64, 37, 333), (200, 200, 1000), (50, 1000, 65), (301, 64, 512))

pytestmark = pytest.mark.skipif(
    compiled.compiler() is None or "avx2" not in compiled._cpu(), reason="the kernel needs a C++ compiler and a CPU with AVX2"
)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache with a build for each variant."""
    roots = {name: tmp_path_factory.mktemp("cache") for name in VARIANTS}
    for name, root in roots.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ORTSAE_CACHE", str(root))
            patch.setattr(compiled, "FLAGS", VARIANTS[name])
            compiled.build()
    return roots


@pytest.fixture(autouse=True)
def _built(caches: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ORTSAE_CACHE", str(caches["all"]))
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    yield
    compiled._loaded.cache_clear()


@pytest.fixture(params=VARIANTS)
def kernel(request: pytest.FixtureRequest, caches: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> compiled.Kernel:
    """The kernel for one instruction set after the other."""
    monkeypatch.setattr(compiled, "FLAGS", VARIANTS[request.param])
    monkeypatch.setenv("ORTSAE_CACHE", str(caches[request.param]))
    compiled._loaded.cache_clear()
    found = compiled.kernel()
    assert found is not None and (request.param == "all" or not found.screens)
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entries(n: int, m: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, ascending, and latents of random codes; some tokens have none."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(n, (count,), generator=g).sort().values, torch.randint(m, (count,), generator=g)


def product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pre-activations in float64, and how far those in float32 may be from them."""
    exact = x.double() @ w.double().T + b.double()
    return exact, RELATIVE * (x.double().abs() @ w.double().abs().T + b.double().abs())


@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("screen", [False, True])
def test_encode_above(kernel: compiled.Kernel, n: int, d: int, m: int, screen: bool) -> None:
    x, w, b = normal(n, d), normal(m, d, seed=1) / d**0.5, normal(m, seed=2)
    exact, error = product(x, w, b)
    for bound in (0.0, 1.3, 2.5, 1e9, -1e9, float("inf"), normal(m, seed=3)):
        flat, values = kernel.encode_above(x, w, b, bound, screen)
        assert torch.equal(flat, flat.unique())  # ascending, none twice
        assert torch.all((values - exact.reshape(-1)[flat]).abs() <= error.reshape(-1)[flat])
        found = torch.zeros(n * m, dtype=torch.bool).index_fill_(0, flat, True).reshape(n, m)
        assert torch.all(found[exact - bound > error]) and not torch.any(found[exact - bound < -error])


@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_encode_top(kernel: compiled.Kernel, n: int, d: int, m: int, screen: bool, k: int, threads: None) -> None:
    x, w, b = normal(n, d), normal(m, d, seed=1) / d**0.5, 0.3 * normal(m, seed=2)
    exact, error = product(x, w, b)
    top = exact.topk(min(k, m), dim=1).values[:, -1:].clamp(min=0)
    for count in (1, 3):
        torch.set_num_threads(count)
        flat, values = kernel.encode_top(x, w, b, k, screen)
        found = torch.zeros(n * m, dtype=torch.bool).index_fill_(0, flat, True).reshape(n, m)
        assert torch.equal(flat, flat.unique()) and torch.all(values > 0)
        assert torch.all((values - exact.reshape(-1)[flat]).abs() <= error.reshape(-1)[flat])
        assert torch.all(found[(exact > error) & (exact >= top + error)])
        assert int(found.sum()) <= (2 * k + 4) * n  # not many others


def test_screening_misses_nothing_where_rounding_does_most(kernel: compiled.Kernel) -> None:
    x = torch.full((300, 512), 1 + 2**-8 - 2**-12)  # bfloat16 makes 1 of it, in both factors: the sum falls by nearly 4
    found = kernel.encode_above(x, x[:40], torch.zeros(40), 515.0, screen=True)[1]
    assert len(found) == 300 * 40 and float(x[0] @ x[0]) > 515.0
    signs = torch.where(normal(40, 512) > 0, 1.0, -1.0)
    flat, _ = kernel.encode_above(signs * x[:40], signs * x[:40], torch.full((40,), -500.0), 15.5, screen=True)
    assert flat.tolist() == [41 * i for i in range(40)]


def test_an_entry_at_its_bound_stays_out(kernel: compiled.Kernel) -> None:
    x, w = torch.eye(5), torch.arange(20, dtype=torch.float32).reshape(4, 5)  # pre-activations are whole numbers
    pre = x @ w.T + 1
    for bound in (7.0, torch.tensor([3.0, 8.0, 12.0, 16.0])):
        for screen in (False, True):
            flat, values = kernel.encode_above(x, w, torch.ones(4), bound, screen)
            assert torch.equal(flat, torch.nonzero((pre > bound).reshape(-1)).squeeze(1))
            assert torch.equal(values, pre.reshape(-1)[flat])


def test_all_of_equal_entries_are_found(kernel: compiled.Kernel, threads: None) -> None:
    for count in (1, 3):
        torch.set_num_threads(count)
        flat, _ = kernel.encode_top(torch.ones(2, 3), torch.ones(5000, 3), torch.zeros(5000), 4)
        assert len(flat) == 10_000  # the caller takes the first four


def test_infinite_and_undefined_tokens(kernel: compiled.Kernel) -> None:
    x = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    for screen in (False, True):
        flat, values = kernel.encode_above(x, torch.ones(3, 2), torch.zeros(3), 0.0, screen)
        assert flat.tolist() == [0, 1, 2, 6, 7, 8] and values.tolist() == [3.0] * 3 + [float("inf")] * 3


@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_sums_dots_and_order(kernel: compiled.Kernel, n: int, d: int, m: int, count: int) -> None:
    (rows, cols), weights, w, g = entries(n, m, count), normal(count, seed=1), normal(m, d, seed=2), normal(n, d, seed=3)
    sums = torch.zeros(n, d, dtype=torch.float64).index_add_(0, rows, weights[:, None].double() * w[cols].double())
    scale = torch.zeros(n, d, dtype=torch.float64).index_add_(0, rows, (weights[:, None] * w[cols]).abs().double())
    assert torch.all((kernel.sums_of_rows(rows, cols, weights, w, n) - sums).abs() <= RELATIVE * scale)
    products = g[rows].double() * w[cols].double()
    dots = kernel.dots_of_rows(rows, cols, g, w)
    assert torch.all((dots - products.sum(1)).abs() <= RELATIVE * products.abs().sum(1))
    assert torch.equal(kernel.by_latent(cols, m), torch.argsort(cols, stable=True))


def test_rows_of_a_table_larger_than_the_cache_s_share(kernel: compiled.Kernel) -> None:
    (rows, cols), weights, w = entries(20, 5000, 900), normal(900, seed=1), normal(5000, 1000)  # 20 MB: several stretches
    products = weights[:, None] * w[cols]
    for order in (slice(None), torch.argsort(rows * 5000 + cols)):  # latents of a token in any order, and ascending
        found = kernel.sums_of_rows(rows[order], cols[order], weights[order], w, 20)
        assert torch.allclose(found, torch.zeros(20, 1000).index_add_(0, rows, products), atol=1e-4)
        dots = kernel.dots_of_rows(rows[order], cols[order], w[:20], w)
        assert torch.allclose(dots, (w[rows] * w[cols]).sum(1)[order], atol=1e-3)


def test_operations_take_views_that_are_not_contiguous(kernel: compiled.Kernel) -> None:
    x, w = normal(6, 40)[:, ::2], normal(20, 9).T
    flat, values = kernel.encode_above(x, w, torch.zeros(18)[::2], 0.0)
    assert torch.allclose(values, (x @ w.T).reshape(-1)[flat], atol=1e-5) and len(flat) > 0


def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    (rows, cols), weights, w = entries(300, 700, 5000), normal(5000, seed=1), normal(700, 96, seed=2)
    found, kernel = [], compiled.kernel()
    assert kernel is not None
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        encoded = [*kernel.encode_above(normal(300, 96), w, torch.zeros(700), 1.0, screen=True), kernel.by_latent(cols, 700)]
        found.append([*encoded, kernel.sums_of_rows(rows, cols, weights, w, 300), kernel.dots_of_rows(rows, cols, w, w)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def moving(m: int, d: int) -> tuple[Weights, torch.optim.Adam]:
    rows = dictionary(m, d)
    w = Weights(normal(m, d, seed=1), normal(m, seed=2), rows, normal(d, seed=3)).map(lambda t: t.requires_grad_(True))
    return w, torch.optim.Adam(list(w.named().values()), lr=0.01, fused=True)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (33, 37), (100, 576)])
@pytest.mark.parametrize("clip", [1e-3, 1e6])
@pytest.mark.parametrize("unit", [True, False])
def test_adam_is_torch_s(kernel: compiled.Kernel, shape: tuple[int, int], clip: float, unit: bool) -> None:
    (a, ours), (b, theirs) = moving(*shape), moving(*shape)
    for step in range(12):
        for seed, (mine, other) in enumerate(zip(a.named().values(), b.named().values(), strict=True)):
            mine.grad = normal(*mine.shape, seed=100 * step + seed)
            other.grad = mine.grad.clone()
        kernel.adam(ours, a.W_dec if unit else None, clip)
        if unit:
            parts.remove_parallel_gradient(b)
        torch.nn.utils.clip_grad_norm_(list(b.named().values()), clip)
        theirs.step()
        if unit:
            parts.unit_rows(b)
    for name, t in a.named().items():
        other = b.named()[name]
        assert torch.allclose(t, other, rtol=1e-4, atol=1e-5), name
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.allclose(ours.state[t][key], theirs.state[other][key], rtol=1e-4, atol=1e-7), (name, key)
    if unit:
        assert torch.allclose(a.W_dec.norm(dim=1), torch.ones(shape[0]), atol=1e-6)


def test_parameters_without_gradients_rest_and_other_optimisers_are_left_alone(kernel: compiled.Kernel) -> None:
    w, opt = moving(6, 4)
    before = w.W_enc.detach().clone()
    w.b_enc.grad = torch.ones(6)
    kernel.adam(opt, w.W_dec, 1.0)
    assert torch.equal(w.W_enc, before) and w.W_enc not in opt.state and float(opt.state[w.b_enc]["step"]) == 1
    params = list(w.named().values())
    assert compiled.steps(opt)
    assert not compiled.steps(torch.optim.AdamW(params)) and not compiled.steps(torch.optim.Adam(params, weight_decay=0.1))
    assert not compiled.steps(torch.optim.Adam(params, amsgrad=True)) and not compiled.steps(torch.optim.Adam(params, maximize=True))
    assert not compiled.steps(torch.optim.Adam([{"params": params[:1]}, {"params": params[1:]}]))


@pytest.fixture(scope="module")
def world() -> torch.Tensor:
    return sparse_world(3200, dictionary(96, 40, seed=3), 4, noise=0.01)


METHODS: dict[str, Trainer] = {
    "batchtopk": BatchTopK(d_sae=256, k=4),
    "topk": TopK(d_sae=256, k=4),
    "matryoshka": Matryoshka(d_sae=256, k=4),
    "ortsae": OrtSAE(base=BatchTopK(d_sae=256, k=4), chunk_size=64),
    "jumprelu": JumpReLU(d_sae=256, k=4),
    "over": Over(base=BatchTopK(d_sae=256, k=4)),
}


Run = tuple[Weights, torch.optim.Adam, State]


def begun(method: Trainer, x: torch.Tensor) -> Run:
    w = method.init(x.mean(0), torch.Generator().manual_seed(0)).map(lambda t: t.requires_grad_(True))
    opt = torch.optim.Adam(list(w.named().values()), fused=True)
    return w, opt, State(0, 200, torch.zeros(method.d_sae, dtype=torch.long), 2000)


def trained(method: Trainer, x: torch.Tensor, run: Run, steps: int) -> tuple[torch.Tensor, list[int], Run]:
    """Loss and number of codes of every step, and where the run stands then."""
    (w, opt, state), losses, counts = run, [], []
    for step in range(state.step, state.step + steps):
        batch, rng = x[step % 50 * 64 : (step % 50 + 1) * 64], torch.Generator().manual_seed(step)
        state, terms, forward = parts.descend(method, w, opt, batch, state, rng, lr=1e-3, clip=1.0)
        losses.append(float(torch.stack(list(terms.values())).sum().detach()))
        counts.append(len(forward.codes.rows))
    return torch.tensor(losses), counts, (w, opt, state)


@pytest.mark.parametrize("name", METHODS)
def test_training_goes_the_same_way(name: str, world: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x = world / (world - world.mean(0)).square().sum(1).mean().sqrt()
    called: list[str] = []
    real = compiled.Kernel.adam
    monkeypatch.setattr(compiled.Kernel, "adam", lambda *a: (called.append("free" if a[2] is None else "unit"), real(*a))[1])
    steps = 40 if name in ("jumprelu", "over") else 200
    losses, counts, (w, _, _) = trained(METHODS[name], x, begun(METHODS[name], x), steps)
    assert called == ["free" if name == "jumprelu" else "unit"] * steps  # jumprelu has a constraint of its own
    monkeypatch.setenv(compiled.SWITCH, "off")
    plain_losses, plain_counts, (plain_w, _, _) = trained(METHODS[name], x, begun(METHODS[name], x), steps)
    assert len(called) == steps
    assert name == "jumprelu" or losses[-1] < 0.9 * losses[0]
    assert torch.allclose(losses, plain_losses, rtol=1e-4, atol=1e-4)
    assert sum(counts) == pytest.approx(sum(plain_counts), rel=1e-4)
    for t, (key, other) in zip(w.named().values(), plain_w.named().items(), strict=True):
        assert float((t - other).detach().norm() / (1e-3 + other.detach().norm())) < 1e-2, key
    assert torch.allclose(w.W_dec.norm(dim=1), torch.ones(256), atol=1e-5)


def test_a_run_goes_on_without_the_kernel_it_began_with(world: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["batchtopk"]
    losses, _, (w, opt, _) = trained(method, world, begun(method, world), 40)
    _, _, run = trained(method, world, begun(method, world), 20)
    monkeypatch.setenv(compiled.SWITCH, "off")
    rest, _, (other, plain_opt, _) = trained(method, world, run, 20)
    assert torch.allclose(losses[20:], rest, rtol=1e-4)
    assert torch.allclose(w.W_dec, other.W_dec, atol=1e-4)
    assert float(opt.state[w.W_dec]["step"]) == float(plain_opt.state[other.W_dec]["step"]) == 40


def test_only_float32_on_the_cpu_takes_the_kernel() -> None:
    assert compiled.kernel(normal(2)) is not None
    assert compiled.kernel(normal(2), normal(2).double()) is None
    assert compiled.kernel(torch.empty(2, device="meta")) is None
    flat, values = ops.encode_above(normal(3, 2).double(), normal(4, 2).double(), torch.zeros(4).double(), 0.0)
    assert values.dtype == torch.float64 and len(flat) > 0


def test_a_build_belongs_to_source_compiler_and_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.kernel() is not None
    for name, value in (("compiler_version", lambda _: "another 99.1"), ("_cpu", lambda: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, name, value)
            compiled._loaded.cache_clear()
            assert compiled.kernel() is None and compiled.status().startswith("not built"), name
    monkeypatch.setattr(compiled, "FLAGS", QUICK)
    compiled.build()
    copies = tuple(Path(shutil.copy(path, tmp_path)) for path in compiled.SOURCES)
    monkeypatch.setattr(compiled, "SOURCES", copies)
    compiled._loaded.cache_clear()
    assert compiled.kernel() is not None
    for path in copies:
        path.write_text(path.read_text() + "\n// changed\n")
        compiled._loaded.cache_clear()
        assert compiled.kernel() is None, path
    compiled.build()
    assert compiled.kernel() is not None


def test_a_damaged_build_is_not_loaded(caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(caches["all"] / "kernels", tmp_path / "kernels")
    for path in (tmp_path / "kernels").glob("*.so"):
        path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path))
    assert compiled.kernel() is None


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "off")
    assert compiled.kernel() is None and compiled.status() == "off (ORTSAE_KERNEL)"
    monkeypatch.setenv(compiled.SWITCH, "no")
    with pytest.raises(UsageError, match="on or off"):
        compiled.kernel()


def test_nothing_is_built_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path))
    assert compiled.kernel(normal(2)) is None and not any(tmp_path.iterdir())
    compiled.announce()
    assert "doctor --build-kernel" in capsys.readouterr().err


def test_without_a_compiler_or_with_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.compiler() is None and compiled.kernel() is None
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler") as refused:
        compiled.build()
    assert refused.value.exit_code == 4 and refused.value.remedy
    source = tmp_path / "broken.cpp"
    source.write_text("int f() { return }")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compiled, "SOURCES", (source,))
    with pytest.raises(UnavailableError, match=r"cannot compile broken\.cpp"):
        compiled.build()
    assert not any((tmp_path / "kernels").iterdir())  # nothing is left behind


def test_doctor_builds_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def doctor(*flags: str) -> int | str | None:
        with pytest.raises(SystemExit) as done:
            main(["doctor", *flags])
        return done.value.code

    monkeypatch.setattr(compiled, "FLAGS", QUICK)
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path))
    assert doctor("--build-kernel", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["training kernel"] == "in use" and facts["compiler"] != "none" and compiled.kernel() is not None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor("--build-kernel") == 4 and "→" in capsys.readouterr().err
