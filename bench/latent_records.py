"""What records say of single latents: explanations with verdicts, and the meta-latents that compose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bench.judge.statistics import readable
from bench.kernels import detection
from bench.latent_facts import CompositionPart, ExplanationPart, MetaPart, ScorePart
from bench.record import Record, Records, SubjectFacts, unit_table

LISTS = ("hard", "random")
_BY = ("judge", "statistics", "shuffled")
_SHOWN = 6  # other latents of a meta-latent
_COLUMNS = ("latent", "by", "list", "active", "token", "said", "score", "status", "explanation")
_COMPOSED = ("latent", "explained", "meta_latents")


@dataclass(frozen=True)
class Judged:
    """One latent's explanation by one judge, with the verdicts as rows of the unit table.

    Args:
        part: Explanation and scores, without verdicts.
        rows: `token`, `list`, `active`, `said`, `score` of each verdict.
        tokens: Tokens of the text in which the windows lie; 0 where it is another text than the one that is read.
    """

    part: ExplanationPart
    rows: list[dict[str, Any]]
    tokens: int


@dataclass(frozen=True)
class RecordedLatents:
    """Records of one SAE, the newest first.

    Args:
        subject: Which SAE and site.
        folders: Where records may lie.
        text: Identity of the text that is read.
    """

    subject: SubjectFacts
    folders: tuple[Records, ...]
    text: str

    def judged(self, latents: Sequence[int]) -> dict[int, list[Judged]]:
        """What the newest record of `autointerp` that holds a latent says of it: by the judge, by statistics, and the floor."""
        found: dict[int, list[Judged]] = {}
        for folder, record in self._of("autointerp", _COLUMNS):
            left = [n for n in latents if n not in found]
            if record.task.params.get("permuted") or not left:
                continue
            rows = list(unit_table(folder, record, _COLUMNS, left))
            for latent in sorted({r["latent"] for r in rows}):
                own = [r for r in rows if r["latent"] == latent]
                found[latent] = [j for by in _BY if (j := self._judged(record, by, [r for r in own if r["by"] == by]))]
        return found

    @cached_property
    def tokens(self) -> int:
        """The most tokens of the text in which verdicts of these records lie."""
        same = (r for _, r in self._of("autointerp", _COLUMNS) if r.data.get("text") == self.text)
        return max((int(r.task.params.get("tokens", 0)) for r in same), default=0)

    @cached_property
    def explained(self) -> set[int]:
        """Latents that a record of `autointerp` holds."""
        some = (s for s in self._of("autointerp", _COLUMNS) if not s[1].task.params.get("permuted"))
        return {int(r["latent"]) for folder, record in some for r in unit_table(folder, record, ("latent",))}

    def composition(self, latent: int) -> CompositionPart | None:
        """What composes a latent; None where no record of `composition` holds it."""
        for source, rows, serving in self._compositions:
            if latent in rows:
                explained, parts = rows[latent]
                return CompositionPart(
                    source=source,
                    explained=round(explained, 4),
                    meta_latents=[
                        MetaPart(
                            meta_latent=j, code=code, serves=len(serving[j]), others=[n for _, n in serving[j] if n != latent][:_SHOWN]
                        )
                        for j, code in parts
                    ],
                )
        return None

    @cached_property
    def _compositions(self) -> list[tuple[str, dict[int, tuple[float, list[tuple[int, float]]]], dict[int, list[tuple[float, int]]]]]:
        """Of each record: its name, each latent's explained share and meta-latents, and each meta-latent's latents."""
        out = []
        for folder, record in self._of("composition", _COMPOSED):
            table = unit_table(folder, record, _COMPOSED)
            rows = {int(r["latent"]): (float(r["explained"]), _parts(r["meta_latents"])) for r in table}
            serving: dict[int, list[tuple[float, int]]] = {}
            for latent, (_, parts) in rows.items():
                for j, code in parts:
                    serving.setdefault(j, []).append((-code, latent))
            out.append((f"record {record.key[:12]}", rows, {j: sorted(s) for j, s in serving.items()}))
        return out

    def _of(self, task: str, columns: tuple[str, ...]) -> list[tuple[Records, Record]]:
        site = self.subject.model_dump(include={"sha256", "lm", "revision", "hook"})
        same = [
            (folder, r)
            for folder, r in self._all
            if r.task.name == task and r.units and set(columns) <= set(r.units.columns) and r.subject.model_dump(include=set(site)) == site
        ]
        return sorted(same, key=lambda s: str(s[1].provenance.get("measured_at", "")), reverse=True)

    @cached_property
    def _all(self) -> list[tuple[Records, Record]]:
        return [(folder, r) for folder in self.folders for r in folder.scan()[0]]

    def _judged(self, record: Record, by: str, rows: list[dict[str, Any]]) -> Judged | None:
        if not rows:
            return None
        judge = record.data.get("judge", "unknown judge") if by == "judge" else "judge statistics"
        text = str(rows[0]["explanation"])
        scores = [s for name in LISTS if (s := score(name, [r for r in rows if r["list"] == name]))]
        part = ExplanationPart.model_validate(
            {"by": by, "judge": judge, "source": f"record {record.key[:12]}", "text": text, "shown": readable(text)}
            | {"scores": scores, "verdicts": []}
        )
        same = record.data.get("text") == self.text
        return Judged(part, rows, int(record.task.params.get("tokens", 0)) if same else 0)


def score(name: str, rows: Sequence[Mapping[str, Any]]) -> ScorePart | None:
    """Scores of one latent's verdicts on one list; None where the readable ones are all about active or all about inactive windows.

    Args:
        name: Of the list.
        rows: `active`, `said`, `score` and `status` of each verdict.
    """
    ok = [r for r in rows if r["status"] == "ok"]
    active = np.array([r["active"] for r in ok], dtype=bool)
    if not 0 < active.sum() < len(active):
        return None
    found = detection.verdicts(active, np.array([r["said"] for r in ok], bool), np.array([r["score"] for r in ok], float))
    rounded = {k: round(v, 4) for k, v in found.items()}
    floor = round(1 - float(active.mean()), 4)
    return ScorePart.model_validate({"list": name, "verdicts": len(ok), "unread": len(rows) - len(ok), "floor": floor, **rounded})


def _parts(text: str) -> list[tuple[int, float]]:
    """`index:code index:code` as numbers."""
    return [(int(i), float(code)) for i, _, code in (p.partition(":") for p in str(text).split())]
