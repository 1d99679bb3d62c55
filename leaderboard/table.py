"""Records → a table: one row per SAE, one column per (task, metric)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.record import MetricFacts, Record, SubjectFacts, TaskFacts

L0 = "reconstruction.l0"
L0_TOLERANCE = 0.1
REFERENCES = ("batchtopk", "ortsae", "random")


@dataclass(frozen=True)
class Row:
    """One SAE in a table.

    Args:
        subject: Which SAE.
        cells: Column → metric.
        notes: Column → why there is none.
        mark: Short remark, e.g. that its L0 differs.
        published: From the project's own records.
    """

    subject: SubjectFacts
    cells: Mapping[str, MetricFacts]
    notes: Mapping[str, str]
    mark: str = ""
    published: bool = False

    @property
    def l0(self) -> float | None:
        """Measured mean number of active latents."""
        return self.cells[L0].value if L0 in self.cells else None


def rows(
    records: Iterable[Record],
    tasks: Sequence[TaskFacts],
    columns: Sequence[str],
    published: bool = False,
    data: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Row]:
    """One row per SAE and site, from the records of exactly these tasks and parameters.

    Args:
        records: Where to take them from.
        tasks: Which tasks, with parameters.
        columns: `task.metric` names.
        published: Whether they come with the project.
        data: Task name → identities of the data read; when given, records on other data stay out.
    """
    wanted = {(t.name, t.version): t.params for t in tasks}
    mine = [r for r in records if wanted.get((r.task.name, r.task.version)) == r.task.params]
    if data is not None:
        mine = [r for r in mine if _read(r.data) == _read(data.get(r.task.name, {}))]
    groups: dict[tuple[object, ...], list[Record]] = {}
    for r in mine:
        s = r.subject
        key = (s.sha256, s.name, s.lm, s.revision, s.lm_dtype, s.hook, r.seed, r.data.get("text", ""))
        groups.setdefault(key, []).append(r)
    return [_judged(_row(part, columns, published), part) for g in groups.values() for part in _by_judge(g)]


def with_references(own: Sequence[Row], published: Sequence[Row]) -> list[Row]:
    """The user's rows, then the published baselines of the same site, each at the L0 nearest to the first of them."""
    if not own:
        return list(published)
    head = own[0]
    known = {r.subject.sha256 for r in own}
    same = [r for r in published if _site(r) == _site(head) and r.subject.sha256 not in known]
    chosen: list[Row] = []
    for name in REFERENCES:
        candidates = [r for r in same if r.subject.name == name and r.subject.d_sae == head.subject.d_sae]
        candidates = candidates or [r for r in same if r.subject.name == name]
        if candidates:
            chosen.append(_marked(min(candidates, key=lambda r: abs((r.l0 or 0) - (head.l0 or 0))), head))
    return [*own, *chosen]


def text(table: Sequence[Row], columns: Sequence[str], title: str) -> str:
    """Fixed-width text, readable when piped; intervals in brackets, arrows say which direction is better."""
    head = ["SAE", *(_heading(table, c) for c in columns)]
    body = [[_name(r), *(_cell(r, c) for c in columns)] for r in table]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
    rule = "─" * max(len(line) for line in lines)
    marks = [f"{r.subject.name}: {r.mark}" for r in table if r.mark]
    return "\n".join([title, lines[0], rule, *lines[1:], *marks])


def metric_lines(record: Record, names: Sequence[str]) -> list[str]:
    """One line per metric of a record: value, interval or spread, number of units, direction."""
    wanted = [*([] if record.main in ("", *names) else [record.main]), *names]
    shown = [(n, record.metrics[n]) for n in wanted if n in record.metrics]
    width = max((len(n) for n, _ in shown), default=0)
    return [f"  {n.ljust(width)}  {number(m.value):>8}  {_uncertainty(m):<22} n = {m.n} {_plural(m)}{_arrow(m)}" for n, m in shown]


def number(value: float) -> str:
    """Three decimals below 100, one above, large integers as they are."""
    if value == int(value) and abs(value) >= 100:
        return str(int(value))
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _row(group: Sequence[Record], columns: Sequence[str], published: bool) -> Row:
    by_task = {r.task.name: r for r in group}
    cells: dict[str, MetricFacts] = {}
    notes: dict[str, str] = {}
    for column in {*columns, L0}:
        task, _, metric = column.partition(".")
        record = by_task.get(task)
        if record is None:
            notes[column] = "–"
        elif record.outcome == "not_applicable":
            notes[column] = "n/a"
        elif metric in record.metrics:
            cells[column] = record.metrics[metric]
        else:
            notes[column] = "–"
    return Row(group[0].subject, cells, notes, published=published)


def _by_judge(group: Sequence[Record]) -> list[list[Record]]:
    """Records of one SAE, apart for each judge: verdicts of two are not of one measure. Those without a judge belong to all."""
    judges = sorted({r.data["judge"] for r in group if "judge" in r.data}) or [""]
    return [[r for r in group if r.data.get("judge", j) == j] for j in judges]


def _judged(row: Row, group: Sequence[Record]) -> Row:
    """The row, with a note where latents were judged by other than token statistics."""
    judge = next((r.data["judge"] for r in group if "judge" in r.data), "")
    return replace(row, mark=f"judged by {judge}") if "judge openai" in judge else row


def _read(data: Mapping[str, str]) -> dict[str, str]:
    """What was measured on; another SAE that was compared with is no data in this sense."""
    return {k: v for k, v in data.items() if k != "against"}


def _site(row: Row) -> tuple[str, str, str, str]:
    s = row.subject
    return s.lm, s.revision, s.lm_dtype, s.hook


def _marked(row: Row, head: Row) -> Row:
    remarks = []
    if row.l0 is None or head.l0 is None:
        remarks.append("L0 was not measured here, so it may differ")
    elif abs(row.l0 - head.l0) > L0_TOLERANCE * head.l0:
        remarks.append(f"L0 {number(row.l0)} differs from {number(head.l0)}: not comparable at face value")
    if row.subject.d_sae != head.subject.d_sae:
        remarks.append(f"d_sae {row.subject.d_sae} differs from {head.subject.d_sae}")
    return Row(row.subject, row.cells, row.notes, "; ".join(remarks), row.published)


def _name(row: Row) -> str:
    return f"{row.subject.name} {row.subject.sha256[:8]}{' ¹' if row.published else ''}"


def _heading(table: Sequence[Row], column: str) -> str:
    found = next((r.cells[column] for r in table if column in r.cells), None)
    return column.partition(".")[2] + (_arrow(found) if found else "")


def _cell(row: Row, column: str) -> str:
    if column not in row.cells:
        return row.notes.get(column, "–")
    m = row.cells[column]
    return number(m.value) + (f" [{number(m.interval[0])}, {number(m.interval[1])}]" if m.interval else "")


def _uncertainty(m: MetricFacts) -> str:
    if m.interval:
        return f"[{number(m.interval[0])}, {number(m.interval[1])}]"
    return f"spread {number(m.spread[0])} … {number(m.spread[1])}" if m.spread else ""


def _plural(m: MetricFacts) -> str:
    if m.n == 1:
        return m.unit
    return m.unit[:-1] + "ies" if m.unit.endswith("y") else m.unit + "s"


def _arrow(m: MetricFacts) -> str:
    return {"higher": " ↑", "lower": " ↓", "neither": ""}[m.better]
