"""The table and the curves of all methods on the embedded model.

    python -m bench train --sweep perf/methods.toml --out methods
    python -m bench run $(printf -- '--sae %s ' methods/*/) --tasks reconstruction,distinct_features --records methods-records
    python perf/methods.py methods methods-records docs

Training takes about two hours on two cores; every part goes on where it was if it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

from baselines.curves import LOG, Run, draw
from bench.adapters import Given, open_checkpoint
from bench.record import Record, Records
from bench.sae.canonical import Canonical

HERE = Path(__file__).parent
PICTURE = "methods_curves.png"
HEAD = """# Every reference method and control on the embedded model

`blocks.7.hook_resid_post`, {latents:,} latents, target L0 {k}, one seed; {tokens:,} tokens in one order, each seen once, in {steps:,}
steps of {batch} at a learning rate of {lr:g} ([perf/methods.toml](../perf/methods.toml)). Explained variance, L0 and mean max
cosine are measured by the suite's tasks on held-out text (suite `standard`; 95 % intervals over documents). Dead: no firing in
the last {window:,} training tokens. This says how each method trains here, at settings that suit BatchTopK; it is no ranking.
The commands are in `perf/methods.py`; tokens per second of each method are in [training_speed.md](training_speed.md).

![Curves](methods_curves.png)
"""


FOOT = """
`permuted` is trained like `batchtopk`, and its curves are the same; only its export differs. Rows drawn with the covariance
of these activations lie near a few directions, most of them never fire, and what the control then shows is a much smaller
dictionary. The latents of `mp` may fire with a negative sign, so its L0 buys more than that of the others. L0 of `relu`,
`gated` and `jumprelu` is learned, not set.
"""


def shown(r: Record | None, metric: str, digits: int) -> str:
    if r is None or metric not in r.metrics:
        return "–"
    m = r.metrics[metric]
    return f"{m.value:.{digits}f}" + (f" [{m.interval[0]:.{digits}f}, {m.interval[1]:.{digits}f}]" if m.interval else "")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sweep", type=Path)
    p.add_argument("records", type=Path)
    p.add_argument("docs", type=Path)
    a = p.parse_args()
    wanted = tomllib.loads((HERE / "methods.toml").read_text())
    names = [str(t.get("name", t["method"])) for t in wanted["sae"]]
    records = {(r.subject.sha256, r.task.name): r for r in Records(a.records).scan()[0]}
    facts = {n: json.loads((a.sweep / n / "sae.json").read_text()) for n in names}
    identity = {n: Canonical(open_checkpoint(a.sweep / n, Given()).sae).sha256 for n in names}
    first = facts["batchtopk"]["training"]
    head = HEAD.format(
        latents=wanted["d_sae"],
        k=wanted["k"],
        tokens=first["tokens_seen"],
        steps=first["steps_done"],
        batch=first["batch"],
        lr=first["lr"],
        window=first["dead_after"],
    )
    lines = [head, "| | explained variance ↑ | L0 | dead ↓ | mean max cosine ↓ | latents |", "|---|---|---|---|---|---|"]
    for n in names:
        one, two = (records.get((identity[n], task)) for task in ("reconstruction", "distinct_features"))
        log = facts[n]["training"]["last_log"]
        dead = f"{log['dead']:.1%}" if "dead" in log else "–"
        cells = [shown(one, "explained_variance", 3), shown(one, "l0", 1), dead, shown(two, "mean_max_cosine", 3)]
        lines.append(f"| `{n}` | {' | '.join(cells)} | {one.subject.d_sae if one else 0:,} |")
    (a.docs / "methods.md").write_text("\n".join([*lines, FOOT]))
    logs = {n: a.sweep / n / LOG for n in names if (a.sweep / n / LOG).exists()}  # what learns nothing has none
    runs = [Run(n, [json.loads(line) for line in log.read_text().splitlines()], wanted["k"]) for n, log in logs.items()]
    draw(runs, a.docs / PICTURE)


if __name__ == "__main__":
    main()
