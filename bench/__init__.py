"""How sparse autoencoders are measured.

`bench.evaluate(sae, tasks=[...])` is the command line from Python; `bench.testing.check_sae` says whether an
object can be evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import evaluate as evaluate

SUITE = "ortsae-bench"


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # imported on first use: `python -m bench --help` must not import torch
        from importlib import import_module

        return import_module("bench.api").evaluate
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
