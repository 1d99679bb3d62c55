"""Automated interpretability: can a judge tell where a latent is active from an explanation of it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench import progress
from bench.context import Context
from bench.errors import JudgeError, UsageError
from bench.examples import Reader
from bench.judge.questions import Answer, Detect, Explain, Judge, Question, Window
from bench.judge.statistics import OFFLINE
from bench.kernels import detection
from bench.kernels.statistics import mean_interval, wilson_interval
from bench.rng import numpy_rng
from bench.sae.canonical import Canonical
from bench.types import Metric, NotApplicable, Result, Work
from tasks.autointerp_windows import PROTOCOLS, Examples, Protocol, examples_of

_LISTS = {"random": "", "hard": "_hard"}
_PREFIX = {"judge": "", "statistics": "statistics_", "shuffled": "shuffled_"}
_MOST_FAILED = 0.05  # share of the verdicts
_NAMES = ("accuracy", "balanced_accuracy", "auc")


@dataclass(frozen=True)
class Autointerp:
    """Right answers of a judge that is given a latent's explanation and windows of text, and says where the latent is active.

    Balanced accuracy and AUC against hard negatives, in which a latent with a similar decoder row is active, come first. The
    same windows are judged by the statistics of their tokens, beside every language model.

    Source: protocols of SAEBench (arXiv 2503.09532) and of OrtSAE (arXiv 2509.22033), after Bills et al. 2023 and Paulo et al.
    2024 (arXiv 2410.13928). Here inactive windows are looked at, no text occurs twice, latents are drawn from all tenths of the
    firing rates, and an answer that cannot be read is counted, not guessed. Changes: 1: first version.

    Args:
        protocol: `saebench` explains by 15 windows and judges lists of 14; `ortsae` explains by 10 and judges 100 one at a
            time, from other documents.
        latents: How many.
        tokens: Evaluation tokens in which windows are looked for.
        permuted: A control: every token has the codes of another token.
    """

    name: ClassVar[str] = "autointerp"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("karvonen2025saebench", "korznikov2025ortsae", "paulo2024")
    caveats: ClassVar[tuple[str, ...]] = (
        "the score is the judge's as much as the SAE's: compare SAEs under one judge, and with the token statistics beside it",
        "latents that fire too seldom for the protocol are left out: read `eligible_share`",
    )
    headline: ClassVar[tuple[str, ...]] = ("balanced_accuracy_hard", "auc_hard", "accuracy", "none_accuracy", "eligible_share")
    protocol: Literal["saebench", "ortsae"] = "saebench"
    latents: int = 1000
    tokens: int = 2_000_000
    permuted: bool = False

    def __post_init__(self) -> None:
        if min(self.latents, self.tokens) < 2:
            raise UsageError("needs latents ≥ 2 and tokens ≥ 2", "raise them")

    def data(self, ctx: Context) -> Mapping[str, str]:
        judges = ctx.judge.identity, *(() if _offline(ctx.judge) else (OFFLINE.identity,))
        return {"text": ctx.corpus.sha256, "judge": "; ".join(", ".join(f"{k} {v}" for k, v in sorted(i.items())) for i in judges)}

    def work(self, ctx: Context) -> Work:
        p, shown = PROTOCOLS[self.protocol], _typical(ctx, self.tokens)
        explain = Explain(tuple(shown(i) for i in range(p.top[0] + p.weighted[0])))
        test = [shown(i).tokens for i in range(p.top[1] + p.weighted[1] + 10 * p.deciles + p.negatives)]
        about = "x" * 80
        lists = [(2, Detect(about, tuple(test)))] if p.together else [(len(test) + p.negatives, Detect(about, (test[0],)))]
        calls = [(self.latents * n, q) for n, q in ((1, explain), *lists)]
        return Work({f"text {self.tokens}": ctx.text_cached(self.tokens)}, calls=tuple(calls))

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        protocol, reader = PROTOCOLS[self.protocol], Reader.of(sae, ctx, self.tokens, self.permuted)
        counts = reader.codes.firing_counts()
        order = reader.sampled(protocol.firings, ctx.seed)
        found, tried = list[Examples](), 0
        with progress.track("choosing windows", min(self.latents, len(order)), "latents") as advance:
            for latent in order:
                if len(found) == self.latents:
                    break
                tried += 1
                some = examples_of(protocol, reader, sae, int(latent), counts > 0, ctx)
                found += [some] if some else []
                advance(some is not None)
        if len(found) < 2:
            return NotApplicable(f"{len(found)} of {sae.d_sae} latents have the windows that the protocol needs in {reader.codes.n} tokens")
        table = {c: list[Any]() for c in _COLUMNS}
        judges = {"judge": ctx.judge} | ({} if _offline(ctx.judge) else {"statistics": OFFLINE})
        explained = {by: judge.ask([_question(reader, e) for e in found]) for by, judge in judges.items()}
        for by, judge in judges.items():
            _detect(table, by, judge, explained[by], protocol, reader, found, ctx.seed)
        *rest, last = [*explained.values()][-1]  # by statistics: each latent gets another's
        _detect(table, "shuffled", OFFLINE, [last, *rest], protocol, reader, found, ctx.seed)
        _lost(table)
        extra = {"eligible_share": _eligible(len(found), tried, len(order) / sae.d_sae)}
        told = {"tokens": reader.codes.n, "latents": sae.d_sae, "latents_firing_enough": len(order), "latents_tried": tried}
        told |= {"latents_used": len(found), "latents_without_hard_negatives": sum("hard" not in e.negatives for e in found)}
        unread = {
            f"{by}_{status}": sum(b == by and s == status for b, s in zip(table["by"], table["status"], strict=True))
            for by in judges
            for status in ("unscored", "failed")
        }
        metrics = self.rescored(table, ctx.seed)
        main = next((m for m in ("balanced_accuracy_hard", "balanced_accuracy") if m in metrics), None)
        if main is None:
            return NotApplicable("no answer of the judge could be read: " + ", ".join(f"{k} {v}" for k, v in unread.items()))
        warnings = [f"{n} of {table['by'].count(k.partition('_')[0])} verdicts are {k}: left out" for k, n in unread.items() if n]
        return Result(main, {**metrics, **extra}, table, {**told, **unread}, tuple(warnings))

    @staticmethod
    def rescored(table: Mapping[str, Sequence[Any]], seed: int) -> dict[str, Metric]:
        """The scores, from the verdicts alone.

        Args:
            table: The unit table: one row per verdict.
            seed: Of the run; used by the bootstrap only.
        """
        seen: dict[tuple[str, str], dict[int, list[int]]] = {}
        for i, key in enumerate(zip(table["by"], table["list"], strict=True)):
            if table["status"][i] == "ok":
                seen.setdefault(key, {}).setdefault(table["latent"][i], []).append(i)
        metrics: dict[str, Metric] = {}
        for (by, name), latents in seen.items():
            rows = ([np.array([table[c][i] for i in some]) for c in ("active", "said", "score")] for some in latents.values())
            values = [detection.verdicts(active, said, score) for active, said, score in rows if 0 < active.sum() < len(active)]
            for measure in _NAMES if values else ():
                x = np.array([v[measure] for v in values])
                interval = mean_interval(x, numpy_rng(seed, "autointerp", "interval"), 0.0, 1.0)
                metrics[_PREFIX[by] + measure + _LISTS[name]] = Metric(float(x.mean()), len(x), "latent", "own", "higher", interval)
        active = [a for a, by, name in zip(table["active"], table["by"], table["list"], strict=True) if (by, name) == ("judge", "random")]
        return {**metrics, "none_accuracy": Metric(1 - float(np.mean(active)), len(active), "verdict", "census")}


_COLUMNS = (
    *("latent", "firings", "by", "list", "kind", "active", "token"),
    *("said", "score", "status", "prompt", "raw", "explanation"),
)


def _offline(judge: Judge) -> bool:
    return judge.identity["judge"] == OFFLINE.identity["judge"]


def _lost(table: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a measurement whose judge did not answer: once recorded, it would not be made again."""
    failed, asked = table["status"].count("failed"), table["by"].count("judge")
    if failed > _MOST_FAILED * asked:
        cause = f"{failed} of {asked} verdicts never came from the judge"
        raise JudgeError(cause, "check its server, then run the same command again: what was answered is kept")


