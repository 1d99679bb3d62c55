"""Every score of the recorded demo checkpoints and controls, every warning, and two of them compared unit by unit.

    python perf/paired.py leaderboard/records > docs/demo_results.md

Metrics and units are those of `leaderboard/audits.toml`, the pair too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from bench.audit import statistics
from bench.audit.entries import Entry, audits
from bench.audit.real import Found, alike, standard_sizes
from bench.record import Record, Records
from bench.registry import tasks

HEAD = """# What the demo checkpoints and the controls score

Suite `standard`, `blocks.7.hook_resid_post` of the embedded model, 4,608 latents, target L0 32, one training seed each: this compares two
checkpoints, not two methods. 95 % intervals in brackets; `spread` is the dispersion over latents and no interval. `python perf/paired.py
leaderboard/records` writes this page from the published records."""


def cell(r: Record | None, metric: str) -> str:
    if r is None or metric not in r.metrics:
        return "–"
    m = r.metrics[metric]
    spread = getattr(m, "spread", None)
    over = f" [{m.interval[0]:.3f}, {m.interval[1]:.3f}]" if m.interval else f" spread {spread[0]:.3f} … {spread[1]:.3f}" if spread else ""
    return f"{m.value:.3f}{over}"


def difference(entry: Entry | None, metric: str, found: Found, pair: tuple[str, str]) -> str:
    """The second of the pair less the first, over common units."""
    if entry is None or metric not in entry.units:
        return ""
    b, a = (found.units(name, 0, entry.units[metric]) for name in pair)
    d = statistics.paired(a, b)
    if len(d) < 3:
        return f"{len(d)} common units"
    error = statistics.paired_error(d)
    half = float(stats.t.ppf(0.975, len(d) - 1)) * error
    p = 2 * float(stats.t.sf(abs(d.mean()) / error, len(d) - 1)) if error > 0 else 1.0
    verdict = "" if abs(d.mean()) > half else ", a tie"
    return f"{d.mean():+.3f} [{d.mean() - half:+.3f}, {d.mean() + half:+.3f}], n = {len(d)}, p = {p:.2g}{verdict}"


def page(folder: Path) -> str:
    known, book, sizes = tasks(), audits(), standard_sizes()
    lines, notes = [HEAD, ""], []
    names = [*book.pair, *book.controls]
    lines += ["| task | metric | " + " | ".join(names) + f" | {book.pair[1]} − {book.pair[0]}, paired |", "|" + "---|" * (len(names) + 3)]
    for task in (*book.tasks, *book.without):
        entry = book.tasks.get(task)
        found = alike(task, known[task].version, [Records(folder)], book.pair, sizes[task])
        if not found.records:
            continue
        held = {n: found.records.get((n, 0)) for n in names}
        first = next(r for r in held.values() if r is not None)
        for metric in dict.fromkeys([*known[task].headline, *(entry.metrics if entry else ())]):
            if metric in first.metrics:
                arrow = {"higher": " ↑", "lower": " ↓"}.get(first.metrics[metric].better, "")
                cells = " | ".join(cell(r, metric) for r in held.values())
                told = difference(entry, metric, found, book.pair)
                lines.append(f"| {task}@{known[task].version} | {metric}{arrow} | {cells} | {told} |")
        notes += [f"- {task}, {n}: {w}" for n, r in held.items() if r is not None for w in r.warnings]
    many = np.unique([line.split("|")[1] for line in lines[3:]]).size
    closing = [
        "",
        "Differences are means over units that both have, with Student's t; of ratios, over jackknife pseudo-values. The p-values are of",
        f"{many} tasks and not adjusted: look for those far below 0.01. Dictionary geometry and composition have no units to pair,",
        "and autointerp samples each SAE's own latents.",
        "",
        "## Warnings of these records",
        "",
        *notes,
    ]
    return "\n".join([*lines, *closing])


if __name__ == "__main__":
    print(page(Path(sys.argv[1] if len(sys.argv) > 1 else "leaderboard/records")))
