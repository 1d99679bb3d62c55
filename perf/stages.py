"""Seconds and peak memory of each task of a suite, cold and warm, for dictionaries of several sizes.

    python perf/stages.py --suite standard --sae demo:ortsae --sae PATH_OF_A_16384_SAE
    python perf/stages.py --suite standard --sae demo:ortsae --each

Cold: an empty store (packages and the converted model stay). Warm: activations stored, new records folder. Peak memory is
the process', so `--each` runs every task in a process of its own, warm; its seconds then hold the opening of the language model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.registry import suites
from bench.store import cache_root


def run(sae: str, suite: str, cache: Path, *more: str) -> tuple[list[dict], float]:
    with tempfile.TemporaryDirectory() as records:
        argv = [sys.executable, "-m", "bench", "run", "--sae", sae, "--suite", suite, "--records", records, "--json", *more]
        start = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "ORTSAE_CACHE": str(cache)})
        return json.loads(done.stdout), time.perf_counter() - start


def show(records: list[dict], state: str) -> None:
    for r in records:
        facts = {"sae": r["subject"]["name"], "d_sae": r["subject"]["d_sae"], "state": state, "task": r["task"]["name"]}
        print(json.dumps({**facts, "seconds": r["provenance"]["seconds"], "peak_mib": r["provenance"]["peak_memory_mib"]}), flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--suite", default="standard")
    p.add_argument("--sae", action="append", required=True)
    p.add_argument("--warm-only", action="store_true")
    p.add_argument("--each", action="store_true")
    a = p.parse_args()
    if a.each:
        for sae in a.sae:
            for task in suites()[a.suite].tasks:
                show(run(sae, a.suite, cache_root(), "--tasks", task)[0], "warm, alone")
        return
    with tempfile.TemporaryDirectory() as scratch:
        cold = Path(scratch)
        for part in ("sources", "models"):
            (cold / part).symlink_to(cache_root() / part)
        for sae in a.sae:
            for state, cache in (("warm", cache_root()),) if a.warm_only else (("cold", cold), ("warm", cold)):
                records, wall = run(sae, a.suite, cache)
                show(records, state)
                print(json.dumps({"sae": sae, "suite": a.suite, "state": state, "wall_seconds": round(wall, 1)}), flush=True)


if __name__ == "__main__":
    main()
