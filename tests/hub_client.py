"""A process that opens references one after the other: the settings of the hub's client are read when it is imported.

Each line of input is JSON: a kind (`sae`, `lm`, `text`, `cli` or `token`), a reference (command, token) and given facts;
each line of output is what came.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Client:
    """The process, with an endpoint and a cache of its own.

    Args:
        endpoint: The hub.
        home: Its HF_HOME.
        settings: More of its environment.
    """

    def __init__(self, endpoint: str, home: Path, **settings: str) -> None:
        environment = environment_of(endpoint, home) | settings
        command = [sys.executable, "-m", "tests.hub_client"]
        self.errors = (home.parent / f"{home.name}-{len(settings)}.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def __call__(self, reference: str, kind: str = "sae", **given: float) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([kind, reference, given]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the client has ended: {Path(str(self.errors.name)).read_text()[-2000:]}"
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate(timeout=60)
        self.errors.close()


def environment_of(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process that knows no hub but this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    return kept | quiet | here | {"PYTHONPATH": str(ROOT)}


def _opened(kind: str, reference: str, given: dict[str, Any]) -> dict[str, Any]:
    if kind == "sae":
        from bench.adapters import Given
        from bench.references import open_sae

        loaded = open_sae(reference, Given(**given)).loaded
        facts = {n: getattr(loaded, n) for n in ("format", "name", "lm", "hook", "normalisation", "oddities")}
        return facts | {"sha256": loaded.sae.sha256, "facts": {k: v for k, v in loaded.facts.items() if k.startswith(("hub_", "saelens_"))}}
    if kind == "lm":
        import torch

        from bench.lm import open_lm

        lm = open_lm(reference)
        ids = torch.tensor([lm.token_rows("a small text", 16)[0]])
        return {"name": lm.name, "revision": lm.revision, "sum": float(lm.final(ids).double().sum())}
    if kind == "cli":
        return _command(reference.split())
    if kind == "token":  # read anew for each request
        os.environ["HF_TOKEN"] = reference
        return {}
    from bench.data.text import open_corpus

    corpus = open_corpus(reference)
    return {"documents": list(corpus.read()), "identity": corpus.sha256}


def _command(words: list[str]) -> dict[str, Any]:
    """Exit code and output of a command line."""
    from bench.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as e:
            return {"code": e.code, "out": out.getvalue(), "err": err.getvalue()}
    return {"code": 0, "out": out.getvalue(), "err": err.getvalue()}


def main() -> None:
    """Answer every line."""
    from jaxtyping import install_import_hook

    import tests.typecheck  # noqa: F401 — the hook looks it up as an attribute of the package

    install_import_hook([f"bench.{m}" for m in ("hub", "hub_listing", "releases", "references", "data.hub")], "tests.typecheck.check")
    from bench.errors import BenchError

    for line in sys.stdin:
        try:
            said = {"code": 0} | _opened(*json.loads(line))
        except BenchError as e:
            said = {"code": e.exit_code, "error": type(e).__name__, "cause": e.cause, "remedy": e.remedy}
        print(json.dumps(said, default=list), flush=True)


if __name__ == "__main__":
    main()
