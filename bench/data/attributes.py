"""Texts with two attributes (for SCR) and with several classes (for TPP), from packages or the Hugging Face hub.

Nothing of the texts is bundled. As for the probing sets, duplicates and contradicting rows are dropped and a text
that could have trained an SAE is never handed out; `bench.data.labelled.clean` does both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from bench.data import labelled, sources
from bench.data.labelled import SetInfo, clean
from bench.data.text import SPLIT, read_member, text_hash
from bench.errors import UsageError
from bench.store import digest

RULES = "1"  # version of what this module makes of its sources; part of every identity
_RATED = 1.0  # a VADER sentence has a sentiment when its mean rating is at least this far from neutral
_DOMAINS = ("movie", "news", "product", "tweet")
_GENDER, _ACTOR = "56_wikidatasex_or_gender", "61_wikidata_occupation_isactor"
_MALE, _AMERICAN, _POLITICIAN = "5_hist_fig_ismale", "6_hist_fig_isamerican", "7_hist_fig_ispolitician"

# name → two files of the sae-probes wheel, joined on their prompts; a label is the larger of a file's two values
_JOINED = {
    "gender_actor": (_GENDER, _ACTOR),
    "gender_athlete": (_GENDER, "60_wikidata_occupation_isathlete"),
    "gender_journalist": (_GENDER, "59_wikidata_occupation_isjournalist"),
    "gender_politician": (_GENDER, "62_wikidata_occupation_ispolitician"),
    "gender_singer": (_GENDER, "63_wikidata_occupation_issinger"),
    "hist_american_politician": (_AMERICAN, _POLITICIAN),
    "hist_male_american": (_MALE, _AMERICAN),
    "hist_male_politician": (_MALE, _POLITICIAN),
}
# name → source family in the catalogue of probing sets; files whose label is an answer's letter or a number are left out
_FILES = {
    "10_nyc_borough": "114_nyc_borough_Manhattan",
    "13_us_state": "117_us_state_FL",
    "14_us_timezone": "117_us_state_FL",
    "17_world_country": "123_world_country_United_Kingdom",
    "27_art_type": "126_art_type_book",
    "43_temp_cat": "130_temp_cat_Frequency",
    "46_context_type": "133_context_type_Causality",
    "88_glue_mnli": "136_glue_mnli_entailment",
    "97_news_class": "139_news_class_Politics",
    "98_cancer_cat": "142_cancer_cat_Thyroid_Cancer",
    "99_sci_cat": "99_sci_cat",
    "101_disease_class": "145_disease_class_digestive system diseases",
    "102_twt_emotion": "148_twt_emotion_worry",
    "103_it_tick": "151_it_tick_HR Support",
    "108_athlete_sport": "154_athlete_sport_football",
}
# name → family and binary sets whose positives are the classes
_POSITIVES = {
    "code": ("158_code_C", {"158_code_C": "C", "160_code_HTML": "HTML", "159_code_Python": "Python"}),
    "agnews": ("158_code_C", {"161_agnews_0": "world", "162_agnews_1": "sports", "163_agnews_2": "business"}),
}
_TABLES = {"vader_domain": ("vader", "domain of a rated sentence"), "bbc_topic": ("bbc", "topic of a news article")}


@dataclass(frozen=True)
class TwoWay:
    """Texts with two binary attributes, de-duplicated, evaluation side only.

    Args:
        name: e.g. `vader_movie_tweet`.
        texts: Distinct texts.
        a: [n] bool, the first attribute.
        b: [n] bool, the second.
        a_name: What `a` says, e.g. `movie, not tweet`.
        b_name: What `b` says.
        levels: Two names; pairs that share one are not independent of one another.
        identity: Hash of the source and of the rules it was read by.
        counts: Rows left out, by reason.
    """

    name: str
    texts: list[str]
    a: np.ndarray
    b: np.ndarray
    a_name: str
    b_name: str
    levels: tuple[str, str]
    identity: str
    counts: dict[str, int]

    @property
    def cell(self) -> np.ndarray:
        """[n] which of the four combinations: 2·a + b."""
        return 2 * self.a.astype(np.int64) + self.b


@dataclass(frozen=True)
class Classes:
    """Texts of several classes, de-duplicated, evaluation side only.

    Args:
        name: e.g. `97_news_class`.
        texts: Distinct texts.
        labels: [n] integers, an index into `class_names`.
        class_names: In the order of the labels.
        family: Source family, the unit of statistics; named as in the catalogue of probing sets.
        identity: Hash of the source and of the rules it was read by.
        counts: Rows left out, by reason.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    family: str
    identity: str
    counts: dict[str, int]


def two_way_sets() -> dict[str, str]:
    """Sets with two attributes by name, and what they cross; nothing is fetched."""
    from bench.data import hub_attributes

    found = {f"vader_{p}_{q}": f"{p} or {q} × positive or negative (|rating| ≥ 1)" for p, q in combinations(_DOMAINS, 2)}
    found |= {name: " × ".join(pair) for name, pair in _JOINED.items()}
    return found | hub_attributes.listing()


def class_sets() -> dict[str, str]:
    """Sets of several classes by name, and their source family; nothing is fetched."""
    return _FILES | {n: family for n, (family, _) in _POSITIVES.items()} | {n: family for n, (family, _) in _TABLES.items()}


