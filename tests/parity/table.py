"""`python -m tests.parity.table`: every case as a line of docs/parity.md. A case that fails ends it with an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.parity import test_dictionary_learning, test_overcomplete, test_sae_lens, test_sae_lens_old, test_sparsify
from tests.parity.shared import Case, Peer, row

PEERS = (test_dictionary_learning.PEER, test_sparsify.PEER, test_overcomplete.PEER, *test_sae_lens_old.PEERS, test_sae_lens.PEER)
HEAD = "| library | version | architecture | variant | outcome | codes | reconstruction |\n|---|---|---|---|---|---|---|\n"


def lines() -> Iterator[str]:
    """One line a case; one for each library that is not there."""
    for peer in PEERS:
        if why := peer.missing():
            yield f"| {peer.name} | {peer.release} | | | {why} | | |"
            continue
        for case in peer.cases:
            with TemporaryDirectory() as folder:
                yield line(peer, case, Path(folder))


def line(peer: Peer, case: Case, folder: Path) -> str:
    outcome, *errors = row(case, folder)
    cells = (f"{e:.0e}" if e is not None else "" for e in errors)
    return " | ".join((f"| {peer.name}", peer.version, case.architecture, case.variant, outcome, *cells)).rstrip() + " |"


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):  # the libraries print
        table = HEAD + "\n".join(lines())
    print(table)
