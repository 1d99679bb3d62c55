"""Nearest cosine of every decoder row: our kernel against the plain way, in one process, on one thread, in turns.

    OMP_NUM_THREADS=1 python perf/cosine.py
    OMP_NUM_THREADS=1 python perf/cosine.py --survey 65536     # the one pass that the task makes, and its memory

Seconds are CPU seconds of the process, the least of some repetitions. The floor is m² · d FLOP (every product once, two
FLOP each) at 126 GFLOP/s, what a loop of multiply-adds reaches on one Zen 3 core, or at the rate of a large product
measured here where that is higher. With SAEBench installed, its own function is timed too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from bench.kernels.cosine import nearest_cosine
from bench.kernels.graphs import clustering, survey
from bench.kernels.orthogonality import orthogonality

PEAK = 126e9
D = 576


def plain(w: torch.Tensor, rows: int) -> torch.Tensor:
    """All m² products in chunks of rows."""
    v = torch.nn.functional.normalize(w, dim=1)
    out = []
    for i in range(0, len(v), rows):
        s = v[i : i + rows] @ v.T
        s.diagonal(offset=i).fill_(-1)
        out.append(s.max(dim=1).values)
    return torch.cat(out)


def candidates(w: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed; the last is the training penalty on all pairs."""
    found: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: nearest_cosine(w),
        "plain, 100 rows at a time": lambda: plain(w, 100),
        "plain, 1,024 rows at a time": lambda: plain(w, 1024),
    }
    try:
        from sae_bench.evals.core.main import calculate_max_cosine_sim
    except ImportError:
        pass
    else:
        found["SAEBench"] = lambda: calculate_max_cosine_sim(w.T)
    return found | {"penalty and gradient": lambda: orthogonality(w, (torch.arange(len(w)),))[1]}


def seconds(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


def product_rate() -> float:
    a, b = torch.randn(1024, D), torch.randn(4096, D)
    return 2 * 1024 * 4096 * D / min(seconds(lambda: a @ b.T)[0] for _ in range(20))


def compare(m: int, repeat: int) -> None:
    w = torch.randn(m, D, generator=torch.Generator().manual_seed(0))
    calls = candidates(w)
    best, answers = dict.fromkeys(calls, np.inf), {}
    for _ in range(repeat):
        for name, call in calls.items():
            spent, answers[name] = seconds(call)
            best[name] = min(best[name], spent)
    rate = max(PEAK, product_rate())
    print(f"m = {m:,}, d = {D}: floor {m * m * D / rate:.3f} s at {rate / 1e9:.0f} GFLOP/s")
    for name, spent in best.items():
        other = (
            "" if name == "penalty and gradient" else f", greatest difference {float((answers[name] - answers['ours']).abs().max()):.0e}"
        )
        print(f"  {name:28s} {spent:7.3f} s = {spent / best['ours']:.2f} × ours, {spent * rate / (m * m * D):.2f} × the floor{other}")


def peak_gib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def whole_survey(m: int) -> None:
    """Nearest cosines, all pairs of the densest graph, clustering at every density."""
    w, before = torch.randn(m, D, generator=torch.Generator().manual_seed(0)), peak_gib()
    counts = tuple(round(10 ** (-5 + i / 3) * m * (m - 1) / 2) for i in range(10))
    start = time.process_time()
    found = survey(w, np.ones(m, dtype=bool), 0.3, counts[-1], 24_000_000)
    middle = time.process_time()
    values = [c.coefficient for c in clustering(found.pairs, counts)]
    print(f"survey of {m:,} rows: {middle - start:.1f} s, {len(found.pairs.cosine):,} pairs held")
    print(f"clustering: {time.process_time() - middle:.1f} s, {values}")
    print(f"peak {peak_gib() - before:.2f} GiB above the dictionary and the imports ({before:.2f} GiB)")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--m", type=int, action="append")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--survey", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.survey:
        whole_survey(a.survey)
        return
    print(f"product of 1,024 × {D} and {D} × 4,096: {product_rate() / 1e9:.1f} GFLOP/s")
    for m in a.m or (4608, 16384):
        compare(m, a.repeat)


if __name__ == "__main__":
    main()
