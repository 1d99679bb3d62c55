"""Training steps, ours and other libraries', in one process on one thread in turns; CPU seconds of the process.

With the libraries of perf/peers.txt installed as that file says:

    PYTHONPATH=. OMP_NUM_THREADS=1 /tmp/peers/bin/python perf/trainers.py                     # m = 16,384
    ... perf/trainers.py --m 4608 --batch 2048 --k 32
    ... perf/trainers.py --check              # ours and dictionary_learning's BatchTopK take the same steps

Without them:

    OMP_NUM_THREADS=1 python perf/trainers.py --methods-only  # tokens per second of all our methods
    ... perf/trainers.py --penalty            # OrtSAE's penalty against autograd, and its share of a step
    ... perf/trainers.py --dense              # from which share of active codes a dense product is cheaper
    ... perf/trainers.py --curve              # against m and against d: perf/trainers_curve.csv, docs/training_speed.png

A step is loss, gradient, projection, clipping, Adam, unit rows. The floor is 2·B·d·m FLOP, the encoder's product, at the
highest rate at which one core does float32 here. A step can come close to it, or below, because screening multiplies in
bfloat16; what it computes is the same. `compiled` rows appear where the kernel is built.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from trainers_floor import best_rate
from trainers_ours import RATE, SWITCH, Training, built, ours
from trainers_peers import Size, Step, peers, versions

from baselines import ops, sparse
from baselines.batchtopk import BatchTopK
from bench.kernels import products
from bench.kernels.orthogonality import chunks_of, orthogonality

HERE = Path(__file__).parent
OURS = "ours: batchtopk"


def seconds(call: Callable[[], object], rounds: int = 1) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    for _ in range(rounds):
        call()
    return (time.process_time() - start) / rounds


def race(makers: dict[str, tuple[Callable[[], Step], int]], repeat: int) -> dict[str, list[float]]:
    """CPU seconds of the steps of all, in turns, after two steps each that are not counted."""
    steps = {name: (make(), rounds) for name, (make, rounds) in makers.items()}
    for step, _ in steps.values():
        seconds(step, 2)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, (step, rounds) in steps.items():
            spent[name].append(seconds(step, rounds))
    return spent


def table(s: Size, spent: dict[str, list[float]], rate: float) -> None:
    floor, reference = 2 * s.batch * s.d * s.m / rate, statistics.median(spent[OURS])
    print(f"\nm = {s.m:,}, d = {s.d}, B = {s.batch:,}, k = {s.k}; floor {floor:.3f} s at {rate / 1e9:.0f} GFLOP/s\n")
    print("| step | s, median | s, least | tokens/s | ÷ ours | ÷ floor |\n|---|---|---|---|---|---|")
    for name, t in spent.items():
        m = statistics.median(t)
        print(f"| {name} | {m:.3f} | {min(t):.3f} | {s.batch / m:,.0f} | {m / reference:.2f} | {m / floor:.2f} |", flush=True)


def check(s: Size, steps: int) -> None:
    """The same weights, batches and options: losses of both, in float64, where no two pre-activations are nearly equal."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    settings: dict[str, Any] = {"activation_dim": s.d, "dict_size": s.m, "layer": 0, "lm_name": "", "device": "cpu"}
    for dtype, most in ((torch.float64, 1e-7), (torch.float32, 3e-5)):
        mine = Training(BatchTopK(d_sae=s.m, k=s.k), s, "on", dtype=dtype)
        theirs, x, worst = BatchTopKTrainer(steps=100_000, k=s.k, lr=RATE, warmup_steps=0, **settings), s.batches(), 0.0
        theirs.ae.encoder.weight.data = mine.w.W_enc.detach().clone()
        theirs.ae.decoder.weight.data = mine.w.W_dec.detach().T.clone()
        theirs.ae.to(dtype)
        for i in range(steps):
            a, b = mine(), theirs.update(i + 1, next(x).to(dtype))
            worst = max(worst, abs(a / b - 1))
            print(f"  {dtype}, step {i + 1}: ours {a:.9f}, dictionary_learning {b:.9f}")
        print(f"losses differ by {worst:.1e} at most, relatively")
        assert worst < most


def penalty(s: Size, repeat: int) -> None:
    """The penalty and its gradient, against autograd through the cosine matrix; its share of a step at every = 5."""
    steps = {
        label: Training(BatchTopK(d_sae=s.m, k=s.k), s, k) for k, label in (("off", "plain"), ("on", "compiled")) if k == "off" or built()
    }
    w = steps["plain"].w.W_dec.detach().clone()
    chunks = {n: chunks_of(s.m, n, torch.Generator().manual_seed(0)) for n in (8192, 2048)}
    calls: dict[str, Callable[[], object]] = {f"analytic, chunk {n}": lambda c=c: orthogonality(w, c) for n, c in chunks.items()}
    calls |= {f"autograd, chunk {n}": lambda c=c: _by_autograd(w, c) for n, c in chunks.items()} | steps
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            t = seconds(call)
            if i:
                spent[name].append(t)
    best = {name: statistics.median(t) for name, t in spent.items()}
    for n in chunks:
        mine, slow = best[f"analytic, chunk {n}"], best[f"autograd, chunk {n}"]
        shares = ", ".join(f"{mine / 5 / best[label]:.1%} of a {label} step of {best[label]:.3f} s" for label in steps)
        print(f"chunk {n:,}: {mine:.3f} s, by autograd {slow:.3f} s = {slow / mine:.1f} ×; at every = 5: {shares}")


