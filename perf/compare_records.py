"""Largest difference between two folders of records, metric by metric.

python perf/compare_records.py ortsae-results /tmp/copy
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.record import Record, Records


def by_task(folder: str, name: str) -> dict[str, Record]:
    found = Records(Path(folder)).scan()[0]
    return {f"{r.id} {sorted(r.task.params.items())} {r.seed}": r for r in found if not name or r.subject.name == name}


def main(a: str, b: str, name: str = "") -> None:
    one, two = by_task(a, name), by_task(b, "")
    worst = 0.0
    for task in sorted(one.keys() & two.keys()):
        gaps = {m: abs(v.value - two[task].metrics[m].value) for m, v in one[task].metrics.items()}
        top = max(gaps, key=lambda m: gaps[m])
        worst = max(worst, gaps[top])
        print(
            f"{one[task].id}: {len(gaps)} metrics, largest difference {gaps[top]:.2e} ({top}); "
            f"{one[task].subject.format} against {two[task].subject.format}"
        )
    print(f"largest difference over {len(one.keys() & two.keys())} records: {worst:.2e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
