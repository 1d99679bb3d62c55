"""A judge behind a server, on real sockets: every fault, every limit, and nothing paid for twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from bench import interrupts
from bench.errors import JudgeError, UsageError
from bench.judge.calls import FORMS, Forms, redacted
from bench.judge.openai import OpenAIJudge
from bench.judge.questions import Judge
from tests.judge_server import KEY, Asked, Server, detect, explain, questions, serving

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge(server: Server, **settings: Any) -> OpenAIJudge:
    return OpenAIJudge(**{"explainer": "large", "scorer": "small", "base_url": server.url, "backoff": 0.01, "timeout": 20.0} | settings)


def first(fault: str, times: int = 1) -> Any:
    """A plan: each question meets the fault the first few times."""
    return lambda asked: fault if asked.nth < times else "ok"


def always(fault: str) -> Any:
    return lambda asked: fault


def test_answers_come_in_order_and_are_paid_for_once() -> None:
    with serving(always("ok")) as server:
        asked = [explain(0), detect(1), detect(2), detect(1), explain(0)]
        one = judge(server)
        assert isinstance(one, Judge)
        answers = one.ask(asked)
        assert [a.status for a in answers] == ["ok"] * 5 and answers[1] == answers[3] and answers[0] == answers[4]
        assert answers[0].explanation == "words as in latent 0<< and>>" and answers[1].said == (True, False)
        assert answers[1].score == (0.95, 0.0) and answers[1].prompt == one.request(detect(1)).prompt
        assert len(server.asked) == 3 and {a.body["model"] for a in server.asked} == {"large", "small"}
        assert (one.spending.calls, one.spending.cached, one.spending.tokens_in, one.spending.usd) == (3, 0, 300, None)
        priced = judge(server, price=(1.0, 2.0))
        assert priced.ask(asked) == answers and len(server.asked) == 3
        assert (priced.spending.calls, priced.spending.cached, priced.spending.usd) == (0, 3, 0.0)
        priced.ask([detect(9)])
        assert priced.spending.usd == pytest.approx(120e-6)
        assert judge(server, scorer="other").ask([detect(1)])[0].prompt != answers[1].prompt  # of another model


def test_the_request() -> None:
    with serving(always("ok")) as server:
        judge(server).ask([explain(0), detect(1)])
        bodies = {a.body["model"]: a.body for a in server.asked}
        assert bodies["large"]["max_tokens"] == 300 and bodies["small"]["max_tokens"] == 132
        assert all(b["temperature"] == 0 and b["stream"] is False for b in bodies.values())
        assert bodies["large"]["response_format"]["json_schema"]["name"] == "explanation"


@pytest.mark.parametrize("fault", ["429", "429 seconds", "429 date", "408", "409", "500", "503", "cut", "malformed", "html", "no choices"])
def test_a_fault_that_passes(fault: str) -> None:
    with serving(first(fault, 2)) as server:
        answers = judge(server).ask(questions(6))
        assert [a.status for a in answers] == ["ok"] * 6 and len(server.asked) == 18


def test_no_answer_in_time() -> None:
    with serving(first("slow"), slow_s=3.0) as server:
        start = time.monotonic()
        assert judge(server, timeout=0.8).ask([detect(0)])[0].status == "ok"
        assert time.monotonic() - start < 3.0 and len(server.asked) == 2


@pytest.mark.parametrize("fault", ["nonsense", "length", "filter", "null"])
def test_an_answer_that_says_nothing_is_kept(fault: str) -> None:
    with serving(always(fault)) as server:
        one = judge(server)
        for _ in range(2):
            assert [a.status for a in one.ask(questions(3))] == ["unscored"] * 3
        assert len(server.asked) == 3 and one.spending.calls == 3 and one.spending.cached == 3


@pytest.mark.parametrize("fault", ["500", "malformed", "429 seconds", "413"])
def test_a_question_that_always_fails(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda a: fault if a.name == "latent 1" else "ok", wait_s=0.01) as server:
        answers = judge(server, attempts=3).ask(questions(3))
        assert [a.status for a in answers] == ["ok", "failed", "ok"]
        assert server.counts["latent 1"] == {"413": 1, "429 seconds": 15}.get(fault, 3)
        assert "questions without an answer" in capsys.readouterr().err
        server.plan = always("ok")
        assert [a.status for a in judge(server).ask(questions(3))] == ["ok"] * 3
        assert len(server.good) == 3


@pytest.mark.parametrize("fault", ["429 seconds", "429 date"])
def test_everybody_waits_as_long_as_the_server_asks(fault: str) -> None:
    wait = {"429 seconds": 0.8, "429 date": 2.0}[fault]  # a date has whole seconds
    with serving(lambda a: fault if a.name == "latent 9" and a.nth == 0 else "ok", wait_s=wait, take_s=0.02) as server:
        judge(server, concurrency=4).ask(questions(30))
        refused = next(a.at for a in server.asked if a.name == "latent 9") + 0.02
        assert not [a for a in server.asked if refused + 0.15 < a.at < refused + {"429 seconds": 0.8, "429 date": 0.95}[fault]]
        assert len(server.asked) == 31


def test_more_at_once_while_it_goes_well_and_fewer_when_it_is_too_much() -> None:
    with serving(always("ok"), take_s=0.02) as server:
        one = judge(server, concurrency=7)
        one.ask(questions(60))
        assert server.most_at_once == 7 and one._tally.pace.limit == 7
        one.ask([detect(-1)])
    busy: list[int] = []

    def crowded(asked: Asked) -> str:
        busy.append(server.at_once)
        return "429" if server.at_once > 3 else "ok"

    with serving(crowded, take_s=0.02) as server:
        one = judge(server, concurrency=32)
        assert {a.status for a in one.ask(questions(100))} == {"ok"}
        assert one._tally.pace.limit <= 6 and max(busy) <= 6
        assert server.faults["429"] < 60


@pytest.mark.parametrize("taken", range(4))
def test_the_form_that_a_server_takes_is_found_once(taken: int) -> None:
    def plan(asked: Asked) -> str:
        schema, classic = "response_format" in asked.body, "max_tokens" in asked.body
        assert classic == ("temperature" in asked.body) and classic != ("max_completion_tokens" in asked.body)
        form = FORMS[taken]
        return "ok" if (schema, classic) == (form.schema, form.classic) else "400"

    with serving(plan) as server:
        one = judge(server)
        assert {a.status for a in one.ask(questions(1))} == {"ok"} and server.faults.get("400", 0) == taken
        assert {a.status for a in one.ask(questions(40))} == {"ok"} and server.faults.get("400", 0) == taken
    with serving(plan) as server:
        assert {a.status for a in judge(server, answers=Path(os.environ["ORTSAE_CACHE"]) / "new").ask(questions(40))} == {"ok"}
        assert server.faults.get("400", 0) <= 4 * taken  # those that were in flight together


def test_a_question_that_is_refused_does_not_move_the_others() -> None:
    with serving(lambda a: "400" if a.name == "latent 3" else "ok") as server:
        answers = judge(server, concurrency=1).ask(questions(8))
        assert [a.status for a in answers] == ["ok"] * 3 + ["failed"] + ["ok"] * 4
        assert server.faults["400"] == len(FORMS)
        assert all("response_format" in a.body for a in server.asked if a.name != "latent 3")
        assert judge(server, concurrency=1).ask([detect(3), detect(20)])[0].status == "failed"  # the first of all
        assert "response_format" in server.asked[-1].body and server.asked[-1].name == "latent 20"


def test_forms() -> None:
    forms, kind = Forms(), ("m", True)
    for _ in range(3):
        forms.refused(kind, 0)  # three at once
    assert forms.current(kind) == 1
    forms.worked(kind, 1)
    forms.refused(kind, 1)
    forms.worked(kind, 3)
    assert forms.current(kind) == 1 and forms.current(("m", False)) == 0


@pytest.mark.parametrize("fault", ["ok", "500 now and then"])
def test_a_budget_of_calls_is_exact_and_one_goes_on_after_it(fault: str) -> None:
    def plan(asked: Asked) -> str:
        return "500" if fault != "ok" and (int(asked.name.split()[1]) + asked.nth) % 3 == 0 else "ok"

    with serving(plan, take_s=0.01) as server:
        rounds, asked = 0, 0
        while True:
            rounds += 1
            one = judge(server, budget_calls=17, attempts=20)
            try:
                answers = one.ask(questions(50))
            except JudgeError as e:
                assert e.cause == "the budget of 17 calls is used up" and "--budget-calls" in e.remedy
                assert len(server.asked) == 17 * rounds
                asked = len(server.asked)
                continue
            break
        assert {a.status for a in answers} == {"ok"} and len(server.asked) - asked <= 17
        assert sorted(n for n, _ in server.good) == sorted(f"latent {i}" for i in range(50))
        with pytest.raises(JudgeError, match="17 calls"):
            one.ask(questions(90))
        assert len(server.asked) == asked + 17


def test_a_budget_in_usd_is_never_crossed() -> None:
    with serving(always("ok"), take_s=0.01) as server:
        one = judge(server, price=(10.0, 30.0), budget_usd=0.3)
        with pytest.raises(JudgeError, match=r"0\.3 USD is used up — .*--budget-usd"):
            one.ask(questions(500))
        spent = len(server.asked) * (100 * 10 + 10 * 30) / 1e6
        assert one.spending.usd == pytest.approx(spent) and 0.2 < spent <= 0.3
        before = len(server.asked)
        judge(server, price=(10.0, 30.0), budget_usd=30.0).ask(questions(150))
        assert len(server.asked) == max(before, 150)
    with pytest.raises(UsageError, match="--judge-price"):
        OpenAIJudge("m", budget_usd=1.0)


def test_an_answer_without_a_count_has_an_unknown_price(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(always("uncounted")) as server:
        one = judge(server, price=(10.0, 30.0), budget_usd=1.0)
        assert {a.status for a in one.ask(questions(3))} == {"ok"}
        assert one.spending.usd is None and one.spending.calls == 3
        assert capsys.readouterr().err.count("does not count tokens") == 1


@pytest.mark.parametrize("fault", ["401", "403", "404", "402", "quota"])
def test_a_server_that_refuses_every_call(fault: str) -> None:
    """What was in flight ends and is kept; nothing is asked after it."""
    with serving(lambda a: fault if a.name == "latent 2" else "ok", take_s=0.1) as server:
        with pytest.raises(JudgeError, match=r"refuses every call.*--judge-base-url") as caught:
            judge(server).ask(questions(40))
        assert caught.value.exit_code == 5 and KEY not in str(caught.value) and "127.0.0.1" in caught.value.cause
        assert len(server.asked) <= 8
        server.plan = always("ok")
        again = judge(server)
        again.ask(questions(40))
        assert again.spending.cached == len({n for n, _ in server.good}) - again.spending.calls >= 3
        assert len(server.good) == 40


def test_a_server_that_fails_every_question() -> None:
    with serving(always("500")) as server:
        with pytest.raises(JudgeError, match=r"20 questions .* failed one after the other; last: HTTP 500"):
            judge(server, attempts=2).ask(questions(2000))
        assert len(server.asked) < 2 * (20 + 32)
        assert [a.status for a in judge(server, attempts=2).ask(questions(5))] == ["failed"] * 5


def test_no_server_at_all() -> None:
    one = OpenAIJudge("m", base_url="http://user:password@127.0.0.1:9/v1", backoff=0.001, attempts=2)
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9 failed one after the other; last: connection") as caught:
        one.ask(questions(30))
    assert "password" not in str(caught.value)


def test_a_server_that_asks_for_hours() -> None:
    with serving(always("429 seconds"), wait_s=7200.0) as server, pytest.raises(JudgeError, match=r"wait for 7200 s"):
        judge(server).ask(questions(3))


def test_the_key_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")
    texts: list[str] = []
    for fault in ("ok", "echo", "500", "429", "malformed", "401", "404", "quota", "400", "413"):
        with serving(always(fault)) as server:
            one = judge(server, attempts=2, backoff=0.001)
            try:
                texts.append(repr(one.ask([explain(i) for i in range(25)])))
            except JudgeError as e:
                texts += [*traceback.format_exception(e), repr(e), repr(e.__cause__), repr(e.__context__)]
            assert all(a.body for a in server.asked)
            texts += [repr(one), repr(one.identity), repr(one._tally)]
    said = capfd.readouterr()
    texts += [said.out, said.err]
    assert "words of [key]" in texts[2 * 1 + 2] or any("words of [key]" in t for t in texts)
    assert not [t for t in texts if KEY in t or KEY[3:] in t]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert any(p.suffix == ".sqlite" and p.stat().st_size for p in files)
    assert not [p for p in files if KEY[3:].encode() in p.read_bytes()]


def test_redaction() -> None:
    said = redacted("Incorrect API key provided: sk-abc***xyz. Bearer abc.def http://me:pass@host/ SECRET-SECRET", "SECRET-SECRET")
    assert said == "Incorrect API key provided: [key] [key] http://[key]host/ [key]"
    assert redacted("an EMPTY key hides nothing", "EMPTY") == "an EMPTY key hides nothing"


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="OPENAI_API_KEY holds no key"):
        OpenAIJudge("m").ask(questions(1))
    with serving(always("ok")) as server:
        assert judge(server).ask(questions(1))[0].status == "ok"  # a server of one's own
        for bad in (f"{KEY}\nX: y", f"{KEY}é"):
            monkeypatch.setenv("MINE", bad)
            with pytest.raises(UsageError, match="MINE") as caught:
                judge(server, api_key_env="MINE").ask(questions(2))
            assert KEY not in str(caught.value)


def test_inside_a_running_loop() -> None:
    async def inside(server: Server) -> list[str]:
        return [a.status for a in judge(server).ask(questions(3))]

    with serving(always("ok")) as server:
        assert asyncio.run(inside(server)) == ["ok"] * 3


def test_two_threads_with_one_judge() -> None:
    with serving(always("ok")) as server:
        one, found = judge(server), []
        threads = [threading.Thread(target=lambda: found.append(one.ask(questions(20)))) for _ in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert found[0] == found[1] and len(server.asked) == 20


def client(server: Server, n: int, concurrency: int = 4) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.judge_client", server.url, str(n), str(concurrency), "20"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_the_answers() -> None:
    with serving(always("ok"), take_s=0.02) as server:
        both = [client(server, 150) for _ in range(2)]
        said = [p.communicate(timeout=120) for p in both]
        found = [json.loads(out) for out, _ in said]
        assert all(f["status"] == ["ok"] * 150 and f["calls"] + f["cached"] == 150 for f in found)
        assert 150 <= len(server.asked) <= 300  # what both ask at the same moment, both pay for
        again = judge(server, explainer="m", scorer="")
        assert {a.status for a in again.ask(questions(150))} == {"ok"} and again.spending.cached == 150
        assert not any(KEY in out + err for out, err in said)


def test_ctrl_c_keeps_what_was_answered() -> None:
    with serving(always("ok"), take_s=0.05) as server:
        timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        with interrupts.polite(), pytest.raises(KeyboardInterrupt):
            timer.start()
            judge(server, concurrency=4).ask(questions(200))
        done = len(server.good)
        assert 0 < done < 200
        again = judge(server)
        assert {a.status for a in again.ask(questions(200))} == {"ok"}
        assert again.spending.cached == done and len(server.good) == 200


def test_a_damaged_file_of_answers(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.environ["ORTSAE_CACHE"]) / "judge" / "answers.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(5000))
    with serving(always("ok")) as server:
        assert {a.status for a in judge(server).ask(questions(3))} == {"ok"}
        assert "set aside" in capsys.readouterr().err
        assert judge(server).ask(questions(3)) and len(server.asked) == 3
