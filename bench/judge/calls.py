"""One request to a server that speaks OpenAI's chat completions, and what came of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.judge import prompts
from bench.judge.limits import retry_after
from bench.judge.questions import Explain, Question

MAX_EXPLANATION_TOKENS = 300
MAX_TOKENS_PER_WINDOW, MAX_TOKENS_BESIDES = 16, 100
_SHORT = 8  # a shorter key is a placeholder for a local server; hiding it would hide words
_KEYS = re.compile(r"(?i)\bsk-[\w*.\-]{4,}|\bbearer\s+\S+|(?<=://)[^/\s@]+@")


@dataclass(frozen=True)
class Form:
    """How a request is put.

    Args:
        schema: With a JSON schema for the answer.
        classic: With `max_tokens` and temperature 0; else with `max_completion_tokens`, which reasoning models want.
    """

    schema: bool
    classic: bool


FORMS = (Form(True, True), Form(True, False), Form(False, True), Form(False, False))


@dataclass(frozen=True)
class Request:
    """A question to a model.

    Args:
        prompt: Hash of all that is asked, and of whom.
        model: Who is asked.
        question: What is asked.
    """

    prompt: str
    model: str
    question: Question

    @property
    def kind(self) -> tuple[str, bool]:
        """Requests of a kind are accepted in the same form."""
        return self.model, isinstance(self.question, Explain)

    @property
    def max_tokens(self) -> int:
        """Length of the answer at most."""
        if isinstance(self.question, Explain):
            return MAX_EXPLANATION_TOKENS
        return MAX_TOKENS_PER_WINDOW * len(self.question.windows) + MAX_TOKENS_BESIDES

    def body(self, form: Form) -> dict[str, Any]:
        """What is sent. `stream` is spelled out: some servers stream unless told not to."""
        fields: dict[str, Any] = {"model": self.model, "messages": prompts.messages(self.question), "stream": False}
        if form.classic:
            fields |= {"max_tokens": self.max_tokens, "temperature": 0}
        else:
            fields |= {"max_completion_tokens": self.max_tokens}
        if form.schema:
            fields["response_format"] = {"type": "json_schema", "json_schema": prompts.schema(self.question)}
        return fields


@dataclass(frozen=True)
class Reply:
    """An answer as it came.

    Args:
        content: Its text; None where there is none.
        finish: Why it ended.
        tokens_in: As the server counts; None where it does not say.
        tokens_out: Likewise.
    """

    content: str | None
    finish: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class Trouble:
    """No answer.

    Args:
        kind: `form`: the server does not take this form; `busy`: too many requests; `again`: may pass;
            `question`: this question will not be answered; `server`: none will.
        said: In a few words, without secrets.
        wait: Seconds that the server asks to wait.
        paid: Whether it may have been paid for nevertheless.
    """

    kind: Literal["form", "busy", "again", "question", "server"]
    said: str
    wait: float | None = None
    paid: bool = False


@dataclass
class Forms:
    """The form that each kind of request is sent in: the first that the server took."""

    now: dict[tuple[str, bool], int] = field(default_factory=dict)
    proven: set[tuple[str, bool]] = field(default_factory=set)

    def current(self, kind: tuple[str, bool]) -> int:
        """Index of the form to try."""
        return self.now.get(kind, 0)

    def worked(self, kind: tuple[str, bool], form: int) -> None:
        """The first success decides."""
        if kind not in self.proven:
            self.proven.add(kind)
            self.now[kind] = form

    def refused(self, kind: tuple[str, bool], form: int) -> None:
        """On to the next, once for all requests of this form; back to the first after the last, which proves nothing.

        A form that has worked is kept: then it was the question that was refused.
        """
        if kind not in self.proven and self.current(kind) == form:
            self.now[kind] = (form + 1) % len(FORMS)


def redacted(text: str, key: str) -> str:
    """Text of a server without keys: neither ours nor what looks like one.

    Args:
        text: What it said.
        key: Ours.
    """
    if len(key) >= _SHORT:
        text = text.replace(key, "[key]")
    return _KEYS.sub("[key]", text)


async def call(client: Any, body: dict[str, Any], timeout_s: float, key: str) -> Reply | Trouble:
    """Send one request and read what comes back. Nothing of it is raised but cancellation."""
    import openai

    try:
        async with asyncio.timeout(timeout_s):  # the client's own is for each packet, and a server can drip
            response = await client.chat.completions.with_raw_response.create(**body)
            content: bytes = response.http_response.content
    except openai.APIStatusError as e:
        return _status(e.status_code, dict(e.response.headers), e.body, key)
    except (TimeoutError, openai.APITimeoutError):
        return Trouble("again", f"no answer within {timeout_s:g} s", paid=True)
    except openai.APIConnectionError as e:
        return Trouble("again", _said(f"connection: {e.__cause__ or e}", key), paid=True)
    except openai.OpenAIError as e:
        return Trouble("again", _said(str(e), key), paid=True)
    return _reply(content, key) or Trouble("again", "an answer that is not a chat completion", paid=True)


def _said(text: str, key: str) -> str:
    return " ".join(redacted(text, key).split())[:300]


def _status(status: int, headers: dict[str, str], body: object, key: str) -> Trouble:
    """What a response other than success means."""
    error = body if isinstance(body, dict) else {"message": str(body or "")}
    said = _said(f"HTTP {status}: {error.get('message') or error.get('detail') or error}", key)
    wait = retry_after(headers, time.time())
    if status in (400, 422):
        return Trouble("form", said)
    if status in (401, 402, 403, 404) or "insufficient_quota" in (error.get("code"), error.get("type")):
        return Trouble("server", said)
    if status == 429:
        return Trouble("busy", said, wait)
    return Trouble("again" if status in (408, 409) or status >= 500 else "question", said, wait)


def _reply(content: bytes, key: str) -> Reply | None:
    """A chat completion; None for anything else."""
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = found.get("usage")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str | None):
        return None
    if isinstance(text, str):
        text = redacted(prompts.clean(text), key) if len(key) >= _SHORT and key in text else prompts.clean(text)
    usage = usage if isinstance(usage, dict) else {}
    return Reply(text, redacted(str(finish or "stop"), key), _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
