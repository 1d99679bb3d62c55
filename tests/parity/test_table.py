"""docs/parity.md is the table of this environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.table import PEERS

pytestmark = pytest.mark.parity

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


def test_the_page_has_a_line_for_every_case_and_no_other() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    absent = [p for p in PEERS if p.missing()]
    written = [tuple(cell.strip() for cell in line.split("|")[1:5]) for line in lines]
    written = [w for w in written if not any(w[0] == p.name and p.release in ("", w[1]) for p in absent)]
    assert written == [(p.name, p.version, c.architecture, c.variant) for p in PEERS if not p.missing() for c in p.cases]


def test_variants_of_an_architecture_have_names_of_their_own() -> None:
    for peer in PEERS:
        assert len({str(c) for c in peer.cases}) == len(peer.cases)