def _eligible(found: int, tried: int, share: float) -> Metric:
    """Share of all latents that have the windows, from those tried among the share that fires enough."""
    interval = wilson_interval(found, tried)
    scaled = (interval[0] * share, interval[1] * share) if interval else None
    return Metric(found / tried * share, tried, "latent", "own", "higher", scaled)


def _question(reader: Reader, e: Examples) -> Explain:
    """What a judge is shown to explain a latent."""
    return Explain(*(tuple(reader.window(int(t), e.firings) for t in at) for at in (e.explain, e.contrast)))


def _detect(
    table: dict[str, list[Any]],
    by: str,
    judge: Judge,
    explained: Sequence[Answer],
    p: Protocol,
    reader: Reader,
    found: Sequence[Examples],
    seed: int,
) -> None:
    """Have every latent detected by its explanation, and add the verdicts to the table."""
    asked = list[tuple[Examples, Answer, str, list[tuple[str, int]]]]()
    for e, answer in zip(found, explained, strict=True):
        for name, inactive in e.negatives.items():
            items = [*e.test, *((name, int(t)) for t in inactive)]
            items = [items[i] for i in numpy_rng(seed, "autointerp", "order", int(reader.keys[e.latent]), name).permutation(len(items))]
            asked += [(e, answer, name, part) for part in ([items] if p.together else [[i] for i in items])]
    some = [i for i, (_, answer, _, _) in enumerate(asked) if answer.status == "ok"]
    questions: list[Question] = []
    for i in some:
        e, answer, _, items = asked[i]
        questions.append(Detect(answer.explanation, tuple(reader.window(t, e.firings).tokens for _, t in items)))
    answers = dict(zip(some, judge.ask(questions), strict=True))
    for i, (e, explanation, name, items) in enumerate(asked):
        answer = answers.get(i, explanation)
        for j, (kind, token) in enumerate(items):
            ok = answer.status == "ok"
            row = (e.latent, len(e.firings.at), by, name, kind, kind not in _LISTS, token)
            told = (answer.said[j] if ok else None, answer.score[j] if ok else None, answer.status, answer.prompt, answer.raw)
            for column, value in zip(_COLUMNS, (*row, *told, explanation.explanation), strict=True):
                table[column].append(value)


def _typical(ctx: Context, tokens: int) -> Any:
    """Windows of the text, of a usual size, for an estimate: the i-th, with its middle token marked."""
    rows = ctx.evaluation_rows(tokens)
    length = 21

    def shown(i: int) -> Window:
        start = 1 + i * length
        pieces = tuple(ctx.lm.tokenizer.decode([int(t)]) for t in rows.ids[start : start + length])
        return Window(pieces, tuple(float(j == length // 2) for j in range(len(pieces))))

    return shown
