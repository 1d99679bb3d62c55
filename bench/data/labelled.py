"""Labelled text: binary sets for probing, from packages, never bundled with the project.

The 113 sets of the sae-probes benchmark (Kantamneni et al. 2025) lie inside its wheel; `probe_sets.json` is our
index of them (rows, hash, source family), rebuilt and compared by a test. A row of theirs that could have trained an
SAE (training side of the split) is never handed out. VADER and BBC news come from their own packages, whole.
"""

from __future__ import annotations

import difflib
import hashlib
import html
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from bench.data import sources
from bench.data.text import SPLIT, part_of, read_member, sae_probes_members, text_hash
from bench.errors import UsageError
from bench.kernels.folds import source_families
from bench.store import digest

_MASTER = "sae_probes/data/probing_datasets_MASTER.csv.zst"
_VADER_FILES = {"product": "amazonReviewSnippets", "movie": "movieReviewSnippets", "news": "nytEditorialSnippets", "tweet": "tweets"}


@dataclass(frozen=True)
class SetInfo:
    """A labelled set as `data list` shows it.

    Args:
        name: e.g. `113_movie_sent`.
        question: What the label says.
        rows: Rows in the file.
        family: Source family, the unit of statistics.
        sha256: Hash of the file's bytes.
    """

    name: str
    question: str
    rows: int
    family: str
    sha256: str


@dataclass(frozen=True)
class Labelled:
    """Texts with 0/1 labels, de-duplicated, evaluation side only.

    Args:
        info: Which set.
        texts: In file order.
        labels: [n] int8.
        counts: Rows dropped, by reason.
    """

    info: SetInfo
    texts: list[str]
    labels: np.ndarray
    counts: dict[str, int]


@cache
def catalogue() -> dict[str, SetInfo]:
    """The 113 probing sets by name, without touching the network."""
    text = resources.files("bench.data").joinpath("probe_sets.json").read_text(encoding="utf8")
    return {row["name"]: SetInfo(**row) for row in json.loads(text)}


def set_info(name: str) -> SetInfo:
    """What is known of a set without reading it.

    Raises:
        UsageError: Unknown name; the remedy holds the nearest ones.
    """
    if name in catalogue():
        return catalogue()[name]
    near = difflib.get_close_matches(name, catalogue(), 3)
    raise UsageError(f"no labelled set {name!r}", f"did you mean {', '.join(near)}?" if near else "see python -m bench data list")


def load_set(name: str) -> Labelled:
    """One probing set, ready for use.

    Raises:
        UsageError: Unknown name.
        UnavailableError: The wheel cannot be fetched.
    """
    info = set_info(name)
    wheel = sources.fetch(sources.SAE_PROBES)
    table = read_member(wheel, f"sae_probes/data/cleaned_data/{name}.csv.zst")
    return clean(info, table["prompt"].astype(str).tolist(), _binary(table["target"]))


def clean(info: SetInfo, texts: list[str], labels: np.ndarray) -> Labelled:
    """Drop duplicates, texts with contradicting labels, and texts on the training side; count each."""
    seen: dict[bytes, int] = {}
    conflicting: set[bytes] = set()
    hashes = [text_hash(t) for t in texts]
    for i, h in enumerate(hashes):
        if labels[seen.setdefault(h, i)] != labels[i]:
            conflicting.add(h)
    first = [i for h, i in seen.items() if h not in conflicting]
    kept = [i for i in first if texts[i].strip() and part_of(texts[i]) == "eval"]
    counts = {"duplicates": len(texts) - len(seen), "contradicting": len(conflicting), "training_side": len(first) - len(kept)}
    return Labelled(info, [texts[i] for i in kept], labels[kept].astype(np.int8), counts)


def identity(names: Iterable[str]) -> str:
    """Hash of what the named sets hold, split rule included, without reading them."""
    return digest([SPLIT, *(set_info(n).sha256 for n in names)])


def vader() -> pd.DataFrame:
    """VADER's human-rated sentences: text, domain (product, movie, news, tweet), score in [−4, 4]."""
    archive = sources.fetch(sources.VADER)
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        raw = inner.read() if inner else b""
    rows: list[tuple[str, str, float]] = []
    with tarfile.open(fileobj=io.BytesIO(raw)) as t:
        for domain, stem in _VADER_FILES.items():
            member = t.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            for line in (member.read() if member else b"").decode("latin1").splitlines():
                parts = line.split("\t")
                if len(parts) >= 3:
                    rows.append((html.unescape(parts[2].strip()), domain, float(parts[1])))
    return pd.DataFrame(rows, columns=pd.Index(["text", "domain", "score"]))


def bbc() -> pd.DataFrame:
    """BBC news articles: text and topic (business, entertainment, politics, sport, tech)."""
    with zipfile.ZipFile(sources.fetch(sources.BBC)) as z:
        names = [n for n in z.namelist() if "/data/" in n and n.endswith(".txt")]
        rows = [(z.read(n).decode("latin1"), n.split("/")[-2]) for n in sorted(names)]
    return pd.DataFrame(rows, columns=pd.Index(["text", "topic"]))


def build_catalogue() -> list[dict[str, object]]:
    """The index of the 113 binary sets, computed from the wheel (what `probe_sets.json` must hold)."""
    wheel = sources.fetch(sources.SAE_PROBES)
    master = read_member(wheel, _MASTER)
    binary = master[master["Data type"] == "Binary Classification"]
    question = {str(r["Dataset save name"]).split("/")[-1].removesuffix(".csv"): str(r["Probe to"]) for _, r in binary.iterrows()}
    members = {m.split("/")[-1].removesuffix(".csv.zst"): m for m in sae_probes_members(wheel)}
    tables = {n: read_member(wheel, members[n]) for n in sorted(question)}
    hashes = {n: [text_hash(t) for t in table["prompt"].astype(str)] for n, table in tables.items()}
    parents = [_stem(n) for n in members if n not in question]
    groups = {n: p for n in tables for p in parents if _stem(n).startswith(p + "_")}
    families = source_families(hashes, groups)
    with zipfile.ZipFile(wheel) as z:
        shas = {n: hashlib.sha256(z.read(members[n])).hexdigest() for n in tables}
    return [{"name": n, "question": question[n], "rows": len(t), "family": families[n], "sha256": shas[n]} for n, t in tables.items()]


def _stem(name: str) -> str:
    return name.partition("_")[2]


def _binary(target: Any) -> np.ndarray:
    """0/1 labels: the larger of the two values, in sorted order, is 1."""
    values = sorted(target.unique().tolist(), key=str)
    if len(values) != 2:
        raise UsageError(f"a probing set needs two labels, found {len(values)}", "choose a binary set")
    return (target == values[1]).to_numpy().astype(np.int8)
