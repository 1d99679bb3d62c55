"""`run`: evaluate SAEs and print their rows beside the baselines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.runner import Outcome
    from bench.spec import RunSpec

HELP = """Evaluate SAEs on a suite of tasks.

A reference is a path to a checkpoint of any known format (docs/formats.md), a folder of several such as a sweep, demo:NAME,
hf:REPO or saelens:RELEASE/ID.
What is already recorded is not measured again, so an interrupted run goes on where it stopped.

Examples:

  python -m bench run --sae demo:ortsae --suite smoke

  python -m bench run --sae ./my_sae --lm hf:gpt2 --hook blocks.5.hook_resid_post

  python -m bench run --sae ./my_sweep --suite smoke

  python -m bench run --sae demo:ortsae --sae demo:batchtopk --tasks reconstruction --limit 4096

  python -m bench run --sae demo:ortsae --tasks autointerp --judge openai --judge-model gpt-4o-mini --budget-calls 500
"""

SaeOption = Annotated[list[str] | None, typer.Option("--sae", help="SAE to evaluate; may be given several times.")]
SuiteOption = Annotated[str | None, typer.Option(help="Suite name or file: smoke, standard (default), paper.")]
TasksOption = Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")]
LmOption = Annotated[str | None, typer.Option(help="Language model, where the checkpoint does not name it: hf:NAME[@rev], a folder.")]
HookOption = Annotated[str | None, typer.Option(help="Hook, where the checkpoint does not name it: blocks.L.hook_resid_post.")]
TextOption = Annotated[str | None, typer.Option(help="Text to measure on: pypi:sae-probes (default), file:PATH, hf:NAME.")]
RecordsOption = Annotated[str | None, typer.Option(help="Folder of records [$ORTSAE_RECORDS or ./ortsae-results].")]
AgainstOption = Annotated[str | None, typer.Option(help="SAE whose dictionary this one is compared with.")]
SeedOption = Annotated[int | None, typer.Option(help="Root of every random draw [0].")]
LimitOption = Annotated[int | None, typer.Option(help="Cap every task's tokens, rows, words and texts.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto (default), cpu, cuda.")]
DtypeOption = Annotated[str | None, typer.Option(help="Language model precision: float32 (default), bfloat16.")]
KOption = Annotated[int | None, typer.Option(help="Active latents per token, where the file lacks it.")]
ThresholdOption = Annotated[float | None, typer.Option(help="Activation threshold, where the file lacks it.")]
ScaleOption = Annotated[
    str | None, typer.Option(help="Input scale of training, where the file lacks it; estimate: from the model's activations.")
]
_JUDGE = "Judge of latents"
JudgeOption = Annotated[str | None, typer.Option(help="statistics (default, offline), openai, replay:PATH.", rich_help_panel=_JUDGE)]
JudgeModelOption = Annotated[str | None, typer.Option(help="Model of the server, such as gpt-4o-mini.", rich_help_panel=_JUDGE)]
ExplainerOption = Annotated[str | None, typer.Option(help="Another model to explain with.", rich_help_panel=_JUDGE)]
JudgeUrlOption = Annotated[
    str | None, typer.Option(help="Any server of chat completions: http://localhost:8000/v1.", rich_help_panel=_JUDGE)
]
JudgeKeyOption = Annotated[str | None, typer.Option(help="Variable that holds the key [OPENAI_API_KEY].", rich_help_panel=_JUDGE)]
JudgeTimeoutOption = Annotated[float | None, typer.Option(help="Seconds for one call [60].", rich_help_panel=_JUDGE)]
JudgeConcurrencyOption = Annotated[int | None, typer.Option(help="Calls in flight at most [32].", rich_help_panel=_JUDGE)]
JudgePriceOption = Annotated[str | None, typer.Option(help="IN,OUT in USD per million tokens.", rich_help_panel=_JUDGE)]
BudgetCallsOption = Annotated[int | None, typer.Option(help="Stop before more calls than this.", rich_help_panel=_JUDGE)]
BudgetUsdOption = Annotated[float | None, typer.Option(help="Stop before more USD than this.", rich_help_panel=_JUDGE)]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with the same names as these flags.")]


def run(
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
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON instead of tables.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Show what would run; the same as plan.")] = False,
) -> None:
    values = {k: v for k, v in locals().items() if k not in ("config", "as_json", "dry_run")}
    from bench.spec import make_spec

    spec = make_spec({**values, "sae": tuple(sae) if sae else None}, config)
    if dry_run:
        from bench.verbs.plan import show

        show(spec, as_json)
        return
    raise typer.Exit(execute(spec, as_json))


run.__doc__ = HELP


def execute(spec: RunSpec, as_json: bool) -> int:
    """Run, print each task's lines as they are ready and the table at the end; return the exit code."""
    from bench import interrupts, runner

    outcomes: list[Outcome] = []
    with interrupts.polite():
        todo = runner.workload(spec)
        for outcome in runner.measure(todo):
            outcomes.append(outcome)
            if not as_json:
                _show(outcome)
    if as_json:
        print(json.dumps([*(_refused(path, e) for path, e in todo.refused.items()), *(_as_json(o) for o in outcomes)], indent=1))
    elif outcomes:
        _finish(spec, outcomes, len(todo.refused))
    return _exit_code([*((f"{path}: {e}", e) for path, e in todo.refused.items()), *((str(o.error), o.error) for o in outcomes if o.error)])


