"""The whole way from the command line to a judge on a real socket: planned, paid for once, stopped by a budget, scored again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.judge.limits import cost
from bench.lm import open_lm
from tests.judge_server import KEY, Server, serving

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[1]
PRICE = (0.15, 0.60)
LATENTS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Answers as a good model would in length, and counts tokens as the embedded model's tokenizer does."""
    tokenizer = open_lm("embedded:smollm2-135m-q4_1", "cpu", "float32").tokenizer

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(data: dict[str, Any]) -> str:
        if "marks" in data:
            return json.dumps({"explanation": "nouns for places and institutions, often at the end of a prepositional phrase"})
        return json.dumps({"active": [{"number": n, "confidence": 90} for n in (1, 4, 6, 11) if n <= len(data["passages"])]})

    def usage(messages: list[dict[str, str]], said: str) -> tuple[int, int]:
        return sum(tokens(m["content"]) + 5 for m in messages), tokens(said)

    with serving(lambda asked: "ok", answer=answer, usage=usage) as found:
        yield found


def bench(server: Server, folder: Path, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
    config = folder / "run.toml"
    config.write_text(f"[params.autointerp]\nlatents = {LATENTS}\ntokens = 16384\n")
    judge = ["--judge", "openai", "--judge-model", "m", "--judge-base-url", server.url, "--judge-price", f"{PRICE[0]},{PRICE[1]}"]
    site = ["--sae", "demo:ortsae", "--tasks", "autointerp", "--records", str(folder / "records"), "--config", str(config)]
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    argv = [sys.executable, "-m", "bench", verb, *site, *judge, "--json", *more]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600, check=False)


def test_the_plan_names_the_bill_and_nothing_is_paid_twice(server: Server, tmp_path: Path) -> None:
    planned = json.loads(bench(server, tmp_path, "plan").stdout)["total"]["judge"]
    assert planned["calls"] == 3 * LATENTS and not server.asked

    stopped = bench(server, tmp_path, "run", "--budget-calls", "17")
    assert stopped.returncode == 5 and len(server.asked) == 17
    assert json.loads(stopped.stdout)[0]["code"] == "judge" and "budget" in stopped.stderr

    whole = bench(server, tmp_path, "run")
    assert whole.returncode == 0, whole.stderr[-2000:]
    record = json.loads(whole.stdout)[0]
    paid = record["provenance"]["judge"]
    assert len(server.asked) == len(server.good) == 17 + paid["calls"] and paid["cached"] == 17
    lists = 3 * LATENTS - len(server.asked)  # a latent without enough hard negatives is asked about once less
    assert 0 <= lists <= 2
    share = 1 - 17 / len(server.asked)
    assert paid["usd"] == pytest.approx(cost(PRICE, paid["tokens_in"], paid["tokens_out"]), abs=1e-6)
    assert paid["usd"] / share == pytest.approx(planned["usd"], rel=0.2)

    units = Path(record["units"]["file"])
    assert record["data"]["judge"].startswith("explainer m, judge openai") and units.suffix == ".parquet"
    assert KEY not in whole.stdout + whole.stderr + stopped.stdout + stopped.stderr
    assert all(KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())

    again = bench(server, tmp_path, "run", "--seed", "0", "--records", str(tmp_path / "other"))
    assert again.returncode == 0 and json.loads(again.stdout)[0]["provenance"]["judge"]["calls"] == 0

    path = next((tmp_path / "records").glob("autointerp@1/*.json"))
    argv = [sys.executable, "-m", "bench", "rescore", str(path), "--against", str(next((tmp_path / "other").glob("autointerp@1/*.json")))]
    scored = subprocess.run([*argv, "--json"], capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert all(a == pytest.approx(b, abs=1e-12) for a, b in found["metrics"].values())
    assert {a["list"]: a["kappa"] for a in found["agreement"]} == {"hard": 1.0, "random": 1.0}


def test_a_judge_without_a_model_or_a_budget_without_a_price_is_refused(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "bench",
        "run",
        "--sae",
        "demo:ortsae",
        "--tasks",
        "autointerp",
        "--records",
        str(tmp_path),
        "--judge",
        "openai",
    ]
    for more, word in ((["--judge-price", "1,1"], "--judge-model"), (["--judge-model", "m", "--budget-usd", "1"], "--judge-price")):
        done = subprocess.run([*argv, *more], capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
