"""Measures single latents: how often and on what they fire, windows of text, neighbours, explanations, logits.

The result is a `LatentFacts` per latent; `bench/latent_facts.py` documents its parts and writes it as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from bench import progress
from bench.context import ACTIVE_FIRINGS, Context
from bench.errors import UsageError
from bench.examples import Firings, Reader
from bench.kernels import cosine, firings
from bench.latent_facts import (
    HistogramPart,
    LatentFacts,
    LogitPart,
    LogitsPart,
    NeighbourPart,
    SubjectPart,
    TextPart,
    TokenPart,
)
from bench.latent_records import Judged, RecordedLatents
from bench.latent_windows import Chosen, chosen_windows, wide_reader, with_verdicts, written
from bench.lm.unembedding import direct_logits
from bench.record import Records, SubjectFacts
from bench.sae.canonical import Canonical

BINS = 30
PERCENTILES = (10, 25, 50, 75, 90, 99, 100)
_TOKENS = 15
_NEAREST, _OPPOSITE = 8, 4
_LOGITS = 10


@dataclass(frozen=True)
class Measuring:
    """An SAE with a text that it has read.

    Args:
        facts: Of the SAE and its site.
        sae: Canonical.
        ctx: Gives text, activations and codes.
        reader: The text with the codes.
        recorded: What records say of the latents.
    """

    facts: SubjectFacts
    sae: Canonical
    ctx: Context
    reader: Reader
    recorded: RecordedLatents

    @staticmethod
    def of(facts: SubjectFacts, sae: Canonical, ctx: Context, tokens: int, folders: Sequence[Records] = ()) -> Measuring:
        """Read the first tokens of the evaluation text.

        Args:
            facts: Of the SAE and its site.
            sae: Canonical.
            ctx: Gives text, activations and codes.
            tokens: How many.
            folders: Where records of the SAE may lie.

        Raises:
            UsageError: The SAE's place is in a planted world, which has no text, or there are no tokens.
        """
        if not ctx.has_lm:
            raise UsageError(f"{facts.name} belongs to {facts.lm}, which has no text to show", "show an SAE of a language model")
        if tokens < 1:
            raise UsageError(f"--tokens {tokens} leaves nothing to read", "give at least a few thousand tokens")
        reader = Reader.of(sae, ctx, tokens)
        if not reader.codes.n:
            raise UsageError("the text has no token that counts", "give more --tokens or another --text")
        return Measuring(facts, sae, ctx, reader, RecordedLatents(facts, tuple(folders), ctx.corpus.sha256))

    @cached_property
    def counts(self) -> np.ndarray:
        """[d_sae] firings of each latent."""
        return self.reader.codes.firing_counts()

    def sample(self, count: int) -> list[int]:
        """Latents from all tenths of the firing rates in turn, those that a record explains before the others.

        Raises:
            UsageError: None fires often enough.
        """
        if count < 1:
            raise UsageError(f"--latents {count} asks for none", "give 1 or more, or name them with --latent")
        order = self.reader.sampled(ACTIVE_FIRINGS, self.ctx.seed)
        if not len(order):
            cause = f"no latent fires {ACTIVE_FIRINGS} times on {self.reader.codes.n} tokens"
            raise UsageError(cause, "give more --tokens, or name latents with --latent")
        return sorted((int(n) for n in order), key=lambda n: n not in self.recorded.explained)[:count]

    def measure(self, latents: Sequence[int]) -> Iterator[LatentFacts]:
        """Facts of some latents, one at a time.

        Raises:
            UsageError: There is no such latent.
        """
        latents = list(dict.fromkeys(latents))
        if outside := [n for n in latents if not 0 <= n < self.sae.d_sae]:
            raise UsageError(f"{self.facts.name} has no latent {outside[0]}", f"give a number from 0 to {self.sae.d_sae - 1}")
        judged = self.recorded.judged(latents)  # all at once: a unit table is read from disk
        with progress.track("latents", len(latents), "latents") as advance:
            for latent in latents:
                yield self._one(latent, judged.get(latent, []))
                advance(1)

    def _one(self, latent: int, judged: list[Judged]) -> LatentFacts:
        fired = self.reader.firings(latent)
        chosen = chosen_windows(self.reader, fired, self.ctx.rng("latents", "windows", latent))
        nearest, opposite, cosines = cosine.both_ends(self.sae.W_dec, latent, np.flatnonzero(self.sae.norms), _NEAREST, _OPPOSITE)
        neighbours = partial(self._neighbours, len(fired.at), self._joint(fired), cosines)
        judged, notes = self._explained(fired, chosen, judged)
        items, explained = with_verdicts(chosen, judged, len(self._wide.tokens.rows.ids))
        logits, why = self._logits(latent)
        composition = self.recorded.composition(latent)
        if composition is None:
            notes.append("no record of the task composition holds this latent, so its meta-latents are not known")
        return LatentFacts(
            subject=subject_part(self.facts),
            text=self._text,
            latent=latent,
            firings=len(fired.at),
            rate=short(len(fired.at) / self.reader.codes.n),
            dead=not len(fired.at) or not self.sae.norms[latent],
            norm=short(self.sae.norms[latent]),
            histogram=_histogram(fired),
            quantiles=_quantiles(fired),
            top_tokens=self._top_tokens(fired),
            windows=written(self.reader, self._wide, items, fired),
            explanations=explained,
            nearest=neighbours(nearest),
            opposite=neighbours(opposite),
            composition=composition,
            logits=logits,
            notes=[*notes, *([why] if why else [])],
        )

    def _explained(self, fired: Firings, chosen: Chosen, judged: list[Judged]) -> tuple[list[Judged], list[str]]:
        """Explanations of a latent, asked for on the spot where no record has one; and why there is none."""
        if judged:
            return judged, []
        if not len(fired.at):
            return [], ["it does not fire on this text, so there is nothing to explain"]
        here = chosen.judged_here(self.reader, fired)
        return here, [] if here else ["it fires in too few places to explain it and to test the explanation"]

    @cached_property
    def _wide(self) -> Reader:
        """The text in which recorded verdicts lie."""
        return wide_reader(self.reader, self.ctx, self.recorded.tokens)

    @cached_property
    def _text(self) -> TextPart:
        rows, corpus = self.reader.tokens.rows, self.ctx.corpus
        return TextPart(name=corpus.name, sha256=corpus.sha256, tokens=len(rows.ids), kept=self.reader.codes.n, seed=self.ctx.seed)

    def _joint(self, fired: Firings) -> np.ndarray:
        """[d_sae] tokens on which this latent and another fire."""
        codes = self.reader.codes
        return firings.joint_counts(codes.indptr, codes.indices, np.searchsorted(self.reader.place, fired.at), codes.d_sae)

    def _neighbours(self, own: int, joint: np.ndarray, cosines: np.ndarray, others: np.ndarray) -> list[NeighbourPart]:
        jaccard = firings.overlap(joint[others], own, self.counts[others])
        return [
            NeighbourPart(
                latent=int(n),
                cosine=short(cosines[n]),
                rate=short(self.counts[n] / self.reader.codes.n),
                share=short(joint[n] / max(own, 1)),
                jaccard=short(j),
            )
            for n, j in zip(others, jaccard, strict=True)
        ]

    @cached_property
    def _folded(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Tokens without case and spaces, the one of each token of the text, and how often each occurs among those kept."""
        ids, place = np.unique(self.reader.tokens.rows.ids, return_inverse=True)
        folded = [self.reader.pieces[int(i)].strip().lower() or self.reader.pieces[int(i)] for i in ids]
        names = sorted(set(folded))
        number = {t: i for i, t in enumerate(names)}
        group = np.array([number[t] for t in folded], dtype=np.int64)[place]
        return names, group, np.bincount(group[self.reader.place], minlength=len(names))

    def _top_tokens(self, fired: Firings) -> list[TokenPart]:
        """Tokens on which the latent fires, those with the largest sum of strengths first."""
        names, group, occurrences = self._folded
        counts, means = firings.by_group(group[fired.at], fired.strength, len(names))
        best = [int(i) for i in np.argsort(-counts * means, kind="stable")[:_TOKENS] if counts[i]]
        return [TokenPart(token=names[i], firings=int(counts[i]), mean=short(means[i]), occurrences=int(occurrences[i])) for i in best]

    def _logits(self, latent: int) -> tuple[LogitsPart | None, str]:
        """Tokens that the decoder row promotes and suppresses, or why there are none."""
        if self.ctx.hook.site != "resid_post":
            return None, f"direct effects on the logits are given for the residual stream, not for {self.facts.hook}"
        if not self.sae.norms[latent]:
            return None, "it has no decoder row, so no effect on the logits"
        effect, decode = direct_logits(self.ctx.lm, self.sae.W_dec[latent]), self.ctx.lm.tokenizer.decode
        order = np.argsort(-effect, kind="stable")

        def parts(ids: np.ndarray) -> list[LogitPart]:
            return [LogitPart(id=int(i), token=decode([int(i)]), effect=short(effect[i])) for i in ids]

        return LogitsPart(promoted=parts(order[:_LOGITS]), suppressed=parts(order[::-1][:_LOGITS])), ""


def subject_part(facts: SubjectFacts) -> SubjectPart:
    """The facts of an SAE that a page shows."""
    return SubjectPart(**facts.model_dump(include=set(SubjectPart.model_fields)))


def short(value: Any) -> float:
    """Five significant digits."""
    return float(f"{float(value):.5g}")


def _histogram(fired: Firings) -> HistogramPart | None:
    if not len(fired.at):
        return None
    edges, counts = firings.histogram(fired.strength, BINS)
    return HistogramPart(edges=[short(e) for e in edges], counts=counts.tolist())


def _quantiles(fired: Firings) -> dict[str, float]:
    if not len(fired.at):
        return {}
    return {str(p): short(v) for p, v in zip(PERCENTILES, np.percentile(fired.strength, PERCENTILES), strict=True)}
