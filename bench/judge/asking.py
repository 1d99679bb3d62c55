"""Asks many questions at once: one loop decides who is asked next, how often, and when to stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bench import interrupts, progress
from bench.errors import JudgeError
from bench.judge import prompts
from bench.judge.answers import Answers, Kept
from bench.judge.calls import FORMS, Forms, Reply, Request, Trouble, call
from bench.judge.limits import Budget, Pace, Price, cost, most_tokens
from bench.judge.questions import Answer

HOPELESS = 20  # questions that fail before the first is answered
PATIENCE = 5  # times as many refusals for being too many as other troubles
_LONGEST_BACKOFF_S = 30.0
_LONGEST_WAIT_S = 3600.0
_TICK_S = 0.2  # Ctrl-C is noticed within it
_GRACE_S = 5.0  # after Ctrl-C for the calls in flight


@dataclass(frozen=True)
class Manner:
    """How a server is asked.

    Args:
        base_url: Of the server.
        key: Secret; in no message, file or `repr`.
        key_name: Variable that it comes from.
        timeout: Seconds for one call.
        concurrency: Calls in flight at most.
        attempts: At one question, before it counts as failed.
        backoff: Seconds before the second attempt, twice as long before each further one.
        price: USD per million tokens, in and out; None if unknown.
    """

    base_url: str
    key: str = field(repr=False)
    key_name: str
    timeout: float
    concurrency: int
    attempts: int
    backoff: float
    price: Price | None


@dataclass
class Tally:
    """What lasts from one batch of questions to the next."""

    pace: Pace
    budget: Budget
    forms: Forms = field(default_factory=Forms)
    calls: int = 0
    cached: int = 0
    failed: int = 0  # questions, since the last answer
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0  # answers without a count of their tokens

    def count(self, reply: Reply) -> None:
        """An answer that was paid for."""
        self.calls += 1
        self.failed = 0
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0
        if reply.tokens_in is None or reply.tokens_out is None:
            self.uncounted += 1
            if self.uncounted == 1:
                progress.note("the server does not count tokens, so that the cost is unknown")


@dataclass
class _Job:
    request: Request
    form: int = 0
    troubles: int = 0
    refusals: int = 0
    ready: float = 0.0  # not before this time


@dataclass(frozen=True)
class _Flight:
    job: _Job
    form: int
    started: float
    most: float  # USD


class Asking:
    """One batch of questions.

    Args:
        requests: What is asked, each once.
        manner: How.
        tally: What lasts.
        answers: Where answers are kept.
        advance: Called after each question.
    """

    def __init__(self, requests: Sequence[Request], manner: Manner, tally: Tally, answers: Answers, advance: Callable[[int], None]) -> None:
        self.fresh = deque(_Job(r) for r in requests)
        self.manner, self.tally, self.answers, self.advance = manner, tally, answers, advance
        self.results: dict[str, Answer] = {}
        self._waiting: list[_Job] = []
        self._flights: dict[asyncio.Task[Reply | Trouble], _Flight] = {}
        self._stop: JudgeError | None = None
        self._failed: list[str] = []

    async def run(self) -> dict[str, Answer]:
        """Answers by prompt.

        Raises:
            JudgeError: The budget is used up, or the server refuses every call; calls in flight have ended by then.
        """
        from openai import AsyncOpenAI

        m = self.manner
        async with AsyncOpenAI(api_key=m.key, base_url=m.base_url, timeout=m.timeout, max_retries=0) as client:
            try:
                while self._flights or (self._stop is None and (self.fresh or self._waiting)):
                    interrupts.check()
                    self._start(client)
                    await self._look()
            except KeyboardInterrupt:
                if self._flights:
                    await asyncio.wait(self._flights, timeout=_GRACE_S)
                raise
            finally:
                for task, flight in self._flights.items():
                    task.cancel()
                    self.tally.budget.end(flight.most, flight.most)
                await asyncio.gather(*self._flights, return_exceptions=True)
        if self._failed:
            progress.note("questions without an answer", count=len(self._failed), last=self._failed[-1])
        if self._stop is not None:
            raise self._stop
        return self.results

    def _start(self, client: Any) -> None:
        """Start as many calls as may be in flight now."""
        now = time.monotonic()
        while self._stop is None and len(self._flights) < self.tally.pace.limit and self.tally.pace.wait(now) <= 0:
            job = self._next(now)
            if job is None:
                return
            form = max(job.form, self.tally.forms.current(job.request.kind))
            body = job.request.body(FORMS[form])
            most = cost(self.manner.price, most_tokens(body), job.request.max_tokens) if self.manner.price else 0.0
            if bound := self.tally.budget.forbids(most):
                if bound == "calls" or not self._flights:  # those in flight may cost less than they can
                    self._stop = self._used_up(bound)
                self._again(job, now)
                return
            self.tally.budget.begin(most)
            self._flights[asyncio.create_task(self._call(client, job.request, body))] = _Flight(job, form, now, most)

    def _next(self, now: float) -> _Job | None:
        """Who is asked next: a question that has waited long enough, or a new one that nobody has answered meanwhile.

        Questions that wait count as open, so that a server that is down is not asked all of them once.
        """
        ready = min((j for j in self._waiting if j.ready <= now), key=lambda j: j.ready, default=None)
        if ready is not None:
            self._waiting.remove(ready)
            return ready
        while self.fresh and len(self._flights) + len(self._waiting) < self.manner.concurrency:
            job = self.fresh.popleft()
            prompt = job.request.prompt
            if not (kept := self.answers.get([prompt])):
                return job
            self.tally.cached += 1
            self._done(read(job.request, kept[prompt]))
        return None

    async def _look(self) -> None:
        """Wait for a call to end, or until another may start."""
        now = time.monotonic()
        timeout = _TICK_S
        if len(self._flights) < self.tally.pace.limit:
            soonest = min((j.ready - now for j in self._waiting), default=0.0 if self.fresh else _TICK_S)
            timeout = min(max(soonest, self.tally.pace.wait(now), 0.001), _TICK_S)
        if not self._flights:
            await asyncio.sleep(timeout)
            return
        done, _ = await asyncio.wait(self._flights, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._landed(self._flights.pop(task), task.result())

    async def _call(self, client: Any, request: Request, body: dict[str, Any]) -> Reply | Trouble:
        """One call. An answer is on disk before anybody hears of it: no `await` lies between its coming and its keeping."""
        outcome = await call(client, body, self.manner.timeout, self.manner.key)
        if isinstance(outcome, Trouble):
            return outcome
        counts = outcome.tokens_in, outcome.tokens_out
        kept = self.answers.put(Kept(request.prompt, outcome.content, outcome.finish, *counts, request.model))
        return Reply(kept.content, kept.finish, *counts)

    def _landed(self, flight: _Flight, outcome: Reply | Trouble) -> None:
        job, tally = flight.job, self.tally
        if isinstance(outcome, Trouble):
            tally.budget.end(flight.most, flight.most if outcome.paid else 0.0)
            self._trouble(flight, outcome)
            return
        known = self.manner.price is not None and outcome.tokens_in is not None and outcome.tokens_out is not None
        actual = cost(self.manner.price or (0, 0), outcome.tokens_in or 0, outcome.tokens_out or 0) if known else flight.most
        tally.budget.end(flight.most, actual)
        tally.count(outcome)
        tally.pace.succeeded()
        tally.forms.worked(job.request.kind, flight.form)
        self._done(read(job.request, Kept(job.request.prompt, outcome.content, outcome.finish, None, None, job.request.model)))

    def _trouble(self, flight: _Flight, trouble: Trouble) -> None:
        """Try again, give this question up, or stop."""
        job, now = flight.job, time.monotonic()
        if trouble.wait:
            self._wait(trouble.wait, now)
        if trouble.kind == "form":
            self.tally.forms.refused(job.request.kind, flight.form)
            job.form = flight.form + 1
            self._again(job, now) if job.form < len(FORMS) else self._fail(job, trouble.said)
        elif trouble.kind == "busy":
            self.tally.pace.refused(flight.started, now)
            job.refusals += 1
            retry = job.refusals < PATIENCE * self.manner.attempts
            delay = 0.0 if trouble.wait is not None else self._backoff(job.refusals)
            self._again(job, now + delay) if retry else self._fail(job, trouble.said)
        elif trouble.kind == "again":
            job.troubles += 1
            delay = self._backoff(job.troubles)
            self._again(job, now + delay) if job.troubles < self.manner.attempts else self._fail(job, trouble.said)
        elif trouble.kind == "question":
            self._fail(job, trouble.said)
        else:
            self._stop = self._stop or self._refuses(trouble.said)

    def _wait(self, seconds: float, now: float) -> None:
        """The server asks everybody to wait."""
        if seconds > _LONGEST_WAIT_S:
            cause = f"the judge's server {self._host} asks to wait for {seconds:.0f} s"
            self._stop = self._stop or JudgeError(cause, "run the same command again then; what was answered is kept")
        elif seconds > 2 * self.manner.timeout:
            progress.note("the judge's server asks to wait", seconds=round(seconds))
        self.tally.pace.quiet(now + seconds)

    def _backoff(self, times: int) -> float:
        """Seconds; with jitter, so that calls that failed together do not come back together."""
        return min(self.manner.backoff * 2 ** min(times - 1, 20), _LONGEST_BACKOFF_S) * random.uniform(0.5, 1.5)

    def _again(self, job: _Job, ready: float) -> None:
        job.ready = ready
        self._waiting.append(job)

    def _fail(self, job: _Job, said: str) -> None:
        self._failed.append(said)
        self.tally.failed += 1
        if self.tally.failed >= HOPELESS and self._stop is None:
            cause = f"{self.tally.failed} questions to {self._host} failed one after the other; last: {said}"
            self._stop = JudgeError(cause, "check the server, --judge-base-url and --judge-model, then run the same command again")
        self._done(Answer(job.request.prompt, "", "failed"))

    def _done(self, answer: Answer) -> None:
        self.results[answer.prompt] = answer
        self.advance(1)

    def _used_up(self, bound: str) -> JudgeError:
        budget = self.tally.budget
        size = f"{budget.calls} calls" if bound == "calls" else f"{budget.usd:g} USD"
        remedy = f"run the same command with a larger --budget-{bound}; what was answered is kept"
        return JudgeError(f"the budget of {size} is used up", remedy)

    def _refuses(self, said: str) -> JudgeError:
        remedy = (
            f"check the key in {self.manner.key_name}, --judge-model, and --judge-base-url, which ends in /v1 on most servers;"
            " then run the same command again: what was answered is kept"
        )
        return JudgeError(f"the judge's server {self._host} refuses every call: {said}", remedy)

    @property
    def _host(self) -> str:
        """Without what may stand before it: a name and a password."""
        return urlsplit(self.manner.base_url).netloc.rpartition("@")[2]


def read(request: Request, kept: Kept) -> Answer:
    """What a kept answer says."""
    return prompts.answered(request.question, request.prompt, kept.content or "", kept.whole)