def _show(o: Outcome) -> None:
    from leaderboard.table import metric_lines

    title = f"{o.job.subject.name}  {o.job.facts.name}@{o.job.facts.version}"
    if o.error:
        print(f"\n{title}  FAILED\n  {o.error.cause}\n  → {o.error.remedy}", flush=True)
        return
    r = o.record
    assert r is not None
    if r.outcome == "not_applicable":
        print(f"\n{title}  not applicable: {r.reason}", flush=True)
        return
    timing = "already recorded" if o.found else f"{r.provenance['seconds']:.1f} s"
    lines = [*metric_lines(r, o.job.task.headline), *(f"  ! {w}" for w in r.warnings), *(f"  note: {c}" for c in o.job.task.caveats)]
    print("\n".join([f"\n{title}  ({timing})", *lines]), flush=True)


def _finish(spec: RunSpec, outcomes: list[Outcome], refused: int) -> None:
    from bench.references import published_records
    from leaderboard import table

    facts = list({(o.job.facts.name, o.job.facts.version): o.job.facts for o in outcomes}.values())
    suite = spec.suite_of()
    columns = [c for c in suite.columns if c.partition(".")[0] in {f.name for f in facts}]
    columns = columns or [f"{o.job.facts.name}.{o.job.task.headline[0]}" for o in outcomes[: len(facts)]]
    own = table.rows([o.record for o in outcomes if o.record], facts, columns)
    published = table.rows(
        [r for r in published_records().scan()[0] if r.seed == spec.seed],
        facts,
        columns,
        True,
        {o.job.facts.name: o.job.data for o in outcomes},
    )
    shown = table.with_references(own, published)
    print("\n" + table.text(shown, columns, f"suite {suite.name}, {outcomes[0].job.subject.lm}, {outcomes[0].job.subject.hook}"))
    if any(r.published for r in shown):
        print("¹ published with the suite, at the nearest L0; 95 % intervals in brackets")
    elif own and not published_records().folder.exists():
        print("the published records of the baselines come with the repository, not with the package")
    elif own:
        print("no published baseline was measured at this site with these sizes, so none is shown beside it")
    fresh = sum(not o.found and o.record is not None for o in outcomes)
    failed = sum(o.error is not None for o in outcomes)
    state = f"{fresh} measured, {len(outcomes) - fresh - failed} already recorded, {failed} failed"
    state += f", {refused} SAEs refused" if refused else ""
    print(f"{state}; records in {spec.records_folder}" + ("" if fresh or failed else ": nothing was left to do"))


def _refused(path: str, e: BenchError) -> dict[str, Any]:
    return {"outcome": "refused", "sae": path, "code": e.code, "cause": e.cause, "remedy": e.remedy}


def _as_json(o: Outcome) -> dict[str, Any]:
    if o.error:
        return {**_refused(o.job.subject.name, o.error), "outcome": "failed", "task": o.job.facts.name}
    assert o.record is not None
    return {**o.record.model_dump(mode="json"), "found": o.found}


def _exit_code(errors: list[tuple[str, BenchError]]) -> int:
    """The code of what failed, after saying what did and why."""
    if not errors:
        return 0
    for said, _ in errors:
        print(f"failed: {said}", file=sys.stderr)
    codes = {e.exit_code for _, e in errors}
    return codes.pop() if len(codes) == 1 else 1
