"""A judge whose answers were recorded: the same numbers without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UsageError
from bench.judge import prompts
from bench.judge.questions import Answer, Question, Spending, prompt_hash
from bench.store import digest


@dataclass(frozen=True)
class ReplayJudge:
    """Answers of a file; a question that is not in it is `failed`.

    Args:
        path: JSON lines with the fields `prompt` (hash of the question), `raw` (the answer) and, where the answer was cut
            off, `"status": "unscored"`.

    Raises:
        UsageError: The file cannot be read.
    """

    path: Path
    _raw: Mapping[str, tuple[str, bool]] = field(init=False, repr=False, compare=False)
    _seen: list[str] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_raw", _lines(Path(self.path)))

    @property
    def identity(self) -> Mapping[str, str]:
        """The answers themselves, wherever the file is."""
        return {"judge": "replay", "answers": digest(sorted(self._raw.items())), "prompts": prompts.VERSION}

    @property
    def spending(self) -> Spending:
        """Nothing is paid for."""
        return Spending(cached=len(self._seen), usd=0.0)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to every question, in order."""
        return [self._answer(q) for q in questions]

    def _answer(self, question: Question) -> Answer:
        prompt = prompt_hash(question)
        if prompt not in self._raw:
            return Answer(prompt, "", "failed")
        self._seen.append(prompt)
        raw, whole = self._raw[prompt]
        return prompts.answered(question, prompt, raw, whole)


def record(path: Path, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    """Write answers so that `ReplayJudge` gives them again; failed ones are left out."""
    lines: dict[str, dict[str, str]] = {}
    for question, answer in zip(questions, answers, strict=True):
        if answer.status == "failed":
            continue
        prompt = prompt_hash(question)
        lines[prompt] = {"prompt": prompt, "raw": answer.raw}
        if answer.status == "unscored":  # cut off, it may still look like a whole one
            lines[prompt]["status"] = "unscored"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")


def _lines(path: Path) -> dict[str, tuple[str, bool]]:
    remedy = 'one JSON object a line, {"prompt": "…", "raw": "…"}, as bench.judge.replay.record writes them'
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the answers {path}: {e}", remedy) from None
    found: dict[str, tuple[str, bool]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt, raw = fields["prompt"], fields["raw"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = raw = None
            fields = {}
        if not isinstance(prompt, str) or not isinstance(raw, str):
            raise UsageError(f"{path}:{number} is not an answer", remedy)
        found[prompt] = raw, fields.get("status") != "unscored"
    return found
