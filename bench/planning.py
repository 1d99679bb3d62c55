"""What a run would cost: tokens to read, passes through the layers after the hook, minutes, memory, disk.

Minutes come from the number of floating-point operations and a half-second measurement of this machine's
matrix product; they are estimates within a factor of about two.
"""

from __future__ import annotations

import time
from typing import Any

from bench.judge.limits import cost, price_of
from bench.lm.hf import LanguageModel
from bench.record import Records
from bench.runner import Job, workload
from bench.spec import RunSpec
from bench.types import Work

_PER_MESSAGE = 5  # tokens that a chat's template puts around a message
_EFFICIENCY = 0.6  # share of a bare matrix product's speed that a whole model reaches


def estimate(spec: RunSpec) -> dict[str, Any]:
    """The plan of a run as plain data."""
    todo, seen, planned = workload(spec), set[str](), []
    flops = 0.0
    for job in todo.jobs:
        line = _job(job, todo.records, seen)
        flops = flops or (0.0 if line["recorded"] else _speed())
        line["minutes"] = round(line.pop("gflop") / flops / 60, 2) if flops and not line["recorded"] else 0.0
        planned.append(line)
    total: dict[str, Any] = {k: sum(line[k] for line in planned) for k in ("minutes", "disk_mib")}
    total["judge"] = _bill([line["judge"] for line in planned if "judge" in line], spec)
    total["memory_mib"] = max((line["memory_mib"] for line in planned), default=0)
    return {"jobs": planned, "refused": {path: str(e) for path, e in todo.refused.items()}, "total": total}


def _job(job: Job, records: Records, seen: set[str]) -> dict[str, Any]:
    base = {
        "sae": job.subject.name,
        "task": f"{job.facts.name}@{job.facts.version}",
        "recorded": False,
        "gflop": 0.0,
        "memory_mib": 0,
        "disk_mib": 0,
    }
    if records.find(job.subject, job.facts, job.key) is not None:
        return {**base, "recorded": True}
    if not job.context.has_lm:  # drawn, not read
        return {**base, "read_tokens": 0, "cached_tokens": 0, "tail_tokens": 0}
    lm, work = job.context.lm, job.task.work(job.context)
    place = f"{job.subject.lm} {job.subject.revision} {job.subject.hook} "
    new = {k: v for k, v in work.read.items() if place + k not in seen}  # a text read for one task serves the next
    seen.update(place + k for k in work.read)
    total, cached = sum(t for t, _ in new.values()), sum(c for _, c in new.values())
    layer = 2 * sum(p.numel() for p in lm.blocks[0].parameters())
    above, below = lm.n_layers - job.context.hook.layer - 1, job.context.hook.layer + 1
    head = 2 * lm.d_model * lm.model.config.get_text_config().vocab_size
    gflop = (
        (total - cached) * layer * below + work.tail * (layer * above + 2 * head) + total * job.sae.encode_flop
    ) / 1e9 + work.gflop_per_latent * job.subject.d_sae
    weights = sum(p.numel() for p in lm.model.parameters()) * 4 + 2 * 4 * job.subject.d_in * job.subject.d_sae
    memory = (weights + 2 * 4 * total * lm.d_model) / 2**20 + 1024
    disk = 4 * lm.d_model * (total - cached) / 2**20
    asked = {"judge": _asked(work, lm)} if work.calls and job.context.judge.identity["judge"] == "openai" else {}
    return {
        **base,
        **asked,
        "read_tokens": total,
        "cached_tokens": cached,
        "tail_tokens": work.tail,
        "gflop": gflop,
        "memory_mib": round(memory),
        "disk_mib": round(disk),
    }


def _asked(work: Work, lm: LanguageModel) -> dict[str, int]:
    """Calls of a judge and their tokens, counted by the language model's tokenizer on typical questions."""
    from bench.judge import prompts

    found = {"calls": 0, "tokens_in": 0, "tokens_out": 0}
    for n, question in work.calls:
        words = [m["content"] for m in prompts.messages(question)]
        found["calls"] += n
        found["tokens_in"] += n * sum(len(lm.tokenizer(w, add_special_tokens=False)["input_ids"]) + _PER_MESSAGE for w in words)
        found["tokens_out"] += n * prompts.usual_answer(question)
    return found


def _bill(asked: list[dict[str, int]], spec: RunSpec) -> dict[str, Any] | None:
    """What all calls cost; None where nobody is paid, a cost of None where the price is unknown."""
    if not asked:
        return None
    tokens = {k: sum(a[k] for a in asked) for k in ("calls", "tokens_in", "tokens_out")}
    price = price_of(spec.judge_price)
    return {**tokens, "usd": round(cost(price, tokens["tokens_in"], tokens["tokens_out"]), 4) if price else None}


def _speed() -> float:
    """GFLOP/s of the language model on this machine, from a short matrix product."""
    import torch

    a, b = torch.randn(2048, 576), torch.randn(576, 2048)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        torch.matmul(a, b)
        n += 1
    return n * 2 * 2048 * 2048 * 576 / 1e9 / (time.perf_counter() - start) * _EFFICIENCY
