"""Limits of a judge, its file of answers, replayed answers, and how a judge is named."""

from __future__ import annotations

import json
import sqlite3
import threading
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import ResourceError, UsageError
from bench.judge import JudgeSettings, open_judge
from bench.judge.answers import Answers, Kept
from bench.judge.limits import Budget, Pace, most_tokens, price_of, retry_after
from bench.judge.openai import OpenAIJudge
from bench.judge.questions import Answer, prompt_hash
from bench.judge.replay import ReplayJudge, record
from tests.judge_server import detect, explain


def kept(prompt: str, content: str | None = "1") -> Kept:
    return Kept(prompt, content, "stop", 100, 10, "m")


def test_pace_rises_by_one_for_each_round_and_halves_once_for_each_round_trip() -> None:
    pace = Pace(6)
    assert pace.limit == 4
    for expected in (5, 6, 6):
        for _ in range(pace.limit):
            pace.succeeded()
        assert pace.limit == expected
    pace.refused(started=1.0, now=2.0)
    assert pace.limit == 3
    pace.refused(started=1.5, now=2.1)  # was in flight together with the first
    assert pace.limit == 3
    for i in range(9):
        pace.refused(started=3.0 + i, now=3.5 + i)
    assert pace.limit == 1
    pace.quiet(50.0)
    pace.quiet(40.0)
    assert pace.wait(45.0) == 5.0 and pace.wait(51.0) == 0.0
    assert Pace(2).limit == 2


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1))), st.integers(1, 5), st.floats(0.1, 3))
def test_a_budget_is_never_crossed(events: list[tuple[bool, float]], calls: int, usd: float) -> None:
    budget, open_calls = Budget(calls, usd), []
    for start, most in events:
        if start and not budget.forbids(most):
            budget.begin(most)
            open_calls.append(most)
        elif open_calls:
            most = open_calls.pop()
            budget.end(most, most / 2)
        assert budget.started <= calls and budget.spent + budget.held <= usd + 1e-9


def test_no_budget_forbids_nothing() -> None:
    assert Budget().forbids(1e9) == ""


def test_more_tokens_than_a_request_can_have() -> None:
    assert most_tokens({"a": "é" * 10}) >= 20


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}, 0.0) == 1.5
    assert retry_after({"retry-after": formatdate(1_000_030, usegmt=True)}, 1_000_000.0) == 30.0
    assert retry_after({"retry-after": formatdate(1_000_000, usegmt=True)}, 1_000_030.0) == 0.0
    assert all(retry_after({"retry-after": text}, 0.0) is None for text in ("", "soon", "nan", "inf", "1 2 3"))
    assert retry_after({}, 0.0) is None


def test_prices() -> None:
    assert price_of("0.15, 0.6") == (0.15, 0.6) and price_of(" ") is None
    for text in ("1", "1,2,3", "a,b", "-1,2", "nan,1"):
        with pytest.raises(UsageError, match="--judge-price"):
            price_of(text)


def test_answers_are_there_again_and_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.sqlite"
    with Answers(path) as answers:
        assert answers.get(["p"]) == {}
        assert answers.put(kept("p")) == kept("p")
        assert answers.put(kept("p", "2")) == kept("p")
        answers.put(kept("q", None))
    with Answers(path) as answers:
        assert answers.get(["p", "q", "r"]) == {"p": kept("p"), "q": kept("q", None)}
        assert answers.get([f"{i}" for i in range(3000)]) == {}


def test_an_answer_that_was_changed_is_none_and_can_be_put_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Answers(path) as answers:
        answers.put(kept("p", "3, 4"))
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE answers SET answer = replace(answer, '4', '5')")
    db.close()
    with Answers(path) as answers:
        assert answers.get(["p"]) == {}
        assert answers.put(kept("p", "1")) == kept("p", "1")


