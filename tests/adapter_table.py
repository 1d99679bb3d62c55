"""`python -m tests.adapter_table`: every format and architecture, and how far what is read lies from its formula.

The formula is written in float64; the checkpoint, its codes and reconstructions are float32. Rows of files written by another
library are compared with that library's own numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.adapters import Given, open_checkpoint
from bench.sae.checkpoint import Loaded
from tests.adapters_cases import SUPPORTED
from tests.adapters_cases_more import MORE
from tests.adapters_layouts import X

FIXTURES = Path(__file__).with_name("fixtures")
Row = tuple[str, str, str, str, float, float]


def measured(loaded: Loaded, x: np.ndarray, codes: np.ndarray, recon: np.ndarray) -> tuple[float, float]:
    """Largest absolute differences of codes and of reconstructions, dense and sparse alike."""
    x32 = torch.tensor(x, dtype=torch.float32)
    dense, sparse = loaded.sae.encode(x32), loaded.sae.encode_sparse(x32.numpy())
    ours = (dense.numpy(), sparse.matrix.toarray()), (loaded.sae.decode(dense).numpy(), loaded.sae.decode_sparse(sparse))
    return max(np.abs(a - codes).max() for a in ours[0]), max(np.abs(a - recon).max() for a in ours[1])


def rows() -> Iterator[Row]:
    """Format, architecture, activation, what was written, error of codes, error of reconstructions."""
    for name, case in (SUPPORTED | MORE).items():
        with TemporaryDirectory() as folder:
            loaded = open_checkpoint(case.write(Path(folder)), case.given)
            codes = case.codes()
            yield (loaded.format, loaded.architecture, loaded.sae.act.name, name, *measured(loaded, X, codes, case.recon(codes)))
    for case in json.loads((FIXTURES / "manifest.json").read_text())["cases"]:
        loaded, expected = open_checkpoint(FIXTURES / case["path"], Given(**case.get("given", {}))), np.load(FIXTURES / case["expected"])
        x, acts, recon = (expected[case["keys"][k]] for k in ("x", "acts", "recon"))
        written = f"by {case['library']} {case['version']}"
        yield (loaded.format, loaded.architecture, loaded.sae.act.name, written, *measured(loaded, x, acts, recon))


def table() -> str:
    """The rows as Markdown, by format."""
    head = "| format | architecture | activation | checkpoint | codes | reconstruction |\n|---|---|---|---|---|---|\n"
    body = (f"| {f} | {a} | {act} | {name} | {codes:.0e} | {recon:.0e} |" for f, a, act, name, codes, recon in sorted(rows()))
    return head + "\n".join(body) + "\n"


if __name__ == "__main__":
    print(table(), end="")
