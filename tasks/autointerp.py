"""Automated interpretability: can a judge tell where a latent is active from an explanation of it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench.context import Context
from bench.errors import UsageError
from bench.examples import Reader
from bench.judge.questions import Answer, Detect, Explain, Judge, Question, Window
from bench.judge.statistics import StatisticsJudge
from bench.kernels import detection
from bench.kernels.statistics import mean_interval, wilson_interval
from bench.rng import numpy_rng
from bench.sae.canonical import Canonical
from bench.types import Metric, NotApplicable, Result, Work
from tasks.autointerp_windows import PROTOCOLS, Examples, Protocol, examples_of

_LISTS = {"random": "", "hard": "_hard"}
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
        return {"text": ctx.corpus.sha256, "judge": ", ".join(f"{k} {v}" for k, v in sorted(ctx.judge.identity.items()))}

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
        for latent in order:
            if len(found) == self.latents:
                break
            tried += 1
            if (some := examples_of(protocol, reader, sae, int(latent), counts > 0, ctx)) is not None:
                found.append(some)
        if len(found) < 2:
            return NotApplicable(f"{len(found)} of {sae.d_sae} latents have the windows that the protocol needs in {self.tokens} tokens")
        table = {c: list[Any]() for c in _COLUMNS}
        judges = {"judge": ctx.judge} | ({} if "statistics" in ctx.judge.identity.values() else {"statistics": StatisticsJudge()})
        explained = {by: judge.ask([_question(reader, e) for e in found]) for by, judge in judges.items()}
        for by, judge in judges.items():
            _detect(table, by, judge, explained[by], protocol, reader, found, ctx.seed)
        *rest, last = [*explained.values()][-1]  # by statistics: each latent gets another's
        _detect(table, "shuffled", StatisticsJudge(), [last, *rest], protocol, reader, found, ctx.seed)
        extra = {"eligible_share": _eligible(len(found), tried, len(order) / sae.d_sae)}
        told = {"latents": sae.d_sae, "latents_firing_enough": len(order), "latents_tried": tried, "latents_used": len(found)}
        unread = {
            f"{by}_{status}": sum(b == by and s == status for b, s in zip(table["by"], table["status"], strict=True))
            for by in judges
            for status in ("unscored", "failed")
        }
        metrics = self.rescored(table, ctx.seed)
        if "balanced_accuracy_hard" not in metrics:
            return NotApplicable("no answer of the judge could be read: " + ", ".join(f"{k} {v}" for k, v in unread.items()))
        warnings = [f"{n} of {table['by'].count(k.partition('_')[0])} verdicts are {k}: left out" for k, n in unread.items() if n]
        return Result("balanced_accuracy_hard", {**metrics, **extra}, table, {**told, **unread}, tuple(warnings))

    @staticmethod
    def rescored(table: Mapping[str, Sequence[Any]], seed: int) -> dict[str, Metric]:
        """The scores, from the verdicts alone.

        Args:
            table: The unit table: one row per verdict.
            seed: Of the run; used by the bootstrap only.
        """
        column = {k: np.array(v, dtype=object) for k, v in table.items()}
        metrics: dict[str, Metric] = {}
        for by, prefix in (("judge", ""), ("statistics", "statistics_"), ("shuffled", "shuffled_")):
            for name, suffix in _LISTS.items():
                here = (column["by"] == by) & (column["list"] == name) & (column["status"] == "ok")
                values = list[dict[str, float]]()
                for latent in dict.fromkeys(column["latent"][here]):
                    some = here & (column["latent"] == latent)
                    active, said, score = (column[c][some].astype(t) for c, t in (("active", bool), ("said", bool), ("score", float)))
                    if 0 < active.sum() < len(active):
                        values.append(detection.verdicts(active, said, score))
                for measure in _NAMES if values else ():
                    x = np.array([v[measure] for v in values])
                    interval = mean_interval(x, numpy_rng(seed, "autointerp", "interval"), 0.0, 1.0)
                    metrics[prefix + measure + suffix] = Metric(float(x.mean()), len(x), "latent", "own", "higher", interval)
        listed = (column["by"] == "judge") & (column["list"] == "random")
        floor = 1 - column["active"][listed].astype(bool).mean()
        return {**metrics, "none_accuracy": Metric(float(floor), int(listed.sum()), "verdict", "census")}


_COLUMNS = (
    *("latent", "firings", "by", "list", "kind", "active", "token"),
    *("said", "score", "status", "prompt", "raw", "explanation"),
)


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