def other_table(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE answers (x TEXT)")
    db.commit()
    db.close()


def broken_pages(path: Path) -> None:
    with Answers(path) as answers:
        for i in range(200):
            answers.put(kept(f"{i}", "x" * 200))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"not a database" * 999), other_table, broken_pages])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(damage)
    path = tmp_path / "answers.sqlite"
    damage(path)
    with Answers(path) as answers:
        assert answers.get(["p"]) == {}
        answers.put(kept("p"))
    with Answers(path) as answers:
        assert answers.get(["p"]) == {"p": kept("p")}
    assert "set aside" in capsys.readouterr().err
    assert len([p for p in tmp_path.iterdir() if ".damaged-" in p.name and not p.name.endswith(("-wal", "-shm"))]) == 1


def test_a_file_that_is_damaged_while_in_use(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Answers(path) as answers:
        answers.put(kept("p"))
        answers.close()
        path.write_bytes(b"not a database" * 999)
        answers._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        answers.put(kept("q"))
        assert answers.get(["p", "q"]) == {"q": kept("q")}


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.mkdir()
    with pytest.raises(ResourceError, match="ORTSAE_CACHE"):
        Answers(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="ORTSAE_CACHE"):
        Answers(tmp_path / "file" / "answers.sqlite")


def test_threads_share_the_file(tmp_path: Path) -> None:
    with Answers(tmp_path / "a.sqlite") as one, Answers(tmp_path / "a.sqlite") as two:

        def put(answers: Answers, start: int) -> None:
            for i in range(start, start + 20):
                answers.put(kept(f"{i}"))

        threads = [threading.Thread(target=put, args=(a, s)) for a, s in ((one, 0), (one, 10), (two, 15), (two, 30))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(one.get([f"{i}" for i in range(99)])) == 50


def test_recorded_answers_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked = [explain(0), detect(1), detect(2), detect(3), detect(1)]
    ok = Answer("x", '{"explanation": "rivers"}', "ok", explanation="rivers")
    said = Answer("y", "2", "ok", said=(False, True), score=(0.0, 1.0))
    record(path, asked[:4], [ok, said, Answer("z", "1", "unscored"), Answer("w", "", "failed")])
    judge = ReplayJudge(path)
    answers = judge.ask(asked)
    assert [a.status for a in answers] == ["ok", "ok", "unscored", "failed", "ok"]
    assert answers[0].explanation == "rivers" and answers[1].said == (False, True) and answers[1].prompt == prompt_hash(detect(1))
    assert judge.spending.calls == 0 and judge.spending.cached == 4 and judge.identity["judge"] == "replay"
    opened = open_judge(JudgeSettings(judge=f"replay:{path}"))
    assert isinstance(opened, ReplayJudge) and opened.identity == judge.identity


@pytest.mark.parametrize("text", ["{", "[]", '{"prompt": "a"}', '{"prompt": 1, "raw": ""}', '{"prompt": "a", "raw": null}'])
def test_a_file_without_answers_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "a", "raw": "b"}) + "\n" + text)
    with pytest.raises(UsageError, match="2 is not an answer"):
        ReplayJudge(path)


def test_judges_by_name(tmp_path: Path) -> None:
    judge = open_judge(JudgeSettings("openai", "small", "large", "http://127.0.0.1:1/v1", judge_price="1,2", budget_usd=3.0))
    assert isinstance(judge, OpenAIJudge) and judge.price == (1.0, 2.0) and judge.budget_usd == 3.0
    assert judge.identity == {"judge": "openai", "explainer": "large", "scorer": "small", "prompts": "1"}
    wrong = (
        (JudgeSettings("openai"), "--judge-model"),
        (JudgeSettings("nobody"), "--judge statistics"),
        (JudgeSettings("openai", "m", budget_usd=1.0), "--judge-price IN,OUT"),
        (JudgeSettings("openai", "m", judge_concurrency=0), "out of range"),
        (JudgeSettings("openai", "m", judge_base_url="localhost"), "http://"),
        (JudgeSettings(f"replay:{tmp_path / 'none'}"), "JSON object"),
    )
    for settings, said in wrong:
        with pytest.raises(UsageError, match=said):
            open_judge(settings)
