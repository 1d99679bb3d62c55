"""What is known of one latent, as one JSON file: `latent-<number>.json`. Nothing of torch is needed to read it.

The file is one object, written compactly, with finite numbers only. `"schema"` is 1. The classes below are its parts, and
their fields its keys; a reader refuses other keys. Text (tokens, explanations, names) is stored as it is, whatever it
holds: it is data. All strengths are canonical codes (decoder rows of norm 1), by their size.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from bench.errors import ResourceError, UsageError, VerificationError

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SubjectPart(_Part):
    """Which SAE, at which place of which model."""

    name: str
    sha256: str
    architecture: str
    d_in: int
    d_sae: int
    lm: str
    revision: str
    hook: str


class TextPart(_Part):
    """What was read: the first `tokens` tokens of a text's evaluation part, of which `kept` have codes (no special tokens)."""

    name: str
    sha256: str
    tokens: int
    kept: int
    seed: int


class HistogramPart(_Part):
    """Firings by strength: `counts[i]` of them between `edges[i]` and `edges[i + 1]`."""

    edges: list[FiniteFloat]
    counts: list[int]


class TokenPart(_Part):
    """A token without case and surrounding spaces: firings on it, their mean strength, and how often it occurs at all."""

    token: str
    firings: int
    mean: FiniteFloat
    occurrences: int


class WindowPart(_Part):
    """A stretch of text around token `centre`, the first token being number `start` of the text.

    `kind` is `top`, `decile 1` (the strongest tenth) to `decile 10`, `inactive`, or `judged`: one more that a judge was shown.
    `codes` is null where the text was not read so far.
    """

    kind: str
    document: int
    centre: int
    start: int
    tokens: list[str]
    codes: list[FiniteFloat] | None


class ScorePart(_Part):
    """A judge's answers about this latent: on `list` `random` the inactive windows are any, on `hard` a similar latent is active.

    `floor` is the accuracy of always saying no; the floor of the balanced accuracy and of the AUC is 0.5.
    """

    list: str
    verdicts: int
    unread: int
    accuracy: FiniteFloat
    balanced_accuracy: FiniteFloat
    auc: FiniteFloat
    floor: FiniteFloat


class VerdictPart(_Part):
    """What was said of `windows[window]`; `said` and `score` are null where the answer could not be read."""

    window: int
    list: str
    active: bool
    said: bool | None
    score: FiniteFloat | None


class ExplanationPart(_Part):
    """An explanation and what a judge made of it.

    `by` is `judge`, `statistics` (the offline judge beside another) or `shuffled` (another latent's explanation: a floor).
    `shown` is for readers; `text` is what the judge was told. `source` is `record <key>`, or `here` where no record holds this
    latent and the offline judge was asked on the spot. `beyond` counts verdicts on windows that cannot be shown.
    """

    by: Literal["judge", "statistics", "shuffled"]
    judge: str
    source: str
    text: str
    shown: str
    scores: list[ScorePart]
    verdicts: list[VerdictPart]
    beyond: int = 0


class NeighbourPart(_Part):
    """Another latent: cosine of the decoder rows, firing rate, share of this latent's firings where it fires too, Jaccard index."""

    latent: int
    cosine: FiniteFloat
    rate: FiniteFloat
    share: FiniteFloat
    jaccard: FiniteFloat


class MetaPart(_Part):
    """One meta-latent that composes this latent's decoder row: its code, how many latents it serves, the others it serves most."""

    meta_latent: int
    code: FiniteFloat
    serves: int
    others: list[int]


class CompositionPart(_Part):
    """Meta-latents from a record of `composition`, of its first meta-SAE; `explained` is the mean share over all of them."""

    source: str
    explained: FiniteFloat
    meta_latents: list[MetaPart]


class LogitPart(_Part):
    """Direct effect on one token's logit, in standard deviations over the vocabulary."""

    id: int
    token: str
    effect: FiniteFloat


class LogitsPart(_Part):
    """Tokens whose logits the decoder row raises and lowers most, without the layers between."""

    promoted: list[LogitPart]
    suppressed: list[LogitPart]


class LatentFacts(_Part):
    """One latent.

    `rate` is firings per kept token. `dead`: no firing on this text, or no decoder row. `norm`: of the decoder row before it
    was scaled to 1. `quantiles`: strength by percentile of the firings, at whatever positions. `notes`: what is absent and why.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    subject: SubjectPart
    text: TextPart
    latent: int
    firings: int
    rate: FiniteFloat
    dead: bool
    norm: FiniteFloat
    histogram: HistogramPart | None = None
    quantiles: dict[str, FiniteFloat] = {}
    top_tokens: list[TokenPart] = []
    windows: list[WindowPart] = []
    explanations: list[ExplanationPart] = []
    nearest: list[NeighbourPart] = []
    opposite: list[NeighbourPart] = []
    composition: CompositionPart | None = None
    logits: LogitsPart | None = None
    notes: list[str] = []


def path_of(folder: Path, latent: int) -> Path:
    """Where a latent's facts lie."""
    return folder / f"latent-{latent}.json"


def write(folder: Path, facts: LatentFacts) -> Path:
    """Store a latent's facts; returns the file.

    Raises:
        ResourceError: The folder cannot be written.
    """
    text = json.dumps(facts.model_dump(mode="json", by_alias=True), separators=(",", ":"), allow_nan=False)
    return write_whole(path_of(folder, facts.latent), text + "\n")


def write_whole(path: Path, text: str) -> Path:
    """Write a file so that a reader sees all of it or none.

    Raises:
        ResourceError: It cannot be written.
    """
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.write_text(text, encoding="utf8")
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "free space or choose another --out folder") from e
    return path


def read(path: Path) -> LatentFacts:
    """A latent's facts, checked.

    Raises:
        VerificationError: The file is damaged or from a newer version.
    """
    try:
        raw: Any = json.loads(path.read_text(encoding="utf8"))
        facts = LatentFacts.model_validate(raw)
    except (OSError, ValueError, RecursionError) as e:
        reason = f"{e.errors()[0]['loc']} {e.errors()[0]['msg']}" if isinstance(e, ValidationError) else str(e).splitlines()[0]
        raise VerificationError(f"{path} holds no facts of a latent: {reason}", "remove the file and run show again") from e
    referred = [v.window for e in facts.explanations for v in e.verdicts]
    known, h = len(facts.windows), facts.histogram
    whole = all(0 <= i < known for i in referred) and all(w.codes is None or len(w.codes) == len(w.tokens) for w in facts.windows)
    if not whole or (h is not None and len(h.edges) != len(h.counts) + 1) or path != path_of(path.parent, facts.latent):
        raise VerificationError(f"{path} contradicts itself", "remove the file and run show again")
    return facts


def read_all(folder: Path) -> list[LatentFacts]:
    """Facts of every latent in a folder, the most active first.

    Raises:
        UsageError: They are not about one SAE.
        VerificationError: A file is damaged.
    """
    found = sorted((read(p) for p in folder.glob("latent-*.json")), key=lambda f: (-f.rate, f.latent))
    if len({f.subject.model_dump_json() for f in found}) > 1:
        raise UsageError(f"{folder} holds latents of several SAEs", "choose another --out folder")
    return found
