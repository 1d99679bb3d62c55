"""A process that asks questions, for tests that kill it: python -m tests.judge_client URL N CONCURRENCY TIMEOUT_S."""

from __future__ import annotations

import json
import sys

from bench.judge.openai import OpenAIJudge
from tests.judge_server import questions


def main(url: str, n: int, concurrency: int, timeout: float) -> None:
    judge = OpenAIJudge("m", base_url=url, concurrency=concurrency, timeout=timeout, backoff=0.02)
    answers = judge.ask(questions(n))
    print(json.dumps({"status": [a.status for a in answers], "calls": judge.spending.calls, "cached": judge.spending.cached}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
