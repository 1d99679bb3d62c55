"""Judges explain latents from examples and detect them by the explanation."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench.errors import UsageError
from bench.judge.questions import Judge

_REPLAY = "replay:"


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge, and how it is asked.

    Args:
        judge: `statistics` (offline, no model), `openai`, or `replay:PATH`.
        judge_model: Model of the server; the scorer, if there is another explainer.
        explainer_model: Model that explains; empty for the same.
        judge_base_url: Of the server, up to and including `/v1`; empty for OpenAI.
        judge_api_key_env: Environment variable that holds the key.
        judge_timeout: Seconds for one call.
        judge_concurrency: Calls in flight at most.
        judge_price: `IN,OUT` in USD per million tokens; empty if unknown.
        budget_calls: Requests at most; 0 for no bound.
        budget_usd: USD at most; 0 for no bound.
    """

    judge: str = "statistics"
    judge_model: str = ""
    explainer_model: str = ""
    judge_base_url: str = ""
    judge_api_key_env: str = "OPENAI_API_KEY"
    judge_timeout: float = 60.0
    judge_concurrency: int = 32
    judge_price: str = ""
    budget_calls: int = 0
    budget_usd: float = 0.0


def open_judge(settings: JudgeSettings) -> Judge:
    """The judge that the settings name; nothing is asked yet.

    Raises:
        UsageError: There is no such judge, or it lacks something.
    """
    if settings.judge == "statistics":
        return import_module("bench.judge.statistics").StatisticsJudge()
    if settings.judge.startswith(_REPLAY):
        return import_module("bench.judge.replay").ReplayJudge(Path(settings.judge.removeprefix(_REPLAY)))
    if settings.judge == "openai":
        return _openai(settings)
    raise UsageError(f"there is no judge {settings.judge!r}", "give --judge statistics, openai or replay:PATH")


def _openai(s: JudgeSettings) -> Judge:
    from bench.judge.limits import price_of
    from bench.judge.openai import OpenAIJudge

    if not s.judge_model:
        raise UsageError("the judge openai needs a model", "give --judge-model NAME, such as gpt-4o-mini")
    return OpenAIJudge(
        explainer=s.explainer_model or s.judge_model,
        scorer=s.judge_model,
        base_url=s.judge_base_url,
        api_key_env=s.judge_api_key_env,
        timeout=s.judge_timeout,
        concurrency=s.judge_concurrency,
        budget_calls=s.budget_calls,
        budget_usd=s.budget_usd,
        price=price_of(s.judge_price),
    )
