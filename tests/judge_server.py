"""A server that speaks chat completions and has faults on demand, on a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from bench.judge.questions import Detect, Explain, Question, Window

PATH = "/v1/chat/completions"
KEY = "sk-very-secret-0123456789abcdef"
Plan = Callable[["Asked"], str]


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it.

    Args:
        name: The explanation in it, or the text of its first passage.
        nth: How often this name was asked before.
        body: What was sent.
        at: When, on the monotonic clock.
    """

    name: str
    nth: int
    body: dict[str, Any]
    at: float


@dataclass
class Server:
    """Answers by a plan: of each request the name of a fault, or `ok`."""

    plan: Plan
    slow_s: float = 1.0
    wait_s: float = 0.2
    take_s: float = 0.0
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    good: list[tuple[str, float]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0
    answer: Callable[[dict[str, Any]], str] = field(default_factory=lambda: content)
    usage: Callable[[list[dict[str, str]], str], tuple[int, int]] = lambda messages, said: (100, 10)  # tokens in and out
    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: dict[str, int] = field(default_factory=dict)

    def handle(self, request: Request) -> Response:
        body = json.loads(request.data)
        data = json.loads(body["messages"][-1]["content"])
        name = data.get("explanation") or data["passages"][0]["text"]
        with self.lock:
            asked = Asked(name, self.counts.get(name, 0), body, time.monotonic())
            self.counts[name] = asked.nth + 1
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        fault = self.plan(asked)
        try:
            if self.take_s:
                time.sleep(self.take_s)
            response = self.respond(fault, body["messages"], data, request.headers.get("Authorization", ""))
        finally:
            with self.lock:
                self.at_once -= 1
                self.faults[fault] = self.faults.get(fault, 0) + 1
                if fault in ("ok", "nonsense"):
                    self.good.append((name, time.monotonic()))
        return response

    def respond(self, fault: str, messages: list[dict[str, str]], data: dict[str, Any], secret: str) -> Response:
        """What a fault looks like; every refusal repeats the key, as careless servers do."""
        said = self.answer(data)
        good = json.dumps(completion(said, counts=self.usage(messages, said)))
        if fault.isdigit():
            return refusal(int(fault), secret)
        if fault == "429 seconds":
            return refusal(429, secret, {"Retry-After": str(self.wait_s)})
        if fault == "429 date":
            return refusal(429, secret, {"Retry-After": formatdate(time.time() + self.wait_s, usegmt=True)})
        if fault == "quota":
            return refusal(429, secret, code="insufficient_quota")
        if fault == "cut":
            response = Response(good[:40], content_type="application/json")
            response.automatically_set_content_length = False
            response.headers["Content-Length"] = str(len(good))
            return response
        if fault == "slow":
            time.sleep(self.slow_s)
        bodies = {
            "malformed": '{"choices": [',
            "html": "<html>gateway</html>",
            "no choices": "{}",
            "nonsense": json.dumps(completion("Well, 3 or perhaps 4.")),
            "length": json.dumps(completion("1", "length")),
            "filter": json.dumps(completion("1", "content_filter")),
            "null": json.dumps(completion(None)),
            "uncounted": json.dumps({**completion(content(data)), "usage": None}),
            "echo": json.dumps(completion(json.dumps({"explanation": f"words of {secret}"}))),
        }
        return Response(bodies.get(fault, good), content_type="application/json")


def refusal(status: int, secret: str, headers: dict[str, str] | None = None, code: str = "") -> Response:
    body = {"error": {"message": f"no, because of\n{secret}", "code": code, "type": "some"}}
    return Response(json.dumps(body), status, headers, content_type="application/json")


def completion(text: str | None, finish: str = "stop", counts: tuple[int, int] = (100, 10)) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def content(data: dict[str, Any]) -> str:
    """A good answer to anything."""
    if "marks" in data:
        return json.dumps({"explanation": f"words as in {data['passages'][0]['text']}"})
    if "passage" in data:
        return json.dumps({"answer": "yes", "confidence": 80})
    return json.dumps({"active": [{"number": 1, "confidence": 90}]})


class Quick(HTTPServer):
    """Ends at once, not at the next half second."""

    def thread_target(self) -> None:
        assert self.server is not None
        self.server.serve_forever(poll_interval=0.02)


@contextmanager
def serving(plan: Plan, **settings: Any) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1."""
    server = Server(plan, **settings)
    with Quick(host="127.0.0.1", port=0, threaded=True) as http:
        http.expect_request(PATH, method="POST").respond_with_handler(server.handle)
        server.url = http.url_for("/v1")
        yield server
        with suppress(AssertionError):  # a client that hangs up is part of the tests
            http.check_assertions()


def detect(i: int) -> Detect:
    return Detect(f"latent {i}", ((" a", " b"), (" c",)))


def explain(i: int) -> Explain:
    return Explain((Window((f"latent {i}", " and"), (0.0, 2.0)),))


def questions(n: int) -> list[Question]:
    return [detect(i) for i in range(n)]
