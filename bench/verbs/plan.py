"""`plan`: what a run would do, what is cached, and about how long it takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.verbs.run import (
    AgainstOption,
    BudgetCallsOption,
    BudgetUsdOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    ExplainerOption,
    HookOption,
    JudgeConcurrencyOption,
    JudgeKeyOption,
    JudgeModelOption,
    JudgeOption,
    JudgePriceOption,
    JudgeTimeoutOption,
    JudgeUrlOption,
    KOption,
    LimitOption,
    LmOption,
    RecordsOption,
    SaeOption,
    ScaleOption,
    SeedOption,
    SuiteOption,
    TasksOption,
    TextOption,
    ThresholdOption,
)

if TYPE_CHECKING:
    from bench.spec import RunSpec

HELP = """Show what a run would measure, without measuring it: tasks, cached activations, minutes, memory, disk.

Example:

  python -m bench plan --sae demo:ortsae --suite standard
"""


def plan(
    sae: SaeOption = None,
    suite: SuiteOption = None,
    tasks: TasksOption = None,
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    against: AgainstOption = None,
    records: RecordsOption = None,
    seed: SeedOption = None,
    limit: LimitOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    k: KOption = None,
    threshold: ThresholdOption = None,
    norm_scale: ScaleOption = None,
    judge: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    explainer_model: ExplainerOption = None,
    judge_base_url: JudgeUrlOption = None,
    judge_api_key_env: JudgeKeyOption = None,
    judge_timeout: JudgeTimeoutOption = None,
    judge_concurrency: JudgeConcurrencyOption = None,
    judge_price: JudgePriceOption = None,
    budget_calls: BudgetCallsOption = None,
    budget_usd: BudgetUsdOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    given = dict(locals())
    from bench.spec import make_spec

    values = {n: v for n, v in given.items() if n not in ("config", "as_json")}
    show(make_spec({**values, "sae": tuple(sae) if sae else None}, config), as_json)


plan.__doc__ = HELP


def show(spec: RunSpec, as_json: bool) -> None:
    """Print the plan of a run."""
    from bench.planning import estimate

    lines = estimate(spec)
    if as_json:
        print(json.dumps(lines, indent=1))
        return
    for path, why in lines["refused"].items():
        print(f"{path}  cannot be read: {why}")
    for line in lines["jobs"]:
        print(_line(line))
    total = lines["total"]
    print(
        f"about {total['minutes']:.1f} min on this machine, {total['memory_mib']} MiB of memory, {total['disk_mib']} MiB more in the cache"
    )
    if bill := total["judge"]:
        usd = "price unknown (--judge-price IN,OUT)" if bill["usd"] is None else f"about {bill['usd']:.2f} USD"
        print(f"judge: {bill['calls']} calls, about {bill['tokens_in']} tokens in and {bill['tokens_out']} out, {usd}")


def _line(job: dict[str, Any]) -> str:
    if job["recorded"]:
        return f"{job['sae']:<16} {job['task']:<22} already recorded"
    work = (
        f"{job['read_tokens']:>8} tokens to read ({job['cached_tokens']} cached), {job['tail_tokens']:>7} through the layers after the hook"
    )
    return f"{job['sae']:<16} {job['task']:<22} {work}, about {job['minutes']:.1f} min"
