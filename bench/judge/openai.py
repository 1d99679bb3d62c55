"""A judge behind OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, Ollama, `transformers serve`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import progress
from bench.errors import UsageError
from bench.judge import prompts
from bench.judge.answers import Answers
from bench.judge.asking import Asking, Manner, Tally, read
from bench.judge.calls import FORMS, Request
from bench.judge.limits import Budget, Pace, Price, cost
from bench.judge.questions import Answer, Explain, Question, Spending
from bench.store import digest

OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"


@dataclass(frozen=True)
class OpenAIJudge:
    """Asks a server; every answer is kept on disk and never paid for twice.

    Args:
        explainer: Model that explains.
        scorer: Model that detects; empty for the same.
        base_url: Of the server, up to and including `/v1`; empty for OpenAI.
        api_key_env: Environment variable that holds the key. A server of one's own needs none.
        timeout: Seconds for one call.
        concurrency: Calls in flight at most.
        budget_calls: Requests at most, over all calls of `ask`, errors included; 0 for no bound.
        budget_usd: USD at most, likewise; needs `price`.
        price: USD per million tokens, in and out; None if unknown.
        attempts: At one question, before it counts as failed.
        backoff: Seconds before the second attempt, twice as long before each further one.
        answers: File of answers; None for the one in the cache.
    """

    explainer: str
    scorer: str = ""
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    concurrency: int = 32
    budget_calls: int = 0
    budget_usd: float = 0.0
    price: Price | None = None
    attempts: int = 8
    backoff: float = 0.5
    answers: Path | None = None
    _tally: Tally = field(init=False, repr=False, compare=False)
    _one: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.explainer:
            raise UsageError("the judge openai needs a model", "give --judge-model NAME, such as gpt-4o-mini")
        if self.budget_usd and self.price is None:
            raise UsageError("a budget in USD needs a price", "give --judge-price IN,OUT in USD per million tokens, or --budget-calls N")
        if self.timeout <= 0 or self.concurrency < 1 or self.attempts < 1 or self.budget_calls < 0 or self.budget_usd < 0:
            raise UsageError("a limit of the judge is out of range", "timeout > 0, concurrency ≥ 1, attempts ≥ 1, budgets ≥ 0")
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise UsageError("the judge's URL is not one", "give --judge-base-url http://HOST:PORT/v1")
        object.__setattr__(self, "_tally", Tally(Pace(self.concurrency), Budget(self.budget_calls, self.budget_usd)))

    @property
    def identity(self) -> Mapping[str, str]:
        """Who explains, who detects, and in which words they are asked."""
        return {"judge": "openai", "explainer": self.explainer, "scorer": self.scorer or self.explainer, "prompts": prompts.VERSION}

    @property
    def spending(self) -> Spending:
        """What was asked of it so far; the cost is None if the price is unknown, or a server did not count tokens."""
        t = self._tally
        usd = cost(self.price, t.tokens_in, t.tokens_out) if self.price is not None and not t.uncounted else None
        return Spending(t.calls, t.cached, t.tokens_in, t.tokens_out, usd)

    def request(self, question: Question) -> Request:
        """A question as it is sent, with its hash: of the model, the server, the messages, the schema and the sampling."""
        model = self.explainer if isinstance(question, Explain) else self.scorer or self.explainer
        asked = Request("", model, question).body(FORMS[0])
        return Request(digest({"base_url": self._url, **asked}), model, question)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to every question, in order; equal questions are asked once.

        Raises:
            JudgeError: The budget is used up, or the server refuses every call. What was answered is kept.
            UsageError: There is no key.
            ResourceError: Answers cannot be kept.
        """
        requests = [self.request(q) for q in questions]
        distinct = {r.prompt: r for r in requests}
        with self._one, Answers(self.answers) as answers:
            kept = answers.get(list(distinct))
            self._tally.cached += len(kept)
            found = {p: read(distinct[p], k) for p, k in kept.items()}
            missing = [r for p, r in distinct.items() if p not in kept]
            if missing:
                found |= self._fetch(missing, answers)
        return [found[r.prompt] for r in requests]

    def _fetch(self, missing: Sequence[Request], answers: Answers) -> dict[str, Answer]:
        manner = Manner(
            self._url,
            self._key(),
            self.api_key_env,
            self.timeout,
            self.concurrency,
            self.attempts,
            self.backoff,
            self.price,
        )
        models = " and ".join(dict.fromkeys(r.model for r in missing))
        with progress.track(f"asking {models}", len(missing), "answers") as advance:
            return _run(lambda: Asking(missing, manner, self._tally, answers, advance).run())

    @property
    def _url(self) -> str:
        return (self.base_url or OPENAI).rstrip("/")

    def _key(self) -> str:
        """The key; its value is in no message. A line end or a letter beyond ASCII would end up in one of the client's."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and not self.base_url:
            raise UsageError(f"the environment variable {self.api_key_env} holds no key", f"export {self.api_key_env}=…")
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError(f"the key in {self.api_key_env} has characters that no key has", f"export {self.api_key_env}=… again")
        return key or _NO_KEY


def _run(work: Callable[[], Coroutine[Any, Any, dict[str, Answer]]]) -> dict[str, Answer]:
    """Run it to its end; in a thread of its own where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