def identity(names: Iterable[str]) -> str:
    """Hash of what the named sets hold, split and rules included, without reading them (a hub's commit is looked up).

    Raises:
        UsageError: Unknown name.
        UnavailableError: The hub is asked for a commit and does not answer.
    """
    return digest([_one_identity(n) for n in names])


def load_two_way(name: str) -> TwoWay:
    """A set with two attributes.

    Raises:
        UsageError: Unknown name.
        UnavailableError: Its source cannot be fetched.
    """
    from bench.data import hub_attributes

    if hub_attributes.is_hub(name):
        return hub_attributes.load(name)
    _known(name, two_way_sets())
    if name in _JOINED:
        return _joined(name, *_JOINED[name])
    p, q = name.removeprefix("vader_").split("_")
    texts, code, counts = _vader_rated()
    at = np.flatnonzero((code // 2 == _DOMAINS.index(p)) | (code // 2 == _DOMAINS.index(q)))
    first = code[at] // 2 == _DOMAINS.index(p)
    return TwoWay(
        name, [texts[i] for i in at], first, code[at] % 2 == 1, f"{p}, not {q}", "positive", (p, q), _one_identity(name), dict(counts)
    )


def load_classes(name: str) -> Classes:
    """A set of several classes.

    Raises:
        UsageError: Unknown name.
        UnavailableError: Its source cannot be fetched.
    """
    family = _known(name, class_sets())
    if name in _FILES:
        texts, labels, names, counts = _file(name)
    elif name in _POSITIVES:
        texts, labels, names, counts = _positives(_POSITIVES[name][1])
    else:
        texts, labels, names, counts = _table(name)
    return Classes(name, texts, labels, names, family, _one_identity(name), dict(counts))


_Read = tuple[list[str], np.ndarray, tuple[str, ...], dict[str, int]]


def _cleaned(name: str, texts: list[str], values: Sequence[object]) -> _Read:
    """Usable texts, their class (index into the sorted values), the values' names, and what was left out."""
    names = sorted(set(values), key=str)
    codes = np.array([names.index(v) for v in values], dtype=np.int8)
    found = clean(SetInfo(name, name, len(texts), name, ""), texts, codes)
    return found.texts, found.labels.astype(np.int64), tuple(str(v) for v in names), found.counts


@cache
def _file(name: str) -> _Read:
    """One table of the sae-probes wheel."""
    table = read_member(sources.fetch(sources.SAE_PROBES), f"sae_probes/data/cleaned_data/{name}.csv.zst")
    return _cleaned(name, table["prompt"].astype(str).tolist(), table["target"].tolist())


@cache
def _table(name: str) -> _Read:
    """VADER's sentences by domain, or the BBC's articles by topic."""
    table = labelled.vader() if name == "vader_domain" else labelled.bbc()
    return _cleaned(name, table["text"].tolist(), table.iloc[:, 1].tolist())


def _positives(members: dict[str, str]) -> _Read:
    """The positive rows of several binary sets, one class each."""
    texts: list[str] = []
    values: list[object] = []
    for member, label in members.items():
        own, y, _, _ = _file(member)
        texts += [t for t, positive in zip(own, y, strict=True) if positive]
        values += [label] * int(y.sum())
    return _cleaned("+".join(members), texts, values)


@cache
def _vader_rated() -> tuple[list[str], np.ndarray, dict[str, int]]:
    """VADER's sentences with a sentiment, and 2 · domain + positive."""
    table = labelled.vader()
    table = table[table["score"].abs() >= _RATED]
    codes = [2 * _DOMAINS.index(d) + (s > 0) for d, s in zip(table["domain"], table["score"], strict=True)]
    texts, labels, _, counts = _cleaned("vader", table["text"].tolist(), codes)
    return texts, labels, counts


def _joined(name: str, first: str, second: str) -> TwoWay:
    """Texts that are in both files, with both labels."""
    a_texts, a, a_values, _ = _file(first)
    b_texts, b, b_values, _ = _file(second)
    place = {text_hash(t): i for i, t in enumerate(b_texts)}
    pairs = [(i, place[h]) for i, h in enumerate(map(text_hash, a_texts)) if h in place]
    i, j = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    says = [f"{stem.partition('_')[2]} is {values[1]}" for stem, values in ((first, a_values), (second, b_values))]
    counts = {"in_one_file_only": len(a_texts) + len(b_texts) - 2 * len(pairs)}
    return TwoWay(name, [a_texts[k] for k in i], a[i] == 1, b[j] == 1, says[0], says[1], (first, second), _one_identity(name), counts)


def _one_identity(name: str) -> str:
    from bench.data import hub_attributes

    if hub_attributes.is_hub(name):
        return digest([SPLIT, RULES, name, hub_attributes.identity(name)])
    _known(name, two_way_sets() | class_sets())
    source = sources.VADER if name.startswith("vader_") else sources.BBC if name.startswith("bbc_") else sources.SAE_PROBES
    return digest([SPLIT, RULES, name, source.sha256])


def _known(name: str, names: dict[str, str]) -> str:
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, 3)
    raise UsageError(f"no labelled set {name!r}", f"did you mean {', '.join(near)}?" if near else "see python -m bench data list")