def _by_autograd(w: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
    w = w.clone().requires_grad_()
    total = w.new_zeros(())
    for c in chunks:
        v = w[c] / w[c].norm(dim=1, keepdim=True)
        cosines = (v @ v.T).masked_fill(torch.eye(len(c), dtype=torch.bool), -1)
        total = total + cosines.max(1).values.clamp(min=0).square().mean() / len(chunks)
    return torch.autograd.grad(total, w)[0]


def dense(s: Size) -> None:
    """Decoding and its gradients at several shares of active codes, sparse and dense."""
    w, x = torch.randn(s.m, s.d), torch.randn(s.batch, s.d)
    kept, os.environ[SWITCH] = ops.DENSE_ABOVE, "off"
    print("| active | sparse, s | dense, s |\n|---|---|---|")
    for share in (0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
        flat = torch.nonzero(torch.rand(s.batch * s.m) < share).squeeze(1)
        rows, found = flat // s.m, []
        for above in (1.0, 0.0):
            ops.DENSE_ABOVE = above
            codes = sparse.SparseBatch(rows, flat % s.m, torch.ones(len(flat), requires_grad=True), s.batch)
            found.append(min(seconds(lambda c=codes: sparse.decode(c, w.requires_grad_()).backward(x)) for _ in range(3)))
        print(f"| {share:.0%} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)
    ops.DENSE_ABOVE = kept


def curve(s: Size, repeat: int) -> None:
    """Seconds of a step against m and against d."""
    sizes = [replace(s, m=m, batch=2048) for m in (4608, 9216, 16384, 32768, 65536, 131072, 262144)]
    sizes += [replace(s, d=d, batch=2048) for d in (256, 512, 768, 1024, 2048, 4096)]
    rows = []
    for one in sizes:
        makers = {name: maker for name, maker in ours(one).items() if name.endswith(": batchtopk")}
        for name, t in race(makers, repeat).items():
            rows.append({"m": one.m, "d": one.d, "batch": one.batch, "k": one.k, "step": name, "seconds": round(statistics.median(t), 4)})
            print(rows[-1], flush=True)
    with (HERE / "trainers_curve.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, s)


def draw(rows: list[dict[str, Any]], s: Size) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, across, fixed in ((axes[0], "m", ("d", s.d)), (axes[1], "d", ("m", s.m))):
        some = [r for r in rows if r[fixed[0]] == fixed[1]]
        for name in dict.fromkeys(r["step"] for r in some):
            points = sorted((r[across], r["seconds"] / r["batch"] * 1e3) for r in some if r["step"] == name)
            ax.loglog(*zip(*points, strict=True), "o-", label=name)
            ax.set_xticks([p[0] for p in points], [f"{p[0]:,}" for p in points], rotation=45)
            ax.minorticks_off()
        ax.set(xlabel=f"{across} ({fixed[0]} = {fixed[1]:,})", ylabel="CPU ms per token")
        ax.grid(which="both", alpha=0.3)
    axes[0].legend()
    figure.savefig(HERE.parent / "docs" / "training_speed.png", dpi=120, bbox_inches="tight")


def about(moment: str) -> None:
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    print(f"{moment}: load average {load}", flush=True)


def cpu() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "model\t"))
    ]
    return f"{' model '.join(reversed(names[:2]))}, {os.cpu_count()} CPUs" if names else platform.processor()


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("m", 16384), ("d", 576), ("batch", 4096), ("k", 64), ("repeat", 3)):
        p.add_argument(f"--{name}", type=int, default=default)
    for name in ("methods-only", "penalty", "dense", "curve", "check"):
        p.add_argument(f"--{name}", action="store_true")
    p.add_argument("--only", default="", help="parts of names to time, separated by commas")
    return p.parse_args()


def main() -> None:
    a = options()
    s = Size(a.m, a.d, a.batch, a.k)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        print(f"{cpu()}; torch {torch.__version__}, numpy {np.__version__}")
        about("at the start")
        x = torch.empty(s.batch, s.d)
        print(f"products: {products.ways(torch.empty(s.m, s.d), x)}")
        if a.check:
            check(replace(s, m=2048, batch=512, k=16), 4)
        elif a.penalty:
            penalty(s, a.repeat)
        elif a.dense:
            dense(s)
        elif a.curve:
            curve(s, a.repeat)
        else:
            makers = ours(s)
            if not a.methods_only:
                print(versions())
                makers |= {name: (make, 1) for name, make in peers(s).items()}
            wanted = [part for part in a.only.split(",") if part]
            makers = {n: m for n, m in makers.items() if not wanted or n == OURS or any(part in n for part in wanted)}
            table(s, race(makers, a.repeat), best_rate())
        about("at the end")


if __name__ == "__main__":
    main()
