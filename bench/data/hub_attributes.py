"""The field's own two-attribute sets, for users who have the Hugging Face hub: Bias in Bios and Amazon reviews.

`bias_in_bios_PROFESSION_PROFESSION` crosses two professions with gender, `amazon_CATEGORY_CATEGORY` two product
categories with the rating; `@COMMIT` behind a name pins the revision. The pairs listed are those of SAEBench
(Karvonen et al. 2025); any other two can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data.attributes import RULES, TwoWay
from bench.data.hub import commit, rows
from bench.data.labelled import SetInfo, clean
from bench.data.text import SPLIT
from bench.errors import UnavailableError, UsageError
from bench.store import digest


@dataclass(frozen=True)
class HubSet:
    """How rows of a data set on the hub become texts with two attributes.

    Args:
        repository: Its name on the hub.
        text: Column with the text.
        kind: Column with the profession or category, an integer.
        kinds: Name of each of its values.
        other: Column with the other attribute.
        true: Its values that count as true.
        false: Its values that count as false; rows with any other are left out.
        other_name: What the other attribute says.
        pairs: Pairs of kinds that are listed.
    """

    repository: str
    text: str
    kind: str
    kinds: Mapping[str, int]
    other: str
    true: tuple[float, ...]
    false: tuple[float, ...]
    other_name: str
    pairs: tuple[tuple[str, str], ...]


_PROFESSIONS = (  # noqa: SIM905 — in the order of their numbers
    "accountant architect attorney chiropractor comedian composer dentist dietitian dj filmmaker interior_designer journalist "
    "model nurse painter paralegal pastor personal_trainer photographer physician poet professor psychologist rapper "
    "software_engineer surgeon teacher yoga_teacher"
).split()
SETS = {
    "bias_in_bios": HubSet(
        "LabHC/bias_in_bios",
        "hard_text",
        "profession",
        {p: i for i, p in enumerate(_PROFESSIONS)},
        "gender",
        (1,),
        (0,),
        "female",
        (("professor", "nurse"), ("architect", "journalist"), ("surgeon", "psychologist"), ("attorney", "teacher")),
    ),
    "amazon": HubSet(
        "canrager/amazon_reviews_mcauley_1and5",
        "text",
        "category",
        {"books": 24, "cds": 26, "software": 30, "electronics": 6, "pets": 18, "office": 11, "industrial": 3, "toys": 1},
        "rating",
        (5,),
        (1,),
        "five stars",
        (("books", "cds"), ("software", "electronics"), ("pets", "office"), ("industrial", "toys")),
    ),
}


def listing() -> dict[str, str]:
    """Names and what they cross."""
    return {f"{name}_{p}_{q}": f"{p} or {q} × {s.other_name} (hf:{s.repository})" for name, s in SETS.items() for p, q in s.pairs}


def is_hub(name: str) -> bool:
    """Whether a set of this name would come from the hub."""
    return name.startswith(tuple(f"{s}_" for s in SETS))


def identity(name: str) -> str:
    """Repository and commit of a set."""
    found, _, _, revision = _parsed(name)
    return f"hf:{found.repository}@{commit(found.repository, revision)}"


def load(name: str) -> TwoWay:
    """Read a set from the hub.

    Raises:
        UsageError: Unknown profession or category.
        UnavailableError: `datasets` is not installed, or the hub refuses or cannot be reached.
    """
    found, p, q, revision = _parsed(name)
    pinned = commit(found.repository, revision)
    source = digest([SPLIT, RULES, name, f"hf:{found.repository}@{pinned}"])
    return two_way(name, read_rows(found.repository, pinned), found, (p, q), source)


def read_rows(repository: str, revision: str | None) -> Iterator[Mapping[str, Any]]:
    """The first 200,000 rows of the training split of a data set on the hub, or in a local folder."""
    return rows(repository, revision, "train")


def two_way(name: str, rows: Iterable[Mapping[str, Any]], found: HubSet, pair: tuple[str, str], source: str) -> TwoWay:
    """Rows of the two kinds as texts with two attributes.

    Args:
        name: Name of the set.
        rows: Rows with the columns that `found` names.
        found: How to read them.
        pair: The two kinds; the first is true.
        source: Identity of the rows.

    Raises:
        UnavailableError: A row lacks a column.
    """
    wanted = {found.kinds[pair[0]]: 2, found.kinds[pair[1]]: 0}
    other = {float(v): 1 for v in found.true} | {float(v): 0 for v in found.false}
    texts: list[str] = []
    codes: list[int] = []
    try:
        for row in rows:
            if row[found.kind] in wanted and float(row[found.other]) in other:
                texts.append(str(row[found.text]))
                codes.append(wanted[row[found.kind]] + other[float(row[found.other])])
    except (KeyError, TypeError) as e:
        raise UnavailableError(f"hf:{found.repository} has no column {e} as expected", "pin the revision with @COMMIT") from e
    usable = clean(SetInfo(name, name, len(texts), name, ""), texts, np.array(codes, dtype=np.int8))
    a, b = usable.labels >= 2, usable.labels % 2 == 1
    return TwoWay(name, usable.texts, a, b, f"{pair[0]}, not {pair[1]}", found.other_name, pair, source, usable.counts)


def _parsed(name: str) -> tuple[HubSet, str, str, str]:
    stem, _, revision = name.partition("@")
    for prefix, found in SETS.items():
        for p in found.kinds:
            q = stem.removeprefix(f"{prefix}_{p}_")
            if q != stem and q in found.kinds and q != p:
                return found, p, q, revision
    raise UsageError(f"no set {name!r}", "see python -m bench data list")
